//! Logs: one JSON object a line on the standard error.

use tracing_subscriber::EnvFilter;

/// Starts logging at the level that `LOG_LEVEL` names: Python's names, Rust's, or a filter such as
/// `info,anneal_server=debug`.
pub fn start(level: &str) {
    let filter = EnvFilter::try_new(rust_level(level));
    let unknown = filter.is_err();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_writer(std::io::stderr)
        .with_env_filter(filter.unwrap_or_else(|_| EnvFilter::new("info")));
    // Fails only where a test of this process has already started logging.
    let _ = subscriber.try_init();
    if unknown {
        tracing::warn!(level, "LOG_LEVEL is not a level; write error, warn, info, debug or trace. Logging at info");
    }
}

/// Python's name of a level in the words of `tracing`.
fn rust_level(level: &str) -> String {
    match level.trim().to_ascii_lowercase().as_str() {
        "" => "info".to_owned(),
        "warning" => "warn".to_owned(),
        "critical" | "fatal" => "error".to_owned(),
        "notset" => "trace".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pythons_levels_are_understood() {
        for (python, rust) in
            [("INFO", "info"), ("WARNING", "warn"), ("Critical", "error"), ("debug", "debug"), ("", "info")]
        {
            assert_eq!(rust_level(python), rust);
        }
    }
}
