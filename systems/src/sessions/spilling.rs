//! Spilling: writes blocks of unfinished pieces to their places in the files, so that they survive the run.

use std::collections::BTreeMap;

use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use bytes::Bytes;
use ecs_torrent_components::messages::{PieceRejected, PieceStored};
use ecs_torrent_components::piece::{ActivePiece, PiecePhase};
use ecs_torrent_components::session::{PartialPiece, Session};
use ecs_torrent_components::torrent::{ActivePieces, Have, Partials, Storage};
use ecs_torrent_engine::jobs::Jobs;
use ecs_torrent_engine::port::Purpose;
use ecs_torrent_engine::ports::DiskPort;
use ecs_torrent_engine::ports::disk::DiskRequest;
use ecs_torrent_engine::purpose;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::geometry::{BLOCK_SIZE, Geometry, Span};

pub(super) const SPILL: Purpose = purpose!("write unfinished pieces");

/// A run of blocks of one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) piece: u32,
    pub(super) first: u32,
    pub(super) count: u32,
}

impl Run {
    /// Returns the blocks for which `holds` is true, in runs.
    pub(super) fn all(piece: u32, block_count: u32, holds: impl Fn(u32) -> bool) -> Vec<Self> {
        let mut runs: Vec<Self> = Vec::new();
        for block in (0..block_count).filter(|block| holds(*block)) {
            match runs.last_mut() {
                Some(run) if run.first + run.count == block => run.count += 1,
                _ => runs.push(Self {
                    piece,
                    first: block,
                    count: 1,
                }),
            }
        }
        runs
    }

    /// Returns the span of the run's bytes in the torrent, given the span of the piece.
    pub(super) fn span(self, piece: Span) -> Span {
        let begin = self.first * BLOCK_SIZE;
        Span {
            offset: piece.offset + u64::from(begin),
            len: (self.count * BLOCK_SIZE).min(piece.len - begin),
        }
    }
}

/// Blocks that are being written.
#[derive(Debug)]
pub(super) struct Spill {
    pub(super) torrent: Entity,
    pub(super) run: Run,
    /// Whether the piece is dropped at once, so that the blocks are lost if they cannot be written.
    pub(super) is_last: bool,
}

#[derive(SystemParam)]
pub(super) struct Spiller<'w, 's> {
    jobs: ResMut<'w, Jobs<Spill>>,
    pieces: Query<'w, 's, &'static ActivePiece>,
}

impl Spiller<'_, '_> {
    /// Writes the blocks of a torrent's unfinished pieces that are not on the disk; returns the number of writes.
    /// `is_last` says whether the pieces are dropped after that, because the torrent stops.
    pub(super) fn spill(
        &mut self,
        disk: &mut DiskPort,
        torrent: Entity,
        storage: &Storage,
        (active, partials): (&ActivePieces, &Partials),
        is_last: bool,
    ) -> usize {
        let mut write_count = 0;
        for piece in self.pieces.iter_many(active.all.values()).flatten() {
            if piece.phase != PiecePhase::Filling || piece.is_full() {
                continue;
            }
            let on_disk = partials.0.get(&piece.index);
            let is_new = |block: u32| {
                let slot = &piece.blocks[block as usize];
                slot.received && on_disk.is_none_or(|blocks| !blocks.contains(block))
            };
            for run in Run::all(piece.index, piece.blocks.len() as u32, is_new) {
                let slots = &piece.blocks[run.first as usize..][..run.count as usize];
                let blocks: Vec<Bytes> = slots.iter().flat_map(|slot| slot.data.iter().cloned()).collect();
                disk.push(DiskRequest::Write {
                    tag: self.jobs.add(SPILL, Spill { torrent, run, is_last }),
                    storage: storage.id,
                    span: run.span(piece.span),
                    blocks,
                });
                write_count += 1;
            }
        }
        write_count
    }
}

/// Returns the blocks that a session lists outside its held pieces.
pub(super) fn partial_blocks(session: &Session, geometry: &Geometry) -> BTreeMap<u32, Bitfield> {
    let is_piece = |partial: &&PartialPiece| partial.piece < geometry.piece_count();
    let blocks = session.partial.iter().filter(is_piece).filter_map(|partial| {
        let blocks = partial.blocks.to_set(geometry.block_count(partial.piece))?;
        Some((partial.piece, blocks))
    });
    blocks.collect()
}

/// Records that a run of blocks is on the disk.
pub(super) fn record_run(partials: &mut Partials, have: &Have, geometry: &Geometry, run: Run) {
    let Run { piece, first, count } = run;
    if have.contains(piece) {
        return;
    }
    let blocks = partials.0.entry(piece);
    let blocks = blocks.or_insert_with(|| Bitfield::new(geometry.block_count(piece)));
    for block in first..first + count {
        blocks.insert(block);
    }
}

