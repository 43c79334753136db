//! Storage: writes verified pieces; a piece counts only once it is written.

use std::sync::Arc;

use bevy_app::{App, Plugin};
use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use bytes::Bytes;
use ecs_torrent_components::commands::CHOICE;
use ecs_torrent_components::lifecycle::Readiness;
use ecs_torrent_components::messages::{FailTorrent, LifecycleChanged, PieceStored, Remedy};
use ecs_torrent_components::piece::{ActivePiece, PieceMemory, PiecePhase};
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{ActivePieces, Lifecycle, StopPhase, Storage};
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::DiskPort;
use ecs_torrent_engine::ports::disk::{DiskError, DiskEvent, DiskRequest};
use ecs_torrent_engine::schedule::{Tick, TickSet};

use crate::conditions::has_events;
use crate::picking::Supply;
use crate::verification::VerifiedPieces;

/// Writes verified pieces.
pub struct StoragePlugin;

impl Plugin for StoragePlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<BlockedWrites>()
            .add_message::<PieceStored>()
            .add_systems(
                Tick,
                (
                    forget_held,
                    collect_writes.run_if(has_events::<DiskRequest, DiskEvent>(PIECES)),
                    submit_verified_pieces,
                )
                    .chain()
                    .in_set(TickSet::Store),
            );
    }
}

const PIECES: Purpose = Purpose("write pieces");

/// Writes held on a full disk may use one part in this many of the memory for pieces.
const HELD_SHARE: u64 = 4;

/// Writes that found the disk full: held with their bytes, to be retried. Writes beyond a share of the memory for
/// pieces are dropped, since other torrents need that memory and may have disk space.
#[derive(Resource, Debug, Default)]
pub(crate) struct BlockedWrites {
    held: EntityHashMap<Held>,
    held_bytes: u64,
    /// Pieces whose writes are dropped, until the lifecycle handles them.
    pub(crate) surplus: Vec<Entity>,
    /// Torrents whose writes have begun to fail, with the reason for users, until the lifecycle handles them.
    pub(crate) full: Vec<(Entity, Arc<str>)>,
    /// Torrents that have just been blocked, whose requests are to be canceled.
    pub(crate) recalled: Vec<Entity>,
    /// Torrents of which a held write has succeeded.
    pub(crate) freed: Vec<Entity>,
    /// Writes to be retried.
    pub(crate) retries: Vec<(Entity, Vec<Bytes>)>,
}

/// The held writes of a torrent.
#[derive(Debug, Default)]
struct Held {
    writes: Vec<(Entity, Vec<Bytes>)>,
    /// One of the writes is being retried.
    is_retrying: bool,
}

fn len(blocks: &[Bytes]) -> u64 {
    blocks.iter().map(|block| block.len() as u64).sum()
}

impl BlockedWrites {
    fn hold(&mut self, torrent: Entity, piece: Entity, blocks: Vec<Bytes>, limit: u64, error: &DiskError) {
        let held = self.held.entry(torrent).or_default();
        let bytes = len(&blocks);
        if held.writes.is_empty() || self.held_bytes + bytes <= limit {
            self.held_bytes += bytes;
            held.writes.push((piece, blocks));
        } else {
            self.surplus.push(piece);
        }
        self.full.push((torrent, error.to_string().into()));
    }

    /// Whether writes have failed that the lifecycle has not handled.
    pub(crate) fn has_failed(&self) -> bool {
        !self.surplus.is_empty() || !self.full.is_empty() || !self.recalled.is_empty()
    }

    /// Whether writes of a torrent are held.
    pub(crate) fn holds(&self, torrent: Entity) -> bool {
        self.held.contains_key(&torrent)
    }

    /// Whether the reported failure ends a retry; clears the retry flag.
    pub(crate) fn is_retrying(&mut self, torrent: Entity) -> bool {
        let held = self.held.get_mut(&torrent);
        held.is_some_and(|held| std::mem::take(&mut held.is_retrying))
    }

    fn record_written(&mut self, torrent: Entity) {
        if self.held.contains_key(&torrent) {
            self.freed.push(torrent);
        }
    }

