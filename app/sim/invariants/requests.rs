//! Requests in flight are the same in the peers' queues, in the pieces in flight and on the wire, and each request
//! times out once.

use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::peer::Requests;
use ecs_torrent_components::piece::{ActivePiece, BlockSlot, PieceMemory, PiecePhase};
use ecs_torrent_components::torrent::{ActivePieces, Lifecycle, PeerOf};

use super::wire::Conversations;
use super::{Invariant, Violations};

/// Checks that late requests stay late until they are answered or canceled. They are the oldest, and come first.
pub(super) fn check_late(
    clock: Res<Clock>,
    mut conversations: ResMut<Conversations>,
    mut violations: ResMut<Violations>,
    changed: Query<(Entity, &Requests), Changed<Requests>>,
) {
    for (peer, requests) in &changed {
        let Some(sent) = conversations.sent_requests(peer) else {
            continue;
        };
        let late = requests.pending().iter().take_while(|pending| pending.is_late);
        let late_count = late.map(|pending| sent.expire(pending.request)).count();
        if sent.late_count() != late_count {
            let known = sent.late_count();
            violations.report(&clock, Invariant::Requests, || {
                format!("{peer} is late with {late_count} requests, and was with {known}")
            });
        }
    }
}

/// Number of requests for one piece.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    in_time: usize,
    late: usize,
}

/// Checks all peers and all pieces in flight.
pub(super) fn check_all(
    clock: Res<Clock>,
    memory: Res<PieceMemory>,
    mut conversations: ResMut<Conversations>,
    mut violations: ResMut<Violations>,
    peers: Query<(Entity, &Requests, &PeerOf)>,
    pieces: Query<(Entity, &ActivePiece)>,
    torrents: Query<(&ActivePieces, &Lifecycle)>,
) {
    let mut report = |what: String| violations.report(&clock, Invariant::Requests, || what);
    let mut counts: EntityHashMap<Count> = EntityHashMap::default();
    for (peer, requests, of) in &peers {
        // A torrent that fails or stops drops its pieces first and closes its peers afterward.
        if torrents.get(of.0).is_ok_and(|(_, state)| !state.may_serve()) {
            continue;
        }
        for pending in requests.pending() {
            let count = counts.entry(pending.piece).or_default();
            let slot_of =
                |piece: &'_ ActivePiece| piece.blocks.get(pending.block as usize).map(|slot| names(slot, peer));
            let (is_requested, is_late) = match pieces.get(pending.piece) {
                Ok((_, piece)) => slot_of(piece).unwrap_or_default(),
                // Dropped meanwhile; late blocks are still recognized.
                Err(_) => (false, pending.is_late),
            };
            match pending.is_late {
                true => count.late += 1,
                false => count.in_time += 1,
            }
            if (is_requested, is_late) != (!pending.is_late, pending.is_late) {
                report(format!(
                    "{peer} owes {:?}, of which its piece does not know",
                    pending.request
                ));
            }
        }
        let Some(sent) = conversations.sent_requests(peer) else {
            continue;
        };
        let is_same = sent.len() == requests.pending().len();
        if !is_same || !requests.pending().iter().all(|pending| sent.contains(pending.request)) {
            let (sent, pending) = (sent.len(), requests.pending().len());
            report(format!(
                "{sent} blocks were requested from {peer}, and is believed to owe {pending}"
            ));
        }
    }
    let (mut bytes, mut writing) = (0, 0);
    for (entity, piece) in &pieces {
        let len = u64::from(piece.span.len);
        bytes += len;
        writing += if piece.phase == PiecePhase::Writing { len } else { 0 };
        let slots = piece.blocks.iter();
        let count = Count {
            in_time: slots.clone().map(|slot| slot.requested_from.len()).sum(),
            late: slots.clone().map(|slot| slot.late.len()).sum(),
        };
        let expected = counts.get(&entity).copied().unwrap_or_default();
        let missing = slots.clone().filter(|slot| !slot.received).count();
        let free = slots.filter(|slot| slot.is_free()).count();
        let Ok((active, state)) = torrents.get(piece.torrent) else {
            continue;
        };
        if !state.may_serve() {
            continue;
        }
        let is_listed = active.all.get(&piece.index) == Some(&entity);
        let counted = (piece.requested_count, piece.missing_count, piece.free_count);
        if count != expected || counted != (count.in_time as u32, missing as u32, free as u32) || !is_listed {
            report(format!(
                "piece {} has asked for {count:?} and peers owe {expected:?}; it counts {counted:?}, listed: {is_listed}",
                piece.index
            ));
        }
    }
    let counted = (memory.used_bytes(), memory.writing_bytes());
    if (bytes, writing) != counted {
        report(format!(
            "pieces in flight have {bytes} bytes, {writing} of them are being written, and {counted:?} are counted"
        ));
    }
}

/// Returns whether a block lists a peer as requested, and as late.
fn names(slot: &BlockSlot, peer: Entity) -> (bool, bool) {
    (slot.requested_from.contains(&peer), slot.late.contains(&peer))
}
