//! The objects that a run is made of. Pure and infallible: everything was validated before.

use std::collections::BTreeMap;

use anneal_api::{
    Sha256,
    config::{CheckpointInterval, InitFrom, OutputDirs, TrainerConfig},
    dataset::{Dataset, DatasetUri},
    names::{PROGRESS_PORT, env as variable, label, path},
    resources::{PodTemplate, TrainingRun},
    tracking::Tracking,
};
use k8s_openapi::api::{
    batch::v1::{Job, JobSpec},
    core::v1::{
        ContainerPort, DownwardAPIVolumeFile, DownwardAPIVolumeSource, EnvFromSource, ObjectFieldSelector,
        PersistentVolumeClaimVolumeSource, SecretEnvSource, Volume, VolumeMount,
    },
};
use sha2::Digest;

use super::{nodes, validate::ValidRun};
use crate::{
    children::{DefaultResources, PodPlan, env, labels, metadata, pod},
    context::Settings,
};

/// Enough to train the improved network at 224 pixels; a user who wants more says so.
const RESOURCES: DefaultResources = DefaultResources { requests: ("500m", "1Gi"), limits: ("4", "4Gi") };
/// Seconds between SIGTERM and SIGKILL: time to write a checkpoint.
const GRACE_SECONDS: i64 = 60;

/// Annotation of a Job: which `podTemplate` its pods are made from.
pub const TEMPLATE_DIGEST: &str = "anneal.dev/pod-template-digest";
/// Annotation of a training pod: the trainer's configuration, which the pod has as a file.
pub const CONFIG: &str = "anneal.dev/config";
/// What the labels begin with by which Kueue queues a Job, sets its priority and limits its time.
const QUEUE_LABELS: &str = "kueue.x-k8s.io/";

/// The digest of what the user says about the pods. What the operator adds is not in it, so that a new version of the
/// operator starts no pod again.
pub fn template_digest(template: &PodTemplate) -> String {
    let text = serde_json::to_string(template).unwrap_or_default();
    digest(text.as_bytes()).short(16).to_owned()
}

/// SHA-256 of the configuration file.
pub fn config_digest(config: &str) -> Sha256 {
    digest(config.as_bytes())
}

fn digest(bytes: &[u8]) -> Sha256 {
    Sha256::from_bytes(sha2::Sha256::digest(bytes).into())
}

/// The labels of the run that a queue reads from the Job.
fn queue_labels(owner: &TrainingRun) -> impl Iterator<Item = (String, String)> {
    let labels = owner.metadata.labels.clone().unwrap_or_default();
    labels.into_iter().filter(|(key, _)| key.starts_with(QUEUE_LABELS))
}

fn run_labels(run: &ValidRun) -> BTreeMap<String, String> {
    labels("trainer", label::RUN, &run.name)
}

/// The trainer's configuration as the pod reads it: the same file that works on a laptop.
pub fn trainer_config(run: &ValidRun) -> TrainerConfig {
    let uri = match &run.dataset {
        DatasetUri::Pvc { path, .. } if path.is_empty() => format!("file://{}", path::DATASET),
        DatasetUri::Pvc { path, .. } => format!("file://{}/{path}", path::DATASET),
        other => other.to_string(),
    };
    TrainerConfig {
        name: run.name.clone(),
        model: run.spec.model,
        dataset: Dataset { uri, digest: run.spec.dataset.digest.clone(), credentials_secret_ref: None },
        hyperparameters: run.spec.hyperparameters.clone(),
        tracking: run.spec.tracking.clone().map(without_secrets),
        output: OutputDirs { dir: output_dir(run), models_dir: models_dir() },
        checkpoints: CheckpointInterval::default(),
        init_from: init_from(run),
    }
}

/// The trainer gets the keys of Secrets as variables; their names are none of its business.
fn without_secrets(mut tracking: Tracking) -> Tracking {
    if let Some(mlflow) = &mut tracking.mlflow {
        mlflow.credentials_secret_ref = None;
    }
    tracking
}

