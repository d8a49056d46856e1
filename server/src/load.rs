//! `anneal-server load`: sends images again and again, a bounded number at a time and for a bounded time.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures::future::join_all;
use tokio::{task::JoinSet, time::Instant};
use warp::http::StatusCode;

use crate::{client::Client, journal::Journal, options::LoadOptions, percentile::percentile, picture};

/// Pause of a sender after an error, so that a server that is down is not hammered.
const PAUSE: Duration = Duration::from_millis(100);

/// Requests of an open loop that may be under way.
const MOST_UNDER_WAY: usize = 8192;

/// What came of one sender, or of all.
#[derive(Debug, Default)]
struct Tally {
    /// Times of the predictions, in milliseconds.
    times: Vec<f64>,
    /// Times of the refusals that an open loop met, in milliseconds.
    refusals: Vec<f64>,
    /// How often each error came.
    errors: BTreeMap<String, usize>,
}

impl Tally {
    fn add(mut self, other: Self) -> Self {
        self.times.extend(other.times);
        self.refusals.extend(other.refusals);
        for (error, count) in other.errors {
            *self.errors.entry(error).or_default() += count;
        }
        self
    }
}

/// Sends the load, prints what came of it, and gives 1 when there was no single prediction.
pub async fn run(options: &LoadOptions) -> i32 {
    let ready = images(options).and_then(|images| Ok((images, Client::new(options.timeout, &options.access)?)));
    let (images, client) = match ready {
        Ok(ready) => ready,
        Err(why) => {
            tracing::error!("{why}");
            return 1;
        }
    };
    let client = if options.new_connections { client.without_reuse() } else { client };
    let until = Instant::now() + options.duration;
    let begun = (Instant::now(), processor_time());
    if let Some(rate) = options.arrivals {
        let tally = open_loop(&client, &options.url, &images, rate, until).await;
        return conclude(options, tally, begun);
    }
    let journal = options.journal.then(Journal::begin);
    let concurrency = u32::from(options.concurrency);
    // Each sender keeps its own beat, one after the other.
    let pace = options.rate.map(|rate| Duration::from_secs(1) * concurrency / u32::from(rate));
    let next = AtomicUsize::new(0);
    let load = Load {
        client: &client,
        url: &options.url,
        images: &images,
        next: &next,
        until,
        pace,
        journal: journal.as_ref(),
    };
    let senders = (0..concurrency).map(|number| {
        let delay = pace.map_or(Duration::ZERO, |pace| pace * number / concurrency);
        load.send(delay)
    });
    let tally = join_all(senders).await.into_iter().fold(Tally::default(), Tally::add);
    journal.inspect(Journal::end);
    conclude(options, tally, begun)
}

/// Prints what came of the load.
fn conclude(options: &LoadOptions, tally: Tally, begun: (Instant, Duration)) -> i32 {
    let failed = tally.times.is_empty();
    let (took, used) = (begun.0.elapsed(), processor_time().saturating_sub(begun.1));
    let text = if options.json { json(tally, took, used) } else { text(tally, options.duration) };
    // A closed pipe is the reader's choice.
    let _ = std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes());
    i32::from(failed)
}

/// Sends at a fixed rate, whatever becomes of what was sent.
async fn open_loop(client: &Client, url: &str, images: &[Bytes], rate: u16, until: Instant) -> Tally {
    let begun = Instant::now();
    let mut sent: JoinSet<Tally> = JoinSet::new();
    let mut tally = Tally::default();
    for (number, image) in (0_u32..).zip(images.iter().cycle()) {
        let due = begun + Duration::from_secs(1) * number / u32::from(rate);
        if due >= until {
            break;
        }
        tokio::time::sleep_until(due).await;
        while let Some(Ok(one)) = sent.try_join_next() {
            tally = tally.add(one);
        }
        if sent.len() >= MOST_UNDER_WAY {
            *tally.errors.entry("this client has too many requests under way".to_owned()).or_default() += 1;
            continue;
        }
        let (client, url, image) = (client.clone(), url.to_owned(), image.clone());
        sent.spawn(async move { one(&client, &url, &image).await });
    }
    sent.join_all().await.into_iter().fold(tally, Tally::add)
}

