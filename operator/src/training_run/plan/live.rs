//! An attempt under way: whether it may go on, and what to say about it.

use anneal_api::{
    failure::FailureClass,
    resources::{CurrentAttempt, RunPhase, TrainingRunStatus, run_reason},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};

use super::{
    super::{
        failure::obstacle,
        nodes::COMPLETION_INDEX,
        observe::{AttemptPod, Observed},
        status::State,
    },
    Checked, Plan, deadline, finish, is_held_back, stop,
};
use crate::{controller::Wake, progress::Target};

/// How long a pod may start before it is told: most run within moments, and each word costs a write and an Event.
const UNTOLD: SignedDuration = SignedDuration::from_secs(5);

/// The attempt's Job is there, and nothing more.
pub fn created(number: i32) -> State {
    let text = format!("attempt {number}: the Job is created");
    State::working(RunPhase::Preparing, run_reason::JOB_CREATED, text)
}

/// Whether what is known of a pod is worth a write: it runs, or has been starting for a while.
pub fn is_told(pod: &Pod, now: Timestamp) -> bool {
    let is_pending =
        pod.status.as_ref().and_then(|status| status.phase.as_deref()).is_none_or(|phase| phase == "Pending");
    !is_pending || told_at(pod).is_none_or(|time| now >= time)
}

/// When it is to be told that a pod starts.
fn told_at(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.creation_timestamp.as_ref()?.0.checked_add(UNTOLD).ok()
}

/// The plan while the attempt's Job is there and has not ended.
pub fn plan(
    seen: &Observed,
    run: Checked,
    status: TrainingRunStatus,
    current: &CurrentAttempt,
    job: &Job,
    now: Timestamp,
) -> Plan {
    let spec = &seen.run.spec;
    let end = |status, stop| stop::begin(seen, status, current.clone(), stop, now);
    if spec.suspend {
        return end(status, stop::suspended(now));
    }
    if is_held_back(job) {
        let name = job.metadata.name.as_deref().unwrap_or_default();
        let text = format!(
            "attempt {}: Job {name} is suspended by somebody else, a queue for example, who lets it go",
            current.number
        );
        let state = State::waiting(RunPhase::Suspended, run_reason::JOB_SUSPENDED, text);
        return finish(seen, status, state, Wake::OnChange, now);
    }
    let active = deadline::active(spec, &status);
    if active.is_some_and(|limit| now >= limit) {
        return end(status, deadline::stop(FailureClass::ActiveDeadline, deadline::active_message(spec), now));
    }
    let pods: Vec<&AttemptPod> = seen.pods(current.number).filter(|attempt| !attempt.gone).collect();
    let started = |attempt: &AttemptPod| attempt.phase() == Some("Running") || attempt.has_ended();
    let waiting = pods.iter().find(|attempt| !started(attempt)).map(|attempt| &attempt.pod);
    let (state, limit) = if pods.is_empty() || !pods.iter().all(|attempt| started(attempt)) {
        // While a pod of several still starts, none of them trains.
        let nothing_ran = current.running_time.is_none() && !pods.iter().any(|attempt| started(attempt));
        if nothing_ran && run.is_ok() && stop::is_outdated(job, seen) {
            return end(status, stop::replaced(now));
        }
        let limit = deadline::start(spec, current, Some(job));
        if current.running_time.is_none() && now >= limit {
            return end(status, deadline::not_started(spec, current, seen, now));
        }
        (preparing(current, waiting, now), Some(limit).filter(|_| current.running_time.is_none()))
    } else {
        let limit = deadline::progress(spec, current, seen);
        if limit.is_some_and(|limit| deadline::has_stalled(limit, seen, now)) {
            return end(status, deadline::stalled(spec, now));
        }
        (running(current, &pods, now), limit.map(|limit| deadline::look_at_progress(limit, now)))
    };
    // Nothing tells that a pod did not go in time.
    let late = pods.iter().filter_map(|attempt| stop::gone_by(&attempt.pod)).filter(|by| now < *by);
    let untold = waiting.filter(|pod| obstacle(pod).is_none()).and_then(told_at).filter(|time| now < *time);
    let wake = [active, limit, untold].into_iter().flatten().chain(late).fold(Wake::OnChange, Wake::or_at);
    let mut plan = finish(seen, status, state, wake, now);
    // A pod that has ended answers no more; the Job follows within seconds.
    let speaks = pods.iter().filter(|attempt| attempt.phase() == Some("Running"));
    plan.follow = speaks.min_by_key(|attempt| index(&attempt.pod)).and_then(|attempt| target(&attempt.pod));
    plan
}

fn preparing(current: &CurrentAttempt, waiting: Option<&Pod>, now: Timestamp) -> State {
    let number = current.number;
    let Some(pod) = waiting else { return created(number) };
    if let Some(text) = stop::out_of_reach(pod, now) {
        return State::waiting(
            RunPhase::Preparing,
            FailureClass::NodeLost.as_str(),
            format!("attempt {number}: {text}"),
        );
    }
    match obstacle(pod) {
        Some((class, message)) => {
            // A claim or a Secret that is not there is mended elsewhere.
            let is_of_template = matches!(class, FailureClass::ImagePull | FailureClass::Unschedulable);
            let then = if is_of_template { ". A change of podTemplate takes effect by itself" } else { "" };
            State::waiting(RunPhase::Preparing, class.as_str(), format!("attempt {number}: {message}{then}"))
        }
        None if !is_told(pod, now) => created(number),
        None => {
            State::working(RunPhase::Preparing, run_reason::POD_STARTING, format!("attempt {number}: the pod starts"))
        }
    }
}

fn running(current: &CurrentAttempt, pods: &[&AttemptPod], now: Timestamp) -> State {
    let number = current.number;
    let lost =
        pods.iter().filter(|attempt| attempt.is_writer()).find_map(|attempt| stop::out_of_reach(&attempt.pod, now));
    if let Some(text) = lost {
        return State::waiting(RunPhase::Running, FailureClass::NodeLost.as_str(), format!("attempt {number}: {text}"));
    }
    if let Some(disruption) = &current.disruption {
        let text = format!("attempt {number}: {}; it ends, and the run is tried again", disruption.message);
        return State::working(RunPhase::Running, disruption.class.as_str(), text);
    }
    let node = current.node.as_deref().unwrap_or_default();
    State::working(RunPhase::Running, run_reason::TRAINING, format!("attempt {number} runs on node {node}"))
}

/// Of the pods of several nodes, the first one speaks for all.
fn index(pod: &Pod) -> i32 {
    let labels = pod.metadata.labels.as_ref();
    let index = labels.and_then(|labels| labels.get(COMPLETION_INDEX));
    index.and_then(|index| index.parse().ok()).unwrap_or(0)
}

fn target(pod: &Pod) -> Option<Target> {
    Some(Target {
        namespace: pod.metadata.namespace.clone()?,
        pod: pod.metadata.name.clone()?,
        address: pod.status.as_ref()?.pod_ip.clone()?,
    })
}
