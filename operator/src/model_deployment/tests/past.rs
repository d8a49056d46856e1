//! What is kept of former revisions, and the ways back to them.

use anneal_api::resources::DeploymentPhase::{Degraded, Pending, ScalingUp, Soaking, Stable};
use serde_json::json;

use super::{brief, simulation::World};

#[test]
fn a_deployment_that_is_made_again_has_the_pods_of_the_operator_that_first_made_it() {
    let mut world = World::serving(brief());
    let before = world.revision('a').template.clone();
    world.settings.server_image = "server:2".to_owned();
    world.revisions.clear();
    world.rest();
    assert_eq!((world.phase(), &world.revision('a').template), (Stable, &before));
    world.want('b');
    world.rest();
    let image = |world: &World| world.revision('b').template.spec.as_ref().expect("a pod").containers[0].image.clone();
    assert_eq!(image(&world).as_deref(), Some("server:2"), "a new revision has the new server");
}

#[test]
fn what_somebody_deleted_is_written_down_again_as_it_runs() {
    let mut world = World::serving(brief());
    let before = world.records.values().next().expect("a record").template.clone();
    world.records.clear();
    world.settings.server_image = "server:2".to_owned();
    world.rest();
    assert_eq!(world.records.values().next().expect("a record").template, before);
    assert_eq!(world.live(), Some('a'));
}

#[test]
fn a_pinned_revision_serves_whatever_the_model_says() {
    let mut world = World::serving(brief());
    let first = world.name('a');
    world.want('b');
    world.rest();
    world.want('c');
    world.pin(Some(&first));
    world.until(ScalingUp);
    assert_eq!(world.live(), Some('b'), "its pods are new, so that they are asked again");
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), Stable));
    world.pin(None);
    world.rest();
    assert_eq!(world.live(), Some('c'));
}

#[test]
fn pinning_what_is_still_held_is_instant() {
    let mut world = World::serving(json!({"gate": {"soakSeconds": 60}}));
    let first = world.name('a');
    world.want('b');
    world.until(Soaking);
    let tests = world.tests.len();
    world.pin(Some(&first));
    for _ in 0..3 {
        world.reconcile(usize::MAX);
    }
    assert_eq!(world.live(), Some('a'));
    world.rest();
    assert!(world.tests.len() <= tests, "no pod is asked again");
}

#[test]
fn a_pinned_revision_that_is_not_kept_is_named_and_touches_nothing() {
    let mut world = World::serving(brief());
    world.pin(Some("0123abcd"));
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), Pending));
    assert_eq!(world.events, ["RevisionNotFound"]);
}

#[test]
fn a_pinned_revision_that_fails_its_smoke_test_gets_no_traffic() {
    let mut world = World::serving(brief());
    let first = world.name('a');
    world.want('b');
    world.rest();
    world.wrong.insert('a');
    world.pin(Some(&first));
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('b'), Degraded));
}

#[test]
fn what_is_written_down_goes_with_the_deployments() {
    let mut world = World::serving(json!({"gate": {"soakSeconds": 1}, "revisionHistoryLimit": 1}));
    for checkpoint in ['b', 'c', 'd'] {
        world.want(checkpoint);
        world.rest();
    }
    assert_eq!(world.records.keys().collect::<Vec<_>>(), world.revisions.keys().collect::<Vec<_>>());
    let numbers: Vec<i64> = world.records.values().map(|record| record.number).collect();
    assert_eq!((numbers.iter().min(), numbers.iter().max()), (Some(&3), Some(&4)));
}
