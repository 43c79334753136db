//! Checking of existing data: pieces are hashed before they count as held.
//!
//! Pieces are read and hashed in order, several at a time under one memory limit for all torrents. Torrents take turns,
//! so that a large one does not keep a small one waiting.

use std::collections::{BTreeSet, VecDeque};

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::messages::{FailTorrent, LifecycleChanged, PiecesKnown};
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{Content, Layout, Lifecycle, Storage};
use ecs_torrent_engine::jobs::Jobs;
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::disk::{DiskDone, DiskRequest, ReadPurpose};
use ecs_torrent_engine::ports::hash::{HashKind, HashRequest};
use ecs_torrent_engine::ports::{DiskPort, HashPort};
use ecs_torrent_engine::purpose;
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::bitfield::Bitfield;

use crate::VerifySet;
use crate::sessions::SessionState;
use crate::storage::fault;

/// Checks existing data.
pub struct CheckingPlugin;

impl Plugin for CheckingPlugin {
    fn build(&self, app: &mut App) {
        app.add_message::<CheckPieces>()
            .init_resource::<CheckQueue>()
            .add_observer(end_check)
            .add_systems(
                Tick,
                (
                    begin_checks,
                    collect_reads,
                    collect_checked,
                    collect_rewritten,
                    read_pieces,
                )
                    .chain()
                    .run_if(has_checks)
                    .in_set(VerifySet::Check),
            );
    }
}

const READ: Purpose = purpose!("read to check");
const HASH: Purpose = purpose!("hash to check");
const REWRITE: Purpose = purpose!("write again");

/// Requests a check of a torrent's existing data.
#[derive(Message, Debug, Clone)]
pub(crate) struct CheckPieces {
    /// The torrent.
    pub torrent: Entity,
    /// The pieces to check.
    pub doubtful: Vec<u32>,
    /// The pieces that are known to be good.
    pub good: Bitfield,
    /// Pieces that are written again if they are good: they can be read, but a failed sync may have kept them from
    /// stable storage permanently.
    pub rewrite: Bitfield,
}

/// State of a check, on a torrent whose data is being checked.
#[derive(Component, Debug)]
#[component(storage = "SparseSet")]
pub struct Check {
    /// The pieces to check.
    todo: Vec<u32>,
    /// Position in `todo` of the next piece to read.
    next: usize,
    checked_count: u32,
    /// The jobs of this check, by number. Other results belong to an earlier check.
    running: BTreeSet<u64>,
    good: Bitfield,
    /// Pieces that are written again before they count as held.
    rewrite: Bitfield,
    /// The check does not wait for the end of others.
    has_begun: bool,
}

impl Check {
    pub(crate) fn new(request: &CheckPieces) -> Self {
        Self {
            todo: request.doubtful.clone(),
            next: 0,
            checked_count: 0,
            running: BTreeSet::new(),
            good: request.good.clone(),
            rewrite: request.rewrite.clone(),
            has_begun: false,
        }
    }

    /// Whether the check has begun, and does not wait for the end of others.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.has_begun
    }

    /// Returns the number of pieces that were checked or did not need a check.
    #[must_use]
    pub(crate) fn checked_count(&self) -> u32 {
        self.good.len() - self.todo.len() as u32 + self.checked_count
    }
}

/// Torrents with pieces to read, and the memory of the pieces being read or hashed.
#[derive(Resource, Debug, Default)]
pub(crate) struct CheckQueue {
    torrents: VecDeque<Entity>,
    /// Torrents whose check waits for the end of another.
    waiting: VecDeque<Entity>,
    /// Number of torrents that are being checked.
    begun_count: usize,
    jobs: Jobs<PieceCheck>,
    used_bytes: u64,
}

/// A piece that is read, hashed and, if necessary, written again. It may outlive its torrent.
#[derive(Debug, Clone, Copy)]
struct PieceCheck {
    torrent: Entity,
    index: u32,
    len: u32,
}

impl CheckQueue {
    /// Begins a piece's check, and returns the tag for its requests.
    fn begin(&mut self, piece: PieceCheck) -> JobTag {
        self.used_bytes += u64::from(piece.len);
        self.jobs.add(READ, piece)
    }

    /// Ends a piece's check and releases its memory.
    fn end(&mut self, job: JobTag) -> Option<PieceCheck> {
        let piece = self.jobs.take(job)?;
        self.used_bytes -= u64::from(piece.len);
        Some(piece)
    }
}

