//! A paused torrent costs nothing: it has no peers, no pieces in flight, no check, no open files, and no announces.

use std::collections::BTreeSet;

use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::ids::StorageId;
use ecs_torrent_components::torrent::{ActivePieces, Lifecycle, Storage, Torrent, TorrentPeers};
use ecs_torrent_engine::ports::DiskPort;
use ecs_torrent_engine::ports::disk::DiskRequest;
use ecs_torrent_systems::checking::Check;
use ecs_torrent_systems::trackers::Announcer;

use super::{Invariant, Violations};

/// The storages that the engine has opened and not closed.
#[derive(Resource, Default)]
pub(super) struct OpenStorages(BTreeSet<StorageId>);

/// Follows the requests that are about to leave.
pub(super) fn listen(disk: Res<DiskPort>, mut open: ResMut<OpenStorages>) {
    for request in disk.outgoing() {
        match request {
            DiskRequest::Open { storage, .. } => drop(open.0.insert(*storage)),
            DiskRequest::Close { storage, .. } => drop(open.0.remove(storage)),
            _ => {}
        }
    }
}

/// Checks every paused torrent.
pub(super) fn check(
    clock: Res<Clock>,
    open: Res<OpenStorages>,
    mut violations: ResMut<Violations>,
    torrents: Query<(
        &Torrent,
        &Lifecycle,
        &Storage,
        &Announcer,
        Option<&TorrentPeers>,
        Option<&ActivePieces>,
        Has<Check>,
    )>,
) {
    for (torrent, lifecycle, storage, announcer, peers, active, is_checked) in &torrents {
        if *lifecycle != Lifecycle::Paused {
            continue;
        }
        let faults = [
            (peers.is_some(), "has peers"),
            (
                active.is_some_and(|active| !active.all.is_empty()),
                "has pieces in flight",
            ),
            (is_checked, "is checked"),
            (open.0.contains(&storage.id), "has open files"),
            (!announcer.is_resting(), "announces"),
        ];
        for (_, fault) in faults.into_iter().filter(|(is_so, _)| *is_so) {
            violations.report(&clock, Invariant::Paused, || {
                format!("{} is paused and {fault}", torrent.name)
            });
        }
    }
}
