//! `anneal-server tune`: finds by trying how many threads and how large a batch answer fastest here, and remembers it.
//!
//! What is found holds for one processor, one quota, one checkpoint and one precision: each combination has a file of its own.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anneal_api::Sha256;
use anneal_model::{preprocess::ImageLimits, sha256_file};
use bytes::Bytes;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256 as Hasher};
use tokio::sync::mpsc;

use crate::{
    engine::{Bounds, Engine, Predictor},
    input::Input,
    model::{self, Loaded, Wanted},
    options::{Decode, Precision, TuneOptions},
    picture, table,
};

/// Batches that are tried: more helps no processor.
const BATCHES: [u16; 4] = [1, 2, 4, 8];
/// Requests under way for each thread, so that batches can form.
const CALLERS: usize = 8;
/// Time for an answer: what takes longer is of no use.
const PATIENCE: Duration = Duration::from_secs(30);
/// By so much a setting must be faster than one with fewer threads or a smaller batch, which needs less memory.
const WORTH_IT: f64 = 1.02;

/// What a setting depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Circumstances {
    /// Model of the processor, as Linux names it.
    processor: String,
    /// Threads that the quota allows.
    quota: usize,
    /// Digest of the checkpoint.
    checkpoint: Sha256,
    /// What convolutions compute in.
    precision: String,
}

/// What was found to be fastest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Setting {
    /// Threads that run the model.
    pub workers: u16,
    /// Images of one forward pass at most.
    pub batch: u16,
    images_per_second: f64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    circumstances: Circumstances,
    setting: Setting,
}

/// The folder that is meant: the given one, or where caches belong (XDG Base Directory Specification).
fn folder(given: Option<&Path>) -> Option<PathBuf> {
    let path = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let caches = || path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")));
    given.map(Path::to_owned).or_else(|| Some(caches()?.join("anneal/tuning")))
}

/// What was found before for this checkpoint, on a machine and under a quota like this, if anything was.
pub fn recall(given: Option<&Path>, checkpoint: &Path, precision: Precision) -> Option<Setting> {
    let folder = folder(given)?;
    // Nothing was tried here: the checkpoint need not be read.
    fs::read_dir(&folder).ok()?.next()?.ok()?;
    let circumstances = circumstances(checkpoint, precision).ok()?;
    let text = fs::read_to_string(folder.join(file_name(&circumstances))).ok()?;
    let entry: Entry = serde_json::from_str(&text).ok()?;
    (entry.circumstances == circumstances).then_some(entry.setting)
}

/// Tries the settings, prints a table, remembers the best, and gives the exit code.
pub async fn run(options: &TuneOptions) -> i32 {
    match tune(options).await {
        Ok(text) => {
            // A closed pipe is the reader's choice.
            let _ = io::Write::write_all(&mut io::stdout(), text.as_bytes());
            0
        }
        Err(why) => {
            tracing::error!("{why}");
            1
        }
    }
}

async fn tune(options: &TuneOptions) -> Result<String, String> {
    let folder = folder(options.tuning.as_deref()).ok_or("no folder to remember in: give --tuning DIR or set HOME")?;
    fs::create_dir_all(&folder).map_err(|error| format!("{} cannot be made: {error}", folder.display()))?;
    let circumstances = circumstances(&options.checkpoint, options.precision)
        .map_err(|error| format!("{} cannot be read: {error}", options.checkpoint.display()))?;
    let quota = u16::try_from(circumstances.quota).unwrap_or(u16::MAX);
    let mut found: Vec<Setting> = Vec::new();
    // Half of the threads is worth a try where two share a core.
    let mut counts = vec![quota.div_ceil(2), quota];
    counts.dedup();
    for (workers, batch) in counts.into_iter().flat_map(|workers| BATCHES.map(|batch| (workers, batch))) {
        let images_per_second = rate(options, workers, batch).await?;
        eprintln!("{workers} threads, batches of up to {batch}: {images_per_second:.1} images/s");
        found.push(Setting { workers, batch, images_per_second });
    }
    let best = best(&found).ok_or("nothing was tried")?;
    let rows: Vec<_> = found
        .iter()
        .map(|it| {
            let mark = if *it == best { "best" } else { "" };
            [it.workers.to_string(), it.batch.to_string(), format!("{:.1}", it.images_per_second), mark.to_owned()]
        })
        .collect();
    let path = folder.join(file_name(&circumstances));
    write(&path, &Entry { circumstances, setting: best })
        .map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
    Ok(format!("{}\nremembered in {}\n", table::render(["WORKERS", "BATCH", "IMAGES/S", ""], &rows), path.display()))
}

/// The fastest, but one that takes less where that costs nearly nothing.
fn best(found: &[Setting]) -> Option<Setting> {
    let fastest = found.iter().map(|it| it.images_per_second).fold(0.0, f64::max);
    found.iter().find(|it| it.images_per_second * WORTH_IT >= fastest).cloned()
}

