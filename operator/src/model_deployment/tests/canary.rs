//! A candidate's share of the requests through a Gateway: who gets one, when it grows, and how it goes back.

use anneal_api::{
    names::request::{ABORT, APPROVE},
    resources::DeploymentPhase::{
        AwaitingApproval, Canary, Degraded, Loading, Paused, Pending, Promoting, ScalingUp, Soaking, Stable,
    },
};
use jiff::SignedDuration;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::simulation::World;

/// Two steps, a tenth and a half.
pub fn steps() -> Value {
    json!({
        "parentRefs": [{"name": "edge"}],
        "steps": [{"setWeight": 10, "pauseSeconds": 30}, {"setWeight": 50, "pauseSeconds": 30}],
    })
}

fn spec() -> Value {
    json!({"gate": {"soakSeconds": 5}, "strategy": {"type": "Canary", "canary": steps()}})
}

/// A deployment that serves `a`, once `b` has its first share.
fn shared() -> World {
    let mut world = World::serving(spec());
    world.want('b');
    until_share(&mut world, 10);
    world
}

/// Lets time pass until `b` has this share and the Gateway has taken it.
pub fn until_share(world: &mut World, weight: i32) {
    for _ in 0..200 {
        world.reconcile(usize::MAX);
        let canary = world.status().canary;
        if world.share() == Some(('b', weight)) && canary.is_some_and(|it| it.effective_time.is_some()) {
            return;
        }
        world.turn();
    }
    panic!("{weight} % were not reached; the status is {:#?}", world.status());
}

fn condition(world: &World, kind: &str) -> Option<(bool, String)> {
    let found = world.status().conditions.into_iter().find(|condition| condition.type_ == kind)?;
    Some((found.status == "True", found.reason))
}

#[test]
fn a_candidate_gets_its_shares_one_after_the_other_and_then_the_service() {
    let mut world = World::serving(spec());
    assert_eq!(world.share(), None);
    world.want('b');
    until_share(&mut world, 10);
    let since = world.now;
    assert_eq!((world.phase(), world.live()), (Canary, Some('a')), "callers of the Service stay");
    until_share(&mut world, 50);
    assert!(world.now.duration_since(since) >= SignedDuration::from_secs(30), "it was judged for its time");
    world.until(Soaking);
    assert_eq!(world.live(), Some('b'));
    world.rest();
    assert_eq!((world.phase(), world.share()), (Stable, None));
    assert_eq!(world.events.iter().filter(|event| **event == "WeightSet").count(), 2);
    assert!(world.status().canary.is_none());
}

#[test]
fn the_first_revision_shares_with_nobody() {
    let mut world = World::new(spec());
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), Stable));
    assert!(!world.events.contains(&"WeightSet"));
    assert!(world.route.is_some(), "and is reached through the Gateway");
}

#[test]
fn a_share_waits_for_pods_behind_the_candidates_own_service() {
    let mut world = World::serving(spec());
    world.want('b');
    world.until(ScalingUp);
    world.endpoints_follow = false;
    for _ in 0..10 {
        world.reconcile(usize::MAX);
        world.turn();
    }
    assert!(world.phase() == Canary && world.status().canary.is_none() && world.share().is_none());
    assert!(world.events.contains(&"EndpointsPending"), "{:?}", world.events);
    world.endpoints_follow = true;
    until_share(&mut world, 10);
}

#[test]
fn what_fails_with_its_share_gives_it_back_before_it_loses_a_pod() {
    let mut world = shared();
    world.events.clear();
    world.failing.insert('b');
    world.reconcile(usize::MAX);
    assert_eq!(world.rejection('b').as_deref(), Some("CanaryFailed"));
    world.reconcile(usize::MAX);
    assert_eq!((world.share(), world.revision('b').replicas), (None, 2), "requests may still be on their way");
    world.rest();
    assert_eq!((world.phase(), world.live(), world.revision('b').replicas), (Degraded, Some('a'), 0));
    assert_eq!(world.events, ["CanaryFailed"]);
}

