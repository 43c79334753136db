//! Private torrents are known only to their trackers and to the peers that these and the user name (BEP 27).
//!
//! The check reads the private flag from the metadata, not from the engine's own decision.

use std::net::SocketAddr;

use bevy_ecs::prelude::*;
use bytes::Bytes;
use ecs_torrent_components::candidates::{CandidateSource, CandidateSources, Candidates, SourceSet};
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::peer::PeerExtensions;
use ecs_torrent_components::torrent::{Content, Torrent};
use ecs_torrent_engine::ports::http::HttpRequest;
use ecs_torrent_engine::ports::net::{DatagramKind, NetRequest};
use ecs_torrent_engine::ports::{HttpPort, NetPort};
use ecs_torrent_protocol::extension::{ExtensionHandshake, HANDSHAKE_ID};
use ecs_torrent_protocol::metadata::{METADATA, MetadataMessage};
use ecs_torrent_protocol::pex::PEX;

use super::{Invariant, Violations};

/// Extensions that exchange peers, or connect peers to each other.
const NAMING: [&str; 2] = [PEX, "ut_holepunch"];

/// Returns the kind of information that an extension message to a peer of a private torrent leaks. `extensions` are the
/// ones of the peer.
pub(super) fn leak(extensions: Option<&PeerExtensions>, id: u8, payload: &[u8]) -> Option<&'static str> {
    if id == HANDSHAKE_ID {
        let handshake = ExtensionHandshake::read(payload).unwrap_or_default();
        let offers = |name: &&str| handshake.extensions.get(*name).is_some_and(|id| *id > 0);
        return NAMING.into_iter().chain([METADATA]).find(offers);
    }
    let is_of = |name: &&str| extensions.is_some_and(|extensions| extensions.id_of(name) == Some(id));
    let is_metadata = is_of(&METADATA) && is_metadata(payload);
    NAMING.into_iter().find(is_of).or(is_metadata.then_some("the metadata"))
}

/// Whether a message of `ut_metadata` has metadata: a request of a peer may be rejected.
fn is_metadata(payload: &[u8]) -> bool {
    let payload = Bytes::copy_from_slice(payload);
    matches!(MetadataMessage::read(&payload), Ok(Some(MetadataMessage::Data { .. })))
}

/// Checks that no datagram and no HTTP request names a private torrent, except to its trackers.
pub(super) fn listen(
    net: Res<NetPort>,
    http: Res<HttpPort>,
    clock: Res<Clock>,
    mut violations: ResMut<Violations>,
    torrents: Query<(&Torrent, Option<&Content>)>,
) {
    // Metadata that cannot be used may be private too.
    let is_private = |(torrent, content): &(&Torrent, Option<&Content>)| {
        content.map_or(torrent.private, |content| content.0.info.private)
    };
    let private = || torrents.iter().filter(is_private);
    for request in http.outgoing() {
        let HttpRequest::Get(get) = request else { continue };
        for (torrent, content) in private() {
            if names(&decoded(&get.url), &torrent.id().0) && !is_of_tracker(&get.url, content) {
                let report = || format!("{} names {}, which is private", get.url, torrent.name);
                violations.report(&clock, Invariant::Private, report);
            }
        }
    }
    for request in net.outgoing() {
        let (NetRequest::Datagram { to, data, .. } | NetRequest::Multicast { group: to, data, .. }) = request else {
            continue;
        };
        let is_announce = matches!(DatagramKind::of(data), Some(DatagramKind::Tracker)) || is_connect(data);
        for (torrent, content) in private() {
            let is_of_tracker = is_announce && is_of_tracker(&format!("udp://{to}/"), content);
            if !is_of_tracker && names(data, &torrent.id().0) {
                let what = query(data);
                let report = || format!("{what} to {to} names {}, which is private", torrent.name);
                violations.report(&clock, Invariant::Private, report);
            }
        }
    }
}

/// Whether a URL has the host and port of one of the torrent's trackers. Without trackers in the metadata, those of a
/// magnet link may be right, and so may a tracker whose name is looked up.
fn is_of_tracker(url: &str, content: Option<&Content>) -> bool {
    let host = |url: &str| url.split('/').nth(2).unwrap_or_default().to_owned();
    let trackers = content.into_iter().flat_map(|content| &content.0.trackers);
    let mut trackers = trackers.flatten().map(|url| host(url)).peekable();
    let wanted = host(url);
    trackers.peek().is_none() || trackers.any(|own| own == wanted || own.parse::<SocketAddr>().is_err())
}

