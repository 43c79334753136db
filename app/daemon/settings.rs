//! Settings of the HTTP API.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ecs_torrent_components::networks::Network;
use ecs_torrent_components::setting_ranges;
use serde::{Deserialize, Serialize};

/// The HTTP API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApiSettings {
    /// Address to listen on; port 0 takes a free one. Default `127.0.0.1:6880`, for programs of this machine.
    pub listen: SocketAddr,
    /// Whether the address may be reachable from other machines. The API uses plain HTTP, its token included: put a
    /// proxy with TLS before it. Default false: such an address fails the start.
    pub allow_remote: bool,
    /// Host names by which clients may address the API, in addition to the listen address and `localhost`. A request
    /// for any other name is refused; otherwise, a web page could reach the API by pointing its own name here.
    /// Default none.
    pub names: Vec<String>,
    /// Folders that clients may choose to download torrents into, in addition to the download folder. Default none.
    pub allow_roots: Vec<PathBuf>,
    /// Networks from which torrent files are fetched by the `url` of an add, in addition to the Internet: addresses, or
    /// networks such as `192.168.1.0/24`. Clients of the API gain access to them through the daemon. Default none.
    pub fetch_from: Vec<Network>,
    /// Longest body of a request, and longest torrent file of a URL. Default 10 MiB.
    pub max_body_bytes: usize,
    /// Longest archive that is imported with `/api/v1/state`. Default 1 GiB.
    pub max_state_bytes: u64,
    /// Time for the whole body of a request to arrive, for each part of an archive, and for the torrent file of a URL.
    /// Default 30 s.
    pub body_timeout_s: u64,
    /// Time for the whole head of a request to arrive, and for the next request on a connection that is kept.
    /// Default 10 s.
    pub header_timeout_s: u64,
    /// Time without progress in sending an answer, after which the connection is closed. Default 10 s.
    pub write_timeout_s: u64,
    /// Maximum number of connections at a time, for TCP and for the Unix socket each. Beyond it, and beyond half of it
    /// from one address, a new connection replaces one that has not presented the token. Connections that have
    /// presented it stay. Default 256.
    pub max_connections: usize,
    /// Wrong tokens from one address (one /64 of IPv6) that are answered as such; more are refused with status 429 (too
    /// many requests). The right token is always accepted. Default 10.
    pub max_failed_logins: u32,
    /// Time after which one more wrong token is answered. Default 10 s.
    pub failed_login_interval_s: u64,
    /// Whether `/metrics` reports each torrent too: six values each, with the torrent's name. A server that collects
    /// them keeps a series for each. Default false.
    pub metrics_per_torrent: bool,
}

setting_ranges!(ApiSettings, "api" {
    max_body_bytes: 1..=1 << 30,
    max_state_bytes: 1..=1 << 40,
    body_timeout_s: 1..=3600,
    header_timeout_s: 1..=3600,
    write_timeout_s: 1..=3600,
    // Each eviction searches all connections.
    max_connections: 1..=16_384,
    max_failed_logins: 1..=1_000_000,
    failed_login_interval_s: 1..=86_400,
});

impl Default for ApiSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 6880)),
            allow_remote: false,
            names: Vec::new(),
            allow_roots: Vec::new(),
            fetch_from: Vec::new(),
            max_body_bytes: 10 << 20,
            max_state_bytes: 1 << 30,
            body_timeout_s: 30,
            header_timeout_s: 10,
            write_timeout_s: 10,
            max_connections: 256,
            max_failed_logins: 10,
            failed_login_interval_s: 10,
            metrics_per_torrent: false,
        }
    }
}
