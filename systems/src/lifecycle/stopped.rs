//! Listing of stopped torrents.

use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{CommandQueue, ListStopped, ListStoppedError};
use ecs_torrent_components::stats::StoppedTorrent;
use ecs_torrent_components::torrent::TorrentIndex;
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::StatePort;
use ecs_torrent_engine::ports::state::{StateDone, StateRequest, StoredTorrent};
use ecs_torrent_engine::purpose;

use crate::ownership::{FileRegistry, Survey};

const LIST: Purpose = purpose!("list stopped torrents");

/// Callers that wait for the list of saved torrents.
#[derive(Resource, Debug, Default)]
pub(super) struct Listings(Vec<ListStopped>);

/// Requests the saved torrents once the names of the stopped ones are known, and answers the callers when the list has
/// arrived.
pub(super) fn list_stopped(
    mut queue: ResMut<CommandQueue<ListStopped>>,
    mut listings: ResMut<Listings>,
    mut survey: ResMut<Survey>,
    mut state: ResMut<StatePort>,
    registry: Res<FileRegistry>,
    index: Res<TorrentIndex>,
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
) {
    if !queue.0.is_empty() && survey.request(&wakeup, clock.now()).is_done() {
        listings.0.extend(queue.0.drain(..));
        let tag = JobTag::new(LIST, Entity::PLACEHOLDER);
        state.push(StateRequest::List { tag });
    }
    for event in state.take(LIST) {
        let saved = match event.outcome {
            Ok(StateDone::Listed(stored)) => Ok(stored),
            Ok(_) => continue,
            Err(error) => Err(ListStoppedError(error.0)),
        };
        let stopped = saved.map(|torrents| find_stopped(&torrents, &index, &registry));
        for ListStopped { reply } in listings.0.drain(..) {
            reply.send(stopped.clone());
        }
    }
}

fn find_stopped(saved: &[StoredTorrent], index: &TorrentIndex, registry: &FileRegistry) -> Vec<StoppedTorrent> {
    let stopped = saved.iter().filter(|stored| index.get(stored.torrent).is_none());
    let stopped = stopped.map(|stored| StoppedTorrent {
        info_hash: stored.torrent,
        name: registry.name_of(stored.torrent).cloned(),
    });
    stopped.collect()
}
