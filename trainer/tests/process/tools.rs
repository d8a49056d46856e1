//! The real programs of others that the trainer meets, and web servers that are worse than real ones.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// The folder of the tools; they are set up where the caller has not done so.
pub fn tools() -> PathBuf {
    std::env::var_os("ANNEAL_TOOLS").map_or_else(set_up, PathBuf::from)
}

fn set_up() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/tools/setup");
    let done = Command::new(script).stderr(Stdio::inherit()).output().expect("tests/tools/setup runs");
    assert!(done.status.success(), "tests/tools/setup failed");
    PathBuf::from(String::from_utf8(done.stdout).expect("text").trim())
}

/// Runs a tool in a folder and gives what it prints.
pub fn tool(name: &str, args: &[&str], dir: &Path) -> String {
    let mut command = Command::new(tools().join("venv/bin").join(name));
    command.args(args).current_dir(dir).env("DVC_NO_ANALYTICS", "1").stdin(Stdio::null());
    let done = command.output().expect("the tool");
    assert!(
        done.status.success(),
        "{name} {args:?}: {}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
    String::from_utf8(done.stdout).expect("text")
}

/// A port that nobody listens on.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port()
}

/// A server that is killed at the end, with all processes that it started.
pub struct Server(Child);

impl Server {
    /// Starts a program in a process group of its own and waits until its port answers.
    pub fn start(mut command: Command, port: u16) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        let server = Self(command.spawn().expect("the server"));
        let until = Instant::now() + Duration::from_mins(3);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < until, "the server does not listen");
            thread::sleep(Duration::from_millis(50));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", self.0.id())]).status();
        let _ = self.0.wait();
    }
}

/// A web server for the files of a folder. It knows ranges, and breaks its first answers off.
pub struct Web {
    pub address: SocketAddr,
    /// Bytes of files that were sent.
    pub sent: Arc<AtomicU64>,
}

/// How badly a web server answers.
#[derive(Clone, Copy)]
struct Line {
    /// Answers longer than this are broken off, while there are some to break off.
    longest: usize,
    /// A pause after so many bytes.
    slow: Option<(usize, Duration)>,
}

impl Web {
    /// Breaks off the first `broken` answers that are longer than `longest` bytes.
    pub fn start(root: &Path, broken: usize, longest: usize) -> Self {
        Self::on(root, broken, Line { longest, slow: None })
    }

    /// Sends `bytes`, rests, and goes on.
    pub fn slow(root: &Path, bytes: usize, pause: Duration) -> Self {
        Self::on(root, 0, Line { longest: usize::MAX, slow: Some((bytes, pause)) })
    }

    fn on(root: &Path, broken: usize, line: Line) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let web = Self { address: listener.local_addr().expect("an address"), sent: Arc::default() };
        let (root, sent, left) = (root.to_owned(), web.sent.clone(), Arc::new(AtomicUsize::new(broken)));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (root, sent, left) = (root.clone(), sent.clone(), left.clone());
                thread::spawn(move || serve(&stream, &root, &sent, &left, line));
            }
        });
        web
    }
}

fn serve(mut stream: &TcpStream, root: &Path, sent: &AtomicU64, left: &AtomicUsize, line: Line) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines().map_while(Result::ok);
    let path = lines.next()?.split([' ', '?']).nth(1)?.trim_start_matches('/').to_owned();
    let headers: Vec<String> =
        lines.take_while(|line| !line.is_empty()).map(|line| line.to_ascii_lowercase()).collect();
    let header = |name: &str| headers.iter().find_map(|line| line.strip_prefix(&format!("{name}: ")));
    let mut answer = |status: &str, more: &str, content: &[u8]| -> Option<()> {
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{more}\r\n", content.len());
        stream.write_all(head.as_bytes()).ok()?;
        let breaks = content.len() > line.longest
            && left.try_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        let part = if breaks { &content[..line.longest] } else { content };
        sent.fetch_add(part.len() as u64, Ordering::SeqCst);
        let Some((bytes, pause)) = line.slow else { return stream.write_all(part).ok() };
        part.chunks(bytes).try_for_each(|piece| {
            stream.write_all(piece).ok()?;
            thread::sleep(pause);
            Some(())
        })
    };
    if path.starts_with("secret/") && header("authorization") != Some("bearer letmein") {
        return answer("403 Forbidden", "", b"");
    }
    let Ok(content) = fs::read(root.join(&path)) else { return answer("404 Not Found", "", b"") };
    let tag = format!("\"{}\"", content.len());
    if header("if-none-match") == Some(tag.as_str()) {
        return answer("304 Not Modified", "", b"");
    }
    let from = header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    match from.filter(|from| *from < content.len() && header("if-range").is_none_or(|asked| asked == tag)) {
        Some(from) => answer("206 Partial Content", &format!("ETag: {tag}\r\n"), &content[from..]),
        None => answer("200 OK", &format!("ETag: {tag}\r\n"), &content),
    }
}

/// Passes connections on to a port, but closes the first ones at once, and of the others loses every so many'th answer.
pub fn unreliable(to: u16, refused: usize, lose_every: usize) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        for (number, client) in listener.incoming().map_while(Result::ok).enumerate() {
            if number < refused {
                continue;
            }
            thread::spawn(move || relay(client, to, number % lose_every == 0));
        }
    });
    port
}

/// Passes connections on to a port, but lets each wait before its answer. Also counts the answers.
pub fn slow(to: u16, pause: Duration) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let answered = Arc::new(AtomicUsize::new(0));
    let counted = answered.clone();
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let counted = counted.clone();
            thread::spawn(move || {
                thread::sleep(pause);
                counted.fetch_add(1, Ordering::SeqCst);
                relay(client, to, false)
            });
        }
    });
    (port, answered)
}

fn relay(client: TcpStream, to: u16, lose: bool) -> Option<()> {
    let server = TcpStream::connect(("127.0.0.1", to)).ok()?;
    let (mut from, mut into) = (client.try_clone().ok()?, server.try_clone().ok()?);
    thread::spawn(move || {
        // An error is the end of the connection.
        let _ = std::io::copy(&mut from, &mut into);
        let _ = into.shutdown(std::net::Shutdown::Write);
    });
    let (mut from, mut into) = (server, client);
    if lose {
        // The server has done what was asked; nobody hears of it.
        let _ = from.read(&mut [0; 1]);
        return into.shutdown(std::net::Shutdown::Both).ok();
    }
    std::io::copy(&mut from, &mut into).ok().map(drop)
}
