//! The saved state of a torrent: the next session's facts about its files, and the progress of the current save.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bevy_ecs::prelude::*;
use ecs_torrent_components::commands::Removed;
use ecs_torrent_components::names::NewNames;
use ecs_torrent_components::session::{FileId, FileStamp, MoveStage, OwnerKey, Runs, Salvage, SavedMove, Session};
use ecs_torrent_components::torrent::Counters;
use ecs_torrent_components::wanted::{FileChoice, is_skipped};
use ecs_torrent_engine::ports::disk::{
    FileClaims, FileNeeds, FolderIds, FoundFile, FoundFiles, Overwrite, Provenance, SyncedFile, Volume,
};
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::files::{FileEntry, FileTable};
use ecs_torrent_protocol::geometry::Geometry;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::metainfo::Metainfo;

use super::durability::Durability;

/// The most files of a torrent that a session may list as parted.
const MAX_PARTED: usize = 1 << 22;

/// The saved state of a torrent, and the state of its current save.
#[derive(Component, Debug)]
pub(crate) struct SessionState {
    /// The files as they were when they were found, or last written by us.
    pub(super) stamps: Vec<Option<FileStamp>>,
    /// The volume of the download folder, as last found in this run.
    pub(super) volume: Option<Arc<Volume>>,
    /// Pieces were written to that volume in this run.
    pub(super) has_written: bool,
    /// The files that this torrent created, or will create if absent, by index; with their identity, once known.
    pub(super) created: BTreeMap<u32, Option<FileId>>,
    /// The identities of the files, by index.
    pub(super) ids: Vec<Option<FileId>>,
    /// The download folder with every link resolved.
    pub(super) resolved: Option<Arc<Path>>,
    /// The folders on the paths of the files, once the files were found.
    pub(super) folders: Option<FolderIds>,
    /// The name that the user gave in place of the metainfo's.
    pub(super) renamed: Option<String>,
    /// The paths that the user gave to files, by index, below the torrent's folder.
    pub(super) file_names: BTreeMap<u32, String>,
    /// Whether files have a suffix until they are complete.
    pub(super) part_suffix: bool,
    /// The key of the marks on the files and folders that the torrent creates.
    pub(super) key: OwnerKey,
    /// The user allowed changes to the files that exist when they are next examined.
    pub(super) wants_overwrite: bool,
    /// Time of that permission in nanoseconds since 1970: it covers no file that was created or changed later.
    pub(super) overwrite_ns: Option<i64>,
    /// The incomplete files of the user that the user allowed to be changed, by index, with their identities.
    pub(super) permitted: BTreeMap<u32, FileId>,
    /// The files that are or were skipped, and whose bytes in pieces of other files are in the part file.
    pub(super) parted: BTreeSet<u32>,
    /// Overrides the permissions: no existing file may change, because another torrent uses some of the files.
    is_sharing: bool,
    /// Progress of saving the files in `created` and `permitted`.
    pub(super) claims: Revisions,
    /// Progress of saving what users added to the torrent after its add: metadata, options, trackers.
    pub(super) additions: Revisions,
    /// The disk has reported which files exist, or that it cannot tell.
    pub(super) is_opened: bool,
    /// The state folder had data of the torrent when the torrent was loaded.
    pub(super) is_known: bool,
    /// The contents of the state folder for the torrent are known.
    pub(super) is_loaded: bool,
    /// The held pieces are known: the files are inspected and doubtful pieces are hashed.
    pub(super) has_result: bool,
    /// Some pieces were accepted by hashing alone; their bytes may not be durable yet.
    pub(super) has_checked: bool,
    /// There is a `.torrent` in the state folder.
    pub(super) has_metainfo: bool,
    /// Summary of the session on the disk; `None` if there is none.
    pub(super) saved: Option<Summary>,
    pub(super) job: Job,
    /// Number of running writes of blocks of unfinished pieces.
    pub(super) spill_count: usize,
    pub(super) has_deadline: bool,
    pub(super) durability: Durability,
    /// Bytes of pieces written since the last save began.
    pub(super) unsaved_bytes: u64,
    /// Another save was requested while a job was running.
    pub(super) is_wanted_again: bool,
    /// The stop waits for this session to end.
    pub(super) is_last: bool,
    /// A sync failed: the identities of files that it covered may never be reported.
    pub(super) has_failed_sync: bool,
    /// Number of loads: answers to requests of an earlier generation are ignored.
    pub(super) generation: u64,
    /// The user's intent, to be written to the next session.
    pub(super) intent: SavedIntent,
    /// The pieces to which a requested check is limited; `None` for all.
    pub(super) check_pieces: Option<Box<Bitfield>>,
    /// The move of the files that has not ended.
    pub(super) moving: Option<Box<SavedMove>>,
    /// A removal has not deleted anything yet, since it waits for the volume of the data.
    pub(super) is_kept: bool,
    /// The files are closed: nothing is left to be synced.
    pub(super) is_closed: bool,
    /// The session that was loaded, until the held pieces are known.
    pub(super) loaded: Option<Box<Session>>,
    /// The session in the state folder is damaged, and no other one has replaced it yet. `loaded` is what was
    /// recovered.
    pub(super) is_damaged: bool,
}

