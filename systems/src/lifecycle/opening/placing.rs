//! The choice between the download folder and the folder for incomplete torrents, see [`crate::incomplete`].

use ecs_torrent_components::messages::{FilesPlaced, PlacedIncomplete};
use ecs_torrent_engine::ports::disk::FoundFiles;

use super::finding::{Finder, OpenedItem};

impl Finder<'_, '_> {
    /// Opens a new torrent of which no file exists in the folder for incomplete torrents. Returns whether it does so.
    pub(super) fn place_incomplete(&mut self, opened: &mut OpenedItem<'_, '_>, found: &FoundFiles) -> bool {
        let Some(folder) = self.incomplete_folder() else {
            return false;
        };
        let has_files = found.files.iter().any(Option::is_some);
        let has_folder = opened.complete_root.is_some() || opened.requires_complete;
        let Some(opening) = opened.opening.as_mut().filter(|opening| opening.is_new()) else {
            return false;
        };
        if opening.is_placed || has_files || has_folder || folder == opened.storage.root {
            return false;
        }
        let complete_root = std::mem::replace(&mut opened.storage.root, folder);
        (opening.is_placed, opening.has_root, opening.session) = (true, true, None);
        opening.complete_root = Some(complete_root.clone());
        self.commands.trigger(PlacedIncomplete {
            torrent: opened.entity,
            complete_root,
        });
        self.open_elsewhere(opened);
        true
    }

    /// Opens a torrent in its download folder after all, if it has just been placed in the folder for incomplete
    /// torrents and cannot use that. Returns whether it does so.
    pub(super) fn place_back(&mut self, opened: &mut OpenedItem<'_, '_>, reason: &dyn std::fmt::Display) -> bool {
        let Some(opening) = &mut opened.opening else {
            return false;
        };
        let Some(root) = opening.complete_root.take() else {
            return false;
        };
        tracing::info!(torrent = %opened.torrent.label(), "opened in the download folder: {reason}");
        opened.storage.root = root;
        let torrent = opened.entity;
        self.commands.trigger(FilesPlaced { torrent });
        self.open_elsewhere(opened);
        true
    }

    fn open_elsewhere(&mut self, opened: &mut OpenedItem<'_, '_>) {
        opened.state.record_addition();
        let (id, metainfo) = (opened.torrent.id(), &opened.content.0);
        let needs = opened.state.needs(id, metainfo, opened.choice, opened.have);
        let files = &metainfo.info.files;
        self.opener
            .open(opened.entity, &mut opened.storage, None, files, &opened.state, needs);
    }
}
