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
    server::graceful::GracefulShutdown,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use warp::http::{HeaderValue, Request, header};

use crate::{frame::Frame, life::Life};

/// Time for the head of a request to arrive, and for which a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_mins(1);
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

/// Accepts connections until it is told to stop, then closes the listener.
pub async fn accept(
    listener: TcpListener,
    frame: Arc<Frame>,
    life: Life,
    limits: Limits,
    stop: impl Future<Output = ()>,
) -> Open {
    let open = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(limits.connections));
    let serve = |stream, permit| serve(stream, permit, Arc::clone(&frame), life.clone(), limits.max_age, &open);
    let mut stop = pin!(stop);
    loop {
        let next = async {
            // Never closed, so the permit is always had.
            let permit = Arc::clone(&room).acquire_owned().await.ok();
            (listener.accept().await, permit)
        };
        tokio::select! {
            biased;
            () = &mut stop => break,
            (accepted, permit) = next => match accepted {
                Ok((stream, _)) => serve(stream, permit),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    // The kernel has completed these connections already: their clients would see a reset.
    while let Some(Ok((stream, _))) = listener.accept().now_or_never() {
        serve(stream, None);
    }
    drop(listener);
    Open(open)
}

/// Serves one connection in a task of its own.
fn serve(
    stream: TcpStream,
    permit: Option<OwnedSemaphorePermit>,
    frame: Arc<Frame>,
    life: Life,
    max_age: Duration,
    open: &GracefulShutdown,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    let born = Instant::now();
    let answer = service_fn(move |request: Request<Incoming>| {
        let (frame, life) = (Arc::clone(&frame), life.clone());
        async move {
            let mut response = frame.answer(request).await;
            if born.elapsed() >= max_age || life.is_stopping() {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), answer);
    let connection = open.watch(connection);
    tokio::spawn(async move {
        let _permit = permit;
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended early");
        }
    });
}
