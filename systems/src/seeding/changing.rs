//! Changes of a torrent's seeding limits: checked, applied, saved, and answered. They are undone if they cannot be
//! saved.

use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use ecs_torrent_components::commands::{CommandQueue, Reply, SetSeeding, SetSeedingError};
use ecs_torrent_components::seeding::SeedingLimits;

use crate::durable::{DurableChanges, SettleChanges, TakeChanges};

/// Changes of one torrent that are being saved together.
#[derive(Debug)]
pub(super) struct SeedingChange {
    /// The limits before, in case the new ones cannot be saved.
    before: SeedingLimits,
    replies: Vec<Reply<Result<(), SetSeedingError>>>,
}

/// Checks and applies new limits, and saves the torrents with them.
pub(super) fn take_changes(
    mut commands: Commands,
    mut queue: ResMut<CommandQueue<SetSeeding>>,
    mut changes: ResMut<DurableChanges<SeedingChange>>,
    mut taking: TakeChanges,
    torrents: Query<&SeedingLimits>,
) {
    let mut begun: EntityHashMap<(SeedingLimits, SeedingChange)> = EntityHashMap::default();
    let refuse = |command: SetSeeding, error| command.reply.send(Err(SetSeedingError::NotFound(error)));
    for (torrent, command) in taking.take(&mut queue, &changes, refuse) {
        let before = torrents.get(torrent).copied().unwrap_or_default();
        let current = begun.get(&torrent).map_or(before, |(limits, _)| *limits);
        let after = command.patch.apply(&current);
        if let Err(error) = after.check() {
            command.reply.send(Err(error.into()));
            continue;
        }
        let replies = Vec::new();
        let (limits, change) = begun
            .entry(torrent)
            .or_insert_with(|| (after, SeedingChange { before, replies }));
        *limits = after;
        change.replies.push(command.reply);
    }
    for (torrent, (limits, change)) in begun {
        commands.entity(torrent).insert(limits);
        taking.save(torrent, change, &mut changes);
    }
}

/// Answers the changes that are durable, and undoes those that cannot be saved.
pub(super) fn settle_changes(
    mut commands: Commands,
    mut changes: ResMut<DurableChanges<SeedingChange>>,
    mut settling: SettleChanges,
) {
    for (torrent, SeedingChange { before, replies }, result) in settling.take_ended(&mut changes) {
        if result.is_err() {
            commands.entity(torrent).insert(before);
        }
        let answer = result.map_err(SetSeedingError::Unsaved);
        replies.into_iter().for_each(|reply| reply.send(answer.clone()));
    }
}
