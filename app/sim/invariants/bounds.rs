//! Memory and queues stay within their settings.

use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use ecs_torrent_components::candidates::Candidates;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::connections::ConnectionCounts;
use ecs_torrent_components::peer::{Outbox, Peer, Requests, ServeQueue, UploadMemory, UploadQueue};
use ecs_torrent_components::piece::{ActivePiece, PieceMemory};
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{Torrent, TorrentPeers};
use ecs_torrent_engine::ports::net::Streams;

use super::{Invariant, Violations};

pub(super) fn check(
    clock: Res<Clock>,
    settings: Res<Settings>,
    uploads: Res<UploadMemory>,
    pieces: Res<PieceMemory>,
    serve: Res<ServeQueue>,
    connections: Res<ConnectionCounts>,
    in_flight: Query<(), With<ActivePiece>>,
    mut violations: ResMut<Violations>,
) {
    let mut at_most = |what: &str, is: u64, most: u64| {
        if is > most {
            violations.report(&clock, Invariant::Bounds, || format!("{what}: {is}, at most {most}"));
        }
    };
    let read = u64::from(settings.uploads.read_bytes);
    at_most(
        "upload memory",
        uploads.used_bytes(),
        settings.uploads.memory_bytes + read,
    );
    // One piece is always admitted, however large.
    if in_flight.iter().nth(1).is_some() {
        at_most(
            "piece memory",
            pieces.used_bytes(),
            settings.requests.piece_memory_bytes,
        );
    }
    let (total, most) = (connections.total as u64, settings.peers.max_connections as u64);
    at_most("connections", total, most);
    at_most("peers to serve", serve.len() as u64, total);
}

/// Checks all peers and torrents.
pub(super) fn check_all(
    clock: Res<Clock>,
    settings: Res<Settings>,
    uploads: Res<UploadMemory>,
    connections: Res<ConnectionCounts>,
    streams: Res<Streams>,
    mut violations: ResMut<Violations>,
    peers: Query<Entity, With<Peer>>,
    talking: Query<(&Peer, &Requests, &UploadQueue, &Outbox)>,
    torrents: Query<(&Torrent, &Candidates, Option<&TorrentPeers>)>,
) {
    let mut report = |what: String| violations.report(&clock, Invariant::Bounds, || what);
    let mut charged = 0;
    for (peer, requests, uploads, outbox) in &talking {
        charged += uploads.charged_bytes;
        let mut at_most = |what: &str, is: usize, most: usize| {
            if is > most {
                report(format!("{what} of {}: {is}, at most {most}", peer.endpoint));
            }
        };
        let in_time = requests.pending().len() - requests.late_count();
        at_most("requests in time", in_time, settings.requests.max_depth as usize);
        let queue = uploads.waiting.len() + uploads.reading.len();
        at_most("upload queue", queue, settings.uploads.max_queue);
        let blocks = uploads.charged_bytes as usize;
        let most = settings.peers.max_send_queue_bytes + blocks;
        at_most("bytes to be sent", outbox.waiting_bytes(), most);
    }
    if charged != uploads.used_bytes() {
        let used = uploads.used_bytes();
        report(format!(
            "peers have {charged} bytes of upload memory, and {used} are counted"
        ));
    }
    // A peer that is being replaced is not counted; it disconnects in this tick.
    let stays = |peer: &Entity| connections.contains(*peer);
    let (count, staying) = (peers.iter().count(), peers.iter().filter(stays).count());
    let (counted, streams) = (connections.total, streams.len());
    if staying != counted || streams != count {
        report(format!(
            "{count} peers, of which {staying} stay, {counted} connections counted, {streams} streams"
        ));
    }
    for (torrent, candidates, connected) in &torrents {
        let connected = connected.map_or(0, |peers| peers.iter().filter(stays).count());
        let mut at_most = |what: &str, is: usize, most: usize| {
            if is > most {
                report(format!("{what} of {}: {is}, at most {most}", torrent.name));
            }
        };
        at_most("peers", connected, settings.peers.max_per_torrent);
        at_most("addresses", candidates.len(), settings.peers.max_candidates);
    }
}
