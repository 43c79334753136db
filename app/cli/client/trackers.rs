//! `trackers`: lists and edits the trackers of a torrent, and announces to them.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::connection::Daemon;
use super::{DaemonAddress, tables};
use crate::cli::output::{self, print_json};
use crate::cli::{CliError, Outcome};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ecs-torrent trackers 0c1f3b
  ecs-torrent trackers 0c1f3b --add udp://tracker.example:80
  ecs-torrent trackers 0c1f3b --remove http://a.example --add http://b.example
  ecs-torrent trackers 0c1f3b --announce

Added trackers come after the others, in the order given. A tracker to remove is
named by its URL: in full, as it is listed (without what could be a passkey), or
without its path. It must be the only one with that name.
Changes survive restarts. The trackers of a private torrent cannot be changed.")]
pub(in crate::cli) struct TrackersArgs {
    /// Name of the torrent, or the first 4 or more digits of its info-hash.
    hash: String,
    /// Tracker to add; may be repeated.
    #[arg(long, value_name = "URL")]
    add: Vec<String>,
    /// Tracker to remove; may be repeated.
    #[arg(long, value_name = "URL")]
    remove: Vec<String>,
    /// Announce as early as the trackers allow.
    #[arg(long)]
    announce: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

pub(in crate::cli) async fn run(args: TrackersArgs) -> Result<Outcome, CliError> {
    let daemon = Daemon::find(&args.daemon)?;
    let hash = daemon.resolve_running(&args.hash).await?;
    let path = format!("/api/v1/torrents/{hash}/trackers");
    if !(args.add.is_empty() && args.remove.is_empty()) {
        let edit = json!({ "remove": args.remove, "add": args.add });
        daemon.patch(&path, &edit).await?;
    }
    if args.announce {
        let answer = daemon.post(&format!("/api/v1/torrents/{hash}/announce")).await?;
        if !args.json {
            match answer["in_seconds"].as_u64().unwrap_or_default() {
                0 => say!("announcing"),
                wait => say!(
                    "announcing in {}, no tracker allows it earlier",
                    output::duration(Duration::from_secs(wait))
                ),
            }
        }
    }
    let trackers = daemon.get(&path).await?;
    match args.json {
        true => print_json(&trackers),
        false => tables::trackers(&trackers),
    }
    Ok(Outcome::Done)
}
