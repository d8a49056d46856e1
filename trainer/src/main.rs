//! `anneal-trainer`.

use std::process::ExitCode;

use anneal_trainer::cli;

fn main() -> ExitCode {
    cli::main()
}
