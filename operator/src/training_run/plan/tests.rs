//! The plan, case by case and over random histories.

use std::sync::Arc;

use anneal_api::{
    Sha256,
    failure::FailureClass,
    resources::{TrainingRun, TrainingRunSpec},
    termination::{DatasetResult, Metrics, TerminationMessage},
};
use k8s_openapi::api::{
    batch::v1::{JobCondition, JobStatus},
    core::v1::{
        ContainerState, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, PodCondition, PodStatus,
    },
};
use proptest::prelude::*;

use super::*;
use crate::{context::Reach, training_run::validate::validate};

/// A run as the cluster shows it; each case says only what matters to it.
#[derive(Clone)]
struct Case {
    seen: Observed,
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("in range")
}

fn settings() -> Settings {
    Settings {
        trainer_image: "trainer:1".into(),
        server_image: "server:1".into(),
        image_pull_policy: None,
        reach: Reach::Address,
    }
}

fn run() -> Case {
    let spec: TrainingRunSpec = serde_json::from_value(serde_json::json!({
        "dataset": {"uri": "synthetic://"}, "output": {"claimName": "models"}
    }))
    .expect("a spec");
    let mut run = TrainingRun::new("cats", spec);
    run.metadata.namespace = Some("ml".into());
    run.metadata.uid = Some("0123456789".into());
    run.metadata.generation = Some(1);
    Case {
        seen: Observed {
            run: Arc::new(run),
            output: Claim::Present,
            dataset: None,
            jobs: vec![],
            writers: vec![],
            progress: None,
        },
    }
}

fn result() -> RunResult {
    RunResult {
        checkpoint: "models/x.pth".into(),
        sha256: Sha256::from_bytes([1; 32]),
        bytes: 1,
        classes: vec!["cat".into(), "dog".into()],
        metrics: Metrics { accuracy: 0.95, precision: 0.95, recall: 0.95, f1: 0.95 },
        dataset: DatasetResult { digest: "sha256:0".into(), images: 600, skipped: 0 },
        seed: 0,
        epochs: 10,
        config_sha256: None,
        resumed_from_step: None,
        exact: None,
        steps_lost: None,
    }
}

impl Case {
    fn edit(mut self, edit: impl FnOnce(&mut TrainingRun)) -> Self {
        edit(Arc::make_mut(&mut self.seen.run));
        self
    }

    fn max_retries(self, retries: i32) -> Self {
        self.edit(|run| run.spec.max_retries = retries)
    }

    fn without_claim(mut self) -> Self {
        self.seen.output = Claim::Missing("models".into());
        self
    }

    fn job(mut self, number: i32) -> Self {
        let valid = validate(&self.seen.run).expect("valid");
        let mut job = objects::job(&self.seen.run, &valid, number, &settings());
        job.metadata.uid = Some(format!("job-{number}"));
        job.metadata.creation_timestamp = Some(Time(at(0)));
        self.seen.jobs.push(AttemptJob { number, job, pod: None });
        self
    }

    fn newest(&mut self) -> &mut AttemptJob {
        self.seen.jobs.last_mut().expect("a job")
    }

    fn pod(mut self, phase: &str, state: ContainerState) -> Self {
        self.newest().pod = Some(Pod {
            status: Some(PodStatus {
                phase: Some(phase.into()),
                pod_ip: Some("10.0.0.1".into()),
                container_statuses: Some(vec![ContainerStatus {
                    name: "trainer".into(),
                    image_id: "sha256:image".into(),
                    state: Some(state),
                    ..ContainerStatus::default()
                }]),
                ..PodStatus::default()
            }),
            metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                name: Some("cats-1-x".into()),
                namespace: Some("ml".into()),
                ..Default::default()
            },
            ..Pod::default()
        });
        self
    }

    fn running(self) -> Self {
        self.pod("Running", ContainerState::default())
    }

    fn ended(self, code: i32, reason: &str, message: Option<&TerminationMessage>) -> Self {
        let phase = if code == 0 { "Succeeded" } else { "Failed" };
        let message = message.map(|message| message.to_json().expect("json"));
        let terminated = ContainerStateTerminated {
            exit_code: code,
            reason: Some(reason.into()),
            message,
            ..ContainerStateTerminated::default()
        };
        let state = ContainerState { terminated: Some(terminated), ..ContainerState::default() };
        self.pod(phase, state).job_is(if code == 0 { "Complete" } else { "Failed" }, None, 100)
    }

    fn job_is(mut self, kind: &str, reason: Option<&str>, second: i64) -> Self {
        self.newest().job.status = Some(JobStatus {
            conditions: Some(vec![JobCondition {
                type_: kind.into(),
                status: "True".into(),
                reason: reason.map(str::to_owned),
                last_transition_time: Some(Time(at(second))),
                ..JobCondition::default()
            }]),
            ..JobStatus::default()
        });
        self
    }

    fn plan(&self, second: i64) -> Plan {
        plan(&self.seen, &validate(&self.seen.run).expect("valid"), &settings(), at(second))
    }

    /// The same with what the plan recorded.
    fn recorded(self, second: i64) -> Self {
        let status = self.plan(second).status;
        self.edit(|run| run.status = Some(status))
    }

    fn without_jobs(mut self) -> Self {
        self.seen.jobs.clear();
        self
    }
}

