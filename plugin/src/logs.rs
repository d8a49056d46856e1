//! `kubectl anneal logs`: the log that matters, without looking for the pod.

use std::{process::ExitCode, time::Duration};

use anneal_api::{
    names::label,
    resources::{DeploymentPhase, ModelDeployment, ModelDeploymentStatus, TrainingRun, TrainingRunStatus, TrialPhase},
    smoke::Verdict,
};
use futures::{AsyncBufReadExt as _, StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{ResourceExt as _, api::LogParams};

use crate::{
    children::Children,
    cluster::Cluster,
    options::LogsOptions,
    output,
    pods::{self, attempt_of, label_of},
    problem::Problem,
    target::{Found, Kind},
};

/// How often it is looked whether a pod has started.
const POLL: Duration = Duration::from_secs(1);

/// Whose log is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    /// The pods of an attempt.
    Attempt(i32),
    /// The pod of a revision's newest smoke test.
    SmokeTest(String),
    /// The pods of a revision that serve, or are to.
    Servers(String),
}

impl Source {
    /// The sentence that says whose log it is.
    fn sentence(&self) -> String {
        match self {
            Self::Attempt(number) => format!("attempt {number}"),
            Self::SmokeTest(revision) => format!("the newest smoke test of revision {revision}"),
            Self::Servers(revision) => format!("revision {revision}"),
        }
    }

    /// The pods that write it.
    fn pods<'a>(&self, children: &'a Children) -> Vec<&'a Pod> {
        match self {
            Self::Attempt(number) => children.pods.iter().filter(|pod| attempt_of(*pod) == Some(*number)).collect(),
            Self::Servers(revision) => {
                let own = |pod: &&Pod| label_of(*pod, label::REVISION) == Some(revision);
                children.pods.iter().filter(own).collect()
            }
            Self::SmokeTest(revision) => {
                let own = |job: &&Job| label_of(*job, label::REVISION) == Some(revision);
                let Some(job) = children.jobs.iter().rfind(own).map(kube::ResourceExt::name_any) else {
                    return Vec::new();
                };
                let made = |pod: &&Pod| label_of(*pod, "batch.kubernetes.io/job-name") == Some(&job);
                children.pods.iter().filter(made).collect()
            }
        }
    }
}

/// Prints the log.
///
/// # Errors
/// [`Problem`] when there is none.
pub async fn run(cluster: &Cluster, options: &LogsOptions) -> Result<ExitCode, Problem> {
    let mut found = cluster.find_one(&options.target, &Kind::ALL).await?;
    if let Some(run) = newest_run(cluster, &found).await? {
        found = Found::Run(Box::new(run));
    }
    let source = source(&found, options)?;
    let (found, source, names) = started(cluster, found, source, options).await?;
    if names.is_empty() {
        return without_pod(&found, &source);
    }
    output::note(&format!("{}, {}: {}", found.path(), source.sentence(), names.join(", ")));
    print(cluster, &names, options).await?;
    Ok(ExitCode::SUCCESS)
}

/// Whose log is meant, by how things stand.
fn source(found: &Found, options: &LogsOptions) -> Result<Source, Problem> {
    match found {
        Found::Run(run) => of_run(run, options),
        Found::Deployment(deployment) => of_deployment(deployment, options),
        Found::Sweep(_) | Found::Schedule(_) => Err(Problem::Pointless(format!(
            "{} has not started a run yet; `kubectl anneal status {0}` shows why",
            found.path()
        ))),
    }
}

fn of_run(run: &TrainingRun, options: &LogsOptions) -> Result<Source, Problem> {
    if options.smoke || options.revision.is_some() {
        return Err(Problem::Pointless(
            "a TrainingRun has attempts; --smoke and --revision are for a ModelDeployment".to_owned(),
        ));
    }
    let newest = run.status.as_ref().and_then(|status| status.attempt);
    let asked = options.attempt.or(newest).map(Source::Attempt);
    asked.ok_or_else(|| {
        Problem::Pointless(format!(
            "no attempt of {0} has begun; `kubectl anneal diagnose trun/{0}` says why",
            run.name_any()
        ))
    })
}

fn of_deployment(deployment: &ModelDeployment, options: &LogsOptions) -> Result<Source, Problem> {
    if options.attempt.is_some() {
        return Err(Problem::Pointless("a ModelDeployment has revisions; --attempt is for a TrainingRun".to_owned()));
    }
    let status = deployment.status.clone().unwrap_or_default();
    let subject = options.revision.clone().or_else(|| subject(&status));
    let subject = subject.ok_or_else(|| {
        Problem::Pointless(format!(
            "{0} has no revision yet; `kubectl anneal diagnose mdep/{0}` says why",
            deployment.name_any()
        ))
    })?;
    let by_itself = options.revision.is_none() && tells_by_its_test(&status);
    Ok(if options.smoke || by_itself { Source::SmokeTest(subject) } else { Source::Servers(subject) })
}

