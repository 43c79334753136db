//! The picker counts the peers' copies and offers missing pieces, and interest follows the peers' pieces.

use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::peer::{PeerPieces, PeerState};
use ecs_torrent_components::piece::{ActivePiece, PiecePhase};
use ecs_torrent_components::torrent::{ActivePieces, Have, Lifecycle, Torrent, TorrentPeers};
use ecs_torrent_components::wanted::{WantedPieces, unneeded};
use ecs_torrent_systems::picking::Picker;

use super::{Invariant, Violations};

/// Checks all downloads and their peers.
pub(super) fn check(
    clock: Res<Clock>,
    mut violations: ResMut<Violations>,
    torrents: Query<(
        &Torrent,
        &Lifecycle,
        (&Have, Option<&WantedPieces>),
        &Picker,
        &ActivePieces,
        Option<&TorrentPeers>,
    )>,
    peers: Query<(&PeerPieces, &PeerState)>,
    flight: Query<&ActivePiece>,
) {
    for (torrent, lifecycle, (have, wanted_pieces), picker, active, connected) in &torrents {
        let mut report = |what: String| {
            violations.report(&clock, Invariant::Picker, || format!("{}: {what}", torrent.name));
        };
        let mut copies = vec![0; have.len() as usize];
        let connected = connected.into_iter().flat_map(RelationshipTarget::iter);
        for (pieces, state) in peers.iter_many(connected).flatten() {
            let held = (0..have.len()).filter(|piece| pieces.has(*piece));
            held.for_each(|piece| copies[piece as usize] += 1);
            let wanted = pieces.count_missing_in(unneeded(have, wanted_pieces));
            let is_interest_due = *lifecycle == Lifecycle::Downloading && state.am_interested != (wanted > 0);
            if wanted != pieces.wanted_count || is_interest_due {
                let (counted, is_interested) = (pieces.wanted_count, state.am_interested);
                report(format!(
                    "of a peer {wanted} pieces are wanted, {counted} counted, interest {is_interested}"
                ));
            }
        }
        for piece in flight.iter_many(active.all.values()).flatten() {
            let is_requested = piece.phase == PiecePhase::Filling && !piece.is_full();
            if is_requested && wanted_pieces.is_some_and(|wanted| !wanted.is_wanted(piece.index)) {
                report(format!("piece {} is not wanted, and is requested", piece.index));
            }
        }
        for (piece, copies) in (0..).zip(copies) {
            let counted = picker.order.availability(piece);
            if counted != copies {
                report(format!("piece {piece} has {copies} copies, and {counted} are counted"));
            }
            let is_wanted = wanted_pieces.is_none_or(|wanted| wanted.is_wanted(piece));
            let is_missing = is_wanted && !have.contains(piece) && !active.all.contains_key(&piece);
            if picker.order.is_pickable(piece) != is_missing {
                report(format!(
                    "piece {piece} is wanted, missing and not in flight: {is_missing}, and offered otherwise"
                ));
            }
        }
    }
}
