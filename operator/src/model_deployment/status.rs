//! What the owner is told: the status after a step, its conditions, and an Event for each change. Pure.

use anneal_api::{
    names::label,
    resources::{
        DeploymentPhase, ModelDeploymentStatus, Promotion, Rejection, RevisionStatus, condition, set_condition, unknown,
    },
    smoke::{SmokeReport, Verdict},
    termination::cut,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    canary::{self, ROUTE_ACCEPTED},
    feedback,
    gate::{self, Evidence, rollout_key},
    observe::Observed,
    plan::{Refusal, Step, held, started},
    preflight,
    revision::{Revision, RevisionName},
    shadow, takeover,
    validate::ValidDeployment,
};
use crate::context::Transition;

/// Entries that are kept in `status.revisions`.
const MAX_REVISIONS: usize = 24;
/// Condition types.
const READY: &str = "Ready";
const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const DEGRADED: &str = "Degraded";
const STALLED: &str = "Stalled";
const AUTOSCALING_IMPAIRED: &str = "AutoscalingImpaired";
const PREVIEW_IMPAIRED: &str = "PreviewImpaired";

/// The status after the step.
pub fn next(
    seen: &Observed,
    spec: &ValidDeployment,
    wanted: Option<&Revision>,
    step: &Step,
    now: Timestamp,
) -> ModelDeploymentStatus {
    let mut status = seen.status.clone();
    let live = seen.live().map(|live| live.to_string());
    status.observed_generation = seen.owner.metadata.generation;
    status.stable_revision = match step {
        Step::HandOver(to) => Some(to.name().to_string()),
        Step::Announce(_)
        | Step::Switch(_)
        | Step::GiveUp { .. }
        | Step::SwitchBack(_)
        | Step::Confirm
        | Step::Restore(_) => status.stable_revision,
        _ => live.clone(),
    };
    status.promotion = match step {
        Step::Announce(to) | Step::GiveUp { to, .. } => {
            Some(Promotion { from: live.clone(), to: to.name().to_string(), start_time: Time(now) })
        }
        // However long ago it was announced: how long the endpoints take is counted from here.
        Step::Switch(_) => status.promotion.map(|promotion| Promotion { start_time: Time(now), ..promotion }),
        Step::SwitchBack(_) | Step::Confirm => status.promotion,
        _ => None,
    };
    match step {
        Step::Restore(_) | Step::Confirm => {}
        Step::GiveUp { refusal, .. } => {
            status.candidate_revision = None;
            reject(&mut status, live.as_deref(), refusal, now);
        }
        Step::Withdraw(refusal) => {
            takeover::withdraw(&mut status);
            reject(&mut status, live.as_deref(), refusal, now);
        }
        Step::GiveBack => takeover::withdraw(&mut status),
        Step::Pause => {
            let wanted = wanted.map(|wanted| wanted.name.as_str());
            status.candidate_revision = status.candidate_revision.filter(|candidate| wanted == Some(candidate));
        }
        Step::HandOver(to) => {
            status.candidate_revision = None;
            if let Some(entry) = status.revisions.iter_mut().find(|entry| entry.revision == to.name().as_str()) {
                entry.promoted_time = Some(Time(now));
            }
        }
        _ => {
            if let Some(revision) = wanted.filter(|_| step.has_candidate()) {
                status.smoke = newest_report(seen, spec, revision, now);
                begin(&mut status, seen, revision, step, now);
            } else {
                status.candidate_revision = None;
            }
        }
    }
    if let (Step::Reject(refusal), Some(revision)) = (step, wanted) {
        status.smoke = newest_report(seen, spec, revision, now).or(status.smoke);
        begin(&mut status, seen, revision, step, now);
        status.candidate_revision = None;
        reject(&mut status, Some(revision.name.as_str()), refusal, now);
    }
    status.canary = canary::after(seen, spec, wanted, step, now);
    if let (Step::Settle, Some(wanted)) = (step, wanted)
        && feedback::is_forgiven(seen, spec, &wanted.name)
        && let Some(entry) = status.revisions.iter_mut().find(|entry| entry.revision == wanted.name.as_str())
    {
        entry.rejection = None;
    }
    forget_oldest(&mut status, wanted);
    size(&mut status, seen, spec);
    status.phase = Some(phase(seen, spec, step, &status, now));
    if status.phase == Some(DeploymentPhase::Stable) {
        // What serves has passed; a verdict on what was rejected says nothing about it.
        status.smoke = status.smoke.filter(|report| report.verdict == Verdict::Passed);
    }
    conditions(&mut status, wanted, step, now);
    let foreign = || preflight::of_foreign_autoscaler(seen, spec);
    let impaired = seen.autoscaler.as_ref().and_then(preflight::of_autoscaler).or_else(foreign);
    let (impaired, reason, message) =
        impaired.map_or((false, "NotImpaired", String::new()), |(reason, message)| (true, reason, message));
    let impaired = condition(AUTOSCALING_IMPAIRED, impaired, reason, &message, status.observed_generation);
    set_condition(&mut status.conditions, impaired, now);
    match preflight::of_foreign_preview(seen, spec) {
        Some(message) => {
            let taken = condition(PREVIEW_IMPAIRED, true, preflight::NAME_TAKEN, &message, status.observed_generation);
            set_condition(&mut status.conditions, taken, now);
        }
        None => status.conditions.retain(|condition| condition.type_ != PREVIEW_IMPAIRED),
    }
    match canary::acceptance(seen, spec) {
        Some((value, reason, message)) => {
            let accepted = match value {
                Some(it) => condition(ROUTE_ACCEPTED, it, reason, &message, status.observed_generation),
                None => unknown(ROUTE_ACCEPTED, reason, &message, status.observed_generation),
            };
            set_condition(&mut status.conditions, accepted, now);
        }
        // It tells the next look that there is something to take away.
        None if seen.route.route().is_some() => {}
        None => status.conditions.retain(|condition| condition.type_ != ROUTE_ACCEPTED),
    }
    feedback::record(&mut status, seen, spec, now);
    status
}

