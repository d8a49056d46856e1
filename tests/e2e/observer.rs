//! Who watches over what must hold at every moment, whatever is broken meanwhile: with watches of its own, past the proxy.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use anneal_api::{
    names::label,
    resources::{ModelDeployment, TrainingRun},
};
use anneal_tests::{History, Look, Namespace, Object, Result};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Pod, Service},
};
use kube::ResourceExt as _;

use crate::scenario::GENERATED;

/// Sentences that did not hold.
type Violations = Arc<Mutex<BTreeSet<String>>>;
/// When which Service was seen to lead to which revision.
type Switches = Arc<Mutex<Vec<(Timestamp, String, String)>>>;

/// What was seen of a namespace.
pub struct Observer {
    jobs: History<Job>,
    pods: History<Pod>,
    runs: History<TrainingRun>,
    deployments: History<ModelDeployment>,
    _services: History<Service>,
    switches: Switches,
    violations: Violations,
}

impl Observer {
    /// Begins to look.
    pub async fn start(ns: &Namespace) -> Result<Self> {
        let violations = Violations::default();
        let switches = Switches::default();
        let jobs = History::begin_looking(
            ns.api(),
            GENERATED,
            one_live(violations.clone(), "Job", |job: &Job| {
                let status = job.status.as_ref();
                let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
                let over = conditions
                    .iter()
                    .any(|it| matches!(it.type_.as_str(), "Complete" | "Failed") && it.status == "True");
                (!over).then(|| job.name_any())
            }),
        );
        let pods = History::begin_looking(
            ns.api(),
            GENERATED,
            one_live(violations.clone(), "pod", |pod: &Pod| {
                let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
                // Pods of one Job may replace each other; a Job has one pod here.
                (phase == Some("Running")).then(|| pod.name_any())
            }),
        );
        Ok(Self {
            jobs: jobs.await?,
            pods: pods.await?,
            runs: ns.record("").await?,
            deployments: ns.record("").await?,
            _services: History::begin_looking(ns.api(), GENERATED, moves(switches.clone())).await?,
            switches,
            violations,
        })
    }

    /// How many objects it looked at.
    pub fn objects(&self) -> usize {
        self.jobs.all().len() + self.pods.all().len() + self.runs.all().len() + self.deployments.all().len()
    }

    /// The names of the Jobs that a run ever had, sorted.
    pub fn jobs_of(&self, run: &TrainingRun) -> Vec<String> {
        let uid = run.uid();
        let own = |job: &Job| job.labels().get(label::RUN_UID) == uid.as_ref();
        let mut names: Vec<_> =
            self.jobs.all().iter().filter(|job| own(job)).map(kube::ResourceExt::name_any).collect();
        names.sort();
        names
    }

    /// The revisions that passed a smoke test, with the time of the first.
    fn passed(&self) -> BTreeMap<String, Timestamp> {
        let mut passed = BTreeMap::new();
        for job in self.jobs.all() {
            let Some(revision) = job.labels().get(label::REVISION).cloned() else { continue };
            let Some(at) = job.status.and_then(|status| status.completion_time) else { continue };
            let first = passed.entry(revision).or_insert(at.0);
            *first = at.0.min(*first);
        }
        passed
    }

    /// Whether a revision that answered may answer.
    pub fn may_answer(&self, revision: &str) -> bool {
        self.passed().contains_key(revision)
    }

    /// Notes what is seen elsewhere.
    pub fn note(&self, violation: &str) {
        note(&self.violations, violation);
    }

    /// Every sentence that did not hold until now.
    pub fn violations(&self) -> Vec<String> {
        let passed = self.passed();
        for (at, service, revision) in self.switches.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            // A Job's times are in whole seconds.
            let gated = passed.get(revision).is_some_and(|passed| *passed <= *at + SignedDuration::from_secs(1));
            if !gated {
                self.note(&format!("at {at} the Service {service} led to {revision}, which had not passed"));
            }
        }
        let mut made = BTreeMap::<String, usize>::new();
        for job in self.jobs.all() {
            // A namesake's Job has the same name and another owner.
            let owner = job.owner_references().first().map(|owner| owner.uid.clone()).unwrap_or_default();
            let smoke = job.labels().contains_key(label::REVISION);
            *made.entry(format!("{} of {owner}", job.name_any())).or_default() += usize::from(!smoke);
        }
        for (name, times) in made.iter().filter(|(_, times)| **times > 1) {
            self.note(&format!("Job {name} was made {times} times"));
        }
        self.violations.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

fn note(violations: &Violations, violation: &str) {
    let mut all = violations.lock().unwrap_or_else(PoisonError::into_inner);
    if all.insert(violation.to_owned()) {
        eprintln!("VIOLATION: {violation}");
    }
}

/// Looks that no run has two objects of a kind that live at one time.
fn one_live<K: Object>(violations: Violations, kind: &'static str, live: fn(&K) -> Option<String>) -> Look<K> {
    Box::new(move |all| {
        let mut of_runs = BTreeMap::<&str, Vec<String>>::new();
        for object in all.values() {
            let Some(run) = object.labels().get(label::RUN_UID) else { continue };
            of_runs.entry(run).or_default().extend(live(object));
        }
        for (run, mut names) in of_runs {
            names.sort();
            if names.len() > 1 {
                note(&violations, &format!("run {run} had more than one live {kind}: {names:?}"));
            }
        }
    })
}

/// Notes where Services lead.
fn moves(switches: Switches) -> Look<Service> {
    Box::new(move |all| {
        let mut switches = switches.lock().unwrap_or_else(PoisonError::into_inner);
        for service in all.values().filter(|service| !service.name_any().ends_with("-preview")) {
            let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            let Some(revision) = selector.and_then(|selector| selector.get(label::REVISION)) else { continue };
            let name = service.name_any();
            let last = switches.iter().rev().find(|(_, of, _)| *of == name).map(|(_, _, to)| to);
            if revision != "none" && last != Some(revision) {
                switches.push((Timestamp::now(), name, revision.clone()));
            }
        }
    })
}
