//! The command line, and the environment variables that stand in for it.

use std::{convert::Infallible, net::SocketAddr, path::PathBuf, time::Duration};

use anneal_api::{Sha256, names};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Serves an image classifier over HTTP. Without a command it does what `serve` does.
#[derive(Debug, Parser)]
#[command(name = "anneal-server", version, args_conflicts_with_subcommands = true, args_override_self = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of `serve`.
    #[command(flatten)]
    pub serve: Box<ServeOptions>,
}

/// What the binary can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serves a checkpoint until it is told to stop.
    Serve(Box<ServeOptions>),
    /// Asks running servers what their model says, and judges the answers. Exits 0 when all is well, 1 when an answer
    /// is wrong, 2 when nothing could be asked.
    Smoke(SmokeOptions),
    /// Finds the fastest number of threads and size of a batch for a checkpoint on this machine, and remembers it for `serve`.
    Tune(TuneOptions),
    /// Sends image files to a server and prints what it predicts.
    Predict(PredictOptions),
    /// Sends labelled photos to a server, and writes down how often it is right. Exits 0 when all is well, 1 when answers are
    /// missing or the accuracy is below --min-accuracy, 2 when nothing could be measured.
    Track(TrackOptions),
    /// Sends images again and again, to see how a deployment scales.
    Load(LoadOptions),
    /// Asks a server whether it is ready, and nothing of its model. Exits 0 when it is, 1 when it is not.
    Healthcheck(HealthcheckOptions),
}

/// Options of `serve`.
#[derive(Clone, Debug, Args)]
pub struct ServeOptions {
    /// The checkpoint (.pth) to serve.
    #[arg(long, env = names::env::MODEL_PATH, value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    /// SHA-256 that the checkpoint must have.
    #[arg(long, env = names::env::MODEL_SHA256, value_name = "DIGEST", value_parser = digest)]
    pub sha256: Option<Digest>,
    /// Name of the model that /model/info reports; by default that of the architecture.
    #[arg(long, env = names::env::MODEL_NAME, value_name = "NAME")]
    pub model_name: Option<String>,
    /// Revision that every answer names in its header x-anneal-revision.
    #[arg(long, env = names::env::REVISION, value_name = "NAME")]
    pub revision: Option<String>,
    /// Address to listen on, such as 127.0.0.1:8000; port 0 takes a free one. By default every address of the host.
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Port to listen on where --listen is not given.
    #[arg(long, env = "PORT", default_value_t = names::SERVER_PORT)]
    pub port: u16,
    /// File into which the port is written once the server listens.
    #[arg(long, value_name = "FILE")]
    pub port_file: Option<PathBuf>,
    /// Threads that run the model; by default as many as the CPU quota allows.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,
    /// Images of one forward pass at most, by default 4; a batch never waits for more.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub batch: Option<u16>,
    /// Folder in which `tune` remembers what is fastest, by default ~/.cache/anneal/tuning; where it has found something, that replaces the defaults of --workers
    /// and --batch.
    #[arg(long, env = "ANNEAL_TUNING_DIR", value_name = "DIR")]
    pub tuning: Option<PathBuf>,
    /// What convolutions compute in. bfloat16 is some times faster on processors that have it; probabilities are then within
    /// 0.02 of float32's.
    #[arg(long, env = "ANNEAL_PRECISION", value_enum, default_value_t = Precision::Float32)]
    pub precision: Precision,
    /// Which pixels of a JPEG are computed. scaled computes only as many as the network's input needs, which saves most of the
    /// time that a photo of a camera costs; probabilities then differ by some hundredths from training's.
    #[arg(long, env = "ANNEAL_DECODE", value_enum, default_value_t = Decode::Exact)]
    pub decode: Decode,
    /// Secret that signs the ids of predictions, the same for all replicas; by default the checkpoint's digest, which no
    /// secret is.
    #[arg(long, env = "ANNEAL_FEEDBACK_KEY", hide_env_values = true, value_name = "SECRET")]
    pub feedback_key: Option<String>,
    /// Certificate chain in PEM: the server then speaks TLS. The file may be replaced while the server runs.
    #[arg(long, env = "ANNEAL_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate, in PEM.
    #[arg(long, env = "ANNEAL_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// CA in PEM that must have signed the certificate of every client, probes included.
    #[arg(long, env = "ANNEAL_TLS_CLIENT_CA", value_name = "FILE", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,
    /// File with the bearer tokens that open everything but probes and metrics, one a line. It may be replaced while the
    /// server runs.
    #[arg(long, env = "ANNEAL_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Images that may wait for a worker; one more is answered 503, and so is one that would not be done in its time.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u16).range(1..))]
    pub queue: u16,
    /// Connections that may be open; for one more the oldest without a request is closed, or it waits where all have one.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u16).range(1..))]
    pub max_connections: u16,
    /// Largest body of a request.
    #[arg(long, value_name = "BYTES", default_value_t = 10 * 1024 * 1024, value_parser = clap::value_parser!(u64).range(1024..=1024 * 1024 * 1024))]
    pub max_upload_bytes: u64,
    /// Most bytes of request bodies held at a time; a request beyond it is answered 503.
    #[arg(long, value_name = "BYTES", default_value_t = 256 * 1024 * 1024)]
    pub max_uploads_bytes: u64,
    /// Most pixels of an image, and of all that are decoded at a time; a pixel takes up to 12 bytes while it is.
    #[arg(long, value_name = "N", default_value_t = 25_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub max_pixels: u64,
    /// Time within which a request must be uploaded and answered; a client may ask for less by X-Request-Timeout.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub request_timeout: Duration,
    /// Age from which a connection is closed with its next answer, so that clients move to the pods of a new revision.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub max_connection_age: Duration,
    /// Time after SIGTERM in which requests are still taken, so that load balancers can learn of it. Longer while some come
    /// who have not: until none came for half of this time, or half of the drain timeout is over.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = at_most_an_hour)]
    pub shutdown_delay: Duration,
    /// Time that requests under way, and clients that come late, have after that.
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = at_most_an_hour)]
    pub drain_timeout: Duration,
}

