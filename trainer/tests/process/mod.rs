//! Runs the trainer in a folder of its own and waits for what it says, never for time.

#![allow(clippy::expect_used, clippy::panic, reason = "all of this is test code")]

#[allow(dead_code, reason = "each test binary uses a part of it")]
pub mod tools;

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anneal_api::{
    failure::{Failure, FailureClass},
    progress::Progress,
    termination::{RunResult, TerminationMessage},
};

/// A folder with a configuration, removed at the end.
pub struct Run {
    dir: tempfile::TempDir,
}

/// A command that trains.
pub struct Train<'a> {
    run: &'a Run,
    command: Command,
}

/// A process that trains.
pub struct Training<'a> {
    run: &'a Run,
    child: Child,
    log: BufReader<ChildStderr>,
    said: String,
}

/// The trainer with these arguments and nothing of this process's own run.
pub fn trainer<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = command(env!("CARGO_BIN_EXE_anneal-trainer"));
    command.args(args);
    command
}

/// A program that inherits nothing of this process's own run.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    for name in ["ANNEAL_RUN", "ANNEAL_OUTPUT_DIR", "ANNEAL_MODELS_DIR", "ANNEAL_RESUME_FROM", "RUST_LOG"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// What a command that succeeds prints.
pub fn prints(args: &[&str]) -> String {
    let done = trainer(args).output().expect("the trainer");
    assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).expect("text")
}

/// Imports a tar of these files; gives the counts, or what the trainer says against it.
pub fn import(to: &Path, files: &[(&str, &str)]) -> Result<String, String> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        // The builder refuses such names; whoever attacks does not use it.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, content.as_bytes()).expect("an entry");
    }
    let content = tar.into_inner().expect("a tar");
    let mut child = trainer(["import", "--to"])
        .arg(to)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the trainer");
    child.stdin.take().expect("a pipe").write_all(&content).expect("a reader");
    let done = child.wait_with_output().expect("the trainer");
    if done.status.success() {
        let text = String::from_utf8(done.stdout).expect("text");
        Ok(text.split(", sha256").next().expect("counts").to_owned())
    } else {
        Err(String::from_utf8(done.stderr).expect("text"))
    }
}

impl Run {
    pub fn new(config: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("run.yaml"), config).expect("a configuration");
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn train(&self) -> Train<'_> {
        let mut command = trainer(["train", "--config"]);
        command.arg(self.path("run.yaml")).arg("--output").arg(self.path("out"));
        command.arg("--termination-log").arg(self.path("message"));
        Train { run: self, command }
    }

    /// The result that was left behind.
    pub fn result(&self) -> RunResult {
        match self.message() {
            TerminationMessage::Result(result) => result,
            other => panic!("no result but {other:?}"),
        }
    }

    pub fn message(&self) -> TerminationMessage {
        let text = fs::read_to_string(self.path("message")).expect("a termination message");
        assert!(text.len() <= 3 * 1024, "{} bytes", text.len());
        TerminationMessage::parse(&text).expect("one of ours")
    }
}

impl<'a> Train<'a> {
    /// As the operator starts it: told by the environment where to write.
    pub fn in_a_job(mut self, resume_from: &str) -> Self {
        self.command = trainer(["train", "--config"]);
        self.command.arg(self.run.path("run.yaml"));
        let set = [
            ("ANNEAL_RUN", "cats".into()),
            ("ANNEAL_ATTEMPT", "1".into()),
            ("ANNEAL_OUTPUT_DIR", self.run.path("claim/runs/cats-1")),
            ("ANNEAL_MODELS_DIR", self.run.path("claim/models")),
            ("ANNEAL_RESUME_FROM", resume_from.into()),
            ("ANNEAL_TERMINATION_LOG", self.run.path("message")),
        ];
        self.command.envs(set);
        self
    }

