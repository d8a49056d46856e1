//! What Prometheus scrapes: the reference's six metrics under their names, and a few of ours.

use std::time::Duration;

use anneal_api::performance::metric;
use prometheus::{
    Encoder as _, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use warp::http::{Method, StatusCode};

use crate::{
    drift::{Beside, Moved},
    engine::Answered,
    feedback::Known,
    routes,
};

/// Content type of the text format.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Buckets of a duration, those of Prometheus' Python client.
const SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Buckets of a stage.
const STAGES: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];
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
    batches: Histogram,
    stages: HistogramVec,
    refusals: IntCounterVec,
    feedback: IntCounterVec,
    accuracy: GaugeVec,
    drift: GaugeVec,
    known: [GaugeVec; 3],
    newest: GaugeVec,
    expected: GaugeVec,
    memory: IntGauge,
    threads: IntGauge,
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
            batches: Histogram::with_opts(
                HistogramOpts::new("anneal_batch_size", "Images of the forward pass that a prediction was made in")
                    .buckets(vec![1.0, 2.0, 4.0, 8.0, 16.0]),
            )?,
            stages: HistogramVec::new(
                HistogramOpts::new(
                    "anneal_stage_seconds",
                    "Time of a prediction in the queue, and of its batch in the others",
                )
                .buckets(STAGES.to_vec()),
                &["stage"],
            )?,
            refusals: IntCounterVec::new(
                Opts::new("anneal_refused_total", "Requests that were refused because the server was at its limit"),
                &["reason"],
            )?,
            feedback: IntCounterVec::new(
                Opts::new("anneal_feedback_total", "Predictions whose true class was sent"),
                &["predicted", "actual"],
            )?,
            // Without labels, but absent until there is feedback: 0 would be an accuracy.
            accuracy: GaugeVec::new(
                Opts::new("anneal_feedback_accuracy", "Share of right ones among the newest feedback"),
                &[],
            )?,
            drift: GaugeVec::new(
                Opts::new(
                    "anneal_prediction_drift",
                    "Population stability index of the newest predictions against the checkpoint's validation set",
                ),
                &["of"],
            )?,
            known: [
                by_bin(metric::KNOWN, "Of the newest predictions whose true class is known, those of this confidence")?,
                by_bin(metric::RIGHT, "Right ones among anneal_feedback_newest")?,
                by_bin(metric::CONFIDENCE, "Sum of the confidences of anneal_feedback_newest")?,
            ],
            newest: of_bins(metric::PREDICTIONS, "The newest predictions by class and by confidence")?,
            expected: of_bins(metric::EXPECTED, "Share of anneal_prediction_newest to expect by the validation set")?,
            memory: IntGauge::new("process_resident_memory_bytes", "Memory of the process")?,
            threads: IntGauge::new("process_threads", "Threads of the process")?,
        };
        for reason in ["full", "late", "expired", "memory"] {
            metrics.refusals.with_label_values(&[reason]);
        }
        let [known, right, confidence] = metrics.known.clone();
        let all: [Box<dyn prometheus::core::Collector>; 21] = [
            Box::new(known),
            Box::new(right),
            Box::new(confidence),
            Box::new(metrics.newest.clone()),
            Box::new(metrics.expected.clone()),
            Box::new(metrics.requests.clone()),
            Box::new(metrics.durations.clone()),
            Box::new(metrics.predictions.clone()),
            Box::new(metrics.confidence.clone()),
            Box::new(metrics.load_time.clone()),
            Box::new(metrics.active.clone()),
            Box::new(metrics.queued.clone()),
            Box::new(metrics.model.clone()),
            Box::new(metrics.batches.clone()),
            Box::new(metrics.stages.clone()),
            Box::new(metrics.refusals.clone()),
            Box::new(metrics.feedback.clone()),
            Box::new(metrics.accuracy.clone()),
            Box::new(metrics.drift.clone()),
            Box::new(metrics.memory.clone()),
            Box::new(metrics.threads.clone()),
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
    pub fn predicted(&self, class: &str, answered: &Answered) {
        self.predictions.with_label_values(&[class]).inc();
        self.confidence.observe(answered.prediction.confidence());
        self.batches.observe(f64::from(u32::try_from(answered.batch).unwrap_or(u32::MAX)));
        for (stage, time) in
            [("queue", answered.queued), ("prepare", answered.preparing), ("forward", answered.forward)]
        {
            self.stages.with_label_values(&[stage]).observe(time.as_secs_f64());
        }
    }

    /// Counts a request that was refused because the server was at its limit.
    pub fn refused(&self, reason: &str) {
        self.refusals.with_label_values(&[reason]).inc();
    }

    /// Counts what a prediction should have been, and states the rolling accuracy.
    pub fn feedback(&self, predicted: &str, actual: &str, accuracy: f64) {
        self.feedback.with_label_values(&[predicted, actual]).inc();
        self.accuracy.with_label_values::<&str>(&[]).set(accuracy);
    }

    /// States how far the newest predictions are from those on the validation set.
    pub fn moved(&self, moved: Moved) {
        for (of, index) in [("classes", moved.classes), ("confidence", moved.confidence)] {
            self.drift.with_label_values(&[of]).set(index);
        }
    }

    /// States the newest predictions whose true class is known. Nothing is stated before the first one.
    pub fn newest_feedback(&self, all: &[Known]) {
        if all.iter().all(|known| known.count == 0) {
            return;
        }
        for (bin, known) in all.iter().enumerate() {
            let values = [f64::from(known.count), f64::from(known.right), known.confidence];
            for (gauge, value) in self.known.iter().zip(values) {
                gauge.with_label_values(&[bin.to_string()]).set(value);
            }
        }
    }

    /// States the newest predictions beside what the validation set lets expect.
    pub fn newest_predictions(&self, classes: &[String], beside: &Beside) {
        let state = |of: &str, bin: &str, (expected, count): (f64, u32)| {
            self.newest.with_label_values(&[of, bin]).set(f64::from(count));
            self.expected.with_label_values(&[of, bin]).set(expected);
        };
        for (class, both) in classes.iter().zip(&beside.classes) {
            state("classes", class, *both);
        }
        for (bin, both) in beside.confidence.iter().enumerate() {
            state("confidence", &bin.to_string(), *both);
        }
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
        let (memory, threads) = process();
        self.memory.set(memory);
        self.threads.set(threads);
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// A gauge for each bin of confidences.
fn by_bin(name: &str, help: &str) -> prometheus::Result<GaugeVec> {
    GaugeVec::new(Opts::new(name, help), &[metric::BIN])
}

/// The same for several counts under one name.
fn of_bins(name: &str, help: &str) -> prometheus::Result<GaugeVec> {
    GaugeVec::new(Opts::new(name, help), &[metric::OF, metric::BIN])
}

/// Bytes of memory and count of threads of this process, as the kernel tells; zero where it does not.
fn process() -> (i64, i64) {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let number = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name))?;
        value.trim().trim_end_matches("kB").trim().parse::<i64>().ok()
    };
    (number("VmRSS:").unwrap_or(0) * 1024, number("Threads:").unwrap_or(0))
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
    use crate::prediction::Prediction;

    #[test]
    fn the_six_metrics_of_the_reference_have_its_names_labels_and_buckets() {
        let metrics = Metrics::new().expect("distinct names");
        metrics.answered(&Method::POST, "/predict", StatusCode::OK, Duration::from_millis(60));
        let prediction = Prediction { class: 0, probabilities: vec![0.97, 0.03], logits: vec![3.0, 0.0] };
        let (queued, forward) = (Duration::from_millis(3), Duration::from_millis(20));
        metrics.predicted("cat", &Answered { prediction, queued, preparing: queued, forward, batch: 2 });
        metrics.refused("late");
        metrics.feedback("cat", "dog", 0.5);
        metrics.moved(Moved { classes: 0.125, confidence: 0.5 });
        metrics.newest_feedback(&[Known { count: 4, right: 3, confidence: 0.25 }]);
        let beside = Beside { classes: vec![(0.5, 7)], confidence: vec![(0.25, 7)] };
        metrics.newest_predictions(&["cat".to_owned()], &beside);
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
            r#"anneal_batch_size_bucket{le="2"} 1"#,
            r#"anneal_stage_seconds_bucket{stage="queue",le="0.005"} 1"#,
            r#"anneal_refused_total{reason="late"} 1"#,
            r#"anneal_refused_total{reason="full"} 0"#,
            r#"anneal_feedback_total{actual="dog",predicted="cat"} 1"#,
            "anneal_feedback_accuracy 0.5",
            r#"anneal_prediction_drift{of="classes"} 0.125"#,
            r#"anneal_prediction_drift{of="confidence"} 0.5"#,
            r#"anneal_feedback_newest{bin="0"} 4"#,
            r#"anneal_feedback_newest_right{bin="0"} 3"#,
            r#"anneal_feedback_newest_confidence{bin="0"} 0.25"#,
            r#"anneal_prediction_newest{bin="cat",of="classes"} 7"#,
            r#"anneal_prediction_expected{bin="0",of="confidence"} 0.25"#,
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
