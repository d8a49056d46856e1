//! The Job that asks pods the gate's questions, and the `ConfigMap` that tells it what to ask.

use std::collections::BTreeMap;

use anneal_api::{
    names::{SERVER_PORT, label, path},
    resources::{ModelDeployment, PodTemplate},
    smoke::{SmokeCase, SmokeConfig},
};
use k8s_openapi::api::{
    batch::v1::{Job, JobSpec},
    core::v1::{
        Affinity, ConfigMap, ConfigMapProjection, KeyToPath, ProjectedVolumeSource, Volume, VolumeMount,
        VolumeProjection,
    },
};

use super::{
    objects::{annotation, revision_name},
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
}

/// Name of a smoke test's Job and `ConfigMap`.
pub fn test_name(deployment: &str, revision: &RevisionName, number: u32) -> String {
    format!("{}-smoke-{number}", revision_name(deployment, revision))
}

/// What to ask, as the client reads it.
pub fn config(owner: &ModelDeployment, spec: &ValidDeployment, test: &SmokeTest) -> ConfigMap {
    let config = SmokeConfig {
        revision: test.revision.to_string(),
        targets: test.pods.iter().filter_map(|pod| pod.address.as_deref()).map(target).collect(),
        cases: spec
            .gate
            .smoke
            .cases
            .iter()
            .enumerate()
            .map(|(i, case)| SmokeCase {
                name: case.name.clone(),
                image: format!("{}/{}", path::CONFIG_DIR, image_path(i)),
                expected_class: case.expected_class.clone(),
                min_probability: case.min_probability,
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
        binary_data: Some(inline_images(spec)).filter(|images| !images.is_empty()),
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

fn image_path(case: usize) -> String {
    format!("cases/{case}")
}

fn image_key(case: usize) -> String {
    format!("case-{case}")
}

/// The images that the spec itself holds, by their keys.
fn inline_images(spec: &ValidDeployment) -> BTreeMap<String, k8s_openapi::ByteString> {
    let cases = spec.gate.smoke.cases.iter().enumerate();
    cases.filter_map(|(i, case)| Some((image_key(i), decoded(case.image.inline.as_ref()?)?))).collect()
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

/// The configuration and the images, as files.
fn sources(spec: &ValidDeployment, config: &str) -> Vec<VolumeProjection> {
    let file = |map: &str, key: &str, path: String| VolumeProjection {
        config_map: Some(ConfigMapProjection {
            name: map.to_owned(),
            items: Some(vec![KeyToPath { key: key.to_owned(), path, mode: None }]),
            optional: None,
        }),
        ..VolumeProjection::default()
    };
    let images = spec.gate.smoke.cases.iter().enumerate().map(|(i, case)| match &case.image.config_map_key_ref {
        Some(source) => file(&source.name, &source.key, image_path(i)),
        None => file(config, &image_key(i), image_path(i)),
    });
    std::iter::once(file(config, FILE, FILE.to_owned())).chain(images).collect()
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
            "gate": {"smokeTest": {"cases": [case, {"name": "dog", "image": {"inline": "aGk="}}]}}
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
        };
        let map = config(&owner, &spec, &test);
        assert_eq!(map.name_any(), "cats-0123abcd-smoke-2");
        assert_eq!(map.binary_data.as_ref().expect("an inline image")["case-1"].0, b"hi");
        let config: SmokeConfig = serde_json::from_str(&map.data.expect("data")[FILE]).expect("a configuration");
        assert_eq!(config.targets, ["http://10.0.0.7:8000", "http://[fd00::7]:8000"]);
        assert_eq!(config.cases[0].image, "/etc/anneal/cases/0");

        let job = job(&owner, &spec, &test, &Settings::of_tests());
        assert_eq!(job.annotations()[annotation::PODS], "10.0.0.7,fd00::7");
        let template = job.spec.expect("a spec").template;
        assert!(!template.metadata.and_then(|metadata| metadata.labels).expect("labels").contains_key(label::REVISION));
        let volumes = template.spec.expect("a pod").volumes.expect("volumes");
        assert_eq!(volumes[0].projected.as_ref().and_then(|all| all.sources.as_ref()).expect("sources").len(), 3);
    }
}
