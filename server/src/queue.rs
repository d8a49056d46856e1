//! The bounded queue between the requests and the threads that run the model.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

/// Work that may lose its point while it waits.
pub trait Perishable {
    /// Whether somebody still waits for the result.
    fn is_wanted(&self) -> bool;
}

/// A queue of bounded length. Work that nobody wants any more is neither handed out nor counts as full.
#[derive(Debug)]
pub struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    capacity: usize,
}

#[derive(Debug)]
struct State<T> {
    waiting: VecDeque<T>,
    closed: bool,
}

/// The queue is full or closed.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

impl<T: Perishable> Queue<T> {
    /// An empty queue for so many items.
    pub fn new(capacity: usize) -> Self {
        Self { state: Mutex::new(State { waiting: VecDeque::new(), closed: false }), changed: Condvar::new(), capacity }
    }

    /// Adds an item, at once or not at all.
    ///
    /// # Errors
    /// [`Full`] when the queue is full of wanted items, or closed.
    pub fn push(&self, item: T) -> Result<(), Full> {
        let mut state = self.lock();
        if state.waiting.len() >= self.capacity {
            state.waiting.retain(T::is_wanted);
        }
        if state.closed || state.waiting.len() >= self.capacity {
            return Err(Full);
        }
        state.waiting.push_back(item);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// The oldest wanted item; waits for one. None once the queue is closed and empty.
    pub fn pop(&self) -> Option<T> {
        let mut state = self.lock();
        loop {
            while let Some(item) = state.waiting.pop_front() {
                if item.is_wanted() {
                    return Some(item);
                }
            }
            if state.closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes no more items; what waits is still handed out.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// How many items wait.
    pub fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// No code that holds the lock can leave the queue half changed, so a poisoned lock is as good as another.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Item(u32, bool);

    impl Perishable for Item {
        fn is_wanted(&self) -> bool {
            self.1
        }
    }

    #[test]
    fn items_come_out_in_order_and_a_closed_queue_ends() {
        let queue = Queue::new(2);
        assert_eq!(queue.push(Item(1, true)), Ok(()));
        assert_eq!(queue.push(Item(2, true)), Ok(()));
        assert_eq!(queue.push(Item(3, true)), Err(Full));
        queue.close();
        assert_eq!(queue.push(Item(4, true)), Err(Full));
        assert_eq!((queue.pop(), queue.pop(), queue.pop()), (Some(Item(1, true)), Some(Item(2, true)), None));
    }

    #[test]
    fn an_item_that_nobody_wants_is_dropped_and_makes_room() {
        let queue = Queue::new(2);
        assert_eq!(queue.push(Item(1, false)), Ok(()));
        assert_eq!(queue.push(Item(2, true)), Ok(()));
        assert_eq!(queue.push(Item(3, true)), Ok(()));
        assert_eq!(queue.pop(), Some(Item(2, true)));
        assert_eq!(queue.push(Item(4, false)), Ok(()));
        assert_eq!(queue.pop(), Some(Item(3, true)));
        queue.close();
        assert_eq!(queue.pop(), None);
    }
}
