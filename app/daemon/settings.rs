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
    /// Most connections at a time; more wait to be accepted. Default 64.
    pub max_connections: usize,
}

setting_ranges!(ApiSettings, "api" {
    max_body_bytes: 1..=1 << 30,
    body_timeout_s: 1..=3600,
    header_timeout_s: 1..=3600,
    max_connections: 1..=65_536,
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
            max_connections: 64,
        }
    }
}
