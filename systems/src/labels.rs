//! Labels of torrents and their category: given at an add, changed by commands, kept in the session.

use bevy_app::{App, Plugin};
use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use ecs_torrent_components::commands::{CommandQueue, Reply, SetLabels, SetLabelsError};
use ecs_torrent_components::labels::{LabelBounds, Labels};
use ecs_torrent_components::messages::{LabelsGiven, SessionLoaded};
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::Torrent;
use ecs_torrent_engine::schedule::Tick;

use crate::AnnounceSet;
use crate::durable::{DurableChanges, SettleChanges, TakeChanges, has_changes};

/// Keeps the labels of torrents.
pub struct LabelsPlugin;

impl Plugin for LabelsPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<CommandQueue<SetLabels>>()
            .init_resource::<DurableChanges<LabelsChange>>()
            .add_observer(take_labels)
            .add_observer(restore_labels)
            .add_systems(
                Tick,
                (settle_changes, take_changes)
                    .chain()
                    .run_if(has_changes::<SetLabels, LabelsChange>)
                    .in_set(AnnounceSet::Labels),
            );
    }
}

/// Changes of one torrent that are being saved together.
#[derive(Debug)]
struct LabelsChange {
    /// The labels before, in case the new ones cannot be saved.
    before: Labels,
    replies: Vec<Reply<Result<(), SetLabelsError>>>,
}

/// Gives a torrent the labels with which it was added.
fn take_labels(given: On<LabelsGiven>, mut commands: Commands) {
    commands.entity(given.torrent).insert(given.labels.clone());
}

/// Gives a torrent the labels of an earlier run, unless it has some of this run. Labels stay when a setting has become
/// stricter.
fn restore_labels(loaded: On<SessionLoaded>, mut commands: Commands, torrents: Query<&Torrent, Without<Labels>>) {
    let session = &loaded.session;
    let labels = Labels {
        labels: session.labels.iter().cloned().collect(),
        category: session.category.clone(),
    };
    let Ok(torrent) = torrents.get(loaded.torrent) else {
        return;
    };
    if labels.is_empty() {
        return;
    }
    match labels.check(LabelBounds::WIDEST) {
        Ok(()) => drop(commands.entity(loaded.torrent).insert(labels)),
        Err(error) => tracing::warn!(torrent = %torrent.label(), "its labels are not restored: {error}"),
    }
}

/// Checks and applies new labels, and saves the torrents with them.
fn take_changes(
    mut commands: Commands,
    mut queue: ResMut<CommandQueue<SetLabels>>,
    mut changes: ResMut<DurableChanges<LabelsChange>>,
    settings: Res<Settings>,
    mut taking: TakeChanges,
    torrents: Query<&Labels>,
) {
    let mut begun: EntityHashMap<(Labels, LabelsChange)> = EntityHashMap::default();
    let refuse = |command: SetLabels, error| command.reply.send(Err(SetLabelsError::NotFound(error)));
    for (torrent, command) in taking.take(&mut queue, &changes, refuse) {
        let before = torrents.get(torrent).cloned().unwrap_or_default();
        let current = begun.get(&torrent).map_or(&before, |(labels, _)| labels);
        let after = command.patch.apply(current);
        if let Err(error) = after.check(settings.labels.bounds()) {
            command.reply.send(Err(error.into()));
            continue;
        }
        let replies = Vec::new();
        let (labels, change) = begun
            .entry(torrent)
            .or_insert_with(|| (Labels::default(), LabelsChange { before, replies }));
        *labels = after;
        change.replies.push(command.reply);
    }
    for (torrent, (labels, change)) in begun {
        commands.entity(torrent).insert(labels);
        taking.save(torrent, change, &mut changes);
    }
}

/// Answers the changes that are durable, and undoes those that cannot be saved.
fn settle_changes(
    mut commands: Commands,
    mut changes: ResMut<DurableChanges<LabelsChange>>,
    mut settling: SettleChanges,
) {
    for (torrent, LabelsChange { before, replies }, result) in settling.take_ended(&mut changes) {
        if result.is_err() {
            commands.entity(torrent).insert(before);
        }
        let answer = result.map_err(SetLabelsError::Unsaved);
        replies.into_iter().for_each(|reply| reply.send(answer.clone()));
    }
}
