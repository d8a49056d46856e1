//! The time after the switch: the former revision is held, and what the new one counts and how its pods fare decides
//! whether it keeps the traffic.

use anneal_api::resources::Promotion;
use jiff::Timestamp;

use super::{
    feedback,
    gate::{self, Gated},
    observe::{Observed, RevisionSeen},
    plan::{self, Refusal, Step, held},
    requests::{ABORTED, Requests},
    revision::RevisionName,
    validate::ValidDeployment,
};

/// The way back to the former revision, while it is held and the new one fails or was aborted.
pub fn fall_back(seen: &Observed, spec: &ValidDeployment, now: Timestamp) -> Option<Step> {
    let live = seen.live()?;
    let (former, _) = held(seen, spec, now)?;
    let to = Gated::held(seen, &former)?;
    let entry = gate::entry(&seen.status, &live)?;
    let is_announced = seen.status.promotion.as_ref().is_some_and(|promotion| promotion.to == former.as_str());
    if is_announced && entry.rejection.is_some() {
        return Some(Step::SwitchBack(to));
    }
    let (reason, why) = reason(seen, spec, &live, entry.promoted_time.as_ref()?.0)?;
    Some(give_up(&live, to, reason, &why))
}

fn give_up(live: &RevisionName, to: Gated, reason: &'static str, why: &str) -> Step {
    let message = format!(
        "revision {live} gave the traffic back to {}: {why}; correct the spec, or annotate it with anneal.dev/retry=true",
        to.name()
    );
    Step::GiveUp { to, refusal: Refusal { reason, message } }
}

/// The way back from a switch that is made and not confirmed.
pub fn turn_back(seen: &Observed, spec: &ValidDeployment, now: Timestamp) -> Option<Step> {
    let (status, live) = (&seen.status, seen.live()?);
    let promotion = status.promotion.as_ref()?;
    let is_back = promotion.from.as_deref() == Some(live.as_str()) && is_rejected(seen, &live);
    if is_back && status.stable_revision.as_ref() == Some(&promotion.to) {
        return Gated::held(seen, &RevisionName::parse(&promotion.to)?).map(Step::SwitchBack);
    }
    let to = former(seen, promotion)?;
    let (reason, why) = unconfirmed(seen, spec, promotion, now)?;
    Some(give_up(&live, to, reason, &why))
}

fn is_rejected(seen: &Observed, revision: &RevisionName) -> bool {
    gate::entry(&seen.status, revision).is_some_and(|entry| entry.rejection.is_some())
}

/// The revision that a switch can be gone back on to, while it is held.
pub fn former(seen: &Observed, promotion: &Promotion) -> Option<Gated> {
    let from = RevisionName::parse(promotion.from.as_deref()?)?;
    Gated::held(seen, &from).filter(|_| !is_rejected(seen, &from))
}

/// Why a switch that is made and not confirmed must not be waited for, in a word and in a sentence: it may never be, where the
/// new revision has lost its pods, or somebody else keeps others behind the Service.
pub fn unconfirmed(
    seen: &Observed,
    spec: &ValidDeployment,
    promotion: &Promotion,
    now: Timestamp,
) -> Option<(&'static str, String)> {
    let live = seen.live().filter(|live| live.as_str() == promotion.to)?;
    if Requests::of(&seen.owner).aborts(&live) {
        return Some((ABORTED, "it was aborted on request".to_owned()));
    }
    let failed = match seen.revisions.get(&live) {
        Some(revision) => none_ready(revision),
        None => Some("its Deployment is gone".to_owned()),
    };
    let late = || {
        let is_late = promotion.start_time.0.checked_add(spec.deadline).is_ok_and(|deadline| now >= deadline);
        (is_late && !plan::has_moved(seen, &live)).then(|| {
            let (seconds, name) = (spec.deadline.as_secs(), &spec.name);
            let why = format!(
                "new connections could still reach other pods after progressDeadlineSeconds ({seconds} s); see who keeps them there by `kubectl get endpointslices -l kubernetes.io/service-name={name} -o yaml`"
            );
            ("ProgressDeadlineExceeded", why)
        })
    };
    failed.map(|why| ("SoakFailed", why)).or_else(late)
}

/// Why the revision that got the traffic at that time must give it back, in a word and in a sentence.
pub fn reason(
    seen: &Observed,
    spec: &ValidDeployment,
    live: &RevisionName,
    since: Timestamp,
) -> Option<(&'static str, String)> {
    let aborted = Requests::of(&seen.owner).aborts(live).then(|| (ABORTED, "it was aborted on request".to_owned()));
    let failed = || failure(seen, spec, live, seen.revisions.get(live)?, since).map(|why| ("SoakFailed", why));
    aborted.or_else(failed).or_else(|| feedback::failure(seen, spec))
}

/// Why a revision that just got the traffic, or a share of it, must not keep it.
pub fn failure(
    seen: &Observed,
    spec: &ValidDeployment,
    name: &RevisionName,
    revision: &RevisionSeen,
    since: Timestamp,
) -> Option<String> {
    let counted = seen.signals.as_ref().filter(|(window, _)| window.revision == *name);
    if let Some(why) = counted.and_then(|(_, signals)| signals.breach(&spec.gate.limits)) {
        return Some(why);
    }
    let crashed = revision.pods.iter().find(|pod| pod.crashed.is_some_and(|at| at >= since));
    if let Some(pod) = crashed {
        let why = pod.trouble.as_ref().map_or_else(String::new, |trouble| format!(": {}", trouble.message));
        return Some(format!("a pod of it crashed under traffic{why}"));
    }
    none_ready(revision)
}

fn none_ready(revision: &RevisionSeen) -> Option<String> {
    let is_any = revision.pods.iter().any(|pod| pod.ready);
    (!is_any).then(|| "none of its pods takes requests any more".to_owned())
}
