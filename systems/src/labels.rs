//! Labels of torrents and their category: given at an add, changed by commands, kept in the session.

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::commands::{CommandQueue, Reply, SetLabels, SetLabelsError, Unsaved};
use ecs_torrent_components::labels::{LabelBounds, Labels};
use ecs_torrent_components::messages::{LabelsGiven, SessionLoaded};
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::Torrent;
use ecs_torrent_engine::schedule::Tick;

use crate::AnnounceSet;
use crate::durable::{ComponentChange, DurableChanges, SetComponent, SettleComponents, TakeComponents, has_changes};

/// Keeps the labels of torrents.
pub struct LabelsPlugin;

impl Plugin for LabelsPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<CommandQueue<SetLabels>>()
            .init_resource::<DurableChanges<ComponentChange<SetLabels>>>()
            .add_observer(take_labels)
            .add_observer(restore_labels)
            .add_systems(
                Tick,
                (settle_changes, take_changes)
                    .chain()
                    .run_if(has_changes::<SetLabels, ComponentChange<SetLabels>>)
                    .in_set(AnnounceSet::Labels),
            );
    }
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
        Err(error) => tracing::warn!(torrent = %torrent.label(), "labels not restored: {error}"),
    }
}

impl SetComponent for SetLabels {
    type Component = Labels;
    type Error = SetLabelsError;

    fn changed(&self, current: &Labels, settings: &Settings) -> Result<Labels, SetLabelsError> {
        let after = self.patch.apply(current);
        after.check(settings.labels.bounds())?;
        Ok(after)
    }

    fn unsaved(error: Unsaved) -> SetLabelsError {
        SetLabelsError::Unsaved(error)
    }

    fn into_reply(self) -> Reply<Result<(), SetLabelsError>> {
        self.reply
    }
}

/// Checks and applies new labels, and saves the torrents with them.
fn take_changes(mut taking: TakeComponents<SetLabels>) {
    taking.take();
}

/// Answers the changes that are durable, and undoes those that cannot be saved.
fn settle_changes(mut settling: SettleComponents<SetLabels>) {
    settling.settle();
}
