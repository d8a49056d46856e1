//! Feedback: what the true class was. The id of a prediction says what was predicted and how surely, and is signed, so that
//! any replica can count the feedback, whichever gave the answer, and nobody can make ids up.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use anneal_api::{Sha256, performance::BINS};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256 as Hasher};

use crate::drift::bin;

/// Answers in the rolling accuracy, and ids that are remembered lest one counts twice.
const WINDOW: usize = 1000;
const REMEMBERED: usize = 10_000;

const VERSION: u8 = 2;
const CHECKPOINT: usize = 8;
/// Version, checkpoint, class, confidence, number.
const CONTENT: usize = 1 + CHECKPOINT + 4 + 2 + 12;
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
    known: VecDeque<(Said, bool)>,
    ids: HashSet<[u8; MAC]>,
    order: VecDeque<[u8; MAC]>,
}

/// What a prediction said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Said {
    /// The class.
    pub class: usize,
    /// Its probability, to 1 in 65,535.
    pub confidence: f64,
}

/// The newest predictions of one confidence whose true class is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Known {
    /// How many there are.
    pub count: u32,
    /// How many of them were right.
    pub right: u32,
    /// Sum of their confidences.
    pub confidence: f64,
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

    /// An id for the prediction of this class with this confidence.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of u16::MAX")]
    pub fn id(&self, class: usize, confidence: f64) -> String {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let class = u32::try_from(class).unwrap_or(u32::MAX);
        let confidence = (confidence.clamp(0.0, 1.0) * f64::from(u16::MAX)).round() as u16;
        let content = [
            &[VERSION][..],
            &self.checkpoint,
            &class.to_be_bytes(),
            &confidence.to_be_bytes(),
            &self.start.to_be_bytes(),
            &count.to_be_bytes(),
        ];
        let mut id = content.concat();
        let mac = self.mac(&id);
        id.extend(mac);
        URL_SAFE_NO_PAD.encode(id)
    }

    /// What was predicted, and the id's signature, which tells it from all others.
    ///
    /// # Errors
    /// [`IdError`].
    pub fn read(&self, id: &str) -> Result<(Said, [u8; MAC]), IdError> {
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
        let said = &content[1 + CHECKPOINT..];
        let class = said.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes)) as usize;
        let confidence = said[4..].first_chunk().map_or(0, |bytes| u16::from_be_bytes(*bytes));
        Ok((Said { class, confidence: f64::from(confidence) / f64::from(u16::MAX) }, mac))
    }

    /// Counts an answer as right or wrong and gives the rolling accuracy; nothing when it was counted before.
    pub fn count(&self, mac: [u8; MAC], said: Said, right: bool) -> Option<f64> {
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
        seen.known.push_back((said, right));
        if seen.known.len() > WINDOW {
            seen.known.pop_front();
        }
        let count = |n: usize| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
        Some(count(seen.known.iter().filter(|(_, right)| *right).count()) / count(seen.known.len()))
    }

    /// The newest predictions whose true class is known, by their confidence in bins of one width. What is counted adds
    /// up over replicas.
    pub fn newest(&self) -> [Known; BINS] {
        let mut all = [Known::default(); BINS];
        for (said, right) in &self.seen.lock().unwrap_or_else(PoisonError::into_inner).known {
            let known = &mut all[bin(said.confidence, BINS)];
            known.count += 1;
            known.right += u32::from(*right);
            known.confidence += said.confidence;
        }
        all
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
        let id = one.id(7, 0.9);
        assert_ne!(id, one.id(7, 0.9));
        let (said, _) = other.read(&id).expect("our id");
        assert!(said.class == 7 && (said.confidence - 0.9).abs() < 1e-4, "{said:?}");
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
    fn every_answer_counts_once_in_the_rolling_accuracy_and_in_the_bin_of_its_confidence() {
        let feedback = feedback(None, 1);
        let read = |id: &str| feedback.read(id).expect("our id");
        let ((sure, first), (unsure, second)) = (read(&feedback.id(0, 1.0)), read(&feedback.id(1, 0.55)));
        assert_eq!(feedback.count(first, sure, true), Some(1.0));
        assert_eq!(feedback.count(first, sure, false), None);
        assert_eq!(feedback.count(second, unsure, false), Some(0.5));
        let newest = feedback.newest();
        assert_eq!(newest[9], Known { count: 1, right: 1, confidence: 1.0 });
        assert!(newest[5].count == 1 && newest[5].right == 0 && (newest[5].confidence - 0.55).abs() < 1e-4);
        assert_eq!(newest.iter().map(|known| known.count).sum::<u32>(), 2);
    }
}
