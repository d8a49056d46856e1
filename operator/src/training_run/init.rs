//! What a run begins with: random weights, a file, or what another run published. Once it is known the status keeps it,
//! so that every attempt begins with the same weights, whatever becomes of the other run.

use anneal_api::resources::{InitCheckpoint, InitFrom, RunPhase, TrainingRun, run_reason};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;

use super::claim::{self, Claim, Use};
use crate::{
    cluster::{self, ClusterError},
    context::Context,
};

/// What is known about the checkpoint that a run begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Init {
    /// The run begins with random weights.
    Random,
    /// It is in the status, on this claim; absent where it is the output claim, which is looked at anyway.
    Pinned(Option<Claim>),
    /// It is known now, and to be recorded.
    Found(InitCheckpoint),
    /// It is not there yet: a reason and a sentence.
    Waiting(&'static str, String),
}

/// Looks for the checkpoint that a run begins with.
///
/// # Errors
/// When the API server does not answer.
pub async fn observe(context: &Context, run: &TrainingRun) -> Result<Init, ClusterError> {
    let Some(wanted) = &run.spec.init_from else { return Ok(Init::Random) };
    let namespace = run.namespace().unwrap_or_default();
    if let Some(pinned) = run.status.as_ref().and_then(|status| status.init_from.as_ref()) {
        let name = &pinned.claim_name;
        if *name == run.output_claim() {
            return Ok(Init::Pinned(None));
        }
        let found: Option<PersistentVolumeClaim> = cluster::get(&context.client, &namespace, name).await?;
        return Ok(Init::Pinned(Some(claim::given(run, name, found.as_ref(), Use::Read))));
    }
    let other: Option<TrainingRun> = match &wanted.training_run_ref {
        Some(reference) => cluster::get(&context.client, &namespace, &reference.name).await?,
        None => None,
    };
    Ok(find(wanted, other.as_ref()))
}

fn find(wanted: &InitFrom, other: Option<&TrainingRun>) -> Init {
    if let (Some(claim), Some(path), Some(sha256)) = (&wanted.claim_name, &wanted.path, &wanted.sha256) {
        return Init::Found(InitCheckpoint { claim_name: claim.clone(), path: path.clone(), sha256: sha256.clone() });
    }
    let name = wanted.training_run_ref.as_ref().map(|reference| reference.name.as_str()).unwrap_or_default();
    let Some(other) = other else {
        let text = format!("initFrom names TrainingRun {name}, which does not exist; create it, and this run goes on");
        return Init::Waiting(run_reason::INIT_RUN_NOT_FOUND, text);
    };
    let status = other.status.as_ref();
    let phase = status.and_then(|status| status.phase);
    match (phase, status.and_then(|status| status.result.as_ref())) {
        (Some(RunPhase::Succeeded), Some(result)) => Init::Found(InitCheckpoint {
            claim_name: other.output_claim(),
            path: result.checkpoint.clone(),
            sha256: result.sha256.clone(),
        }),
        (Some(RunPhase::Succeeded), None) => Init::Waiting(
            run_reason::INIT_RUN_WITHOUT_MODEL,
            format!(
                "TrainingRun {name}, which initFrom names, has succeeded, but its image reported no published model; \
                 in a new run, name the file in initFrom by claimName, path and sha256"
            ),
        ),
        (Some(RunPhase::Failed), _) => Init::Waiting(
            run_reason::INIT_RUN_FAILED,
            format!(
                "TrainingRun {name}, which initFrom names, failed; delete it and create it anew, and this run goes on"
            ),
        ),
        (phase, _) => Init::Waiting(
            run_reason::INIT_RUN_NOT_READY,
            format!(
                "TrainingRun {name}, which initFrom names, is {}; this run starts when it has succeeded",
                phase.map_or("not started", RunPhase::as_str)
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use anneal_api::Sha256;
    use serde_json::{Value, json};

    use super::*;
    use crate::training_run::fixtures::result;

    fn base(status: &Value) -> TrainingRun {
        serde_json::from_value(json!({
            "apiVersion": "anneal.dev/v1alpha1", "kind": "TrainingRun", "metadata": {"name": "base"},
            "spec": {"dataset": {"uri": "synthetic://"}, "output": {"claimName": "models"}}, "status": status
        }))
        .expect("a run")
    }

    fn published() -> Value {
        json!({"phase": "Succeeded", "result": result("a", 0.9)})
    }

    fn from_base() -> InitFrom {
        serde_json::from_value(json!({"trainingRunRef": {"name": "base"}})).expect("a source")
    }

    #[test]
    fn a_run_waits_until_the_other_one_has_published() {
        let reason = |other: Option<&TrainingRun>| match find(&from_base(), other) {
            Init::Waiting(reason, _) => reason,
            _ => "",
        };
        assert_eq!(reason(None), "InitRunNotFound");
        assert_eq!(reason(Some(&base(&json!({})))), "InitRunNotReady");
        assert_eq!(reason(Some(&base(&json!({"phase": "Running"})))), "InitRunNotReady");
        assert_eq!(reason(Some(&base(&json!({"phase": "Failed"})))), "InitRunFailed");
        assert_eq!(reason(Some(&base(&json!({"phase": "Succeeded"})))), "InitRunWithoutModel");
        assert_eq!(reason(Some(&base(&published()))), "");
    }

    #[test]
    fn what_another_run_published_is_named_by_claim_path_and_digest() {
        let sha256 = Sha256::from_bytes([0xaa; 32]);
        let checkpoint = InitCheckpoint { claim_name: "models".into(), path: "models/a.pth".into(), sha256 };
        assert_eq!(find(&from_base(), Some(&base(&published()))), Init::Found(checkpoint));
    }
}
