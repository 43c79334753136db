//! Removal of stopped torrents: reads their data from the state folder, lists them as stopping, and removes them like
//! running torrents.

use std::sync::Arc;

use bevy_ecs::prelude::*;
use ecs_torrent_components::commands::{
    AddOptions, CommandQueue, RemoveError, RemoveTorrent, Removed, TorrentNotFound,
};
use ecs_torrent_components::lifecycle::Desired;
use ecs_torrent_components::torrent::TorrentIndex;
use ecs_torrent_engine::jobs::Jobs;
use ecs_torrent_engine::port::Purpose;
use ecs_torrent_engine::ports::StatePort;
use ecs_torrent_engine::ports::state::{StateDone, StateRequest};
use ecs_torrent_engine::purpose;

use super::adding::TorrentAdder;
use super::adds::Adds;
use crate::ownership::FileRegistry;

pub(super) const LOAD: Purpose = purpose!("load stopped torrents to remove");
const FORGET: Purpose = purpose!("forget torrents that cannot be read");

/// Marks a torrent that is listed only to be removed. It leaves the list also if its removal is refused.
#[derive(Component, Debug)]
#[component(storage = "SparseSet")]
pub(super) struct ListedToRemove;

/// Looks in the state folder for stopped torrents that are to be removed.
pub(super) fn load_removed(
    mut queue: ResMut<CommandQueue<RemoveTorrent>>,
    mut removals: ResMut<Jobs<RemoveTorrent>>,
    mut state: ResMut<StatePort>,
    adds: Res<Adds>,
    index: Res<TorrentIndex>,
    torrents: Query<&Desired>,
) {
    let is_ending = |entity| torrents.get(entity).is_ok_and(|desired| desired.is_leaving());
    for (command, listed) in adds.take_decided(&mut queue, &index, is_ending) {
        if listed.is_some() {
            queue.0.push_back(command);
            continue;
        }
        let torrent = command.torrent;
        state.push(StateRequest::Load {
            tag: removals.add(LOAD, command),
            torrent,
            with_metainfo: true,
            is_peek: true,
        });
    }
}

/// Lists the found torrents, so that the stop removes them.
pub(super) fn add_removed(
    mut queue: ResMut<CommandQueue<RemoveTorrent>>,
    mut removals: ResMut<Jobs<RemoveTorrent>>,
    mut registry: ResMut<FileRegistry>,
    mut adder: TorrentAdder,
) {
    for event in adder.opener.take(LOAD) {
        let Some(command) = removals.take(event.tag) else {
            continue;
        };
        let torrent = command.torrent;
        let mut loaded = match event.outcome {
            Ok(StateDone::Loaded(loaded)) => *loaded,
            Ok(_) => continue,
            Err(error) => {
                let reason = error.0;
                command.reply.send(Err(RemoveError::Unreadable { torrent, reason }));
                continue;
            }
        };
        loaded.repair(None);
        match loaded.source() {
            // The torrent was added meanwhile.
            _ if adder.index.get(torrent).is_some() => queue.0.push_back(command),
            Some(Ok(source)) => {
                let torrent = adder.add(&source, &AddOptions::default(), true, Some(loaded));
                adder.commands.entity(torrent).insert(ListedToRemove);
                queue.0.push_back(command);
            }
            _ if loaded.session.is_some() || loaded.set_aside.is_some() || loaded.has_metainfo => {
                // The names of its files are unknown: the files stay.
                registry.remove(torrent);
                adder.opener.forget(removals.add(FORGET, command), torrent);
            }
            _ => command.reply.send(Err(TorrentNotFound(torrent).into())),
        }
    }
    for event in adder.opener.take(FORGET) {
        let Some(command) = removals.take(event.tag) else {
            continue;
        };
        let reason: Arc<str> = match event.outcome {
            Ok(_) => "its files stay, since its torrent file cannot be read".into(),
            Err(error) => error.0,
        };
        let name = command.torrent.to_string().into();
        let answer = match command.options.delete_data {
            false => Ok(Removed::default()),
            true => Err(RemoveError::Incomplete { name, reason }),
        };
        command.reply.send(answer);
    }
}
