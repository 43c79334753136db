//! The start of paused torrents: the intent is saved first, then the torrent is opened again.

use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use bevy_ecs::query::QueryData;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{Reply, StartTorrentError, Unsaved};
use ecs_torrent_components::lifecycle::{ChangedFacts, Desired, Readiness};
use ecs_torrent_components::torrent::Torrent;

use super::opening::Opener;
use crate::sessions::{SessionState, SessionWritten};

type StartReply = Reply<Result<(), StartTorrentError>>;

/// Paused torrents whose session is being saved before they start, and the callers that wait for that.
#[derive(Resource, Debug, Default)]
pub(super) struct Starts(EntityHashMap<Vec<StartReply>>);

impl Starts {
    /// Adds a caller that waits for the start of a torrent to be saved.
    pub(super) fn add(&mut self, torrent: Entity, reply: StartReply) {
        self.0.entry(torrent).or_default().push(reply);
    }

    /// Whether a start of the torrent is being saved.
    pub(super) fn is_starting(&self, torrent: Entity) -> bool {
        self.0.contains_key(&torrent)
    }

    /// Answers every caller that waits for a torrent to start.
    pub(super) fn answer(&mut self, torrent: Entity, result: &Result<(), StartTorrentError>) {
        for reply in self.0.remove(&torrent).into_iter().flatten() {
            reply.send(result.clone());
        }
    }
}

/// The parts of a torrent that a start changes.
#[derive(QueryData)]
#[query_data(mutable)]
pub(super) struct Startable {
    torrent: &'static Torrent,
    desired: &'static mut Desired,
    readiness: &'static mut Readiness,
    state: &'static mut SessionState,
}

/// Opens the torrents whose start is saved, and answers the callers. If the session cannot be written, the torrent
/// stays paused. A torrent that is being checked, and would be paused after that, is open already.
pub(super) fn settle_starts(
    mut commands: Commands,
    mut written: MessageReader<SessionWritten>,
    mut starts: ResMut<Starts>,
    mut changed: ResMut<ChangedFacts>,
    mut opener: Opener,
    (clock, wakeup): (Res<Clock>, Res<Wakeup>),
    mut torrents: Query<Startable>,
) {
    for SessionWritten { torrent, result } in written.read() {
        if !starts.is_starting(*torrent) {
            continue;
        }
        let Ok(mut startable) = torrents.get_mut(*torrent) else {
            continue;
        };
        let is_paused = *startable.desired == Desired::Pause;
        match result {
            // An earlier save has ended, and the save of the start follows.
            Ok(()) if !startable.state.is_durable() => continue,
            Ok(()) => {
                if is_paused {
                    *startable.desired = Desired::Run;
                    let (readiness, state) = (&mut *startable.readiness, &mut *startable.state);
                    opener.reopen(*torrent, startable.torrent, readiness, state, &mut commands);
                    changed.add(*torrent);
                }
                starts.answer(*torrent, &Ok(()));
            }
            Err(reason) => {
                startable.state.set_paused(true);
                let unsaved = Unsaved::new(&startable.torrent.name, reason);
                starts.answer(*torrent, &Err(StartTorrentError::Unsaved(unsaved)));
            }
        }
        // Commands about the torrent may wait for this.
        wakeup.at(clock.now());
    }
}
