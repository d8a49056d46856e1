//! How well the revision does that has the traffic: what is told of it, and the way back to the former one where it does
//! worse than the spec asks for. Pure.

use std::borrow::Cow;

use anneal_api::resources::{Approval, ModelDeploymentStatus, Performance, condition, set_condition, unknown};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    gate,
    observe::Observed,
    plan::Refusal,
    revision::{Revision, RevisionName},
    validate::ValidDeployment,
};
use crate::{
    context::Transition,
    performance::{Bounds, Breach, Measured},
};

/// Condition type.
const PERFORMANCE_DEGRADED: &str = "PerformanceDegraded";
/// Why a revision is rejected that does worse than it has to.
pub const DEGRADED: &str = "PerformanceDegraded";
/// The condition's reason while all is well.
const WITHIN_BOUNDS: &str = "WithinBounds";

/// The bound that the revision passes which has the traffic, as last measured.
fn breach(seen: &Observed, spec: &ValidDeployment) -> Option<Breach> {
    let measured = seen.performance.as_ref()?;
    let live = seen.live().filter(|live| live.as_str() == measured.revision);
    live.and_then(|_| spec.feedback.as_ref()?.breach(measured))
}

/// Why the revision must give the traffic back while the former one is held.
pub fn failure(seen: &Observed, spec: &ValidDeployment) -> Option<(&'static str, String)> {
    let breach = breach(seen, spec).filter(|breach| breach.rolls_back && spec.pinned.is_none())?;
    Some((DEGRADED, breach.message))
}

/// Why the revision that has the traffic is rejected after all. Only where there is a way back, and only once.
pub fn refusal(seen: &Observed, spec: &ValidDeployment, live: &RevisionName) -> Option<Refusal> {
    let (reason, why) = failure(seen, spec).filter(|_| !is_degraded(&seen.status, live))?;
    let former = former(seen, live)?;
    let message = format!(
        "revision {live} is to give the traffic back to {former}, once that has passed its gate again: {why}; correct the spec, or annotate it with anneal.dev/retry=true"
    );
    Some(Refusal { reason, message })
}

fn is_degraded(status: &ModelDeploymentStatus, revision: &RevisionName) -> bool {
    let rejection = gate::entry(status, revision).and_then(|entry| entry.rejection.as_ref());
    rejection.is_some_and(|rejection| rejection.reason == DEGRADED)
}

/// The revision that served last before this one, is kept, and was never rejected: each is gone back to once at most.
fn former(seen: &Observed, live: &RevisionName) -> Option<RevisionName> {
    let served = seen.status.revisions.iter().filter(|it| it.promoted_time.is_some() && it.rejection.is_none());
    let names =
        served.filter_map(|entry| Some((entry.promoted_time.as_ref()?.0, RevisionName::parse(&entry.revision)?)));
    let kept = names.filter(|(_, name)| name != live && seen.records.contains_key(name));
    kept.max_by_key(|(promoted, _)| *promoted).map(|(_, name)| name)
}

/// The spec as it is to be understood: on the way back from a revision that was rejected while it had the traffic, the
/// former one is wanted as if it were pinned. It has been approved of when it served.
pub fn understood<'a>(
    seen: &Observed,
    spec: &'a ValidDeployment,
    wanted: Option<&Revision>,
) -> Cow<'a, ValidDeployment> {
    let live = seen.live();
    let rejected = live.filter(|live| {
        let rolls_back = spec.feedback.as_ref().is_some_and(Bounds::roll_back) && spec.pinned.is_none();
        rolls_back && is_degraded(&seen.status, live) && wanted.is_some_and(|wanted| wanted.name == *live)
    });
    match rejected.and_then(|live| former(seen, &live)) {
        Some(former) => {
            let mut spec = spec.clone();
            spec.pinned = Some(former);
            spec.gate.approval = Approval::Automatic;
            Cow::Owned(spec)
        }
        None => Cow::Borrowed(spec),
    }
}

