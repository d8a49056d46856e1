//! What the cluster says about one deployment at one instant. Reads only.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use anneal_api::{
    names::label,
    resources::{DeploymentPhase, ModelDeployment, ModelDeploymentStatus, TrainingRun},
    smoke::{SmokeReport, Verdict},
};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, Deployment},
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::Job,
    core::v1::{ConfigMap, PersistentVolumeClaim, Pod, PodTemplateSpec, Service},
    discovery::v1::{Endpoint, EndpointSlice},
    policy::v1::PodDisruptionBudget,
};
use kube::{ResourceExt, runtime::reflector::ObjectRef};

use super::{
    canary::ROUTE_ACCEPTED,
    objects::{annotation, preview_name, revision_name},
    pods::{self, PodSeen, Trouble},
    record::{self, Records},
    revision::RevisionName,
    route::{HTTPRoute, RouteSeen},
    takeover::{self, Former},
};
use crate::{
    children::is_controlled_by,
    cluster::{self, ClusterError, Object},
    context::Context,
    performance::Measured,
    runs,
    shadow::board::Compared,
    signals::{Signals, Window},
};

/// What the cluster says about one deployment at one instant.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The deployment itself.
    pub owner: Arc<ModelDeployment>,
    /// Its status, as it was last written.
    pub status: ModelDeploymentStatus,
    /// The run that it refers to.
    pub run: Option<TrainingRun>,
    /// Name of a claim that a rollout needs and that does not exist.
    pub missing_claim: Option<String>,
    /// Who may use the claim that a rollout needs at one time.
    pub claim_use: ClaimUse,
    /// Images of smoke cases that do not exist, as `CONFIGMAP/KEY`.
    pub missing_images: Vec<String>,
    /// The revisions that are written down.
    pub records: Records,
    /// The revisions that have a Deployment.
    pub revisions: BTreeMap<RevisionName, RevisionSeen>,
    /// The smoke tests.
    pub tests: Vec<TestSeen>,
    /// The Service that callers use.
    pub service: Option<Service>,
    /// The Service that was there before, where it is or was taken over.
    pub former: Option<Former>,
    /// Whether a Service of the preview's name belongs to somebody else.
    pub has_foreign_preview: bool,
    /// The Service that shows the candidate.
    pub preview: Option<Service>,
    /// Whether an autoscaler of this name belongs to somebody else.
    pub has_foreign_autoscaler: bool,
    /// The autoscaler.
    pub autoscaler: Option<HorizontalPodAutoscaler>,
    /// The disruption budgets.
    pub budgets: Vec<PodDisruptionBudget>,
    /// UIDs of the pods behind the Service, ready or not; looked at only while a switch is under way.
    pub endpoints: BTreeSet<String>,
    /// The route from Gateways; looked at only where one is asked for, or was.
    pub route: RouteSeen,
    /// The Services of single revisions, for a route to name; likewise.
    pub backend_services: Vec<Service>,
    /// UIDs of the pods behind the candidate's own Service that take requests; looked at only during a canary's rollout.
    pub backends: BTreeSet<String>,
    /// What the pods of which revision count that just got the traffic, or a share of it.
    pub signals: Option<(Window, Signals)>,
    /// How well the revision does that has the traffic, where the spec asks for it.
    pub performance: Option<Measured>,
    /// How often a candidate that gets copies of requests agrees with what serves.
    pub shadow: Option<Compared>,
}

/// Who may use a claim at one time, by its access modes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ClaimUse {
    /// All pods, wherever they run; or the claim is not known.
    #[default]
    Everywhere,
    /// The pods of one node.
    OneNode,
    /// One pod.
    OnePod,
}

impl ClaimUse {
    fn of(claim: &PersistentVolumeClaim) -> Self {
        let modes = claim.spec.iter().flat_map(|spec| spec.access_modes.iter().flatten());
        let most = modes.map(|mode| match mode.as_str() {
            "ReadWriteOncePod" => Self::OnePod,
            "ReadWriteOnce" => Self::OneNode,
            _ => Self::Everywhere,
        });
        most.min().unwrap_or_default()
    }
}

/// A revision's Deployment and pods.
#[derive(Clone, Debug, PartialEq)]
pub struct RevisionSeen {
    /// UID of the Deployment.
    pub uid: String,
    /// Pods that it is to have.
    pub replicas: i32,
    /// Hash of the gate that the revision was last put to.
    pub gate: Option<String>,
    /// Its pods, as the Deployment makes them.
    pub template: PodTemplateSpec,
    /// When the Deployment was created.
    pub created: Timestamp,
    /// Its pods, as they are.
    pub pods: Vec<PodSeen>,
    /// Why the API server refuses its pods.
    pub refused: Option<String>,
}

