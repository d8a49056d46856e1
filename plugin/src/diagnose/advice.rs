//! What to do about a reason that the operator gives: the commands that show more, then those that mend it.

use anneal_api::resources::{RunPhase, TrainingRun};

use crate::target::{Found, Kind};

/// The examples of this version, for whoever has the plugin and no checkout.
const EXAMPLES: &str =
    concat!("https://raw.githubusercontent.com/anneal-dev/anneal/v", env!("CARGO_PKG_VERSION"), "/examples");

/// What to do about a reason that was given with this message.
pub fn about(found: &Found, reason: &str, message: &str) -> Vec<String> {
    let (name, path) = (found.name(), found.path());
    let namespace = found.metadata().namespace.clone().unwrap_or_default();
    let kubectl = format!("kubectl -n {namespace}");
    let anneal = |command: &str| format!("kubectl anneal {command} -n {namespace}");
    let edit = format!("{kubectl} edit {} {name}", found.kind().short());
    let describe = format!("{kubectl} describe {} {name}", found.kind().short());
    // What has ended is not trained again, whatever is edited in it.
    let mend = |what: &str| if is_over(found) { new_run(what) } else { format!("{edit}   # {what}") };
    let missing = missing_object(&kubectl, message).filter(|_| matches!(reason, "BadConfig" | "ContainerConfig"));
    if let Some(create) = missing {
        let then = if is_over(found) { new_run("the same spec") } else { "it goes on by itself then".to_owned() };
        return vec![create, then];
    }
    match reason {
        "ImagePull" => {
            vec![mend("podTemplate.image corrected, or podTemplate.imagePullSecrets for a private registry")]
        }
        "Unschedulable" => vec![
            "kubectl describe nodes | grep -A 8 'Allocated resources'".to_owned(),
            mend("lower podTemplate.resources.requests, or add a node"),
        ],
        "ClaimNotFound" => missing_claim(&kubectl, message),
        "ClaimLost" | "ClaimDeleting" | "VolumeMissing" | "ClaimForOnePod" | "VolumeOnAnotherNode" => {
            vec![format!("{kubectl} describe persistentvolumeclaims")]
        }
        "QuotaExceeded" | "PodsRefused" => vec![format!("{kubectl} describe resourcequotas")],
        "OOMKilled" | "OutOfMemory" if found.kind() == Kind::Run => {
            let what = "a higher podTemplate.resources.limits.memory";
            // A run's hyperparameters never change.
            vec![if is_over(found) { new_run(&format!("{what}, or microBatchSize set")) } else { mend(what) }]
        }
        "OOMKilled" | "OutOfMemory" => vec![mend("raise podTemplate.resources.limits.memory")],
        "InvalidDataset" | "DatasetIsOutput" | "OneNodeOnly" => {
            vec![describe, new_run("what the message asks for: what a run is trained with never changes")]
        }
        "ReservedVariable" | "ReservedKey" => vec![mend("podTemplate, as the message says")],
        "SmokeTestFailed" => vec![
            anneal(&format!("logs {path} --smoke")),
            format!("{}   # once the smoke image or the model is corrected", anneal(&format!("retry {name}"))),
        ],
        "SmokeInconclusive" => vec![anneal(&format!("logs {path} --smoke")), anneal(&format!("retry {name}"))],
        "SmokeImageNotFound" => {
            vec![format!("{kubectl} create configmap NAME --from-file=KEY=FILE   # it goes on by itself then")]
        }
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
        _ => log(found).into_iter().chain([describe]).chain(is_failed(found).then(|| new_run("the cause mended"))).collect(),
    }
}

/// A run that is over is not tried again, so another one is.
fn new_run(with: &str) -> String {
    format!("create a new run, with {with}")
}

/// The log of a run, where a container of it has written one.
fn log(found: &Found) -> Option<String> {
    let Found::Run(run) = found else { return None };
    let status = run.status.as_ref()?;
    let runs = status.current_attempt.as_ref().is_some_and(|current| current.running_time.is_some());
    let ended = status.attempts.last().is_some_and(|attempt| attempt.exit_code.is_some());
    let namespace = found.metadata().namespace.clone().unwrap_or_default();
    (runs || ended).then(|| format!("kubectl anneal logs {} -n {namespace}", found.path()))
}

