//! Who waits, by namespace. Namespaces take turns, so that ten runs in one do not wait for ten thousand in another.

use std::collections::VecDeque;

/// What waits: namespaces in rotation, and within each what came first.
#[derive(Debug)]
pub struct Rotation<N, T>(
    /// The next one is the first of the first. None of the queues is empty.
    VecDeque<(N, VecDeque<T>)>,
);

impl<N: PartialEq, T> Rotation<N, T> {
    /// Nobody waits.
    pub fn new() -> Self {
        Self(VecDeque::new())
    }

    /// Puts one at the end of its namespace's queue.
    pub fn push(&mut self, namespace: N, one: T) {
        match self.0.iter_mut().find(|(name, _)| *name == namespace) {
            Some((_, queue)) => queue.push_back(one),
            None => self.0.push_back((namespace, VecDeque::from([one]))),
        }
    }

    /// The one whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        let (namespace, mut queue) = self.0.pop_front()?;
        let next = queue.pop_front();
        if !queue.is_empty() {
            self.0.push_back((namespace, queue));
        }
        next
    }
}
