//! Work lists: the entities that a feature visits, each listed at most once.

use std::collections::VecDeque;
use std::marker::PhantomData;

use bevy_ecs::prelude::*;

/// Whether an entity is on a [`WorkList`]. A field of the component that the work concerns; only the list sets it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Listed(bool);

impl Listed {
    /// Records that the entity was taken from the list. The feature that takes an entity calls this, and may list the
    /// entity again.
    pub fn clear(&mut self) {
        self.0 = false;
    }

    /// Whether the entity is on the list.
    #[must_use]
    pub fn is_listed(self) -> bool {
        self.0
    }
}

/// A list of entities with work to do, in the order in which they were added. `W` names the work.
///
/// An entity's flag is in a component that the caller has fetched anyway, so that adding needs no lookup. A despawned
/// entity stays on the list; the system that takes it finds no component.
///
/// ```
/// use bevy_ecs::prelude::*;
/// use ecs_torrent_components::work_list::{Listed, WorkList};
///
/// /// A plugin's component, with the flag of the list.
/// #[derive(Component, Default)]
/// struct Report {
///     pending: u32,
///     listed: Listed,
/// }
///
/// fn visit(mut list: ResMut<WorkList<Report>>, mut reports: Query<&mut Report>) {
///     for entity in list.drain() {
///         if let Ok(mut report) = reports.get_mut(entity) {
///             report.listed.clear();
///             report.pending = 0;
///         }
///     }
/// }
///
/// let mut world = World::new();
/// let entity = world.spawn(Report { pending: 2, ..Report::default() }).id();
/// let mut list = WorkList::<Report>::default();
/// // Listing an entity twice has no effect.
/// for _ in 0..2 {
///     list.add(entity, &mut world.get_mut::<Report>(entity).unwrap().listed);
/// }
/// assert_eq!(list.len(), 1);
/// world.insert_resource(list);
/// world.run_system_cached(visit).unwrap();
/// assert_eq!(world.get::<Report>(entity).unwrap().pending, 0);
/// ```
#[derive(Resource, Debug)]
pub struct WorkList<W: 'static = ()> {
    entities: VecDeque<Entity>,
    work: PhantomData<fn() -> W>,
}

impl<W> Default for WorkList<W> {
    fn default() -> Self {
        Self {
            entities: VecDeque::new(),
            work: PhantomData,
        }
    }
}

impl<W> WorkList<W> {
    /// Lists an entity, unless it is listed.
    pub fn add(&mut self, entity: Entity, listed: &mut Listed) {
        if !std::mem::replace(&mut listed.0, true) {
            self.entities.push_back(entity);
        }
    }

    /// Removes and returns the entity that has been listed longest. Call [`Listed::clear`] on its flag.
    pub fn pop(&mut self) -> Option<Entity> {
        self.entities.pop_front()
    }

    /// Returns the entity that has been listed longest.
    #[must_use]
    pub fn front(&self) -> Option<Entity> {
        self.entities.front().copied()
    }

    /// Removes and returns all entities. Call [`Listed::clear`] on the flag of each.
    pub fn drain(&mut self) -> std::collections::vec_deque::Drain<'_, Entity> {
        self.entities.drain(..)
    }

    /// Keeps the entities for which `keep` holds. Call [`Listed::clear`] on the flags of the others.
    pub fn retain(&mut self, keep: impl FnMut(&Entity) -> bool) {
        self.entities.retain(keep);
    }

    /// Returns the entities in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Entity> + '_ {
        self.entities.iter().copied()
    }

    /// Returns the number of entities.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entities.len()
    }

    /// Whether no entity is listed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entities.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entity_is_listed_once_until_it_is_taken() {
        let [a, b] = [1, 2].map(|id| Entity::from_raw_u32(id).unwrap());
        let (mut listed_a, mut listed_b) = (Listed::default(), Listed::default());
        let mut list: WorkList = WorkList::default();
        list.add(a, &mut listed_a);
        list.add(b, &mut listed_b);
        list.add(a, &mut listed_a);
        assert_eq!((list.len(), list.front()), (2, Some(a)));
        assert_eq!(list.pop(), Some(a));
        list.add(a, &mut listed_a);
        assert_eq!(list.iter().collect::<Vec<_>>(), [b], "taken, and its flag not cleared");
        listed_a.clear();
        list.add(a, &mut listed_a);
        assert_eq!(list.drain().collect::<Vec<_>>(), [b, a]);
        assert!(list.is_empty());
    }
}
