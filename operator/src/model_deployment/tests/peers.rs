//! Cases that the tests of other rollout controllers show, as ours.

use anneal_api::{
    names::request::ABORT,
    resources::DeploymentPhase::{Degraded, Failed, Loading, Promoting, ScalingUp, SmokeTesting, Soaking, Stable},
    smoke::{SmokeReport, Verdict},
};
use kube::ResourceExt;
use serde_json::json;

use super::{brief, fixtures::valid, simulation::World};
use crate::model_deployment::{
    objects::{preview_name, revision_name},
    pods::Trouble,
    revision::RevisionName,
    smoke::test_name,
    validate::validate,
};

fn long_soak() -> World {
    World::serving(json!({"gate": {"soakSeconds": 60}}))
}

#[test]
fn an_aborted_rollout_gives_way_to_the_next_spec() {
    let mut world = World::serving(brief());
    world.want('b');
    world.until(SmokeTesting);
    world.ask(ABORT, "true");
    world.until(Degraded);
    assert_eq!(world.rejection('b').as_deref(), Some("Aborted"));
    world.want('c');
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('c'), Stable));
}

#[test]
fn an_aborted_candidate_keeps_no_pod_and_what_serves_keeps_all() {
    let mut world = World::serving(brief());
    world.revision_mut('a').replicas = 4;
    world.rest();
    world.want('b');
    world.until(Promoting);
    assert_eq!(world.revision('b').replicas, 4);
    world.ask(ABORT, "true");
    world.rest();
    assert_eq!((world.live(), world.revision('b').replicas, world.revision('a').replicas), (Some('a'), 0, 4));
}

#[test]
fn a_smoke_test_whose_image_cannot_be_pulled_says_so_and_fails_closed() {
    let mut world = World::serving(json!({"gate": {"smokeTest": {"retries": 0}}}));
    world.want('b');
    world.until(SmokeTesting);
    let message = "the image server:9 cannot be pulled".to_owned();
    let test = world.tests.last_mut().expect("a test");
    test.trouble = Some(Trouble { reason: "ImagePull", message: message.clone(), fatal: false });
    world.reconcile(usize::MAX);
    assert!(world.events.contains(&"ImagePull"), "{:?}", world.events);
    // As the Job's own deadline ends it.
    world.tests.last_mut().expect("a test").report =
        Some(SmokeReport { verdict: Verdict::Inconclusive, passed: 0, failed: 0, p95_milliseconds: None, message });
    world.rest();
    assert_eq!((world.live(), world.rejection('b').as_deref()), (Some('a'), Some("SmokeInconclusive")));
}

#[test]
fn a_bad_revision_after_a_good_one_gives_way_to_a_good_one() {
    let mut world = World::serving(brief());
    world.wrong.insert('b');
    world.want('b');
    world.until(Degraded);
    assert_eq!((world.live(), world.rejection('b').as_deref()), (Some('a'), Some("SmokeTestFailed")));
    world.want('c');
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('c'), Stable));
}

#[test]
fn a_bad_first_revision_gives_way_to_a_good_one() {
    let mut world = World::new(brief());
    world.broken.insert('a');
    world.until(Failed);
    world.want('b');
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('b'), Stable));
}

#[test]
fn a_bad_revision_after_a_bad_one_is_rejected_for_its_own_reason() {
    let mut world = World::serving(brief());
    world.broken.insert('b');
    world.wrong.insert('c');
    world.want('b');
    world.until(Degraded);
    world.want('c');
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), Degraded));
    let reasons = ['b', 'c'].map(|of| world.rejection(of));
    assert_eq!(reasons.map(Option::unwrap_or_default), ["LoadFailed", "SmokeTestFailed"]);
    assert_eq!((world.revision('b').replicas, world.revision('c').replicas), (0, 0));
}

#[test]
fn a_rollout_beyond_its_deadline_ends_without_pods() {
    let mut world = World::serving(json!({"progressDeadlineSeconds": 60}));
    world.want('b');
    world.until(Loading);
    world.now += jiff::SignedDuration::from_secs(60);
    world.rest();
    assert_eq!((world.live(), world.rejection('b').as_deref()), (Some('a'), Some("ProgressDeadlineExceeded")));
    assert_eq!(world.revision('b').replicas, 0);
}