/// The user's intent as saved in the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct SavedIntent {
    pub(super) is_paused: bool,
    pub(super) is_stopped: bool,
    /// Data is to be hashed, whatever the session and the files say.
    pub(super) needs_check: bool,
}

/// Progress of saving a part of the state, as numbers of its changes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Revisions {
    /// Changes so far.
    pub(super) current: u32,
    /// Changes in the session that is being written.
    pub(super) submitted: u32,
    /// Changes in a durable session.
    pub(super) durable: u32,
}

impl Revisions {
    fn is_durable(self) -> bool {
        self.durable == self.current
    }

    /// Records that the session that was submitted is durable.
    fn record_durable(&mut self) {
        self.durable = self.submitted;
    }
}

/// The values that decide whether a torrent has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) counters: Counters,
    pub(super) has_metadata: bool,
    pub(super) have_count: u32,
    pub(super) unverified_count: u32,
    pub(super) partial_count: u32,
    pub(super) seconds_active: u64,
    /// `None` in sessions of earlier versions, which are thus saved once.
    pub(super) added_at: Option<u64>,
    pub(super) completed_at: Option<u64>,
    pub(super) has_result: bool,
    pub(super) intent: SavedIntent,
}

/// The step of a running save.
#[derive(Debug, Default)]
pub(super) enum Job {
    #[default]
    None,
    /// Blocks are being written.
    Spilling,
    /// Written data is being synced; the session dates from the beginning of the sync.
    Syncing(Box<Session>, Box<Summary>),
    /// The session is being written.
    Writing(Box<Summary>),
    /// A session that records the pieces lost by a failed sync is being written; the text is the reason of the failure.
    RecordingLoss(Arc<str>),
    /// A request for the volume of the data to delete is outstanding.
    FindingVolume,
    /// The session, and possibly the data, is being deleted.
    Forgetting {
        left: usize,
        error: Option<Arc<str>>,
        removed: Box<Removed>,
    },
}

impl SessionState {
    /// State of a torrent that is added with these options of the user.
    pub(crate) fn new(key: OwnerKey, renamed: Option<String>, wants_overwrite: bool) -> Self {
        Self {
            stamps: Vec::new(),
            volume: None,
            has_written: false,
            created: BTreeMap::new(),
            ids: Vec::new(),
            resolved: None,
            folders: None,
            renamed,
            file_names: BTreeMap::new(),
            part_suffix: false,
            key,
            wants_overwrite,
            overwrite_ns: None,
            permitted: BTreeMap::new(),
            parted: BTreeSet::new(),
            is_sharing: false,
            claims: Revisions::default(),
            additions: Revisions::default(),
            is_opened: false,
            is_known: false,
            is_loaded: false,
            has_result: false,
            has_checked: false,
            has_metainfo: false,
            saved: None,
            job: Job::None,
            spill_count: 0,
            has_deadline: false,
            durability: Durability::default(),
            unsaved_bytes: 0,
            is_wanted_again: false,
            is_last: false,
            has_failed_sync: false,
            generation: 0,
            intent: SavedIntent::default(),
            check_pieces: None,
            moving: None,
            is_kept: false,
            is_closed: false,
            loaded: None,
            is_damaged: false,
        }
    }

    /// Applies new options to a failed torrent. Knowledge about its files is kept only if they stay where they are.
    pub(super) fn renew(&mut self, renamed: Option<String>, wants_overwrite: bool, has_moved: bool) {
        if has_moved || (renamed.is_some() && renamed != self.renamed) {
            self.created.clear();
            self.stamps.clear();
            self.ids.clear();
            self.permitted.clear();
            self.parted.clear();
            self.volume = None;
            self.has_written = false;
            self.loaded = None;
        }
        self.renamed = renamed.or(self.renamed.take());
        self.wants_overwrite = wants_overwrite;
    }

