//! Readers: users read files of torrents that are still downloading.
//!
//! A read is answered as soon as the piece of its first byte is held; the bytes come from the disk, like those for
//! peers. Meanwhile the pieces ahead of the reader have deadlines ([`PieceDeadlines`]), and the picker requests them
//! first. A reader that does not read for a while has no such pieces. A torrent that no longer runs ends its readers.

mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use bevy_platform::collections::HashMap;
use bevy_platform::collections::hash_map::Entry;
use bytes::Bytes;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{CommandQueue, Reply, TorrentNotFound};
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::lifecycle::Readiness;
use ecs_torrent_components::messages::{
    FailTorrent, LifecycleChanged, PieceConfirmed, PieceStored, PiecesKnown, WantedChanged,
};
use ecs_torrent_components::random::Random;
use ecs_torrent_components::rate::Rate;
use ecs_torrent_components::readers::{
    OpenReader, OpenedReader, PieceDeadlines, ReadError, ReadFile, ReaderCommand, ReaderId,
};
use ecs_torrent_components::settings::{ReaderSettings, Settings, seconds};
use ecs_torrent_components::torrent::{Content, Have, Lifecycle, Storage, Torrent, TorrentIndex};
use ecs_torrent_components::unverified::{Unverified, VerifyRequest, VerifyRequests, is_unverified};
use ecs_torrent_components::wanted::{FileChoice, WantedPieces, is_skipped};
use ecs_torrent_engine::jobs::Jobs;
use ecs_torrent_engine::port::Purpose;
use ecs_torrent_engine::ports::DiskPort;
use ecs_torrent_engine::ports::disk::{DiskDone, DiskRequest, ReadPurpose};
use ecs_torrent_engine::purpose;
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::geometry::{Geometry, Span};
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::time::Timestamp;
use rand::Rng;

use self::window::{NextRead, Window};
use crate::picking::Supply;
use crate::{DecideSet, uploading};

/// Serves readers of files.
pub struct ReadersPlugin;

impl Plugin for ReadersPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<CommandQueue<ReaderCommand>>()
            .init_resource::<Readers>()
            .add_systems(Tick, serve_readers.run_if(has_readers).in_set(DecideSet::Readers));
    }
}

/// The reads at the disk for readers.
pub const READS: Purpose = purpose!("read for readers");

/// All readers.
#[derive(Resource, Debug, Default)]
pub struct Readers {
    open: BTreeMap<ReaderId, Reader>,
    by_torrent: HashMap<Entity, BTreeSet<ReaderId>>,
    reads: Jobs<DiskRead>,
    checks: Deadlines<ReaderId>,
}

impl Readers {
    /// Returns the number of readers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether there is no reader.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    fn insert(&mut self, id: ReaderId, reader: Reader) {
        self.by_torrent.entry(reader.torrent).or_default().insert(id);
        self.open.insert(id, reader);
    }

    fn remove(&mut self, id: ReaderId) -> Option<Reader> {
        let reader = self.open.remove(&id)?;
        if let Entry::Occupied(mut of_torrent) = self.by_torrent.entry(reader.torrent) {
            of_torrent.get_mut().remove(&id);
            if of_torrent.get().is_empty() {
                of_torrent.remove();
            }
        }
        Some(reader)
    }

    /// Returns the readers of a torrent.
    fn of(&self, torrent: Entity) -> impl Iterator<Item = &Reader> + '_ {
        let ids = self.by_torrent.get(&torrent).into_iter().flatten();
        ids.filter_map(|id| self.open.get(id))
    }

    /// Schedules the next check of a reader, unless an earlier one is scheduled.
    fn schedule_check(&mut self, id: ReaderId, settings: &ReaderSettings) {
        let Some(reader) = self.open.get_mut(&id) else { return };
        let at = reader.next_check(settings);
        if reader.check_at.is_none_or(|earlier| at < earlier) {
            reader.check_at = Some(at);
            self.checks.set(at, id);
        }
    }

    /// Returns the pieces that the readers of a torrent wait for or read next, with their deadlines.
    pub fn deadlines_of(&self, torrent: Entity) -> impl Iterator<Item = (Timestamp, u32)> + '_ {
        self.of(torrent).flat_map(|reader| reader.window.deadlines())
    }

    /// Returns the bytes that each reader of a torrent may still read: those from its place to the end of its file, as
    /// offsets in the torrent. A reader that has not read yet, or that has ended, has none.
    pub fn places_of(&self, torrent: Entity) -> impl Iterator<Item = Range<u64>> + '_ {
        let reading = self
            .of(torrent)
            .filter(|reader| reader.has_read && reader.ended.is_none());
        reading.map(|reader| reader.position..reader.bytes.end)
    }
}

