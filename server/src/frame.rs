//! What is the same for every request: the limit on its body, counting, timing, the headers of its answer, its log line.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anneal_api::names::REVISION_HEADER;
use bytes::Bytes;
use hyper::{body::Body, service::Service as _};
use hyper_util::service::TowerToHyperService;
use warp::{
    filters::BoxedFilter,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header},
    reply::{Reply as _, Response},
};

use crate::{
    answer::Problem,
    answers::Said,
    body::{BoxError, Capped, linger},
    life::Life,
    metrics::Metrics,
    routes::{self, Context},
    token::Tokens,
    traces::{self, Followed, Stages, Traces},
    watched::Watched,
};

const PROCESS_TIME: HeaderName = HeaderName::from_static("x-process-time");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REVISION: HeaderName = HeaderName::from_static(REVISION_HEADER);
const ANYBODY: HeaderValue = HeaderValue::from_static("*");
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, OPTIONS");
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "x-process-time, x-request-id, x-prediction-id, x-anneal-revision, x-anneal-checkpoint, x-anneal-training-run, x-anneal-dataset",
);
/// Longest request id that is taken over from a client, and longest path that is logged.
const MAX_ID: usize = 64;
const MAX_LOGGED_PATH: usize = 200;

/// Answers requests, whatever they ask.
#[derive(Debug)]
pub struct Frame {
    routes: BoxedFilter<(Response,)>,
    metrics: Metrics,
    life: Life,
    revision: Option<HeaderValue>,
    max_upload_bytes: u64,
    tokens: Option<Arc<Watched<Tokens>>>,
    traces: Option<Traces>,
    ids: Ids,
}

impl Frame {
    /// A frame around all routes. Every answer names the revision, if there is one. With tokens, whoever has none gets to
    /// probes and metrics only.
    pub fn new(context: Context, revision: Option<HeaderValue>, tokens: Option<Arc<Watched<Tokens>>>) -> Self {
        Self {
            metrics: context.metrics.clone(),
            life: context.life.clone(),
            max_upload_bytes: context.max_upload_bytes,
            routes: routes::all(context),
            revision,
            tokens,
            traces: None,
            ids: Ids::start(),
        }
    }

    /// The same with a span for each request.
    #[must_use]
    pub fn traced(self, traces: Option<Traces>) -> Self {
        Self { traces, ..self }
    }

    /// The answer to a request.
    pub async fn answer<B>(&self, request: Request<B>) -> Response
    where
        B: Body<Data = Bytes> + Send + Sync + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let begun = Instant::now();
        let _active = self.metrics.begin();
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let given = taken_over(request.headers());
        let route = routes::known_path(&path).unwrap_or("other");
        let followed = traces::follow(self.traces.as_ref(), request.headers(), &method, route);
        let id = given.clone().unwrap_or_else(|| self.ids.next());
        let mut exchange = Exchange { method, path, id, followed, begun, answered: false };

