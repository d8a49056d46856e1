//! A sweep: its trials with their parameters, the best one marked.

use anneal_api::{
    count,
    resources::{SweepPhase, TrainingSweep, TrainingSweepStatus, TrialPhase, TrialStatus},
};
use kube::ResourceExt as _;

use super::{Ending, Report, message};
use crate::{
    children::Children,
    paint::Paint,
    state::{self, State},
    tree::Node,
};

/// What is shown of a sweep.
pub fn report(sweep: &TrainingSweep, children: &Children, paint: Paint) -> Report {
    let status = sweep.status.clone().unwrap_or_default();
    let state = state::of_sweep(status.phase);
    let counts = status.counts.unwrap_or_default();
    let over = counts.succeeded + counts.failed + counts.stopped;
    let percent = (counts.total > 0).then(|| i64::from(over) * 100 / i64::from(counts.total));
    let trials = percent.map(|percent| {
        let bar = paint.bar(state.tone, percent);
        let running = if counts.running > 0 { format!(", {} running", counts.running) } else { String::new() };
        format!("{bar}  {over} of {} trials over{running}", counts.total)
    });
    Report {
        kind: "TrainingSweep",
        namespace: sweep.namespace().unwrap_or_default(),
        name: sweep.name_any(),
        percent,
        summary: summary(&status),
        message: message(&status.conditions),
        ending: match status.phase {
            Some(SweepPhase::Succeeded) => Ending::Good,
            Some(SweepPhase::Failed) => Ending::Bad,
            _ => Ending::Open,
        },
        facts: vec![("Trials", trials.unwrap_or_default()), ("Best", best(&status))],
        tree: Node {
            name: sweep.name_any(),
            kind: "TrainingSweep",
            state: state.clone(),
            since: sweep.metadata.creation_timestamp.as_ref().map(|time| time.0),
            info: summary(&status),
            children: status.trials.iter().map(|trial| of_trial(trial, &status, children)).collect(),
        },
        state,
    }
}

/// In a few words, how far a sweep is: for lists and logs.
pub fn summary(status: &TrainingSweepStatus) -> String {
    let counts = status.counts.unwrap_or_default();
    let parts = [
        (counts.running, "running"),
        (counts.succeeded, "succeeded"),
        (counts.failed, "failed"),
        (counts.stopped, "stopped"),
    ];
    let parts: Vec<String> =
        parts.into_iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
    match (counts.total, parts.is_empty()) {
        (0, _) => String::new(),
        (total, true) => count::of(total, "trial"),
        (total, false) => format!("{}: {}", count::of(total, "trial"), parts.join(", ")),
    }
}

fn best(status: &TrainingSweepStatus) -> String {
    let Some(best) = &status.best else { return String::new() };
    format!("{} with {:.4}: {}", best.run, best.value, parameters(&best.parameters))
}

fn parameters(all: &std::collections::BTreeMap<String, String>) -> String {
    let short = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    all.iter().map(|(path, value)| format!("{}={value}", short(path))).collect::<Vec<_>>().join(" ")
}

fn of_trial(trial: &TrialStatus, status: &TrainingSweepStatus, children: &Children) -> Node {
    let run = children.runs.iter().find(|run| run.name_any() == trial.run);
    let progress = run.and_then(|run| run.status.as_ref()).filter(|_| trial.phase == TrialPhase::Running);
    let progress = progress.map(super::run::summary).filter(|summary| !summary.is_empty());
    let value = trial.value.map(|value| format!("{value:.4}"));
    let mark = status.best.as_ref().filter(|best| best.run == trial.run).map(|_| "best".to_owned());
    let message = Some(trial.message.clone()).filter(|message| !message.is_empty());
    let said = [parameters(&trial.parameters)].into_iter().chain(value).chain(mark).chain(progress).chain(message);
    let State { word, tone } = state::of_trial(trial.phase);
    Node {
        name: trial.run.clone(),
        kind: "TrainingRun",
        state: State::new(tone, word),
        since: run.and_then(|run| run.metadata.creation_timestamp.as_ref()).map(|time| time.0),
        info: said.collect::<Vec<_>>().join(", "),
        children: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixtures;

    #[test]
    fn a_sweep_shows_its_trials_and_marks_the_best() {
        let sweep = fixtures::sweep(&json!({
            "phase": "Running",
            "counts": {"total": 2, "pending": 0, "running": 1, "succeeded": 1, "failed": 0, "stopped": 0},
            "best": {"run": "rates-1", "value": 0.9, "parameters": {"hyperparameters.learningRate": "0.001"}},
            "trials": [
                {"number": 1, "run": "rates-1", "phase": "Succeeded", "parameters": {"hyperparameters.learningRate": "0.001"}, "value": 0.9},
                {"number": 2, "run": "rates-2", "phase": "Running", "parameters": {"hyperparameters.learningRate": "0.01"}}
            ]
        }));
        let report = report(&sweep, &Children::default(), Paint::PLAIN);
        assert_eq!(
            report.lines(fixtures::now(), Paint::PLAIN).join("\n"),
            "\
TrainingSweep:  rates
Namespace:      demo
Phase:          ◌ Running
Trials:         ████████████░░░░░░░░░░░░  50%  1 of 2 trials over, 1 running
Best:           rates-1 with 0.9000: learningRate=0.001

NAME        KIND           STATUS       AGE  INFO
rates       TrainingSweep  ◌ Running    10m  2 trials: 1 running, 1 succeeded
├─ rates-1  TrainingRun    ✔ Succeeded  -    learningRate=0.001, 0.9000, best
└─ rates-2  TrainingRun    ◌ Running    -    learningRate=0.01"
        );
    }
}
