//! The folder for incomplete torrents (`storage.incomplete_dir`).
//!
//! The opening of a new torrent decides whether its files begin there: they do if none of them exists in the download
//! folder. The torrent keeps its download folder in [`CompleteRoot`], which is saved, and its files are moved there
//! when it has everything that the user wants. The move is that of [`lifecycle`](crate::lifecycle): it survives a
//! kill, and a file of somebody else in the download folder refuses it. Then the files stay where they are until the
//! engine starts again, or until the user moves them.

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{CommandQueue, MoveTorrent, PauseOrStart, Reply};
use ecs_torrent_components::incomplete::{CompleteRoot, IncompleteFolder};
use ecs_torrent_components::messages::{FilesPlaced, LifecycleChanged, PlacedIncomplete, SessionLoaded};
use ecs_torrent_components::names::NewNames;
use ecs_torrent_components::torrent::{Lifecycle, Storage, Torrent};
use ecs_torrent_engine::schedule::{Tick, TickSet};

use crate::DecideSet;
use crate::conditions::has_messages;

/// Lets new torrents begin in the folder for incomplete torrents, and moves them when they are complete.
pub struct IncompletePlugin;

impl Plugin for IncompletePlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<IncompleteFolder>()
            .add_observer(place)
            .add_observer(restore)
            .add_observer(forget)
            .add_systems(
                Tick,
                move_complete
                    .run_if(has_messages::<LifecycleChanged>)
                    .after(DecideSet::Lifecycle)
                    .before(DecideSet::Sessions)
                    .in_set(TickSet::Decide),
            );
    }
}

fn place(placed: On<PlacedIncomplete>, mut commands: Commands) {
    commands
        .entity(placed.torrent)
        .insert(CompleteRoot::new(placed.complete_root.clone()));
}

/// Takes the download folder of an earlier run.
fn restore(loaded: On<SessionLoaded>, mut commands: Commands) {
    if let Some(root) = &loaded.session.complete_root {
        commands.entity(loaded.torrent).insert(CompleteRoot::new(root.clone()));
    }
}

/// Forgets the download folder of a torrent whose files have another place now: they are in it, or the user moved
/// them.
fn forget(placed: On<FilesPlaced>, mut commands: Commands) {
    commands.entity(placed.torrent).try_remove::<CompleteRoot>();
}

/// Moves the files of torrents that have everything that the user wants.
fn move_complete(
    mut changed: MessageReader<LifecycleChanged>,
    mut queue: ResMut<CommandQueue<PauseOrStart>>,
    mut torrents: Query<(&Torrent, &Storage, &mut CompleteRoot)>,
    (clock, wakeup): (Res<Clock>, Res<Wakeup>),
) {
    for LifecycleChanged { torrent, to, .. } in changed.read() {
        if !matches!(to, Lifecycle::Finished | Lifecycle::Seeding) {
            continue;
        }
        let Ok((torrent, storage, mut complete)) = torrents.get_mut(*torrent) else {
            continue;
        };
        if complete.is_requested || storage.root == complete.root {
            continue;
        }
        complete.is_requested = true;
        let label = torrent.label().to_string();
        let command = MoveTorrent {
            torrent: torrent.id(),
            root: Some(complete.root.clone()),
            names: NewNames::default(),
            is_there: false,
            reply: Reply::new(move |result| {
                if let Err(error) = result {
                    tracing::warn!(torrent = %label, "stays in the folder for incomplete torrents: {error}");
                }
            }),
        };
        queue.0.push_back(command.into());
        wakeup.at(clock.now());
    }
}
