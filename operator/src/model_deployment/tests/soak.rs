//! What a revision does under traffic decides whether it keeps it.

use anneal_api::resources::DeploymentPhase::{Degraded, Promoting, RollingBack, Soaking, Stable};
use jiff::SignedDuration;
use kube::ResourceExt;
use serde_json::json;

use super::simulation::World;
use crate::model_deployment::apply::Write;

/// A deployment that serves `a`, once `b` has just got the traffic.
fn soaking() -> World {
    let mut world = World::serving(json!({"gate": {"soakSeconds": 60}}));
    world.want('b');
    world.until(Soaking);
    world.events.clear();
    world
}

#[test]
fn a_revision_that_fails_under_traffic_gives_it_back_at_once() {
    let mut world = soaking();
    world.failing.insert('b');
    let (start, tests) = (world.now, world.tests.len());
    world.until(RollingBack);
    world.until(Degraded);
    assert!(world.now.duration_since(start) < SignedDuration::from_secs(5));
    assert_eq!((world.live(), world.rejection('b').as_deref()), (Some('a'), Some("SoakFailed")));
    world.rest();
    assert_eq!((world.live(), world.phase(), world.revision('b').replicas), (Some('a'), Degraded, 0));
    assert_eq!(world.events, ["SoakFailed", "RolledBack"]);
    assert!(world.tests.len() <= tests, "nothing is asked of what served before");
}

#[test]
fn the_former_revision_gets_the_size_that_the_failing_one_has_grown_to() {
    let mut world = soaking();
    world.revision_mut('b').replicas = 6;
    world.turn();
    world.failing.insert('b');
    world.reconcile(usize::MAX);
    assert_eq!((world.phase(), world.revision('a').replicas), (RollingBack, 6));
    world.rest();
    assert_eq!((world.live(), world.revision('a').replicas), (Some('a'), 6));
}

#[test]
fn a_crash_under_traffic_fails_the_soak_and_an_older_one_does_not() {
    let mut world = soaking();
    world.revision_mut('b').pods[0].crashed = Some(world.now - SignedDuration::from_secs(30));
    world.reconcile(usize::MAX);
    assert_eq!(world.phase(), Soaking);
    world.revision_mut('b').pods[1].crashed = Some(world.now);
    world.reconcile(usize::MAX);
    assert_eq!(world.phase(), RollingBack);
}

#[test]
fn a_revision_without_a_ready_pod_gives_the_traffic_back() {
    let mut world = soaking();
    world.revision_mut('b').pods.iter_mut().for_each(|pod| pod.ready = false);
    world.reconcile(usize::MAX);
    assert_eq!(world.phase(), RollingBack);
}

#[test]
fn what_fails_after_the_soak_is_not_undone() {
    let mut world = soaking();
    world.until(Stable);
    world.failing.insert('b');
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('b'), Stable));
}

#[test]
fn a_first_revision_has_nothing_to_go_back_to() {
    let mut world = World::new(json!({"gate": {"soakSeconds": 60}}));
    world.failing.insert('a');
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), Stable));
}

#[test]
fn a_former_revision_that_cannot_serve_is_no_way_back() {
    let mut world = soaking();
    world.revision_mut('a').pods.iter_mut().for_each(|pod| pod.ready = false);
    world.failing.insert('b');
    world.reconcile(usize::MAX);
    assert_eq!((world.live(), world.phase()), (Some('b'), Soaking));
}

#[test]
fn a_way_back_that_is_cut_short_anywhere_is_finished_also_after_the_soak() {
    for survives in 0..8 {
        let mut world = soaking();
        world.failing.insert('b');
        world.reconcile(usize::MAX);
        assert_eq!(world.phase(), RollingBack);
        world.now += SignedDuration::from_secs(90);
        for _ in 0..12 {
            world.reconcile(survives);
            world.turn();
        }
        world.rest();
        assert_eq!((world.live(), world.phase()), (Some('a'), Degraded), "killed after {survives} writes");
        assert_eq!(world.events, ["SoakFailed", "RolledBack"]);
    }
}

#[test]
fn a_bound_that_was_edited_in_the_soak_rejects_for_good() {
    let mut world = soaking();
    world.edit(json!({"gate": {"soakTest": {"maxErrorPercentage": 10}}}));
    world.failing.insert('b');
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), Degraded));
    assert_eq!(world.events, ["SoakFailed", "RolledBack"]);
}

#[test]
fn on_the_way_back_the_service_is_written_before_what_may_be_refused() {
    let mut world = soaking();
    world.failing.insert('b');
    world.until(RollingBack);
    // Somebody deleted what the operator makes anew.
    world.budgets.clear();
    world.autoscaler = None;
    let (_, writes) = world.plan();
    let first = writes.first();
    assert!(matches!(first, Some(Write::Service(change)) if change.wanted.name_any() == "cats"), "{writes:?}");
    assert!(writes.len() > 1);
}

#[test]
fn another_bound_is_another_chance() {
    let mut world = soaking();
    world.failing.insert('b');
    world.rest();
    assert_eq!(world.phase(), Degraded);
    world.edit(json!({"gate": {"soakTest": {"maxErrorPercentage": 60}}}));
    world.rest();
    assert_eq!((world.live(), world.phase(), world.rejection('b')), (Some('b'), Stable, None));
}

#[test]
fn a_newer_spec_waits_until_the_way_back_is_gone() {
    let mut world = soaking();
    world.failing.insert('b');
    world.until(RollingBack);
    world.want('c');
    world.until(Promoting);
    assert_eq!(world.live(), Some('a'));
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('c'), Stable));
}
