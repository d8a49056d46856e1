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
    /// The exit code; none where a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
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
        bail!("`{}` failed:\n{}{}", self.command, self.out, self.err)
    }

    /// What it wrote to standard error where it failed.
    ///
    /// # Errors
    /// Where it succeeded.
    pub fn refusal(self) -> Result<String> {
        if self.success {
            bail!("`{}` succeeded:\n{}", self.command, self.out);
        }
        Ok(self.err)
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
    let (success, code) = (output.status.success(), output.status.code());
    Ok(Said { command, success, code, out: text(output.stdout), err: text(output.stderr) })
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|not_text| String::from_utf8_lossy(not_text.as_bytes()).into_owned())
}
