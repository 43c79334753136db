//! `peers`: lists the peers of a torrent, and adds some.

use clap::Args;
use serde_json::json;

use super::connection::Daemon;
use super::{DaemonAddress, tables};
use crate::cli::output::print_json;
use crate::cli::{CliError, Outcome, peers};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ecs-torrent peers 0c1f3b
  ecs-torrent peers 0c1f3b --add 192.0.2.7:6881
  ecs-torrent peers 0c1f3b --json | jq -r '.[].client'

Flags:
  D  we download from the peer      d  we want to, but it does not serve us
  U  we upload to the peer          u  it wants to download, but has to wait
  I  the peer connected to us")]
pub(in crate::cli) struct PeersArgs {
    /// Name of the torrent, or the first 4 or more digits of its info-hash.
    hash: String,
    /// Peer to connect to; may be repeated.
    #[arg(long = "add", value_name = "HOST:PORT")]
    add: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

pub(in crate::cli) async fn run(args: PeersArgs) -> Result<Outcome, CliError> {
    let added = peers::resolve("--add", &args.add)?;
    let daemon = Daemon::find(&args.daemon)?;
    let hash = daemon.resolve_running(&args.hash).await?;
    let path = format!("/api/v1/torrents/{hash}/peers");
    if !added.is_empty() {
        daemon.patch(&path, &json!({ "add": added })).await?;
        if !args.json {
            let added: Vec<String> = added.iter().map(ToString::to_string).collect();
            say!("added {}", added.join(", "));
        }
    }
    let peers = daemon.get(&path).await?;
    match args.json {
        true => print_json(&peers),
        false => tables::peers(&peers),
    }
    Ok(Outcome::Done)
}