/// The channel of the answer to a read.
type ReadReply = Reply<Result<Bytes, ReadError>>;

/// One reader.
#[derive(Debug)]
struct Reader {
    torrent: Entity,
    hash: InfoHash,
    name: Arc<str>,
    path: Box<str>,
    /// The bytes of the file in the torrent.
    bytes: Range<u64>,
    waiting: Option<AwaitedRead>,
    /// Whether the disk reads for this reader.
    is_reading: bool,
    /// Whether the caller has read anything.
    has_read: bool,
    /// The offset in the torrent from which the next read is expected.
    position: u64,
    window: Window,
    /// The bytes that were read.
    rate: Rate,
    /// When the latest read began or ended.
    used: Timestamp,
    /// When the reader is checked for idleness, if that is scheduled.
    check_at: Option<Timestamp>,
    /// The reason why the reader has ended, until the caller gets it.
    ended: Option<ReadError>,
}

/// A read that waits for its piece.
#[derive(Debug)]
struct AwaitedRead {
    /// Offset in the torrent.
    offset: u64,
    len: u32,
    since: Timestamp,
    reply: ReadReply,
}

/// A read at the disk.
#[derive(Debug)]
struct DiskRead {
    reader: ReaderId,
    torrent: Entity,
    name: Arc<str>,
    span: Span,
    reply: ReadReply,
}

impl Reader {
    fn is_idle(&self, now: Timestamp, settings: &ReaderSettings) -> bool {
        self.waiting.is_none() && !self.is_reading && self.used + seconds(settings.idle_s) <= now
    }

    /// Returns when the reader is idle, or when its read has taken too long.
    fn next_check(&self, settings: &ReaderSettings) -> Timestamp {
        let idle_at = self.used + seconds(settings.idle_s);
        let late_at = self
            .waiting
            .as_ref()
            .map(|waiting| waiting.since + seconds(settings.timeout_s));
        late_at.unwrap_or(idle_at)
    }

    /// Ends the reader. The caller gets the reason now, or at its next read.
    fn end(&mut self, error: ReadError) {
        self.window = Window::default();
        match self.waiting.take() {
            Some(waiting) => {
                waiting.reply.send(Err(error.clone()));
                self.ended = Some(ReadError::Closed);
            }
            None => self.ended = Some(error),
        }
    }
}

/// The pieces of a torrent, as its readers see them.
struct Pieces<'a> {
    geometry: &'a Geometry,
    have: &'a Bitfield,
    unverified: Option<&'a Unverified>,
    wanted: Option<&'a WantedPieces>,
}

impl Pieces<'_> {
    fn is_wanted(&self, piece: u32) -> bool {
        self.wanted.is_none_or(|wanted| wanted.is_wanted(piece))
    }

    /// Returns the end of the verified bytes from `bytes.start` on, at most `bytes.end`.
    fn verified_until(&self, bytes: Range<u64>) -> u64 {
        let missing = self
            .geometry
            .pieces_of(bytes.clone())
            .find(|piece| !self.have.contains(*piece) || is_unverified(self.unverified, *piece));
        missing.map_or(bytes.end, |missing| {
            self.geometry.piece_offset(missing).max(bytes.start)
        })
    }
}

