//! What goes to the standard output. A closed pipe is the reader's choice.

use std::io::Write as _;

use serde::Serialize;

use crate::problem::Problem;

/// Prints lines.
pub fn lines(lines: &[String]) {
    let text: String = lines.iter().flat_map(|line| [line.trim_end(), "\n"]).collect();
    write(&text);
}

/// Prints a value as JSON.
///
/// # Errors
/// When it cannot be written as JSON.
pub fn json(value: &impl Serialize) -> Result<(), Problem> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Problem::Unknown(error.to_string()))?;
    write(&format!("{text}\n"));
    Ok(())
}

/// Prints text as it is.
pub fn write(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Tells something beside the output.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
