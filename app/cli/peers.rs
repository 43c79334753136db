//! Addresses on the command line.

use std::io::ErrorKind;
use std::net::{SocketAddr, ToSocketAddrs};

use super::CliError;

/// Parses the value of an option that takes an `IP:PORT`.
pub(super) fn address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse()
        .map_err(|_| "not an IP address with a port, such as 127.0.0.1:6881 or [::1]:6881")
}

/// Resolves `HOST:PORT` arguments. A host may have several addresses.
pub(super) fn resolve(peers: &[String]) -> Result<Vec<SocketAddr>, CliError> {
    let mut addresses = Vec::new();
    for peer in peers {
        match peer.to_socket_addrs() {
            Ok(found) => addresses.extend(found),
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                return Err(CliError::Usage(format!("--peer {peer}: not a HOST:PORT")));
            }
            Err(error) => return Err(CliError::Io(format!("--peer {peer}"), error)),
        }
    }
    Ok(addresses)
}
