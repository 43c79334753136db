//! Existing data is hashed before it counts.
//!
//! Pieces are read and hashed in order, several at a time under one memory limit for all torrents; torrents take
//! turns, so that a large one does not keep a small one waiting.

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

/// On a torrent whose data is being checked.
#[derive(Component, Debug)]
#[component(storage = "SparseSet")]
pub struct Check {
    /// The pieces in doubt.
    todo: Vec<u32>,
    /// Position of the next of them to be read.
    next: usize,
    checked_count: u32,
    good: Bitfield,
    /// Those that are written again before they count.
    rewrite: Bitfield,
}

impl Check {
    /// A check of the pieces `todo`; those in `good` are known to be.
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

    /// Writes these pieces again where they are found good: they can be read, and a failed sync may have kept them from
    /// the platter for good.
    #[must_use]
    pub(crate) fn rewriting(self, rewrite: Bitfield) -> Self {
        Self { rewrite, ..self }
    }

    /// Pieces looked at, or not in doubt from the start.
    #[must_use]
    pub fn checked_count(&self) -> u32 {
        self.good.len() - self.todo.len() as u32 + self.checked_count
    }

    /// Pieces found good so far.
    #[must_use]
    pub fn good(&self) -> &Bitfield {
        &self.good
    }
}

/// Torrents that have pieces to be read, and the memory of those being read or hashed.
#[derive(Resource, Debug, Default)]
pub struct CheckQueue {
    torrents: VecDeque<Entity>,
    used_bytes: u64,
}

impl CheckQueue {
    /// Puts a torrent, which gets its [`Check`] in this tick, behind the others.
    pub(crate) fn add(&mut self, torrent: Entity) {
        self.torrents.push_back(torrent);
    }
}

/// The number of a job: which piece, and how long, so that its memory is known when its torrent no longer is.
fn number(index: u32, len: u32) -> u64 {
    u64::from(len) << 32 | u64::from(index)
}

/// The piece's index and length in a job's number.
fn index_and_len(tag: JobTag) -> (u32, u64) {
    (tag.number as u32, tag.number >> 32)
}

/// What cannot be read because it is not there is simply missing; what cannot be read for another reason is a fault.
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
    /// Notes a piece's result; the last one sets the bits, starts the torrent, and ends the check.
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
