//! A schedule in its time zone: when it comes next, and what has come due.

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::{SignedDuration, Timestamp, tz::TimeZone};

/// Starts that are counted one by one; of more, it is only said that there are more.
pub const MAX_COUNTED: u32 = 100;

/// A schedule in its time zone.
#[derive(Clone, Debug)]
pub struct Schedule {
    cron: Cron,
    zone: TimeZone,
}

/// A schedule cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ScheduleError {
    /// The fields make no sense.
    #[error(
        "schedule {schedule:?} is not a cron schedule ({problem}); write minute, hour, day of month, month and day of week, such as `30 2 * * 1-5`"
    )]
    Fields {
        /// The schedule.
        schedule: String,
        /// What is wrong with it.
        problem: String,
    },
    /// It never comes.
    #[error("schedule {0:?} never comes; there is no such day")]
    Never(String),
    /// The time zone is unknown.
    #[error("there is no timeZone {0:?}; write a name of the IANA database, such as Europe/Berlin or Etc/UTC")]
    Zone(String),
}

/// Starts that are due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// The newest of them.
    pub newest: Timestamp,
    /// How many older ones there are; one more than [`MAX_COUNTED`] where there are more.
    pub older: u32,
}

impl Schedule {
    /// Reads a schedule; without a time zone it is in UTC.
    ///
    /// # Errors
    /// [`ScheduleError`], with what to write instead.
    pub fn parse(schedule: &str, zone: Option<&str>) -> Result<Self, ScheduleError> {
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser
            .parse(schedule)
            .map_err(|problem| ScheduleError::Fields { schedule: schedule.to_owned(), problem: problem.to_string() })?;
        let zone = match zone {
            Some(name) => TimeZone::get(name).map_err(|_| ScheduleError::Zone(name.to_owned()))?,
            None => TimeZone::UTC,
        };
        let parsed = Self { cron, zone };
        if parsed.next(Timestamp::UNIX_EPOCH).is_none() {
            return Err(ScheduleError::Never(schedule.to_owned()));
        }
        Ok(parsed)
    }

