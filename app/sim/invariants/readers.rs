//! The deadlines of pieces follow the readers, and readers get verified bytes only.

use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::readers::PieceDeadlines;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{Have, Layout, Storage, Torrent};
use ecs_torrent_engine::ports::DiskPort;
use ecs_torrent_engine::ports::disk::DiskRequest;
use ecs_torrent_systems::readers::{READS, Readers};

use super::{Invariant, Violations};

/// Pieces ahead of a reader that may have deadlines, however long they are (`readers.window_bytes`).
const LEAST_PIECES: u64 = 4;

/// Checks that the reads that are about to leave for readers are of held pieces.
pub(super) fn listen(
    clock: Res<Clock>,
    disk: Res<DiskPort>,
    mut violations: ResMut<Violations>,
    torrents: Query<(&Torrent, &Layout, &Storage, &Have)>,
) {
    for request in disk.outgoing() {
        let DiskRequest::Read { tag, storage, span, .. } = request else {
            continue;
        };
        if tag.purpose != READS {
            continue;
        }
        let Some((torrent, Layout(geometry), _, have)) = torrents.iter().find(|(.., of, _)| of.id == *storage) else {
            continue;
        };
        if let Some(piece) = geometry
            .pieces_of(span.offset..span.end())
            .find(|piece| !have.contains(*piece))
        {
            violations.report(&clock, Invariant::Readers, || {
                format!("piece {piece} of {} is read and not held", torrent.name)
            });
        }
    }
}

/// Checks that each deadline is of a missing piece in the window ahead of a reader.
pub(super) fn check(
    clock: Res<Clock>,
    settings: Res<Settings>,
    readers: Option<Res<Readers>>,
    mut violations: ResMut<Violations>,
    torrents: Query<(Entity, &Torrent, &Layout, &Have, &PieceDeadlines)>,
) {
    for (entity, torrent, Layout(geometry), have, deadlines) in &torrents {
        let least = LEAST_PIECES * u64::from(geometry.piece_length());
        let window = settings.readers.window_bytes.max(least);
        let places = || readers.iter().flat_map(|readers| readers.places_of(entity));
        let is_ahead = |piece: u32| {
            let start = geometry.piece_offset(piece);
            let end = start + u64::from(geometry.piece_size(piece));
            places().any(|place| {
                let ahead = place.start..place.end.min(place.start.saturating_add(window));
                start < ahead.end && end > ahead.start
            })
        };
        for (_, piece) in deadlines.iter() {
            let faults = [
                (!is_ahead(piece), "is not ahead of a reader"),
                (have.contains(piece), "is held"),
            ];
            for (_, fault) in faults.into_iter().filter(|(is_so, _)| *is_so) {
                violations.report(&clock, Invariant::Readers, || {
                    format!("piece {piece} of {} has a deadline and {fault}", torrent.name)
                });
            }
        }
    }
}
