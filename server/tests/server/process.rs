//! Servers of tests: checkpoints, processes, and waiting for what they do.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use anneal_api::{
    checkpoint::{CheckpointInfo, Preprocessing},
    model::{Architecture, ModelSpec},
    termination::{Metrics, TerminationMessage},
};
use anneal_model::{Checkpoint, Network};
use tempfile::{NamedTempFile, TempDir};

use crate::wire::{Answer, Connection, get};

/// Long enough for a busy machine; only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_mins(2);

/// Asks again and again until there is something.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Writes a checkpoint of an untrained network of cats and dogs for small images. The bias of the last layer decides
/// what it says.
pub fn checkpoint(dir: &Path, bias: [f32; 2]) -> PathBuf {
    let network = Network::new(Architecture::Improved, 2, 7).expect("a network");
    for (name, mut parameter) in network.named_parameters() {
        if name == "fc.bias" {
            tch::no_grad(|| parameter.copy_(&tch::Tensor::from_slice(&bias)));
        }
    }
    let info = CheckpointInfo {
        format: 1,
        model: ModelSpec { architecture: Architecture::Improved, input_size: 32 },
        classes: vec!["cat".to_owned(), "dog".to_owned()],
        preprocessing: Preprocessing::imagenet(32),
        preprocessing_sha256: None,
        validation: None,
        metrics: Some(Metrics { accuracy: 0.75, precision: 0.75, recall: 0.75, f1: 0.75 }),
        dataset: None,
        run: "cats-vs-dogs".to_owned(),
        seed: 7,
        libtorch: "2.13.0".to_owned(),
        position: None,
    };
    let path = dir.join("model.pth");
    let checkpoint = Checkpoint { info: Some(info), state: network.state().expect("weights"), extra: Vec::new() };
    checkpoint.save(&path).expect("a file");
    path
}

/// A checkpoint that sees dogs, the same for all tests. Each test may be a process of its own, so that the file is made
/// aside and takes its place whole: whoever reads the former one reads the same bytes.
pub fn dogs() -> &'static Path {
    static DOGS: OnceLock<PathBuf> = OnceLock::new();
    DOGS.get_or_init(|| {
        let shared = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dogs.pth");
        let aside = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        fs::rename(checkpoint(aside.path(), [0.0, 9.0]), &shared).expect("a place for the checkpoint");
        shared
    })
}

/// A picture in a file of its own.
pub fn picture_file() -> NamedTempFile {
    let mut file = NamedTempFile::with_suffix(".png").expect("a file");
    file.write_all(&picture()).expect("written");
    file
}

pub fn picture() -> Vec<u8> {
    anneal_server::picture::png().expect("a picture")
}

/// The binary, with nothing of the test's environment that it would listen to.
pub fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_anneal-server"));
    for variable in
        ["MODEL_PATH", "MODEL_SHA256", "MODEL_NAME", "ANNEAL_REVISION", "PORT", "LOG_LEVEL", "ANNEAL_TERMINATION_LOG"]
    {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null());
    command
}

/// Runs the binary to its end and gives what it left in its termination log.
pub fn finish(mut command: Command) -> (Output, Option<TerminationMessage>) {
    let dir = TempDir::new().expect("a directory");
    let log = dir.path().join("termination-log");
    let output = command.env("ANNEAL_TERMINATION_LOG", &log).output().expect("the binary runs");
    let message = fs::read_to_string(&log).ok().map(|text| TerminationMessage::parse(&text).expect("our message"));
    (output, message)
}

/// A server that ends with the test.
pub struct Server {
    child: Child,
    pub port: u16,
    _dir: TempDir,
}

impl Server {
    /// Starts a server with one thread for the model, and waits until it listens.
    pub fn start(checkpoint: &Path, configure: impl FnOnce(&mut Command)) -> Self {
        Self::listening(checkpoint, |command| {
            command.args(["--workers", "1"]);
            configure(command);
        })
    }

    /// Starts a server with as many threads as it finds right, and waits until it is ready.
    pub fn ready_as_is(checkpoint: &Path, configure: impl FnOnce(&mut Command)) -> Self {
        Self::listening(checkpoint, configure).until_ready()
    }

    fn listening(checkpoint: &Path, configure: impl FnOnce(&mut Command)) -> Self {
        let dir = TempDir::new().expect("a directory");
        let port_file = dir.path().join("port");
        let mut command = binary();
        command.args(["--listen", "127.0.0.1:0", "--shutdown-delay", "0s", "--port-file"]).arg(&port_file);
        command.arg("--checkpoint").arg(checkpoint);
        command.env("LOG_LEVEL", "warn");
        configure(&mut command);
        let mut child = command.spawn().expect("the binary runs");
        let port = eventually("the server listens", || {
            assert_eq!(child.try_wait().expect("a status"), None, "the server ended");
            fs::read_to_string(&port_file).ok()?.trim().parse().ok()
        });
        Self { child, port, _dir: dir }
    }

    /// Starts a server and waits until it is ready.
    pub fn ready(checkpoint: &Path, configure: impl FnOnce(&mut Command)) -> Self {
        Self::start(checkpoint, configure).until_ready()
    }

    fn until_ready(self) -> Self {
        eventually("the server is ready", || (self.ask(&get("/readyz")).status == 200).then_some(()));
        self
    }

    /// One exchange on a connection of its own.
    pub fn ask(&self, request: &[u8]) -> Answer {
        let mut connection = Connection::open(self.port);
        connection.send(request);
        connection.receive()
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    pub fn ended(&mut self) -> ExitStatus {
        eventually("the server ends", || self.child.try_wait().expect("a status"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
