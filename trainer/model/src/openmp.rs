//! How libtorch's threads wait for each other.

use std::{env, io, os::unix::process::CommandExt, process::Command};

/// What libgomp reads, once, when it is loaded: before `main`.
const WAIT_POLICY: &str = "OMP_WAIT_POLICY";

/// Starts this process anew, under its own id, with threads that sleep while they wait for each other, unless the
/// environment already says how they wait.
///
/// By default they spin. Where the processors are shared, or a container's quota is counted, a thread that spins takes
/// the time that the one it waits for needs: training on two shared processors was five times slower.
///
/// # Errors
/// When the process cannot be started anew; it goes on as it is.
pub fn wait_asleep() -> io::Result<()> {
    if env::var_os(WAIT_POLICY).is_some() {
        return Ok(());
    }
    let mut args = env::args_os();
    let mut again = Command::new("/proc/self/exe");
    if let Some(name) = args.next() {
        again.arg0(name);
    }
    Err(again.args(args).env(WAIT_POLICY, "PASSIVE").exec())
}
