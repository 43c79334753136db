//! Settings of the HTTP API.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ecs_torrent_components::setting_ranges;
use serde::{Deserialize, Serialize};

/// The HTTP API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApiSettings {
    /// Address to listen on; port 0 takes a free one. Default `127.0.0.1:6880`, for programs of this machine.
    pub listen: SocketAddr,
    /// Whether the address may be one that other machines reach. The API speaks plain HTTP, its token included: put
    /// a proxy with TLS before it. Default false: such an address fails the start.
    pub allow_remote: bool,
    /// Host names by which clients may call it, beside the address it listens on and `localhost`; a request for any
    /// other name is refused, or a web page could reach it by pointing its own name here. Default none.
    pub names: Vec<String>,
    /// Folders that torrents may be downloaded into on a client's wish, beside the download folder. Default none.
    pub allow_roots: Vec<PathBuf>,
    /// Longest body of a request, which is a torrent file. Default 10 MiB.
    pub max_body_bytes: usize,
    /// Time for the whole body of a request to arrive. Default 30 s.
    pub body_timeout_s: u64,
    /// Time for the head of a request to arrive whole, and for the next request on a connection that is kept.
    /// Default 10 s.
    pub header_timeout_s: u64,
    /// Time in which a client takes nothing of an answer, after which its connection is closed. Default 10 s.
    pub write_timeout_s: u64,
    /// Most connections at a time, of TCP and of the Unix socket each. Beyond it, and beyond half of it from one
    /// address, a new one takes the place of one that has not shown the token; those that have shown it stay.
    /// Default 256.
    pub max_connections: usize,
    /// Wrong tokens from one address (one /64 of IPv6) that are answered as such; more are refused as too many
    /// (status 429). The right token is always accepted. Default 10.
    pub max_failed_logins: u32,
    /// Time after which one more wrong token is answered. Default 10 s.
    pub failed_login_interval_s: u64,
}

setting_ranges!(ApiSettings, "api" {
    max_body_bytes: 1..=1 << 30,
    body_timeout_s: 1..=3600,
    header_timeout_s: 1..=3600,
    write_timeout_s: 1..=3600,
    // Each connection that makes room for another one is searched for among all.
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
            max_body_bytes: 10 << 20,
            body_timeout_s: 30,
            header_timeout_s: 10,
            write_timeout_s: 10,
            max_connections: 256,
            max_failed_logins: 10,
            failed_login_interval_s: 10,
        }
    }
}