/// Writes down how well the revision does, where that is news.
pub fn record(status: &mut ModelDeploymentStatus, seen: &Observed, spec: &ValidDeployment, now: Timestamp) {
    let Some(bounds) = &spec.feedback else {
        status.performance = None;
        status.conditions.retain(|condition| condition.type_ != PERFORMANCE_DEGRADED);
        return;
    };
    status.performance = status.performance.take().filter(|old| Some(&old.revision) == status.stable_revision.as_ref());
    let live = seen.live();
    let new = seen.performance.as_ref().filter(|new| {
        live.as_ref().is_some_and(|live| live.as_str() == new.revision)
            && status.stable_revision.as_ref() == Some(&new.revision)
    });
    let old = status.performance.as_ref().map(|old| (measured(old), old.time.0));
    if let Some(new) = new.filter(|new| old.is_none_or(|(old, told)| new.is_news(&old, told, bounds, now))) {
        status.performance = Some(told(new, now));
    }
    // What is said is what is written down beside it.
    let known = status.performance.as_ref().map(measured);
    let (is_degraded, reason, message) = match known.as_ref().map(|known| (bounds.breach(known), known)) {
        Some((Some(breach), _)) => (Some(true), breach.reason, breach.message),
        Some((None, known)) if !bounds.is_enough(known) => {
            let (count, least) = (known.feedback_count, bounds.min_count());
            let message =
                format!("{count} of feedback.minCount {least} true classes are known; send more to /feedback");
            (None, "TooLittleFeedback", message)
        }
        Some((None, known)) => (
            Some(false),
            WITHIN_BOUNDS,
            format!(
                "the accuracy over {} true classes is {}",
                known.feedback_count,
                known.accuracy.unwrap_or_default()
            ),
        ),
        None => (None, "NotRead", "the pods have not been read yet".to_owned()),
    };
    let new = match is_degraded {
        Some(it) => condition(PERFORMANCE_DEGRADED, it, reason, &message, status.observed_generation),
        None => unknown(PERFORMANCE_DEGRADED, reason, &message, status.observed_generation),
    };
    set_condition(&mut status.conditions, new, now);
}

/// Whether a revision that was rejected for its performance, and to which nothing else came, serves as wanted again.
pub fn is_forgiven(seen: &Observed, spec: &ValidDeployment, live: &RevisionName) -> bool {
    let asks = spec.feedback.as_ref().is_some_and(Bounds::roll_back);
    is_degraded(&seen.status, live) && (!asks || (seen.performance.is_some() && failure(seen, spec).is_none()))
}

fn measured(of: &Performance) -> Measured {
    Measured {
        revision: of.revision.clone(),
        feedback_count: of.feedback_count,
        accuracy: of.accuracy,
        calibration_error: of.calibration_error,
        drift: of.drift,
        pods: of.pods,
    }
}

fn told(of: &Measured, now: Timestamp) -> Performance {
    Performance {
        revision: of.revision.clone(),
        feedback_count: of.feedback_count,
        accuracy: of.accuracy,
        calibration_error: of.calibration_error,
        drift: of.drift,
        pods: of.pods,
        time: Time(now),
    }
}

/// Why the deployment is out of its bounds, or why not, as its status says it; nothing where it is not judged.
pub fn judgement(status: &ModelDeploymentStatus) -> Option<(&str, bool)> {
    let condition = status.conditions.iter().find(|condition| condition.type_ == PERFORMANCE_DEGRADED)?;
    Some((condition.reason.as_str(), condition.status == "True"))
}

/// What changed, in the words of Events.
pub fn transitions(old: &ModelDeploymentStatus, new: &ModelDeploymentStatus) -> Option<Transition> {
    let found = |status: &ModelDeploymentStatus| {
        let condition = status.conditions.iter().find(|condition| condition.type_ == PERFORMANCE_DEGRADED);
        condition.map(|it| (it.status == "True", it.reason.clone(), it.message.clone()))
    };
    let of = |status: &ModelDeploymentStatus| status.performance.as_ref().map(|it| it.revision.clone());
    // What another revision did is nothing that this one recovers from.
    let (was, is) = (found(old).filter(|_| of(old) == of(new)), found(new)?);
    match (was, is) {
        (Some((true, before, _)), (true, reason, _)) if before == reason => None,
        (_, (true, _, message)) => Some(Transition::warning(PERFORMANCE_DEGRADED, message)),
        (Some((true, ..)), (false, _, message)) => Some(Transition::normal("PerformanceRecovered", message)),
        _ => None,
    }
}