/// Options of `smoke`.
#[derive(Clone, Debug, Args)]
pub struct SmokeOptions {
    /// What to ask and what to expect, as JSON.
    #[arg(long, value_name = "FILE", default_value = names::path::SMOKE_CONFIG)]
    pub config: PathBuf,
}

/// Options of `tune`.
#[derive(Clone, Debug, Args)]
pub struct TuneOptions {
    /// The checkpoint (.pth) to tune for.
    #[arg(long, env = names::env::MODEL_PATH, value_name = "FILE")]
    pub checkpoint: PathBuf,
    /// What convolutions compute in.
    #[arg(long, env = "ANNEAL_PRECISION", value_enum, default_value_t = Precision::Float32)]
    pub precision: Precision,
    /// How long each setting is tried.
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = duration)]
    pub seconds: Duration,
    /// Folder to remember in, by default ~/.cache/anneal/tuning.
    #[arg(long, env = "ANNEAL_TUNING_DIR", value_name = "DIR")]
    pub tuning: Option<PathBuf>,
}

/// How a client gets in.
#[derive(Clone, Debug, Default, Args)]
pub struct Access {
    /// CA in PEM that signed the server's certificate; by default those of the system.
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// File whose first line is the bearer token to send.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// Options of `predict`.
#[derive(Clone, Debug, Args)]
pub struct PredictOptions {
    /// Address of the server, such as <http://cats-vs-dogs.demo.svc/predict>; without a path, /predict is meant.
    #[arg(long, value_parser = predict_url)]
    pub url: String,
    /// Time that an answer may take; a refused connection is tried again that long.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub timeout: Duration,
    /// How to get in.
    #[command(flatten)]
    pub access: Access,
    /// Image files; `-` is the standard input.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// Options of `track`.
#[derive(Clone, Debug, Args)]
pub struct TrackOptions {
    /// Address of the server, such as <http://cats-vs-dogs.demo.svc/predict>; without a path, /predict is meant.
    #[arg(long, value_parser = predict_url)]
    pub url: String,
    /// Time that an answer may take; a refused connection is tried again that long.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub timeout: Duration,
    /// Requests under way at a time.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,
    /// Least accuracy; below it the exit code is 1.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub min_accuracy: Option<f64>,
    /// Folder for the reports. Each measurement is added to its history.
    #[arg(long, value_name = "DIR", default_value = "performance")]
    pub reports: PathBuf,
    /// How to get in.
    #[command(flatten)]
    pub access: Access,
    /// Labelled photos: a folder with a folder for each class, or a CSV with the columns `file` (from the CSV's folder) and
    /// `class`.
    #[arg(value_name = "PHOTOS")]
    pub photos: PathBuf,
}

/// Options of `load`.
#[derive(Clone, Debug, Args)]
pub struct LoadOptions {
    /// Address of the server, such as <http://cats-vs-dogs.demo.svc/predict>; without a path, /predict is meant.
    #[arg(long, value_parser = predict_url)]
    pub url: String,
    /// Requests under way at a time.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,
    /// How long to go on, an hour at most.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = at_most_an_hour)]
    pub duration: Duration,
    /// Time that an answer may take.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub timeout: Duration,
    /// Image to send, may be given several times: one after another, again and again. By default one that is made up.
    #[arg(long = "image", value_name = "FILE")]
    pub images: Vec<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
    /// Predictions per second, all senders together; as many as the server gives where it is absent.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub rate: Option<u16>,
    /// How to get in.
    #[command(flatten)]
    pub access: Access,
    /// Requests per second that are sent whether or not earlier ones are answered, as by many independent callers. Those that
    /// the server refuses with 429 or 503 are counted apart.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=10_000), conflicts_with_all = ["rate", "concurrency", "journal"])]
    pub arrivals: Option<u16>,
    /// Open a connection for each request, as callers do that come for the first time.
    #[arg(long)]
    pub new_connections: bool,
    /// Print a line of JSON for each failure, each change of the revision that answers, and every few seconds.
    #[arg(long)]
    pub journal: bool,
}

/// Options of `healthcheck`.
#[derive(Clone, Debug, Args)]
pub struct HealthcheckOptions {
    /// Address of the server.
    #[arg(long, default_value_t = format!("http://127.0.0.1:{}", names::SERVER_PORT))]
    pub url: String,
    /// Time that the answer may take.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub timeout: Duration,
    /// How to get in.
    #[command(flatten)]
    pub access: Access,
}

/// What convolutions compute in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// 32 bits.
    Float32,
    /// 16 bits with the exponent of 32.
    Bfloat16,
}

/// Which pixels of a JPEG are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Decode {
    /// All of them, as in training.
    Exact,
    /// In eighths of the size, no more than the input needs.
    Scaled,
}