    /// Restarts from the data found in the state folder: the session, if it is usable, or else the files that a damaged
    /// session still claims.
    pub(super) fn record_loaded(&mut self, session: Option<&Session>, salvaged: Option<Salvage>, is_known: bool) {
        let mut durability = std::mem::take(&mut self.durability);
        durability.load(session);
        let mut known = Self {
            is_loaded: true,
            is_known,
            has_metainfo: is_known,
            created: std::mem::take(&mut self.created),
            overwrite_ns: self.overwrite_ns,
            file_names: std::mem::take(&mut self.file_names),
            part_suffix: self.part_suffix,
            permitted: std::mem::take(&mut self.permitted),
            parted: std::mem::take(&mut self.parted),
            durability,
            volume: self.volume.take(),
            has_written: self.has_written,
            stamps: std::mem::take(&mut self.stamps),
            ids: std::mem::take(&mut self.ids),
            saved: session.map(Summary::of_session),
            has_deadline: self.has_deadline,
            is_last: self.is_last,
            has_failed_sync: self.has_failed_sync,
            generation: self.generation + 1,
            intent: self.intent,
            check_pieces: self.check_pieces.take(),
            additions: self.additions,
            moving: self.moving.take(),
            loaded: session.map(|session| Box::new(session.clone())),
            ..Self::new(self.key, self.renamed.take(), self.wants_overwrite)
        };
        if let Some(session) = session {
            known.renamed = known.renamed.or_else(|| session.renamed.clone());
            if known.file_names.is_empty() {
                known.file_names.clone_from(&session.file_names);
            }
            known.part_suffix |= session.part_suffix;
            if session.recheck {
                let limit = Some(&session.recheck_pieces).filter(|pieces| !pieces.is_empty());
                let limit = limit.and_then(|pieces| pieces.to_set(session.pieces));
                known.request_check(limit.as_ref());
            }
            if self.generation == 0 {
                known.moving.clone_from(&session.moving);
            }
        }
        // Knowledge about the files from this run is newer.
        if !self.is_opened {
            known.recall(session, salvaged.unwrap_or_default());
        }
        // Nothing is created before the key of its mark is durable.
        known.claims.current = u32::from(session.is_some_and(|session| session.owner_key != Some(known.key)));
        *self = known;
    }

    /// Records that the session in the state folder is damaged: it is replaced whatever its contents.
    pub(crate) fn record_damaged(&mut self) {
        self.is_damaged = true;
    }

    /// Restores an earlier run's knowledge of the owners of the files.
    fn recall(&mut self, session: Option<&Session>, salvage: Salvage) {
        let Some(session) = session else {
            self.created.extend(salvage.created);
            self.key = salvage.owner_key.unwrap_or(self.key);
            return;
        };
        self.key = session.owner_key.unwrap_or(self.key);
        if !self.wants_overwrite && session.overwrite && session.is_unexamined() {
            (self.wants_overwrite, self.overwrite_ns) = (true, session.overwrite_ns);
        }
        let id = |index: u32| session.ids.get(index as usize).copied().flatten();
        let count = session.files.len().max(session.ids.len()) as u32;
        let list = |runs: &Runs| runs.to_set(count).unwrap_or_default();
        self.created
            .extend(list(&session.created).iter().map(|index| (index, id(index))));
        let permitted: Vec<u32> = match session.overwrite {
            false => list(&session.permitted).iter().collect(),
            true => (0..count).filter(|index| !self.created.contains_key(index)).collect(),
        };
        let permitted = permitted.into_iter().filter_map(|index| Some((index, id(index)?)));
        self.permitted.extend(permitted);
        self.parted
            .extend(session.parted.to_numbers(MAX_PARTED).unwrap_or_default());
    }

    /// Whether a session refers to files of the same names.
    pub(crate) fn has_names_of(&self, session: &Session) -> bool {
        (self.renamed.is_none() || self.renamed == session.renamed)
            && (self.file_names.is_empty() || self.file_names == session.file_names)
    }

    /// Whether the user allowed changes to all files that exist when they are next examined.
    pub(crate) fn wants_overwrite(&self) -> bool {
        self.wants_overwrite
    }

    /// Whether that permission covers a file of the user.
    pub(crate) fn may_overwrite(&self, file: &FoundFile) -> bool {
        self.wants_overwrite && Overwrite::AllFound(self.overwrite_ns).covers_found(file.id, file.stamp)
    }

    /// Returns the time of that permission in nanoseconds since 1970, if known.
    pub(crate) fn overwrite_ns(&self) -> Option<i64> {
        self.overwrite_ns
    }

    /// Protects existing files from changes; returns true if changes were allowed before.
    pub(crate) fn stop_overwriting(&mut self) -> bool {
        let did = !self.is_sharing && (self.wants_overwrite || !self.permitted.is_empty());
        self.is_sharing = true;
        did
    }

    /// Ends the permission to change files that are complete: a file that replaces one of them later is the user's.
    pub(super) fn drop_permissions(&mut self, have: &Bitfield, files: &FileTable, geometry: &Geometry) {
        let is_whole = |index: &u32| {
            let file = files.files().get(*index as usize);
            file.is_none_or(|file| {
                let mut pieces = geometry.pieces_of(file.offset..file.end());
                pieces.all(|piece| have.contains(piece))
            })
        };
        self.permitted.retain(|index, _| !is_whole(index));
    }

