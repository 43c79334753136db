//! `recheck`: checks data of a torrent again.

use std::ops::RangeInclusive;

use clap::Args;
use serde_json::{Map, json};

use super::connection::Daemon;
use super::{DaemonAddress, print_json};
use crate::cli::choice::{range, ranges_text};
use crate::cli::{CliError, Outcome};

#[derive(Debug, Args)]
#[command(after_help = "\
No piece counts as held before it is hashed, whatever the saved state says.
Missing and bad pieces are downloaded again. A paused torrent is checked too,
and stays paused. `stats HASH --fields state,checked` shows the progress. With
--files or --select only the pieces of these files are hashed.

Examples:
  ecs-torrent recheck 0c1f3b
  ecs-torrent recheck 0c1f3b --files 0,2-4 --select '*.flac'")]
pub(in crate::cli) struct RecheckArgs {
    /// Name of the torrent, or the first 4 or more digits of its info-hash.
    hash: String,
    /// Check only these files, by their numbers in `files`: 0,3-5.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', value_parser = range)]
    files: Vec<RangeInclusive<u32>>,
    /// Check only the files whose path matches a pattern; may be repeated.
    #[arg(long, value_name = "GLOB")]
    select: Vec<String>,
    /// Check only the data that was taken as complete by `add --skip-checking`.
    #[arg(long, conflicts_with_all = ["files", "select"])]
    unverified: bool,
    /// Print the torrent as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

pub(in crate::cli) async fn run(args: RecheckArgs) -> Result<Outcome, CliError> {
    let daemon = Daemon::find(&args.daemon)?;
    let found = daemon.find_running(&args.hash).await?;
    let path = format!("/api/v1/torrents/{}/recheck", found.hash);
    let mut wanted = Map::new();
    if !args.files.is_empty() {
        wanted.insert("files".into(), ranges_text(&args.files).into());
    }
    if !args.select.is_empty() {
        wanted.insert("select".into(), args.select.into());
    }
    if args.unverified {
        wanted.insert("unverified".into(), true.into());
    }
    match wanted.is_empty() {
        true => daemon.post(&path).await?,
        false => daemon.post_json(&path, &wanted.into()).await?,
    };
    match args.json {
        true => print_json(&json!({"info_hash": found.hash.to_string(), "name": found.name})),
        false => say!("checking {found}"),
    }
    Ok(Outcome::Done)
}
