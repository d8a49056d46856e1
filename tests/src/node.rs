//! A node of the checkout's own cluster, for what only its administrator can do.

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
        self.signal("KILL", program).await
    }

    /// Sends a signal to every process of this program on the node, its containers' included.
    ///
    /// # Errors
    /// As [`Self::kill`].
    pub async fn signal(&self, signal: &str, program: &str) -> Result<()> {
        // By its command: a program that started itself anew has another name in the process table.
        let command = format!("^([^ ]*/)?{program}( |$)");
        self.run(&["pkill", &format!("-{signal}"), "-f", &command]).await.map(|_| ())
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

/// Asks the script that brings the checkout's cluster up, and returns what it wrote.
async fn cluster(args: &[&str]) -> Result<String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/cluster");
    let done = Command::new(script).args(args).output().await.with_context(|| format!("{script} cannot be run"))?;
    let (said, problem) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    ensure!(done.status.success(), "`cluster {}` failed:\n{problem}", args.join(" "));
    Ok(said.into_owned())
}
