//! The second step of opening: the files determine the held pieces, and whether the torrent may use them.

use std::path::PathBuf;

use bevy_ecs::prelude::*;
use bevy_ecs::query::QueryData;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::commands::AddError;
use ecs_torrent_components::incomplete::{CompleteRoot, IncompleteFolder};
use ecs_torrent_components::lifecycle::{ChangedFacts, Readiness};
use ecs_torrent_components::messages::{FailTorrent, PiecesKnown, Remedy};
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{
    Content, Have, Label, Layout, Lifecycle, RequiresComplete, Storage, Torrent, TorrentIndex,
};
use ecs_torrent_components::unverified::SkipsChecking;
use ecs_torrent_components::wanted::{FileChoice, is_skipped};
use ecs_torrent_engine::ports::disk::{DiskDone, DiskError, FoundFile, FoundFiles, Provenance};
use ecs_torrent_protocol::bitfield::Bitfield;

use super::evaluating::{Findings, evaluate};
use super::{OPEN, Opener, Opening};
use crate::checking::CheckPieces;
use crate::lifecycle::adds::Adds;
use crate::ownership::{Candidate, FileRegistry, FolderKeys, Holder, find_conflict};
use crate::sessions::{SaveTorrent, SessionState};
use crate::storage::fault;
use crate::unverified::TakenUnverified;

/// The parts of a torrent that are decided when its files have been found.
#[derive(QueryData)]
#[query_data(mutable)]
pub(in crate::lifecycle) struct Opened {
    pub(super) entity: Entity,
    pub(super) torrent: &'static Torrent,
    pub(super) lifecycle: &'static Lifecycle,
    pub(super) readiness: &'static mut Readiness,
    pub(super) have: &'static Have,
    pub(super) state: &'static mut SessionState,
    pub(super) opening: Option<&'static mut Opening>,
    pub(super) storage: &'static mut Storage,
    pub(super) layout: &'static Layout,
    pub(super) content: &'static Content,
    pub(super) choice: Option<&'static FileChoice>,
    pub(super) complete_root: Option<&'static CompleteRoot>,
    pub(super) requires_complete: Has<RequiresComplete>,
    skips_checking: Has<SkipsChecking>,
}

/// Parameters for the decision on files that were found, apart from the torrent.
#[derive(SystemParam)]
pub(in crate::lifecycle) struct Finder<'w, 's> {
    pub(super) commands: Commands<'w, 's>,
    pub(super) opener: Opener<'w>,
    settings: Res<'w, Settings>,
    has_incomplete_folder: Option<Res<'w, IncompleteFolder>>,
    index: Res<'w, TorrentIndex>,
    adds: ResMut<'w, Adds>,
    registry: ResMut<'w, FileRegistry>,
    changed: ResMut<'w, ChangedFacts>,
    known: MessageWriter<'w, PiecesKnown>,
    checks: MessageWriter<'w, CheckPieces>,
    failed: MessageWriter<'w, FailTorrent>,
    save: MessageWriter<'w, SaveTorrent>,
}

pub(in crate::lifecycle) fn collect_opened(mut finder: Finder, mut torrents: Query<Opened>) {
    let events: Vec<_> = finder.opener.disk.take(OPEN).collect();
    for event in events {
        let torrent = event.tag.owner;
        match event.outcome {
            Ok(DiskDone::Opened(found)) => {
                let obstacle = finder.find_obstacle(torrent, &found, &torrents.as_readonly());
                if let Ok(mut opened) = torrents.get_mut(torrent) {
                    finder.take_in(&mut opened, found, obstacle);
                }
            }
            Ok(_) => {}
            Err(error) => {
                if let Ok(mut opened) = torrents.get_mut(torrent) {
                    finder.fail(&mut opened, &error);
                    finder.save.write(SaveTorrent { torrent });
                }
            }
        }
    }
}

/// Whether the files of a torrent in this state may be examined.
fn is_opening(lifecycle: &Lifecycle, readiness: Readiness) -> bool {
    readiness == Readiness::Unopened && *lifecycle == Lifecycle::Adding
}

