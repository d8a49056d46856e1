//! What people ask of a rollout: to approve, to abort, to retry, to restart, to pause.

use anneal_api::{
    names::request::{ABORT, APPROVE, RESTART, RETRY},
    resources::DeploymentPhase::{
        AwaitingApproval, Degraded, Paused, Promoting, RollingBack, ScalingUp, SmokeTesting, Soaking, Stable,
    },
};
use jiff::SignedDuration;
use kube::ResourceExt;
use serde_json::json;

use super::{brief, simulation::World};

/// A deployment that serves `a`, while `b` waits for approval.
fn waiting() -> World {
    let mut world = World::serving(brief());
    world.edit(json!({"gate": {"approval": "Manual"}}));
    world.want('b');
    world.until(AwaitingApproval);
    world
}

#[test]
fn a_person_has_the_last_word_and_all_the_time() {
    let mut world = waiting();
    assert_eq!((world.live(), world.revision('b').replicas), (Some('a'), 2));
    world.now += SignedDuration::from_hours(24);
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), AwaitingApproval));
    world.ask(APPROVE, &world.name('b'));
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('b'), Stable));
    assert!(world.owner.annotations().is_empty());
    assert!(world.events.contains(&"AwaitingApproval") && !world.events.contains(&"NothingToApprove"));
}

#[test]
fn a_word_that_comes_too_early_or_is_about_another_revision_is_none() {
    let mut world = World::serving(brief());
    world.edit(json!({"gate": {"approval": "Manual"}}));
    world.want('b');
    world.until(SmokeTesting);
    world.ask(APPROVE, "true");
    world.until(AwaitingApproval);
    assert!(world.events.contains(&"NothingToApprove"));
    world.ask(APPROVE, "0123abcd");
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), AwaitingApproval));
}

#[test]
fn approval_of_one_revision_is_not_approval_of_the_next() {
    let mut world = waiting();
    world.ask(APPROVE, "true");
    world.rest();
    world.want('c');
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('b'), AwaitingApproval));
}

#[test]
fn pods_that_start_while_a_person_thinks_are_asked_too() {
    let mut world = waiting();
    world.revision_mut('b').pods.pop();
    world.now += SignedDuration::from_hours(1);
    world.until(SmokeTesting);
    world.until(AwaitingApproval);
    world.ask(APPROVE, "true");
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('b'), Stable));
}

#[test]
fn a_candidate_is_aborted_and_tried_again_on_request() {
    let mut world = World::serving(brief());
    world.want('b');
    world.until(ScalingUp);
    world.ask(ABORT, "true");
    world.rest();
    assert_eq!((world.live(), world.rejection('b').as_deref()), (Some('a'), Some("Aborted")));
    assert_eq!((world.phase(), world.revision('b').replicas), (Degraded, 0));
    world.ask(RETRY, "true");
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('b'), Stable));
    assert!(world.owner.annotations().is_empty());
    assert!(!world.events.iter().any(|event| event.starts_with("Nothing")), "{:?}", world.events);
}

#[test]
fn a_candidate_is_aborted_in_a_pause() {
    let mut world = World::serving(brief());
    world.want('b');
    world.until(ScalingUp);
    world.edit(json!({"paused": true}));
    world.rest();
    world.ask(ABORT, "true");
    world.rest();
    assert_eq!((world.live(), world.rejection('b').as_deref()), (Some('a'), Some("Aborted")));
    assert_eq!((world.phase(), world.revision('b').replicas), (Paused, 0));
    assert!(!world.events.contains(&"NothingToAbort"), "{:?}", world.events);
    world.edit(json!({"paused": null}));
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), Degraded));
}

/// A deployment whose Service has moved from `a` to `b`, which nobody has confirmed.
fn switched() -> World {
    let mut world = World::serving(brief());
    world.want('b');
    world.until(Promoting);
    world.endpoints_follow = false;
    for _ in 0..3 {
        world.reconcile(usize::MAX);
        world.turn();
    }
    assert_eq!((world.live(), world.phase()), (Some('b'), Promoting));
    // Some callers have moved.
    let moved: Vec<_> = world.revision('b').pods.iter().map(|pod| pod.uid.clone()).collect();
    world.endpoints.extend(moved);
    world.events.clear();
    world
}

#[test]
fn a_switch_that_is_not_confirmed_is_aborted() {
    for survives in [0, 1, 2, usize::MAX] {
        let mut world = switched();
        world.ask(ABORT, "true");
        for _ in 0..6 {
            world.reconcile(survives);
            world.reconcile(usize::MAX);
            world.turn();
        }
        assert_eq!((world.live(), world.phase()), (Some('a'), RollingBack));
        assert_eq!((world.revision('b').replicas, world.owner.annotations().len()), (2, 0), "callers may reach it");
        world.endpoints_follow = true;
        world.rest();
        assert_eq!((world.live(), world.phase(), world.revision('b').replicas), (Some('a'), Degraded, 0));
        assert_eq!(world.events, ["Aborted", "RolledBack"]);
    }
}

