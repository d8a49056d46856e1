//! The command line.

use std::{
    any::Any,
    ffi::OsString,
    fs::{self, TryLockError},
    io::{self, IsTerminal, stderr, stdin},
    net::SocketAddr,
    panic::{self, AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, OnceLock},
};

use anneal_api::{
    Sha256,
    dataset::Synthetic,
    failure::Failure,
    names::{env as names, path::TERMINATION_LOG},
    progress::Progress,
    termination::{RunResult, TerminationMessage, cut},
};
use clap::{Args, Parser, Subcommand, builder::NonEmptyStringValueParser};
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

use crate::{
    commands,
    config::{self, Overrides, RunConfig},
    export::Format,
    fetch, files, import, inspect, machine,
    outcome::{Error, write_message},
    progress::{self, Shared},
    service::Service,
    tracking::{self, Recorder},
    train::{self, Surroundings},
};

/// Trains image classifiers, evaluates them, and says how far it is.
#[derive(Parser, Debug)]
#[command(name = "anneal-trainer", version, max_term_width = 100, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done; 65 damaged data; 66 no data; 67 no checkpoint; 68 another checkpoint than declared; 69 unusable checkpoint; \
70 the loss diverged; 78 unusable configuration; 80 out of memory; 81 disk full; 143 stopped by SIGTERM; 2 wrong arguments; 1 anything else.";

