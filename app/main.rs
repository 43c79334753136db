//! The `ecs-torrent` command.

#![expect(clippy::print_stderr, reason = "a command talks to its user")]

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
