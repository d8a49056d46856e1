//! What wakes the controller, and what is kept from waking it.

use std::{
    collections::HashMap,
    fmt::Debug,
    hash::{DefaultHasher, Hash, Hasher},
};

use anneal_api::{
    names::label,
    resources::{ModelDeployment, TrainingRun},
};
use futures::{Stream, StreamExt};
use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::Job,
    core::v1::{PersistentVolumeClaim, Pod, Service},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, ResourceExt,
    runtime::{
        WatchStreamExt,
        controller::{Config, Controller},
        reflector::{ObjectRef, Store},
        watcher::{self, Event, watcher},
    },
};

use super::preflight;
use crate::{
    cluster::Object,
    context::Context,
    controller::{self, api, metadata_of, watch},
};

/// The controller with everything that wakes it.
pub fn controller(context: &Context, namespace: Option<&str>, concurrency: u16) -> Controller<ModelDeployment> {
    let controller = controller::controller(api::<ModelDeployment>(context, namespace))
        .with_config(Config::default().concurrency(concurrency));
    let (of_runs, of_claims) = (controller.store(), controller.store());
    let own = || watch().labels(label::DEPLOYMENT);
    // An autoscaler reports its metrics four times a minute, a training run its progress: none of a rollout's business.
    let autoscalers = changes(api::<HorizontalPodAutoscaler>(context, namespace), own(), |it| {
        digest(&(&it.spec, preflight::of_autoscaler(it).map(|(reason, _)| reason)))
    });
    let budgets = changes(api::<PodDisruptionBudget>(context, namespace), own(), |it| digest(&it.spec));
    let runs = changes(api::<TrainingRun>(context, namespace), watch(), |run| {
        digest(&run.status.as_ref().and_then(|status| status.phase))
    });
    let claims = metadata_of::<PersistentVolumeClaim>(context, namespace, watch());
    controller
        .owns_stream(metadata_of::<Deployment>(context, namespace, own()))
        .owns_stream(metadata_of::<Service>(context, namespace, own()))
        .owns_stream(metadata_of::<Job>(context, namespace, own()))
        .owns_stream(autoscalers)
        .owns_stream(budgets)
        .watches_stream(metadata_of::<Pod>(context, namespace, own()), |pod| deployment_of_pod(&pod))
        .watches_stream(claims, move |claim| deployments_of_claim(&of_claims, &claim))
        .watches_stream(runs, move |run| deployments_of_run(&of_runs, &run))
}

/// The objects that are new, gone, or have another digest than before.
fn changes<K: Object + Send + 'static>(
    api: Api<K>,
    config: watcher::Config,
    digest: fn(&K) -> u64,
) -> impl Stream<Item = Result<K, watcher::Error>> + Send {
    let mut known = HashMap::new();
    watcher(api, config)
        .default_backoff()
        .filter_map(move |event| std::future::ready(event.map(|event| change(&mut known, event, digest)).transpose()))
}

fn change<K: Object>(
    known: &mut HashMap<(Option<String>, String), u64>,
    event: Event<K>,
    digest: fn(&K) -> u64,
) -> Option<K> {
    match event {
        Event::Apply(object) | Event::InitApply(object) => {
            let new = digest(&object);
            let old = known.insert((object.namespace(), object.name_any()), new);
            (old != Some(new)).then_some(object)
        }
        Event::Delete(object) => {
            known.remove(&(object.namespace(), object.name_any()));
            Some(object)
        }
        Event::Init | Event::InitDone => None,
    }
}

fn digest(value: &impl Debug) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{value:?}").hash(&mut hasher);
    hasher.finish()
}

fn deployment_of_pod(pod: &impl ResourceExt) -> Option<ObjectRef<ModelDeployment>> {
    let deployment = pod.labels().get(label::DEPLOYMENT)?;
    Some(ObjectRef::new(deployment).within(&pod.namespace()?))
}

fn deployments_of_run(all: &Store<ModelDeployment>, run: &TrainingRun) -> Vec<ObjectRef<ModelDeployment>> {
    let name = run.name_any();
    let refers = |deployment: &ModelDeployment| {
        let model = &deployment.spec.model;
        model.training_run_ref.as_ref().is_some_and(|reference| reference.name == name)
            || model.training_run_selector.as_ref().is_some_and(|selector| selector.matches(run.labels()))
    };
    select(all, run.metadata.namespace.as_deref(), refers)
}

/// The deployments that a claim may set going.
fn deployments_of_claim(all: &Store<ModelDeployment>, claim: &impl ResourceExt) -> Vec<ObjectRef<ModelDeployment>> {
    let name = claim.name_any();
    let waits = |deployment: &ModelDeployment| {
        let conditions = deployment.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        deployment.spec.model.claim_name.as_ref() == Some(&name)
            || conditions.iter().any(|condition| condition.reason == "ClaimNotFound")
    };
    select(all, claim.meta().namespace.as_deref(), waits)
}

fn select(
    all: &Store<ModelDeployment>,
    namespace: Option<&str>,
    matches: impl Fn(&ModelDeployment) -> bool,
) -> Vec<ObjectRef<ModelDeployment>> {
    all.state()
        .into_iter()
        .filter(|deployment| deployment.metadata.namespace.as_deref() == namespace && matches(deployment))
        .map(|deployment| ObjectRef::from(deployment.as_ref()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_wakes_and_a_deletion_always_does() {
        let autoscaler = |replicas: i32, status: i32| -> HorizontalPodAutoscaler {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "cats", "namespace": "demo"},
                "spec": {"maxReplicas": replicas, "scaleTargetRef": {"kind": "Deployment", "name": "cats"}},
                "status": {"desiredReplicas": status},
            }))
            .expect("an autoscaler")
        };
        let mut known = HashMap::new();
        let mut wakes = |event| change(&mut known, event, |it: &HorizontalPodAutoscaler| digest(&it.spec)).is_some();
        assert!(wakes(Event::InitApply(autoscaler(5, 2))));
        assert!(!wakes(Event::Apply(autoscaler(5, 3))));
        assert!(wakes(Event::Apply(autoscaler(6, 3))));
        assert!(wakes(Event::Delete(autoscaler(6, 3))));
        assert!(wakes(Event::Apply(autoscaler(6, 3))));
    }
}
