//! What probes ask: is the process alive, should it get traffic.

use serde_json::json;
use warp::{http::StatusCode, reply::Response};

use crate::{
    answer::{json_response, timestamp},
    life::Life,
};

/// The device that the model runs on.
pub(super) const DEVICE: &str = "cpu";

/// GET /livez: the process answers, whatever its model does. Restarting it would not load a model faster.
pub(super) fn live() -> Response {
    json_response(StatusCode::OK, &json!({"status": "alive"}))
}

/// GET /readyz: whether the server should get traffic, and why not.
pub(super) fn ready(life: &Life) -> Response {
    match life.unready() {
        None => json_response(StatusCode::OK, &json!({"status": "ready"})),
        Some(reason) => json_response(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "unready", "reason": reason})),
    }
}

/// GET /health: the reference's answer. Its probes look at the status code only, so an unhealthy server says 503.
pub(super) fn health(life: &Life) -> Response {
    let unready = life.unready();
    let (status, word) = match unready {
        None => (StatusCode::OK, "healthy"),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "unhealthy"),
    };
    let mut body = json!({
        "status": word,
        "model_loaded": life.serving().is_some(),
        "device": DEVICE,
        "timestamp": timestamp(),
    });
    if let Some(reason) = unready {
        body["reason"] = reason.into();
    }
    json_response(status, &body)
}
