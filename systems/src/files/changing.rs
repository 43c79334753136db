//! Changes of file priorities and of the order of pieces: checked, saved, applied, and answered, in this order.

use std::sync::Arc;

use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use bevy_ecs::query::QueryData;
use ecs_torrent_components::commands::{CommandQueue, Reply, SetFiles, SetFilesError};
use ecs_torrent_components::lifecycle::ChangedFacts;
use ecs_torrent_components::messages::WantedChanged;
use ecs_torrent_components::torrent::{Content, Have, Torrent};
use ecs_torrent_components::wanted::{FileChoice, WantedPieces};

use crate::durable::{DurableChanges, SettleChanges, TakeChanges};

/// The most files that one command may name, as a multiple of the torrent's files. Ranges may overlap.
const MAX_NAMED: u64 = 4;

/// Changes of one torrent that are being saved together.
#[derive(Debug, Default)]
pub(super) struct FilesChange {
    /// The choice before, in case the new one cannot be saved.
    before: FileChoice,
    /// The new choice.
    after: FileChoice,
    /// Files whose priority was set.
    files: Vec<usize>,
    replies: Vec<Reply<Result<(), SetFilesError>>>,
}

/// The parts of a torrent that a change reads and writes.
#[derive(QueryData)]
#[query_data(mutable)]
pub(super) struct Changed {
    torrent: &'static Torrent,
    known: Option<(&'static Content, &'static Have)>,
    choice: Option<&'static mut FileChoice>,
    wanted: Option<&'static mut WantedPieces>,
}

/// Checks new priorities, and saves the torrent with them.
pub(super) fn take_changes(
    mut commands: Commands,
    mut queue: ResMut<CommandQueue<SetFiles>>,
    mut changes: ResMut<DurableChanges<FilesChange>>,
    mut taking: TakeChanges,
    mut torrents: Query<Changed>,
) {
    let mut begun: EntityHashMap<FilesChange> = EntityHashMap::default();
    let refuse = |command: SetFiles, error| command.reply.send(Err(SetFilesError::NotFound(error)));
    for (torrent, command) in taking.take(&mut queue, &changes, refuse) {
        if let Ok(changed) = torrents.get(torrent) {
            let change = begun.entry(torrent).or_insert_with(|| FilesChange::new(changed.choice));
            change.add(command, changed.torrent, changed.known);
        }
    }
    for (torrent, change) in begun {
        let Ok(mut changed) = torrents.get_mut(torrent) else {
            continue;
        };
        if change.replies.is_empty() {
            continue;
        }
        if let (Some((content, _)), Some(mut state)) = (changed.known, taking.state_mut(torrent)) {
            let files = &content.0.info.files;
            state.record_choice((&change.before, &change.after), &change.files, files);
        }
        match &mut changed.choice {
            Some(choice) => choice.clone_from(&change.after),
            None => drop(commands.entity(torrent).insert(change.after.clone())),
        }
        taking.save(torrent, change, &mut changes);
    }
}

impl FilesChange {
    fn new(choice: Option<&FileChoice>) -> Self {
        let before = choice.cloned().unwrap_or_default();
        Self {
            after: before.clone(),
            before,
            ..Self::default()
        }
    }

    /// Adds a command, or refuses it.
    fn add(&mut self, command: SetFiles, torrent: &Torrent, known: Option<(&Content, &Have)>) {
        let file_count = known.map(|(content, _)| content.0.info.files.files().len() as u64);
        if let Err(error) = check(&command, torrent, file_count) {
            command.reply.send(Err(error));
            return;
        }
        for (files, priority) in command.priorities {
            for file in files {
                self.after.set(file as usize, priority);
                self.files.push(file as usize);
            }
        }
        self.after.order = command.order.apply(self.after.order);
        self.replies.push(command.reply);
    }

    /// Answers all callers.
    fn answer(self, result: &Result<(), SetFilesError>) {
        self.replies.into_iter().for_each(|reply| reply.send(result.clone()));
    }
}

/// Checks that all files exist. `file_count` is `None` while the files are not known.
fn check(command: &SetFiles, torrent: &Torrent, file_count: Option<u64>) -> Result<(), SetFilesError> {
    let torrent = &torrent.name;
    if command.priorities.is_empty() {
        return Ok(());
    }
    let Some(count) = file_count else {
        return Err(SetFilesError::NoMetadata(torrent.clone()));
    };
    let mut named = 0u64;
    for (files, _) in &command.priorities {
        if u64::from(*files.end()) >= count {
            return Err(SetFilesError::NoSuchFile {
                torrent: torrent.clone(),
                file: *files.end(),
                count,
            });
        }
        named += u64::from(files.end().saturating_sub(*files.start())) + 1;
    }
    match named > MAX_NAMED * count {
        true => Err(SetFilesError::TooMany(torrent.clone())),
        false => Ok(()),
    }
}

/// Applies the changes that are durable, and undoes those that cannot be saved.
pub(super) fn settle_changes(
    mut commands: Commands,
    mut changes: ResMut<DurableChanges<FilesChange>>,
    mut settling: SettleChanges,
    mut facts: ResMut<ChangedFacts>,
    mut applied: MessageWriter<WantedChanged>,
    mut torrents: Query<Changed>,
) {
    for (torrent, change, result) in settling.take_ended(&mut changes) {
        if let Ok(mut changed) = torrents.get_mut(torrent) {
            if result.is_err() {
                if let Some(choice) = &mut changed.choice {
                    choice.clone_from(&change.before);
                }
            } else if let Some(pieces) = changed.apply(torrent, &change, &mut commands) {
                facts.add(torrent);
                let pieces = Arc::from(pieces);
                applied.write(WantedChanged { torrent, pieces });
            }
        }
        change.answer(&result.map_err(SetFilesError::Unsaved));
    }
}

impl ChangedItem<'_, '_> {
    /// Updates the wanted pieces. Returns the pieces whose priority has changed.
    fn apply(&mut self, entity: Entity, change: &FilesChange, commands: &mut Commands) -> Option<Vec<u32>> {
        let (content, have) = self.known?;
        let (files, geometry) = (&content.0.info.files, &content.0.info.geometry);
        let named = change.files.iter().copied();
        if let Some(wanted) = &mut self.wanted {
            return Some(wanted.update(&change.after, named, (files, geometry), have));
        }
        let mut wanted = WantedPieces::new(&FileChoice::default(), files, geometry, have);
        let pieces = wanted.update(&change.after, named, (files, geometry), have);
        commands.entity(entity).insert(wanted);
        Some(pieces)
    }
}
