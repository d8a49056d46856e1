//! A small cluster in memory, in which plans are carried out: a Job controller, a kubelet, a queue, a clock that jumps.
//! Every pass of the operator is checked against the laws of a run.

use std::{collections::BTreeMap, sync::Arc};

use anneal_api::{
    Sha256,
    failure::{Failure, FailureClass},
    names::label,
    progress::Progress,
    resources::{InitCheckpoint, RunPhase, TrainingRun, TrainingRunStatus, run_condition},
    termination::{DatasetResult, Metrics, RunResult, TerminationMessage},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{batch::v1::Job, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::super::{Plan, plan};
use crate::{
    context::Settings,
    controller::Wake,
    progress::Reading,
    training_run::{
        claim::Claim,
        failure::job_has_ended,
        init::Init,
        known::Essential,
        observe::{AttemptJob, AttemptPod, Observed},
        validate::validate,
    },
};

/// Where the clock begins.
const BEGIN: i64 = 1_800_000_000;

/// The cluster, with one run in it.
#[derive(Clone)]
pub struct World {
    pub run: TrainingRun,
    pub jobs: BTreeMap<i32, Job>,
    pub pods: Vec<Pod>,
    /// Pods that are gone, as far as the watch saw their end.
    pub gone: Vec<Pod>,
    pub claim: Claim,
    /// What the run begins with.
    pub init: Init,
    pub reading: Reading,
    /// When the pod was asked last, where that is not just now.
    pub asked: Option<Timestamp>,
    pub needed_by: Vec<String>,
    pub now: Timestamp,
    /// Whether the nodes answer.
    pub nodes_answer: bool,
    /// Numbers of the Jobs that were made, in order.
    pub made: Vec<i32>,
    /// Numbers of the attempts whose pods ran.
    pub ran: Vec<i32>,
    /// Reasons of the Events, in order.
    pub events: Vec<&'static str>,
    /// Whether the run was deleted.
    pub deleted: bool,
    counter: u32,
}

pub fn result() -> RunResult {
    RunResult {
        checkpoint: "models/x.pth".into(),
        sha256: Sha256::from_bytes([1; 32]),
        bytes: 1,
        classes: vec!["cat".into(), "dog".into()],
        metrics: Metrics { accuracy: 0.95, precision: 0.95, recall: 0.95, f1: 0.95 },
        best: Some(0.97),
        loss: Some(0.2),
        dataset: DatasetResult { digest: "sha256:0".into(), images: 600, skipped: 0 },
        seed: 0,
        epochs: 10,
        config_sha256: None,
        resumed_from_step: None,
        exact: None,
        steps_lost: None,
    }
}

pub fn published() -> TerminationMessage {
    TerminationMessage::Result(result())
}

/// A checkpoint to begin with, on a claim that is not the run's own.
pub fn checkpoint() -> InitCheckpoint {
    InitCheckpoint { claim_name: "others".into(), path: "models/x.pth".into(), sha256: Sha256::from_bytes([2; 32]) }
}

/// What the trainer says when it is asked to stop, with a checkpoint at this step.
pub fn interrupted(checkpoint_step: i64) -> TerminationMessage {
    let failure = Failure::new(FailureClass::Interrupted, "asked to stop");
    TerminationMessage::Failure(Failure {
        step: Some(checkpoint_step),
        checkpoint_step: Some(checkpoint_step),
        ..failure
    })
}

impl World {
    /// A run that nothing has happened to yet. `spec` is merged into the least that a run must say.
    pub fn new(spec: Value) -> Self {
        let mut all = json!({"dataset": {"uri": "synthetic://"}, "output": {"claimName": "models"}});
        if let (Some(all), Value::Object(spec)) = (all.as_object_mut(), spec) {
            all.extend(spec);
        }
        let mut run = TrainingRun::new("cats", serde_json::from_value(all).expect("a spec"));
        run.metadata.namespace = Some("ml".into());
        run.metadata.uid = Some("0123456789".into());
        run.metadata.generation = Some(1);
        Self {
            run,
            jobs: BTreeMap::new(),
            pods: Vec::new(),
            gone: Vec::new(),
            claim: Claim::Present,
            init: Init::Random,
            reading: Reading::Unknown,
            asked: None,
            needed_by: Vec::new(),
            now: Timestamp::from_second(BEGIN).expect("in range"),
            nodes_answer: true,
            made: Vec::new(),
            ran: Vec::new(),
            events: Vec::new(),
            deleted: false,
            counter: 0,
        }
    }

    pub fn status(&self) -> TrainingRunStatus {
        self.run.status.clone().unwrap_or_default()
    }

    pub fn phase(&self) -> Option<RunPhase> {
        self.status().phase
    }

    /// The reason that the conditions give, and their message.
    pub fn reason(&self) -> (String, String) {
        let ready = self.status().conditions.into_iter().find(|condition| condition.type_ == run_condition::READY);
        ready.map(|condition| (condition.reason, condition.message)).unwrap_or_default()
    }

    /// Seconds since the beginning, on the operator's clock.
    pub fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(BEGIN + seconds).expect("in range")
    }

    pub fn wait(&mut self, seconds: i64) -> &mut Self {
        self.now = self.now.checked_add(SignedDuration::from_secs(seconds)).expect("in range");
        self
    }

    pub fn edit(&mut self, edit: impl FnOnce(&mut TrainingRun)) -> &mut Self {
        edit(&mut self.run);
        self.run.metadata.generation = self.run.metadata.generation.map(|generation| generation + 1);
        self
    }

    pub fn suspend(&mut self, suspend: bool) -> &mut Self {
        self.edit(|run| run.spec.suspend = suspend)
    }

    /// The specification makes no sense any more, in a way that the schema does not see.
    pub fn spoil(&mut self) -> &mut Self {
        self.edit(|run| {
            run.spec.pod_template.labels.insert("anneal.dev/x".into(), "y".into());
        })
    }

    /// What a plan is made from: of Jobs and pods only what is kept of what the watches tell.
    pub fn seen(&self) -> Observed {
        let number = |pod: &Pod| pod.labels()[label::ATTEMPT].parse().expect("a number");
        let listed = self.pods.iter().map(|pod| (pod, false)).chain(self.gone.iter().map(|pod| (pod, true)));
        let mut pods: Vec<AttemptPod> =
            listed.map(|(pod, gone)| AttemptPod { number: number(pod), pod: essentials(pod), gone }).collect();
        pods.sort_by_key(|attempt| std::cmp::Reverse(attempt.pod.name_any()));
        Observed {
            run: Arc::new(self.run.clone()),
            output: self.claim.clone(),
            dataset: None,
            // What is written down needs no second look.
            init: if self.status().init_from.is_some() { Init::Pinned(None) } else { self.init.clone() },
            jobs: self.jobs.iter().map(|(number, job)| AttemptJob { number: *number, job: essentials(job) }).collect(),
            pods,
            reading: self.reading.clone(),
            asked: self.asked.or(Some(self.now)),
            log: None,
            needed_by: self.needed_by.clone(),
        }
    }

    pub fn plan(&self) -> Plan {
        let seen = self.seen();
        plan(&seen, validate(&seen.run).as_ref(), &Settings::of_tests(), self.now)
    }

    /// One pass of the operator.
    pub fn pass(&mut self) -> Plan {
        let plan = self.plan();
        self.carry_out(&plan, true);
        plan
    }

    /// Passes until nothing changes any more.
    pub fn settle(&mut self) -> &mut Self {
        for _ in 0..8 {
            let before = (self.run.status.clone(), self.jobs.len());
            self.pass();
            if before == (self.run.status.clone(), self.jobs.len()) {
                return self;
            }
        }
        panic!("the operator does not come to rest: {:?}", self.status());
    }

    /// Makes a plan true. An operator that dies right before it writes the status leaves the rest done.
    pub fn carry_out(&mut self, plan: &Plan, writes_status: bool) {
        self.check(plan);
        if plan.delete_run {
            self.deleted = true;
            return;
        }
        for job in &plan.delete {
            let number = job.labels()[label::ATTEMPT].parse().expect("a number");
            self.delete_job(number);
        }
        if let Some(start) = &plan.create {
            let mut job = start.job.clone();
            let number = job.labels()[label::ATTEMPT].parse().expect("a number");
            self.counter += 1;
            job.metadata.uid = Some(format!("job-{}", self.counter));
            job.metadata.creation_timestamp = Some(Time(self.now));
            self.made.push(number);
            self.jobs.insert(number, job);
        }
        if plan.follow.is_none() {
            self.reading = Reading::Unknown;
        }
        if writes_status {
            self.events.extend(plan.events.iter().map(|event| event.reason));
            self.run.status = Some(plan.status.clone());
            if plan.status.current_attempt.is_none() {
                self.gone.clear();
            }
        }
    }

    fn check(&self, plan: &Plan) {
        let (former, new) = (self.status(), &plan.status);
        let is_terminal = |status: &TrainingRunStatus| status.phase.is_some_and(RunPhase::is_terminal);
        if is_terminal(&former) {
            assert_eq!(new.phase, former.phase, "a run that ended moved");
            assert!(plan.create.is_none() && plan.delete.is_empty(), "a run that ended did something");
        }
        assert!(is_terminal(new) || plan.wake != Wake::Never, "nothing wakes it: {new:?}");
        assert!(!plan.delete_run || is_terminal(&former), "a run was deleted before its end");
        if let Some(start) = &plan.create {
            let number: i32 = start.job.labels()[label::ATTEMPT].parse().expect("a number");
            assert!(self.jobs.values().all(job_has_ended), "two live Jobs");
            assert!(!self.pods.iter().any(is_writer), "two writers");
            assert!(!self.jobs.contains_key(&number), "Job {number} exists already");
            assert!(!self.ran.contains(&number), "attempt {number} ran twice");
        }
        let count = |status: &TrainingRunStatus, class| {
            status.failures.iter().find(|entry| entry.class == class).map_or(0, |entry| entry.count)
        };
        for class in FailureClass::ALL {
            assert!(count(new, class) >= count(&former, class), "a budget grew: {class:?}");
        }
        let numbers: Vec<i32> = new.attempts.iter().map(|attempt| attempt.number).collect();
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "an attempt was lost: {numbers:?}");
        assert!(former.attempts.last().map(|last| last.number) <= numbers.last().copied(), "an attempt was forgotten");
        check_conditions(new);
    }

    /// The pods of a Job without a pod of its own, as the Job controller makes them.
    pub fn schedule(&mut self) -> &mut Self {
        let live: Vec<i32> = self.jobs.iter().filter(|(_, job)| !job_has_ended(job)).map(|(n, _)| *n).collect();
        for number in live {
            let job = &self.jobs[&number];
            let uid = job.uid().unwrap_or_default();
            let held = job.spec.as_ref().and_then(|spec| spec.suspend) == Some(true);
            let has_pod = self.pods.iter().any(|pod| pod.owner_references().iter().any(|owner| owner.uid == uid));
            if held || has_pod {
                continue;
            }
            self.counter += 1;
            let pod = json!({
                "metadata": {
                    "name": format!("cats-{number}-{:05}", self.counter), "namespace": "ml",
                    "uid": format!("pod-{}", self.counter), "creationTimestamp": Time(self.now),
                    "labels": {
                        label::ATTEMPT: number.to_string(), label::RUN: "cats", label::RUN_UID: "0123456789"
                    },
                    "ownerReferences": [{
                        "apiVersion": "batch/v1", "kind": "Job", "name": job.name_any(), "uid": uid, "controller": true
                    }]
                },
                "spec": {"containers": [], "nodeName": "node-1"},
                "status": {"phase": "Pending"}
            });
            self.pods.push(serde_json::from_value(pod).expect("a pod"));
        }
        self
    }

    fn with_pods(&mut self, which: impl Fn(&Pod) -> bool, change: impl Fn(&mut Value)) {
        for pod in self.pods.iter_mut().filter(|pod| which(pod)) {
            let mut value = serde_json::to_value(&*pod).expect("a pod");
            change(&mut value);
            *pod = serde_json::from_value(value).expect("a pod");
        }
    }

    /// Every pod that starts waits for something.
    pub fn blocked(&mut self, status: &Value) -> &mut Self {
        self.schedule().with_pods(|pod| phase_of(pod) == Some("Pending"), |pod| pod["status"] = status.clone());
        self
    }

    /// Every pod that waits runs.
    pub fn starts(&mut self) -> &mut Self {
        self.schedule();
        let waits = |pod: &Pod| phase_of(pod) == Some("Pending") && pod.metadata.deletion_timestamp.is_none();
        let numbers: Vec<i32> = self.pods.iter().filter(|pod| waits(pod)).map(number_of).collect();
        self.ran.extend(numbers);
        let started = self.now;
        self.with_pods(waits, |pod| {
            pod["status"] = json!({
                "phase": "Running", "podIP": "10.0.0.1",
                "containerStatuses": [{
                    "name": "trainer", "image": "trainer:1", "imageID": "sha256:image", "ready": true, "restartCount": 0,
                    "state": {"running": {"startedAt": started}}
                }]
            });
        });
        self
    }

    /// Every pod that runs ends, and its Job with it.
    pub fn ends(&mut self, code: i32, reason: &str, message: Option<&TerminationMessage>) -> &mut Self {
        self.containers_end(code, reason, message, |pod| pod.metadata.deletion_timestamp.is_none());
        self.jobs_follow();
        self
    }

    fn containers_end(
        &mut self,
        code: i32,
        reason: &str,
        message: Option<&TerminationMessage>,
        which: impl Fn(&Pod) -> bool,
    ) {
        let message = message.map(|message| message.to_json().expect("json")).unwrap_or_default();
        let now = self.now;
        self.with_pods(
            |pod| which(pod) && phase_of(pod) == Some("Running"),
            |pod| {
                pod["status"]["phase"] = json!(if code == 0 { "Succeeded" } else { "Failed" });
                let started = pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"].clone();
                pod["status"]["containerStatuses"][0]["state"] = json!({"terminated": {
                    "exitCode": code, "reason": reason, "message": message, "startedAt": started, "finishedAt": now
                }});
            },
        );
    }

    /// What the Job controller makes of pods that have ended.
    pub fn jobs_follow(&mut self) -> &mut Self {
        let now = self.now;
        for (number, job) in self.jobs.iter_mut().filter(|(_, job)| !job_has_ended(job)) {
            let uid = job.uid().unwrap_or_default();
            let held = job.spec.as_ref().and_then(|spec| spec.suspend) == Some(true);
            let of_job =
                |pod: &&Pod| number_of(pod) == *number && pod.owner_references().iter().any(|owner| owner.uid == uid);
            let phase = self.pods.iter().chain(&self.gone).find(of_job).and_then(phase_of);
            let kind = match phase {
                Some("Succeeded") => "Complete",
                Some("Failed") if !held => "Failed",
                _ => continue,
            };
            let status = json!({"conditions": [{"type": kind, "status": "True", "lastTransitionTime": now}]});
            job.status = Some(serde_json::from_value(status).expect("a status"));
        }
        self
    }

    /// Somebody, or the operator, deletes a Job; its pods are told to stop.
    pub fn delete_job(&mut self, number: i32) -> &mut Self {
        if let Some(job) = self.jobs.remove(&number) {
            let uid = job.uid().unwrap_or_default();
            self.delete_pods(|pod| pod.owner_references().iter().any(|owner| owner.uid == uid));
        }
        self
    }

    /// Pods are told to stop.
    pub fn delete_pods(&mut self, which: impl Fn(&Pod) -> bool) -> &mut Self {
        let gone_by = Time(self.now.checked_add(SignedDuration::from_secs(60)).expect("in range"));
        for pod in self.pods.iter_mut().filter(|pod| which(pod)) {
            pod.metadata.deletion_timestamp.get_or_insert(gone_by.clone());
        }
        self
    }

    /// The API evicts every pod, or the scheduler for another.
    pub fn disrupt(&mut self, reason: &str) -> &mut Self {
        self.with_pods(
            |pod| !is_over(pod),
            |pod| {
                pod["status"]["conditions"] = json!([{"type": "DisruptionTarget", "status": "True", "reason": reason}]);
            },
        );
        self.delete_pods(|_| true)
    }

    /// The kubelets end every pod that was told to stop; it goes, and the watch sees its end or not.
    pub fn pods_stop(&mut self, message: Option<&TerminationMessage>, is_seen: bool) -> &mut Self {
        if !self.nodes_answer {
            return self;
        }
        let code = if matches!(message, Some(TerminationMessage::Result(_))) { 0 } else { 143 };
        self.containers_end(code, "Error", message, |pod| pod.metadata.deletion_timestamp.is_some());
        let (leaving, staying): (Vec<Pod>, Vec<Pod>) =
            self.pods.drain(..).partition(|pod| pod.metadata.deletion_timestamp.is_some());
        self.pods = staying;
        let unseen = leaving.clone();
        self.gone.extend(leaving);
        self.jobs_follow();
        if !is_seen {
            self.gone.retain(|pod| !unseen.iter().any(|other| other.uid() == pod.uid()));
        }
        self
    }

    /// A queue takes the Job of the newest attempt back, or lets it go.
    pub fn hold(&mut self, held: bool) -> &mut Self {
        let now = self.now;
        let mut uid = None;
        // What it takes back begins anew when it is let go: it is the same attempt.
        let newest = self.jobs.keys().next_back().copied();
        self.ran.retain(|number| !held || Some(*number) != newest);
        if let Some(job) = self.jobs.values_mut().next_back().filter(|job| !job_has_ended(job)) {
            uid = job.uid();
            if let Some(spec) = &mut job.spec {
                spec.suspend = Some(held);
            }
            let started = if held { json!({}) } else { json!({"startTime": now}) };
            job.status = Some(serde_json::from_value(started).expect("a status"));
        }
        if let Some(uid) = uid.filter(|_| held) {
            self.delete_pods(|pod| pod.owner_references().iter().any(|owner| owner.uid == uid));
        }
        self
    }

    /// The trainer says how far it is.
    pub fn says(&mut self, step: i64, checkpoint_step: Option<i64>, resumed_from_step: Option<i64>) -> &mut Self {
        self.reading = Reading::Said(Box::new(Progress {
            epochs: 10,
            step,
            steps: 100,
            checkpoint_step,
            resumed_from_step,
            last_update_time: self.now,
            ..Progress::default()
        }));
        self
    }
}