fn init_from(run: &ValidRun) -> Option<InitFrom> {
    let found = run.init.as_ref()?;
    let root = if run.init_claim().is_some() { path::INIT } else { path::OUTPUT };
    Some(InitFrom {
        checkpoint: format!("{root}/{}", found.path),
        sha256: Some(found.sha256.clone()),
        freeze: run.spec.init_from.iter().flat_map(|init| init.freeze.clone()).collect(),
    })
}

fn output_dir(run: &ValidRun) -> String {
    format!("{}/{}", path::OUTPUT, run.directory())
}

fn models_dir() -> String {
    format!("{}/{}", path::OUTPUT, path::PUBLISHED)
}

/// The trainer's configuration file.
///
/// # Errors
/// When the configuration cannot be written as YAML; it is made of plain values, so this does not happen.
pub fn config(run: &ValidRun) -> Result<String, serde_yaml::Error> {
    serde_yaml::to_string(&trainer_config(run))
}

/// The pod's own annotation with the configuration, as the file that the trainer reads. A `ConfigMap` would be one more
/// object to create, keep and collect for each run.
fn config_volume() -> (Volume, VolumeMount) {
    let file = DownwardAPIVolumeFile {
        path: "run.yaml".to_owned(),
        field_ref: Some(ObjectFieldSelector {
            field_path: format!("metadata.annotations['{CONFIG}']"),
            ..ObjectFieldSelector::default()
        }),
        ..DownwardAPIVolumeFile::default()
    };
    (
        Volume {
            name: "config".to_owned(),
            downward_api: Some(DownwardAPIVolumeSource { items: Some(vec![file]), default_mode: None }),
            ..Volume::default()
        },
        VolumeMount {
            name: "config".to_owned(),
            mount_path: path::CONFIG_DIR.to_owned(),
            read_only: Some(true),
            ..VolumeMount::default()
        },
    )
}

/// The Job of one attempt, whose trainer finds `config` as its file. It never retries by itself: each attempt is a Job of its
/// own, so that none is lost.
pub fn job(owner: &TrainingRun, run: &ValidRun, attempt: i32, config: String, settings: &Settings) -> Job {
    let mut own = run_labels(run);
    own.insert(label::ATTEMPT.to_owned(), attempt.to_string());
    own.insert(label::RUN_UID.to_owned(), owner.metadata.uid.clone().unwrap_or_default());
    let resume = if attempt > 1 { format!("{}/checkpoints", output_dir(run)) } else { String::new() };
    let mut volumes = vec![claim_volume("output", &owner.output_claim(), path::OUTPUT, false), config_volume()];
    if let Some(claim) = run.dataset_claim() {
        volumes.push(claim_volume("dataset", claim, path::DATASET, true));
    }
    if let Some(claim) = run.init_claim() {
        volumes.push(claim_volume("init", claim, path::INIT, true));
    }
    let mut env = vec![
        env(variable::RUN, &run.name),
        env(variable::ATTEMPT, attempt.to_string()),
        env(variable::OUTPUT_DIR, output_dir(run)),
        env(variable::MODELS_DIR, models_dir()),
        env(variable::RESUME_FROM, resume),
        env(variable::IMAGE, run.spec.pod_template.image.as_ref().unwrap_or(&settings.trainer_image)),
    ];
    env.extend(nodes::variables(run, attempt));
    // Anneal's own trainer is told where its configuration is; another image starts as whoever built it decided.
    let args = if run.spec.pod_template.image.is_none() { trainer_args() } else { Vec::new() };
    let mut template = pod(
        PodPlan {
            container: "trainer",
            image: settings.trainer_image.clone(),
            image_pull_policy: settings.image_pull_policy.clone(),
            args,
            env,
            resources: RESOURCES,
            labels: own.clone(),
            volumes,
            grace_seconds: GRACE_SECONDS,
        },
        &run.spec.pod_template,
    );
    template.metadata.get_or_insert_default().annotations.get_or_insert_default().insert(CONFIG.to_owned(), config);
    if let Some(spec) = template.spec.as_mut() {
        spec.restart_policy = Some("Never".to_owned());
        for container in &mut spec.containers {
            container.env_from.get_or_insert_default().extend(credentials(run));
            container.ports = Some(vec![ContainerPort {
                name: Some("metrics".to_owned()),
                container_port: i32::from(PROGRESS_PORT),
                ..ContainerPort::default()
            }]);
        }
    }
    let mut metadata = metadata(owner, run.job_name(attempt), own);
    metadata.annotations =
        Some(BTreeMap::from([(TEMPLATE_DIGEST.to_owned(), template_digest(&run.spec.pod_template))]));
    if let Some(labels) = &mut metadata.labels {
        labels.extend(queue_labels(owner));
    }
    let mut job = Job {
        metadata,
        spec: Some(JobSpec {
            backoff_limit: Some(0),
            completions: Some(1),
            parallelism: Some(1),
            // A pod that is still terminating may still write: its successor waits.
            pod_replacement_policy: Some("Failed".to_owned()),
            template,
            ..JobSpec::default()
        }),
        status: None,
    };
    nodes::spread(&mut job, run);
    job
}

