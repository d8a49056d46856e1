//! The reports of a finished run.

use std::{fs, path::Path};

use serde_json::{Map, Value, json};

use crate::{charts, data::Split, evaluate::Evaluation, files, history::History, outcome::Error};

/// What the reports tell.
pub struct Report<'a> {
    /// The classes.
    pub classes: &'a [String],
    /// The split that was evaluated.
    pub split: Split,
    /// What came out.
    pub evaluation: &'a Evaluation,
    /// All epochs.
    pub history: &'a History,
    /// The epoch that was evaluated, counted from 1.
    pub best_epoch: u32,
    /// Photos that were skipped, with reasons.
    pub broken: &'a [String],
}

/// Writes all reports into a directory.
///
/// # Errors
/// When the file system refuses.
pub fn write(dir: &Path, report: &Report<'_>) -> Result<(), Error> {
    let Report { classes, evaluation, history, broken, .. } = report;
    fs::create_dir_all(dir).map_err(Error::writing(dir))?;
    let pretty = |value: &Value| format!("{value:#}\n");
    let mut reports = vec![
        ("metrics.json", pretty(&metrics(report))),
        ("classification_report.txt", evaluation.confusion.report(classes)),
        ("training_history.json", pretty(&series(history))),
        ("training_curves.svg", charts::training_curves(history)),
        ("confusion_matrix.svg", charts::confusion_matrix(&evaluation.confusion, classes)),
    ];
    if !broken.is_empty() {
        reports.push(("skipped.txt", broken.join("\n") + "\n"));
    }
    for (name, content) in reports {
        let path = dir.join(name);
        files::write(&path, content.as_bytes()).map_err(Error::writing(path))?;
    }
    Ok(())
}

/// An evaluation as JSON.
pub fn evaluation(classes: &[String], evaluation: &Evaluation) -> Value {
    let by_class = classes.iter().zip(evaluation.confusion.by_class()).map(|(name, of)| {
        let value = json!({"precision": of.precision, "recall": of.recall, "f1": of.f1, "support": of.support});
        (name.clone(), value)
    });
    let all = evaluation.confusion.metrics();
    json!({
        "accuracy": all.accuracy,
        "precision": all.precision,
        "recall": all.recall,
        "f1": all.f1,
        "loss": evaluation.loss,
        "images": evaluation.confusion.total(),
        "classes": by_class.collect::<Map<_, _>>(),
        "confusionMatrix": evaluation.confusion.rows(),
    })
}

fn metrics(report: &Report<'_>) -> Value {
    let mut value = evaluation(report.classes, report.evaluation);
    value["split"] = json!(report.split.folder());
    value["bestEpoch"] = json!(report.best_epoch);
    value["bestValidationAccuracy"] = json!(report.history.best());
    value["epochs"] = json!(report.history.0.len());
    value
}

fn series(history: &History) -> Value {
    history.series().into_iter().map(|(name, values)| (name.to_owned(), json!(values))).collect::<Map<_, _>>().into()
}
