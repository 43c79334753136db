//! Opening torrents: the session and the files on the disk determine the held pieces.
//!
//! The session is loaded first: it says where the data is. Then the files are inspected. Files that match the session
//! are trusted; for files that differ, their pieces are hashed; without a session, everything on the disk is hashed.

use bevy_ecs::entity::EntityHashSet;
use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::candidates::{CandidateSource, Candidates};
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::commands::AddError;
use ecs_torrent_components::ids::StorageId;
use ecs_torrent_components::messages::{FailTorrent, Remedy, TorrentStarted};
use ecs_torrent_components::session::{FileStamp, Session};
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{
    Activity, Content, Counters, Have, Layout, Lifecycle, Partials, Storage, Torrent, TorrentIndex, TorrentTrackers,
};
use ecs_torrent_components::tracker::Tracker;
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::disk::{
    DiskDone, DiskError, DiskRequest, FileClaims, FoundFile, FoundFiles, Provenance,
};
use ecs_torrent_engine::ports::state::{Loaded, StateDone, StateEvent, StateRequest};
use ecs_torrent_engine::ports::{DiskPort, StatePort};
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::compact::Family;
use ecs_torrent_protocol::files::FileTable;
use ecs_torrent_protocol::geometry::Geometry;
use ecs_torrent_protocol::hash::InfoHash;

use super::adding::{Adds, StorageIds};
use super::naming::renamed;
use crate::checking::{Check, CheckQueue};
use crate::ownership::{Candidate, FileRegistry, FolderKeys, Holder, find_conflict};
use crate::sessions::{SaveTorrent, SessionState};
use crate::storage::fault;

const LOAD: Purpose = Purpose("load session");
const OPEN: Purpose = Purpose("open files");
const PREPARE: Purpose = Purpose("prepare files");

/// The data of a torrent is fully known: the torrent can begin to download, or to seed.
#[derive(Message, Debug, Clone)]
pub struct StartTorrent {
    /// The torrent.
    pub torrent: Entity,
}

/// On a torrent that must not download: its user said that all of its data is there.
#[derive(Component, Debug)]
pub(crate) struct RequiresComplete;

/// On a torrent that is being opened.
#[derive(Component, Debug, Default)]
pub(super) struct Opening {
    /// The download folder is fixed, whatever the session says.
    pub(super) has_root: bool,
    /// The torrent was resumed: no user added it in this run.
    pub(super) is_resumed: bool,
    /// The torrent was opened before in this run: its counters are newer than the session.
    pub(super) is_again: bool,
    /// An earlier save holds something about the torrent that applies to its files.
    pub(super) is_known: bool,
    /// The user has added the torrent again, with other options.
    pub(super) is_renewed: bool,
    /// The session, once it is loaded.
    pub(super) session: Option<Session>,
}

impl Opening {
    /// State of a torrent that has been open before.
    pub(super) fn again() -> Self {
        Self {
            has_root: true,
            is_resumed: false,
            is_again: true,
            ..Self::default()
        }
    }

    /// State of a failed torrent that is added again.
    pub(super) fn renewed() -> Self {
        Self {
            is_renewed: true,
            ..Self::again()
        }
    }

    /// Whether existing files belong to the user unless the session or the options say otherwise.
    fn is_new(&self) -> bool {
        self.is_renewed || !(self.is_resumed || self.is_again || self.is_known)
    }
}

/// Sessions and metainfo loaded for torrents that were added from the state folder.
#[derive(Resource, Debug, Default)]
pub(super) struct Arrived(Vec<(Entity, Loaded)>);

/// Begins and continues the opening of torrents.
#[derive(SystemParam)]
pub(super) struct Opener<'w> {
    state: ResMut<'w, StatePort>,
    disk: ResMut<'w, DiskPort>,
    storages: ResMut<'w, StorageIds>,
    arrived: ResMut<'w, Arrived>,
}