#[test]
fn a_drain_amid_a_rollout_takes_one_pod_of_each_revision_at_a_time() {
    let mut world = World::serving(brief());
    world.want('b');
    for phase in [SmokeTesting, Promoting, Soaking] {
        world.until(phase);
        for budget in &world.budgets {
            let spec = budget.spec.as_ref().expect("a spec");
            let most = spec.max_unavailable.as_ref();
            assert_eq!(most, Some(&k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(1)));
        }
        let names: Vec<_> = world.budgets.iter().map(ResourceExt::name_any).collect();
        for name in [world.name('a'), world.name('b')] {
            assert!(names.contains(&format!("cats-{name}")), "{name} has no budget in {phase:?}");
        }
    }
}

#[test]
fn the_longest_name_makes_names_that_kubernetes_takes() {
    let name = "a".repeat(40);
    assert_eq!(valid(&name).name, name);
    let mut too_long = World::new(json!({})).owner;
    too_long.metadata.name = Some(format!("{name}a"));
    let problem = validate(&too_long).expect_err("refused").to_string();
    assert!(problem.contains("under a shorter name"), "{problem}");
    let revision = RevisionName::parse("0123abcd").expect("a name");
    for made in [preview_name(&name), revision_name(&name, &revision), test_name(&name, &revision, 9_999_999)] {
        assert!(made.len() <= 63, "{made} has {} characters", made.len());
    }
}

#[test]
fn the_pods_that_were_asked_are_those_that_get_the_traffic() {
    let mut world = World::serving(brief());
    world.want('b');
    world.until(Promoting);
    let pods = |world: &World| -> Vec<String> { world.revision('b').pods.iter().map(|pod| pod.uid.clone()).collect() };
    let asked = pods(&world);
    world.rest();
    assert_eq!((world.live(), pods(&world)), (Some('b'), asked));
}

#[test]
fn going_back_before_the_switch_touches_no_pod_that_serves() {
    for phase in [Loading, SmokeTesting, ScalingUp, Promoting] {
        let mut world = World::serving(brief());
        let before = world.revision('a').pods.clone();
        world.want('b');
        world.until(phase);
        world.want('a');
        world.rest();
        assert_eq!((world.live(), world.phase()), (Some('a'), Stable), "in {phase:?}");
        assert_eq!((&world.revision('a').pods, world.revision('b').replicas), (&before, 0), "in {phase:?}");
    }
}

#[test]
fn going_back_late_is_finished_by_whoever_comes_after_a_crash() {
    for survives in 0..8 {
        let mut world = long_soak();
        world.want('b');
        world.until(Soaking);
        let before = world.revision('a').pods.clone();
        world.want('a');
        for _ in 0..12 {
            world.reconcile(survives);
            world.turn();
        }
        world.rest();
        assert_eq!((world.live(), world.phase()), (Some('a'), Stable), "killed after {survives} writes");
        assert_eq!(world.revision('a').pods, before, "nothing was restarted");
    }
}

#[test]
fn a_way_back_that_is_called_off_ends_where_the_spec_says() {
    for turns in 0..4 {
        let mut world = long_soak();
        world.want('b');
        world.until(Soaking);
        world.want('a');
        for _ in 0..turns {
            world.reconcile(usize::MAX);
            world.turn();
        }
        world.want('b');
        world.rest();
        assert_eq!((world.live(), world.phase()), (Some('b'), Stable), "called off after {turns} turns");
        assert_eq!(world.revision('a').replicas, 0);
    }
}

#[test]
fn a_third_spec_within_the_soak_passes_the_gate_while_the_second_one_serves() {
    let mut world = long_soak();
    world.want('b');
    world.until(Soaking);
    world.want('c');
    world.until(Promoting);
    assert_eq!(world.live(), Some('b'));
    world.until(Soaking);
    world.failing.insert('c');
    world.rest();
    assert_eq!((world.live(), world.rejection('c').as_deref()), (Some('b'), Some("SoakFailed")));
    assert_eq!(world.revision('a').replicas, 0);
}
