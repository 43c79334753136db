//! Checking of existing data: pieces are hashed before they count as held.
//!
//! Pieces are read and hashed in order, several at a time under one memory limit for all torrents. Torrents take turns,
//! so that a large one does not keep a small one waiting.

use std::collections::VecDeque;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::messages::FailTorrent;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{Content, Have, Layout, Storage};
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::disk::{DiskDone, DiskRequest};
use ecs_torrent_engine::ports::hash::{Digests, HashKind, HashRequest};
use ecs_torrent_engine::ports::{DiskPort, HashPort};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::bitfield::Bitfield;

use crate::VerifySet;
use crate::lifecycle::StartTorrent;
use crate::sessions::SessionState;
use crate::storage::fault;

/// Checks existing data.
pub struct CheckingPlugin;

impl Plugin for CheckingPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<CheckQueue>().add_systems(
            Tick,
            (collect_reads, collect_checked, collect_rewritten, read_pieces)
                .chain()
                .in_set(VerifySet::Check),
        );
    }
}

const READ: Purpose = Purpose("read to check");
const HASH: Purpose = Purpose("hash to check");
const REWRITE: Purpose = Purpose("write again");

/// State of a check, on a torrent whose data is being checked.
#[derive(Component, Debug)]
#[component(storage = "SparseSet")]
pub struct Check {
    /// The pieces to check.
    todo: Vec<u32>,
    /// Position in `todo` of the next piece to read.
    next: usize,
    checked_count: u32,
    good: Bitfield,
    /// Pieces that are written again before they count as held.
    rewrite: Bitfield,
}

impl Check {
    /// Creates a check of the pieces in `todo`. The pieces in `good` are already known to be good.
    #[must_use]
    pub fn new(todo: impl IntoIterator<Item = u32>, good: Bitfield) -> Self {
        Self {
            todo: todo.into_iter().collect(),
            next: 0,
            checked_count: 0,
            good,
            rewrite: Bitfield::default(),
        }
    }

    /// Writes the pieces in `rewrite` again if they are found good: they can be read, but a failed sync may have kept
    /// them from stable storage permanently.
    #[must_use]
    pub(crate) fn rewriting(self, rewrite: Bitfield) -> Self {
        Self { rewrite, ..self }
    }

    /// Returns the number of pieces that were checked or did not need a check.
    #[must_use]
    pub fn checked_count(&self) -> u32 {
        self.good.len() - self.todo.len() as u32 + self.checked_count
    }

    /// Returns the pieces found good so far.
    #[must_use]
    pub fn good(&self) -> &Bitfield {
        &self.good
    }
}

/// Torrents with pieces to read, and the memory of the pieces being read or hashed.
#[derive(Resource, Debug, Default)]
pub struct CheckQueue {
    torrents: VecDeque<Entity>,
    used_bytes: u64,
}

impl CheckQueue {
    /// Appends a torrent, which gets its [`Check`] in this tick.
    pub(crate) fn add(&mut self, torrent: Entity) {
        self.torrents.push_back(torrent);
    }
}

/// Encodes a piece's index and length as a job's number, so that the job's memory is known even after its torrent is
/// gone.
fn number(index: u32, len: u32) -> u64 {
    u64::from(len) << 32 | u64::from(index)
}

/// Decodes a piece's index and length from a job's number.
fn index_and_len(tag: JobTag) -> (u32, u64) {
    (tag.number as u32, tag.number >> 32)
}

/// Collects the read pieces and submits them for hashing. Data that does not exist is a missing piece; any other read
/// error is a fault.
fn collect_reads(
    mut commands: Commands,
    mut disk: ResMut<DiskPort>,
    mut hash: ResMut<HashPort>,
    mut queue: ResMut<CheckQueue>,
    mut start: MessageWriter<StartTorrent>,
    mut failed: MessageWriter<FailTorrent>,
    mut torrents: Query<(&mut Check, &mut Have)>,
) {
    for event in disk.take(READ) {
        let torrent = event.tag.owner;
        let (index, len) = index_and_len(event.tag);
        let tag = JobTag {
            purpose: HASH,
            ..event.tag
        };
        match event.outcome {
            Ok(DiskDone::Read(data)) => {
                let (kind, spans) = (HashKind::Sha1Piece, vec![data]);
                hash.push(HashRequest { tag, kind, spans });
            }
            outcome => {
                queue.used_bytes -= len;
                let Ok((mut check, mut have)) = torrents.get_mut(torrent) else {
                    continue;
                };
                match outcome {
                    Err(error) if !error.is_absence() => drop(failed.write(fault(torrent, &error))),
                    _ => check.note(torrent, index, false, &mut have, &mut commands, &mut start),
                }
            }
        }
    }
}

