//! The gate: what a revision has shown, and the one type by which the Service's selector can be moved to it.

use std::collections::BTreeSet;

use anneal_api::{
    resources::{CanaryStatus, ModelDeploymentStatus, Promotion, RevisionStatus},
    smoke::{SmokeReport, Verdict},
};
use jiff::Timestamp;
use serde_json::json;

use super::{
    observe::{Observed, RevisionSeen, TestSeen},
    pods::PodSeen,
    revision::{RevisionName, short_hash},
    validate::ValidDeployment,
};

/// A revision that may get the traffic. Only this module makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gated(RevisionName);

impl Gated {
    /// The revision.
    pub fn name(&self) -> &RevisionName {
        &self.0
    }

    /// The revision that has the traffic by the status: it passed its gate before.
    pub fn stable(status: &ModelDeploymentStatus) -> Option<Self> {
        status.stable_revision.as_deref().and_then(RevisionName::parse).map(Self)
    }

    /// The revision of an announced switch: nothing is announced that has not passed its gate.
    pub fn announced(promotion: &Promotion) -> Option<Self> {
        RevisionName::parse(&promotion.to).map(Self)
    }

    /// The revision of a share that is written down and not taken back: none is written down for what has not passed.
    pub fn sharing(canary: &CanaryStatus) -> Option<Self> {
        canary.step.and_then(|_| RevisionName::parse(&canary.revision)).map(Self)
    }

    /// The revision that had the traffic last and is still held, where it has a pod that takes requests.
    pub fn held(seen: &Observed, held: &RevisionName) -> Option<Self> {
        let had_traffic = entry(&seen.status, held)?.promoted_time.is_some();
        let serves = seen.revisions.get(held)?.pods.iter().any(|pod| pod.ready);
        (had_traffic && serves).then(|| Self(held.clone()))
    }

    /// A revision that is taken at its word.
    #[cfg(test)]
    pub fn of_tests(name: &str) -> Self {
        Self(RevisionName::parse(name).expect("a name"))
    }
}

/// The status' entry of a revision.
pub fn entry<'a>(status: &'a ModelDeploymentStatus, revision: &RevisionName) -> Option<&'a RevisionStatus> {
    status.revisions.iter().find(|entry| entry.revision == revision.as_str())
}

/// What marks a smoke test as one of this rollout under this gate; no other one counts.
pub fn rollout_key(spec: &ValidDeployment, started: Timestamp) -> String {
    short_hash(&json!([spec.gate.hash, started.as_second()]))
}

/// What the smoke tests of a rollout have shown so far.
#[derive(Debug)]
pub struct Evidence<'a> {
    tests: Vec<&'a TestSeen>,
    /// The next free number of a test of this revision.
    pub next_number: u32,
}

impl<'a> Evidence<'a> {
    /// The tests of one revision's rollout, oldest first.
    pub fn of(seen: &'a Observed, revision: &RevisionName, key: &str) -> Self {
        let of_revision = || seen.tests.iter().filter(|test| test.revision == *revision);
        let mut tests: Vec<_> = of_revision().filter(|test| test.key == key).collect();
        tests.sort_by_key(|test| test.number);
        let next_number = of_revision().map(|test| test.number).max().unwrap_or_default() + 1;
        Self { tests, next_number }
    }

    fn reports(&self, verdict: Verdict) -> impl DoubleEndedIterator<Item = &'a SmokeReport> {
        self.tests.iter().filter_map(|test| test.report.as_ref()).filter(move |report| report.verdict == verdict)
    }

    /// A wrong answer.
    pub fn failure(&self) -> Option<&'a SmokeReport> {
        self.reports(Verdict::Failed).next_back()
    }

    /// How many tests came to no verdict, and what the last of them said.
    pub fn inconclusive(&self) -> (usize, Option<&'a SmokeReport>) {
        (self.reports(Verdict::Inconclusive).count(), self.reports(Verdict::Inconclusive).next_back())
    }

    /// The test that is under way.
    pub fn running(&self) -> Option<&'a TestSeen> {
        self.tests.iter().find(|test| test.report.is_none()).copied()
    }

    /// The newest report.
    pub fn newest(&self) -> Option<&'a SmokeReport> {
        self.tests.iter().rev().find_map(|test| test.report.as_ref())
    }

    fn smoked(&self) -> BTreeSet<&'a str> {
        let passed = |test: &&&TestSeen| test.report.as_ref().is_some_and(|report| report.verdict == Verdict::Passed);
        self.tests.iter().filter(passed).flat_map(|test| test.pods.iter().map(String::as_str)).collect()
    }
}

/// A revision that has not passed its gate yet.
#[derive(Debug)]
pub struct Candidate<'a> {
    name: &'a RevisionName,
    revision: &'a RevisionSeen,
    smoked: BTreeSet<&'a str>,
}

/// What a candidate still lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// These pods have not answered the gate's questions.
    Answers(Vec<String>),
    /// It has fewer pods than it needs.
    Pods,
    /// Its pods run different images under one name.
    OneImage,
}

impl<'a> Candidate<'a> {
    /// A candidate with what its tests have shown.
    pub fn new(name: &'a RevisionName, revision: &'a RevisionSeen, evidence: &Evidence<'a>) -> Self {
        Self { name, revision, smoked: evidence.smoked() }
    }

    fn ready(&self) -> impl Iterator<Item = &'a PodSeen> {
        self.revision.pods.iter().filter(|pod| pod.ready)
    }

    /// Whether one of its pods has passed, so that more of them are worth starting.
    pub fn has_answered(&self) -> bool {
        self.ready().any(|pod| self.smoked.contains(pod.uid.as_str()))
    }

    /// Its ready pods that have not answered.
    pub fn unasked(&self) -> Vec<String> {
        self.ready().filter(|pod| !self.smoked.contains(pod.uid.as_str())).map(|pod| pod.uid.clone()).collect()
    }

    /// Lets the candidate through when `size` pods are ready and each ready pod has answered.
    ///
    /// # Errors
    /// What it still lacks.
    pub fn pass(&self, size: i32) -> Result<Gated, Lack> {
        if i32::try_from(self.ready().count()).unwrap_or(i32::MAX) < size.max(1) {
            return Err(Lack::Pods);
        }
        let unasked = self.unasked();
        if !unasked.is_empty() {
            return Err(Lack::Answers(unasked));
        }
        let images: BTreeSet<_> = self.ready().filter_map(|pod| pod.image_id.as_ref()).collect();
        if images.len() > 1 { Err(Lack::OneImage) } else { Ok(Gated(self.name.clone())) }
    }
}
