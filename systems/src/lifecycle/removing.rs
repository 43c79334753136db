//! Removal of stopped torrents: reads their data from the state folder, lists them as stopping, and removes them like
//! running torrents.

use std::sync::Arc;

use bevy_ecs::prelude::*;
use ecs_torrent_components::commands::{
    AddOptions, CommandQueue, RemoveError, RemoveTorrent, Removed, TorrentNotFound,
};
use ecs_torrent_components::torrent::TorrentIndex;
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::StatePort;
use ecs_torrent_engine::ports::state::{StateDone, StateEvent, StateRequest};

use super::adding::TorrentAdder;
use crate::ownership::FileRegistry;

const LOAD: Purpose = Purpose("load stopped torrents to remove");
const FORGET: Purpose = Purpose("forget torrents that cannot be read");

/// Removals of stopped torrents, by number.
#[derive(Resource, Debug, Default)]
pub(super) struct StoppedRemovals {
    waiting: Vec<(u64, RemoveTorrent)>,
    last: u64,
}

impl StoppedRemovals {
    fn tag(purpose: Purpose, number: u64) -> JobTag {
        JobTag {
            number,
            ..JobTag::new(purpose, Entity::PLACEHOLDER)
        }
    }

    fn take(&mut self, event: &StateEvent) -> Option<RemoveTorrent> {
        let position = self
            .waiting
            .iter()
            .position(|(number, _)| *number == event.tag.number)?;
        Some(self.waiting.swap_remove(position).1)
    }

    fn add(&mut self, command: RemoveTorrent) -> u64 {
        self.last += 1;
        self.waiting.push((self.last, command));
        self.last
    }
}

/// Looks in the state folder for stopped torrents that are to be removed.
pub(super) fn find_stopped(
    mut queue: ResMut<CommandQueue<RemoveTorrent>>,
    mut removals: ResMut<StoppedRemovals>,
    mut state: ResMut<StatePort>,
    index: Res<TorrentIndex>,
) {
    let (running, stopped): (Vec<_>, Vec<_>) = queue
        .0
        .drain(..)
        .partition(|command| index.get(command.torrent).is_some());
    queue.0.extend(running);
    for command in stopped {
        let torrent = command.torrent;
        let number = removals.add(command);
        state.push(StateRequest::Load {
            tag: StoppedRemovals::tag(LOAD, number),
            torrent,
            with_metainfo: true,
            is_peek: true,
        });
    }
}

/// Lists the found torrents, so that the stop removes them.
pub(super) fn add_removed(
    mut queue: ResMut<CommandQueue<RemoveTorrent>>,
    mut removals: ResMut<StoppedRemovals>,
    mut registry: ResMut<FileRegistry>,
    mut adder: TorrentAdder,
) {
    for event in adder.opener.take(LOAD) {
        let Some(command) = removals.take(&event) else {
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
        match loaded.metainfo.take() {
            // The torrent was added meanwhile.
            _ if adder.index.get(torrent).is_some() => queue.0.push_back(command),
            Some(Ok(metainfo)) => {
                adder.add(&metainfo, &AddOptions::default(), true, Some(loaded));
                queue.0.push_back(command);
            }
            _ if loaded.session.is_some() || loaded.set_aside.is_some() || loaded.has_metainfo => {
                // The names of its files are unknown: the files stay.
                registry.remove(torrent);
                let number = removals.add(command);
                let tag = StoppedRemovals::tag(FORGET, number);
                adder.opener.forget(tag, torrent);
            }
            _ => command.reply.send(Err(TorrentNotFound(torrent).into())),
        }
    }
    for event in adder.opener.take(FORGET) {
        let Some(command) = removals.take(&event) else {
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
