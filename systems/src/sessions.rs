//! Sessions: what a torrent has is saved, so that the next run goes on where this one ended.
//!
//! A torrent is saved a while after it began to change, when it is complete, and when it stops, in steps that each
//! wait for the one before: blocks of unfinished pieces are written where they belong; what was written is brought to
//! the platter; then the session is put in the place of the old one. So a session never says more than the disk has.

mod ending;
mod platter;
mod restoring;
mod saving;
mod spilling;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::commands::Removed;
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::session::{FileId, FileStamp, Runs, Session};
use ecs_torrent_components::torrent::Counters;
use ecs_torrent_engine::ports::disk::{FileClaims, FoundFiles, Provenance, SyncedFile};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::files::FileTable;
use ecs_torrent_protocol::geometry::Geometry;

pub(crate) use self::ending::{Ending, Endings};
use self::platter::Platter;
pub(crate) use self::spilling::Spiller;
use crate::{AssembleSet, DecideSet};

/// Saves torrents, and brings back blocks of unfinished pieces.
pub struct SessionsPlugin;

impl Plugin for SessionsPlugin {
    fn build(&self, app: &mut App) {
        app.add_message::<SaveTorrent>()
            .add_message::<SessionWritten>()
            .init_resource::<Deadlines<saving::SaveCheck>>()
            .init_resource::<Endings>()
            .init_resource::<restoring::Restores>()
            .add_systems(
                Tick,
                (
                    restoring::collect_restored.in_set(AssembleSet::Restored),
                    (
                        spilling::forget_partials,
                        saving::note_changes,
                        saving::collect_spilled,
                        saving::collect_synced,
                        saving::collect_saved,
                        ending::end_sessions,
                        saving::begin_saves,
                        restoring::restore_pieces,
                    )
                        .chain()
                        .in_set(DecideSet::Sessions),
                ),
            );
    }
}

/// Saves a torrent soon, whether a while has passed or not.
#[derive(Message, Debug, Clone)]
pub struct SaveTorrent {
    /// The torrent.
    pub torrent: Entity,
}

/// A saving has ended: the session is durable, or could not be written.
#[derive(Message, Debug, Clone)]
pub(crate) struct SessionWritten {
    /// The torrent.
    pub(crate) torrent: Entity,
    /// How it went.
    pub(crate) result: Result<(), Arc<str>>,
}

/// What of a torrent is saved, and what is being.
#[derive(Component, Debug, Default)]
pub(crate) struct SessionState {
    /// The files as they were when they were found, or last written by us.
    stamps: Vec<Option<FileStamp>>,
    volume: Option<PathBuf>,
    /// The files that this torrent created, or will where they are not there, by index; with their identity, once known.
    created: BTreeMap<u32, Option<FileId>>,
    /// Which files they are, by index.
    ids: Vec<Option<FileId>>,
    /// The download folder with every link resolved.
    resolved: Option<PathBuf>,
    /// The name that the user gave in the place of the metainfo's.
    renamed: Option<String>,
    /// The user said that files which are there may be changed.
    may_overwrite: bool,
    /// In spite of that, none may, because another torrent uses some of them.
    is_sharing: bool,
    claims: Claims,
    /// The disk has told which files are there, or that it cannot.
    is_opened: bool,
    /// The state folder had something of it when it was loaded.
    is_known: bool,
    /// What the state folder has of it is known.
    is_loaded: bool,
    /// Which pieces are here is known: the files have been looked at and what was in doubt is hashed.
    has_result: bool,
    /// Some of it was known by hashing only: who wrote that may not have brought it to the platter.
    has_checked: bool,
    /// There is a `.torrent` in the state folder.
    has_metainfo: bool,
    /// What the session on the disk says; nothing where there is none.
    saved: Option<Summary>,
    job: Job,
    /// Writes of blocks of unfinished pieces under way.
    spill_count: usize,
    has_deadline: bool,
    platter: Platter,
    /// Bytes of pieces written since the last saving began.
    unsaved_bytes: u64,
    /// Something came up while a job was under way.
    is_wanted_again: bool,
    /// Somebody waits for this session to end.
    is_last: bool,
    /// How often it has been loaded: answers to what was asked before are nobody's.
    generation: u64,
}

/// How far what `created` says has come, as numbers of its changes.
#[derive(Debug, Clone, Copy, Default)]
struct Claims {
    /// Changes so far: files that will be created have joined.
    current: u64,
    /// In the session that is being written.
    submitted: u64,
    /// In a session that is durable.
    durable: u64,
}

/// What decides whether a torrent has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Summary {
    counters: Counters,
    have_count: u32,
    partial_count: u32,
    seconds_active: u64,
    has_result: bool,
}

