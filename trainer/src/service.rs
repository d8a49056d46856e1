//! What runs beside training: SIGTERM is heard, and `/progress` and `/metrics` are answered.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
};
use tracing::{info, warn};
use warp::Filter;

use crate::progress::{self, Shared};

/// Runs on a thread of its own until it is dropped.
pub struct Service {
    runtime: Runtime,
    stop: Arc<AtomicBool>,
}

impl Service {
    /// Begins to listen for SIGTERM and SIGINT.
    ///
    /// # Errors
    /// When the thread or the signal handlers cannot be set up.
    pub fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_io().enable_time().build()?;
        let stop = Arc::new(AtomicBool::new(false));
        let guard = runtime.enter();
        for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
            let mut signals = signal(kind)?;
            let stop = stop.clone();
            runtime.spawn(async move {
                while signals.recv().await.is_some() {
                    stop.store(true, Ordering::Relaxed);
                }
            });
        }
        drop(guard);
        Ok(Self { runtime, stop })
    }

    /// Set as soon as the process was asked to stop.
    pub fn stop(&self) -> &AtomicBool {
        &self.stop
    }

    /// Answers `/progress` and `/metrics`. Training goes on where the address cannot be had.
    pub fn answer(&self, address: SocketAddr, progress: Shared) {
        match self.runtime.block_on(TcpListener::bind(address)) {
            Ok(listener) => {
                let address = listener.local_addr().unwrap_or(address);
                info!(%address, "progress is answered");
                self.runtime.spawn(warp::serve(routes(progress)).incoming(listener).run());
            }
            Err(error) => warn!("progress is not answered: {address} cannot be listened on: {error}"),
        }
    }
}

fn routes(progress: Shared) -> impl Filter<Extract = (impl warp::Reply,), Error = warp::Rejection> + Clone {
    let shared = warp::any().map(move || progress::snapshot(&progress));
    let json = warp::path!("progress").and(shared.clone()).map(|progress| warp::reply::json(&progress));
    let text = warp::path!("metrics").and(shared).map(|progress| {
        warp::reply::with_header(progress::metrics(&progress), "content-type", "text/plain; version=0.0.4")
    });
    warp::get().and(json.or(text))
}
