//! Verified pieces are written; only then do they count.

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::messages::{FailTorrent, PieceStored};
use ecs_torrent_components::piece::{ActivePiece, PieceMemory, PiecePhase};
use ecs_torrent_components::torrent::{ActivePieces, Storage};
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::DiskPort;
use ecs_torrent_engine::ports::disk::DiskRequest;
use ecs_torrent_engine::schedule::{Tick, TickSet};

use crate::picking::Supply;
use crate::verification::VerifiedPieces;

/// Writes verified pieces.
pub struct StoragePlugin;

impl Plugin for StoragePlugin {
    fn build(&self, app: &mut App) {
        app.add_message::<PieceStored>()
            .add_message::<FailTorrent>()
            .add_systems(
                Tick,
                (collect_writes, submit_verified_pieces).chain().in_set(TickSet::Store),
            );
    }
}

const PIECES: Purpose = Purpose("write pieces");

fn collect_writes(
    mut commands: Commands,
    mut disk: ResMut<DiskPort>,
    mut memory: ResMut<PieceMemory>,
    mut supply: ResMut<Supply>,
    mut stored: MessageWriter<PieceStored>,
    mut failed: MessageWriter<FailTorrent>,
    pieces: Query<&ActivePiece>,
    mut torrents: Query<&mut ActivePieces>,
) {
    for event in disk.take(PIECES) {
        let entity = event.tag.owner;
        let Ok(piece) = pieces.get(entity) else { continue };
        let torrent = piece.torrent;
        if let Err(error) = event.outcome {
            let reason = error.to_string().into();
            failed.write(FailTorrent { torrent, reason });
            continue;
        }
        stored.write(PieceStored {
            torrent,
            index: piece.index,
            len: piece.span.len,
        });
        if let Ok(mut active) = torrents.get_mut(torrent) {
            active.all.remove(&piece.index);
            active.open.remove(&piece.index);
        }
        memory.release(piece.span.len);
        supply.offer_memory();
        commands.entity(entity).despawn();
    }
}

fn submit_verified_pieces(
    mut verified: ResMut<VerifiedPieces>,
    mut disk: ResMut<DiskPort>,
    mut pieces: Query<&mut ActivePiece>,
    torrents: Query<&Storage>,
) {
    for (entity, blocks) in verified.0.drain(..) {
        let Ok(mut piece) = pieces.get_mut(entity) else {
            continue;
        };
        let Ok(storage) = torrents.get(piece.torrent) else {
            continue;
        };
        piece.phase = PiecePhase::Writing;
        let tag = JobTag {
            purpose: PIECES,
            owner: entity,
            number: 0,
        };
        disk.push(DiskRequest::Write {
            tag,
            storage: storage.id,
            span: piece.span,
            blocks,
        });
    }
}