impl Opener<'_> {
    pub(super) fn next_storage(&mut self) -> StorageId {
        self.storages.next()
    }

    /// Takes the events of the state folder for one purpose.
    pub(super) fn take(&mut self, purpose: Purpose) -> Vec<StateEvent> {
        self.state.take(purpose).collect()
    }

    /// Requests a torrent's session.
    pub(super) fn load(&mut self, entity: Entity, torrent: &Torrent) {
        self.state.push(StateRequest::Load {
            tag: JobTag::new(LOAD, entity),
            torrent: torrent.id(),
            with_metainfo: false,
            is_peek: false,
        });
    }

    /// Requests the session and metainfo of a torrent that is not listed.
    pub(super) fn load_stopped(&mut self, tag: JobTag, torrent: InfoHash) {
        self.state.push(StateRequest::Load {
            tag,
            torrent,
            with_metainfo: true,
            is_peek: false,
        });
    }

    /// Deletes everything that the state folder has of a torrent.
    pub(super) fn forget(&mut self, tag: JobTag, torrent: InfoHash) {
        self.state.push(StateRequest::Remove { tag, torrent });
    }

    /// Opens a torrent with what was loaded before it was added.
    pub(super) fn hand_over(&mut self, entity: Entity, loaded: Loaded) {
        self.arrived.0.push((entity, loaded));
    }

    /// Inspects the files, under a new storage name: results of jobs that still run under an old name are ignored.
    fn open(
        &mut self,
        entity: Entity,
        storage: &mut Storage,
        session: Option<&Session>,
        files: &FileTable,
        claims: FileClaims,
    ) {
        self.disk.push(DiskRequest::Close { storage: storage.id });
        storage.id = self.storages.next();
        self.disk.push(DiskRequest::Open {
            tag: JobTag::new(OPEN, entity),
            storage: storage.id,
            root: storage.root.clone(),
            volume: session.and_then(|session| session.volume.clone()),
            files: files.clone(),
            claims,
        });
    }
}

/// The parts of a torrent that its session determines.
#[derive(bevy_ecs::query::QueryData)]
#[query_data(mutable)]
pub(super) struct Resumed {
    torrent: &'static mut Torrent,
    layout: &'static Layout,
    content: &'static mut Content,
    opening: &'static mut Opening,
    storage: &'static mut Storage,
    counters: &'static mut Counters,
    activity: &'static mut Activity,
    candidates: &'static mut Candidates,
    state: &'static mut SessionState,
    trackers: Option<&'static TorrentTrackers>,
}

pub(super) fn collect_loaded(
    mut commands: Commands,
    mut opener: Opener,
    settings: Res<Settings>,
    mut failed: MessageWriter<FailTorrent>,
    mut adds: ResMut<Adds>,
    mut registry: ResMut<FileRegistry>,
    mut torrents: Query<Resumed>,
    mut trackers: Query<&mut Tracker>,
) {
    let mut arrived = std::mem::take(&mut opener.arrived.0);
    for event in opener.take(LOAD) {
        match event.outcome {
            Ok(StateDone::Loaded(loaded)) => arrived.push((event.tag.owner, *loaded)),
            Ok(_) => {}
            // The contents of the session are unknown, and must not be overwritten.
            Err(error) => {
                let torrent = event.tag.owner;
                let answer = torrents.get(torrent).map(|resumed| AddError::Unsaved {
                    torrent: resumed.torrent.name.clone(),
                    reason: error.0.clone(),
                });
                if let Ok(answer) = answer {
                    adds.answer(torrent, &Err(answer));
                }
                let (reason, remedy) = (error.0, Remedy::Wait);
                failed.write(FailTorrent {
                    torrent,
                    reason,
                    remedy,
                });
            }
        }
    }
    for (torrent, loaded) in arrived {
        if let Ok(mut resumed) = torrents.get_mut(torrent) {
            resumed.take_in(loaded, torrent, &mut commands, &mut opener, &settings, &mut trackers);
            // A new torrent claims no file before it is known to be allowed to.
            if !resumed.opening.is_new() {
                resumed.register(&mut registry);
            }
        }
    }
}

