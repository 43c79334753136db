//! Disconnecting: closes the connections of torrents that no longer run.
//!
//! A stopped torrent sends each peer a cancel for each outstanding request, not interested, and choke. Then it closes
//! the connection, and the close ends when the peer has received these messages. A torrent that failed, or has to wait
//! in the queue, closes its connections at once.

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use ecs_torrent_components::lifecycle::Readiness;
use ecs_torrent_components::messages::LifecycleChanged;
use ecs_torrent_components::peer::{CloseReason, Peer, RequestSink, Requests, SourceSink, SourceSinkItem, Stage};
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::torrent::{Lifecycle, StopPhase, TorrentPeers};
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::NetPort;
use ecs_torrent_engine::ports::net::{NetEvent, NetRequest};
use ecs_torrent_engine::purpose;
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::tally::Tally;
use ecs_torrent_protocol::wire::Message;

use crate::DecideSet;
use crate::conditions::has_events;
use crate::stop_participants::{AddStopParticipant, StopDuty, has_stops};

/// Closes the connections of torrents that no longer run.
pub struct DisconnectingPlugin;

impl Plugin for DisconnectingPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<ClosingStreams>()
            .add_stop_participant::<PeerConnections>(StopPhase::DisconnectPeers, None)
            .add_systems(
                Tick,
                (
                    close_failed,
                    disconnect_stopped.run_if(has_stops.or_else(has_events::<NetRequest, NetEvent>(CLOSING))),
                )
                    .chain()
                    .in_set(DecideSet::Disconnect),
            );
    }
}

const CLOSING: Purpose = purpose!("close streams");

/// The stop participant that disconnects peers.
pub(crate) struct PeerConnections;

/// Connections of stopping torrents whose orderly close has not ended, by torrent.
#[derive(Resource, Debug, Default)]
pub(crate) struct ClosingStreams(Tally<Entity>);

impl ClosingStreams {
    /// Counts a close whose end is awaited, and returns its tag.
    pub(crate) fn expect(&mut self, torrent: Option<Entity>, reason: &CloseReason) -> Option<JobTag> {
        let owner = torrent.filter(|_| *reason == CloseReason::Stopping)?;
        self.0.add(owner);
        Some(JobTag::new(CLOSING, owner))
    }

    fn record_end(&mut self, torrent: Entity) {
        self.0.remove(&torrent);
    }
}

/// Closes the connections of torrents that failed, lost their volume, or have to wait in the queue.
fn close_failed(
    mut changed: MessageReader<LifecycleChanged>,
    mut reaper: ResMut<Reaper>,
    torrents: Query<(&Readiness, &TorrentPeers)>,
) {
    for LifecycleChanged { torrent, to, .. } in changed.read() {
        let Ok((readiness, peers)) = torrents.get(*torrent) else {
            continue;
        };
        let is_closed = match to {
            Lifecycle::Failed { .. } | Lifecycle::Queued => true,
            Lifecycle::Blocked { .. } => *readiness == Readiness::Unopened,
            _ => false,
        };
        if is_closed {
            peers.iter().for_each(|peer| reaper.close(peer, CloseReason::Stopping));
        }
    }
}

/// Disconnects the peers of stopping torrents, and waits until every connection has ended.
fn disconnect_stopped(
    mut duty: StopDuty<PeerConnections>,
    mut disconnecting: Local<Vec<Entity>>,
    mut net: ResMut<NetPort>,
    mut closing: ResMut<ClosingStreams>,
    mut sink: RequestSink,
    mut reaper: ResMut<Reaper>,
    torrents: Query<&TorrentPeers>,
    mut peers: Query<(Option<&Peer>, Option<&mut Requests>, SourceSink)>,
) {
    for event in net.take(CLOSING) {
        if let NetEvent::Gone { tag } = event {
            closing.record_end(tag.owner);
        }
    }
    for turn in duty.take() {
        for peer in torrents
            .get(turn.torrent)
            .into_iter()
            .flat_map(RelationshipTarget::iter)
        {
            // A source of blocks need not be a connection.
            if let Ok((connection, requests, mut source)) = peers.get_mut(peer)
                && connection.is_none_or(|connection| connection.stage == Stage::Connected)
                && let Some(mut requests) = requests
            {
                take_leave(peer, &mut requests, &mut source, &mut sink);
            }
            reaper.close(peer, CloseReason::Stopping);
        }
        disconnecting.push(turn.torrent);
    }
    duty.finish_done(&mut disconnecting, |torrent| {
        !torrents.contains(torrent) && closing.0.of(&torrent) == 0
    });
}

/// Queues a cancel for each outstanding request, not interested and choke; the close follows when these are sent.
fn take_leave(peer: Entity, requests: &mut Requests, source: &mut SourceSinkItem<'_, '_>, sink: &mut RequestSink) {
    for pending in requests.cancel_all() {
        sink.cancel(peer, source, pending.request);
    }
    sink.send(peer, source, &Message::NotInterested);
    sink.send(peer, source, &Message::Choke);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torrent_waits_for_all_of_its_closes() {
        let torrent = Entity::PLACEHOLDER;
        let mut closing = ClosingStreams::default();
        assert!(closing.expect(Some(torrent), &CloseReason::Evicted).is_none());
        assert!(closing.expect(None, &CloseReason::Stopping).is_none());
        assert!(closing.0.is_empty());
        for _ in 0..2 {
            assert!(closing.expect(Some(torrent), &CloseReason::Stopping).is_some());
        }
        closing.record_end(torrent);
        assert!(closing.0.of(&torrent) > 0);
        closing.record_end(torrent);
        assert!(closing.0.is_empty());
        closing.record_end(torrent);
    }
}
