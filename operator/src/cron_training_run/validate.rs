//! What the schema cannot check about a schedule: parsed once, so that the plan never looks at raw text.

use anneal_api::resources::{CronTrainingRun, CronTrainingRunSpec};
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use super::schedule::{Schedule, ScheduleError};
use crate::runs::{self, TemplateError};

/// A `CronTrainingRun` whose specification makes sense. Only [`validate`] makes one.
#[derive(Clone, Debug)]
pub struct ValidCron {
    /// Name of the `CronTrainingRun`.
    pub name: String,
    /// When runs start.
    pub schedule: Schedule,
    /// How late a start may be.
    pub starting_deadline: Option<SignedDuration>,
    /// Everything that needs no parsing.
    pub spec: CronTrainingRunSpec,
}

/// A specification cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CronError {
    /// The schedule or its time zone makes no sense.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// The template makes no sense.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

impl CronError {
    /// One word for a condition's reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Schedule(ScheduleError::Zone(_)) => "InvalidTimeZone",
            Self::Schedule(_) => "InvalidSchedule",
            Self::Template(problem) => problem.reason(),
        }
    }
}

/// Parses a `CronTrainingRun`.
///
/// # Errors
/// [`CronError`], with what to write instead.
pub fn validate(cron: &CronTrainingRun) -> Result<ValidCron, CronError> {
    let spec = cron.spec.clone();
    runs::check(&spec.template)?;
    Ok(ValidCron {
        name: cron.name_any(),
        schedule: Schedule::parse(&spec.schedule, spec.time_zone.as_deref())?,
        starting_deadline: spec.starting_deadline_seconds.map(SignedDuration::from_secs),
        spec,
    })
}

impl ValidCron {
    /// Name of the run of a start: it has the start's minute in it, so that no start makes two runs.
    pub fn run_name(&self, start: Timestamp) -> String {
        format!("{}-{}", self.name, start.as_second().div_euclid(60))
    }
}