impl ResumedItem<'_, '_> {
    /// Applies a session, and continues with the files.
    pub(super) fn take_in(
        &mut self,
        loaded: Loaded,
        entity: Entity,
        commands: &mut Commands,
        opener: &mut Opener,
        settings: &Settings,
        trackers: &mut Query<&mut Tracker>,
    ) {
        let name = self.torrent.name.clone();
        if let Some(reason) = loaded.set_aside {
            tracing::warn!(torrent = %name, "its saved state was set aside and its data is checked: {reason}");
        }
        let Layout(geometry) = *self.layout;
        let fits = |session: &Session| {
            (session.total_size, session.piece_length, session.pieces)
                == (geometry.total_size(), geometry.piece_length(), geometry.piece_count())
        };
        let session = loaded.session.filter(|session| {
            let fits = fits(session);
            if !fits {
                tracing::warn!(torrent = %name, "its saved state has other sizes, and is not used");
            }
            fits
        });
        if let Some(session) = &session {
            if !self.opening.is_again {
                self.recall(session, settings, trackers);
            }
            if session.require_complete && self.opening.is_resumed {
                commands.entity(entity).insert(RequiresComplete);
            }
        }
        let known_root = session.as_ref().map(|session| session.root.clone());
        if let Some(root) = known_root.or(loaded.salvage.root).filter(|_| !self.opening.has_root) {
            self.storage.root = root;
        }
        // A session about files in another folder is of no use here.
        let session = session.filter(|session| {
            session.root == self.storage.root || session.resolved.as_ref() == Some(&self.storage.root)
        });
        let session = session.filter(|session| self.state.has_name_of(session));
        if let Some(name) = session.as_ref().and_then(|session| session.renamed.as_deref())
            && *self.torrent.name != *name
        {
            self.content.0 = renamed(&self.content.0, name);
            self.torrent.name = name.into();
        }
        let salvaged = loaded
            .salvage
            .created
            .to_set(self.content.0.info.files.files().len() as u32);
        let salvaged = salvaged.filter(|_| session.is_none() && !self.opening.has_root);
        self.opening.is_known = session.is_some() || salvaged.as_ref().is_some_and(|created| created.count() > 0);
        self.state
            .note_loaded(session.as_ref(), salvaged.as_ref(), loaded.has_metainfo);
        let claims = self.state.claims(session.as_ref());
        let files = &self.content.0.info.files;
        opener.open(entity, &mut self.storage, session.as_ref(), files, claims);
        self.opening.session = session;
    }

    /// Registers the files that the torrent uses, as far as its session tells.
    fn register(&self, registry: &mut FileRegistry) {
        let session = self.opening.session.as_ref();
        let resolved = session.and_then(|session| session.resolved.as_deref());
        let ids = session.map(|session| session.ids.as_slice()).unwrap_or_default();
        let keys = FolderKeys::new(resolved.unwrap_or(&self.storage.root));
        let keys = keys.of_table(&self.content.0.info.files, |index| ids.get(index).copied().flatten());
        registry.set(self.torrent.id(), &self.torrent.name, keys);
    }

    /// Restores the state that does not depend on the files.
    fn recall(&mut self, session: &Session, settings: &Settings, trackers: &mut Query<&mut Tracker>) {
        *self.counters = Counters {
            uploaded: session.uploaded,
            downloaded: session.downloaded,
            corrupt: session.corrupt,
            dropped: session.dropped,
            wasted: session.wasted,
        };
        self.activity.before = std::time::Duration::from_secs(session.seconds_active);
        for peer in session.peers.iter().take(settings.session.max_peers) {
            let max = settings.peers.max_candidates;
            self.candidates.add(*peer, CandidateSource::Session, 0, max);
        }
        let entities = self.trackers.into_iter().flat_map(RelationshipTarget::iter);
        let mut known = trackers.iter_many_mut(entities);
        while let Some(Ok(mut tracker)) = known.fetch_next() {
            let Some(saved) = session.trackers.iter().find(|saved| *saved.url == *tracker.url) else {
                continue;
            };
            tracker.seeders = saved.seeders;
            tracker.leechers = saved.leechers;
            for family in Family::ALL {
                tracker.route_mut(family).was_completed = saved.was_completed;
            }
        }
    }
}

/// The combined result of a session and the files.
#[derive(Debug, PartialEq, Eq)]
struct Findings {
    /// Pieces that are trusted.
    have: Bitfield,
    /// Pieces that have to be hashed.
    doubtful: Vec<u32>,
}

