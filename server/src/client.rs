//! The HTTP client of `smoke`, `predict`, `track` and `load`: bounded in time and in what it reads.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use anneal_api::names::REVISION_HEADER;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as Pool, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use serde::Deserialize;
use warp::http::{HeaderValue, Request, StatusCode, Uri, header};

use crate::{options::Access, tls};

/// Longest answer that is read.
const MAX_ANSWER: usize = 1024 * 1024;
/// Pause before a refused connection is tried again.
const PAUSE: Duration = Duration::from_millis(200);
/// Separates the parts of the form. Long and odd enough not to occur in an image.
const BOUNDARY: &str = "anneal-7c1f0e5b9a3d4c62-boundary";

/// A client with one time limit for all its requests.
#[derive(Clone, Debug)]
pub struct Client {
    pool: Pool<HttpsConnector<HttpConnector>, Full<Bytes>>,
    tls: rustls::ClientConfig,
    authorization: Option<HeaderValue>,
    timeout: Duration,
}

/// What a server answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// The revision that it names.
    pub revision: Option<String>,
    /// Its body.
    pub body: Bytes,
    /// Time from sending the request to the last byte of the answer.
    pub took: Duration,
}

/// The fields of a prediction that every server of the reference's kind gives.
#[derive(Clone, Debug, Deserialize)]
pub struct Predicted {
    /// The most probable class.
    pub prediction: String,
    /// Its probability.
    pub confidence: f64,
    /// Probability of every class.
    pub probabilities: BTreeMap<String, f64>,
}

/// There is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The address is not one.
    #[error("{0:?} is not an address of a server; write http://HOST:PORT/PATH or https://HOST/PATH")]
    Address(String),
    /// Nobody listens at the address.
    #[error("{url} gave no answer: the connection was refused, nobody listens there")]
    Refused {
        /// The address.
        url: String,
    },
    /// The server cannot be reached, or it hung up.
    #[error("{url} gave no answer: {why}")]
    NoAnswer {
        /// The address.
        url: String,
        /// What went wrong.
        why: String,
    },
    /// The answer took too long.
    #[error("{url} gave no answer within {} ms", limit.as_millis())]
    TooLate {
        /// The address.
        url: String,
        /// The time it had.
        limit: Duration,
    },
}

impl Answer {
    /// The error that the server states, or the start of its body.
    pub fn detail(&self) -> String {
        let json = serde_json::from_slice::<serde_json::Value>(&self.body).ok();
        let detail = json.and_then(|json| match json.get("detail").or_else(|| json.get("reason")) {
            Some(serde_json::Value::String(text)) => Some(text.clone()),
            other => other.map(ToString::to_string),
        });
        let text = detail.unwrap_or_else(|| String::from_utf8_lossy(&self.body).into_owned());
        anneal_api::termination::cut(text.trim(), 200)
    }

    /// The prediction.
    ///
    /// # Errors
    /// A sentence about the answer that came instead.
    pub fn predicted(&self) -> Result<Predicted, String> {
        if self.status != StatusCode::OK {
            return Err(format!("the answer is {} ({})", self.status, self.detail()));
        }
        serde_json::from_slice(&self.body)
            .map_err(|error| format!("the answer is not a prediction with finite numbers: {error}"))
    }
}

