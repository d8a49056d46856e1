//! Warnings of the last hour about a resource and what was made for it, where nothing else has told the same. They explain why
//! something does not move: of what is well they tell nothing.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Pod};

use super::{Finding, Severity, Topic, advice};
use crate::{
    age,
    children::Children,
    pods,
    state::Tone,
    status::{Ending, Report},
    target::Found,
};

/// How long a warning is of interest, in seconds.
const RECENT: i64 = 3600;
/// How long one may explain why something does not move, in seconds.
const PRESENT: i64 = 300;
/// Warnings that are told at most.
const MOST: usize = 5;

/// The warnings, newest first.
pub fn findings(
    found: &Found,
    children: &Children,
    report: &Report,
    events: &[Event],
    known: &[Finding],
    now: Timestamp,
) -> Vec<Finding> {
    if is_well(found) && !known.iter().any(|known| known.severity == Severity::Problem) {
        return Vec::new();
    }
    let names = names(children);
    let mut about: Vec<(i64, &Event)> = events
        .iter()
        .filter(|event| event.type_.as_deref() == Some("Warning"))
        .filter(|event| is_itself(event, found) || is_about(event, &names))
        // The operator's Events repeat its conditions.
        .filter(|event| !known.iter().any(|known| event.message.as_ref().is_some_and(|it| it.contains(&known.what))))
        .filter(|event| !is_past(event, &children.pods))
        .filter_map(|event| Some((now.as_second() - time(event)?.as_second(), event)))
        .filter(|(age, _)| *age < RECENT)
        .collect();
    about.sort_by_key(|(age, _)| *age);
    let mut told = BTreeSet::new();
    about.retain(|(_, event)| told.insert(event.reason.clone()));
    about.into_iter().take(MOST).map(|(age, event)| finding(found, report, event, age, now)).collect()
}

fn finding(found: &Found, report: &Report, event: &Event, age: i64, now: Timestamp) -> Finding {
    let reason = event.reason.clone().unwrap_or_default();
    let object = &event.involved_object;
    let (kind, name) = (object.kind.clone().unwrap_or_default(), object.name.clone().unwrap_or_default());
    let ago = time(event).map(|time| age::between(time, now)).unwrap_or_default();
    let what = format!("{reason}, of {kind} {name}, {ago} ago: {}", event.message.as_deref().unwrap_or_default());
    let topic = topic(found, event, &reason);
    let stands_in_the_way = !matches!(topic, Topic::Other(_)) && age < PRESENT && report.ending == Ending::Open;
    let todo = match &topic {
        Topic::Quota => advice::about(found, "QuotaExceeded", ""),
        Topic::Scheduling => advice::about(found, "Unschedulable", ""),
        Topic::Volume => advice::about(found, "VolumeMissing", ""),
        _ => vec![],
    };
    let severity = if stands_in_the_way { Severity::Problem } else { Severity::Note };
    Finding { topic, severity, what, todo }
}

/// Whether it does what it should, or waits for a person's word.
fn is_well(found: &Found) -> bool {
    use anneal_api::resources::{DeploymentPhase as Rollout, RunPhase, SweepPhase};
    match found {
        Found::Run(it) => matches!(
            it.status.as_ref().and_then(|status| status.phase),
            Some(RunPhase::Running | RunPhase::Suspended | RunPhase::Succeeded)
        ),
        Found::Deployment(it) => matches!(
            it.status.as_ref().and_then(|status| status.phase),
            Some(Rollout::Stable | Rollout::AwaitingApproval | Rollout::Paused)
        ),
        Found::Sweep(it) => matches!(
            it.status.as_ref().and_then(|status| status.phase),
            Some(SweepPhase::Running | SweepPhase::Suspended | SweepPhase::Succeeded)
        ),
        Found::Schedule(_) => false,
    }
}

/// Whether a pod has overcome what an Event says of it: it runs as it should or has ended well, or it has found its node since.
fn is_past(event: &Event, pods: &[Pod]) -> bool {
    let object = &event.involved_object;
    if object.kind.as_deref() != Some("Pod") {
        return false;
    }
    let Some(pod) = pods.iter().find(|pod| pod.metadata.name == object.name) else { return false };
    let is_namesakes = object.uid.is_some() && object.uid != pod.metadata.uid;
    let state = pods::seen(pod).state;
    let is_scheduled = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    let is_about_node = event.reason.as_deref() == Some("FailedScheduling");
    let runs = state.tone == Tone::Good || state.word == "Running";
    is_namesakes || runs || is_scheduled && is_about_node
}

/// What an Event is about. The operator's own begin with the reason that its conditions have.
fn topic(found: &Found, event: &Event, reason: &str) -> Topic {
    let message = event.message.as_deref().unwrap_or_default();
    let word = message.split_once(": ").map(|(word, _)| word).filter(|_| is_itself(event, found));
    let word = word.filter(|word| word.chars().all(char::is_alphanumeric));
    Topic::told(word.unwrap_or(reason), message)
}