impl Reader {
    /// Refuses to wait for a piece that is not wanted: it is never downloaded.
    fn refuse_unwanted(&self, pieces: &Pieces) -> Result<(), ReadError> {
        let Some(AwaitedRead { offset, .. }) = self.waiting else {
            return Ok(());
        };
        let mut first = pieces.geometry.pieces_of(offset..offset + 1);
        match first.any(|piece| !pieces.have.contains(piece) && !pieces.is_wanted(piece)) {
            true => Err(ReadError::Skipped {
                torrent: self.name.clone(),
                path: self.path.clone(),
            }),
            false => Ok(()),
        }
    }

    /// Returns the piece of the waiting read's first byte, if it is held without a check.
    fn unverified_piece(&self, pieces: &Pieces) -> Option<u32> {
        let AwaitedRead { offset, .. } = *self.waiting.as_ref()?;
        let piece = pieces.geometry.pieces_of(offset..offset + 1).next()?;
        is_unverified(pieces.unverified, piece).then_some(piece)
    }

    /// Takes the waiting read, if its first byte is verified and the disk does not read for this reader already.
    /// Returns the bytes to read.
    fn next_read(&mut self, pieces: &Pieces) -> Option<(Span, ReadReply)> {
        let AwaitedRead { offset, len, .. } = *self.waiting.as_ref().filter(|_| !self.is_reading)?;
        let end = pieces.verified_until(offset..(offset + u64::from(len)).min(self.bytes.end));
        // At most `len` bytes.
        let len = u32::try_from(end - offset).ok().filter(|len| *len > 0)?;
        self.is_reading = true;
        let waiting = self.waiting.take()?;
        Some((Span { offset, len }, waiting.reply))
    }

    /// Moves the window to the place of the next read. A reader that has not read yet, or not for a while, has none.
    fn move_window(&mut self, now: Timestamp, pieces: &Pieces, settings: &ReaderSettings) {
        if !self.has_read || self.is_idle(now, settings) {
            self.window = Window::default();
            return;
        }
        let next = NextRead {
            bytes: self.position..self.bytes.end,
            is_waiting: self.waiting.is_some(),
            bytes_per_s: self.rate.at(now),
        };
        let is_missing = |piece: u32| !pieces.have.contains(piece) && pieces.is_wanted(piece);
        self.window
            .follow(now, &next, (pieces.geometry, settings.window_bytes), is_missing);
    }
}

/// Returns whether there is a reader, or a command about one.
fn has_readers(queue: Res<CommandQueue<ReaderCommand>>, readers: Res<Readers>) -> bool {
    !queue.0.is_empty() || !readers.is_empty() || !readers.reads.is_empty()
}

/// The parts of a torrent that readers use.
type Read = (
    &'static Torrent,
    &'static Lifecycle,
    &'static Readiness,
    Option<&'static Content>,
    Option<&'static Have>,
    Option<&'static Storage>,
    (
        Option<&'static FileChoice>,
        Option<&'static WantedPieces>,
        Option<&'static Unverified>,
    ),
);

/// The messages after which readers are examined.
#[derive(SystemParam)]
struct Changes<'w, 's> {
    stored: MessageReader<'w, 's, PieceStored>,
    confirmed: MessageReader<'w, 's, PieceConfirmed>,
    known: MessageReader<'w, 's, PiecesKnown>,
    wanted: MessageReader<'w, 's, WantedChanged>,
    lifecycle: MessageReader<'w, 's, LifecycleChanged>,
}

