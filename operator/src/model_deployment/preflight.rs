//! What a rollout cannot end well without, said before its deadline does: a volume that reaches its pods, a quota that has
//! room for them, metrics for its autoscaler. Each says what to do.

use std::collections::BTreeSet;

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;

use super::{
    objects::preview_name,
    observe::{ClaimUse, Observed, RevisionSeen},
    plan::needed,
    revision::{ModelFile, Waiting},
    validate::{Size, ValidDeployment},
};

/// Why an object is left to somebody else.
pub const NAME_TAKEN: &str = "NameTaken";

/// What `AutoscalingImpaired` may say: no metrics, another autoscaler of the same pods, and another one of the same name.
pub const IMPAIRMENTS: [&str; 3] = ["MetricsNotServed", "OverlappingAutoscaler", NAME_TAKEN];

/// Why the claim cannot be used as the rollout has to use it.
pub fn of_claim(seen: &Observed, spec: &ValidDeployment, model: &ModelFile) -> Option<Waiting> {
    if let Some(claim) = &seen.missing_claim {
        let message =
            format!("there is no PersistentVolumeClaim {claim} in this namespace; create it, or correct the model");
        return Some(Waiting::stalled("ClaimNotFound", message));
    }
    let is_shared = needed(seen, spec) > 1 || seen.revisions.values().any(|revision| revision.replicas > 0);
    let claim = model.claim().filter(|_| seen.claim_use == ClaimUse::OnePod && is_shared)?;
    let message = format!(
        "PersistentVolumeClaim {claim} is ReadWriteOncePod, and a rollout runs more than one pod; use a claim with ReadOnlyMany, ReadWriteMany or ReadWriteOnce, or name the model by uri"
    );
    Some(Waiting::stalled("ClaimForOnePod", message))
}

/// What keeps a revision's pods from getting ready.
pub fn hindrance(seen: &Observed, model: &ModelFile, this: &RevisionSeen) -> Option<Waiting> {
    let refused = this.refused.as_ref().map(|why| refused(why));
    let trouble = || this.pods.iter().find_map(|pod| pod.trouble.as_ref());
    refused
        .or_else(|| trouble().map(|trouble| Waiting::soon(trouble.reason, trouble.message.clone())))
        .or_else(|| on_another_node(seen, model, this))
}

/// The API server's reason for refusing pods, with what to do about it.
fn refused(why: &str) -> Waiting {
    if why.contains("exceeded quota") || why.contains("failed quota") {
        let message = format!(
            "a ResourceQuota has no room for the pods: {why}; raise it, or lower podTemplate.resources or the number of pods: a rollout needs twice as many for a while"
        );
        return Waiting::stalled("QuotaExceeded", message);
    }
    Waiting::stalled("PodsRefused", why)
}

/// A pod that starts on another node than those that use a claim which only one node can use at a time.
fn on_another_node(seen: &Observed, model: &ModelFile, this: &RevisionSeen) -> Option<Waiting> {
    let claim = model.claim()?;
    let ready = seen.revisions.values().flat_map(|revision| &revision.pods).filter(|pod| pod.ready);
    let taken: BTreeSet<&str> = ready.filter_map(|pod| pod.node.as_deref()).collect();
    let starting = this.pods.iter().filter(|pod| !pod.ready).filter_map(|pod| Some((pod, pod.node.as_deref()?)));
    let elsewhere = |(_, node): &(_, &str)| !taken.is_empty() && !taken.contains(node);
    let (pod, node) = starting.into_iter().find(elsewhere).filter(|_| seen.claim_use == ClaimUse::OneNode)?;
    let message = format!(
        "pod {} starts on node {node}, and PersistentVolumeClaim {claim} is ReadWriteOnce and in use on {}; where it does not start, use a claim with ReadOnlyMany or ReadWriteMany, name the model by uri, or keep the pods on one node by podTemplate.nodeSelector or affinity",
        pod.name,
        taken.into_iter().collect::<Vec<_>>().join(", ")
    );
    Some(Waiting::soon("VolumeOnAnotherNode", message))
}

