//! What the process leaves in its termination message for the operator and for `kubectl describe pod`.

use std::{fs, io::Write as _, path::PathBuf};

use anneal_api::{failure::FailureClass, names::path::TERMINATION_LOG, termination::TerminationMessage};

/// Environment variable that names another file than the kubelet's.
const OVERRIDE: &str = "ANNEAL_TERMINATION_LOG";

/// Logs the failure, leaves it as the termination message and gives the exit code of its class.
pub fn failure(class: FailureClass, message: &str) -> i32 {
    tracing::error!(class = class.as_str(), "{message}");
    leave(&TerminationMessage::failure(class, message));
    class.exit_code()
}

/// Writes the termination message. Outside Kubernetes there is nowhere to write it, which is fine.
pub fn leave(message: &TerminationMessage) {
    let Some(path) = destination() else { return };
    let written = message.to_json().map_err(std::io::Error::other).and_then(|json| {
        fs::OpenOptions::new().write(true).create(true).truncate(true).open(&path)?.write_all(json.as_bytes())
    });
    if let Err(error) = written {
        tracing::warn!(path = %path.display(), %error, "the termination message could not be written");
    }
}

fn destination() -> Option<PathBuf> {
    match std::env::var_os(OVERRIDE) {
        Some(path) => Some(PathBuf::from(path)),
        None => Some(PathBuf::from(TERMINATION_LOG)).filter(|path| path.exists()),
    }
}
