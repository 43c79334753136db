//! A held piece is stored on the disk as verified.

use std::fmt;
use std::sync::Arc;

use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::torrent::{Content, Have, Storage, Torrent};
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::metainfo::Metainfo;
use ecs_torrent_protocol::wire::Block;

use super::{Invariant, Violations};

/// The actual state of the disk: whether a torrent's piece in a download folder is stored correctly.
#[derive(Resource)]
pub struct Truth {
    is_there: Box<dyn Fn(&Arc<Metainfo>, &Storage, u32) -> bool + Send + Sync>,
    is_right: Box<dyn Fn(&Torrent, &Block) -> bool + Send + Sync>,
    trespasses: Box<dyn Fn() -> Vec<String> + Send + Sync>,
}

impl Truth {
    /// Creates a check that calls `is_there` for each piece that an engine claims to have.
    #[must_use]
    pub fn new(is_there: impl Fn(&Arc<Metainfo>, &Storage, u32) -> bool + Send + Sync + 'static) -> Self {
        Self {
            is_there: Box::new(is_there),
            is_right: Box::new(|_, _| true),
            trespasses: Box::new(Vec::new),
        }
    }

    /// Adds a check that calls `is_right` for each block that an engine serves.
    #[must_use]
    pub fn with_bytes(self, is_right: impl Fn(&Torrent, &Block) -> bool + Send + Sync + 'static) -> Self {
        Self {
            is_right: Box::new(is_right),
            ..self
        }
    }

    /// Adds a check that calls `trespasses` at intervals for changes that the engine made to foreign files.
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

/// The pieces that each torrent was known to have.
#[derive(Resource, Default)]
pub(super) struct Known(EntityHashMap<Bitfield>);

pub(super) fn check(
    clock: Res<Clock>,
    truth: Option<Res<Truth>>,
    mut known: ResMut<Known>,
    mut violations: ResMut<Violations>,
    changed: Query<(Entity, &Torrent, &Content, &Storage, &Have), Changed<Have>>,
    mut gone: RemovedComponents<Have>,
) {
    for torrent in gone.read() {
        known.0.remove(&torrent);
    }
    let Some(truth) = truth else { return };
    for (entity, torrent, content, storage, have) in &changed {
        let before = known.0.entry(entity).or_insert_with(|| Bitfield::new(have.len()));
        for piece in have.iter_without(before) {
            if !(truth.is_there)(&content.0, storage, piece) {
                violations.report(&clock, Invariant::Truth, || {
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

/// Checks that the user's files are unchanged.
pub(super) fn check_owners(clock: Res<Clock>, truth: Option<Res<Truth>>, mut violations: ResMut<Violations>) {
    let Some(truth) = truth else { return };
    for what in (truth.trespasses)() {
        violations.report(&clock, Invariant::Owners, || what);
    }
}