fn newest_report(seen: &Observed, spec: &ValidDeployment, revision: &Revision, now: Timestamp) -> Option<SmokeReport> {
    let key = rollout_key(spec, started(&seen.status, &revision.name, now));
    Evidence::of(seen, &revision.name, &key).newest().map(SmokeReport::shortened)
}

/// Makes the revision the candidate, with an entry that says since when.
fn begin(status: &mut ModelDeploymentStatus, seen: &Observed, revision: &Revision, step: &Step, now: Timestamp) {
    let name = revision.name.as_str();
    let former = gate::entry(&seen.status, &revision.name);
    let started = started(&seen.status, &revision.name, now);
    let of_this_rollout = former.filter(|former| former.start_time.0 == started);
    let passed = of_this_rollout.and_then(|former| former.passed_time.clone());
    let is_approved = matches!(step, Step::Announce(_) | Step::Canary { .. }) && passed.is_some();
    let entry = RevisionStatus {
        revision: name.to_owned(),
        sha256: revision.inputs.model.sha256.clone(),
        training_run: revision.origin.training_run.clone(),
        metrics: revision.origin.metrics,
        start_time: Time(started),
        approved_time: of_this_rollout
            .and_then(|former| former.approved_time.clone())
            .or_else(|| is_approved.then_some(Time(now))),
        passed_time: passed.or_else(|| (*step == Step::AwaitApproval).then_some(Time(now))),
        promoted_time: former.and_then(|former| former.promoted_time.clone()),
        rejection: None,
    };
    status.candidate_revision = Some(name.to_owned());
    match status.revisions.iter_mut().find(|entry| entry.revision == name) {
        Some(known) => *known = entry,
        None => status.revisions.push(entry),
    }
}

fn reject(status: &mut ModelDeploymentStatus, revision: Option<&str>, refusal: &Refusal, now: Timestamp) {
    if let Some(entry) = status.revisions.iter_mut().find(|entry| Some(entry.revision.as_str()) == revision) {
        let (reason, message) = (refusal.reason.to_owned(), cut(&refusal.message, 2048));
        entry.rejection = Some(Rejection { reason, message, time: Time(now) });
    }
}

