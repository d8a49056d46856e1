//! Copies of requests for a candidate before its first share of them: whether its answers, which nobody gets, are those of the
//! revision that serves. Pure.

use anneal_api::resources::{CanaryStatus, ModelDeploymentStatus, Shadow, ShadowStatus};

use super::{observe::Observed, plan::Refusal, revision::RevisionName, validate::ValidDeployment};
use crate::{
    context::Transition,
    shadow::{
        Counts,
        board::{Compared, Pair},
    },
};

/// The step of a canary in which the candidate gets copies of requests, before the first share.
pub const STEP: i32 = 0;
/// Why a candidate is rejected whose answers are others.
const DISAGREES: &str = "ShadowDisagrees";
/// Why a candidate is rejected about which too little is known.
const INCONCLUSIVE: &str = "ShadowInconclusive";

/// What the comparison says about the candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    TooLittle,
    Agrees,
    Disagrees,
}

/// Whether the candidate gets copies of requests, and no more.
pub fn is_shown(canary: &CanaryStatus) -> bool {
    canary.step == Some(STEP)
}

/// Percent of the requests that are copied, by what was written down.
pub fn percent(canary: &CanaryStatus) -> i32 {
    canary.shadow.as_ref().map_or(100, |shadow| shadow.percent)
}

/// The revisions whose answers are to be compared.
pub fn pair(seen: &Observed, next: &ModelDeploymentStatus) -> Option<Pair> {
    let canary = next.canary.as_ref().filter(|canary| is_shown(canary))?;
    Some(Pair { stable: seen.live()?, candidate: RevisionName::parse(&canary.revision)? })
}

/// What came of the comparison so far; nothing where it is about others.
fn compared<'a>(seen: &'a Observed, candidate: &RevisionName) -> Option<&'a Compared> {
    let live = seen.live()?;
    seen.shadow.as_ref().filter(|it| it.pair.candidate == *candidate && it.pair.stable == live)
}

fn counts(seen: &Observed, candidate: &RevisionName) -> Counts {
    compared(seen, candidate).map(|it| it.counts).unwrap_or_default()
}

fn finding(bounds: &Shadow, counts: Counts) -> Finding {
    match counts.agreement() {
        Some(agreement) if counts.compared >= i64::from(bounds.min_requests) => {
            if agreement >= bounds.min_agreement {
                Finding::Agrees
            } else {
                Finding::Disagrees
            }
        }
        _ => Finding::TooLittle,
    }
}

/// The status' words of a comparison that begins.
pub fn begun(bounds: &Shadow) -> ShadowStatus {
    told(bounds, Counts::default())
}

fn told(bounds: &Shadow, counts: Counts) -> ShadowStatus {
    let Counts { compared, agreed } = counts;
    ShadowStatus { percent: bounds.percent, compared, agreed, agreement: counts.told() }
}

/// What is known in the end of a candidate that agrees often enough.
pub fn passed(seen: &Observed, bounds: &Shadow, candidate: &RevisionName) -> Option<ShadowStatus> {
    let counts = counts(seen, candidate);
    (finding(bounds, counts) == Finding::Agrees).then(|| told(bounds, counts))
}

/// What is known by now, where that is news after what was written down.
pub fn progress(seen: &Observed, bounds: &Shadow, candidate: &RevisionName, old: &ShadowStatus) -> ShadowStatus {
    let (counts, enough) = (counts(seen, candidate), i64::from(bounds.min_requests));
    let before = Counts { compared: old.compared, agreed: old.agreed };
    if counts.tenths(enough) == before.tenths(enough) { old.clone() } else { told(bounds, counts) }
}

/// Why the candidate must not get a share: it predicts other classes than the revision that serves.
pub fn disagreement(
    seen: &Observed,
    spec: &ValidDeployment,
    candidate: &RevisionName,
) -> Option<(&'static str, String)> {
    let (bounds, compared) = (spec.shadow.as_ref()?, compared(seen, candidate)?);
    let Counts { compared: all, agreed } = compared.counts;
    (finding(bounds, compared.counts) == Finding::Disagrees).then(|| {
        let why = format!(
            "of {all} requests it predicted the classes of revision {} for {agreed}, an agreement of {} below strategy.canary.shadow.minAgreement {}; lower that where other answers are better ones",
            compared.pair.stable,
            compared.counts.told().unwrap_or_default(),
            bounds.min_agreement
        );
        (DISAGREES, why)
    })
}

/// The end of a comparison that has had its time.
pub fn inconclusive(seen: &Observed, bounds: &Shadow, candidate: &RevisionName) -> Refusal {
    let counts = counts(seen, candidate);
    let silent = compared(seen, candidate).and_then(|it| it.silent.as_ref());
    let hint = match silent {
        Some(silent) => format!(
            "no pod of revision {silent} showed its answers: an image of another server has no /answers, and a network policy must let the operator in on port 8000"
        ),
        None => "only requests through the Gateway that carry its X-Request-Id can be; send more of them, lower strategy.canary.shadow.minRequests, or raise timeoutSeconds".to_owned(),
    };
    let message = format!(
        "{} of the {} requests of strategy.canary.shadow.minRequests were compared for revision {candidate} within {} s, of which it answered {} as the serving one: {hint}; then annotate it with anneal.dev/retry=true",
        counts.compared, bounds.min_requests, bounds.timeout_seconds, counts.agreed
    );
    Refusal { reason: INCONCLUSIVE, message }
}

/// What goes on, for the condition's message.
pub fn sentence(candidate: &str, canary: &CanaryStatus) -> String {
    let known = canary.shadow.clone().unwrap_or_default();
    let agreement = known.agreement.map(|agreement| format!(", agreement {agreement}")).unwrap_or_default();
    format!(
        "revision {candidate} gets copies of {} % of the requests through the Gateway, and nobody its answers; {} are compared{agreement}",
        percent(canary),
        known.compared
    )
}

/// What changed, in the words of Events.
pub fn transitions(old: &ModelDeploymentStatus, new: &CanaryStatus) -> Option<Transition> {
    let old = old.canary.as_ref();
    let revision = &new.revision;
    if is_shown(new) {
        let is_new = new.effective_time.is_some() && old.is_none_or(|old| old.effective_time.is_none());
        let note = format!(
            "revision {revision} gets copies of {} % of the requests through the Gateway; its answers are compared, and nobody gets them",
            percent(new)
        );
        return is_new.then(|| Transition::normal("ShadowBegun", note));
    }
    let known = new.shadow.as_ref().filter(|_| old.is_some_and(is_shown) && new.step.is_some())?;
    let note = format!(
        "revision {revision} predicted what the serving one did for {} of {} requests, an agreement of {}",
        known.agreed,
        known.compared,
        known.agreement.unwrap_or_default()
    );
    Some(Transition::normal("ShadowAgreed", note))
}
