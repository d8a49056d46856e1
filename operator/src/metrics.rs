//! The operator's own metrics, in the style of Kubernetes' Job controller. No label grows with the objects, but for the
//! training metrics of the runs that train at the moment and the performance of deployments with feedback, of which only so
//! many are told. What an alert is about is counted by the namespace of its object; `namespace` itself is what Prometheus
//! calls the operator's own.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use anneal_api::{failure::FailureClass, progress::Progress, resources::RunPhase};
use prometheus::{
    Encoder, GaugeVec, HistogramVec, IntCounterVec, IntGaugeVec, Registry, TextEncoder, histogram_opts, opts,
};

use crate::shadow::Counts;

/// Runs whose training metrics are told at one time. Of more, the first ones are told.
const MAX_TRAININGS: usize = 500;
/// Deployments whose performance is told at one time.
const MAX_DEPLOYMENTS: usize = 500;
/// Namespaces that are counted by name, until the operator starts again.
const MAX_NAMESPACES: usize = 500;
/// Stands for all further ones. No namespace has an underscore.
const FURTHER: &str = "_further";

/// Counters and histograms of the operator.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    reconciles: IntCounterVec,
    reconcile_seconds: HistogramVec,
    runs_finished: IntCounterVec,
    attempts: IntCounterVec,
    rollouts: IntCounterVec,
    shadow_answers: IntCounterVec,
    sweeps_finished: IntCounterVec,
    trials: IntCounterVec,
    scheduled: IntCounterVec,
    progress_reads: IntCounterVec,
    queue_depth: IntGaugeVec,
    runs: IntGaugeVec,
    loss: GaugeVec,
    best: GaugeVec,
    images_per_second: GaugeVec,
    step: GaugeVec,
    degraded: IntGaugeVec,
    trainings: Arc<Mutex<HashSet<(String, String)>>>,
    judged: Arc<Mutex<HashSet<[String; 3]>>>,
    namespaces: Arc<Mutex<HashSet<String>>>,
}