/// Forgets the partial blocks of pieces that are stored or failed their hash.
pub(super) fn forget_partials(
    mut stored: MessageReader<PieceStored>,
    mut rejected: MessageReader<PieceRejected>,
    mut torrents: Query<&mut Partials>,
) {
    let stored = stored.read().map(|message| (message.torrent, message.index));
    let rejected = rejected.read().map(|message| (message.torrent, message.index));
    for (torrent, index) in stored.chain(rejected) {
        if let Ok(mut partials) = torrents.get_mut(torrent) {
            partials.0.remove(&index);
        }
    }
}

#[cfg(test)]
mod tests {
    use bevy_ecs::system::RunSystemOnce;
    use ecs_torrent_components::session::Runs;
    use ecs_torrent_components::torrent::Layout;
    use ecs_torrent_engine::ports::disk::DiskEvent;

    use super::*;
    use crate::testing::{Bed, session};

    fn bed() -> Bed {
        let mut bed = Bed::new(());
        bed.world.init_resource::<Jobs<Spill>>();
        bed.open_port::<DiskRequest, DiskEvent>(Vec::new());
        bed
    }

    /// Writes the blocks of the torrent's unfinished pieces. Returns the number of writes.
    fn spill(bed: &mut Bed) -> usize {
        let storage = Storage {
            id: ecs_torrent_components::ids::StorageId(1),
            root: "/".into(),
        };
        let torrent = bed.torrent;
        let spill =
            move |mut spiller: Spiller, mut disk: ResMut<DiskPort>, torrents: Query<(&ActivePieces, &Partials)>| {
                let (active, partials) = torrents.get(torrent).unwrap();
                spiller.spill(&mut disk, torrent, &storage, (active, partials), false)
            };
        bed.world.run_system_once(spill).unwrap()
    }

    /// The bytes of a piece that is full are with the hash threads or the disk.
    #[test]
    fn only_pieces_that_miss_blocks_are_spilled() {
        for (phase, block_count, write_count) in [
            (PiecePhase::Filling, 1, 1),
            (PiecePhase::Filling, 2, 0),
            (PiecePhase::Hashing, 1, 0),
            (PiecePhase::Restoring, 1, 0),
        ] {
            let mut bed = bed();
            let peer = bed.peer();
            let piece = bed.piece(0);
            let mut active = bed.get_mut::<ActivePiece>(piece);
            for block in 0..block_count {
                active.receive(block, Some(peer), Default::default());
            }
            active.phase = phase;
            assert_eq!(spill(&mut bed), write_count, "{phase:?} {block_count}");
        }
    }

    #[test]
    fn blocks_on_the_disk_are_not_written_again() {
        let mut bed = bed();
        let peer = bed.peer();
        for index in [0, 1] {
            let piece = bed.piece(index);
            bed.get_mut::<ActivePiece>(piece)
                .receive(1, Some(peer), Default::default());
        }
        let mut blocks = Bitfield::new(2);
        blocks.insert(1);
        bed.get_mut::<Partials>(bed.torrent).0.insert(0, blocks);
        spill(&mut bed);
        let spans = bed
            .world
            .resource::<DiskPort>()
            .outgoing()
            .iter()
            .map(|write| match write {
                DiskRequest::Write { span, .. } => span.offset,
                other => panic!("{other:?}"),
            });
        assert!(spans.eq([3 * u64::from(BLOCK_SIZE)]), "of piece 1 only");
    }

    #[test]
    fn blocks_of_pieces_that_do_not_exist_are_not_restored() {
        let bed = Bed::new(());
        let Layout(geometry) = bed.get(bed.torrent);
        let partial = |piece| PartialPiece {
            piece,
            blocks: Runs::of([1]),
        };
        let empty = PartialPiece {
            piece: 3,
            blocks: Runs::default(),
        };
        let session = Session {
            partial: vec![partial(2), partial(3), empty, partial(u32::MAX)],
            ..session()
        };
        let blocks = partial_blocks(&session, geometry);
        assert_eq!(blocks.into_keys().collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn blocks_are_written_in_runs() {
        let runs = Run::all(7, 10, |block| [0, 1, 4, 8, 9].contains(&block));
        let shape: Vec<_> = runs.iter().map(|run| (run.first, run.count)).collect();
        assert_eq!(shape, [(0, 2), (4, 1), (8, 2)]);
        assert!(runs.iter().all(|run| run.piece == 7));
        let piece = Span {
            offset: 1000,
            len: 9 * BLOCK_SIZE + 5,
        };
        let span = runs[2].span(piece);
        assert_eq!(
            (span.offset, span.len),
            (1000 + 8 * u64::from(BLOCK_SIZE), BLOCK_SIZE + 5)
        );
    }

    #[test]
    fn stored_and_rejected_pieces_have_no_blocks_on_the_disk() {
        let mut bed = Bed::new(());
        bed.world.init_resource::<Messages<PieceStored>>();
        bed.world.init_resource::<Messages<PieceRejected>>();
        let blocks = || Bitfield::new(2);
        bed.get_mut::<Partials>(bed.torrent).0 = [(0, blocks()), (1, blocks())].into();
        let stored = PieceStored {
            torrent: bed.torrent,
            index: 1,
            len: 1,
        };
        bed.run_after(stored, forget_partials);
        assert!(bed.get::<Partials>(bed.torrent).0.keys().eq([&0]));
    }
}
