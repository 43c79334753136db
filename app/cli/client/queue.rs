//! `queue`: the order in which torrents run.

use clap::{Args, value_parser};
use serde_json::{Value, json};

use super::connection::Daemon;
use super::{DaemonAddress, print_json, tables};
use crate::cli::{CliError, Outcome};

#[derive(Debug, Args)]
#[command(after_help = "\
The first torrents of the queue run, as many as the settings
queue.max_downloads, queue.max_seeds and queue.max_active allow; the others are
queued. Without options, the command prints the queue, or the place of one
torrent. Places are counted from 1, over downloads and seeds together.

Examples:
  ecs-torrent queue
  ecs-torrent queue 0c1f3b --top
  ecs-torrent queue 0c1f3b --force
  ecs-torrent config set queue.max_downloads 5")]
pub(in crate::cli) struct QueueArgs {
    /// Name of the torrent, or the first 4 or more digits of its info-hash.
    hash: Option<String>,
    /// Move the torrent before all others.
    #[arg(long, group = "move", requires = "hash")]
    top: bool,
    /// Move the torrent by one place to the front.
    #[arg(long, group = "move", requires = "hash")]
    up: bool,
    /// Move the torrent by one place to the back.
    #[arg(long, group = "move", requires = "hash")]
    down: bool,
    /// Move the torrent behind all others.
    #[arg(long, group = "move", requires = "hash")]
    bottom: bool,
    /// Move the torrent to a place among all, counted from 1.
    #[arg(long, group = "move", requires = "hash", value_name = "NUMBER", value_parser = value_parser!(u32).range(1..))]
    place: Option<u32>,
    /// Run the torrent regardless of the limits. It counts toward them.
    #[arg(long, requires = "hash", conflicts_with = "no_force")]
    force: bool,
    /// Let the limits apply to the torrent again.
    #[arg(long, requires = "hash")]
    no_force: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

/// The fields that the command prints.
const FIELDS: &str = "info_hash,name,state,queue";

pub(in crate::cli) async fn run(args: QueueArgs) -> Result<Outcome, CliError> {
    let daemon = Daemon::find(&args.daemon)?;
    let Some(hash) = &args.hash else {
        print(&Value::from(torrents(&daemon).await?), args.json);
        return Ok(Outcome::Done);
    };
    let hash = daemon.resolve_running(hash).await?;
    let path = format!("/api/v1/torrents/{hash}/queue");
    let mut change = json!({});
    let moves = [
        ("top", args.top),
        ("up", args.up),
        ("down", args.down),
        ("bottom", args.bottom),
    ];
    if let Some((movement, _)) = moves.into_iter().find(|(_, is_chosen)| *is_chosen) {
        change["move"] = movement.into();
    }
    if let Some(place) = args.place {
        change["place"] = place.into();
    }
    if args.force || args.no_force {
        change["forced"] = args.force.into();
    }
    if change != json!({}) {
        daemon.patch(&path, &change).await?;
    }
    let hash = Value::from(hash.to_string());
    let mut all = torrents(&daemon).await?;
    all.retain(|torrent| torrent["info_hash"] == hash);
    match (args.json, all.first()) {
        (true, Some(torrent)) => print_json(torrent),
        _ => tables::queue(&all.into()),
    }
    Ok(Outcome::Done)
}

/// Returns all torrents in the order of the queue, each with its place, counted from 1.
async fn torrents(daemon: &Daemon) -> Result<Vec<Value>, CliError> {
    let path = format!("/api/v1/torrents?sort=queue.order&fields={FIELDS}");
    let mut answer = daemon.get(&path).await?;
    let torrents = answer.as_array_mut().map(std::mem::take).unwrap_or_default();
    let placed = torrents.into_iter().zip(1_u64..).map(|(mut torrent, place)| {
        torrent["queue"]["place"] = place.into();
        torrent
    });
    Ok(placed.collect())
}

fn print(torrents: &Value, is_json: bool) {
    match is_json {
        true => print_json(torrents),
        false => tables::queue(torrents),
    }
}