fn essentials<K: Essential>(object: &K) -> K {
    let mut object = object.clone();
    object.keep_essentials();
    object
}

fn number_of(pod: &Pod) -> i32 {
    pod.labels()[label::ATTEMPT].parse().expect("a number")
}

fn phase_of(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

fn is_over(pod: &Pod) -> bool {
    matches!(phase_of(pod), Some("Succeeded" | "Failed"))
}

fn is_writer(pod: &Pod) -> bool {
    !is_over(pod)
}

/// Phase and conditions are told from one state, and must never contradict each other.
fn check_conditions(status: &TrainingRunStatus) {
    let holds = |kind: &str| status.conditions.iter().any(|it| it.type_ == kind && it.status == "True");
    let phase = status.phase.expect("every plan gives a phase");
    assert_eq!(holds(run_condition::READY), phase == RunPhase::Succeeded, "{status:?}");
    assert_eq!(holds(run_condition::COMPLETE), phase == RunPhase::Succeeded, "{status:?}");
    assert_eq!(holds(run_condition::FAILED), phase == RunPhase::Failed, "{status:?}");
    assert_eq!(holds(run_condition::SUSPENDED), phase == RunPhase::Suspended, "{status:?}");
    assert!(!(holds(run_condition::PROGRESSING) && holds(run_condition::STALLED)), "{status:?}");
    assert!(!phase.is_terminal() || !holds(run_condition::PROGRESSING), "{status:?}");
    assert_eq!(phase.is_terminal(), status.completion_time.is_some(), "{status:?}");
    let reasons: Vec<&str> = status.conditions.iter().map(|condition| condition.reason.as_str()).collect();
    assert!(reasons.windows(2).all(|pair| pair[0] == pair[1]), "two reasons: {reasons:?}");
}
