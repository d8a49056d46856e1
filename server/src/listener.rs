//! Accepts connections and ends them well.
//!
//! A Service that changes its selector moves only new connections: a client that keeps its connection alive would stay
//! with the old revision for ever. So the first answer after a connection's time says `Connection: close`. An idle
//! connection is left to the client, for closing it could cross a request on its way.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt as _;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::coop::unconstrained,
};
use tokio_rustls::TlsAcceptor;
use warp::http::{HeaderValue, Request, header};

use crate::{
    door::{Door, Guest},
    frame::Frame,
    life::Life,
    tls::ServerTls,
};

/// Most bytes of a connection that are read ahead, which is also the longest head of a request. Each connection that
/// waits for an answer keeps such a buffer.
const READ_BUFFER: usize = 64 << 10;
/// Time in which a new connection is heard although the server ends or another one waits for room.
const FIRST_WORDS: Duration = Duration::from_millis(500);
/// Time for the head of a request to arrive, and for which a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_mins(1);
/// Time that a client has to agree on a key.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept, which mostly means that there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Bounds on connections.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many may be open.
    pub connections: usize,
    /// Age from which the next answer is the last.
    pub max_age: Duration,
}

/// Binds the address; without one every address of the host, IPv4 and IPv6 where there is IPv6.
///
/// # Errors
/// When the port is taken or may not be used.
pub async fn bind(address: Option<SocketAddr>, port: u16) -> io::Result<TcpListener> {
    let v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
    let v6 = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
    match address {
        Some(address) => TcpListener::bind(address).await,
        None => match TcpListener::bind(v6).await {
            Ok(listener) => Ok(listener),
            Err(_) => TcpListener::bind(v4).await,
        },
    }
}

/// Connections that are still open after the listener is gone.
#[derive(Debug)]
pub struct Open(GracefulShutdown);

impl Open {
    /// Closes idle connections and lets the others finish what is under way. Tells whether all did in this time.
    pub async fn drain(self, deadline: Duration) -> bool {
        tokio::time::timeout(deadline, self.0.shutdown()).await.is_ok()
    }
}

/// What a connection is served with.
#[derive(Clone, Debug)]
pub struct Serve {
    /// What answers.
    pub frame: Arc<Frame>,
    /// The server's life.
    pub life: Life,
    /// Bounds on connections.
    pub limits: Limits,
    /// TLS, where the server speaks it.
    pub tls: Option<Arc<ServerTls>>,
}

/// Accepts connections until it is told to stop, then closes the listener.
pub async fn accept(listener: TcpListener, with: Serve, stop: impl Future<Output = ()>) -> Open {
    let open = GracefulShutdown::new();
    let door = Door::new(with.limits.connections, FIRST_WORDS);
    let serve = |stream, guest| with.connection(stream, guest, open.watcher());
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        tokio::select! {
            biased;
            () = &mut stop => {
                serve(stream, door.squeeze());
                break;
            }
            guest = door.enter() => serve(stream, guest),
        }
    }
    // The kernel has completed these connections already: their clients would see a reset.
    // Not bounded by the runtime's fairness, which would say after some that there are none.
    while let Some(Ok((stream, _))) = unconstrained(listener.accept()).now_or_never() {
        serve(stream, door.squeeze());
    }
    drop(listener);
    Open(open)
}

impl Serve {
    /// Serves one connection in a task of its own.
    fn connection(&self, stream: TcpStream, guest: Guest, watcher: Watcher) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        let with = self.clone();
        tokio::spawn(async move {
            // What has arrived is read before the connection may go.
            tokio::select! {
                biased;
                () = with.converse(stream, &guest, watcher) => {}
                () = guest.dismissed() => tracing::debug!("a connection without a request made room for another"),
            }
        });
    }

    /// Agrees on a key where TLS is spoken, and answers the requests of the connection until it ends.
    async fn converse(&self, stream: TcpStream, guest: &Guest, watcher: Watcher) {
        let Some(tls) = &self.tls else { return self.exchange(stream, guest, watcher).await };
        let handshake = TlsAcceptor::from(tls.current()).accept(stream);
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => self.exchange(stream, guest, watcher).await,
            Ok(Err(error)) => tracing::debug!(%error, "a client and this server found no common TLS"),
            Err(_) => tracing::debug!("a client did not finish its TLS handshake"),
        }
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        guest: &Guest,
        watcher: Watcher,
    ) {
        let born = Instant::now();
        let heard = Notify::new();
        let first = &heard;
        let answer = service_fn(move |request: Request<Incoming>| async move {
            first.notify_one();
            guest.busy(true);
            let mut response = self.frame.answer(request).await;
            guest.busy(false);
            if born.elapsed() >= self.limits.max_age || self.life.is_stopping() || guest.is_awaited() {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        });
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(READ_BUFFER)
            .serve_connection(TokioIo::new(stream), answer);
        // A connection that is told to end before its first request is closed without being read. One that came with the end of
        // the server is heard first.
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = heard.notified() => watcher.watch(connection).await,
            () = tokio::time::sleep(FIRST_WORDS) => watcher.watch(connection).await,
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended early");
        }
    }
}
