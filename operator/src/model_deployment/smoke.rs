//! The Job that asks pods the gate's questions, and the `ConfigMap` that tells it what to ask.

use std::collections::BTreeMap;

use anneal_api::{
    names::{SERVER_PORT, label, path},
    resources::{ConfigMapKey, ModelDeployment, PodTemplate, SmokeTestCase},
    smoke::{Probability, SmokeCase, SmokeConfig},
};
use k8s_openapi::api::{
    batch::v1::{Job, JobSpec},
    core::v1::{
        Affinity, ConfigMap, ConfigMapProjection, KeyToPath, PersistentVolumeClaimVolumeSource, PodAffinity,
        PodAffinityTerm, ProjectedVolumeSource, Volume, VolumeMount, VolumeProjection,
    },
};

use super::{
    objects::{annotation, chosen_by, revision_name, selector},
    pods::PodSeen,
    revision::RevisionName,
    validate::{ValidDeployment, decoded},
};
use crate::{
    children::{self, DefaultResources, PodPlan},
    context::Settings,
};

/// Name of the configuration's file and of its key.
const FILE: &str = "smoke.json";
/// Time for pulling the image and starting the pod, beyond the test's own.
const START_SECONDS: i64 = 60;
/// The client reads a few pictures and waits for answers.
const RESOURCES: DefaultResources = DefaultResources { requests: ("50m", "64Mi"), limits: ("1", "512Mi") };

/// A smoke test to start.
#[derive(Clone, Debug, PartialEq)]
pub struct SmokeTest {
    /// The revision under test.
    pub revision: RevisionName,
    /// Its number, counted from 1.
    pub number: u32,
    /// Marks the rollout and the gate that it belongs to.
    pub key: String,
    /// The pods to ask.
    pub pods: Vec<PodSeen>,
    /// The claim that the model is on, if it is on one.
    pub claim: Option<String>,
}