/// Whether the switch that is under way is a way back.
fn is_way_back(status: &ModelDeploymentStatus) -> bool {
    let from = status.promotion.as_ref().and_then(|promotion| promotion.from.as_deref()).and_then(RevisionName::parse);
    from.and_then(|from| gate::entry(status, &from)).is_some_and(|entry| entry.rejection.is_some())
}

fn forget_oldest(status: &mut ModelDeploymentStatus, wanted: Option<&Revision>) {
    let stable = status.stable_revision.clone();
    let needed = |name: &str| stable.as_deref() == Some(name) || wanted.is_some_and(|it| it.name.as_str() == name);
    while status.revisions.len() > MAX_REVISIONS {
        match status.revisions.iter().position(|entry| !needed(&entry.revision)) {
            Some(oldest) => status.revisions.remove(oldest),
            None => return,
        };
    }
}

/// The size of the stable revision, for columns and `/scale`.
fn size(status: &mut ModelDeploymentStatus, seen: &Observed, spec: &ValidDeployment) {
    status.url = Some(format!("http://{}.{}.svc:{}", spec.name, spec.namespace, spec.service.port));
    let stable = status.stable_revision.as_deref().and_then(RevisionName::parse);
    let revision = stable.as_ref().and_then(|stable| seen.revisions.get(stable));
    let count = |all: usize| i32::try_from(all).unwrap_or(i32::MAX);
    let (ready, pods, wanted) = revision.map_or((0, 0, 0), |revision| {
        let ready = revision.pods.iter().filter(|pod| pod.ready).count();
        (count(ready), count(revision.pods.len()), revision.replicas)
    });
    status.replicas = Some(pods);
    status.ready = Some(format!("{ready}/{wanted}"));
    status.selector = stable.map(|stable| format!("{}={},{}={stable}", label::DEPLOYMENT, spec.name, label::REVISION));
}

fn phase(
    seen: &Observed,
    spec: &ValidDeployment,
    step: &Step,
    next: &ModelDeploymentStatus,
    now: Timestamp,
) -> DeploymentPhase {
    let serves = next.stable_revision.is_some();
    match step {
        Step::Wait(_) => DeploymentPhase::Pending,
        Step::Load(_) => DeploymentPhase::Loading,
        Step::Smoke { .. } => DeploymentPhase::SmokeTesting,
        Step::ScaleUp { .. } => DeploymentPhase::ScalingUp,
        Step::AwaitApproval => DeploymentPhase::AwaitingApproval,
        Step::Pause => DeploymentPhase::Paused,
        Step::Canary { canary: Some(canary), .. } if canary.passed_time.is_some() => DeploymentPhase::AwaitingApproval,
        Step::Canary { canary: Some(canary), .. } if shadow::is_shown(canary) => DeploymentPhase::Shadowing,
        Step::Canary { canary: None, .. } if spec.shadow.is_some() => DeploymentPhase::Shadowing,
        Step::Canary { .. } => DeploymentPhase::Canary,
        Step::GiveUp { .. } | Step::SwitchBack(_) | Step::Withdraw(_) | Step::GiveBack => DeploymentPhase::RollingBack,
        Step::Confirm if is_way_back(&seen.status) => DeploymentPhase::RollingBack,
        Step::HandOver(_) if is_way_back(&seen.status) => DeploymentPhase::Degraded,
        Step::Announce(_) | Step::Switch(_) | Step::Confirm => DeploymentPhase::Promoting,
        Step::HandOver(_)
            if (seen.status.stable_revision.is_some() || seen.former.is_some()) && spec.gate.soak.is_positive() =>
        {
            DeploymentPhase::Soaking
        }
        Step::Settle if takeover::until(seen, spec).is_some_and(|until| now < until) => DeploymentPhase::Soaking,
        Step::Settle if held(seen, spec, now).is_some() => DeploymentPhase::Soaking,
        Step::Settle if is_rejected(next, next.stable_revision.as_deref()) => DeploymentPhase::Degraded,
        Step::HandOver(_) | Step::Settle => DeploymentPhase::Stable,
        Step::Restore(_) => next.phase.unwrap_or(DeploymentPhase::Pending),
        Step::Reject(_) | Step::Rejected if serves => DeploymentPhase::Degraded,
        Step::Reject(_) | Step::Rejected => DeploymentPhase::Failed,
    }
}

