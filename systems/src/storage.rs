//! Storage: writes verified pieces; a piece counts only once it is written.

use std::sync::Arc;

use bevy_app::{App, Plugin};
use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use bytes::Bytes;
use ecs_torrent_components::commands::CHOICE;
use ecs_torrent_components::lifecycle::Readiness;
use ecs_torrent_components::messages::{FailTorrent, LifecycleChanged, PieceStored, Remedy};
use ecs_torrent_components::piece::{ActivePiece, PieceMemory, VerifiedPieces};
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{ActivePieces, Lifecycle, StopPhase, Storage};
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::DiskPort;
use ecs_torrent_engine::ports::disk::{DiskError, DiskEvent, DiskRequest};
use ecs_torrent_engine::purpose;
use ecs_torrent_engine::schedule::{Tick, TickSet};

use crate::conditions::{has_events, has_messages_of_two};
use crate::picking::Supply;

/// Writes verified pieces.
pub struct StoragePlugin;

impl Plugin for StoragePlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<BlockedWrites>()
            .add_message::<PieceStored>()
            .add_message::<WriteBlocked>()
            .add_message::<WritesFreed>()
            .add_message::<RetryWrite>()
            .add_systems(
                Tick,
                (
                    settle_held.run_if(has_messages_of_two::<LifecycleChanged, RetryWrite>),
                    collect_writes.run_if(has_events::<DiskRequest, DiskEvent>(PIECES)),
                    submit_verified_pieces,
                )
                    .chain()
                    .in_set(TickSet::Store),
            );
    }
}

const PIECES: Purpose = purpose!("write pieces");

/// Writes held on a full disk may use one part in this many of the memory for pieces.
const HELD_SHARE: u64 = 4;

/// A write of a torrent found the disk full. The write is held, to be retried.
#[derive(Message, Debug, Clone)]
pub(crate) struct WriteBlocked {
    /// The torrent.
    pub(crate) torrent: Entity,
    /// The reason, human-readable.
    pub(crate) reason: Arc<str>,
    /// Whether the write was a retry.
    pub(crate) is_retry: bool,
}

/// No write of a torrent is held any longer for lack of space: there is space again.
#[derive(Message, Debug, Clone)]
pub(crate) struct WritesFreed {
    /// The torrent.
    pub(crate) torrent: Entity,
}

/// Retries one of a torrent's held writes, to test for disk space.
#[derive(Message, Debug, Clone)]
pub(crate) struct RetryWrite {
    /// The torrent.
    pub(crate) torrent: Entity,
}

/// Writes that found the disk full: held with their bytes, to be retried. Writes beyond a share of the memory for
/// pieces are dropped, since other torrents need that memory and may have disk space.
#[derive(Resource, Debug, Default)]
struct BlockedWrites {
    held: EntityHashMap<Held>,
    held_bytes: u64,
    /// Writes to be retried.
    retries: Vec<(Entity, Vec<Bytes>)>,
}

/// The held writes of a torrent.
#[derive(Debug, Default)]
struct Held {
    writes: Vec<(Entity, Vec<Bytes>)>,
    /// The piece of the write that is being retried.
    retried: Option<Entity>,
}

fn len(blocks: &[Bytes]) -> u64 {
    blocks.iter().map(|block| block.len() as u64).sum()
}

impl BlockedWrites {
    /// Holds a write, if its bytes fit under `limit` or no other write of the torrent is held. Returns false if the
    /// write is dropped.
    fn hold(&mut self, torrent: Entity, piece: Entity, blocks: Vec<Bytes>, limit: u64) -> bool {
        let held = self.held.entry(torrent).or_default();
        let bytes = len(&blocks);
        let is_held = held.writes.is_empty() || self.held_bytes + bytes <= limit;
        if is_held {
            self.held_bytes += bytes;
            held.writes.push((piece, blocks));
        }
        is_held
    }

    /// Whether writes of a torrent are held or are being retried.
    fn holds(&self, torrent: Entity) -> bool {
        self.held.contains_key(&torrent)
    }

    /// Records that a write of a torrent failed; returns true if the write was the retry of a held one.
    fn end_retry(&mut self, torrent: Entity, piece: Entity) -> bool {
        let held = self.held.get_mut(&torrent);
        held.is_some_and(|held| held.retried.take_if(|retried| *retried == piece).is_some())
    }

    /// Retries one of a torrent's writes, to test for disk space. Returns false if the torrent has none.
    fn retry_one(&mut self, torrent: Entity) -> bool {
        let Some(held) = self.held.get_mut(&torrent) else {
            return false;
        };
        if let Some((piece, blocks)) = held.writes.pop() {
            held.retried = Some(piece);
            self.held_bytes -= len(&blocks);
            self.retries.push((piece, blocks));
        }
        held.retried.is_some()
    }

