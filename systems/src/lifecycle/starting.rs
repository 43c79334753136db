//! The start of paused torrents: the intent is saved first, then the torrent is opened again.

use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use bevy_ecs::query::QueryData;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{
    CommandQueue, Reply, StartAll, StartTorrent, StartTorrentError, TorrentNotFound,
};
use ecs_torrent_components::lifecycle::{ChangedFacts, Desired, Readiness};
use ecs_torrent_components::torrent::{Torrent, TorrentIndex};

use super::adds::Adds;
use super::opening::Opener;
use crate::sessions::{SaveTorrent, SessionState, SessionWritten};

type StartReply = Reply<Result<(), StartTorrentError>>;

/// Paused torrents whose session is being saved before they start, and the callers that wait for that.
#[derive(Resource, Debug, Default)]
pub(super) struct Starts(EntityHashMap<Vec<StartReply>>);

impl Starts {
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

/// Returns whether starts are requested.
pub(super) fn has_starts(singles: Res<CommandQueue<StartTorrent>>, alls: Res<CommandQueue<StartAll>>) -> bool {
    !singles.0.is_empty() || !alls.0.is_empty()
}

/// Saves the intent of paused torrents that are to start. A start of a torrent that is being paused, stopped or removed
/// waits for that.
pub(super) fn begin_starts(
    mut queue: ResMut<CommandQueue<StartTorrent>>,
    mut alls: ResMut<CommandQueue<StartAll>>,
    mut starts: ResMut<Starts>,
    mut save: MessageWriter<SaveTorrent>,
    index: Res<TorrentIndex>,
    adds: Res<Adds>,
    mut torrents: Query<Startable>,
) {
    for StartAll { reply } in alls.0.drain(..) {
        let paused = || torrents.iter().filter(|startable| *startable.desired == Desired::Pause);
        let hashes = paused().map(|startable| startable.torrent.id());
        let singles = hashes.zip(reply.split(paused().count()));
        let singles = singles.map(|(torrent, reply)| StartTorrent { torrent, reply });
        queue.0.extend(singles);
    }
    let is_leaving = |entity| {
        torrents
            .get(entity)
            .is_ok_and(|startable| startable.desired.is_leaving())
    };
    for (start, listed) in adds.take_decided(&mut queue, &index, is_leaving) {
        let Some(entity) = listed else {
            start.reply.send(Err(TorrentNotFound(start.torrent).into()));
            continue;
        };
        let Ok(mut startable) = torrents.get_mut(entity) else {
            queue.0.push_back(start);
            continue;
        };
        match (*startable.desired, *startable.readiness) {
            (Desired::Run, _) => start.reply.send(Ok(())),
            (Desired::Pause, Readiness::Closed) => {
                startable.state.set_paused(false);
                save.write(SaveTorrent { torrent: entity });
                starts.0.entry(entity).or_default().push(start.reply);
            }
            _ => queue.0.push_back(start),
        }
    }
}

/// Opens the torrents whose start is saved, and answers the callers. If the session cannot be written, the torrent stays
/// paused.
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
            // An earlier save has ended, and the one of the start follows.
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
                startable.state.set_paused(is_paused);
                let error = StartTorrentError::Unsaved {
                    name: startable.torrent.name.clone(),
                    reason: reason.clone(),
                };
                starts.answer(*torrent, &Err(error));
            }
        }
        // Commands about the torrent may wait for this.
        wakeup.at(clock.now());
    }
}
