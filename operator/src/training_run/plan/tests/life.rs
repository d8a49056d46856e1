//! The life of a run, case by case.

use anneal_api::{
    failure::{Failure, FailureClass},
    resources::{MAX_ATTEMPTS, RunPhase},
    termination::TerminationMessage,
};
use jiff::SignedDuration;
use serde_json::json;

use super::{
    super::history::MAX_MESSAGE,
    world::{World, interrupted, published, result},
};
use crate::{
    controller::Wake,
    progress::Reading,
    training_run::{claim::Claim, validate::validate},
};

fn run() -> World {
    World::new(json!({}))
}

fn running(spec: serde_json::Value) -> World {
    let mut world = World::new(spec);
    world.settle().starts().settle();
    assert_eq!(world.phase(), Some(RunPhase::Running));
    world
}

fn reason(world: &World) -> String {
    world.reason().0
}

fn last_class(world: &World) -> Option<FailureClass> {
    world.status().attempts.last().and_then(|attempt| attempt.class)
}

#[test]
fn a_new_run_starts_its_first_attempt() {
    let mut world = run();
    world.settle();
    assert_eq!((world.made.as_slice(), world.phase()), ([1].as_slice(), Some(RunPhase::Preparing)));
    assert!(world.status().config_sha256.is_some(), "the configuration's digest is not recorded");
}

#[test]
fn a_pod_that_runs_within_moments_costs_no_write_before() {
    let mut world = run();
    world.settle();
    let before = world.status().clone();
    world.schedule().settle();
    assert_eq!(world.status(), before);
    assert_eq!(world.wait(1).plan().wake, Wake::At(world.now + SignedDuration::from_secs(4)));
    world.wait(4).settle();
    assert_eq!(reason(&world), "PodStarting");
    assert_eq!(world.status().current_attempt.and_then(|current| current.node).as_deref(), Some("node-1"));
}

#[test]
fn a_run_without_its_claim_waits_and_says_what_to_do() {
    let mut world = run();
    world.claim = Claim::Missing("models".into());
    world.settle();
    assert_eq!((world.made.len(), world.phase()), (0, Some(RunPhase::Pending)));
    assert_eq!(reason(&world), "ClaimNotFound");
    assert!(world.reason().1.contains("create PersistentVolumeClaim models"));
    world.claim = Claim::Present;
    world.wait(10).settle();
    assert_eq!(world.made, [1]);
}

#[test]
fn a_running_attempt_is_followed_and_its_image_is_recorded() {
    let world = running(json!({}));
    assert_eq!(world.plan().follow.expect("a target").address, "10.0.0.1");
    assert_eq!(world.status().image_id.as_deref(), Some("sha256:image"));
}

#[test]
fn a_plan_that_was_recorded_is_the_same_again() {
    let mut failed = running(json!({}));
    failed.wait(5).ends(1, "Error", None).settle();
    let mut suspended = running(json!({}));
    suspended.suspend(true).settle().pods_stop(None, true).settle();
    let mut held = run();
    held.settle().hold(true).settle();
    for world in [running(json!({})), failed, suspended, held] {
        let mut later = world.clone();
        later.wait(1);
        let plan = later.plan();
        assert_eq!(Some(&plan.status), world.run.status.as_ref());
        assert!(plan.events.is_empty() && plan.create.is_none() && plan.delete.is_empty(), "{plan:?}");
    }
}

#[test]
fn a_published_model_ends_the_run_with_its_result() {
    let mut world = running(json!({}));
    world.wait(100).ends(0, "Completed", Some(&published()));
    let plan = world.pass();
    assert_eq!((world.phase(), plan.wake), (Some(RunPhase::Succeeded), Wake::Never));
    let status = world.status();
    assert_eq!(status.result, Some(result()));
    assert_eq!(status.progress.map(|p| (p.percent, p.epoch_of_epochs)), Some(("100%".into(), "10/10".into())));
    assert_eq!((status.attempts.len(), status.attempts[0].class), (1, None));
}

