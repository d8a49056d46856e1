//! A run that begins with what another one published.

use anneal_api::{config::TrainerConfig, resources::RunPhase};
use serde_json::{Value, json};

use super::world::{World, checkpoint};
use crate::{
    context::Settings,
    training_run::{claim::Claim, init::Init, objects::CONFIG, validate::validate},
};

fn run(init: Init) -> World {
    let mut world = World::new(json!({"initFrom": {"trainingRunRef": {"name": "base"}, "freeze": ["conv1"]}}));
    world.init = init;
    world
}

fn waiting() -> Init {
    Init::Waiting("InitRunNotReady", "TrainingRun base is Running".into())
}

/// The configuration that the newest plan writes, and where its pod mounts which claim.
fn started(world: &World) -> (TrainerConfig, Vec<(String, String)>) {
    let start = world.plan().create.expect("an attempt starts");
    let template = start.job.spec.expect("a spec").template;
    let text = template.metadata.and_then(|metadata| metadata.annotations?.remove(CONFIG)).expect("a configuration");
    let pod = serde_json::to_value(template.spec).expect("json");
    let (volumes, mounts) = (pod["volumes"].as_array(), pod["containers"][0]["volumeMounts"].as_array());
    let claim = |mount: &&Value| {
        let volume = volumes?.iter().find(|volume| volume["name"] == mount["name"])?;
        let claim = volume["persistentVolumeClaim"]["claimName"].as_str()?;
        Some((mount["mountPath"].as_str()?.to_owned(), claim.to_owned()))
    };
    let claims = mounts.into_iter().flatten().filter_map(|mount| claim(&mount)).collect();
    (serde_yaml::from_str(&text).expect("a configuration"), claims)
}

#[test]
fn it_waits_for_the_other_run_and_no_deadline_counts_meanwhile() {
    let mut world = run(waiting());
    world.run.spec.start_deadline_seconds = 60;
    world.run.spec.active_deadline_seconds = Some(60);
    world.settle().wait(10_000).settle();
    assert_eq!(
        (world.made.len(), world.phase(), world.reason().0.as_str()),
        (0, Some(RunPhase::Pending), "InitRunNotReady")
    );
    world.init = Init::Found(checkpoint());
    world.settle();
    assert_eq!(world.made, [1]);
}

#[test]
fn its_checkpoint_is_written_down_before_anything_starts_and_stays_the_same() {
    let mut world = run(Init::Found(checkpoint()));
    assert!(world.pass().create.is_none(), "something started before the status said with what");
    assert_eq!(world.status().init_from, Some(checkpoint()));
    // The other run was trained anew, or is gone.
    world.init = waiting();
    let (config, claims) = started(&world);
    let init = config.init_from.expect("something to begin with");
    assert_eq!((init.checkpoint.as_str(), init.sha256), ("/init/models/x.pth", Some(checkpoint().sha256)));
    assert_eq!(init.freeze, ["conv1"]);
    assert!(claims.contains(&("/init".into(), "others".into())), "{claims:?}");
}

#[test]
fn a_checkpoint_on_the_output_claim_is_read_from_there() {
    let mut world = run(Init::Found(checkpoint()));
    world.run.spec.output.claim_name = Some(checkpoint().claim_name);
    world.pass();
    let (config, claims) = started(&world);
    assert_eq!(config.init_from.expect("something to begin with").checkpoint, "/output/models/x.pth");
    assert_eq!(claims, [("/output".to_owned(), "others".to_owned())]);
}

#[test]
fn a_claim_that_went_away_is_named_and_fails_at_the_start_deadline() {
    let mut world = run(Init::Found(checkpoint()));
    world.run.spec.start_deadline_seconds = 60;
    world.pass();
    let mut seen = world.seen();
    seen.init = Init::Pinned(Some(Claim::Missing("others".into())));
    let plan = super::super::plan(&seen, validate(&seen.run).as_ref(), &Settings::of_tests(), world.now);
    assert!(plan.create.is_none());
    let ready = plan.status.conditions.iter().find(|it| it.type_ == "Ready").expect("Ready");
    assert_eq!(ready.reason, "ClaimNotFound");
    assert!(ready.message.contains("the initFrom claim others does not exist"), "{}", ready.message);
}
