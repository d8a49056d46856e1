//! The reports of a finished run or an evaluation.

mod html;

use std::{fs, path::Path};

use anneal_figures::{DrawError, confusion_matrix, names_of, to_png};
use serde_json::{Map, Value, json};
use tracing::warn;

use crate::{
    calibration,
    charts::{self, Mistake},
    config::RunConfig,
    data::{
        Split,
        load::{Dataset, Photos},
    },
    evaluate::Evaluation,
    files,
    history::History,
    outcome::Error,
    roc,
};

/// Mistakes that the grid shows.
const WORST: usize = 20;

/// What the reports tell.
pub struct Report<'a> {
    /// Name of the run or of the checkpoint.
    pub name: &'a str,
    /// The classes.
    pub classes: &'a [String],
    /// The split that was evaluated.
    pub split: Split,
    /// Its photos.
    pub photos: &'a Photos,
    /// What came out.
    pub evaluation: &'a Evaluation,
    /// The temperature that was found on the validation split.
    pub temperature: f64,
    /// How it was trained; absent when a checkpoint alone is evaluated.
    pub training: Option<Trained<'a>>,
}

/// The training behind a report.
#[derive(Clone, Copy)]
pub struct Trained<'a> {
    /// The run.
    pub config: &'a RunConfig,
    /// What it was trained on.
    pub dataset: &'a Dataset,
    /// All epochs.
    pub history: &'a History,
    /// The epoch that was evaluated, counted from 1.
    pub best_epoch: u32,
    /// Share of the time of the last attempt's training in which the network waited for photos.
    pub data_wait_share: Option<f64>,
}

/// A picture of the reports.
struct Picture {
    name: &'static str,
    about: &'static str,
    png: Vec<u8>,
}

/// Writes all reports into a directory. A picture that cannot be drawn is left out with a warning. `moved` hears of each
/// picture and each file: with many classes they take a while.
///
/// # Errors
/// When the file system refuses.
pub fn write(dir: &Path, report: &Report<'_>, moved: &dyn Fn()) -> Result<(), Error> {
    fs::create_dir_all(dir).map_err(Error::writing(dir))?;
    let pretty = |value: &Value| format!("{value:#}\n").into_bytes();
    let metrics = metrics(report);
    let pictures = pictures(report, moved);
    let html = html::page(report, &metrics, &pictures);
    let mut reports = vec![
        ("metrics.json", pretty(&metrics)),
        ("classification_report.txt", report.evaluation.confusion.report(report.classes).into_bytes()),
        ("report.html", html.into_bytes()),
    ];
    if let Some(trained) = report.training {
        reports.push(("training_history.json", pretty(&series(trained.history))));
        let lists = [("skipped.txt", &trained.dataset.broken), ("duplicates.txt", &trained.dataset.duplicates)];
        let lists = lists.into_iter().filter(|(_, lines)| !lines.is_empty());
        reports.extend(lists.map(|(name, lines)| (name, (lines.join("\n") + "\n").into_bytes())));
    }
    reports.extend(pictures.into_iter().map(|picture| (picture.name, picture.png)));
    for (name, content) in reports {
        let path = dir.join(name);
        files::write(&path, &content).map_err(Error::writing(path))?;
        moved();
    }
    Ok(())
}

