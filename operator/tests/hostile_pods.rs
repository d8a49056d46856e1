//! Training pods that mean no good, over real HTTP, against the reader that the operator has. Each listens at an address of its
//! own, as pods do.
#![allow(clippy::expect_used, reason = "this is how a test fails")]

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anneal_api::{names::PROGRESS_PORT, progress::MAX_BYTES, resources::TrainingRun};
use anneal_operator::{
    context::{Context, Reach, Settings},
    metrics::Metrics,
    progress::{Reading, Target, read_all},
};
use futures::{StreamExt, channel::mpsc};
use kube::{Client, Config, runtime::reflector::ObjectRef};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

/// Time for a pod to be asked until it counts as silent: three times 3 s, with pauses.
const JUDGED: Duration = Duration::from_secs(40);
/// Memory that all answers together may take of the operator, in KiB.
const GROWTH: u64 = 64 << 10;
/// A progress, compressed.
const GZIPPED: &[u8] =
    b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xab\x56\x4a\x2d\xc8\x4f\xce\x50\xb2\x32\xd4\x81\xb0\x8a\x95\xac\x8c\x74\
      \x94\x8a\x4b\x52\x0b\x94\xac\x8c\x21\x0c\xa0\x90\x89\x8e\x52\x4e\x62\x71\x49\x68\x41\x4a\x62\x49\x6a\x48\x66\x6e\
      \xaa\x92\x95\x92\x91\x81\x91\x99\xae\x81\xa1\xae\xb1\x61\x88\xa1\x91\x95\x81\x01\x10\x45\x29\xd5\x02\x00\xc7\xf6\
      \x9a\xc4\x51\x00\x00\x00";

/// How a pod answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Huge,
    Endless,
    EndlessHeaders,
    EndlessHints,
    Dripping,
    Mute,
    HangsUp,
    NotHttp,
    NotUtf8,
    Nested,
    NotANumber,
    BeyondFloats,
    Negative,
    BeforeChrist,
    Redirects,
    Compressed,
    Switches,
    Fails,
    /// It has no such path.
    Without,
    /// What is well and only looks odd.
    OfAnotherType,
    AndMore,
    Well,
}

use Manner::{
    AndMore, BeforeChrist, BeyondFloats, Compressed, Dripping, Endless, EndlessHeaders, EndlessHints, Fails, HangsUp,
    Huge, Mute, Negative, Nested, NotANumber, NotHttp, NotUtf8, OfAnotherType, Redirects, Switches, Well, Without,
};

/// All that say nothing which could be taken.
const HOSTILE: [Manner; 18] = [
    Huge,
    Endless,
    EndlessHeaders,
    EndlessHints,
    Dripping,
    Mute,
    HangsUp,
    NotHttp,
    NotUtf8,
    Nested,
    NotANumber,
    BeyondFloats,
    Negative,
    BeforeChrist,
    Redirects,
    Compressed,
    Switches,
    Fails,
];

