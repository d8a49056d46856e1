//! What wakes the controller, and what is kept from waking it.

use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use anneal_api::{names::label, resources::ModelDeployment};
use futures::{FutureExt, Stream, StreamExt, channel::mpsc};
use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::Job,
    core::v1::{PersistentVolumeClaim, Pod, Service},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, ObjectMeta},
    core::{PartialObjectMeta, PartialObjectMetaExt},
    runtime::{
        controller::{Config, Controller},
        reflector::{ObjectRef, Store},
        watcher::{self, Event},
    },
};

use super::{preflight, route::HTTPRoute};
use crate::{
    cluster::{Object, is_not_offered},
    context::Context,
    controller::{self, api, events, metadata_of, watch},
    training_run::phases::Turned,
};

/// How often it is asked whether a kind is there that the cluster lacks.
const KIND_INTERVAL: Duration = Duration::from_secs(30);

/// The controller with everything that wakes it.
pub fn controller(context: &Context, namespace: Option<&str>, concurrency: u16) -> Controller<ModelDeployment> {
    let controller = controller::controller(api::<ModelDeployment>(context, namespace))
        .with_config(Config::default().concurrency(concurrency));
    let (of_runs, of_claims) = (controller.store(), controller.store());
    let own = || watch().labels(label::DEPLOYMENT);
    // An autoscaler reports its metrics four times a minute: none of a rollout's business.
    let autoscalers = changes(api::<HorizontalPodAutoscaler>(context, namespace), own(), |it| {
        digest(&(&it.spec, preflight::of_autoscaler(it).map(|(reason, _)| reason)))
    });
    let budgets = changes(api::<PodDisruptionBudget>(context, namespace), own(), |it| digest(&it.spec));
    let runs = context.phases.listen();
    let runs = runs.flat_map(move |turned| futures::stream::iter(deployments_of_run(&of_runs, &turned)));
    let (known, becomes_known) = mpsc::unbounded();
    let claims = metadata_of::<PersistentVolumeClaim>(context, namespace, watch());
    controller
        .owns_stream(metadata_of::<Deployment>(context, namespace, own()))
        .owns_stream(metadata_of::<Service>(context, namespace, own()))
        .owns_stream(metadata_of::<Job>(context, namespace, own()))
        .owns_stream(autoscalers)
        .owns_stream(budgets)
        .owns_stream(routes(api::<HTTPRoute>(context, namespace), known))
        .reconcile_all_on(becomes_known)
        .watches_stream(metadata_of::<Pod>(context, namespace, own()), |pod| deployment_of_pod(&pod))
        .watches_stream(claims, move |claim| deployments_of_claim(&of_claims, &claim))
        .reconcile_on(runs)
}

/// The routes that changed. A cluster without the Gateway API may get it while the operator runs, and lose it again, and so may
/// the operator the right to it; that it has got both is told to `known`, for whoever waits.
fn routes(
    api: Api<HTTPRoute>,
    known: mpsc::UnboundedSender<()>,
) -> impl Stream<Item = watcher::Result<Changed<HTTPRoute>>> + Send {
    let once = move || {
        let (asked, known, own) = (api.clone(), known.clone(), watch().labels(label::DEPLOYMENT));
        let wait = async move {
            if until_served(&asked).await {
                // The receiver is gone only when the controller ended, and with it the process.
                let _ = known.unbounded_send(());
            }
        };
        let wait = wait.into_stream().filter_map(|()| std::future::ready(None));
        let changes =
            changes(api.clone(), own, |route| digest(&(&route.spec, &route.status, route.metadata.generation)));
        wait.chain(changes.take_while(|change| std::future::ready(!change.as_ref().is_err_and(is_not_served))))
    };
    futures::stream::repeat_with(once).flatten()
}

/// Waits until the cluster knows the kind and lets the operator list it. Returns whether it did not before.
async fn until_served(api: &Api<HTTPRoute>) -> bool {
    let question = ListParams::default().limit(1);
    let mut waited = false;
    while let Err(kube::Error::Api(status)) = api.list_metadata(&question).await
        && is_not_offered(&status)
    {
        tokio::time::sleep(KIND_INTERVAL).await;
        waited = true;
    }
    waited
}