#[test]
fn what_a_run_gave_counts_and_not_what_was_read_last_while_it_trained() {
    let mut world = running(json!({}));
    world.says(50, None, None);
    if let Reading::Said(progress) = &mut world.reading {
        (progress.best, progress.loss) = (Some(0.5), Some(0.9));
    }
    let best_of =
        |world: &World| world.status().progress.map(|progress| (progress.reported.best, progress.reported.loss));
    world.settle();
    assert_eq!(best_of(&world), Some((Some(0.5), Some(0.9))));
    world.ends(0, "Completed", Some(&published())).settle();
    assert_eq!(best_of(&world), Some((result().best, result().loss)));
}

#[test]
fn conditions_say_what_kstatus_reads() {
    let holds = |world: &World| {
        let conditions = world.status().conditions;
        ["Ready", "Progressing", "Stalled", "Suspended", "Complete", "Failed"].map(|kind| {
            let found = conditions.iter().find(|condition| condition.type_ == kind).expect("each has each");
            assert_eq!(found.observed_generation, world.run.metadata.generation);
            found.status == "True"
        })
    };
    let mut world = running(json!({"maxRetries": 0}));
    assert_eq!(holds(&world), [false, true, false, false, false, false]);
    world.suspend(true).settle().pods_stop(Some(&interrupted(10)), false).settle();
    assert_eq!(holds(&world), [false, false, false, true, false, false]);
    world.suspend(false).settle().starts().settle();
    assert_eq!(holds(&world), [false, true, false, false, false, false]);
    let mut other = world.clone();
    world.ends(0, "Completed", Some(&published())).settle();
    assert_eq!(holds(&world), [true, false, false, false, true, false]);
    other.ends(1, "Error", None).settle();
    assert_eq!(holds(&other), [false, false, true, false, false, true]);
}

#[test]
fn every_transition_has_one_event_but_the_making_of_a_job() {
    let mut world = running(json!({}));
    world.wait(5).ends(1, "Error", None).settle().wait(10).settle().starts().settle();
    world.suspend(true).settle().pods_stop(Some(&interrupted(3)), true).settle();
    world.suspend(false).settle().starts().settle().ends(0, "Completed", Some(&published())).settle();
    assert_eq!(world.events, ["Running", "Retrying", "Running", "Suspending", "Suspended", "Running", "Succeeded"]);
}

#[test]
fn a_failure_that_may_pass_is_retried_after_a_pause_that_no_restart_shortens() {
    let mut world = running(json!({}));
    world.wait(100).ends(1, "Error", None);
    let plan = world.pass();
    assert_eq!((world.phase(), plan.wake), (Some(RunPhase::Retrying), Wake::At(World::at(110))));
    world.wait(9);
    assert_eq!(world.pass().wake, Wake::At(World::at(110)));
    world.wait(1).settle();
    assert_eq!(world.made, [1, 2]);
    let pod = world.jobs[&2].spec.clone().expect("a spec").template.spec.expect("a pod");
    let resume = pod.containers[0].env.iter().flatten().find(|it| it.name == "ANNEAL_RESUME_FROM").cloned();
    assert_eq!(resume.and_then(|it| it.value), Some("/output/runs/cats-01234567/checkpoints".into()));
}

#[test]
fn a_failure_that_would_come_again_is_not_retried() {
    let mut world = running(json!({}));
    let message = TerminationMessage::failure(FailureClass::Diverged, "the loss is NaN at step 12; lower learningRate");
    world.ends(70, "Error", Some(&message)).settle();
    assert_eq!((world.phase(), reason(&world).as_str()), (Some(RunPhase::Failed), "Diverged"));
    assert!(world.reason().1.contains("lower learningRate"));
}

