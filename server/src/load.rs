//! `anneal-server load`: sends the same image again and again, a bounded number at a time and for a bounded time.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use bytes::Bytes;
use futures::future::join_all;
use tokio::time::Instant;

use crate::{client::Client, options::LoadOptions, percentile::percentile, picture};

/// Pause of a sender after an error, so that a server that is down is not hammered.
const PAUSE: Duration = Duration::from_millis(100);

/// What came of one sender, or of all.
#[derive(Debug, Default)]
struct Tally {
    /// Times of the predictions, in milliseconds.
    times: Vec<f64>,
    /// How often each error came.
    errors: BTreeMap<String, usize>,
}

impl Tally {
    fn add(mut self, other: Self) -> Self {
        self.times.extend(other.times);
        for (error, count) in other.errors {
            *self.errors.entry(error).or_default() += count;
        }
        self
    }
}

/// Sends the load, prints what came of it, and gives 1 when there was no single prediction.
pub async fn run(options: &LoadOptions) -> i32 {
    let image = match image(options) {
        Ok(image) => image,
        Err(why) => {
            tracing::error!("{why}");
            return 1;
        }
    };
    let client = Client::new(options.timeout);
    let until = Instant::now() + options.duration;
    let senders = (0..options.concurrency).map(|_| send(&client, &options.url, &image, until));
    let tally = join_all(senders).await.into_iter().fold(Tally::default(), Tally::add);
    let failed = tally.times.is_empty();
    // A closed pipe is the reader's choice.
    let _ = std::io::Write::write_all(&mut std::io::stdout(), text(tally, options.duration).as_bytes());
    i32::from(failed)
}

fn image(options: &LoadOptions) -> Result<Bytes, String> {
    match &options.image {
        Some(path) => std::fs::read(path)
            .map(Bytes::from)
            .map_err(|error| format!("the image {} cannot be read: {error}", path.display())),
        None => picture::png().map(Bytes::from).map_err(|error| format!("no image can be made up: {error}")),
    }
}

async fn send(client: &Client, url: &str, image: &Bytes, until: Instant) -> Tally {
    let mut tally = Tally::default();
    while Instant::now() < until {
        let answer = client.post_image(url, image).await.map_err(|error| error.to_string());
        match answer.and_then(|answer| answer.predicted().map(|_| answer.took)) {
            Ok(took) => tally.times.push(took.as_secs_f64() * 1e3),
            Err(error) => {
                *tally.errors.entry(error).or_default() += 1;
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    tally
}

fn text(tally: Tally, duration: Duration) -> String {
    let Tally { mut times, errors } = tally;
    let failed: usize = errors.values().sum();
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let rate = f64::from(count(times.len())) / duration.as_secs_f64().max(1e-3);
    let [p50, p99] =
        [0.5, 0.99].map(|share| percentile(&mut times, share).map_or("-".to_owned(), |ms| format!("{ms:.1} ms")));
    let mut text =
        format!("requests {}  errors {failed}  predictions/s {rate:.1}  p50 {p50}  p99 {p99}\n", times.len() + failed);
    for (error, times) in errors {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{times} x {error}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_errors_by_kind() {
        let one = Tally { times: vec![10.0, 30.0], errors: BTreeMap::from([("503".to_owned(), 1)]) };
        let two = Tally { times: vec![20.0], errors: BTreeMap::from([("503".to_owned(), 2)]) };
        let text = text(one.add(two), Duration::from_secs(2));
        assert_eq!(text, "requests 6  errors 3  predictions/s 1.5  p50 20.0 ms  p99 30.0 ms\n3 x 503\n");
    }
}
