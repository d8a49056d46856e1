//! A Service that was there before: its owner hands it over by an annotation, the first revision that passes its gate gets
//! it in one write, and its former pods are what is gone back to until the soak ends.
//!
//! Until that write nothing of it is touched. The write itself keeps what it changes, so that whoever comes after a crash
//! can give back exactly that.

use std::collections::BTreeMap;

use anneal_api::{
    names::request::TAKE_OVER,
    resources::{ModelDeployment, ModelDeploymentStatus},
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use kube::{Resource, ResourceExt};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    gate,
    objects::revision_labels,
    observe::Observed,
    plan::{self, Refusal, Step},
    pods::{self, PodSeen},
    revision::{Revision, RevisionName, Waiting},
    soak,
    validate::ValidDeployment,
};
use crate::{
    children::is_controlled_by,
    cluster::{self, ClusterError},
    context::{Context, Transition},
};

/// Annotation of a Service that was taken over: what it was, for as long as that may be wanted back.
const TAKEN_FROM: &str = "anneal.dev/taken-from";

/// What was changed of a Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Before {
    /// Labels that had other values, or none.
    pub labels: BTreeMap<String, Option<String>>,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// The pods that it led to.
    pub selector: BTreeMap<String, String>,
}

/// A Service that was there before, and the pods behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct Former {
    /// How far it is.
    pub stage: Stage,
    /// What it was.
    pub before: Before,
    /// The pods that it led to, as they are.
    pub pods: Vec<PodSeen>,
}

/// How far a Service is on its way.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// Its owner hands it over, and it is as it was.
    Offered(Box<Service>),
    /// It leads to a revision, and can be given back.
    Taken,
}

/// A write to a Service that was there before.
#[derive(Clone, Debug)]
pub enum Write {
    /// It leads to a revision now.
    Take(Value),
    /// It is what it was.
    GiveBack(Value),
    /// What it was is forgotten.
    Release(Value),
}

impl Write {
    /// What is written, as a merge patch.
    pub fn patch(&self) -> &Value {
        match self {
            Self::Take(patch) | Self::GiveBack(patch) | Self::Release(patch) => patch,
        }
    }
}

impl Before {
    fn of(service: &Service) -> Self {
        let spec = service.spec.clone().unwrap_or_default();
        Self {
            labels: BTreeMap::new(),
            kind: spec.type_.unwrap_or_default(),
            ports: spec.ports.unwrap_or_default(),
            selector: spec.selector.unwrap_or_default(),
        }
    }

    /// The pods that it led to, in words.
    fn pods(&self) -> String {
        let pairs: Vec<String> = self.selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
        pairs.join(",")
    }
}

/// Looks at the Service of this name: the deployment's own, and the one that was there before.
///
/// # Errors
/// When the API server does not answer, or the Service belongs to somebody who does not hand it over.
pub async fn observe(
    context: &Context,
    namespace: &str,
    name: &str,
    uid: &str,
) -> Result<(Option<Service>, Option<Former>), ClusterError> {
    let Some(service) = cluster::get::<Service>(&context.client, namespace, name).await? else {
        return Ok((None, None));
    };
    let is_own = is_controlled_by(&service, uid);
    let is_offered = service.annotations().get(TAKE_OVER).is_some_and(|value| value == "true");
    let is_free = service.owner_references().iter().all(|owner| owner.controller != Some(true));
    let (service, stage, before) = match service.annotations().get(TAKEN_FROM) {
        _ if !is_own && is_offered && is_free => {
            let before = Before::of(&service);
            (None, Stage::Offered(Box::new(service)), before)
        }
        _ if !is_own => return Err(ClusterError::NotHandedOver { name: name.to_owned() }),
        // What somebody made of the annotation is nothing that could be given back.
        Some(text) => match serde_json::from_str(text) {
            Ok(before) => (Some(service), Stage::Taken, before),
            Err(_) => return Ok((Some(service), None)),
        },
        None => return Ok((Some(service), None)),
    };
    let labels = before.pods();
    let pods =
        if labels.is_empty() { Vec::new() } else { cluster::list::<Pod>(&context.client, namespace, &labels).await? };
    let pods = pods.iter().filter_map(pods::seen).collect();
    Ok((service, Some(Former { stage, before, pods })))
}

impl Observed {
    /// The Service that waits to be taken over.
    fn offered(&self) -> Option<(&Former, &Service)> {
        let former = self.former.as_ref()?;
        match &former.stage {
            Stage::Offered(service) => Some((former, service)),
            Stage::Taken => None,
        }
    }

    /// What a Service was that has been taken over, while that may be wanted back.
    fn taken(&self) -> Option<&Former> {
        self.former.as_ref().filter(|former| former.stage == Stage::Taken)
    }
}