#[derive(Subcommand, Debug)]
enum Command {
    /// Train a network, or go on with a run that was interrupted, and publish the best epoch.
    Train(TrainArgs),
    /// Measure a checkpoint on a dataset: its test split, else its validation split, else all photos.
    Evaluate(EvaluateArgs),
    /// Classify photos, or all photos in folders.
    Predict(PredictArgs),
    /// Show what a .pth file holds: description, keys, shapes and number formats.
    Inspect {
        /// The checkpoint.
        file: PathBuf,
    },
    /// Write a checkpoint for other programs.
    Export(ExportArgs),
    /// Send what a run could not send to its tracking server.
    Sync {
        /// Directory of the run, which has `tracking/`.
        dir: PathBuf,
        /// Address of the server, instead of the one that the run was told.
        #[arg(long)]
        uri: Option<String>,
    },
    /// Draw the synthetic set of cats and dogs as PNG files in DIR/{train,val,test}/{cat,dog}/.
    Synthesize(SynthesizeArgs),
    /// Download a checkpoint from https://, s3:// or gs:// and verify it.
    Fetch {
        /// Address of the checkpoint.
        uri: String,
        /// Digest that it must have, as sha256sum prints it.
        #[arg(long, value_name = "DIGEST")]
        sha256: Sha256,
        /// File to write.
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
        /// File for a failure as JSON [default: /dev/termination-log where it exists].
        #[arg(long, value_name = "FILE", env = "ANNEAL_TERMINATION_LOG")]
        termination_log: Option<PathBuf>,
    },
    /// Unpack a tar from standard input into a folder, for example onto a claim.
    Import {
        /// Folder to unpack into; it is made where it is missing.
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
}

#[derive(Args, Debug)]
struct TrainArgs {
    /// The run's configuration, as YAML.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Directory of the run, instead of the configuration's output.dir.
    #[arg(long, value_name = "DIR", env = names::OUTPUT_DIR)]
    output: Option<OsString>,
    /// Directory that takes the published model [default: the configuration's, or OUTPUT/models with --output].
    #[arg(long, value_name = "DIR", env = names::MODELS_DIR)]
    models: Option<OsString>,
    /// Name of the run, instead of the configuration's.
    #[arg(long, env = names::RUN)]
    name: Option<String>,
    /// Checkpoint directory to go on from where the run has none of its own.
    #[arg(long, value_name = "DIR", env = names::RESUME_FROM)]
    resume_from: Option<OsString>,
    /// Answer /progress and /metrics here, for example 0.0.0.0:9090.
    #[arg(long, value_name = "ADDRESS", env = "ANNEAL_PROGRESS_ADDRESS")]
    progress_address: Option<SocketAddr>,
    /// File for the result or failure as JSON [default: /dev/termination-log where it exists].
    #[arg(long, value_name = "FILE", env = "ANNEAL_TERMINATION_LOG")]
    termination_log: Option<PathBuf>,
}

/// What `evaluate` takes.
#[derive(Args, Debug)]
pub struct EvaluateArgs {
    /// The checkpoint.
    #[arg(long, value_name = "FILE")]
    pub checkpoint: PathBuf,
    /// The dataset: a folder, a tar, a .dvc file, or a URI as in a configuration.
    #[arg(long, value_name = "URI", value_parser = NonEmptyStringValueParser::new())]
    pub data: String,
    /// Average the probabilities of each photo and of its mirror image: slower, and a little better.
    #[arg(long)]
    pub flip: bool,
    /// Write reports (pictures, report.html, metrics.json) into this directory.
    #[arg(long, value_name = "DIR")]
    pub reports: Option<PathBuf>,
    /// Keep what is downloaded in this directory for the next time.
    #[arg(long, value_name = "DIR")]
    pub downloads: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// What `predict` takes.
#[derive(Args, Debug)]
pub struct PredictArgs {
    /// The checkpoint.
    #[arg(long, value_name = "FILE")]
    pub checkpoint: PathBuf,
    /// Print one JSON object a line instead of a table.
    #[arg(long)]
    pub json: bool,
    /// The photos, or folders of photos.
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
}

/// What `export` takes.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// The checkpoint.
    #[arg(long, value_name = "FILE")]
    pub checkpoint: PathBuf,
    /// The format.
    #[arg(long, value_enum)]
    pub format: Format,
    /// The file to write [default: beside the checkpoint].
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// What `synthesize` takes.
#[derive(Args, Debug)]
pub struct SynthesizeArgs {
    /// Folder to write to; it is made where it is missing.
    #[arg(long, value_name = "DIR", required_unless_present = "stdout")]
    pub output: Option<PathBuf>,
    /// Pictures of all splits and classes together.
    #[arg(long, default_value_t = Synthetic::default().images, value_parser = clap::value_parser!(u32).range(20..=1_000_000))]
    pub images: u32,
    /// Side of the pictures in pixels.
    #[arg(long, default_value_t = Synthetic::default().size, value_parser = clap::value_parser!(u32).range(16..=1024))]
    pub size: u32,
    /// Seed of the drawing.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Class of the one picture for --stdout.
    #[arg(long, requires = "stdout", default_value = "cat", value_parser = ["cat", "dog"])]
    pub class: String,
    /// Write one picture to standard output instead.
    #[arg(long, conflicts_with = "output")]
    pub stdout: bool,
    /// Write that picture as text, for `kubectl logs`: the log of a pod takes a line's end for one byte.
    #[arg(long, requires = "stdout")]
    pub base64: bool,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    set_up_logging();
    let last_words = LastWords {
        path: match &cli.command {
            Command::Train(TrainArgs { termination_log, .. }) | Command::Fetch { termination_log, .. } => {
                log_or_default(termination_log.as_deref())
            }
            _ => None,
        },
        progress: progress::not_begun(0),
        panic: Arc::default(),
    };
    last_words.leave_on_panic();
    let done = catch_unwind(AssertUnwindSafe(|| run(cli.command, &last_words.progress)));
    match done.unwrap_or_else(|panic| Err(last_words.of_panic(panic.as_ref()))) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(result)) => {
            last_words.leave(&TerminationMessage::Result(result));
            ExitCode::SUCCESS
        }
        Err(failure) if failure.is_unheard() => ExitCode::SUCCESS,
        Err(failure) => {
            error!(class = failure.class().as_str(), "{failure}");
            last_words.leave(&last_words.of(&failure));
            u8::try_from(failure.class().exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
        }
    }
}

/// The termination message: where it goes, and what it says of steps.
#[derive(Clone)]
struct LastWords {
    path: Option<PathBuf>,
    progress: Shared,
    /// What the first panic said: the one of a thread reaches the top as that of whoever waited for it.
    panic: Arc<OnceLock<String>>,
}

impl LastWords {
    fn of(&self, failure: &Error) -> TerminationMessage {
        let Progress { step, steps, checkpoint_step, resumed_from_step, .. } = progress::snapshot(&self.progress);
        TerminationMessage::Failure(Failure {
            step: (steps > 0).then_some(step),
            checkpoint_step,
            resumed_from_step,
            ..Failure::new(failure.class(), cut(&failure.to_string(), 2048))
        })
    }

    fn leave(&self, message: &TerminationMessage) {
        let written = self.path.as_ref().map(|path| (path, write_message(message, path)));
        if let Some((path, Err(problem))) = written {
            error!("the termination message cannot be written to {path:?}: {problem}");
        }
    }

    /// A panic that cannot unwind, because another one does, ends the process before anything else could speak.
    fn leave_on_panic(&self) {
        let (last_words, print) = (self.clone(), panic::take_hook());
        panic::set_hook(Box::new(move |panic| {
            print(panic);
            let failure = last_words.of_panic(panic.payload());
            // Whoever holds the lock may be the one that panics.
            if last_words.progress.try_lock().is_ok() {
                last_words.leave(&last_words.of(&failure));
            }
        }));
    }

