//! `block` and `unblock`: lists and changes the peers that the daemon refuses.

use clap::Args;
use ecs_torrent::components::networks::Network;
use serde_json::{Value, json};

use super::connection::Daemon;
use super::values::text;
use super::{DaemonAddress, settings};
use crate::cli::output::{self, print_json, printable};
use crate::cli::{CliError, Outcome};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ecs-torrent block                              the blocked addresses
  ecs-torrent block 192.0.2.7 2001:db8::/32

Blocked peers are neither dialed nor accepted, in all torrents, and connections
to them close. This survives restarts, and is the setting peers.blocked.")]
pub(in crate::cli) struct BlockArgs {
    /// Addresses and networks.
    #[arg(value_name = "IP[/PREFIX]")]
    networks: Vec<Network>,
    /// Print the blocked addresses as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ecs-torrent unblock 192.0.2.7")]
pub(in crate::cli) struct UnblockArgs {
    /// Addresses and networks, as `block` lists them.
    #[arg(required = true, value_name = "IP[/PREFIX]")]
    networks: Vec<Network>,
    /// Print the addresses that are still blocked as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

pub(in crate::cli) async fn block(args: BlockArgs) -> Result<Outcome, CliError> {
    let daemon = Daemon::find(&args.daemon)?;
    let mut blocked = blocked(&daemon).await?;
    if args.networks.is_empty() && args.json {
        print_json(&blocked);
        return Ok(Outcome::Done);
    }
    if args.networks.is_empty() {
        for network in &blocked {
            say!("{}", printable(network));
        }
        if blocked.is_empty() {
            say!("no peers are blocked");
        }
        return Ok(Outcome::Done);
    }
    for network in args.networks.iter().map(Network::to_string) {
        if !blocked.contains(&network) {
            blocked.push(network);
        }
    }
    save(&daemon, &blocked, args.json).await
}

pub(in crate::cli) async fn unblock(args: UnblockArgs) -> Result<Outcome, CliError> {
    let daemon = Daemon::find(&args.daemon)?;
    let mut blocked = blocked(&daemon).await?;
    for network in args.networks.iter().map(Network::to_string) {
        let count = blocked.len();
        blocked.retain(|other| *other != network);
        if blocked.len() == count {
            return Err(CliError::Other(format!("{network} is not blocked")));
        }
    }
    save(&daemon, &blocked, args.json).await
}

/// Returns the blocked networks.
async fn blocked(daemon: &Daemon) -> Result<Vec<String>, CliError> {
    let answer = daemon.get(settings::PATH).await?;
    let networks = answer["settings"]["peers"]["blocked"].as_array();
    let networks = networks.map_or(&[][..], Vec::as_slice);
    Ok(networks
        .iter()
        .map(|network: &Value| text(network).to_owned())
        .collect())
}

async fn save(daemon: &Daemon, blocked: &[String], is_json: bool) -> Result<Outcome, CliError> {
    let change = json!({ "peers": { "blocked": blocked } });
    daemon.patch(settings::PATH, &change).await?;
    match blocked.len() {
        _ if is_json => print_json(&blocked),
        0 => say!("no peers are blocked"),
        count => say!("{} blocked", output::count(count, "network")),
    }
    Ok(Outcome::Done)
}
