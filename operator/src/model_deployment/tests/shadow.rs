//! Copies of requests for a candidate: before its first share, for nobody, and only while they are of use.

use anneal_api::{
    names::request::ABORT,
    resources::{
        DeploymentPhase::{Canary, Degraded, Paused, Promoting, Shadowing, Soaking, Stable},
        ShadowStatus,
    },
};
use jiff::SignedDuration;
use serde_json::{Value, json};

use super::{
    canary::{steps, until_share},
    simulation::World,
};

/// Nine of ten of a hundred requests.
pub fn shadow() -> Value {
    json!({"minAgreement": 0.9})
}

fn spec(shadow: &Value) -> Value {
    let mut canary = steps();
    canary["shadow"] = shadow.clone();
    json!({"gate": {"soakSeconds": 5}, "strategy": {"type": "Canary", "canary": canary}})
}

/// A deployment that serves `a`, once `b` gets copies and the Gateway has taken that.
fn shadowing(shadow: &Value) -> World {
    let mut world = World::serving(spec(shadow));
    world.want('b');
    world.until(Shadowing);
    until_copied(&mut world);
    world
}

fn until_copied(world: &mut World) {
    for _ in 0..20 {
        world.reconcile(usize::MAX);
        let canary = world.status().canary;
        if world.copied_to() == Some('b') && canary.is_some_and(|it| it.effective_time.is_some()) {
            return;
        }
        world.turn();
    }
    panic!("nothing is copied; the status is {:#?}", world.status());
}

fn told(world: &World) -> Option<ShadowStatus> {
    world.status().canary.and_then(|canary| canary.shadow)
}

fn message(world: &World) -> String {
    let revisions = world.status().revisions;
    let rejection = revisions.into_iter().rev().find_map(|entry| entry.rejection);
    rejection.map(|it| it.message).unwrap_or_default()
}

#[test]
fn a_candidate_that_agrees_on_copies_of_requests_gets_its_shares() {
    let mut world = shadowing(&shadow());
    assert_eq!((world.phase(), world.live(), world.share()), (Shadowing, Some('a'), None), "nobody gets its answers");
    assert_eq!(told(&world).map(|it| (it.percent, it.agreement)), Some((100, None)));
    until_share(&mut world, 10);
    assert_eq!((world.phase(), world.copied_to()), (Canary, None), "it is copied no more");
    assert_eq!(told(&world).map(|it| (it.compared, it.agreed, it.agreement)), Some((100, 100, Some(1.0))));
    world.until(Soaking);
    world.rest();
    assert_eq!((world.live(), world.phase(), world.copied_to()), (Some('b'), Stable, None));
    let of_shadow: Vec<_> = world.events.iter().filter(|event| event.starts_with("Shadow")).collect();
    assert_eq!(of_shadow, [&"ShadowBegun", &"ShadowAgreed"], "{:?}", world.events);
    assert_eq!(world.events.iter().filter(|event| **event == "WeightSet").count(), 2);
}

#[test]
fn a_candidate_that_disagrees_never_gets_a_share() {
    let mut world = shadowing(&shadow());
    world.events.clear();
    world.disagreeing.insert('b');
    world.rest();
    assert_eq!((world.phase(), world.live(), world.share()), (Degraded, Some('a'), None));
    assert_eq!((world.rejection('b').as_deref(), world.revision('b').replicas), (Some("ShadowDisagrees"), 0));
    assert_eq!(world.events, ["ShadowDisagrees"]);
    let message = message(&world);
    assert!(message.contains("of 100 requests") && message.contains("for 50, an agreement of 0.5 below"), "{message}");
    assert!(message.contains("minAgreement 0.9") && message.contains("anneal.dev/retry=true"), "{message}");
    // Another bound is another gate.
    world.edit(json!({"strategy": {"canary": {"shadow": {"minAgreement": 0.5}}}}));
    world.rest();
    assert_eq!((world.phase(), world.live()), (Stable, Some('b')));
}

#[test]
fn a_candidate_about_which_too_little_is_known_is_rejected_with_how_much_it_was() {
    let mut world = shadowing(&json!({"minAgreement": 0.9, "timeoutSeconds": 60}));
    while told(&world).is_none_or(|it| it.compared < 50) {
        world.turn();
        world.reconcile(usize::MAX);
    }
    world.has_callers = false;
    let start = world.now;
    world.rest();
    assert_eq!((world.rejection('b').as_deref(), world.share()), (Some("ShadowInconclusive"), None));
    assert!(world.now.duration_since(start) < SignedDuration::from_secs(90));
    let message = message(&world);
    assert!(message.contains("50 of the 100 requests of strategy.canary.shadow.minRequests"), "{message}");
    assert!(message.contains("within 60 s") && message.contains("raise timeoutSeconds"), "{message}");
}