#[test]
fn retries_are_used_up_one_by_one() {
    let mut world = running(json!({"maxRetries": 1}));
    world.ends(1, "Error", None).settle().wait(10).settle().starts().settle().ends(3, "Error", None).settle();
    assert_eq!((world.phase(), world.status().attempts.len()), (Some(RunPhase::Failed), 2));
    assert_eq!(world.status().attempts[1].exit_code, Some(3));
}

#[test]
fn a_kill_at_the_memory_limit_has_its_own_class() {
    let mut world = running(json!({"maxRetries": 0}));
    world.ends(137, "OOMKilled", None).settle();
    assert_eq!(last_class(&world), Some(FailureClass::OOMKilled));
    assert!(world.status().attempts[0].message.contains("limits.memory"));
}

#[test]
fn a_rule_ends_the_run_at_the_first_failure_of_its_class() {
    let mut world = running(json!({"retryRules": [{"class": "OOMKilled", "action": "Fail"}]}));
    world.ends(137, "OOMKilled", None).settle();
    assert_eq!((world.phase(), reason(&world).as_str()), (Some(RunPhase::Failed), "OOMKilled"));
}

#[test]
fn more_attempts_than_are_kept_are_recorded_once_and_their_jobs_go() {
    let mut world = World::new(json!({"maxRetries": 100}));
    for _ in 0..25 {
        world.settle().starts().settle().ends(1, "Error", None).settle().wait(400);
    }
    world.settle();
    let numbers: Vec<i32> = world.status().attempts.iter().map(|attempt| attempt.number).collect();
    assert_eq!(numbers, (6..=25).collect::<Vec<_>>());
    assert_eq!(world.status().failures[0].count, 25);
    assert!(world.jobs.len() <= MAX_ATTEMPTS + 1, "{} Jobs are left", world.jobs.len());
}

#[test]
fn a_message_of_another_image_is_cut_to_what_the_schema_takes() {
    let mut world = running(json!({"maxRetries": 0}));
    let long = TerminationMessage::Failure(Failure::new(FailureClass::AppError, "é".repeat(1000)));
    world.ends(1, "Error", Some(&long)).settle();
    assert!(world.status().attempts[0].message.len() <= MAX_MESSAGE);
}

#[test]
fn labels_that_would_join_a_service_are_refused_and_the_run_goes_on_once_they_are_gone() {
    let mut world = run();
    world.edit(|run| {
        run.spec.pod_template.labels.insert("anneal.dev/model-deployment".into(), "cats".into());
    });
    let problem = validate(&world.run).expect_err("refused");
    assert!(problem.to_string().contains("anneal.dev/model-deployment"), "{problem}");
    let plan = world.pass();
    assert_eq!((world.phase(), reason(&world).as_str()), (Some(RunPhase::Pending), "ReservedKey"));
    assert!(plan.events.len() == 1 && plan.events[0].warning, "its owner is not told: {:?}", plan.events);
    assert!(world.pass().events.is_empty(), "its owner is told again");
    world.edit(|run| run.spec.pod_template.labels.clear()).settle();
    assert_eq!(world.made, [1]);
}

#[test]
fn a_spec_that_is_spoilt_while_it_trains_stops_nothing() {
    let mut world = running(json!({}));
    assert!(world.spoil().settle().pass().follow.is_some(), "nobody reads its progress any more");
    assert_eq!((world.phase(), reason(&world).as_str()), (Some(RunPhase::Running), "ReservedKey"));
    world.ends(0, "Completed", Some(&published())).settle();
    assert_eq!(world.phase(), Some(RunPhase::Succeeded));
}

#[test]
fn a_run_whose_dataset_makes_no_sense_fails_at_once_for_it_cannot_be_changed() {
    let mut world = World::new(json!({"dataset": {"uri": "synthetic://?imgs=60"}}));
    let plan = world.settle().plan();
    assert_eq!((world.phase(), plan.wake), (Some(RunPhase::Failed), Wake::Never));
    let (reason, message) = world.reason();
    assert_eq!(reason, "InvalidDataset");
    assert!(message.contains("imgs") && message.contains("create it as it is to be"), "{message}");
    assert!(world.made.is_empty() && world.status().completion_time.is_some());
}

