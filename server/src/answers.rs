//! What the newest requests were answered, in digests: whoever compares them with those of another revision learns whether
//! both said the same, and neither what was asked nor what was said.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use anneal_api::shadow::{Answer, Digest, MOST};
use sha2::{Digest as _, Sha256 as Hasher};

/// The newest answers to requests that came with an id.
#[derive(Debug, Default)]
pub struct Answers(Mutex<VecDeque<Answer>>);

/// The classes that were predicted for a request, in the order of its images.
#[derive(Clone, Copy, Debug)]
pub struct Said([u8; 32]);

impl Said {
    /// Of the classes' names: two checkpoints may have them in another order.
    pub fn of<'a>(classes: impl Iterator<Item = &'a str>) -> Self {
        let mut hasher = Hasher::new();
        for class in classes {
            hasher.update(class.len().to_be_bytes());
            hasher.update(class);
        }
        Self(hasher.finalize().into())
    }
}

impl Answers {
    /// Remembers what a request was answered; nothing where it was refused, or the model failed.
    pub fn add(&self, id: &[u8], said: Option<Said>) {
        let request = digest(&[id]);
        // With the id, so that nobody reads from the list which requests got the same answer.
        let said = said.map(|said| digest(&[&said.0, id]));
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.len() >= MOST {
            newest.pop_front();
        }
        newest.push_back(Answer { request, said });
    }

    /// The newest answers, oldest first.
    pub fn newest(&self) -> Vec<Answer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}

fn digest(parts: &[&[u8]]) -> Digest {
    let mut hasher = Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    let hash = hasher.finalize();
    Digest::from(std::array::from_fn(|at| hash[at]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(id: &str, classes: &[&str]) -> Answer {
        let answers = Answers::default();
        answers.add(id.as_bytes(), Some(Said::of(classes.iter().copied())));
        answers.newest()[0]
    }

    #[test]
    fn the_same_classes_for_the_same_request_have_the_same_digest_and_no_others() {
        let cat = only("7", &["cat"]);
        assert_eq!(cat, only("7", &["cat"]));
        for other in [only("7", &["dog"]), only("7", &["cat", "cat"]), only("7", &["c", "at"]), only("7", &[])] {
            assert!(other.request == cat.request && other.said != cat.said);
        }
        let later = only("8", &["cat"]);
        assert!(later.request != cat.request && later.said != cat.said, "answers to two requests tell nothing");
    }

    #[test]
    fn only_the_newest_answers_are_remembered() {
        let answers = Answers::default();
        for n in 0..MOST + 10 {
            answers.add(n.to_string().as_bytes(), None);
        }
        let newest = answers.newest();
        assert_eq!((newest.len(), newest[0].request), (MOST, digest(&[b"10"])));
    }
}
