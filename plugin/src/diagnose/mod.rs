//! `kubectl anneal diagnose`: what is wrong, and what to do, in the order in which to do it. What the operator already says
//! comes in its own words; what it cannot know (that it does not run, above all) is found here.

mod advice;
mod events;
mod installation;
mod resource;
mod surroundings;

use std::process::ExitCode;

use anneal_api::count;
use jiff::Timestamp;
use serde::Serialize;

use crate::{
    children::Children,
    cluster::Cluster,
    options::{DiagnoseOptions, Output},
    output,
    paint::Paint,
    problem::Problem,
    state::{State, Tone},
    status::Report,
    target::Found,
};

/// What a finding is about. One is told once: what the operator says goes before what pods and Events repeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Topic {
    /// The definitions of the custom resources.
    Definitions,
    /// The operator itself.
    Operator,
    /// An image cannot be pulled.
    Image,
    /// No node takes a pod.
    Scheduling,
    /// A claim or its volume.
    Volume,
    /// A quota, or another refusal of pods.
    Quota,
    /// Memory ran out.
    Memory,
    /// Metrics for the autoscaler.
    Metrics,
    /// A person's word.
    AwaitingApproval,
    /// Anything else, by its reason.
    #[serde(untagged)]
    Other(String),
}

impl Topic {
    /// What a reason with these words is about: a claim that has no volume is what keeps a pod from its node, and a kubelet
    /// calls many things `Failed`.
    pub fn told(reason: &str, message: &str) -> Self {
        match Self::of(reason) {
            Self::Scheduling if message.contains("PersistentVolumeClaim") => Self::Volume,
            Self::Other(_) if message.contains("ImagePull") || message.contains("pull image") => Self::Image,
            topic => topic,
        }
    }

    /// What a reason of a condition, a pod or an Event is about.
    pub fn of(reason: &str) -> Self {
        match reason {
            "ImagePull" | "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" => Self::Image,
            "Unschedulable" | "FailedScheduling" => Self::Scheduling,
            "ClaimNotFound"
            | "ClaimLost"
            | "ClaimDeleting"
            | "ClaimForOnePod"
            | "VolumeMissing"
            | "VolumeOnAnotherNode"
            | "FailedMount"
            | "FailedAttachVolume"
            | "ProvisioningFailed" => Self::Volume,
            "QuotaExceeded" | "PodsRefused" | "FailedCreate" => Self::Quota,
            "OOMKilled" | "OutOfMemory" => Self::Memory,
            "MetricsNotServed" | "FailedGetResourceMetric" | "FailedComputeMetricsReplicas" => Self::Metrics,
            "AwaitingApproval" => Self::AwaitingApproval,
            other => Self::Other(other.to_owned()),
        }
    }
}

/// Whether something has to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Severity {
    /// It is wrong, and somebody has to do something.
    Problem,
    /// It may explain something, or waits for somebody who knows.
    Note,
}

/// Something to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What it is about.
    pub topic: Topic,
    /// Whether something has to be done.
    pub severity: Severity,
    /// What is wrong.
    pub what: String,
    /// What to do, in this order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub todo: Vec<String>,
}

impl Finding {
    /// Something is wrong.
    pub fn problem(topic: Topic, what: impl Into<String>, todo: Vec<String>) -> Self {
        Self { topic, severity: Severity::Problem, what: what.into(), todo }
    }

    /// Something to know.
    pub fn note(topic: Topic, what: impl Into<String>, todo: Vec<String>) -> Self {
        Self { topic, severity: Severity::Note, what: what.into(), todo }
    }
}

/// What was found about one thing.
#[derive(Clone, Debug, Serialize)]
struct Diagnosis {
    /// What it is about: the installation, or a resource.
    subject: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<State>,
    findings: Vec<Finding>,
}

impl Diagnosis {
    fn new(subject: String, state: Option<State>, all: Vec<Finding>) -> Self {
        let mut findings: Vec<Finding> = Vec::new();
        for finding in all {
            if !findings.iter().any(|known| known.topic == finding.topic) {
                findings.push(finding);
            }
        }
        // Stable: within its kind, each stays in the order in which to do it. What waits for a word waits for nothing else.
        findings.sort_by_key(|finding| (finding.topic != Topic::AwaitingApproval, finding.severity == Severity::Note));
        Self { subject, state, findings }
    }

    fn problems(&self) -> u32 {
        self.findings.iter().map(|finding| u32::from(finding.severity == Severity::Problem)).sum()
    }

