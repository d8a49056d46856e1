//! A Service that was there before, handed over by its owner.

use anneal_api::{
    names::request::{ABORT, RETRY},
    resources::DeploymentPhase::{Failed, Pending, Promoting, RollingBack, Soaking, Stable},
};
use jiff::SignedDuration;
use kube::ResourceExt;
use serde_json::json;

use super::{brief, simulation::World};

/// Reason of the condition `Stalled`.
fn stalled(world: &World) -> String {
    let conditions = world.status().conditions;
    conditions.into_iter().find(|it| it.type_ == "Stalled").map(|it| it.reason).unwrap_or_default()
}

#[test]
fn a_service_is_taken_over_once_as_many_pods_have_passed_as_served_before() {
    let mut world = World::beside_another(json!({"replicas": 1, "gate": {"soakSeconds": 30}}));
    world.until(Promoting);
    assert!(world.is_untouched(), "the switch is announced first");
    assert_eq!(world.revision('a').pods.len(), 2, "two served before");
    world.until(Soaking);
    assert_eq!(world.live(), Some('a'));
    assert!(world.former.is_some(), "it can be given back");
    assert_eq!(world.owner.finalizers().len(), 1, "also when the deployment is deleted");
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), Stable));
    assert!(world.former.is_none() && world.owner.finalizers().is_empty(), "nobody goes back any more");
    let told = world.events.iter().filter(|reason| reason.contains("Take") || reason.starts_with("Service"));
    assert_eq!(told.collect::<Vec<_>>(), [&"ServiceTakenOver", &"TakeOverComplete"]);
}

#[test]
fn the_switch_waits_until_nobody_reaches_the_former_pods() {
    let mut world = World::beside_another(brief());
    world.until(Promoting);
    world.endpoints_follow = false;
    for _ in 0..10 {
        world.reconcile(usize::MAX);
        world.turn();
    }
    assert_eq!((world.live(), world.phase()), (Some('a'), Promoting));
    world.endpoints_follow = true;
    world.rest();
    assert_eq!(world.phase(), Stable);
}

/// A Service that has just been taken over, while nobody has told yet that its callers reach the new pods only.
fn unconfirmed() -> World {
    let mut world = World::beside_another(json!({"gate": {"soakSeconds": 30}, "progressDeadlineSeconds": 120}));
    world.until(Promoting);
    world.endpoints_follow = false;
    for _ in 0..3 {
        world.reconcile(usize::MAX);
        world.turn();
    }
    assert_eq!((world.live(), world.phase()), (Some('a'), Promoting));
    world
}

/// The Service is its owner's again, and the status says why.
fn is_given_back(world: &World, reason: &str) -> bool {
    world.is_untouched() && world.phase() == Failed && world.rejection('a').as_deref() == Some(reason)
}

#[test]
fn a_take_over_that_nobody_confirms_gives_the_service_back_after_the_deadline() {
    let mut world = unconfirmed();
    let begun = world.now;
    world.until(RollingBack);
    let seconds = world.now.duration_since(begun).as_secs();
    assert!((110..=121).contains(&seconds), "after {seconds} s");
    world.rest();
    assert!(is_given_back(&world, "ProgressDeadlineExceeded"), "{:#?}", world.status());
    let told = world.status().conditions.into_iter().find(|it| it.type_ == "Degraded").expect("a condition").message;
    assert!(told.contains("endpointslices") && told.contains("retry=true"), "{told}");
    assert_eq!((world.revision('a').replicas, world.owner.finalizers().len()), (0, 0));
    world.endpoints_follow = true;
    world.ask(RETRY, "true");
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), Stable));
}

#[test]
fn a_take_over_whose_pods_are_lost_before_it_is_confirmed_gives_the_service_back_at_once() {
    let mut world = unconfirmed();
    let begun = world.now;
    world.broken.insert('a');
    world.turn();
    world.rest();
    assert!(is_given_back(&world, "SoakFailed"), "{:#?}", world.status());
    assert!(world.now.duration_since(begun).as_secs() < 60);
}

#[test]
fn a_take_over_is_aborted_before_it_is_confirmed() {
    let mut world = unconfirmed();
    world.ask(ABORT, "true");
    world.rest();
    assert!(is_given_back(&world, "Aborted"), "{:#?}", world.status());
    assert!(!world.events.contains(&"NothingToAbort"));
}

#[test]
fn an_operator_that_was_away_between_announcement_and_switch_gives_the_endpoints_their_time() {
    let mut world = World::beside_another(json!({"gate": {"soakSeconds": 30}, "progressDeadlineSeconds": 120}));
    world.until(Promoting);
    world.now += SignedDuration::from_mins(10);
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), Stable));
}

#[test]
fn a_second_revision_that_loses_its_pods_with_the_first_one_gives_the_service_back() {
    let mut world = World::beside_another(json!({"gate": {"soakSeconds": 400}}));
    world.until(Soaking);
    world.want('b');
    world.until(Promoting);
    world.endpoints_follow = false;
    while world.live() != Some('b') {
        world.reconcile(usize::MAX);
    }
    world.broken.extend(['a', 'b']);
    world.turn();
    world.until(RollingBack);
    world.endpoints_follow = true;
    world.rest();
    assert!(world.is_untouched() && world.rejection('b').as_deref() == Some("SoakFailed"), "{:#?}", world.status());
}

