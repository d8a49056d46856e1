//! From what should be so to the writes that make it so, and their execution. Where nothing differs, nothing is written.

use anneal_api::resources::ModelDeployment;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, Deployment},
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::Job,
    core::v1::{ConfigMap, PodTemplateSpec, Service},
    policy::v1::PodDisruptionBudget,
};
use kube::{ResourceExt, api::ObjectMeta, core::Status};
use serde_json::{Value, json};

use super::{
    desired::Desired,
    objects::{self, annotation, revision_name},
    observe::Observed,
    record,
    revision::{Revision, RevisionName},
    route::{self, HTTPRoute, RouteSeen},
    smoke::{self, test_name},
    takeover::{self, Former, Stage},
    validate::ValidDeployment,
};
use crate::{
    cluster::{self, ClusterError, Object, says_the_same},
    context::{Context, Settings},
};

/// One write.
#[derive(Clone, Debug)]
pub enum Write {
    /// Writes a revision down.
    Record(Box<ControllerRevision>),
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
    /// Creates or changes the Service or the preview.
    Service(Change<Service>),
    /// Changes a Service that was there before.
    TakeOver(takeover::Write),
    /// Creates or changes a disruption budget.
    Budget(Change<PodDisruptionBudget>),
    /// Creates or changes the autoscaler.
    Autoscaler(Change<HorizontalPodAutoscaler>),
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
    /// Creates or changes the route from Gateways.
    Route(Change<HTTPRoute>),
    /// Deletes the route from Gateways.
    DropRoute(Box<HTTPRoute>),
    /// Deletes the Service of one revision.
    DropBackend(Box<Service>),
    /// Deletes the autoscaler.
    DropAutoscaler(Box<HorizontalPodAutoscaler>),
    /// Deletes what was written down of a revision.
    DropRecord {
        /// The revision.
        revision: RevisionName,
        /// UID of the object.
        uid: String,
    },
    /// Deletes a revision's Deployment.
    DropDeployment {
        /// The revision.
        revision: RevisionName,
        /// UID of its Deployment.
        uid: String,
    },
}

/// An object as it should be, and what there is of it.
#[derive(Clone, Debug)]
pub struct Change<K> {
    /// As it should be.
    pub wanted: Box<K>,
    /// What turns the existing one into that; absent where there is none.
    pub patch: Option<Value>,
}

impl<K: Object> Change<K> {
    /// The change that an object needs, if any.
    fn of(wanted: K, existing: Option<&K>) -> Option<Self> {
        let patch = match existing {
            Some(existing) => Some(patch(&wanted, existing)?),
            None => None,
        };
        Some(Self { wanted: Box::new(wanted), patch })
    }
}

/// A merge patch that fails where the object changed since it was observed. Server-side apply is of no use here: a port
/// or a selector's key that another manager owns too would stay.
pub fn patch<K: Object>(wanted: &K, existing: &K) -> Option<Value> {
    let spec = |object: &K| serde_json::to_value(object).ok().and_then(|mut all| all.get_mut("spec").map(Value::take));
    let (mut patch, old) = (json!({"metadata": {"labels": wanted.labels()}, "spec": spec(wanted)}), spec(existing));
    // A key that somebody added to a selector would let no pod match.
    let stray: Vec<String> = match (patch.pointer("/spec/selector"), old.as_ref().and_then(|old| old.get("selector"))) {
        (Some(Value::Object(new)), Some(Value::Object(old))) => {
            old.keys().filter(|key| !new.contains_key(*key)).cloned().collect()
        }
        _ => Vec::new(),
    };
    if stray.is_empty() && says_the_same(&patch, existing) {
        return None;
    }
    for key in stray {
        patch["spec"]["selector"][key] = Value::Null;
    }
    // A list replaces a list, with all that others added to its entries: one that says enough stays as it is.
    if let (Some(Value::Object(new)), Some(old)) = (patch.get_mut("spec"), &old) {
        new.retain(|key, value| !value.is_array() || !says_the_same(value, &old[key.as_str()]));
        if let (Some(Value::Array(ports)), Some(Value::Array(old))) = (new.get_mut("ports"), old.get("ports")) {
            for port in ports {
                keep_additions(port, old);
            }
        }
    }
    patch["metadata"]["resourceVersion"] = json!(existing.resource_version());
    Some(patch)
}

