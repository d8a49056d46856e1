//! `anneal-trainer`.

use std::process::ExitCode;

use anneal_model::openmp;
use anneal_trainer::cli;

fn main() -> ExitCode {
    if let Err(error) = openmp::wait_asleep() {
        eprintln!("threads will spin while they wait: {error}");
    }
    cli::main()
}
