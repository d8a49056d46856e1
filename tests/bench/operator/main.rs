//! Measures the operator with many runs and deployments, the bare Job controller with as many Jobs, and JobSet with as many JobSets, on
//! a control plane with fake nodes: `tests/bench/operator/run` says how.

mod fake;
mod generate;
mod judge;
mod latency;
mod measured;
mod observe;
mod phases;
mod plots;
mod processes;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::Parser;

#[derive(Parser)]
enum Command {
    /// What the bare Job controller reaches.
    Jobs {
        /// Jobs in the burst.
        #[arg(long)]
        runs: usize,
        /// Where the measurements go.
        #[arg(long)]
        out: PathBuf,
    },
    /// What JobSet reaches.
    Peer {
        /// JobSets in the burst.
        #[arg(long)]
        runs: usize,
        /// JobSet's manager.
        #[arg(long)]
        manager: PathBuf,
        /// Where the measurements go.
        #[arg(long)]
        out: PathBuf,
    },
    /// What the operator reaches.
    Runs {
        /// Training runs in the burst.
        #[arg(long)]
        runs: usize,
        /// Model deployments.
        #[arg(long)]
        deployments: usize,
        /// The operator's program.
        #[arg(long)]
        operator: PathBuf,
        /// Where the measurements go.
        #[arg(long)]
        out: PathBuf,
    },
    /// Tables, plots and whether the limits are kept.
    Report {
        /// Where the measurements are.
        #[arg(long)]
        out: PathBuf,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    match Command::parse() {
        Command::Jobs { runs, out } => phases::jobs(runs, &out).await.map(|()| ExitCode::SUCCESS),
        Command::Peer { runs, manager, out } => phases::peer(runs, &manager, &out).await.map(|()| ExitCode::SUCCESS),
        Command::Runs { runs, deployments, operator, out } => {
            phases::runs(runs, deployments, &operator, &out).await.map(|()| ExitCode::SUCCESS)
        }
        Command::Report { out } => {
            let kept = judge::report(&out)?;
            Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}