/// Gives a Service's port what others added to the one that it takes the place of, such as the protocol that callers speak: a
/// port is the same by its name or its number.
fn keep_additions(port: &mut Value, old: &[Value]) {
    let is_same = |other: &&Value| ["port", "name"].iter().any(|key| !other[key].is_null() && other[key] == port[key]);
    if let Some(Value::Object(old)) = old.iter().find(is_same).cloned()
        && let Value::Object(port) = port
    {
        for (key, value) in old {
            port.entry(key).or_insert(value);
        }
    }
}

/// The writes that are needed, in their order: what adds comes first, then the switch, then what takes away. On the way back
/// the Service comes before all that may be refused.
pub fn writes(seen: &Observed, spec: &ValidDeployment, desired: &Desired, settings: &Settings) -> Vec<Write> {
    let owner = seen.owner.as_ref();
    let mut writes = Vec::new();
    let (first, in_turn): (Vec<_>, Vec<_>) = service(seen, spec, desired).into_iter().partition(|_| desired.is_urgent);
    writes.extend(first);
    // What is written down comes first: the Deployment is made from it.
    writes.extend(desired.record.iter().filter_map(|(revision, number)| {
        let record = record::object(owner, revision, *number, template(seen, spec, revision, settings));
        Some(Write::Record(Box::new(record.ok()?)))
    }));
    writes.extend(desired.create.iter().map(|(revision, replicas)| {
        let template = template(seen, spec, revision, settings);
        Write::CreateDeployment(Box::new(objects::deployment(
            owner,
            &revision.name,
            *replicas,
            &spec.gate.hash,
            template,
        )))
    }));
    let gate = || spec.gate.hash.clone();
    writes.extend(desired.gate.iter().map(|name| Write::NoteGate { revision: name.clone(), gate: gate() }));
    for name in &desired.budgets {
        let budget = objects::budget(owner, name);
        let existing = seen.budgets.iter().find(|existing| existing.name_any() == budget.name_any()).cloned();
        writes.extend(Change::of(budget, existing.as_ref()).map(Write::Budget));
    }
    for name in &desired.backends {
        let backend = route::backend(owner, name);
        let existing = seen.backend_services.iter().find(|existing| existing.name_any() == backend.name_any());
        writes.extend(Change::of(backend, existing).map(Write::Service));
    }
    let (less, more): (Vec<_>, Vec<_>) =
        desired.replicas.iter().cloned().partition(|(name, replicas)| {
            seen.revisions.get(name).is_some_and(|revision| *replicas < revision.replicas)
        });
    let scale = |(revision, replicas)| Write::Scale { revision, replicas };
    writes.extend(more.into_iter().map(scale));
    // The autoscaler stops shrinking before the Service moves, and follows after it has moved.
    writes.extend(autoscaler(seen, desired));
    writes.extend(in_turn);
    if !seen.has_foreign_preview {
        let preview = objects::preview(owner, spec, desired.preview.as_ref());
        writes.extend(Change::of(preview, seen.preview.as_ref()).map(Write::Service));
    }
    // Before any pod goes: what takes no requests any more is not sent any.
    writes.extend(route_change(seen, spec, desired));
    writes.extend(desired.test.iter().map(|test| {
        Write::StartTest(Box::new(smoke::config(owner, spec, test)), Box::new(smoke::job(owner, spec, test, settings)))
    }));
    writes.extend(less.into_iter().map(scale));
    writes.extend(removals(seen, spec, desired));
    writes
}

/// The Service that callers use. One that was there before stays as it is until it is taken over.
fn service(seen: &Observed, spec: &ValidDeployment, desired: &Desired) -> Option<Write> {
    let service = objects::service(&seen.owner, spec, &desired.traffic);
    if let Some(Former { stage: Stage::Offered(existing), .. }) = &seen.former {
        let patch = patch(&service, existing.as_ref());
        return takeover::write(seen, &service, patch, desired.former).map(Write::TakeOver);
    }
    let is_left = takeover::write(seen, &service, None, desired.former).map(Write::TakeOver);
    is_left.or_else(|| Change::of(service, seen.service.as_ref()).map(Write::Service))
}

/// The pods of a revision: as they were written down, or else as they run, or else as they are rendered today.
fn template(seen: &Observed, spec: &ValidDeployment, revision: &Revision, settings: &Settings) -> PodTemplateSpec {
    let written = seen.records.get(&revision.name).map(|record| &record.template);
    let running = || seen.revisions.get(&revision.name).map(|revision| &revision.template);
    written.or_else(running).cloned().unwrap_or_else(|| objects::server_pod(&spec.name, revision, settings))
}

