//! `recheck`: checks all data of a torrent again.

use clap::Args;
use serde_json::json;

use super::connection::Daemon;
use super::{DaemonAddress, print_json};
use crate::cli::{CliError, Outcome};

#[derive(Debug, Args)]
#[command(after_help = "\
No piece counts as held before it is hashed, whatever the saved state says.
Missing and bad pieces are downloaded again. A paused torrent is checked too,
and stays paused. `stats HASH --fields state,checked` shows the progress.

Example:
  ecs-torrent recheck 0c1f3b")]
pub(in crate::cli) struct RecheckArgs {
    /// Name of the torrent, or the first 4 or more digits of its info-hash.
    hash: String,
    /// Print the torrent as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

pub(in crate::cli) async fn run(args: RecheckArgs) -> Result<Outcome, CliError> {
    let daemon = Daemon::find(&args.daemon)?;
    let found = daemon.find_running(&args.hash).await?;
    daemon.post(&format!("/api/v1/torrents/{}/recheck", found.hash)).await?;
    match args.json {
        true => print_json(&json!({"info_hash": found.hash.to_string(), "name": found.name})),
        false => say!("checking {found}"),
    }
    Ok(Outcome::Done)
}
