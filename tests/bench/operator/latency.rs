//! When what happened to each run, from the audit log: its times are the API server's, to the microsecond, and reading them
//! afterwards costs the measurement nothing.

use std::collections::HashMap;

use anneal_tests::Request;
use jiff::Timestamp;

use crate::measured::{Calls, Curve, Latency};

/// The operator's user.
pub const OPERATOR: &str = "system:serviceaccount:anneal-system:anneal";
/// The user of the controller beside it. On one control plane there is one of them.
const PEER: &str = "system:serviceaccount:jobset-system:jobset";

/// What happened to one run, JobSet or Job.
#[derive(Clone, Copy, Debug, Default)]
struct Life {
    created: Option<Timestamp>,
    job: Option<Timestamp>,
    job_ended: Option<Timestamp>,
    status: Option<Timestamp>,
}

/// What the audit log tells of one namespace.
#[derive(Debug, Default)]
pub struct Lives {
    by_run: HashMap<String, Life>,
    /// Requests of the controller.
    pub calls: Calls,
    /// Those that failed, by status.
    pub refused: Calls,
}

fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}

impl Lives {
    /// Takes one request into account.
    pub fn take(&mut self, request: &Request) {
        let is_controllers = [OPERATOR, PEER].contains(&request.user.as_str());
        if is_controllers {
            let what = format!("{} {}", request.verb, request.resource);
            if request.code >= 400 {
                *self.refused.entry(format!("{what}: {}", request.code)).or_default() += 1;
            }
            *self.calls.entry(what).or_default() += 1;
        }
        if request.code >= 400 || request.name.is_empty() {
            return;
        }
        // A Job is named after its run (or JobSet), which is called run-NUMBER, and the attempt.
        let run = || request.name.split('-').take(2).collect::<Vec<_>>().join("-");
        let answered = Some(request.answered);
        match (request.verb.as_str(), request.resource.as_str()) {
            ("create", "trainingruns" | "jobsets") => {
                self.by_run.entry(request.name.clone()).or_default().created = Some(request.at);
            }
            ("create", "jobs") => {
                let life = self.by_run.entry(run()).or_default();
                life.job = life.job.or(answered);
                if !is_controllers {
                    life.created = Some(request.at);
                }
            }
            // The last one is the one that says that it has ended.
            ("update" | "patch", "jobs/status") => self.by_run.entry(run()).or_default().job_ended = answered,
            ("update" | "patch", "trainingruns/status" | "jobsets/status") => {
                self.by_run.entry(request.name.clone()).or_default().status = answered;
            }
            _ => {}
        }
    }

    /// From creation to the first Job.
    pub fn to_job(&self) -> Latency {
        Latency::of(self.by_run.values().filter_map(|life| Some(seconds(life.created?, life.job?))).collect())
    }

    /// From the end of the last Job to the run's own.
    pub fn job_to_status(&self) -> Latency {
        let times = self.by_run.values().filter_map(|life| Some(seconds(life.job_ended?, life.status?)));
        // A run that changed after its end has a later status; one whose Job changed later has an earlier one.
        Latency::of(times.map(|time| time.max(0.0)).collect())
    }

    /// How many were done by when, in seconds since the first creation: a run or JobSet with its status, a bare Job with its own.
    #[expect(clippy::cast_precision_loss, reason = "counts of runs")]
    pub fn done(&self) -> Curve {
        let Some(begin) = self.by_run.values().filter_map(|life| life.created).min() else { return Curve::new() };
        let mut ends: Vec<f64> =
            self.by_run.values().filter_map(|life| Some(seconds(begin, life.status.or(life.job_ended)?))).collect();
        ends.sort_by(f64::total_cmp);
        let step = (ends.len() / 200).max(1);
        let last = ends.len();
        (1..)
            .zip(ends)
            .filter(|(count, _)| count % step == 0 || *count == last)
            .map(|(n, end)| (end, n as f64))
            .collect()
    }
}
