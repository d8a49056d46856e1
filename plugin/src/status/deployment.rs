//! A deployment: how far its rollout is, and its revisions with their pods, smoke tests and autoscaler.

use anneal_api::{
    count,
    names::label,
    resources::{
        Approval, Canary, CanaryStatus, DeploymentPhase, ModelDeployment, ModelDeploymentStatus, RevisionStatus,
        StrategyType,
    },
};
use jiff::Timestamp;
use k8s_openapi::api::{
    autoscaling::v2::{HorizontalPodAutoscaler, MetricSpec, MetricStatus},
    batch::v1::Job,
    core::v1::Pod,
};
use kube::ResourceExt as _;

use super::{Ending, Report, hidden, is_observed, message, of_size};
use crate::{
    children::Children,
    paint::Paint,
    pods::{self, is_ready, label_of},
    state::{self, State, Tone},
    tree::Node,
};

/// What is shown of a deployment.
pub fn report(deployment: &ModelDeployment, children: &Children, now: Timestamp, paint: Paint) -> Report {
    let status = deployment.status.clone().unwrap_or_default();
    let state = state::of_deployment(status.phase);
    let is_known = is_observed(&deployment.metadata, status.observed_generation);
    let ending = match status.phase.filter(|_| is_known) {
        Some(DeploymentPhase::Stable) => Ending::Good,
        Some(DeploymentPhase::Degraded | DeploymentPhase::Failed) => Ending::Bad,
        _ => Ending::Open,
    };
    Report {
        kind: "ModelDeployment",
        namespace: deployment.namespace().unwrap_or_default(),
        name: deployment.name_any(),
        percent: None,
        summary: summary(&status),
        message: message(&status.conditions),
        ending,
        facts: vec![
            ("Rollout", steps(deployment, &status, paint)),
            ("Shadow", shadow(deployment, &status, paint)),
            ("Canary", canary(deployment, &status, now, paint)),
            ("Soak", soak(deployment, &status, now, paint)),
            ("Stable", stable(&status)),
            ("Candidate", candidate(&status)),
            ("Smoke", smoke(&status)),
            ("Pinned", pinned(deployment)),
            ("Impaired", impaired(&status)),
            ("Hidden", hidden(children)),
        ],
        tree: tree(deployment, &status, &state, children),
        state,
    }
}

/// In a few words, how a deployment is: for lists and logs.
pub fn summary(status: &ModelDeploymentStatus) -> String {
    let stable = status.stable_revision.as_ref().map(|it| format!("{it} {}", status.ready.clone().unwrap_or_default()));
    let candidate = status.candidate_revision.as_ref().map(|it| format!("candidate {it}"));
    stable.map(|it| format!("{} ready", it.trim_end())).into_iter().chain(candidate).collect::<Vec<_>>().join(", ")
}

/// The steps of a rollout: those that are done, the one under way, those to come.
fn steps(deployment: &ModelDeployment, status: &ModelDeploymentStatus, paint: Paint) -> String {
    use DeploymentPhase::{AwaitingApproval, Canary, Loading, Promoting, ScalingUp, Shadowing, SmokeTesting, Soaking};
    let Some(phase) = status.phase else { return String::new() };
    let mut steps = vec![Loading, SmokeTesting, ScalingUp];
    steps.extend((deployment.spec.gate.approval == Approval::Manual).then_some(AwaitingApproval));
    // The first revision has nobody to share with.
    if let Some(canary) = asked_for(deployment).filter(|_| status.stable_revision.is_some()) {
        steps.extend(canary.shadow.as_ref().map(|_| Shadowing));
        steps.push(Canary);
    }
    steps.push(Promoting);
    steps.extend((deployment.spec.gate.soak_seconds > 0).then_some(Soaking));
    let is_a_steps = status.canary.as_ref().is_some_and(|canary| canary.passed_time.is_some());
    let current = if phase == AwaitingApproval && is_a_steps { Canary } else { phase };
    let Some(at) = steps.iter().position(|step| *step == current) else { return String::new() };
    let shown = steps.iter().enumerate().map(|(i, step)| {
        let tone = match i.cmp(&at) {
            std::cmp::Ordering::Less => Tone::Good,
            std::cmp::Ordering::Equal => state::of_deployment(Some(phase)).tone,
            std::cmp::Ordering::Greater => Tone::Idle,
        };
        paint.tone(tone, &format!("{} {}", tone.sign(), step.as_str()))
    });
    shown.collect::<Vec<_>>().join(&paint.dim(" ─ "))
}