    /// Retries all held writes of a torrent: there is space again.
    fn retry_all(&mut self, torrent: Entity) {
        let writes = self.forget(torrent);
        self.retries.extend(writes);
    }

    /// Drops the held writes of a torrent, and returns them.
    fn forget(&mut self, torrent: Entity) -> Vec<(Entity, Vec<Bytes>)> {
        let writes = self.held.remove(&torrent).unwrap_or_default().writes;
        self.held_bytes -= writes.iter().map(|(_, blocks)| len(blocks)).sum::<u64>();
        writes
    }
}

/// Converts a disk error to a torrent's fault.
pub(crate) fn fault(torrent: Entity, error: &DiskError) -> FailTorrent {
    let is_passing = error.is_full() || error.is_volume_gone() || error.is_out_of_files();
    // A restart changes neither the owner of a file nor the torrent.
    let is_refused = error.is_foreign() || error.is_forbidden() || error.is_bad_padding();
    let reason = match error.is_foreign() {
        true => format!("{error}; {CHOICE}").into(),
        false => error.to_string().into(),
    };
    FailTorrent {
        torrent,
        reason,
        remedy: match (is_passing, is_refused) {
            (true, _) => Remedy::Wait,
            (_, true) => Remedy::None,
            _ => Remedy::Restart,
        },
    }
}

/// Retries a held write of a torrent that requested it. Retries all held writes of a torrent that stops, because there
/// may be space by now, and drops those of torrents whose pieces are dropped.
fn settle_held(
    mut changed: MessageReader<LifecycleChanged>,
    mut retried: MessageReader<RetryWrite>,
    mut freed: MessageWriter<WritesFreed>,
    mut blocked: ResMut<BlockedWrites>,
    mut supply: ResMut<Supply>,
    torrents: Query<&Readiness>,
) {
    for &RetryWrite { torrent } in retried.read() {
        if !blocked.retry_one(torrent) {
            freed.write(WritesFreed { torrent });
        }
    }
    for LifecycleChanged { torrent, to, .. } in changed.read() {
        let is_open = torrents
            .get(*torrent)
            .is_ok_and(|readiness| *readiness == Readiness::Ready);
        match to {
            Lifecycle::Blocked { .. } if is_open => {}
            Lifecycle::Stopping {
                phase: StopPhase::HaltDownloads,
            } => blocked.retry_all(*torrent),
            to if to.is_running() => {}
            _ => {
                for (_, blocks) in blocked.forget(*torrent) {
                    supply.record_dropped(*torrent, len(&blocks));
                }
            }
        }
    }
}

fn collect_writes(
    mut commands: Commands,
    mut disk: ResMut<DiskPort>,
    mut memory: ResMut<PieceMemory>,
    mut supply: ResMut<Supply>,
    mut stored: MessageWriter<PieceStored>,
    mut failed: MessageWriter<FailTorrent>,
    mut blocked: BlockedWriter,
    pieces: Query<&ActivePiece>,
    mut torrents: Query<(&Lifecycle, &mut ActivePieces)>,
) {
    for event in disk.take(PIECES) {
        let entity = event.tag.owner;
        let Ok(piece) = pieces.get(entity) else { continue };
        let torrent = piece.torrent;
        if let Err(error) = event.outcome {
            if error.is_unwanted() {
                // The user does not want the file any more.
                supply.put_back(entity);
            } else if !error.is_full() {
                failed.write(fault(torrent, &error));
            } else {
                // A torrent that stops does not wait for space.
                let may_wait = matches!(
                    torrents.get(torrent),
                    Ok((Lifecycle::Downloading | Lifecycle::Blocked { .. }, _))
                );
                if !may_wait || !blocked.hold(torrent, entity, event.blocks, &error) {
                    supply.put_back(entity);
                }
            }
            continue;
        }
        blocked.record_written(torrent);
        stored.write(PieceStored {
            torrent,
            index: piece.index,
            len: piece.span.len,
        });
        if let Ok((_, mut active)) = torrents.get_mut(torrent) {
            active.all.remove(&piece.index);
            active.open.remove(&piece.index);
        }
        memory.release(piece);
        supply.offer_memory();
        commands.entity(entity).despawn();
    }
}

/// Holds writes that found the disk full, and publishes it.
#[derive(SystemParam)]
struct BlockedWriter<'w> {
    writes: ResMut<'w, BlockedWrites>,
    blocked: MessageWriter<'w, WriteBlocked>,
    freed: MessageWriter<'w, WritesFreed>,
    settings: Res<'w, Settings>,
}