impl Finder<'_, '_> {
    /// Returns the folder for incomplete torrents, if there is one.
    pub(super) fn incomplete_folder(&self) -> Option<PathBuf> {
        self.has_incomplete_folder.as_ref()?;
        self.settings.storage.incomplete_dir.clone()
    }

    /// Handles files that cannot be examined: refuses a new torrent that may not use them, and fails any other torrent.
    fn fail(&mut self, opened: &mut OpenedItem<'_, '_>, error: &DiskError) {
        opened.state.record_unopened();
        if !is_opening(opened.lifecycle, *opened.readiness) {
            return;
        }
        if self.place_back(opened, error) {
            return;
        }
        let Some(opening) = &opened.opening else { return };
        if error.is_forbidden() && opening.is_new() {
            let torrent = opened.torrent.name.clone();
            let reason = error.to_string().into();
            let error = AddError::Forbidden { torrent, reason };
            self.refuse(opened.entity, opened.torrent.label(), opening.is_again, error);
            return;
        }
        self.failed.write(fault(opened.entity, error));
        // The torrent waits for its volume, or has failed. If it is not durable yet, its callers wait for that.
        if opened.state.is_durable() {
            self.adds.answer(opened.entity, &Ok(opened.torrent.id()));
        }
    }

    /// Returns the reason why a new torrent cannot use the files that it would write: another torrent uses one of them,
    /// or an existing file is too short to be complete.
    fn find_obstacle(&self, entity: Entity, found: &FoundFiles, torrents: &Query<OpenedReadOnly>) -> Option<AddError> {
        let opened = torrents.get(entity).ok()?;
        if !is_opening(opened.lifecycle, *opened.readiness) || !opened.opening?.is_new() {
            return None;
        }
        let info = &opened.content.0.info;
        let candidate = Candidate {
            torrent: opened.torrent.id(),
            name: &opened.torrent.name,
            info,
            keys: &FolderKeys::new(&found.root).with_folders(Some(&found.folders)),
            found: &found.files,
        };
        let holder = |torrent| {
            let other = torrents.get(self.index.get(torrent)?).ok()?;
            Some(Holder {
                info: &other.content.0.info,
                have: other.have,
            })
        };
        let conflict = find_conflict(&self.registry, &candidate, holder);
        if conflict.is_some() || opened.requires_complete {
            return conflict;
        }
        let files = info.files.files().iter().zip(&found.files).enumerate();
        let is_wanted = |index: usize| !is_skipped(opened.choice, index);
        let mut wanted = files.filter(|(index, _)| is_wanted(*index)).map(|(_, file)| file);
        let short = wanted.find(|(entry, file)| {
            let is_users = |file: &FoundFile| file.provenance == Provenance::Found && !opened.state.may_overwrite(file);
            let is_short = |file: FoundFile| is_users(&file) && file.stamp.len < entry.len;
            entry.is_stored() && file.is_some_and(is_short)
        });
        short.map(|(entry, _)| AddError::WouldChange {
            torrent: opened.torrent.name.clone(),
            path: entry.path.clone(),
        })
    }

