//! The share of the requests through Gateways that a candidate gets before the Service moves: how much, for how long, and
//! when it has to give it back. Pure. What is decided here is written down before the route is touched.

use anneal_api::resources::{Approval, CanaryStatus, CanaryStep, ModelDeploymentStatus, Shadow, ShadowStatus};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    gate::{self, Evidence, Gated, rollout_key},
    observe::Observed,
    plan::{Refusal, Step, held, started},
    preflight::NAME_TAKEN,
    requests::{ABORTED, Requests},
    revision::{Revision, RevisionName, Waiting},
    route::{self, RouteSeen, Verdict},
    shadow, soak,
    validate::ValidDeployment,
};

/// Longest time that pods whose share was taken back are kept for a Gateway that does not say that it knows.
const DRAIN: SignedDuration = SignedDuration::from_secs(10);
/// Time that a Gateway may take for a share before its silence is told.
const SILENCE: SignedDuration = SignedDuration::from_secs(10);
/// Condition type.
pub const ROUTE_ACCEPTED: &str = "RouteAccepted";
/// Why a canary cannot begin where the cluster does not know the kind, or does not let the operator see it.
pub const NOT_INSTALLED: &str = "GatewayApiNotInstalled";

/// A share that was written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Who gets it.
    pub to: Gated,
    /// What of.
    pub part: Part,
}

/// Percent of the requests through Gateways, or of copies of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Callers get what it answers.
    Requests(i32),
    /// Nobody does.
    Copies(i32),
}

/// The share that the revision has by the status, while it is not taken back.
pub fn current<'a>(status: &'a ModelDeploymentStatus, revision: &RevisionName) -> Option<&'a CanaryStatus> {
    status.canary.as_ref().filter(|canary| canary.step.is_some() && canary.revision == revision.as_str())
}

/// The share that the route is to give: what was written down before, for as long as there is a pod to give it to.
pub fn share(seen: &Observed) -> Option<Share> {
    let canary = seen.status.canary.as_ref()?;
    let to = Gated::sharing(canary)?;
    let pods = &seen.revisions.get(to.name())?.pods;
    let is_there = pods.iter().any(|pod| pod.ready && seen.backends.contains(&pod.uid));
    let part =
        if shadow::is_shown(canary) { Part::Copies(shadow::percent(canary)) } else { Part::Requests(canary.weight) };
    is_there.then_some(Share { to, part })
}

/// Why a canary cannot even begin, said before a pod is made for it.
pub fn hindrance(seen: &Observed, spec: &ValidDeployment, revision: &Revision, now: Timestamp) -> Option<Waiting> {
    let is_way_back = held(seen, spec, now).is_some_and(|(held, _)| held == revision.name);
    let is_asked = is_wanted(seen, spec, &revision.name) && !is_way_back;
    match seen.route {
        RouteSeen::NotServed if is_asked => Some(Waiting::stalled(NOT_INSTALLED, not_installed())),
        RouteSeen::Foreign if is_asked => Some(Waiting::stalled(NAME_TAKEN, name_taken(spec))),
        _ => None,
    }
}

fn name_taken(spec: &ValidDeployment) -> String {
    format!(
        "HTTPRoute {} already exists and does not belong to this ModelDeployment; delete or rename it, or set strategy.type to BlueGreen",
        spec.name
    )
}

fn not_installed() -> String {
    "this cluster does not know the kind HTTPRoute, or the operator has no right to it; install the Gateway API and a controller of it, \
     give the right (rbac.httpRoutes of the chart), or set strategy.type to BlueGreen"
        .to_owned()
}

/// Whether the revision gets its traffic share by share. There is nothing to share with before the first one, and whoever
/// asks for a revision that has served by its name wants it back at once.
fn is_wanted(seen: &Observed, spec: &ValidDeployment, revision: &RevisionName) -> bool {
    let has_served = gate::entry(&seen.status, revision).is_some_and(|entry| entry.promoted_time.is_some());
    !spec.steps.is_empty() && seen.live().is_some() && !(spec.pinned.is_some() && has_served)
}

