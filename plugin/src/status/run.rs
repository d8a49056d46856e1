//! A training run: how far it is, and its attempts with their pods.

use anneal_api::{
    count,
    failure::FailureClass,
    resources::{Attempt, RunPhase, TrainingRun, TrainingRunStatus},
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::{Ending, Report, hidden, message};
use crate::{
    age,
    children::Children,
    paint::Paint,
    pods::{self, attempt_of},
    state::{self, State, Tone},
    tree::Node,
};

/// What is shown of a run.
pub fn report(run: &TrainingRun, children: &Children, now: Timestamp, paint: Paint) -> Report {
    let status = run.status.clone().unwrap_or_default();
    let state = state::of_run(status.phase);
    let ending = match status.phase {
        Some(RunPhase::Succeeded) => Ending::Good,
        Some(RunPhase::Failed) => Ending::Bad,
        _ => Ending::Open,
    };
    let is_training = status.phase == Some(RunPhase::Running);
    Report {
        kind: "TrainingRun",
        namespace: run.namespace().unwrap_or_default(),
        name: run.name_any(),
        percent: status.progress.as_ref().map(|progress| progress.reported.percent()),
        summary: summary(&status),
        message: message(&status.conditions),
        ending,
        facts: vec![
            ("Progress", progress(&status, state.tone, paint)),
            ("Quality", quality(&status)),
            ("Speed", if is_training { speed(&status, now) } else { String::new() }),
            ("Metrics", metrics(&status)),
            ("Begins with", begins_with(run)),
            ("Hidden", hidden(children)),
        ],
        tree: tree(run, &status, &state, children),
        state,
    }
}

/// In a few words, how far a run is: for lists and logs.
pub fn summary(status: &TrainingRunStatus) -> String {
    let Some(progress) = &status.progress else { return String::new() };
    let best = progress.reported.best.map(|best| format!(", best {best:.4}")).unwrap_or_default();
    format!("{} epoch {}{best}", progress.percent, progress.epoch_of_epochs)
}

fn progress(status: &TrainingRunStatus, tone: Tone, paint: Paint) -> String {
    let Some(progress) = &status.progress else { return String::new() };
    let bar = paint.bar(tone, progress.reported.percent());
    let (step, steps) = (progress.reported.step, progress.reported.steps);
    // A trainer that reads its data does not know yet how many there will be.
    let steps = if steps > 0 { format!(", step {step} of {steps}") } else { String::new() };
    format!("{bar}  epoch {}{steps}", progress.epoch_of_epochs)
}

fn quality(status: &TrainingRunStatus) -> String {
    let reported = status.progress.as_ref().map(|progress| &progress.reported);
    let best = reported.and_then(|it| it.best).map(|best| format!("best accuracy {best:.4}"));
    let loss = reported.and_then(|it| it.loss).map(|loss| format!("loss {loss:.4}"));
    best.into_iter().chain(loss).collect::<Vec<_>>().join(", ")
}

fn speed(status: &TrainingRunStatus, now: Timestamp) -> String {
    let reported = status.progress.as_ref().map(|progress| &progress.reported);
    let rate = reported.and_then(|it| it.images_per_second).map(|rate| format!("{rate:.1} images/s"));
    let left = reported.and_then(|it| it.estimated_completion_time).filter(|end| *end > now);
    let left = left.map(|end| format!("{} left", age::between(now, end)));
    let silent = reported.map(|it| it.last_update_time).filter(|last| now.as_second() - last.as_second() > 60);
    let silent = silent.map(|last| format!("last heard of {} ago", age::between(last, now)));
    rate.into_iter().chain(left).chain(silent).collect::<Vec<_>>().join(", ")
}

/// What the published model was measured with, on the test set where there is one.
fn metrics(status: &TrainingRunStatus) -> String {
    status.result.as_ref().map_or_else(String::new, |result| {
        let it = &result.metrics;
        format!("accuracy {:.4}, precision {:.4}, recall {:.4}, f1 {:.4}", it.accuracy, it.precision, it.recall, it.f1)
    })
}

fn begins_with(run: &TrainingRun) -> String {
    let other = run.spec.init_from.as_ref().and_then(|init| init.training_run_ref.as_ref());
    other.map_or_else(String::new, |other| format!("the model of TrainingRun {}", other.name))
}

fn tree(run: &TrainingRun, status: &TrainingRunStatus, state: &State, children: &Children) -> Node {
    let name = run.name_any();
    let over = status.attempts.iter().map(|attempt| {
        let pods = pods_of(children, attempt.number);
        let state = attempt.class.map_or_else(
            || State::new(Tone::Good, "Succeeded"),
            |class| State::new(if class == FailureClass::Suspended { Tone::Idle } else { Tone::Bad }, class.as_str()),
        );
        Node {
            name: format!("{name}-{}", attempt.number),
            kind: "Attempt",
            state,
            since: attempt.start_time.as_ref().map(|time| time.0),
            info: how_it_went(attempt),
            children: pods,
        }
    });
    // An attempt begins when its Job is made; until then only the time is known from which it is due.
    let current = status.current_attempt.as_ref().filter(|current| {
        let is_over = status.attempts.iter().any(|attempt| attempt.number == current.number);
        status.attempt >= Some(current.number) && !is_over && status.completion_time.is_none()
    });
    let current = current.map(|current| {
        let from = current.resumed_from_step.map(|step| format!("goes on from step {step}"));
        let stop = current.stop.as_ref().map(|stop| format!("is being stopped: {}", stop.message));
        Node {
            name: format!("{name}-{}", current.number),
            kind: "Attempt",
            state: if current.running_time.is_some() {
                State::new(Tone::Busy, "Running")
            } else {
                State::new(Tone::Waiting, "Starting")
            },
            since: Some(current.due_time.0),
            info: from.into_iter().chain(stop).collect::<Vec<_>>().join(", "),
            children: pods_of(children, current.number),
        }
    });
    Node {
        name: name.clone(),
        kind: "TrainingRun",
        state: state.clone(),
        since: run.metadata.creation_timestamp.as_ref().map(|time| time.0),
        info: summary(status),
        children: over.chain(current).collect(),
    }
}

fn pods_of(children: &Children, attempt: i32) -> Vec<Node> {
    let own = |pod: &&Pod| attempt_of(*pod) == Some(attempt);
    children.pods.iter().filter(own).map(pods::node).collect()
}

fn how_it_went(attempt: &Attempt) -> String {
    let took = attempt.start_time.as_ref().map(|start| format!("took {}", age::between(start.0, attempt.end_time.0)));
    let from = attempt.resumed_from_step.map(|step| format!("went on from step {step}"));
    let to = attempt.step.filter(|_| attempt.class.is_some()).map(|step| format!("came to step {step}"));
    let lost = attempt.steps_lost.filter(|lost| *lost > 0).map(|lost| format!("lost {}", count::of(lost, "step")));
    let message = Some(attempt.message.clone()).filter(|message| !message.is_empty());
    took.into_iter().chain(from).chain(to).chain(lost).chain(message).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixtures;

    #[test]
    fn a_run_under_way_shows_its_bar_its_time_left_and_its_attempts_with_their_pods() {
        let run = fixtures::run(&json!({
            "phase": "Running", "attempt": 2,
            "conditions": [fixtures::condition("Progressing", "Training", "attempt 2 trains")],
            "attempts": [{
                "number": 1, "startTime": "2026-01-02T03:05:05Z", "endTime": "2026-01-02T03:08:17Z", "class": "Evicted",
                "step": 120, "stepsLost": 4, "message": "the pod was evicted"
            }],
            "currentAttempt": {"number": 2, "dueTime": "2026-01-02T03:08:27Z", "runningTime": "2026-01-02T03:08:30Z", "resumedFromStep": 116},
            "progress": {
                "percent": "62%", "epochOfEpochs": "7/12", "epoch": 7, "epochs": 12, "step": 310, "steps": 500,
                "loss": 0.1234, "best": 0.945, "imagesPerSecond": 312.4,
                "estimatedCompletionTime": "2026-01-02T03:16:15Z", "lastUpdateTime": "2026-01-02T03:14:00Z"
            }
        }));
        let labels = json!({"anneal.dev/attempt": "2"});
        let pod = fixtures::pod("cats-2-x8s7d", &labels, &json!({"phase": "Running"}));
        let children = Children { pods: vec![pod], ..Children::default() };
        let report = report(&run, &children, fixtures::now(), Paint::PLAIN);
        assert_eq!(report.ending, Ending::Open);
        assert_eq!(
            report.lines(fixtures::now(), Paint::PLAIN).join("\n"),
            "\
TrainingRun:  cats
Namespace:    demo
Phase:        ◌ Running
Progress:     ██████████████░░░░░░░░░░  62%  epoch 7/12, step 310 of 500
Quality:      best accuracy 0.9450, loss 0.1234
Speed:        312.4 images/s, 2m10s left
Message:      attempt 2 trains

NAME                KIND         STATUS     AGE    INFO
cats                TrainingRun  ◌ Running  10m    62% epoch 7/12, best 0.9450
├─ cats-1           Attempt      ✖ Evicted  9m     took 3m12s, came to step 120, lost 4 steps, the pod was evicted
└─ cats-2           Attempt      ◌ Running  5m38s  goes on from step 116
   └─ cats-2-x8s7d  Pod          ◌ Running  10m    node-1"
        );
    }

    #[test]
    fn a_run_that_nobody_has_seen_says_so() {
        let run = fixtures::run(&json!(null));
        let report = report(&run, &Children::default(), fixtures::now(), Paint::PLAIN);
        assert_eq!(report.line(), "TrainingRun cats  not seen by the operator");
    }
}
