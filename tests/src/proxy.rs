//! A proxy between one operator and the API server. It numbers the operator's writes, and breaks what a test asks it to
//! break: single requests, watches, or the whole line.
//!
//! It speaks TLS to both sides and has no rights of its own: the operator's token passes through.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use anyhow::{Context, Result};
use base64::Engine as _;
use bytes::Bytes;
use futures::{StreamExt as _, future, stream};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use kube::{Client, Config, config::AuthInfo};
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

use crate::processes;

/// How long nobody answers where nobody answers: longer than any caller should wait.
const NEVER: Duration = Duration::from_mins(10);

/// What becomes of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes through.
    Pass,
    /// The operator dies before the API server hears of it.
    KillBefore,
    /// The API server does it, and the operator dies before it hears so.
    KillAfter,
    /// The API server does not hear of it; the operator is told this status.
    Refuse(u16),
    /// The API server does it, and the connection breaks before the answer.
    LoseAnswer,
    /// The API server does not hear of it, and nobody answers.
    Hang,
    /// It goes through so much later, as behind a slow webhook.
    Delay(Duration),
}

/// The line between the operator and the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// It carries.
    Open,
    /// Connections break, and new ones are closed at once.
    Cut,
    /// Nothing arrives, and no connection breaks. Those that saw this stay dead when the line carries again, as when a
    /// machine went away without a word.
    Silent,
}

/// What happens to the watches that are open, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchFault {
    /// They say nothing any more, and do not end.
    Mute,
    /// Their connection breaks.
    Break,
    /// The API server says that it no longer knows their version.
    Expire,
}

/// A request of the operator.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Its number among the writes, from 1 on. Reads have none, and neither has what concerns Leases.
    pub write: Option<usize>,
    /// When it came.
    pub at: Timestamp,
    /// Its method.
    pub method: String,
    /// Its path, without the query.
    pub path: String,
    /// The phase that it writes, where it writes a status with one.
    pub phase: Option<String>,
}

impl Asked {
    /// Whether it asks for a watch or reads something.
    pub fn is_read(&self) -> bool {
        self.method == "GET"
    }

    /// Whether it concerns a Lease.
    pub fn is_lease(&self) -> bool {
        self.path.contains("/leases")
    }

    /// What is written, so that a second try of it has the same name.
    pub fn what(&self) -> String {
        let phase = self.phase.as_ref().map(|phase| format!(" {phase}")).unwrap_or_default();
        format!("{} {}{phase}", self.method, self.path)
    }
}

type Plan = Arc<dyn Fn(&Asked) -> Fate + Send + Sync>;

struct State {
    upstream: Client,
    plan: RwLock<Plan>,
    line: watch::Sender<Line>,
    /// How often watches were broken, how they were the last time, and by how much their events are late.
    watches: watch::Sender<(u64, Option<WatchFault>)>,
    lag: watch::Sender<Duration>,
    asked: Mutex<Vec<Asked>>,
    process: Mutex<Option<u32>>,
}

/// A proxy for one operator.
pub struct Proxy {
    /// What the operator is to connect with: its address and certificate, and the token that it is given.
    pub kubeconfig: String,
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy to the API server that KUBECONFIG names.
    ///
    /// # Errors
    /// When there is none, or no port is free.
    pub async fn start(token: &str) -> Result<Self> {
        let mut config = Config::infer().await.context("KUBECONFIG names no cluster")?;
        config.auth_info = AuthInfo::default();
        config.default_retry = false;
        let upstream = Client::try_from(config).context("no client can be made")?;
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no port is free")?;
        let (acceptor, certificate) = identity()?;
        let kubeconfig = kubeconfig(&format!("https://{}", listener.local_addr()?), &certificate, token);
        let state = Arc::new(State {
            upstream,
            plan: RwLock::new(Arc::new(|_| Fate::Pass)),
            line: watch::Sender::new(Line::Open),
            watches: watch::Sender::new((0, None)),
            lag: watch::Sender::new(Duration::ZERO),
            asked: Mutex::default(),
            process: Mutex::default(),
        });
        let task = tokio::spawn(accept(listener, acceptor, state.clone()));
        Ok(Self { kubeconfig, state, task })
    }