    /// Returns the claims to files for the disk.
    pub(crate) fn claims(&self, session: Option<&Session>) -> FileClaims {
        FileClaims {
            created: self.created.iter().map(|(index, id)| (*index as usize, *id)).collect(),
            stamps: match self.stamps.is_empty() {
                true => session.map(|session| session.files.clone()).unwrap_or_default(),
                false => self.stamps.clone(),
            },
            key: Some(self.key),
            overwrite: match (self.is_sharing, self.wants_overwrite) {
                (true, _) => Overwrite::default(),
                (false, true) => Overwrite::AllFound(self.overwrite_ns),
                (false, false) => {
                    let permitted = self.permitted.iter();
                    Overwrite::Only(permitted.map(|(index, id)| (*index as usize, *id)).collect())
                }
            },
            part_suffix: self.part_suffix,
        }
    }

    /// Returns the volume on which the files should be. Its identity matters only for a torrent that has data: any
    /// other may use whatever volume is mounted there.
    pub(crate) fn expected_volume(&self, session: Option<&Session>) -> Option<Volume> {
        let mount_point = session?.volume.clone()?;
        let has_data = self.has_written || session.is_some_and(Session::has_data);
        let known = self.volume.as_ref().and_then(|volume| volume.id.clone());
        let id = known.or_else(|| session?.volume_id.clone());
        Some(Volume {
            mount_point,
            id: id.filter(|_| has_data),
        })
    }

    /// Records how the files were found. Missing files that are wanted will be created if `may_create`; the session
    /// must say so first.
    pub(crate) fn record_found(
        &mut self,
        found: FoundFiles,
        files: &FileTable,
        choice: Option<&FileChoice>,
        may_create: bool,
    ) {
        let mut missing = Vec::new();
        let part = files.files().len();
        match found.files.get(part) {
            Some(Some(file)) => self.record_provenance(part as u32, file.provenance, Some(file.id)),
            Some(None) if may_create => self.claim(part as u32),
            _ => {}
        }
        for ((index, file), entry) in (0..).zip(&found.files).zip(files.files()) {
            if let Some(file) = file {
                self.record_provenance(index, file.provenance, Some(file.id));
                let is_users = entry.len > 0 && file.provenance == Provenance::Found;
                if is_users && may_create && self.may_overwrite(file) {
                    self.permitted.insert(index, file.id);
                    self.claims.current += 1;
                }
            } else if may_create && entry.is_stored() && !is_skipped(choice, index as usize) {
                self.claims.current += u32::from(self.created.get(&index) != Some(&None));
                missing.push((index, None));
            }
        }
        // A map that is built in one step takes half as much memory as one that grew. Of equal indexes, the last one
        // stays.
        self.created = std::mem::take(&mut self.created).into_iter().chain(missing).collect();
        // The permission covers the files that were there, and no others.
        self.wants_overwrite &= !may_create;
        self.ids = found.files.iter().map(|file| file.map(|file| file.id)).collect();
        // Not built in place of the found files, which take twice as much memory.
        self.stamps = found.files.iter().map(|file| file.map(|file| file.stamp)).collect();
        self.volume = Some(found.volume);
        self.resolved = Some(found.root);
        self.folders = Some(found.folders);
        self.is_opened = true;
    }

    /// Claims a file that does not exist, or the part file: it is created when it is first written.
    fn claim(&mut self, index: u32) {
        if let Entry::Vacant(claim) = self.created.entry(index) {
            claim.insert(None);
            self.claims.current += 1;
        }
    }

    /// Whether the session claims a part file. `files` are those of the torrent.
    pub(crate) fn has_part(&self, files: &FileTable) -> bool {
        self.created.contains_key(&(files.files().len() as u32))
    }

    /// Whether a file is known to exist.
    fn is_there(&self, index: usize) -> bool {
        let loaded = || self.loaded.as_ref().map(|session| &session.files);
        let stamps = Some(&self.stamps).filter(|stamps| !stamps.is_empty()).or_else(loaded);
        let is_created = matches!(self.created.get(&(index as u32)), Some(Some(_)));
        is_created || stamps.is_some_and(|stamps| stamps.get(index).copied().flatten().is_some())
    }

    /// Records new priorities, before they are saved. The bytes of a file that was skipped may be in the part file, and
    /// a file that is wanted now may be created when the session says so.
    pub(crate) fn record_choice(
        &mut self,
        (before, after): (&FileChoice, &FileChoice),
        changed: &[usize],
        files: &FileTable,
    ) {
        let mut is_any_skipped = false;
        for &index in changed {
            let is_stored = files.files().get(index).is_some_and(FileEntry::is_stored);
            let was_wanted = before.priority(index).is_wanted();
            let is_wanted = after.priority(index).is_wanted();
            is_any_skipped |= !is_wanted;
            if !is_stored || was_wanted || !is_wanted || self.is_there(index) {
                continue;
            }
            self.parted.insert(index as u32);
            if self.is_opened {
                self.claim(index as u32);
            }
        }
        if is_any_skipped && self.is_opened {
            self.claim(files.files().len() as u32);
        }
    }

