//! What should happen next. Pure and total: every observation has a plan, and every plan says when to look again.

use anneal_api::resources::{Approval, CanaryStatus, DeploymentPhase, ModelDeploymentStatus, RevisionStatus};
use jiff::{SignedDuration, Timestamp};

use super::{
    canary,
    desired::{Desired, desired},
    feedback,
    gate::{self, Candidate, Evidence, Gated, Lack, rollout_key},
    observe::{Observed, RevisionSeen},
    preflight,
    requests::{self, ABORTED, Requests},
    revision::{Past, Revision, RevisionName, Waiting, wanted},
    route::RouteSeen,
    soak, status, takeover,
    validate::{SpecError, ValidDeployment},
};
use crate::{context::Transition, controller::Wake};

/// Pods that one smoke test asks: it must be through within its time, and asks one after the other.
const MAX_ASKED: usize = 24;
/// Pause until things are looked at again that no watch tells of.
const POLL: SignedDuration = SignedDuration::from_secs(10);
/// The same in the seconds of a switch.
const SWITCH_POLL: SignedDuration = SignedDuration::from_secs(1);

/// What should happen next.
#[derive(Debug)]
pub struct Plan {
    /// The step of the rollout.
    pub step: Step,
    /// What should be so in the cluster afterwards; `None` where nothing may be touched.
    pub desired: Option<Desired>,
    /// The status to record after that.
    pub status: ModelDeploymentStatus,
    /// What the owner wants to read about.
    pub events: Vec<Transition>,
    /// The annotations that were answered, and can go.
    pub answered: Vec<&'static str>,
    /// When to look again.
    pub wake: Wake,
}

/// One step of a rollout, from first to last.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// The spec names no usable checkpoint yet.
    Wait(Waiting),
    /// The candidate's first pods start.
    Load(Option<Waiting>),
    /// The candidate's pods are asked. `start` names those that a new test asks.
    Smoke {
        /// UIDs of the pods that a new test asks; empty while one is under way.
        start: Vec<String>,
        /// What keeps the test from starting.
        waiting: Option<Waiting>,
    },
    /// The candidate grows.
    ScaleUp {
        /// Pods that it needs.
        to: i32,
        /// What keeps them from getting ready.
        waiting: Option<Waiting>,
    },
    /// The candidate has passed, and a person has the last word.
    AwaitApproval,
    /// The spec says not to go on.
    Pause,
    /// The candidate has passed and gets a share of the requests through a Gateway.
    Canary {
        /// The share, as it is to be written down; absent before the first one.
        canary: Option<CanaryStatus>,
        /// What keeps the share from being given.
        waiting: Option<Waiting>,
    },
    /// The switch is written down before it is made, so that whoever comes after a crash knows of it.
    Announce(Gated),
    /// The Service's selector moves: the one point at which the traffic changes.
    Switch(Gated),
    /// The selector has moved; the endpoints follow.
    Confirm,
    /// Autoscaler and status follow.
    HandOver(Gated),
    /// The revision that just got the traffic fails, and that it gives the traffic back is written down.
    GiveUp {
        /// The former revision.
        to: Gated,
        /// Why it fails.
        refusal: Refusal,
    },
    /// The Service's selector moves back.
    SwitchBack(Gated),
    /// The revision that took the place of pods that were there before fails, and that it gives the Service back is
    /// written down.
    Withdraw(Refusal),
    /// The Service becomes what it was before.
    GiveBack,
    /// The wanted revision has the traffic.
    Settle,
    /// The Service points where it should not, and is set back.
    Restore(Option<Gated>),
    /// The wanted revision is rejected now.
    Reject(Refusal),
    /// The wanted revision was rejected before, by the same gate.
    Rejected,
}

/// Why a revision is rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// One `CamelCase` word.
    pub reason: &'static str,
    /// What happened, and what to do.
    pub message: String,
}

impl Step {
    /// Whether the wanted revision is on its way.
    pub fn has_candidate(&self) -> bool {
        matches!(
            self,
            Self::Load(_)
                | Self::Smoke { .. }
                | Self::ScaleUp { .. }
                | Self::AwaitApproval
                | Self::Canary { .. }
                | Self::Announce(_)
                | Self::Switch(_)
        )
    }

    /// Whether a switch is under way, so that nobody else may change the size of what takes part in it.
    pub fn is_switch(&self) -> bool {
        matches!(
            self,
            Self::Announce(_)
                | Self::Switch(_)
                | Self::Confirm
                | Self::HandOver(_)
                | Self::Restore(_)
                | Self::GiveUp { .. }
                | Self::SwitchBack(_)
                | Self::Withdraw(_)
                | Self::GiveBack
        )
    }