fn time(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0);
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    series.or(last).or(event.event_time.as_ref().map(|time| time.0))
}

/// Whether an Event is about the resource itself.
fn is_itself(event: &Event, found: &Found) -> bool {
    let object = &event.involved_object;
    object.kind.as_deref() == Some(found.kind().as_str()) && object.name.as_ref() == Some(&found.name())
}

/// Names of what was made for a resource.
fn names(children: &Children) -> BTreeSet<String> {
    let jobs = children.jobs.iter().map(kube::ResourceExt::name_any);
    let pods = children.pods.iter().map(kube::ResourceExt::name_any);
    let deployments = children.deployments.iter().map(kube::ResourceExt::name_any);
    jobs.chain(pods).chain(deployments).collect()
}

/// Whether an Event is about one of them, or about the `ReplicaSet` of a Deployment among them.
fn is_about(event: &Event, names: &BTreeSet<String>) -> bool {
    let Some(name) = event.involved_object.name.as_deref() else { return false };
    let owner = || name.rsplit_once('-').map(|(owner, _)| owner);
    match event.involved_object.kind.as_deref() {
        Some("Job" | "Pod" | "Deployment") => names.contains(name),
        Some("ReplicaSet") => owner().is_some_and(|owner| names.contains(owner)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{fixtures, paint::Paint};

    fn event(kind: &str, name: &str, reason: &str, time: &str) -> Event {
        let object = json!({"kind": kind, "name": name});
        let event = json!({"metadata": {}, "involvedObject": object, "type": "Warning", "reason": reason, "message": "m", "lastTimestamp": time});
        serde_json::from_value(event).expect("an event")
    }

    #[test]
    fn a_warning_about_what_was_made_for_a_resource_is_told_and_one_about_others_or_of_long_ago_is_not() {
        let found = Found::Deployment(Box::new(fixtures::deployment(&json!({"phase": "Loading"}))));
        let deployment = json!({"metadata": {"name": "cats-4be36a0c"}});
        let children = Children {
            deployments: vec![serde_json::from_value(deployment).expect("a Deployment")],
            ..Children::default()
        };
        let report = Report::of(&found, &children, fixtures::now(), Paint::PLAIN);
        let events = [
            event("ReplicaSet", "cats-4be36a0c-7f9d", "FailedCreate", "2026-01-02T03:13:35Z"),
            event("ReplicaSet", "dogs-4be36a0c-7f9d", "FailedCreate", "2026-01-02T03:13:35Z"),
            event("ModelDeployment", "cats", "NothingToRetry", "2026-01-02T01:13:35Z"),
        ];
        let findings = findings(&found, &children, &report, &events, &[], fixtures::now());
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!(findings[0].what, "FailedCreate, of ReplicaSet cats-4be36a0c-7f9d, 30s ago: m");
        assert_eq!(findings[0].todo, ["kubectl -n demo describe resourcequotas"]);
        assert_eq!(findings[0].severity, Severity::Problem);
    }

    #[test]
    fn what_a_pod_has_overcome_is_not_told() {
        let found = Found::Run(Box::new(fixtures::run(&json!({"phase": "Preparing"}))));
        let told = |pod: Option<Pod>| {
            let children = Children { pods: pod.into_iter().collect(), ..Children::default() };
            let report = Report::of(&found, &children, fixtures::now(), Paint::PLAIN);
            let events = [event("Pod", "cats-1-x", "FailedScheduling", "2026-01-02T03:13:35Z")];
            findings(&found, &children, &report, &events, &[], fixtures::now()).len()
        };
        let scheduled = |phase: &str| fixtures::pod("cats-1-x", &json!({}), &json!({"phase": phase}));
        let mut waits = scheduled("Pending");
        waits.spec.as_mut().expect("a spec").node_name = None;
        assert_eq!(told(Some(waits)), 1);
        assert_eq!(told(Some(scheduled("Pending"))), 0);
        assert_eq!(told(Some(scheduled("Running"))), 0);
        assert_eq!(told(None), 0, "of a pod that is gone");
    }

    #[test]
    fn of_what_is_well_no_warning_is_told() {
        let findings = |phase: &str, known: &[Finding]| {
            let found = Found::Run(Box::new(fixtures::run(&json!({"phase": phase}))));
            let report = Report::of(&found, &Children::default(), fixtures::now(), Paint::PLAIN);
            let events = [event("TrainingRun", "cats", "FailedCreate", "2026-01-02T03:13:35Z")];
            findings(&found, &Children::default(), &report, &events, known, fixtures::now()).len()
        };
        for phase in ["Running", "Succeeded", "Suspended"] {
            assert_eq!(findings(phase, &[]), 0, "{phase}");
        }
        let problem = Finding::problem(Topic::Operator, "the operator does not run", vec![]);
        assert_eq!(findings("Running", &[problem]), 1);
        assert_eq!(findings("Preparing", &[]), 1);
    }
}
