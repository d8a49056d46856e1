//! What the commands beside `train` do: evaluate, predict, export.

use std::{
    env,
    io::{IsTerminal, Write, stderr, stdout},
    path::{Path, PathBuf},
};

use anneal_api::dataset::{DatasetUri, Synthetic};
use anneal_model::Checkpoint;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Map, json};
use tracing::info;

use crate::{
    cli::{EvaluateArgs, ExportArgs, PredictArgs, SynthesizeArgs, set_threads},
    data::DataError,
    evaluate::Views,
    export, machine,
    outcome::Error,
    predict::{self, Measuring, Predictor},
    progress,
    report::{self, Report},
    service::Service,
    synthesize,
};

/// Measures a checkpoint on a dataset.
///
/// # Errors
/// When the checkpoint or the dataset cannot be used.
pub fn evaluate(args: &EvaluateArgs) -> Result<(), Error> {
    let threads = set_threads(None);
    let service = Service::start().map_err(|error| Error::Internal(format!("signals cannot be heard: {error}")))?;
    // Removed at the end, unless the user wants to keep it for the next time.
    let temporary = tempfile::tempdir().map_err(Error::writing(env::temp_dir()))?;
    let measured = predict::measure(&Measuring {
        checkpoint: &args.checkpoint,
        dataset: &dataset_uri(&args.data)?,
        views: if args.flip { Views::Flipped } else { Views::Single },
        threads,
        memory: machine::memory(),
        downloads: args.downloads.as_deref().unwrap_or(temporary.path()),
        stop: service.stop(),
    })?;
    if let Some(dir) = &args.reports {
        let name = args.checkpoint.file_stem().unwrap_or_default().to_string_lossy();
        report::write(
            dir,
            &Report {
                name: &name,
                classes: &measured.classes,
                split: measured.split,
                photos: &measured.photos,
                evaluation: &measured.evaluation,
                temperature: measured.temperature,
                training: None,
            },
            &|| (),
        )?;
    }
    for broken in &measured.broken {
        tracing::warn!("a photo is skipped: {broken}");
    }
    if args.json {
        let mut value = report::evaluation(&measured.classes, &measured.evaluation);
        value["dataset"] = json!(measured.identity);
        value["flip"] = json!(args.flip);
        return print(&format!("{value:#}\n"));
    }
    let confusion = &measured.evaluation.confusion;
    let (low, high) = confusion.interval();
    print(&format!(
        "{}\nloss {:.4}, accuracy {:.2} % (95 % interval {:.2} % to {:.2} %)\n",
        confusion.report(&measured.classes),
        measured.evaluation.loss,
        confusion.accuracy() * 100.0,
        low * 100.0,
        high * 100.0
    ))
}

/// A URI, or a path as people type it.
fn dataset_uri(text: &str) -> Result<DatasetUri, Error> {
    if text.contains("://") {
        return text.parse().map_err(|error| Error::Data(DataError::Uri(error)));
    }
    let path = env::current_dir().unwrap_or_default().join(text);
    let is_dvc = path.extension().is_some_and(|extension| extension == "dvc");
    let path = path.display().to_string();
    Ok(if is_dvc { DatasetUri::Dvc { url: format!("file://{path}") } } else { DatasetUri::File { path } })
}

/// Classifies photos, one line each. A photo that cannot be used is named; the others are classified all the same.
///
/// # Errors
/// When the checkpoint or a path cannot be read, or no photo could be used.
pub fn predict(args: PredictArgs) -> Result<(), Error> {
    set_threads(None);
    let predictor = Predictor::load(&args.checkpoint)?;
    let photos = predict::photos_of(args.paths)?;
    let width = photos.iter().map(|path| path.as_os_str().len()).max().unwrap_or(0).min(60);
    // A bar and a table on one terminal would write over each other.
    let bar = if stdout().is_terminal() { None } else { Some(progress::answering_bar(photos.len())) };
    let (count, mut good) = (photos.len(), 0);
    for path in photos {
        match predictor.probabilities(&path) {
            Ok(probabilities) => {
                good += 1;
                print(&line(&path, &predictor.classes, &probabilities, args.json, width))?;
            }
            Err(error @ (Error::Image { .. } | Error::Photo { .. })) => {
                let text = error.to_string();
                if args.json {
                    print(&format!("{}\n", json!({"file": path.display().to_string(), "error": text})))?;
                } else if count > 1 {
                    let _ = writeln!(stderr(), "{text}");
                }
                // The only one is what the command fails with.
                if count == 1 {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
        if let Some(bar) = &bar {
            bar.inc(1);
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    if good == 0 { Err(Error::NoneClassified(count)) } else { Ok(()) }
}

fn line(path: &Path, classes: &[String], probabilities: &[f64], as_json: bool, width: usize) -> String {
    let named = || classes.iter().zip(probabilities);
    let Some((class, confidence)) = named().max_by(|a, b| a.1.total_cmp(b.1)) else { return String::new() };
    let path = path.display().to_string();
    if as_json {
        let probabilities: Map<_, _> = named().map(|(name, p)| (name.clone(), json!(p))).collect();
        let value =
            json!({"file": path, "prediction": class, "confidence": confidence, "probabilities": probabilities});
        return format!("{value}\n");
    }
    format!("{path:width$}  {class}  {:5.1} %\n", confidence * 100.0)
}

/// Writes a checkpoint in the format of another program.
///
/// # Errors
/// When the checkpoint cannot be used or the file not be written.
pub fn export(args: &ExportArgs) -> Result<(), Error> {
    set_threads(Some(1));
    let checkpoint = Checkpoint::load(&args.checkpoint)?;
    let extension = if args.format == export::Format::Onnx { "onnx" } else { "safetensors" };
    let path = args.output.clone().unwrap_or_else(|| args.checkpoint.with_extension(extension));
    let bytes = export::to_file(&checkpoint, args.format, &path)?;
    info!(path = %path.display(), bytes, "exported");
    Ok(())
}

/// Draws the synthetic set.
///
/// # Errors
/// When it cannot be written.
pub fn synthesize(args: &SynthesizeArgs) -> Result<(), Error> {
    let set = Synthetic { images: args.images, size: args.size, seed: args.seed };
    match &args.output {
        None if args.base64 => print(&format!("{}\n", BASE64_STANDARD.encode(synthesize::first_of(set, &args.class)?))),
        None => synthesize::to_stream(set, &args.class, &mut stdout().lock()),
        Some(dir) => {
            let count = synthesize::to_folder(set, dir)?;
            print(&format!("{count} pictures in {}\n", dir.display()))
        }
    }
}

/// Prints to standard output, whose reader may have gone.
///
/// # Errors
/// When it cannot be written.
pub fn print(text: &str) -> Result<(), Error> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Error::writing(PathBuf::from("standard output")))
}
