//! Room for connections. When there is none left, whoever stands there without a request makes room: thousands of
//! connections that ask nothing must not keep out one that does.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// The way in, with room for a fixed number of connections.
#[derive(Clone, Debug)]
pub struct Door(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    room: Arc<Semaphore>,
    /// Connections that wait for room.
    waiting: AtomicUsize,
    /// Time in which a new connection need not make room.
    patience: Duration,
    guests: Mutex<Guests>,
}

#[derive(Debug, Default)]
struct Guests {
    next: u64,
    /// In the order in which they came.
    inside: BTreeMap<u64, Arc<Presence>>,
}

/// What is known of a connection.
#[derive(Debug)]
struct Presence {
    since: Instant,
    busy: AtomicBool,
    asked_to_leave: AtomicBool,
    leave: Notify,
}

/// A connection that is inside until this is dropped.
#[derive(Debug)]
pub struct Guest {
    door: Door,
    number: u64,
    presence: Arc<Presence>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Door {
    /// A door with room for so many. None of them has to leave before it was inside for the time of `patience`: its first
    /// request may have arrived, unread, and would be lost with it.
    pub fn new(connections: usize, patience: Duration) -> Self {
        let room = Arc::new(Semaphore::new(connections));
        Self(Arc::new(Inner { room, waiting: AtomicUsize::new(0), patience, guests: Mutex::default() }))
    }

    /// Lets a connection in once there is room, and makes room where somebody inside has no request.
    pub async fn enter(&self) -> Guest {
        if let Ok(permit) = Arc::clone(&self.0.room).try_acquire_owned() {
            return self.admit(Some(permit));
        }
        // Told before it is looked who is idle: whoever ends a request meanwhile sees it.
        let _waiting = Waiting::begin(&self.0.waiting);
        self.dismiss();
        // Never closed, so the permit is always had.
        let permit = Arc::clone(&self.0.room).acquire_owned().await.ok();
        self.admit(permit)
    }

    /// Lets a connection in although there may be no room.
    pub fn squeeze(&self) -> Guest {
        self.admit(None)
    }

    fn admit(&self, permit: Option<OwnedSemaphorePermit>) -> Guest {
        let presence = Arc::new(Presence {
            since: Instant::now(),
            busy: AtomicBool::new(false),
            asked_to_leave: AtomicBool::new(false),
            leave: Notify::new(),
        });
        let mut guests = self.0.guests.lock().unwrap_or_else(PoisonError::into_inner);
        let number = guests.next;
        guests.next += 1;
        guests.inside.insert(number, Arc::clone(&presence));
        Guest { door: self.clone(), number, presence, _permit: permit }
    }

    /// Asks the oldest connection without a request to leave.
    fn dismiss(&self) {
        let guests = self.0.guests.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |presence: &&Arc<Presence>| {
            !presence.busy.load(Ordering::SeqCst) && !presence.asked_to_leave.load(Ordering::Acquire)
        };
        if let Some(presence) = guests.inside.values().find(idle) {
            presence.asked_to_leave.store(true, Ordering::Release);
            presence.leave.notify_one();
        }
    }
}

/// Counted as waiting until this is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Guest {
    /// Whether another connection waits for room, so that this one had better end with the answer to its request.
    pub fn is_awaited(&self) -> bool {
        self.door.0.waiting.load(Ordering::SeqCst) > 0
    }

    /// Says whether a request is under way on this connection.
    pub fn busy(&self, busy: bool) {
        self.presence.busy.store(busy, Ordering::SeqCst);
    }

    /// Waits until the connection has to make room. It never has to while a request is under way.
    pub async fn dismissed(&self) {
        loop {
            self.presence.leave.notified().await;
            let patience = self.door.0.patience.saturating_sub(self.presence.since.elapsed());
            if !patience.is_zero() {
                tokio::time::sleep(patience).await;
            }
            if !self.presence.busy.load(Ordering::Acquire) {
                return;
            }
            // A request came first: somebody else must go next time.
            self.presence.asked_to_leave.store(false, Ordering::Release);
            self.door.dismiss();
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.door.0.guests.lock().unwrap_or_else(PoisonError::into_inner).inside.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_without_a_request_makes_room() {
        let door = Door::new(2, Duration::ZERO);
        let (busy, idle) = (door.enter().await, door.enter().await);
        busy.busy(true);
        let mut third = Box::pin(door.enter());
        assert!(futures::poll!(&mut third).is_pending());
        assert!(futures::poll!(Box::pin(busy.dismissed())).is_pending(), "it has a request");
        assert!(futures::poll!(Box::pin(idle.dismissed())).is_ready());
        drop(idle);
        assert!(futures::poll!(&mut third).is_ready());
    }

    #[tokio::test]
    async fn where_all_are_busy_they_learn_that_somebody_waits() {
        let door = Door::new(1, Duration::ZERO);
        let guest = door.enter().await;
        guest.busy(true);
        assert!(!guest.is_awaited());
        let mut second = Box::pin(door.enter());
        assert!(futures::poll!(&mut second).is_pending());
        assert!(guest.is_awaited());
        drop(guest);
        let second = second.await;
        assert!(!second.is_awaited(), "it is inside now");
    }

    #[tokio::test]
    async fn whoever_gets_a_request_in_time_stays() {
        let door = Door::new(2, Duration::ZERO);
        let (first, second) = (door.enter().await, door.enter().await);
        let mut third = Box::pin(door.enter());
        assert!(futures::poll!(&mut third).is_pending());
        first.busy(true);
        assert!(futures::poll!(Box::pin(first.dismissed())).is_pending());
        assert!(futures::poll!(Box::pin(second.dismissed())).is_ready(), "the next one goes instead");
    }

    #[tokio::test]
    async fn whoever_has_just_come_is_heard_first() {
        let door = Door::new(1, Duration::from_mins(1));
        let guest = door.enter().await;
        let mut second = Box::pin(door.enter());
        assert!(futures::poll!(&mut second).is_pending());
        assert!(futures::poll!(Box::pin(guest.dismissed())).is_pending());
    }
}
