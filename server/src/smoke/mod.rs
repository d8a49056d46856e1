//! The smoke test: asks every pod that will take traffic what its model says, and judges the answers.

mod ask;
mod check;
mod report;

use std::time::Duration;

use anneal_api::{
    failure::FailureClass,
    smoke::{SmokeConfig, Verdict},
    termination::TerminationMessage,
};
use tokio::time::Instant;

use crate::{
    client::Client,
    last_words,
    options::{Access, SmokeOptions},
};

/// Runs the test, prints its table, leaves its report, and gives the exit code of its verdict.
pub async fn run(options: &SmokeOptions) -> i32 {
    let config = match read(options) {
        Ok(config) => config,
        Err(message) => return last_words::failure(FailureClass::BadConfig, &message),
    };
    let client = match Client::new(ask::ANSWER_TIMEOUT, &Access::default()) {
        Ok(client) => client,
        Err(message) => return last_words::failure(FailureClass::AppError, &message),
    };
    let time = Duration::from_secs(u64::try_from(config.timeout_seconds).unwrap_or_default());
    let asked = ask::all(&client, &config, Instant::now() + time).await;
    let (checks, report) = report::conclude(&config, asked);
    // The table is the log that a person reads; a closed pipe takes nothing from the verdict.
    let _ = std::io::Write::write_all(&mut std::io::stdout(), report::text(&checks, &report).as_bytes());
    last_words::leave(&TerminationMessage::Smoke(report.clone()));
    exit_code(report.verdict)
}

fn read(options: &SmokeOptions) -> Result<SmokeConfig, String> {
    let path = options.config.display();
    let text = std::fs::read_to_string(&options.config)
        .map_err(|error| format!("the smoke test's configuration {path} cannot be read: {error}"))?;
    let config: SmokeConfig = serde_json::from_str(&text)
        .map_err(|error| format!("the smoke test's configuration {path} is not valid: {error}"))?;
    match config.timeout_seconds {
        1.. => Ok(config),
        other => Err(format!("timeoutSeconds in {path} is {other}; give the test at least 1 s")),
    }
}

/// The exit code that the verdict is told by.
pub fn exit_code(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Passed => 0,
        Verdict::Failed => 1,
        Verdict::Inconclusive => 2,
    }
}
