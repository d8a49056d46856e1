//! Sweeps: many trainings over one template.

use anneal_api::resources::{RunPhase, SweepPhase, TrainingRun, TrainingSweep, TrainingSweepStatus, TrialPhase};
use anneal_tests::{Context as _, Outcome, Result, ensure, in_namespace, manifest};
use kube::ResourceExt as _;
use serde_json::json;

use crate::scenario::{PATIENCE, phase};

fn status(sweep: &TrainingSweep) -> TrainingSweepStatus {
    sweep.status.clone().unwrap_or_default()
}

fn trial(sweep: &TrainingSweep, number: i32) -> Option<TrialPhase> {
    status(sweep).trials.iter().find(|trial| trial.number == number).map(|trial| trial.phase)
}

fn stalled_because(sweep: &TrainingSweep, reason: &str) -> bool {
    status(sweep).conditions.iter().any(|it| it.type_ == "Stalled" && it.status == "True" && it.reason == reason)
}

#[tokio::test]
async fn a_sweep_trains_two_at_a_time_and_names_the_best() -> Outcome {
    in_namespace(async |ns| {
        ns.apply(&manifest::claim("models")).await?;
        let runs = ns.record::<TrainingRun>("anneal.dev/training-sweep=rates").await?;
        let mut rates = ns.watch::<TrainingSweep>("rates");
        let spec = json!({
            "parameters": [{"name": "hyperparameters.learningRate", "values": [0.0001, 0.001, 0.01]}],
            "template": {"metadata": {"labels": {"team": "pets"}}}
        });
        ns.apply(&manifest::training_sweep("rates", spec)).await?;
        let mut most = 0;
        let over = |sweep: &TrainingSweep| {
            let status = status(sweep);
            most = most.max(status.trials.iter().filter(|trial| !trial.phase.is_terminal()).count());
            status.phase.is_some_and(SweepPhase::is_terminal)
        };
        let done = rates.until("the sweep is over", 2 * PATIENCE, over).await?;
        ns.kubectl(&["wait", "trainingsweep/rates", "--for=condition=Complete", "--timeout=5s"]).await?.ok()?;
        ensure!(most == 2, "{most} trials were under way at a time");

        // Three runs, each with its own learning rate, and every trial counted once.
        ensure!(runs.names() == ["rates-1", "rates-2", "rates-3"], "{:?}", runs.names());
        let mut learned: Vec<(String, f64)> =
            runs.all().iter().map(|run| (run.name_any(), run.spec.hyperparameters.learning_rate)).collect();
        learned.sort_by(|a, b| a.0.cmp(&b.0));
        let rate_of = |index: usize| learned.get(index).map(|(_, rate)| *rate);
        ensure!(rate_of(0) == Some(0.0001) && rate_of(2) == Some(0.01), "{learned:?}");
        ensure!(runs.all().iter().all(|run| run.labels().get("team").is_some_and(|team| team == "pets")));
        let status = done.status.context("the sweep has no status")?;
        let counts = status.counts.context("the sweep has no counts")?;
        ensure!((counts.total, counts.succeeded, counts.pending, counts.failed) == (3, 3, 0, 0), "{counts:?}");

        // The best is the best of what the runs themselves say.
        let best = status.best.context("no trial is the best")?;
        let values = runs.all().iter().map(best_of).collect::<Result<Vec<f64>>>()?;
        let highest = values.iter().copied().max_by(f64::total_cmp).context("no run says how good it is")?;
        ensure!((best.value - highest).abs() < 1e-9, "{best:?} of {values:?}");
        let run: TrainingRun = ns.get(&best.run).await?;
        ensure!((best_of(&run)? - highest).abs() < 1e-9, "{best:?} is not the run of the best value");

        let table = ns.table("trainingsweeps").await?;
        let headings =
            ["NAME", "PHASE", "TRIALS", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED", "BEST", "BEST-RUN", "AGE"];
        ensure!(table.headings == headings, "{table:?}");
        for (column, value) in [("PHASE", "Succeeded"), ("TRIALS", "3"), ("SUCCEEDED", "3"), ("BEST-RUN", &best.run)] {
            ensure!(table.cell("rates", column)? == value, "{column} is not {value}: {table:?}");
        }

        // What is over does not begin again.
        ns.kubectl(&["delete", "trainingrun", "rates-1"]).await?.ok()?;
        ns.kubectl(&["patch", "trainingsweep", "rates", "--type=merge", "--patch", r#"{"spec":{"parallelism":3}}"#])
            .await?
            .ok()?;
        let observed = |sweep: &TrainingSweep| {
            sweep.metadata.generation == sweep.status.as_ref().and_then(|status| status.observed_generation)
                && sweep.spec.parallelism == 3
        };
        rates.until("the change is observed", 30, observed).await?;
        ensure!(runs.names().len() == 3, "a run was made again: {:?}", runs.names());
        Ok(())
    })
    .await
}

/// The best validation accuracy that a run tells.
fn best_of(run: &TrainingRun) -> Result<f64> {
    let progress = run.status.as_ref().and_then(|status| status.progress.as_ref());
    progress.and_then(|progress| progress.reported.best).with_context(|| format!("{} tells no best", run.name_any()))
}

#[tokio::test]
async fn a_suspended_sweep_suspends_its_trials_and_they_go_on_from_their_checkpoints() -> Outcome {
    in_namespace(async |ns| {
        ns.apply(&manifest::claim("models")).await?;
        let mut template = manifest::well_trained(1);
        template["hyperparameters"]["epochs"] = 12.into();
        let spec = json!({
            "parameters": [{"name": "hyperparameters.learningRate", "values": [0.001, 0.002]}], "parallelism": 1,
            "template": {"spec": template}
        });
        ns.apply(&manifest::training_sweep("rates", spec)).await?;
        let (mut rates, mut first) = (ns.watch::<TrainingSweep>("rates"), ns.watch::<TrainingRun>("rates-1"));
        let trains = |run: &TrainingRun| {
            let progress = run.status.as_ref().and_then(|status| status.progress.as_ref());
            progress.is_some_and(|progress| progress.reported.step > 0)
        };
        first.until("its first trial trains", PATIENCE, trains).await?;
        let suspend = async |suspend: bool| {
            let patch = json!({"spec": {"suspend": suspend}}).to_string();
            ns.kubectl(&["patch", "trainingsweep", "rates", "--type=merge", "--patch", &patch]).await?.ok().map(|_| ())
        };
        suspend(true).await?;
        let rests = |sweep: &TrainingSweep| status(sweep).phase == Some(SweepPhase::Suspended);
        rates.until("it is suspended", PATIENCE, rests).await?;
        let run: TrainingRun = ns.get("rates-1").await?;
        ensure!(phase(&run) == Some(RunPhase::Suspended), "its trial goes on: {:?}", run.status);

        suspend(false).await?;
        let over = |sweep: &TrainingSweep| status(sweep).phase.is_some_and(SweepPhase::is_terminal);
        let done = rates.until("the sweep is over", 2 * PATIENCE, over).await?;
        ensure!(status(&done).phase == Some(SweepPhase::Succeeded), "{:?}", done.status);
        let run: TrainingRun = ns.get("rates-1").await?;
        let resumed = run.status.and_then(|status| status.result).and_then(|result| result.resumed_from_step);
        ensure!(resumed.is_some_and(|step| step > 0), "its trial began anew: {resumed:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_run_of_somebody_else_is_not_touched_and_a_deleted_trial_is_not_made_again() -> Outcome {
    in_namespace(async |ns| {
        // Without a claim every run waits, and so costs nothing.
        ns.apply(&manifest::training_run("rates-2", json!({}))).await?;
        let mut rates = ns.watch::<TrainingSweep>("rates");
        let spec = json!({"parameters": [{"name": "hyperparameters.epochs", "values": [1, 2, 3]}]});
        ns.apply(&manifest::training_sweep("rates", spec)).await?;
        let stalled = rates.until("the name is taken", 30, |sweep| stalled_because(sweep, "NameTaken")).await?;
        ensure!(trial(&stalled, 1).is_some() && trial(&stalled, 2).is_none(), "{:?}", stalled.status);
        let foreign: TrainingRun = ns.get("rates-2").await?;
        ensure!(foreign.owner_references().is_empty(), "{:?}", foreign.metadata);

        ns.kubectl(&["delete", "trainingrun", "rates-2"]).await?.ok()?;
        rates.until("the second trial has started", 60, |sweep| trial(sweep, 2).is_some()).await?;
        ns.kubectl(&["delete", "trainingrun", "rates-1"]).await?.ok()?;
        let moved = |sweep: &TrainingSweep| trial(sweep, 1) == Some(TrialPhase::Stopped) && trial(sweep, 3).is_some();
        rates.until("the third has taken the place of the first", 60, moved).await?;
        let runs: Vec<TrainingRun> = ns.list("anneal.dev/training-sweep=rates").await?;
        let names: Vec<String> = runs.iter().map(kube::ResourceExt::name_any).collect();
        ensure!(names == ["rates-2", "rates-3"], "{names:?}");

        // Its runs are its own.
        ns.kubectl(&["delete", "trainingsweep", "rates"]).await?.ok()?;
        ns.until_all::<TrainingRun>("anneal.dev/training-sweep=rates", "they are gone", 60, <[_]>::is_empty).await?;
        Ok(())
    })
    .await
}
