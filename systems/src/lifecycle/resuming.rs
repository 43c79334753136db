//! Resuming of single torrents: a stopped torrent is loaded from the state folder and listed again.

use bevy_ecs::prelude::*;
use ecs_torrent_components::commands::{AddOptions, CommandQueue, ResumeTorrent, ResumeTorrentError, TorrentNotFound};
use ecs_torrent_components::session::Session;
use ecs_torrent_engine::port::Purpose;
use ecs_torrent_engine::ports::state::{Loaded, StateDone, StateEvent};
use ecs_torrent_protocol::hash::InfoHash;

use super::adding::TorrentAdder;
use super::adds::Adds;
use super::awaiting_state::AwaitingState;

pub(super) const LOAD: Purpose = Purpose("load stopped torrents to resume");
const UNSTOP: Purpose = Purpose("save that a torrent is not stopped");

/// A torrent to resume whose session is being replaced by one that does not call it stopped.
pub(super) type Unstopping = (ResumeTorrent, Loaded);

/// Lists the torrents whose sessions have arrived, and requests the sessions of others. A command for a torrent that is
/// being stopped or paused waits until that is over.
pub(super) fn resume_stopped(
    mut queue: ResMut<CommandQueue<ResumeTorrent>>,
    mut resumes: ResMut<AwaitingState<ResumeTorrent>>,
    mut unstopping: ResMut<AwaitingState<Unstopping>>,
    adds: Res<Adds>,
    mut adder: TorrentAdder,
) {
    for event in adder.opener.take(LOAD) {
        if let Some(command) = resumes.take(&event) {
            take_loaded(command, event, &mut unstopping, &mut adder);
        }
    }
    for event in adder.opener.take(UNSTOP) {
        let Some((command, loaded)) = unstopping.take(&event) else {
            continue;
        };
        let torrent = command.torrent;
        command.reply.send(match event.outcome {
            Ok(_) => list_loaded(torrent, loaded, &mut adder),
            Err(error) => Err(ResumeTorrentError::Unsaved {
                torrent,
                reason: error.0,
            }),
        });
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

/// Lists a loaded torrent. If the user stopped it, its session says otherwise first, so that the next run lists it too.
fn take_loaded(
    command: ResumeTorrent,
    event: StateEvent,
    unstopping: &mut AwaitingState<Unstopping>,
    adder: &mut TorrentAdder,
) {
    let torrent = command.torrent;
    let mut loaded = match event.outcome {
        Ok(StateDone::Loaded(loaded)) => *loaded,
        Ok(_) => Loaded::default(),
        Err(error) => {
            let reason = error.0;
            let error = ResumeTorrentError::Unreadable { torrent, reason };
            return command.reply.send(Err(error));
        }
    };
    let is_listed = adder.index.get(torrent).is_some();
    let can_be_listed = !is_listed && matches!(loaded.metainfo, Some(Ok(_)) | None);
    match unstop(&mut loaded).filter(|_| can_be_listed) {
        Some(session) => {
            let tag = unstopping.add(UNSTOP, (command, loaded));
            adder.opener.save_stopped(tag, session);
        }
        None => command.reply.send(list_loaded(torrent, loaded, adder)),
    }
}

/// Returns the session that does not call a torrent stopped, if its session does; `loaded` gets it too.
pub(super) fn unstop(loaded: &mut Loaded) -> Option<Session> {
    let session = loaded.session.as_mut().filter(|session| session.stopped)?;
    session.stopped = false;
    Some(session.clone())
}

/// Lists a torrent that was loaded from the state folder.
fn list_loaded(torrent: InfoHash, mut loaded: Loaded, adder: &mut TorrentAdder) -> Result<(), ResumeTorrentError> {
    match loaded.source() {
        // The torrent was added meanwhile.
        _ if adder.index.get(torrent).is_some() => Ok(()),
        Some(Ok(source)) => {
            adder.add(&source, &AddOptions::default(), true, Some(loaded));
            Ok(())
        }
        Some(Err(reason)) if loaded.has_metainfo || loaded.session.is_some() => {
            let reason = reason.into();
            Err(ResumeTorrentError::Unreadable { torrent, reason })
        }
        _ => Err(TorrentNotFound(torrent).into()),
    }
}