fn job_of(plan: &Plan) -> Option<&str> {
    plan.create.as_ref().and_then(|start| start.job.metadata.name.as_deref())
}

fn reason(plan: &Plan) -> String {
    plan.status.conditions.iter().find(|c| c.type_ == "Ready").map(|c| c.reason.clone()).unwrap_or_default()
}

#[test]
fn a_new_run_starts_its_first_attempt() {
    let plan = run().plan(0);
    assert_eq!(job_of(&plan), Some("cats-1"));
    assert_eq!(plan.status.phase, Some(RunPhase::Preparing));
    assert_eq!(plan.status.attempt, Some(1));
}

#[test]
fn a_run_without_its_claim_waits_and_says_what_to_do() {
    let case = run().without_claim();
    let waiting = case.plan(0);
    assert_eq!((job_of(&waiting), waiting.status.phase), (None, Some(RunPhase::Pending)));
    assert_eq!(reason(&waiting), "ClaimNotFound");
    assert!(waiting.events[0].note.contains("create PersistentVolumeClaim models"), "{:?}", waiting.events);

    let mut there = case.recorded(0);
    there.seen.output = Claim::Present;
    assert_eq!(job_of(&there.plan(10)), Some("cats-1"));
}

#[test]
fn a_running_attempt_is_followed_and_makes_no_second_job() {
    let plan = run().job(1).running().plan(5);
    assert_eq!((job_of(&plan), plan.status.phase), (None, Some(RunPhase::Running)));
    assert_eq!(plan.follow.expect("a target").address, "10.0.0.1");
}

#[test]
fn a_run_whose_pod_has_ended_before_its_job_does_not_fall_back() {
    let plan = run().job(1).pod("Succeeded", ContainerState::default()).plan(5);
    assert_eq!((plan.status.phase, plan.follow), (Some(RunPhase::Running), None));
}

#[test]
fn a_plan_that_was_recorded_is_the_same_again() {
    for case in [run().without_claim(), run().job(1).running(), run().job(1).ended(1, "Error", None)] {
        let recorded = case.recorded(101);
        let again = recorded.plan(102);
        assert_eq!(Some(&again.status), recorded.seen.run.status.as_ref());
        assert!(again.events.is_empty(), "{:?}", again.events);
    }
}

#[test]
fn a_published_model_ends_the_run_with_its_result() {
    let plan = run().job(1).ended(0, "Completed", Some(&TerminationMessage::Result(result()))).plan(101);
    assert_eq!((plan.status.phase, plan.wake), (Some(RunPhase::Succeeded), Wake::Never));
    assert_eq!(plan.status.result, Some(result()));
    assert_eq!(plan.status.progress.map(|p| (p.percent, p.epoch_of_epochs)), Some(("100%".into(), "10/10".into())));
    assert_eq!(plan.status.attempts.len(), 1);
}

#[test]
fn a_finished_run_never_starts_again_when_its_job_is_collected() {
    let done = run().job(1).ended(0, "Completed", Some(&TerminationMessage::Result(result()))).recorded(101);
    let plan = done.without_jobs().plan(9999);
    assert_eq!((job_of(&plan), plan.status.phase, plan.wake), (None, Some(RunPhase::Succeeded), Wake::Never));
}

#[test]
fn a_failure_that_may_pass_is_retried_after_a_pause_that_no_restart_shortens() {
    let failed = run().job(1).ended(1, "Error", None);
    let early = failed.plan(101);
    assert_eq!((job_of(&early), early.status.phase), (None, Some(RunPhase::Retrying)));
    assert_eq!(early.wake, Wake::At(at(110)));
    assert_eq!(failed.recorded(101).plan(109).wake, Wake::At(at(110)));
    let due = run().job(1).ended(1, "Error", None).plan(110);
    assert_eq!(job_of(&due), Some("cats-2"));
    let environment = due.create.expect("a start").job.spec.expect("a spec").template.spec.expect("a pod");
    let resume = environment.containers[0].env.iter().flatten().find(|v| v.name == "ANNEAL_RESUME_FROM").cloned();
    assert_eq!(resume.and_then(|v| v.value), Some("/output/runs/cats-01234567/checkpoints".into()));
}