    /// The first start after a point in time.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let found = self.cron.find_next_occurrence(&after.to_zoned(self.zone.clone()), false).ok()?.timestamp();
        // Whatever the clocks do, time goes on: the planner relies on it.
        (found > after).then_some(found)
    }

    /// What has come due after `since`, up to `now`.
    pub fn due(&self, since: Timestamp, now: Timestamp) -> Option<Due> {
        let mut due = Due { newest: self.next(since).filter(|first| *first <= now)?, older: 0 };
        while let Some(next) = self.next(due.newest).filter(|next| *next <= now) {
            due = Due { newest: next, older: due.older + 1 };
            if due.older > MAX_COUNTED {
                return Some(Due { newest: self.newest(due.newest, now), ..due });
            }
        }
        Some(due)
    }

    /// The newest start up to `now`, where `known` is one of many: looked for from `now` backwards, a longer stretch each
    /// time, so that a year's outage costs no more than an hour's.
    fn newest(&self, known: Timestamp, now: Timestamp) -> Timestamp {
        let mut stretch = SignedDuration::from_hours(1);
        loop {
            let begin = now.checked_sub(stretch).unwrap_or(known).max(known);
            let mut newest = begin;
            while let Some(next) = self.next(newest).filter(|next| *next <= now) {
                newest = next;
            }
            if newest > begin || begin == known {
                return newest;
            }
            stretch = stretch.saturating_mul(2);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a timestamp")
    }

    fn schedule(text: &str, zone: Option<&str>) -> Schedule {
        Schedule::parse(text, zone).expect("a schedule")
    }

    fn starts(schedule: &Schedule, from: &str, count: usize) -> Vec<String> {
        let first = schedule.next(at(from));
        std::iter::successors(first, |last| schedule.next(*last)).take(count).map(|time| time.to_string()).collect()
    }

    #[test]
    fn a_schedule_is_in_its_time_zone() {
        let berlin = schedule("30 2 * * 1-5", Some("Europe/Berlin"));
        // 2026-01-02 is a Friday.
        assert_eq!(starts(&berlin, "2026-01-01T12:00:00Z", 2), ["2026-01-02T01:30:00Z", "2026-01-05T01:30:00Z"]);
        assert_eq!(starts(&schedule("@daily", None), "2026-01-01T12:00:00.5Z", 1), ["2026-01-02T00:00:00Z"]);
    }

    #[test]
    fn a_fixed_time_that_the_clocks_skip_runs_right_after_and_one_that_comes_twice_runs_once() {
        let berlin = schedule("30 2 * * *", Some("Europe/Berlin"));
        // On 29 March 2026 there is no 02:30; on 25 October there are two.
        assert_eq!(
            starts(&berlin, "2026-03-28T12:00:00Z", 2),
            ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"],
            "the clocks go forward"
        );
        assert_eq!(
            starts(&berlin, "2026-10-24T12:00:00Z", 2),
            ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"],
            "the clocks go back"
        );
    }

    #[test]
    fn every_half_hour_stays_every_half_hour_when_the_clocks_change() {
        let berlin = schedule("*/30 * * * *", Some("Europe/Berlin"));
        for day in ["2026-03-29T00:00:00Z", "2026-10-25T00:00:00Z"] {
            let mut last = at(day);
            for _ in 0..8 {
                let next = berlin.next(last).expect("a start");
                assert_eq!(next.duration_since(last), SignedDuration::from_mins(30), "{last}");
                last = next;
            }
        }
    }

    #[test]
    fn a_schedule_that_makes_no_sense_says_what_to_write() {
        for (text, zone, hint) in [
            ("61 * * * *", None, "is not a cron schedule"),
            ("* * * *", None, "write minute, hour"),
            ("0 0 * * * *", None, "is not a cron schedule"),
            ("0 0 30 2 *", None, "never comes"),
            ("0 0 * * *", Some("Mars/Olympus"), "such as Europe/Berlin"),
        ] {
            let problem = Schedule::parse(text, zone).expect_err(text).to_string();
            assert!(problem.contains(hint), "{problem}");
        }
    }

    #[test]
    fn a_long_outage_finds_the_newest_start_at_once() {
        let minutes = schedule("* * * * *", None);
        let due = minutes.due(at("2020-01-01T00:00:00Z"), at("2026-01-01T00:00:30Z"));
        assert_eq!(due, Some(Due { newest: at("2026-01-01T00:00:00Z"), older: MAX_COUNTED + 1 }));
        let yearly = schedule("@yearly", None);
        let due = yearly.due(at("2023-06-01T00:00:00Z"), at("2026-06-01T00:00:00Z"));
        assert_eq!(due, Some(Due { newest: at("2026-01-01T00:00:00Z"), older: 2 }));
        assert_eq!(yearly.due(at("2026-01-01T00:00:00Z"), at("2026-06-01T00:00:00Z")), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// What is due does not depend on how often it is asked for: the newest of a stretch is the newest of its last part,
        /// and nothing is due right after it.
        #[test]
        fn a_start_is_due_once(
            since in 1_700_000_000..1_800_000_000_i64, span in 0..40_000_000_i64,
            text in prop::sample::select(vec!["* * * * *", "*/7 3 * * *", "30 2 * * *", "0 0 1 * *", "0 12 * * 1,5"]),
            zone in prop::sample::select(vec![None, Some("Europe/Berlin"), Some("America/New_York"), Some("Australia/Lord_Howe")]),
        ) {
            let stamp = |second| Timestamp::from_second(second).expect("in range");
            let (schedule, now) = (schedule(text, zone), stamp(since + span));
            if let Some(due) = schedule.due(stamp(since), now) {
                prop_assert!(due.newest > stamp(since) && due.newest <= now);
                prop_assert_eq!(schedule.due(due.newest, now), None);
                prop_assert!(schedule.next(due.newest).expect("a start") > now);
                let before = due.newest.checked_sub(SignedDuration::from_secs(1)).expect("in range");
                prop_assert_eq!(schedule.due(before, now), Some(Due { newest: due.newest, older: 0 }));
            }
        }
    }
}