    /// Records the found files, and continues with their content.
    fn take_in(&mut self, opened: &mut OpenedItem<'_, '_>, found: FoundFiles, obstacle: Option<AddError>) {
        let is_opening = is_opening(opened.lifecycle, *opened.readiness);
        let is_elsewhere = is_opening
            && match &obstacle {
                Some(error) => self.place_back(opened, error),
                None => self.place_incomplete(opened, &found),
            };
        if is_elsewhere {
            return;
        }
        // Whether a torrent that stops now may use them is decided when it runs again.
        let is_decided = is_opening || !opened.opening.as_ref().is_some_and(|opening| opening.is_new());
        let is_allowed = is_decided && obstacle.is_none();
        let may_create = is_allowed && !opened.requires_complete;
        let stamps: Vec<_> = found.files.iter().map(|file| file.map(|file| file.stamp)).collect();
        let files = &opened.content.0.info.files;
        opened.state.record_found(found, files, opened.choice, may_create);
        if !is_allowed {
            opened.state.record_refused();
        }
        if !is_opening {
            return;
        }
        if obstacle.is_none() && self.open_again_if_shared(opened) {
            return;
        }
        let Some(mut opening) = opened.opening.take() else {
            return;
        };
        self.commands.entity(opened.entity).remove::<Opening>();
        if let Some(error) = obstacle {
            self.refuse(opened.entity, opened.torrent.label(), opening.is_again, error);
            return;
        }
        if opened.state.is_durable() {
            self.adds.answer(opened.entity, &Ok(opened.torrent.id()));
        }
        // All data is hashed if the user requested it, whatever the session says.
        let check = opened.state.needs_check().then(|| opened.state.check_pieces());
        let session = opening.session.take().filter(|_| check != Some(None));
        let is_parted = |index| opened.state.is_parted(index, opened.choice);
        let mut findings = evaluate(session.as_deref(), &stamps, &opened.layout.0, files, is_parted);
        if let Some(pieces) = check.flatten() {
            findings.doubt(pieces);
        }
        if opened.skips_checking {
            let is_unexamined = session.as_ref().is_none_or(|session| session.is_unexamined());
            let pieces = match is_unexamined && check.is_none() {
                true => findings.take_unverified(&stamps, &opened.layout.0, files),
                false => Bitfield::default(),
            };
            opened.state.record_check();
            let torrent = opened.entity;
            self.commands.trigger(TakenUnverified { torrent, pieces });
        }
        self.conclude(opened, findings);
    }

    /// Registers the files of a torrent. If another torrent uses some of them, even only to read them, no existing file
    /// may change. In that case, opens the files again without permission to change them, and returns true.
    fn open_again_if_shared(&mut self, opened: &mut OpenedItem<'_, '_>) -> bool {
        let files = &opened.content.0.info.files;
        let root = opened.state.resolved().unwrap_or(&opened.storage.root);
        let keys = FolderKeys::new(root).with_folders(opened.state.folders());
        let keys = keys.of_table(files, |index| opened.state.id(index));
        self.registry.set(opened.torrent.id(), &opened.torrent.name, keys);
        let placed = opened
            .opening
            .as_ref()
            .and_then(|opening| opening.complete_root.as_deref());
        let known = opened.complete_root.map(|complete| complete.root.as_path());
        if let Some(root) = placed.or(known) {
            self.registry.add_folder(opened.torrent, root, files);
        }
        let is_shared = !self.registry.shared_files(opened.torrent.id()).is_empty();
        let must = is_shared && opened.state.stop_overwriting();
        if must {
            let session = opened.opening.as_ref().and_then(|opening| opening.session.as_deref());
            let (id, metainfo) = (opened.torrent.id(), &opened.content.0);
            let needs = opened.state.needs(id, metainfo, opened.choice, opened.have);
            self.opener
                .open(opened.entity, &mut opened.storage, session, files, &opened.state, needs);
        }
        must
    }

    /// Handles files that the torrent may not use: refuses a torrent that was just added, and fails any other.
    fn refuse(&mut self, torrent: Entity, label: Label<'_>, is_again: bool, error: AddError) {
        if !is_again && self.adds.is_new(torrent) {
            self.adds.refuse(torrent, label, error);
            return;
        }
        let (reason, remedy) = (error.reason().into(), Remedy::None);
        self.adds.answer(torrent, &Err(error));
        self.failed.write(FailTorrent {
            torrent,
            reason,
            remedy,
        });
    }

    /// Publishes the held pieces, and starts the check of the pieces in doubt, if there are any.
    fn conclude(&mut self, opened: &mut OpenedItem<'_, '_>, findings: Findings) {
        let torrent = opened.entity;
        let Findings { have, doubtful } = findings;
        self.known.write(PiecesKnown {
            torrent,
            have: have.clone(),
            is_final: doubtful.is_empty(),
        });
        if doubtful.is_empty() {
            return;
        }
        *opened.readiness = Readiness::Unchecked;
        self.changed.add(torrent);
        opened.state.record_check();
        self.checks.write(CheckPieces {
            torrent,
            doubtful,
            good: have,
            rewrite: opened.state.lost().clone(),
        });
        self.save.write(SaveTorrent { torrent });
        self.opener.wakeup.at(self.opener.clock.now());
    }
}