    /// Retries one of a torrent's writes, to test for disk space.
    pub(crate) fn retry_one(&mut self, torrent: Entity) {
        if let Some(held) = self.held.get_mut(&torrent) {
            held.is_retrying = true;
            let write = held.writes.pop();
            self.held_bytes -= write.iter().map(|(_, blocks)| len(blocks)).sum::<u64>();
            self.retries.extend(write);
        }
    }

    /// Retries all held writes of a torrent: there is space again.
    pub(crate) fn retry_all(&mut self, torrent: Entity) {
        let writes = self.forget(torrent);
        self.retries.extend(writes);
    }

    /// Drops the held writes of a torrent, and returns them.
    pub(crate) fn forget(&mut self, torrent: Entity) -> Vec<(Entity, Vec<Bytes>)> {
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

/// Drops the held writes of torrents whose pieces are dropped.
fn forget_held(
    mut changed: MessageReader<LifecycleChanged>,
    mut blocked: ResMut<BlockedWrites>,
    torrents: Query<&Readiness>,
) {
    for LifecycleChanged { torrent, to, .. } in changed.read() {
        let is_open = torrents
            .get(*torrent)
            .is_ok_and(|readiness| *readiness == Readiness::Ready);
        let keeps = match to {
            Lifecycle::Blocked { .. } => is_open,
            Lifecycle::Stopping { phase } => *phase == StopPhase::HaltDownloads,
            to => to.is_running(),
        };
        if !keeps {
            blocked.forget(*torrent);
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
    mut blocked: ResMut<BlockedWrites>,
    settings: Res<Settings>,
    pieces: Query<&ActivePiece>,
    mut torrents: Query<&mut ActivePieces>,
) {
    for event in disk.take(PIECES) {
        let entity = event.tag.owner;
        let Ok(piece) = pieces.get(entity) else { continue };
        let torrent = piece.torrent;
        if let Err(error) = event.outcome {
            if error.is_full() {
                let limit = settings.requests.piece_memory_bytes / HELD_SHARE;
                blocked.hold(torrent, entity, event.blocks, limit, &error);
            } else {
                failed.write(fault(torrent, &error));
            }
            continue;
        }
        blocked.record_written(torrent);
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
    mut blocked: ResMut<BlockedWrites>,
    mut disk: ResMut<DiskPort>,
    mut pieces: Query<&mut ActivePiece>,
    torrents: Query<&Storage>,
) {
    for (entity, blocks) in verified.0.drain(..).chain(blocked.retries.drain(..)) {
        let Ok(mut piece) = pieces.get_mut(entity) else {
            continue;
        };
        let Ok(storage) = torrents.get(piece.torrent) else {
            continue;
        };
        piece.phase = PiecePhase::Writing;
        let tag = JobTag::new(PIECES, entity);
        disk.push(DiskRequest::Write {
            tag,
            storage: storage.id,
            span: piece.span,
            blocks,
        });
    }
}

#[cfg(test)]
mod tests {
    use ecs_torrent_engine::ports::disk::DiskAction;

    use super::*;

    fn entity(id: u32) -> Entity {
        Entity::from_raw_u32(id).unwrap()
    }

    #[test]
    fn writes_are_held_up_to_a_limit_and_at_least_one_of_each_torrent() {
        let error = DiskError::new(DiskAction::Write, "x".into(), std::io::ErrorKind::StorageFull.into());
        let mut blocked = BlockedWrites::default();
        let (one, other) = (entity(1), entity(2));
        for (torrent, piece, len) in [(one, 11, 60), (one, 12, 50), (one, 13, 40), (other, 21, 90)] {
            let blocks = vec![Bytes::from(vec![0; len])];
            blocked.hold(torrent, entity(piece), blocks, 100, &error);
        }
        assert_eq!(blocked.surplus, [entity(12)]);
        assert_eq!((blocked.held_bytes, blocked.full.len()), (190, 4));
        assert!(!blocked.is_retrying(one), "no write is retried yet");
        blocked.retry_one(one);
        assert_eq!((blocked.held_bytes, blocked.retries.len()), (150, 1));
        assert!(!blocked.is_retrying(other));
        assert!(blocked.is_retrying(one));
        assert!(!blocked.is_retrying(one), "its failure was reported");
        blocked.retry_all(one);
        assert_eq!((blocked.held_bytes, blocked.retries.len()), (90, 2));
        assert!(!blocked.holds(one) && blocked.holds(other));
    }
}