fn collect_checked(
    mut commands: Commands,
    mut hash: ResMut<HashPort>,
    mut disk: ResMut<DiskPort>,
    mut queue: ResMut<CheckQueue>,
    mut start: MessageWriter<StartTorrent>,
    mut torrents: Query<(&mut Check, &mut Have, &Content, &Layout, &Storage)>,
) {
    for event in hash.take(HASH) {
        let (index, len) = index_and_len(event.tag);
        queue.used_bytes -= len;
        let Ok((mut check, mut have, content, Layout(geometry), storage)) = torrents.get_mut(event.tag.owner) else {
            continue;
        };
        let expected = content.0.info.pieces.get(index);
        let is_good =
            matches!((&event.digests, expected), (Some(Digests::Piece(digest)), Some(hash)) if digest == hash);
        if is_good && check.rewrite.contains(index) {
            queue.used_bytes += len;
            disk.push(DiskRequest::Write {
                tag: JobTag {
                    purpose: REWRITE,
                    ..event.tag
                },
                storage: storage.id,
                span: geometry.piece_span(index),
                blocks: event.spans,
            });
            continue;
        }
        check.note(event.tag.owner, index, is_good, &mut have, &mut commands, &mut start);
    }
}

fn collect_rewritten(
    mut commands: Commands,
    mut disk: ResMut<DiskPort>,
    mut queue: ResMut<CheckQueue>,
    mut start: MessageWriter<StartTorrent>,
    mut failed: MessageWriter<FailTorrent>,
    mut torrents: Query<(&mut Check, &mut Have, &mut SessionState)>,
) {
    for event in disk.take(REWRITE) {
        let (torrent, (index, len)) = (event.tag.owner, index_and_len(event.tag));
        queue.used_bytes -= len;
        let Ok((mut check, mut have, mut state)) = torrents.get_mut(torrent) else {
            continue;
        };
        match event.outcome {
            Ok(_) => {
                state.note_rewritten(index);
                check.note(torrent, index, true, &mut have, &mut commands, &mut start);
            }
            Err(error) => drop(failed.write(fault(torrent, &error))),
        }
    }
}

impl Check {
    /// Records a piece's result. The last result sets the bits, starts the torrent, and ends the check.
    fn note(
        &mut self,
        torrent: Entity,
        index: u32,
        is_good: bool,
        have: &mut Have,
        commands: &mut Commands,
        start: &mut MessageWriter<StartTorrent>,
    ) {
        self.checked_count += 1;
        if is_good {
            self.good.insert(index);
        }
        if self.checked_count as usize == self.todo.len() {
            have.0 = self.good.clone();
            start.write(StartTorrent { torrent });
            commands.entity(torrent).remove::<Check>();
        }
    }
}

fn read_pieces(
    settings: Res<Settings>,
    mut disk: ResMut<DiskPort>,
    mut queue: ResMut<CheckQueue>,
    mut torrents: Query<(&mut Check, &Layout, &Storage)>,
) {
    let limit = settings.storage.check_memory_bytes;
    while queue.used_bytes < limit {
        let Some(torrent) = queue.torrents.pop_front() else {
            break;
        };
        let Ok((mut check, Layout(geometry), storage)) = torrents.get_mut(torrent) else {
            continue;
        };
        let Some(&index) = check.todo.get(check.next) else {
            continue;
        };
        check.next += 1;
        let span = geometry.piece_span(index);
        queue.used_bytes += u64::from(span.len);
        let tag = JobTag {
            purpose: READ,
            owner: torrent,
            number: number(index, span.len),
        };
        disk.push(DiskRequest::Read {
            tag,
            storage: storage.id,
            span,
        });
        queue.torrents.push_back(torrent);
    }
}
