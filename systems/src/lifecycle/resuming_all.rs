//! Resuming of all torrents: every torrent that has a session is listed again, except those that the user stopped if
//! the command leaves them out.

use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::Wakeup;
use ecs_torrent_components::commands::{AddOptions, CommandQueue, Reply, ResumeAll, ResumeError};
use ecs_torrent_components::session::Session;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::Label;
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::StatePort;
use ecs_torrent_engine::ports::state::{Loaded, StateDone, StateRequest, StoredTorrent};

use super::adding::TorrentAdder;
use super::awaiting_state::AwaitingState;
use super::resuming::unstop;
use crate::ownership::{FileRegistry, Survey, register_stopped};

const LIST: Purpose = Purpose("list sessions");
const RESUME: Purpose = Purpose("resume torrents");
const UNSTOP: Purpose = Purpose("save that torrents are not stopped");

/// Torrents that are being loaded from the state folder.
#[derive(Resource, Debug, Default)]
pub(super) struct Resuming {
    /// Commands that wait for the list of sessions.
    asked: Vec<ResumeAll>,
    /// Callers that wait for the listed torrents, and the number of these torrents.
    waiting: Vec<Reply<Result<usize, ResumeError>>>,
    /// Whether one of the commands includes torrents that the user stopped.
    include_stopped: bool,
    expected_count: usize,
    added_count: usize,
}

/// Requests the list of sessions, and then each session.
pub(super) fn resume_torrents(
    mut queue: ResMut<CommandQueue<ResumeAll>>,
    mut resuming: ResMut<Resuming>,
    mut survey: ResMut<Survey>,
    mut state: ResMut<StatePort>,
) {
    let tag = |purpose| JobTag::new(purpose, Entity::PLACEHOLDER);
    for command in queue.0.drain(..) {
        survey.begin_resuming();
        if resuming.asked.is_empty() {
            state.push(StateRequest::List { tag: tag(LIST) });
        }
        resuming.asked.push(command);
    }
    let listed: Vec<_> = state.take(LIST).collect();
    for event in listed {
        let asked = std::mem::take(&mut resuming.asked);
        match event.outcome {
            Ok(StateDone::Listed(torrents)) => {
                resuming.expected_count += torrents.len();
                resuming.include_stopped |= asked.iter().any(|command| command.include_stopped);
                resuming.waiting.extend(asked.into_iter().map(|command| command.reply));
                for StoredTorrent { torrent, .. } in torrents {
                    state.push(StateRequest::Load {
                        tag: tag(RESUME),
                        torrent,
                        with_metainfo: true,
                        is_peek: false,
                    });
                }
                resuming.answer(&mut survey);
            }
            Ok(_) => {}
            Err(error) => {
                let error = ResumeError(error.0);
                survey.end_resuming(false);
                asked
                    .into_iter()
                    .for_each(|command| command.reply.send(Err(error.clone())));
            }
        }
    }
}

/// Lists the loaded torrents. A torrent that the user stopped is left out, or listed once its session says otherwise.
pub(super) fn add_resumed(
    mut resuming: ResMut<Resuming>,
    mut unstopping: ResMut<AwaitingState<Loaded>>,
    mut survey: ResMut<Survey>,
    mut registry: ResMut<FileRegistry>,
    settings: Res<Settings>,
    wakeup: Res<Wakeup>,
    mut adder: TorrentAdder,
) {
    for event in adder.opener.take(RESUME) {
        let mut loaded = match event.outcome {
            Ok(StateDone::Loaded(loaded)) => *loaded,
            Ok(_) => Loaded::default(),
            Err(error) => {
                tracing::error!("a torrent cannot be resumed: {error}");
                Loaded::default()
            }
        };
        let is_listed = |session: &Session| adder.index.get(session.info_hash).is_some();
        let session = loaded.session.as_ref();
        match session.is_some_and(|session| session.stopped && !is_listed(session)) {
            false => resuming.add(loaded, &mut adder),
            true if !resuming.include_stopped => {
                resuming.count_down();
                register_stopped(&mut registry, &adder.index, loaded, &settings.storage.download_dir);
            }
            true => {
                if let Some(session) = unstop(&mut loaded) {
                    adder.opener.save_stopped(unstopping.add(UNSTOP, loaded), session);
                }
            }
        }
        resuming.answer(&mut survey);
        // Adds may wait for this.
        wakeup.at(adder.clock.now());
    }
    for event in adder.opener.take(UNSTOP) {
        let Some(loaded) = unstopping.take(&event) else {
            continue;
        };
        match event.outcome {
            Ok(_) => resuming.add(loaded, &mut adder),
            Err(error) => {
                if let Some(session) = &loaded.session {
                    let label = Label::new(&session.name, session.info_hash);
                    tracing::error!(torrent = %label, "stays stopped: its state is not saved: {error}");
                }
                resuming.count_down();
            }
        }
        resuming.answer(&mut survey);
        wakeup.at(adder.clock.now());
    }
}

impl Resuming {
    /// Lists a loaded torrent, unless it is listed already.
    fn add(&mut self, mut loaded: Loaded, adder: &mut TorrentAdder) {
        self.count_down();
        match loaded.source() {
            Some(Ok(source)) => {
                if adder.find(&source.hashes()).is_none() {
                    adder.add(&source, &AddOptions::default(), true, Some(loaded));
                }
                self.added_count += 1;
            }
            Some(Err(reason)) => tracing::error!("a torrent cannot be resumed: {reason}"),
            None => {}
        }
    }

    /// Records that one more of the listed torrents is decided.
    fn count_down(&mut self) {
        self.expected_count = self.expected_count.saturating_sub(1);
    }

    /// Answers when all listed torrents have been added.
    fn answer(&mut self, survey: &mut Survey) {
        if self.expected_count == 0 {
            survey.end_resuming(true);
            self.include_stopped = false;
            let count = std::mem::take(&mut self.added_count);
            self.waiting.drain(..).for_each(|reply| reply.send(Ok(count)));
        }
    }
}
