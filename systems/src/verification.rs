//! Verification of pieces: full pieces are hashed in the background and compared with the metainfo.

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::messages::{FailTorrent, PieceRejected, PieceVerified, Remedy};
use ecs_torrent_components::piece::{ActivePiece, FullPieces, VerifiedPieces};
use ecs_torrent_components::torrent::{ActivePieces, Content, Torrent};
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::HashPort;
use ecs_torrent_engine::ports::hash::{HashEvent, HashKind, HashRequest};
use ecs_torrent_engine::purpose;
use ecs_torrent_engine::schedule::Tick;

use crate::VerifySet;
use crate::conditions::has_events;
use crate::picking::Supply;

/// Verifies pieces.
pub struct VerificationPlugin;

impl Plugin for VerificationPlugin {
    fn build(&self, app: &mut App) {
        app.add_message::<PieceVerified>()
            .add_message::<PieceRejected>()
            .init_resource::<FullPieces>()
            .init_resource::<VerifiedPieces>()
            .add_systems(
                Tick,
                (
                    collect_hashes
                        .run_if(has_events::<HashRequest, HashEvent>(PIECES))
                        .in_set(VerifySet::Collect),
                    submit_full_pieces.in_set(VerifySet::Submit),
                ),
            );
    }
}

const PIECES: Purpose = purpose!("verify pieces");

fn collect_hashes(
    mut hash: ResMut<HashPort>,
    mut verified: ResMut<VerifiedPieces>,
    mut supply: ResMut<Supply>,
    mut passed: MessageWriter<PieceVerified>,
    mut rejected: MessageWriter<PieceRejected>,
    mut failed: MessageWriter<FailTorrent>,
    mut pieces: Query<&mut ActivePiece>,
    mut torrents: Query<(&Torrent, &Content, &mut ActivePieces)>,
) {
    for event in hash.take(PIECES) {
        // The piece is gone if its torrent was stopped in the meantime.
        let Ok(mut piece) = pieces.get_mut(event.tag.owner) else {
            continue;
        };
        let Ok((data, content, mut active)) = torrents.get_mut(piece.torrent) else {
            continue;
        };
        let (torrent, index) = (piece.torrent, piece.index);
        let Some(digests) = event.digests else {
            let reason = format!("hashing piece {index} failed").into();
            let remedy = Remedy::Restart;
            failed.write(FailTorrent {
                torrent,
                reason,
                remedy,
            });
            continue;
        };
        let expected = content.0.info.expected_digest(index);
        if expected.is_some_and(|expected| digests.is(expected)) {
            passed.write(PieceVerified { torrent, index });
            verified.add(event.tag.owner, &mut piece, event.spans);
            continue;
        }
        tracing::debug!(torrent = %data.label(), piece = index, "piece failed its hash");
        let received_bytes = piece.received_bytes();
        if piece.is_restored {
            // Bytes from an earlier run may be anything, and no peer is responsible for them.
            piece.blocks.iter_mut().for_each(|slot| slot.from = None);
        }
        rejected.write(PieceRejected {
            torrent,
            index,
            received_bytes,
            contributors: piece.contributors(),
            senders: piece.blocks.iter().map(|slot| slot.from).collect(),
            data: event.spans,
        });
        piece.is_suspect = !piece.is_restored;
        piece.clear();
        active.open.insert(index);
        supply.offer(torrent);
        supply.mark_idle(event.tag.owner, &mut piece);
    }
}

/// Submits all full pieces of a tick in one batch. Their bytes move into the requests, so that nothing is copied or
/// shared.
fn submit_full_pieces(
    mut full: ResMut<FullPieces>,
    mut hash: ResMut<HashPort>,
    mut pieces: Query<&mut ActivePiece>,
    torrents: Query<&Content>,
) {
    while let Some(entity) = full.pop() {
        let Ok(mut piece) = pieces.get_mut(entity) else {
            continue;
        };
        let content = torrents.get(piece.torrent);
        let expected = content
            .ok()
            .and_then(|content| content.0.info.expected_digest(piece.index));
        let Some(kind) = expected.map(HashKind::from) else {
            continue;
        };
        let spans = piece.begin_hashing();
        let tag = JobTag::new(PIECES, entity);
        hash.push(HashRequest { tag, kind, spans });
    }
}