fn trainer_args() -> Vec<String> {
    let address = format!("0.0.0.0:{PROGRESS_PORT}");
    ["train", "--config", path::RUN_CONFIG, "--progress-address", &address].map(str::to_owned).to_vec()
}

/// The Secrets whose keys become the trainer's environment. The pod waits where one does not exist yet.
fn credentials(run: &ValidRun) -> impl Iterator<Item = EnvFromSource> {
    let mlflow = run.spec.tracking.as_ref().and_then(|tracking| tracking.mlflow.as_ref());
    let references = [
        run.spec.dataset.credentials_secret_ref.as_ref(),
        mlflow.and_then(|mlflow| mlflow.credentials_secret_ref.as_ref()),
    ];
    references.into_iter().flatten().map(|reference| EnvFromSource {
        secret_ref: Some(SecretEnvSource { name: reference.name.clone(), optional: Some(false) }),
        ..EnvFromSource::default()
    })
}

fn claim_volume(name: &str, claim: &str, mount_path: &str, read_only: bool) -> (Volume, VolumeMount) {
    (
        Volume {
            name: name.to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.to_owned(),
                read_only: None,
            }),
            ..Volume::default()
        },
        VolumeMount {
            name: name.to_owned(),
            mount_path: mount_path.to_owned(),
            read_only: Some(read_only),
            ..VolumeMount::default()
        },
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::training_run::{fixtures::run, validate::validate};

    /// The container of the run's first attempt.
    fn container(run: &TrainingRun) -> Value {
        template(run)["spec"]["containers"][0].take()
    }

    /// The pod template of the run's first attempt.
    fn template(run: &TrainingRun) -> Value {
        let valid = validate(run).expect("valid");
        let job = job(run, &valid, 1, config(&valid).expect("YAML"), &Settings::of_tests());
        serde_json::to_value(job).expect("JSON")["spec"]["template"].take()
    }

    fn tracked() -> Value {
        json!({
            "dataset": {
                "uri": "s3://photos/set", "digest": format!("sha256:{:064}", 0),
                "credentialsSecretRef": {"name": "bucket"}
            },
            "tracking": {"mlflow": {
                "uri": "http://mlflow:5000", "registeredModel": "pets", "credentialsSecretRef": {"name": "mlflow"}
            }}
        })
    }

    #[test]
    fn the_trainer_gets_every_key_of_the_secrets_that_the_run_names() {
        let mut spec = tracked();
        spec["podTemplate"] = json!({"envFrom": [{"configMapRef": {"name": "settings"}}]});
        let secret = |name: &str| json!({"secretRef": {"name": name, "optional": false}});
        assert_eq!(
            container(&run(&spec))["envFrom"],
            json!([{"configMapRef": {"name": "settings"}}, secret("bucket"), secret("mlflow")])
        );
        let none = container(&run(&json!({})));
        assert!(none["envFrom"].as_array().is_none_or(Vec::is_empty), "{none}");
    }

    #[test]
    fn the_configuration_says_what_to_fetch_and_where_to_record_but_names_no_secret() {
        let template = template(&run(&tracked()));
        let text = template["metadata"]["annotations"][CONFIG].as_str().expect("a configuration");
        let written: TrainerConfig = serde_yaml::from_str(text).expect("a configuration");
        assert_eq!(written.dataset.uri, "s3://photos/set");
        assert_eq!(written.dataset.digest, Some(format!("sha256:{:064}", 0)));
        let mlflow = written.tracking.and_then(|tracking| tracking.mlflow).expect("a server");
        assert_eq!((mlflow.uri.as_str(), mlflow.experiment.as_str()), ("http://mlflow:5000", "anneal"));
        assert_eq!(mlflow.registered_model.as_deref(), Some("pets"));
        assert!(!text.contains("bucket") && !text.contains("credentialsSecretRef"), "{text}");
    }

    /// Each claim of a pod with the folders at which it is mounted, `ro` behind those that are read-only.
    fn claims(template: &Value) -> Vec<(String, Vec<String>)> {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let mounts = list(&template["spec"]["containers"][0]["volumeMounts"]);
        let at = |volume: &Value| {
            let own = mounts.iter().filter(|mount| mount["name"] == volume["name"]);
            let told = own.map(|mount| {
                let path = mount["mountPath"].as_str().expect("a path");
                if mount["readOnly"] == true { format!("{path} ro") } else { path.to_owned() }
            });
            told.collect()
        };
        let volumes = list(&template["spec"]["volumes"]);
        let claimed = volumes.iter().filter_map(|volume| Some((volume, volume["persistentVolumeClaim"].as_object()?)));
        claimed.map(|(volume, source)| (source["claimName"].as_str().expect("a name").to_owned(), at(volume))).collect()
    }

    #[test]
    fn a_claim_with_the_photos_and_the_output_is_one_volume_that_is_read_at_one_place_and_written_to_at_another() {
        let told =
            |name: &str, at: &[&str]| (name.to_owned(), at.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>());
        let mut spec = json!({"dataset": {"uri": "pvc://models/photos"}});
        let same = template(&run(&spec));
        assert_eq!(claims(&same), [told("models", &["/output", "/dataset ro"])]);
        let text = same["metadata"]["annotations"][CONFIG].as_str().expect("a configuration");
        assert!(text.contains("file:///dataset/photos"), "{text}");

        spec["dataset"] = json!({"uri": "pvc://photos/set"});
        let mut begins = run(&spec);
        let init = json!({"initFrom": {"claimName": "photos", "path": "a.pth", "sha256": "ab".repeat(32)}});
        begins.status = serde_json::from_value(init).expect("a status");
        let expected = [told("models", &["/output"]), told("photos", &["/dataset ro", "/init ro"])];
        assert_eq!(claims(&template(&begins)), expected);

        spec["podTemplate"] = json!({
            "volumes": [{"name": "mine", "persistentVolumeClaim": {"claimName": "models"}}],
            "volumeMounts": [{"name": "mine", "mountPath": "/mine", "subPath": "cache"}]
        });
        let expected = [told("models", &["/output", "/mine"]), told("photos", &["/dataset ro"])];
        assert_eq!(claims(&template(&run(&spec))), expected);
    }

    #[test]
    fn the_trainer_knows_its_image_for_its_records() {
        let image = |run: &TrainingRun| {
            let container = container(run);
            let env = container["env"].as_array().expect("variables").clone();
            let told = env.iter().find(|variable| variable["name"] == variable::IMAGE).expect("the variable");
            assert_eq!(told["value"], container["image"]);
            container["image"].as_str().expect("an image").to_owned()
        };
        assert_eq!(image(&run(&json!({}))), "trainer:1");
        assert_eq!(image(&run(&json!({"podTemplate": {"image": "mine:2"}}))), "mine:2");
    }
}