/// Pods that serve behind a Service that is still its owner's: a revision needs no fewer.
pub fn serving(seen: &Observed) -> i32 {
    let ready = seen.offered().map_or(0, |(former, _)| former.pods.iter().filter(|pod| pod.ready).count());
    i32::try_from(ready).unwrap_or(i32::MAX)
}

/// Whether new connections may still reach the former pods, although the Service has been taken over.
pub fn is_behind(seen: &Observed) -> bool {
    seen.taken().is_some_and(|former| former.pods.iter().any(|pod| seen.endpoints.contains(&pod.uid)))
}

/// Revisions that new connections may still reach, although the Service has been given back.
pub fn lingering(seen: &Observed) -> impl Iterator<Item = &RevisionName> {
    let revisions = seen.offered().map(|_| &seen.revisions).into_iter().flatten();
    let is_behind = |pods: &[PodSeen]| pods.iter().any(|pod| seen.endpoints.contains(&pod.uid));
    revisions.filter(move |(_, revision)| is_behind(&revision.pods)).map(|(name, _)| name)
}

/// What keeps the Service from being taken over without anybody noticing.
pub fn hindrance(seen: &Observed, spec: &ValidDeployment, revision: &Revision) -> Option<Waiting> {
    let (former, _) = seen.offered()?;
    let (before, name) = (&former.before, &spec.name);
    let differs =
        |what: String| Some(Waiting::stalled("ServiceDiffers", format!("Service {name} cannot be taken over: {what}")));
    let kind = spec.service.kind.as_str();
    if before.kind != kind {
        let was = &before.kind;
        return differs(format!("it is of type {was}, and spec.service.type is {kind}; make the two the same"));
    }
    let port = spec.service.port;
    let ports: Vec<String> = before.ports.iter().map(|port| port.port.to_string()).collect();
    if ports != [port.to_string()] {
        let ports = ports.join(", ");
        return differs(format!("it has port {ports}, and spec.service.port is {port}; make the two the same"));
    }
    if let Some(other) = before.ports.iter().filter_map(|port| port.name.as_ref()).find(|name| *name != "http") {
        return differs(format!(
            "its port is named {other}, and would be named http; rename it, and who asks for it by name"
        ));
    }
    if before.selector.is_empty() {
        return differs("it has no selector, so that nobody knows the pods behind it; give it one".to_owned());
    }
    let mut labels = revision_labels("server", name, Some(&revision.name));
    labels.extend(revision.inputs.pod_template.labels.clone());
    let chosen = before.selector.iter().all(|(key, value)| labels.get(key) == Some(value));
    chosen.then(|| {
        let message = format!(
            "Service {name} chooses pods by {}, which those of a revision carry too, so that they would get traffic before they have passed; take these labels out of podTemplate.labels, or narrow the selector",
            before.pods()
        );
        Waiting::stalled("OverlappingSelector", message)
    })
}

/// Until when the former pods may get the traffic back.
pub fn until(seen: &Observed, spec: &ValidDeployment) -> Option<Timestamp> {
    seen.taken()?;
    let promoted = gate::entry(&seen.status, &seen.live()?)?.promoted_time.as_ref()?.0;
    promoted.checked_add(spec.gate.soak).ok()
}

/// The way back to the former pods, while they may get the traffic back and the revision fails or was aborted.
pub fn fall_back(seen: &Observed, spec: &ValidDeployment, now: Timestamp) -> Option<Step> {
    let (former, live) = (seen.taken()?, seen.live()?);
    let entry = gate::entry(&seen.status, &live)?;
    if entry.rejection.is_some() && seen.status.stable_revision.is_none() && seen.status.promotion.is_none() {
        return Some(Step::GiveBack);
    }
    // A revision that is held is nearer.
    let (reason, why) = match &seen.status.promotion {
        Some(promotion) if soak::former(seen, promotion).is_none() => soak::unconfirmed(seen, spec, promotion, now)?,
        None if now < until(seen, spec)? && plan::held(seen, spec, now).is_none() => {
            soak::reason(seen, spec, &live, entry.promoted_time.as_ref()?.0)?
        }
        _ => return None,
    };
    let message = format!(
        "revision {live} gave the Service back to the pods of {}: {why}; correct the spec, or annotate it with anneal.dev/retry=true",
        former.before.pods()
    );
    Some(Step::Withdraw(Refusal { reason, message }))
}

/// The write that brings a Service that was there before where the step wants it; `None` where it stays as it is.
pub fn write(seen: &Observed, wanted: &Service, patch: Option<Value>, desired: Wanted) -> Option<Write> {
    match (&seen.former, desired) {
        (Some(former @ Former { stage: Stage::Offered(service), .. }), Wanted::Traffic) => {
            patch.map(|patch| Write::Take(take(&former.before, service, wanted, patch)))
        }
        (Some(former @ Former { stage: Stage::Taken, .. }), Wanted::GiveBack) => {
            seen.service.as_ref().map(|service| Write::GiveBack(give_back(&former.before, service, &seen.owner)))
        }
        (Some(Former { stage: Stage::Taken, .. }), Wanted::Release) => {
            let none = json!({"metadata": {"annotations": {TAKEN_FROM: null, TAKE_OVER: null}}});
            Some(Write::Release(none))
        }
        _ => None,
    }
}