/// The canary that a revision has to go through.
fn asked_for(deployment: &ModelDeployment) -> Option<&Canary> {
    let strategy = &deployment.spec.strategy;
    strategy.canary.as_ref().filter(|_| strategy.kind == StrategyType::Canary)
}

/// How often the candidate agrees with what serves, on copies of requests.
fn shadow(deployment: &ModelDeployment, status: &ModelDeploymentStatus, paint: Paint) -> String {
    let Some(CanaryStatus { step, shadow: Some(found), .. }) = &status.canary else { return String::new() };
    let agreement = found.agreement.map(|it| format!(", agreement {it}")).unwrap_or_default();
    let (compared, percent) = (found.compared, found.percent);
    match asked_for(deployment).and_then(|canary| canary.shadow.as_ref()).filter(|_| *step == Some(0)) {
        None => format!("{compared} requests compared{agreement}"),
        Some(bounds) => {
            let enough = i64::from(bounds.min_requests.max(1));
            format!(
                "{}  {compared} of {enough} requests compared{agreement} ({} is asked for), {percent} % are copied",
                paint.bar(Tone::Busy, compared * 100 / enough),
                bounds.min_agreement
            )
        }
    }
}

/// Which share the candidate has, and how much of its time is over.
fn canary(deployment: &ModelDeployment, status: &ModelDeploymentStatus, now: Timestamp, paint: Paint) -> String {
    let share = status.canary.as_ref().and_then(|it| Some((it, usize::try_from(it.step?).ok()?.checked_sub(1)?)));
    let Some((canary, index)) = share else { return String::new() };
    let steps = asked_for(deployment).map(|asked| asked.steps.as_slice()).unwrap_or_default();
    let what = format!("step {} of {}, {} % of the requests", index + 1, steps.len(), canary.weight);
    let pause = steps.get(index).map_or(0, |step| step.pause_seconds);
    match (&canary.effective_time, &canary.passed_time) {
        (_, Some(_)) => format!("{what}, waits for your word"),
        (Some(since), None) => {
            let (percent, left) = elapsed(since.0, pause, now);
            format!("{}  {what}, {left} s left", paint.bar(Tone::Busy, percent))
        }
        (None, None) => format!("{what}, once the Gateway has taken it"),
    }
}

/// How much of some seconds is over, in percent, and what is left of them.
fn elapsed(since: Timestamp, seconds: i32, now: Timestamp) -> (i64, i64) {
    let all = i64::from(seconds.max(1));
    let over = (now.as_second() - since.as_second()).clamp(0, all);
    (over * 100 / all, all - over)
}

/// How much of the soak is over.
fn soak(deployment: &ModelDeployment, status: &ModelDeploymentStatus, now: Timestamp, paint: Paint) -> String {
    let stable = status.revisions.iter().find(|it| Some(&it.revision) == status.stable_revision.as_ref());
    let since =
        stable.and_then(|it| it.promoted_time.as_ref()).filter(|_| status.phase == Some(DeploymentPhase::Soaking));
    let Some(since) = since else { return String::new() };
    let (percent, left) = elapsed(since.0, deployment.spec.gate.soak_seconds, now);
    format!("{}  {left} s left until the former revision goes", paint.bar(Tone::Busy, percent))
}

