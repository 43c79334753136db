//! Wanted files: users choose which files of a torrent are downloaded, which of them first, and in which order their
//! pieces are requested.
//!
//! The choice is intent ([`FileChoice`]) and is saved in the session. The wanted pieces ([`WantedPieces`]) follow from
//! it and from the metadata. A change takes effect when it is durable: then the torrent gets its new wanted pieces,
//! other features read [`WantedChanged`], and the caller is answered. Changes that arrive while an earlier one is being
//! saved wait, and are saved together.

mod changing;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::commands::{CommandQueue, SetFiles};
use ecs_torrent_components::lifecycle::ChangedFacts;
use ecs_torrent_components::messages::{FilesSelected, PieceStored, PiecesKnown, SessionLoaded, WantedChanged};
use ecs_torrent_components::torrent::{Content, Have, Torrent};
use ecs_torrent_components::wanted::{FileChoice, WantedPieces};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::metainfo::Metainfo;

use crate::AnnounceSet;
use crate::durable::{DurableChanges, has_changes};
use crate::having::broadcast_have;

/// Keeps the user's choice of files, and derives the wanted pieces.
pub struct FilesPlugin;

impl Plugin for FilesPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<CommandQueue<SetFiles>>()
            .init_resource::<DurableChanges<changing::FilesChange>>()
            .add_message::<WantedChanged>()
            .add_observer(take_selection)
            .add_observer(restore_choice)
            .add_observer(resolve_choice)
            .add_systems(
                Tick,
                (changing::settle_changes, changing::take_changes)
                    .chain()
                    .run_if(has_changes::<SetFiles, changing::FilesChange>)
                    .in_set(AnnounceSet::Files),
            )
            .add_systems(Tick, record_pieces.in_set(AnnounceSet::Have).after(broadcast_have));
    }
}

/// Records the pieces of torrents that were found or stored, before the states of these torrents are derived.
fn record_pieces(
    mut known: MessageReader<PiecesKnown>,
    mut stored: MessageReader<PieceStored>,
    mut changed: ResMut<ChangedFacts>,
    mut torrents: Query<&mut WantedPieces>,
) {
    for PiecesKnown { torrent, have, .. } in known.read() {
        if let Ok(mut wanted) = torrents.get_mut(*torrent) {
            wanted.record_found(have);
        }
    }
    for &PieceStored { torrent, index, .. } in stored.read() {
        if let Ok(mut wanted) = torrents.get_mut(torrent)
            && wanted.record_stored(index)
            && wanted.unneeded().is_full()
        {
            changed.add(torrent);
        }
    }
}

/// A torrent's name and, once they are known, its files and pieces.
type Known = (&'static Torrent, Option<&'static Content>, Option<&'static Have>);

/// Gives a torrent the files and the order that were selected when it was added.
fn take_selection(given: On<FilesSelected>, mut commands: Commands, torrents: Query<(Known, Option<&FileChoice>)>) {
    if let Ok(((torrent, content, have), choice)) = torrents.get(given.torrent) {
        let known = content.map(|content| (&*content.0, have));
        let choice = choice.cloned().unwrap_or_default();
        let choice = choice.with_selection(given.selection.clone(), given.order);
        give(&mut commands, given.torrent, torrent, choice, known);
    }
}

/// Gives a torrent the choice of an earlier run, unless the user made another one in this run.
fn restore_choice(loaded: On<SessionLoaded>, mut commands: Commands, torrents: Query<(Known, Option<&FileChoice>)>) {
    let Ok(((torrent, content, have), given)) = torrents.get(loaded.torrent) else {
        return;
    };
    let file_count = content.map_or(0, |content| content.0.info.files.files().len() as u32);
    let choice = loaded.session.file_choice_after(file_count, given);
    if let Some(choice) = choice.filter(|choice| Some(choice) != given) {
        let known = content.map(|content| (&*content.0, have));
        give(&mut commands, loaded.torrent, torrent, choice, known);
    }
}

/// Derives the wanted pieces of a torrent whose files have become known.
fn resolve_choice(
    known: On<Add<Content>>,
    mut commands: Commands,
    torrents: Query<(&Torrent, &FileChoice, &Content, Option<&Have>)>,
) {
    if let Ok((torrent, choice, content, have)) = torrents.get(known.entity) {
        let known_files = Some((&*content.0, have));
        give(&mut commands, known.entity, torrent, choice.clone(), known_files);
    }
}

/// Gives a torrent a choice of files, and the pieces that follow from it if its files are known.
fn give(
    commands: &mut Commands,
    entity: Entity,
    torrent: &Torrent,
    mut choice: FileChoice,
    known: Option<(&Metainfo, Option<&Have>)>,
) {
    if let Some((metainfo, have)) = known {
        let (files, geometry) = (&metainfo.info.files, &metainfo.info.geometry);
        if !choice.resolve(files) {
            tracing::warn!(torrent = %torrent.label(), "no file matches the selection; nothing is downloaded");
        }
        // A torrent that has just become known holds no piece yet.
        let none = Bitfield::new(geometry.piece_count());
        let have = have.map_or(&none, |have| have);
        let wanted = WantedPieces::new(&choice, files, geometry, have);
        commands.entity(entity).insert(wanted);
    }
    commands.entity(entity).insert(choice);
}

#[cfg(test)]
mod tests {
    use ecs_torrent_components::wanted::FilePriority;
    use ecs_torrent_protocol::files::{FileEntry, FileTable};

    use super::*;
    use crate::testing::Bed;

    /// The last wanted piece changes the torrent's state, and another one does not.
    #[test]
    fn the_last_wanted_piece_changes_the_torrent() {
        let mut bed = Bed::new(());
        bed.world.init_resource::<ChangedFacts>();
        bed.world.init_resource::<Messages<PiecesKnown>>();
        let torrent = bed.torrent;
        // The first of two files ends in the second of three pieces.
        let entry = |path: &str, offset, len| FileEntry {
            path: path.into(),
            len,
            offset,
            attributes: Default::default(),
        };
        let files = FileTable::new(vec![entry("a", 0, 40_000), entry("b", 40_000, 58_304)]);
        let mut choice = FileChoice::default();
        choice.set(1, FilePriority::Skip);
        let wanted = WantedPieces::new(&choice, &files, &bed.geometry, &Bitfield::new(3));
        bed.world.entity_mut(torrent).insert(wanted);
        for (index, is_changed) in [(2, false), (0, false), (1, true), (1, false)] {
            bed.run_after(PieceStored { torrent, index, len: 1 }, record_pieces);
            let count = bed.world.resource_mut::<ChangedFacts>().drain().count();
            assert_eq!(count, usize::from(is_changed), "{index}");
        }
    }
}