fn phase(run: &TrainingRun) -> Option<RunPhase> {
    run.status.as_ref()?.phase
}

fn is_over(found: &Found) -> bool {
    matches!(found, Found::Run(run) if phase(run).is_some_and(RunPhase::is_terminal))
}

fn is_failed(found: &Found) -> bool {
    matches!(found, Found::Run(run) if phase(run) == Some(RunPhase::Failed))
}

/// A claim of the name that the message says.
fn missing_claim(kubectl: &str, message: &str) -> Vec<String> {
    let named = message.split_once("PersistentVolumeClaim ").and_then(|(_, rest)| rest.split([' ', ';', ',']).next());
    let name = named.unwrap_or("NAME");
    let example = format!("{EXAMPLES}/storage.yaml");
    let apply = match name {
        "models" => format!("{kubectl} apply -f {example}"),
        name => format!("curl -fsSL {example} | sed 's/name: models/name: {name}/' | {kubectl} apply -f -"),
    };
    vec![
        format!("{kubectl} get persistentvolumeclaims"),
        format!("{apply}   # creates PersistentVolumeClaim {name}; it goes on by itself then"),
    ]
}

/// A Secret or ConfigMap of the name that the kubelet did not find.
fn missing_object(kubectl: &str, message: &str) -> Option<String> {
    let (before, _) = message.split_once("\" not found")?;
    let (before, name) = before.rsplit_once('"')?;
    let kind = match before.trim_end().rsplit(' ').next()? {
        "secret" => "secret generic",
        "configmap" => "configmap",
        _ => return None,
    };
    Some(format!("{kubectl} create {kind} {name} --from-literal=KEY=VALUE"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fixtures;

    fn advised(status: &Value, reason: &str, message: &str) -> String {
        about(&Found::Run(Box::new(fixtures::run(status))), reason, message).join("\n")
    }

    #[test]
    fn what_has_failed_is_not_edited_but_made_anew() {
        let failed = json!({"phase": "Failed"});
        for reason in ["OOMKilled", "ImagePull", "Unschedulable", "Diverged", "BadConfig"] {
            let todo = advised(&failed, reason, "");
            assert!(todo.contains("create a new run") && !todo.contains(" edit "), "{reason}: {todo}");
        }
        assert!(advised(&json!({"phase": "Retrying"}), "OOMKilled", "").contains("edit trun cats   # "));
    }

    #[test]
    fn the_claim_that_is_missing_is_the_one_to_create() {
        let waits = json!({"phase": "Pending"});
        let todo = advised(
            &waits,
            "ClaimNotFound",
            "the dataset claim photos does not exist; create PersistentVolumeClaim photos in …",
        );
        assert!(
            todo.contains("sed 's/name: models/name: photos/'") && todo.contains("PersistentVolumeClaim photos"),
            "{todo}"
        );
        let todo = advised(&waits, "ClaimNotFound", "there is no PersistentVolumeClaim models in this namespace");
        assert!(todo.contains("/storage.yaml   # creates PersistentVolumeClaim models"), "{todo}");
    }

    #[test]
    fn nobody_is_sent_to_a_log_that_no_container_has_written() {
        let message = "attempt 1: the container cannot be created: secret \"bucket\" not found; create it, …";
        let todo = advised(&json!({"phase": "Preparing"}), "BadConfig", message);
        assert_eq!(
            todo,
            "kubectl -n demo create secret generic bucket --from-literal=KEY=VALUE\nit goes on by itself then"
        );
        let todo = advised(&json!({"phase": "Pending"}), "InvalidDataset", "dataset.uri …");
        assert!(todo.contains("create a new run, with what the message asks for") && !todo.contains("logs"), "{todo}");
        let never_ran =
            json!({"phase": "Failed", "attempts": [{"number": 1, "endTime": "2026-01-02T03:04:05Z", "message": ""}]});
        assert!(!advised(&never_ran, "StartDeadline", "").contains("logs"));
        let ran = json!({"phase": "Failed", "attempts": [{"number": 1, "endTime": "2026-01-02T03:04:05Z", "message": "", "exitCode": 65}]});
        assert!(advised(&ran, "DataMissing", "").starts_with("kubectl anneal logs trun/cats -n demo"));
    }
}
