//! How well a model does under traffic, and what comes of it.

use anneal_api::resources::DeploymentPhase::{Degraded, Soaking, Stable};
use jiff::SignedDuration;
use serde_json::{Value, json};

use super::simulation::World;

fn spec(action: &str) -> Value {
    json!({"gate": {"soakSeconds": 5}, "feedback": {"minAccuracy": 0.9, "action": action}})
}

/// Checkpoint `b` serves after `a`, which is kept and has no pods any more.
fn after_another(action: &str) -> World {
    let mut world = World::serving(spec(action));
    world.want('b');
    world.rest();
    world.events.clear();
    world
}

/// Status and reason of the condition.
fn told(world: &World) -> Option<(bool, String)> {
    let conditions = world.status().conditions;
    let found = conditions.into_iter().find(|condition| condition.type_ == "PerformanceDegraded")?;
    Some((found.status == "True", found.reason))
}

#[test]
fn what_is_measured_is_in_the_status_and_a_passed_bound_is_told_once() {
    let mut world = after_another("Alert");
    world.accuracy.insert('b', 0.95);
    world.rest();
    assert_eq!(told(&world), Some((false, "WithinBounds".to_owned())));
    let performance = world.status().performance.expect("what was measured");
    assert_eq!((performance.revision, performance.accuracy), (world.name('b'), Some(0.95)));
    world.accuracy.insert('b', 0.8);
    world.rest();
    assert_eq!(told(&world), Some((true, "AccuracyBelowMinimum".to_owned())));
    assert_eq!((world.live(), world.phase()), (Some('b'), Stable), "an alert moves nothing");
    world.accuracy.insert('b', 0.95);
    world.rest();
    assert_eq!(told(&world), Some((true, "AccuracyBelowMinimum".to_owned())), "not so soon");
    world.now += SignedDuration::from_mins(5);
    world.rest();
    assert_eq!(world.events, ["PerformanceDegraded", "PerformanceRecovered"]);
}

#[test]
fn numbers_that_move_a_little_write_nothing() {
    let mut world = after_another("Alert");
    for hundredths in [95.0, 95.4, 95.8, 94.6] {
        world.accuracy.insert('b', hundredths / 100.0);
        world.rest();
        world.now += SignedDuration::from_mins(6);
        assert_eq!(world.status().performance.expect("what was measured").accuracy, Some(0.95));
    }
    assert!(!world.reconcile(usize::MAX), "nothing is written");
}

#[test]
fn a_revision_that_does_worse_than_it_has_to_gives_the_traffic_back_through_the_gate_and_once() {
    let mut world = after_another("Rollback");
    let first = world.name('a');
    world.accuracy.insert('b', 0.8);
    world.reconcile(usize::MAX);
    assert_eq!((world.live(), world.rejection('b').as_deref()), (Some('b'), Some("PerformanceDegraded")));
    let asked = world.tests.iter().filter(|test| test.revision.as_str() == first).count();
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), Degraded));
    assert!(world.tests.iter().any(|test| test.revision.as_str() == first && test.number > 1), "{asked} before");
    assert!(world.events.contains(&"RolledBack"), "{:?}", world.events);
    // Nobody is left to go back to, whatever comes back now.
    world.accuracy.insert('a', 0.1);
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), Degraded));
    assert_eq!(told(&world), Some((true, "AccuracyBelowMinimum".to_owned())));
}

#[test]
fn bounds_that_were_edited_while_a_revision_served_give_it_no_second_chance() {
    let mut world = after_another("Rollback");
    world.edit(json!({"feedback": {"minAccuracy": 0.92}}));
    world.rest();
    world.accuracy.insert('b', 0.8);
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), Degraded));
    assert_eq!(world.rejection('b').as_deref(), Some("PerformanceDegraded"));
    assert_eq!(world.events.iter().filter(|event| **event == "RolledBack").count(), 1, "{:?}", world.events);
}

#[test]
fn within_the_soak_the_way_back_is_instant() {
    let mut world =
        World::serving(json!({"gate": {"soakSeconds": 60}, "feedback": {"minAccuracy": 0.9, "action": "Rollback"}}));
    world.want('b');
    world.until(Soaking);
    world.accuracy.insert('b', 0.8);
    for _ in 0..4 {
        world.reconcile(usize::MAX);
        world.turn();
    }
    assert_eq!((world.live(), world.rejection('b').as_deref()), (Some('a'), Some("PerformanceDegraded")));
}

#[test]
fn without_a_former_revision_there_is_only_the_alert() {
    let mut world = World::serving(spec("Rollback"));
    world.accuracy.insert('a', 0.5);
    world.rest();
    assert_eq!((world.live(), world.phase(), world.rejection('a')), (Some('a'), Stable, None));
    assert_eq!(told(&world), Some((true, "AccuracyBelowMinimum".to_owned())));
}

#[test]
fn a_former_revision_that_fails_its_gate_now_gets_no_traffic_and_is_not_tried_again() {
    let mut world = after_another("Rollback");
    world.wrong.insert('a');
    world.accuracy.insert('b', 0.8);
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('b'), Degraded));
    assert_eq!(world.rejection('a').as_deref(), Some("SmokeTestFailed"));
    // It does better again: what serves is what is wanted.
    world.accuracy.insert('b', 0.95);
    world.rest();
    assert_eq!((world.live(), world.phase(), world.rejection('b')), (Some('b'), Stable, None));
}

#[test]
fn a_pinned_revision_serves_however_well_it_does() {
    let mut world = after_another("Rollback");
    let second = world.name('b');
    world.pin(Some(&second));
    world.accuracy.insert('b', 0.8);
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('b'), Stable));
}

#[test]
fn a_way_back_for_poor_performance_is_finished_by_whoever_comes_after_a_crash() {
    for survives in 0..6 {
        let mut world = after_another("Rollback");
        world.accuracy.insert('b', 0.8);
        for _ in 0..60 {
            world.reconcile(survives);
            world.reconcile(usize::MAX);
            world.turn();
        }
        world.rest();
        assert_eq!((world.live(), world.phase()), (Some('a'), Degraded), "killed after {survives} writes");
    }
}

#[test]
fn what_nobody_has_measured_is_unknown() {
    let world = after_another("Alert");
    let conditions = world.status().conditions;
    let found = conditions.iter().find(|condition| condition.type_ == "PerformanceDegraded").expect("a condition");
    assert_eq!((found.status.as_str(), found.reason.as_str()), ("Unknown", "NotRead"));
}

#[test]
fn without_feedback_in_the_spec_nothing_is_said_about_it() {
    let mut world = after_another("Alert");
    world.accuracy.insert('b', 0.8);
    world.rest();
    world.edit(json!({"feedback": null}));
    world.rest();
    assert_eq!((told(&world), world.status().performance), (None, None));
}
