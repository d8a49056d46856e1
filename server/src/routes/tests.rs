//! Routes and frame together, on a made-up model: what no real one can be made to do on demand.

use std::sync::mpsc::channel;

use anneal_api::{Sha256, checkpoint::Preprocessing};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};
use tokio::sync::mpsc::unbounded_channel;
use warp::http::{HeaderMap, HeaderValue, Method, Request};

use super::*;
use crate::{
    engine::{Engine, fake::Fake},
    frame::Frame,
    life::Serving,
    model::Facts,
};

const CONTENT_TYPE: &str = "multipart/form-data; boundary=b";

fn context() -> Context {
    Context {
        life: Life::default(),
        metrics: Metrics::new().expect("distinct names"),
        uploads: Arc::new(Semaphore::new(64)),
        max_upload_bytes: 4096,
        request_timeout: Duration::from_mins(1),
    }
}

fn facts() -> Facts {
    Facts {
        name: "cats".to_owned(),
        model_type: "ImprovedCNN",
        parameters: 7,
        classes: vec!["cat".to_owned(), "dog".to_owned()],
        preprocessing: Preprocessing::imagenet(32),
        accuracy: Some(0.9),
        sha256: Sha256::from_bytes([1; 32]),
        run: None,
        dataset: None,
        workers: 1,
    }
}

async fn ready(context: &Context, model: Fake) {
    let engine = Engine::start(vec![model], 1, &unbounded_channel().0).await.expect("threads");
    context.life.ready(Serving { facts: facts(), engine });
}

fn frame(context: Context) -> Frame {
    Frame::new(context, Some(HeaderValue::from_static("r7")))
}

fn form(field: &str, content_type: &str, content: &str) -> Request<Full<Bytes>> {
    let body = format!(
        "--b\r\nContent-Disposition: form-data; name=\"{field}\"; filename=\"f\"\r\nContent-Type: {content_type}\r\n\r\n{content}\r\n--b--\r\n"
    );
    post("/predict", CONTENT_TYPE, body)
}

fn post(path: &str, content_type: &str, body: String) -> Request<Full<Bytes>> {
    let request = Request::post(path).header("content-type", content_type).header("content-length", body.len());
    request.body(Full::from(body)).expect("a request")
}

fn plain(method: &str, path: &str) -> Request<Full<Bytes>> {
    let method = Method::from_bytes(method.as_bytes()).expect("a method");
    Request::builder().method(method).uri(path).body(Full::default()).expect("a request")
}

async fn ask(frame: &Frame, request: Request<Full<Bytes>>) -> (u16, HeaderMap, Value) {
    let (head, body) = frame.answer(request).await.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    let json = serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into_owned().into());
    (head.status.as_u16(), head.headers, json)
}

#[tokio::test]
async fn before_the_model_is_loaded_only_liveness_is_well() {
    let frame = frame(context());
    for (path, status) in
        [("/", 200), ("/livez", 200), ("/healthz", 200), ("/readyz", 503), ("/health", 503), ("/model/info", 503)]
    {
        assert_eq!(ask(&frame, plain("GET", path)).await.0, status, "{path}");
    }
    let (status, headers, body) = ask(&frame, form("file", "image/png", "cat")).await;
    assert_eq!((status, &headers["retry-after"]), (503, &HeaderValue::from_static("1")));
    assert_eq!(body["detail"], "Model not loaded: the model is being loaded");
}

#[tokio::test]
async fn a_prediction_has_the_fields_of_the_reference() {
    let context = context();
    ready(&context, Fake(None)).await;
    let frame = frame(context.clone());
    let (status, _, body) = ask(&frame, form("file", "image/png", "cat")).await;
    assert_eq!((status, &body["prediction"]), (200, &json!("cat")));
    let fields: Vec<&String> = body.as_object().expect("an object").keys().collect();
    assert_eq!(fields, ["confidence", "prediction", "probabilities", "processing_time_ms", "timestamp"]);
    let text = context.metrics.text(0).expect("text");
    assert!(text.contains("predictions_total{predicted_class=\"cat\"} 1"), "{text}");
}

#[tokio::test]
async fn what_is_wrong_with_an_upload_decides_the_status() {
    let context = context();
    ready(&context, Fake(None)).await;
    let frame = frame(context);
    let missing = json!([{"type": "missing", "loc": ["body", "file"], "msg": "Field required", "input": null}]);
    let (status, _, body) = ask(&frame, form("image", "image/png", "cat")).await;
    assert_eq!((status, &body["detail"]), (422, &missing));
    let (status, _, body) = ask(&frame, plain("POST", "/predict")).await;
    assert_eq!((status, &body["detail"]), (422, &missing));
    assert_eq!(ask(&frame, post("/predict", "application/json", "{}".to_owned())).await.0, 422);
    assert_eq!(ask(&frame, form("file", "text/plain", "cat")).await.0, 400);
    assert_eq!(ask(&frame, post("/predict", CONTENT_TYPE, "--b\r\nnonsense".to_owned())).await.0, 400);
    assert_eq!(ask(&frame, form("file", "image/png", "no image")).await.0, 422);
    assert_eq!(ask(&frame, form("file", "image/png", &"x".repeat(5000))).await.0, 413);
}

