//! Memory and queues stay within their settings.

use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::connections::ConnectionCounts;
use ecs_torrent_components::peer::{Peer, Requests, ServeQueue, UploadMemory, UploadQueue};
use ecs_torrent_components::piece::{ActivePiece, PieceMemory};
use ecs_torrent_components::settings::Settings;

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
            violations.note(&clock, Invariant::Bounds, || format!("{what}: {is}, at most {most}"));
        }
    };
    let read = u64::from(settings.uploads.read_bytes);
    at_most(
        "upload memory",
        uploads.used_bytes(),
        settings.uploads.memory_bytes + read,
    );
    // One piece is always let in, however large.
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

/// Peers are looked at every so many ticks.
const PEERS_EVERY: u32 = 64;

pub(super) fn check_peers(
    clock: Res<Clock>,
    settings: Res<Settings>,
    mut tick: Local<u32>,
    mut violations: ResMut<Violations>,
    peers: Query<(&Peer, &Requests, &UploadQueue)>,
) {
    *tick = tick.wrapping_add(1);
    if !tick.is_multiple_of(PEERS_EVERY) {
        return;
    }
    for (peer, requests, uploads) in &peers {
        let mut at_most = |what: &str, is: usize, most: usize| {
            if is > most {
                violations.note(&clock, Invariant::Bounds, || {
                    format!("{what} of {}: {is}, at most {most}", peer.endpoint)
                });
            }
        };
        at_most("requests", requests.pending.len(), settings.requests.max_depth as usize);
        let queue = uploads.waiting.len() + uploads.reading.len();
        at_most("upload queue", queue, settings.uploads.max_queue);
    }
}
