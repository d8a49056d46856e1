//! GET /answers: digests of the newest answers.

use warp::{http::StatusCode, reply::Response};

use crate::{answer::json_response, life::Life};

/// None before there is a model that could answer.
pub(super) fn list(life: &Life) -> Response {
    let newest = life.serving().map(|serving| serving.answers.newest()).unwrap_or_default();
    json_response(StatusCode::OK, &newest)
}