    /// Whether callers get back what served before, or what serves by the status: nothing else may hold that up.
    pub fn goes_back(&self) -> bool {
        matches!(
            self,
            Self::GiveUp { .. } | Self::SwitchBack(_) | Self::Restore(_) | Self::Withdraw(_) | Self::GiveBack
        )
    }

    /// What holds the candidate up.
    pub fn waiting(&self) -> Option<&Waiting> {
        match self {
            Self::Wait(waiting) => Some(waiting),
            Self::Load(waiting)
            | Self::Smoke { waiting, .. }
            | Self::ScaleUp { waiting, .. }
            | Self::Canary { waiting, .. } => waiting.as_ref(),
            _ => None,
        }
    }
}

/// What should happen next.
pub fn plan(seen: &Observed, spec: &ValidDeployment, now: Timestamp) -> Plan {
    // The API server keeps whole seconds; what is compared with it must not have more.
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let live = seen.live();
    let past = Past { records: &seen.records, live: live.as_ref(), restart: Requests::of(&seen.owner).restart };
    let asked = wanted(spec, seen.run.as_ref(), past);
    let spec = feedback::understood(seen, spec, asked.as_ref().ok());
    let spec = spec.as_ref();
    let wanted = wanted(spec, seen.run.as_ref(), past);
    let step = decide(seen, spec, &wanted, now);
    let wanted = wanted.ok();
    let status = status::next(seen, spec, wanted.as_ref(), &step, now);
    let mut events = status::transitions(&seen.status, &status, wanted.as_ref(), &step);
    let (answered, replies) = requests::answered(seen, spec, wanted.as_ref(), &step, &status);
    events.extend(replies);
    events.extend(takeover::transitions(seen, spec, &step, now));
    let desired = Some(desired(seen, spec, wanted.as_ref(), &step, &status, now));
    let wake = wake(seen, spec, &status, &step, now);
    Plan { step, desired, status, events, answered, wake }
}

/// The plan for a spec that cannot be used: what serves goes on serving, untouched.
pub fn refuse(seen: &Observed, problem: &SpecError, now: Timestamp) -> Plan {
    let (status, events) =
        status::blocked(&seen.status, seen.owner.metadata.generation, problem.reason(), &problem.to_string(), now);
    let step = Step::Wait(Waiting::stalled(problem.reason(), problem.to_string()));
    Plan { step, desired: None, status, events, answered: Vec::new(), wake: Wake::OnChange }
}

fn decide(seen: &Observed, spec: &ValidDeployment, wanted: &Result<Revision, Waiting>, now: Timestamp) -> Step {
    let live = seen.live();
    if let Some(step) = takeover::fall_back(seen, spec, now) {
        return step;
    }
    if let Some(step) = soak::turn_back(seen, spec, now) {
        return step;
    }
    if is_astray(seen, live.as_ref()) {
        return Step::Restore(Gated::stable(&seen.status));
    }
    if let Some(to) = committed(seen, live.as_ref()) {
        return if has_moved(seen, to.name()) { Step::HandOver(to) } else { Step::Confirm };
    }
    if let Some(step) = soak::fall_back(seen, spec, now) {
        return step;
    }
    match wanted {
        Err(waiting) => Step::Wait(waiting.clone()),
        Ok(revision) if live.as_ref() == Some(&revision.name) => {
            feedback::refusal(seen, spec, &revision.name).map_or(Step::Settle, Step::Reject)
        }
        Ok(revision) => match canary::failure(seen, spec, &revision.name).or_else(|| aborted(seen, &revision.name)) {
            Some(refusal) => Step::Reject(refusal),
            None if spec.paused => Step::Pause,
            None => takeover::hindrance(seen, spec, revision)
                .map_or_else(|| roll_out(seen, spec, revision, now), Step::Wait),
        },
    }
}

/// Whether the Service points at a revision that nobody gave the traffic.
fn is_astray(seen: &Observed, live: Option<&RevisionName>) -> bool {
    let status = &seen.status;
    let live_name = live.map(RevisionName::as_str);
    if live_name == status.stable_revision.as_deref() {
        return false;
    }
    if status.promotion.as_ref().is_some_and(|promotion| live_name == Some(&promotion.to)) {
        return false;
    }
    // A status that was lost, as in a restored cluster, must not take the traffic from what serves.
    let status_is_lost = status.stable_revision.is_none() && status.revisions.is_empty();
    !(status_is_lost && live.is_some_and(|live| seen.revisions.contains_key(live)))
}

