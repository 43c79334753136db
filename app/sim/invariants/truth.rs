//! A piece that is had lies verified on the disk.

use std::fmt;

use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::torrent::{Have, Storage, Torrent};
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::wire::Block;

use super::{Invariant, Violations};

/// Who knows what is really on the disk: whether a piece of a torrent in a download folder is there as it should be.
#[derive(Resource)]
pub struct Truth {
    is_there: Box<dyn Fn(&Torrent, &Storage, u32) -> bool + Send + Sync>,
    is_right: Box<dyn Fn(&Torrent, &Block) -> bool + Send + Sync>,
    trespasses: Box<dyn Fn() -> Vec<String> + Send + Sync>,
}

impl Truth {
    /// Asks `is_there` about each piece that an engine says it has.
    #[must_use]
    pub fn new(is_there: impl Fn(&Torrent, &Storage, u32) -> bool + Send + Sync + 'static) -> Self {
        Self {
            is_there: Box::new(is_there),
            is_right: Box::new(|_, _| true),
            trespasses: Box::new(Vec::new),
        }
    }

    /// Asks `is_right` about each block that an engine serves.
    #[must_use]
    pub fn with_bytes(self, is_right: impl Fn(&Torrent, &Block) -> bool + Send + Sync + 'static) -> Self {
        Self {
            is_right: Box::new(is_right),
            ..self
        }
    }

    /// Asks `trespasses` now and then what the engine did to files that are not its own.
    #[must_use]
    pub fn with_trespasses(self, trespasses: impl Fn() -> Vec<String> + Send + Sync + 'static) -> Self {
        Self {
            trespasses: Box::new(trespasses),
            ..self
        }
    }

    pub(super) fn is_right(&self, torrent: &Torrent, block: &Block) -> bool {
        (self.is_right)(torrent, block)
    }
}

impl fmt::Debug for Truth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Truth")
    }
}

/// What each torrent was known to have.
#[derive(Resource, Default)]
pub(super) struct Known(EntityHashMap<Bitfield>);

pub(super) fn check(
    clock: Res<Clock>,
    truth: Option<Res<Truth>>,
    mut known: ResMut<Known>,
    mut violations: ResMut<Violations>,
    changed: Query<(Entity, &Torrent, &Storage, &Have), Changed<Have>>,
    mut gone: RemovedComponents<Have>,
) {
    for torrent in gone.read() {
        known.0.remove(&torrent);
    }
    let Some(truth) = truth else { return };
    for (entity, torrent, storage, Have(have)) in &changed {
        let before = known.0.entry(entity).or_insert_with(|| Bitfield::new(have.len()));
        for piece in have.iter_without(before) {
            if !(truth.is_there)(torrent, storage, piece) {
                violations.note(&clock, Invariant::Truth, || {
                    format!(
                        "{} says that it has piece {piece}, which is not on the disk",
                        torrent.name
                    )
                });
            }
        }
        before.clone_from(have);
    }
}

/// Files of the user stay as they are.
pub(super) fn check_owners(clock: Res<Clock>, truth: Option<Res<Truth>>, mut violations: ResMut<Violations>) {
    let Some(truth) = truth else { return };
    for what in (truth.trespasses)() {
        violations.note(&clock, Invariant::Owners, || what);
    }
}