/// Images per second with this setting, answered to callers that never pause.
async fn rate(options: &TuneOptions, workers: u16, batch: u16) -> Result<f64, String> {
    let wanted = Wanted {
        checkpoint: options.checkpoint.clone(),
        sha256: None,
        name: None,
        workers: usize::from(workers),
        precision: options.precision.into(),
        images: ImageLimits::default(),
        decode: Decode::Exact,
    };
    let Loaded { predictors, .. } = model::load(&wanted).map_err(|error| error.to_string())?;
    let image = Bytes::from(picture::png().map_err(|error| format!("no image can be made up: {error}"))?);
    rate_of(predictors, usize::from(batch), &image, options.seconds).await
}

async fn rate_of<P: Predictor>(predictors: Vec<P>, batch: usize, image: &Bytes, time: Duration) -> Result<f64, String> {
    let callers = predictors.len() * CALLERS;
    let bounds = Bounds { queue: callers, batch };
    let engine = Engine::start(predictors, bounds, &mpsc::unbounded_channel().0).await.map_err(|it| it.to_string())?;
    let begun = Instant::now();
    let caller = || async {
        let mut answered = 0_u32;
        while begun.elapsed() < time {
            engine
                .predict(Input::File(image.clone()), Instant::now() + PATIENCE)
                .await
                .map_err(|error| error.to_string())?;
            answered += 1;
        }
        Ok::<_, String>(answered)
    };
    let answered = join_all((0..callers).map(|_| caller())).await.into_iter().sum::<Result<u32, _>>()?;
    Ok(f64::from(answered) / begun.elapsed().as_secs_f64())
}

fn circumstances(checkpoint: &Path, precision: Precision) -> io::Result<Circumstances> {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let named = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Ok(Circumstances {
        processor: named.map_or_else(String::new, |(_, name)| name.trim().to_owned()),
        quota: model::workers(),
        checkpoint: sha256_file(checkpoint)?.sha256,
        precision: format!("{precision:?}"),
    })
}

fn file_name(circumstances: &Circumstances) -> String {
    let text = serde_json::to_string(circumstances).unwrap_or_default();
    let digest = Hasher::digest(text);
    let number = digest.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    format!("{number:016x}.json")
}

/// Whoever reads it meanwhile reads all of it or the former one.
fn write(path: &Path, entry: &Entry) -> io::Result<()> {
    let aside: PathBuf = path.with_extension("tmp");
    fs::write(&aside, serde_json::to_string_pretty(entry)? + "\n")?;
    fs::rename(&aside, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fake::Fake;

    fn setting(workers: u16, batch: u16, images_per_second: f64) -> Setting {
        Setting { workers, batch, images_per_second }
    }

    #[test]
    fn what_takes_less_wins_where_it_is_as_fast() {
        let found = [setting(1, 1, 50.0), setting(1, 4, 99.0), setting(2, 4, 100.0)];
        assert_eq!(best(&found).map(|it| (it.workers, it.batch)), Some((1, 4)));
        let found = [setting(1, 4, 90.0), setting(2, 4, 100.0)];
        assert_eq!(best(&found).map(|it| (it.workers, it.batch)), Some((2, 4)));
        assert_eq!(best(&[]), None);
    }

    #[test]
    fn what_was_found_is_recalled_for_the_same_checkpoint_and_precision_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let (tuning, checkpoint) = (folder.path().join("tuning"), folder.path().join("model.pth"));
        fs::create_dir(&tuning).expect("a folder");
        fs::write(&checkpoint, "weights").expect("written");
        let recall = |precision| recall(Some(&tuning), &checkpoint, precision);
        assert_eq!(recall(Precision::Float32), None);
        let circumstances = circumstances(&checkpoint, Precision::Float32).expect("a file");
        let setting = setting(3, 2, 10.0);
        write(&tuning.join(file_name(&circumstances)), &Entry { circumstances, setting: setting.clone() }).expect("it");
        assert_eq!(recall(Precision::Float32), Some(setting));
        assert_eq!(recall(Precision::Bfloat16), None);
        fs::write(&checkpoint, "other weights").expect("written");
        assert_eq!(recall(Precision::Float32), None);
    }

    #[tokio::test]
    async fn the_rate_is_that_of_answers() {
        let image = Bytes::from_static(b"cat");
        let rate = rate_of(vec![Fake(None)], 2, &image, Duration::from_millis(50)).await;
        assert!(rate.is_ok_and(|rate| rate > 10.0));
        let broken = rate_of(vec![Fake(None)], 2, &Bytes::from_static(b""), Duration::from_millis(50)).await;
        assert!(broken.is_err());
    }
}
