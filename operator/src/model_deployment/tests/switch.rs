//! What happens around the switch: sizes, autoscaler, budgets, and what others do to the Service in the meantime.

use anneal_api::resources::DeploymentPhase::{
    Degraded, Promoting, RollingBack, ScalingUp, SmokeTesting, Soaking, Stable,
};
use kube::ResourceExt;
use serde_json::json;

use super::{
    brief,
    simulation::{World, checkpoint},
};
use crate::{
    context::Settings,
    model_deployment::{apply, plan::plan, revision::RevisionName, validate::validate},
};

fn scale_down_policy(world: &World) -> Option<String> {
    world.autoscaler.as_ref()?.spec.as_ref()?.behavior.as_ref()?.scale_down.as_ref()?.select_policy.clone()
}

/// The checkpoint that the autoscaler sizes.
fn autoscaled(world: &World) -> char {
    let spec = world.autoscaler.as_ref().and_then(|it| it.spec.as_ref()).expect("an autoscaler");
    let name = RevisionName::parse(spec.scale_target_ref.name.rsplit('-').next().expect("a name"));
    checkpoint(&world.revisions[&name.expect("a revision")])
}

#[test]
fn nothing_is_written_when_stable() {
    let mut world = World::serving(brief());
    world.rest();
    let (plan, writes) = world.plan();
    assert!(writes.is_empty(), "{writes:?}");
    assert_eq!(plan.status, world.status());
    assert!(plan.events.is_empty());
}

#[test]
fn the_candidate_grows_to_the_size_that_serves_now() {
    let mut world = World::serving(brief());
    world.revision_mut('a').replicas = 5;
    world.rest();
    world.want('b');
    world.until(ScalingUp);
    // The autoscaler grows what serves in the midst of the rollout.
    world.revision_mut('a').replicas = 7;
    world.until(Soaking);
    assert_eq!((world.live(), world.revision('b').replicas), (Some('b'), 7));
    assert_eq!(world.revision('a').replicas, 7, "the former one is held at its size");
    world.until(Stable);
    assert_eq!(world.revision('a').replicas, 0);
}

#[test]
fn the_autoscaler_takes_no_pod_away_from_before_the_switch_until_the_soak_ends() {
    let mut world = World::serving(brief());
    assert_eq!(scale_down_policy(&world).as_deref(), Some("Max"));
    world.want('b');
    for phase in [ScalingUp, Promoting, Soaking] {
        world.until(phase);
        assert_eq!(scale_down_policy(&world).as_deref(), Some("Disabled"), "in {phase:?}");
        assert_eq!(autoscaled(&world), if phase == Soaking { 'b' } else { 'a' });
    }
    world.rest();
    assert_eq!((scale_down_policy(&world).as_deref(), world.phase()), (Some("Max"), Stable));
}

#[test]
fn a_pod_that_joins_before_the_switch_is_asked_too() {
    let mut world = World::serving(brief());
    world.want('b');
    world.until(Promoting);
    assert!(world.status().promotion.is_some());
    // A pod is replaced between the announcement and the switch.
    let pod = world.revision_mut('b').pods.last_mut().expect("a pod");
    pod.uid = "newcomer".to_owned();
    world.reconcile(usize::MAX);
    assert_eq!((world.live(), world.phase()), (Some('a'), SmokeTesting));
    assert!(world.status().promotion.is_none());
    world.until(Soaking);
    assert!(world.tests.iter().any(|test| test.pods.contains("newcomer")));
}

#[test]
fn an_operator_that_dies_before_it_records_anything_starts_no_test_of_its_own_each_time() {
    let mut world = World::serving(brief());
    world.want('b');
    let before = world.tests.len();
    // Each time it makes all its writes but the status, which is the last one.
    for _ in 0..20 {
        let writes = world.plan().1;
        let status = world.owner.status.clone();
        world.reconcile(writes.len());
        world.owner.status = status;
        world.turn();
    }
    assert!(world.tests.len() <= before + 1, "{} tests", world.tests.len() - before);
    world.until(Stable);
    assert_eq!(world.live(), Some('b'));
}

#[test]
fn many_pods_are_asked_in_turns_that_each_fit_into_their_time() {
    let mut world = World::new(json!({"replicas": 100, "gate": {"soakSeconds": 1}}));
    world.until(Stable);
    assert_eq!((world.live(), world.revision('a').replicas), (Some('a'), 100));
    assert!(world.tests.iter().all(|test| test.pods.len() <= 24));
}

#[test]
fn pods_of_different_images_are_not_let_through() {
    let mut world = World::serving(brief());
    world.want('b');
    world.until(Promoting);
    world.revision_mut('b').pods[0].image_id = Some("server@sha256:2".to_owned());
    world.reconcile(usize::MAX);
    assert_eq!((world.live(), world.phase()), (Some('a'), ScalingUp));
    assert!(world.events.contains(&"ImagesDiffer"));
}

#[test]
fn a_switch_that_is_cut_short_anywhere_is_finished() {
    for survives in 0..8 {
        let mut world = World::serving(brief());
        world.want('b');
        world.until(Promoting);
        for _ in 0..12 {
            world.reconcile(survives);
            world.turn();
        }
        world.rest();
        assert_eq!((world.live(), world.phase()), (Some('b'), Stable), "killed after {survives} writes");
        assert_eq!(world.events.iter().filter(|event| **event == "Promoted").count(), 1);
        assert_eq!(autoscaled(&world), 'b');
    }
}