#[test]
fn a_failure_that_would_come_again_is_not_retried() {
    let message = TerminationMessage::failure(FailureClass::Diverged, "the loss is NaN at step 12; lower learningRate");
    let plan = run().job(1).ended(70, "Error", Some(&message)).plan(101);
    assert_eq!((plan.status.phase, reason(&plan).as_str()), (Some(RunPhase::Failed), "Diverged"));
    assert!(plan.events[0].note.contains("lower learningRate"), "{:?}", plan.events);
}

#[test]
fn retries_are_used_up_one_by_one() {
    let case = run().max_retries(1).job(1).ended(1, "Error", None).recorded(101);
    let plan = case.job(2).ended(1, "Error", None).plan(200);
    assert_eq!((plan.status.phase, plan.status.attempts.len()), (Some(RunPhase::Failed), 2));
    assert_eq!(plan.status.attempts[1].exit_code, Some(1));
}

#[test]
fn an_attempt_stays_counted_when_its_job_is_deleted() {
    let case = run().job(1).ended(1, "Error", None).recorded(101).without_jobs();
    let plan = case.plan(9999);
    assert_eq!(job_of(&plan), Some("cats-2"));
    assert_eq!(plan.status.attempts.len(), 1);
}

#[test]
fn a_kill_at_the_memory_limit_has_its_own_class() {
    let plan = run().max_retries(0).job(1).ended(137, "OOMKilled", None).plan(101);
    assert_eq!(plan.status.attempts[0].class, Some(FailureClass::OOMKilled));
    assert!(plan.status.attempts[0].message.contains("limits.memory"));
}

#[test]
fn a_passed_deadline_is_not_retried() {
    let plan = run().job(1).job_is("Failed", Some("DeadlineExceeded"), 100).plan(101);
    assert_eq!((plan.status.phase, reason(&plan).as_str()), (Some(RunPhase::Failed), "ActiveDeadline"));
}

#[test]
fn an_image_that_cannot_be_pulled_is_named_while_waiting() {
    let waiting =
        ContainerStateWaiting { reason: Some("ImagePullBackOff".into()), message: Some("no such image".into()) };
    let plan =
        run().job(1).pod("Pending", ContainerState { waiting: Some(waiting), ..ContainerState::default() }).plan(5);
    assert_eq!((plan.status.phase, reason(&plan).as_str()), (Some(RunPhase::Preparing), "ImagePull"));
}

#[test]
fn a_pod_that_no_node_takes_is_named_while_waiting() {
    let mut case = run().job(1).pod("Pending", ContainerState::default());
    if let Some(status) = case.newest().pod.as_mut().and_then(|pod| pod.status.as_mut()) {
        status.container_statuses = None;
        status.conditions = Some(vec![PodCondition {
            type_: "PodScheduled".into(),
            status: "False".into(),
            message: Some("0/1 nodes are available: insufficient memory".into()),
            ..PodCondition::default()
        }]);
    }
    let plan = case.plan(5);
    assert_eq!(reason(&plan), "Unschedulable");
}

#[test]
fn the_pause_doubles_up_to_five_minutes() {
    let seconds: Vec<u64> = (1..=7).map(|attempt| pause(attempt).as_secs()).collect();
    assert_eq!(seconds, [10, 20, 40, 80, 160, 300, 300]);
}

#[test]
fn more_attempts_than_are_kept_are_recorded_once() {
    let mut case = run().max_retries(100);
    for number in 1..=25 {
        case = case.job(number).ended(1, "Error", None);
    }
    let recorded = case.recorded(101);
    let again = recorded.plan(102);
    assert_eq!(Some(&again.status), recorded.seen.run.status.as_ref());
    let numbers: Vec<i32> = again.status.attempts.iter().map(|attempt| attempt.number).collect();
    assert_eq!(numbers, (6..=25).collect::<Vec<_>>());
}

#[test]
fn a_deleted_job_counts_as_an_attempt_and_its_successor_waits_for_the_pod() {
    let mut case = run().job(1).running().recorded(5).without_jobs();
    case.seen.writers = vec!["cats-1-x".into()];
    let lost = case.clone().recorded(20);
    assert_eq!(lost.plan(20).status.attempts[0].class, Some(FailureClass::Interrupted));
    let waiting = lost.plan(40);
    assert_eq!((job_of(&waiting), reason(&waiting).as_str()), (None, "PodStopping"));
    let mut stopped = lost;
    stopped.seen.writers.clear();
    assert_eq!(job_of(&stopped.plan(40)), Some("cats-2"));
}