    fn of_panic(&self, payload: &(dyn Any + Send)) -> Error {
        Error::Internal(self.panic.get_or_init(|| Error::from_panic(payload).to_string()).clone())
    }
}

fn log_or_default(asked_for: Option<&Path>) -> Option<PathBuf> {
    asked_for.map(Path::to_owned).or_else(|| Some(PathBuf::from(TERMINATION_LOG)).filter(|path| path.exists()))
}

/// A person at a terminal gets plain lines, a log collector gets JSON.
fn set_up_logging() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_target(false);
    if stderr().is_terminal() { builder.without_time().init() } else { builder.json().flatten_event(true).init() }
}

fn run(command: Command, progress: &Shared) -> Result<Option<RunResult>, Error> {
    match command {
        Command::Train(args) => return train(args, progress).map(Some),
        Command::Evaluate(args) => commands::evaluate(&args)?,
        Command::Predict(args) => commands::predict(args)?,
        Command::Inspect { file } => commands::print(&inspect::describe(&file)?)?,
        Command::Export(args) => commands::export(&args)?,
        Command::Sync { dir, uri } => commands::print(&tracking::sync(&dir, uri.as_deref())?)?,
        Command::Synthesize(args) => commands::synthesize(&args)?,
        Command::Fetch { uri, sha256, to, .. } => {
            let service = Service::start().map_err(|error| unheard(&error))?;
            fetch::fetch(&uri, &sha256, &to, service.stop())?;
        }
        Command::Import { to } => {
            let done = import::import(stdin().lock(), &to)?;
            commands::print(&format!("{} files, {} bytes, sha256:{}\n", done.files, done.bytes, done.digest))?;
        }
    }
    Ok(None)
}

fn train(args: TrainArgs, progress: &Shared) -> Result<RunResult, Error> {
    // The operator sets every variable on every attempt; an empty one means that there is nothing. A `PathBuf` would be
    // refused when it is empty, before anything here could see it.
    let given = |path: Option<OsString>| path.filter(|path| !path.is_empty()).map(PathBuf::from);
    let overrides = Overrides {
        name: args.name.filter(|name| !name.is_empty()),
        output: given(args.output),
        models: given(args.models),
        resume_from: given(args.resume_from),
    };
    let config = config::read(&args.config, overrides)?;
    let threads = set_threads(config.hyperparameters.threads);
    let service = Service::start().map_err(|error| unheard(&error))?;
    progress::change(progress, |progress| progress.epochs = config.hyperparameters.epochs);
    if let Some(address) = args.progress_address {
        service.answer(address, progress.clone());
    }
    info!(run = config.name, dataset = config.dataset.shown(), output = %config.output.display(), threads, "run begins");
    let _own = files::own(&config.output).map_err(|error| match error {
        TryLockError::WouldBlock => Error::Busy { dir: config.output.clone() },
        TryLockError::Error(source) => Error::Write { path: config.output.clone(), source },
    })?;
    let recorder = Recorder::start(&config);
    let around = Surroundings {
        threads,
        memory: machine::memory(),
        stop: service.stop(),
        progress: progress.clone(),
        recorder: &recorder,
    };
    let result = train::run(&config, &around);
    recorder.end(result.as_ref().err(), &|| progress::touch(progress));
    let result = result?;
    remove_downloads(&config);
    info!(accuracy = result.metrics.accuracy, checkpoint = result.checkpoint, "run done");
    Ok(result)
}

fn unheard(error: &io::Error) -> Error {
    Error::Internal(format!("signals cannot be heard: {error}"))
}

/// A run that is done needs no photos any more; the volume may be small.
fn remove_downloads(config: &RunConfig) {
    let dir = config.downloads();
    if let Err(error) = fs::remove_dir_all(&dir)
        && error.kind() != io::ErrorKind::NotFound
    {
        warn!("{dir:?} cannot be removed: {error}");
    }
}

/// Must come before anything else of libtorch.
pub(crate) fn set_threads(asked_for: Option<i32>) -> usize {
    let threads = asked_for.and_then(|count| usize::try_from(count).ok()).unwrap_or_else(machine::threads).max(1);
    tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
    tch::set_num_interop_threads(1);
    threads
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_panic_of_a_thread_leaves_its_own_words_behind() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("message");
        let last_words =
            LastWords { path: Some(path.clone()), progress: progress::not_begun(3), panic: Arc::default() };
        last_words.leave_on_panic();
        let top = catch_unwind(|| thread::scope(|scope| drop(scope.spawn(|| panic!("index 7 of 3")))));
        drop(panic::take_hook());
        let left = || TerminationMessage::parse(&fs::read_to_string(&path).expect("a message")).expect("one of ours");
        let TerminationMessage::Failure(failure) = left() else { panic!("no failure") };
        assert!(failure.message.contains("index 7 of 3"), "{failure:?}");
        let at_the_top = last_words.of_panic(top.expect_err("a panic").as_ref());
        assert!(at_the_top.to_string().contains("index 7 of 3"), "{at_the_top}");
    }
}
