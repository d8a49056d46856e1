//! Spans of time in the words of kubectl: `45s`, `3m12s`, `12m`, `3h5m`, `2d4h`, `9d`.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// The time between two instants, in two units at the most.
pub fn between(since: Timestamp, until: Timestamp) -> String {
    let seconds = until.as_second().saturating_sub(since.as_second()).max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |first: i64, unit: &str, second: i64, smaller: &str| {
        if second == 0 { format!("{first}{unit}") } else { format!("{first}{unit}{second}{smaller}") }
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if days < 8 => two(days, "d", hours % 24, "h"),
        () => format!("{days}d"),
    }
}

/// How long ago that was; `-` where it was not.
pub fn of(time: Option<&Time>, now: Timestamp) -> String {
    time.map_or_else(|| "-".to_owned(), |time| between(time.0, now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_told_as_kubectl_tells_them() {
        let span = |seconds| between(Timestamp::UNIX_EPOCH, Timestamp::from_second(seconds).expect("in range"));
        for (seconds, told) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (192, "3m12s"),
            (720, "12m"),
            (11_100, "3h5m"),
            (40_000, "11h"),
            (187_200, "2d4h"),
            (800_000, "9d"),
        ] {
            assert_eq!(span(seconds), told);
        }
        assert_eq!(between(Timestamp::from_second(9).expect("in range"), Timestamp::UNIX_EPOCH), "0s");
    }
}
