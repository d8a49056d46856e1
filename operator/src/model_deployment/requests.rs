//! What people ask of a rollout by annotations. Each is acted on once, answered with an Event where it comes to nothing,
//! and removed.

use anneal_api::{
    names::request,
    resources::{ModelDeployment, ModelDeploymentStatus, RevisionStatus},
};
use kube::ResourceExt;

use super::{
    canary, gate,
    observe::Observed,
    plan::Step,
    revision::{Revision, RevisionName},
    validate::ValidDeployment,
};
use crate::context::Transition;

/// Why a revision is rejected on request.
pub const ABORTED: &str = "Aborted";

/// What is asked of a rollout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests<'a> {
    approve: Option<&'a str>,
    abort: Option<&'a str>,
    retry: Option<&'a str>,
    /// Asks for new pods of what serves; another value than before is another request.
    pub restart: Option<&'a str>,
}

impl<'a> Requests<'a> {
    /// What the annotations of a deployment ask.
    pub fn of(owner: &'a ModelDeployment) -> Self {
        let asked = |key: &str| owner.annotations().get(key).map(String::as_str);
        Self {
            approve: asked(request::APPROVE),
            abort: asked(request::ABORT),
            retry: asked(request::RETRY),
            restart: asked(request::RESTART),
        }
    }

    /// Whether the revision may get the traffic.
    pub fn approves(&self, revision: &RevisionName) -> bool {
        means(self.approve, revision)
    }

    /// Whether the revision must not get the traffic, or must give it back.
    pub fn aborts(&self, revision: &RevisionName) -> bool {
        means(self.abort, revision)
    }

    /// Whether the revision is to be tried again.
    pub fn retries(&self, revision: &RevisionName) -> bool {
        means(self.retry, revision)
    }
}

/// A request is about the revision that it names; `true` is about whichever it can be about.
fn means(asked: Option<&str>, revision: &RevisionName) -> bool {
    asked.is_some_and(|asked| asked == "true" || asked == revision.as_str())
}

/// The annotations that have been answered with this step, and what there is to say about them.
pub fn answered(
    seen: &Observed,
    spec: &ValidDeployment,
    wanted: Option<&Revision>,
    step: &Step,
    next: &ModelDeploymentStatus,
) -> (Vec<&'static str>, Vec<Transition>) {
    let requests = Requests::of(&seen.owner);
    let (mut done, mut events) = (Vec::new(), Vec::new());
    let entry = wanted.and_then(|wanted| gate::entry(next, &wanted.name));
    let mut answer = |key: &'static str, reason: &'static str, came_to_something: bool, why: &str| {
        done.push(key);
        if !came_to_something {
            events.push(Transition::warning(reason, why));
        }
    };
    if requests.approve.is_some() {
        let is_approved =
            |entry: &RevisionStatus| canary::was_approved(&seen.status, next).unwrap_or(entry.approved_time.is_some());
        let approved =
            wanted.zip(entry).is_some_and(|(wanted, entry)| requests.approves(&wanted.name) && is_approved(entry));
        let why = "no revision of that name waits for approval; status.candidateRevision names the one that does";
        answer(request::APPROVE, "NothingToApprove", approved, why);
    }
    if requests.abort.is_some() {
        let is_aborted = |rejection: &anneal_api::resources::Rejection| rejection.reason == ABORTED;
        let aborted = entry.is_some_and(|entry| entry.rejection.as_ref().is_some_and(is_aborted));
        let why = "no rollout of that revision is under way, and no former revision is held; `pinnedRevision` goes back further";
        // In the midst of a switch nobody can tell yet: the soak that follows can.
        let is_early = matches!(step, Step::Confirm | Step::HandOver(_) | Step::Restore(_) | Step::SwitchBack(_));
        if aborted || !is_early {
            answer(request::ABORT, "NothingToAbort", aborted, why);
        }
    }
    if requests.retry.is_some() {
        let retried = wanted.is_some_and(|wanted| requests.retries(&wanted.name)) && step.has_candidate();
        answer(
            request::RETRY,
            "NothingToRetry",
            retried,
            "the wanted revision was not rejected; nothing is tried again",
        );
    }
    if let Some(token) = requests.restart {
        let restarted = wanted.and_then(|wanted| seen.records.get(&wanted.name)?.inputs.restart.as_deref());
        if restarted == Some(token) {
            done.push(request::RESTART);
        } else if spec.pinned.is_some() {
            let why = "a pinned revision is what was written down; remove pinnedRevision, then restart";
            answer(request::RESTART, "NothingToRestart", false, why);
        }
    }
    (done, events)
}