/// Why the autoscaler does nothing, and will not by itself. That there are no metrics of a pod that has just started is
/// nothing to tell of.
pub fn of_autoscaler(autoscaler: &HorizontalPodAutoscaler) -> Option<(&'static str, String)> {
    let conditions = autoscaler.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let inactive = conditions.into_iter().find(|it| it.type_ == "ScalingActive" && it.status == "False")?;
    let why = inactive.message.as_deref().unwrap_or_default();
    if inactive.reason.as_deref() == Some("AmbiguousSelector") {
        let message = format!(
            "the pods are sized by another HorizontalPodAutoscaler, too: {why}; delete it, or set spec.replicas and leave the size to it by /scale"
        );
        return Some((IMPAIRMENTS[1], message));
    }
    let is_served = !["could not find the requested resource", "currently unable to handle the request"]
        .iter()
        .any(|sign| why.contains(sign));
    (!is_served).then(|| {
        let message =
            format!("the autoscaler gets no metrics: {why}; install metrics-server, or set spec.replicas in its place");
        (IMPAIRMENTS[0], message)
    })
}

/// Why there is no autoscaler. The one of that name may size the pods that were there before, which is no reason to touch
/// it, nor to serve nobody.
pub fn of_foreign_autoscaler(seen: &Observed, spec: &ValidDeployment) -> Option<(&'static str, String)> {
    let is_wanted = matches!(spec.size, Size::Auto(_)) && seen.has_foreign_autoscaler;
    is_wanted.then(|| {
        let message = format!(
            "HorizontalPodAutoscaler {} belongs to somebody else, so that the number of pods stays as it is; delete it when nobody needs it any more, or set spec.replicas",
            spec.name
        );
        (IMPAIRMENTS[2], message)
    })
}

/// Why there is no Service that shows the candidate. Pods are asked by their own addresses, so that a rollout does without it.
pub fn of_foreign_preview(seen: &Observed, spec: &ValidDeployment) -> Option<String> {
    seen.has_foreign_preview.then(|| {
        format!(
            "Service {} belongs to somebody else, so that no Service shows the candidate; delete it when nobody needs it any more, or rename it",
            preview_name(&spec.name)
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(reason: &str, message: &str) -> Option<&'static str> {
        let condition = json!({"type": "ScalingActive", "status": "False", "reason": reason, "message": message, "lastTransitionTime": null});
        let autoscaler = json!({"spec": {"maxReplicas": 2, "scaleTargetRef": {"kind": "Deployment", "name": "cats"}},
            "status": {"conditions": [condition], "desiredReplicas": 1}});
        let autoscaler = serde_json::from_value(autoscaler).expect("an autoscaler");
        of_autoscaler(&autoscaler).map(|(reason, _)| reason)
    }

    #[test]
    fn an_autoscaler_without_metrics_or_with_a_rival_is_told_of_and_one_that_waits_for_its_first_is_not() {
        let missing = "unable to fetch metrics from resource metrics API: the server could not find the requested resource (get pods.metrics.k8s.io)";
        assert_eq!(told("FailedGetResourceMetric", missing), Some("MetricsNotServed"));
        let rival = "pods by selector app=cats are controlled by multiple HPAs";
        assert_eq!(told("AmbiguousSelector", rival), Some("OverlappingAutoscaler"));
        let young = "unable to get metrics for resource cpu: no metrics returned from resource metrics API";
        assert_eq!(told("FailedGetResourceMetric", young), None);
    }

    #[test]
    fn a_quota_is_told_from_other_refusals() {
        assert_eq!(refused("pods \"a\" is forbidden: exceeded quota: small").reason, "QuotaExceeded");
        assert_eq!(refused("pods \"a\" is forbidden: violates PodSecurity").reason, "PodsRefused");
    }
}
