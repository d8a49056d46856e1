//! What people ask of the operator: by the annotations and fields that it takes, one for each word.

use std::{process::ExitCode, time::Duration};

use anneal_api::{
    names::request,
    resources::{Approval, DeploymentPhase, ModelDeployment, ModelDeploymentStatus, RunPhase},
};
use jiff::Timestamp;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::{
    cluster::Cluster,
    output,
    problem::Problem,
    target::{Found, Kind, Target},
};

/// Time that the operator has to act on a request.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often it is looked whether it has.
const POLL: Duration = Duration::from_millis(250);

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Move a rollout on.
    Promote,
    /// Let the candidate that waits have the traffic.
    Approve,
    /// End a rollout.
    Abort,
    /// Try a rejected revision again.
    Retry,
    /// Make every pod anew.
    Restart,
    /// Go back to a former revision: the one that is named, or the one before.
    Rollback(Option<String>),
    /// Follow the model again.
    Unpin,
    /// Stop or pause.
    Suspend,
    /// Go on.
    Resume,
}

/// A change of the resource that makes a wish known.
#[derive(Clone, Debug, PartialEq)]
struct Change {
    patch: Value,
    /// The annotation that the operator removes once it has acted.
    request: Option<&'static str>,
    /// What was done, as a continuation of the resource's name.
    done: String,
}

impl Change {
    fn annotation(key: &'static str, value: &str, done: String) -> Self {
        Self { patch: json!({"metadata": {"annotations": {key: value}}}), request: Some(key), done }
    }

    fn field(name: &str, value: &Value, done: impl Into<String>) -> Self {
        Self { patch: json!({"spec": {name: value}}), request: None, done: done.into() }
    }
}

/// Makes a wish known, and waits until the operator has acted on it.
///
/// # Errors
/// [`Problem`] when it comes to nothing as things stand, or is refused, or nobody acts.
pub async fn run(cluster: &Cluster, target: &Target, wish: &Wish) -> Result<ExitCode, Problem> {
    let found = cluster.find_one(target, kinds(wish)).await?;
    let change = change(&found, wish, Timestamp::now())?;
    cluster.merge(&found, &change.patch).await?;
    if let (Some(key), Found::Deployment(deployment)) = (change.request, &found) {
        answered(cluster, deployment, key).await?;
    }
    output::lines(&[format!("{} {}", found.path(), change.done)]);
    output::note(&format!("see `kubectl anneal status {} --namespace {} --watch`", found.path(), cluster.namespace));
    Ok(ExitCode::SUCCESS)
}

fn kinds(wish: &Wish) -> &'static [Kind] {
    match wish {
        Wish::Suspend | Wish::Resume => &Kind::ALL,
        _ => &[Kind::Deployment],
    }
}

