//! `kubectl anneal compare`: what was set differently in training runs, and what came of it.

use std::{collections::BTreeMap, process::ExitCode};

use anneal_api::resources::{TrainingRun, TrainingRunStatus};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use crate::{
    age,
    cluster::Cluster,
    options::{CompareOptions, Output},
    output,
    paint::Paint,
    problem::Problem,
    state,
    target::{Found, Kind},
};

/// What is compared, in the order of the runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Comparison {
    runs: Vec<String>,
    /// Settings that differ, by their paths below `spec`.
    settings: BTreeMap<String, Vec<Option<String>>>,
    /// What came of it.
    results: Vec<Row>,
    /// What it was made of: the same digest is the same thing.
    origins: Vec<Row>,
}

/// A line: a value for each run.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    name: &'static str,
    values: Vec<Option<String>>,
    /// The place of the best one, where one is better than another.
    #[serde(skip_serializing_if = "Option::is_none")]
    best: Option<usize>,
}

/// Prints the comparison.
///
/// # Errors
/// [`Problem`] when a run is not there.
pub async fn run(cluster: &Cluster, options: &CompareOptions) -> Result<ExitCode, Problem> {
    let mut runs = Vec::new();
    for target in &options.targets {
        match cluster.find_one(target, &[Kind::Run]).await? {
            Found::Run(run) => runs.push(*run),
            _ => return Err(Problem::not_found(target, &cluster.namespace)),
        }
    }
    let comparison = compare(&runs);
    match options.output {
        Output::Json => output::json(&comparison)?,
        Output::Text => output::lines(&comparison.lines(Paint::of_stdout())),
    }
    Ok(ExitCode::SUCCESS)
}

fn compare(runs: &[TrainingRun]) -> Comparison {
    let statuses: Vec<TrainingRunStatus> = runs.iter().map(|run| run.status.clone().unwrap_or_default()).collect();
    let row = |name, value: &dyn Fn(&TrainingRunStatus) -> Option<String>| Row {
        name,
        values: statuses.iter().map(value).collect(),
        best: None,
    };
    let number = |name, is_better: fn(f64, f64) -> bool, value: &dyn Fn(&TrainingRunStatus) -> Option<f64>| {
        let numbers: Vec<Option<f64>> = statuses.iter().map(value).collect();
        let values = numbers.iter().map(|number| number.map(|number| format!("{number:.4}"))).collect();
        Row { name, values, best: best(&numbers, is_better) }
    };
    let more = |a: f64, b: f64| a > b;
    let less = |a: f64, b: f64| a < b;
    let metric = |status: &TrainingRunStatus| status.result.as_ref().map(|result| result.metrics);
    let reported = |status: &TrainingRunStatus| status.progress.as_ref().map(|progress| progress.reported.clone());
    let digest = |digest: &str| anneal_api::termination::cut(digest, 19 + '…'.len_utf8());
    Comparison {
        runs: runs.iter().map(kube::ResourceExt::name_any).collect(),
        settings: differences(runs),
        results: vec![
            row("phase", &|it| Some(state::of_run(it.phase).word)),
            number("accuracy", more, &|it| Some(metric(it)?.accuracy)),
            number("precision", more, &|it| Some(metric(it)?.precision)),
            number("recall", more, &|it| Some(metric(it)?.recall)),
            number("f1", more, &|it| Some(metric(it)?.f1)),
            number("best validation", more, &|it| reported(it)?.best),
            number("loss", less, &|it| reported(it)?.loss),
            row("epochs", &|it| Some(reported(it)?.epoch.to_string())),
            row("images/s", &|it| Some(format!("{:.1}", reported(it)?.images_per_second?))),
            row("time", &|it| time(it)),
            row("attempts", &|it| it.attempt.map(|attempt| attempt.to_string())),
        ],
        origins: vec![
            row("dataset", &|it| Some(digest(&it.result.as_ref()?.dataset.digest))),
            row("images", &|it| Some(it.result.as_ref()?.dataset.images.to_string())),
            row("seed", &|it| Some(it.result.as_ref()?.seed.to_string())),
            row("trainer image", &|it| Some(digest(it.image_id.as_ref()?.rsplit('@').next()?))),
            row("configuration", &|it| Some(it.config_sha256.as_ref()?.short(12).to_owned())),
            row("model", &|it| Some(it.result.as_ref()?.sha256.short(12).to_owned())),
        ],
    }
}

/// The place of the best number, where not all are equally good.
fn best(numbers: &[Option<f64>], is_better: fn(f64, f64) -> bool) -> Option<usize> {
    let known = || numbers.iter().enumerate().filter_map(|(i, number)| Some((i, (*number)?)));
    let (place, best) = known().reduce(|best, next| if is_better(next.1, best.1) { next } else { best })?;
    known().any(|(_, number)| is_better(best, number)).then_some(place)
}

fn time(status: &TrainingRunStatus) -> Option<String> {
    let end = status.completion_time.as_ref().map_or_else(Timestamp::now, |end| end.0);
    Some(age::between(status.start_time.as_ref()?.0, end))
}