    /// Records that the bytes of all skipped files go to the part file: the torrent is new, and existing files are the
    /// user's.
    pub(crate) fn part_all(&mut self, choice: &FileChoice, files: &FileTable) {
        self.parted.extend(choice.skipped(files.files().len() as u32).iter());
    }

    /// Whether the bytes of a file in pieces of other files are in the part file.
    pub(crate) fn is_parted(&self, index: usize, choice: Option<&FileChoice>) -> bool {
        self.parted.contains(&(index as u32)) || (is_skipped(choice, index) && !self.is_there(index))
    }

    /// Returns the wanted files, for the disk, unless all are wanted and there is no part file.
    pub(crate) fn needs(
        &self,
        torrent: InfoHash,
        metainfo: &Metainfo,
        choice: Option<&FileChoice>,
        held: &Bitfield,
    ) -> Option<Box<FileNeeds>> {
        let files = &metainfo.info.files;
        if choice.is_none() && self.parted.is_empty() && !self.has_part(files) {
            return None;
        }
        let count = files.files().len() as u32;
        let skipped = choice.map_or_else(|| Bitfield::new(count), |choice| choice.skipped(count));
        if skipped.is_empty() && self.parted.is_empty() && !self.has_part(files) {
            return None;
        }
        let mut parted = Bitfield::new(count);
        for index in &self.parted {
            parted.insert(*index);
        }
        Some(Box::new(FileNeeds {
            torrent,
            piece_length: metainfo.info.geometry.piece_length(),
            skipped,
            parted,
            held: held.clone(),
        }))
    }

    /// Records the files whose bytes are no longer in the part file alone. Returns whether the disk is to know when the
    /// session says so.
    pub(crate) fn record_moved(&mut self, moved: &[u32], needs: Option<&FileNeeds>, files: &FileTable) -> bool {
        moved.iter().for_each(|file| {
            self.parted.remove(file);
        });
        let is_changed = !moved.is_empty();
        if is_changed {
            self.claims.current += 1;
        } else if let Some(needs) = needs.filter(|needs| needs.parted.is_empty()) {
            // The part file is deleted. Another one may be created when it is needed.
            let index = files.files().len() as u32;
            if needs.skipped.is_empty() {
                self.created.remove(&index);
            } else {
                self.created.insert(index, None);
            }
        }
        is_changed
    }

    /// Records the stamp of a file, or of the part file.
    pub(super) fn record_stamp(&mut self, index: usize, stamp: Option<FileStamp>) {
        if index >= self.stamps.len() {
            self.stamps.resize(index + 1, None);
        }
        self.stamps[index] = stamp;
    }

    /// Records that the torrent may not use the files: they are examined again before it may.
    pub(crate) fn record_refused(&mut self) {
        self.resolved = None;
    }

    /// Records that a user added something to the torrent, so that the torrent is not durable until it is saved.
    pub(crate) fn record_addition(&mut self) {
        self.additions.current += 1;
    }

    /// Whether everything that users added to the torrent is durable.
    pub(crate) fn has_saved_additions(&self) -> bool {
        self.additions.is_durable()
    }

    /// Records that the disk cannot tell which files exist.
    pub(crate) fn record_unopened(&mut self) {
        self.is_opened = true;
    }

    /// Records that the user paused or started the torrent.
    pub(crate) fn set_paused(&mut self, is_paused: bool) {
        self.intent.is_paused = is_paused;
    }

    /// Records that these pieces, or all, are to be hashed when the files are opened next, in addition to those of an
    /// earlier request.
    pub(crate) fn request_check(&mut self, pieces: Option<&Bitfield>) {
        if !std::mem::replace(&mut self.intent.needs_check, true) {
            self.check_pieces = pieces.cloned().map(Box::new);
            return;
        }
        let Some(before) = &mut self.check_pieces else { return };
        let count = before.count();
        match pieces {
            Some(pieces) if pieces.len() == before.len() => before.insert_all(pieces),
            _ => self.check_pieces = None,
        }
        if self.check_pieces.as_ref().map(|pieces| pieces.count()) != Some(count) {
            self.record_addition();
        }
    }

    /// Whether data is to be hashed on request, and that has not ended.
    pub(crate) fn needs_check(&self) -> bool {
        self.intent.needs_check
    }

    /// Returns the pieces to which that check is limited; `None` for all.
    pub(crate) fn check_pieces(&self) -> Option<&Bitfield> {
        self.check_pieces.as_deref()
    }