#[test]
fn deadlines_and_suspension_hold_also_while_the_spec_makes_no_sense() {
    let mut late = running(json!({"activeDeadlineSeconds": 100}));
    late.spoil().settle().wait(100).settle().pods_stop(None, true).settle();
    assert_eq!((late.phase(), reason(&late).as_str()), (Some(RunPhase::Failed), "ActiveDeadline"));

    let mut stalled = running(json!({"progressDeadlineSeconds": 100, "maxRetries": 0}));
    stalled.says(1, None, None);
    stalled.spoil().settle().wait(100).settle().pods_stop(None, true).settle();
    assert_eq!((stalled.phase(), last_class(&stalled)), (Some(RunPhase::Failed), Some(FailureClass::Stalled)));

    let mut suspended = running(json!({}));
    suspended.spoil().suspend(true).settle().pods_stop(Some(&interrupted(7)), true).settle();
    assert_eq!((suspended.phase(), reason(&suspended).as_str()), (Some(RunPhase::Suspended), "Suspended"));

    // Nothing starts before it makes sense again.
    suspended.suspend(false).settle();
    assert_eq!((suspended.made.len(), reason(&suspended).as_str()), (1, "ReservedKey"));
    suspended.edit(|run| run.spec.pod_template.labels.clear()).settle();
    assert_eq!(suspended.made, [1, 2]);
}

#[test]
fn what_an_attempt_lost_is_its_steps_behind_its_checkpoint_until_its_successor_tells() {
    let mut world = running(json!({}));
    world.says(57, Some(40), None).settle();
    world.ends(137, "Error", None).settle();
    let former = world.status().attempts[0].clone();
    assert_eq!((former.step, former.checkpoint_step, former.steps_lost), (Some(57), Some(40), Some(17)));
    world.wait(10).settle().starts().settle().says(31, Some(30), Some(30)).settle();
    assert_eq!(world.status().attempts[0].steps_lost, Some(27));
    assert_eq!(world.status().current_attempt.and_then(|current| current.resumed_from_step), Some(30));
    world.ends(1, "Error", None).settle();
    assert_eq!(world.status().attempts[1].resumed_from_step, Some(30));
}

#[test]
fn a_suspended_run_lets_its_pod_write_a_checkpoint_and_goes_on_from_it() {
    let mut world = running(json!({"maxRetries": 0}));
    world.wait(10).suspend(true).pass();
    assert_eq!(world.phase(), Some(RunPhase::Suspending));
    assert_eq!(world.jobs.len(), 1, "the Job was deleted before the status said why");
    world.settle();
    assert_eq!((world.jobs.len(), world.phase()), (0, Some(RunPhase::Suspending)));
    world.pods_stop(Some(&interrupted(42)), true).settle();
    assert_eq!((world.phase(), reason(&world).as_str()), (Some(RunPhase::Suspended), "Suspended"));
    let attempt = world.status().attempts[0].clone();
    assert_eq!((attempt.class, attempt.checkpoint_step), (Some(FailureClass::Suspended), Some(42)));
    assert_eq!(attempt.steps_lost, Some(0));
    assert!(world.status().failures.is_empty(), "a suspension cost a retry");
    world.wait(1000).suspend(false).settle();
    assert_eq!((world.made.as_slice(), world.phase()), ([1, 2].as_slice(), Some(RunPhase::Preparing)));
    assert_eq!(world.status().resume_time.map(|time| time.0), Some(world.now));
}

