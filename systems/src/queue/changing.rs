//! Changes of places in the queue: applied, saved, and answered. They are undone if they cannot be saved.
//!
//! A move by one place exchanges the numbers of two torrents, and a move to a place may shift its neighbors, so that
//! several torrents are saved. After a crash between the saves, two may have the same number, and their hashes decide.

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

    /// Returns the number of a torrent.
    fn order_of(&self, torrent: Entity) -> Option<i64> {
        self.torrents.get(torrent).ok().map(|(_, order, _)| order.0)
    }

    /// Returns the new numbers of the torrents that get another one by a move, the moved one first.
    fn moved(&self, torrent: Entity, movement: QueueMove) -> Vec<(Entity, i64)> {
        let Ok((data, QueueOrder(order), _)) = self.torrents.get(torrent) else {
            return Vec::new();
        };
        let here = Place {
            order: *order,
            id: data.id(),
            torrent,
        };
        let exchanged = |other: Option<&Place>| match other {
            Some(other) => vec![(torrent, other.order), (other.torrent, here.order)],
            None => Vec::new(),
        };
        let order = &self.queue.order;
        match movement {
            // The ends are found without a look at the others.
            QueueMove::Top => match order.first() {
                Some(first) if *first != here => vec![(torrent, first.order.saturating_sub(1))],
                _ => Vec::new(),
            },
            QueueMove::Bottom => match order.last() {
                Some(last) if *last != here => vec![(torrent, last.order.saturating_add(1))],
                _ => Vec::new(),
            },
            QueueMove::Place(number) => self.placed(here, number.get() as usize - 1),
            QueueMove::Up => exchanged(order.range(..here).next_back()),
            QueueMove::Down => exchanged(order.range((Excluded(here), Unbounded)).next()),
        }
    }

    /// Returns the new numbers for a torrent that gets `index` others before it. If there is no number between its
    /// neighbors, the others on the shorter side make place, as far as necessary.
    fn placed(&self, here: Place, index: usize) -> Vec<(Entity, i64)> {
        let order = &self.queue.order;
        if order.iter().nth(index.min(order.len().saturating_sub(1))) == Some(&here) {
            return Vec::new();
        }
        let others: Vec<&Place> = order.iter().filter(|place| **place != here).collect();
        let (before, after) = others.split_at(index.min(others.len()));
        let (Some(last), Some(first)) = (before.last(), after.first()) else {
            let end = before.last().map(|last| last.order.saturating_add(1));
            let begin = after.first().map(|first| first.order.saturating_sub(1));
            return end.or(begin).map(|order| (here.torrent, order)).into_iter().collect();
        };
        let gap = first.order.saturating_sub(last.order);
        if gap >= 2 {
            return vec![(here.torrent, last.order + gap / 2)];
        }
        let is_front = before.len() <= after.len();
        let step: i64 = if is_front { -1 } else { 1 };
        let neighbor = if is_front { first } else { last };
        let mut limit = neighbor.order.saturating_add(step);
        let mut moved = vec![(here.torrent, limit)];
        let side: &mut dyn Iterator<Item = &&Place> = match is_front {
            true => &mut before.iter().rev(),
            false => &mut after.iter(),
        };
        for place in side {
            if place.order.saturating_sub(limit).signum() == step {
                break;
            }
            limit = limit.saturating_add(step);
            moved.push((place.torrent, limit));
        }
        moved
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
        let mut moved = moved.unwrap_or_default();
        // An earlier change of one of them is being saved.
        if changes.has(torrent) || moved.iter().any(|(other, _)| changes.has(*other)) {
            queue.0.push_back(command);
            continue;
        }
        let SetQueue { change, reply, .. } = command;
        if moved.is_empty() {
            moved.extend(places.order_of(torrent).map(|order| (torrent, order)));
        }
        let replies = reply.split(moved.len());
        for ((moved, order), reply) in moved.into_iter().zip(replies) {
            let forced = change.forced.filter(|_| moved == torrent);
            let (order, was_forced) = places.set(moved, Some(order), forced);
            let change = QueueChanged {
                order,
                was_forced,
                reply,
            };
            taking.save(moved, change, &mut changes);
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