    /// Returns these pieces as the session lists them.
    pub(super) fn check_runs(&self) -> Runs {
        let pieces = self.check_pieces.iter().flat_map(|pieces| pieces.iter());
        Runs::of(pieces)
    }

    /// Returns the move of the files that has not ended.
    pub(crate) fn moving(&self) -> Option<&SavedMove> {
        self.moving.as_deref()
    }

    /// Records that the files are to be moved to another folder and to other names, or are there already.
    pub(crate) fn begin_move(&mut self, root: PathBuf, names: NewNames, stage: MoveStage) {
        self.moving = Some(Box::new(SavedMove {
            root,
            names,
            stage,
            ..SavedMove::default()
        }));
        self.record_addition();
    }

    /// Records that a move is given up, unless the files are at the new place already.
    pub(crate) fn undo_move(&mut self) {
        if let Some(moving) = self.moving.as_mut().filter(|moving| moving.stage == MoveStage::Copying) {
            moving.stage = MoveStage::Undoing;
            self.record_addition();
        }
    }

    /// Forgets a move that has not begun, because the session that says so could not be written.
    pub(crate) fn drop_unsaved_move(&mut self) {
        self.moving
            .take_if(|moving| matches!(moving.stage, MoveStage::Copying | MoveStage::Relocating));
    }

    /// Records that a move is complete.
    pub(crate) fn end_move(&mut self) {
        self.moving = None;
        if let Some(loaded) = &mut self.loaded {
            loaded.moving = None;
        }
        self.record_addition();
    }

    /// Records that the files are at the new place of a move. The files in `old_root` with `old_names` are to be
    /// deleted when this is durable.
    pub(crate) fn switch_to_moved(
        &mut self,
        (old_root, old_names): (&Path, NewNames),
        new_root: &Path,
        found: FoundFiles,
    ) {
        let names = self.moving.take().map(|moving| moving.names).unwrap_or_default();
        self.renamed = names.name.or(self.renamed.take());
        self.file_names.extend(names.files);
        let loaded = self.loaded.as_deref();
        let volume = self.volume.as_deref();
        self.moving = Some(Box::new(SavedMove {
            root: old_root.to_owned(),
            names: old_names,
            stage: MoveStage::DeletingOld,
            volume: volume
                .map(|volume| volume.mount_point.clone())
                .or_else(|| loaded?.volume.clone()),
            volume_id: volume
                .and_then(|volume| volume.id.clone())
                .or_else(|| loaded?.volume_id.clone()),
            created: Runs::of(self.created.keys().copied()),
            ids: self.known_ids(),
        }));
        // Second names and deletions change the time of a file's last status change.
        let stamp = |file: FoundFile| FileStamp {
            changed_ns: None,
            ..file.stamp
        };
        self.stamps = found.files.iter().map(|file| file.map(stamp)).collect();
        self.ids = found.files.iter().map(|file| file.map(|file| file.id)).collect();
        self.permitted.clear();
        for (index, file) in (0..).zip(&found.files) {
            if let Some(file) = file {
                self.record_provenance(index, file.provenance, Some(file.id));
            }
        }
        let ids = self.known_ids();
        if let Some(loaded) = &mut self.loaded {
            loaded.root = new_root.to_owned();
            loaded.complete_root.take_if(|_| old_root != new_root);
            loaded.renamed.clone_from(&self.renamed);
            loaded.file_names.clone_from(&self.file_names);
            loaded.resolved = Some(found.root.to_path_buf());
            loaded.folder = found.folders.above.first().cloned();
            loaded.volume = Some(found.volume.mount_point.clone());
            loaded.volume_id.clone_from(&found.volume.id);
            loaded.files.clone_from(&self.stamps);
            loaded.created = Runs::of(self.created.keys().copied());
            loaded.permitted = Runs::default();
            loaded.ids = ids;
        }
        self.volume = Some(found.volume);
        self.resolved = Some(found.root);
        self.folders = Some(found.folders);
        self.record_addition();
    }

    /// Records that the files are in another folder, on whatever volume is there. The facts about the files stay valid.
    pub(crate) fn relocate(&mut self, root: &Path) {
        (self.volume, self.resolved, self.folders) = (None, None, None);
        if let Some(loaded) = &mut self.loaded {
            loaded.root = root.to_owned();
            (loaded.resolved, loaded.folder) = (None, None);
            (loaded.volume, loaded.volume_id) = (None, None);
        }
        self.end_move();
    }

    /// Returns the lengths of the files, by index, as far as they are known to exist.
    pub(crate) fn known_lengths(&self) -> Vec<Option<u64>> {
        let loaded = || self.loaded.as_ref().map(|session| &session.files);
        let stamps = Some(&self.stamps).filter(|stamps| !stamps.is_empty()).or_else(loaded);
        let stamps = stamps.into_iter().flatten();
        stamps.map(|stamp| stamp.map(|stamp| stamp.len)).collect()
    }

