//! `block` and `unblock`: lists and changes the peers that the daemon refuses.

use clap::Args;
use ecs_torrent::components::networks::Network;
use serde_json::{Value, json};

use super::DaemonAddress;
use super::connection::Daemon;
use super::values::text;
use crate::cli::output::{self, print_json, printable};
use crate::cli::{CliError, Outcome};

/// The path of the blocked networks.
const PATH: &str = "/api/v1/peers/blocked";

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
    if !args.networks.is_empty() {
        return edit(&daemon, &json!({ "add": args.networks }), args.json).await;
    }
    let blocked = networks(&daemon.get(PATH).await?);
    match blocked.is_empty() {
        _ if args.json => print_json(&blocked),
        true => say!("no peers are blocked"),
        false => blocked.iter().for_each(|network| say!("{}", printable(network))),
    }
    Ok(Outcome::Done)
}

pub(in crate::cli) async fn unblock(args: UnblockArgs) -> Result<Outcome, CliError> {
    let daemon = Daemon::find(&args.daemon)?;
    edit(&daemon, &json!({ "remove": args.networks }), args.json).await
}

/// Returns the networks of an answer.
fn networks(answer: &Value) -> Vec<String> {
    let networks = answer.as_array().into_iter().flatten();
    networks.map(|network| text(network).to_owned()).collect()
}

/// Sends a change, and prints what is blocked then.
async fn edit(daemon: &Daemon, change: &Value, is_json: bool) -> Result<Outcome, CliError> {
    let blocked = networks(&daemon.patch(PATH, change).await?);
    match is_json {
        true => print_json(&blocked),
        false => say!("{}", summary(&blocked)),
    }
    Ok(Outcome::Done)
}

/// Counts the blocked addresses and networks: `2 addresses and 1 network blocked`.
fn summary(blocked: &[String]) -> String {
    let (networks, addresses): (Vec<&String>, Vec<&String>) = blocked.iter().partition(|text| text.contains('/'));
    let addresses = match addresses.len() {
        0 => None,
        1 => Some("1 address".to_owned()),
        count => Some(format!("{count} addresses")),
    };
    let networks = (!networks.is_empty()).then(|| output::count(networks.len(), "network"));
    let parts: Vec<String> = [addresses, networks].into_iter().flatten().collect();
    match parts.is_empty() {
        true => "no peers are blocked".to_owned(),
        false => format!("{} blocked", parts.join(" and ")),
    }
}