fn autoscaler(seen: &Observed, desired: &Desired) -> Option<Write> {
    let existing = seen.autoscaler.as_ref();
    let Some(wanted) = &desired.autoscaler else {
        return existing.map(|existing| Write::DropAutoscaler(Box::new(existing.clone())));
    };
    let wanted = objects::autoscaler(&seen.owner, &wanted.bounds, &wanted.target, wanted.hold);
    Change::of(wanted, existing).map(Write::Autoscaler)
}

fn route_change(seen: &Observed, spec: &ValidDeployment, desired: &Desired) -> Option<Write> {
    // Where the kind is not known, the condition says so.
    let RouteSeen::Served(existing) = &seen.route else { return None };
    let existing = existing.as_deref();
    let Some(wanted) = &desired.route else {
        return existing.map(|existing| Write::DropRoute(Box::new(existing.clone())));
    };
    let mut wanted = route::route(&seen.owner, spec, &wanted.canary, wanted.share.as_ref());
    let Some(existing) = existing else { return Change::of(wanted, None).map(Write::Route) };
    wanted.spec = route::beside(wanted.spec, &existing.spec);
    if wanted.spec == existing.spec && says_the_same(&wanted.labels(), &existing.labels()) {
        return None;
    }
    let metadata = json!({"labels": wanted.labels(), "resourceVersion": existing.resource_version()});
    let patch = Some(json!({"metadata": metadata, "spec": wanted.spec}));
    Some(Write::Route(Change { wanted: Box::new(wanted), patch }))
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
    let records = desired.drop_revisions.iter().filter_map(|revision| {
        let uid = seen.records.get(revision)?.uid.clone();
        Some(Write::DropRecord { revision: revision.clone(), uid })
    });
    let budgets = budgets.map(|budget| Write::DropBudget(Box::new(budget.clone())));
    let backends = seen
        .backend_services
        .iter()
        .filter(|service| !desired.backends.iter().any(|name| revision_name(&spec.name, name) == service.name_any()))
        .map(|service| Write::DropBackend(Box::new(service.clone())));
    tests.chain(budgets).chain(backends).chain(deployments).chain(records).collect()
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
            Write::Record(record) => {
                cluster::create(client, namespace, record.as_ref()).await?;
            }
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
            Write::Service(change) => put(context, namespace, change).await?,
            Write::TakeOver(write) => {
                cluster::merge::<Service>(client, namespace, &spec.name, write.patch()).await?;
            }
            Write::Budget(change) => put(context, namespace, change).await?,
            Write::Autoscaler(change) => put(context, namespace, change).await?,
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
            Write::Route(change) => put(context, namespace, change).await?,
            Write::DropRoute(route) => cluster::delete(client, namespace, route.as_ref()).await?,
            Write::DropBackend(service) => cluster::delete(client, namespace, service.as_ref()).await?,
            Write::DropBudget(budget) => cluster::delete(client, namespace, budget.as_ref()).await?,
            Write::DropAutoscaler(autoscaler) => cluster::delete(client, namespace, autoscaler.as_ref()).await?,
            Write::DropRecord { revision, uid } => {
                let metadata =
                    ObjectMeta { name: Some(of_revision(&revision)), uid: Some(uid), ..ObjectMeta::default() };
                let record = ControllerRevision { metadata, ..ControllerRevision::default() };
                cluster::delete(client, namespace, &record).await?;
            }
            Write::DropDeployment { revision, uid } => {
                let metadata =
                    ObjectMeta { name: Some(of_revision(&revision)), uid: Some(uid), ..ObjectMeta::default() };
                cluster::delete(client, namespace, &Deployment { metadata, ..Deployment::default() }).await?;
            }
        }
    }
    Ok(())
}

/// Removes the annotations that have been answered from the deployment, which has been at this version since it was observed:
/// where somebody has asked anew in the meantime, nothing is removed, and the next look answers.
///
/// # Errors
/// When the API server does not answer or refuses.
pub async fn consume(
    context: &Context,
    owner: &ModelDeployment,
    version: Option<&str>,
    answered: &[&str],
) -> Result<(), ClusterError> {
    if answered.is_empty() {
        return Ok(());
    }
    let (namespace, patch) = (owner.namespace().unwrap_or_default(), without(version, answered));
    match cluster::merge::<ModelDeployment>(&context.client, &namespace, &owner.name_any(), &patch).await {
        Err(problem) if problem.says(Status::is_conflict) => Ok(()),
        other => other.map(|_| ()),
    }
}

fn without(version: Option<&str>, answered: &[&str]) -> Value {
    let none: serde_json::Map<String, Value> = answered.iter().map(|key| ((*key).to_owned(), Value::Null)).collect();
    json!({"metadata": {"resourceVersion": version, "annotations": none}})
}

