//! Restores blocks of unfinished pieces that an earlier run left on the disk.

use std::collections::VecDeque;

use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::messages::TorrentStarted;
use ecs_torrent_components::piece::{ActivePiece, FullPieces, PieceMemory, PiecePhase};
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{ActivePieces, Layout, Lifecycle, Partials, Storage};
use ecs_torrent_engine::jobs::Jobs;
use ecs_torrent_engine::port::Purpose;
use ecs_torrent_engine::ports::DiskPort;
use ecs_torrent_engine::ports::disk::{DiskDone, DiskRequest, ReadPurpose};
use ecs_torrent_engine::purpose;

use super::spilling::Run;
use crate::picking::{Beginning, Picker, Supply};

pub(super) const RESTORE: Purpose = purpose!("read unfinished pieces");

/// Pieces that have blocks on the disk and are not in flight yet: read while there is memory for pieces.
#[derive(Resource, Debug, Default)]
pub(super) struct Restores {
    waiting: VecDeque<(Entity, u32)>,
}

/// Blocks that are being read.
#[derive(Debug)]
pub(super) struct Restore {
    piece: Entity,
    run: Run,
}

/// The number of reads left for a piece whose blocks are being read.
#[derive(Component, Debug)]
#[component(storage = "SparseSet")]
pub(super) struct Restoring(usize);

/// Returns whether pieces are to be restored, or torrents have started, which may have some.
pub(super) fn has_restores(restores: Res<Restores>, started: Res<Messages<TorrentStarted>>) -> bool {
    !restores.waiting.is_empty() || !started.is_empty()
}

pub(super) fn restore_pieces(
    mut commands: Commands,
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
    settings: Res<Settings>,
    mut started: MessageReader<TorrentStarted>,
    mut restores: ResMut<Restores>,
    mut memory: ResMut<PieceMemory>,
    mut disk: ResMut<DiskPort>,
    mut jobs: ResMut<Jobs<Restore>>,
    partials: Query<&Partials>,
    mut torrents: Query<(&Lifecycle, &Layout, &Storage, Option<(&mut Picker, &mut ActivePieces)>)>,
) {
    for &TorrentStarted { torrent } in started.read() {
        let pieces = partials.get(torrent).into_iter().flat_map(|partials| partials.0.keys());
        restores.waiting.extend(pieces.map(|piece| (torrent, *piece)));
    }
    while let Some(&(torrent, index)) = restores.waiting.front() {
        let Ok((Lifecycle::Downloading, Layout(geometry), storage, flight)) = torrents.get_mut(torrent) else {
            restores.waiting.pop_front();
            continue;
        };
        let Some((mut picker, mut active)) = flight else {
            // The torrent has just been started; its picker is added at the end of this tick.
            wakeup.at(clock.now());
            break;
        };
        let blocks = partials.get(torrent).ok().and_then(|partials| partials.0.get(&index));
        let Some(blocks) = blocks.filter(|_| picker.order.is_pickable(index)) else {
            restores.waiting.pop_front();
            continue;
        };
        let beginning = Beginning {
            torrent,
            geometry,
            picker: &mut picker,
            active: &mut active,
        };
        let Some((entity, piece)) = beginning.restore(index, &mut commands, &mut memory, &settings.requests) else {
            break;
        };
        restores.waiting.pop_front();
        let runs = Run::all(index, blocks.len(), |block| blocks.contains(block));
        for &run in &runs {
            disk.push(DiskRequest::Read {
                tag: jobs.add(RESTORE, Restore { piece: entity, run }),
                storage: storage.id,
                span: run.span(piece.span),
                purpose: ReadPurpose::Check,
            });
        }
        commands.entity(entity).insert((piece, Restoring(runs.len())));
    }
}