#[test]
fn a_run_that_is_created_suspended_makes_nothing() {
    let mut world = World::new(json!({"suspend": true}));
    world.settle().wait(10_000).settle();
    assert_eq!((world.made.len(), world.phase()), (0, Some(RunPhase::Suspended)));
    world.suspend(false).settle();
    assert_eq!(world.made, [1]);
}

#[test]
fn a_run_that_finishes_while_it_is_suspended_has_succeeded() {
    let mut world = running(json!({}));
    world.suspend(true).settle().pods_stop(Some(&published()), true).settle();
    assert_eq!(world.phase(), Some(RunPhase::Succeeded));
}

#[test]
fn a_pod_that_says_nothing_of_its_checkpoint_holds_no_suspension_up() {
    let mut world = running(json!({}));
    world.suspend(true).settle().pods_stop(None, false).settle();
    assert_eq!((world.phase(), last_class(&world)), (Some(RunPhase::Suspended), Some(FailureClass::Suspended)));
}

#[test]
fn a_job_that_a_queue_suspends_is_shown_and_left_alone() {
    let mut world = World::new(json!({"startDeadlineSeconds": 100, "activeDeadlineSeconds": 1000}));
    world.run.metadata.labels = Some([("kueue.x-k8s.io/queue-name".to_owned(), "gpu".to_owned())].into());
    world.settle();
    let labels = world.jobs[&1].metadata.labels.clone().unwrap_or_default();
    assert_eq!(labels.get("kueue.x-k8s.io/queue-name").map(String::as_str), Some("gpu"));
    assert_eq!(world.jobs[&1].spec.as_ref().and_then(|spec| spec.suspend), None);

    world.hold(true).settle().wait(100_000).settle();
    assert_eq!((world.phase(), reason(&world).as_str()), (Some(RunPhase::Suspended), "JobSuspended"));
    world.hold(false).settle().starts().settle();
    assert_eq!(world.phase(), Some(RunPhase::Running), "a deadline counted while the queue held the Job");
    // Preempted by the queue, and admitted again: no attempt, no retry.
    world.wait(500).hold(true).settle().pods_stop(Some(&interrupted(7)), true).settle();
    world.wait(5000).hold(false).settle().starts().settle();
    assert_eq!((world.phase(), world.made.as_slice()), (Some(RunPhase::Running), [1].as_slice()));
    assert!(world.status().failures.is_empty());
}

#[test]
fn the_active_deadline_counts_all_attempts_and_starts_again_when_the_run_is_resumed() {
    let mut world = running(json!({"activeDeadlineSeconds": 1000}));
    world.wait(800).ends(1, "Error", None).settle().wait(10).settle().starts().settle();
    world.wait(100).suspend(true).settle().pods_stop(None, true).settle();
    world.wait(5000).suspend(false).settle().starts().settle();
    assert_eq!(world.phase(), Some(RunPhase::Running));
    world.wait(999).settle();
    assert_eq!(world.phase(), Some(RunPhase::Running));
    world.wait(1).settle();
    assert_eq!((world.phase(), world.jobs.len()), (Some(RunPhase::Running), 1), "it is over before its pod is gone");
    world.pods_stop(Some(&interrupted(9)), true).settle();
    assert_eq!((world.phase(), reason(&world).as_str()), (Some(RunPhase::Failed), "ActiveDeadline"));
}

#[test]
fn the_active_deadline_also_ends_a_run_between_two_attempts() {
    let mut world = running(json!({"activeDeadlineSeconds": 60}));
    world.wait(55).ends(1, "Error", None);
    assert_eq!(world.pass().wake, Wake::At(World::at(60)));
    world.wait(5).settle();
    assert_eq!((world.phase(), reason(&world).as_str()), (Some(RunPhase::Failed), "ActiveDeadline"));
}

