//! `GET /metrics`, `/healthz` and `/readyz`.

use std::{future::Future, net::SocketAddr};

use tokio::sync::watch;
use warp::{Filter, http::StatusCode};

use crate::metrics::Metrics;

/// Serves until `shutdown`. Ready is what `ready` says: this replica leads or waits for the Lease.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(
    address: SocketAddr,
    metrics: Metrics,
    ready: watch::Receiver<bool>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let text = warp::path!("metrics").map(move || match metrics.text() {
        Ok(text) => warp::http::Response::builder()
            .header("content-type", "text/plain; version=0.0.4; charset=utf-8")
            .body(text),
        Err(problem) => {
            warp::http::Response::builder().status(StatusCode::INTERNAL_SERVER_ERROR).body(problem.to_string().into())
        }
    });
    let healthy = warp::path!("healthz").map(|| "ok\n".to_owned());
    let ready = warp::path!("readyz").map(move || {
        if *ready.borrow() {
            warp::reply::with_status("ok\n".to_owned(), StatusCode::OK)
        } else {
            warp::reply::with_status("starting\n".to_owned(), StatusCode::SERVICE_UNAVAILABLE)
        }
    });
    let listener = tokio::net::TcpListener::bind(address).await?;
    let routes = warp::get().and(text.or(healthy).or(ready));
    warp::serve(routes).incoming(listener).graceful(shutdown).run().await;
    Ok(())
}