fn is_rejected(status: &ModelDeploymentStatus, revision: Option<&str>) -> bool {
    let entry = status.revisions.iter().find(|entry| Some(entry.revision.as_str()) == revision);
    entry.is_some_and(|entry| entry.rejection.is_some())
}

/// A condition's status, reason and message.
type Finding = (bool, String, String);

fn conditions(status: &mut ModelDeploymentStatus, wanted: Option<&Revision>, step: &Step, now: Timestamp) {
    let stable = status.stable_revision.as_deref().unwrap_or("none");
    let ready = status.ready.clone().unwrap_or_default();
    let has_ready_pod = !ready.starts_with("0/");
    let name = wanted.map_or("?", |wanted| wanted.name.as_str());
    let rejection = wanted
        .and_then(|wanted| gate::entry(status, &wanted.name))
        .and_then(|entry| entry.rejection.as_ref())
        .map(|rejection| (rejection.reason.clone(), rejection.message.clone()));

    let progressing: Finding = match (&rejection, step, step.waiting()) {
        (Some((reason, message)), ..) => (false, reason.clone(), message.clone()),
        (None, _, Some(waiting)) => (!waiting.stalled, waiting.reason.to_owned(), waiting.message.clone()),
        _ if status.phase == Some(DeploymentPhase::Stable) => {
            (false, "RolloutComplete".to_owned(), format!("revision {stable} has the traffic"))
        }
        _ => {
            let phase = status.phase.map_or("Pending", DeploymentPhase::as_str);
            (true, phase.to_owned(), sentence(step, name, stable))
        }
    };
    let available: Finding = if has_ready_pod {
        (true, "PodsReady".to_owned(), format!("revision {stable} serves, {ready} pods are ready"))
    } else if status.stable_revision.is_some() {
        (false, "PodsNotReady".to_owned(), format!("no pod of revision {stable} is ready ({ready})"))
    } else {
        (false, "NoRevision".to_owned(), "no revision has passed its gate yet".to_owned())
    };
    let is_wanted = rejection.is_none() && matches!(step, Step::Settle | Step::HandOver(_));
    let ready: Finding = match (is_wanted, &available) {
        (true, _) if ready == "0/0" => (true, "ScaledToZero".to_owned(), "no pods are wanted".to_owned()),
        (true, (true, ..)) => (true, "Serving".to_owned(), available.2.clone()),
        (true, _) => (false, available.1.clone(), available.2.clone()),
        (false, _) => (false, progressing.1.clone(), progressing.2.clone()),
    };
    let stalled = step.waiting().filter(|waiting| waiting.stalled);
    let stalled: Finding = match (&rejection, stalled) {
        (Some((reason, message)), _) => (true, reason.clone(), message.clone()),
        (None, Some(waiting)) => (true, waiting.reason.to_owned(), waiting.message.clone()),
        (None, None) => (false, "NotStalled".to_owned(), String::new()),
    };
    let degraded: Finding = match rejection {
        Some((reason, message)) => (true, reason, message),
        None => (false, "NotDegraded".to_owned(), String::new()),
    };
    let all =
        [(READY, ready), (PROGRESSING, progressing), (AVAILABLE, available), (DEGRADED, degraded), (STALLED, stalled)];
    for (kind, (value, reason, message)) in all {
        let new = condition(kind, value, &reason, &message, status.observed_generation);
        set_condition(&mut status.conditions, new, now);
    }
}