impl Client {
    /// A client whose requests take at most this long.
    ///
    /// # Errors
    /// A sentence that names the file of `access` that cannot be read or used.
    pub fn new(timeout: Duration, access: &Access) -> Result<Self, String> {
        let tls = tls::client(access.ca.as_deref())?;
        let authorization = access.token_file.as_deref().map(authorization).transpose()?;
        let pool = Pool::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector(&tls, timeout));
        Ok(Self { pool, tls, authorization, timeout })
    }

    /// The same with a connection of its own for each request.
    #[must_use]
    pub fn without_reuse(&self) -> Self {
        let connector = connector(&self.tls, self.timeout);
        let pool = Pool::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Self { pool, ..self.clone() }
    }

    /// The same with a shorter limit. Connections are shared.
    #[must_use]
    pub fn within(&self, timeout: Duration) -> Self {
        Self { timeout: self.timeout.min(timeout), ..self.clone() }
    }

    /// Asks for an address.
    ///
    /// # Errors
    /// [`AskError`] when there is no answer.
    pub async fn get(&self, url: &str) -> Result<Answer, AskError> {
        let request = Request::get(uri(url)?).body(Full::default());
        self.ask(url, request).await
    }

    /// Sends an image file as the form's field `file`.
    ///
    /// # Errors
    /// [`AskError`] when there is no answer.
    pub async fn post_image(&self, url: &str, image: &Bytes) -> Result<Answer, AskError> {
        let request = Request::post(uri(url)?)
            .header(header::CONTENT_TYPE, format!("multipart/form-data; boundary={BOUNDARY}"))
            .body(Full::new(form(image)));
        self.ask(url, request).await
    }

    /// Sends JSON.
    ///
    /// # Errors
    /// [`AskError`] when there is no answer.
    pub async fn post_json(&self, url: &str, json: &Bytes) -> Result<Answer, AskError> {
        let request =
            Request::post(uri(url)?).header(header::CONTENT_TYPE, "application/json").body(Full::new(json.clone()));
        self.ask(url, request).await
    }

    /// Sends an image file until somebody listens, as long as an answer may take: a node learns of a Service's first
    /// endpoints a moment after the API server does, and refuses connections until then.
    ///
    /// # Errors
    /// [`AskError`] when there is no answer.
    pub async fn post_image_when_up(&self, url: &str, image: &Bytes) -> Result<Answer, AskError> {
        let begun = Instant::now();
        loop {
            match self.post_image(url, image).await {
                Err(AskError::Refused { .. }) if begun.elapsed() + PAUSE < self.timeout => {
                    tokio::time::sleep(PAUSE).await;
                }
                result => return result,
            }
        }
    }

    async fn ask(
        &self,
        url: &str,
        request: Result<Request<Full<Bytes>>, warp::http::Error>,
    ) -> Result<Answer, AskError> {
        let no_answer = |why: String| AskError::NoAnswer { url: url.to_owned(), why };
        let mut request = request.map_err(|error| no_answer(error.to_string()))?;
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
        }
        let begun = Instant::now();
        let exchange = async {
            let response = self.pool.request(request).await.map_err(|error| {
                if refused(&error) { AskError::Refused { url: url.to_owned() } } else { no_answer(with_causes(&error)) }
            })?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| no_answer(error.to_string()))?;
            let revision = head.headers.get(REVISION_HEADER).and_then(|value| value.to_str().ok()).map(str::to_owned);
            Ok(Answer { status: head.status, revision, body: body.to_bytes(), took: begun.elapsed() })
        };
        tokio::time::timeout(self.timeout, exchange)
            .await
            .unwrap_or_else(|_| Err(AskError::TooLate { url: url.to_owned(), limit: self.timeout }))
    }
}

fn connector(tls: &rustls::ClientConfig, timeout: Duration) -> HttpsConnector<HttpConnector> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(timeout));
    connector.enforce_http(false);
    HttpsConnectorBuilder::new().with_tls_config(tls.clone()).https_or_http().enable_http1().wrap_connector(connector)
}

/// The header for the token in the file's first line.
fn authorization(file: &Path) -> Result<HeaderValue, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{} cannot be read: {error}", file.display()))?;
    let token = text.lines().next().unwrap_or_default().trim();
    let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
        .map_err(|_| format!("the first line of {} is no token", file.display()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn uri(url: &str) -> Result<Uri, AskError> {
    url.parse::<Uri>()
        .ok()
        .filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some())
        .ok_or_else(|| AskError::Address(url.to_owned()))
}

/// The form with the image as its only field.
fn form(image: &[u8]) -> Bytes {
    let content_type = image::guess_format(image).map_or("application/octet-stream", |format| format.to_mime_type());
    let head = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"image\"\r\nContent-Type: {content_type}\r\n\r\n"
    );
    [head.as_bytes(), image, format!("\r\n--{BOUNDARY}--\r\n").as_bytes()].concat().into()
}

/// Whether the connection was refused, which says that the request was not sent.
fn refused(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<std::io::Error>())
        .any(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// The error and what caused it: the client's own words say only that sending failed.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_scheme_and_a_host() {
        for right in ["http://cats.demo.svc/predict", "https://cats.demo.svc"] {
            assert!(uri(right).is_ok(), "{right}");
        }
        for wrong in ["cats.demo.svc/predict", "ftp://cats.demo.svc", "http://", ""] {
            assert_eq!(uri(wrong), Err(AskError::Address(wrong.to_owned())));
        }
    }

    #[tokio::test]
    async fn a_refused_connection_is_told_from_an_answer_that_broke_off() {
        let refused = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/", refused.local_addr().expect("its address"));
        drop(refused);
        let client = Client::new(Duration::from_secs(5), &Access::default()).expect("a client");
        assert_eq!(client.get(&url).await.err(), Some(AskError::Refused { url }));

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/", listener.local_addr().expect("its address"));
        let hangs_up = tokio::spawn(async move { drop(listener.accept().await) });
        assert!(matches!(client.get(&url).await, Err(AskError::NoAnswer { .. })));
        hangs_up.await.expect("it hung up");
    }

    #[test]
    fn the_form_states_the_content_type_that_the_bytes_have() {
        let png = crate::picture::png().expect("a picture");
        assert!(String::from_utf8_lossy(&form(&png)).contains("Content-Type: image/png\r\n"));
        assert!(String::from_utf8_lossy(&form(b"text")).contains("Content-Type: application/octet-stream\r\n"));
    }
}