#[test]
fn what_goes_on_is_told_and_written_ten_times_at_most() {
    let mut world = shadowing(&json!({"minAgreement": 0.9, "minRequests": 1000}));
    let mut writes = 0;
    while world.phase() == Shadowing {
        writes += i32::from(world.reconcile(usize::MAX));
        let canary = world.status().canary.expect("a canary");
        let progressing = world.status().conditions.into_iter().find(|it| it.type_ == "Progressing").expect("one");
        let compared = canary.shadow.expect("a shadow").compared;
        if world.phase() == Shadowing {
            assert!(progressing.message.contains(&format!("{compared} are compared")), "{}", progressing.message);
        }
        world.turn();
    }
    assert!(writes <= 11, "{writes} writes");
}

#[test]
fn the_first_revision_and_one_that_has_served_get_no_copies() {
    let mut world = World::new(spec(&shadow()));
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), Stable));
    let first = world.name('a');
    world.want('b');
    world.rest();
    world.events.clear();
    world.pin(Some(&first));
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), Stable));
    assert!(!world.events.contains(&"ShadowBegun"), "{:?}", world.events);
}

#[test]
fn what_fails_on_copies_or_is_aborted_gets_no_share() {
    let mut world = shadowing(&shadow());
    world.failing.insert('b');
    world.rest();
    assert_eq!((world.rejection('b').as_deref(), world.live()), (Some("CanaryFailed"), Some('a')));
    assert!(message(&world).contains("after copies of requests"), "{}", message(&world));
    let mut world = shadowing(&shadow());
    world.ask(ABORT, "true");
    world.rest();
    assert_eq!((world.rejection('b').as_deref(), world.copied_to()), (Some("Aborted"), None));
}

#[test]
fn a_paused_rollout_goes_on_to_compare_and_still_rejects_what_disagrees() {
    let mut world = shadowing(&shadow());
    world.edit(json!({"paused": true}));
    for _ in 0..20 {
        world.turn();
        world.reconcile(usize::MAX);
    }
    assert_eq!((world.phase(), world.copied_to(), world.share()), (Paused, Some('b'), None));
    world.disagreeing.insert('b');
    world.rest();
    assert_eq!((world.rejection('b').as_deref(), world.copied_to()), (Some("ShadowDisagrees"), None));
}

#[test]
fn another_share_of_copies_takes_effect_and_blue_green_ends_them() {
    let mut world = shadowing(&json!({"minAgreement": 0.9, "minRequests": 1000}));
    let tests = world.tests.len();
    world.edit(json!({"strategy": {"canary": {"shadow": {"percent": 10}}}}));
    world.reconcile(usize::MAX);
    until_copied(&mut world);
    let percent = |world: &World| {
        let filter = world.route.as_ref().expect("a route").spec.rules[0].filters[0].clone();
        filter.request_mirror.expect("a mirror").percent
    };
    assert_eq!(percent(&world), Some(10));
    world.edit(json!({"strategy": {"type": "BlueGreen"}}));
    world.until(Promoting);
    assert_eq!(world.tests.len(), tests, "nobody is asked again");
    world.rest();
    assert_eq!((world.live(), world.phase(), world.copied_to()), (Some('b'), Stable, None));
}

#[test]
fn a_gateway_api_without_percentages_is_not_written_to_again_and_again() {
    let mut world = shadowing(&json!({"minAgreement": 0.9, "minRequests": 100_000, "percent": 10}));
    let route = world.route.as_mut().expect("a route");
    route.spec.rules[0].filters[0].request_mirror.as_mut().expect("a mirror").percent = None;
    assert!(world.plan().1.is_empty(), "it copies all of them, and that is all it can");
}

#[test]
fn copies_that_are_cut_short_anywhere_come_to_the_same_end() {
    for (disagrees, live, phase) in [(false, 'b', Stable), (true, 'a', Degraded)] {
        for survives in 0..8 {
            let mut world = World::serving(spec(&shadow()));
            world.disagreeing.extend(disagrees.then_some('b'));
            world.want('b');
            world.until(Shadowing);
            for _ in 0..20 {
                world.reconcile(survives);
                world.turn();
            }
            world.rest();
            let found = (world.live(), world.phase(), world.share(), world.copied_to());
            assert_eq!(found, (Some(live), phase, None, None), "killed after {survives} writes");
        }
    }
}

#[test]
fn another_operator_that_knows_nothing_begins_to_compare_anew() {
    let mut world = shadowing(&json!({"minAgreement": 0.9, "minRequests": 200}));
    for _ in 0..15 {
        world.turn();
        world.reconcile(usize::MAX);
    }
    assert!(told(&world).is_some_and(|it| it.compared >= 140), "{:?}", told(&world));
    world.restart_operator();
    world.reconcile(usize::MAX);
    assert_eq!((world.phase(), world.copied_to()), (Shadowing, Some('b')));
    until_share(&mut world, 10);
    assert_eq!(told(&world).map(|it| it.compared), Some(200));
}