    /// Decides from now on what becomes of each request.
    pub fn decide(&self, plan: impl Fn(&Asked) -> Fate + Send + Sync + 'static) {
        *self.state.plan.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(plan);
    }

    /// Lets everything through from now on.
    pub fn pass(&self) {
        self.decide(|_| Fate::Pass);
    }

    /// Cuts or silences the line, or opens it again.
    pub fn line(&self, line: Line) {
        self.state.line.send_replace(line);
    }

    /// Breaks the watches that are open.
    pub fn break_watches(&self, how: WatchFault) {
        self.state.watches.send_modify(|(number, fault)| {
            *number += 1;
            *fault = Some(how);
        });
    }

    /// Makes what watches tell late by this much.
    pub fn lag(&self, lag: Duration) {
        self.state.lag.send_replace(lag);
    }

    /// Tells the proxy whom to kill.
    pub fn serves(&self, process: Option<u32>) {
        *self.state.process.lock().unwrap_or_else(PoisonError::into_inner) = process;
    }

    /// Every request since `since`.
    pub fn asked(&self, since: Timestamp) -> Vec<Asked> {
        self.state.asked().iter().filter(|asked| asked.at >= since).cloned().collect()
    }

    /// The writes since `since`.
    pub fn writes(&self, since: Timestamp) -> Vec<Asked> {
        self.asked(since).into_iter().filter(|asked| asked.write.is_some()).collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl State {
    fn asked(&self) -> std::sync::MutexGuard<'_, Vec<Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a request, and says what becomes of it.
    fn fate(&self, request: &Request<()>, body: &[u8]) -> Fate {
        let path = request.uri().path().to_owned();
        let counts = request.method() != Method::GET && !path.contains("/leases");
        let phase = counts.then(|| phase(body)).flatten();
        let mut all = self.asked();
        let write = counts.then(|| all.iter().filter(|asked| asked.write.is_some()).count() + 1);
        let asked = Asked { write, at: Timestamp::now(), method: request.method().to_string(), path, phase };
        all.push(asked.clone());
        drop(all);
        let plan = self.plan.read().unwrap_or_else(PoisonError::into_inner).clone();
        plan(&asked)
    }

    /// Kills the operator with SIGKILL. When this returns it does nothing any more.
    async fn kill(&self) {
        let process = *self.process.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(process) = process
            && let Err(problem) = processes::kill(process, "KILL").await
        {
            eprintln!("the operator could not be killed: {problem:#}");
        }
    }
}

/// The phase in a status that is written.
fn phase(body: &[u8]) -> Option<String> {
    let object: Value = serde_json::from_slice(body).ok()?;
    object.pointer("/status/phase")?.as_str().map(str::to_owned)
}

/// A certificate for 127.0.0.1 that nobody else knows, as the server shows it and as a client trusts it.
fn identity() -> Result<(TlsAcceptor, String)> {
    let key = KeyPair::generate().context("no key")?;
    let certificate = CertificateParams::new(["127.0.0.1".to_owned()])?.self_signed(&key).context("no certificate")?;
    let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)?;
    Ok((TlsAcceptor::from(Arc::new(config)), certificate.pem()))
}

fn kubeconfig(server: &str, certificate: &str, token: &str) -> String {
    let certificate = base64::prelude::BASE64_STANDARD.encode(certificate);
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
        "clusters": [{"name": "proxy", "cluster": {"server": server, "certificate-authority-data": certificate}}],
        "users": [{"name": "operator", "user": {"token": token}}],
        "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "operator"}}]
    })
    .to_string()
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, state: Arc<State>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(serve(stream, acceptor.clone(), state.clone()))),
            Err(problem) => {
                eprintln!("the proxy takes no connection: {problem}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Serves one connection until it ends, or the line does.
async fn serve(stream: TcpStream, acceptor: TlsAcceptor, state: Arc<State>) {
    let mut line = state.line.subscribe();
    let now = *line.borrow_and_update();
    match now {
        Line::Open => {}
        Line::Cut => return,
        // Nobody says hello, and the connection stays.
        Line::Silent => {
            tokio::time::sleep(NEVER).await;
            return drop(stream);
        }
    }
    let talk = async {
        let stream = acceptor.accept(stream).await.ok()?;
        let service = service_fn(|request| answer(state.clone(), request));
        // Why a connection broke is the test's own doing.
        http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok()
    };
    let mut talk = std::pin::pin!(talk);
    let fell_silent = async {
        // An error means that the proxy is gone.
        line.wait_for(|line| *line != Line::Open).await.is_ok_and(|line| *line == Line::Silent)
    };
    let is_silent = tokio::select! {
        _ = &mut talk => false,
        is_silent = fell_silent => is_silent,
    };
    if is_silent {
        // The connection lives as long as `talk` does, which nobody asks any more.
        tokio::time::sleep(NEVER).await;
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

/// The connection is closed instead of an answer.
#[derive(Debug, thiserror::Error)]
#[error("the line broke")]
struct Broken;

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Answer, Broken> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Broken)?.to_bytes();
    let request = Request::from_parts(parts, ());
    match state.fate(&request, &body) {
        Fate::Pass => forward(&state, request, body).await,
        Fate::KillBefore => {
            state.kill().await;
            Err(Broken)
        }
        Fate::KillAfter => {
            let done = forward(&state, request, body).await;
            state.kill().await;
            done.and(Err(Broken))
        }
        Fate::Refuse(status) => Ok(refusal(status)),
        Fate::LoseAnswer => forward(&state, request, body).await.and(Err(Broken)),
        Fate::Hang => {
            tokio::time::sleep(NEVER).await;
            Err(Broken)
        }
        Fate::Delay(pause) => {
            tokio::time::sleep(pause).await;
            forward(&state, request, body).await
        }
    }
}

/// Asks the API server. What is watched is passed on as it comes, everything else as a whole.
async fn forward(state: &State, request: Request<()>, body: Bytes) -> Result<Answer, Broken> {
    let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
    let (mut parts, ()) = request.into_parts();
    parts.headers.remove(header::HOST);
    parts.headers.remove(header::CONTENT_LENGTH);
    let request = Request::from_parts(parts, kube::client::Body::from(body));
    let (mut parts, body) = state.upstream.send(request).await.map_err(|_| Broken)?.into_parts();
    parts.headers.remove(header::TRANSFER_ENCODING);
    parts.headers.remove(header::CONTENT_LENGTH);
    if is_watch && parts.status.is_success() {
        return Ok(Response::from_parts(parts, told(state, body)));
    }
    let body = body.collect().await.map_err(|_| Broken)?.to_bytes();
    Ok(Response::from_parts(parts, Full::new(body).map_err(|never: Infallible| match never {}).boxed_unsync()))
}

/// What a watch tells, for as long as it is left alone.
fn told(state: &State, body: kube::client::Body) -> UnsyncBoxBody<Bytes, std::io::Error> {
    let faults = state.watches.subscribe();
    let lag = state.lag.subscribe();
    let events = Box::pin(body.into_data_stream());
    let told = stream::unfold(Some((events, faults, lag)), |watch| async {
        let (mut events, mut faults, lag) = watch?;
        tokio::select! {
            event = events.next() => {
                let event = event?.ok()?;
                let late = *lag.borrow();
                tokio::time::sleep(late).await;
                Some((Ok(Frame::data(event)), Some((events, faults, lag))))
            }
            Ok(()) = faults.changed() => {
                let fault = faults.borrow().1;
                match fault {
                    Some(WatchFault::Break) => Some((Err(std::io::Error::other("the watch broke")), None)),
                    Some(WatchFault::Expire) => Some((Ok(Frame::data(expired())), None)),
                    _ => future::pending().await,
                }
            }
        }
    });
    StreamBody::new(told).boxed_unsync()
}

/// What the API server tells a watch whose version it no longer knows.
fn expired() -> Bytes {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Expired", "code": 410,
        "message": "too old resource version"
    });
    format!("{}\n", json!({"type": "ERROR", "object": status})).into()
}

/// The API server's way to refuse.
fn refusal(status: u16) -> Answer {
    let reason = match status {
        409 => "Conflict",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "InternalError",
    };
    let text = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason, "code": status,
        "message": "the test refuses this"
    });
    let body = Full::new(Bytes::from(text.to_string())).map_err(|never: Infallible| match never {}).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    if status == 429 {
        answer.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
    }
    answer
}
