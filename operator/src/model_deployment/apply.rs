//! From what should be so to the writes that make it so, and their execution. Where nothing differs, nothing is written.

use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::Job,
    core::v1::{ConfigMap, Service},
    policy::v1::PodDisruptionBudget,
};
use kube::{ResourceExt, api::ObjectMeta};
use serde_json::{Value, json};

use super::{
    desired::Desired,
    objects::{self, annotation, revision_name},
    observe::Observed,
    revision::RevisionName,
    smoke::{self, test_name},
    validate::ValidDeployment,
};
use crate::{
    cluster::{self, ClusterError, Object, says_the_same},
    context::{Context, Settings},
};

/// One write.
#[derive(Clone, Debug)]
pub enum Write {
    /// Creates a revision's Deployment.
    CreateDeployment(Box<Deployment>),
    /// Notes on a revision's Deployment which gate it is put to.
    NoteGate {
        /// The revision.
        revision: RevisionName,
        /// Hash of the gate.
        gate: String,
    },
    /// Changes the number of a revision's pods.
    Scale {
        /// The revision.
        revision: RevisionName,
        /// The new number.
        replicas: i32,
    },
    /// Applies the Service or the preview, without a change of where the Service leads.
    Service(Box<Service>, Option<Box<Service>>),
    /// Moves the Service: fails where it changed since it was observed.
    MoveService(Box<Service>, Value),
    /// Applies a disruption budget.
    Budget(Box<PodDisruptionBudget>, Option<Box<PodDisruptionBudget>>),
    /// Applies the autoscaler.
    Autoscaler(Box<HorizontalPodAutoscaler>, Option<Box<HorizontalPodAutoscaler>>),
    /// Starts a smoke test.
    StartTest(Box<ConfigMap>, Box<Job>),
    /// Deletes a smoke test.
    DropTest {
        /// Name of its Job and `ConfigMap`.
        name: String,
        /// UID of its Job.
        uid: String,
    },
    /// Deletes a disruption budget.
    DropBudget(Box<PodDisruptionBudget>),
    /// Deletes the autoscaler.
    DropAutoscaler(Box<HorizontalPodAutoscaler>),
    /// Deletes a revision's Deployment.
    DropDeployment {
        /// The revision.
        revision: RevisionName,
        /// UID of its Deployment.
        uid: String,
    },
}

/// The writes that are needed, in their order: what adds comes first, then the switch, then what takes away.
pub fn writes(seen: &Observed, spec: &ValidDeployment, desired: &Desired, settings: &Settings) -> Vec<Write> {
    let owner = seen.owner.as_ref();
    let mut writes = Vec::new();
    let preview = objects::preview(owner, spec, desired.preview.as_ref());
    writes.extend(desired.create.iter().map(|(revision, replicas)| {
        let deployment = objects::deployment(owner, revision, *replicas, &spec.gate.hash, settings);
        Write::CreateDeployment(Box::new(deployment))
    }));
    let gate = || spec.gate.hash.clone();
    writes.extend(desired.gate.iter().map(|name| Write::NoteGate { revision: name.clone(), gate: gate() }));
    for name in &desired.budgets {
        let budget = objects::budget(owner, name);
        let existing = seen.budgets.iter().find(|existing| existing.name_any() == budget.name_any()).cloned();
        if !existing.as_ref().is_some_and(|existing| says_the_same(&budget, existing)) {
            writes.push(Write::Budget(Box::new(budget), existing.map(Box::new)));
        }
    }
    let (less, more): (Vec<_>, Vec<_>) =
        desired.replicas.iter().cloned().partition(|(name, replicas)| {
            seen.revisions.get(name).is_some_and(|revision| *replicas < revision.replicas)
        });
    let scale = |(revision, replicas)| Write::Scale { revision, replicas };
    writes.extend(more.into_iter().map(scale));
    // The autoscaler stops shrinking before the Service moves, and follows after it has moved.
    writes.extend(autoscaler(seen, desired));
    writes.extend(service(&objects::service(owner, spec, &desired.traffic), seen.service.as_ref()));
    writes.extend(service(&preview, seen.preview.as_ref()));
    writes.extend(desired.test.iter().map(|test| {
        Write::StartTest(Box::new(smoke::config(owner, spec, test)), Box::new(smoke::job(owner, spec, test, settings)))
    }));
    writes.extend(less.into_iter().map(scale));
    writes.extend(removals(seen, spec, desired));
    writes
}

fn autoscaler(seen: &Observed, desired: &Desired) -> Option<Write> {
    let existing = seen.autoscaler.as_ref();
    let Some(wanted) = &desired.autoscaler else {
        return existing.map(|existing| Write::DropAutoscaler(Box::new(existing.clone())));
    };
    let wanted = objects::autoscaler(&seen.owner, &wanted.bounds, &wanted.target, wanted.hold);
    let differs = !existing.is_some_and(|existing| says_the_same(&wanted, existing));
    differs.then(|| Write::Autoscaler(Box::new(wanted), existing.cloned().map(Box::new)))
}

