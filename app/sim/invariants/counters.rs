//! What was downloaded covers what is had: no piece comes from nowhere.

use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::torrent::{ActivePieces, Counters, Have, Layout, Lifecycle, Partials, Torrent};

use super::{Invariant, Violations};

/// Where each torrent stood when its download began, or began again.
#[derive(Resource, Default)]
pub(super) struct Bases(EntityHashMap<Base>);

struct Base {
    downloaded: u64,
    had: u64,
    /// Blocks of pieces that an earlier run had begun.
    restored: u64,
}

pub(super) fn check(
    clock: Res<Clock>,
    mut bases: ResMut<Bases>,
    mut violations: ResMut<Violations>,
    changed: Query<
        (
            Entity,
            &Torrent,
            &Layout,
            &Lifecycle,
            &Have,
            &Counters,
            &ActivePieces,
            &Partials,
        ),
        Or<(Changed<Have>, Changed<Lifecycle>)>,
    >,
    mut gone: RemovedComponents<Have>,
) {
    for (entity, torrent, Layout(geometry), lifecycle, have, counters, active, partials) in &changed {
        // Only between the start and the stop do both mean the same.
        if !lifecycle.is_running() {
            bases.0.remove(&entity);
            continue;
        }
        let had = have.bytes(geometry);
        let piece_length = u64::from(geometry.piece_length());
        let base = bases.0.entry(entity).or_insert_with(|| Base {
            downloaded: counters.downloaded,
            had,
            restored: (partials.0.len() + active.all.len()) as u64 * piece_length,
        });
        let gained = had.saturating_sub(base.had);
        let downloaded = counters.downloaded.saturating_sub(base.downloaded);
        if gained > downloaded + base.restored {
            violations.note(&clock, Invariant::Counters, || {
                format!("{} has {gained} bytes more after {downloaded} bytes", torrent.name)
            });
        }
    }
    for entity in gone.read() {
        bases.0.remove(&entity);
    }
}
