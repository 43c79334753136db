//! Changes of a torrent's limits: checked, applied, saved, and answered. They are undone if they cannot be saved.

use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{
    AboutTorrent, CommandQueue, Reply, SetLimits, SetLimitsError, TorrentNotFound, Unsaved,
};
use ecs_torrent_components::lifecycle::Desired;
use ecs_torrent_components::rate_limit::TransferLimits;
use ecs_torrent_components::torrent::{Torrent, TorrentIndex};

use crate::lifecycle::Adds;
use crate::sessions::{SaveTorrent, SessionState, SessionWritten};

/// Changes of one torrent that are being saved together.
#[derive(Debug)]
struct Change {
    /// The limits before, in case the new ones cannot be saved.
    before: TransferLimits,
    replies: Vec<Reply<Result<(), SetLimitsError>>>,
}

/// Changes that are being saved, by torrent.
#[derive(Resource, Debug, Default)]
pub(super) struct LimitChanges(EntityHashMap<Change>);

/// Returns whether limits are to be changed, or are being saved.
pub(super) fn has_changes(queue: Res<CommandQueue<SetLimits>>, changes: Res<LimitChanges>) -> bool {
    !queue.0.is_empty() || !changes.0.is_empty()
}

/// The parts of a torrent that a change reads and writes.
type Changed = (
    &'static Torrent,
    &'static Desired,
    Option<&'static TransferLimits>,
    &'static mut SessionState,
);

/// Checks and applies new limits, and saves the torrents with them.
pub(super) fn take_changes(
    mut commands: Commands,
    mut queue: ResMut<CommandQueue<SetLimits>>,
    index: Res<TorrentIndex>,
    adds: Res<Adds>,
    mut changes: ResMut<LimitChanges>,
    mut save: MessageWriter<SaveTorrent>,
    mut torrents: Query<Changed>,
) {
    let is_leaving = |entity| torrents.get(entity).is_ok_and(|(_, desired, ..)| desired.is_leaving());
    let decided = adds.take_decided(&mut queue, &index, is_leaving);
    let mut begun: EntityHashMap<(TransferLimits, Change)> = EntityHashMap::default();
    for (command, listed) in decided {
        let Some(entity) = listed.filter(|entity| !is_leaving(*entity)) else {
            let error = TorrentNotFound(command.torrent());
            command.reply.send(Err(error.into()));
            continue;
        };
        match torrents.get(entity) {
            Ok((_, _, limits, state)) if state.is_loaded() && !changes.0.contains_key(&entity) => {
                let before = limits.copied().unwrap_or_default();
                let current = begun.get(&entity).map_or(before, |(limits, _)| *limits);
                let after = command.patch.apply(&current);
                if let Err(error) = after.check() {
                    command.reply.send(Err(error.into()));
                    continue;
                }
                let replies = Vec::new();
                let (limits, change) = begun
                    .entry(entity)
                    .or_insert_with(|| (after, Change { before, replies }));
                *limits = after;
                change.replies.push(command.reply);
            }
            // The torrent was added in this very tick, its session is being loaded, or another change is being saved.
            _ => queue.0.push_back(command),
        }
    }
    for (torrent, (limits, change)) in begun {
        if let Ok((.., mut state)) = torrents.get_mut(torrent) {
            state.record_addition();
            commands.entity(torrent).insert(limits);
            save.write(SaveTorrent { torrent });
            changes.0.insert(torrent, change);
        }
    }
}

/// Answers the changes that are durable, and undoes those that cannot be saved.
pub(super) fn settle_changes(
    mut commands: Commands,
    (clock, wakeup): (Res<Clock>, Res<Wakeup>),
    mut written: MessageReader<SessionWritten>,
    mut changes: ResMut<LimitChanges>,
    torrents: Query<(&Torrent, &SessionState)>,
) {
    for SessionWritten { torrent, result } in written.read() {
        let Ok((names, state)) = torrents.get(*torrent) else {
            continue;
        };
        // An earlier save has ended, and the one of the change follows.
        if result.is_ok() && !state.has_saved_additions() {
            continue;
        }
        let Some(Change { before, replies }) = changes.0.remove(torrent) else {
            continue;
        };
        // Commands about the torrent may wait for this.
        wakeup.at(clock.now());
        let answer = match result {
            Ok(()) => Ok(()),
            Err(reason) => {
                commands.entity(*torrent).insert(before);
                Err(SetLimitsError::Unsaved(Unsaved::new(&names.name, reason)))
            }
        };
        replies.into_iter().for_each(|reply| reply.send(answer.clone()));
    }
    // A torrent that was stopped was saved with the change.
    changes.0.retain(|torrent, change| {
        let is_listed = torrents.contains(*torrent);
        if !is_listed {
            change.replies.drain(..).for_each(|reply| reply.send(Ok(())));
        }
        is_listed
    });
}