    fn lines(&self, paint: Paint) -> Vec<String> {
        let state =
            self.state.as_ref().map(|state| paint.tone(state.tone, &format!("{} {}", state.tone.sign(), state.word)));
        let verdict = match self.problems() {
            0 => "nothing is wrong".to_owned(),
            problems => count::of(problems, "problem"),
        };
        let head = [paint.bold(&self.subject)].into_iter().chain(state).chain([verdict]).collect::<Vec<_>>().join("  ");
        let mut lines = vec![head];
        for (number, finding) in (1..).zip(&self.findings) {
            let tone = if finding.severity == Severity::Problem { Tone::Bad } else { Tone::Waiting };
            let sign = paint.tone(tone, if finding.severity == Severity::Problem { "✖" } else { "!" });
            let what = finding.what.split_whitespace().collect::<Vec<_>>().join(" ");
            lines.push(format!("{number:>2}. {sign} {what}"));
            lines.extend(finding.todo.iter().map(|todo| format!("      {} {todo}", paint.dim("→"))));
        }
        lines
    }
}

/// Says what is wrong, and gives 1 where something is.
///
/// # Errors
/// [`Problem`] when it cannot be looked.
pub async fn run(cluster: &Cluster, options: &DiagnoseOptions) -> Result<ExitCode, Problem> {
    let installation = installation::look(cluster).await?;
    let has_definitions = installation.has_definitions();
    let mut all = vec![Diagnosis::new("installation".to_owned(), None, installation.findings(&cluster.namespace))];
    if has_definitions {
        let found = match &options.target {
            Some(target) => cluster.find(target).await?,
            None => cluster.all(false).await?,
        };
        let surroundings = surroundings::look(cluster).await?;
        for found in found {
            all.push(of_resource(cluster, &found, installation.has_metrics, &surroundings).await?);
        }
    }
    match options.output {
        Output::Json => output::json(&all)?,
        Output::Text => output::lines(&shown(&all, options.target.is_some(), Paint::of_stdout())),
    }
    Ok(ExitCode::from(u8::from(all.iter().any(|diagnosis| diagnosis.problems() > 0))))
}

async fn of_resource(
    cluster: &Cluster,
    found: &Found,
    has_metrics: bool,
    surroundings: &surroundings::Surroundings,
) -> Result<Diagnosis, Problem> {
    let children = Children::of(cluster, found).await?;
    let now = Timestamp::now();
    let report = Report::of(found, &children, now, Paint::PLAIN);
    let mut findings = resource::findings(found, &report, now);
    findings.extend(surroundings.findings(found, &children, has_metrics, now));
    let events = events::findings(found, &children, &report, &surroundings.events, &findings, now);
    findings.extend(events);
    Ok(Diagnosis::new(found.path(), Some(report.state), findings))
}

/// The diagnoses one after another. Where all resources were looked at, those that are well are only counted.
fn shown(all: &[Diagnosis], was_asked_for: bool, paint: Paint) -> Vec<String> {
    let is_told = |it: &&Diagnosis| !it.findings.is_empty() || (was_asked_for && it.state.is_some());
    let blocks: Vec<Vec<String>> = all.iter().filter(is_told).map(|it| it.lines(paint)).collect();
    let well = all.iter().filter(|it| it.state.is_some() && it.findings.is_empty()).count();
    let mut lines = blocks.join(&String::new());
    if !was_asked_for {
        if !lines.is_empty() {
            lines.push(String::new());
        }
        let count = if well == 1 { "1 resource has".to_owned() } else { format!("{well} resources have") };
        lines.push(format!("{count} nothing to tell"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diagnosis() -> Diagnosis {
        let findings = vec![
            Finding::note(Topic::Other("Paused".to_owned()), "it waits", vec![]),
            Finding::problem(
                Topic::Image,
                "the image\ncannot be pulled",
                vec!["check it".to_owned(), "then try".to_owned()],
            ),
            Finding::problem(Topic::Image, "the same again", vec![]),
        ];
        Diagnosis::new("mdep/cats".to_owned(), Some(State::new(Tone::Busy, "Loading")), findings)
    }

    #[test]
    fn problems_come_first_each_once_with_what_to_do() {
        assert_eq!(
            diagnosis().lines(Paint::PLAIN).join("\n"),
            "\
mdep/cats  ◌ Loading  1 problem
 1. ✖ the image cannot be pulled
      → check it
      → then try
 2. ! it waits"
        );
    }

    #[test]
    fn an_approval_that_is_waited_for_comes_first() {
        let findings = vec![
            Finding::problem(Topic::Metrics, "no metrics", vec![]),
            Finding::note(Topic::of("AwaitingApproval"), "it waits", vec![]),
        ];
        let diagnosis = Diagnosis::new("mdep/cats".to_owned(), None, findings);
        assert_eq!(diagnosis.findings[0].what, "it waits");
    }

    #[test]
    fn what_is_well_is_counted_and_told_only_to_whoever_asked_for_it() {
        let well = Diagnosis::new("trun/cats".to_owned(), Some(State::new(Tone::Good, "Succeeded")), vec![]);
        let installation = Diagnosis::new("installation".to_owned(), None, vec![]);
        assert_eq!(
            shown(&[installation.clone(), well.clone()], false, Paint::PLAIN),
            ["1 resource has nothing to tell"]
        );
        assert_eq!(shown(&[installation, well], true, Paint::PLAIN), ["trun/cats  ✔ Succeeded  nothing is wrong"]);
    }
}
