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
            match requests.answer_canceled(block.request) {
                Some(canceled) => requests.record_canceled_block(now, &canceled),
                None => {
                    requests.unsolicited_count += 1;
                    if requests.unsolicited_count > self.settings.peers.max_unsolicited {
                        self.reaper.close(entity, CloseReason::Unsolicited);
                    }
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use ecs_torrent_protocol::geometry::BlockRequest;

    use super::*;
    use crate::testing::Bed;

    fn bed() -> Bed {
        let mut bed = Bed::new((AssemblyPlugin, crate::picking::PickingPlugin));
        bed.world.init_resource::<ReceivedBlocks>();
        bed.world.resource_mut::<Settings>().peers.max_unsolicited = 2;
        bed
    }

    /// Receives a block. Returns whether it was accepted.
    fn receive(bed: &mut Bed, peer: Entity, request: BlockRequest) -> bool {
        let data = std::iter::once(Bytes::from(vec![0; request.len as usize])).collect();
        let mut received = bed.world.resource_mut::<ReceivedBlocks>();
        received.0.push((peer, Block { request, data }));
        bed.run(accept_blocks);
        let accepted = bed.world.resource_mut::<Messages<BlockAccepted>>().drain().count();
        let wasted = bed.world.resource_mut::<Messages<BlockWasted>>().drain().count();
        assert_eq!(accepted + wasted, 1, "a block is counted once");
        accepted == 1
    }

    /// Fault 29.
    #[test]
    fn a_peer_may_send_a_few_blocks_that_were_not_requested() {
        let mut bed = bed();
        let peer = bed.peer();
        let piece = bed.piece(0);
        let request = bed.get::<ActivePiece>(piece).request(0);
        for is_closed in [false, false, true, true] {
            assert!(!receive(&mut bed, peer, request));
            assert_eq!(bed.world.resource::<Reaper>().is_doomed(peer), is_closed);
        }
    }

    #[test]
    fn a_block_is_stored_once() {
        let mut bed = bed();
        let [one, two] = [bed.peer(), bed.peer()];
        let piece = bed.piece(0);
        let request = bed.request(one, piece, 0);
        assert!(receive(&mut bed, one, request));
        let again = bed.request(two, piece, 0);
        assert!(!receive(&mut bed, two, again));
        assert_eq!(bed.get::<ActivePiece>(piece).blocks[0].from, Some(one));
    }

    /// A piece that is being read back from the disk accepts no blocks from peers.
    #[test]
    fn a_piece_that_is_being_restored_takes_no_blocks() {
        let mut bed = bed();
        let peer = bed.peer();
        let piece = bed.piece(0);
        let request = bed.request(peer, piece, 0);
        bed.get_mut::<ActivePiece>(piece).phase = PiecePhase::Restoring;
        assert!(!receive(&mut bed, peer, request));
        assert!(!bed.get::<ActivePiece>(piece).blocks[0].received);
    }

    /// A piece is open to other peers as long as one of its blocks can be requested.
    #[test]
    fn a_piece_stays_open_while_blocks_are_free() {
        for is_other_requested in [false, true] {
            let mut bed = bed();
            let [late, other] = [bed.peer(), bed.peer()];
            let piece = bed.piece(0);
            let request = bed.request(late, piece, 0);
            bed.get_mut::<ActivePiece>(piece).expire(0, late);
            if is_other_requested {
                bed.request(other, piece, 1);
            }
            assert!(receive(&mut bed, late, request));
            let is_open = bed.get::<ActivePieces>(bed.torrent).open.contains(&0);
            assert_eq!(is_open, !is_other_requested);
            assert_eq!(bed.get::<PeerRates>(late).downloaded, u64::from(request.len));
        }
    }
}
