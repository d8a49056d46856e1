//! The plan, case by case and over random histories.

use std::{collections::BTreeSet, sync::Arc};

use anneal_api::resources::CronTrainingRun;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::cron_training_run::validate::validate;

/// A schedule as the cluster shows it; each case says only what matters to it.
#[derive(Clone)]
struct Case {
    seen: Observed,
}

/// Midnight, 1 January 2026, and so many minutes.
fn at(minute: i64) -> Timestamp {
    Timestamp::from_second(1_767_225_600 + minute * 60).expect("in range")
}

fn half_past(minute: i64) -> Timestamp {
    at(minute).checked_add(Duration::from_secs(30)).expect("in range")
}

/// Every ten minutes from midnight on.
fn cron(spec: &Value) -> Case {
    let mut all = json!({
        "schedule": "*/10 * * * *",
        "template": {"spec": {"dataset": {"uri": "synthetic://"}, "output": {"claimName": "models"}}}
    });
    for (key, value) in spec.as_object().expect("an object") {
        all[key] = value.clone();
    }
    let mut cron = CronTrainingRun::new("nightly", serde_json::from_value(all).expect("a spec"));
    cron.metadata.namespace = Some("ml".into());
    cron.metadata.uid = Some("0123456789".into());
    cron.metadata.generation = Some(1);
    cron.metadata.creation_timestamp = Some(Time(at(0)));
    Case { seen: Observed { cron: Arc::new(cron), runs: Vec::new(), in_use: BTreeSet::new() } }
}

impl Case {
    fn edit(mut self, change: impl FnOnce(&mut CronTrainingRun)) -> Self {
        let mut cron = (*self.seen.cron).clone();
        change(&mut cron);
        self.seen.cron = Arc::new(cron);
        self
    }

    fn plan(&self, now: Timestamp) -> Plan {
        plan(&self.seen, &validate(&self.seen.cron).expect("valid"), now)
    }

    fn created(mut self, plan: &Plan) -> Self {
        self.seen.runs.extend(plan.start.clone());
        self.seen.runs.sort_by_key(ResourceExt::name_any);
        self
    }

    fn step(self, now: Timestamp) -> Self {
        let plan = self.plan(now);
        let mut case = self.created(&plan);
        let deleted: Vec<String> = plan.delete.iter().map(ResourceExt::name_any).collect();
        case.seen.runs.retain(|run| !deleted.contains(&run.name_any()));
        case.edit(|cron| cron.status = Some(plan.status))
    }

    fn ends(mut self, index: usize, phase: RunPhase, now: Timestamp) -> Self {
        if let Some(run) = self.seen.runs.get_mut(index).filter(|run| !is_over(run)) {
            let status = run.status.get_or_insert_default();
            (status.phase, status.completion_time) = (Some(phase), Some(Time(now)));
        }
        self
    }

    fn names(&self) -> Vec<String> {
        self.seen.runs.iter().map(ResourceExt::name_any).collect()
    }
}

fn name(minute: i64) -> String {
    format!("nightly-{}", at(minute).as_second() / 60)
}

fn started(plan: &Plan) -> Option<String> {
    plan.start.as_ref().map(ResourceExt::name_any)
}

fn reason(plan: &Plan) -> String {
    plan.status.conditions.iter().find(|c| c.type_ == "Ready").map(|c| c.reason.clone()).unwrap_or_default()
}

fn event<'a>(plan: &'a Plan, reason: &str) -> &'a str {
    plan.events.iter().find(|event| event.reason == reason).map_or("", |event| event.note.as_str())
}

#[test]
fn nothing_starts_before_its_time() {
    let plan = cron(&json!({})).plan(half_past(3));
    assert_eq!((started(&plan), plan.wake, reason(&plan).as_str()), (None, Wake::At(at(10)), "Scheduled"));
    assert_eq!(plan.status.next_schedule_time, Some(Time(at(10))));
}

#[test]
fn a_start_makes_one_run_named_after_its_minute() {
    let case = cron(&json!({}));
    let plan = case.plan(half_past(10));
    assert_eq!(started(&plan), Some(name(10)));
    assert_eq!((plan.status.active, plan.status.last_schedule_time.clone()), (Some(1), Some(Time(at(10)))));
    assert_eq!(plan.start.as_ref().expect("a run").labels()[label::CRON], "nightly");
    // The operator ended before it could say so: the run is found, and not made twice.
    let crashed = case.clone().created(&plan).plan(half_past(11));
    assert_eq!((started(&crashed), crashed.status.last_schedule_time.clone()), (None, Some(Time(at(10)))));
    let again = case.step(half_past(10)).plan(half_past(11));
    assert_eq!((started(&again), again.events.len()), (None, 0));
}