pub(super) fn collect_restored(
    mut commands: Commands,
    mut disk: ResMut<DiskPort>,
    mut jobs: ResMut<Jobs<Restore>>,
    mut full: ResMut<FullPieces>,
    mut supply: ResMut<Supply>,
    mut pieces: Query<(&mut ActivePiece, &mut Restoring)>,
    mut torrents: Query<(&mut ActivePieces, &mut Partials)>,
) {
    for event in disk.take(RESTORE) {
        let Some(Restore { piece: entity, run }) = jobs.take(event.tag) else {
            continue;
        };
        let Ok((mut piece, mut restoring)) = pieces.get_mut(entity) else {
            continue;
        };
        if let Ok(DiskDone::Read(data)) = event.outcome {
            let mut offset = 0;
            for block in run.first..run.first + run.count {
                let len = piece.block_len(block) as usize;
                let bytes = data.slice(offset..offset + len);
                offset += len;
                piece.receive(block, None, std::iter::once(bytes).collect());
            }
            piece.is_restored = true;
        } else if let Ok((_, mut partials)) = torrents.get_mut(piece.torrent)
            && let Some(blocks) = partials.0.get_mut(&piece.index)
        {
            // Unreadable blocks are simply missing: the session never listed them as held.
            for block in run.first..run.first + run.count {
                blocks.remove(block);
            }
            if blocks.count() == 0 {
                partials.0.remove(&piece.index);
            }
        }
        restoring.0 -= 1;
        if restoring.0 > 0 {
            continue;
        }
        commands.entity(entity).remove::<Restoring>();
        piece.phase = PiecePhase::Filling;
        if piece.is_full() {
            full.add(entity, &mut piece);
        } else if let Ok((mut active, _)) = torrents.get_mut(piece.torrent) {
            active.open.insert(piece.index);
            supply.offer(piece.torrent);
            supply.mark_idle(entity, &mut piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use bytes::Bytes;
    use ecs_torrent_engine::ports::disk::{DiskAction, DiskError, DiskEvent};
    use ecs_torrent_protocol::bitfield::Bitfield;
    use ecs_torrent_protocol::geometry::BLOCK_SIZE;

    use super::*;
    use crate::picking::PickingPlugin;
    use crate::testing::Bed;

    /// Returns a torrent with a piece both of whose blocks are read back, by a read each.
    fn bed() -> (Bed, Entity) {
        let mut bed = Bed::new(PickingPlugin);
        bed.world.init_resource::<Jobs<Restore>>();
        let piece = bed.piece(1);
        bed.world.entity_mut(piece).insert(Restoring(2));
        bed.get_mut::<ActivePiece>(piece).phase = PiecePhase::Restoring;
        bed.get_mut::<ActivePieces>(bed.torrent).open.clear();
        let mut blocks = Bitfield::new(2);
        blocks.insert(0);
        blocks.insert(1);
        bed.get_mut::<Partials>(bed.torrent).0.insert(1, blocks);
        (bed, piece)
    }

    /// Ends the read of a block.
    fn read(bed: &mut Bed, piece: Entity, block: u32, is_good: bool) {
        let run = Run {
            piece: 1,
            first: block,
            count: 1,
        };
        let tag = bed
            .world
            .resource_mut::<Jobs<Restore>>()
            .add(RESTORE, Restore { piece, run });
        let outcome = match is_good {
            true => Ok(DiskDone::Read(Bytes::from(vec![7; BLOCK_SIZE as usize]))),
            false => Err(DiskError::new(
                DiskAction::Read,
                PathBuf::from("file"),
                std::io::ErrorKind::UnexpectedEof.into(),
            )),
        };
        bed.open_port::<DiskRequest, DiskEvent>(vec![DiskEvent {
            tag,
            outcome,
            blocks: Vec::new(),
        }]);
        bed.run(collect_restored);
    }

    #[test]
    fn a_piece_is_continued_when_all_of_its_reads_have_ended() {
        let (mut bed, piece) = bed();
        read(&mut bed, piece, 0, true);
        assert_eq!(bed.get::<ActivePiece>(piece).phase, PiecePhase::Restoring);
        assert!(bed.world.resource_mut::<FullPieces>().pop().is_none());
        read(&mut bed, piece, 1, true);
        assert_eq!(bed.get::<ActivePiece>(piece).phase, PiecePhase::Filling);
        assert_eq!(bed.world.resource_mut::<FullPieces>().pop(), Some(piece));
        assert!(bed.get::<ActivePieces>(bed.torrent).open.is_empty());
    }

    /// A block that cannot be read is requested from peers; those that can be read stay on the disk.
    #[test]
    fn unreadable_blocks_are_missing() {
        let (mut bed, piece) = bed();
        read(&mut bed, piece, 0, false);
        let blocks = |bed: &Bed| {
            bed.get::<Partials>(bed.torrent)
                .0
                .get(&1)
                .map(|blocks| blocks.iter().collect::<Vec<_>>())
        };
        assert_eq!(blocks(&bed), Some(vec![1]));
        read(&mut bed, piece, 1, false);
        assert_eq!(blocks(&bed), None);
        let restored: &ActivePiece = bed.get(piece);
        assert_eq!((restored.phase, restored.missing_count), (PiecePhase::Filling, 2));
        assert!(bed.get::<ActivePieces>(bed.torrent).open.contains(&1));
    }

    #[test]
    fn nothing_runs_while_nothing_is_restored() {
        let (mut bed, _) = bed();
        bed.world.init_resource::<Restores>();
        bed.world.init_resource::<Messages<TorrentStarted>>();
        assert!(!bed.holds(has_restores));
        let torrent = bed.torrent;
        bed.world.resource_mut::<Restores>().waiting.push_back((torrent, 0));
        assert!(bed.holds(has_restores));
        bed.world.resource_mut::<Restores>().waiting.clear();
        bed.world.write_message(TorrentStarted { torrent });
        assert!(bed.holds(has_restores));
    }
}