/// What became of one request of an open loop.
async fn one(client: &Client, url: &str, image: &Bytes) -> Tally {
    let begun = Instant::now();
    let mut tally = Tally::default();
    match client.post_image(url, image).await {
        Ok(answer) if [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS].contains(&answer.status) => {
            tally.refusals.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        answer => match answer.map_err(|error| error.to_string()).and_then(|answer| answer.predicted()) {
            Ok(_) => tally.times.push(begun.elapsed().as_secs_f64() * 1e3),
            Err(error) => *tally.errors.entry(error).or_default() += 1,
        },
    }
    tally
}

fn images(options: &LoadOptions) -> Result<Vec<Bytes>, String> {
    let read = |path: &PathBuf| {
        std::fs::read(path)
            .map(Bytes::from)
            .map_err(|error| format!("the image {} cannot be read: {error}", path.display()))
    };
    if options.images.is_empty() {
        let made_up = picture::png().map_err(|error| format!("no image can be made up: {error}"))?;
        return Ok(vec![made_up.into()]);
    }
    options.images.iter().map(read).collect()
}

/// What all senders have in common.
#[derive(Clone, Copy)]
struct Load<'a> {
    client: &'a Client,
    url: &'a str,
    images: &'a [Bytes],
    next: &'a AtomicUsize,
    until: Instant,
    /// Time from one request of a sender to its next, where it is not as fast as the server.
    pace: Option<Duration>,
    journal: Option<&'a Journal>,
}

impl Load<'_> {
    async fn send(self, delay: Duration) -> Tally {
        let mut tally = Tally::default();
        let mut due = Instant::now() + delay;
        while Instant::now() < self.until {
            if let Some(pace) = self.pace {
                tokio::time::sleep_until(due).await;
                due = (due + pace).max(Instant::now());
            }
            let index = self.next.fetch_add(1, Ordering::Relaxed) % self.images.len();
            let Some(image) = self.images.get(index) else { break };
            let answer = self.client.post_image(self.url, image).await.map_err(|error| error.to_string());
            match answer.and_then(|answer| answer.predicted().map(|_| answer)) {
                Ok(answer) => {
                    tally.times.push(answer.took.as_secs_f64() * 1e3);
                    self.journal.inspect(|journal| journal.answered(answer.revision.as_deref()));
                }
                Err(error) => {
                    self.journal.inspect(|journal| journal.failed(&error));
                    *tally.errors.entry(error).or_default() += 1;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        tally
    }
}

/// The result for programs: times in milliseconds, `client_cpu_ms` for each prediction.
fn json(tally: Tally, took: Duration, used: Duration) -> String {
    let Tally { mut times, mut refusals, errors } = tally;
    let count = f64::from(u32::try_from(times.len()).unwrap_or(u32::MAX));
    let [p50, p99] = [0.5, 0.99].map(|share| percentile(&mut times, share));
    let refused_p99 = percentile(&mut refusals, 0.99);
    let result = serde_json::json!({
        "predictions": times.len(),
        "refused": refusals.len(),
        "refused_p99_ms": refused_p99,
        "errors": errors.values().sum::<usize>(),
        "rate": count / took.as_secs_f64().max(1e-3),
        "p50_ms": p50,
        "p99_ms": p99,
        "client_cpu_ms": used.as_secs_f64() * 1e3 / count.max(1.0),
        "error_texts": errors,
    });
    format!("{result}\n")
}

/// Processor time of this process so far, in the hundredths of a second in which Linux counts it.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name before the last bracket may have spaces.
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11);
    Duration::from_millis(fields.take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>() * 10)
}

fn text(tally: Tally, duration: Duration) -> String {
    let Tally { mut times, refusals, errors } = tally;
    let failed: usize = errors.values().sum();
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let rate = f64::from(count(times.len())) / duration.as_secs_f64().max(1e-3);
    let [p50, p99] =
        [0.5, 0.99].map(|share| percentile(&mut times, share).map_or("-".to_owned(), |ms| format!("{ms:.1} ms")));
    let mut text =
        format!("requests {}  errors {failed}  predictions/s {rate:.1}  p50 {p50}  p99 {p99}\n", times.len() + failed);
    if !refusals.is_empty() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} x refused, since the server was at its limit", refusals.len());
    }
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
        let one =
            Tally { times: vec![10.0, 30.0], refusals: vec![1.0], errors: BTreeMap::from([("503".to_owned(), 1)]) };
        let two = Tally { times: vec![20.0], errors: BTreeMap::from([("503".to_owned(), 2)]), ..Tally::default() };
        let text = text(one.add(two), Duration::from_secs(2));
        assert_eq!(
            text,
            "requests 6  errors 3  predictions/s 1.5  p50 20.0 ms  p99 30.0 ms\n1 x refused, since the server was at its limit\n3 x 503\n"
        );
    }
}
