//! Which revision gets the traffic, and which never does.

use anneal_api::{
    resources::DeploymentPhase::{Degraded, Failed, Loading, Promoting, ScalingUp, SmokeTesting, Soaking, Stable},
    smoke::Verdict,
};
use jiff::SignedDuration;
use serde_json::json;

use super::{
    brief,
    simulation::{World, checkpoint},
};

#[test]
fn the_first_revision_gets_the_traffic_only_after_its_gate() {
    let mut world = World::new(brief());
    for phase in [Loading, SmokeTesting, ScalingUp, Promoting] {
        world.until(phase);
        assert_eq!(world.live(), None, "in {phase:?}");
        assert!(world.autoscaler.is_none(), "in {phase:?}");
    }
    world.until(Stable);
    assert_eq!(world.live(), Some('a'));
    assert_eq!(world.status().ready.as_deref(), Some("2/2"));
    assert_eq!(world.events, ["RolloutStarted", "SmokeTestPassed", "Promoted"]);
}

#[test]
fn a_candidate_that_fails_its_smoke_test_never_gets_the_selector() {
    let mut world = World::serving(brief());
    world.wrong.insert('b');
    world.want('b');
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), Degraded));
    assert_eq!(world.rejection('b').as_deref(), Some("SmokeTestFailed"));
    assert_eq!(world.revision('b').replicas, 0);
    assert_eq!(world.revision('a').replicas, 2);
    assert_eq!(world.tests.iter().filter(|test| test.report.is_some()).count(), 2, "the report stays");
    assert_eq!(world.events.iter().filter(|event| **event == "SmokeTestFailed").count(), 1);
}

#[test]
fn once_what_was_rejected_is_not_wanted_any_more_nothing_is_said_of_its_smoke_test() {
    let mut world = World::serving(brief());
    world.wrong.insert('b');
    world.want('b');
    world.rest();
    assert_eq!(world.status().smoke.map(|report| report.verdict), Some(Verdict::Failed));
    world.want('a');
    world.rest();
    assert_eq!((world.phase(), world.status().smoke.map(|report| report.verdict)), (Stable, None));
}

#[test]
fn a_first_revision_that_fails_leaves_the_service_empty() {
    let mut world = World::new(brief());
    world.wrong.insert('a');
    world.rest();
    assert_eq!((world.live(), world.phase()), (None, Failed));
    assert!(world.autoscaler.is_none());
}

#[test]
fn a_checkpoint_that_cannot_be_loaded_is_rejected_at_once() {
    let mut world = World::serving(brief());
    world.broken.insert('b');
    world.want('b');
    let start = world.now;
    world.until(Degraded);
    assert_eq!(world.rejection('b').as_deref(), Some("LoadFailed"));
    assert!(world.now.duration_since(start) < SignedDuration::from_secs(10));
}

#[test]
fn a_test_without_a_verdict_is_repeated_and_then_fails_closed() {
    let mut world = World::serving(json!({"gate": {"smokeTest": {"retries": 2}}}));
    world.unclear.insert('b');
    world.want('b');
    world.rest();
    assert_eq!(world.rejection('b').as_deref(), Some("SmokeInconclusive"));
    assert_eq!(
        world.tests.iter().filter_map(|test| test.report.as_ref()).filter(|it| it.message.contains('b')).count(),
        1
    );
    assert_eq!(world.events.iter().filter(|event| **event == "SmokeInconclusive").count(), 1);
}

#[test]
fn a_newer_spec_supersedes_the_candidate() {
    let mut world = World::serving(brief());
    world.want('b');
    world.until(SmokeTesting);
    assert!(world.tests.iter().any(|test| test.report.is_none()));
    world.want('c');
    world.reconcile(usize::MAX);
    assert_eq!(world.revision('b').replicas, 0);
    assert!(world.tests.iter().all(|test| test.report.is_some()), "its test is gone");
    world.rest();
    assert_eq!(world.live(), Some('c'));
    assert!(world.events.contains(&"RolloutCancelled"));
}

#[test]
fn going_back_to_what_serves_needs_no_test() {
    let mut world = World::serving(brief());
    world.want('b');
    world.until(ScalingUp);
    let tests = world.tests.len();
    world.want('a');
    world.rest();
    assert_eq!((world.live(), world.phase(), world.revision('b').replicas), (Some('a'), Stable, 0));
    assert!(world.tests.len() <= tests);
}

#[test]
fn going_back_within_the_soak_is_instant() {
    let mut world = World::serving(json!({"gate": {"soakSeconds": 60}}));
    world.want('b');
    world.until(Soaking);
    let tests = world.tests.len();
    world.want('a');
    for _ in 0..3 {
        world.reconcile(usize::MAX);
    }
    assert_eq!(world.live(), Some('a'));
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), Stable));
    assert!(world.tests.len() <= tests, "no pod is asked again");
}

#[test]
fn going_back_after_the_soak_passes_the_gate_again() {
    let mut world = World::serving(brief());
    world.want('b');
    world.rest();
    world.wrong.insert('a');
    world.want('a');
    world.rest();
    assert_eq!((world.live(), world.rejection('a').as_deref()), (Some('b'), Some("SmokeTestFailed")));
}

#[test]
fn a_rejected_revision_is_tried_again_only_under_another_gate() {
    let mut world = World::serving(brief());
    world.wrong.insert('b');
    world.want('b');
    world.rest();
    world.wrong.clear();
    world.edit(json!({"autoscaling": {"maxReplicas": 4}}));
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), Degraded));
    world.edit(json!({"gate": {"smokeTest": {"timeoutSeconds": 90}}}));
    world.rest();
    assert_eq!((world.live(), world.rejection('b')), (Some('b'), None));
}

#[test]
fn deleting_the_deployment_of_a_rejected_revision_gives_it_another_try() {
    let mut world = World::serving(brief());
    world.wrong.insert('b');
    world.want('b');
    world.rest();
    world.wrong.clear();
    world.revisions.retain(|_, revision| checkpoint(revision) != 'b');
    world.rest();
    assert_eq!(world.live(), Some('b'));
}

#[test]
fn a_gate_that_changes_in_the_midst_asks_again() {
    let mut world = World::serving(brief());
    world.want('b');
    world.until(Promoting);
    world.wrong.insert('b');
    world.edit(json!({"gate": {"smokeTest": {"maxP95Milliseconds": 50}}}));
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), Degraded));
}
