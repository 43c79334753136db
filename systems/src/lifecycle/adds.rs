//! Adds in progress: commands that wait, and callers that wait for a torrent to be added.
//!
//! A command about a torrent whose add is not decided yet waits for the decision, and is then carried out. Every system
//! that takes commands about single torrents takes them through [`Adds::take_decided`], which implements this rule.

use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use ecs_torrent_components::commands::{AboutTorrent, AddError, AddTorrent, CommandQueue, Reply};
use ecs_torrent_components::torrent::{Label, TorrentIndex};
use ecs_torrent_protocol::hash::InfoHash;

/// Pending add commands, and the callers that wait for the results of others.
#[derive(Resource, Debug, Default)]
pub(crate) struct Adds {
    /// Commands that cannot be decided yet.
    pub(super) waiting: Vec<WaitingAdd>,
    /// Adds of torrents that are listed already; carried out in the same tick.
    pub(super) joins: Vec<(Entity, AddTorrent)>,
    /// Callers that get their answer when the torrent may use its files and its session is durable.
    callers: EntityHashMap<Callers>,
    /// Refused torrents, taken by the stop.
    pub(super) refused: Vec<Entity>,
    /// The reason of each refusal, until the torrent is gone: a caller gets the refusal only when the torrent is no
    /// longer listed.
    refusals: EntityHashMap<AddError>,
}

/// The callers that wait for one torrent.
#[derive(Debug, Default)]
struct Callers {
    /// One of these adds has listed the torrent.
    is_new: bool,
    replies: Vec<AddReply>,
}

/// An add that cannot be decided yet.
#[derive(Debug)]
pub(super) struct WaitingAdd {
    pub(super) command: AddTorrent,
    pub(super) event: DecidingEvent,
}

/// The event that an add waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DecidingEvent {
    /// The files of all stopped torrents are known.
    Survey,
    /// The same torrent, which is being stopped or will be in this tick, is gone.
    End,
}

type AddReply = Reply<Result<InfoHash, AddError>>;

impl Adds {
    /// Whether there are adds to decide or to carry out.
    pub(super) fn has_undecided(&self) -> bool {
        !self.waiting.is_empty() || !self.joins.is_empty()
    }

    /// Lets a caller wait for a torrent that its add has listed.
    pub(super) fn await_new(&mut self, torrent: Entity, reply: AddReply) {
        self.callers.entry(torrent).or_default().is_new = true;
        self.await_listed(torrent, reply);
    }

    /// Lets a caller wait for a torrent that was listed before its add.
    pub(super) fn await_listed(&mut self, torrent: Entity, reply: AddReply) {
        self.callers.entry(torrent).or_default().replies.push(reply);
    }

    /// Whether the add has not been confirmed to any caller, so that it can still be refused.
    pub(super) fn is_new(&self, torrent: Entity) -> bool {
        self.callers.get(&torrent).is_some_and(|callers| callers.is_new)
    }

    /// Whether a caller waits for the torrent to be added.
    pub(super) fn is_pending(&self, torrent: Entity) -> bool {
        self.callers.contains_key(&torrent)
    }

    /// Takes the commands that can be carried out now, each with its torrent if that is listed. A command about a
    /// torrent whose add is not decided yet stays in the queue; in the tick of the decision it is taken.
    pub(crate) fn take_decided<C: AboutTorrent>(
        &self,
        queue: &mut CommandQueue<C>,
        index: &TorrentIndex,
        is_ending: impl Fn(Entity) -> bool,
    ) -> Vec<(C, Option<Entity>)> {
        let mut decided = Vec::new();
        for command in std::mem::take(&mut queue.0) {
            let listed = index.get(command.torrent());
            // An add of a running torrent may wait for a stop that begins in this tick, so the stop must begin.
            let waits_for_end = listed.is_none_or(&is_ending);
            let is_undecided = |add: &WaitingAdd| add.event == DecidingEvent::Survey || waits_for_end;
            match self.waiting_for(command.torrent()).any(is_undecided) {
                true => queue.0.push_back(command),
                false => decided.push((command, listed)),
            }
        }
        decided
    }

    /// Returns the adds of a torrent that have not been decided yet.
    fn waiting_for(&self, torrent: InfoHash) -> impl Iterator<Item = &WaitingAdd> {
        let is_it = move |add: &&WaitingAdd| add.command.source.hashes().wire_hashes().any(|hash| hash == torrent);
        self.waiting.iter().filter(is_it)
    }

    /// Answers every caller that waits for a torrent.
    pub(super) fn answer(&mut self, torrent: Entity, result: &Result<InfoHash, AddError>) {
        let callers = self.callers.remove(&torrent).unwrap_or_default();
        for reply in callers.replies {
            reply.send(result.clone());
        }
    }

    /// Refuses a torrent: removes it without a trace, and then answers every caller that waits for it.
    pub(super) fn refuse(&mut self, torrent: Entity, label: Label<'_>, error: AddError) {
        tracing::info!(torrent = %label, "not added: {error}");
        self.refusals.insert(torrent, error);
        self.refused.push(torrent);
    }

    /// Answers every caller that waits for a torrent that has ended: with the reason of its refusal, or else with
    /// `result`.
    pub(super) fn end(&mut self, torrent: Entity, result: Result<InfoHash, AddError>) {
        let refusal = self.refusals.remove(&torrent).map(Err);
        self.answer(torrent, &refusal.unwrap_or(result));
    }
}