    /// Returns the claims to the files at the old place of a move.
    pub(crate) fn old_claims(&self) -> FileClaims {
        let Some(moving) = &self.moving else {
            return FileClaims::default();
        };
        let created = moving.created.to_set(moving.ids.len() as u32).unwrap_or_default();
        FileClaims {
            created: created
                .iter()
                .map(|index| (index as usize, moving.ids[index as usize]))
                .collect(),
            key: Some(self.key),
            part_suffix: self.part_suffix,
            ..FileClaims::default()
        }
    }

    /// Returns the loaded session with all changes since, until the held pieces are known.
    pub(crate) fn loaded(&self) -> Option<&Session> {
        self.loaded.as_deref()
    }

    /// Whether the files are closed, and not about to be opened.
    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Records that the files are closed: the torrent is paused, or waits for its volume after a stop.
    pub(crate) fn record_closed(&mut self) {
        (self.is_closed, self.is_opened) = (true, false);
    }

    /// Records that the session is loaded and the files are opened again.
    pub(crate) fn record_reopening(&mut self) {
        (self.is_loaded, self.is_opened, self.is_closed) = (false, false, false);
    }

    /// Records that the session of a stop or a pause could not be written: the torrent stays listed and is not paused.
    pub(crate) fn record_unsaved_end(&mut self) {
        self.intent = SavedIntent::default();
        self.check_pieces = None;
    }

    /// Whether a removal did not find the volume of the data that it was to delete, and deleted nothing.
    pub(crate) fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// Records that a removal that deleted nothing is over. A volume that is found later makes no difference.
    pub(crate) fn record_kept(&mut self) {
        (self.is_kept, self.is_last) = (false, false);
        self.job = Job::None;
    }

    /// Whether the torrent was paused, by its session or in this run.
    pub(crate) fn is_paused(&self) -> bool {
        self.intent.is_paused
    }

    /// Keeps the torrent stopped in everything that is saved of it: it is listed only to be removed, and a removal may
    /// be refused.
    pub(crate) fn keep_stopped(&mut self) {
        self.intent.is_stopped = true;
    }

    /// Whether a user stopped the torrent, according to the session.
    pub(crate) fn was_stopped(&self) -> bool {
        self.saved.is_some_and(|saved| saved.intent.is_stopped)
    }

    /// Records who owns a file: the torrent or the user.
    fn record_provenance(&mut self, index: u32, provenance: Provenance, id: Option<FileId>) {
        match provenance {
            Provenance::Created => self.created.insert(index, id),
            Provenance::Found => self.created.remove(&index),
        };
    }

    /// Records the result of a sync for a file; returns true if the file's identity is new.
    pub(super) fn record_synced(&mut self, file: &SyncedFile) -> bool {
        self.record_provenance(file.index as u32, file.provenance, file.id);
        match self.ids.get_mut(file.index) {
            Some(id) => std::mem::replace(id, file.id) != file.id,
            None => false,
        }
    }

    /// Whether the session claims files that were not created.
    pub(super) fn has_absent_claims(&self) -> bool {
        self.has_result && self.created.values().any(Option::is_none)
    }

    /// Drops the claims to files that were not created: a file that the user puts there before the next run is the
    /// user's. Syncs have reported the identity of every created file, unless one failed: then the files' marks decide.
    pub(super) fn drop_absent_claims(&mut self) {
        if !self.has_failed_sync {
            self.created.retain(|_, id| id.is_some());
        }
    }

    /// Records that the session that was submitted is durable.
    pub(super) fn record_saved(&mut self) {
        self.claims.record_durable();
        self.additions.record_durable();
        self.is_damaged = false;
    }

    /// Whether a session that lists the files to be created is durable, so that they may be created.
    pub(crate) fn may_create(&self) -> bool {
        self.claims.is_durable()
    }

    /// Whether the next run would find the torrent, with the user's intent and everything that users added to it.
    pub(crate) fn is_durable(&self) -> bool {
        let is_it = |saved: Summary| saved.intent == self.intent && (self.has_metainfo || !saved.has_metadata);
        self.saved.is_some_and(is_it) && self.additions.is_durable() && !self.is_damaged
    }

    /// Whether all files that are complete with the held pieces have their final names: the sync of the last save has
    /// taken the suffix from them.
    pub(crate) fn has_final_names(&self, have: &Bitfield) -> bool {
        !self.part_suffix || self.saved.is_some_and(|saved| saved.have_count == have.count())
    }

    /// Whether the contents of the state folder for the torrent are known.
    pub(crate) fn is_loaded(&self) -> bool {
        self.is_loaded
    }