/// Why the candidate has to give its share back: by the bounds of the soak, by what it answers to copies, or on request.
pub fn failure(seen: &Observed, spec: &ValidDeployment, revision: &RevisionName) -> Option<Refusal> {
    let canary = current(&seen.status, revision)?;
    let aborted =
        || Requests::of(&seen.owner).aborts(revision).then(|| (ABORTED, "it was aborted on request".to_owned()));
    let failed = || {
        let this = seen.revisions.get(revision);
        let why = this.map_or_else(
            || Some("its Deployment is gone".to_owned()),
            |this| soak::failure(seen, spec, revision, this, canary.start_time.0),
        );
        why.map(|why| ("CanaryFailed", why))
    };
    let disagrees = || {
        let is_asked = shadow::is_shown(canary) && canary.effective_time.is_some();
        is_asked.then(|| shadow::disagreement(seen, spec, revision)).flatten()
    };
    let (reason, why) = aborted().or_else(failed).or_else(disagrees)?;
    let what = if shadow::is_shown(canary) {
        "gets no share, after copies of requests".to_owned()
    } else {
        format!("gave its share of {} % back", canary.weight)
    };
    let message =
        format!("revision {revision} {what}: {why}; correct the spec, or annotate it with anneal.dev/retry=true");
    Some(Refusal { reason, message })
}

/// What comes next for a candidate that has passed its gate; `None` where it may have all of the traffic.
pub fn advance(seen: &Observed, spec: &ValidDeployment, gated: &Gated, now: Timestamp) -> Option<Step> {
    if !is_wanted(seen, spec, gated.name()) {
        return None;
    }
    let first = |passed: Option<ShadowStatus>| {
        let weight = spec.steps.first()?.set_weight;
        Some(raise(seen, gated, share_of(gated, 1, weight, passed, now)))
    };
    let Some(canary) = current(&seen.status, gated.name()) else {
        return match &spec.shadow {
            Some(bounds) => Some(raise(seen, gated, copies(gated, bounds, now))),
            None => first(None),
        };
    };
    let number = canary.step.unwrap_or(1);
    if number == shadow::STEP {
        let Some(bounds) = &spec.shadow else { return first(None) };
        let passed = canary.effective_time.as_ref().and_then(|_| shadow::passed(seen, bounds, gated.name()));
        return if passed.is_some() { first(passed) } else { Some(compare(seen, spec, gated, canary, bounds, now)) };
    }
    // Steps that somebody took away are over.
    let step = step(spec, number)?;
    let raise_to =
        |number, weight| Some(raise(seen, gated, share_of(gated, number, weight, canary.shadow.clone(), now)));
    if canary.weight != step.set_weight {
        return raise_to(number, step.set_weight);
    }
    let Some(effective) = &canary.effective_time else {
        return Some(settle(seen, spec, canary, now));
    };
    let stay = |canary: CanaryStatus| Step::Canary { canary: Some(canary), waiting: None };
    if now < over(spec, number, effective.0) {
        return Some(stay(canary.clone()));
    }
    // A word that came before the pause was over is none.
    let is_approved = || canary.passed_time.is_some() && Requests::of(&seen.owner).approves(gated.name());
    if step.approval == Approval::Manual && !is_approved() {
        let passed_time = canary.passed_time.clone().or(Some(Time(now)));
        return Some(stay(CanaryStatus { passed_time, ..canary.clone() }));
    }
    let next = self::step(spec, number + 1)?;
    raise_to(number + 1, next.set_weight)
}

/// The candidate gets copies of requests until enough of its answers were compared.
fn compare(
    seen: &Observed,
    spec: &ValidDeployment,
    gated: &Gated,
    canary: &CanaryStatus,
    bounds: &Shadow,
    now: Timestamp,
) -> Step {
    if shadow::percent(canary) != bounds.percent {
        return raise(seen, gated, copies(gated, bounds, now));
    }
    let Some(effective) = &canary.effective_time else {
        return settle(seen, spec, canary, now);
    };
    if now >= over(spec, shadow::STEP, effective.0) {
        return Step::Reject(shadow::inconclusive(seen, bounds, gated.name()));
    }
    let old = canary.shadow.clone().unwrap_or_default();
    let known = Some(shadow::progress(seen, bounds, gated.name(), &old));
    Step::Canary { canary: Some(CanaryStatus { shadow: known, ..canary.clone() }), waiting: None }
}

fn step(spec: &ValidDeployment, number: i32) -> Option<&CanaryStep> {
    spec.steps.get(usize::try_from(number).ok()?.checked_sub(1)?)
}

/// When the step's time is over, which began then.
fn over(spec: &ValidDeployment, number: i32, effective: Timestamp) -> Timestamp {
    let seconds = match number {
        shadow::STEP => spec.shadow.as_ref().map(|shadow| shadow.timeout_seconds),
        number => step(spec, number).map(|step| step.pause_seconds),
    };
    effective.checked_add(SignedDuration::from_secs(seconds.unwrap_or_default().into())).unwrap_or(effective)
}

