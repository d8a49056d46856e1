//! Callers from inside the cluster, and what they tell of it.

use std::collections::BTreeMap;

use anneal_tests::{Context as _, Namespace, Result};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use crate::scenario::PATIENCE;

/// Requests a second of each of the two callers: together about half of what two pods on two cores give beside the
/// cluster itself.
const RATE: &str = "10";

/// Callers that keep their connections, and callers that come for the first time, each in a pod of its own.
pub struct Traffic<'a>(&'a Namespace);

impl<'a> Traffic<'a> {
    /// Begins to ask the deployment `cats`.
    pub async fn start(ns: &'a Namespace) -> Result<Self> {
        Self::to(ns, "cats").await
    }

    /// Begins to ask a Service.
    pub async fn to(ns: &'a Namespace, service: &str) -> Result<Self> {
        let url = format!("http://{service}.{}.svc", ns.name);
        start(ns, "callers", &url, &[], None).await?;
        start(ns, "newcomers", &url, &["--new-connections"], None).await?;
        Ok(Self(ns))
    }

    /// What the callers and the newcomers have told so far.
    pub async fn told(&self) -> Result<[Told; 2]> {
        Ok([told_by(self.0, "callers").await?, told_by(self.0, "newcomers").await?])
    }
}

/// Begins to send requests to `url` from a pod of this name, to which a `ConfigMap` may give files to send.
pub async fn start(ns: &Namespace, pod: &str, url: &str, more: &[&str], files: Option<&str>) -> Result<()> {
    let args = [
        "load",
        "--url",
        url,
        "--concurrency",
        "2",
        "--rate",
        RATE,
        "--duration",
        "1h",
        "--journal",
        "--timeout",
        "10s",
    ];
    let image = ns.cluster.operator.server_image.clone();
    ns.start(pod, &image, &[&args, more].concat(), files).await?;
    ns.watch::<Pod>(pod)
        .until("it sends requests", PATIENCE, |pod| {
            pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
        })
        .await?;
    Ok(())
}

/// What a pod of callers has told so far.
pub async fn told_by(ns: &Namespace, pod: &str) -> Result<Told> {
    Told::read(&ns.kubectl(&["logs", pod]).await?.ok()?.out)
}

/// What the callers told, line by line.
#[derive(Debug, Default)]
pub struct Told {
    /// Requests that were answered.
    pub answers: u64,
    /// Requests that were not, or not well.
    pub failures: u64,
    /// Why, and how often.
    pub reasons: BTreeMap<String, usize>,
    /// Longest time without an answer.
    pub max_gap_seconds: f64,
    /// When there was no answer for half a second or more, and for how long.
    pub gaps: Vec<(Timestamp, f64)>,
    /// When each revision began to answer, after another one.
    pub begun: Vec<(Timestamp, String)>,
    /// Answers of each revision, every time that they were counted.
    pub counts: Vec<(Timestamp, BTreeMap<String, u64>)>,
}

impl Told {
    fn read(log: &str) -> Result<Self> {
        let mut told = Self::default();
        for line in log.lines().filter(|line| line.starts_with('{')) {
            let line: Value = serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))?;
            match line["event"].as_str().unwrap_or_default() {
                "failed" => *told.reasons.entry(line["why"].as_str().unwrap_or_default().to_owned()).or_default() += 1,
                "revision" => told.begun.push((at(&line)?, line["revision"].as_str().unwrap_or_default().to_owned())),
                "gap" => {
                    let seconds = line["seconds"].as_f64().unwrap_or(f64::INFINITY);
                    told.gaps.push((at(&line)?, seconds));
                    told.max_gap_seconds = told.max_gap_seconds.max(seconds);
                }
                "count" => {
                    told.answers = line["answers"].as_u64().unwrap_or_default();
                    told.failures = line["failures"].as_u64().unwrap_or_default();
                    told.max_gap_seconds = line["maxGapSeconds"].as_f64().unwrap_or(f64::INFINITY);
                    told.counts.push((at(&line)?, serde_json::from_value(line["revisions"].clone())?));
                }
                _ => {}
            }
        }
        told.failures = told.failures.max(told.reasons.values().sum::<usize>() as u64);
        Ok(told)
    }

    /// Time from the switch of the Service until the revision first answered.
    pub fn switch_seconds(&self, revision: &str, switched: Timestamp) -> Option<f64> {
        let window = switched.checked_sub(jiff::SignedDuration::from_secs(2)).ok()?;
        let began = self.begun.iter().find(|(at, name)| name == revision && *at >= window)?.0;
        Some(began.duration_since(switched).as_secs_f64().max(0.0))
    }
}

/// When a line was written.
fn at(line: &Value) -> Result<Timestamp> {
    Ok(line["at"].as_str().context("a line without its time")?.parse()?)
}
