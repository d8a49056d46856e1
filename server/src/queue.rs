//! The queue between the requests and the threads that run the model, bounded in length and by deadlines.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Share of the newest measurement in the mean time that an item takes.
const NEWEST: f64 = 0.1;

/// Work that may lose its point while it waits.
pub trait Perishable {
    /// Whether somebody still waits for the result.
    fn is_wanted(&self) -> bool;

    /// When the result comes too late.
    fn deadline(&self) -> Instant;
}

/// A queue that takes only what it can finish in time. Work that nobody wants any more is neither handed out nor counts as
/// full.
#[derive(Debug)]
pub struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    capacity: usize,
    workers: usize,
}

#[derive(Debug)]
struct State<T> {
    waiting: VecDeque<T>,
    /// Items that workers have.
    taken: usize,
    /// Mean time of a worker for an item, in seconds; zero before the first.
    seconds: f64,
    closed: bool,
}

/// The queue does not take the item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is full of wanted items; after this time some of them are done.
    Full(Duration),
    /// The item would be done only after this time, which is beyond its deadline.
    Late(Duration),
    /// It is closed.
    Closed,
}

impl<T: Perishable> Queue<T> {
    /// An empty queue for so many items, which so many workers take from.
    pub fn new(capacity: usize, workers: usize) -> Self {
        let state = State { waiting: VecDeque::new(), taken: 0, seconds: 0.0, closed: false };
        Self { state: Mutex::new(state), changed: Condvar::new(), capacity, workers: workers.max(1) }
    }