#[test]
fn of_many_missed_starts_only_the_newest_runs_and_the_others_are_told() {
    let plan = cron(&json!({})).plan(half_past(42));
    assert_eq!((started(&plan), plan.missed), (Some(name(40)), 3));
    assert!(event(&plan, "MissedSchedule").contains("3 earlier starts were missed"), "{:?}", plan.events);
    let week = cron(&json!({})).plan(half_past(7 * 24 * 60));
    assert_eq!(started(&week), Some(name(7 * 24 * 60)));
    assert!(event(&week, "MissedSchedule").contains("more than 100 earlier starts"), "{:?}", week.events);
}

#[test]
fn a_start_that_is_too_late_is_missed_and_told_once() {
    let case = cron(&json!({"startingDeadlineSeconds": 60}));
    assert_eq!(started(&case.plan(half_past(10))), Some(name(10)));
    let late = case.plan(half_past(11));
    assert_eq!((started(&late), late.status.last_missed_time.clone()), (None, Some(Time(at(10)))));
    assert!(event(&late, "MissedSchedule").contains("startingDeadlineSeconds"), "{:?}", late.events);
    assert!(case.step(half_past(11)).plan(half_past(12)).events.is_empty());
}

#[test]
fn forbid_waits_for_the_end_of_the_run_before() {
    let case = cron(&json!({"concurrencyPolicy": "Forbid"})).step(half_past(10));
    let waiting = case.plan(half_past(20));
    assert_eq!((started(&waiting), reason(&waiting).as_str()), (None, "RunActive"));
    assert_eq!(waiting.status.last_schedule_time, Some(Time(at(10))), "the start of 20 is still to come");
    assert!(event(&waiting, "RunActive").contains(&name(10)), "{:?}", waiting.events);
    let done = case.step(half_past(20)).ends(0, RunPhase::Succeeded, at(25));
    assert_eq!(started(&done.plan(half_past(25))), Some(name(20)));
}

#[test]
fn forbid_gives_a_start_up_when_it_is_too_late() {
    let case = cron(&json!({"concurrencyPolicy": "Forbid", "startingDeadlineSeconds": 120})).step(half_past(10));
    let waiting = case.plan(half_past(20));
    assert!(matches!(waiting.wake, Wake::At(time) if time > at(22) && time < half_past(22)), "{:?}", waiting.wake);
    let late = case.step(half_past(20)).plan(half_past(22));
    assert_eq!(late.status.last_missed_time, Some(Time(at(20))));
}

#[test]
fn allow_starts_beside_the_run_before_and_replace_in_its_place() {
    let beside = cron(&json!({})).step(half_past(10)).plan(half_past(20));
    assert_eq!((started(&beside), beside.delete.len(), beside.status.active), (Some(name(20)), 0, Some(2)));
    let instead = cron(&json!({"concurrencyPolicy": "Replace"})).step(half_past(10)).plan(half_past(20));
    assert_eq!((started(&instead), instead.status.active_runs.clone()), (Some(name(20)), vec![name(20)]));
    assert_eq!(instead.delete.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), [name(10)]);
    assert!(event(&instead, "Replaced").contains(&name(10)), "{:?}", instead.events);
}

#[test]
fn a_run_that_cannot_be_made_replaces_nothing_and_stays_due() {
    let case = cron(&json!({"concurrencyPolicy": "Replace"})).step(half_past(10));
    let blocked = case.plan(half_past(20)).blocked(&case.seen, "NameTaken", "it exists".into(), half_past(20));
    assert_eq!((started(&blocked), blocked.delete.len(), reason(&blocked).as_str()), (None, 0, "NameTaken"));
    let recorded = case.edit(|cron| cron.status = Some(blocked.status));
    assert_eq!(started(&recorded.plan(half_past(21))), Some(name(20)));
}