/// The revision to which the selector has been moved, while the rest of the switch is not done.
fn committed(seen: &Observed, live: Option<&RevisionName>) -> Option<Gated> {
    let promotion = seen.status.promotion.as_ref()?;
    Gated::announced(promotion).filter(|to| Some(to.name()) == live)
}

/// Whether new connections can only reach pods of the revision.
pub fn has_moved(seen: &Observed, to: &RevisionName) -> bool {
    let is_behind = |revision: &RevisionSeen| revision.pods.iter().any(|pod| seen.endpoints.contains(&pod.uid));
    seen.revisions.iter().all(|(name, revision)| is_behind(revision) == (name == to)) && !takeover::is_behind(seen)
}

/// When the rollout of the revision began.
pub fn started(status: &ModelDeploymentStatus, revision: &RevisionName, now: Timestamp) -> Timestamp {
    // After a pause everything is asked again, and no deadline counts the pause; not so a canary, which kept its share.
    let goes_on = status.candidate_revision.as_deref() == Some(revision.as_str())
        && (status.phase != Some(DeploymentPhase::Paused) || canary::current(status, revision).is_some());
    gate::entry(status, revision).filter(|_| goes_on).map_or(now, |entry| entry.start_time.0)
}

/// The former revision, while it is held beside the one that has the traffic, and until when.
pub fn held(seen: &Observed, spec: &ValidDeployment, now: Timestamp) -> Option<(RevisionName, Timestamp)> {
    let status = &seen.status;
    let stable = Gated::stable(status)?;
    let until = gate::entry(status, stable.name())?.promoted_time.as_ref()?.0.checked_add(spec.gate.soak).ok()?;
    let former = status
        .revisions
        .iter()
        .filter(|entry| entry.promoted_time.is_some() && entry.rejection.is_none())
        .filter(|entry| entry.revision != stable.name().as_str())
        .max_by_key(|entry| entry.promoted_time.clone())?;
    let name = RevisionName::parse(&former.revision)?;
    let has_pods = seen.revisions.get(&name).is_some_and(|revision| revision.replicas > 0);
    // A way back that has been announced is gone to its end.
    let is_awaited = status.promotion.as_ref().is_some_and(|promotion| promotion.to == name.as_str());
    (has_pods && (now < until || is_awaited)).then_some((name, until))
}

/// Pods that a revision needs to take the traffic: never fewer than have it now.
pub fn needed(seen: &Observed, spec: &ValidDeployment) -> i32 {
    let live = seen.live().and_then(|live| seen.revisions.get(&live)).map_or(0, |live| live.replicas);
    spec.size.least().max(live).max(takeover::serving(seen))
}

/// Why the revision on its way must not go on, where somebody said stop. That is heard in a pause, too.
fn aborted(seen: &Observed, revision: &RevisionName) -> Option<Refusal> {
    let is_under_way = seen.status.candidate_revision.as_deref() == Some(revision.as_str());
    (is_under_way && Requests::of(&seen.owner).aborts(revision)).then(|| {
        let message = format!(
            "the rollout of revision {revision} was aborted on request; correct the spec, or annotate it with anneal.dev/retry=true"
        );
        Refusal { reason: ABORTED, message }
    })
}

fn roll_out(seen: &Observed, spec: &ValidDeployment, revision: &Revision, now: Timestamp) -> Step {
    let requests = Requests::of(&seen.owner);
    let entry = gate::entry(&seen.status, &revision.name);
    let rejection = entry.and_then(|entry| entry.rejection.as_ref()).filter(|_| !requests.retries(&revision.name));
    // Whoever asks for a revision that has served by its name knows how accurate it is.
    let is_known = spec.pinned.is_some() && entry.is_some_and(|entry| entry.promoted_time.is_some());
    if let Some(refusal) = too_inaccurate(seen, spec, revision).filter(|_| !is_known) {
        let known = rejection.is_some_and(|old| old.reason == refusal.reason && old.message == refusal.message);
        return if known { Step::Rejected } else { Step::Reject(refusal) };
    }
    let this = seen.revisions.get(&revision.name);
    // A Deployment that somebody deleted is a new try, and so is another gate.
    if this.is_some_and(|this| rejection.is_some() && this.gate.as_deref() == Some(&spec.gate.hash)) {
        return Step::Rejected;
    }
    if let Some(waiting) = preflight::of_claim(seen, spec, &revision.inputs.model) {
        return Step::Wait(waiting);
    }
    if let Some(waiting) = canary::hindrance(seen, spec, revision, now) {
        return Step::Wait(waiting);
    }
    let started = started(&seen.status, &revision.name, now);
    let step = this.map_or(Step::Load(None), |this| advance(seen, spec, revision, this, started, now));
    let is_late = deadline(&seen.status, &revision.name, started, spec).is_some_and(|deadline| now >= deadline);
    match &step {
        Step::Load(waiting) | Step::Smoke { waiting, .. } | Step::ScaleUp { waiting, .. } if is_late => {
            Step::Reject(too_late(spec, revision, waiting.as_ref()))
        }
        Step::Canary { waiting: Some(waiting), .. } if is_late => Step::Reject(too_late(spec, revision, Some(waiting))),
        _ => step,
    }
}

