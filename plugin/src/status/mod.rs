//! `kubectl anneal status`: how things stand, once or live.

mod deployment;
mod list;
mod live;
mod run;
mod schedule;
mod sweep;

use std::process::ExitCode;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::Serialize;

use crate::{
    children::Children,
    cluster::Cluster,
    options::{Output, StatusOptions},
    output,
    paint::Paint,
    problem::Problem,
    state::{State, Tone},
    target::{Found, Target},
    tree::{self, Node},
};

pub use deployment::standing;

/// What is shown of a resource.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Its kind.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Where it stands.
    #[serde(flatten)]
    pub state: State,
    /// Hundredths that are done, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<i64>,
    /// In a few words, how far it is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub summary: String,
    /// What the operator says about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// How it ended, where it did.
    pub ending: Ending,
    /// What is told above the tree, beside all this.
    #[serde(skip)]
    pub facts: Vec<(&'static str, String)>,
    /// The resource and what was made for it.
    pub tree: Node,
}

/// How a run or rollout ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Ending {
    /// It goes on.
    Open,
    /// As it should.
    Good,
    /// In failure.
    Bad,
}

impl Report {
    /// What is shown of a resource.
    pub fn of(found: &Found, children: &Children, now: Timestamp, paint: Paint) -> Self {
        match found {
            Found::Run(it) => run::report(it, children, now, paint),
            Found::Deployment(it) => deployment::report(it, children, now, paint),
            Found::Sweep(it) => sweep::report(it, children, paint),
            Found::Schedule(it) => schedule::report(it, children, now, paint),
        }
    }

    /// The lines that are shown: facts first, then the tree.
    pub fn lines(&self, now: Timestamp, paint: Paint) -> Vec<String> {
        let phase = format!("{} {}", self.state.tone.sign(), self.state.word);
        let mut facts = vec![
            (self.kind, self.name.clone()),
            ("Namespace", self.namespace.clone()),
            ("Phase", paint.tone(self.state.tone, &phase)),
        ];
        facts.extend(self.facts.iter().cloned());
        facts.push(("Message", self.message.clone()));
        let mut lines = tree::facts(&facts, paint);
        lines.push(String::new());
        lines.extend(tree::draw(&self.tree, now, paint));
        lines
    }

    /// The line that tells a log of the same.
    fn line(&self) -> String {
        let parts = [
            format!("{} {}", self.kind, self.name),
            self.state.word.clone(),
            self.summary.clone(),
            self.message.clone(),
        ];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("  ")
    }
}

/// The message of the condition that says what is going on: the one that holds things up, else the one about the whole.
fn message(conditions: &[Condition]) -> String {
    let holds = |kind: &str| conditions.iter().find(|it| it.type_ == kind && it.status == "True");
    let ready = || conditions.iter().find(|it| it.type_ == "Ready");
    let told = holds("Stalled").or_else(|| holds("Progressing")).or_else(ready);
    told.map(|it| it.message.clone()).unwrap_or_default()
}

/// Whether the status is about the newest spec.
fn is_observed(found: &kube::api::ObjectMeta, observed: Option<i64>) -> bool {
    observed.is_some() && observed >= found.generation
}

/// A word about what the user may not see.
fn hidden(children: &Children) -> String {
    if children.hidden.is_empty() {
        return String::new();
    }
    format!("you may not list {}", children.hidden.join(", "))
}

/// The resources with what was made for them.
async fn reports(cluster: &Cluster, target: &Target, paint: Paint) -> Result<Vec<Report>, Problem> {
    let mut reports = Vec::new();
    for found in cluster.find(target).await? {
        let children = Children::of(cluster, &found).await?;
        reports.push(Report::of(&found, &children, Timestamp::now(), paint));
    }
    Ok(reports)
}

/// Shows how things stand, and gives 1 where what was asked about has failed.
///
/// # Errors
/// [`Problem`] when it cannot be shown.
pub async fn run(cluster: &Cluster, options: &StatusOptions) -> Result<ExitCode, Problem> {
    let paint = Paint::of_stdout();
    let Some(target) = &options.target else {
        return list::run(cluster, options, paint).await;
    };
    if options.watch {
        return live::run(cluster, target, paint).await;
    }
    let reports = reports(cluster, target, if options.output == Output::Json { Paint::PLAIN } else { paint }).await?;
    match options.output {
        Output::Json => output::json(&reports)?,
        Output::Text => output::lines(&all_lines(&reports, paint)),
    }
    Ok(exit_code(&reports))
}

fn all_lines(reports: &[Report], paint: Paint) -> Vec<String> {
    let now = Timestamp::now();
    let blocks: Vec<Vec<String>> = reports.iter().map(|report| report.lines(now, paint)).collect();
    blocks.join(&String::new())
}

fn exit_code(reports: &[Report]) -> ExitCode {
    ExitCode::from(u8::from(reports.iter().any(|report| report.ending == Ending::Bad)))
}

/// The tone of a number of pods of those that are wanted.
fn of_size(ready: i32, wanted: i32) -> Tone {
    match (ready, wanted) {
        (_, 0) => Tone::Idle,
        (ready, wanted) if ready >= wanted => Tone::Good,
        _ => Tone::Busy,
    }
}