fn stable(status: &ModelDeploymentStatus) -> String {
    let Some(stable) = &status.stable_revision else { return "none yet: the Service leads nowhere".to_owned() };
    let url = status.url.as_ref().map(|url| format!(", {url}")).unwrap_or_default();
    format!("{stable}, {} pods ready{url}", status.ready.clone().unwrap_or_default())
}

fn candidate(status: &ModelDeploymentStatus) -> String {
    let Some(candidate) = &status.candidate_revision else { return String::new() };
    let known = status.revisions.iter().find(|it| it.revision == *candidate);
    let origin = known.map(origin).filter(|origin| !origin.is_empty());
    origin.map_or_else(|| candidate.clone(), |origin| format!("{candidate}, {origin}"))
}

/// Where a revision's model comes from, and how good it is.
fn origin(revision: &RevisionStatus) -> String {
    let run = revision.training_run.as_ref().map(|run| format!("run {run}"));
    let accuracy = revision.metrics.map(|metrics| format!("accuracy {:.4}", metrics.accuracy));
    run.into_iter().chain(accuracy).collect::<Vec<_>>().join(", ")
}

fn smoke(status: &ModelDeploymentStatus) -> String {
    let Some(report) = &status.smoke else { return String::new() };
    let p95 = report.p95_milliseconds.map(|p95| format!(", p95 {p95:.1} ms")).unwrap_or_default();
    let (passed, all) = (report.passed, report.passed + report.failed);
    format!("{}, {passed} of {all} checks passed{p95}", report.verdict.as_str())
}

fn pinned(deployment: &ModelDeployment) -> String {
    deployment.spec.pinned_revision.as_ref().map_or_else(String::new, |revision| {
        format!("{revision}; `kubectl anneal unpin {}` follows the model again", deployment.name_any())
    })
}

fn impaired(status: &ModelDeploymentStatus) -> String {
    let impaired = status.conditions.iter().filter(|it| it.type_.ends_with("Impaired") && it.status == "True");
    impaired.map(|it| it.message.as_str()).collect::<Vec<_>>().join("; ")
}

fn tree(deployment: &ModelDeployment, status: &ModelDeploymentStatus, state: &State, children: &Children) -> Node {
    let name = deployment.name_any();
    let is_there = |revision: &RevisionStatus| {
        let hash = Some(revision.revision.as_str());
        let is_current = [&status.stable_revision, &status.candidate_revision].iter().any(|it| it.as_deref() == hash);
        is_current || children.deployments.iter().any(|it| label_of(it, label::REVISION) == hash)
    };
    let revisions = status.revisions.iter().rev().filter(|revision| is_there(revision));
    let revisions = revisions.map(|revision| of_revision(status, revision, children));
    Node {
        kind: "ModelDeployment",
        state: state.clone(),
        since: deployment.metadata.creation_timestamp.as_ref().map(|time| time.0),
        info: summary(status),
        children: revisions.chain(children.autoscalers.iter().map(of_autoscaler)).collect(),
        name,
    }
}

/// How a revision stands: its part in the rollout.
pub fn standing(status: &ModelDeploymentStatus, revision: &RevisionStatus) -> State {
    let is = |other: &Option<String>| other.as_ref() == Some(&revision.revision);
    if is(&status.stable_revision) {
        State::new(Tone::Good, "stable")
    } else if is(&status.candidate_revision) {
        State::new(Tone::Busy, "candidate")
    } else if let Some(rejection) = &revision.rejection {
        State::new(Tone::Bad, rejection.reason.clone())
    } else if revision.promoted_time.is_some() {
        State::new(Tone::Idle, "former")
    } else {
        State::new(Tone::Idle, "cancelled")
    }
}