#[tokio::test]
async fn a_model_that_gives_no_numbers_is_an_error_and_makes_the_server_unready() {
    let context = context();
    ready(&context, Fake(None)).await;
    let frame = frame(context);
    assert_eq!(ask(&frame, plain("GET", "/readyz")).await.0, 200);
    let (status, _, body) = ask(&frame, form("file", "image/png", "nan")).await;
    assert_eq!(status, 500);
    assert!(body["detail"].as_str().is_some_and(|detail| detail.contains("not finite")), "{body}");
    let (status, _, body) = ask(&frame, plain("GET", "/readyz")).await;
    assert_eq!(status, 503);
    assert!(body["reason"].as_str().is_some_and(|reason| reason.contains("not finite")), "{body}");
    assert_eq!(ask(&frame, plain("GET", "/livez")).await.0, 200);
}

#[tokio::test]
async fn a_full_server_says_so_at_once() {
    let context = context();
    let (go, wait) = channel();
    ready(&context, Fake(Some(wait))).await;
    let frame = frame(context.clone());
    let mut running = Box::pin(frame.answer(form("file", "image/png", "wait")));
    let mut waiting = Box::pin(frame.answer(form("file", "image/png", "cat")));
    let queued = || context.life.serving().map_or(0, |serving| serving.engine.queued());
    assert!(futures::poll!(&mut running).is_pending());
    while queued() > 0 {
        tokio::task::yield_now().await;
    }
    assert!(futures::poll!(&mut waiting).is_pending());
    let (status, headers, _) = ask(&frame, form("file", "image/png", "dog")).await;
    assert_eq!((status, &headers["retry-after"]), (503, &HeaderValue::from_static("1")));
    go.send(()).expect("the worker waits");
    assert_eq!((running.await.status(), waiting.await.status()), (StatusCode::OK, StatusCode::OK));
}

#[tokio::test]
async fn uploads_beyond_the_memory_for_them_are_refused() {
    let context = Context { uploads: Arc::new(Semaphore::new(0)), ..context() };
    ready(&context, Fake(None)).await;
    let (status, _, body) = ask(&frame(context), form("file", "image/png", "cat")).await;
    assert_eq!(status, 503);
    assert!(body["detail"].as_str().is_some_and(|detail| detail.contains("uploads")), "{body}");
}

#[tokio::test]
async fn a_request_that_goes_away_is_not_active_any_more() {
    let context = context();
    let (_go, wait) = channel();
    ready(&context, Fake(Some(wait))).await;
    let frame = frame(context.clone());
    let mut running = Box::pin(frame.answer(form("file", "image/png", "wait")));
    assert!(futures::poll!(&mut running).is_pending());
    assert!(context.metrics.text(0).expect("text").contains("active_requests 1"));
    drop(running);
    assert!(context.metrics.text(0).expect("text").contains("active_requests 0"));
}

#[tokio::test]
async fn every_answer_has_the_headers_and_what_no_route_takes_is_refused_as_json() {
    let context = context();
    ready(&context, Fake(None)).await;
    let frame = frame(context);
    let routes = ROUTES.map(|route| (route.method, route.path, if route.path == "/predict" { 422 } else { 200 }));
    let others =
        [("GET", "/nowhere", 404), ("GET", "/health/", 404), ("GET", "/predict", 405), ("POST", "/health", 405)];
    for (method, path, expected) in routes.into_iter().chain(others) {
        let (status, headers, body) = ask(&frame, plain(method, path)).await;
        assert_eq!(status, expected, "{method} {path}: {body}");
        assert_eq!(headers["x-anneal-revision"], "r7", "{method} {path}");
        assert_eq!(headers["access-control-allow-origin"], "*", "{method} {path}");
        let seconds = headers["x-process-time"].to_str().expect("text").parse::<f64>().expect("seconds");
        assert!((0.0..60.0).contains(&seconds), "{method} {path}: {seconds}");
        assert!(headers.contains_key("x-request-id"), "{method} {path}");
        assert!(status < 400 || !body["detail"].is_null(), "{method} {path}: {body}");
    }
}

#[tokio::test]
async fn a_page_of_another_origin_may_predict() {
    let mut request = plain("OPTIONS", "/predict");
    request.headers_mut().insert("access-control-request-method", HeaderValue::from_static("POST"));
    request.headers_mut().insert("access-control-request-headers", HeaderValue::from_static("content-type"));
    let (status, headers, _) = ask(&frame(context()), request).await;
    assert_eq!((status, &headers["access-control-allow-headers"]), (200, &HeaderValue::from_static("content-type")));
}

#[tokio::test]
async fn a_request_id_is_kept_when_it_is_fit_for_a_log() {
    let frame = frame(context());
    for (given, kept) in [("abc-1", true), ("two words", false), (&*"x".repeat(65), false)] {
        let mut request = plain("GET", "/livez");
        request.headers_mut().insert("x-request-id", HeaderValue::from_str(given).expect("a header"));
        let (_, headers, _) = ask(&frame, request).await;
        assert_eq!(headers["x-request-id"] == given, kept, "{given}");
    }
}