#[test]
fn a_complete_job_whose_pod_is_gone_publishes_again() {
    let complete = run().job(1).job_is("Complete", None, 100);
    assert_eq!(job_of(&complete.plan(110)), Some("cats-2"));
}

#[test]
fn a_message_of_another_image_is_cut_to_what_the_schema_takes() {
    let mut case = run().max_retries(0).job(1).ended(1, "Error", None);
    let long = format!(r#"{{"failure": {{"class": "AppError", "message": "{}"}}}}"#, "x".repeat(4000));
    let state =
        case.newest().pod.as_mut().and_then(|pod| pod.status.as_mut()).and_then(|s| s.container_statuses.as_mut());
    if let Some(terminated) = state.and_then(|all| all[0].state.as_mut()).and_then(|state| state.terminated.as_mut()) {
        terminated.message = Some(long);
    }
    assert!(case.plan(101).status.attempts[0].message.len() <= MAX_MESSAGE);
}

#[test]
fn labels_that_would_join_a_service_are_refused() {
    let case = run().edit(|run| {
        run.spec.pod_template.labels.insert("anneal.dev/model-deployment".into(), "cats".into());
    });
    let problem = validate(&case.seen.run).expect_err("refused");
    assert!(problem.to_string().contains("anneal.dev/model-deployment"), "{problem}");
}

/// What may happen to a run between two looks at it.
#[derive(Clone, Debug)]
enum Happening {
    Claim(bool),
    Starts,
    Ends(i32),
    JobsCollected,
    Time(i64),
    StatusLost,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        any::<bool>().prop_map(Happening::Claim),
        Just(Happening::Starts),
        prop_oneof![Just(0), Just(1), Just(70), Just(137)].prop_map(Happening::Ends),
        Just(Happening::JobsCollected),
        (1..1000_i64).prop_map(Happening::Time),
        Just(Happening::StatusLost),
    ]
}

proptest! {
    /// Over any history: a run that has ended stays ended, at most one Job is live, no attempt's number comes twice,
    /// retries stay within their budget, and whoever is not at the end has something to wake it.
    #[test]
    fn every_history_keeps_the_laws(history in prop::collection::vec(happening(), 1..60), retries in 0..4_i32) {
        let mut case = run().max_retries(retries);
        let mut clock = 0;
        let mut started: Vec<i32> = Vec::new();
        for event in history {
            match event {
                Happening::Claim(there) => {
                    case.seen.output = if there { Claim::Present } else { Claim::Missing("models".into()) };
                }
                Happening::Starts if case.seen.jobs.last().is_some_and(|a| ending(a).is_none()) => case = case.running(),
                Happening::Ends(code) if case.seen.jobs.last().is_some_and(|a| ending(a).is_none()) => {
                    case = case.ended(code, "Error", None);
                }
                // Only a Job that has ended, and whose end is recorded, is ever collected.
                Happening::JobsCollected if case.seen.jobs.last().is_some_and(|a| ending(a).is_some()) => {
                    case = case.recorded(clock).without_jobs();
                }
                Happening::Time(seconds) => clock += seconds,
                _ => {}
            }
            let former = case.seen.run.status.clone().unwrap_or_default();
            let plan = case.plan(clock);
            if former.phase.is_some_and(RunPhase::is_terminal) {
                prop_assert_eq!(plan.status.phase, former.phase, "a run that ended moved");
                prop_assert!(plan.create.is_none(), "a run that ended started again");
            }
            prop_assert_eq!(plan.status.phase.is_some_and(RunPhase::is_terminal), plan.wake == Wake::Never);
            prop_assert!(plan.status.attempts.len() >= former.attempts.len(), "an attempt was lost");
            if plan.create.is_some() {
                let number = plan.status.attempt.expect("a number");
                prop_assert!(case.seen.jobs.iter().all(|job| ending(job).is_some()), "two live Jobs");
                prop_assert!(!started.contains(&number), "attempt {number} came twice");
                prop_assert!(number <= retries + 1, "attempt {number} of {retries} retries");
                started.push(number);
                case = case.job(number);
            }
            // A crash between the Job and the status loses the status write, never the Job.
            if !matches!(event, Happening::StatusLost) {
                let status = plan.status;
                case = case.edit(|run| run.status = Some(status));
            }
        }
    }
}