/// Trusts a session where each file matches it; pieces in other files are in doubt.
fn judge(session: Option<&Session>, stamps: &[Option<FileStamp>], geometry: &Geometry, files: &FileTable) -> Findings {
    let count = geometry.piece_count();
    let known = session.and_then(|session| Some((session, session.have.to_set(count)?)));
    let Some((session, mut have)) = known.filter(|(session, _)| session.files.len() == stamps.len()) else {
        let is_any_there = stamps.iter().flatten().any(|stamp| stamp.len > 0);
        return Findings {
            have: Bitfield::new(count),
            doubtful: if is_any_there { (0..count).collect() } else { Vec::new() },
        };
    };
    let mut in_doubt = Bitfield::new(count);
    for ((file, saved), found) in files.files().iter().zip(&session.files).zip(stamps) {
        if file.len == 0 || (saved == found && found.is_some()) {
            continue;
        }
        for piece in geometry.pieces_of(file.offset..file.end()) {
            // Where a file is absent, as the session says, only pieces that the session nevertheless calls held are in
            // doubt.
            if have.remove(piece) || saved != found {
                in_doubt.insert(piece);
            }
        }
    }
    Findings {
        have,
        doubtful: in_doubt.iter().collect(),
    }
}

/// The parts of a torrent that are decided when its files have been found.
#[derive(bevy_ecs::query::QueryData)]
#[query_data(mutable)]
pub(super) struct Opened {
    torrent: &'static Torrent,
    lifecycle: &'static mut Lifecycle,
    have: &'static mut Have,
    partials: &'static mut Partials,
    state: &'static mut SessionState,
    opening: Option<&'static mut Opening>,
    storage: &'static mut Storage,
    layout: &'static Layout,
    content: &'static Content,
    requires_complete: Has<RequiresComplete>,
}

pub(super) fn collect_opened(
    mut commands: Commands,
    mut opener: Opener,
    mut checks: ResMut<CheckQueue>,
    mut start: MessageWriter<StartTorrent>,
    mut failed: MessageWriter<FailTorrent>,
    mut save: MessageWriter<SaveTorrent>,
    mut adds: ResMut<Adds>,
    mut registry: ResMut<FileRegistry>,
    index: Res<TorrentIndex>,
    mut torrents: Query<Opened>,
) {
    let events: Vec<_> = opener.disk.take(OPEN).collect();
    for event in events {
        let entity = event.tag.owner;
        let result = match event.outcome {
            Ok(DiskDone::Opened(found)) => match find_obstacle(entity, &found, &registry, &index, &torrents) {
                Some(error) => Err((found, error)),
                None => Ok(found),
            },
            Ok(_) => continue,
            Err(error) => {
                if let Ok(mut opened) = torrents.get_mut(entity) {
                    opened.fail(entity, &error, &mut adds, &mut failed);
                    save.write(SaveTorrent { torrent: entity });
                }
                continue;
            }
        };
        let Ok(mut opened) = torrents.get_mut(entity) else {
            continue;
        };
        let (found, error) = match result {
            Ok(found) => (found, None),
            Err((found, error)) => (found, Some(error)),
        };
        let may_create = error.is_none() && !opened.requires_complete;
        let stamps: Vec<_> = found.files.iter().map(|file| file.map(|file| file.stamp)).collect();
        let files = &opened.content.0.info.files;
        opened.state.note_found(found, files, may_create);
        if *opened.lifecycle != Lifecycle::Adding {
            continue;
        }
        if error.is_none() {
            let root = opened.state.resolved().unwrap_or(&opened.storage.root);
            let keys = FolderKeys::new(root).of_table(files, |index| opened.state.id(index));
            registry.set(opened.torrent.id(), &opened.torrent.name, keys);
            let is_shared = !registry.shared_files(opened.torrent.id()).is_empty();
            if is_shared && opened.state.stop_overwriting() {
                // Another torrent uses some of the files, if only to read them: no existing file is changed.
                let session = opened.opening.as_ref().and_then(|opening| opening.session.as_ref());
                let claims = opened.state.claims(session);
                opener.open(entity, &mut opened.storage, session, files, claims);
                continue;
            }
        }
        let Some(mut opening) = opened.opening.take() else {
            continue;
        };
        commands.entity(entity).remove::<Opening>();
        if let Some(error) = error {
            match opening.is_again {
                false => adds.refuse(entity, error),
                true => {
                    let (reason, remedy) = (error.reason().into(), Remedy::None);
                    adds.answer(entity, &Err(error));
                    failed.write(FailTorrent {
                        torrent: entity,
                        reason,
                        remedy,
                    });
                }
            }
            continue;
        }
        if opened.state.is_durable() {
            adds.answer(entity, &Ok(opened.torrent.id()));
        }
        let session = opening.session.take();
        let findings = judge(session.as_ref(), &stamps, &opened.layout.0, files);
        opened.have.0 = findings.have;
        opened.partials.0 = session
            .map(|session| partial_blocks(&session, &opened.layout.0))
            .unwrap_or_default();
        if findings.doubtful.is_empty() {
            start.write(StartTorrent { torrent: entity });
        } else {
            *opened.lifecycle = Lifecycle::Checking;
            opened.state.note_check();
            let check = Check::new(findings.doubtful, opened.have.0.clone()).rewriting(opened.state.lost().clone());
            commands.entity(entity).insert(check);
            checks.add(entity);
            save.write(SaveTorrent { torrent: entity });
        }
    }
}

