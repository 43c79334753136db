//! Settings of the daemon's log file.

use std::path::PathBuf;

use ecs_torrent_components::setting_ranges;
use serde::{Deserialize, Serialize};

/// The log file of the daemon. Only this file sets it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// File that gets every line of the log, which goes to the standard error stream too. The variable `RUST_LOG`
    /// selects the lines. Default none.
    pub file: Option<PathBuf>,
    /// Size at which the file is renamed to `FILE.1`, that one to `FILE.2`, and so on. Default 10 MiB.
    pub max_bytes: u64,
    /// Number of files, the current one included. The oldest one is deleted. Default 5.
    pub max_files: usize,
}

setting_ranges!(LogSettings, "log" {
    max_bytes: 1024..=1 << 40,
    max_files: 1..=1000,
});

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            file: None,
            max_bytes: 10 << 20,
            max_files: 5,
        }
    }
}
