//! Changes of places in the queue: applied, saved, and answered. They are undone if they cannot be saved.
//!
//! A move by one place exchanges the numbers of two torrents, so that both are saved. After a crash between the two saves,
//! both have the same number, and their hashes decide.

use std::ops::Bound::{Excluded, Unbounded};

use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{CommandQueue, Reply, SetQueue, SetQueueError};
use ecs_torrent_components::messages::PlaceChanged;
use ecs_torrent_components::queue::{ForcedStart, QueueFacts, QueueMove, QueueOrder};
use ecs_torrent_components::torrent::Torrent;

use super::Queue;
use super::lanes::Place;
use crate::durable::{DurableChanges, SettleChanges, TakeChanges};

/// A change of one torrent that is being saved.
#[derive(Debug)]
pub(super) struct QueueChanged {
    /// The place before, in case the new one cannot be saved.
    order: i64,
    was_forced: bool,
    reply: Reply<Result<(), SetQueueError>>,
}

/// The torrents' places.
#[derive(SystemParam)]
pub(super) struct Places<'w, 's> {
    commands: Commands<'w, 's>,
    clock: Res<'w, Clock>,
    wakeup: Res<'w, Wakeup>,
    queue: ResMut<'w, Queue>,
    torrents: Query<'w, 's, (&'static Torrent, &'static mut QueueOrder, QueueFacts)>,
}

impl Places<'_, '_> {
    /// Gives a torrent a place and a mark. Returns those that it had.
    fn set(&mut self, torrent: Entity, order: Option<i64>, is_forced: Option<bool>) -> (i64, bool) {
        let Ok((data, mut known, facts)) = self.torrents.get_mut(torrent) else {
            return (0, false);
        };
        let before = (known.0, facts.is_forced);
        let order = order.unwrap_or(known.0);
        self.queue.reorder(torrent, data, known.0, order);
        known.0 = order;
        match is_forced {
            Some(true) => drop(self.commands.entity(torrent).insert(ForcedStart)),
            Some(false) => drop(self.commands.entity(torrent).remove::<ForcedStart>()),
            None => {}
        }
        self.commands.trigger(PlaceChanged { torrent });
        self.wakeup.at(self.clock.now());
        before
    }

    /// Returns the new place of a torrent, and the torrent that gets its place; `None` if it stays where it is.
    fn moved(&self, torrent: Entity, movement: QueueMove) -> Option<(i64, Option<Place>)> {
        let (data, QueueOrder(order), facts) = self.torrents.get(torrent).ok()?;
        let here = Place {
            order: *order,
            id: data.id(),
            torrent,
        };
        let is_like = |place: &&Place| {
            let other = self.torrents.get(place.torrent);
            other.is_ok_and(|(.., other)| other.is_finished() == facts.is_finished())
        };
        let (first, last) = (self.queue.order.first()?, self.queue.order.last()?);
        match movement {
            QueueMove::Top => (*first != here).then(|| (first.order.saturating_sub(1), None)),
            QueueMove::Bottom => (*last != here).then(|| (last.order.saturating_add(1), None)),
            QueueMove::Up => {
                let other = self.queue.order.range(..here).rev().find(is_like)?;
                Some((other.order, Some(*other)))
            }
            QueueMove::Down => {
                let other = self.queue.order.range((Excluded(here), Unbounded)).find(is_like)?;
                Some((other.order, Some(*other)))
            }
        }
    }
}

/// Applies changes, and saves the torrents with them.
pub(super) fn take_changes(
    mut queue: ResMut<CommandQueue<SetQueue>>,
    mut changes: ResMut<DurableChanges<QueueChanged>>,
    mut taking: TakeChanges,
    mut places: Places,
) {
    let refuse = |command: SetQueue, error| command.reply.send(Err(SetQueueError::NotFound(error)));
    for (torrent, command) in taking.take(&mut queue, &changes, refuse) {
        let moved = command.change.movement.map(|movement| places.moved(torrent, movement));
        let moved = moved.flatten();
        let partner = moved.and_then(|(_, partner)| partner);
        // An earlier change of one of them is being saved.
        if changes.has(torrent) || partner.is_some_and(|partner| changes.has(partner.torrent)) {
            queue.0.push_back(command);
            continue;
        }
        let SetQueue { change, reply, .. } = command;
        let (order, was_forced) = places.set(torrent, moved.map(|(order, _)| order), change.forced);
        let mut replies = reply.split(1 + usize::from(partner.is_some()));
        if let (Some(partner), Some(reply)) = (partner, replies.pop_if(|_| partner.is_some())) {
            let (before, was_forced) = places.set(partner.torrent, Some(order), None);
            let change = QueueChanged {
                order: before,
                was_forced,
                reply,
            };
            taking.save(partner.torrent, change, &mut changes);
        }
        for reply in replies {
            let change = QueueChanged {
                order,
                was_forced,
                reply,
            };
            taking.save(torrent, change, &mut changes);
        }
    }
}

/// Answers the changes that are durable, and undoes those that cannot be saved.
pub(super) fn settle_changes(
    mut changes: ResMut<DurableChanges<QueueChanged>>,
    mut settling: SettleChanges,
    mut places: Places,
) {
    for (torrent, changed, result) in settling.take_ended(&mut changes) {
        if result.is_err() {
            places.set(torrent, Some(changed.order), Some(changed.was_forced));
        }
        changed.reply.send(result.map_err(SetQueueError::Unsaved));
    }
}