impl Changes<'_, '_> {
    /// Returns the changed torrents that have readers.
    fn torrents(&mut self, readers: &Readers) -> Vec<Entity> {
        let stored = self.stored.read().map(|stored| stored.torrent);
        let confirmed = self.confirmed.read().map(|confirmed| confirmed.torrent);
        let known = self.known.read().map(|known| known.torrent);
        let wanted = self.wanted.read().map(|wanted| wanted.torrent);
        let lifecycle = self.lifecycle.read().map(|changed| changed.torrent);
        let changed = stored.chain(confirmed).chain(known).chain(wanted).chain(lifecycle);
        changed
            .filter(|torrent| readers.by_torrent.contains_key(torrent))
            .collect()
    }
}

/// The parameters of serving readers.
#[derive(SystemParam)]
struct ReaderParams<'w, 's> {
    commands: Commands<'w, 's>,
    clock: Res<'w, Clock>,
    wakeup: Res<'w, Wakeup>,
    settings: Res<'w, Settings>,
    random: ResMut<'w, Random>,
    index: Res<'w, TorrentIndex>,
    readers: ResMut<'w, Readers>,
    disk: ResMut<'w, DiskPort>,
    supply: ResMut<'w, Supply>,
    verify: ResMut<'w, VerifyRequests>,
    failed: MessageWriter<'w, FailTorrent>,
    torrents: Query<'w, 's, Read>,
    deadlines: Query<'w, 's, &'static PieceDeadlines>,
}

/// Carries out commands, answers reads whose pieces are held, and moves the windows of readers.
fn serve_readers(mut queue: ResMut<CommandQueue<ReaderCommand>>, mut changes: Changes, mut params: ReaderParams) {
    let mut touched = changes.torrents(&params.readers);
    for command in queue.0.drain(..) {
        match command {
            ReaderCommand::Open(command) => params.open(command, &mut touched),
            ReaderCommand::Read(command) => params.read(command, &mut touched),
            ReaderCommand::Close(reader) => {
                let closed = params.readers.remove(reader);
                touched.extend(closed.map(|reader| reader.torrent));
            }
        }
    }
    params.collect(&mut touched);
    params.check_due(&mut touched);
    touched.sort_unstable();
    touched.dedup();
    for torrent in touched {
        params.examine(torrent);
        params.publish(torrent);
    }
    params.wakeup.at_next(params.readers.checks.next());
}

impl ReaderParams<'_, '_> {
    fn open(&mut self, command: OpenReader, touched: &mut Vec<Entity>) {
        let opened = self.new_reader(command.torrent, command.file).and_then(|reader| {
            self.make_room(touched)?;
            Ok(reader)
        });
        let opened = opened.map(|reader| {
            let id = ReaderId(self.random.generator().next_u64());
            let opened = OpenedReader {
                id,
                path: reader.path.clone(),
                length: reader.bytes.end - reader.bytes.start,
            };
            self.readers.insert(id, reader);
            opened
        });
        command.reply.send(opened);
    }

    fn new_reader(&self, hash: InfoHash, file: u32) -> Result<Reader, ReadError> {
        let listed = self
            .index
            .get(hash)
            .and_then(|entity| Some((entity, self.torrents.get(entity).ok()?)));
        let Some((entity, (torrent, lifecycle, _, content, have, _, (choice, ..)))) = listed else {
            return Err(TorrentNotFound(hash).into());
        };
        let name = torrent.name.clone();
        let (Some(content), Some(have)) = (content, have) else {
            return Err(ReadError::NoMetadata(name));
        };
        refuse_ended(lifecycle, &name)?;
        let info = &content.0.info;
        let entry = info.files.files().get(file as usize).filter(|entry| entry.is_stored());
        let Some(entry) = entry else {
            return Err(ReadError::NoSuchFile { torrent: name, file });
        };
        let bytes = entry.offset..entry.end();
        if is_skipped(choice, file as usize)
            && !info.geometry.pieces_of(bytes.clone()).all(|piece| have.contains(piece))
        {
            let path = (&*entry.path).into();
            return Err(ReadError::Skipped { torrent: name, path });
        }
        Ok(Reader {
            torrent: entity,
            hash,
            name,
            path: (&*entry.path).into(),
            position: bytes.start,
            bytes,
            waiting: None,
            is_reading: false,
            has_read: false,
            window: Window::default(),
            rate: Rate::default(),
            used: self.clock.now(),
            check_at: None,
            ended: None,
        })
    }

