//! What was downloaded is in pieces that are had or in flight, or counted as lost: no byte comes from nowhere, and none
//! goes.

use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::piece::ActivePiece;
use ecs_torrent_components::torrent::{ActivePieces, Counters, Have, Layout, Lifecycle, Partials, Torrent};

use super::{Invariant, Violations};

/// Where each torrent stood when its download began, or began again.
#[derive(Resource, Default)]
pub(super) struct Bases(EntityHashMap<Base>);

struct Base {
    downloaded: u64,
    /// What is had, in flight, corrupt or dropped.
    placed: u64,
    /// Most that can come from the disk besides: blocks of pieces that an earlier run had begun.
    restorable: u64,
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
            Option<&ActivePieces>,
            &Partials,
        ),
        Or<(Changed<Have>, Changed<Lifecycle>)>,
    >,
    pieces: Query<&ActivePiece>,
    mut gone: RemovedComponents<Have>,
) {
    for (entity, torrent, Layout(geometry), lifecycle, have, counters, active, partials) in &changed {
        // Only between the start and the stop do both mean the same; a full disk changes nothing.
        if !lifecycle.may_serve() {
            bases.0.remove(&entity);
            continue;
        }
        let active = active.into_iter().flat_map(|active| active.all.values());
        let in_flight: u64 = pieces
            .iter_many(active)
            .flatten()
            .map(ActivePiece::received_bytes)
            .sum();
        let placed = have.bytes(geometry) + in_flight + counters.corrupt + counters.dropped;
        let base = bases.0.entry(entity).or_insert_with(|| Base {
            downloaded: counters.downloaded,
            placed,
            restorable: partials.0.len() as u64 * u64::from(geometry.piece_length()),
        });
        let downloaded = counters.downloaded.saturating_sub(base.downloaded);
        let placed = placed.saturating_sub(base.placed);
        if placed < downloaded || placed > downloaded + base.restorable {
            violations.note(&clock, Invariant::Counters, || {
                format!(
                    "{}: {downloaded} bytes were downloaded, and {placed} have a place",
                    torrent.name
                )
            });
        }
    }
    for entity in gone.read() {
        bases.0.remove(&entity);
    }
}