impl OpenedItem<'_, '_> {
    /// Handles files that cannot be inspected: refuses a new torrent that may not have them, fails any other.
    fn fail(&mut self, entity: Entity, error: &DiskError, adds: &mut Adds, failed: &mut MessageWriter<FailTorrent>) {
        self.state.note_unopened();
        let Some(opening) = self.opening.as_ref().filter(|_| *self.lifecycle == Lifecycle::Adding) else {
            return;
        };
        if error.is_forbidden() && opening.is_new() && !opening.is_again {
            let torrent = self.torrent.name.clone();
            let reason = error.to_string().into();
            adds.refuse(entity, AddError::Forbidden { torrent, reason });
        } else {
            failed.write(fault(entity, error));
        }
    }
}

/// Returns the reason why a new torrent cannot have the files that it would write: another torrent uses one of them, or
/// an existing file is too short to be right.
fn find_obstacle(
    entity: Entity,
    found: &FoundFiles,
    registry: &FileRegistry,
    index: &TorrentIndex,
    torrents: &Query<Opened>,
) -> Option<AddError> {
    let opened = torrents.get(entity).ok()?;
    if *opened.lifecycle != Lifecycle::Adding || !opened.opening?.is_new() {
        return None;
    }
    let info = &opened.content.0.info;
    let candidate = Candidate {
        torrent: opened.torrent.id(),
        name: &opened.torrent.name,
        info,
        keys: &FolderKeys::new(&found.root),
        found: &found.files,
    };
    let holder = |torrent| {
        let other = torrents.get(index.get(torrent)?).ok()?;
        Some(Holder {
            info: &other.content.0.info,
            have: &other.have.0,
        })
    };
    let conflict = find_conflict(registry, &candidate, holder);
    if conflict.is_some() || opened.requires_complete || opened.state.may_overwrite() {
        return conflict;
    }
    let mut files = info.files.files().iter().zip(&found.files);
    let short = files.find(|(entry, file)| {
        let is_short = |file: FoundFile| file.provenance == Provenance::Found && file.stamp.len < entry.len;
        entry.is_stored() && file.is_some_and(is_short)
    });
    short.map(|(entry, _)| AddError::WouldChange {
        torrent: opened.torrent.name.clone(),
        path: entry.path.clone(),
    })
}

/// Returns the blocks that a session lists outside its held pieces.
fn partial_blocks(session: &Session, geometry: &Geometry) -> std::collections::BTreeMap<u32, Bitfield> {
    let is_piece = |partial: &&ecs_torrent_components::session::PartialPiece| partial.piece < geometry.piece_count();
    let blocks = session.partial.iter().filter(is_piece).filter_map(|partial| {
        let blocks = partial.blocks.to_set(geometry.block_count(partial.piece))?;
        Some((partial.piece, blocks))
    });
    blocks.collect()
}

/// Torrents whose files are created once a session that says so is durable. Otherwise a kill right after the creation
/// would make these files the user's.
#[derive(Resource, Debug, Default)]
pub(super) struct AwaitingClaims(EntityHashSet);