#[test]
fn nothing_starts_while_suspended_and_the_newest_missed_start_runs_afterwards() {
    let case = cron(&json!({"suspend": true}));
    let plan = case.plan(half_past(15));
    assert_eq!((started(&plan), plan.status.next_schedule_time.clone(), plan.wake), (None, None, Wake::OnChange));
    let resumed = case.step(half_past(15)).edit(|cron| cron.spec.suspend = false);
    assert_eq!(started(&resumed.plan(half_past(25))), Some(name(20)));
}

#[test]
fn history_keeps_the_newest_and_what_a_deployment_serves() {
    let mut case = cron(&json!({"successfulRunsHistoryLimit": 1, "failedRunsHistoryLimit": 0}));
    for (index, phase) in
        [RunPhase::Succeeded, RunPhase::Succeeded, RunPhase::Failed, RunPhase::Succeeded].into_iter().enumerate()
    {
        let minute = 10 * (i64::try_from(index).expect("small") + 1);
        let plan = case.plan(half_past(minute));
        // Nothing is deleted yet, so that all of it is there at the end.
        case = case.created(&plan).edit(|cron| cron.status = Some(plan.status)).ends(index, phase, at(minute + 5));
    }
    case.seen.in_use.insert(name(10));
    let plan = case.plan(half_past(48));
    let mut deleted: Vec<String> = plan.delete.iter().map(ResourceExt::name_any).collect();
    deleted.sort();
    assert_eq!(deleted, [name(20), name(30)]);
    assert_eq!(plan.status.last_successful_time, Some(Time(at(45))));
    assert_eq!(case.step(half_past(48)).names(), [name(10), name(40)]);
}

#[derive(Clone, Debug)]
enum Happening {
    Time(i64),
    Ends(usize, bool),
    Suspend(bool),
    /// The operator ends between the creation and the record.
    Crash,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => (1..25_i64).prop_map(Happening::Time),
        1 => (25..3000_i64).prop_map(Happening::Time),
        3 => (0..5_usize, any::<bool>()).prop_map(|(index, well)| Happening::Ends(index, well)),
        1 => any::<bool>().prop_map(Happening::Suspend),
        1 => Just(Happening::Crash),
    ]
}

proptest! {
    /// Over any history, with the operator killed in between: no minute makes two runs, starts go forward in time and never
    /// before theirs, Forbid and Replace keep at most one run going, history never takes a run that goes on, and whatever
    /// is not suspended has something to wake it.
    #[test]
    fn every_history_keeps_the_laws(
        history in prop::collection::vec(happening(), 1..50),
        policy in prop::sample::select(vec!["Allow", "Forbid", "Replace"]),
        deadline in prop::option::of(10..2000_i64),
    ) {
        let mut case = cron(&json!({"concurrencyPolicy": policy}));
        case = case.edit(|cron| cron.spec.starting_deadline_seconds = deadline);
        let (mut minute, mut made) = (0, Vec::new());
        for event in history {
            let mut crash = false;
            match event {
                Happening::Time(minutes) => minute += minutes,
                Happening::Ends(index, well) => {
                    let phase = if well { RunPhase::Succeeded } else { RunPhase::Failed };
                    case = case.ends(index, phase, at(minute));
                }
                Happening::Suspend(suspend) => case = case.edit(|cron| cron.spec.suspend = suspend),
                Happening::Crash => crash = true,
            }
            let now = half_past(minute);
            let plan = case.plan(now);
            if let Some(name) = started(&plan) {
                prop_assert!(made.last().is_none_or(|last| *last < name), "{name} after {made:?}");
                prop_assert!(name <= super::tests::name(minute), "{name} is early");
                prop_assert!(!case.seen.cron.spec.suspend);
                made.push(name);
            }
            for run in &plan.delete {
                prop_assert!(is_over(run) || policy == "Replace", "{} goes on", run.name_any());
            }
            prop_assert!(matches!(plan.wake, Wake::At(time) if time > now) || case.seen.cron.spec.suspend);
            if crash {
                // Created, but neither recorded nor anything deleted.
                case = case.created(&plan);
                continue;
            }
            case = case.step(now);
            let going = case.seen.runs.iter().filter(|run| !is_over(run)).count();
            prop_assert!(policy == "Allow" || going <= 1, "{going} go on at once");
            prop_assert_eq!(case.seen.cron.status.as_ref().and_then(|status| status.active), Some(i32::try_from(going).expect("small")));
            let again = case.plan(now);
            prop_assert!(again.start.is_none());
            prop_assert!(again.delete.is_empty() || again.delete.iter().all(is_over));
        }
    }
}
