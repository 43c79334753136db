//! The first step of opening: the session, which names the download folder.

use std::sync::Arc;
use std::time::Duration;

use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use bytes::Bytes;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{AddError, CommandQueue, Reply, SupplyMetadata, Unsaved};
use ecs_torrent_components::lifecycle::{AwaitingSession, ChangedFacts, Desired, Readiness};
use ecs_torrent_components::messages::{FailTorrent, FilesPlaced, PiecesKnown, PrivacyKnown, Remedy, SessionLoaded};
use ecs_torrent_components::names::NewNames;
use ecs_torrent_components::session::Session;
use ecs_torrent_components::torrent::{
    Activity, Content, Layout, RequiresComplete, StopPhase, Stopping, Storage, Torrent,
};
use ecs_torrent_components::wanted::FileChoice;
use ecs_torrent_engine::ports::state::{Loaded, StateDone};
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::geometry::Geometry;
use ecs_torrent_protocol::hash::InfoHash;

use super::{LOAD, Opener, Opening};
use crate::lifecycle::adds::Adds;
use crate::ownership::{FileRegistry, FolderKeys};
use crate::sessions::{SaveTorrent, SavedParts};

/// The parts of a torrent that its session determines.
#[derive(bevy_ecs::query::QueryData)]
#[query_data(mutable)]
pub(in crate::lifecycle) struct Resumed {
    pub(in crate::lifecycle) torrent: &'static mut Torrent,
    pub(in crate::lifecycle) layout: Option<&'static Layout>,
    pub(in crate::lifecycle) content: Option<&'static mut Content>,
    pub(in crate::lifecycle) choice: Option<&'static FileChoice>,
    pub(in crate::lifecycle) opening: &'static mut Opening,
    pub(in crate::lifecycle) desired: &'static mut Desired,
    pub(in crate::lifecycle) readiness: &'static mut Readiness,
    pub(in crate::lifecycle) storage: &'static mut Storage,
    pub(in crate::lifecycle) activity: &'static mut Activity,
    pub(in crate::lifecycle) saved: SavedParts,
    pub(in crate::lifecycle) stopping: Option<&'static Stopping>,
}

/// Results of loading torrents that are paused.
#[derive(SystemParam)]
pub(in crate::lifecycle) struct Pauses<'w> {
    known: MessageWriter<'w, PiecesKnown>,
    pub(in crate::lifecycle) changed: ResMut<'w, ChangedFacts>,
}

/// Metadata of torrents that are added by their hash, and that the state folder has.
#[derive(SystemParam)]
pub(in crate::lifecycle) struct StoredMetadata<'w> {
    clock: Res<'w, Clock>,
    wakeup: Res<'w, Wakeup>,
    supplies: ResMut<'w, CommandQueue<SupplyMetadata>>,
}

impl StoredMetadata<'_> {
    fn supply(&mut self, torrent: InfoHash, info: Bytes) {
        self.supplies.0.push_back(SupplyMetadata {
            torrent,
            info,
            reply: Reply::ignored(),
        });
        self.wakeup.at(self.clock.now());
    }

    /// Whether metadata of a torrent is not taken yet.
    fn is_pending(&self, torrent: InfoHash) -> bool {
        self.supplies.0.iter().any(|supply| supply.torrent == torrent)
    }
}