fn pictures(report: &Report<'_>, moved: &dyn Fn()) -> Vec<Picture> {
    let Report { classes, evaluation, temperature, .. } = report;
    let answers = &evaluation.answers;
    let picture = |name, about, png| {
        moved();
        (name, about, png)
    };
    let svg = |name, about, svg: String| picture(name, about, to_png(&svg));
    let mut drawn = Vec::new();
    if let Some(trained) = report.training {
        let svg_text = charts::training_curves(trained.history);
        drawn.push(svg("training_curves.png", "Loss and accuracy of every epoch", svg_text));
    }
    drawn.extend([
        svg(
            "confusion_matrix.png",
            "Which class was taken for which",
            confusion_matrix(&evaluation.confusion, classes),
        ),
        svg("roc_curve.png", "What is found for how many false alarms", charts::roc_curve(answers, classes)),
        svg(
            "calibration.png",
            "Whether the network is as often right as it is sure",
            charts::calibration_plot(answers, *temperature),
        ),
        picture("worst_mistakes.png", "The photos that it was most wrong about", worst_mistakes(report)),
    ]);
    let kept = drawn.into_iter().filter_map(|(name, about, png)| match png {
        Ok(png) => Some(Picture { name, about, png }),
        Err(error) => {
            warn!("{name} is left out: {error}");
            None
        }
    });
    kept.collect()
}

fn worst_mistakes(report: &Report<'_>) -> Result<Vec<u8>, DrawError> {
    let Report { photos, evaluation, .. } = report;
    let classes = names_of(report.classes);
    let mut wrong: Vec<_> = evaluation.answers.iter().enumerate().filter(|(_, answer)| !answer.is_right()).collect();
    wrong.sort_by(|a, b| b.1.confidence().total_cmp(&a.1.confidence()));
    let title = match wrong.len() {
        0 => format!("No mistakes among {} photos", evaluation.answers.len()),
        count if count <= WORST => format!("All {count} mistakes among {} photos", evaluation.answers.len()),
        count => format!("The {WORST} worst of {count} mistakes among {} photos", evaluation.answers.len()),
    };
    let shown = wrong.into_iter().take(WORST).filter_map(|(index, answer)| {
        Some(Mistake {
            path: photos.paths.get(index)?,
            actual: &classes[answer.label],
            predicted: &classes[answer.predicted()],
            confidence: answer.confidence(),
            photo: photos.picture(index).ok().flatten()?,
        })
    });
    charts::mistakes(&title, &shown.collect::<Vec<_>>())
}

/// An evaluation as JSON.
pub fn evaluation(classes: &[String], evaluation: &Evaluation) -> Value {
    let areas: Vec<_> =
        (0..classes.len()).map(|class| roc::curve(&evaluation.answers, class).map(|curve| curve.area)).collect();
    let by_class = classes.iter().zip(evaluation.confusion.by_class()).zip(&areas).map(|((name, of), area)| {
        let value = json!({
            "precision": of.precision, "recall": of.recall, "f1": of.f1, "support": of.support, "rocAuc": area,
        });
        (name.clone(), value)
    });
    let all = evaluation.confusion.metrics();
    let known: Vec<f64> = areas.iter().copied().flatten().collect();
    #[expect(clippy::cast_precision_loss, reason = "a count of classes")]
    let mean_area = (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64);
    let interval = evaluation.confusion.interval();
    json!({
        "accuracy": all.accuracy,
        "accuracyInterval95": [interval.0, interval.1],
        "precision": all.precision,
        "recall": all.recall,
        "f1": all.f1,
        "loss": evaluation.loss,
        "rocAuc": mean_area,
        "expectedCalibrationError": calibration::expected_error(&calibration::bins(&evaluation.answers, 1.0)),
        "images": evaluation.confusion.total(),
        "classes": by_class.collect::<Map<_, _>>(),
        "confusionMatrix": evaluation.confusion.rows(),
    })
}

fn metrics(report: &Report<'_>) -> Value {
    let mut value = evaluation(report.classes, report.evaluation);
    value["split"] = json!(report.split.folder());
    value["temperature"] = json!(report.temperature);
    if let Some(trained) = report.training {
        value["bestEpoch"] = json!(trained.best_epoch);
        value["bestValidationAccuracy"] = json!(trained.history.best());
        value["epochs"] = json!(trained.history.0.len());
        value["dataWaitShare"] = json!(trained.data_wait_share);
    }
    value
}

fn series(history: &History) -> Value {
    history.series().into_iter().map(|(name, values)| (name.to_owned(), json!(values))).collect::<Map<_, _>>().into()
}
