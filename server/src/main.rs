//! `anneal-server`: serves a checkpoint, and is its own client in images without a shell.

use anneal_api::{failure::FailureClass, termination::TerminationMessage};
use anneal_model::openmp;
use anneal_server::{
    healthcheck, last_words, lifecycle, load, logging,
    options::{Cli, Command},
    predict, smoke, track, tune,
};
use clap::Parser as _;

fn main() {
    if let Err(error) = openmp::begin_with(openmp::ASLEEP) {
        eprintln!("threads will spin while they wait: {error}");
    }
    logging::start(&std::env::var("LOG_LEVEL").unwrap_or_default());
    let code = match Cli::try_parse() {
        Ok(cli) => start(cli),
        Err(usage) => {
            // A closed pipe is the reader's choice.
            let _ = usage.print();
            if usage.use_stderr() { misused(&usage) } else { 0 }
        }
    };
    // Threads that are still in the model are not waited for: what they compute, nobody wants any more.
    std::process::exit(code);
}

fn misused(usage: &clap::Error) -> i32 {
    last_words::leave(&TerminationMessage::failure(FailureClass::BadConfig, usage.to_string()));
    FailureClass::BadConfig.exit_code()
}

fn start(cli: Cli) -> i32 {
    // One thread moves bytes; the model has threads of its own.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(error) => last_words::failure(FailureClass::AppError, &format!("the runtime cannot be started: {error}")),
    }
}

async fn run(cli: Cli) -> i32 {
    match cli.command.unwrap_or(Command::Serve(cli.serve)) {
        Command::Serve(options) => lifecycle::run(*options).await,
        Command::Smoke(options) => smoke::run(&options).await,
        Command::Tune(options) => tune::run(&options).await,
        Command::Predict(options) => predict::run(&options).await,
        Command::Track(options) => track::run(&options).await,
        Command::Load(options) => load::run(&options).await,
        Command::Healthcheck(options) => healthcheck::run(&options).await,
    }
}