/// Where a saving stands.
#[derive(Debug, Default)]
enum Job {
    #[default]
    None,
    /// Blocks are being written.
    Spilling,
    /// What was written is being brought to the platter; the session is as of the beginning of that.
    Syncing(Box<Session>, Summary),
    /// The session is being written.
    Writing(Summary),
    /// So is one that confesses what a failed sync has lost: why it failed.
    Confessing(Arc<str>),
    /// The session, and maybe the data, is being deleted.
    Forgetting {
        left: usize,
        error: Option<Arc<str>>,
        removed: Removed,
    },
}

impl SessionState {
    /// Of a torrent that is added with these wishes of its user's.
    pub(crate) fn new(renamed: Option<String>, may_overwrite: bool) -> Self {
        Self {
            renamed,
            may_overwrite,
            ..Self::default()
        }
    }

    /// Takes in new wishes for a torrent that has failed; what is known of its files holds only while they lie where
    /// they did.
    pub(crate) fn renew(&mut self, renamed: Option<String>, may_overwrite: bool, has_moved: bool) {
        if has_moved || (renamed.is_some() && renamed != self.renamed) {
            self.created.clear();
            self.stamps.clear();
            self.ids.clear();
        }
        self.renamed = renamed.or(self.renamed.take());
        self.may_overwrite |= may_overwrite;
    }

    /// Begins again with what was found in the state folder: the session, where it can be used, or else the files that a
    /// damaged one still claims.
    pub(crate) fn note_loaded(&mut self, session: Option<&Session>, salvaged: Option<&Bitfield>, is_known: bool) {
        let mut created = std::mem::take(&mut self.created);
        let mut platter = std::mem::take(&mut self.platter);
        platter.load(session);
        // What this run has learned of the files is newer.
        if !self.is_opened {
            let known = session.and_then(|session| session.created.to_set(session.files.len() as u32));
            for index in known.iter().chain(salvaged).flat_map(Bitfield::iter) {
                let id = session.and_then(|session| session.ids.get(index as usize).copied().flatten());
                created.insert(index, id);
            }
        }
        let renamed = session.and_then(|session| session.renamed.clone());
        *self = Self {
            is_loaded: true,
            is_known,
            has_metainfo: is_known,
            created,
            platter,
            stamps: std::mem::take(&mut self.stamps),
            ids: std::mem::take(&mut self.ids),
            renamed: self.renamed.take().or(renamed),
            may_overwrite: self.may_overwrite || session.is_some_and(|session| session.overwrite),
            saved: session.map(Summary::of_session),
            has_deadline: self.has_deadline,
            is_last: self.is_last,
            generation: self.generation + 1,
            ..Self::default()
        };
        if session.is_some_and(|session| session.overwrite != self.may_overwrite) {
            self.claims.current += 1;
        }
    }

    /// Whether a session is of files of the same name.
    pub(crate) fn has_name_of(&self, session: &Session) -> bool {
        self.renamed.is_none() || self.renamed == session.renamed
    }

    /// Whether the user said that files which are there may be changed.
    pub(crate) fn may_overwrite(&self) -> bool {
        self.may_overwrite
    }

    fn overwrites(&self) -> bool {
        self.may_overwrite && !self.is_sharing
    }

    /// Keeps files which are there from being changed; true where they would have been.
    pub(crate) fn stop_overwriting(&mut self) -> bool {
        let did = self.overwrites();
        self.is_sharing = true;
        did
    }

    /// What the disk is told of the files.
    pub(crate) fn claims(&self, session: Option<&Session>) -> FileClaims {
        FileClaims {
            created: self.created.iter().map(|(index, id)| (*index as usize, *id)).collect(),
            stamps: match self.stamps.is_empty() {
                true => session.map(|session| session.files.clone()).unwrap_or_default(),
                false => self.stamps.clone(),
            },
            may_overwrite: self.overwrites(),
        }
    }

    /// Takes in how the files were found. Those that are not there will be created where `may_create`; the session has
    /// to say so before.
    pub(crate) fn note_found(&mut self, found: FoundFiles, files: &FileTable, may_create: bool) {
        for ((index, file), entry) in (0..).zip(&found.files).zip(files.files()) {
            if let Some(file) = file {
                self.note_provenance(index, file.provenance, Some(file.id));
            } else if may_create && entry.is_stored() {
                let before = self.created.insert(index, None);
                self.claims.current += u64::from(before != Some(None));
            }
        }
        self.ids = found.files.iter().map(|file| file.map(|file| file.id)).collect();
        self.stamps = found
            .files
            .into_iter()
            .map(|file| file.map(|file| file.stamp))
            .collect();
        self.volume = Some(found.volume);
        self.resolved = Some(found.root);
        self.is_opened = true;
    }

    /// Notes that the disk cannot tell which files are there.
    pub(crate) fn note_unopened(&mut self) {
        self.is_opened = true;
    }