/// What a step wants of a Service that was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// That it stays as it is.
    Nothing,
    /// That it leads to the revision.
    Traffic,
    /// That it is what it was.
    GiveBack,
    /// That what it was is forgotten.
    Release,
}

impl Wanted {
    /// What the step wants.
    pub fn of(seen: &Observed, spec: &ValidDeployment, step: &Step, now: Timestamp) -> Self {
        match step {
            // Or what serves already, where its Service was made anew and is handed over again.
            Step::Switch(_) | Step::Restore(Some(_)) => Self::Traffic,
            Step::GiveBack => Self::GiveBack,
            Step::Withdraw(_) => Self::Nothing,
            step if !step.is_switch() && until(seen, spec).is_some_and(|until| now >= until) => Self::Release,
            _ => Self::Nothing,
        }
    }
}

/// One write: the Service is the deployment's own, leads to the revision, and keeps what it was.
fn take(before: &Before, existing: &Service, wanted: &Service, mut patch: Value) -> Value {
    let labels = wanted.labels().keys().map(|key| (key.clone(), existing.labels().get(key).cloned()));
    let before = Before { labels: labels.collect(), ..before.clone() };
    let owners = existing.owner_references().iter().chain(wanted.owner_references());
    patch["metadata"]["ownerReferences"] = json!(owners.collect::<Vec<_>>());
    // Labels, ports and a selector can always be written.
    patch["metadata"]["annotations"] = json!({TAKEN_FROM: serde_json::to_string(&before).unwrap_or_default()});
    patch
}

/// One write: the Service is its owner's again, and leads to the pods that it led to before.
fn give_back(before: &Before, existing: &Service, owner: &ModelDeployment) -> Value {
    let chosen = existing.spec.as_ref().and_then(|spec| spec.selector.clone()).unwrap_or_default();
    let mut selector: BTreeMap<String, Value> = chosen.into_keys().map(|key| (key, Value::Null)).collect();
    selector.extend(before.selector.iter().map(|(key, value)| (key.clone(), json!(value))));
    let uid = owner.uid();
    let owners = existing.owner_references().iter().filter(|owner| Some(&owner.uid) != uid.as_ref());
    json!({
        "metadata": {
            "resourceVersion": existing.resource_version(),
            "labels": before.labels,
            "annotations": {TAKEN_FROM: null},
            "ownerReferences": owners.collect::<Vec<_>>(),
        },
        "spec": {"type": before.kind, "ports": before.ports, "selector": selector},
    })
}

/// The finalizers that the deployment is to have before a step that wants this of the Service, where it has others. For as
/// long as the Service may be wanted back, it is given back before a deployment that is deleted takes it along.
pub fn finalizers(seen: &Observed, wanted: Wanted) -> Option<Vec<String>> {
    let is_needed = seen.taken().is_some() || (seen.offered().is_some() && wanted == Wanted::Traffic);
    let has = seen.owner.finalizers().iter().any(|it| it == TAKE_OVER);
    (is_needed != has).then(|| {
        let others = seen.owner.finalizers().iter().filter(|it| *it != TAKE_OVER).cloned();
        others.chain(is_needed.then(|| TAKE_OVER.to_owned())).collect()
    })
}

/// Writes the finalizers of a deployment.
///
/// # Errors
/// When the API server does not answer or refuses, as where the deployment has changed.
pub async fn hold(context: &Context, owner: &ModelDeployment, finalizers: &[String]) -> Result<(), ClusterError> {
    let patch = json!({"metadata": {"resourceVersion": owner.resource_version(), "finalizers": finalizers}});
    let (namespace, name) = (owner.namespace().unwrap_or_default(), owner.name_any());
    cluster::merge::<ModelDeployment>(&context.client, &namespace, &name, &patch).await.map(|_| ())
}