/// When the rollout must have come to its switch. The time that a person takes does not count.
fn deadline(
    status: &ModelDeploymentStatus,
    revision: &RevisionName,
    started: Timestamp,
    spec: &ValidDeployment,
) -> Option<Timestamp> {
    if let Some(canary) = canary::current(status, revision) {
        return canary::deadline(canary, spec);
    }
    let entry = gate::entry(status, revision).filter(|entry| entry.start_time.0 == started);
    let since = match entry.map(|entry| (entry.passed_time.as_ref(), entry.approved_time.as_ref())) {
        Some((_, Some(approved))) => approved.0,
        Some((Some(_), None)) => return None,
        _ => started,
    };
    since.checked_add(spec.deadline).ok()
}

/// How far the candidate's pods are.
fn advance(
    seen: &Observed,
    spec: &ValidDeployment,
    revision: &Revision,
    this: &RevisionSeen,
    started: Timestamp,
    now: Timestamp,
) -> Step {
    let through = |gated: Gated| {
        let announced = seen.status.promotion.as_ref().is_some_and(|promotion| promotion.to == gated.name().as_str());
        if announced { Step::Switch(gated) } else { Step::Announce(gated) }
    };
    // Back to the revision that still runs beside the new one: the fastest way out of a bad switch.
    if let Some(gated) =
        held(seen, spec, now).filter(|(held, _)| *held == revision.name).and_then(|(held, _)| Gated::held(seen, &held))
    {
        return through(gated);
    }
    if let Some(trouble) = this.pods.iter().filter_map(|pod| pod.trouble.as_ref()).find(|trouble| trouble.fatal) {
        return Step::Reject(Refusal { reason: trouble.reason, message: trouble.message.clone() });
    }
    let evidence = Evidence::of(seen, &revision.name, &rollout_key(spec, started));
    if let Some(report) = evidence.failure() {
        return Step::Reject(Refusal { reason: "SmokeTestFailed", message: report.message.clone() });
    }
    if let Some(refusal) = inconclusive(spec, &evidence) {
        return Step::Reject(refusal);
    }
    let waiting = preflight::hindrance(seen, &revision.inputs.model, this);
    if this.replicas == 0 || !this.pods.iter().any(|pod| pod.ready) {
        return Step::Load(waiting);
    }
    let candidate = Candidate::new(&revision.name, this, &evidence);
    if !candidate.has_answered() {
        return ask(seen, &evidence, candidate.unasked());
    }
    let to = needed(seen, spec);
    if this.replicas < to {
        return Step::ScaleUp { to, waiting };
    }
    match candidate.pass(to) {
        Ok(_) if !is_approved(seen, spec, &revision.name, started) => Step::AwaitApproval,
        Ok(gated) => canary::advance(seen, spec, &gated, now).unwrap_or_else(|| through(gated)),
        Err(Lack::Pods) => Step::ScaleUp { to, waiting },
        Err(Lack::Answers(pods)) => ask(seen, &evidence, pods),
        Err(Lack::OneImage) => {
            let message = "the pods run different images under one name; name the image by its digest, or pull it anew";
            Step::ScaleUp { to, waiting: Some(Waiting::stalled("ImagesDiffer", message)) }
        }
    }
}

/// Whether nobody, or nobody any more, has to approve of the candidate. A word that came before it had passed is none.
fn is_approved(seen: &Observed, spec: &ValidDeployment, revision: &RevisionName, started: Timestamp) -> bool {
    let entry = gate::entry(&seen.status, revision).filter(|entry| entry.start_time.0 == started);
    let is_asked = |entry: &RevisionStatus| entry.passed_time.is_some() && Requests::of(&seen.owner).approves(revision);
    spec.gate.approval == Approval::Automatic
        || entry.is_some_and(|entry| entry.approved_time.is_some() || is_asked(entry))
}

