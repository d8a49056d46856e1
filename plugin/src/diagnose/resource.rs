//! What a resource itself says: its conditions, and whether anybody looks after it at all.

use anneal_api::resources::DeploymentPhase;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::ObjectMeta;

use super::{Finding, Topic, advice};
use crate::{
    age,
    status::{Ending, Report},
    target::Found,
};

/// Seconds after a change within which the operator should have seen it.
const UNSEEN_AFTER: i64 = 30;

/// What the resource says.
pub fn findings(found: &Found, report: &Report, now: Timestamp) -> Vec<Finding> {
    if let Found::Run(run) = found
        && !run.is_ours()
    {
        let manager = run.spec.managed_by.clone().unwrap_or_default();
        let what = format!("managedBy names {manager}: Anneal's operator does not touch this run, so ask there");
        return vec![Finding::note(Topic::Operator, what, vec![])];
    }
    let mut findings: Vec<Finding> = unseen(found, now).into_iter().chain(leaving(found, now)).collect();
    let conditions = conditions(found);
    // The one that says most comes first; the others mostly repeat it.
    for kind in ["Failed", "Degraded", "Stalled", "AutoscalingImpaired", "PreviewImpaired"] {
        findings.extend(holding(conditions, kind).map(|it| told(found, it)));
    }
    if report.ending == Ending::Open {
        findings.extend(waiting(found, conditions));
    }
    findings.extend(word_of_a_person(found));
    findings.extend(unavailable(found, conditions));
    findings
}

fn conditions(found: &Found) -> &[Condition] {
    match found {
        Found::Run(it) => it.status.as_ref().map(|status| &status.conditions),
        Found::Deployment(it) => it.status.as_ref().map(|status| &status.conditions),
        Found::Sweep(it) => it.status.as_ref().map(|status| &status.conditions),
        Found::Schedule(it) => it.status.as_ref().map(|status| &status.conditions),
    }
    .map_or(&[], Vec::as_slice)
}

fn observed(found: &Found) -> Option<i64> {
    match found {
        Found::Run(it) => it.status.as_ref()?.observed_generation,
        Found::Deployment(it) => it.status.as_ref()?.observed_generation,
        Found::Sweep(it) => it.status.as_ref()?.observed_generation,
        Found::Schedule(it) => it.status.as_ref()?.observed_generation,
    }
}

fn holding<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|it| it.type_ == kind && it.status == "True")
}

fn told(found: &Found, condition: &Condition) -> Finding {
    let what = format!("{}: {}", condition.reason, condition.message);
    Finding::problem(Topic::of(&condition.reason), what, advice::about(found, &condition.reason, &condition.message))
}

/// The operator has not seen the newest spec, though it had the time to.
fn unseen(found: &Found, now: Timestamp) -> Option<Finding> {
    let metadata = found.metadata();
    let is_seen = observed(found).is_some() && observed(found) >= metadata.generation;
    let since = changed(metadata)?;
    if is_seen || now.as_second() - since.as_second() < UNSEEN_AFTER {
        return None;
    }
    let what = format!(
        "the operator has not looked at it since it was changed {} ago: it does not run, or not for this namespace",
        age::between(since, now)
    );
    let todo = vec![
        "kubectl get deployments -A -l app.kubernetes.io/part-of=anneal,app.kubernetes.io/component=operator"
            .to_owned(),
        "kubectl -n anneal-system logs -l app.kubernetes.io/component=operator --tail=20".to_owned(),
    ];
    Some(Finding::problem(Topic::Operator, what, todo))
}

/// When the spec was last written: the API server notes it of every writer but those of subresources.
fn changed(metadata: &ObjectMeta) -> Option<Timestamp> {
    let writers = metadata.managed_fields.iter().flatten();
    let of_spec = writers.filter(|it| it.subresource.as_deref().is_none_or(str::is_empty));
    let newest = of_spec.filter_map(|it| it.time.as_ref()).max();
    newest.or(metadata.creation_timestamp.as_ref()).map(|time| time.0)
}

/// It is being deleted, and something holds it.
fn leaving(found: &Found, now: Timestamp) -> Option<Finding> {
    let metadata = found.metadata();
    let since = metadata.deletion_timestamp.as_ref()?;
    let holders = metadata.finalizers.clone().unwrap_or_default().join(", ");
    let what = format!("it is being deleted since {}, and is held by {holders}", age::between(since.0, now));
    Some(Finding::problem(Topic::Other("Deleting".to_owned()), what, advice::about(found, "Deleting", "")))
}

/// Something is in its way that may pass by itself: only the reason tells it from work.
fn waiting(found: &Found, conditions: &[Condition]) -> Option<Finding> {
    let progressing = conditions.iter().find(|it| it.type_ == "Progressing")?;
    let is_known = match Topic::of(&progressing.reason) {
        Topic::Other(reason) => matches!(reason.as_str(), "Crashing" | "BadConfig" | "ContainerConfig"),
        Topic::AwaitingApproval => false,
        _ => true,
    };
    if is_known {
        return Some(told(found, progressing));
    }
    // What waits for something outside says for what; what works has the name of its step for a reason.
    let waits = match found {
        Found::Run(_) => progressing.status == "False" && holding(conditions, "Suspended").is_none(),
        Found::Deployment(it) => it.status.as_ref()?.phase.is_some_and(|phase| phase.as_str() != progressing.reason),
        Found::Sweep(_) | Found::Schedule(_) => false,
    };
    waits.then(|| {
        let what = format!("it waits: {}: {}", progressing.reason, progressing.message);
        Finding::note(
            Topic::of(&progressing.reason),
            what,
            advice::about(found, &progressing.reason, &progressing.message),
        )
    })
}