    /// Makes room for a new reader: closes a reader that has ended, or the one that has been idle longest.
    fn make_room(&mut self, touched: &mut Vec<Entity>) -> Result<(), ReadError> {
        let (now, settings) = (self.clock.now(), &self.settings.readers);
        let readers = &mut *self.readers;
        while readers.len() >= settings.max_readers {
            let idle = readers
                .open
                .iter()
                .filter(|(_, reader)| reader.ended.is_some() || reader.is_idle(now, settings));
            let idle = idle.min_by_key(|(_, reader)| (reader.ended.is_none(), reader.used));
            let Some((&id, _)) = idle else {
                return Err(ReadError::TooMany(readers.len()));
            };
            touched.extend(readers.remove(id).map(|reader| reader.torrent));
        }
        Ok(())
    }

    fn read(&mut self, command: ReadFile, touched: &mut Vec<Entity>) {
        let now = self.clock.now();
        let Some(reader) = self.readers.open.get_mut(&command.reader) else {
            return command.reply.send(Err(ReadError::Closed));
        };
        if let Some(error) = reader.ended.take() {
            self.readers.remove(command.reader);
            return command.reply.send(Err(error));
        }
        reader.used = now;
        let offset = reader.bytes.start.saturating_add(command.offset);
        if offset >= reader.bytes.end || command.len == 0 {
            return command.reply.send(Ok(Bytes::new()));
        }
        reader.position = offset;
        reader.has_read = true;
        reader.waiting = Some(AwaitedRead {
            offset,
            len: command.len.min(self.settings.readers.read_bytes),
            since: now,
            reply: command.reply,
        });
        touched.push(reader.torrent);
        self.readers.schedule_check(command.reader, &self.settings.readers);
    }

    /// Takes the bytes that the disk has read, and answers with them.
    fn collect(&mut self, touched: &mut Vec<Entity>) {
        let now = self.clock.now();
        for event in self.disk.take(READS) {
            let Some(read) = self.readers.reads.take(event.tag) else {
                continue;
            };
            let reader = self.readers.open.get_mut(&read.reader);
            let answer = match event.outcome {
                Ok(DiskDone::Read(data)) => Ok(data),
                Ok(_) => continue,
                Err(error) => {
                    self.failed.write(uploading::fault(read.torrent, &error, read.span));
                    let (torrent, reason) = (read.name, error.to_string().into());
                    Err(ReadError::Disk { torrent, reason })
                }
            };
            if let Some(reader) = reader {
                reader.is_reading = false;
                reader.used = now;
                match &answer {
                    Ok(data) => {
                        reader.rate.add(now, data.len() as u64);
                        if reader.waiting.is_none() {
                            reader.position = read.span.end();
                        }
                    }
                    Err(error) => reader.end(error.clone()),
                }
                touched.push(reader.torrent);
                self.readers.schedule_check(read.reader, &self.settings.readers);
            }
            read.reply.send(answer);
        }
    }

