//! Addresses on the command line: of peers, and those to accept peers on.

use std::io::ErrorKind;
use std::net::{SocketAddr, ToSocketAddrs};

use clap::Args;
use ecs_torrent::components::settings::{DhtSettings, LsdSettings, NetSettings, PexSettings};
use ecs_torrent::protocol::host_port::HostPort;

use super::CliError;

/// Options on where peers connect and how they are found.
#[derive(Debug, Args)]
pub(super) struct ListenArgs {
    /// Address to accept peers on; may be repeated. Port 0 takes any free port. Default: port 6881 on all addresses.
    #[arg(long, value_name = "IP:PORT", value_parser = address)]
    listen: Vec<SocketAddr>,
    /// Disable the DHT.
    #[arg(long)]
    no_dht: bool,
    /// Disable local service discovery.
    #[arg(long)]
    no_lsd: bool,
    /// Disable peer exchange.
    #[arg(long)]
    no_pex: bool,
    /// Node by which to enter the DHT, instead of the configured ones; may be repeated.
    #[arg(long = "dht-node", value_name = "HOST:PORT", conflicts_with = "no_dht")]
    dht_nodes: Vec<HostPort>,
}

impl ListenArgs {
    /// Overrides settings.
    pub(super) fn apply(
        self,
        net: &mut NetSettings,
        dht: &mut DhtSettings,
        lsd: &mut LsdSettings,
        pex: &mut PexSettings,
    ) {
        if !self.listen.is_empty() {
            net.listen = self.listen;
            net.listen_fallback = false;
        }
        dht.enabled &= !self.no_dht;
        lsd.enabled &= !self.no_lsd;
        pex.enabled &= !self.no_pex;
        if !self.dht_nodes.is_empty() {
            dht.bootstrap = self.dht_nodes.iter().map(ToString::to_string).collect();
        }
    }
}

/// Parses the value of an option that takes an `IP:PORT`.
pub(super) fn address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse()
        .map_err(|_| "not an IP address with a port, such as 127.0.0.1:6881 or [::1]:6881")
}

/// Resolves the `HOST:PORT` arguments of an option. A host may have several addresses.
pub(super) fn resolve(option: &str, peers: &[String]) -> Result<Vec<SocketAddr>, CliError> {
    let mut addresses = Vec::new();
    for peer in peers {
        match peer.to_socket_addrs() {
            Ok(found) => {
                for address in found {
                    if address.port() == 0 {
                        return Err(CliError::Usage(format!("{option} {peer}: nobody listens on port 0")));
                    }
                    addresses.push(address);
                }
            }
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                return Err(CliError::Usage(format!("{option} {peer}: not a HOST:PORT")));
            }
            Err(error) => return Err(CliError::Io(format!("{option} {peer}"), error)),
        }
    }
    Ok(addresses)
}