/// Waits until the operator has removed the annotation: it does so once it has acted on it.
async fn answered(cluster: &Cluster, deployment: &ModelDeployment, key: &str) -> Result<(), Problem> {
    let name = deployment.name_any();
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < PATIENCE {
        let now = cluster.get::<ModelDeployment>(&name).await?;
        if now.is_none_or(|now| !now.annotations().contains_key(key)) {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
    Err(Problem::Pointless(format!(
        "mdep/{name} carries the request {key}, and the operator has not acted on it for {} s; `kubectl anneal diagnose mdep/{name}` says whether it runs",
        PATIENCE.as_secs()
    )))
}

/// What to change, or why the wish comes to nothing.
fn change(found: &Found, wish: &Wish, now: Timestamp) -> Result<Change, Problem> {
    match found {
        Found::Deployment(deployment) => of_deployment(deployment, wish, now),
        Found::Run(run) => {
            let is_over = run.status.as_ref().and_then(|status| status.phase).is_some_and(RunPhase::is_terminal);
            if is_over {
                let message =
                    format!("{} is over; a run that has ended never trains again, so create a new one", found.path());
                return Err(Problem::Pointless(message));
            }
            suspension(
                found,
                wish,
                run.spec.suspend,
                "stops once its pod has written a checkpoint",
                "goes on from its checkpoint",
            )
        }
        Found::Sweep(sweep) => suspension(
            found,
            wish,
            sweep.spec.suspend,
            "starts no trial; those under way stop once they have written a checkpoint",
            "goes on, its trials from their checkpoints",
        ),
        Found::Schedule(cron) => suspension(
            found,
            wish,
            cron.spec.suspend,
            "starts nothing until it is resumed; runs that it started go on",
            "starts runs again",
        ),
    }
}

fn suspension(found: &Found, wish: &Wish, is_suspended: bool, stops: &str, goes_on: &str) -> Result<Change, Problem> {
    let suspend = *wish == Wish::Suspend;
    if suspend == is_suspended {
        let word = if suspend { "suspended already" } else { "not suspended" };
        return Err(Problem::Pointless(format!("{} is {word}; nothing was changed", found.path())));
    }
    Ok(Change::field("suspend", &suspend.into(), if suspend { stops } else { goes_on }))
}

fn of_deployment(deployment: &ModelDeployment, wish: &Wish, now: Timestamp) -> Result<Change, Problem> {
    let name = deployment.name_any();
    let status = deployment.status.clone().unwrap_or_default();
    let phase = status.phase.map_or("not seen by the operator", DeploymentPhase::as_str);
    let candidate = status.candidate_revision.as_deref();
    let pointless = |why: String| Err(Problem::Pointless(format!("mdep/{name} is {phase}: {why}")));
    match wish {
        Wish::Promote if deployment.spec.paused => {
            Ok(Change::field("paused", &false.into(), "goes on with its rollout"))
        }
        Wish::Promote | Wish::Approve => {
            match candidate.filter(|_| status.phase == Some(DeploymentPhase::AwaitingApproval)) {
                Some(candidate) => Ok(Change::annotation(
                    request::APPROVE,
                    candidate,
                    format!("gives the traffic to revision {candidate}, which you approved of"),
                )),
                None => pointless(
                    "no revision waits for a word; one does with gate.approval: Manual, once it has passed its gate"
                        .to_owned(),
                ),
            }
        }
        Wish::Abort => match (candidate, status.phase) {
            (Some(candidate), _) => {
                Ok(Change::annotation(request::ABORT, candidate, format!("ends the rollout of revision {candidate}")))
            }
            (None, Some(DeploymentPhase::Soaking)) => {
                let stable = status.stable_revision.as_deref().unwrap_or("true");
                let done = format!("takes the traffic back from revision {stable}");
                Ok(Change::annotation(request::ABORT, stable, done))
            }
            _ => pointless(format!(
                "no rollout is under way; `kubectl anneal rollback {name}` goes back to the revision before"
            )),
        },
        Wish::Retry => match rejected(&status) {
            Some(revision) => {
                Ok(Change::annotation(request::RETRY, "true", format!("tries revision {revision} again")))
            }
            None => {
                pointless("the revision that is wanted was not rejected, so there is nothing to try again".to_owned())
            }
        },
        Wish::Restart if deployment.spec.pinned_revision.is_some() => {
            pointless(format!("a pinned revision stays as it was written down; `kubectl anneal unpin {name}` first"))
        }
        Wish::Restart => {
            let token = now.as_second().to_string();
            Ok(Change::annotation(request::RESTART, &token, "makes every pod anew, through the gate".to_owned()))
        }
        Wish::Rollback(to) => {
            let to = former(&name, &status, to.as_deref())?;
            // Once its pods are gone, it passes the gate as any other does.
            let word = match deployment.spec.gate.approval {
                Approval::Manual => format!("; once it has passed it waits for `kubectl anneal approve {name}`"),
                Approval::Automatic => String::new(),
            };
            let done = format!("goes back to revision {to} and stays there until `kubectl anneal unpin {name}`{word}");
            Ok(Change::field("pinnedRevision", &to.into(), done))
        }
        Wish::Unpin => match &deployment.spec.pinned_revision {
            Some(_) => Ok(Change::field("pinnedRevision", &Value::Null, "follows its model again")),
            None => pointless("it is not pinned, and follows its model".to_owned()),
        },
        Wish::Suspend | Wish::Resume => {
            let pause = *wish == Wish::Suspend;
            if deployment.spec.paused == pause {
                return pointless(if pause {
                    "it is paused already".to_owned()
                } else {
                    "it is not paused".to_owned()
                });
            }
            let done = if pause {
                "goes no further with its rollout; what serves goes on"
            } else {
                "goes on with its rollout"
            };
            Ok(Change::field("paused", &pause.into(), done))
        }
    }
}

/// The revision that was rejected last, while the deployment rests because of that.
fn rejected(status: &ModelDeploymentStatus) -> Option<&str> {
    let rests = matches!(status.phase, Some(DeploymentPhase::Degraded | DeploymentPhase::Failed));
    let all = status.revisions.iter().filter_map(|it| Some((it.rejection.as_ref()?.time.0, it.revision.as_str())));
    all.max().filter(|_| rests).map(|(_, revision)| revision)
}

/// The revision to go back to: a kept one that is named, else the one that had the traffic last and was not rejected.
fn former(name: &str, status: &ModelDeploymentStatus, to: Option<&str>) -> Result<String, Problem> {
    let others = || status.revisions.iter().filter(|it| Some(&it.revision) != status.stable_revision.as_ref());
    let list = format!("`kubectl anneal rollout {name}` lists the revisions");
    if let Some(to) = to {
        if status.stable_revision.as_deref() == Some(to) {
            return Ok(to.to_owned());
        }
        let mut fits = others().filter(|it| it.revision.starts_with(to)).map(|it| it.revision.clone());
        return match (fits.next(), fits.next()) {
            (Some(one), None) => Ok(one),
            (Some(_), Some(_)) => {
                Err(Problem::Pointless(format!("{to} is the beginning of several revisions; {list}")))
            }
            (None, _) => Err(Problem::Pointless(format!("mdep/{name} has no revision {to}; {list}"))),
        };
    }
    let served = others().filter(|it| it.promoted_time.is_some() && it.rejection.is_none());
    let newest = served.max_by_key(|it| it.promoted_time.clone());
    newest
        .map(|it| it.revision.clone())
        .ok_or_else(|| Problem::Pointless(format!("no former revision of mdep/{name} has served and is kept; {list}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    const SHA: &str = "1111111111111111111111111111111111111111111111111111111111111111";

    fn revision(hash: &str, promoted: Option<&str>, rejected: bool) -> Value {
        let rejection =
            rejected.then(|| json!({"reason": "SmokeTestFailed", "message": "m", "time": "2026-01-02T03:04:05Z"}));
        json!({"revision": hash, "sha256": SHA, "startTime": "2026-01-02T03:04:05Z", "promotedTime": promoted, "rejection": rejection})
    }

    fn asked(status: &Value, wish: &Wish) -> Result<Value, String> {
        let found = Found::Deployment(Box::new(fixtures::deployment(status)));
        change(&found, wish, fixtures::now()).map(|change| change.patch).map_err(|problem| problem.to_string())
    }

    fn annotation(key: &str, value: &str) -> Value {
        json!({"metadata": {"annotations": {key: value}}})
    }

    #[test]
    fn a_request_names_the_revision_that_is_meant() {
        let waits = json!({"phase": "AwaitingApproval", "candidateRevision": "bbbbbbbb"});
        assert_eq!(asked(&waits, &Wish::Approve), Ok(annotation("anneal.dev/approve", "bbbbbbbb")));
        assert_eq!(asked(&waits, &Wish::Promote), Ok(annotation("anneal.dev/approve", "bbbbbbbb")));
        assert_eq!(asked(&waits, &Wish::Abort), Ok(annotation("anneal.dev/abort", "bbbbbbbb")));
        let soaks = json!({"phase": "Soaking", "stableRevision": "aaaaaaaa"});
        assert_eq!(asked(&soaks, &Wish::Abort), Ok(annotation("anneal.dev/abort", "aaaaaaaa")));
        let rests = json!({"phase": "Degraded", "revisions": [revision("cccccccc", None, true)]});
        assert_eq!(asked(&rests, &Wish::Retry), Ok(annotation("anneal.dev/retry", "true")));
        assert_eq!(asked(&rests, &Wish::Restart), Ok(annotation("anneal.dev/restart", "1767323645")));
    }

    #[test]
    fn a_wish_that_comes_to_nothing_says_so_and_changes_nothing() {
        let stable = json!({"phase": "Stable", "stableRevision": "aaaaaaaa"});
        assert_eq!(
            asked(&stable, &Wish::Approve),
            Err("mdep/cats is Stable: no revision waits for a word; one does with gate.approval: Manual, once it has passed its gate".to_owned())
        );
        assert_eq!(
            asked(&stable, &Wish::Abort),
            Err("mdep/cats is Stable: no rollout is under way; `kubectl anneal rollback cats` goes back to the revision before".to_owned())
        );
        for wish in [Wish::Retry, Wish::Unpin, Wish::Resume, Wish::Promote, Wish::Rollback(None)] {
            assert!(asked(&stable, &wish).is_err(), "{wish:?} was taken");
        }
    }

    #[test]
    fn a_rollback_goes_to_the_revision_that_served_last_or_to_the_one_that_is_named() {
        let status = json!({"phase": "Stable", "stableRevision": "dddddddd", "revisions": [
            revision("aaaaaaaa", Some("2026-01-02T03:00:00Z"), false),
            revision("bbbbbbbb", Some("2026-01-02T03:01:00Z"), false),
            revision("cccccccc", Some("2026-01-02T03:02:00Z"), true),
            revision("dddddddd", Some("2026-01-02T03:03:00Z"), false)
        ]});
        let pinned = |revision: &str| Ok(json!({"spec": {"pinnedRevision": revision}}));
        assert_eq!(asked(&status, &Wish::Rollback(None)), pinned("bbbbbbbb"));
        assert_eq!(asked(&status, &Wish::Rollback(Some("aaaa".to_owned()))), pinned("aaaaaaaa"));
        assert_eq!(
            asked(&status, &Wish::Rollback(Some("ffff".to_owned()))),
            Err("mdep/cats has no revision ffff; `kubectl anneal rollout cats` lists the revisions".to_owned())
        );
    }

    #[test]
    fn a_run_is_suspended_and_resumed_until_it_is_over() {
        let asked = |status: Value, wish: &Wish| {
            let found = Found::Run(Box::new(fixtures::run(&status)));
            change(&found, wish, fixtures::now()).map(|change| change.patch).map_err(|problem| problem.to_string())
        };
        assert_eq!(asked(json!({"phase": "Running"}), &Wish::Suspend), Ok(json!({"spec": {"suspend": true}})));
        assert_eq!(
            asked(json!({"phase": "Running"}), &Wish::Resume),
            Err("trun/cats is not suspended; nothing was changed".to_owned())
        );
        assert!(asked(json!({"phase": "Failed"}), &Wish::Suspend).is_err());
    }
}
