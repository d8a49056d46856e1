//! What a rollout waits for, and what it says meanwhile.

use anneal_api::resources::{
    DeploymentPhase::{Degraded, Failed, Loading, Pending, SmokeTesting, Stable},
    Rejection,
};
use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::{brief, simulation::World};
use crate::{
    controller::Wake,
    model_deployment::{observe::ClaimUse, plan::Step, pods::Trouble},
    training_run::fixtures::result,
};

#[test]
fn what_may_pass_by_itself_is_awaited_until_the_deadline() {
    let mut world = World::serving(json!({"progressDeadlineSeconds": 60}));
    world.want('b');
    world.until(Loading);
    world.turn();
    let stuck = |world: &mut World| {
        for pod in &mut world.revision_mut('b').pods {
            let trouble = Trouble { reason: "ImagePull", message: "no such image".to_owned(), fatal: false };
            (pod.ready, pod.trouble) = (false, Some(trouble));
        }
    };
    stuck(&mut world);
    world.reconcile(usize::MAX);
    assert_eq!(world.phase(), Loading);
    assert!(world.events.contains(&"ImagePull"));
    world.now += SignedDuration::from_secs(60);
    world.reconcile(usize::MAX);
    assert_eq!(world.rejection('b').as_deref(), Some("ImagePull"));
}

#[test]
fn a_missing_claim_is_named_and_awaited() {
    let mut world = World::new(brief());
    world.missing_claim = Some("models".to_owned());
    world.rest();
    assert_eq!(world.phase(), Pending);
    assert!(world.revisions.is_empty());
    assert_eq!(world.events, ["ClaimNotFound"]);
    world.missing_claim = None;
    world.until(Stable);
}

#[test]
fn a_claim_that_one_pod_may_use_is_refused_before_a_pod_waits_for_it() {
    let mut world = World::serving(brief());
    world.claim_use = ClaimUse::OnePod;
    world.want('b');
    world.rest();
    assert_eq!((world.phase(), world.live()), (Pending, Some('a')));
    assert_eq!(world.events, ["ClaimForOnePod"]);
}

#[test]
fn a_pod_on_another_node_than_those_that_use_its_volume_says_what_to_do() {
    let mut world = World::serving(json!({"progressDeadlineSeconds": 60}));
    world.claim_use = ClaimUse::OneNode;
    world.want('b');
    world.until(Loading);
    world.turn();
    for pod in &mut world.revision_mut('b').pods {
        (pod.ready, pod.node) = (false, Some("node-2".to_owned()));
    }
    world.reconcile(usize::MAX);
    assert!(world.events.contains(&"VolumeOnAnotherNode"), "{:?}", world.events);
    world.now += SignedDuration::from_secs(60);
    world.reconcile(usize::MAX);
    assert_eq!(world.rejection('b').as_deref(), Some("VolumeOnAnotherNode"));
}

#[test]
fn pods_that_a_quota_refuses_say_so() {
    let mut world = World::serving(brief());
    world.want('b');
    world.until(Loading);
    world.revision_mut('b').refused = Some("pods is forbidden: exceeded quota: small".to_owned());
    world.reconcile(usize::MAX);
    assert!(world.events.contains(&"QuotaExceeded"), "{:?}", world.events);
}

#[test]
fn an_autoscaler_without_metrics_is_told_of_once() {
    let mut world = World::serving(json!({"gate": {"soakSeconds": 1}}));
    let condition = json!({"type": "ScalingActive", "status": "False", "reason": "FailedGetResourceMetric",
        "message": "the server could not find the requested resource (get pods.metrics.k8s.io)"});
    let status = json!({"desiredReplicas": 2, "conditions": [condition]});
    let autoscaler = world.autoscaler.as_mut().expect("an autoscaler");
    autoscaler.status = serde_json::from_value(status).expect("a status");
    world.rest();
    assert_eq!(world.events, ["MetricsNotServed"]);
    let found =
        world.status().conditions.into_iter().find(|it| it.type_ == "AutoscalingImpaired").expect("a condition");
    assert!(found.status == "True" && found.message.contains("install metrics-server"), "{}", found.message);
}

#[test]
fn a_preview_of_somebody_else_is_told_of_and_left_alone_and_holds_up_no_rollout() {
    let mut world = World::new(brief());
    world.has_foreign_preview = true;
    world.until(Stable);
    let impaired = |world: &World| {
        world.status().conditions.into_iter().find(|it| it.type_ == "PreviewImpaired").map(|it| it.message)
    };
    assert!(impaired(&world).is_some_and(|message| message.contains("cats-preview") && message.contains("rename it")));
    assert_eq!(world.events.iter().filter(|reason| **reason == "NameTaken").count(), 1, "once");
    assert!(world.preview.is_none() && matches!(world.plan().0.wake, Wake::At(_)), "nothing tells of it when it goes");
    world.has_foreign_preview = false;
    world.rest();
    assert!(world.preview.is_some() && impaired(&world).is_none());
}

#[test]
fn a_missing_picture_is_named_and_awaited() {
    let mut world = World::new(json!({"progressDeadlineSeconds": 100}));
    world.missing_images = vec!["smoke/cat.jpg".to_owned()];
    world.until(SmokeTesting);
    world.reconcile(usize::MAX);
    assert!(world.tests.is_empty());
    assert!(world.events.contains(&"SmokeImageNotFound"));
    world.missing_images.clear();
    world.until(Stable);
}

#[test]
fn a_smoke_test_that_finds_no_node_says_so() {
    let mut world = World::new(brief());
    world.until(SmokeTesting);
    let message = "no node takes the pod".to_owned();
    world.tests[0].trouble = Some(Trouble { reason: "Unschedulable", message, fatal: false });
    world.reconcile(usize::MAX);
    assert!(world.events.contains(&"Unschedulable"));
    assert_eq!(world.phase(), SmokeTesting);
}