/// It waits for somebody's word.
fn word_of_a_person(found: &Found) -> Option<Finding> {
    let (name, path) = (found.name(), found.path());
    let note = |reason: &str, what: &str, todo: String| Some(Finding::note(Topic::of(reason), what, vec![todo]));
    let suspended =
        |is: bool| is.then(|| note("Suspended", "it is suspended", format!("kubectl anneal resume {path}"))).flatten();
    match found {
        Found::Deployment(it) => match it.status.as_ref().and_then(|status| status.phase) {
            Some(DeploymentPhase::AwaitingApproval) => note(
                "AwaitingApproval",
                "the candidate has passed and waits for your word",
                format!("kubectl anneal approve {name}   # or abort"),
            ),
            _ if it.spec.paused => note("Paused", "its rollouts are paused", format!("kubectl anneal resume {path}")),
            _ => it.spec.pinned_revision.as_ref().and_then(|revision| {
                note(
                    "Pinned",
                    &format!("revision {revision} is pinned: the model is not followed"),
                    format!("kubectl anneal unpin {name}"),
                )
            }),
        },
        Found::Run(it) => suspended(it.spec.suspend),
        Found::Sweep(it) => suspended(it.spec.suspend),
        Found::Schedule(it) => suspended(it.spec.suspend),
    }
}

/// What has the traffic does not answer.
fn unavailable(found: &Found, conditions: &[Condition]) -> Option<Finding> {
    let Found::Deployment(deployment) = found else { return None };
    let stable = deployment.status.as_ref()?.stable_revision.as_ref()?;
    let available = conditions.iter().find(|it| it.type_ == "Available" && it.status == "False")?;
    let todo = vec![format!("kubectl anneal logs {} --revision {stable}", found.path())];
    Some(Finding::problem(Topic::Other("Unavailable".to_owned()), available.message.clone(), todo))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{children::Children, fixtures, paint::Paint};

    fn of(found: &Found) -> Vec<Finding> {
        let report = Report::of(found, &Children::default(), fixtures::now(), Paint::PLAIN);
        findings(found, &report, fixtures::now())
    }

    fn of_deployment(status: &Value) -> Vec<Finding> {
        of(&Found::Deployment(Box::new(fixtures::deployment(status))))
    }

    #[test]
    fn a_rejected_revision_is_told_once_with_what_to_do() {
        let findings = of_deployment(&json!({
            "phase": "Degraded", "observedGeneration": 1,
            "conditions": [
                fixtures::condition("Degraded", "SmokeTestFailed", "a dog was taken for a cat"),
                fixtures::condition("Stalled", "SmokeTestFailed", "a dog was taken for a cat")
            ]
        }));
        assert_eq!(findings[0].what, "SmokeTestFailed: a dog was taken for a cat");
        assert_eq!(findings[0].todo[0], "kubectl anneal logs mdep/cats --smoke -n demo");
        assert!(findings.iter().all(|finding| finding.topic == findings[0].topic), "{findings:?}");
    }

    #[test]
    fn a_resource_that_nobody_looks_after_says_so_unless_it_is_new() {
        let unseen = of_deployment(&json!({}));
        assert_eq!(unseen[0].topic, Topic::Operator);
        assert!(unseen[0].what.contains("changed 10m ago"), "{unseen:?}");
        let mut young = fixtures::deployment(&json!({}));
        young.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(fixtures::now()));
        assert_eq!(of(&Found::Deployment(Box::new(young))), []);
    }

    #[test]
    fn a_candidate_that_waits_for_a_word_is_a_note_and_no_problem() {
        let findings = of_deployment(&json!({"phase": "AwaitingApproval", "observedGeneration": 1}));
        assert_eq!(findings.len(), 1);
        assert_eq!(
            (findings[0].severity, findings[0].todo[0].as_str()),
            (super::super::Severity::Note, "kubectl anneal approve cats   # or abort")
        );
    }

    #[test]
    fn a_pod_that_lacks_a_secret_is_a_problem_with_the_secret_to_create() {
        let message = "attempt 1: the container cannot be created: secret \"bucket\" not found";
        let run = fixtures::run(&json!({
            "phase": "Preparing", "observedGeneration": 1, "conditions": [fixtures::condition("Progressing", "BadConfig", message)]
        }));
        let findings = of(&Found::Run(Box::new(run)));
        assert_eq!((findings.len(), findings[0].severity), (1, super::super::Severity::Problem));
        assert!(findings[0].todo[0].contains("create secret generic bucket"), "{findings:?}");
    }

    #[test]
    fn a_run_that_is_well_has_nothing_to_tell() {
        let run = fixtures::run(&json!({
            "phase": "Running", "observedGeneration": 1, "conditions": [fixtures::condition("Progressing", "Training", "it trains")]
        }));
        assert_eq!(of(&Found::Run(Box::new(run))), []);
    }
}