impl Metrics {
    /// Registers every metric in a registry of its own.
    ///
    /// # Errors
    /// When two metrics have one name.
    pub fn new() -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str, labels: &[&str]| IntCounterVec::new(opts!(name, help), labels);
        let gauge = |name: &str, help: &str| GaugeVec::new(opts!(name, help), &["namespace", "training_run"]);
        let count = |name: &str, help: &str, labels: &[&str]| IntGaugeVec::new(opts!(name, help), labels);
        let metrics = Self {
            registry: Registry::new(),
            reconciles: counter(
                "anneal_reconciles_total",
                "Reconciles by kind and result (success or error).",
                &["kind", "result"],
            )?,
            reconcile_seconds: HistogramVec::new(
                histogram_opts!(
                    "anneal_reconcile_duration_seconds",
                    "Time that one reconcile took.",
                    vec![0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]
                ),
                &["kind"],
            )?,
            runs_finished: counter(
                "anneal_training_runs_finished_total",
                "Training runs that ended, by result (succeeded or failed).",
                &["resource_namespace", "result"],
            )?,
            attempts: counter(
                "anneal_training_attempts_failed_total",
                "Attempts of training runs that failed, by failure class.",
                &["class"],
            )?,
            rollouts: counter(
                "anneal_rollouts_total",
                "Rollouts of model deployments that ended, by result (promoted, rejected or rolled_back).",
                &["resource_namespace", "result"],
            )?,
            shadow_answers: counter(
                "anneal_shadow_answers_total",
                "Answers of candidates to copies of requests, by whether the serving revision's was the same (agreed or disagreed).",
                &["result"],
            )?,
            sweeps_finished: counter(
                "anneal_training_sweeps_finished_total",
                "Training sweeps that ended, by result (succeeded or failed).",
                &["result"],
            )?,
            trials: counter(
                "anneal_sweep_trials_finished_total",
                "Trials of training sweeps that ended, by result (succeeded, failed or stopped).",
                &["result"],
            )?,
            scheduled: counter(
                "anneal_scheduled_starts_total",
                "Starts of training runs that a schedule asked for, by result (started or missed).",
                &["resource_namespace", "result"],
            )?,
            progress_reads: counter(
                "anneal_progress_reads_total",
                "Reads of training pods' progress, by result (success, error, or absent where an image has none to tell).",
                &["result"],
            )?,
            queue_depth: count("anneal_queue_depth", "Objects that wait for a reconcile, by kind.", &["kind"])?,
            runs: count("anneal_training_runs", "Training runs, by phase.", &["phase"])?,
            loss: gauge("anneal_training_loss", "Mean training loss of a run that trains.")?,
            best: gauge("anneal_training_best_accuracy", "Best validation accuracy of a run that trains, 0 to 1.")?,
            images_per_second: gauge("anneal_training_images_per_second", "Rate of a run that trains.")?,
            step: gauge("anneal_training_step", "Optimiser steps that a run that trains has done.")?,
            degraded: count(
                "anneal_model_performance_degraded",
                "Whether a model deployment with feedback is out of its bounds (1), and why or why not.",
                &["resource_namespace", "model_deployment", "reason"],
            )?,
            trainings: Arc::default(),
            judged: Arc::default(),
            namespaces: Arc::default(),
        };
        let collectors: [Box<dyn prometheus::core::Collector>; 17] = [
            Box::new(metrics.reconciles.clone()),
            Box::new(metrics.reconcile_seconds.clone()),
            Box::new(metrics.runs_finished.clone()),
            Box::new(metrics.attempts.clone()),
            Box::new(metrics.rollouts.clone()),
            Box::new(metrics.shadow_answers.clone()),
            Box::new(metrics.sweeps_finished.clone()),
            Box::new(metrics.trials.clone()),
            Box::new(metrics.scheduled.clone()),
            Box::new(metrics.progress_reads.clone()),
            Box::new(metrics.queue_depth.clone()),
            Box::new(metrics.runs.clone()),
            Box::new(metrics.loss.clone()),
            Box::new(metrics.best.clone()),
            Box::new(metrics.images_per_second.clone()),
            Box::new(metrics.step.clone()),
            Box::new(metrics.degraded.clone()),
        ];
        for collector in collectors {
            metrics.registry.register(collector)?;
        }
        metrics.begin_at_zero();
        Ok(metrics)
    }

    /// Names every series whose labels are known beforehand. A counter that appears with its first event has never
    /// increased for Prometheus, and no alert would tell of that event.
    fn begin_at_zero(&self) {
        for kind in ["trainingrun", "trainingsweep", "crontrainingrun", "modeldeployment"] {
            for result in ["success", "error"] {
                self.reconciles.with_label_values(&[kind, result]);
            }
            self.reconcile_seconds.with_label_values(&[kind]);
        }
        for result in ["succeeded", "failed"] {
            self.sweeps_finished.with_label_values(&[result]);
            self.trials.with_label_values(&[result]);
        }
        self.trials.with_label_values(&["stopped"]);
        for class in FailureClass::ALL {
            self.attempts.with_label_values(&[class.as_str()]);
        }
        for result in ["agreed", "disagreed"] {
            self.shadow_answers.with_label_values(&[result]);
        }
        for result in ["success", "error", "absent"] {
            self.progress_reads.with_label_values(&[result]);
        }
    }

    /// The label of a namespace, whose counters begin at zero when it is met for the first time.
    fn met<'a>(&self, namespace: &'a str) -> &'a str {
        let mut namespaces = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        if namespaces.contains(namespace) {
            return namespace;
        }
        let label = if namespaces.len() < MAX_NAMESPACES { namespace } else { FURTHER };
        if label == namespace {
            namespaces.insert(namespace.to_owned());
        }
        for result in ["succeeded", "failed"] {
            self.runs_finished.with_label_values(&[label, result]);
        }
        for result in ["promoted", "rejected", "rolled_back"] {
            self.rollouts.with_label_values(&[label, result]);
        }
        for result in ["started", "missed"] {
            self.scheduled.with_label_values(&[label, result]);
        }
        label
    }

    /// Counts one reconcile of an object of that namespace.
    pub fn reconciled(&self, kind: &str, namespace: &str, success: bool, seconds: f64) {
        self.met(namespace);
        self.reconciles.with_label_values(&[kind, if success { "success" } else { "error" }]).inc();
        self.reconcile_seconds.with_label_values(&[kind]).observe(seconds);
    }

    /// Counts a training run that ended.
    pub fn run_finished(&self, namespace: &str, succeeded: bool) {
        let result = if succeeded { "succeeded" } else { "failed" };
        self.runs_finished.with_label_values(&[self.met(namespace), result]).inc();
    }

    /// Counts an attempt that failed.
    pub fn attempt_failed(&self, class: &str) {
        self.attempts.with_label_values(&[class]).inc();
    }

    /// Counts a rollout that ended.
    pub fn rollout_finished(&self, namespace: &str, result: &str) {
        self.rollouts.with_label_values(&[self.met(namespace), result]).inc();
    }

    /// Counts answers that were compared.
    pub fn compared(&self, counts: Counts) {
        let of = |count: i64| u64::try_from(count).unwrap_or_default();
        self.shadow_answers.with_label_values(&["agreed"]).inc_by(of(counts.agreed));
        self.shadow_answers.with_label_values(&["disagreed"]).inc_by(of(counts.compared - counts.agreed));
    }

    /// Counts a sweep that ended.
    pub fn sweep_finished(&self, succeeded: bool) {
        self.sweeps_finished.with_label_values(&[if succeeded { "succeeded" } else { "failed" }]).inc();
    }

    /// Counts a trial that ended: `succeeded`, `failed` or `stopped`.
    pub fn trial_finished(&self, result: &str) {
        self.trials.with_label_values(&[result]).inc();
    }

    /// Counts starts that a schedule asked for.
    pub fn scheduled(&self, namespace: &str, started: bool, starts: u64) {
        let result = if started { "started" } else { "missed" };
        self.scheduled.with_label_values(&[self.met(namespace), result]).inc_by(starts);
    }

    /// Counts a read of a pod's progress: `success`, `error`, or `absent`.
    pub fn progress_read(&self, result: &str) {
        self.progress_reads.with_label_values(&[result]).inc();
    }

    /// Tells how many objects of a kind wait for a reconcile.
    pub fn queued(&self, kind: &str, more: i64) {
        self.queue_depth.with_label_values(&[kind]).add(more);
    }

    /// Tells how many runs are in each phase; a run without one is Pending.
    pub fn runs(&self, phases: impl Iterator<Item = Option<RunPhase>>) {
        let mut counts = RunPhase::ALL.map(|phase| (phase, 0_i64));
        for phase in phases {
            let phase = phase.unwrap_or(RunPhase::Pending);
            counts.iter_mut().filter(|(known, _)| *known == phase).for_each(|(_, count)| *count += 1);
        }
        for (phase, count) in counts {
            self.runs.with_label_values(&[phase.as_str()]).set(count);
        }
    }

    /// Tells how far a run is.
    pub fn training(&self, namespace: &str, run: &str, progress: &Progress) {
        let mut trainings = self.trainings.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (namespace.to_owned(), run.to_owned());
        if !trainings.contains(&key) && trainings.len() >= MAX_TRAININGS {
            return;
        }
        trainings.insert(key);
        #[allow(clippy::cast_precision_loss)] // a gauge
        let step = Some(progress.step as f64);
        for (gauge, value) in [
            (&self.loss, progress.loss),
            (&self.best, progress.best),
            (&self.images_per_second, progress.images_per_second),
            (&self.step, step),
        ] {
            if let Some(value) = value {
                gauge.with_label_values(&[namespace, run]).set(value);
            }
        }
    }

    /// Forgets the training metrics of a run.
    pub fn training_ended(&self, namespace: &str, run: &str) {
        let mut trainings = self.trainings.lock().unwrap_or_else(PoisonError::into_inner);
        if trainings.remove(&(namespace.to_owned(), run.to_owned())) {
            for gauge in [&self.loss, &self.best, &self.images_per_second, &self.step] {
                // An error says that the run never told this one.
                let _ = gauge.remove_label_values(&[namespace, run]);
            }
        }
    }

    /// Tells of each deployment that is judged, by namespace and name, whether it is out of its bounds and why.
    pub fn performance<'a>(&self, all: impl Iterator<Item = (&'a str, &'a str, &'a str, bool)>) {
        let mut judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        let mut former = std::mem::take(&mut *judged);
        for (namespace, deployment, reason, is_degraded) in all.take(MAX_DEPLOYMENTS) {
            let labels = [namespace, deployment, reason].map(str::to_owned);
            self.degraded.with_label_values(&labels).set(i64::from(is_degraded));
            former.remove(&labels);
            judged.insert(labels);
        }
        for labels in former {
            // An error says that it is not told any more, which is what is wanted.
            let _ = self.degraded.remove_label_values(&labels);
        }
    }

    /// Everything in Prometheus' text format.
    ///
    /// # Errors
    /// When a metric cannot be written as text.
    pub fn text(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_in_the_text() {
        let metrics = Metrics::new().expect("unique names");
        metrics.reconciled("trainingrun", "ml", true, 0.01);
        metrics.run_finished("ml", false);
        let text = String::from_utf8(metrics.text().expect("text")).expect("utf-8");
        assert!(text.contains(r#"anneal_reconciles_total{kind="trainingrun",result="success"} 1"#), "{text}");
        assert!(
            text.contains(r#"anneal_training_runs_finished_total{resource_namespace="ml",result="failed"} 1"#),
            "{text}"
        );
    }

    #[test]
    fn what_never_happened_is_told_as_zero() {
        let metrics = Metrics::new().expect("unique names");
        metrics.reconciled("modeldeployment", "ml", true, 0.01);
        let text = String::from_utf8(metrics.text().expect("text")).expect("utf-8");
        for line in [
            r#"anneal_reconciles_total{kind="modeldeployment",result="error"} 0"#,
            r#"anneal_training_runs_finished_total{resource_namespace="ml",result="failed"} 0"#,
            r#"anneal_training_attempts_failed_total{class="OOMKilled"} 0"#,
            r#"anneal_rollouts_total{resource_namespace="ml",result="rejected"} 0"#,
            r#"anneal_rollouts_total{resource_namespace="ml",result="rolled_back"} 0"#,
            r#"anneal_scheduled_starts_total{resource_namespace="ml",result="missed"} 0"#,
            r#"anneal_progress_reads_total{result="absent"} 0"#,
            r#"anneal_shadow_answers_total{result="agreed"} 0"#,
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn however_many_namespaces_there_are_only_so_many_are_told_by_name_and_none_is_lost() {
        let metrics = Metrics::new().expect("unique names");
        for number in 0..2 * MAX_NAMESPACES {
            metrics.run_finished(&format!("team-{number}"), false);
        }
        let text = String::from_utf8(metrics.text().expect("text")).expect("utf-8");
        let failed = |line: &&str| line.starts_with("anneal_training_runs_finished_total{") && line.contains("failed");
        assert_eq!(text.lines().filter(failed).count(), MAX_NAMESPACES + 1);
        let further = format!(
            r#"anneal_training_runs_finished_total{{resource_namespace="{FURTHER}",result="failed"}} {MAX_NAMESPACES}"#
        );
        assert!(text.contains(&further), "{further} is missing in\n{text}");
    }

    #[test]
    fn a_deployment_is_told_with_its_reason_of_now_and_not_when_it_is_gone() {
        let metrics = Metrics::new().expect("unique names");
        let lines = || {
            let text = String::from_utf8(metrics.text().expect("text")).expect("utf-8");
            let all = text.lines().filter(|line| line.starts_with("anneal_model_performance_degraded{"));
            all.map(str::to_owned).collect::<Vec<_>>()
        };
        let line = |reason: &str, value: i64| {
            format!(
                r#"anneal_model_performance_degraded{{model_deployment="cats",reason="{reason}",resource_namespace="ml"}} {value}"#
            )
        };
        metrics.performance([("ml", "cats", "WithinBounds", false)].into_iter());
        assert_eq!(lines(), [line("WithinBounds", 0)]);
        metrics.performance([("ml", "cats", "AccuracyBelowMinimum", true)].into_iter());
        assert_eq!(lines(), [line("AccuracyBelowMinimum", 1)]);
        metrics.performance(std::iter::empty());
        assert!(lines().is_empty());
    }

    #[test]
    fn runs_are_counted_by_phase_and_a_phase_without_runs_is_zero() {
        let metrics = Metrics::new().expect("unique names");
        metrics.runs([None, Some(RunPhase::Running), Some(RunPhase::Running)].into_iter());
        let text = String::from_utf8(metrics.text().expect("text")).expect("utf-8");
        for line in ["{phase=\"Running\"} 2", "{phase=\"Pending\"} 1", "{phase=\"Failed\"} 0"] {
            assert!(text.contains(&format!("anneal_training_runs{line}")), "{text}");
        }
    }

    #[test]
    fn training_metrics_go_with_the_run_and_are_bounded() {
        let metrics = Metrics::new().expect("unique names");
        let lines = || {
            let text = String::from_utf8(metrics.text().expect("text")).expect("utf-8");
            text.lines().filter(|line| line.starts_with("anneal_training_loss{")).count()
        };
        let progress = Progress { loss: Some(0.5), ..Progress::default() };
        for number in 0..2 * MAX_TRAININGS {
            metrics.training("ml", &number.to_string(), &progress);
        }
        assert_eq!(lines(), MAX_TRAININGS);
        metrics.training_ended("ml", "0");
        assert_eq!(lines(), MAX_TRAININGS - 1);
    }
}