/// Creates or changes an object. One that was not there when it was looked for is created and never taken over.
async fn put<K: Object>(context: &Context, namespace: &str, change: Change<K>) -> Result<(), ClusterError> {
    let wanted = change.wanted.as_ref();
    match change.patch {
        Some(patch) => cluster::merge::<K>(&context.client, namespace, &wanted.name_any(), &patch).await.map(|_| ()),
        None => cluster::create(&context.client, namespace, wanted).await.map(|_| ()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: &Value) -> Service {
        let metadata = json!({"name": "cats", "resourceVersion": "7", "labels": {"a": "b"}});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).expect("a Service")
    }

    #[test]
    fn what_the_api_server_adds_is_no_reason_to_write() {
        let wanted = service(&json!({"ports": [{"port": 80}], "selector": {"app": "cats"}, "type": "ClusterIP"}));
        let existing = service(&json!({
            "clusterIP": "10.0.0.1", "ports": [{"port": 80, "protocol": "TCP"}], "selector": {"app": "cats"},
            "sessionAffinity": "None", "type": "ClusterIP",
        }));
        assert_eq!(patch(&wanted, &existing), None);
    }

    #[test]
    fn a_request_is_removed_only_of_what_was_observed() {
        let patch = without(Some("7"), &["anneal.dev/abort"]);
        assert_eq!(
            patch,
            json!({"metadata": {"resourceVersion": "7", "annotations": {"anneal.dev/abort": null}}}),
            "a newer one is another version"
        );
    }

    #[test]
    fn nothing_is_left_of_what_is_not_wanted() {
        let wanted = service(&json!({"ports": [{"port": 8080}], "selector": {"app": "cats"}}));
        let existing = service(&json!({"ports": [{"port": 80}], "selector": {"app": "cats", "stray": "key"}}));
        let patch = patch(&wanted, &existing).expect("a patch");
        assert_eq!(patch["metadata"]["resourceVersion"], "7", "only of what was observed");
        assert_eq!(patch["spec"], json!({"ports": [{"port": 8080}], "selector": {"app": "cats", "stray": null}}));
    }

    #[test]
    fn a_port_keeps_what_others_added_to_it_when_the_selector_moves() {
        let wanted = service(&json!({"ports": [{"port": 80}], "selector": {"app": "cats"}}));
        let port = json!({"port": 80, "appProtocol": "http", "nodePort": 30080});
        let existing = service(&json!({"ports": [port], "selector": {"app": "dogs"}}));
        assert_eq!(patch(&wanted, &existing).expect("a patch")["spec"], json!({"selector": {"app": "cats"}}));
    }

    #[test]
    fn a_port_that_is_rewritten_keeps_what_others_added_to_it() {
        let port = |name: Option<&str>, port: i32, to: Value, added: Value| {
            let mut all = json!({"name": name, "port": port, "protocol": "TCP", "targetPort": to});
            all.as_object_mut().expect("a port").extend(added.as_object().expect("fields").clone());
            all
        };
        let wanted = |number: i32| service(&json!({"ports": [port(Some("http"), number, json!(8000), json!({}))]}));
        let added = || json!({"appProtocol": "kubernetes.io/ws", "nodePort": 30080});
        let old = |name: Option<&str>| port(name, 80, json!("web"), added());
        let kept = |number: i32| json!([port(Some("http"), number, json!(8000), added())]);
        let rewritten = |wanted: &Service, existing: Value| {
            patch(wanted, &service(&json!({"ports": [existing]}))).expect("a patch")["spec"]["ports"].take()
        };
        assert_eq!(rewritten(&wanted(80), old(None)), kept(80), "of a Service that is taken over");
        assert_eq!(rewritten(&wanted(8080), old(Some("http"))), kept(8080), "of another number");
        let other = json!({"name": "grpc", "port": 9000, "appProtocol": "kubernetes.io/h2c"});
        assert_eq!(rewritten(&wanted(80), other)[0].get("appProtocol"), None, "not those of another port");
    }

    #[test]
    fn what_the_api_server_leaves_out_is_not_asked_for() {
        // A field that is false by default is never sent back, and would be written again and again.
        let owner = crate::model_deployment::tests::fixtures::deployment(&json!({
            "model": {"trainingRunRef": {"name": "run"}}
        }));
        let spec = crate::model_deployment::validate::validate(&owner).expect("valid");
        let service = objects::service(&owner, &spec, &objects::Destination::none());
        let json = serde_json::to_value(service).expect("json").to_string();
        assert!(!json.contains("false"), "{json}");
    }
}
