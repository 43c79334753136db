//! A fault that belongs to a torrent stops that torrent, visibly, and no other.

use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use ecs_torrent_components::messages::{FailTorrent, TorrentFailed};
use ecs_torrent_components::peer::CloseReason;
use ecs_torrent_components::piece::{ActivePiece, PieceMemory};
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::torrent::{ActivePieces, Lifecycle, Torrent, TorrentPeers};

use crate::checking::Check;
use crate::picking::{Picker, Supply};

pub(super) fn fail_torrents(
    mut commands: Commands,
    mut failed: MessageReader<FailTorrent>,
    mut told: MessageWriter<TorrentFailed>,
    mut reaper: ResMut<Reaper>,
    mut flight: Flight,
    mut torrents: Query<(
        &Torrent,
        &mut Lifecycle,
        Option<&TorrentPeers>,
        Option<&mut ActivePieces>,
    )>,
) {
    for FailTorrent { torrent, reason } in failed.read() {
        let Ok((data, mut lifecycle, peers, active)) = torrents.get_mut(*torrent) else {
            continue;
        };
        if matches!(*lifecycle, Lifecycle::Failed { .. } | Lifecycle::Stopping) {
            continue;
        }
        tracing::info!(torrent = %data.name, %reason, "failed");
        let reason = reason.clone();
        *lifecycle = Lifecycle::Failed { reason: reason.clone() };
        for peer in peers.into_iter().flat_map(RelationshipTarget::iter) {
            reaper.close(peer, CloseReason::Stopping);
        }
        if let Some(mut active) = active {
            flight.ground(&mut active, |_| true);
        }
        commands.entity(*torrent).remove::<(Picker, Check)>();
        let torrent = *torrent;
        told.write(TorrentFailed { torrent, reason });
    }
}

/// Takes pieces out of flight.
#[derive(bevy_ecs::system::SystemParam)]
pub(super) struct Flight<'w, 's> {
    commands: Commands<'w, 's>,
    memory: ResMut<'w, PieceMemory>,
    supply: ResMut<'w, Supply>,
    pieces: Query<'w, 's, &'static ActivePiece>,
}

impl Flight<'_, '_> {
    /// Gives up those pieces for which `gives_up` holds; true if none is left.
    pub(super) fn ground(&mut self, active: &mut ActivePieces, gives_up: impl Fn(&ActivePiece) -> bool) -> bool {
        active.all.retain(|_, entity| {
            let Ok(piece) = self.pieces.get(*entity) else {
                return false;
            };
            let stays = !gives_up(piece);
            if !stays {
                self.memory.release(piece.span.len);
                self.supply.offer_memory();
                self.commands.entity(*entity).despawn();
            }
            stays
        });
        active.open.clear();
        active.all.is_empty()
    }
}