/// A share that is decided now.
fn share_of(gated: &Gated, number: i32, weight: i32, shadow: Option<ShadowStatus>, now: Timestamp) -> CanaryStatus {
    CanaryStatus {
        revision: gated.name().to_string(),
        step: Some(number),
        weight,
        start_time: Time(now),
        effective_time: None,
        passed_time: None,
        shadow,
    }
}

/// Copies of requests, as they are decided now.
fn copies(gated: &Gated, bounds: &Shadow, now: Timestamp) -> CanaryStatus {
    share_of(gated, shadow::STEP, 0, Some(shadow::begun(bounds)), now)
}

/// Writes another share down, once every ready pod of the candidate stands behind the Service that the route names.
fn raise(seen: &Observed, gated: &Gated, next: CanaryStatus) -> Step {
    let mut ready = seen.revisions.get(gated.name()).into_iter().flat_map(|it| &it.pods).filter(|pod| pod.ready);
    if !ready.all(|pod| seen.backends.contains(&pod.uid)) {
        let message = "the candidate's own Service does not lead to all of its pods yet";
        let waiting = Some(Waiting::soon("EndpointsPending", message));
        return Step::Canary { canary: current(&seen.status, gated.name()).cloned(), waiting };
    }
    Step::Canary { canary: Some(next), waiting: None }
}

/// The step's time begins when the Gateways have taken its share.
fn settle(seen: &Observed, spec: &ValidDeployment, canary: &CanaryStatus, now: Timestamp) -> Step {
    let share = share(seen);
    if share.is_some() && is_taken(seen, spec, share.as_ref()) {
        let canary = CanaryStatus { effective_time: Some(Time(now)), ..canary.clone() };
        return Step::Canary { canary: Some(canary), waiting: None };
    }
    let silent = || {
        let message = format!("the Gateways do not say that they know of the share in HTTPRoute {}", spec.name);
        Waiting::soon("WaitingForGateway", message)
    };
    let is_silent = now.duration_since(canary.start_time.0) >= SILENCE;
    let refused = acceptance(seen, spec).filter(|(accepted, ..)| *accepted != Some(true));
    let waiting = refused.map(|(_, reason, message)| Waiting::soon(reason, message));
    Step::Canary { canary: Some(canary.clone()), waiting: waiting.or_else(|| is_silent.then(silent)) }
}

/// Whether the Gateways go by a route with this share.
fn is_taken(seen: &Observed, spec: &ValidDeployment, share: Option<&Share>) -> bool {
    match (&seen.route, &spec.route) {
        (RouteSeen::NotServed | RouteSeen::Foreign, _) => true,
        (RouteSeen::Served(existing), None) => existing.is_none(),
        (RouteSeen::Served(existing), Some(canary)) => existing
            .as_ref()
            .is_some_and(|existing| route::is_taken(&route::route(&seen.owner, spec, canary, share), existing)),
    }
}

/// The share after the step, as it is written down.
pub fn after(
    seen: &Observed,
    spec: &ValidDeployment,
    wanted: Option<&Revision>,
    step: &Step,
    now: Timestamp,
) -> Option<CanaryStatus> {
    if let Step::Canary { canary: Some(canary), .. } = step {
        return Some(canary.clone());
    }
    let old = seen.status.canary.clone()?;
    if old.step.is_none() {
        let is_known = is_taken(seen, spec, None);
        let is_over = old.start_time.0.checked_add(DRAIN).is_ok_and(|end| now >= end);
        return (!is_known && !is_over).then_some(old);
    }
    if is_kept(seen, spec, wanted, step, &old, now) {
        return Some(old);
    }
    let (step, weight, start_time) = (None, 0, Time(now));
    Some(CanaryStatus { step, weight, start_time, effective_time: None, passed_time: None, ..old })
}

