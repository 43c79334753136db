//! Adds in progress: commands that wait, and callers that wait for a torrent to be added.

use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use ecs_torrent_components::commands::{AddError, AddOptions, AddTorrent, Reply};
use ecs_torrent_protocol::hash::InfoHash;

/// Pending add commands, and the callers that wait for the results of others.
#[derive(Resource, Debug, Default)]
pub(super) struct Adds {
    /// Commands that cannot be decided yet: the same torrent is being stopped, or stopped torrents are still being
    /// read.
    pub(super) waiting: Vec<AddTorrent>,
    /// Failed torrents that were added again, with the new options.
    pub(super) renewals: Vec<(Entity, AddOptions)>,
    /// Callers that get their answer when the torrent's session is durable.
    pub(super) callers: EntityHashMap<Vec<AddReply>>,
    /// Refused torrents, taken by the stop.
    pub(super) refused: Vec<Entity>,
    /// The reason of each refusal, until the torrent is gone: a caller gets the refusal only once nothing of the
    /// torrent is listed.
    refusals: EntityHashMap<AddError>,
}

type AddReply = Reply<Result<InfoHash, AddError>>;

impl Adds {
    /// Whether a caller waits for the torrent to be added.
    pub(super) fn is_pending(&self, torrent: Entity) -> bool {
        self.callers.contains_key(&torrent)
    }

    /// Whether an add of the torrent has not been decided yet.
    pub(super) fn is_waiting(&self, torrent: InfoHash) -> bool {
        let mut waiting = self.waiting.iter().flat_map(|add| add.metainfo.hashes.wire_hashes());
        waiting.any(|hash| hash == torrent)
    }

    /// Answers every caller that waits for a torrent.
    pub(super) fn answer(&mut self, torrent: Entity, result: &Result<InfoHash, AddError>) {
        for reply in self.callers.remove(&torrent).into_iter().flatten() {
            reply.send(result.clone());
        }
    }

    /// Refuses a torrent: removes it, keeps nothing of it, and then answers every caller that waits for it.
    pub(super) fn refuse(&mut self, torrent: Entity, error: AddError) {
        tracing::info!("not added: {error}");
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