fn of_revision(status: &ModelDeploymentStatus, revision: &RevisionStatus, children: &Children) -> Node {
    let hash = Some(revision.revision.as_str());
    let deployment = children.deployments.iter().find(|it| label_of(*it, label::REVISION) == hash);
    let wanted = deployment.and_then(|it| it.spec.as_ref()).and_then(|spec| spec.replicas);
    let servers = children.pods.iter().filter(|pod| label_of(*pod, label::REVISION) == hash);
    let ready = i32::try_from(servers.clone().filter(|pod| is_ready(pod)).count()).unwrap_or(i32::MAX);
    let size = wanted.map(|wanted| match of_size(ready, wanted) {
        Tone::Idle => "no pods".to_owned(),
        _ => format!("{ready}/{wanted} pods ready"),
    });
    let origin = Some(origin(revision)).filter(|origin| !origin.is_empty());
    let rejection = revision.rejection.as_ref().map(|rejection| rejection.message.clone());
    // Of several smoke tests, the newest tells how it stands.
    let mut tests = children.jobs.iter().filter(|job| label_of(*job, label::REVISION) == hash);
    let smoke = tests.next_back().map(|job| of_smoke_test(job, &children.pods));
    Node {
        name: revision.revision.clone(),
        kind: "Revision",
        state: standing(status, revision),
        since: Some(revision.start_time.0),
        info: size.into_iter().chain(origin).chain(rejection).collect::<Vec<_>>().join(", "),
        children: servers.map(pods::node).chain(smoke).collect(),
    }
}

fn of_smoke_test(job: &Job, all: &[Pod]) -> Node {
    let name = job.name_any();
    let conditions = job.status.as_ref().and_then(|status| status.conditions.as_ref());
    let is = |kind: &str| conditions.is_some_and(|all| all.iter().any(|it| it.type_ == kind && it.status == "True"));
    let state = match () {
        () if is("Complete") => State::new(Tone::Good, "Passed"),
        () if is("Failed") => State::new(Tone::Bad, "Failed"),
        () => State::new(Tone::Busy, "Asking"),
    };
    let pod = all.iter().find(|pod| label_of(*pod, "batch.kubernetes.io/job-name") == Some(&name));
    let told = pod.map(|pod| pods::seen(pod).message).unwrap_or_default();
    let since = job.metadata.creation_timestamp.as_ref().map(|time| time.0);
    Node { name, kind: "SmokeTest", state, since, info: told, children: Vec::new() }
}

fn of_autoscaler(autoscaler: &HorizontalPodAutoscaler) -> Node {
    let spec = autoscaler.spec.clone().unwrap_or_default();
    let status = autoscaler.status.clone().unwrap_or_default();
    let inactive = status.conditions.iter().flatten().find(|it| it.type_ == "ScalingActive" && it.status == "False");
    let uses =
        spec.metrics.iter().flatten().filter_map(|metric| utilisation(metric, status.current_metrics.as_deref()));
    let bounds = format!("{} to {} pods", spec.min_replicas.unwrap_or(1), spec.max_replicas);
    let why = inactive.and_then(|it| it.message.clone());
    Node {
        name: autoscaler.name_any(),
        kind: "Autoscaler",
        state: match (inactive, &status.conditions) {
            (Some(_), _) => State::new(Tone::Waiting, "NoMetrics"),
            (None, Some(_)) => State::new(Tone::Good, count::of(status.current_replicas.unwrap_or_default(), "pod")),
            (None, None) => State::new(Tone::Busy, "Starting"),
        },
        since: autoscaler.metadata.creation_timestamp.as_ref().map(|time| time.0),
        info: [bounds].into_iter().chain(uses).chain(why).collect::<Vec<_>>().join(", "),
        children: Vec::new(),
    }
}