/// Returns the bytes of a URL without percent encoding.
fn decoded(url: &str) -> Vec<u8> {
    let mut rest = url.as_bytes();
    let mut bytes = Vec::with_capacity(rest.len());
    while let Some((&first, after)) = rest.split_first() {
        let hex = after.get(..2).filter(|_| first == b'%');
        let escaped = hex.and_then(|hex| u8::from_str_radix(str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(escaped.unwrap_or(first));
        rest = &after[if escaped.is_some() { 2 } else { 0 }..];
    }
    bytes
}

/// Whether a datagram is a request to a tracker: it begins with a connection id, then has an action from 0 to 3
/// (BEP 15).
fn is_connect(data: &[u8]) -> bool {
    data.first() != Some(&b'd') && matches!(data.get(8..12), Some([0, 0, 0, 0..=3]))
}

/// Returns the name of a query of the DHT, or of any other datagram.
fn query(data: &[u8]) -> &'static str {
    let has = |name: &&str| {
        let part = format!("1:q{}:{name}", name.len());
        data.windows(part.len()).any(|window| window == part.as_bytes())
    };
    [
        "get_peers",
        "announce_peer",
        "find_node",
        "sample_infohashes",
        "get",
        "put",
    ]
    .into_iter()
    .find(has)
    .unwrap_or("a datagram")
}

/// Whether a datagram contains an info-hash, as bytes or in hexadecimal.
fn names(data: &[u8], hash: &[u8; 20]) -> bool {
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let is_hex = |window: &[u8]| window.eq_ignore_ascii_case(hex.as_bytes());
    data.windows(hash.len()).any(|window| window == hash) || data.windows(hex.len()).any(is_hex)
}

/// Checks that a private torrent has no peers from sources that serve only public ones.
pub(super) fn check_candidates(
    clock: Res<Clock>,
    sources: Res<CandidateSources>,
    mut violations: ResMut<Violations>,
    torrents: Query<(&Torrent, &Content, &Candidates)>,
) {
    let strangers: SourceSet = [
        CandidateSource::PEER_EXCHANGE,
        CandidateSource::DHT,
        CandidateSource::LOCAL_DISCOVERY,
        CandidateSource::MAGNET,
        CandidateSource::UNFETCHED_SESSION,
    ]
    .into_iter()
    .collect();
    for (torrent, _, candidates) in torrents.iter().filter(|(_, content, _)| content.0.info.private) {
        for address in candidates.iter() {
            let by = candidates.get(address).map(|(by, _)| by.intersection(strangers));
            if let Some(source) = by.and_then(|by| by.iter().next()) {
                let (name, source) = (&torrent.name, sources.name_of(source));
                let report = || format!("{name} is private, and knows {address} from {source}");
                violations.report(&clock, Invariant::Private, report);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaks_are_found_in_handshakes_messages_and_datagrams() {
        let mut extensions = PeerExtensions::default();
        extensions.handshake.extensions = [(PEX.to_owned(), 7)].into();
        assert_eq!(leak(Some(&extensions), 7, b"de"), Some(PEX));
        assert_eq!(leak(Some(&extensions), 8, b"de"), None);
        assert_eq!(leak(None, 0, b"d1:md6:ut_pexi2eee"), Some(PEX));
        assert_eq!(leak(None, 0, b"d1:md11:lt_donthavei1e6:ut_pexi0eee"), None);
        extensions.handshake.extensions = [(METADATA.to_owned(), 3)].into();
        let [data, reject] = [
            &b"d8:msg_typei1e5:piecei0e10:total_sizei1eex"[..],
            b"d8:msg_typei2e5:piecei0ee",
        ];
        assert_eq!(leak(Some(&extensions), 3, data), Some("the metadata"));
        assert_eq!(leak(None, 0, b"d1:md11:ut_metadatai3eee"), Some(METADATA));
        assert_eq!(leak(Some(&extensions), 3, reject), None);
        let hash = [0xab; 20];
        assert!(names(&[&b"d1:q"[..], &hash, b"e"].concat(), &hash));
        assert!(names(format!("Infohash: {}", "AB".repeat(20)).as_bytes(), &hash));
        assert!(!names(&[0xab; 19], &hash));
        assert!(names(
            &decoded(&format!("http://a/?info_hash={}&x=%", "%AB".repeat(20))),
            &hash
        ));
        assert!(is_connect(&[
            0, 0, 4, 0x17, 0x27, 0x10, 0x19, 0x80, 0, 0, 0, 0, 1, 2, 3, 4
        ]));
        assert!(!is_connect(b"d1:ad2:id20:"));
        assert_eq!(query(b"d1:ade1:q9:get_peers1:t1:a1:y1:qe"), "get_peers");
        assert_eq!(query(b"d1:ade1:q3:get1:t1:a1:y1:qe"), "get");
        assert_eq!(query(b"BT-SEARCH * HTTP/1.1"), "a datagram");
    }
}
