//! The shapes of an answer: JSON, or an error as `{"detail": …}`.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use warp::{
    http::{HeaderMap, HeaderValue, StatusCode, header},
    reply::{Reply, Response},
};

use crate::life::Life;

/// An error answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// Its HTTP status.
    pub status: StatusCode,
    /// What happened and what to do: a sentence, or the list of a validation error.
    pub detail: Value,
    /// Seconds after which the same request can succeed.
    pub retry_after: Option<u64>,
}

impl Problem {
    /// An error that the same request meets again.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: Value::String(detail.into()), retry_after: None }
    }

    /// The server cannot answer now, but may within a second.
    pub fn busy(detail: impl Into<String>) -> Self {
        Self::busy_for(detail, Duration::ZERO)
    }

    /// The server cannot answer now, but may after this time.
    pub fn busy_for(detail: impl Into<String>, wait: Duration) -> Self {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Self { retry_after: Some(seconds.max(1)), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, detail) }
    }

    /// The request has no token that opens the server.
    pub fn unauthorized() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "A token is needed; send one of the server's tokens in the header `Authorization: Bearer TOKEN`",
        )
    }

    /// The form has no field `file`. The shape is `FastAPI`'s, which clients of the reference parse.
    pub fn missing_file() -> Self {
        let detail = json!([{"type": "missing", "loc": ["body", "file"], "msg": "Field required", "input": null}]);
        Self { status: StatusCode::UNPROCESSABLE_ENTITY, detail, retry_after: None }
    }

    /// The body is longer than the server takes.
    pub fn too_large(limit: u64) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!(
                "The body is larger than {limit} bytes; send a smaller image, or start the server with a larger --max-upload-bytes"
            ),
        )
    }

    /// The answer on the wire.
    pub fn response(&self) -> Response {
        let mut response = json_response(self.status, &json!({ "detail": self.detail }));
        self.say_how(response.headers_mut());
        response
    }

    /// Says when or with what to ask again, if that is of use.
    pub fn say_how(&self, headers: &mut HeaderMap) {
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
    }
}

/// What is said instead of anything that needs the model.
pub fn not_loaded(life: &Life) -> Problem {
    Problem::busy(format!("Model not loaded: {}", life.unready().unwrap_or_default()))
}

/// A JSON answer.
pub fn json_response<T: Serialize>(status: StatusCode, value: &T) -> Response {
    warp::reply::with_status(warp::reply::json(value), status).into_response()
}

/// An answer of another content type.
pub fn text_response(content_type: &'static str, text: String) -> Response {
    warp::reply::with_header(text, header::CONTENT_TYPE, content_type).into_response()
}

/// The time as Python's `datetime.isoformat()` writes it, in UTC.
pub fn timestamp() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6f").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_has_microseconds_and_no_zone_as_pythons_has() {
        let text = timestamp();
        assert_eq!(text.len(), "2026-01-31T12:00:00.123456".len(), "{text}");
        assert!(text.parse::<jiff::civil::DateTime>().is_ok(), "{text}");
    }

    #[test]
    fn only_a_busy_server_says_when_to_ask_again() {
        assert_eq!(Problem::busy("full").response().headers()[header::RETRY_AFTER], "1");
        let later = Problem::busy_for("full", Duration::from_millis(2100)).response();
        assert_eq!(later.headers()[header::RETRY_AFTER], "3");
        let refused = Problem::new(StatusCode::BAD_REQUEST, "no").response();
        assert!(!refused.headers().contains_key(header::RETRY_AFTER));
    }
}