/// A smoke test.
#[derive(Clone, Debug, PartialEq)]
pub struct TestSeen {
    /// UID of the Job.
    pub uid: String,
    /// The revision under test.
    pub revision: RevisionName,
    /// Its number, counted from 1.
    pub number: u32,
    /// Marks the rollout and the gate that it belongs to.
    pub key: String,
    /// UIDs of the pods that it asks.
    pub pods: BTreeSet<String>,
    /// How it ended.
    pub report: Option<SmokeReport>,
    /// Why its pod does not start.
    pub trouble: Option<Trouble>,
}

impl Observed {
    /// The revision that the Service's selector chooses.
    pub fn live(&self) -> Option<RevisionName> {
        let selector = self.service.as_ref()?.spec.as_ref()?.selector.as_ref()?;
        let own = selector.get(label::DEPLOYMENT) == Some(&self.owner.name_any());
        selector.get(label::REVISION).filter(|_| own).and_then(|name| RevisionName::parse(name))
    }
}

/// Looks at everything that belongs to a deployment. The deployment itself is read again, since the watch may lag
/// behind the status that was just written. `None` where it is gone or on its way out.
///
/// # Errors
/// When the API server does not answer, or an object that is needed belongs to somebody else.
pub async fn observe(context: &Context, known: &ModelDeployment) -> Result<Option<Observed>, ClusterError> {
    let (client, namespace, name) = (&context.client, known.namespace().unwrap_or_default(), known.name_any());
    let owner: Option<ModelDeployment> = cluster::get(client, &namespace, &name).await?;
    let Some(owner) = owner.filter(|owner| owner.uid() == known.uid() && owner.metadata.deletion_timestamp.is_none())
    else {
        return Ok(None);
    };
    let uid = owner.uid().unwrap_or_default();
    let labels = format!("{}={name}", label::DEPLOYMENT);
    let preview = preview_name(&name);
    let ((service, former), preview, autoscaler, budgets, records, deployments, jobs, run) = tokio::try_join!(
        takeover::observe(context, &namespace, &name, &uid),
        cluster::get::<Service>(client, &namespace, &preview),
        cluster::get::<HorizontalPodAutoscaler>(client, &namespace, &name),
        cluster::list::<PodDisruptionBudget>(client, &namespace, &labels),
        cluster::list::<ControllerRevision>(client, &namespace, &labels),
        cluster::list::<Deployment>(client, &namespace, &labels),
        cluster::list::<Job>(client, &namespace, &labels),
        run(context, &owner),
    )?;
    // After the Jobs: the pod of a Job that is over has its last words by then.
    let pods = cluster::list::<Pod>(client, &namespace, &labels).await?;
    let endpoints = endpoints(context, &owner, former.is_some()).await?;
    let (route, backend_services, backends) = gateways(context, &owner).await?;
    let (autoscaler, has_foreign_autoscaler) = own_or_foreign(autoscaler, &uid);
    let (preview, has_foreign_preview) = own_or_foreign(preview, &uid);
    let own = |record: &&ControllerRevision| is_controlled_by(*record, &uid);
    let records: Records = records.iter().filter(own).filter_map(record::read).collect();
    let (missing_claim, claim_use, missing_images) = missing(context, &owner, run.as_ref(), &records).await?;
    Ok(Some(Observed {
        run,
        missing_claim,
        claim_use,
        missing_images,
        records,
        revisions: deployments
            .iter()
            .filter(|deployment| is_controlled_by(*deployment, &uid))
            .filter_map(|deployment| of_deployment(deployment, &pods))
            .collect(),
        tests: jobs.iter().filter(|job| is_controlled_by(*job, &uid)).filter_map(|job| test(job, &pods)).collect(),
        service,
        former,
        has_foreign_preview,
        preview,
        has_foreign_autoscaler,
        autoscaler,
        budgets: budgets.into_iter().filter(|budget| is_controlled_by(budget, &uid)).collect(),
        endpoints,
        route,
        backend_services,
        backends,
        signals: context.signals.latest(&ObjectRef::from(&owner)),
        performance: context.performance.latest(&ObjectRef::from(&owner)),
        shadow: context.shadows.latest(&ObjectRef::from(&owner)),
        status: owner.status.clone().unwrap_or_default(),
        owner: Arc::new(owner),
    }))
}

/// An object that a rollout can do without, and whether there is one that belongs to somebody else.
fn own_or_foreign<K: Object>(found: Option<K>, uid: &str) -> (Option<K>, bool) {
    let is_foreign = found.as_ref().is_some_and(|object| !is_controlled_by(object, uid));
    (found.filter(|_| !is_foreign), is_foreign)
}