#[test]
fn a_gateway_that_does_not_answer_keeps_the_pods_of_a_failed_candidate_for_seconds_only() {
    let mut world = shared();
    world.gateway_answers = false;
    world.failing.insert('b');
    world.reconcile(usize::MAX);
    let start = world.now;
    world.rest();
    assert_eq!(world.revision('b').replicas, 0);
    assert!(world.now.duration_since(start) < SignedDuration::from_secs(30));
}

#[test]
fn a_crash_with_a_share_and_a_candidate_without_a_ready_pod_fail() {
    let mut world = shared();
    world.revision_mut('b').pods[0].crashed = Some(world.now);
    world.reconcile(usize::MAX);
    assert_eq!(world.rejection('b').as_deref(), Some("CanaryFailed"));
    let mut world = shared();
    world.revision_mut('b').pods.iter_mut().for_each(|pod| pod.ready = false);
    world.reconcile(usize::MAX);
    assert_eq!((world.rejection('b').as_deref(), world.share()), (Some("CanaryFailed"), None), "at once");
}

#[test]
fn a_canary_that_is_aborted_goes_back() {
    let mut world = shared();
    world.ask(ABORT, "true");
    world.rest();
    assert_eq!((world.phase(), world.live(), world.share()), (Degraded, Some('a'), None));
    assert_eq!(world.rejection('b').as_deref(), Some("Aborted"));
    assert!(!world.owner.annotations().contains_key(ABORT) && !world.events.contains(&"NothingToAbort"));
}

#[test]
fn a_paused_canary_keeps_its_share_and_still_gives_it_back_when_it_fails() {
    let mut world = shared();
    let tests = world.tests.len();
    world.edit(json!({"paused": true}));
    world.now += SignedDuration::from_secs(120);
    world.rest();
    assert_eq!((world.phase(), world.share()), (Paused, Some(('b', 10))));
    world.edit(json!({"paused": false}));
    until_share(&mut world, 50);
    assert_eq!(world.tests.len(), tests, "nobody is asked again");
    world.edit(json!({"paused": true}));
    world.failing.insert('b');
    world.rest();
    assert_eq!((world.rejection('b').as_deref(), world.share()), (Some("CanaryFailed"), None));
}

#[test]
fn a_step_waits_for_a_word_that_comes_after_its_pause() {
    let mut canary = steps();
    canary["steps"][0]["approval"] = json!("Manual");
    let mut world =
        World::serving(json!({"gate": {"soakSeconds": 5}, "strategy": {"type": "Canary", "canary": canary}}));
    world.want('b');
    until_share(&mut world, 10);
    world.ask(APPROVE, "true");
    world.reconcile(usize::MAX);
    assert!(world.events.contains(&"NothingToApprove"), "nobody approves of what they have not seen");
    world.until(AwaitingApproval);
    world.now += SignedDuration::from_secs(3600);
    world.rest();
    assert_eq!((world.phase(), world.share()), (AwaitingApproval, Some(('b', 10))));
    world.events.clear();
    world.ask(APPROVE, &world.name('b'));
    until_share(&mut world, 50);
    assert!(!world.events.contains(&"NothingToApprove"));
    world.rest();
    assert_eq!((world.phase(), world.live()), (Stable, Some('b')));
}

#[test]
fn a_gate_with_approval_asks_before_the_first_share() {
    let mut world = World::serving(spec());
    world.edit(json!({"gate": {"approval": "Manual"}}));
    world.want('b');
    world.until(AwaitingApproval);
    assert_eq!(world.share(), None);
    world.ask(APPROVE, "true");
    until_share(&mut world, 10);
    world.rest();
    assert_eq!((world.phase(), world.live()), (Stable, Some('b')), "once is enough");
}

