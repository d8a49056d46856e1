//! `kubectl anneal rollout`: the revisions of a deployment, newest first.

use std::process::ExitCode;

use anneal_api::resources::{ModelDeployment, RevisionStatus};
use jiff::Timestamp;

use crate::{
    age,
    cluster::Cluster,
    options::{Output, RolloutOptions},
    output,
    paint::{Paint, table},
    problem::Problem,
    status::standing,
};

/// Prints the revisions.
///
/// # Errors
/// [`Problem`] when there is no such deployment.
pub async fn run(cluster: &Cluster, options: &RolloutOptions) -> Result<ExitCode, Problem> {
    let deployment = cluster.deployment(&options.deployment.target).await?;
    let revisions = newest_first(&deployment);
    match options.output {
        Output::Json => output::json(&revisions)?,
        Output::Text if revisions.is_empty() => output::note("it has no revisions yet"),
        Output::Text => output::lines(&lines(&deployment, &revisions, Timestamp::now(), Paint::of_stdout())),
    }
    Ok(ExitCode::SUCCESS)
}

fn newest_first(deployment: &ModelDeployment) -> Vec<RevisionStatus> {
    let mut revisions = deployment.status.clone().unwrap_or_default().revisions;
    revisions.sort_by_key(|revision| {
        std::cmp::Reverse(revision.promoted_time.clone().unwrap_or(revision.start_time.clone()))
    });
    revisions
}

fn lines(deployment: &ModelDeployment, revisions: &[RevisionStatus], now: Timestamp, paint: Paint) -> Vec<String> {
    let status = deployment.status.clone().unwrap_or_default();
    let rows: Vec<_> = revisions
        .iter()
        .map(|revision| {
            let state = standing(&status, revision);
            let pinned = deployment.spec.pinned_revision.as_ref() == Some(&revision.revision);
            let pin = pinned.then(|| "pinned".to_owned());
            let why = revision.rejection.as_ref().map(|rejection| rejection.message.clone());
            [
                revision.revision.clone(),
                paint.tone(state.tone, &format!("{} {}", state.tone.sign(), state.word)),
                revision.sha256.short(12).to_owned(),
                revision.training_run.clone().unwrap_or_else(|| "-".to_owned()),
                revision.metrics.map_or_else(|| "-".to_owned(), |metrics| format!("{:.4}", metrics.accuracy)),
                age::of(Some(&revision.start_time), now),
                age::of(revision.promoted_time.as_ref(), now),
                pin.into_iter().chain(why).collect::<Vec<_>>().join(", "),
            ]
        })
        .collect();
    table(paint, ["REVISION", "STATE", "MODEL", "RUN", "ACCURACY", "BEGAN", "SERVED", "INFO"], &rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixtures;

    #[test]
    fn revisions_are_listed_newest_first_with_what_became_of_them() {
        let sha = "1111111111111111111111111111111111111111111111111111111111111111";
        let rejection = json!({"reason": "SmokeTestFailed", "message": "a dog was taken for a cat", "time": "2026-01-02T03:13:35Z"});
        let metrics = json!({"accuracy": 0.9, "precision": 0.9, "recall": 0.9, "f1": 0.9});
        let deployment = fixtures::deployment(
            &json!({"phase": "Degraded", "stableRevision": "4be36a0c", "revisions": [
                {"revision": "4be36a0c", "sha256": sha, "trainingRun": "first", "metrics": metrics, "startTime": "2026-01-02T03:04:05Z", "promotedTime": "2026-01-02T03:05:05Z"},
                {"revision": "e300d319", "sha256": sha, "startTime": "2026-01-02T03:13:05Z", "rejection": rejection}
            ]}),
        );
        assert_eq!(
            lines(&deployment, &newest_first(&deployment), fixtures::now(), Paint::PLAIN).join("\n"),
            "\
REVISION  STATE              MODEL         RUN    ACCURACY  BEGAN  SERVED  INFO
e300d319  ✖ SmokeTestFailed  111111111111  -      -         60s    -       a dog was taken for a cat
4be36a0c  ✔ stable           111111111111  first  0.9000    10m    9m"
        );
    }
}