    /// Notes whose a file is.
    fn note_provenance(&mut self, index: u32, provenance: Provenance, id: Option<FileId>) {
        match provenance {
            Provenance::Created => self.created.insert(index, id),
            Provenance::Found => self.created.remove(&index),
        };
    }

    /// Takes in what a sync has told of a file; true where its identity is new.
    fn note_synced(&mut self, file: &SyncedFile) -> bool {
        self.note_provenance(file.index as u32, file.provenance, file.id);
        match self.ids.get_mut(file.index) {
            Some(id) => std::mem::replace(id, file.id) != file.id,
            None => false,
        }
    }

    /// Whether the session claims files that were not created.
    fn has_absent_claims(&self) -> bool {
        self.has_result && self.created.values().any(Option::is_none)
    }

    /// Drops the claims to files that were not created: what the user puts there before the next run is the user's. A sync
    /// has told the identity of every file that was.
    fn drop_absent_claims(&mut self) {
        self.created.retain(|_, id| id.is_some());
    }

    /// Whether a session that says which files will be created is durable, so that they may be.
    pub(crate) fn may_create(&self) -> bool {
        self.claims.durable == self.claims.current
    }

    /// Whether the next run would find the torrent.
    pub(crate) fn is_durable(&self) -> bool {
        self.saved.is_some() && self.has_metainfo
    }

    /// Whether the state folder had something of it before it was added.
    pub(crate) fn is_known(&self) -> bool {
        self.is_known
    }

    /// The download folder with every link resolved, once the files were found.
    pub(crate) fn resolved(&self) -> Option<&std::path::Path> {
        self.resolved.as_deref()
    }

    /// Which file a file of the torrent is.
    pub(crate) fn id(&self, index: usize) -> Option<FileId> {
        self.ids.get(index).copied().flatten()
    }

    /// A file that is the user's and would have to be changed for the torrent to be complete.
    pub(crate) fn obstacle(&self, have: &Bitfield, files: &FileTable, geometry: &Geometry) -> Option<usize> {
        let is_users = |index: usize| {
            self.stamps.get(index).copied().flatten().is_some() && !self.created.contains_key(&(index as u32))
        };
        let entries = || files.files().iter().enumerate().filter(|(_, file)| file.is_stored());
        if self.overwrites() || !entries().any(|(index, _)| is_users(index)) {
            return None;
        }
        let is_short =
            |(index, len): (usize, u64)| is_users(index) && self.stamps[index].is_some_and(|stamp| stamp.len < len);
        let short = entries().find(|(index, file)| is_short((*index, file.len)));
        short.map(|(index, _)| index).or_else(|| {
            have.iter_missing().find_map(|piece| {
                let mut slices = files.slices(geometry.piece_span(piece)).filter(|slice| !slice.pad);
                let first = slices.next()?.file;
                (is_users(first) && slices.all(|slice| is_users(slice.file))).then_some(first)
            })
        })
    }

    /// Notes that what is here will be known by hashing.
    pub(crate) fn note_check(&mut self) {
        self.has_checked = true;
    }

    /// Notes that it is known which pieces are here.
    pub(crate) fn note_result(&mut self, have: &Bitfield) {
        self.has_result = true;
        self.platter.keep(have);
    }

    /// Pieces that have to be written again before they count, though they can be read.
    pub(crate) fn lost(&self) -> &Bitfield {
        self.platter.lost()
    }

    /// Notes that one of them has been.
    pub(crate) fn note_rewritten(&mut self, piece: u32) {
        self.platter.note_written(piece);
    }

    /// Notes writes of blocks of unfinished pieces.
    pub(crate) fn add_spills(&mut self, count: usize) {
        self.spill_count += count;
    }

    /// Whether blocks of unfinished pieces are still being written.
    pub(crate) fn is_spilling(&self) -> bool {
        self.spill_count > 0
    }
}

impl Summary {
    fn of_session(session: &Session) -> Self {
        let count = |runs: &Runs, len| runs.to_set(len).map_or(0, |set| set.count());
        let partial = session
            .partial
            .iter()
            .map(|partial| count(&partial.blocks, u32::from(u16::MAX)));
        Self {
            counters: Counters {
                uploaded: session.uploaded,
                downloaded: session.downloaded,
                corrupt: session.corrupt,
                dropped: session.dropped,
                wasted: session.wasted,
            },
            have_count: count(&session.have, session.pieces),
            partial_count: partial.sum(),
            seconds_active: session.seconds_active,
            has_result: !session.files.is_empty(),
        }
    }

    /// Whether what has happened since `earlier` is worth a saving.
    fn differs_from(&self, earlier: &Self, max_unsaved_active_s: u64) -> bool {
        let unsaved = self.seconds_active.saturating_sub(earlier.seconds_active);
        let same_time = Self {
            seconds_active: earlier.seconds_active,
            ..*self
        };
        same_time != *earlier || unsaved >= max_unsaved_active_s
    }
}