async fn run(context: &Context, owner: &ModelDeployment) -> Result<Option<TrainingRun>, ClusterError> {
    let (namespace, model) = (owner.namespace().unwrap_or_default(), &owner.spec.model);
    if let Some(selector) = model.training_run_selector.as_ref().filter(|it| !it.match_labels.is_empty()) {
        let mut runs = context.runs_of(&namespace).await?;
        runs.retain(|run| selector.matches(run.labels()));
        return Ok(runs::newest_success(runs).map(Arc::unwrap_or_clone));
    }
    match &model.training_run_ref {
        Some(run) => cluster::get(&context.client, &namespace, &run.name).await,
        None => Ok(None),
    }
}

/// UIDs of the pods behind the Service, while a switch is under way or the Service is being taken over.
async fn endpoints(
    context: &Context,
    owner: &ModelDeployment,
    is_taken_over: bool,
) -> Result<BTreeSet<String>, ClusterError> {
    if !is_taken_over && owner.status.as_ref().is_none_or(|status| status.promotion.is_none()) {
        return Ok(BTreeSet::new());
    }
    let labels = format!("kubernetes.io/service-name={}", owner.name_any());
    let slices =
        cluster::list::<EndpointSlice>(&context.client, &owner.namespace().unwrap_or_default(), &labels).await?;
    let pods = slices.into_iter().flat_map(|slice| slice.endpoints);
    Ok(pods.filter_map(|endpoint| endpoint.target_ref?.uid).collect())
}

/// The route from Gateways, the Services that it may name, and the ready pods behind the candidate's one.
async fn gateways(
    context: &Context,
    owner: &ModelDeployment,
) -> Result<(RouteSeen, Vec<Service>, BTreeSet<String>), ClusterError> {
    let status = owner.status.clone().unwrap_or_default();
    let had_route = status.canary.is_some() || status.conditions.iter().any(|it| it.type_ == ROUTE_ACCEPTED);
    if owner.spec.strategy.canary.is_none() && !had_route {
        return Ok((RouteSeen::Served(None), Vec::new(), BTreeSet::new()));
    }
    let (client, namespace, name) = (&context.client, owner.namespace().unwrap_or_default(), owner.name_any());
    let uid = owner.uid().unwrap_or_default();
    let route = match cluster::get_if_served::<HTTPRoute>(client, &namespace, &name).await? {
        // No reason to leave alone what serves: a way back needs no route.
        Some(Some(found)) if !is_controlled_by(&found, &uid) => RouteSeen::Foreign,
        Some(found) => RouteSeen::Served(found.map(Box::new)),
        None => RouteSeen::NotServed,
    };
    let labels = format!("{}={name},{}=backend", label::DEPLOYMENT, label::COMPONENT);
    let services = cluster::list::<Service>(client, &namespace, &labels).await?;
    let mut ready = BTreeSet::new();
    let shares = status.canary.map(|canary| canary.revision);
    for revision in shares.into_iter().chain(status.candidate_revision).collect::<BTreeSet<_>>() {
        let Some(revision) = RevisionName::parse(&revision) else { continue };
        let labels = format!("kubernetes.io/service-name={}", revision_name(&name, &revision));
        let slices = cluster::list::<EndpointSlice>(client, &namespace, &labels).await?;
        let takes = |endpoint: &Endpoint| endpoint.conditions.as_ref().is_none_or(|it| it.ready != Some(false));
        let endpoints = slices.into_iter().flat_map(|slice| slice.endpoints).filter(takes);
        ready.extend(endpoints.filter_map(|endpoint| endpoint.target_ref?.uid));
    }
    let own = |service: &Service| is_controlled_by(service, &uid);
    Ok((route, services.into_iter().filter(own).collect(), ready))
}

