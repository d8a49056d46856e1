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

    /// Runs a command in the node, as root, and returns what it wrote.
    ///
    /// # Errors
    /// When it fails, or the cluster is not the checkout's own.
    pub async fn run(&self, command: &[&str]) -> Result<String> {
        let cluster = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/cluster");
        let done = Command::new(cluster).arg("exec").arg(&self.name).args(command).output().await;
        let done = done.with_context(|| format!("{cluster} cannot be run"))?;
        let (said, problem) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        ensure!(done.status.success(), "`{}` failed on {}:\n{problem}", command.join(" "), self.name);
        Ok(said.into_owned())
    }
}
