//! Schedules: trainings by the clock.

use anneal_api::resources::{CronTrainingRun, CronTrainingRunStatus, TrainingRun};
use anneal_tests::{Context as _, Outcome, ensure, in_namespace, manifest};
use serde_json::json;

use crate::scenario::until_succeeded;

fn status(cron: &CronTrainingRun) -> CronTrainingRunStatus {
    cron.status.clone().unwrap_or_default()
}

#[tokio::test]
async fn a_schedule_starts_a_run_on_the_minute_and_none_while_suspended() -> Outcome {
    in_namespace(async |ns| {
        ns.apply(&manifest::claim("models")).await?;
        let runs = ns.record::<TrainingRun>("anneal.dev/cron-training-run=minutely").await?;
        let mut minutely = ns.watch::<CronTrainingRun>("minutely");
        let spec = json!({"schedule": "* * * * *", "timeZone": "Europe/Berlin", "concurrencyPolicy": "Forbid"});
        ns.apply(&manifest::cron_training_run("minutely", spec)).await?;
        let scheduled = |cron: &CronTrainingRun| status(cron).next_schedule_time.is_some();
        let first = status(&minutely.until("it knows when it starts", 30, scheduled).await?);
        let due = first.next_schedule_time.context("no time")?.0;
        ensure!(due.as_second() % 60 == 0, "{due}");

        let started = |cron: &CronTrainingRun| status(cron).last_schedule_time.is_some();
        let started = minutely.until("the minute has come", 90, started).await?;
        // One start is enough; the next ones would only cost.
        ns.kubectl(&[
            "patch",
            "crontrainingrun",
            "minutely",
            "--type=merge",
            "--patch",
            r#"{"spec":{"suspend":true}}"#,
        ])
        .await?
        .ok()?;
        let last = status(&started).last_schedule_time.context("no time")?.0;
        ensure!(last == due, "{last} is not {due}");
        let name = format!("minutely-{}", due.as_second() / 60);
        let run: TrainingRun = ns.get(&name).await?;
        let made = run.metadata.creation_timestamp.clone().context("no creation")?.0;
        ensure!((0..10).contains(&(made.as_second() - due.as_second())), "{name} was made at {made}");

        until_succeeded(&mut ns.watch(&name)).await?;
        let settled = |cron: &CronTrainingRun| {
            let status = status(cron);
            let suspended = status.conditions.iter().any(|it| it.type_ == "Suspended" && it.status == "True");
            suspended && status.last_successful_time.is_some() && status.active == Some(0)
        };
        let settled = minutely.until("it is suspended, and its run has succeeded", 60, settled).await?;
        ensure!(status(&settled).next_schedule_time.is_none(), "{:?}", settled.status);
        ensure!(runs.names().first() == Some(&name), "{:?}", runs.names());
        let table = ns.table("crontrainingruns").await?;
        let headings =
            ["NAME", "SCHEDULE", "TIMEZONE", "SUSPEND", "ACTIVE", "LAST-SCHEDULE", "LAST-SUCCESS", "NEXT", "AGE"];
        ensure!(table.headings == headings, "{table:?}");
        for (column, value) in [("SCHEDULE", "* * * * *"), ("TIMEZONE", "Europe/Berlin"), ("ACTIVE", "0"), ("NEXT", "")]
        {
            ensure!(table.cell("minutely", column)? == value, "{column} is not {value}: {table:?}");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_schedule_that_never_comes_says_what_to_write() -> Outcome {
    in_namespace(async |ns| {
        let mut never = ns.watch::<CronTrainingRun>("never");
        let stalled = |reason: &'static str| {
            move |cron: &CronTrainingRun| {
                let conditions = status(cron).conditions;
                conditions.iter().any(|it| it.type_ == "Stalled" && it.status == "True" && it.reason == reason)
            }
        };
        ns.apply(&manifest::cron_training_run("never", json!({"schedule": "0 0 30 2 *"}))).await?;
        never.until("there is no 30 February", 30, stalled("InvalidSchedule")).await?;
        ns.apply(&manifest::cron_training_run("never", json!({"schedule": "@yearly", "timeZone": "Mars/Olympus"})))
            .await?;
        never.until("there is no such zone", 30, stalled("InvalidTimeZone")).await?;
        ns.apply(&manifest::cron_training_run("never", json!({"schedule": "@yearly", "timeZone": "Etc/UTC"}))).await?;
        let ready = |cron: &CronTrainingRun| {
            status(cron).conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True")
        };
        never.until("it is understood", 30, ready).await?;
        Ok(())
    })
    .await
}