    /// Examines the readers whose check is due.
    fn check_due(&mut self, touched: &mut Vec<Entity>) {
        let (now, settings) = (self.clock.now(), &self.settings.readers);
        while let Some(id) = self.readers.checks.pop_due(now) {
            let Some(reader) = self.readers.open.get_mut(&id) else {
                continue;
            };
            if reader.check_at.take_if(|at| *at <= now).is_none() {
                continue;
            }
            if let Some(late) = reader
                .waiting
                .take_if(|waiting| waiting.since + seconds(settings.timeout_s) <= now)
            {
                let error = match self.torrents.get(reader.torrent) {
                    Ok((_, lifecycle, ..)) => ReadError::TimedOut {
                        path: reader.path.clone(),
                        offset: late.offset - reader.bytes.start,
                        seconds: settings.timeout_s,
                        state: lifecycle.state(),
                    },
                    Err(_) => TorrentNotFound(reader.hash).into(),
                };
                late.reply.send(Err(error));
            }
            touched.push(reader.torrent);
            if !reader.is_idle(now, settings) && reader.ended.is_none() {
                let at = reader.next_check(settings).max(now + LEAST_CHECK_INTERVAL);
                reader.check_at = Some(at);
                self.readers.checks.set(at, id);
            }
        }
    }

    /// Ends the readers of a torrent that does not run, begins the reads whose pieces are held, and moves the windows.
    fn examine(&mut self, entity: Entity) {
        let (now, settings) = (self.clock.now(), &self.settings.readers);
        let Readers {
            open,
            by_torrent,
            reads,
            ..
        } = &mut *self.readers;
        let found = self.torrents.get(entity);
        for &id in by_torrent.get(&entity).into_iter().flatten() {
            let Some(reader) = open.get_mut(&id).filter(|reader| reader.ended.is_none()) else {
                continue;
            };
            let Ok((_, lifecycle, readiness, Some(content), Some(have), storage, (_, wanted, unverified))) = found
            else {
                reader.end(TorrentNotFound(reader.hash).into());
                continue;
            };
            let geometry = &content.0.info.geometry;
            let pieces = Pieces {
                geometry,
                have,
                unverified,
                wanted,
            };
            if let Err(error) = refuse_ended(lifecycle, &reader.name).and_then(|()| reader.refuse_unwanted(&pieces)) {
                reader.end(error);
                continue;
            }
            if let Some(piece) = reader.unverified_piece(&pieces) {
                self.verify.0.push(VerifyRequest {
                    torrent: entity,
                    piece,
                    peer: None,
                });
                self.wakeup.at(now);
            }
            if let Some(storage) = storage.filter(|_| *readiness == Readiness::Ready)
                && let Some((span, reply)) = reader.next_read(&pieces)
            {
                let (reader, torrent, name) = (id, entity, reader.name.clone());
                let read = DiskRead {
                    reader,
                    torrent,
                    name,
                    span,
                    reply,
                };
                self.disk.push(DiskRequest::Read {
                    tag: reads.add(READS, read),
                    storage: storage.id,
                    span,
                    purpose: ReadPurpose::Serve,
                });
            }
            reader.move_window(now, &pieces, settings);
        }
    }

    /// Gives a torrent the deadlines that follow from the windows of its readers.
    fn publish(&mut self, torrent: Entity) {
        let after = PieceDeadlines::new(self.readers.deadlines_of(torrent));
        let before = self.deadlines.get(torrent);
        let is_changed = before.map_or(!after.is_empty(), |before| *before != after);
        let Ok(mut entity) = self.commands.get_entity(torrent) else {
            return;
        };
        if is_changed && after.is_empty() {
            entity.try_remove::<PieceDeadlines>();
        } else if is_changed {
            entity.try_insert(after);
            // Peers for which there was nothing to request may have something now.
            self.supply.offer(torrent);
        }
    }
}

/// Minimum time between two checks of a reader.
const LEAST_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Returns an error if the readers of a torrent in this state end.
fn refuse_ended(lifecycle: &Lifecycle, name: &Arc<str>) -> Result<(), ReadError> {
    match lifecycle {
        Lifecycle::Paused | Lifecycle::Moving | Lifecycle::Failed { .. } | Lifecycle::Stopping { .. } => {
            Err(ReadError::NotRunning {
                torrent: name.clone(),
                state: lifecycle.state(),
            })
        }
        _ => Ok(()),
    }
}