/// A metric as `kubectl get hpa` tells it: what is used of what is aimed at.
fn utilisation(metric: &MetricSpec, current: Option<&[MetricStatus]>) -> Option<String> {
    let wanted = metric.resource.as_ref()?;
    let now = current.unwrap_or_default().iter().filter_map(|it| it.resource.as_ref());
    let used = now.filter(|it| it.name == wanted.name).find_map(|it| it.current.average_utilization);
    let used = used.map_or_else(|| "?".to_owned(), |used| format!("{used}%"));
    Some(format!("{} {used}/{}%", wanted.name, wanted.target.average_utilization?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixtures;

    const SHA: &str = "1111111111111111111111111111111111111111111111111111111111111111";

    #[test]
    fn a_rollout_shows_its_steps_and_its_revisions_with_their_pods() {
        let deployment = fixtures::deployment(&json!({
            "phase": "SmokeTesting", "observedGeneration": 1, "stableRevision": "4be36a0c", "candidateRevision": "e300d319",
            "ready": "1/1", "url": "http://cats.demo.svc:80",
            "conditions": [fixtures::condition("Progressing", "SmokeTesting", "the pods of revision e300d319 are asked")],
            "revisions": [
                {"revision": "4be36a0c", "sha256": SHA, "trainingRun": "first", "startTime": "2026-01-02T03:04:05Z", "promotedTime": "2026-01-02T03:05:05Z"},
                {"revision": "e300d319", "sha256": SHA, "trainingRun": "second", "startTime": "2026-01-02T03:13:05Z"}
            ]
        }));
        let server = |name: &str, revision: &str, status: serde_json::Value| {
            fixtures::pod(name, &json!({"anneal.dev/revision": revision}), &status)
        };
        let ready = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        let pods = vec![
            server("cats-4be36a0c-1", "4be36a0c", ready),
            server("cats-e300d319-1", "e300d319", json!({"phase": "Pending"})),
        ];
        let report = report(&deployment, &Children { pods, ..Children::default() }, fixtures::now(), Paint::PLAIN);
        assert_eq!(
            report.lines(fixtures::now(), Paint::PLAIN).join("\n"),
            "\
ModelDeployment:  cats
Namespace:        demo
Phase:            ◌ SmokeTesting
Rollout:          ✔ Loading ─ ◌ SmokeTesting ─ ○ ScalingUp ─ ○ Promoting ─ ○ Soaking
Stable:           4be36a0c, 1/1 pods ready, http://cats.demo.svc:80
Candidate:        e300d319, run second
Message:          the pods of revision e300d319 are asked

NAME                   KIND             STATUS          AGE  INFO
cats                   ModelDeployment  ◌ SmokeTesting  10m  4be36a0c 1/1 ready, candidate e300d319
├─ e300d319            Revision         ◌ candidate     60s  run second
│  └─ cats-e300d319-1  Pod              ◌ Starting      10m  node-1
└─ 4be36a0c            Revision         ✔ stable        10m  run first
   └─ cats-4be36a0c-1  Pod              ✔ Ready         10m  node-1"
        );
        assert_eq!(report.ending, Ending::Open);
    }

    #[test]
    fn a_rollout_is_at_rest_only_when_the_operator_has_seen_the_newest_spec() {
        let ending = |observed: i64| {
            let deployment = fixtures::deployment(&json!({"phase": "Stable", "observedGeneration": observed}));
            report(&deployment, &Children::default(), fixtures::now(), Paint::PLAIN).ending
        };
        assert_eq!((ending(0), ending(1)), (Ending::Open, Ending::Good));
    }

    #[test]
    fn a_soak_shows_how_much_of_it_is_left() {
        let deployment = fixtures::deployment(&json!({
            "phase": "Soaking", "stableRevision": "4be36a0c",
            "revisions": [{"revision": "4be36a0c", "sha256": SHA, "startTime": "2026-01-02T03:04:05Z", "promotedTime": "2026-01-02T03:13:20Z"}]
        }));
        let status = deployment.status.clone().expect("a status");
        let shown = soak(&deployment, &status, fixtures::now(), Paint::PLAIN);
        assert_eq!(shown, "██████████████████░░░░░░  75%  15 s left until the former revision goes");
    }

    /// A deployment that asks for a canary of two steps, after copies of requests.
    fn with_canary(status: &serde_json::Value) -> ModelDeployment {
        let mut deployment = fixtures::deployment(status);
        deployment.spec.strategy = serde_json::from_value(json!({"type": "Canary", "canary": {
            "parentRefs": [{"name": "edge"}], "steps": [{"setWeight": 10, "pauseSeconds": 90}, {"setWeight": 50}],
            "shadow": {"minAgreement": 0.95}
        }}))
        .expect("a strategy");
        deployment
    }

    #[test]
    fn copies_of_requests_show_how_often_the_candidate_agrees() {
        let deployment = with_canary(&json!({
            "phase": "Shadowing", "stableRevision": "4be36a0c", "candidateRevision": "e300d319",
            "canary": {"revision": "e300d319", "step": 0, "weight": 0, "startTime": "2026-01-02T03:13:05Z",
                "shadow": {"percent": 100, "compared": 50, "agreed": 48, "agreement": 0.96}}
        }));
        let status = deployment.status.clone().expect("a status");
        assert_eq!(
            steps(&deployment, &status, Paint::PLAIN),
            "✔ Loading ─ ✔ SmokeTesting ─ ✔ ScalingUp ─ ◌ Shadowing ─ ○ Canary ─ ○ Promoting ─ ○ Soaking"
        );
        assert_eq!(
            shadow(&deployment, &status, Paint::PLAIN),
            "████████████░░░░░░░░░░░░  50%  50 of 100 requests compared, agreement 0.96 (0.95 is asked for), 100 % are copied"
        );
        assert_eq!(canary(&deployment, &status, fixtures::now(), Paint::PLAIN), "");
    }

    #[test]
    fn a_share_shows_its_step_and_what_is_left_of_it() {
        let shown = |phase: &str, times: serde_json::Value| {
            let mut canary = json!({"revision": "e300d319", "step": 1, "weight": 10, "startTime": "2026-01-02T03:13:05Z",
                "shadow": {"percent": 100, "compared": 100, "agreed": 100, "agreement": 1.0}});
            canary.as_object_mut().expect("an object").extend(times.as_object().expect("an object").clone());
            let deployment = with_canary(&json!({"phase": phase, "stableRevision": "4be36a0c", "canary": canary}));
            let status = deployment.status.clone().expect("a status");
            let paint = Paint::PLAIN;
            let lines = (steps(&deployment, &status, paint), shadow(&deployment, &status, paint));
            (lines, super::canary(&deployment, &status, fixtures::now(), paint))
        };
        let (lines, share) = shown("Canary", json!({"effectiveTime": "2026-01-02T03:13:05Z"}));
        assert_eq!(lines.1, "100 requests compared, agreement 1");
        assert!(lines.0.ends_with("✔ Shadowing ─ ◌ Canary ─ ○ Promoting ─ ○ Soaking"), "{}", lines.0);
        assert_eq!(share, "███████████████░░░░░░░░░  66%  step 1 of 2, 10 % of the requests, 30 s left");
        let effective = json!({"effectiveTime": "2026-01-02T03:12:05Z", "passedTime": "2026-01-02T03:13:35Z"});
        let (lines, share) = shown("AwaitingApproval", effective);
        assert!(lines.0.contains("─ ‖ Canary ─"), "{}", lines.0);
        assert_eq!(share, "step 1 of 2, 10 % of the requests, waits for your word");
    }

    #[test]
    fn a_first_revision_shows_no_steps_of_a_canary() {
        let deployment = with_canary(&json!({"phase": "Loading", "candidateRevision": "e300d319"}));
        let shown = steps(&deployment, &deployment.status.clone().expect("a status"), Paint::PLAIN);
        assert_eq!(shown, "◌ Loading ─ ○ SmokeTesting ─ ○ ScalingUp ─ ○ Promoting ─ ○ Soaking");
    }
}