/// Prepares the files of torrents, when that is allowed.
#[derive(SystemParam)]
pub(super) struct Preparing<'w> {
    disk: ResMut<'w, DiskPort>,
    awaiting: ResMut<'w, AwaitingClaims>,
    save: MessageWriter<'w, SaveTorrent>,
    settings: Res<'w, Settings>,
}

impl Preparing<'_> {
    fn begin(&mut self, torrent: Entity, storage: &Storage, state: &SessionState) {
        self.awaiting.0.insert(torrent);
        if state.may_create() {
            self.go_on(torrent, storage, state);
        } else {
            self.save.write(SaveTorrent { torrent });
        }
    }

    /// Continues the preparation of a torrent whose session is durable.
    pub(super) fn go_on(&mut self, torrent: Entity, storage: &Storage, state: &SessionState) {
        if state.may_create() && self.awaiting.0.remove(&torrent) {
            self.disk.push(DiskRequest::Prepare {
                tag: JobTag::new(PREPARE, torrent),
                storage: storage.id,
                is_preallocated: self.settings.storage.preallocate,
            });
        }
    }

    /// Handles a session that cannot be written; returns true if the torrent waits for it.
    pub(super) fn gives_up(&mut self, torrent: Entity) -> bool {
        self.awaiting.0.remove(&torrent)
    }
}

/// Starts torrents: a complete torrent seeds; for any other, its files are prepared first.
pub(super) fn start_torrents(
    mut start: MessageReader<StartTorrent>,
    clock: Res<Clock>,
    mut preparing: Preparing,
    registry: Res<FileRegistry>,
    mut started: MessageWriter<TorrentStarted>,
    mut failed: MessageWriter<FailTorrent>,
    mut torrents: Query<(
        (&Torrent, &Have, &Storage, &Content, &Layout),
        &mut Lifecycle,
        &mut Activity,
        &mut Partials,
        &mut SessionState,
        Option<&RequiresComplete>,
    )>,
) {
    for &StartTorrent { torrent } in start.read() {
        let Ok((known, mut lifecycle, mut activity, mut partials, mut state, requires_complete)) =
            torrents.get_mut(torrent)
        else {
            continue;
        };
        let (data, Have(have), storage, content, Layout(geometry)) = known;
        partials.0.retain(|piece, _| !have.contains(*piece));
        state.note_result(have);
        preparing.gives_up(torrent);
        let mut fail = |reason: String| {
            failed.write(FailTorrent {
                torrent,
                reason: reason.into(),
                remedy: Remedy::None,
            });
        };
        let files = &content.0.info.files;
        if have.is_full() {
            *lifecycle = Lifecycle::Seeding;
            activity.start(clock.now());
            started.write(TorrentStarted { torrent });
        } else if requires_complete.is_some() {
            let missing = have.len() - have.count();
            let root = storage.root.display();
            fail(format!(
                "{missing} of {} pieces are missing or bad in {root}",
                have.len()
            ));
        } else if let Some(index) = state.obstacle(have, files, geometry) {
            let (torrent, path) = (data.name.clone(), files.files()[index].path.clone());
            let other = registry.other_user(data.id(), index).map(|other| other.name.clone());
            let error = match other {
                Some(other) => AddError::FilesTaken { torrent, other, path },
                None => AddError::WouldChange { torrent, path },
            };
            fail(error.reason());
        } else {
            preparing.begin(torrent, storage, &state);
        }
    }
}