/// The write that a Service needs. A selector is set as a whole: a key that somebody added would let no pod match.
fn service(wanted: &Service, existing: Option<&Service>) -> Option<Write> {
    let selector = |service: &Service| service.spec.as_ref().and_then(|spec| spec.selector.clone()).unwrap_or_default();
    let Some(existing) = existing else {
        return Some(Write::Service(Box::new(wanted.clone()), None));
    };
    let (new, old) = (selector(wanted), selector(existing));
    if new != old {
        let removed = old.keys().filter(|key| !new.contains_key(*key)).map(|key| (key.clone(), Value::Null));
        let kept = new.iter().map(|(key, value)| (key.clone(), Value::String(value.clone())));
        let selector: serde_json::Map<_, _> = removed.chain(kept).collect();
        let patch = json!({
            "metadata": {"resourceVersion": existing.resource_version()},
            "spec": {"selector": selector},
        });
        return Some(Write::MoveService(Box::new(wanted.clone()), patch));
    }
    let differs = !says_the_same(wanted, existing);
    differs.then(|| Write::Service(Box::new(wanted.clone()), Some(Box::new(existing.clone()))))
}

fn removals(seen: &Observed, spec: &ValidDeployment, desired: &Desired) -> Vec<Write> {
    let budgets = seen
        .budgets
        .iter()
        .filter(|budget| !desired.budgets.iter().any(|name| revision_name(&spec.name, name) == budget.name_any()));
    let tests = desired.drop_tests.iter().map(|test| Write::DropTest {
        name: test_name(&spec.name, &test.revision, test.number),
        uid: test.uid.clone(),
    });
    let deployments = desired.drop_revisions.iter().filter_map(|revision| {
        let uid = seen.revisions.get(revision)?.uid.clone();
        Some(Write::DropDeployment { revision: revision.clone(), uid })
    });
    tests.chain(budgets.map(|budget| Write::DropBudget(Box::new(budget.clone())))).chain(deployments).collect()
}

/// Makes the writes, one after the other. The first one that fails ends it: the next reconcile starts from what is.
///
/// # Errors
/// When the API server does not answer or refuses, or an object of a needed name belongs to somebody else.
pub async fn carry_out(context: &Context, spec: &ValidDeployment, writes: Vec<Write>) -> Result<(), ClusterError> {
    let (client, namespace) = (&context.client, spec.namespace.as_str());
    let of_revision = |revision: &RevisionName| revision_name(&spec.name, revision);
    for write in writes {
        match write {
            Write::CreateDeployment(deployment) => {
                cluster::create(client, namespace, deployment.as_ref()).await?;
            }
            Write::NoteGate { revision, gate } => {
                let patch = json!({"metadata": {"annotations": {annotation::GATE: gate}}});
                cluster::merge::<Deployment>(client, namespace, &of_revision(&revision), &patch).await?;
            }
            Write::Scale { revision, replicas } => {
                cluster::scale::<Deployment>(client, namespace, &of_revision(&revision), replicas).await?;
            }
            Write::Service(wanted, existing) => {
                apply(context, namespace, *wanted, existing).await?;
            }
            Write::MoveService(wanted, patch) => {
                cluster::merge::<Service>(client, namespace, &wanted.name_any(), &patch).await?;
            }
            Write::Budget(wanted, existing) => {
                apply(context, namespace, *wanted, existing).await?;
            }
            Write::Autoscaler(wanted, existing) => {
                apply(context, namespace, *wanted, existing).await?;
            }
            Write::StartTest(config, job) => {
                // One that an interrupted reconcile left may ask other pods.
                let existing: Option<ConfigMap> = cluster::get(client, namespace, &config.name_any()).await?;
                cluster::apply(client, namespace, config.as_ref(), existing.as_ref()).await?;
                cluster::create(client, namespace, job.as_ref()).await?;
            }
            Write::DropTest { name, uid } => {
                let metadata = ObjectMeta { name: Some(name.clone()), uid: Some(uid), ..ObjectMeta::default() };
                cluster::delete(client, namespace, &Job { metadata, ..Job::default() }).await?;
                let metadata = ObjectMeta { name: Some(name), ..ObjectMeta::default() };
                cluster::delete(client, namespace, &ConfigMap { metadata, ..ConfigMap::default() }).await?;
            }
            Write::DropBudget(budget) => cluster::delete(client, namespace, budget.as_ref()).await?,
            Write::DropAutoscaler(autoscaler) => cluster::delete(client, namespace, autoscaler.as_ref()).await?,
            Write::DropDeployment { revision, uid } => {
                let metadata =
                    ObjectMeta { name: Some(of_revision(&revision)), uid: Some(uid), ..ObjectMeta::default() };
                cluster::delete(client, namespace, &Deployment { metadata, ..Deployment::default() }).await?;
            }
        }
    }
    Ok(())
}

/// Applies an object. One that was not there when it was looked for is created, so that another's is never taken.
async fn apply<K: Object>(
    context: &Context,
    namespace: &str,
    wanted: K,
    existing: Option<Box<K>>,
) -> Result<(), ClusterError> {
    match existing {
        Some(existing) => cluster::apply(&context.client, namespace, &wanted, Some(existing.as_ref())).await,
        None => cluster::create(&context.client, namespace, &wanted).await,
    }
    .map(|_| ())
}
