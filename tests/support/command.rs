//! The program, run as its users run it.

use std::path::Path;
use std::process::{Command, Stdio};

/// The program with these arguments, in a folder.
pub fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ecs-torrent"));
    command
        .current_dir(folder)
        .args(arguments)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}
