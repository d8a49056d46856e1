//! `kubectl anneal`: shows, steers and diagnoses trainings and rollouts. It reads and writes what kubectl could read and
//! write, with the rights of whoever runs it.

mod age;
mod children;
mod cluster;
mod compare;
mod completion;
mod diagnose;
#[cfg(test)]
mod fixtures;
mod logs;
mod options;
mod output;
mod paint;
mod pods;
mod predict;
mod problem;
mod rollout;
mod state;
mod status;
mod steer;
mod target;
mod tree;

use std::{path::Path, process::ExitCode};

use clap::{CommandFactory as _, Parser as _};

use crate::{
    cluster::Cluster,
    options::{Access, Cli, Command, Errand},
    problem::Problem,
    steer::Wish,
};

/// Exit code of a command that could not be done; clap's, too.
const NOT_DONE: u8 = 2;

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let program = words.next().unwrap_or_default();
    if Path::new(&program).file_name().is_some_and(|name| name == completion::PROGRAM) {
        completion::run(words.collect());
        return ExitCode::SUCCESS;
    }
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run(&cli)),
        Err(error) => Err(Problem::Pointless(format!("the program cannot start: {error}"))),
    };
    outcome.unwrap_or_else(|problem| {
        output::note(&format!("error: {problem}"));
        ExitCode::from(NOT_DONE)
    })
}

async fn run(cli: &Cli) -> Result<ExitCode, Problem> {
    match &cli.command {
        Command::InCluster(errand) => in_cluster(&cli.access, errand).await,
        Command::Version => {
            output::write(&Cli::command().render_version());
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn in_cluster(access: &Access, errand: &Errand) -> Result<ExitCode, Problem> {
    let cluster = Cluster::connect(access).await?;
    let steer = async |target, wish: Wish| steer::run(&cluster, target, &wish).await;
    match errand {
        Errand::Status(options) => status::run(&cluster, options).await,
        Errand::Logs(options) => logs::run(&cluster, options).await,
        Errand::Rollout(options) => rollout::run(&cluster, options).await,
        Errand::Promote(options) => steer(&options.target, Wish::Promote).await,
        Errand::Approve(options) => steer(&options.target, Wish::Approve).await,
        Errand::Abort(options) => steer(&options.target, Wish::Abort).await,
        Errand::Retry(options) => steer(&options.target, Wish::Retry).await,
        Errand::Restart(options) => steer(&options.target, Wish::Restart).await,
        Errand::Rollback(options) => steer(&options.deployment.target, Wish::Rollback(options.to.clone())).await,
        Errand::Unpin(options) => steer(&options.target, Wish::Unpin).await,
        Errand::Suspend(options) => steer(&options.target, Wish::Suspend).await,
        Errand::Resume(options) => steer(&options.target, Wish::Resume).await,
        Errand::Predict(options) => predict::run(&cluster, options).await,
        Errand::Compare(options) => compare::run(&cluster, options).await,
        Errand::Diagnose(options) => diagnose::run(&cluster, options).await,
    }
}
