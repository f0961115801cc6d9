//! Where log lines go: stderr, as text for people or as JSON for programs.

use std::io::{self, IsTerminal};

use quorate_node::config::{LogConfig, LogFormat};
use tracing_subscriber::EnvFilter;

/// Starts logging for the whole process.
pub(crate) fn start(config: &LogConfig) {
    let filter = EnvFilter::new(config.level.as_str());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match config.format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Pretty => {
            let color = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            builder.with_ansi(color).init();
        }
    }
}
