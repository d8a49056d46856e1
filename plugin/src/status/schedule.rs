//! A schedule: when it starts next, and the runs that it started.

use anneal_api::resources::{CronTrainingRun, CronTrainingRunStatus, TrainingRun};
use jiff::Timestamp;
use kube::ResourceExt as _;

use super::{Ending, Report, message};
use crate::{
    age,
    children::Children,
    paint::Paint,
    state::{self, State, Tone},
    tree::Node,
};

/// What is shown of a schedule.
pub fn report(cron: &CronTrainingRun, children: &Children, now: Timestamp, paint: Paint) -> Report {
    let status = cron.status.clone().unwrap_or_default();
    let state = state(cron);
    let zone = cron.spec.time_zone.as_deref().unwrap_or("UTC");
    let last = status.last_schedule_time.as_ref().map(|time| format!("{} ago", age::between(time.0, now)));
    Report {
        kind: "CronTrainingRun",
        namespace: cron.namespace().unwrap_or_default(),
        name: cron.name_any(),
        percent: None,
        summary: summary(&status, now),
        message: message(&status.conditions),
        // A schedule has no end.
        ending: Ending::Open,
        facts: vec![
            ("Schedule", format!("{} ({zone})", paint.bold(&cron.spec.schedule))),
            ("Next", next(&status, now)),
            ("Last start", last.unwrap_or_default()),
        ],
        tree: Node {
            name: cron.name_any(),
            kind: "CronTrainingRun",
            state: state.clone(),
            since: cron.metadata.creation_timestamp.as_ref().map(|time| time.0),
            info: summary(&status, now),
            children: children.runs.iter().rev().map(of_run).collect(),
        },
        state,
    }
}

/// How a schedule is, in one word.
pub fn state(cron: &CronTrainingRun) -> State {
    let Some(status) = &cron.status else { return State::new(Tone::Waiting, state::UNSEEN) };
    let stalled = status.conditions.iter().find(|it| it.type_ == "Stalled" && it.status == "True");
    match (stalled, cron.spec.suspend, status.active.unwrap_or_default()) {
        (Some(stalled), ..) => State::new(Tone::Bad, stalled.reason.clone()),
        (None, true, _) => State::new(Tone::Waiting, "Suspended"),
        (None, false, 0) => State::new(Tone::Good, "Scheduled"),
        (None, false, _) => State::new(Tone::Busy, "Active"),
    }
}

/// In a few words, what a schedule does: for lists and logs.
pub fn summary(status: &CronTrainingRunStatus, now: Timestamp) -> String {
    let active = format!("{} active", status.active.unwrap_or_default());
    let next = next(status, now);
    if next.is_empty() { active } else { format!("{active}, next {next}") }
}

fn next(status: &CronTrainingRunStatus, now: Timestamp) -> String {
    let next = status.next_schedule_time.as_ref().filter(|next| next.0 > now);
    next.map_or_else(String::new, |next| format!("in {}", age::between(now, next.0)))
}

fn of_run(run: &TrainingRun) -> Node {
    let status = run.status.clone().unwrap_or_default();
    Node {
        name: run.name_any(),
        kind: "TrainingRun",
        state: state::of_run(status.phase),
        since: run.metadata.creation_timestamp.as_ref().map(|time| time.0),
        info: super::run::summary(&status),
        children: Vec::new(),
    }
}