#[test]
fn a_newer_spec_takes_the_share_back_and_going_back_needs_no_test() {
    let mut world = shared();
    world.want('c');
    world.until(Canary);
    assert_ne!(world.share().map(|(of, _)| of), Some('b'));
    world.rest();
    assert_eq!((world.live(), world.revision('b').replicas), (Some('c'), 0));
    let mut world = shared();
    let tests = world.tests.len();
    world.want('a');
    world.rest();
    assert_eq!((world.phase(), world.live(), world.share()), (Stable, Some('a'), None));
    assert!(world.tests.len() <= tests);
}

#[test]
fn another_gate_in_the_midst_takes_the_share_back_until_it_is_passed() {
    let mut world = shared();
    world.wrong.insert('b');
    world.edit(json!({"gate": {"smokeTest": {"maxP95Milliseconds": 50}}}));
    world.rest();
    assert_eq!((world.phase(), world.live(), world.share()), (Degraded, Some('a'), None));
}

#[test]
fn going_back_to_a_revision_that_has_served_takes_no_steps() {
    let mut world = World::serving(spec());
    let first = world.name('a');
    world.want('b');
    world.rest();
    world.events.clear();
    world.pin(Some(&first));
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), Stable));
    assert!(!world.events.contains(&"WeightSet") && world.events.contains(&"Promoted"), "{:?}", world.events);
}

#[test]
fn other_steps_in_the_midst_take_effect() {
    let mut world = shared();
    let mut canary = steps();
    canary["steps"][0]["setWeight"] = json!(25);
    world.edit(json!({"strategy": {"canary": canary}}));
    until_share(&mut world, 25);
    world.edit(json!({"strategy": {"type": "BlueGreen"}}));
    world.until(Promoting);
    world.rest();
    assert_eq!((world.live(), world.phase(), world.share()), (Some('b'), Stable, None));
    assert!(world.route.is_some(), "the way in stays");
}

#[test]
fn the_autoscaler_neither_shrinks_what_gives_a_share_nor_sizes_the_candidate() {
    let mut world = shared();
    let policy = |world: &World| {
        let spec = world.autoscaler.as_ref().and_then(|it| it.spec.clone()).expect("an autoscaler");
        let policy = spec.behavior.and_then(|it| it.scale_down).and_then(|it| it.select_policy);
        (spec.scale_target_ref.name, policy)
    };
    let stable = format!("cats-{}", world.name('a'));
    assert_eq!(policy(&world), (stable.clone(), Some("Disabled".to_owned())));
    // It grows what is stable: the candidate must be able to take it all.
    world.revision_mut('a').replicas = 5;
    until_share(&mut world, 50);
    assert_eq!(world.revision('b').replicas, 5);
    world.failing.insert('b');
    world.rest();
    assert_eq!((world.revision('a').replicas, policy(&world)), (5, (stable, Some("Max".to_owned()))));
}

#[test]
fn a_pod_that_is_replaced_late_in_a_canary_is_asked_and_costs_no_deadline() {
    let mut world = World::serving(spec());
    world.edit(json!({"progressDeadlineSeconds": 60}));
    world.edit(json!({"strategy": {"canary": {"steps": [{"setWeight": 10, "pauseSeconds": 600}]}}}));
    world.want('b');
    until_share(&mut world, 10);
    world.now += SignedDuration::from_secs(300);
    world.revision_mut('b').pods.pop();
    for _ in 0..6 {
        world.turn();
        world.reconcile(usize::MAX);
        assert_eq!(world.share(), Some(('b', 10)));
    }
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('b'), Stable));
}

