//! What to do about a reason that the operator gives: the commands that show more, then those that mend it.

use crate::target::{Found, Kind};

/// The examples of this version, for whoever has the plugin and no checkout.
const EXAMPLES: &str =
    concat!("https://raw.githubusercontent.com/anneal-dev/anneal/v", env!("CARGO_PKG_VERSION"), "/examples");

/// What to do about a reason.
pub fn about(found: &Found, reason: &str) -> Vec<String> {
    let (name, path) = (found.name(), found.path());
    let namespace = found.metadata().namespace.clone().unwrap_or_default();
    let kubectl = format!("kubectl -n {namespace}");
    let anneal = |command: &str| format!("kubectl anneal {command} -n {namespace}");
    let edit = format!("{kubectl} edit {} {name}", found.kind().short());
    match reason {
        "ImagePull" => vec![
            format!("{edit}   # podTemplate.image, or podTemplate.imagePullSecrets for a private registry"),
        ],
        "Unschedulable" => vec![
            "kubectl describe nodes | grep -A 8 'Allocated resources'".to_owned(),
            format!("{edit}   # lower podTemplate.resources.requests, or add a node"),
        ],
        "ClaimNotFound" => vec![
            format!("{kubectl} get persistentvolumeclaims"),
            format!("{kubectl} apply -f {EXAMPLES}/storage.yaml   # a claim to begin with; it goes on by itself then"),
        ],
        "ClaimLost" | "ClaimDeleting" | "VolumeMissing" | "ClaimForOnePod" | "VolumeOnAnotherNode" => {
            vec![format!("{kubectl} describe persistentvolumeclaims")]
        }
        "QuotaExceeded" | "PodsRefused" => vec![format!("{kubectl} describe resourcequotas")],
        "OOMKilled" | "OutOfMemory" => vec![format!("{edit}   # raise podTemplate.resources.limits.memory")],
        "SmokeTestFailed" => vec![
            anneal(&format!("logs {path} --smoke")),
            format!("{}   # once the smoke image or the model is corrected", anneal(&format!("retry {name}"))),
        ],
        "SmokeInconclusive" => vec![anneal(&format!("logs {path} --smoke")), anneal(&format!("retry {name}"))],
        "SmokeImageNotFound" => vec![format!("{kubectl} create configmap NAME --from-file=KEY=FILE   # it goes on by itself then")],
        "SoakFailed" | "CanaryFailed" | "Crashing" | "ProgressDeadlineExceeded" => vec![
            anneal(&format!("logs {path}")),
            format!("{}   # once it is mended", anneal(&format!("retry {name}"))),
        ],
        "ShadowDisagrees" | "ShadowInconclusive" => vec![
            format!("{edit}   # strategy.canary.shadow, where its bounds ask for too much"),
            anneal(&format!("retry {name}")),
        ],
        "Aborted" => vec![anneal(&format!("retry {name}"))],
        "BelowMinAccuracy" => vec![
            anneal("status"),
            format!("{edit}   # name a better run in model, or lower gate.minAccuracy"),
        ],
        "DigestMismatch" | "ModelNotFound" | "LoadFailed" if found.kind() == Kind::Deployment => vec![
            anneal(&format!("logs {path}")),
            format!("{edit}   # model.path and model.sha256, or a trainingRunRef in their place"),
        ],
        "TrainingRunNotReady" | "TrainingRunNotFound" | "TrainingRunFailed" | "InitRunNotReady" | "InitRunFailed"
        | "InitRunNotFound" => vec![anneal("status")],
        "MetricsNotServed" => vec![
            format!("{kubectl} top pods   # must work: install metrics-server"),
            format!("{edit}   # or set replicas in place of autoscaling"),
        ],
        "NodeLost" => vec![
            "kubectl get nodes".to_owned(),
            "kubectl taint node NODE node.kubernetes.io/out-of-service=nodeshutdown:NoExecute   # where it is off for good".to_owned(),
        ],
        _ if found.kind() == Kind::Run => {
            vec![anneal(&format!("logs {path}")), format!("{kubectl} describe trun {name}")]
        }
        _ => vec![format!("{kubectl} describe {} {name}", found.kind().short())],
    }
}
