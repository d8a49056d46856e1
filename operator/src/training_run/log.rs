//! The end of a failed attempt's log, where the user of the run asks for it and the operator may read it.

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::LogParams};

use super::{failure::terminated, observe::Observed};
use crate::context::Context;

/// Largest part of a log that is read, in bytes.
const MAX_BYTES: i64 = 64 * 1024;
/// Longest time that reading it may take.
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// The end of the log of the attempt that has just failed; `None` where none is asked for, or none failed. What goes
/// wrong is told in its place: the log is no reason to hold up the run.
pub async fn tail(context: &Context, seen: &Observed) -> Option<String> {
    let lines = seen.run.spec.failure_log_lines?;
    let pod = failed(seen)?;
    if !context.settings.failure_logs {
        let text = "spec.failureLogLines is set, but the operator may not read logs; install it with \
                    failureLogs.enabled=true";
        return Some(text.to_owned());
    }
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &seen.run.namespace().unwrap_or_default());
    let params = LogParams { tail_lines: Some(i64::from(lines)), limit_bytes: Some(MAX_BYTES), ..LogParams::default() };
    let read = tokio::time::timeout(TIMEOUT, api.logs(&pod.name_any(), &params)).await;
    Some(match read {
        Ok(Ok(text)) => text,
        Ok(Err(problem)) => format!("the log cannot be read: {problem}"),
        Err(_) => "the log cannot be read: no answer in time".to_owned(),
    })
}

/// A pod of the newest attempt that failed and is not yet in the status.
fn failed(seen: &Observed) -> Option<&Pod> {
    let recorded = seen.run.status.as_ref().and_then(|status| status.attempts.last()).map_or(0, |last| last.number);
    let has_failed = |pod: &Pod| terminated(pod).is_some_and(|state| state.exit_code != 0);
    let new = seen.pods.iter().filter(|attempt| attempt.number > recorded && !attempt.gone);
    new.map(|attempt| &attempt.pod).find(|pod| has_failed(pod))
}
