//! All resources in a namespace, or in all of them, one a line.

use std::process::ExitCode;

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    age,
    cluster::Cluster,
    options::{Output, StatusOptions},
    output,
    paint::{Paint, table},
    problem::Problem,
    state::{self, State},
    target::Found,
};

/// A line of the list.
#[derive(Serialize)]
struct Line {
    namespace: String,
    name: String,
    #[serde(flatten)]
    state: State,
    #[serde(skip_serializing_if = "String::is_empty")]
    summary: String,
    #[serde(skip)]
    age: String,
}

/// Prints the list.
pub async fn run(cluster: &Cluster, options: &StatusOptions, paint: Paint) -> Result<ExitCode, Problem> {
    let found = cluster.all(options.all_namespaces).await?;
    let now = Timestamp::now();
    let lines: Vec<Line> = found.iter().map(|found| line(found, now)).collect();
    match options.output {
        Output::Json => output::json(&lines)?,
        Output::Text if lines.is_empty() => {
            let place = if options.all_namespaces {
                "the cluster".to_owned()
            } else {
                format!("namespace {}", cluster.namespace)
            };
            output::note(&format!("nothing of Anneal's is in {place}"));
        }
        Output::Text => output::lines(&shown(&lines, options.all_namespaces, paint)),
    }
    Ok(ExitCode::SUCCESS)
}

fn line(found: &Found, now: Timestamp) -> Line {
    let (state, summary) = match found {
        Found::Run(it) => {
            let status = it.status.clone().unwrap_or_default();
            (state::of_run(status.phase), super::run::summary(&status))
        }
        Found::Deployment(it) => {
            let status = it.status.clone().unwrap_or_default();
            (state::of_deployment(status.phase), super::deployment::summary(&status))
        }
        Found::Sweep(it) => {
            let status = it.status.clone().unwrap_or_default();
            (state::of_sweep(status.phase), super::sweep::summary(&status))
        }
        Found::Schedule(it) => {
            (super::schedule::state(it), super::schedule::summary(&it.status.clone().unwrap_or_default(), now))
        }
    };
    Line {
        namespace: found.metadata().namespace.clone().unwrap_or_default(),
        name: found.path(),
        state,
        summary,
        age: age::of(found.metadata().creation_timestamp.as_ref(), now),
    }
}

fn shown(lines: &[Line], everywhere: bool, paint: Paint) -> Vec<String> {
    let state = |line: &Line| paint.tone(line.state.tone, &format!("{} {}", line.state.tone.sign(), line.state.word));
    if everywhere {
        let row = |it: &Line| [it.namespace.clone(), it.name.clone(), state(it), it.age.clone(), it.summary.clone()];
        let rows: Vec<_> = lines.iter().map(row).collect();
        return table(paint, ["NAMESPACE", "NAME", "STATUS", "AGE", "INFO"], &rows);
    }
    let rows: Vec<_> =
        lines.iter().map(|it| [it.name.clone(), state(it), it.age.clone(), it.summary.clone()]).collect();
    table(paint, ["NAME", "STATUS", "AGE", "INFO"], &rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixtures;

    #[test]
    fn a_list_tells_how_each_resource_is() {
        let run = fixtures::run(&json!({"phase": "Failed"}));
        let deployment =
            fixtures::deployment(&json!({"phase": "Stable", "stableRevision": "4be36a0c", "ready": "2/2"}));
        let all = [Found::Run(Box::new(run)), Found::Deployment(Box::new(deployment))];
        let lines: Vec<Line> = all.iter().map(|found| line(found, fixtures::now())).collect();
        assert_eq!(
            shown(&lines, false, Paint::PLAIN).join("\n"),
            "\
NAME       STATUS    AGE  INFO
trun/cats  ✖ Failed  10m
mdep/cats  ✔ Stable  10m  4be36a0c 2/2 ready"
        );
        assert_eq!(shown(&lines, true, Paint::PLAIN)[2], "demo       mdep/cats  ✔ Stable  10m  4be36a0c 2/2 ready");
    }
}
