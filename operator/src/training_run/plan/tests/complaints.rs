//! What breaks the users of other training operators, each as a sentence about this one.

use anneal_api::{failure::FailureClass, resources::RunPhase};
use serde_json::json;

use super::world::{World, interrupted, published};
use crate::{controller::Wake, training_run::claim::Claim};

fn running(spec: serde_json::Value) -> World {
    let mut world = World::new(spec);
    world.settle().starts().settle();
    world
}

fn waiting_container(reason: &str) -> serde_json::Value {
    json!({"phase": "Pending", "containerStatuses": [{
        "name": "trainer", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"waiting": {"reason": reason, "message": "no such image"}}
    }]})
}

fn unscheduled(message: &str) -> serde_json::Value {
    json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": message}]})
}

#[test]
fn a_finished_run_never_starts_again_when_its_job_is_collected() {
    for code in [0, 70] {
        let mut world = running(json!({}));
        world.ends(code, "Error", Some(&published()).filter(|_| code == 0)).settle();
        let phase = world.phase();
        assert!(phase.is_some_and(RunPhase::is_terminal));
        world.jobs.clear();
        world.pods.clear();
        world.wait(9999).settle();
        assert_eq!((world.phase(), world.made.len()), (phase, 1));
        assert_eq!(world.plan().wake, Wake::Never);
    }
}

#[test]
fn an_attempt_stays_counted_when_its_job_is_collected() {
    let mut world = running(json!({"maxRetries": 1}));
    world.ends(1, "Error", None).settle();
    world.jobs.clear();
    world.pods.clear();
    world.wait(9999).settle();
    assert_eq!((world.made.as_slice(), world.status().attempts.len()), ([1, 2].as_slice(), 1));
    world.starts().settle().ends(1, "Error", None).settle();
    assert_eq!(world.phase(), Some(RunPhase::Failed));
}

#[test]
fn a_deadline_whose_clean_up_failed_is_cleaned_up_at_the_next_pass_and_the_one_after() {
    let mut world = running(json!({"activeDeadlineSeconds": 60}));
    world.wait(60).pass();
    for _ in 0..3 {
        let plan = world.plan();
        assert_eq!(plan.delete.len(), 1, "the Job is not deleted again");
        // The deletion fails, and with it the pass.
    }
    world.settle();
    assert_eq!((world.jobs.len(), world.phase()), (0, Some(RunPhase::Running)));
    assert!(matches!(world.plan().wake, Wake::At(_)));
    world.pods_stop(None, false).settle();
    assert_eq!(world.phase(), Some(RunPhase::Failed));
}

#[test]
fn the_phase_is_no_accident_of_the_order_of_conditions() {
    let world = running(json!({}));
    let kinds: Vec<String> = world.status().conditions.iter().map(|condition| condition.type_.clone()).collect();
    assert_eq!(kinds, ["Complete", "Failed", "Progressing", "Ready", "Stalled", "Suspended"]);
    assert_eq!(world.phase(), Some(RunPhase::Running));
}

#[test]
fn a_run_says_that_it_waits_before_it_runs() {
    let mut world = World::new(json!({}));
    world.claim = Claim::Missing("models".into());
    world.settle();
    assert_eq!(world.phase(), Some(RunPhase::Pending));
    world.claim = Claim::Present;
    world.settle();
    assert_eq!(world.phase(), Some(RunPhase::Preparing));
    world.starts().settle();
    assert_eq!(world.phase(), Some(RunPhase::Running));
}

#[test]
fn an_image_that_cannot_be_pulled_is_named_and_fails_at_the_start_deadline() {
    let mut world = World::new(json!({"startDeadlineSeconds": 120}));
    world.settle().blocked(&waiting_container("ImagePullBackOff")).settle();
    assert_eq!((world.phase(), world.reason().0.as_str()), (Some(RunPhase::Preparing), "ImagePull"));
    assert_eq!(world.plan().wake, Wake::At(World::at(120)));
    world.wait(120).settle().pods_stop(None, true).settle();
    assert_eq!((world.phase(), world.reason().0.as_str()), (Some(RunPhase::Failed), "ImagePull"));
    assert!(world.reason().1.contains("imagePullSecrets"), "{:?}", world.reason());
}

#[test]
fn a_pod_that_no_node_takes_is_named_and_fails_at_the_start_deadline() {
    let mut world = World::new(json!({"startDeadlineSeconds": 120}));
    world.settle().blocked(&unscheduled("0/1 nodes are available: insufficient memory")).settle();
    assert_eq!(world.reason().0, "Unschedulable");
    world.wait(120).settle().pods_stop(None, true).settle();
    assert_eq!((world.phase(), world.reason().0.as_str()), (Some(RunPhase::Failed), "Unschedulable"));
}