fn is_not_served(problem: &watcher::Error) -> bool {
    match problem {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => is_not_offered(status),
        _ => false,
    }
}

/// What is told of an object that changed.
type Changed<K> = PartialObjectMeta<K>;

/// What a watch has told so far.
struct Told<K> {
    /// The digest of each object, and what there is to say when it is gone.
    known: HashMap<(Option<String>, String), (u64, Changed<K>)>,
    /// What the list has that is under way.
    listed: HashSet<(Option<String>, String)>,
}

impl<K> Default for Told<K> {
    fn default() -> Self {
        Self { known: HashMap::new(), listed: HashSet::new() }
    }
}

/// The objects that are new, gone, or have another digest than before.
fn changes<K: Object + Send + 'static>(
    api: Api<K>,
    config: watcher::Config,
    digest: fn(&K) -> u64,
) -> impl Stream<Item = watcher::Result<Changed<K>>> + Send {
    let mut told = Told::default();
    events(api, config).flat_map(move |event| {
        let changed = match event {
            Ok(event) => change(&mut told, event, digest).into_iter().map(Ok).collect(),
            Err(problem) => vec![Err(problem)],
        };
        futures::stream::iter(changed)
    })
}

fn change<K: Object>(told: &mut Told<K>, event: Event<K>, digest: fn(&K) -> u64) -> Vec<Changed<K>> {
    let is_listed = matches!(event, Event::InitApply(_));
    match event {
        Event::Apply(object) | Event::InitApply(object) => {
            let (new, key, changed) = (digest(&object), (object.namespace(), object.name_any()), essentials(&object));
            if is_listed {
                told.listed.insert(key.clone());
            }
            let old = told.known.insert(key, (new, changed.clone()));
            if old.is_some_and(|(old, _)| old == new) { Vec::new() } else { vec![changed] }
        }
        Event::Delete(object) => {
            told.known.remove(&(object.namespace(), object.name_any()));
            vec![essentials(&object)]
        }
        Event::Init => {
            told.listed.clear();
            Vec::new()
        }
        // What went while nobody watched is told of by nobody else.
        Event::InitDone => {
            let listed = std::mem::take(&mut told.listed);
            let (known, gone): (HashMap<_, _>, HashMap<_, _>) =
                std::mem::take(&mut told.known).into_iter().partition(|(key, _)| listed.contains(key));
            told.known = known;
            gone.into_values().map(|(_, changed)| changed).collect()
        }
    }
}

/// By what an object is told of: name, labels and owners.
fn essentials<K: Object>(object: &K) -> Changed<K> {
    let ObjectMeta { name, namespace, labels, owner_references, .. } = object.meta().clone();
    ObjectMeta { name, namespace, labels, owner_references, ..ObjectMeta::default() }.into_response_partial()
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

fn deployments_of_run(all: &Store<ModelDeployment>, turned: &Turned) -> Vec<ObjectRef<ModelDeployment>> {
    let refers = |deployment: &ModelDeployment| {
        let model = &deployment.spec.model;
        model.training_run_ref.as_ref().is_some_and(|reference| reference.name == turned.run.name)
            || model.training_run_selector.as_ref().is_some_and(|selector| selector.matches(&turned.labels))
    };
    select(all, turned.run.namespace.as_deref(), refers)
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
        let mut told = Told::default();
        let mut wakes = |event| change(&mut told, event, |it: &HorizontalPodAutoscaler| digest(&it.spec)).len();
        assert_eq!(wakes(Event::InitApply(autoscaler(5, 2))), 1);
        assert_eq!(wakes(Event::Apply(autoscaler(5, 3))), 0);
        assert_eq!(wakes(Event::Apply(autoscaler(6, 3))), 1);
        assert_eq!(wakes(Event::Delete(autoscaler(6, 3))), 1);
        assert_eq!(wakes(Event::Apply(autoscaler(6, 3))), 1);
        assert_eq!(wakes(Event::Init) + wakes(Event::InitApply(autoscaler(6, 4))) + wakes(Event::InitDone), 0);
        assert_eq!(wakes(Event::Init) + wakes(Event::InitDone), 1, "it went while nobody watched");
        assert_eq!(wakes(Event::Init) + wakes(Event::InitDone), 0, "which is told once");
    }
}