#[test]
fn a_switch_to_a_revision_that_loses_all_pods_goes_back() {
    let mut world = switched();
    let lose = |world: &mut World, of| world.revision_mut(of).pods.iter_mut().for_each(|pod| pod.ready = false);
    lose(&mut world, 'a');
    lose(&mut world, 'b');
    world.reconcile(usize::MAX);
    assert_eq!((world.live(), world.phase()), (Some('b'), Promoting), "there is nobody to go back to");
    world.turn();
    for _ in 0..4 {
        lose(&mut world, 'b');
        world.reconcile(usize::MAX);
    }
    assert_eq!((world.live(), world.rejection('b').as_deref()), (Some('a'), Some("SoakFailed")));
    world.endpoints_follow = true;
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), Degraded));
}

#[test]
fn a_stop_that_comes_while_the_switch_is_handed_over_is_heard_in_the_soak() {
    let mut world = World::serving(json!({"gate": {"soakSeconds": 60}}));
    world.want('b');
    world.until(Promoting);
    while world.live() != Some('b') {
        world.reconcile(usize::MAX);
    }
    world.turn();
    world.revision_mut('a').pods.iter_mut().for_each(|pod| pod.ready = false);
    world.ask(ABORT, "true");
    world.until(Soaking);
    assert_eq!(world.owner.annotations().len(), 1, "nobody has answered it");
    world.turn();
    world.rest();
    assert_eq!((world.live(), world.rejection('b').as_deref()), (Some('a'), Some("Aborted")));
    assert!(!world.events.contains(&"NothingToAbort"), "{:?}", world.events);
}

#[test]
fn aborting_within_the_soak_gives_the_traffic_back() {
    let mut world = World::serving(json!({"gate": {"soakSeconds": 60}}));
    world.want('b');
    world.until(Soaking);
    world.ask(ABORT, &world.name('b'));
    world.rest();
    assert_eq!((world.live(), world.rejection('b').as_deref()), (Some('a'), Some("Aborted")));
}

#[test]
fn a_request_that_comes_to_nothing_says_so_and_is_removed() {
    let mut world = World::serving(brief());
    for request in [APPROVE, ABORT, RETRY] {
        world.ask(request, "true");
    }
    world.rest();
    assert_eq!(world.events, ["NothingToApprove", "NothingToAbort", "NothingToRetry"]);
    assert_eq!((world.phase(), world.owner.annotations().len()), (Stable, 0));
}

#[test]
fn a_restart_makes_every_pod_anew_through_the_gate() {
    let mut world = World::serving(brief());
    let before = world.observe().live();
    world.settings.server_image = "server:2".to_owned();
    world.ask(RESTART, "2026-11-23T21:00:00Z");
    world.until(SmokeTesting);
    assert_eq!(world.observe().live(), before);
    world.rest();
    assert_ne!(world.observe().live(), before);
    assert_eq!((world.phase(), world.owner.annotations().len()), (Stable, 0));
    let live = world.observe().live().expect("one serves");
    let image = world.records[&live].template.spec.as_ref().expect("a pod").containers[0].image.clone();
    assert_eq!(image.as_deref(), Some("server:2"));
    world.rest();
    assert_eq!(world.phase(), Stable, "and it stays so");
}

#[test]
fn a_pause_keeps_everything_where_it_is_and_costs_no_time() {
    let mut world = World::serving(json!({"progressDeadlineSeconds": 60, "gate": {"soakSeconds": 5}}));
    world.want('b');
    world.until(ScalingUp);
    let pods = world.revision('b').replicas;
    world.edit(json!({"paused": true}));
    world.rest();
    assert_eq!((world.live(), world.phase(), world.revision('b').replicas), (Some('a'), Paused, pods));
    world.now += SignedDuration::from_hours(1);
    world.rest();
    world.edit(json!({"paused": null}));
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('b'), Stable));
}

#[test]
fn a_paused_deployment_starts_no_rollout_and_goes_on_serving() {
    let mut world = World::serving(brief());
    world.edit(json!({"paused": true}));
    world.rest();
    assert_eq!(world.phase(), Stable);
    world.want('b');
    world.rest();
    assert_eq!((world.live(), world.phase(), world.revisions.len()), (Some('a'), Paused, 1));
}

#[test]
fn a_switch_that_has_begun_is_finished_in_a_pause_and_a_failing_soak_goes_back() {
    let mut world = World::serving(json!({"gate": {"soakSeconds": 60}}));
    world.want('b');
    world.until(Soaking);
    world.edit(json!({"paused": true}));
    world.failing.insert('b');
    world.rest();
    assert_eq!(world.live(), Some('a'));
}
