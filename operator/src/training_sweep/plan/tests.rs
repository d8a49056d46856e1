//! The plan, case by case and over random histories.

use std::sync::Arc;

use anneal_api::{
    progress::Progress,
    resources::{ProgressStatus, TrainingRunStatus, TrainingSweep},
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::training_sweep::validate::validate;

/// A sweep as the cluster shows it; each case says only what matters to it.
#[derive(Clone)]
struct Case {
    seen: Observed,
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("in range")
}

/// A sweep over four learning rates, two at a time.
fn sweep(spec: &Value) -> Case {
    let mut all = json!({
        "template": {"spec": {"dataset": {"uri": "synthetic://"}, "output": {"claimName": "models"}}},
        "parameters": [{"name": "hyperparameters.learningRate", "values": [0.001, 0.01, 0.1, 1]}],
        "parallelism": 2
    });
    for (key, value) in spec.as_object().expect("an object") {
        all[key] = value.clone();
    }
    let mut sweep = TrainingSweep::new("rates", serde_json::from_value(all).expect("a spec"));
    sweep.metadata.namespace = Some("ml".into());
    sweep.metadata.uid = Some("0123456789".into());
    sweep.metadata.generation = Some(1);
    Case { seen: Observed { sweep: Arc::new(sweep), runs: Vec::new(), in_use: false } }
}

impl Case {
    fn edit(mut self, change: impl FnOnce(&mut TrainingSweep)) -> Self {
        let mut sweep = (*self.seen.sweep).clone();
        change(&mut sweep);
        self.seen.sweep = Arc::new(sweep);
        self
    }

    fn plan(&self, second: i64) -> Plan {
        plan(&self.seen, &validate(&self.seen.sweep).expect("valid"), at(second))
    }

    /// The same with the runs that the plan starts, and without those that it stops.
    fn carried_out(mut self, plan: &Plan) -> Self {
        for run in &plan.start {
            let number = run.labels()[label::TRIAL].parse().expect("a number");
            self.seen.runs.push(TrialRun { number, run: run.clone() });
        }
        self.seen.runs.sort_by_key(|trial| trial.number);
        for (run, suspend) in &plan.suspend {
            let found = self.seen.runs.iter_mut().find(|trial| trial.run.name_any() == run.name_any());
            let run = &mut found.expect("a run that was seen").run;
            run.spec.suspend = *suspend;
            run.annotations_mut().retain(|key, _| key != label::SUSPENDED_BY_SWEEP);
            if *suspend {
                run.annotations_mut().insert(label::SUSPENDED_BY_SWEEP.into(), "true".into());
            }
        }
        let goes = |run: &TrainingRun| plan.stop.iter().any(|stopped| stopped.name_any() == run.name_any());
        self.seen.runs.retain(|trial| !goes(&trial.run));
        self
    }

    /// The same with all that the plan does, recorded.
    fn step(self, second: i64) -> Self {
        let plan = self.plan(second);
        let status = plan.status.clone();
        self.carried_out(&plan).edit(|sweep| sweep.status = Some(status))
    }

    fn run(&mut self, number: i32) -> Option<&mut TrainingRunStatus> {
        let found = self.seen.runs.iter_mut().find(|trial| trial.number == number)?;
        Some(found.run.status.get_or_insert_default())
    }

    fn runs(mut self, number: i32, epoch: i32, best: f64) -> Self {
        if let Some(status) = self.run(number) {
            status.phase = Some(RunPhase::Running);
            status.progress = Some(Box::new(progress(epoch, best)));
        }
        self
    }

    fn ends(mut self, number: i32, phase: RunPhase, best: f64) -> Self {
        if let Some(status) = self.run(number) {
            status.phase = Some(phase);
            status.progress = Some(Box::new(progress(10, best)));
        }
        self
    }

    fn without_run(mut self, number: i32) -> Self {
        self.seen.runs.retain(|trial| trial.number != number);
        self
    }

    fn phase_of(&self, number: i32) -> Option<TrialPhase> {
        let trials = &self.seen.sweep.status.as_ref()?.trials;
        trials.iter().find(|trial| trial.number == number).map(|trial| trial.phase)
    }
}

fn progress(epoch: i32, best: f64) -> ProgressStatus {
    let reported: Progress = serde_json::from_value(json!({
        "epoch": epoch, "epochs": 10, "step": 1, "steps": 10, "loss": 1.0 - best, "best": best,
        "lastUpdateTime": "2026-01-01T00:00:00Z"
    }))
    .expect("progress");
    ProgressStatus::from(reported)
}

fn started(plan: &Plan) -> Vec<String> {
    plan.start.iter().map(ResourceExt::name_any).collect()
}

fn reason(plan: &Plan) -> String {
    plan.status.conditions.iter().find(|c| c.type_ == "Ready").map(|c| c.reason.clone()).unwrap_or_default()
}

#[test]
fn a_new_sweep_starts_as_many_trials_as_may_run_at_a_time() {
    let plan = sweep(&json!({})).plan(0);
    assert_eq!(started(&plan), ["rates-1", "rates-2"]);
    assert!((plan.start[1].spec.hyperparameters.learning_rate - 0.01).abs() < 1e-12);
    assert_eq!(plan.start[1].labels()[label::SWEEP], "rates");
    let counts = plan.status.counts.expect("counts");
    assert_eq!((plan.status.phase, counts.total, counts.pending), (Some(SweepPhase::Running), 4, 4));
}

#[test]
fn the_next_trial_starts_when_one_is_over_and_the_best_is_told() {
    let case = sweep(&json!({})).step(0).ends(1, RunPhase::Succeeded, 0.8).runs(2, 1, 0.9);
    let plan = case.plan(10);
    assert_eq!(started(&plan), ["rates-3"]);
    let best = plan.status.best.expect("a best one");
    assert_eq!((best.run.as_str(), best.value), ("rates-1", 0.8));
    assert_eq!(best.parameters["hyperparameters.learningRate"], "0.001");
}

#[test]
fn a_sweep_whose_trials_are_over_names_the_best_and_never_starts_again() {
    let mut case = sweep(&json!({}));
    for (number, best) in [(1, 0.7), (2, 0.9), (3, 0.9), (4, 0.8)] {
        case = case.step(number.into()).ends(number, RunPhase::Succeeded, best);
    }
    let done = case.step(50);
    let status = done.seen.sweep.status.clone().expect("a status");
    assert_eq!(status.phase, Some(SweepPhase::Succeeded));
    assert_eq!(status.best.map(|best| best.run), Some("rates-2".into()), "of equal ones, the first");
    assert_eq!(status.completion_time, Some(Time(at(50))));
    let again = done.without_run(2).edit(|sweep| sweep.spec.parallelism = 4).plan(99);
    assert_eq!((again.start.len(), again.wake, again.status.counts.map(|c| c.succeeded)), (0, Wake::Never, Some(4)));
}

#[test]
fn a_trial_that_does_worse_than_the_median_is_stopped_and_its_run_goes_once_that_is_recorded() {
    let mut case = sweep(&json!({"parallelism": 4, "earlyStopping": {"graceEpochs": 2, "minTrials": 3}})).step(0);
    for (number, best) in [(1, 0.9), (2, 0.8), (3, 0.5), (4, 0.7)] {
        case = case.runs(number, 2, best);
    }
    let plan = case.plan(10);
    assert_eq!(plan.stop.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["rates-3", "rates-4"]);
    let counts = plan.status.counts.expect("counts");
    assert_eq!((counts.stopped, counts.running), (2, 2));
    assert!(plan.events.iter().any(|event| event.reason == "TrialStopped" && event.note.contains("median")));
    // A crash after the status was written: the runs go at the next look.
    let crashed = case.edit(|sweep| sweep.status = Some(plan.status));
    assert_eq!(crashed.plan(11).stop.len(), 2);
    let gone = crashed.step(11).step(12);
    assert_eq!((gone.phase_of(3), gone.seen.runs.len()), (Some(TrialPhase::Stopped), 2));
}

#[test]
fn a_trial_that_is_still_being_stopped_takes_a_place() {
    let mut case = sweep(&json!({})).step(0).runs(1, 1, 0.5).runs(2, 1, 0.5);
    case.seen.runs[0].run.metadata.deletion_timestamp = Some(Time(at(5)));
    let plan = case.plan(10);
    assert_eq!((started(&plan).len(), plan.status.trials[0].phase), (0, TrialPhase::Stopped));
}

#[test]
fn too_many_failures_end_a_sweep_when_those_that_run_are_over() {
    let case = sweep(&json!({"maxFailedTrials": 0})).step(0).ends(1, RunPhase::Failed, 0.0).runs(2, 1, 0.5);
    let waiting = case.plan(10);
    assert_eq!((waiting.start.len(), reason(&waiting).as_str()), (0, "TooManyFailures"));
    assert_eq!(waiting.status.phase, Some(SweepPhase::Running));
    let over = case.step(10).ends(2, RunPhase::Succeeded, 0.6).plan(20);
    assert_eq!(over.status.phase, Some(SweepPhase::Failed));
    assert_eq!(over.status.best.map(|best| best.run), Some("rates-2".into()), "what was found is still told");
}

#[test]
fn a_sweep_without_a_success_fails() {
    let mut case = sweep(&json!({"maxFailedTrials": 10}));
    for number in 1..=4 {
        case = case.step(0).ends(number, RunPhase::Failed, 0.0);
    }
    assert_eq!(reason(&case.plan(10)), "NoTrialSucceeded");
}

#[test]
fn a_suspended_sweep_starts_nothing_and_goes_on_afterwards() {
    let suspend = |suspend: bool| move |sweep: &mut TrainingSweep| sweep.spec.suspend = suspend;
    let case = sweep(&json!({})).step(0).runs(1, 1, 0.5).ends(2, RunPhase::Succeeded, 0.6).edit(suspend(true));
    let suspending = case.plan(10);
    assert_eq!((suspending.start.len(), reason(&suspending).as_str()), (0, "Suspending"));
    let case = case.step(10).ends(1, RunPhase::Succeeded, 0.7);
    assert_eq!(case.plan(20).status.phase, Some(SweepPhase::Suspended));
    assert_eq!(started(&case.step(20).edit(suspend(false)).plan(30)), ["rates-3", "rates-4"]);
}

#[test]
fn a_suspended_sweep_suspends_its_trials_and_lets_none_go_on_that_somebody_suspended_by_hand() {
    let suspend = |suspend: bool| move |sweep: &mut TrainingSweep| sweep.spec.suspend = suspend;
    let suspended = |plan: &Plan| -> Vec<(String, bool)> {
        plan.suspend.iter().map(|(run, suspend)| (run.name_any(), *suspend)).collect()
    };
    let mut case = sweep(&json!({})).step(0).runs(1, 1, 0.5).runs(2, 1, 0.5);
    assert!(case.plan(5).suspend.is_empty());
    case.seen.runs[1].run.spec.suspend = true;
    let case = case.edit(suspend(true));
    assert_eq!(suspended(&case.plan(10)), [("rates-1".to_owned(), true)]);
    let mut case = case.step(10);
    assert_eq!(reason(&case.plan(11)), "Suspending");
    assert!(case.plan(11).suspend.is_empty(), "it is suspended again and again");
    for number in [1, 2] {
        case.run(number).expect("a run").phase = Some(RunPhase::Suspended);
    }
    assert_eq!(case.plan(20).status.phase, Some(SweepPhase::Suspended));
    let case = case.step(20).edit(suspend(false));
    assert_eq!(suspended(&case.plan(30)), [("rates-1".to_owned(), false)]);
    assert!(case.step(30).plan(31).suspend.is_empty(), "it is let go again and again");
}

#[test]
fn a_trial_whose_run_is_deleted_is_not_started_again() {
    let case = sweep(&json!({})).step(0).runs(1, 1, 0.5).step(5).without_run(1);
    let plan = case.plan(10);
    assert_eq!((started(&plan), plan.status.trials[0].phase), (vec!["rates-3".into()], TrialPhase::Stopped));
}

#[test]
fn a_run_that_was_created_before_a_crash_is_counted() {
    let plan = sweep(&json!({})).plan(0);
    let crashed = sweep(&json!({})).carried_out(&plan).plan(10);
    assert_eq!((crashed.start.len(), crashed.status.trials.len()), (0, 2));
    assert_eq!(crashed.status.trials[1].parameters["hyperparameters.learningRate"], "0.01");
}

#[test]
fn what_stands_in_the_way_of_a_trial_is_told_and_tried_again() {
    let case = sweep(&json!({}));
    let sweep = validate(&case.seen.sweep).expect("valid");
    let created = BTreeSet::from(["rates-1".to_owned()]);
    let why = ("NameTaken", "TrainingRun rates-2 already exists".to_owned());
    let plan = case.plan(0).blocked(&case.seen, &sweep, &created, why, at(0));
    assert_eq!((plan.status.trials.len(), plan.wake), (1, Wake::At(at(15))));
    let stalled = plan.status.conditions.iter().find(|c| c.type_ == "Stalled").expect("a condition");
    assert_eq!((stalled.status.as_str(), stalled.reason.as_str()), ("True", "NameTaken"));
}

#[test]
fn a_sweep_goes_when_its_time_is_up_unless_a_deployment_serves_one_of_its_runs() {
    let mut case = sweep(&json!({"parallelism": 4, "ttlSecondsAfterFinished": 100})).step(0);
    for number in 1..=4 {
        case = case.ends(number, RunPhase::Succeeded, 0.5);
    }
    assert_eq!(case.plan(10).wake, Wake::At(at(110)));
    let mut done = case.step(10);
    assert!(!done.plan(109).expire && done.plan(110).expire);
    done.seen.in_use = true;
    let spared = done.plan(110);
    assert!(!spared.expire && spared.wake != Wake::Never);
}

/// What may happen between two looks at a sweep.
#[derive(Clone, Debug)]
enum Happening {
    Runs(i32, i32, f64),
    Ends(i32, bool, f64),
    Deleted(i32),
    Suspend(bool),
    Parallelism(i32),
    /// The operator ends after so many creations: the status is not written.
    CrashAfter(usize),
    /// The operator ends after it wrote the status: what was stopped stays.
    CrashBeforeStops,
    Step,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => (1..7_i32, 0..10_i32, 0.0..1.0).prop_map(|(n, epoch, best)| Happening::Runs(n, epoch, best)),
        3 => (1..7_i32, any::<bool>(), 0.0..1.0).prop_map(|(n, well, best)| Happening::Ends(n, well, best)),
        1 => (1..7_i32).prop_map(Happening::Deleted),
        1 => any::<bool>().prop_map(Happening::Suspend),
        1 => (1..4_i32).prop_map(Happening::Parallelism),
        1 => (0..3_usize).prop_map(Happening::CrashAfter),
        1 => Just(Happening::CrashBeforeStops),
        4 => Just(Happening::Step),
    ]
}