fn of_run(world: &mut World, phase: &str, accuracy: f64) {
    let run = json!({
        "metadata": {"name": "run", "namespace": "demo"},
        "spec": {"dataset": {"uri": "synthetic://"}, "output": {"claimName": "models"}},
        "status": {"phase": phase, "result": (phase == "Succeeded").then(|| result("a", accuracy))},
    });
    world.run = Some(serde_json::from_value(run).expect("a run"));
}

fn of_a_run(gate: &Value) -> World {
    let mut world = World::new(json!({"gate": gate}));
    world.edit(json!({"model": {"claimName": null, "path": null, "sha256": null, "trainingRunRef": {"name": "run"}}}));
    world
}

#[test]
fn a_rollout_starts_when_its_run_has_succeeded() {
    let mut world = of_a_run(&json!({}));
    world.rest();
    of_run(&mut world, "Running", 0.0);
    world.rest();
    assert_eq!(world.phase(), Pending);
    of_run(&mut world, "Failed", 0.0);
    world.rest();
    of_run(&mut world, "Succeeded", 0.9);
    world.until(Stable);
    assert_eq!(world.events[..3], ["TrainingRunNotFound", "TrainingRunNotReady", "TrainingRunFailed"]);
    let entry = world.status().revisions.pop().expect("an entry");
    assert_eq!(entry.metrics.map(|metrics| metrics.accuracy), Some(0.9));
}

#[test]
fn a_run_below_the_least_accuracy_gets_no_pods_at_all() {
    let mut world = of_a_run(&json!({"minAccuracy": 0.95}));
    of_run(&mut world, "Succeeded", 0.9);
    world.rest();
    assert_eq!(world.phase(), Failed);
    assert!(world.revisions.is_empty());
    assert_eq!(world.events, ["BelowMinAccuracy"]);
    world.edit(json!({"gate": {"minAccuracy": 0.85}}));
    world.until(Stable);
}

#[test]
fn a_run_that_is_much_worse_than_what_serves_gets_no_pods() {
    let mut world = of_a_run(&json!({"maxAccuracyDrop": 0.02, "soakSeconds": 1}));
    of_run(&mut world, "Succeeded", 0.9);
    world.until(Stable);
    let worse = |world: &mut World, digit: &str, accuracy: f64| {
        of_run(world, "Succeeded", accuracy);
        let result = world.run.as_mut().and_then(|run| run.status.as_mut()?.result.as_mut()).expect("a result");
        result.sha256 = digit.repeat(64).parse().expect("a digest");
    };
    worse(&mut world, "b", 0.87);
    world.rest();
    assert_eq!((world.live(), world.rejection('b').as_deref()), (Some('a'), Some("BelowMinAccuracy")));
    worse(&mut world, "d", 0.885);
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('d'), Stable));
}

#[test]
fn what_serves_outlives_its_run() {
    let mut world = of_a_run(&json!({"minAccuracy": 0.5}));
    of_run(&mut world, "Succeeded", 0.9);
    world.until(Stable);
    world.run = None;
    world.rest();
    assert_eq!((world.live(), world.phase()), (Some('a'), Stable));
}

#[test]
fn a_deadline_counts_from_the_start_of_the_rollout_whoever_is_restarted() {
    let mut world = World::serving(json!({"progressDeadlineSeconds": 60}));
    world.want('b');
    world.until(Loading);
    let start = world.status().revisions.last().expect("an entry").start_time.clone();
    world.now += SignedDuration::from_secs(30);
    world.reconcile(usize::MAX);
    assert_eq!(world.status().revisions.last().expect("an entry").start_time, start);
    world.now += SignedDuration::from_secs(30);
    world.reconcile(usize::MAX);
    assert_eq!(world.rejection('b').as_deref(), Some("ProgressDeadlineExceeded"));
}

#[test]
fn a_spec_that_cannot_be_used_touches_nothing() {
    let mut world = World::serving(brief());
    world.edit(json!({"replicas": 1, "autoscaling": {}}));
    world.rest();
    assert_eq!(world.live(), Some('a'));
    assert_eq!(world.events, ["InvalidSpec"]);
    world.edit(json!({"replicas": null, "autoscaling": null}));
    world.rest();
    assert_eq!(world.phase(), Stable);
}

#[test]
fn conditions_say_what_kstatus_reads() {
    let value = |world: &World, kind: &str| {
        let conditions = world.status().conditions;
        conditions.iter().find(|condition| condition.type_ == kind).map(|it| it.status == "True").expect("a condition")
    };
    let mut world = World::serving(brief());
    let all =
        |world: &World| ["Ready", "Progressing", "Available", "Degraded", "Stalled"].map(|kind| value(world, kind));
    assert_eq!(all(&world), [true, false, true, false, false]);
    world.wrong.insert('b');
    world.want('b');
    world.until(SmokeTesting);
    assert_eq!(all(&world), [false, true, true, false, false]);
    world.until(Degraded);
    assert_eq!(all(&world), [false, false, true, true, true]);
}

#[test]
fn a_rejection_keeps_its_time() {
    let mut world = World::serving(brief());
    world.broken.insert('b');
    world.want('b');
    world.until(Degraded);
    let rejection = |world: &World| -> Rejection {
        world.status().revisions.last().and_then(|entry| entry.rejection.clone()).expect("a rejection")
    };
    let before = rejection(&world);
    world.rest();
    assert_eq!(rejection(&world), before);
    assert!(before.time < Time(world.now));
    assert_eq!(world.plan().0.step, Step::Rejected);
}
