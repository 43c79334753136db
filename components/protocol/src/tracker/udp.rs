//! Announce and scrape over UDP (BEP 15): the packets, and the exchange that repeats them until a reply arrives.

mod exchange;

use std::net::SocketAddr;
use std::time::Duration;

pub use self::exchange::{Connection, Outcome, Step, UdpExchange};
use super::{AnnounceEvent, AnnounceRequest, AnnounceResponse, MAX_TEXT, Retry, ScrapeCounts, TrackerError};
use crate::compact;
use crate::hash::InfoHash;
use crate::text::printable;

/// Maximum number of torrents in one scrape (BEP 15: "up to about 74").
pub const MAX_SCRAPE: usize = 74;

/// The constant at the start of a connect request.
const PROTOCOL_ID: u64 = 0x0417_2710_1980;

mod action {
    pub(super) const CONNECT: u32 = 0;
    pub(super) const ANNOUNCE: u32 = 1;
    pub(super) const SCRAPE: u32 = 2;
    pub(super) const ERROR: u32 = 3;
}

/// A request to a UDP tracker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UdpRequest {
    /// Announces us and requests peers.
    Announce(AnnounceRequest),
    /// Requests the counts of these swarms, at most [`MAX_SCRAPE`].
    Scrape(Vec<InfoHash>),
}

/// A tracker's reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UdpReply {
    /// The reply to an announce.
    Announce(AnnounceResponse),
    /// The reply to a scrape: counts in the order of the request.
    Scrape(Vec<ScrapeCounts>),
}

fn connect_packet(transaction: u32) -> Vec<u8> {
    let mut packet = Vec::with_capacity(16);
    packet.extend(PROTOCOL_ID.to_be_bytes());
    packet.extend(action::CONNECT.to_be_bytes());
    packet.extend(transaction.to_be_bytes());
    packet
}

fn request_packet(connection: u64, transaction: u32, request: &UdpRequest) -> Vec<u8> {
    let mut packet = Vec::with_capacity(98);
    packet.extend(connection.to_be_bytes());
    match request {
        UdpRequest::Announce(announce) => {
            packet.extend(action::ANNOUNCE.to_be_bytes());
            packet.extend(transaction.to_be_bytes());
            packet.extend(announce.info_hash.0);
            packet.extend(announce.peer_id.0);
            packet.extend(announce.downloaded.to_be_bytes());
            packet.extend(announce.left.to_be_bytes());
            packet.extend(announce.uploaded.to_be_bytes());
            let event: u32 = match announce.event {
                AnnounceEvent::None | AnnounceEvent::Paused => 0,
                AnnounceEvent::Completed => 1,
                AnnounceEvent::Started => 2,
                AnnounceEvent::Stopped => 3,
            };
            packet.extend(event.to_be_bytes());
            packet.extend([0; 4]);
            packet.extend(announce.key.to_be_bytes());
            packet.extend(announce.num_want.to_be_bytes());
            packet.extend(announce.port.to_be_bytes());
        }
        UdpRequest::Scrape(hashes) => {
            packet.extend(action::SCRAPE.to_be_bytes());
            packet.extend(transaction.to_be_bytes());
            hashes.iter().take(MAX_SCRAPE).for_each(|hash| packet.extend(hash.0));
        }
    }
    packet
}

/// Splits a packet into action, transaction and body.
fn read_head(packet: &[u8]) -> Option<(u32, u32, &[u8])> {
    let (action, rest) = packet.split_first_chunk()?;
    let (transaction, body) = rest.split_first_chunk()?;
    Some((u32::from_be_bytes(*action), u32::from_be_bytes(*transaction), body))
}

/// Reads the body of the reply to `request`; the tracker's address family determines the length of addresses.
fn read_reply(
    request: &UdpRequest,
    action: u32,
    body: &[u8],
    tracker: SocketAddr,
    max_peers: usize,
) -> Result<UdpReply, TrackerError> {
    match (request, action) {
        (_, action::ERROR) => Err(TrackerError::Refused {
            reason: printable(body, MAX_TEXT),
            retry: Retry::Unspecified,
        }),
        (UdpRequest::Announce(_), action::ANNOUNCE) => read_announce(body, tracker, max_peers).map(UdpReply::Announce),
        (UdpRequest::Scrape(hashes), action::SCRAPE) => {
            let counts = body
                .as_chunks::<12>()
                .0
                .iter()
                .take(hashes.len())
                .map(|entry| ScrapeCounts {
                    seeders: word(entry, 0),
                    completed: word(entry, 4),
                    leechers: word(entry, 8),
                });
            Ok(UdpReply::Scrape(counts.collect()))
        }
        _ => Err(TrackerError::Malformed("answer to something else")),
    }
}

fn read_announce(body: &[u8], tracker: SocketAddr, max_peers: usize) -> Result<AnnounceResponse, TrackerError> {
    let Some((head, list)) = body.split_first_chunk::<12>() else {
        return Err(TrackerError::Malformed("short announce reply"));
    };
    let mut peers: Vec<SocketAddr> = match tracker {
        SocketAddr::V4(_) => compact::read_v4(list)?.take(max_peers).collect(),
        SocketAddr::V6(_) => compact::read_v6(list)?.take(max_peers).collect(),
    };
    peers.retain(|peer| peer.port() != 0);
    Ok(AnnounceResponse {
        interval: Duration::from_secs(u64::from(word(head, 0))),
        leechers: Some(word(head, 4)),
        seeders: Some(word(head, 8)),
        peers,
        ..AnnounceResponse::default()
    })
}

/// Reads the big-endian number at `at`, which must be inside `bytes`.
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