/// The revision that people want to know about: the one on its way, the one that was just rejected, the one that serves.
fn subject(status: &ModelDeploymentStatus) -> Option<String> {
    let failed = matches!(status.phase, Some(DeploymentPhase::Degraded | DeploymentPhase::Failed));
    let rejected = status.revisions.iter().filter_map(|it| Some((it.rejection.as_ref()?.time.0, &it.revision))).max();
    let rejected = rejected.filter(|_| failed).map(|(_, revision)| revision.clone());
    status.candidate_revision.clone().or(rejected).or_else(|| status.stable_revision.clone())
}

/// Whether the smoke test has the answer: while it asks, and where it was what failed.
fn tells_by_its_test(status: &ModelDeploymentStatus) -> bool {
    let failed = matches!(status.phase, Some(DeploymentPhase::Degraded | DeploymentPhase::Failed));
    let verdict = status.smoke.as_ref().map(|report| report.verdict);
    status.phase == Some(DeploymentPhase::SmokeTesting)
        || failed && matches!(verdict, Some(Verdict::Failed | Verdict::Inconclusive))
}

/// The run that a sweep or a schedule started last, one that goes on first.
async fn newest_run(cluster: &Cluster, found: &Found) -> Result<Option<TrainingRun>, Problem> {
    let mut runs = match found {
        Found::Sweep(_) | Found::Schedule(_) => Children::of(cluster, found).await?.runs,
        Found::Run(_) | Found::Deployment(_) => return Ok(None),
    };
    if let Found::Sweep(sweep) = found {
        let trials = sweep.status.iter().flat_map(|status| &status.trials);
        let running: Vec<&str> =
            trials.filter(|trial| trial.phase == TrialPhase::Running).map(|trial| trial.run.as_str()).collect();
        runs.sort_by_key(|run| running.contains(&run.name_any().as_str()));
    }
    Ok(runs.pop())
}

/// The pods once their containers have started; at once where nobody wants to wait.
async fn started(
    cluster: &Cluster,
    mut found: Found,
    mut source: Source,
    options: &LogsOptions,
) -> Result<(Found, Source, Vec<String>), Problem> {
    let mut told = None;
    loop {
        let children = Children::of(cluster, &found).await?;
        let pods = source.pods(&children);
        let names: Vec<String> = pods.iter().filter(|pod| has_started(pod)).map(|pod| pod.name_any()).collect();
        let is_over = match &found {
            Found::Run(run) => run.status.as_ref().is_some_and(|status| status.completion_time.is_some()),
            _ => false,
        };
        if !names.is_empty() || is_over || !options.follow {
            if let (true, Some(pod)) = (names.is_empty(), pods.first()) {
                return Err(not_started(&found, pod));
            }
            return Ok((found, source, names));
        }
        let waits = pods.first().map_or_else(|| "its pod is not there yet".to_owned(), |pod| waits_for(pod));
        if told.as_ref() != Some(&waits) {
            output::note(&format!("{}, {}: {waits}", found.path(), source.sentence()));
            told = Some(waits);
        }
        tokio::time::sleep(POLL).await;
        found = cluster.find_one(&options.target, &Kind::ALL).await?;
        if let Some(run) = newest_run(cluster, &found).await? {
            found = Found::Run(Box::new(run));
        }
        source = self::source(&found, options)?;
    }
}

fn has_started(pod: &Pod) -> bool {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    statuses
        .filter_map(|container| Some((container.state.as_ref()?, container.restart_count)))
        .any(|(state, restarts)| state.running.is_some() || state.terminated.is_some() || restarts > 0)
}

fn waits_for(pod: &Pod) -> String {
    let seen = pods::seen(pod);
    let why = if seen.message.is_empty() { String::new() } else { format!(" ({})", seen.message) };
    format!("pod {} has not started: {}{why}", pod.name_any(), seen.state.word)
}

fn not_started(found: &Found, pod: &Pod) -> Problem {
    Problem::Pointless(format!(
        "{}; `kubectl anneal diagnose {}` says what to do, and --follow waits for it",
        waits_for(pod),
        found.path()
    ))
}

