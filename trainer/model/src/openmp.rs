//! How libtorch's threads wait for each other.

use std::{env, io, os::unix::process::CommandExt, process::Command};

/// What libgomp reads, once, when it is loaded: before `main`.
type Variables = &'static [(&'static str, &'static str)];

/// Threads sleep while they wait for each other.
///
/// By default they spin, and a server that waits for the next batch has other threads, those that answer, which want the
/// processors.
pub const ASLEEP: Variables = &[("OMP_WAIT_POLICY", "PASSIVE")];

/// What repeats the same steps: threads spin for some milliseconds before they sleep.
///
/// A step has hundreds of places where threads wait for each other. Alone, or below a container's quota, it makes no
/// difference how they do; but where other programs want the processors too, each sleep may last until one of them has
/// had its turn: two trainers on two processors made four times as many steps with this count as with a tenth of it.
pub const STEPS: Variables = &[("GOMP_SPINCOUNT", "100000")];

/// Starts this process anew, under its own id, with those of the variables that the environment does not have yet.
///
/// # Errors
/// When the process cannot be started anew; it goes on as it is.
pub fn begin_with(variables: Variables) -> io::Result<()> {
    let missing: Vec<_> = variables.iter().filter(|(name, _)| env::var_os(name).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut args = env::args_os();
    let mut again = Command::new("/proc/self/exe");
    if let Some(name) = args.next() {
        again.arg0(name);
    }
    Err(again.args(args).envs(missing.into_iter().copied()).exec())
}