#[test]
fn a_cluster_without_the_gateway_api_serves_on_and_says_what_to_install() {
    let mut world = World::new(spec());
    world.knows_gateways = false;
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), Stable), "the Service needs no Gateway");
    assert_eq!(condition(&world, "RouteAccepted"), Some((false, "GatewayApiNotInstalled".to_owned())));
    assert_eq!(world.events.iter().filter(|event| **event == "GatewayApiNotInstalled").count(), 1);
    world.want('b');
    world.now += SignedDuration::from_secs(3600);
    for _ in 0..100 {
        world.reconcile(usize::MAX);
        world.turn();
    }
    assert_eq!((world.phase(), world.live()), (Pending, Some('a')));
    assert!(world.revisions.len() == 1, "no pod is made in vain");
    let (plan, writes) = world.plan();
    assert!(writes.is_empty() && plan.events.is_empty(), "and nothing is written meanwhile");
    // It is installed later.
    world.knows_gateways = true;
    until_share(&mut world, 10);
    assert_eq!(condition(&world, "RouteAccepted"), Some((true, "Accepted".to_owned())));
}

#[test]
fn a_route_of_somebody_else_holds_up_the_canary_and_nothing_more() {
    let mut world = World::serving(json!({"gate": {"soakSeconds": 60}}));
    world.want('b');
    world.until(Soaking);
    world.has_foreign_route = true;
    world.edit(json!({"strategy": {"type": "Canary", "canary": steps()}}));
    world.failing.insert('b');
    for _ in 0..6 {
        world.reconcile(usize::MAX);
        world.turn();
    }
    assert_eq!((world.live(), world.rejection('b').as_deref()), (Some('a'), Some("SoakFailed")));
    assert_eq!(condition(&world, "RouteAccepted"), Some((false, "NameTaken".to_owned())));
    world.want('c');
    for _ in 0..20 {
        world.reconcile(usize::MAX);
        world.turn();
    }
    assert_eq!((world.live(), world.phase(), world.revisions.len()), (Some('a'), Pending, 2));
    world.has_foreign_route = false;
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('c'), Stable));
}

#[test]
fn a_gateway_that_never_takes_the_route_fails_the_rollout_at_its_deadline() {
    let mut world = World::serving(spec());
    world.gateway_answers = false;
    world.route = None;
    world.want('b');
    world.until(Loading);
    let conditions = world.status().conditions;
    let found = conditions.iter().find(|condition| condition.type_ == "RouteAccepted").expect("a condition");
    assert_eq!((found.status.as_str(), found.reason.as_str()), ("Unknown", "WaitingForGateway"));
    world.rest();
    assert_eq!((world.phase(), world.live(), world.share()), (Degraded, Some('a'), None));
    assert_eq!(world.rejection('b').as_deref(), Some("WaitingForGateway"));
}

#[test]
fn a_route_that_somebody_edits_or_deletes_comes_back() {
    let mut world = shared();
    world.route = None;
    until_share(&mut world, 10);
    world.route.as_mut().expect("a route").spec.rules.clear();
    until_share(&mut world, 10);
}

#[test]
fn without_a_wish_for_a_route_there_is_none() {
    let mut world = shared();
    world.edit(json!({"strategy": {"type": null, "canary": null}}));
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('b'), Stable));
    assert!(world.route.is_none() && world.backends.is_empty());
    assert_eq!(condition(&world, "RouteAccepted"), None);
}

#[test]
fn a_canary_that_is_cut_short_anywhere_is_finished() {
    for survives in 0..8 {
        let mut world = World::serving(spec());
        world.want('b');
        world.until(Canary);
        for _ in 0..20 {
            world.reconcile(survives);
            world.turn();
        }
        world.rest();
        assert_eq!((world.live(), world.phase()), (Some('b'), Stable), "killed after {survives} writes");
    }
}

#[test]
fn a_way_back_from_a_canary_that_is_cut_short_anywhere_is_finished() {
    for survives in 0..8 {
        let mut world = shared();
        world.failing.insert('b');
        for _ in 0..20 {
            world.reconcile(survives);
            world.turn();
        }
        world.rest();
        assert_eq!(
            (world.live(), world.phase(), world.share()),
            (Some('a'), Degraded, None),
            "after {survives} writes"
        );
        assert_eq!(world.revision('b').replicas, 0);
    }
}
