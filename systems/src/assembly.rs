//! Assembly of pieces: stores received blocks in the pieces in flight.

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::messages::{BlockAccepted, BlockWasted, ReceivedBlocks};
use ecs_torrent_components::peer::{
    CloseReason, PeerRates, PeerState, Pending, RefillQueue, RequestSink, Requests, SourceSink,
};
use ecs_torrent_components::piece::{ActivePiece, FullPieces, PiecePhase};
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{ActivePieces, PeerOf};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::wire::Block;

use crate::AssembleSet;
use crate::picking::Supply;

/// Stores received blocks in the pieces in flight.
pub struct AssemblyPlugin;

impl Plugin for AssemblyPlugin {
    fn build(&self, app: &mut App) {
        app.add_message::<BlockAccepted>()
            .add_message::<BlockWasted>()
            .add_systems(
                Tick,
                accept_blocks
                    .run_if(|blocks: Res<ReceivedBlocks>| !blocks.0.is_empty())
                    .in_set(AssembleSet::Received),
            );
    }
}

/// The components of a peer that assembly uses.
type PeerData = (
    &'static PeerOf,
    &'static mut Requests,
    &'static mut PeerState,
    &'static mut PeerRates,
    SourceSink,
);

#[derive(SystemParam)]
struct AssemblyParams<'w, 's> {
    clock: Res<'w, Clock>,
    settings: Res<'w, Settings>,
    full: ResMut<'w, FullPieces>,
    refill: ResMut<'w, RefillQueue>,
    sink: RequestSink<'w>,
    supply: ResMut<'w, Supply>,
    reaper: ResMut<'w, Reaper>,
    accepted: MessageWriter<'w, BlockAccepted>,
    wasted: MessageWriter<'w, BlockWasted>,
    peers: Query<'w, 's, PeerData>,
    pieces: Query<'w, 's, &'static mut ActivePiece>,
    torrents: Query<'w, 's, &'static mut ActivePieces>,
}

fn accept_blocks(mut blocks: ResMut<ReceivedBlocks>, mut floor: AssemblyParams) {
    for (peer, block) in blocks.0.drain(..) {
        floor.accept(peer, block);
    }
}

impl AssemblyParams<'_, '_> {
    fn accept(&mut self, entity: Entity, block: Block) {
        let now = self.clock.now();
        let Ok((of, mut requests, mut state, mut rates, _)) = self.peers.get_mut(entity) else {
            return;
        };
        let torrent = of.0;
        let len = block.request.len;
        rates.download.add(now, u64::from(len));
        rates.downloaded += u64::from(len);
        let Some(pending) = requests.answer(block.request) else {
            // Fault 28: a canceled block may still arrive. Fault 29: a peer may send only a limited number of blocks
            // that were not requested.
            if !requests.answer_canceled(block.request) {
                requests.unsolicited_count += 1;
                if requests.unsolicited_count > self.settings.peers.max_unsolicited {
                    self.reaper.close(entity, CloseReason::Unsolicited);
                }
            }
            self.wasted.write(BlockWasted {
                torrent,
                peer: entity,
                len,
            });
            return;
        };
        state.snubbed = false;
        requests.record_block(now, &pending);
        rates.last_payload = Some(now);
        let rate = rates.download.at(now);
        requests.depth.on_block(now, rate, &self.settings.requests);
        self.refill.add(entity, &mut requests);
        if self.place(entity, pending, block) {
            self.accepted.write(BlockAccepted {
                torrent,
                peer: entity,
                len,
            });
        } else {
            self.wasted.write(BlockWasted {
                torrent,
                peer: entity,
                len,
            });
        }
    }

    /// Stores a block in its piece. Returns false if the piece already has it or is gone.
    fn place(&mut self, from: Entity, pending: Pending, block: Block) -> bool {
        let now = self.clock.now();
        let Ok(mut piece) = self.pieces.get_mut(pending.piece) else {
            return false;
        };
        let is_new = piece
            .blocks
            .get(pending.block as usize)
            .is_some_and(|slot| !slot.received);
        if !is_new || piece.phase != PiecePhase::Filling {
            return false;
        }
        let was_open = piece.free_count > 0;
        let others = piece.receive(pending.block, Some(from), block.data);
        if piece.is_full() {
            self.full.add(pending.piece, &mut piece);
        }
        if was_open
            && piece.free_count == 0
            && let Ok(mut active) = self.torrents.get_mut(piece.torrent)
        {
            // A late block was the last one that could be requested.
            active.open.remove(&piece.index);
        }
        self.supply.mark_idle(pending.piece, &mut piece);
        for other in others {
            let Ok((_, mut requests, _, _, mut source)) = self.peers.get_mut(other) else {
                continue;
            };
            if requests.cancel_overtaken(block.request, now) {
                self.sink.cancel(other, &mut source, block.request);
                self.refill.add(other, &mut requests);
            }
        }
        true
    }
}
