//! Resuming: torrents are loaded from the state folder and listed again, one by one or all.

use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::clock::Wakeup;
use ecs_torrent_components::commands::{
    AddOptions, CommandQueue, Reply, ResumeTorrent, ResumeTorrentError, TorrentNotFound, Unsaved,
};
use ecs_torrent_components::session::Session;
use ecs_torrent_engine::jobs::Jobs;
use ecs_torrent_engine::port::Purpose;
use ecs_torrent_engine::ports::state::{Loaded, StateDone, StateEvent};
use ecs_torrent_engine::purpose;
use ecs_torrent_protocol::hash::InfoHash;

use super::adding::TorrentAdder;
use super::adds::Adds;
use super::resuming_all::{Outcome, ResumingAll};
use crate::ownership::{FileRegistry, Survey, register_stopped};

pub(super) const LOAD: Purpose = purpose!("load torrents to resume");
const UNSTOP: Purpose = purpose!("save that torrents are not stopped");

/// A torrent that is being loaded, to be listed again.
#[derive(Debug)]
pub(super) struct Resumption {
    torrent: InfoHash,
    caller: Caller,
}

impl Resumption {
    /// Creates the resumption that a caller requested.
    pub(super) fn of(command: ResumeTorrent) -> Self {
        Self {
            torrent: command.torrent,
            caller: Caller::One(command.reply),
        }
    }
}

/// Number of torrents that are loaded at the same time when all are resumed. Enough to keep the disk busy between two
/// ticks; few enough that the queues of a hundred thousand torrents stay short.
const LOADED_AT_ONCE: usize = 512;

/// The caller that wants a torrent to be listed again.
#[derive(Debug)]
enum Caller {
    /// A caller that named the torrent.
    One(Reply<Result<(), ResumeTorrentError>>),
    /// The callers that want all torrents.
    All,
}

/// A torrent to resume whose session is being rewritten without the mark `stopped`.
pub(super) type Unstopping = (Resumption, Loaded);

/// Loads torrents and lists them.
#[derive(SystemParam)]
pub(super) struct Resumer<'w, 's> {
    loading: ResMut<'w, Jobs<Resumption>>,
    unstopping: ResMut<'w, Jobs<Unstopping>>,
    all: ResMut<'w, ResumingAll>,
    survey: ResMut<'w, Survey>,
    registry: ResMut<'w, FileRegistry>,
    wakeup: Res<'w, Wakeup>,
    adder: TorrentAdder<'w, 's>,
}

/// Loads the torrents that are to be resumed. A command for a torrent that is being stopped or paused waits until that
/// is over.
pub(super) fn load_resumed(mut queue: ResMut<CommandQueue<ResumeTorrent>>, adds: Res<Adds>, mut resumer: Resumer) {
    let free = LOADED_AT_ONCE.saturating_sub(resumer.loading.len());
    for torrent in resumer.all.take_found(free) {
        let caller = Caller::All;
        resumer.load(Resumption { torrent, caller });
    }
    let adder = &resumer.adder;
    let decided = adds.take_decided(&mut queue, &adder.index, |torrent| adder.is_ending(torrent));
    for (command, listed) in decided {
        match listed {
            Some(torrent) if resumer.adder.is_ending(torrent) => queue.0.push_back(command),
            Some(_) => command.reply.send(Ok(())),
            None => resumer.load(Resumption::of(command)),
        }
    }
}

/// Lists the loaded torrents. The session of a torrent that the user stopped is first rewritten without the mark
/// `stopped`, so that the next run lists the torrent too.
pub(super) fn list_resumed(mut resumer: Resumer) {
    for event in resumer.adder.opener.take(LOAD) {
        if let Some(resumption) = resumer.loading.take(event.tag) {
            resumer.take_loaded(resumption, event);
        }
    }
    for event in resumer.adder.opener.take(UNSTOP) {
        if let Some((resumption, loaded)) = resumer.unstopping.take(event.tag) {
            resumer.take_unstopped(resumption, loaded, event);
        }
    }
}

impl Resumer<'_, '_> {
    fn load(&mut self, resumption: Resumption) {
        let torrent = resumption.torrent;
        let tag = self.loading.add(LOAD, resumption);
        self.adder.opener.load_stopped(tag, torrent);
    }

    fn take_loaded(&mut self, resumption: Resumption, event: StateEvent) {
        let torrent = resumption.torrent;
        let mut loaded = match event.outcome {
            Ok(StateDone::Loaded(loaded)) => *loaded,
            Ok(_) => Loaded::default(),
            Err(error) => {
                let reason = error.0;
                let error = ResumeTorrentError::Unreadable { torrent, reason };
                return self.finish(resumption, Err(error));
            }
        };
        loaded.repair(None);
        let is_listed = self.adder.index.get(torrent).is_some();
        let stopped = loaded.session.as_ref().filter(|session| session.stopped && !is_listed);
        let is_left_out = matches!(resumption.caller, Caller::All) && !self.all.includes_stopped();
        if stopped.is_some() && is_left_out {
            self.register(loaded);
            return self.finish(resumption, Ok(Outcome::LeftOut));
        }
        let can_be_listed = |session: &Session| session.lacks_metadata || matches!(loaded.metainfo, Some(Ok(_)));
        match stopped.filter(|session| can_be_listed(session)).cloned() {
            Some(mut session) => {
                session.stopped = false;
                loaded.session = Some(session.clone());
                let tag = self.unstopping.add(UNSTOP, (resumption, loaded));
                self.adder.opener.save_stopped(tag, session);
            }
            None => {
                let result = self.list(torrent, loaded);
                self.finish(resumption, result);
            }
        }
    }

    fn take_unstopped(&mut self, resumption: Resumption, loaded: Loaded, event: StateEvent) {
        let result = match event.outcome {
            Ok(_) => self.list(resumption.torrent, loaded),
            Err(error) => {
                let session = loaded.session.as_ref();
                let name = session.map_or_else(String::new, |session| session.name.clone());
                self.register(loaded);
                Err(ResumeTorrentError::Unsaved(Unsaved::new(&name.into(), &error.0)))
            }
        };
        self.finish(resumption, result);
    }

    /// Lists a loaded torrent, unless it is listed already.
    fn list(&mut self, torrent: InfoHash, mut loaded: Loaded) -> Result<Outcome, ResumeTorrentError> {
        match loaded.source() {
            // The torrent was added meanwhile.
            _ if self.adder.index.get(torrent).is_some() => Ok(Outcome::Listed),
            Some(Ok(source)) => {
                if self.adder.find(&source.hashes()).is_none() {
                    self.adder.add(&source, &AddOptions::default(), true, Some(loaded));
                }
                Ok(Outcome::Listed)
            }
            Some(Err(reason)) if loaded.has_metainfo || loaded.session.is_some() => {
                let reason = reason.into();
                Err(ResumeTorrentError::Unreadable { torrent, reason })
            }
            _ => Err(TorrentNotFound(torrent).into()),
        }
    }

    /// Registers the files of a torrent that stays stopped.
    fn register(&mut self, loaded: Loaded) {
        let download_dir = &self.adder.settings.storage.download_dir;
        register_stopped(&mut self.registry, &self.adder.index, loaded, download_dir);
    }

    /// Hands the result to the caller.
    fn finish(&mut self, resumption: Resumption, result: Result<Outcome, ResumeTorrentError>) {
        match resumption.caller {
            Caller::One(reply) => reply.send(result.map(drop)),
            Caller::All => self.all.record(resumption.torrent, result, &mut self.survey),
        }
        // Adds may wait for this.
        self.wakeup.at(self.adder.clock.now());
    }
}