/// Where what a case sends comes from.
enum Source<'a> {
    /// A key of a `ConfigMap`.
    Key(&'a ConfigMapKey),
    /// The spec itself.
    Inline,
    /// The claim that the model is on.
    Claim(&'a str),
}

impl<'a> Source<'a> {
    fn of(case: &'a SmokeTestCase) -> Self {
        let image = case.image.as_ref().map(|image| (&image.config_map_key_ref, &image.path));
        let tensors = || case.tensors.as_ref().map(|tensors| (&tensors.config_map_key_ref, &tensors.path));
        match image.or_else(tensors) {
            Some((Some(key), _)) => Self::Key(key),
            Some((None, Some(path))) => Self::Claim(path),
            _ => Self::Inline,
        }
    }

    /// Where the client finds the file.
    fn path(&self, case: usize) -> String {
        match self {
            Self::Claim(path) => format!("{}/{path}", path::MODELS),
            Self::Key(_) | Self::Inline => format!("{}/{}", path::CONFIG_DIR, file_path(case)),
        }
    }
}

/// Whether a case needs the claim that the model is on.
fn needs_claim(spec: &ValidDeployment) -> bool {
    spec.gate.smoke.cases.iter().any(|case| matches!(Source::of(case), Source::Claim(_)))
}

/// Name of a smoke test's Job and `ConfigMap`.
pub fn test_name(deployment: &str, revision: &RevisionName, number: u32) -> String {
    format!("{}-smoke-{number}", revision_name(deployment, revision))
}

/// What to ask, as the client reads it.
pub fn config(owner: &ModelDeployment, spec: &ValidDeployment, test: &SmokeTest) -> ConfigMap {
    let config = SmokeConfig {
        revision: test.revision.to_string(),
        model: spec.gate.smoke.cases.iter().any(|case| case.tensors.is_some()).then(|| spec.name.clone()),
        targets: test.pods.iter().filter_map(|pod| pod.address.as_deref()).map(target).collect(),
        cases: spec
            .gate
            .smoke
            .cases
            .iter()
            .enumerate()
            .map(|(i, case)| SmokeCase {
                name: case.name.clone(),
                image: case.image.as_ref().map(|_| Source::of(case).path(i)),
                tensors: case.tensors.as_ref().map(|_| Source::of(case).path(i)),
                expected_class: case.expected_class.clone(),
                min_probability: case.min_probability,
                probability: case.probability.map(|it| Probability { value: it.value, tolerance: it.tolerance }),
            })
            .collect(),
        max_p95_milliseconds: spec.gate.smoke.max_p95_milliseconds,
        timeout_seconds: spec.gate.smoke.timeout_seconds,
    };
    // A config is plain text and numbers, so that it can always be written.
    let json = serde_json::to_string_pretty(&config).unwrap_or_default();
    ConfigMap {
        metadata: children::metadata(owner, test_name(&spec.name, &test.revision, test.number), labels(spec, test)),
        data: Some(BTreeMap::from([(FILE.to_owned(), json)])),
        binary_data: Some(inline_files(spec)).filter(|files| !files.is_empty()),
        ..ConfigMap::default()
    }
}

fn target(address: &str) -> String {
    if address.contains(':') {
        format!("http://[{address}]:{SERVER_PORT}")
    } else {
        format!("http://{address}:{SERVER_PORT}")
    }
}

fn file_path(case: usize) -> String {
    format!("cases/{case}")
}

fn file_key(case: usize) -> String {
    format!("case-{case}")
}

/// The images and tensors that the spec itself holds, by their keys.
fn inline_files(spec: &ValidDeployment) -> BTreeMap<String, k8s_openapi::ByteString> {
    let image = |case: &SmokeTestCase| decoded(case.image.as_ref()?.inline.as_ref()?);
    let tensors = |case: &SmokeTestCase| Some(k8s_openapi::ByteString(case.tensors.as_ref()?.inline.clone()?.into()));
    let cases = spec.gate.smoke.cases.iter().enumerate();
    cases.filter_map(|(i, case)| Some((file_key(i), image(case).or_else(|| tensors(case))?))).collect()
}

fn labels(spec: &ValidDeployment, test: &SmokeTest) -> BTreeMap<String, String> {
    let mut labels = children::labels("smoke-test", label::DEPLOYMENT, &spec.name);
    labels.insert(label::REVISION.to_owned(), test.revision.to_string());
    labels
}

/// The Job that asks. It runs once: whether it is repeated is the planner's choice.
pub fn job(owner: &ModelDeployment, spec: &ValidDeployment, test: &SmokeTest, settings: &Settings) -> Job {
    let name = test_name(&spec.name, &test.revision, test.number);
    let uids: Vec<&str> = test.pods.iter().map(|pod| pod.uid.as_str()).collect();
    let mut metadata = children::metadata(owner, name.clone(), labels(spec, test));
    metadata.annotations = Some(BTreeMap::from([
        (annotation::ROLLOUT.to_owned(), test.key.clone()),
        (annotation::PODS.to_owned(), uids.join(",")),
    ]));
    // Where the servers may run, the client may run too; what they run is not its business.
    let placement = PodTemplate {
        node_selector: spec.pods.node_selector.clone(),
        tolerations: spec.pods.tolerations.clone(),
        affinity: spec
            .pods
            .affinity
            .as_ref()
            .map(|affinity| Affinity { node_affinity: affinity.node_affinity.clone(), ..Affinity::default() }),
        priority_class_name: spec.pods.priority_class_name.clone(),
        scheduler_name: spec.pods.scheduler_name.clone(),
        image_pull_secrets: spec.pods.image_pull_secrets.clone(),
        ..PodTemplate::default()
    };
    let mut template = children::pod(
        PodPlan {
            container: "smoke",
            image: settings.server_image.clone(),
            image_pull_policy: settings.image_pull_policy.clone(),
            args: ["smoke", "--config", path::SMOKE_CONFIG].map(str::to_owned).to_vec(),
            env: Vec::new(),
            resources: RESOURCES,
            // Without the revision's label: a Service must never choose this pod.
            labels: children::labels("smoke-test", label::DEPLOYMENT, &spec.name),
            volumes: vec![(
                Volume {
                    name: "questions".to_owned(),
                    projected: Some(ProjectedVolumeSource { default_mode: None, sources: Some(sources(spec, &name)) }),
                    ..Volume::default()
                },
                VolumeMount {
                    name: "questions".to_owned(),
                    mount_path: path::CONFIG_DIR.to_owned(),
                    read_only: Some(true),
                    ..VolumeMount::default()
                },
            )],
            grace_seconds: 1,
        },
        &placement,
    );
    if let Some(pod) = template.spec.as_mut() {
        pod.restart_policy = Some("Never".to_owned());
        if let Some(claim) = test.claim.as_ref().filter(|_| needs_claim(spec)) {
            let (claim_name, read_only) = (claim.clone(), Some(true));
            let source = Some(PersistentVolumeClaimVolumeSource { claim_name, read_only });
            let volume = Volume { name: "models".to_owned(), persistent_volume_claim: source, ..Volume::default() };
            pod.volumes.get_or_insert_default().push(volume);
            let mount = VolumeMount {
                name: "models".to_owned(),
                mount_path: path::MODELS.to_owned(),
                read_only: Some(true),
                ..VolumeMount::default()
            };
            for container in &mut pod.containers {
                container.volume_mounts.get_or_insert_default().push(mount.clone());
            }
            // A claim that one node uses at a time is on that of the pods which are asked.
            let beside = PodAffinityTerm {
                label_selector: Some(chosen_by(selector(&spec.name, test.revision.as_str()))),
                topology_key: "kubernetes.io/hostname".to_owned(),
                ..PodAffinityTerm::default()
            };
            pod.affinity.get_or_insert_default().pod_affinity = Some(PodAffinity {
                required_during_scheduling_ignored_during_execution: Some(vec![beside]),
                ..PodAffinity::default()
            });
        }
    }
    Job {
        metadata,
        spec: Some(JobSpec {
            backoff_limit: Some(0),
            active_deadline_seconds: Some(i64::from(spec.gate.smoke.timeout_seconds) + START_SECONDS),
            template,
            ..JobSpec::default()
        }),
        status: None,
    }
}

/// The configuration and what is sent, as files.
fn sources(spec: &ValidDeployment, config: &str) -> Vec<VolumeProjection> {
    let file = |map: &str, key: &str, path: String| VolumeProjection {
        config_map: Some(ConfigMapProjection {
            name: map.to_owned(),
            items: Some(vec![KeyToPath { key: key.to_owned(), path, mode: None }]),
            optional: None,
        }),
        ..VolumeProjection::default()
    };
    let files = spec.gate.smoke.cases.iter().enumerate().filter_map(|(i, case)| match Source::of(case) {
        Source::Key(source) => Some(file(&source.name, &source.key, file_path(i))),
        Source::Inline => Some(file(config, &file_key(i), file_path(i))),
        Source::Claim(_) => None,
    });
    std::iter::once(file(config, FILE, FILE.to_owned())).chain(files).collect()
}

#[cfg(test)]
mod tests {
    use kube::ResourceExt;

    use super::*;
    use crate::model_deployment::{tests::fixtures::deployment, validate::validate};

    #[test]
    fn a_smoke_test_asks_the_pods_themselves_and_no_service_ever_chooses_it() {
        let case =
            serde_json::json!({"name": "cat", "image": {"configMapKeyRef": {"name": "smoke", "key": "cat.jpg"}}});
        let owner = deployment(&serde_json::json!({
            "model": {"trainingRunRef": {"name": "run"}},
            "gate": {"smokeTest": {"cases": [
                case, {"name": "dog", "image": {"inline": "aGk="}}, {"name": "fish", "image": {"path": "smoke/fish.png"}},
                {"name": "grey", "tensors": {"inline": "{}"}, "probability": {"value": 0.75}}
            ]}}
        }));
        let spec = validate(&owner).expect("valid");
        let pod = |address: &str| PodSeen {
            name: "pod".to_owned(),
            crashed: None,
            node: None,
            uid: address.to_owned(),
            address: Some(address.to_owned()),
            ready: true,
            image_id: None,
            trouble: None,
        };
        let test = SmokeTest {
            revision: RevisionName::parse("0123abcd").expect("a name"),
            number: 2,
            key: "k".to_owned(),
            pods: vec![pod("10.0.0.7"), pod("fd00::7")],
            claim: Some("models".to_owned()),
        };
        let map = config(&owner, &spec, &test);
        assert_eq!(map.name_any(), "cats-0123abcd-smoke-2");
        let inline = map.binary_data.as_ref().expect("what the spec holds");
        assert_eq!((&inline["case-1"].0[..], &inline["case-3"].0[..]), (&b"hi"[..], &b"{}"[..]));
        let config: SmokeConfig = serde_json::from_str(&map.data.expect("data")[FILE]).expect("a configuration");
        assert_eq!(config.targets, ["http://10.0.0.7:8000", "http://[fd00::7]:8000"]);
        assert_eq!(config.cases[0].image.as_deref(), Some("/etc/anneal/cases/0"));
        assert_eq!(config.cases[2].image.as_deref(), Some("/models/smoke/fish.png"));
        assert_eq!(config.cases[3].tensors.as_deref(), Some("/etc/anneal/cases/3"));
        assert_eq!((config.cases[3].image.as_ref(), config.model.as_deref()), (None, Some("cats")));
        assert_eq!(config.cases[3].probability, Some(Probability { value: 0.75, tolerance: 0.01 }));

        let job = job(&owner, &spec, &test, &Settings::of_tests());
        assert_eq!(job.annotations()[annotation::PODS], "10.0.0.7,fd00::7");
        let template = job.spec.expect("a spec").template;
        assert!(!template.metadata.and_then(|metadata| metadata.labels).expect("labels").contains_key(label::REVISION));
        let pod = template.spec.expect("a pod");
        let volumes = pod.volumes.expect("volumes");
        assert_eq!(volumes[0].projected.as_ref().and_then(|all| all.sources.as_ref()).expect("sources").len(), 4);
        let claim = volumes.iter().find_map(|volume| volume.persistent_volume_claim.as_ref()).expect("a claim");
        assert_eq!((claim.claim_name.as_str(), claim.read_only), ("models", Some(true)));
        let beside = pod.affinity.and_then(|affinity| affinity.pod_affinity).expect("beside the pods that are asked");
        assert!(beside.required_during_scheduling_ignored_during_execution.is_some_and(|terms| terms.len() == 1));
    }
}
