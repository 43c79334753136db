//! Resuming of all torrents: every torrent that has a session is listed again, except those that the user stopped if
//! the command leaves them out.

use std::collections::VecDeque;

use bevy_ecs::prelude::*;
use ecs_torrent_components::commands::{CommandQueue, Reply, ResumeAll, ResumeError, ResumeTorrentError};
use ecs_torrent_components::torrent::Label;
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::StatePort;
use ecs_torrent_engine::ports::state::{StateDone, StateRequest};
use ecs_torrent_engine::purpose;
use ecs_torrent_protocol::hash::InfoHash;

use crate::ownership::Survey;

const LIST: Purpose = purpose!("list sessions");

/// Commands that resume all torrents, and the progress of the torrents that they found.
#[derive(Resource, Debug, Default)]
pub(super) struct ResumingAll {
    /// Commands that wait for the list of sessions.
    commands: Vec<ResumeAll>,
    /// Callers that wait for the listed torrents, and the number of these torrents.
    waiting: Vec<Reply<Result<usize, ResumeError>>>,
    /// Whether one of the commands includes torrents that the user stopped.
    include_stopped: bool,
    /// Torrents of the state folder that are to be loaded.
    found: VecDeque<InfoHash>,
    /// Number of torrents without a result.
    expected_count: usize,
    listed_count: usize,
    first_error: Option<ResumeError>,
}

/// The result for a torrent that could be loaded.
pub(super) enum Outcome {
    /// The torrent is listed.
    Listed,
    /// The user stopped the torrent, and the callers leave such torrents out.
    LeftOut,
}

/// Requests the list of sessions.
pub(super) fn find_saved(
    mut queue: ResMut<CommandQueue<ResumeAll>>,
    mut resuming: ResMut<ResumingAll>,
    mut survey: ResMut<Survey>,
    mut state: ResMut<StatePort>,
) {
    for command in queue.0.drain(..) {
        survey.begin_resuming();
        if resuming.commands.is_empty() {
            let tag = JobTag::new(LIST, Entity::PLACEHOLDER);
            state.push(StateRequest::List { tag });
        }
        resuming.commands.push(command);
    }
    for event in state.take(LIST) {
        let commands = std::mem::take(&mut resuming.commands);
        match event.outcome {
            Ok(StateDone::Listed(torrents)) => {
                resuming.expected_count += torrents.len();
                resuming.include_stopped |= commands.iter().any(|command| command.include_stopped);
                resuming
                    .waiting
                    .extend(commands.into_iter().map(|command| command.reply));
                resuming.found.extend(torrents.iter().map(|stored| stored.torrent));
                resuming.answer(&mut survey);
            }
            Ok(_) => {}
            Err(error) => {
                let error = ResumeError::Unreadable(error.0);
                survey.end_resuming(false);
                let replies = commands.into_iter().map(|command| command.reply);
                replies.for_each(|reply| reply.send(Err(error.clone())));
            }
        }
    }
}

impl ResumingAll {
    /// Takes up to `max` of the torrents that are to be loaded.
    pub(super) fn take_found(&mut self, max: usize) -> Vec<InfoHash> {
        let count = max.min(self.found.len());
        self.found.drain(..count).collect()
    }

    /// Whether torrents that the user stopped are resumed too.
    pub(super) fn includes_stopped(&self) -> bool {
        self.include_stopped
    }

    /// Records the result of one torrent, and answers after the last one. A torrent that cannot be read is logged only,
    /// and one that has vanished meanwhile does not count.
    pub(super) fn record(
        &mut self,
        torrent: InfoHash,
        result: Result<Outcome, ResumeTorrentError>,
        survey: &mut Survey,
    ) {
        self.expected_count = self.expected_count.saturating_sub(1);
        match result {
            Ok(Outcome::Listed) => self.listed_count += 1,
            Ok(Outcome::LeftOut) | Err(ResumeTorrentError::NotFound(_)) => {}
            Err(ResumeTorrentError::Unreadable { reason, .. }) => {
                tracing::error!("a torrent cannot be resumed: {reason}");
            }
            Err(ResumeTorrentError::Unsaved(unsaved)) => {
                let label = Label::new(&unsaved.name, torrent);
                tracing::error!(torrent = %label, "not resumed: {unsaved}");
                self.first_error.get_or_insert(ResumeError::Unsaved(unsaved));
            }
        }
        self.answer(survey);
    }

    /// Answers when every torrent has its result.
    fn answer(&mut self, survey: &mut Survey) {
        if self.expected_count == 0 {
            survey.end_resuming(true);
            self.include_stopped = false;
            let count = std::mem::take(&mut self.listed_count);
            let result = self.first_error.take().map_or(Ok(count), Err);
            self.waiting.drain(..).for_each(|reply| reply.send(result.clone()));
        }
    }
}