fn sentence(step: &Step, candidate: &str, stable: &str) -> String {
    match step {
        Step::Load(_) => format!("revision {candidate} starts and loads its model"),
        Step::Smoke { .. } => format!("the pods of revision {candidate} are asked the questions of the gate"),
        Step::ScaleUp { to: 1, .. } => format!("revision {candidate} grows to one pod"),
        Step::ScaleUp { to, .. } => format!("revision {candidate} grows to {to} pods"),
        Step::AwaitApproval => format!(
            "revision {candidate} has passed; annotate with anneal.dev/approve={candidate} to give it the traffic, or with anneal.dev/abort={candidate}"
        ),
        Step::Pause => format!("revision {candidate} waits for spec.paused to be false"),
        Step::Canary { canary: Some(canary), .. } if canary.passed_time.is_some() => format!(
            "revision {candidate} has done well with {} % of the requests through the Gateway; annotate with anneal.dev/approve={candidate} to go on, or with anneal.dev/abort={candidate}",
            canary.weight
        ),
        Step::Canary { canary: Some(canary), .. } if shadow::is_shown(canary) => shadow::sentence(candidate, canary),
        Step::Canary { canary, .. } => format!(
            "revision {candidate} gets {} % of the requests through the Gateway",
            canary.as_ref().map_or(0, |canary| canary.weight)
        ),
        Step::GiveUp { to, .. } | Step::SwitchBack(to) => format!("the Service moves back to revision {}", to.name()),
        Step::Announce(to) | Step::Switch(to) => format!("the Service moves from revision {stable} to {}", to.name()),
        Step::Confirm => "the Service has moved, its endpoints follow".to_owned(),
        Step::Withdraw(_) | Step::GiveBack => "the Service becomes what it was before it was taken over".to_owned(),
        Step::HandOver(to) => format!("revision {} has the traffic, the former one is held", to.name()),
        Step::Restore(_) => format!("the Service is set back to revision {stable}"),
        _ => format!("revision {stable} has the traffic, the former one is held"),
    }
}

/// The status when nothing can be done before the owner mends something: all but the conditions stays.
pub fn blocked(
    old: &ModelDeploymentStatus,
    generation: Option<i64>,
    reason: &'static str,
    message: &str,
    now: Timestamp,
) -> (ModelDeploymentStatus, Vec<Transition>) {
    let mut status = old.clone();
    status.observed_generation = generation;
    status.phase.get_or_insert(DeploymentPhase::Pending);
    for (kind, value) in [(READY, false), (PROGRESSING, false), (STALLED, true)] {
        set_condition(&mut status.conditions, condition(kind, value, reason, message, generation), now);
    }
    let is_known = reason_of(old, STALLED) == Some(reason) && message_of(old, STALLED) == message_of(&status, STALLED);
    let events = if is_known { Vec::new() } else { vec![Transition::warning(reason, message)] };
    (status, events)
}

fn reason_of<'a>(status: &'a ModelDeploymentStatus, kind: &str) -> Option<&'a str> {
    status.conditions.iter().find(|condition| condition.type_ == kind).map(|condition| condition.reason.as_str())
}

fn message_of<'a>(status: &'a ModelDeploymentStatus, kind: &str) -> Option<&'a str> {
    status.conditions.iter().find(|condition| condition.type_ == kind).map(|condition| condition.message.as_str())
}

