//! `anneal-trainer`.

use std::process::ExitCode;

use anneal_model::openmp;
use anneal_trainer::cli;

fn main() -> ExitCode {
    if let Err(error) = openmp::begin_with(openmp::STEPS) {
        eprintln!("training is slower than it could be: {error}");
    }
    cli::main()
}
