//! Changes of file priorities and of the order of pieces: checked, saved, applied, and answered, in this order.

use std::sync::Arc;

use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use bevy_ecs::query::QueryData;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{
    AboutTorrent, CommandQueue, Reply, SetFiles, SetFilesError, TorrentNotFound, Unsaved,
};
use ecs_torrent_components::lifecycle::{ChangedFacts, Desired};
use ecs_torrent_components::messages::WantedChanged;
use ecs_torrent_components::torrent::{Content, Have, Torrent, TorrentIndex};
use ecs_torrent_components::wanted::{FileChoice, WantedPieces};

use crate::lifecycle::Adds;
use crate::sessions::{SaveTorrent, SessionState, SessionWritten};

/// The most files that one command may name, as a multiple of the torrent's files. Ranges may overlap.
const MAX_NAMED: u64 = 4;

/// Changes of one torrent that are being saved together.
#[derive(Debug, Default)]
struct Change {
    /// The choice before, in case the new one cannot be saved.
    before: FileChoice,
    /// The new choice.
    after: FileChoice,
    /// Files whose priority was set.
    files: Vec<usize>,
    replies: Vec<Reply<Result<(), SetFilesError>>>,
}

/// Changes that are being saved, by torrent.
#[derive(Resource, Debug, Default)]
pub(super) struct Changes(EntityHashMap<Change>);

/// Returns whether priorities are to be changed, or are being saved.
pub(super) fn has_changes(queue: Res<CommandQueue<SetFiles>>, changes: Res<Changes>) -> bool {
    !queue.0.is_empty() || !changes.0.is_empty()
}

/// The parts of a torrent that a change reads and writes.
#[derive(QueryData)]
#[query_data(mutable)]
pub(super) struct Changed {
    torrent: &'static Torrent,
    desired: &'static Desired,
    known: Option<(&'static Content, &'static Have)>,
    choice: Option<&'static mut FileChoice>,
    wanted: Option<&'static mut WantedPieces>,
    state: &'static mut SessionState,
}

/// Checks new priorities, and saves the torrent with them.
pub(super) fn take_changes(
    mut commands: Commands,
    mut queue: ResMut<CommandQueue<SetFiles>>,
    index: Res<TorrentIndex>,
    adds: Res<Adds>,
    mut changes: ResMut<Changes>,
    mut save: MessageWriter<SaveTorrent>,
    mut torrents: Query<Changed>,
) {
    let is_leaving = |entity| torrents.get(entity).is_ok_and(|changed| changed.desired.is_leaving());
    let decided = adds.take_decided(&mut queue, &index, is_leaving);
    let mut begun: EntityHashMap<Change> = EntityHashMap::default();
    for (command, listed) in decided {
        let Some(entity) = listed.filter(|entity| !is_leaving(*entity)) else {
            let error = TorrentNotFound(command.torrent());
            command.reply.send(Err(error.into()));
            continue;
        };
        match torrents.get(entity) {
            Ok(changed) if changed.state.is_loaded() && !changes.0.contains_key(&entity) => {
                let change = begun.entry(entity).or_insert_with(|| Change::new(changed.choice));
                change.add(command, changed.torrent, changed.known);
            }
            // The torrent was added in this very tick, its session is being loaded, or another change is being saved.
            _ => queue.0.push_back(command),
        }
    }
    for (torrent, change) in begun {
        let Ok(mut changed) = torrents.get_mut(torrent) else {
            continue;
        };
        if change.replies.is_empty() {
            continue;
        }
        if let Some((content, _)) = changed.known {
            let files = &content.0.info.files;
            changed
                .state
                .record_choice((&change.before, &change.after), &change.files, files);
        }
        match &mut changed.choice {
            Some(choice) => choice.clone_from(&change.after),
            None => drop(commands.entity(torrent).insert(change.after.clone())),
        }
        changed.state.record_addition();
        save.write(SaveTorrent { torrent });
        changes.0.insert(torrent, change);
    }
}

impl Change {
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
    (clock, wakeup): (Res<Clock>, Res<Wakeup>),
    mut written: MessageReader<SessionWritten>,
    mut changes: ResMut<Changes>,
    mut facts: ResMut<ChangedFacts>,
    mut applied: MessageWriter<WantedChanged>,
    mut torrents: Query<Changed>,
) {
    for SessionWritten { torrent, result } in written.read() {
        let Ok(mut changed) = torrents.get_mut(*torrent) else {
            continue;
        };
        // An earlier save has ended, and the one of the change follows.
        if result.is_ok() && !changed.state.has_saved_additions() {
            continue;
        }
        let Some(change) = changes.0.remove(torrent) else {
            continue;
        };
        // Commands about the torrent may wait for this.
        wakeup.at(clock.now());
        if let Err(reason) = result {
            if let Some(choice) = &mut changed.choice {
                choice.clone_from(&change.before);
            }
            let unsaved = Unsaved::new(&changed.torrent.name, reason);
            change.answer(&Err(SetFilesError::Unsaved(unsaved)));
            continue;
        }
        if let Some(pieces) = changed.apply(*torrent, &change, &mut commands) {
            facts.add(*torrent);
            let pieces = Arc::from(pieces);
            applied.write(WantedChanged {
                torrent: *torrent,
                pieces,
            });
        }
        change.answer(&Ok(()));
    }
    // A torrent that was stopped was saved with the change.
    let gone: Vec<Entity> = changes
        .0
        .keys()
        .filter(|torrent| !torrents.contains(**torrent))
        .copied()
        .collect();
    for torrent in gone {
        changes
            .0
            .remove(&torrent)
            .into_iter()
            .for_each(|change| change.answer(&Ok(())));
    }
}

impl ChangedItem<'_, '_> {
    /// Updates the wanted pieces. Returns the pieces whose priority has changed.
    fn apply(&mut self, entity: Entity, change: &Change, commands: &mut Commands) -> Option<Vec<u32>> {
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