/// What is left of a log whose pod is gone.
fn without_pod(found: &Found, source: &Source) -> Result<ExitCode, Problem> {
    let status: Option<&TrainingRunStatus> = match found {
        Found::Run(run) => run.status.as_ref(),
        _ => None,
    };
    if let (Some(status), Source::Attempt(number)) = (status, source)
        && let Some(attempt) = status.attempts.iter().find(|attempt| attempt.number == *number)
    {
        if let Some(log) = &attempt.log {
            output::note(&format!("{}, {}: its pod is gone; the end of its log:", found.path(), source.sentence()));
            output::lines(&log.lines().map(str::to_owned).collect::<Vec<_>>());
            return Ok(ExitCode::SUCCESS);
        }
        if !attempt.message.is_empty() {
            output::note(&format!("{}, {} ended: {}", found.path(), source.sentence(), attempt.message));
        }
    }
    Err(Problem::Pointless(format!(
        "{}, {}: no pod of it is there any more, and its log went with it; `kubectl anneal status {0}` shows what there is",
        found.path(),
        source.sentence()
    )))
}

async fn print(cluster: &Cluster, names: &[String], options: &LogsOptions) -> Result<(), Problem> {
    let params = LogParams { follow: options.follow, tail_lines: options.tail.map(i64::from), ..LogParams::default() };
    let api = cluster.api::<Pod>();
    let mut logs = Vec::new();
    for name in names {
        let lines = cluster.answer(api.log_stream(name, &params)).await?.lines();
        // Of several pods each line says whose it is.
        let prefix = if names.len() > 1 { format!("[{name}] ") } else { String::new() };
        logs.push(lines.map_ok(move |line| format!("{prefix}{line}\n")).boxed());
    }
    let mut merged =
        if options.follow { stream::select_all(logs).boxed() } else { stream::iter(logs).flatten().boxed() };
    while let Some(line) = merged.next().await {
        let line = line.map_err(|error| Problem::Refused(format!("the log broke off: {error}")))?;
        output::write(&line);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        fixtures,
        options::{Cli, Command, Errand},
    };

    const SHA: &str = "1111111111111111111111111111111111111111111111111111111111111111";

    fn options(arguments: &[&str]) -> LogsOptions {
        let line = ["kubectl-anneal", "logs", "cats"].iter().chain(arguments);
        match Cli::try_parse_from(line).expect("valid").command {
            Command::InCluster(Errand::Logs(options)) => options,
            other => panic!("{other:?}"),
        }
    }

    fn of_deployment(status: &Value, arguments: &[&str]) -> Source {
        let found = Found::Deployment(Box::new(fixtures::deployment(status)));
        source(&found, &options(arguments)).expect("a source")
    }

    fn status(phase: &str, candidate: Option<&str>, smoke: &str) -> Value {
        let rejection = json!({"reason": "SmokeTestFailed", "message": "m", "time": "2026-01-02T03:04:05Z"});
        json!({
            "phase": phase, "stableRevision": "aaaaaaaa", "candidateRevision": candidate,
            "smoke": {"verdict": smoke, "passed": 1, "failed": 0, "message": "m"},
            "revisions": [
                {"revision": "aaaaaaaa", "sha256": SHA, "startTime": "2026-01-02T03:04:05Z"},
                {"revision": "bbbbbbbb", "sha256": SHA, "startTime": "2026-01-02T03:04:05Z", "rejection": rejection}
            ]
        })
    }

    #[test]
    fn a_runs_log_is_that_of_its_newest_attempt_or_of_the_one_that_was_asked_for() {
        let found = Found::Run(Box::new(fixtures::run(&json!({"attempt": 3}))));
        assert_eq!(source(&found, &options(&[])).expect("a source"), Source::Attempt(3));
        assert_eq!(source(&found, &options(&["--attempt", "1"])).expect("a source"), Source::Attempt(1));
        let unbegun = Found::Run(Box::new(fixtures::run(&json!({}))));
        let problem = source(&unbegun, &options(&[])).expect_err("no attempt");
        assert_eq!(problem.to_string(), "no attempt of cats has begun; `kubectl anneal diagnose trun/cats` says why");
    }

    #[test]
    fn a_deployments_log_is_where_its_story_is_told() {
        let servers = |revision: &str| Source::Servers(revision.to_owned());
        let test = |revision: &str| Source::SmokeTest(revision.to_owned());
        assert_eq!(of_deployment(&status("Stable", None, "Passed"), &[]), servers("aaaaaaaa"));
        assert_eq!(of_deployment(&status("Loading", Some("cccccccc"), "Passed"), &[]), servers("cccccccc"));
        assert_eq!(of_deployment(&status("SmokeTesting", Some("cccccccc"), "Passed"), &[]), test("cccccccc"));
        assert_eq!(of_deployment(&status("Degraded", None, "Failed"), &[]), test("bbbbbbbb"));
        assert_eq!(of_deployment(&status("Degraded", None, "Passed"), &[]), servers("bbbbbbbb"));
        assert_eq!(of_deployment(&status("Stable", None, "Passed"), &["--smoke"]), test("aaaaaaaa"));
        assert_eq!(of_deployment(&status("Stable", None, "Passed"), &["--revision", "dddddddd"]), servers("dddddddd"));
    }
}