/// A progress with one field that is something else.
fn progress(field: &str, value: &str) -> String {
    let fields = BTreeMap::from([
        ("epoch", "1"),
        ("epochs", "2"),
        ("step", "3"),
        ("steps", "4"),
        ("lastUpdateTime", r#""2026-01-31T12:00:00Z""#),
        (field, value),
    ]);
    let fields: Vec<String> = fields.into_iter().map(|(field, value)| format!("{field:?}:{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

fn ok(headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\n{headers}content-length: {}\r\n\r\n", body.as_ref().len());
    [head.as_bytes(), body.as_ref()].concat()
}

impl Manner {
    /// Answers one connection, for as long as the operator listens.
    async fn answer(self, mut stream: TcpStream, trap: IpAddr, step: usize) -> std::io::Result<()> {
        let mut request = [0; 4096];
        if self != HangsUp && stream.read(&mut request).await? == 0 {
            return Ok(());
        }
        let well = progress("step", &step.to_string());
        let answer = match self {
            Huge => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4294967296\r\n\r\n").await?;
                return endless(&mut stream, &[b' '; 8 << 10]).await;
            }
            Endless => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
                return endless(
                    &mut stream,
                    b"400\r\n".iter().chain(&[b'['; 1024]).chain(b"\r\n").copied().collect::<Vec<_>>().as_slice(),
                )
                .await;
            }
            EndlessHeaders => {
                stream.write_all(b"HTTP/1.1 200 OK\r\n").await?;
                return endless(&mut stream, format!("x: {}\r\n", "x".repeat(4000)).as_bytes()).await;
            }
            EndlessHints => return endless(&mut stream, b"HTTP/1.1 100 Continue\r\n\r\n").await,
            Dripping => {
                for byte in ok("", &well) {
                    stream.write_all(&[byte]).await?;
                    sleep(Duration::from_millis(100)).await;
                }
                return Ok(());
            }
            Mute => {
                sleep(Duration::from_mins(10)).await;
                return Ok(());
            }
            HangsUp => return Ok(()),
            NotHttp => b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
            NotUtf8 => ok("", b"{\"epoch\": \"\xff\xfe\"}"),
            Nested => ok("", progress("more", &"[".repeat(MAX_BYTES - 200))),
            NotANumber => ok("", progress("loss", "NaN")),
            BeyondFloats => ok("", progress("loss", "1e999")),
            Negative => ok("", progress("step", "-9223372036854775808")),
            BeforeChrist => ok("", progress("lastUpdateTime", r#""-009999-01-02T01:59:59Z""#)),
            Redirects => format!(
                "HTTP/1.1 302 Found\r\nlocation: http://{trap}:{PROGRESS_PORT}/progress\r\ncontent-length: 0\r\n\r\n"
            )
            .into_bytes(),
            Compressed => ok("content-encoding: gzip\r\n", GZIPPED),
            Switches => b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n".to_vec(),
            Without => b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec(),
            Fails => [b"HTTP/1.1 500 Oops\r\n", &ok("", &well)["HTTP/1.1 200 OK\r\n".len()..]].concat(),
            OfAnotherType => ok("content-type: text/html; charset=utf-7\r\n", &well),
            AndMore => [ok("", &well), ok("", progress("step", "4000000"))].concat(),
            Well => ok("content-type: application/json\r\n", &well),
        };
        stream.write_all(&answer).await?;
        sleep(Duration::from_mins(10)).await;
        Ok(())
    }
}

async fn endless(stream: &mut TcpStream, again: &[u8]) -> std::io::Result<()> {
    loop {
        stream.write_all(again).await?;
    }
}

/// An address that no other process on this machine takes: the number of this one is in it.
fn address() -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., third, fourth] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 | third & 63, fourth, NEXT.fetch_add(1, Ordering::Relaxed)).into()
}

/// Listens as a pod of this manner, and counts who asked.
async fn pod(manner: Manner, trap: IpAddr) -> (IpAddr, Arc<AtomicUsize>) {
    let address = address();
    let listener = TcpListener::bind((address, PROGRESS_PORT)).await.expect("an address of this machine");
    let asked = Arc::<AtomicUsize>::default();
    let counted = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let number = counted.fetch_add(1, Ordering::Relaxed);
            // The operator may have had enough.
            tokio::spawn(async move { manner.answer(stream, trap, number).await.unwrap_or_default() });
        }
    });
    (address, asked)
}

/// An operator's context, whose API server is never asked.
fn context() -> Arc<Context> {
    let client = Client::try_from(Config::new("http://127.0.0.1:1".parse().expect("an address"))).expect("a client");
    let settings = Settings {
        trainer_image: "trainer".into(),
        server_image: "server".into(),
        image_pull_policy: None,
        failure_logs: false,
        reach: Reach::Address,
    };
    Arc::new(Context::new(client, settings, Metrics::new().expect("unique names"), "test".into()))
}

fn follow(context: &Context, namespace: &str, name: &str, address: IpAddr) -> ObjectRef<TrainingRun> {
    let run = ObjectRef::new(name).within(namespace);
    let target = Target { namespace: namespace.into(), pod: name.into(), address: address.to_string() };
    context.progress.follow(run.clone(), target);
    run
}

