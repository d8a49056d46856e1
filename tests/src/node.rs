//! A node of the checkout's own cluster, for what only its administrator can do.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

/// A node of the checkout's own cluster.
pub struct Node {
    /// Its name.
    pub name: String,
}

impl Node {
    /// The node with the control plane, on which volumes are made.
    pub fn first() -> Self {
        Self { name: "node-1".to_owned() }
    }

    /// The node that takes only pods which tolerate `anneal.dev/test`: it may be lost.
    pub fn second() -> Self {
        Self { name: "node-2".to_owned() }
    }

    /// Kills every process of this program on the node, its containers' included.
    ///
    /// # Errors
    /// When there is none, or the cluster is not the checkout's own.
    pub async fn kill(&self, program: &str) -> Result<()> {
        self.run(&["pkill", "-KILL", "-f", &command(program)]).await.map(|_| ())
    }

    /// Stops every process of this program on the node for a time. The node lets them go on, whatever becomes of whoever asked.
    ///
    /// # Errors
    /// As [`Self::kill`].
    pub async fn pause(&self, program: &str, time: Duration) -> Result<()> {
        let signal = |name: &str| format!("pkill -{name} -f '{}'", command(program));
        let (later, now) = (signal("CONT"), signal("STOP"));
        // In a session of its own, which does not end with that of the test, and holds no pipe of it.
        let script = format!("(sleep {}; {later}) </dev/null >/dev/null 2>&1 & {now}", time.as_secs_f64());
        self.run(&["setsid", "--wait", "sh", "-c", &script]).await.map(|_| ())
    }

    /// Starts again what was killed of the node itself, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not come back.
    pub async fn come_back(&self) -> Result<()> {
        cluster(&["up"]).await.map(|_| ())
    }

    /// Runs a command in the node, as root, and returns what it wrote.
    ///
    /// # Errors
    /// When it fails, or the cluster is not the checkout's own.
    pub async fn run(&self, command: &[&str]) -> Result<String> {
        let mut all = vec!["exec", self.name.as_str()];
        all.extend(command);
        cluster(&all).await
    }
}

/// Finds a program's processes by their command: one that started itself anew has another name in the process table.
fn command(program: &str) -> String {
    format!("^([^ ]*/)?{program}( |$)")
}

/// Asks the script that brings the checkout's cluster up, and returns what it wrote.
async fn cluster(args: &[&str]) -> Result<String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/cluster");
    let done = Command::new(script).args(args).output().await.with_context(|| format!("{script} cannot be run"))?;
    let (said, problem) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    ensure!(done.status.success(), "`cluster {}` failed:\n{problem}", args.join(" "));
    Ok(said.into_owned())
}
