//! Hosts, given by a host name or an address, with a port.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Maximum length of a host name in bytes (RFC 1035).
const MAX_HOST: usize = 253;

/// A host name or an IP address, and a port: a node of the DHT as a torrent names it (BEP 5), or a peer as a magnet
/// link does (BEP 9).
///
/// ```
/// use ecs_torrent_protocol::host_port::HostPort;
///
/// let host: HostPort = "[2001:db8::1]:6881".parse().unwrap();
/// assert_eq!((&*host.host, host.port, host.is_name()), ("2001:db8::1", 6881, false));
/// assert!("peer.example:6881".parse::<HostPort>().unwrap().is_name());
/// assert!("peer example:6881".parse::<HostPort>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// The host name, or the address without brackets.
    pub host: String,
    /// The port, not 0.
    pub port: u16,
}

impl HostPort {
    /// Checks a host name, or an address with or without brackets, and a port.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Option<Self> {
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = inner.unwrap_or(host);
        let is_letter = |letter: u8| letter.is_ascii_alphanumeric() || b"-._".contains(&letter);
        let is_name = !host.is_empty() && host.len() <= MAX_HOST && host.bytes().all(is_letter);
        let is_usable = port != 0 && (is_name || host.parse::<IpAddr>().is_ok());
        is_usable.then(|| Self {
            host: host.to_owned(),
            port,
        })
    }

    /// Whether the host is a name, which has to be looked up.
    #[must_use]
    pub fn is_name(&self) -> bool {
        self.host.parse::<IpAddr>().is_err()
    }
}

/// The text is not a host and a port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a host name or address with a port, such as dht.example:6881")]
pub struct HostPortError(String);

impl FromStr for HostPort {
    type Err = HostPortError;

    fn from_str(text: &str) -> Result<Self, HostPortError> {
        let host = text
            .rsplit_once(':')
            .and_then(|(host, port)| Self::new(host, port.parse().ok()?));
        host.ok_or_else(|| HostPortError(text.to_owned()))
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl Serialize for HostPort {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HostPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}