impl BlockedWriter<'_> {
    /// Holds a write that failed. Returns false if it is dropped.
    fn hold(&mut self, torrent: Entity, piece: Entity, blocks: Vec<Bytes>, error: &DiskError) -> bool {
        let limit = self.settings.requests.piece_memory_bytes / HELD_SHARE;
        self.blocked.write(WriteBlocked {
            torrent,
            reason: error.to_string().into(),
            is_retry: self.writes.end_retry(torrent, piece),
        });
        self.writes.hold(torrent, piece, blocks, limit)
    }

    /// Records that a write has succeeded: there is space for the held ones.
    fn record_written(&mut self, torrent: Entity) {
        if self.writes.holds(torrent) {
            self.writes.retry_all(torrent);
            self.freed.write(WritesFreed { torrent });
        }
    }
}

fn submit_verified_pieces(
    mut verified: ResMut<VerifiedPieces>,
    mut blocked: ResMut<BlockedWrites>,
    mut memory: ResMut<PieceMemory>,
    mut disk: ResMut<DiskPort>,
    mut pieces: Query<&mut ActivePiece>,
    torrents: Query<&Storage>,
) {
    for (entity, blocks) in blocked.retries.drain(..) {
        if let Ok(mut piece) = pieces.get_mut(entity) {
            verified.add(entity, &mut piece, blocks);
        }
    }
    while let Some(entity) = verified.pop() {
        let Ok(mut piece) = pieces.get_mut(entity) else {
            continue;
        };
        let Ok(storage) = torrents.get(piece.torrent) else {
            continue;
        };
        let tag = JobTag::new(PIECES, entity);
        disk.push(DiskRequest::Write {
            tag,
            storage: storage.id,
            span: piece.span,
            blocks: memory.begin_writing(&mut piece),
        });
    }
}

#[cfg(test)]
mod tests {
    use ecs_torrent_engine::ports::disk::DiskAction;

    use super::*;
    use crate::picking::PickingPlugin;
    use crate::testing::Bed;

    fn bed() -> Bed {
        Bed::new((StoragePlugin, PickingPlugin))
    }

    fn entity(id: u32) -> Entity {
        Entity::from_raw_u32(id).unwrap()
    }

    #[test]
    fn writes_are_held_up_to_a_limit_and_at_least_one_of_each_torrent() {
        let mut blocked = BlockedWrites::default();
        let (one, other) = (entity(1), entity(2));
        let writes = [(one, 11, 60), (one, 12, 50), (one, 13, 40), (other, 21, 90)];
        let is_held = writes.map(|(torrent, piece, len)| {
            let blocks = vec![Bytes::from(vec![0; len])];
            blocked.hold(torrent, entity(piece), blocks, 100)
        });
        assert_eq!((is_held, blocked.held_bytes), ([true, false, true, true], 190));
        assert!(!blocked.end_retry(one, entity(13)), "no write is retried yet");
        assert!(blocked.retry_one(one) && !blocked.retry_one(entity(3)));
        assert_eq!((blocked.held_bytes, blocked.retries.len()), (150, 1));
        assert!(!blocked.end_retry(other, entity(21)));
        assert!(
            !blocked.end_retry(one, entity(11)),
            "another write of the torrent failed"
        );
        assert!(blocked.end_retry(one, entity(13)));
        assert!(!blocked.end_retry(one, entity(13)), "its failure was reported");
        blocked.retry_all(one);
        assert_eq!((blocked.held_bytes, blocked.retries.len()), (90, 2));
        assert!(!blocked.holds(one) && blocked.holds(other));
    }

