//! Downloaded bytes are in held pieces or pieces in flight, or are counted as lost: no byte appears or disappears.

use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::piece::ActivePiece;
use ecs_torrent_components::torrent::{ActivePieces, Counters, Have, Layout, Lifecycle, Partials, Torrent};

use super::{Invariant, Violations};

/// Counters of each torrent when its download started or resumed.
#[derive(Resource, Default)]
pub(super) struct Bases(EntityHashMap<Base>);

struct Base {
    downloaded: u64,
    /// Bytes that are held, in flight, corrupt or dropped.
    placed: u64,
    /// Maximum number of bytes that can come from the disk in addition: blocks of pieces begun in an earlier run.
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
        // The counters are comparable only between start and stop; a full disk changes nothing.
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
        let placed = geometry.size_of(have) + in_flight + counters.corrupt + counters.dropped;
        let base = bases.0.entry(entity).or_insert_with(|| Base {
            downloaded: counters.downloaded,
            placed,
            restorable: partials.0.len() as u64 * u64::from(geometry.piece_length()),
        });
        let downloaded = counters.downloaded.saturating_sub(base.downloaded);
        let placed = placed.saturating_sub(base.placed);
        if placed < downloaded || placed > downloaded + base.restorable {
            violations.report(&clock, Invariant::Counters, || {
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