#[test]
fn a_first_revision_that_fails_its_gate_leaves_the_service_as_it_was() {
    let mut world = World::beside_another(brief());
    world.wrong.insert('a');
    world.rest();
    assert!(world.is_untouched() && world.phase() == Failed);
    world.want('b');
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('b'), Stable));
}

#[test]
fn a_revision_that_fails_under_traffic_gives_the_service_back_and_is_not_tried_again() {
    let mut world = World::beside_another(json!({"gate": {"soakSeconds": 30}}));
    world.failing.insert('a');
    world.rest();
    assert!(world.is_untouched() && world.owner.finalizers().is_empty(), "{:#?}", world.status());
    assert_eq!((world.phase(), world.rejection('a').as_deref()), (Failed, Some("SoakFailed")));
    assert_eq!(world.events.iter().filter(|reason| **reason == "ServiceGivenBack").count(), 1);
    assert_eq!(world.revision('a').replicas, 0, "its pods are not needed");
    world.failing.clear();
    world.ask(RETRY, "true");
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), Stable));
}

#[test]
fn a_bound_that_was_edited_in_the_soak_gives_the_service_back_once() {
    let mut world = World::beside_another(json!({"gate": {"soakSeconds": 30}}));
    world.until(Soaking);
    world.edit(json!({"gate": {"soakTest": {"maxErrorPercentage": 10}}}));
    world.failing.insert('a');
    world.rest();
    assert!(world.is_untouched() && world.phase() == Failed, "{:#?}", world.status());
    assert_eq!(world.events.iter().filter(|reason| **reason == "ServiceGivenBack").count(), 1);
}

#[test]
fn pods_keep_running_until_nobody_reaches_them_through_a_service_that_was_given_back() {
    let mut world = World::beside_another(json!({"gate": {"soakSeconds": 30}}));
    world.until(Soaking);
    world.turn();
    world.endpoints_follow = false;
    world.failing.insert('a');
    for _ in 0..10 {
        world.reconcile(usize::MAX);
        world.turn();
    }
    assert!(world.is_untouched() && world.revision('a').replicas > 0);
    world.endpoints_follow = true;
    world.rest();
    assert_eq!(world.revision('a').replicas, 0);
}

#[test]
fn within_the_soak_an_abort_gives_the_service_back() {
    let mut world = World::beside_another(json!({"gate": {"soakSeconds": 30}}));
    world.until(Soaking);
    world.ask(ABORT, "true");
    world.rest();
    assert!(world.is_untouched());
    assert_eq!(world.rejection('a').as_deref(), Some("Aborted"));
}

#[test]
fn a_take_over_that_is_cut_short_anywhere_is_finished_or_given_back() {
    for failing in [false, true] {
        for survives in 0..8 {
            let mut world = World::beside_another(json!({"gate": {"soakSeconds": 20}}));
            if failing {
                world.failing.insert('a');
            }
            for _ in 0..80 {
                world.reconcile(survives);
                world.reconcile(usize::MAX);
                world.turn();
            }
            world.rest();
            if failing {
                assert!(world.is_untouched() && world.phase() == Failed, "killed after {survives} writes");
            } else {
                assert_eq!((world.live(), world.phase()), (Some('a'), Stable), "killed after {survives} writes");
            }
        }
    }
}

#[test]
fn a_second_revision_within_the_soak_goes_back_to_the_first_one() {
    let mut world = World::beside_another(json!({"gate": {"soakSeconds": 40}}));
    world.until(Soaking);
    world.failing.insert('b');
    world.want('b');
    world.rest();
    assert_eq!((world.live(), world.rejection('b').as_deref()), (Some('a'), Some("SoakFailed")));
    assert!(world.former.is_none());
}

#[test]
fn what_callers_would_notice_keeps_a_service_from_being_taken_over() {
    for (service, reason) in
        [(json!({"type": "LoadBalancer"}), "ServiceDiffers"), (json!({"port": 8080}), "ServiceDiffers")]
    {
        let mut world = World::beside_another(json!({"service": service}));
        world.rest();
        assert!(world.is_untouched() && world.phase() == Pending);
        assert_eq!((stalled(&world).as_str(), world.revisions.len()), (reason, 0), "no pod is started for nothing");
    }
}

#[test]
fn a_selector_that_would_choose_pods_before_they_have_passed_is_told_of() {
    let mut world = World::beside_another(json!({"podTemplate": {"labels": {"app": "cats"}}}));
    world.rest();
    assert!(world.is_untouched() && world.revisions.is_empty());
    assert_eq!(stalled(&world), "OverlappingSelector");
    world.edit(json!({"podTemplate": {"labels": {"app": "other"}}}));
    world.rest();
    assert_eq!(world.phase(), Stable);
}

#[test]
fn the_autoscaler_of_somebody_else_is_left_alone_and_followed_by_one_of_ours() {
    let mut world = World::beside_another(json!({"replicas": null}));
    world.has_foreign_autoscaler = true;
    world.until(Stable);
    let impaired = |world: &World| {
        let conditions = world.status().conditions;
        conditions.into_iter().find(|it| it.type_ == "AutoscalingImpaired").map(|it| (it.status, it.reason))
    };
    assert_eq!(impaired(&world), Some(("True".to_owned(), "NameTaken".to_owned())));
    assert!(world.autoscaler.is_none());
    world.has_foreign_autoscaler = false;
    world.rest();
    assert!(world.autoscaler.is_some());
    assert_eq!(impaired(&world), Some(("False".to_owned(), "NotImpaired".to_owned())));
}