pub(super) fn collect_prepared(
    clock: Res<Clock>,
    mut disk: ResMut<DiskPort>,
    mut started: MessageWriter<TorrentStarted>,
    mut failed: MessageWriter<FailTorrent>,
    mut torrents: Query<(&mut Lifecycle, &mut Activity)>,
) {
    for event in disk.take(PREPARE) {
        let torrent = event.tag.owner;
        let Ok((mut lifecycle, mut activity)) = torrents.get_mut(torrent) else {
            continue;
        };
        if !matches!(*lifecycle, Lifecycle::Adding | Lifecycle::Checking) {
            continue;
        }
        match event.outcome {
            Ok(_) => {
                *lifecycle = Lifecycle::Downloading;
                activity.start(clock.now());
                started.write(TorrentStarted { torrent });
            }
            Err(error) => drop(failed.write(fault(torrent, &error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use ecs_torrent_components::session::{Runs, VERSION};
    use ecs_torrent_protocol::files::FileEntry;
    use ecs_torrent_protocol::hash::InfoHash;

    use super::*;

    const SEEN: FileStamp = FileStamp {
        len: 15,
        seconds: 7,
        nanos: 1,
    };

    /// Three files of 15 bytes over pieces of 10: the second piece is shared by the first two files.
    fn files() -> FileTable {
        let entry = |number: u64| FileEntry {
            path: number.to_string().into(),
            len: 15,
            offset: number * 15,
            attributes: Default::default(),
        };
        FileTable::new((0..3).map(entry).collect())
    }

    fn session(have: &[u32], files: [Option<FileStamp>; 3]) -> Session {
        Session {
            version: VERSION,
            info_hash: InfoHash([0; 20]),
            name: String::new(),
            renamed: None,
            root: "/".into(),
            resolved: None,
            volume: None,
            total_size: 45,
            piece_length: 10,
            pieces: 5,
            have: Runs::of(have.iter().copied()),
            partial: Vec::new(),
            uploaded: 0,
            downloaded: 0,
            corrupt: 0,
            dropped: 0,
            wasted: 0,
            seconds_active: 0,
            require_complete: false,
            files: files.to_vec(),
            created: Runs::default(),
            ids: Vec::new(),
            overwrite: false,
            lost: Runs::default(),
            peers: Vec::new(),
            trackers: Vec::new(),
        }
    }

    fn judged(session: Option<&Session>, stamps: [Option<FileStamp>; 3]) -> (Vec<u32>, Vec<u32>) {
        let geometry = Geometry::new(45, 10).unwrap();
        let Findings { have, doubtful } = judge(session, &stamps, &geometry, &files());
        (have.iter().collect(), doubtful)
    }

    #[test]
    fn a_session_is_believed_where_the_files_are_as_it_says() {
        let saved = session(&[0, 1, 2], [Some(SEEN), Some(SEEN), None]);
        assert_eq!(
            judged(Some(&saved), [Some(SEEN), Some(SEEN), None]),
            (vec![0, 1, 2], vec![])
        );
    }

    #[test]
    fn only_what_is_in_doubt_is_hashed() {
        let saved = session(&[0, 1, 2, 3, 4], [Some(SEEN); 3]);
        let touched = FileStamp { nanos: 2, ..SEEN };
        assert_eq!(
            judged(Some(&saved), [Some(SEEN), Some(SEEN), Some(touched)]),
            (vec![0, 1, 2], vec![3, 4])
        );
        // Fault 81: pieces of a missing file are hashed and not trusted.
        assert_eq!(
            judged(Some(&saved), [None, Some(SEEN), Some(SEEN)]),
            (vec![2, 3, 4], vec![0, 1])
        );
        // A file for which the session does not vouch.
        let lost = session(&[0, 1, 2, 3, 4], [Some(SEEN), Some(SEEN), None]);
        assert_eq!(
            judged(Some(&lost), [Some(SEEN), Some(SEEN), None]),
            (vec![0, 1, 2], vec![3, 4])
        );
        // A file written after the session: its contents are unverified.
        let fresh = session(&[], [None; 3]);
        assert_eq!(judged(Some(&fresh), [None, None, Some(SEEN)]), (vec![], vec![3, 4]));
    }

    #[test]
    fn without_a_session_all_that_is_there_is_hashed() {
        assert_eq!(judged(None, [None; 3]), (vec![], vec![]));
        assert_eq!(judged(None, [None, Some(SEEN), None]), (vec![], vec![0, 1, 2, 3, 4]));
        let mut cut = session(&[0, 1], [Some(SEEN); 3]);
        cut.files.clear();
        assert_eq!(judged(Some(&cut), [Some(SEEN); 3]), (vec![], vec![0, 1, 2, 3, 4]));
        let mut wrong = session(&[0, 1], [Some(SEEN); 3]);
        wrong.have = Runs::of([7]);
        assert_eq!(judged(Some(&wrong), [Some(SEEN); 3]).0, Vec::<u32>::new());
    }
}