#[test]
fn a_claim_that_does_not_come_fails_the_run_at_the_start_deadline_or_is_waited_for_again_by_a_rule() {
    let mut world = World::new(json!({"startDeadlineSeconds": 120}));
    world.claim = Claim::Missing("models".into());
    world.settle();
    assert_eq!(world.plan().wake, Wake::At(World::at(120)));
    world.wait(120).settle();
    assert_eq!((world.phase(), world.reason().0.as_str()), (Some(RunPhase::Failed), "VolumeMissing"));

    let rule = json!([{"class": "VolumeMissing", "action": "Retry", "maxRetries": 1}]);
    let mut world = World::new(json!({"startDeadlineSeconds": 120, "retryRules": rule}));
    world.claim = Claim::Missing("models".into());
    world.settle().wait(120).settle();
    assert_eq!(world.phase(), Some(RunPhase::Retrying));
    world.wait(10).settle();
    assert_eq!(world.phase(), Some(RunPhase::Pending));
    world.claim = Claim::Present;
    world.settle();
    assert_eq!(world.made, [2]);
}

#[test]
fn a_volume_that_the_scheduler_cannot_find_is_a_missing_volume() {
    let mut world = World::new(json!({"startDeadlineSeconds": 120}));
    world.settle().blocked(&unscheduled("pod has unbound immediate PersistentVolumeClaims")).settle();
    assert_eq!(world.reason().0, "VolumeMissing");
}

#[test]
fn a_dead_node_holds_the_run_up_with_advice_and_never_gets_a_second_writer() {
    let mut world = running(json!({}));
    world.nodes_answer = false;
    world.disrupt("DeletionByTaintManager").settle();
    world.pods_stop(None, true);
    // Nothing happens that the operator could see: it looks again by itself.
    let Wake::At(when) = world.plan().wake else { panic!("nobody looks again") };
    world.wait(when.duration_since(world.now).as_secs()).settle();
    assert_eq!((world.phase(), world.reason().0.as_str()), (Some(RunPhase::Running), "NodeLost"));
    assert!(world.reason().1.contains("out-of-service"), "{:?}", world.reason());
    assert_eq!(world.made, [1]);
    // The node is deleted, and the pod with it.
    world.nodes_answer = true;
    world.pods_stop(None, false).settle().wait(10).settle();
    assert_eq!(world.status().attempts[0].class, Some(FailureClass::NodeLost));
    assert_eq!(world.made, [1, 2]);
    assert_eq!(world.status().failures[0].class, FailureClass::NodeLost);
}

#[test]
fn an_eviction_is_told_from_a_failure_and_costs_no_retry() {
    let mut world = running(json!({"maxRetries": 0}));
    world.wait(30).disrupt("EvictionByEvictionAPI").settle();
    world.pods_stop(Some(&interrupted(12)), false).settle();
    let attempt = world.status().attempts[0].clone();
    assert_eq!(attempt.class, Some(FailureClass::Evicted));
    assert_eq!(world.phase(), Some(RunPhase::Retrying));
    world.wait(10).settle();
    assert_eq!(world.made, [1, 2]);
}

#[test]
fn a_deleted_job_counts_as_an_attempt_and_its_successor_waits_for_the_pod() {
    let mut world = running(json!({}));
    world.delete_job(1).settle();
    assert_eq!((world.made.len(), world.reason().0.as_str()), (1, "PodStopping"));
    world.pods_stop(Some(&interrupted(33)), true).settle();
    let attempt = world.status().attempts[0].clone();
    assert_eq!((attempt.class, attempt.checkpoint_step), (Some(FailureClass::Interrupted), Some(33)));
    world.wait(10).settle();
    assert_eq!(world.made, [1, 2]);
}

#[test]
fn a_suspend_that_is_taken_back_on_its_way_is_finished_first() {
    let mut world = running(json!({}));
    world.suspend(true).pass();
    world.suspend(false).settle();
    assert_eq!((world.phase(), world.made.len()), (Some(RunPhase::Suspending), 1));
    world.pods_stop(Some(&interrupted(5)), true).settle();
    assert_eq!((world.phase(), world.made.as_slice()), (Some(RunPhase::Preparing), [1, 2].as_slice()));
    assert_eq!(world.status().attempts[0].class, Some(FailureClass::Suspended));
}

#[test]
fn a_complete_job_whose_pod_is_gone_publishes_again() {
    let mut world = running(json!({}));
    world.ends(0, "Completed", Some(&published()));
    world.pods.clear();
    world.settle().wait(10).settle();
    assert_eq!((world.made.as_slice(), world.phase()), ([1, 2].as_slice(), Some(RunPhase::Preparing)));
}

#[test]
fn a_pod_is_never_restarted_in_place() {
    let mut world = World::new(json!({}));
    world.settle();
    let spec = world.jobs[&1].spec.clone().expect("a spec");
    assert_eq!(spec.backoff_limit, Some(0));
    assert_eq!(spec.template.spec.expect("a pod").restart_policy.as_deref(), Some("Never"));
}