/// The settings below `spec` that are not the same everywhere.
fn differences(runs: &[TrainingRun]) -> BTreeMap<String, Vec<Option<String>>> {
    let flat: Vec<BTreeMap<String, String>> = runs
        .iter()
        .map(|run| {
            let mut all = BTreeMap::new();
            // A spec is plain data, so it can always be written.
            flatten("", &serde_json::to_value(&run.spec).unwrap_or_default(), &mut all);
            all
        })
        .collect();
    let paths: std::collections::BTreeSet<&String> = flat.iter().flat_map(BTreeMap::keys).collect();
    let valued = paths.into_iter().map(|path| {
        let values: Vec<Option<String>> = flat.iter().map(|all| all.get(path).cloned()).collect();
        (path.clone(), values)
    });
    valued.filter(|(_, values)| values.iter().any(|value| *value != values[0])).collect()
}

fn flatten(path: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                flatten(&path, value, into);
            }
        }
        Value::Null => {}
        Value::String(text) => {
            into.insert(path.to_owned(), text.clone());
        }
        other => {
            into.insert(path.to_owned(), other.to_string());
        }
    }
}

impl Comparison {
    fn lines(&self, paint: Paint) -> Vec<String> {
        let cell = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        let mut rows = vec![(String::new(), self.runs.iter().map(|run| paint.bold(run)).collect::<Vec<_>>())];
        let section = |rows: &mut Vec<(String, Vec<String>)>, title: &str| {
            rows.push((String::new(), Vec::new()));
            rows.push((paint.dim(title), Vec::new()));
        };
        section(&mut rows, if self.settings.is_empty() { "SET THE SAME" } else { "SET DIFFERENTLY" });
        rows.extend(self.settings.iter().map(|(path, values)| (path.clone(), values.iter().map(cell).collect())));
        for (title, group) in [("WHAT CAME OF IT", &self.results), ("MADE OF", &self.origins)] {
            section(&mut rows, title);
            for row in group.iter().filter(|row| row.values.iter().any(Option::is_some)) {
                let mark = |(place, value): (usize, &Option<String>)| {
                    let text = cell(value);
                    if row.best == Some(place) { paint.tone(state::Tone::Good, &format!("{text} ✔")) } else { text }
                };
                rows.push((row.name.to_owned(), row.values.iter().enumerate().map(mark).collect()));
            }
        }
        aligned(&rows)
    }
}

/// Rows of a label and as many values as there are runs, in columns.
fn aligned(rows: &[(String, Vec<String>)]) -> Vec<String> {
    let columns = rows.iter().map(|(_, values)| values.len()).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|(_, values)| Some(console::measure_text_width(values.get(column)?))).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let labels = rows.iter().filter(|(_, values)| !values.is_empty());
    let first = labels.map(|(label, _)| console::measure_text_width(label)).max().unwrap_or(0);
    let line = |(label, values): &(String, Vec<String>)| {
        let padded = values.iter().zip(&widths).map(|(value, width)| crate::paint::padded(value, *width));
        let cells: Vec<String> = [crate::paint::padded(label, first)].into_iter().chain(padded).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixtures;

    fn run(name: &str, learning_rate: f64, accuracy: f64) -> TrainingRun {
        let metrics = json!({"accuracy": accuracy, "precision": 0.9, "recall": 0.9, "f1": 0.9});
        let sha = "1111111111111111111111111111111111111111111111111111111111111111";
        let mut run = fixtures::run(&json!({
            "phase": "Succeeded", "attempt": 1, "startTime": "2026-01-02T03:04:05Z", "completionTime": "2026-01-02T03:07:05Z",
            "result": {
                "checkpoint": "models/1.pth", "sha256": sha, "bytes": 1, "classes": [], "metrics": metrics, "seed": 7, "epochs": 3,
                "dataset": {"digest": format!("sha256:{sha}"), "images": 400, "skipped": 0}
            }
        }));
        run.metadata.name = Some(name.to_owned());
        run.spec.hyperparameters.learning_rate = learning_rate;
        run
    }

    #[test]
    fn a_comparison_shows_what_differs_and_marks_what_is_better() {
        let lines = compare(&[run("first", 0.001, 0.9), run("second", 0.01, 0.95)]).lines(Paint::PLAIN);
        assert_eq!(
            lines,
            [
                "                              first                 second",
                "",
                "SET DIFFERENTLY",
                "hyperparameters.learningRate  0.001                 0.01",
                "",
                "WHAT CAME OF IT",
                "phase                         Succeeded             Succeeded",
                "accuracy                      0.9000                0.9500 ✔",
                "precision                     0.9000                0.9000",
                "recall                        0.9000                0.9000",
                "f1                            0.9000                0.9000",
                "time                          3m                    3m",
                "attempts                      1                     1",
                "",
                "MADE OF",
                "dataset                       sha256:111111111111…  sha256:111111111111…",
                "images                        400                   400",
                "seed                          7                     7",
                "model                         111111111111          111111111111"
            ]
        );
    }

    #[test]
    fn equal_numbers_have_no_best() {
        let more = |a: f64, b: f64| a > b;
        assert_eq!(best(&[Some(0.9), Some(0.9)], more), None);
        assert_eq!(best(&[None, Some(0.9)], more), None);
        assert_eq!(best(&[Some(0.8), None, Some(0.9)], more), Some(2));
    }
}