#[test]
fn a_trainer_that_stands_still_is_ended_and_tried_again() {
    let mut world = running(json!({"progressDeadlineSeconds": 60}));
    world.wait(10).says(5, None, None);
    assert_eq!(world.pass().wake, Wake::At(World::at(70)));
    world.wait(59).settle();
    assert_eq!(world.phase(), Some(RunPhase::Running));
    world.wait(1).settle().pods_stop(None, true).settle();
    assert_eq!((last_class(&world), world.phase()), (Some(FailureClass::Stalled), Some(RunPhase::Retrying)));
}

#[test]
fn a_trainer_that_was_not_asked_for_longer_than_its_deadline_has_not_stood_still() {
    let mut world = running(json!({"progressDeadlineSeconds": 60}));
    world.wait(10).says(5, None, None);
    world.asked = Some(world.now);
    world.wait(100).settle();
    assert_eq!(world.phase(), Some(RunPhase::Running), "ten thousand others are asked first");
    assert_eq!(world.pass().wake, Wake::At(World::at(120)));
    world.asked = None;
    world.pass();
    assert!(world.status().current_attempt.expect("one").stop.is_some(), "it says the same as 100 s ago");
}

#[test]
fn an_operator_that_was_away_does_not_take_its_absence_for_a_stall() {
    let mut world = running(json!({"progressDeadlineSeconds": 60}));
    world.says(5, None, None).settle();
    world.reading = Reading::Unknown;
    world.wait(1000).settle();
    assert_eq!(world.made, [1]);
    assert_eq!(world.phase(), Some(RunPhase::Running));
    assert!(world.status().current_attempt.expect("one").stop.is_none());
    world.reading = Reading::Silent;
    world.pass();
    assert!(world.status().current_attempt.expect("one").stop.is_some());
}

#[test]
fn a_changed_template_replaces_a_pod_that_does_not_run_under_the_same_number() {
    let mut world = run();
    world.settle().blocked(&json!({"phase": "Pending"}));
    world.wait(50).edit(|run| run.spec.pod_template.image = Some("trainer:2".into())).settle();
    assert_eq!((reason(&world).as_str(), world.made.len()), ("PodTemplateChanged", 1));
    world.pods_stop(None, true).settle();
    assert_eq!(world.made, [1, 1]);
    let pod = world.jobs[&1].spec.clone().expect("a spec").template.spec.expect("a pod");
    assert_eq!(pod.containers[0].image.as_deref(), Some("trainer:2"));
    world.starts().settle();
    assert_eq!((world.phase(), world.status().attempts.len()), (Some(RunPhase::Running), 0));
    // Once it runs, a change waits for the next attempt.
    world.edit(|run| run.spec.pod_template.image = Some("trainer:3".into())).settle();
    assert_eq!(world.phase(), Some(RunPhase::Running));
    assert_eq!(world.jobs.len(), 1);
}

#[test]
fn a_replacement_that_is_suspended_on_its_way_starts_nothing() {
    let mut world = run();
    world.settle().blocked(&json!({"phase": "Pending"}));
    world.edit(|run| run.spec.pod_template.image = Some("trainer:2".into())).settle();
    world.suspend(true).pods_stop(None, true).settle();
    assert_eq!((world.phase(), world.made.as_slice()), (Some(RunPhase::Suspended), [1].as_slice()));
    world.suspend(false).settle();
    assert_eq!((world.made.as_slice(), world.status().attempts.len()), ([1, 1].as_slice(), 0));
}

#[test]
fn a_run_that_ended_goes_when_its_time_has_come_and_stays_while_a_deployment_needs_it() {
    let mut world = running(json!({"ttlSecondsAfterFinished": 60}));
    world.wait(100).ends(0, "Completed", Some(&published()));
    assert_eq!(world.pass().wake, Wake::At(World::at(160)));
    world.wait(59).pass();
    assert!(!world.deleted);
    world.needed_by = vec!["cats".into()];
    world.wait(1).pass();
    assert!(!world.deleted, "a run that is served was deleted");
    world.needed_by.clear();
    world.pass();
    assert!(world.deleted);
}