/// Whether the candidate keeps its share in a step that is not about it.
fn is_kept(
    seen: &Observed,
    spec: &ValidDeployment,
    wanted: Option<&Revision>,
    step: &Step,
    canary: &CanaryStatus,
    now: Timestamp,
) -> bool {
    let is_candidate = wanted.is_some_and(|wanted| wanted.name.as_str() == canary.revision);
    match step {
        Step::Restore(_) => true,
        // Where the copies were called off: what gets all of the traffic needs none.
        Step::Announce(_) | Step::Switch(_) | Step::Confirm if shadow::is_shown(canary) => false,
        Step::Announce(to) | Step::Switch(to) => to.name().as_str() == canary.revision,
        Step::Confirm => seen.status.promotion.as_ref().is_some_and(|promotion| promotion.to == canary.revision),
        Step::Pause | Step::ScaleUp { .. } | Step::AwaitApproval | Step::Canary { .. } => is_candidate,
        // While the pods that have joined are asked; not when the gate itself is another one, and everything begins anew.
        Step::Smoke { .. } => is_candidate && wanted.is_some_and(|wanted| has_passed(seen, spec, wanted, now)),
        _ => false,
    }
}

fn has_passed(seen: &Observed, spec: &ValidDeployment, revision: &Revision, now: Timestamp) -> bool {
    let key = rollout_key(spec, started(&seen.status, &revision.name, now));
    let this = seen.revisions.get(&revision.name);
    let evidence = Evidence::of(seen, &revision.name, &key);
    this.is_some_and(|this| gate::Candidate::new(&revision.name, this, &evidence).has_answered())
}

/// When a candidate with a share must have come further. What a person takes does not count.
pub fn deadline(canary: &CanaryStatus, spec: &ValidDeployment) -> Option<Timestamp> {
    if canary.passed_time.is_some() {
        return None;
    }
    let since = canary.effective_time.as_ref().unwrap_or(&canary.start_time).0;
    over(spec, canary.step?, since).checked_add(spec.deadline).ok()
}

/// When a share needs another look that no watch tells of.
pub fn wake(next: &ModelDeploymentStatus, spec: &ValidDeployment, step: &Step, now: Timestamp) -> Option<Timestamp> {
    let soon = now.checked_add(SignedDuration::from_secs(1)).ok();
    let canary = next.canary.as_ref();
    if canary.is_some_and(|canary| canary.step.is_none()) {
        return soon;
    }
    match canary.filter(|_| matches!(step, Step::Canary { .. })) {
        Some(canary) if canary.passed_time.is_some() => None,
        Some(canary) => {
            let effective = canary.effective_time.as_ref();
            let end = effective.and_then(|effective| Some(over(spec, canary.step?, effective.0)));
            end.filter(|end| *end > now).or(soon)
        }
        // Nothing tells of endpoints.
        None => soon.filter(|_| matches!(step, Step::Canary { .. })),
    }
}

/// Whether a person has let the canary go on with this step.
pub fn was_approved(old: &ModelDeploymentStatus, next: &ModelDeploymentStatus) -> Option<bool> {
    let waited = old.canary.as_ref().filter(|canary| canary.passed_time.is_some())?;
    let went_on = next.canary.as_ref().is_some_and(|canary| canary.step.is_some() && canary.passed_time.is_none());
    Some(went_on || next.promotion.as_ref().is_some_and(|promotion| promotion.to == waited.revision))
}

/// What the Gateways say about the route, for the condition `RouteAccepted`; `None` where no route is asked for. Whether it is
/// accepted is not known before they have said.
pub fn acceptance(seen: &Observed, spec: &ValidDeployment) -> Option<(Option<bool>, &'static str, String)> {
    let canary = spec.route.as_ref()?;
    let existing = match &seen.route {
        RouteSeen::NotServed => return Some((Some(false), NOT_INSTALLED, not_installed())),
        RouteSeen::Foreign => return Some((Some(false), NAME_TAKEN, name_taken(spec))),
        RouteSeen::Served(existing) => existing.as_ref(),
    };
    let gateways: Vec<&str> = canary.parent_refs.iter().map(|parent| parent.name.as_str()).collect();
    let gateways = gateways.join(", ");
    Some(match existing.map(|existing| route::verdict(existing)) {
        Some(Verdict::Accepted | Verdict::Stale) => {
            (Some(true), "Accepted", format!("HTTPRoute {} hangs on {gateways}", spec.name))
        }
        Some(Verdict::Refused(reason, message)) => {
            let message = format!(
                "HTTPRoute {} is not taken as it is: {reason}: {message}; correct strategy.canary.parentRefs and hostnames, or the Gateway",
                spec.name
            );
            (Some(false), "RouteRefused", message)
        }
        Some(Verdict::Pending) | None => {
            let message = format!(
                "no controller has answered for HTTPRoute {} on each of {gateways} yet; is there such a Gateway, and a controller of its class?",
                spec.name
            );
            (None, "WaitingForGateway", message)
        }
    })
}
