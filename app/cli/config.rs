//! `config`: inspects the daemon's configuration without starting the daemon.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use ecs_torrent::config::{ConfigFile, DEFAULT};

use super::{CliError, Outcome};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ecs-torrent config default > ecs-torrent.ron
  ecs-torrent config check ecs-torrent.ron")]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check a configuration file without starting the daemon.
    #[command(after_help = "Example:\n  ecs-torrent config check /etc/ecs-torrent.ron")]
    Check {
        /// The configuration.
        file: PathBuf,
    },
    /// Print every setting with its meaning, range and default.
    #[command(after_help = "Example:\n  ecs-torrent config default > ecs-torrent.ron")]
    Default,
}

pub(super) fn run(args: &ConfigArgs) -> Result<Outcome, CliError> {
    match &args.command {
        ConfigCommand::Check { file } => {
            let source = ConfigFile::read(file)?;
            let checked = source.parse().and_then(|config| config.check());
            checked.map_err(|error| source.place(error))?;
            say!("{}: good", file.display());
        }
        ConfigCommand::Default => super::output::print(format_args!("{DEFAULT}")),
    }
    Ok(Outcome::Done)
}