/// The most memory that this process has had, in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_taken_that_a_status_could_not_hold_and_no_answer_takes_the_memory() {
    let context = context();
    let nowhere = address();
    let (trap, trapped) = pod(Well, nowhere).await;
    let mut runs = Vec::new();
    for manner in HOSTILE.into_iter().chain([OfAnotherType, AndMore, Well]) {
        let (at, _) = pod(manner, trap).await;
        runs.push((manner, follow(&context, "ml", &format!("{manner:?}"), at)));
    }
    let before = peak();
    let (sender, _news) = mpsc::unbounded();
    let reader = tokio::spawn(read_all(context.clone(), sender));
    let begin = Instant::now();
    let is_judged = || runs.iter().all(|(_, run)| context.progress.reading(run) != Reading::Unknown);
    while !is_judged() {
        assert!(begin.elapsed() < JUDGED, "after {JUDGED:?} it is not known of every pod what it says");
        sleep(Duration::from_millis(200)).await;
    }
    for (manner, run) in &runs {
        let reading = context.progress.reading(run);
        if HOSTILE.contains(manner) {
            assert_eq!(reading, Reading::Silent, "{manner:?}");
        } else {
            assert!(
                matches!(&reading, Reading::Said(said) if said.steps == 4 && said.step < 100),
                "{manner:?}: {reading:?}"
            );
        }
    }
    assert_eq!(trapped.load(Ordering::Relaxed), 0, "a redirect was followed");
    let grown = peak() - before;
    println!("all read within {:.1} s, {grown} KiB more at the peak", begin.elapsed().as_secs_f64());
    assert!(grown < GROWTH, "the answers took {grown} KiB");
    reader.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_pods_that_never_answer_hold_up_nobody_in_another_namespace() {
    let context = context();
    let nowhere = address();
    for number in 0..100 {
        let (at, _) = pod([Mute, Dripping, Endless, EndlessHints][number % 4], nowhere).await;
        follow(&context, "bad", &format!("bad-{number}"), at);
    }
    let (sender, mut news) = mpsc::unbounded();
    let reader = tokio::spawn(read_all(context.clone(), sender));
    // They are being asked.
    sleep(Duration::from_secs(1)).await;
    let (at, _) = pod(Well, nowhere).await;
    let good = follow(&context, "good", "cats", at);
    let begin = Instant::now();
    let told = timeout(Duration::from_secs(10), async {
        while let Some(run) = news.next().await {
            if run == good {
                return;
            }
        }
    });
    told.await.expect("the good one is read within 10 s");
    println!("read after {:.1} s, beside a hundred that do not answer", begin.elapsed().as_secs_f64());
    assert!(matches!(context.progress.reading(&good), Reading::Said(_)));
    reader.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_without_progress_is_counted_apart_from_a_pod_that_cannot_be_read() {
    let nobody = address();
    let (without, _) = pod(Without, nobody).await;
    let (fails, _) = pod(Fails, nobody).await;
    for (at, counted, other) in [(nobody, "absent", "error"), (without, "absent", "error"), (fails, "error", "absent")]
    {
        let context = context();
        follow(&context, "ml", "cats", at);
        let (sender, _news) = mpsc::unbounded();
        let reader = tokio::spawn(read_all(context.clone(), sender));
        let reads = |result: &str| {
            let text = String::from_utf8(context.metrics.text().expect("text")).expect("utf-8");
            let start = format!("anneal_progress_reads_total{{result=\"{result}\"}} ");
            let count = text.lines().find_map(|line| line.strip_prefix(&start)).expect("told from the start");
            count.parse::<usize>().expect("a count")
        };
        let begin = Instant::now();
        while reads(counted) == 0 {
            assert!(begin.elapsed() < JUDGED, "{at} is not counted as {counted}");
            sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(reads(other), 0, "{at} counts as {other}, too");
        reader.abort();
    }
}
