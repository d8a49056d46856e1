//! What is to be recorded, as lines of JSON on the volume, and how far it was sent.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::files;

/// The lines.
pub(super) const EVENTS: &str = "events.jsonl";
/// How far they were sent.
const STATE: &str = "state.json";
/// Lines that the server refused for good.
pub(super) const REFUSED: &str = "refused.jsonl";

/// One value of a metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Metric {
    pub(super) key: String,
    pub(super) value: f64,
    /// Milliseconds since 1970.
    pub(super) timestamp: i64,
    pub(super) step: i64,
}

/// Something to record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(super) enum Event {
    /// The run begins or goes on.
    Begin {
        experiment: String,
        run_name: String,
        start_time: i64,
    },
    Params {
        params: Vec<(String, String)>,
    },
    Tags {
        tags: Vec<(String, String)>,
    },
    Metrics {
        metrics: Vec<Metric>,
    },
    Epoch {
        epoch: u32,
        metrics: Vec<Metric>,
    },
    /// A file, by its path from the spool's folder, and its path among the run's artifacts.
    Artifact {
        file: PathBuf,
        path: String,
    },
    /// A version of a registered model, made of the artifacts at a path.
    Register {
        name: String,
        alias: Option<String>,
        path: String,
    },
    End {
        status: String,
        end_time: i64,
    },
}

/// How far the lines were sent, and what they became at the server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct State {
    /// Address of the server.
    pub(super) uri: String,
    /// What makes the run findable at the server, should its answer be lost.
    pub(super) key: String,
    pub(super) run_id: Option<String>,
    pub(super) artifact_uri: String,
    /// Bytes of the lines that were sent.
    pub(super) sent: u64,
}

/// Takes lines.
pub(super) struct Spool {
    file: File,
    newest_epoch: Option<u32>,
    /// Whether the run began and has not ended.
    open: bool,
}

impl Spool {
    /// Opens a spool to add to it. A line that a crash left half written is removed.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let path = dir.join(EVENTS);
        let sent = read_state(dir);
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(&path)?;
        let (lines, whole) = read(&path, 0)?;
        if file.metadata()?.len() > whole {
            file.set_len(whole)?;
            file.seek(SeekFrom::End(0))?;
        }
        // Lines that are not there any more were sent; those that come in their place are to be.
        if sent.sent > whole {
            write_state(dir, &State { sent: whole, ..sent })?;
        }
        let newest_epoch = lines
            .iter()
            .filter_map(|line| match line.event {
                Some(Event::Epoch { epoch, .. }) => Some(epoch),
                _ => None,
            })
            .max();
        let ends = |line: &Line| match line.event {
            Some(Event::Begin { .. }) => Some(true),
            Some(Event::End { .. }) => Some(false),
            _ => None,
        };
        let open = lines.iter().rev().find_map(ends).unwrap_or(false);
        Ok(Self { file, newest_epoch, open })
    }

    /// Adds a line. It survives a crash of the process; of the node, once the kernel has written it.
    pub(super) fn add(&mut self, event: &Event) -> io::Result<()> {
        match event {
            Event::Epoch { epoch, .. } => self.newest_epoch = self.newest_epoch.max(Some(*epoch)),
            Event::Begin { .. } => self.open = true,
            Event::End { .. } => self.open = false,
            _ => {}
        }
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        self.file.write_all(&line)
    }

    /// The newest epoch of this or an earlier attempt.
    pub(super) fn newest_epoch(&self) -> Option<u32> {
        self.newest_epoch
    }

    /// Whether the run began and has not ended.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }
}

/// A line of the spool.
pub(super) struct Line {
    /// `None` where it makes no sense.
    pub(super) event: Option<Event>,
    pub(super) text: String,
    /// Position behind it.
    pub(super) end: u64,
}

/// The whole lines from a position on, and where they end.
pub(super) fn read(path: &Path, from: u64) -> io::Result<(Vec<Line>, u64)> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let (mut reader, mut lines, mut end) = (BufReader::new(file), Vec::new(), from);
    loop {
        let mut text = Vec::new();
        let length = reader.read_until(b'\n', &mut text)?;
        if text.last() != Some(&b'\n') {
            return Ok((lines, end));
        }
        end += length as u64;
        let text = String::from_utf8_lossy(&text).trim_end().to_owned();
        lines.push(Line { event: serde_json::from_str(&text).ok(), text, end });
    }
}

/// How far a spool was sent.
pub(super) fn read_state(dir: &Path) -> State {
    let text = fs::read_to_string(dir.join(STATE)).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// Remembers how far a spool was sent. What was sent is made durable first: a crash of the node must not leave a position
/// behind the lines.
pub(super) fn write_state(dir: &Path, state: &State) -> io::Result<()> {
    File::open(dir.join(EVENTS))?.sync_data()?;
    files::write(&dir.join(STATE), &serde_json::to_vec(state)?)
}

/// Keeps a line that the server refused.
pub(super) fn keep_refused(dir: &Path, line: &str, why: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(dir.join(REFUSED))?;
    let kept = serde_json::json!({"refused": why, "line": line});
    file.write_all(format!("{kept}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(epoch: u32) -> Event {
        Event::Epoch { epoch, metrics: Vec::new() }
    }

    #[test]
    fn a_line_that_a_crash_cut_off_is_no_line_and_is_not_in_the_way() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join(EVENTS);
        let mut spool = Spool::open(dir.path()).expect("a spool");
        spool.add(&epoch(1)).expect("a line");
        spool.add(&epoch(2)).expect("a line");
        let content = fs::read(&path).expect("lines");
        fs::write(&path, &content[..content.len() - 5]).expect("a torn file");
        assert_eq!(read(&path, 0).expect("lines").0.len(), 1);

        let mut spool = Spool::open(dir.path()).expect("a spool");
        assert_eq!(spool.newest_epoch(), Some(1));
        spool.add(&epoch(2)).expect("a line");
        let (lines, end) = read(&path, 0).expect("lines");
        assert!(lines.iter().map(|line| line.event.clone()).eq([Some(epoch(1)), Some(epoch(2))]));
        assert_eq!(read(&path, lines[0].end).expect("lines").0.len(), 1);
        assert_eq!(end, fs::metadata(&path).expect("a file").len());
    }

    #[test]
    fn what_follows_lines_that_a_crash_of_the_node_took_is_sent() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut spool = Spool::open(dir.path()).expect("a spool");
        spool.add(&epoch(1)).expect("a line");
        spool.add(&epoch(2)).expect("a line");
        let path = dir.path().join(EVENTS);
        let sent = fs::metadata(&path).expect("a file").len();
        write_state(dir.path(), &State { sent, key: "a".to_owned(), ..State::default() }).expect("a state");
        let first = read(&path, 0).expect("lines").0.remove(0).end;
        File::options().write(true).open(&path).and_then(|file| file.set_len(first)).expect("a shorter file");

        let mut spool = Spool::open(dir.path()).expect("a spool");
        spool.add(&epoch(2)).expect("a line");
        let state = read_state(dir.path());
        assert_eq!((state.sent, state.key.as_str()), (first, "a"));
        let left: Vec<_> = read(&path, state.sent).expect("lines").0.into_iter().map(|line| line.event).collect();
        assert_eq!(left, [Some(epoch(2))]);
    }
}
