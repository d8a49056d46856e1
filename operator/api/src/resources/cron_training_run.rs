//! `CronTrainingRun`: trainings by the clock.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{RunTemplate, conditions_schema};

/// Names of active runs that are kept in status.
pub const MAX_ACTIVE_RUNS: usize = 32;

/// Trainings by the clock, as a `CronJob` makes Jobs.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "anneal.dev",
    version = "v1alpha1",
    kind = "CronTrainingRun",
    namespaced,
    status = "CronTrainingRunStatus",
    derive = "PartialEq",
    shortname = "ctrun",
    category = "anneal",
    doc = "Trainings by the clock, as a CronJob makes Jobs.",
    printcolumn(name = "Schedule", type_ = "string", json_path = ".spec.schedule"),
    printcolumn(name = "Timezone", type_ = "string", json_path = ".spec.timeZone"),
    printcolumn(name = "Suspend", type_ = "boolean", json_path = ".spec.suspend"),
    printcolumn(name = "Active", type_ = "integer", json_path = ".status.active"),
    printcolumn(name = "Last-Schedule", type_ = "date", json_path = ".status.lastScheduleTime"),
    printcolumn(name = "Last-Success", type_ = "date", json_path = ".status.lastSuccessfulTime"),
    printcolumn(name = "Next", type_ = "string", json_path = ".status.nextScheduleTime"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 31").message("metadata.name must be at most 31 characters: the names of its TrainingRuns are made from it"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name must start with a letter and hold only a-z, 0-9 and -: the names of its TrainingRuns are made from it")
)]
#[x_kube(
    validation = Rule::new("self.schedule.matches('^(@(yearly|annually|monthly|weekly|daily|midnight|hourly)|[^ @]+( [^ ]+){4})$')").message("schedule must be five fields, minute hour day-of-month month day-of-week, such as `30 2 * * 1-5`, or @hourly, @daily, @weekly, @monthly or @yearly; write the time zone under timeZone")
)]
#[serde(rename_all = "camelCase")]
pub struct CronTrainingRunSpec {
    /// When runs start, in cron's five fields: minute, hour, day of month, month, day of week. `30 2 * * 1-5` is half
    /// past two from Monday to Friday. `@daily` and its like are taken too.
    #[schemars(length(min = 1, max = 128))]
    pub schedule: String,
    /// Name of the time zone of the schedule in the IANA database, such as `Europe/Berlin`. Absent: UTC. A fixed time
    /// that a change of clocks skips runs right after it; one that comes twice runs once.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$"))]
    pub time_zone: Option<String>,
    /// What happens at a start while the run before goes on: `Allow` starts beside it, `Forbid` waits for its end,
    /// `Replace` deletes it.
    #[serde(default)]
    pub concurrency_policy: ConcurrencyPolicy,
    /// Seconds that a start may be late, because the operator was down or Forbid held it up. A later one is missed.
    /// Absent: any delay is fine. Of several starts that are due, only the newest runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 31_536_000))]
    pub starting_deadline_seconds: Option<i64>,
    /// Starts nothing while it is true; runs that were started go on.
    #[serde(default)]
    pub suspend: bool,
    /// Runs that succeeded and are kept. Older ones are deleted, unless a `ModelDeployment` refers to them; published
    /// models stay on the claim.
    #[serde(default = "three")]
    #[schemars(range(min = 0, max = 100))]
    pub successful_runs_history_limit: i32,
    /// Runs that failed and are kept.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 100))]
    pub failed_runs_history_limit: i32,
    /// What the runs look like. A change holds from the next start on.
    pub template: RunTemplate,
}

fn one() -> i32 {
    1
}

fn three() -> i32 {
    3
}

/// What happens at a start while the run before goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConcurrencyPolicy {
    /// The new run starts beside it.
    #[default]
    Allow,
    /// The new run waits for its end.
    Forbid,
    /// It is deleted, and the new run starts.
    Replace,
}

/// What the operator knows about a schedule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct CronTrainingRunStatus {
    /// The generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: Ready, Progressing, Stalled, Suspended.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
    /// How many runs go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active: Option<i32>,
    /// Names of the runs that go on, oldest first; the newest 32 of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 253)))]
    pub active_runs: Vec<String>,
    /// The newest time of the schedule for which a run was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_schedule_time: Option<Time>,
    /// The newest time of the schedule that passed without a run, because it was too late for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_missed_time: Option<Time>,
    /// When a run last succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_successful_time: Option<Time>,
    /// The next time of the schedule. Absent while suspended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_schedule_time: Option<Time>,
}