/// Returns whether data is being checked, or a check may begin or end.
fn has_checks(
    queue: Res<CheckQueue>,
    changed: Res<Messages<LifecycleChanged>>,
    requested: Res<Messages<CheckPieces>>,
) -> bool {
    let is_running = !queue.torrents.is_empty() || !queue.waiting.is_empty() || queue.used_bytes > 0;
    is_running || !changed.is_empty() || !requested.is_empty()
}

/// Begins requested checks, and ends those of torrents that are no longer to be checked.
fn begin_checks(
    mut commands: Commands,
    mut changed: MessageReader<LifecycleChanged>,
    mut requested: MessageReader<CheckPieces>,
    mut queue: ResMut<CheckQueue>,
    torrents: Query<&Lifecycle>,
) {
    for LifecycleChanged { torrent, from, .. } in changed.read() {
        if *from == Lifecycle::Checking
            && let Ok(mut torrent) = commands.get_entity(*torrent)
        {
            torrent.remove::<Check>();
        }
    }
    for request in requested.read() {
        if torrents
            .get(request.torrent)
            .is_ok_and(|lifecycle| *lifecycle == Lifecycle::Checking)
        {
            // An earlier check ends first.
            commands
                .entity(request.torrent)
                .remove::<Check>()
                .insert(Check::new(request));
            queue.waiting.push_back(request.torrent);
        }
    }
}

/// Makes place for another torrent.
fn end_check(ended: On<Remove<Check>>, mut queue: ResMut<CheckQueue>, checks: Query<&Check>) {
    if checks.get(ended.entity).is_ok_and(Check::is_running) {
        queue.begun_count -= 1;
    }
}