    /// Returns the names that the user chose instead of the metainfo's.
    pub(crate) fn names(&self) -> NewNames {
        NewNames {
            name: self.renamed.clone(),
            files: self.file_names.clone(),
        }
    }

    /// Whether the state folder had data of the torrent before it was added.
    pub(crate) fn is_known(&self) -> bool {
        self.is_known
    }

    /// Returns the existing folders on the paths of the files, once the files were found.
    pub(crate) fn folders(&self) -> Option<&FolderIds> {
        self.folders.as_ref()
    }

    /// Returns the download folder with every link resolved, once the files were found.
    pub(crate) fn resolved(&self) -> Option<&Path> {
        self.resolved.as_deref()
    }

    /// Returns the identity of a file of the torrent.
    pub(crate) fn id(&self, index: usize) -> Option<FileId> {
        self.ids.get(index).copied().flatten()
    }

    /// Returns the identities of all files, by index. A session that the state folder or the disk has not contradicted
    /// keeps the identities of the files that it claims, although the files are not found yet.
    pub(super) fn known_ids(&self) -> Vec<Option<FileId>> {
        let mut ids = self.ids.clone();
        let created = self.created.iter().map(|(index, id)| (*index, *id));
        let permitted = self.permitted.iter().map(|(index, id)| (*index, Some(*id)));
        for (index, id) in created.chain(permitted) {
            let index = index as usize;
            if index >= ids.len() {
                ids.resize(index + 1, None);
            }
            ids[index] = ids[index].or(id);
        }
        ids
    }

    /// Returns a file that is the user's and would have to change to complete the torrent.
    pub(crate) fn obstacle(
        &self,
        have: &Bitfield,
        files: &FileTable,
        choice: Option<&FileChoice>,
        geometry: &Geometry,
    ) -> Option<usize> {
        let is_users = |index: usize| {
            let (key, is_there) = (index as u32, self.stamps.get(index).is_some_and(Option::is_some));
            let is_permitted = !self.is_sharing && self.permitted.contains_key(&key);
            is_there && !is_permitted && !self.created.contains_key(&key) && !is_skipped(choice, index)
        };
        let entries = || files.files().iter().enumerate().filter(|(_, file)| file.is_stored());
        if !entries().any(|(index, _)| is_users(index)) {
            return None;
        }
        let is_short =
            |(index, len): (usize, u64)| is_users(index) && self.stamps[index].is_some_and(|stamp| stamp.len < len);
        let short = entries().find(|(index, file)| is_short((*index, file.len)));
        short.map(|(index, _)| index).or_else(|| {
            have.iter_missing().find_map(|piece| {
                let slices = files.slices(geometry.piece_span(piece));
                let mut places = slices.filter_map(|slice| slice.place);
                let first = places.next()?.file;
                (is_users(first) && places.all(|place| is_users(place.file))).then_some(first)
            })
        })
    }

    /// Records that hashing will determine the held pieces.
    pub(crate) fn record_check(&mut self) {
        self.has_checked = true;
    }

    /// Records that the held pieces are known.
    pub(super) fn record_result(&mut self, have: &Bitfield) {
        self.has_result = true;
        self.intent.needs_check = false;
        self.check_pieces = None;
        self.loaded = None;
        self.durability.keep(have);
    }

    /// Returns the pieces that must be written again before they count, though they can be read.
    pub(crate) fn lost(&self) -> &Bitfield {
        self.durability.lost()
    }

    /// Records that a lost piece was written again.
    pub(crate) fn record_rewritten(&mut self, piece: u32) {
        self.durability.record_written(piece);
    }

    /// Counts new writes of blocks of unfinished pieces.
    pub(super) fn add_spills(&mut self, count: usize) {
        self.spill_count += count;
    }

    /// Whether blocks of unfinished pieces are still being written.
    pub(super) fn is_spilling(&self) -> bool {
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
            counters: session.counters(),
            has_metadata: !session.lacks_metadata,
            have_count: count(&session.have, session.pieces),
            unverified_count: count(&session.unverified, session.pieces),
            partial_count: partial.sum(),
            seconds_active: session.seconds_active,
            added_at: session.added_at,
            completed_at: session.completed_at,
            has_result: !session.files.is_empty(),
            intent: SavedIntent {
                is_paused: session.paused,
                is_stopped: session.stopped,
                needs_check: session.recheck,
            },
        }
    }

    /// Whether the changes since `earlier` are worth a save.
    pub(super) fn differs_from(&self, earlier: &Self, max_unsaved_active_s: u64) -> bool {
        let unsaved = self.seconds_active.saturating_sub(earlier.seconds_active);
        let same_time = Self {
            seconds_active: earlier.seconds_active,
            ..*self
        };
        same_time != *earlier || unsaved >= max_unsaved_active_s
    }
}

#[cfg(test)]
mod tests;