pub(in crate::lifecycle) fn collect_loaded(
    mut commands: Commands,
    mut opener: Opener,
    mut failed: MessageWriter<FailTorrent>,
    mut save: MessageWriter<SaveTorrent>,
    mut adds: ResMut<Adds>,
    mut registry: ResMut<FileRegistry>,
    mut pauses: Pauses,
    mut stored: StoredMetadata,
    mut torrents: Query<Resumed>,
) {
    let mut arrived = std::mem::take(&mut opener.arrived.0);
    for event in opener.take(LOAD) {
        match event.outcome {
            Ok(StateDone::Loaded(loaded)) => arrived.push((event.tag.owner, *loaded)),
            Ok(_) => {}
            // The contents of the session are unknown, and must not be overwritten.
            Err(error) => {
                let torrent = event.tag.owner;
                if let Ok(resumed) = torrents.get(torrent) {
                    let unsaved = Unsaved::new(&resumed.torrent.name, &error.0);
                    adds.answer(torrent, &Err(AddError::Unsaved(unsaved)));
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
    for (torrent, mut loaded) in arrived {
        if let Ok(mut resumed) = torrents.get_mut(torrent) {
            // A stop that did not wait for the session has closed the files.
            if resumed
                .stopping
                .is_some_and(|stopping| stopping.phase == StopPhase::Release)
            {
                continue;
            }
            if let Some(info) = resumed.take_stored_metadata(&mut loaded) {
                stored.supply(resumed.torrent.id(), info);
            }
            // The session is read once the metadata is known.
            if resumed.content.is_none() && stored.is_pending(resumed.torrent.id()) {
                opener.hand_over(torrent, loaded);
                continue;
            }
            resumed.take_in(loaded, torrent, &mut commands, &mut save);
            commands.entity(torrent).remove::<AwaitingSession>();
            pauses.changed.add(torrent);
            let is_opened = resumed.go_on(torrent, &mut commands, &mut opener, &mut pauses);
            if !resumed.saved.state.has_saved_additions() {
                save.write(SaveTorrent { torrent });
            }
            // No file has to be examined before the callers that add the torrent are answered.
            if !is_opened && resumed.saved.state.is_durable() {
                adds.answer(torrent, &Ok(resumed.torrent.id()));
            }
            // A new torrent claims no file before its files are decided on.
            if !resumed.opening.is_new() {
                resumed.register(&mut registry);
            }
        }
    }
}

impl ResumedItem<'_, '_> {
    /// Continues with the files, if they are known and the torrent is not paused: with a move of them that has not
    /// ended, or by opening them. Returns whether one of these steps has begun.
    pub(in crate::lifecycle) fn go_on(
        &mut self,
        entity: Entity,
        commands: &mut Commands,
        opener: &mut Opener,
        pauses: &mut Pauses<'_>,
    ) -> bool {
        if self.stay_paused(entity, commands, pauses) {
            return false;
        }
        if self.continue_move(entity, commands, opener) {
            pauses.changed.add(entity);
            return true;
        }
        // A session without metadata says nothing about the files.
        self.opening.session.take_if(|session| session.lacks_metadata);
        let Some(content) = &self.content else { return false };
        let session = self.opening.session.as_deref();
        let files = &content.0.info.files;
        // The choice of the session is given to the torrent at the end of this system.
        let count = files.files().len() as u32;
        let saved = session.and_then(|session| session.file_choice_after(count, self.choice));
        let choice = saved.as_ref().or(self.choice);
        let state = &mut self.saved.state;
        if let Some(choice) = choice.filter(|_| self.opening.is_new()) {
            state.part_all(choice, files);
        }
        // No piece is known to be held yet.
        let needs = state.needs(self.torrent.id(), &content.0, choice, &Bitfield::default());
        opener.open(entity, &mut self.storage, session, files, &self.saved.state, needs);
        true
    }

    /// Takes the info dictionary that the state folder has, if the torrent lacks it.
    fn take_stored_metadata(&self, loaded: &mut Loaded) -> Option<Bytes> {
        let stored = loaded.metainfo.take().filter(|_| self.content.is_none());
        stored.and_then(Result::ok).map(|metainfo| metainfo.info_bytes.clone())
    }

    /// Applies a session.
    fn take_in(
        &mut self,
        mut loaded: Loaded,
        entity: Entity,
        commands: &mut Commands,
        save: &mut MessageWriter<SaveTorrent>,
    ) {
        loaded.repair(self.layout.map(|Layout(geometry)| geometry));
        let is_damaged = loaded.set_aside.is_some();
        if let Some(reason) = loaded.set_aside {
            tracing::warn!(torrent = %self.torrent.label(), "the saved state was set aside; all data is checked: {reason}");
        }
        let session = loaded.session.filter(|session| self.fits(session));
        let session = session.map(Arc::new);
        if let Some(session) = &session {
            self.restore(session, entity, commands);
        }
        let known_root = session.as_ref().map(|session| session.root.clone());
        if let Some(root) = known_root
            .or(loaded.salvage.root.clone())
            .filter(|_| !self.opening.has_root)
        {
            self.storage.root = root;
        }
        if !self.opening.is_again {
            self.find_incomplete(session.as_deref());
        }
        let has_session = session.is_some();
        // A session of files in another folder does not apply.
        let session = session.filter(|session| {
            session.root == self.storage.root || session.resolved.as_ref() == Some(&self.storage.root)
        });
        if has_session && session.is_none() {
            commands.trigger(FilesPlaced { torrent: entity });
        }
        let session = session.filter(|session| self.saved.state.has_names_of(session));
        if let Some(names) = session.as_ref().map(|session| session.names()) {
            self.take_names(&names);
        }
        let salvaged = Some(loaded.salvage).filter(|_| session.is_none() && !self.opening.has_root);
        let has_claims = salvaged.as_ref().is_some_and(|salvage| !salvage.created.is_empty());
        let is_unexamined = session.as_ref().map(|session| session.is_unexamined());
        self.opening.is_known = is_unexamined == Some(false) || has_claims;
        self.opening.is_unexamined |= is_unexamined == Some(true);
        let geometry = self.layout.map(|Layout(geometry)| geometry);
        self.saved
            .record_loaded(session.as_deref(), salvaged, loaded.has_metainfo, geometry);
        if self.opening.is_resumed && session.as_ref().is_some_and(|session| session.stopped) {
            self.saved.state.keep_stopped();
        }
        if is_damaged {
            self.saved.state.record_damaged();
        }
        // The files are not known before the metadata is. The torrent is durable before that, and so is what users
        // have added to it before its session was loaded.
        let is_unsaved = is_damaged && (self.opening.is_resumed || !self.opening.is_new());
        if self.content.is_none() || is_unsaved || !self.saved.state.has_saved_additions() {
            save.write(SaveTorrent { torrent: entity });
        }
        self.opening.session = session;
    }

    /// Continues in the folder for incomplete torrents if the user named the download folder to which the files go.
    fn find_incomplete(&mut self, session: Option<&Session>) {
        if let Some(session) = session
            && session.complete_root.as_ref() == Some(&self.storage.root)
        {
            self.storage.root.clone_from(&session.root);
        }
    }

    /// Gives the torrent and its files the names that the user chose.
    pub(in crate::lifecycle) fn take_names(&mut self, names: &NewNames) {
        if let Some(content) = &mut self.content
            && !names.is_empty()
        {
            content.0 = names.apply(&content.0);
        }
        if let Some(name) = &names.name {
            self.torrent.name = name.as_str().into();
        }
    }

    /// Restores what does not depend on the torrent's files.
    fn restore(&mut self, session: &Arc<Session>, entity: Entity, commands: &mut Commands) {
        if session.private && !std::mem::replace(&mut self.torrent.private, true) {
            commands.trigger(PrivacyKnown { torrent: entity });
        }
        if !self.opening.is_again {
            self.activity.before = Duration::from_secs(session.seconds_active);
            commands.trigger(SessionLoaded {
                torrent: entity,
                session: session.clone(),
            });
        }
        if session.require_complete && self.opening.is_resumed {
            commands.entity(entity).insert(RequiresComplete);
        }
    }

    /// Whether a session has the sizes of the torrent, as far as both are known.
    fn fits(&self, session: &Session) -> bool {
        let fits = session.lacks_metadata
            || self.layout.is_none_or(|Layout(geometry)| {
                (session.total_size, session.piece_length, session.pieces)
                    == (geometry.total_size(), geometry.piece_length(), geometry.piece_count())
            });
        if !fits {
            tracing::warn!(torrent = %self.torrent.label(), "the saved state has other sizes and is ignored");
        }
        fits
    }

    /// Keeps a torrent paused if its session says so, or if the user has added it as paused and its files are not
    /// known, with its files closed and the held pieces of the session. Returns false if the torrent is to be opened:
    /// it is not paused, or a user has added it again.
    fn stay_paused(&mut self, entity: Entity, commands: &mut Commands, pauses: &mut Pauses<'_>) -> bool {
        let session = self.opening.session.as_ref();
        let resumed = session.filter(|session| session.paused && self.opening.is_resumed);
        let is_added_paused = self.saved.state.is_paused() && self.content.is_none() && !self.opening.is_again;
        if resumed.is_none() && !is_added_paused {
            return false;
        }
        self.saved.state.set_paused(true);
        // A stop or removal that has begun meanwhile may need the files. A check that a user requested ends with a
        // pause.
        let has_work = resumed.is_some_and(|session| session.recheck) || self.saved.state.moving().is_some();
        if *self.desired != Desired::Run || (has_work && self.content.is_some()) {
            return false;
        }
        // A session without metadata knows of no pieces.
        let geometry = self.content.as_ref().map(|content| &content.0.info.geometry);
        let count = geometry.map_or(0, Geometry::piece_count);
        let have = resumed.and_then(|session| session.have.to_set(session.pieces));
        let have = have.filter(|have| have.len() == count);
        self.saved.state.record_closed();
        pauses.known.write(PiecesKnown {
            torrent: entity,
            have: have.unwrap_or_else(|| Bitfield::new(count)),
            is_final: false,
        });
        (*self.desired, *self.readiness) = (Desired::Pause, Readiness::Closed);
        pauses.changed.add(entity);
        commands.entity(entity).remove::<Opening>();
        true
    }

    /// Registers the files that the torrent uses, as far as its session names them.
    pub(in crate::lifecycle) fn register(&self, registry: &mut FileRegistry) {
        let session = self.opening.session.as_deref();
        let resolved = session.and_then(|session| session.resolved.as_deref());
        let ids = session.map(|session| session.ids.as_slice()).unwrap_or_default();
        let Some(content) = &self.content else { return };
        let folder = session.and_then(|session| session.folder.as_ref());
        let keys = FolderKeys::new(resolved.unwrap_or(&self.storage.root)).with_saved(folder);
        let keys = keys.of_table(&content.0.info.files, |index| ids.get(index).copied().flatten());
        registry.set(self.torrent.id(), &self.torrent.name, keys);
        if let Some(root) = session.and_then(|session| session.complete_root.as_deref()) {
            let keys = FolderKeys::new(root).of_table(&content.0.info.files, |_| None);
            registry.add(self.torrent.id(), &self.torrent.name, keys);
        }
        if let Some(moving) = self.saved.state.moving() {
            let files = moving.names.table(&content.0.info.files);
            let keys = FolderKeys::new(&moving.root).of_table(&files, |_| None);
            registry.add(self.torrent.id(), &self.torrent.name, keys);
        }
    }
}
