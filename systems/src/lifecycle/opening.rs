//! Opening torrents: the session and the files on the disk determine the held pieces.
//!
//! The session is loaded first, because it names the download folder. Then the files are examined. Pieces in files
//! that match the session are trusted, and all other existing data is hashed. At the end, the files that will be
//! written are created.

mod evaluating;
pub(super) mod finding;
pub(super) mod loading;
mod placing;
pub(super) mod preparing;

use std::path::PathBuf;
use std::sync::Arc;

use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::ids::StorageId;
use ecs_torrent_components::lifecycle::Readiness;
use ecs_torrent_components::session::Session;
use ecs_torrent_components::torrent::{Lifecycle, Storage, Torrent};
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::disk::{DiskRequest, FileNeeds};
use ecs_torrent_engine::ports::state::{Loaded, StateEvent, StateRequest};
use ecs_torrent_engine::ports::{DiskPort, StatePort};
use ecs_torrent_engine::purpose;
use ecs_torrent_protocol::files::FileTable;
use ecs_torrent_protocol::hash::InfoHash;

use crate::sessions::SessionState;

pub(super) const LOAD: Purpose = purpose!("load session");
pub(super) const OPEN: Purpose = purpose!("open files");

/// Allocates names for storages.
#[derive(Resource, Debug, Default)]
pub(super) struct StorageIds {
    last: u64,
}

impl StorageIds {
    pub(super) fn next(&mut self) -> StorageId {
        self.last += 1;
        StorageId(self.last)
    }
}

/// The state of a torrent that is being opened.
#[derive(Component, Debug, Default)]
#[component(storage = "SparseSet")]
pub(super) struct Opening {
    /// The user or the caller chose the download folder, so the session's folder is ignored.
    pub(super) has_root: bool,
    /// The torrent was resumed: no user added it in this run.
    pub(super) is_resumed: bool,
    /// The torrent was opened before in this run: its counters are newer than the session.
    pub(super) is_again: bool,
    /// An earlier session contains information about the torrent's files.
    pub(super) is_known: bool,
    /// The user has added the torrent again, with other options.
    pub(super) is_renewed: bool,
    /// The torrent was listed before anything said that it may use its files: its metadata became known later.
    pub(super) is_unexamined: bool,
    /// The folder for incomplete torrents was considered.
    pub(super) is_placed: bool,
    /// The download folder of a torrent that is opened in the folder for incomplete torrents for the first time.
    pub(super) complete_root: Option<PathBuf>,
    /// The session, once it is loaded.
    pub(super) session: Option<Arc<Session>>,
}

impl Opening {
    /// State of a torrent that has been open before.
    pub(super) fn again() -> Self {
        Self {
            has_root: true,
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

    /// State of a torrent whose metadata arrived late: its files count as new, and its counters are newer than the
    /// session.
    pub(super) fn supplied() -> Self {
        Self {
            is_unexamined: true,
            ..Self::again()
        }
    }

    /// Whether existing files belong to the user unless the session or the options say otherwise.
    pub(super) fn is_new(&self) -> bool {
        self.is_renewed || self.is_unexamined || !(self.is_resumed || self.is_again || self.is_known)
    }
}

/// Whether the disk has yet to say whether a torrent may use its files.
pub(super) fn is_undecided(lifecycle: &Lifecycle, has_metadata: bool, opening: Option<&Opening>) -> bool {
    let is_opening = matches!(lifecycle, Lifecycle::Adding | Lifecycle::FetchingMetadata);
    is_opening && has_metadata && opening.is_some_and(Opening::is_new)
}

/// Sessions and metainfo loaded for torrents that were added from the state folder.
#[derive(Resource, Debug, Default)]
pub(super) struct Arrived(Vec<(Entity, Loaded)>);

impl Arrived {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Begins and continues the opening of torrents.
#[derive(SystemParam)]
pub(super) struct Opener<'w> {
    state: ResMut<'w, StatePort>,
    pub(super) disk: ResMut<'w, DiskPort>,
    storages: ResMut<'w, StorageIds>,
    arrived: ResMut<'w, Arrived>,
    pub(super) clock: Res<'w, Clock>,
    pub(super) wakeup: Res<'w, Wakeup>,
}

/// Returns whether the disk has reported about files of torrents that are being opened.
pub(super) fn has_events(disk: &DiskPort) -> bool {
    disk.has_events_for(OPEN) || disk.has_events_for(preparing::PREPARE)
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
        self.load_with(entity, torrent.id(), false);
    }

    /// Requests the session of a torrent that is added without its metadata, and the metainfo that an earlier run may
    /// have stored.
    pub(super) fn load_unfetched(&mut self, entity: Entity, torrent: &Torrent) {
        self.load_with(entity, torrent.id(), true);
    }

    fn load_with(&mut self, entity: Entity, torrent: InfoHash, with_metainfo: bool) {
        self.state.push(StateRequest::Load {
            tag: JobTag::new(LOAD, entity),
            torrent,
            with_metainfo,
            is_peek: false,
        });
    }

    /// Opens a paused torrent again, beginning with its session.
    pub(super) fn reopen(
        &mut self,
        entity: Entity,
        torrent: &Torrent,
        readiness: &mut Readiness,
        state: &mut SessionState,
        commands: &mut Commands,
    ) {
        *readiness = Readiness::Unopened;
        state.record_reopening();
        self.load(entity, torrent);
        commands.entity(entity).insert(Opening::again());
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

    /// Replaces the session of a torrent that is not listed.
    pub(super) fn save_stopped(&mut self, tag: JobTag, session: Session) {
        self.state.push(StateRequest::Save {
            tag,
            session: Box::new(session),
            metainfo: None,
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
    pub(super) fn open(
        &mut self,
        entity: Entity,
        storage: &mut Storage,
        session: Option<&Session>,
        files: &FileTable,
        state: &SessionState,
        needs: Option<Box<FileNeeds>>,
    ) {
        self.disk.push(DiskRequest::Close {
            tag: None,
            storage: storage.id,
        });
        storage.id = self.storages.next();
        self.disk.push(DiskRequest::Open {
            tag: JobTag::new(OPEN, entity),
            storage: storage.id,
            root: storage.root.clone(),
            volume: state.expected_volume(session),
            files: files.clone(),
            claims: state.claims(session),
            needs,
        });
    }
}
