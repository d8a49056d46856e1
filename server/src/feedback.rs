//! Feedback: what the true class was. The id of a prediction says what was predicted and is signed, so that any replica can
//! count the feedback, whichever gave the answer, and nobody can make ids up.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use anneal_api::Sha256;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256 as Hasher};

/// Answers in the rolling accuracy, and ids that are remembered lest one counts twice.
const WINDOW: usize = 1000;
const REMEMBERED: usize = 10_000;

const VERSION: u8 = 1;
const CHECKPOINT: usize = 8;
/// Version, checkpoint, class, number.
const CONTENT: usize = 1 + CHECKPOINT + 4 + 12;
const MAC: usize = 16;

/// Makes ids and counts what comes back.
#[derive(Debug)]
pub struct Feedback {
    key: [u8; 32],
    checkpoint: [u8; CHECKPOINT],
    start: u32,
    count: AtomicU64,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    right: VecDeque<bool>,
    ids: HashSet<[u8; MAC]>,
    order: VecDeque<[u8; MAC]>,
}

/// An id is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// It was not made here.
    #[error("The id is not one that this deployment gave; send the X-Prediction-Id of an answer as it came")]
    Foreign,
    /// It is from another checkpoint.
    #[error("The prediction is of another checkpoint than the one that is served now, so it is not counted")]
    OtherCheckpoint,
}

impl Feedback {
    /// All replicas with the same secret and the same checkpoint understand each other's ids. Without a secret, whoever
    /// knows the checkpoint's digest can make ids.
    pub fn new(secret: Option<&str>, checkpoint: &Sha256) -> Self {
        let key =
            hash(&[b"anneal feedback\0", secret.unwrap_or_default().as_bytes(), b"\0", checkpoint.as_str().as_bytes()]);
        let digest = hash(&[checkpoint.as_str().as_bytes()]);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            key,
            checkpoint: std::array::from_fn(|at| digest[at]),
            // Differs between replicas that start within a second.
            start: now.subsec_nanos() ^ std::process::id().rotate_left(16),
            count: AtomicU64::new(now.as_secs() << 24),
            seen: Mutex::default(),
        }
    }

    /// An id for the prediction of this class.
    pub fn id(&self, class: usize) -> String {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let class = u32::try_from(class).unwrap_or(u32::MAX);
        let content =
            [&[VERSION][..], &self.checkpoint, &class.to_be_bytes(), &self.start.to_be_bytes(), &count.to_be_bytes()];
        let mut id = content.concat();
        let mac = self.mac(&id);
        id.extend(mac);
        URL_SAFE_NO_PAD.encode(id)
    }

    /// The class that was predicted, and the id's signature, which tells it from all others.
    ///
    /// # Errors
    /// [`IdError`].
    pub fn read(&self, id: &str) -> Result<(usize, [u8; MAC]), IdError> {
        let bytes = URL_SAFE_NO_PAD.decode(id).map_err(|_| IdError::Foreign)?;
        let (content, mac) = bytes.split_at_checked(CONTENT).ok_or(IdError::Foreign)?;
        let mac = <[u8; MAC]>::try_from(mac).map_err(|_| IdError::Foreign)?;
        if content[0] == VERSION && content[1..=CHECKPOINT] != self.checkpoint {
            return Err(IdError::OtherCheckpoint);
        }
        // Every byte is looked at, so that the time tells nothing.
        let different = self.mac(content).iter().zip(mac).fold(0, |all, (a, b)| all | (a ^ b));
        if different != 0 {
            return Err(IdError::Foreign);
        }
        let class = content[1 + CHECKPOINT..].first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        Ok((class as usize, mac))
    }

    /// Counts an answer as right or wrong and gives the rolling accuracy; nothing when it was counted before.
    pub fn count(&self, mac: [u8; MAC], right: bool) -> Option<f64> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if !seen.ids.insert(mac) {
            return None;
        }
        seen.order.push_back(mac);
        if seen.order.len() > REMEMBERED
            && let Some(oldest) = seen.order.pop_front()
        {
            seen.ids.remove(&oldest);
        }
        seen.right.push_back(right);
        if seen.right.len() > WINDOW {
            seen.right.pop_front();
        }
        let count = |n: usize| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
        Some(count(seen.right.iter().filter(|right| **right).count()) / count(seen.right.len()))
    }

    /// HMAC-SHA256, cut to 128 bits.
    fn mac(&self, content: &[u8]) -> [u8; MAC] {
        let pad = |byte: u8| -> [u8; 64] { std::array::from_fn(|at| self.key.get(at).copied().unwrap_or(0) ^ byte) };
        let digest = hash(&[&pad(0x5c), &hash(&[&pad(0x36), content])]);
        std::array::from_fn(|at| digest[at])
    }
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feedback(secret: Option<&str>, checkpoint: u8) -> Feedback {
        Feedback::new(secret, &Sha256::from_bytes([checkpoint; 32]))
    }

    #[test]
    fn any_replica_reads_an_id_and_nobody_makes_one_up() {
        let (one, other) = (feedback(Some("key"), 1), feedback(Some("key"), 1));
        let id = one.id(7);
        assert_ne!(id, one.id(7));
        assert_eq!(other.read(&id).map(|(class, _)| class), Ok(7));
        assert_eq!(feedback(Some("another"), 1).read(&id), Err(IdError::Foreign));
        assert_eq!(feedback(Some("key"), 2).read(&id), Err(IdError::OtherCheckpoint));
        for at in 12..id.len() {
            let mut changed = id.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).expect("ascii");
            assert!(one.read(&changed).is_err(), "{changed}");
        }
        for wrong in ["", "AAAA", "not base64!"] {
            assert_eq!(one.read(wrong), Err(IdError::Foreign), "{wrong}");
        }
    }

    #[test]
    fn the_rolling_accuracy_counts_every_answer_once() {
        let feedback = feedback(None, 1);
        let mac = |id: &str| feedback.read(id).expect("our id").1;
        let (first, second) = (mac(&feedback.id(0)), mac(&feedback.id(1)));
        assert_eq!(feedback.count(first, true), Some(1.0));
        assert_eq!(feedback.count(first, false), None);
        assert_eq!(feedback.count(second, false), Some(0.5));
    }
}