/// What must be true of any plan.
fn obeys(case: &Case, plan: &Plan) -> Result<(), TestCaseError> {
    let former = case.seen.sweep.status.clone().unwrap_or_default();
    let busy = case.seen.runs.iter().filter(|trial| !is_over(&trial.run)).count();
    let parallelism = usize::try_from(case.seen.sweep.spec.parallelism).expect("small");
    prop_assert!(plan.start.is_empty() || busy + plan.start.len() <= parallelism, "more at a time than allowed");
    for name in started(plan) {
        prop_assert!(!former.trials.iter().any(|trial| trial.run == name), "{} starts again", name);
        prop_assert!(!case.seen.runs.iter().any(|trial| trial.run.name_any() == name), "{} is there", name);
    }
    let counts = plan.status.counts.expect("counts");
    let sum = counts.pending + counts.running + counts.succeeded + counts.failed + counts.stopped;
    prop_assert_eq!((counts.total, sum), (6, 6), "every trial is counted once");
    let numbers: BTreeSet<i32> = plan.status.trials.iter().map(|trial| trial.number).collect();
    prop_assert_eq!(numbers.len(), plan.status.trials.len(), "a trial is there twice");
    for old in former.trials.iter().filter(|old| old.phase.is_terminal()) {
        let kept = plan.status.trials.iter().find(|trial| trial.number == old.number);
        prop_assert_eq!(kept, Some(old), "a trial that was over has changed");
    }
    if former.completion_time.is_some() {
        prop_assert!(plan.start.is_empty() && plan.status.phase == former.phase, "a finished sweep moves");
    }
    let is_over = plan.status.phase.is_some_and(SweepPhase::is_terminal);
    prop_assert_eq!(is_over, plan.wake == Wake::Never);
    let best = plan.status.best.as_ref().map(|best| best.value);
    let succeeded = plan.status.trials.iter().filter(|trial| trial.phase == TrialPhase::Succeeded);
    prop_assert_eq!(best, succeeded.filter_map(|trial| trial.value).max_by(f64::total_cmp));
    Ok(())
}