    #[test]
    fn held_writes_end_with_the_pieces_of_their_torrent() {
        for (to, readiness, is_held) in [
            (
                Lifecycle::Blocked {
                    resource: "space".into(),
                },
                Readiness::Ready,
                true,
            ),
            (
                Lifecycle::Blocked {
                    resource: "a volume".into(),
                },
                Readiness::Unopened,
                false,
            ),
            (
                Lifecycle::Stopping {
                    phase: StopPhase::HaltDownloads,
                },
                Readiness::Ready,
                false,
            ),
            (
                Lifecycle::Stopping {
                    phase: StopPhase::WriteSession,
                },
                Readiness::Ready,
                false,
            ),
            (Lifecycle::Downloading, Readiness::Ready, true),
            (Lifecycle::Paused, Readiness::Closed, false),
        ] {
            let mut bed = bed();
            bed.world.init_resource::<Messages<RetryWrite>>();
            let torrent = bed.torrent;
            bed.world.entity_mut(torrent).insert(readiness);
            let mut blocked = bed.world.resource_mut::<BlockedWrites>();
            blocked.hold(torrent, entity(1), vec![vec![0; 10].into()], 100);
            let from = Lifecycle::Downloading;
            bed.run_after(
                LifecycleChanged {
                    torrent,
                    from,
                    to: to.clone(),
                },
                settle_held,
            );
            let blocked = bed.world.resource::<BlockedWrites>();
            assert_eq!(blocked.holds(torrent), is_held, "{to:?}");
            // A stop tries all of them once more. Others are counted.
            let is_retried = matches!(to, Lifecycle::Stopping { phase } if phase == StopPhase::HaltDownloads);
            assert_eq!(blocked.retries.len(), usize::from(is_retried), "{to:?}");
            let dropped = if is_held || is_retried {
                vec![]
            } else {
                vec![(torrent, 10)]
            };
            assert_eq!(bed.world.resource::<Supply>().dropped, dropped, "{to:?}");
        }
    }

    /// A torrent that is blocked without a held write has space again.
    #[test]
    fn a_retry_tests_for_space_with_a_held_write() {
        for is_held in [false, true] {
            let mut bed = bed();
            bed.world.init_resource::<Messages<LifecycleChanged>>();
            let torrent = bed.torrent;
            let mut blocked = bed.world.resource_mut::<BlockedWrites>();
            if is_held {
                blocked.hold(torrent, entity(1), Vec::new(), 100);
            }
            bed.run_after(RetryWrite { torrent }, settle_held);
            let freed = bed.world.resource_mut::<Messages<WritesFreed>>().drain().count();
            assert_eq!(freed, usize::from(!is_held));
            assert_eq!(
                bed.world.resource::<BlockedWrites>().retries.len(),
                usize::from(is_held)
            );
        }
    }

    fn full() -> DiskError {
        DiskError::new(DiskAction::Write, "file".into(), std::io::ErrorKind::StorageFull.into())
    }

    /// A torrent that stops does not wait for space: the piece is dropped, and its bytes are counted.
    #[test]
    fn a_write_that_meets_a_full_disk_is_held_or_dropped() {
        let resource = "space".into();
        let phase = StopPhase::HaltDownloads;
        for (lifecycle, is_held) in [
            (Lifecycle::Downloading, true),
            (Lifecycle::Blocked { resource }, true),
            (Lifecycle::Stopping { phase }, false),
            (Lifecycle::Finished, false),
        ] {
            let mut bed = bed();
            let (torrent, peer) = (bed.torrent, bed.peer());
            let piece = bed.piece(0);
            for block in [0, 1] {
                bed.get_mut::<ActivePiece>(piece)
                    .receive(block, Some(peer), Default::default());
            }
            let data = vec![vec![0; 2 << 14].into()];
            let write = |mut memory: ResMut<PieceMemory>, mut pieces: Query<&mut ActivePiece>| {
                pieces
                    .iter_mut()
                    .for_each(|mut piece| drop(memory.begin_writing(&mut piece)));
            };
            bed.run(write);
            bed.world.entity_mut(torrent).insert(lifecycle.clone());
            bed.open_port::<DiskRequest, DiskEvent>(vec![DiskEvent {
                tag: JobTag::new(PIECES, piece),
                outcome: Err(full()),
                blocks: data,
            }]);
            bed.world.init_resource::<Messages<FailTorrent>>();
            bed.run(collect_writes);
            bed.run(crate::picking::flight::put_back_dropped);
            assert_eq!(
                bed.world.resource::<BlockedWrites>().holds(torrent),
                is_held,
                "{lifecycle:?}"
            );
            let active = bed.get::<ActivePieces>(torrent);
            assert_eq!(active.all.contains_key(&0), is_held, "{lifecycle:?}");
            let dropped = if is_held { vec![] } else { vec![(torrent, 2 << 14)] };
            assert_eq!(bed.world.resource::<Supply>().dropped, dropped, "{lifecycle:?}");
        }
    }

    #[test]
    fn held_writes_take_a_share_of_the_memory() {
        let mut bed = bed();
        bed.world.resource_mut::<Settings>().requests.piece_memory_bytes = 400;
        let torrent = bed.torrent;
        let mut state = bevy_ecs::system::SystemState::<BlockedWriter>::new(&mut bed.world);
        let mut blocked = state.get_mut(&mut bed.world).unwrap();
        let is_held =
            [60, 40, 1].map(|len| blocked.hold(torrent, entity(len), vec![vec![0; len as usize].into()], &full()));
        assert_eq!(is_held, [true, true, false]);
    }
}