/// Collects the read pieces and submits them for hashing. Data that does not exist is a missing piece; any other read
/// error is a fault.
fn collect_reads(
    mut commands: Commands,
    mut disk: ResMut<DiskPort>,
    mut hash: ResMut<HashPort>,
    mut queue: ResMut<CheckQueue>,
    mut known: MessageWriter<PiecesKnown>,
    mut failed: MessageWriter<FailTorrent>,
    mut torrents: Query<(&mut Check, &Content)>,
) {
    for event in disk.take(READ) {
        let Some(&PieceCheck { torrent, index, .. }) = queue.jobs.get(event.tag) else {
            continue;
        };
        match event.outcome {
            Ok(DiskDone::Read(data)) => {
                let expected = torrents
                    .get(torrent)
                    .ok()
                    .and_then(|(_, content)| content.0.info.expected_digest(index));
                let Some(kind) = expected.map(HashKind::from) else {
                    queue.end(event.tag);
                    continue;
                };
                let (tag, spans) = (event.tag.followed_by(HASH), vec![data]);
                hash.push(HashRequest { tag, kind, spans });
            }
            outcome => {
                queue.end(event.tag);
                let Ok((mut check, _)) = torrents.get_mut(torrent) else {
                    continue;
                };
                match outcome {
                    Err(error) if !error.is_absence() => drop(failed.write(fault(torrent, &error))),
                    _ => check.record(torrent, event.tag, index, false, &mut commands, &mut known),
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
    mut known: MessageWriter<PiecesKnown>,
    mut torrents: Query<(&mut Check, &Content, &Layout, &Storage)>,
) {
    for event in hash.take(HASH) {
        let Some(&PieceCheck { torrent, index, .. }) = queue.jobs.get(event.tag) else {
            continue;
        };
        let Ok((mut check, content, Layout(geometry), storage)) = torrents.get_mut(torrent) else {
            queue.end(event.tag);
            continue;
        };
        let found = event.digests.as_ref().zip(content.0.info.expected_digest(index));
        let is_good = found.is_some_and(|(digests, expected)| digests.is(expected));
        if is_good && check.rewrite.contains(index) {
            disk.push(DiskRequest::Write {
                tag: event.tag.followed_by(REWRITE),
                storage: storage.id,
                span: geometry.piece_span(index),
                blocks: event.spans,
            });
            continue;
        }
        queue.end(event.tag);
        check.record(torrent, event.tag, index, is_good, &mut commands, &mut known);
    }
}

fn collect_rewritten(
    mut commands: Commands,
    mut disk: ResMut<DiskPort>,
    mut queue: ResMut<CheckQueue>,
    mut known: MessageWriter<PiecesKnown>,
    mut failed: MessageWriter<FailTorrent>,
    mut torrents: Query<(&mut Check, &mut SessionState)>,
) {
    for event in disk.take(REWRITE) {
        let Some(PieceCheck { torrent, index, .. }) = queue.end(event.tag) else {
            continue;
        };
        let Ok((mut check, mut state)) = torrents.get_mut(torrent) else {
            continue;
        };
        match event.outcome {
            Ok(_) => {
                state.record_rewritten(index);
                check.record(torrent, event.tag, index, true, &mut commands, &mut known);
            }
            Err(error) => drop(failed.write(fault(torrent, &error))),
        }
    }
}

impl Check {
    /// Records a piece's result. The last result publishes the held pieces and ends the check.
    fn record(
        &mut self,
        torrent: Entity,
        job: JobTag,
        index: u32,
        is_good: bool,
        commands: &mut Commands,
        known: &mut MessageWriter<PiecesKnown>,
    ) {
        if !self.running.remove(&job.number) {
            return;
        }
        self.checked_count += 1;
        if is_good {
            self.good.insert(index);
        }
        if self.checked_count as usize == self.todo.len() {
            known.write(PiecesKnown {
                torrent,
                have: self.good.clone(),
                is_final: true,
            });
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
    while queue.begun_count < settings.queue.max_checks {
        let Some(torrent) = queue.waiting.pop_front() else {
            break;
        };
        // A torrent whose check was replaced is listed twice.
        if let Ok((mut check, ..)) = torrents.get_mut(torrent)
            && !check.has_begun
        {
            check.has_begun = true;
            queue.begun_count += 1;
            queue.torrents.push_back(torrent);
        }
    }
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
        let len = span.len;
        let tag = queue.begin(PieceCheck { torrent, index, len });
        check.running.insert(tag.number);
        disk.push(DiskRequest::Read {
            tag,
            storage: storage.id,
            span,
            purpose: ReadPurpose::Check,
        });
        queue.torrents.push_back(torrent);
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use bytes::Bytes;
    use ecs_torrent_engine::ports::disk::{DiskAction, DiskError, DiskEvent};
    use ecs_torrent_engine::ports::hash::HashEvent;

    use super::*;
    use crate::testing::Bed;

    const LEN: u64 = 32768;

    /// Returns a torrent of which three pieces are checked, and their jobs.
    fn bed() -> (Bed, [JobTag; 3]) {
        let mut bed = Bed::new(CheckingPlugin);
        bed.world.init_resource::<Messages<PiecesKnown>>();
        bed.world.init_resource::<Messages<FailTorrent>>();
        bed.open_port::<HashRequest, HashEvent>(Vec::new());
        let request = CheckPieces {
            torrent: bed.torrent,
            doubtful: vec![0, 1, 2],
            good: Bitfield::new(3),
            rewrite: Bitfield::new(3),
        };
        let mut check = Check::new(&request);
        let torrent = bed.torrent;
        let mut queue = bed.world.resource_mut::<CheckQueue>();
        let jobs = [0, 1, 2].map(|index| {
            let len = LEN as u32;
            queue.begin(PieceCheck { torrent, index, len })
        });
        check.running.extend(jobs.map(|job| job.number));
        let key = ecs_torrent_components::session::OwnerKey([1; 16]);
        let parts = (check, SessionState::new(key, None, false), crate::testing::content());
        bed.world.entity_mut(bed.torrent).insert(parts);
        (bed, jobs)
    }

    fn finish(bed: &mut Bed, job: JobTag, purpose: Purpose, outcome: Result<DiskDone, DiskError>) {
        bed.open_port::<DiskRequest, DiskEvent>(vec![DiskEvent {
            tag: job.followed_by(purpose),
            outcome,
            blocks: Vec::new(),
        }]);
        match purpose == READ {
            true => bed.run(collect_reads),
            false => bed.run(collect_rewritten),
        }
    }

    fn error(kind: ErrorKind) -> DiskError {
        DiskError::new(DiskAction::Read, "file".into(), kind.into())
    }

    /// Returns the number of faults, of checked pieces, and of bytes in use.
    fn result(bed: &mut Bed) -> (usize, u32, u64) {
        let failed = bed.world.resource_mut::<Messages<FailTorrent>>().drain().count();
        let checked_count = bed.get::<Check>(bed.torrent).checked_count;
        (failed, checked_count, bed.world.resource::<CheckQueue>().used_bytes)
    }

    #[test]
    fn data_that_is_absent_is_missing_and_other_errors_are_faults() {
        let (mut bed, jobs) = bed();
        finish(&mut bed, jobs[0], READ, Err(error(ErrorKind::PermissionDenied)));
        assert_eq!(result(&mut bed), (1, 0, 2 * LEN));
        finish(&mut bed, jobs[1], READ, Err(error(ErrorKind::UnexpectedEof)));
        assert_eq!(result(&mut bed), (0, 1, LEN));
    }

    /// The bytes of a read stay in use until they are hashed.
    #[test]
    fn memory_is_released_with_the_last_use_of_a_piece() {
        let (mut bed, jobs) = bed();
        finish(&mut bed, jobs[0], READ, Ok(DiskDone::Read(Bytes::new())));
        assert_eq!(result(&mut bed), (0, 0, 3 * LEN));
        finish(&mut bed, jobs[0], REWRITE, Ok(DiskDone::Written));
        assert_eq!(result(&mut bed), (0, 1, 2 * LEN));
        finish(&mut bed, jobs[1], REWRITE, Err(error(ErrorKind::StorageFull)));
        assert_eq!(result(&mut bed), (1, 1, LEN));
    }

    #[test]
    fn a_check_ends_with_the_state_and_with_its_torrent() {
        let (mut bed, jobs) = bed();
        for (from, to, goes_on) in [
            (Lifecycle::Adding, Lifecycle::Checking, true),
            (Lifecycle::Checking, Lifecycle::Paused, false),
        ] {
            let torrent = bed.torrent;
            bed.run_after(LifecycleChanged { torrent, from, to }, begin_checks);
            assert_eq!(bed.world.get::<Check>(bed.torrent).is_some(), goes_on);
        }
        finish(&mut bed, jobs[0], READ, Ok(DiskDone::Read(Bytes::new())));
        assert_eq!(
            bed.world.resource::<CheckQueue>().used_bytes,
            2 * LEN,
            "nobody hashes it"
        );
    }

    #[test]
    fn the_progress_of_a_check_counts_what_needed_none() {
        let check = |todo: &[u32], checked_count| Check {
            checked_count,
            ..Check::new(&CheckPieces {
                torrent: Entity::PLACEHOLDER,
                doubtful: todo.to_vec(),
                good: Bitfield::new(5),
                rewrite: Bitfield::new(5),
            })
        };
        assert_eq!(check(&[0, 1, 2, 3, 4], 0).checked_count(), 0);
        assert_eq!(check(&[3, 4], 1).checked_count(), 4);
    }

    /// At least one piece is read, and no more than the memory takes.
    #[test]
    fn pieces_are_read_within_the_memory() {
        for (limit, count) in [(1, 1), (LEN, 1), (LEN + 1, 2), (9 * LEN, 3)] {
            let (mut bed, _) = bed();
            bed.open_port::<DiskRequest, DiskEvent>(Vec::new());
            bed.world.resource_mut::<Settings>().storage.check_memory_bytes = limit;
            let storage = Storage {
                id: ecs_torrent_components::ids::StorageId(1),
                root: "/".into(),
            };
            let mut check = bed.get_mut::<Check>(bed.torrent);
            check.todo = vec![0, 1, 2];
            bed.world.entity_mut(bed.torrent).insert(storage);
            let torrent = bed.torrent;
            let mut queue = bed.world.resource_mut::<CheckQueue>();
            queue.torrents.push_back(torrent);
            queue.used_bytes = 0;
            bed.run(read_pieces);
            assert_eq!(bed.world.resource::<DiskPort>().outgoing().len(), count);
        }
    }

    #[test]
    fn nothing_runs_while_nothing_is_checked() {
        let mut bed = Bed::new(CheckingPlugin);
        bed.world.init_resource::<Messages<LifecycleChanged>>();
        let torrent = bed.torrent;
        assert!(!bed.holds(has_checks));
        bed.world.resource_mut::<CheckQueue>().used_bytes = 1;
        assert!(bed.holds(has_checks));
        *bed.world.resource_mut::<CheckQueue>() = CheckQueue::default();
        bed.world.resource_mut::<CheckQueue>().torrents.push_back(torrent);
        assert!(bed.holds(has_checks));
        *bed.world.resource_mut::<CheckQueue>() = CheckQueue::default();
        bed.world.write_message(LifecycleChanged {
            torrent,
            from: Lifecycle::Checking,
            to: Lifecycle::Paused,
        });
        assert!(bed.holds(has_checks), "the check ends");
    }

    /// An answer to a job that is over changes nothing, nor does one to a job of an earlier check.
    #[test]
    fn late_answers_are_ignored() {
        let (mut bed, jobs) = bed();
        finish(&mut bed, jobs[0], REWRITE, Ok(DiskDone::Written));
        for purpose in [READ, REWRITE] {
            finish(&mut bed, jobs[0], purpose, Err(error(ErrorKind::UnexpectedEof)));
            assert_eq!(result(&mut bed), (0, 1, 2 * LEN));
        }
        bed.get_mut::<Check>(bed.torrent).running.clear();
        finish(&mut bed, jobs[1], READ, Err(error(ErrorKind::UnexpectedEof)));
        assert_eq!(result(&mut bed), (0, 1, LEN), "its memory is released all the same");
    }
}