    /// Adds an item, at once or not at all.
    ///
    /// # Errors
    /// [`Refused`] says why, and for how long.
    pub fn push(&self, item: T) -> Result<(), Refused> {
        let mut state = self.lock();
        self.room(&mut state, item.deadline())?;
        state.waiting.push_back(item);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// Whether an item with this deadline would be taken now.
    ///
    /// # Errors
    /// As [`Queue::push`].
    pub fn admits(&self, deadline: Instant) -> Result<(), Refused> {
        self.room(&mut self.lock(), deadline)
    }

    fn room(&self, state: &mut State<T>, deadline: Instant) -> Result<(), Refused> {
        if state.closed {
            return Err(Refused::Closed);
        }
        let now = Instant::now();
        let in_time = |state: &State<T>| now + self.wait(state, 1) <= deadline;
        if state.waiting.len() >= self.capacity || !in_time(state) {
            state.waiting.retain(|item| item.is_wanted() && item.deadline() > now);
        }
        if state.waiting.len() >= self.capacity {
            return Err(Refused::Full(self.wait(state, 0)));
        }
        // A guess must not keep everybody out for ever: an idle worker always gets something to measure.
        let idle = state.waiting.is_empty() && state.taken < self.workers;
        if idle || in_time(state) { Ok(()) } else { Err(Refused::Late(self.wait(state, 1))) }
    }

    /// The oldest wanted items: at most `most`, and no more than leaves the other workers their share. Waits for the first
    /// one, never for a second. Nothing once the queue is closed and empty.
    pub fn pop(&self, most: usize) -> Vec<T> {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let share = state.waiting.len().div_ceil(self.workers).clamp(1, most.max(1));
            let mut batch = Vec::new();
            while batch.len() < share
                && let Some(item) = state.waiting.pop_front()
            {
                if item.is_wanted() && item.deadline() > now {
                    batch.push(item);
                }
            }
            if !batch.is_empty() || state.closed {
                state.taken += batch.len();
                return batch;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Says that a worker is done with so many items after this time.
    pub fn done(&self, items: usize, took: Duration) {
        let mut state = self.lock();
        state.taken = state.taken.saturating_sub(items);
        let each = took.as_secs_f64() / count(items.max(1));
        state.seconds = if state.seconds == 0.0 { each } else { state.seconds + NEWEST * (each - state.seconds) };
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

    /// Time until the workers are done with all they have and so many items more.
    fn wait(&self, state: &State<T>, more: usize) -> Duration {
        let items = count(state.waiting.len() + state.taken + more);
        Duration::from_secs_f64((items / count(self.workers)).max(1.0) * state.seconds)
    }

    /// No code that holds the lock can leave the queue half changed, so a poisoned lock is as good as another.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count(items: usize) -> f64 {
    f64::from(u32::try_from(items).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Item(u32, bool, Instant);

    impl Perishable for Item {
        fn is_wanted(&self) -> bool {
            self.1
        }

        fn deadline(&self) -> Instant {
            self.2
        }
    }

    fn item(number: u32) -> Item {
        within(number, Duration::from_mins(1))
    }

    fn within(number: u32, time: Duration) -> Item {
        Item(number, true, Instant::now() + time)
    }

    fn unwanted(number: u32) -> Item {
        Item(number, false, Instant::now() + Duration::from_mins(1))
    }

    fn numbers(items: &[Item]) -> Vec<u32> {
        items.iter().map(|item| item.0).collect()
    }

    #[test]
    fn items_come_out_in_order_and_a_closed_queue_ends() {
        let queue = Queue::new(2, 1);
        assert_eq!(queue.push(item(1)), Ok(()));
        assert_eq!(queue.push(item(2)), Ok(()));
        assert!(matches!(queue.push(item(3)), Err(Refused::Full(_))));
        queue.close();
        assert_eq!(queue.push(item(4)), Err(Refused::Closed));
        assert_eq!((numbers(&queue.pop(1)), numbers(&queue.pop(1))), (vec![1], vec![2]));
        assert!(queue.pop(1).is_empty());
    }

    #[test]
    fn an_item_that_nobody_wants_or_that_is_too_late_is_dropped_and_makes_room() {
        let queue = Queue::new(2, 1);
        assert_eq!(queue.push(unwanted(1)), Ok(()));
        assert_eq!(queue.push(item(2)), Ok(()));
        assert_eq!(queue.push(item(3)), Ok(()));
        assert_eq!(numbers(&queue.pop(1)), [2]);
        assert_eq!(queue.push(unwanted(4)), Ok(()));
        assert_eq!(numbers(&queue.pop(8)), [3]);
        queue.done(2, Duration::ZERO);
        assert_eq!(queue.push(within(5, Duration::ZERO)), Ok(()));
        queue.close();
        assert!(queue.pop(8).is_empty());
    }

    #[test]
    fn a_batch_is_what_waits_and_leaves_the_other_workers_their_share() {
        let queue = Queue::new(16, 2);
        for number in 0..5 {
            assert_eq!(queue.push(item(number)), Ok(()));
        }
        assert_eq!(numbers(&queue.pop(4)), [0, 1, 2]);
        assert_eq!(numbers(&queue.pop(4)), [3]);
        assert_eq!(numbers(&queue.pop(4)), [4]);
        for number in 0..16 {
            assert_eq!(queue.push(item(number)), Ok(()));
        }
        assert_eq!(queue.pop(4).len(), 4, "no more than asked for");
    }

    #[test]
    fn what_cannot_be_done_in_time_is_refused_at_once() {
        let queue = Queue::new(64, 1);
        assert_eq!(queue.push(item(1)), Ok(()));
        assert_eq!(queue.pop(1).len(), 1);
        queue.done(1, Duration::from_secs(1));
        // Nothing is under way: the next one is done after a second, and a guess does not keep it out.
        assert_eq!(queue.push(within(2, Duration::from_millis(100))), Ok(()));
        assert_eq!(queue.push(within(3, Duration::from_millis(2500))), Ok(()));
        let Err(Refused::Late(wait)) = queue.push(within(4, Duration::from_millis(2500))) else { panic!("taken") };
        assert!(wait > Duration::from_millis(2900), "{wait:?}");
        assert_eq!(queue.push(within(5, Duration::from_millis(3500))), Ok(()));
    }
}