/// Gives the Service back of a deployment that is being deleted while the former pods may still be wanted back.
///
/// # Errors
/// When the API server does not answer or refuses.
pub async fn leave(context: &Context, known: &ModelDeployment) -> Result<(), ClusterError> {
    if !known.finalizers().iter().any(|it| it == TAKE_OVER) {
        return Ok(());
    }
    let (namespace, name) = (known.namespace().unwrap_or_default(), known.name_any());
    let owner: Option<ModelDeployment> = cluster::get(&context.client, &namespace, &name).await?;
    let is_leaving =
        |owner: &ModelDeployment| owner.uid() == known.uid() && owner.metadata.deletion_timestamp.is_some();
    let Some(owner) = owner.filter(is_leaving) else { return Ok(()) };
    let service = cluster::get::<Service>(&context.client, &namespace, &name).await?;
    let taken = service.filter(|service| is_controlled_by(service, &owner.uid().unwrap_or_default()));
    let before = |service: &Service| serde_json::from_str::<Before>(service.annotations().get(TAKEN_FROM)?).ok();
    if let Some((service, before)) = taken.and_then(|service| before(&service).map(|before| (service, before))) {
        let patch = give_back(&before, &service, &owner);
        cluster::merge::<Service>(&context.client, &namespace, &name, &patch).await?;
        context.publish(&owner.object_ref(&()), &[given_back(&before)]).await;
    }
    let others: Vec<String> = owner.finalizers().iter().filter(|it| *it != TAKE_OVER).cloned().collect();
    hold(context, &owner, &others).await
}

fn given_back(before: &Before) -> Transition {
    Transition::warning("ServiceGivenBack", format!("the Service leads to the pods of {} again", before.pods()))
}

/// What changed, in the words of Events.
pub fn transitions(seen: &Observed, spec: &ValidDeployment, step: &Step, now: Timestamp) -> Option<Transition> {
    let former = seen.former.as_ref()?;
    let pods = former.before.pods();
    match (step, Wanted::of(seen, spec, step, now)) {
        (Step::HandOver(to), _) if seen.status.stable_revision.is_none() => {
            let note = format!(
                "the Service leads to revision {} in place of the pods of {pods}; leave these running until the soak ends",
                to.name()
            );
            Some(Transition::normal("ServiceTakenOver", note))
        }
        (Step::GiveBack, _) => Some(given_back(&former.before)),
        (_, Wanted::Release) => {
            let note = format!(
                "the pods of {pods} get no traffic any more and are their owner's to delete, with their autoscaler and disruption budget; take the Service out of the manifests that made it"
            );
            Some(Transition::normal("TakeOverComplete", note))
        }
        _ => None,
    }
}

/// The status after the Service has been given up.
pub fn withdraw(status: &mut ModelDeploymentStatus) {
    status.stable_revision = None;
    status.candidate_revision = None;
    status.promotion = None;
}

#[cfg(test)]
mod tests {
    use anneal_api::names::label;

    use super::*;
    use crate::model_deployment::{
        apply, objects,
        tests::{fixtures, simulation::merge},
    };

    fn merged(mut object: Value, patch: &Value) -> Service {
        merge(&mut object, patch.clone());
        serde_json::from_value(object).expect("a Service")
    }

    #[test]
    fn what_is_given_back_is_exactly_what_was_taken() {
        let owner = fixtures::deployment(
            &json!({"model": {"trainingRunRef": {"name": "run"}}, "service": {"type": "LoadBalancer"}}),
        );
        let spec = crate::model_deployment::validate::validate(&owner).expect("valid");
        let original = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": "cats", "namespace": "demo", "resourceVersion": "7",
                "labels": {"app.kubernetes.io/name": "cats", "team": "vision"},
                "annotations": {"anneal.dev/take-over": "true", "lb.example.com/internal": "true"}
            },
            "spec": {
                "clusterIP": "10.0.0.1", "type": "LoadBalancer", "selector": {"app": "cats", "tier": "web"},
                "ports": [{"port": 80, "targetPort": "http", "nodePort": 30080, "protocol": "TCP"}]
            }
        });
        let existing: Service = serde_json::from_value(original.clone()).expect("a Service");
        let revision = RevisionName::parse("0123abcd").expect("a name");
        let to = objects::Destination::unchanged(Some(&revision));
        let wanted = objects::service(&owner, &spec, &to);
        let patch =
            take(&Before::of(&existing), &existing, &wanted, apply::patch(&wanted, &existing).expect("a patch"));
        let taken = merged(original, &patch);
        assert!(is_controlled_by(&taken, "owner"));
        assert_eq!(taken.spec.as_ref().and_then(|it| it.selector.clone()), wanted.spec.and_then(|it| it.selector));
        assert_eq!(taken.labels()["team"], "vision");
        assert_eq!(taken.labels()[label::NAME], "anneal");
        assert_eq!(taken.annotations()["lb.example.com/internal"], "true");

        let before: Before = serde_json::from_str(&taken.annotations()[TAKEN_FROM]).expect("what it was");
        let patch = give_back(&before, &taken, &owner);
        let mut back = merged(serde_json::to_value(&taken).expect("json"), &patch);
        // An empty list of owners is none.
        back.metadata.owner_references = back.metadata.owner_references.filter(|owners| !owners.is_empty());
        assert_eq!(back, existing);
    }
}
