//! The time of day, by a clock that does not follow a jump at once.
//!
//! Deadlines are kept in the status as times of day, so that they outlive the process. A clock that is set wrong for some
//! seconds, and right again, must not let them pass: what they end is not begun anew by itself.

use std::{
    sync::{LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};

/// How far the time of day may be from the time that has passed without being doubted: clocks are corrected by less.
const TOLERANCE: SignedDuration = SignedDuration::from_secs(2);
/// How long it must stay there to be believed.
const PERSISTENCE: Duration = Duration::from_mins(1);

static CLOCK: LazyLock<Mutex<Clock>> = LazyLock::new(|| Mutex::new(Clock::set(Timestamp::now(), Instant::now())));

/// The time of day. One that has jumped is believed once it has stayed for a minute; until then the time goes on steadily.
pub fn now() -> Timestamp {
    CLOCK.lock().unwrap_or_else(PoisonError::into_inner).read(Timestamp::now(), Instant::now())
}

/// What the time of day was at a moment of a clock that never jumps.
struct Clock {
    time: Timestamp,
    at: Instant,
    doubted_since: Option<Instant>,
}

impl Clock {
    fn set(time: Timestamp, at: Instant) -> Self {
        Self { time, at, doubted_since: None }
    }

    /// The time to go by, when this is what the time of day is said to be.
    fn read(&mut self, said: Timestamp, at: Instant) -> Timestamp {
        let passed = SignedDuration::try_from(at.saturating_duration_since(self.at)).unwrap_or_default();
        let steady = self.time.saturating_add(passed).unwrap_or(said);
        let is_near = said.duration_since(steady).abs() <= TOLERANCE;
        if is_near || at.saturating_duration_since(*self.doubted_since.get_or_insert(at)) >= PERSISTENCE {
            *self = Self::set(said, at);
            return said;
        }
        steady
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: SignedDuration = SignedDuration::from_hours(24);

    /// What a clock makes of the time of day that is told it, so many seconds after it was set.
    fn told(readings: &[(u64, SignedDuration)]) -> Vec<i64> {
        let (time, at) = (Timestamp::UNIX_EPOCH + DAY, Instant::now());
        let mut clock = Clock::set(time, at);
        let mut read = |&(seconds, off): &(u64, SignedDuration)| {
            let said = time + SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX)) + off;
            clock.read(said, at + Duration::from_secs(seconds)).duration_since(time).as_secs()
        };
        readings.iter().map(&mut read).collect()
    }

    #[test]
    fn a_jump_that_is_taken_back_is_not_followed() {
        for jump in [DAY, -DAY, SignedDuration::from_mins(1)] {
            let none = SignedDuration::ZERO;
            assert_eq!(told(&[(5, none), (6, jump), (16, jump), (17, none), (90, none)]), [5, 6, 16, 17, 90]);
        }
    }

    #[test]
    fn a_time_that_stays_is_believed() {
        let hour = SignedDuration::from_hours(1);
        assert_eq!(told(&[(5, hour), (64, hour), (65, hour), (66, hour)]), [5, 64, 3665, 3666]);
    }

    #[test]
    fn a_second_jump_is_doubted_as_long_as_the_first() {
        let none = SignedDuration::ZERO;
        assert_eq!(told(&[(5, DAY), (60, none), (61, DAY), (120, DAY)]), [5, 60, 61, 120]);
    }

    #[test]
    fn small_corrections_are_followed_and_add_up() {
        let second = SignedDuration::from_secs(1);
        assert_eq!(told(&[(5, second), (6, second * 2), (7, second * 3), (8, second * 4)]), [6, 8, 10, 12]);
    }
}
