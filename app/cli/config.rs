//! `config`: inspects the daemon's configuration, and reads and changes the settings of a running daemon.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use ecs_torrent::config::{ConfigFile, DEFAULT};

use super::client::settings;
use super::{CliError, Outcome};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ecs-torrent config default > ecs-torrent.ron
  ecs-torrent config check ecs-torrent.ron
  ecs-torrent config set limits.download_bytes_per_s 500k")]
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
    /// Print settings of the running daemon.
    Get(settings::GetArgs),
    /// Change a setting of the running daemon.
    Set(settings::SetArgs),
    /// Give a setting of the running daemon the value of its configuration again.
    Reset(settings::ResetArgs),
}

pub(super) async fn run(args: ConfigArgs) -> Result<Outcome, CliError> {
    match args.command {
        ConfigCommand::Check { file } => {
            let source = ConfigFile::read(&file)?;
            let checked = source.parse().and_then(|config| config.check());
            checked.map_err(|error| source.place(error))?;
            say!("{}: good", file.display());
        }
        ConfigCommand::Default => super::output::print(format_args!("{DEFAULT}")),
        ConfigCommand::Get(args) => return settings::get(args).await,
        ConfigCommand::Set(args) => return settings::set(args).await,
        ConfigCommand::Reset(args) => return settings::reset(args).await,
    }
    Ok(Outcome::Done)
}