/// What changed between two statuses, in the words of Events.
pub fn transitions(
    old: &ModelDeploymentStatus,
    new: &ModelDeploymentStatus,
    wanted: Option<&Revision>,
    step: &Step,
) -> Vec<Transition> {
    let mut events = Vec::new();
    if let Step::Restore(_) = step {
        let stable = new.stable_revision.as_deref().unwrap_or("none");
        let note =
            format!("the Service did not lead to revision {stable} and was set back; only the operator moves it");
        events.push(Transition::warning("SelectorRestored", note));
    }
    if let Some(former) = old.candidate_revision.as_ref().filter(|former| {
        let is_over = new.stable_revision.as_ref() == Some(former)
            || matches!(step, Step::Reject(_))
            || is_rejected(new, Some(former));
        new.candidate_revision.as_ref() != Some(former) && !is_over
    }) {
        events.push(Transition::normal("RolloutCancelled", format!("revision {former} is not wanted any more")));
    }
    if let (Some(candidate), Some(wanted)) = (&new.candidate_revision, wanted)
        && old.candidate_revision.as_ref() != Some(candidate)
    {
        let source =
            wanted.origin.training_run.as_ref().map_or_else(String::new, |run| format!(" of TrainingRun {run}"));
        let note = format!("revision {candidate}: checkpoint {}{source}", wanted.inputs.model.sha256.short(12));
        events.push(Transition::normal("RolloutStarted", note));
    }
    if let Some(report) = new.smoke.as_ref().filter(|report| old.smoke.as_ref() != Some(*report)) {
        match report.verdict {
            Verdict::Passed => events.push(Transition::normal("SmokeTestPassed", report.message.clone())),
            Verdict::Inconclusive => events.push(Transition::warning("SmokeTestInconclusive", report.message.clone())),
            // Told by the rejection.
            Verdict::Failed => {}
        }
    }
    if let Some(waiting) = step.waiting().filter(|waiting| reason_of(old, PROGRESSING) != Some(waiting.reason)) {
        let make = if waiting.stalled { Transition::warning } else { Transition::normal };
        events.push(make(waiting.reason, waiting.message.clone()));
    }
    let impairments = preflight::IMPAIRMENTS.into_iter();
    events.extend(impairments.filter(|it| reason_of(new, AUTOSCALING_IMPAIRED) == Some(it)).filter_map(|reason| {
        let is_news = reason_of(old, AUTOSCALING_IMPAIRED) != Some(reason);
        is_news.then(|| Transition::warning(reason, message_of(new, AUTOSCALING_IMPAIRED).unwrap_or_default()))
    }));
    if let Some(message) = message_of(new, PREVIEW_IMPAIRED).filter(|_| reason_of(old, PREVIEW_IMPAIRED).is_none()) {
        events.push(Transition::warning(preflight::NAME_TAKEN, message));
    }
    if let Step::Canary { canary: Some(canary), .. } = step {
        events.extend(shadow::transitions(old, canary));
    }
    if let Step::Canary { canary: Some(canary), .. } = step
        && !shadow::is_shown(canary)
        && canary.effective_time.is_some()
        && old.canary.as_ref().is_none_or(|old| old.effective_time.is_none())
    {
        let note = format!(
            "revision {} gets {} % of the requests through the Gateway, step {}",
            canary.revision,
            canary.weight,
            canary.step.unwrap_or_default()
        );
        events.push(Transition::normal("WeightSet", note));
    }
    let refused = [canary::NOT_INSTALLED, preflight::NAME_TAKEN, "RouteRefused"].into_iter();
    events.extend(refused.filter(|it| reason_of(new, ROUTE_ACCEPTED) == Some(it)).filter_map(|reason| {
        let is_told = reason_of(old, ROUTE_ACCEPTED) == Some(reason)
            || step.waiting().is_some_and(|waiting| waiting.reason == reason);
        (!is_told).then(|| Transition::warning(reason, message_of(new, ROUTE_ACCEPTED).unwrap_or_default()))
    }));
    events.extend(feedback::transitions(old, new));
    if let Step::Reject(refusal) = step {
        events.push(Transition::warning(refusal.reason, refusal.message.clone()));
    }
    if let Step::GiveUp { refusal, .. } | Step::Withdraw(refusal) = step {
        events.push(Transition::warning(refusal.reason, refusal.message.clone()));
    }
    let waits = |status: &ModelDeploymentStatus| status.phase == Some(DeploymentPhase::AwaitingApproval);
    if waits(new) && !waits(old) {
        let candidate = new.candidate_revision.as_deref().unwrap_or_default();
        events.push(Transition::normal("AwaitingApproval", sentence(step, candidate, "")));
    }
    if let Step::HandOver(to) = step
        && is_way_back(old)
    {
        events.push(Transition::normal("RolledBack", format!("revision {} has the traffic again", to.name())));
    } else if let Step::HandOver(to) = step {
        let from = old.stable_revision.as_deref().map_or_else(String::new, |from| format!(" from revision {from}"));
        events.push(Transition::normal("Promoted", format!("revision {} has the traffic{from}", to.name())));
    }
    if old.phase == Some(DeploymentPhase::Soaking) && new.phase == Some(DeploymentPhase::Stable) {
        let stable = new.stable_revision.as_deref().unwrap_or("none");
        let note = format!("revision {stable} has the traffic, the former one is retired");
        events.push(Transition::normal("RolloutComplete", note));
    }
    events
}
