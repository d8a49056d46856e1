//! How many optimiser steps were done twice, counted over attempts that end without a word.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
};

/// Length of what the file holds: two numbers of twenty digits.
const BYTES: usize = 42;

/// A file that is told of every step, and survives the process that wrote it. It is not synced: a crash of the node may
/// make the count too small, never the weights wrong.
pub struct Ledger {
    file: File,
    reached: u64,
    lost: u64,
}

impl Ledger {
    /// Opens the ledger of a run that goes on from `step`: what an earlier attempt did beyond that is lost.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn open(path: &Path, step: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut text = [0; BYTES];
        let (reached, lost) = file.read_exact_at(&mut text, 0).ok().and_then(|()| numbers(&text)).unwrap_or_default();
        let ledger = Self { file, reached: step, lost: lost + reached.saturating_sub(step) };
        ledger.write()?;
        Ok(ledger)
    }

    /// Optimiser steps that were done more than once.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// A step is done.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn reach(&mut self, step: u64) -> io::Result<()> {
        self.reached = step;
        self.write()
    }

    fn write(&self) -> io::Result<()> {
        // The length never changes, so nothing is allocated and a full volume is no obstacle.
        self.file.write_all_at(format!("{:020} {:020}\n", self.reached, self.lost).as_bytes(), 0)
    }
}

fn numbers(text: &[u8]) -> Option<(u64, u64)> {
    let (reached, lost) = str::from_utf8(text).ok()?.trim_end().split_once(' ')?;
    Some((reached.parse().ok()?, lost.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_between_a_checkpoint_and_a_kill_is_lost() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("steps");
        let reach = |from, to| {
            let mut ledger = Ledger::open(&path, from).expect("a ledger");
            ((from + 1)..=to).for_each(|step| ledger.reach(step).expect("space"));
            ledger.lost()
        };
        assert_eq!(reach(0, 17), 0);
        assert_eq!(reach(10, 25), 7);
        assert_eq!(reach(25, 30), 7);
        assert_eq!(reach(20, 20), 17);
        std::fs::write(&path, "torn").expect("a file");
        assert_eq!(reach(20, 21), 0);
    }
}
