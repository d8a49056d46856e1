//! Turns for work of which only so much may be done at one time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::rotation::Rotation;

/// Turns that are dealt out to namespaces in rotation, and within each in the order of asking.
#[derive(Debug)]
pub struct Turns(Mutex<State>);

#[derive(Debug)]
struct State {
    free: usize,
    waiting: Rotation<String, oneshot::Sender<Turn>>,
}

/// The right to do a piece of work; given back when it is dropped.
#[derive(Debug)]
pub struct Turn(Option<Arc<Turns>>);

impl Turns {
    /// So many turns at one time.
    pub fn new(count: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { free: count, waiting: Rotation::new() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn.
    pub async fn take(self: &Arc<Self>, namespace: &str) -> Turn {
        let turn = {
            let mut state = self.state();
            if state.free > 0 {
                state.free -= 1;
                return Turn(Some(self.clone()));
            }
            let (sender, turn) = oneshot::channel();
            state.waiting.push(namespace.to_owned(), sender);
            turn
        };
        // Senders go only with the turn that they give.
        turn.await.unwrap_or(Turn(None))
    }

    /// The one who waits for the next turn.
    fn next(&self) -> Option<oneshot::Sender<Turn>> {
        let mut state = self.state();
        let next = state.waiting.pop();
        if next.is_none() {
            state.free += 1;
        }
        next
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(turns) = self.0.take() else { return };
        while let Some(next) = turns.next() {
            match next.send(Self(Some(turns.clone()))) {
                Ok(()) => return,
                // Nobody waits there any more; the turn is the next one's.
                Err(mut refused) => refused.0 = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_namespace_with_little_to_do_does_not_wait_for_one_with_much() {
        let turns = Turns::new(1);
        let mut turn = turns.take("large").now_or_never();
        assert!(turn.is_some());
        let mut many: Vec<_> = (0..5).map(|_| Box::pin(turns.take("large"))).collect();
        assert!(many.iter_mut().all(|turn| turn.now_or_never().is_none()));
        let mut few = Box::pin(turns.take("small"));
        assert!((&mut few).now_or_never().is_none());
        // The large one was first; then it is the small one's turn.
        drop(turn.take());
        let mine = many.iter_mut().position(|turn| turn.now_or_never().is_some());
        assert_eq!(mine, Some(0));
        assert!((&mut few).now_or_never().is_some());
    }

    #[test]
    fn no_turn_is_lost_with_somebody_who_does_not_wait_any_more() {
        let turns = Turns::new(1);
        let turn = turns.take("a").now_or_never().expect("free");
        for namespace in ["a", "a", "b"] {
            let mut waits = Box::pin(turns.take(namespace));
            assert!((&mut waits).now_or_never().is_none());
        }
        let mut given = Box::pin(turns.take("c"));
        assert!((&mut given).now_or_never().is_none());
        drop(turn);
        drop(given);
        assert!(turns.take("d").now_or_never().is_some());
        assert!(turns.take("d").now_or_never().is_some(), "it was given back");
    }
}
