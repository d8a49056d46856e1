//! What Prometheus scrapes: the reference's six metrics under their names, and a few of ours.

use std::time::Duration;

use prometheus::{
    Encoder as _, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use warp::http::{Method, StatusCode};

use crate::routes;

/// Content type of the text format.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Buckets of a duration, those of Prometheus' Python client.
const SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Buckets of a confidence.
const CONFIDENCE: [f64; 8] = [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0];

/// The process' metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    durations: HistogramVec,
    predictions: IntCounterVec,
    confidence: Histogram,
    load_time: Gauge,
    active: IntGauge,
    queued: IntGauge,
    model: IntGaugeVec,
}

impl Metrics {
    /// Registers all metrics.
    ///
    /// # Errors
    /// When two have the same name, which a test rules out.
    pub fn new() -> prometheus::Result<Self> {
        let request_labels = ["method", "endpoint"];
        let duration =
            HistogramOpts::new("api_request_duration_seconds", "Time of an answer").buckets(SECONDS.to_vec());
        let confidence = HistogramOpts::new("prediction_confidence", "Probability of the predicted class")
            .buckets(CONFIDENCE.to_vec());
        let metrics = Self {
            registry: Registry::new(),
            requests: IntCounterVec::new(
                Opts::new("api_requests_total", "Answers"),
                &["method", "endpoint", "status"],
            )?,
            durations: HistogramVec::new(duration, &request_labels)?,
            predictions: IntCounterVec::new(
                Opts::new("predictions_total", "Predictions by class"),
                &["predicted_class"],
            )?,
            confidence: Histogram::with_opts(confidence)?,
            load_time: Gauge::new("model_load_time_seconds", "Time that loading the model took")?,
            active: IntGauge::new("active_requests", "Requests that are being answered")?,
            queued: IntGauge::new("anneal_queue_length", "Requests that wait for a worker")?,
            model: IntGaugeVec::new(
                Opts::new("anneal_model_info", "The model that is served; always 1"),
                &["sha256", "architecture", "revision"],
            )?,
        };
        let all: [Box<dyn prometheus::core::Collector>; 8] = [
            Box::new(metrics.requests.clone()),
            Box::new(metrics.durations.clone()),
            Box::new(metrics.predictions.clone()),
            Box::new(metrics.confidence.clone()),
            Box::new(metrics.load_time.clone()),
            Box::new(metrics.active.clone()),
            Box::new(metrics.queued.clone()),
            Box::new(metrics.model.clone()),
        ];
        for collector in all {
            metrics.registry.register(collector)?;
        }
        Ok(metrics)
    }

    /// Counts a request as active until the guard is dropped, also when its client goes away.
    pub fn begin(&self) -> Active {
        self.active.inc();
        Active(self.active.clone())
    }

    /// Counts an answer.
    pub fn answered(&self, method: &Method, path: &str, status: StatusCode, took: Duration) {
        let (method, endpoint) = (method_label(method), endpoint_label(path));
        self.requests.with_label_values(&[method, endpoint, status.as_str()]).inc();
        self.durations.with_label_values(&[method, endpoint]).observe(took.as_secs_f64());
    }

    /// Counts a prediction.
    pub fn predicted(&self, class: &str, confidence: f64) {
        self.predictions.with_label_values(&[class]).inc();
        self.confidence.observe(confidence);
    }

    /// States which model was loaded and how long that took. Its classes start at zero, so that a rate over the first
    /// prediction is not lost.
    pub fn loaded(&self, sha256: &str, architecture: &str, revision: &str, classes: &[String], took: Duration) {
        self.load_time.set(took.as_secs_f64());
        self.model.with_label_values(&[sha256, architecture, revision]).set(1);
        for class in classes {
            self.predictions.with_label_values(&[class]);
        }
    }

    /// All metrics in Prometheus' text format.
    ///
    /// # Errors
    /// When a metric cannot be written.
    pub fn text(&self, queued: usize) -> prometheus::Result<String> {
        self.queued.set(i64::try_from(queued).unwrap_or(i64::MAX));
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub struct Active(IntGauge);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A client chooses paths and methods, and every new label value is memory for ever: unknown ones share a label.
fn endpoint_label(path: &str) -> &'static str {
    routes::known_path(path).unwrap_or("other")
}

fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_six_metrics_of_the_reference_have_its_names_labels_and_buckets() {
        let metrics = Metrics::new().expect("distinct names");
        metrics.answered(&Method::POST, "/predict", StatusCode::OK, Duration::from_millis(60));
        metrics.predicted("cat", 0.97);
        metrics.loaded("ab", "ImprovedCNN", "r1", &["cat".to_owned(), "dog".to_owned()], Duration::from_secs(2));
        let active = metrics.begin();
        let text = metrics.text(3).expect("text");
        for line in [
            r#"api_requests_total{endpoint="/predict",method="POST",status="200"} 1"#,
            r#"api_request_duration_seconds_bucket{endpoint="/predict",method="POST",le="0.075"} 1"#,
            r#"api_request_duration_seconds_bucket{endpoint="/predict",method="POST",le="0.05"} 0"#,
            r#"predictions_total{predicted_class="cat"} 1"#,
            r#"predictions_total{predicted_class="dog"} 0"#,
            r#"prediction_confidence_bucket{le="0.95"} 0"#,
            r#"prediction_confidence_bucket{le="0.99"} 1"#,
            "model_load_time_seconds 2",
            "active_requests 1",
            "anneal_queue_length 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
        drop(active);
        assert!(metrics.text(0).expect("text").contains("active_requests 0"));
    }

    #[test]
    fn what_a_client_makes_up_shares_one_label() {
        assert_eq!(endpoint_label("/model/info"), "/model/info");
        for path in ["/predict/1", "/wp-admin", "", "/PREDICT"] {
            assert_eq!(endpoint_label(path), "other", "{path}");
        }
        assert_eq!(method_label(&Method::from_bytes(b"BREW").expect("a token")), "other");
    }
}