    /// By another executable.
    #[allow(dead_code, reason = "each test binary uses a part of it")]
    pub fn program(self, program: &Path) -> Self {
        let mut other = command(&program.display().to_string());
        other.args(self.command.get_args());
        Self { command: other, ..self }
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    #[allow(dead_code, reason = "each test binary uses a part of it")]
    pub fn current_dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    #[allow(dead_code, reason = "each test binary uses a part of it")]
    pub fn envs<K: AsRef<OsStr>, V: AsRef<OsStr>>(mut self, variables: impl IntoIterator<Item = (K, V)>) -> Self {
        self.command.envs(variables);
        self
    }

    pub fn spawn(mut self) -> Training<'a> {
        let mut child = self.command.stderr(Stdio::piped()).spawn().expect("the trainer");
        let log = BufReader::new(child.stderr.take().expect("a pipe"));
        Training { run: self.run, child, log, said: String::new() }
    }

    pub fn succeeds(self) -> RunResult {
        self.spawn().succeeds()
    }

    pub fn fails_as(self, class: FailureClass, words: &str) -> Failure {
        self.spawn().fails_as(class, words)
    }
}

impl Training<'_> {
    /// Reads the log until a line with these words comes.
    pub fn wait_for_line(&mut self, words: &str) -> String {
        loop {
            let mut line = String::new();
            let read = self.log.read_line(&mut line).expect("text");
            self.said.push_str(&line);
            assert!(read > 0, "it ended without saying {words:?}:\n{}", self.said);
            if line.contains(words) {
                return line;
            }
        }
    }

    /// The address at which progress is answered, which the log tells.
    pub fn address(&mut self) -> String {
        let line = self.wait_for_line("progress is answered");
        let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        line["address"].as_str().expect("an address").to_owned()
    }

    /// Asks for the progress until it was seen to move so many times while it was like this.
    pub fn moves_while(&self, address: &str, what: &str, times: usize, like_this: impl Fn(&Progress) -> bool) {
        let until = Instant::now() + Duration::from_mins(1);
        let mut moves = BTreeSet::new();
        while moves.len() <= times {
            assert!(Instant::now() < until, "it does not move while {what}: {moves:?}\n{}", self.said);
            let progress: Progress = serde_json::from_str(&get(address, "/progress")).expect("a progress");
            if like_this(&progress) {
                moves.insert(progress.last_update_time);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// As the kernel does it when memory runs out. Gives back what the process had said.
    pub fn kill(mut self) -> String {
        self.child.kill().expect("a process");
        self.end();
        self.said
    }

    /// All that it says until its end, which is a success.
    pub fn reads_to_the_end(&mut self) -> String {
        let status = self.end();
        assert!(status.success(), "{status}:\n{}", self.said);
        self.said.clone()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a process").is_none()
    }

    /// As the kubelet does it.
    pub fn terminate(&self) {
        let sent = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        assert!(sent.expect("kill").success());
    }

    /// Waits for the end and gives the exit code; `None` where a signal ended it.
    pub fn code(mut self) -> Option<i32> {
        self.end().code()
    }

    pub fn succeeds(mut self) -> RunResult {
        let status = self.end();
        assert!(status.success(), "{status}:\n{}", self.said);
        self.run.result()
    }

    pub fn fails_as(mut self, class: FailureClass, words: &str) -> Failure {
        let status = self.end();
        assert_eq!(status.code(), Some(class.exit_code()), "{}", self.said);
        match self.run.message() {
            TerminationMessage::Failure(failure) => {
                assert_eq!(failure.class, class);
                assert!(failure.message.contains(words), "{words:?} is not in {:?}", failure.message);
                failure
            }
            other => panic!("no failure but {other:?}"),
        }
    }

    fn end(&mut self) -> ExitStatus {
        self.log.read_to_string(&mut self.said).expect("text");
        self.child.wait().expect("a process")
    }
}

/// The body of an answer.
pub fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("a listener");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").expect("a connection");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("text");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer.split_once("\r\n\r\n").expect("a body").1.to_owned()
}
