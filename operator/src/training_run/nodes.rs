//! What makes several pods train together: an indexed Job, a headless Service under which the pods find each other, and
//! the variables that torchrun reads.

use std::collections::BTreeMap;

use anneal_api::{
    names::label,
    resources::{PodTemplate, TrainingRun},
};
use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Service, ServicePort, ServiceSpec},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::ResourceExt;

use super::validate::ValidRun;
use crate::children::{env, labels, metadata};

/// Where the first pod waits for the others; torchrun's own default.
pub const MASTER_PORT: u16 = 29500;
/// On each pod of an indexed Job.
pub const COMPLETION_INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// The Service under which the pods of a run find each other, where it has several.
pub fn service(owner: &TrainingRun, run: &ValidRun) -> Option<Service> {
    if run.spec.num_nodes == 1 {
        return None;
    }
    let chosen = [(label::RUN, run.name.clone()), (label::RUN_UID, owner.uid().unwrap_or_default())];
    Some(Service {
        metadata: metadata(owner, run.nodes_name(), labels("trainer", label::RUN, &run.name)),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            selector: Some(chosen.map(|(key, value)| (key.to_owned(), value)).into()),
            // The pods meet before any of them is ready.
            publish_not_ready_addresses: Some(true),
            ports: Some(vec![ServicePort {
                name: Some("rendezvous".to_owned()),
                port: MASTER_PORT.into(),
                target_port: Some(IntOrString::Int(MASTER_PORT.into())),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    })
}

/// The variables that torchrun reads in place of its options; nothing for a run of one pod.
pub fn variables(run: &ValidRun, attempt: i32) -> Vec<EnvVar> {
    if run.spec.num_nodes == 1 {
        return Vec::new();
    }
    // An indexed Job names its pods' hosts; their domain is the Service's name.
    let first = format!("{}-0.{}", run.job_name(attempt), run.nodes_name());
    let index =
        ObjectFieldSelector { api_version: None, field_path: format!("metadata.annotations['{COMPLETION_INDEX}']") };
    vec![
        env("PET_NNODES", run.spec.num_nodes.to_string()),
        env("PET_NPROC_PER_NODE", processes(&run.spec.pod_template)),
        EnvVar {
            name: "PET_NODE_RANK".to_owned(),
            value: None,
            value_from: Some(EnvVarSource { field_ref: Some(index), ..EnvVarSource::default() }),
        },
        env("PET_MASTER_ADDR", &first),
        env("PET_MASTER_PORT", MASTER_PORT.to_string()),
        env("PET_RDZV_BACKEND", "static"),
        env("PET_RDZV_ENDPOINT", format!("{first}:{MASTER_PORT}")),
        env("PET_RDZV_ID", format!("{}-{}-{attempt}", run.name, run.uid8)),
    ]
}

/// Processes of a pod: one for each GPU, or one.
fn processes(template: &PodTemplate) -> String {
    let limits = template.resources.as_ref().map(|resources| &resources.limits);
    let gpus = limits.into_iter().flatten().find(|(name, _)| name.ends_with("/gpu"));
    gpus.map_or_else(|| "1".to_owned(), |(_, count)| count.as_str().to_owned())
}

/// Makes an attempt's Job one of several pods: all of them start together, and one that fails ends it.
pub fn spread(job: &mut Job, run: &ValidRun) {
    let nodes = run.spec.num_nodes;
    let Some(spec) = job.spec.as_mut().filter(|_| nodes > 1) else { return };
    spec.completion_mode = Some("Indexed".to_owned());
    spec.completions = Some(nodes);
    spec.parallelism = Some(nodes);
    if let Some(pod) = spec.template.spec.as_mut() {
        pod.subdomain = Some(run.nodes_name());
    }
}

/// Number of a pod among those of its attempt, counted from 0.
pub fn index(pod: &impl ResourceExt) -> Option<i32> {
    let annotations: &BTreeMap<String, String> = pod.annotations();
    annotations.get(COMPLETION_INDEX)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        context::Settings,
        training_run::{fixtures, objects, validate::validate},
    };

    fn run(spec: &Value) -> TrainingRun {
        let mut all = json!({"podTemplate": {"image": "torch:1"}});
        all.as_object_mut().expect("a spec").extend(spec.as_object().expect("a patch").clone());
        fixtures::run(&all)
    }

    fn job(run: &TrainingRun) -> Job {
        let valid = validate(run).expect("valid");
        objects::job(run, &valid, 2, objects::config(&valid).expect("YAML"), &Settings::of_tests())
    }

    fn variable(job: &Job, name: &str) -> Option<String> {
        let pod = job.spec.as_ref()?.template.spec.as_ref()?;
        pod.containers[0].env.iter().flatten().find(|variable| variable.name == name)?.value.clone()
    }

    #[test]
    fn several_pods_find_the_first_one_under_the_runs_own_service() {
        let run = run(&json!({"numNodes": 3}));
        let job = job(&run);
        let spec = job.spec.as_ref().expect("a spec");
        assert_eq!((spec.completions, spec.parallelism, spec.backoff_limit), (Some(3), Some(3), Some(0)));
        assert_eq!(spec.completion_mode.as_deref(), Some("Indexed"));
        let pod = spec.template.spec.as_ref().expect("a pod");
        let service = service(&run, &validate(&run).expect("valid")).expect("a Service");
        assert_eq!(pod.subdomain.as_deref(), Some(service.name_any().as_str()));
        assert_eq!(variable(&job, "PET_NNODES").as_deref(), Some("3"));
        assert_eq!(variable(&job, "PET_NPROC_PER_NODE").as_deref(), Some("1"));
        assert_eq!(variable(&job, "PET_RDZV_ENDPOINT").as_deref(), Some("cats-2-0.cats-nodes:29500"));
        let labels = spec.template.metadata.as_ref().and_then(|metadata| metadata.labels.as_ref()).expect("labels");
        let chosen = service.spec.and_then(|spec| spec.selector).expect("a selector");
        assert!(chosen.iter().all(|(key, value)| labels.get(key) == Some(value)), "{chosen:?} of {labels:?}");
    }

    #[test]
    fn a_pod_runs_a_process_for_each_of_its_gpus() {
        let gpus = json!({"image": "torch:1", "resources": {"limits": {"cpu": 8, "nvidia.com/gpu": 4}}});
        let job = job(&run(&json!({"numNodes": 2, "podTemplate": gpus})));
        assert_eq!(variable(&job, "PET_NPROC_PER_NODE").as_deref(), Some("4"));
    }

    #[test]
    fn a_run_of_one_pod_has_nothing_to_do_with_others() {
        let run = run(&json!({}));
        assert!(service(&run, &validate(&run).expect("valid")).is_none());
        let job = job(&run);
        assert_eq!(job.spec.as_ref().and_then(|spec| spec.completion_mode.as_deref()), None);
        assert_eq!(variable(&job, "PET_NNODES"), None);
    }

    #[test]
    fn another_image_starts_as_it_was_built_to() {
        let args = |run: &TrainingRun| job(run).spec?.template.spec?.containers.remove(0).args;
        assert_eq!(args(&run(&json!({}))), None);
        assert_eq!(
            args(&run(&json!({"podTemplate": {}}))).and_then(|args| args.first().cloned()).as_deref(),
            Some("train")
        );
    }

    #[test]
    fn anneals_own_trainer_is_refused_on_several_nodes() {
        let refused = validate(&run(&json!({"numNodes": 2, "podTemplate": {}}))).expect_err("a refusal");
        assert_eq!(refused.reason(), "OneNodeOnly");
        assert!(refused.to_string().contains("trains in one pod; name an image"), "{refused}");
    }
}