proptest! {
    /// Over any history, with the operator killed in between: no trial starts twice, no more run than may, each trial is
    /// counted once and keeps its end, a finished sweep never starts again, whoever is not at the end has something to
    /// wake it, and every sweep that is let go on comes to its end.
    #[test]
    fn every_history_keeps_the_laws(history in prop::collection::vec(happening(), 1..50), stopping: bool) {
        let mut spec = json!({
            "parameters": [{"name": "hyperparameters.epochs", "values": [1, 2, 3, 4, 5, 6]}], "maxFailedTrials": 2
        });
        if stopping {
            spec["earlyStopping"] = json!({"graceEpochs": 1, "minTrials": 2});
        }
        let mut case = sweep(&spec);
        for (second, event) in (0..).zip(history) {
            let mut step = true;
            match event {
                Happening::Runs(number, epoch, best) if !case.is_over(number) => case = case.runs(number, epoch, best),
                Happening::Ends(number, well, best) if !case.is_over(number) => {
                    case = case.ends(number, if well { RunPhase::Succeeded } else { RunPhase::Failed }, best);
                }
                // What was never recorded and is gone was never there: it would rightly start once more.
                Happening::Deleted(number) if case.phase_of(number).is_some() => case = case.without_run(number),
                Happening::Suspend(suspend) => case = case.edit(|sweep| sweep.spec.suspend = suspend),
                Happening::Parallelism(most) => case = case.edit(|sweep| sweep.spec.parallelism = most),
                Happening::CrashAfter(created) => {
                    let mut plan = case.plan(second);
                    obeys(&case, &plan)?;
                    plan.start.truncate(created);
                    plan.stop.clear();
                    (case, step) = (case.carried_out(&plan), false);
                }
                Happening::CrashBeforeStops => {
                    let mut plan = case.plan(second);
                    obeys(&case, &plan)?;
                    plan.stop.clear();
                    let status = plan.status.clone();
                    (case, step) = (case.carried_out(&plan).edit(|sweep| sweep.status = Some(status)), false);
                }
                _ => {}
            }
            if step {
                let plan = case.plan(second);
                obeys(&case, &plan)?;
                case = case.step(second);
                // What was done to a run is another thing to tell.
                if plan.start.is_empty() && plan.stop.is_empty() && plan.suspend.is_empty() {
                    let recorded = case.seen.sweep.status.as_ref();
                    prop_assert_eq!(Some(&case.plan(second + 1).status), recorded, "it is written again");
                }
            }
        }
        case = case.edit(|sweep| sweep.spec.suspend = false);
        for second in 100..130 {
            case = case.step(second);
            for number in 1..=6 {
                if !case.is_over(number) {
                    case = case.ends(number, RunPhase::Succeeded, 0.5);
                }
            }
        }
        let status = case.seen.sweep.status.clone().expect("a status");
        prop_assert!(status.completion_time.is_some(), "it does not end: {:?}", status);
    }
}

impl Case {
    fn is_over(&self, number: i32) -> bool {
        self.seen.runs.iter().any(|trial| trial.number == number && is_over(&trial.run))
    }
}
