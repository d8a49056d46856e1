//! What happens under load, line by line as JSON while it happens: failures, changes of the revision that answers, and
//! how it stands every few seconds.

use std::{
    collections::BTreeMap,
    io::Write as _,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// How often it is told how it stands.
const INTERVAL: Duration = Duration::from_secs(2);
/// Revisions that are counted one by one.
const MAX_REVISIONS: usize = 64;
/// Time without a prediction that is told of by itself.
const NOTABLE: Duration = Duration::from_millis(500);

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "event")]
pub enum Line {
    /// A request failed.
    Failed {
        /// When.
        at: Timestamp,
        /// Why.
        why: String,
    },
    /// Another revision than in the answer before.
    Revision {
        /// When it answered.
        at: Timestamp,
        /// The revision.
        revision: String,
    },
    /// Nobody got a prediction for a while.
    Gap {
        /// When it ended.
        at: Timestamp,
        /// How long it was.
        seconds: f64,
    },
    /// How it stands.
    #[serde(rename_all = "camelCase")]
    Count {
        /// When.
        at: Timestamp,
        /// Predictions so far.
        answers: u64,
        /// Failures so far.
        failures: u64,
        /// Longest time without a prediction so far.
        max_gap_seconds: f64,
        /// Predictions of each revision so far; of the first few, where there are many.
        revisions: BTreeMap<String, u64>,
    },
}

struct State {
    answers: u64,
    failures: u64,
    gap: Duration,
    last: Instant,
    told: Instant,
    revision: Option<String>,
    revisions: BTreeMap<String, u64>,
}

/// The record of one load.
pub struct Journal(Mutex<State>);

impl Journal {
    /// Begins the record.
    pub fn begin() -> Self {
        let now = Instant::now();
        let (answers, failures, gap) = (0, 0, Duration::ZERO);
        let (revision, revisions) = (None, BTreeMap::new());
        Self(Mutex::new(State { answers, failures, gap, last: now, told: now, revision, revisions }))
    }

    /// Counts a prediction of a revision.
    pub fn answered(&self, revision: Option<&str>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.lines(Ok(revision), Instant::now()).iter().for_each(print);
    }

    /// Counts a failure.
    pub fn failed(&self, why: &str) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.lines(Err(why), Instant::now()).iter().for_each(print);
    }

    /// Tells how it stands at the end.
    pub fn end(&self) {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        print(&state.count(Instant::now()));
    }
}

impl State {
    fn lines(&mut self, outcome: Result<Option<&str>, &str>, now: Instant) -> Vec<Line> {
        let at = Timestamp::now();
        let mut lines = Vec::new();
        match outcome {
            Ok(revision) => {
                self.answers += 1;
                let gap = now - self.last;
                self.gap = self.gap.max(gap);
                self.last = now;
                if gap >= NOTABLE {
                    lines.push(Line::Gap { at, seconds: gap.as_secs_f64() });
                }
                let revision = revision.unwrap_or_default();
                if let Some(count) = self.revisions.get_mut(revision) {
                    *count += 1;
                } else if self.revisions.len() < MAX_REVISIONS {
                    self.revisions.insert(revision.to_owned(), 1);
                }
                if self.revision.as_deref() != Some(revision) {
                    self.revision = Some(revision.to_owned());
                    lines.push(Line::Revision { at, revision: revision.to_owned() });
                }
            }
            Err(why) => {
                self.failures += 1;
                lines.push(Line::Failed { at, why: why.to_owned() });
            }
        }
        if now - self.told >= INTERVAL {
            self.told = now;
            lines.push(self.count(now));
        }
        lines
    }

    /// How it stands; a gap that has not ended counts too.
    fn count(&self, now: Instant) -> Line {
        let max_gap_seconds = self.gap.max(now - self.last).as_secs_f64();
        let (at, answers, failures) = (Timestamp::now(), self.answers, self.failures);
        Line::Count { at, answers, failures, max_gap_seconds, revisions: self.revisions.clone() }
    }
}

fn print(line: &Line) {
    // A line of words and numbers can always be written; a closed pipe is the reader's choice.
    let text = serde_json::to_string(line).unwrap_or_default();
    let _ = writeln!(std::io::stdout(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_revision_is_told_when_it_begins_to_answer_and_a_gap_is_remembered() {
        let journal = Journal::begin();
        let mut state = journal.0.lock().expect("a state");
        let begin = state.last;
        let revision = |lines: &[Line]| matches!(lines, [Line::Revision { revision, .. }] if revision == "r1");
        assert!(revision(&state.lines(Ok(Some("r1")), begin + Duration::from_millis(10))));
        assert!(state.lines(Ok(Some("r1")), begin + Duration::from_millis(20)).is_empty());
        assert!(matches!(state.lines(Err("gone"), begin + Duration::from_millis(30))[..], [Line::Failed { .. }]));
        let lines = state.lines(Ok(Some("r1")), begin + INTERVAL);
        let [Line::Gap { .. }, Line::Count { answers: 3, failures: 1, max_gap_seconds, revisions, .. }] = &lines[..]
        else {
            panic!("{lines:?}")
        };
        assert!((max_gap_seconds - 1.98).abs() < 1e-6);
        assert_eq!(revisions["r1"], 3);
        let text = serde_json::to_string(&lines[1]).expect("json");
        assert!(text.starts_with(r#"{"event":"count","at":""#), "{text}");
    }
}