/// What a rollout needs from the user and does not find. At rest nothing is needed, and nothing is read.
async fn missing(
    context: &Context,
    owner: &ModelDeployment,
    run: Option<&TrainingRun>,
    records: &Records,
) -> Result<(Option<String>, ClaimUse, Vec<String>), ClusterError> {
    use DeploymentPhase::{Degraded, Failed, Soaking, Stable};
    let at_rest = owner.status.as_ref().is_some_and(|status| {
        status.observed_generation == owner.metadata.generation
            && matches!(status.phase, Some(Stable | Soaking | Degraded | Failed))
    });
    if at_rest {
        return Ok((None, ClaimUse::default(), Vec::new()));
    }
    let (client, namespace) = (&context.client, owner.namespace().unwrap_or_default());
    let pinned = owner.spec.pinned_revision.as_deref().and_then(RevisionName::parse);
    let pinned = pinned.and_then(|pinned| records.get(&pinned)?.inputs.model.claim().map(str::to_owned));
    let named = || owner.spec.model.claim_name.clone().or_else(|| run.map(TrainingRun::output_claim));
    let claim = pinned.or_else(named);
    let (missing_claim, claim_use) = match claim {
        Some(name) => match cluster::get::<PersistentVolumeClaim>(client, &namespace, &name).await? {
            Some(found) => (None, ClaimUse::of(&found)),
            None => (Some(name), ClaimUse::default()),
        },
        None => (None, ClaimUse::default()),
    };
    let images: BTreeSet<_> = owner
        .spec
        .gate
        .smoke_test
        .cases
        .iter()
        .filter_map(|case| {
            let image = case.image.as_ref().and_then(|image| image.config_map_key_ref.as_ref());
            image.or_else(|| case.tensors.as_ref()?.config_map_key_ref.as_ref())
        })
        .map(|image| (image.name.as_str(), image.key.as_str()))
        .collect();
    let mut maps: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (name, _) in &images {
        if !maps.contains_key(name) {
            let map: ConfigMap = cluster::get(client, &namespace, name).await?.unwrap_or_default();
            let binary = map.binary_data.into_iter().flatten().map(|(key, _)| key);
            maps.insert(name, map.data.into_iter().flatten().map(|(key, _)| key).chain(binary).collect());
        }
    }
    let missing = images.iter().filter(|(name, key)| !maps.get(name).is_some_and(|keys| keys.contains(*key)));
    Ok((missing_claim, claim_use, missing.map(|(name, key)| format!("{name}/{key}")).collect()))
}

fn of_deployment(deployment: &Deployment, pods: &[Pod]) -> Option<(RevisionName, RevisionSeen)> {
    let name = RevisionName::parse(deployment.labels().get(label::REVISION)?)?;
    // Pods belong to a ReplicaSet of the Deployment, which has the Deployment's name and a hash.
    let prefix = format!("{}-", deployment.name_any());
    let own = |pod: &&Pod| {
        pod.labels().get(label::REVISION).map(String::as_str) == Some(name.as_str())
            && pod.owner_references().iter().any(|owner| owner.kind == "ReplicaSet" && owner.name.starts_with(&prefix))
    };
    let note = |key: &str| deployment.annotations().get(key);
    let failing = deployment
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .find(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True");
    let seen = RevisionSeen {
        uid: deployment.uid().unwrap_or_default(),
        replicas: deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
        gate: note(annotation::GATE).cloned(),
        template: deployment.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default(),
        created: deployment.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
        pods: pods.iter().filter(own).filter_map(pods::seen).collect(),
        refused: failing.map(|condition| condition.message.clone().unwrap_or_default()),
    };
    Some((name, seen))
}

fn test(job: &Job, pods: &[Pod]) -> Option<TestSeen> {
    let uid = job.uid().unwrap_or_default();
    let note = |key: &str| job.annotations().get(key);
    let pod = pods.iter().filter(|pod| is_controlled_by(*pod, &uid)).max_by_key(|pod| pod.creation_timestamp());
    let ended = job.status.iter().flat_map(|status| status.conditions.iter().flatten()).find(|condition| {
        matches!(condition.type_.as_str(), "Complete" | "Failed" | "FailureTarget") && condition.status == "True"
    });
    let inconclusive = || SmokeReport {
        verdict: Verdict::Inconclusive,
        passed: 0,
        failed: 0,
        p95_milliseconds: None,
        message: match ended.and_then(|condition| condition.reason.as_deref()) {
            Some("DeadlineExceeded") => format!("no verdict came in time: {}", pods::no_report(pod)),
            _ => format!("no verdict was given: {}", pods::no_report(pod)),
        },
    };
    Some(TestSeen {
        revision: RevisionName::parse(job.labels().get(label::REVISION)?)?,
        number: job.name_any().rsplit('-').next()?.parse().ok()?,
        key: note(annotation::ROLLOUT)?.clone(),
        pods: note(annotation::PODS)?.split(',').map(str::to_owned).collect(),
        report: pod.and_then(pods::report).or_else(|| ended.map(|_| inconclusive())),
        trouble: pod.and_then(pods::seen).and_then(|pod| pod.trouble),
        uid,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_of_somebody_else_is_noticed_and_never_taken_for_the_deployments_own() {
        let service = |owner: &str| -> Service {
            let owner =
                serde_json::json!({"apiVersion": "v1", "kind": "A", "name": "a", "uid": owner, "controller": true});
            serde_json::from_value(serde_json::json!({"metadata": {"ownerReferences": [owner]}})).expect("a Service")
        };
        assert_eq!(own_or_foreign::<Service>(None, "own"), (None, false));
        assert_eq!(own_or_foreign(Some(service("own")), "own"), (Some(service("own")), false));
        assert_eq!(own_or_foreign(Some(service("other")), "own"), (None, true));
        assert_eq!(own_or_foreign(Some(Service::default()), "own"), (None, true), "nobody's is not ours");
    }
}
