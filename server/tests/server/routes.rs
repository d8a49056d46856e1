//! Every route and status code of the reference.

use serde_json::json;

use crate::{
    process::{Server, dogs, picture},
    wire::{chunked, get, predict, request, upload},
};

#[test]
fn a_served_checkpoint_answers_as_the_reference_does() {
    let server = Server::ready(dogs(), |command| {
        command.env("ANNEAL_REVISION", "cats-1").env("MODEL_NAME", "cats").args(["--max-upload-bytes", "200000"]);
    });

    let root = server.ask(&get("/")).json();
    assert_eq!(root["status"], "running");
    assert_eq!(root["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(root["endpoints"]["predict"], "/predict");
    assert_eq!(
        root["model_info"],
        json!({"type": "ImprovedCNN", "classes": ["cat", "dog"], "input_size": "32x32", "accuracy": 0.75})
    );

    let health = server.ask(&get("/health")).json();
    assert_eq!(
        (&health["status"], &health["model_loaded"], &health["device"]),
        (&json!("healthy"), &json!(true), &json!("cpu"))
    );

    let info = server.ask(&get("/model/info"));
    assert!(info.text().contains(r#""mean":[0.485,0.456,0.406]"#), "{}", info.text());
    let info = info.json();
    assert_eq!(
        (&info["model_type"], &info["num_parameters"], &info["model_name"]),
        (&json!("ImprovedCNN"), &json!(2_783_362), &json!("cats"))
    );
    assert_eq!(
        (&info["input_size"], &info["test_accuracy"], &info["run"]),
        (&json!("32x32"), &json!(0.75), &json!("cats-vs-dogs"))
    );

    for request in [predict("image/png", &picture()), chunked("image/png", &picture())] {
        let answer = server.ask(&request);
        let body = answer.json();
        assert_eq!((answer.status, &body["prediction"]), (200, &json!("dog")), "{body}");
        let probabilities: Vec<f64> = body["probabilities"]
            .as_object()
            .expect("an object")
            .values()
            .filter_map(serde_json::Value::as_f64)
            .collect();
        assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-6, "{body}");
        assert_eq!(body["confidence"], body["probabilities"]["dog"]);
        assert!(body["processing_time_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{body}");
        assert!(body["timestamp"].is_string(), "{body}");
        assert_eq!(answer.header("x-anneal-revision"), Some("cats-1"));
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
        assert!(answer.header("x-process-time").is_some_and(|seconds| seconds.parse::<f64>().is_ok()), "{answer:?}");
    }

    let raw = server.ask(&request("POST", "/predict", "Content-Type: image/png\r\n", &picture()));
    assert_eq!((raw.status, &raw.json()["prediction"]), (200, &json!("dog")));
    assert_eq!(raw.header("x-anneal-training-run"), Some("cats-vs-dogs"));
    let id = raw.header("x-prediction-id").expect("an id");
    let told = json!({"id": id, "class": "cat"}).to_string();
    let told = server.ask(&request("POST", "/feedback", "Content-Type: application/json\r\n", told.as_bytes()));
    assert_eq!(told.json(), json!({"counted": true, "predicted": "dog", "correct": false}));

    let pixels = json!({"inputs": [{"name": "image", "datatype": "UINT8", "shape": [2, 32, 32, 3], "data": vec![100; 2 * 32 * 32 * 3]}]});
    let infer = server.ask(&request("POST", "/v2/models/cats/infer", "", pixels.to_string().as_bytes())).json();
    assert_eq!(infer["outputs"][0]["shape"], json!([2, 2]), "{infer}");
    assert!(infer["outputs"][0]["data"][1].as_f64().is_some_and(|dog| dog > 0.9), "{infer}");

    let truncated = &picture()[..300];
    for (sent, status) in [
        (predict("text/plain", &picture()), 400),
        (upload("image", "image/png", &picture()), 422),
        (request("POST", "/predict", "", b""), 422),
        (predict("image/png", truncated), 422),
        (predict("image/png", b"no image"), 422),
        (predict("image/png", b""), 422),
        (predict("image/png", &vec![0; 300_000]), 413),
        (chunked("image/png", &vec![0; 300_000]), 413),
        (get("/predict"), 405),
        (get("/nowhere"), 404),
    ] {
        let answer = server.ask(&sent);
        assert_eq!(answer.status, status, "{}", answer.text());
        assert!(!answer.json()["detail"].is_null(), "{}", answer.text());
    }

    for (path, content_type) in [
        ("/docs", "text/html; charset=utf-8"),
        ("/redoc", "text/html; charset=utf-8"),
        ("/openapi.json", "application/json"),
    ] {
        let answer = server.ask(&get(path));
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(content_type)), "{path}");
        assert!(!answer.text().contains("https://"), "{path} loads from elsewhere");
    }

    let metrics = server.ask(&get("/metrics")).text();
    for line in [
        r#"api_requests_total{endpoint="/predict",method="POST",status="200"} 3"#,
        r#"api_requests_total{endpoint="other",method="GET",status="404"} 1"#,
        r#"api_request_duration_seconds_count{endpoint="/predict",method="POST"} 11"#,
        r#"predictions_total{predicted_class="dog"} 5"#,
        "prediction_confidence_count 5",
        r#"anneal_feedback_total{actual="cat",predicted="dog"} 1"#,
        "active_requests 1",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is missing in\n{metrics}");
    }
    let load_time = metrics.lines().find_map(|line| line.strip_prefix("model_load_time_seconds ")?.parse::<f64>().ok());
    assert!(load_time.is_some_and(|seconds| seconds > 0.0), "{metrics}");
}