        let mut response =
            if is_preflight(&request) { preflight(request.headers()) } else { self.route(request).await };
        let took = begun.elapsed();
        self.metrics.answered(&exchange.method, &exchange.path, response.status(), took);
        if let Some(given) = given.filter(|_| routes::predicts(&exchange.method, route)) {
            self.remember(&given, &response);
        }
        self.mark(response.headers_mut(), took, exchange.id.clone());
        exchange.followed.end(response.status(), response.extensions().get::<Stages>());
        exchange.end(response.status());
        response
    }

    async fn route<B>(&self, request: Request<B>) -> Response
    where
        B: Body<Data = Bytes> + Send + Sync + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let path = request.uri().path().to_owned();
        let refusal = |problem: &Problem| routes::refusal(&path, problem);
        if request.body().size_hint().lower() > self.max_upload_bytes {
            // A client that asked first has sent nothing yet.
            if !request.headers().contains_key(header::EXPECT) {
                linger(request.into_body(), self.max_upload_bytes).await;
            }
            return refusal(&Problem::too_large(self.max_upload_bytes));
        }
        if !self.admits(&request) {
            linger(request.into_body(), self.max_upload_bytes).await;
            return refusal(&Problem::unauthorized());
        }
        // Probes and scrapes come to the pod as long as there is one.
        if request.method() == Method::POST {
            self.life.asked();
        }
        let (parts, body) = request.into_parts();
        let (body, overflow) = Capped::new(body, self.max_upload_bytes);
        let service = TowerToHyperService::new(warp::service(self.routes.clone()));
        let Ok(response) = service.call(Request::from_parts(parts, body)).await;
        if overflow.happened() { refusal(&Problem::too_large(self.max_upload_bytes)) } else { response }
    }

    /// Remembers what a prediction said, for a comparison with another revision. That there was no time or no room for a
    /// request says nothing about the model.
    fn remember(&self, id: &HeaderValue, response: &Response) {
        let is_answer = !matches!(response.status(), StatusCode::REQUEST_TIMEOUT | StatusCode::SERVICE_UNAVAILABLE);
        if let Some(serving) = self.life.serving().filter(|_| is_answer) {
            serving.answers.add(id.as_bytes(), response.extensions().get::<Said>().copied());
        }
    }

    fn admits<B>(&self, request: &Request<B>) -> bool {
        let Some(tokens) = &self.tokens else { return true };
        routes::is_probe(request.uri().path()) || tokens.current().admit(request.headers())
    }

    fn mark(&self, headers: &mut HeaderMap, took: Duration, id: HeaderValue) {
        if let Ok(seconds) = HeaderValue::from_str(&format!("{:.6}", took.as_secs_f64())) {
            headers.insert(PROCESS_TIME, seconds);
        }
        if let Some(revision) = &self.revision {
            headers.insert(REVISION, revision.clone());
        }
        if let Some(serving) = self.life.serving() {
            headers.extend(serving.lineage.iter().cloned());
        }
        headers.insert(REQUEST_ID, id);
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, ANYBODY);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    }
}

/// A browser asks whether a page of another origin may send the request that follows.
fn is_preflight<B>(request: &Request<B>) -> bool {
    request.method() == Method::OPTIONS && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

fn preflight(asked: &HeaderMap) -> Response {
    let mut response = StatusCode::OK.into_response();
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    let wanted = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned().unwrap_or(ANYBODY);
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted);
    response
}

/// The id that the client or a proxy gave the request, if it is fit for a log.
fn taken_over(headers: &HeaderMap) -> Option<HeaderValue> {
    let id = headers.get(REQUEST_ID)?;
    let fit = id.len() <= MAX_ID && !id.is_empty() && id.as_bytes().iter().all(u8::is_ascii_graphic);
    fit.then(|| id.clone())
}

/// A request on its way to its log line. A client that goes away drops it without an answer, which is logged too.
struct Exchange {
    method: Method,
    path: String,
    id: HeaderValue,
    followed: Followed,
    begun: Instant,
    answered: bool,
}

impl Exchange {
    fn end(mut self, status: StatusCode) {
        self.answered = true;
        self.log(Some(status), "request");
    }

    /// Probes and scrapes would drown everything else, so they are logged for debugging only.
    fn log(&self, status: Option<StatusCode>, message: &str) {
        let Self { method, id, .. } = self;
        let path: String = self.path.chars().take(MAX_LOGGED_PATH).collect();
        let status = status.map(|status| status.as_u16());
        let microseconds = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let request_id = id.to_str().unwrap_or_default();
        let trace_id = self.followed.trace_id();
        if routes::is_probe(&path) {
            tracing::debug!(%method, path, status, microseconds, request_id, trace_id, message);
        } else {
            tracing::info!(%method, path, status, microseconds, request_id, trace_id, message);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.answered {
            self.log(None, "the client went away before its answer");
        }
    }
}

/// Request ids that differ between requests and, by the time of the start, between pods.
#[derive(Debug)]
struct Ids {
    start: u64,
    count: AtomicU64,
}

impl Ids {
    fn start() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { start: now.as_secs() ^ u64::from(now.subsec_nanos()) << 32, count: AtomicU64::new(0) }
    }

    fn next(&self) -> HeaderValue {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        HeaderValue::from_str(&format!("{:016x}-{count:x}", self.start)).unwrap_or(HeaderValue::from_static("unknown"))
    }
}
