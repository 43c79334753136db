//! The folder for incomplete torrents (`storage.incomplete_dir`), and the end of a torrent's way to its final place.
//!
//! The opening of a new torrent decides whether its files begin there: they do if none of them exists in the download
//! folder. The torrent keeps its download folder in [`CompleteRoot`], which is saved, and its files are moved there
//! when it has everything that the user wants. The move is that of [`lifecycle`](crate::lifecycle): it survives a
//! kill, and a file of somebody else in the download folder refuses it. Then the files stay where they are until the
//! engine starts again, or until the user moves them.
//!
//! [`FilesSettled`] says that the files of a complete torrent have their final folder, and their final names
//! (`storage.part_suffix`).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{CommandQueue, MoveError, MoveTorrent, PauseOrStart, Reply};
use ecs_torrent_components::incomplete::{CompleteMove, CompleteRoot, IncompleteFolder};
use ecs_torrent_components::messages::{
    FilesPlaced, FilesSettled, LifecycleChanged, PlacedIncomplete, SessionLoaded, TorrentCompleted,
};
use ecs_torrent_components::names::NewNames;
use ecs_torrent_components::session::MoveStage;
use ecs_torrent_components::torrent::{Have, Lifecycle, Storage, Torrent};
use ecs_torrent_engine::schedule::{Tick, TickSet};

use crate::DecideSet;
use crate::conditions::has_messages;
use crate::sessions::{SessionState, SessionWritten};

/// Lets new torrents begin in the folder for incomplete torrents, and moves them when they are complete.
pub struct IncompletePlugin;

impl Plugin for IncompletePlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<IncompleteFolder>()
            .init_resource::<Unsettled>()
            .init_resource::<FailedMoves>()
            .add_observer(place)
            .add_observer(restore)
            .add_observer(forget)
            .add_systems(
                Tick,
                (
                    move_complete.run_if(has_messages::<LifecycleChanged>),
                    settle.run_if(has_messages::<TorrentCompleted>.or_else(has_unsettled)),
                )
                    .chain()
                    .after(DecideSet::Lifecycle)
                    .before(DecideSet::Sessions)
                    .in_set(TickSet::Decide),
            );
    }
}

/// Torrents that have completed in this run, and whose files do not have their final folder and names yet.
#[derive(Resource, Debug, Default)]
struct Unsettled(BTreeSet<Entity>);

/// Torrents whose move to their download folder has failed.
#[derive(Resource, Debug, Default, Clone)]
struct FailedMoves(Arc<Mutex<Vec<Entity>>>);

impl FailedMoves {
    fn add(&self, torrent: Entity) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(torrent);
    }

    fn take(&self) -> Vec<Entity> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn has_unsettled(unsettled: Res<Unsettled>) -> bool {
    !unsettled.0.is_empty()
}

fn place(placed: On<PlacedIncomplete>, mut commands: Commands) {
    commands.entity(placed.torrent).insert(CompleteRoot {
        root: placed.complete_root.clone(),
        progress: CompleteMove::Waiting,
    });
}

/// Takes the download folder of an earlier run, which may have begun the move.
fn restore(loaded: On<SessionLoaded>, mut commands: Commands) {
    let Some(root) = &loaded.session.complete_root else {
        return;
    };
    let moving = loaded.session.moving.as_ref();
    let is_begun = moving.is_some_and(|moving| moving.root == *root && moving.stage == MoveStage::Copying);
    commands.entity(loaded.torrent).insert(CompleteRoot {
        root: root.clone(),
        progress: match is_begun {
            true => CompleteMove::Begun,
            false => CompleteMove::Waiting,
        },
    });
}

/// Forgets the download folder of a torrent whose files have another place now: they are in it, or the user moved
/// them.
fn forget(
    placed: On<FilesPlaced>,
    mut commands: Commands,
    mut unsettled: ResMut<Unsettled>,
    mut settled: ResMut<Messages<FilesSettled>>,
    torrents: Query<&CompleteRoot>,
) {
    let FilesPlaced { torrent } = *placed;
    let is_begun = |complete: &CompleteRoot| complete.progress == CompleteMove::Begun;
    if unsettled.0.remove(&torrent) || torrents.get(torrent).is_ok_and(is_begun) {
        settled.write(FilesSettled { torrent });
    }
    commands.entity(torrent).try_remove::<CompleteRoot>();
}

/// Moves the files of torrents that have everything that the user wants.
fn move_complete(
    mut changed: MessageReader<LifecycleChanged>,
    mut queue: ResMut<CommandQueue<PauseOrStart>>,
    mut torrents: Query<(&Torrent, &Storage, &mut CompleteRoot)>,
    failed: Res<FailedMoves>,
    (clock, wakeup): (Res<Clock>, Res<Wakeup>),
) {
    for &LifecycleChanged {
        torrent: entity,
        ref to,
        ..
    } in changed.read()
    {
        if !matches!(to, Lifecycle::Finished | Lifecycle::Seeding) {
            continue;
        }
        let Ok((torrent, storage, mut complete)) = torrents.get_mut(entity) else {
            continue;
        };
        if complete.progress != CompleteMove::Waiting || storage.root == complete.root {
            continue;
        }
        complete.progress = CompleteMove::Begun;
        let (label, failed) = (torrent.label().to_string(), failed.clone());
        let command = MoveTorrent {
            torrent: torrent.id(),
            root: Some(complete.root.clone()),
            names: NewNames::default(),
            is_there: false,
            reply: Reply::new(move |result| match result {
                // The move goes on when the torrent is opened again.
                Ok(_) | Err(MoveError::Interrupted(_)) => {}
                Err(error) => {
                    tracing::warn!(torrent = %label, "not moved to the download folder: {error}");
                    failed.add(entity);
                }
            }),
        };
        queue.0.push_back(command.into());
        wakeup.at(clock.now());
    }
}

/// Parameters that say whether the files of torrents are settled.
#[derive(SystemParam)]
struct SettleParams<'w, 's> {
    completed: MessageReader<'w, 's, TorrentCompleted>,
    written: MessageReader<'w, 's, SessionWritten>,
    failed: Res<'w, FailedMoves>,
    torrents: Query<'w, 's, (&'static SessionState, &'static Have, Option<&'static mut CompleteRoot>)>,
}

/// Reports complete torrents whose files have their final folder and names, or cannot get them.
fn settle(mut params: SettleParams, mut unsettled: ResMut<Unsettled>, mut settled: MessageWriter<FilesSettled>) {
    let mut changed: Vec<(Entity, bool)> = Vec::new();
    for &TorrentCompleted { torrent } in params.completed.read() {
        unsettled.0.insert(torrent);
        changed.push((torrent, false));
    }
    for torrent in params.failed.take() {
        if let Ok((.., Some(mut complete))) = params.torrents.get_mut(torrent) {
            complete.progress = CompleteMove::Failed;
        }
        changed.push((torrent, false));
    }
    let written = params.written.read();
    changed.extend(written.map(|written| (written.torrent, written.result.is_err())));
    for (torrent, has_failed) in changed {
        if !unsettled.0.contains(&torrent) {
            continue;
        }
        let Ok((state, have, complete)) = params.torrents.get(torrent) else {
            unsettled.0.remove(&torrent);
            continue;
        };
        let is_to_move = complete.is_some_and(|complete| complete.progress != CompleteMove::Failed);
        if !is_to_move && (has_failed || state.has_final_names(have)) {
            unsettled.0.remove(&torrent);
            settled.write(FilesSettled { torrent });
        }
    }
}
