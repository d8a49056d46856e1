//! kubectl, as a user runs it.

use std::process::Stdio;

use anyhow::{Context, Result, bail};
use tokio::{io::AsyncWriteExt as _, process::Command};

/// What a command said, and whether it succeeded.
#[derive(Clone, Debug)]
pub struct Said {
    /// The command line.
    pub command: String,
    /// Whether it exited with 0.
    pub success: bool,
    /// Standard output, byte for byte.
    pub out: Vec<u8>,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// The same where it succeeded.
    ///
    /// # Errors
    /// What it wrote to standard error.
    pub fn ok(self) -> Result<Self> {
        if self.success {
            return Ok(self);
        }
        bail!("`{}` failed:\n{}{}", self.command, self.text(), self.err)
    }

    /// What it wrote to standard error where it failed.
    ///
    /// # Errors
    /// Where it succeeded.
    pub fn refusal(self) -> Result<String> {
        if self.success {
            bail!("`{}` succeeded:\n{}", self.command, self.text());
        }
        Ok(self.err)
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }
}

/// Runs kubectl.
///
/// # Errors
/// When it cannot be started; that it failed is in the answer.
pub async fn run(args: &[&str], input: Option<&str>) -> Result<Said> {
    let command = format!("kubectl {}", args.join(" "));
    let mut child = Command::new("kubectl")
        .args(args)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("`{command}` cannot be started"))?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        // It may refuse before it has read everything; its exit status tells.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = child.wait_with_output().await.with_context(|| format!("`{command}` was lost"))?;
    Ok(Said {
        command,
        success: output.status.success(),
        out: output.stdout,
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
