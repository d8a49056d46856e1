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
    engine::{Bounds, Engine, fake::Fake},
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
        validation: None,
        workers: 1,
        precision: anneal_api::hyperparameters::Precision::Float32,
        golden: None,
    }
}

async fn ready(context: &Context, model: Fake) {
    let bounds = Bounds { queue: 1, batch: 1 };
    let engine = Engine::start(vec![model], bounds, &unbounded_channel().0).await.expect("threads");
    context.life.ready(Serving::new(facts(), engine, None));
}

fn frame(context: Context) -> Frame {
    Frame::new(context, Some(HeaderValue::from_static("r7")), None)
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
    let fixed = ROUTES.into_iter().filter(|route| !route.path.contains('{'));
    let routes = fixed.map(|route| (route.method, route.path, if route.method == "POST" { 422 } else { 200 }));
    let others = [
        ("GET", "/nowhere", 404),
        ("GET", "/health/", 404),
        ("GET", "/predict", 405),
        ("POST", "/health", 405),
        ("GET", "/v2/models/cats", 200),
        ("GET", "/v2/models/cats/ready", 200),
        ("GET", "/v2/models/cats/versions/010101010101", 200),
    ];
    for (method, path, expected) in routes.chain(others) {
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
async fn every_answer_says_which_checkpoint_run_and_dataset_it_is_from() {
    let context = context();
    ready(&context, Fake(None)).await;
    let (_, headers, _) = ask(&frame(context), plain("GET", "/livez")).await;
    assert_eq!(headers["x-anneal-checkpoint"], "01".repeat(32).as_str());
    assert!(!headers.contains_key("x-anneal-training-run"), "it has none");
}

#[tokio::test]
async fn an_image_may_be_the_whole_body_and_a_form_may_have_several() {
    let context = context();
    ready(&context, Fake(None)).await;
    let frame = frame(context);
    let (status, headers, body) = ask(&frame, post("/predict", "image/jpeg", "dog".to_owned())).await;
    assert_eq!((status, &body["prediction"]), (200, &json!("dog")));
    assert!(headers.contains_key("x-prediction-id"));

    let part = |name: &str, content: &str| {
        format!(
            "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\nContent-Type: image/png\r\n\r\n{content}\r\n"
        )
    };
    let two = part("one.png", "cat") + &part("two.png", "dog") + "--b--\r\n";
    // The queue of this engine has one place, so that the second may have to wait for the first.
    let (status, _, body) = ask(&frame, post("/predict", CONTENT_TYPE, two)).await;
    if status == 200 {
        let words: Vec<_> = body["predictions"].as_array().expect("a list").iter().map(|p| &p["prediction"]).collect();
        assert_eq!(words, [&json!("cat"), &json!("dog")]);
        assert_eq!(body["predictions"][1]["filename"], "two.png");
    } else {
        assert_eq!(status, 503);
    }
    let many = part("x.png", "cat").repeat(33) + "--b--\r\n";
    assert_eq!(ask(&frame, post("/predict", CONTENT_TYPE, many.clone())).await.0, 413, "{}", many.len());
}

#[tokio::test]
async fn the_true_class_is_counted_once() {
    let context = context();
    ready(&context, Fake(None)).await;
    let frame = frame(context.clone());
    let (_, headers, _) = ask(&frame, post("/predict", "image/png", "dog".to_owned())).await;
    let id = headers["x-prediction-id"].to_str().expect("text").to_owned();
    let tell =
        |id: &str, class: &str| post("/feedback", "application/json", json!({"id": id, "class": class}).to_string());
    let (status, _, body) = ask(&frame, tell(&id, "cat")).await;
    assert_eq!((status, body), (200, json!({"counted": true, "predicted": "dog", "correct": false})));
    assert_eq!(ask(&frame, tell(&id, "cat")).await.2["counted"], false);
    assert_eq!(ask(&frame, tell(&id, "cow")).await.0, 422);
    assert_eq!(ask(&frame, tell("made-up", "cat")).await.0, 422);
    assert_eq!(ask(&frame, post("/feedback", "application/json", "{}".to_owned())).await.0, 422);
    let text = context.metrics.text(0).expect("text");
    assert!(text.contains("anneal_feedback_total{actual=\"cat\",predicted=\"dog\"} 1"), "{text}");
}

#[tokio::test]
async fn the_open_inference_protocol_takes_tensors() {
    let context = Context { max_upload_bytes: 1 << 20, ..context() };
    context.uploads.add_permits(1 << 10);
    ready(&context, Fake(None)).await;
    let frame = frame(context);
    let infer =
        |model: &str, body: &Value| post(&format!("/v2/models/{model}/infer"), "application/json", body.to_string());
    let image = json!({"id": "42", "inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": vec![0; 32 * 32 * 3]}]});
    let (status, _, body) = ask(&frame, infer("cats", &image)).await;
    assert_eq!((status, &body["id"], &body["model_name"]), (200, &json!("42"), &json!("cats")), "{body}");
    assert_eq!(
        body["outputs"][1],
        json!({"name": "logits", "datatype": "FP32", "shape": [1, 2], "data": [0.0, 3072.0]})
    );
    let (status, _, body) = ask(&frame, infer("cows", &image)).await;
    assert_eq!(status, 404);
    assert!(body["error"].as_str().is_some_and(|error| error.contains("\"cats\"")), "{body}");
    assert_eq!(ask(&frame, infer("cats/versions/2", &image)).await.0, 404);
    assert_eq!(ask(&frame, infer("cats", &json!({}))).await.0, 400);
    assert_eq!(ask(&frame, plain("GET", "/v2/models/cats/infer")).await.0, 405);

    let binary = json!({"parameters": {"binary_data_output": true}, "outputs": [{"name": "logits"}],
        "inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 3, 32, 32], "parameters": {"binary_data_size": 12288}}]}).to_string();
    let mut request = post("/v2/models/cats/infer", "application/octet-stream", binary.clone() + &"\0".repeat(12288));
    request.headers_mut().insert("inference-header-content-length", HeaderValue::from(binary.len()));
    let answer = frame.answer(request).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let head: usize =
        answer.headers()["inference-header-content-length"].to_str().expect("text").parse().expect("a number");
    let bytes = answer.into_body().collect().await.expect("a body").to_bytes();
    assert_eq!(bytes[head..], [3072.0_f32.to_le_bytes(), 0.0_f32.to_le_bytes()].concat());
}

#[tokio::test]
async fn a_browser_gets_a_page_and_everybody_else_json() {
    let frame = frame(context());
    let mut request = plain("GET", "/");
    request.headers_mut().insert("accept", HeaderValue::from_static("text/html,application/xhtml+xml,*/*;q=0.8"));
    let (_, headers, page) = ask(&frame, request).await;
    assert_eq!(
        (&headers["content-type"], &headers["vary"]),
        (&HeaderValue::from_static("text/html; charset=utf-8"), &HeaderValue::from_static("Accept"))
    );
    assert!(page.as_str().is_some_and(|page| page.contains("Drop a photo") && !page.contains("https://")));
    let (_, headers, body) = ask(&frame, plain("GET", "/")).await;
    assert_eq!((&headers["vary"], &body["status"]), (&HeaderValue::from_static("Accept"), &json!("running")));
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

#[tokio::test]
async fn answers_to_requests_with_an_id_can_be_compared_and_tell_neither_the_id_nor_the_class() {
    let server = || async {
        let context = Context { max_upload_bytes: 1 << 20, ..context() };
        context.uploads.add_permits(1 << 10);
        let bounds = Bounds { queue: 8, batch: 1 };
        let engine = Engine::start(vec![Fake(None)], bounds, &unbounded_channel().0).await.expect("threads");
        context.life.ready(Serving::new(facts(), engine, None));
        frame(context)
    };
    let (stable, candidate) = (server().await, server().await);
    let with_id = |id: &str, mut request: Request<Full<Bytes>>| {
        request.headers_mut().insert("x-request-id", HeaderValue::from_str(id).expect("a header"));
        request
    };
    let image = |content: &str| post("/predict", "image/png", content.to_owned());
    let part = |content| {
        format!(
            "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f.png\"\r\nContent-Type: image/png\r\n\r\n{content}\r\n"
        )
    };
    let two = |first, second| post("/predict", CONTENT_TYPE, part(first) + &part(second) + "--b--\r\n");
    let tensors = json!({"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": vec![0; 32 * 32 * 3]}]});
    let infer = || post("/v2/models/cats/infer", "application/json", tensors.to_string());
    for (frame, sees_a_dog) in [(&stable, "cat"), (&candidate, "dog")] {
        for request in [
            with_id("request-1", image("cat")),
            with_id("request-2", image(sees_a_dog)),
            with_id("request-3", image("no image")),
            with_id("request-4", infer()),
            image("cat"),
            with_id("request-5", plain("GET", "/readyz")),
            with_id("request-6", two("cat", sees_a_dog)),
        ] {
            ask(frame, request).await;
        }
    }
    let list = |frame: Frame| async move { ask(&frame, plain("GET", "/answers")).await.2 };
    let (stable, candidate) = (list(stable).await, list(candidate).await);
    let text = stable.to_string();
    assert!(!text.contains("request") && !text.contains("cat"), "{text}");
    let of = |all: &Value, n: usize| all[n].as_array().expect("a pair").clone();
    assert_eq!(stable.as_array().map(Vec::len), Some(5), "one without an id, and what is no prediction, are not there");
    for (n, agrees) in [(0, true), (1, false), (2, true), (3, true), (4, false)] {
        let (one, other) = (of(&stable, n), of(&candidate, n));
        assert_eq!((&one[0], one[1] == other[1]), (&other[0], agrees), "answer {n}");
    }
    assert_eq!(of(&stable, 2)[1], Value::Null, "an image that cannot be decoded has no class");
}
