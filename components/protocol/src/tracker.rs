//! Tracker protocols: announce and scrape over HTTP (BEP 3, 7, 23, 24, 31, 48) and UDP (BEP 15), and the order in
//! which trackers are asked (BEP 12).

pub mod http;
pub mod tiers;
pub mod udp;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::bencode::BencodeError;
use crate::compact::RaggedError;
use crate::hash::InfoHash;
use crate::peer_id::PeerId;

/// Why an announce is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AnnounceEvent {
    /// The interval has passed.
    #[default]
    None,
    /// The first announce of a session.
    Started,
    /// The download has just completed.
    Completed,
    /// The session ends.
    Stopped,
}

/// What a tracker is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnounceRequest {
    /// The torrent.
    pub info_hash: InfoHash,
    /// Who asks.
    pub peer_id: PeerId,
    /// The port we accept connections on.
    pub port: u16,
    /// Payload bytes sent since `started`.
    pub uploaded: u64,
    /// Payload bytes received since `started`.
    pub downloaded: u64,
    /// Bytes still wanted.
    pub left: u64,
    /// Why now.
    pub event: AnnounceEvent,
    /// Names us across changes of address (BEP 7).
    pub key: u32,
    /// How many peers are wanted.
    pub num_want: u32,
    /// What the tracker's last reply asked to hear again (`trackerid`; HTTP only).
    pub tracker_id: Option<Vec<u8>>,
}

/// What a tracker answered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AnnounceResponse {
    /// How long to wait before the next announce, as the tracker put it: not clamped.
    pub interval: Duration,
    /// The least time between announces, where it named one.
    pub min_interval: Option<Duration>,
    /// Peers with all of it.
    pub seeders: Option<u32>,
    /// Peers without all of it.
    pub leechers: Option<u32>,
    /// Addresses, ports other than 0.
    pub peers: Vec<SocketAddr>,
    /// Something a person should read; printable.
    pub warning: Option<String>,
    /// To be sent back at the next announce.
    pub tracker_id: Option<Vec<u8>>,
    /// Our address as the tracker sees it (BEP 24).
    pub external_ip: Option<IpAddr>,
}

/// A torrent's swarm as a tracker counts it (BEP 48).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScrapeCounts {
    /// Peers with all of it.
    pub seeders: u32,
    /// Peers without all of it.
    pub leechers: u32,
    /// Downloads ever completed.
    pub completed: u32,
}

/// When a tracker that refused may be asked again (BEP 31).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It did not say.
    Unspecified,
    /// After this time.
    After(Duration),
    /// It never wants to be asked again.
    Never,
}

/// Why a reply is no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrackerError {
    /// The tracker refused, in its own words, which are printable.
    #[error("the tracker refused: {reason}")]
    Refused {
        /// The tracker's words.
        reason: String,
        /// When to ask again.
        retry: Retry,
    },
    /// Not bencode.
    #[error("malformed reply: {0}")]
    Bencode(#[from] BencodeError),
    /// Bencode without what belongs there.
    #[error("malformed reply: {0}")]
    Malformed(&'static str),
    /// A list of peers that ends inside an address.
    #[error("malformed reply: peers: {0}")]
    Ragged(#[from] RaggedError),
}

/// A tracker's URL for logs and people: scheme and host only, since paths and queries hold passkeys.
#[must_use]
pub fn redacted(url: &str) -> String {
    match url::Url::parse(url) {
        Ok(parsed) => {
            let port = parsed.port().map(|port| format!(":{port}")).unwrap_or_default();
            format!("{}://{}{port}", parsed.scheme(), parsed.host_str().unwrap_or_default())
        }
        Err(_) => "(invalid URL)".to_owned(),
    }
}

/// Fault 95: what a tracker says, without those parts of its own URL that could be a passkey, which some repeat.
#[must_use]
pub fn without_secrets(text: &str, url: &str) -> String {
    let Ok(url) = url::Url::parse(url) else {
        return text.to_owned();
    };
    let segments = url.path_segments().into_iter().flatten().map(str::to_owned);
    let values = url.query_pairs().map(|(_, value)| value.into_owned());
    let user = [Some(url.username()), url.password()]
        .into_iter()
        .flatten()
        .map(str::to_owned);
    let secrets = segments
        .chain(values)
        .chain(user)
        .filter(|part| part.len() >= MIN_SECRET);
    secrets.fold(text.to_owned(), |text, secret| text.replace(&secret, "…"))
}

/// Shorter parts of a URL are words, and no passkeys.
const MIN_SECRET: usize = 9;

/// Longest text of a tracker that is kept, in characters.
const MAX_TEXT: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    /// Fault 95.
    #[test]
    fn passkeys_are_not_shown() {
        assert_eq!(
            redacted("https://u:p@t.org:444/secret/announce?key=1"),
            "https://t.org:444"
        );
        assert_eq!(redacted("udp://[::1]:6969/x"), "udp://[::1]:6969");
        assert_eq!(redacted("secret"), "(invalid URL)");
    }

    /// Fault 95.
    #[test]
    fn a_tracker_repeats_no_passkey() {
        let url = "https://someuser1:p@t.org/0123456789abcdef/announce?key=fedcba987";
        let said = without_secrets("0123456789abcdef, fedcba987 and someuser1 may not announce", url);
        assert_eq!(said, "…, … and … may not announce");
        assert_eq!(without_secrets("plain", "no url"), "plain");
    }

    pub(super) fn request() -> AnnounceRequest {
        AnnounceRequest {
            info_hash: InfoHash([0xab; 20]),
            peer_id: PeerId(*b"-EC0100-abcdefghijkl"),
            port: 6881,
            uploaded: 1,
            downloaded: 2,
            left: 3,
            event: AnnounceEvent::Started,
            key: 0xdead_beef,
            num_want: 50,
            tracker_id: None,
        }
    }
}