#[test]
fn a_switch_waits_for_the_endpoints() {
    let mut world = World::serving(brief());
    world.want('b');
    world.until(Promoting);
    world.endpoints_follow = false;
    for _ in 0..5 {
        world.reconcile(usize::MAX);
        world.turn();
    }
    assert_eq!((world.live(), world.phase()), (Some('b'), Promoting));
    assert_eq!(autoscaled(&world), 'a', "until callers have moved");
    assert_eq!(world.status().stable_revision.map(|it| it.len()), Some(8));
    world.endpoints_follow = true;
    world.until(Soaking);
    assert_eq!(autoscaled(&world), 'b');
}

#[test]
fn a_switch_that_nobody_confirms_is_gone_back_on_after_the_deadline() {
    let mut world = World::serving(json!({"gate": {"soakSeconds": 5}, "progressDeadlineSeconds": 60}));
    world.want('b');
    world.until(Promoting);
    world.endpoints_follow = false;
    world.until(RollingBack);
    world.endpoints_follow = true;
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), Degraded));
    assert_eq!(world.rejection('b').as_deref(), Some("ProgressDeadlineExceeded"));
}

#[test]
fn a_selector_that_somebody_moved_is_set_back() {
    let mut world = World::serving(brief());
    let set = |world: &mut World, revision: &str| {
        let spec = world.service.as_mut().and_then(|service| service.spec.as_mut()).expect("a Service");
        spec.selector.as_mut().expect("a selector").insert("anneal.dev/revision".to_owned(), revision.to_owned());
    };
    for wrong in ["none", "00000000"] {
        set(&mut world, wrong);
        world.rest();
        assert_eq!((world.live(), world.phase()), (Some('a'), Stable));
    }
    assert_eq!(world.events, ["SelectorRestored", "SelectorRestored"]);
}

#[test]
fn a_selector_with_a_strange_key_is_set_as_a_whole() {
    let mut world = World::serving(brief());
    let spec = world.service.as_mut().and_then(|service| service.spec.as_mut()).expect("a Service");
    spec.selector.as_mut().expect("a selector").insert("app".to_owned(), "other".to_owned());
    world.rest();
    let selector = world.service.as_ref().and_then(|it| it.spec.as_ref()).and_then(|it| it.selector.as_ref());
    assert_eq!(selector.expect("a selector").len(), 2);
}

#[test]
fn what_serves_goes_on_when_the_status_is_lost() {
    let mut world = World::serving(brief());
    world.owner.status = None;
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), Stable));
    assert!(world.events.is_empty(), "{:?}", world.events);
}

#[test]
fn a_deleted_service_comes_back_where_it_was() {
    let mut world = World::serving(brief());
    world.service = None;
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), Stable));
}

#[test]
fn a_deleted_deployment_comes_back_at_its_size() {
    let mut world = World::serving(json!({"replicas": 3}));
    world.revisions.clear();
    world.reconcile(usize::MAX);
    assert_eq!(world.revision('a').replicas, 3);
}

#[test]
fn a_fixed_size_has_no_autoscaler() {
    let mut world = World::serving(brief());
    assert!(world.autoscaler.is_some());
    world.edit(json!({"autoscaling": null, "replicas": 4}));
    world.rest();
    assert_eq!((world.revision('a').replicas, world.autoscaler.is_none()), (4, true));
    world.edit(json!({"replicas": 0}));
    world.rest();
    assert_eq!((world.revision('a').replicas, world.phase()), (0, Stable));
}

#[test]
fn no_pod_is_ever_under_two_budgets_and_none_that_serves_is_without() {
    let mut world = World::serving(brief());
    world.want('b');
    for phase in [SmokeTesting, Promoting, Soaking, Stable] {
        world.until(phase);
        world.reconcile(usize::MAX);
        let names: std::collections::BTreeSet<_> = world.budgets.iter().map(ResourceExt::name_any).collect();
        assert_eq!(names.len(), world.budgets.len());
        assert_eq!(names.len(), if phase == Stable { 1 } else { 2 }, "in {phase:?}");
    }
}

#[test]
fn former_revisions_go_beyond_the_limit() {
    let mut world = World::serving(json!({"gate": {"soakSeconds": 1}, "revisionHistoryLimit": 1}));
    for checkpoint in ['b', 'c', 'd'] {
        world.want(checkpoint);
        world.rest();
    }
    let left: Vec<_> = world.revisions.values().map(checkpoint).collect();
    assert_eq!(left.len(), 2);
    assert!(left.contains(&'c') && left.contains(&'d'), "{left:?}");
    assert!(world.tests.len() <= 3, "their tests go with them");
    world.wrong.insert('e');
    world.want('e');
    world.rest();
    world.want('f');
    world.rest();
    let left: Vec<_> = world.revisions.values().map(checkpoint).collect();
    assert!(
        left.len() == 2 && left.contains(&'d') && left.contains(&'f'),
        "what served outlives what never did: {left:?}"
    );
}

#[test]
fn an_operator_that_renders_other_pods_restarts_none() {
    let world = World::serving(brief());
    let seen = world.observe();
    let spec = validate(&world.owner).expect("valid");
    let desired = plan(&seen, &spec, world.now).desired.expect("something");
    let settings = Settings { server_image: "server:2".to_owned(), ..Settings::of_tests() };
    assert!(apply::writes(&seen, &spec, &desired, &settings).is_empty());
}

#[test]
fn a_rejected_candidate_leaves_the_autoscaler_alone() {
    let mut world = World::serving(brief());
    let before = world.autoscaler.clone();
    world.wrong.insert('b');
    world.want('b');
    world.until(Degraded);
    world.rest();
    assert_eq!(world.autoscaler, before);
}