fn ask(seen: &Observed, evidence: &Evidence, mut pods: Vec<String>) -> Step {
    pods.truncate(MAX_ASKED);
    if let Some(test) = evidence.running() {
        let trouble = test.trouble.as_ref();
        let waiting = trouble.map(|it| Waiting::soon(it.reason, format!("the smoke test's pod: {}", it.message)));
        return Step::Smoke { start: Vec::new(), waiting };
    }
    if seen.missing_images.is_empty() {
        return Step::Smoke { start: pods, waiting: None };
    }
    let message = format!(
        "images of gate.smokeTest.cases are missing: {} (ConfigMap/key); `kubectl create configmap NAME --from-file=FILE` makes one",
        seen.missing_images.join(", ")
    );
    Step::Smoke { start: Vec::new(), waiting: Some(Waiting::stalled("SmokeImageNotFound", message)) }
}

fn too_inaccurate(seen: &Observed, spec: &ValidDeployment, revision: &Revision) -> Option<Refusal> {
    let live = seen.live().filter(|live| *live != revision.name).and_then(|live| seen.records.get(&live));
    let bar = live.and_then(|live| live.origin.metrics).zip(spec.gate.max_accuracy_drop);
    let bar = bar.map(|(metrics, drop)| (metrics.accuracy - drop, "the serving revision's less gate.maxAccuracyDrop"));
    let bars = [spec.gate.min_accuracy.map(|least| (least, "gate.minAccuracy")), bar];
    let (least, of) = bars.into_iter().flatten().max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    let accuracy = revision.origin.metrics.map(|metrics| metrics.accuracy);
    // Fails closed: neither an unknown accuracy nor one that is not a number passes.
    if accuracy.is_some_and(|accuracy| accuracy >= least) {
        return None;
    }
    let run = revision.origin.training_run.as_deref().unwrap_or("?");
    let found = accuracy.map_or_else(|| "an unknown accuracy".to_owned(), |accuracy| format!("accuracy {accuracy:.4}"));
    Some(Refusal {
        reason: "BelowMinAccuracy",
        message: format!("TrainingRun {run} has {found}, below {least:.4}, {of}; train on, or lower the gate"),
    })
}

fn inconclusive(spec: &ValidDeployment, evidence: &Evidence) -> Option<Refusal> {
    let (count, last) = evidence.inconclusive();
    let retries = usize::try_from(spec.gate.smoke.retries).unwrap_or_default();
    let report = last.filter(|_| count > retries && evidence.running().is_none())?;
    let message = format!("{count} smoke tests came to no verdict; the last one: {}", report.message);
    Some(Refusal { reason: "SmokeInconclusive", message })
}

fn too_late(spec: &ValidDeployment, revision: &Revision, waiting: Option<&Waiting>) -> Refusal {
    let seconds = spec.deadline.as_secs();
    let why = waiting.map_or_else(|| "see its pods".to_owned(), |waiting| waiting.message.clone());
    Refusal {
        reason: waiting.map_or("ProgressDeadlineExceeded", |waiting| waiting.reason),
        message: format!(
            "revision {} did not pass its gate within progressDeadlineSeconds ({seconds} s): {why}",
            revision.name
        ),
    }
}

fn wake(seen: &Observed, spec: &ValidDeployment, status: &ModelDeploymentStatus, step: &Step, now: Timestamp) -> Wake {
    let after = |pause: SignedDuration| now.checked_add(pause).unwrap_or(now);
    let mut wake = match step {
        step if step.is_switch() || takeover::lingering(seen).next().is_some() => Wake::At(after(SWITCH_POLL)),
        // Nothing tells of a ConfigMap that appears.
        Step::Smoke { waiting: Some(_), .. } => Wake::At(after(POLL)),
        _ => Wake::OnChange,
    };
    if let Some(candidate) = status.candidate_revision.as_deref().and_then(RevisionName::parse)
        && *step != Step::Pause
        && let started = started(status, &candidate, now)
        && let Some(deadline) = deadline(status, &candidate, started, spec)
    {
        wake = wake.or_at(deadline);
    }
    let held = held(seen, spec, now).map(|(_, until)| until);
    wake = held.into_iter().chain(takeover::until(seen, spec)).fold(wake, Wake::or_at);
    // Nothing tells of somebody else's autoscaler, preview or route that goes.
    if seen.has_foreign_autoscaler || seen.has_foreign_preview || seen.route == RouteSeen::Foreign {
        wake = wake.or_at(after(POLL * 3));
    }
    if let Some(look) = canary::wake(status, spec, step, now) {
        wake = wake.or_at(look);
    }
    wake
}