impl From<Precision> for anneal_api::hyperparameters::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Float32 => Self::Float32,
            Precision::Bfloat16 => Self::BFloat16,
        }
    }
}

/// A digest that may be left empty, since a `ConfigMap` can set an environment variable but not leave it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest(pub Option<Sha256>);

fn digest(text: &str) -> Result<Digest, anneal_api::sha256::InvalidSha256> {
    if text.is_empty() { Ok(Digest(None)) } else { text.parse().map(|sha256| Digest(Some(sha256))) }
}

/// The address with the path that is meant where it has none.
#[allow(clippy::unnecessary_wraps, reason = "clap wants a Result")]
fn predict_url(text: &str) -> Result<String, Infallible> {
    let host = text.split_once("://").map_or(text, |(_, host)| host).trim_end_matches('/');
    Ok(if host.contains('/') { text.to_owned() } else { format!("{}/predict", text.trim_end_matches('/')) })
}

fn duration(text: &str) -> Result<Duration, String> {
    text.parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or_else(|| format!("{text:?} is not a duration; write 500ms, 30s or 2m"))
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| format!("{text:?} is no share; write a number from 0 to 1"))
}

fn at_most_an_hour(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration > Duration::from_hours(1) { Err("at most 1h".to_owned()) } else { Ok(duration) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serving_is_what_it_does_without_a_command() {
        let cli = Cli::try_parse_from(["anneal-server", "--checkpoint", "best.pth", "--listen", "127.0.0.1:0"])
            .expect("valid");
        assert!(cli.command.is_none());
        assert_eq!(cli.serve.checkpoint, Some(PathBuf::from("best.pth")));
        let cli = Cli::try_parse_from(["anneal-server", "serve", "--checkpoint", "best.pth"]).expect("valid");
        assert!(
            matches!(cli.command, Some(Command::Serve(options)) if options.checkpoint == Some(PathBuf::from("best.pth")))
        );
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for wrong in ["", "5", "-1s", "soon"] {
            assert!(duration(wrong).is_err(), "{wrong} was taken");
        }
        assert!(at_most_an_hour("2h").is_err());
    }

    #[test]
    fn an_address_without_a_path_means_predict() {
        for (given, meant) in [
            ("http://cats.demo.svc", "http://cats.demo.svc/predict"),
            ("http://cats.demo.svc:8000/", "http://cats.demo.svc:8000/predict"),
            ("http://gateway/cats/predict", "http://gateway/cats/predict"),
        ] {
            assert_eq!(predict_url(given).as_deref(), Ok(meant));
        }
    }

    #[test]
    fn an_empty_digest_is_none() {
        assert_eq!(digest(""), Ok(Digest(None)));
        assert!(digest("abc").is_err());
    }
}
