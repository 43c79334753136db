//! Resuming of single torrents: a stopped torrent is loaded from the state folder and listed again.

use bevy_ecs::prelude::*;
use ecs_torrent_components::commands::{AddOptions, CommandQueue, ResumeTorrent, ResumeTorrentError, TorrentNotFound};
use ecs_torrent_engine::port::Purpose;
use ecs_torrent_engine::ports::state::{StateDone, StateEvent};
use ecs_torrent_protocol::hash::InfoHash;

use super::adding::TorrentAdder;
use super::adds::Adds;
use super::awaiting_state::AwaitingState;

const LOAD: Purpose = Purpose("load stopped torrents to resume");

/// Lists the torrents whose sessions have arrived, and requests the sessions of others. A command for a torrent that is
/// being stopped waits until that is over.
pub(super) fn resume_stopped(
    mut queue: ResMut<CommandQueue<ResumeTorrent>>,
    mut resumes: ResMut<AwaitingState<ResumeTorrent>>,
    adds: Res<Adds>,
    mut adder: TorrentAdder,
) {
    for event in adder.opener.take(LOAD) {
        if let Some(ResumeTorrent { torrent, reply }) = resumes.take(&event) {
            reply.send(list_loaded(torrent, event, &mut adder));
        }
    }
    let decided = adds.take_decided(&mut queue, &adder.index, |torrent| adder.is_ending(torrent));
    for (command, listed) in decided {
        match listed {
            Some(torrent) if adder.is_ending(torrent) => queue.0.push_back(command),
            Some(_) => command.reply.send(Ok(())),
            None => {
                let torrent = command.torrent;
                adder.opener.load_stopped(resumes.add(LOAD, command), torrent);
            }
        }
    }
}

/// Lists a torrent that was loaded from the state folder.
fn list_loaded(torrent: InfoHash, event: StateEvent, adder: &mut TorrentAdder) -> Result<(), ResumeTorrentError> {
    let unreadable = |reason| ResumeTorrentError::Unreadable { torrent, reason };
    let loaded = match event.outcome {
        Ok(StateDone::Loaded(loaded)) => Some(*loaded),
        Ok(_) => None,
        Err(error) => return Err(unreadable(error.0)),
    };
    let mut loaded = loaded.unwrap_or_default();
    match loaded.source() {
        // The torrent was added meanwhile.
        _ if adder.index.get(torrent).is_some() => Ok(()),
        Some(Ok(source)) => {
            adder.add(&source, &AddOptions::default(), true, Some(loaded));
            Ok(())
        }
        Some(Err(reason)) if loaded.has_metainfo || loaded.session.is_some() => Err(unreadable(reason.into())),
        _ => Err(TorrentNotFound(torrent).into()),
    }
}
