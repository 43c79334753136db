//! End of connections: every feature releases its data about the peer, then the peer is despawned.

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::connections::ConnectionCounts;
use ecs_torrent_components::messages::PeerDisconnected;
use ecs_torrent_components::peer::Peer;
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::torrent::{PeerOf, Torrent};
use ecs_torrent_engine::ports::NetPort;
use ecs_torrent_engine::ports::net::{NetRequest, Streams};
use ecs_torrent_engine::schedule::Tick;
use tracing::field::display;

use crate::ReapSet;
use crate::disconnecting::ClosingStreams;

/// Closes the connections that are marked for closing.
pub struct ReapingPlugin;

impl Plugin for ReapingPlugin {
    fn build(&self, app: &mut App) {
        app.add_message::<PeerDisconnected>()
            .init_resource::<Reaper>()
            .add_systems(
                Tick,
                (
                    publish_disconnects.run_if(has_doomed).in_set(ReapSet::Publish),
                    despawn_peers.run_if(has_doomed).in_set(ReapSet::Despawn),
                ),
            );
    }
}

fn has_doomed(reaper: Res<Reaper>) -> bool {
    !reaper.is_empty()
}

fn publish_disconnects(
    reaper: Res<Reaper>,
    peers: Query<(Option<&Peer>, Option<&PeerOf>)>,
    torrents: Query<&Torrent>,
    mut gone: MessageWriter<PeerDisconnected>,
) {
    for (entity, reason) in reaper.iter() {
        let Ok((peer, of)) = peers.get(entity) else { continue };
        if let Some(peer) = peer {
            let label_of = |of: &PeerOf| Some(display(torrents.get(of.0).ok()?.label()));
            tracing::debug!(
                torrent = of.and_then(label_of),
                peer = %peer.endpoint,
                %reason,
                "disconnected"
            );
        }
        gone.write(PeerDisconnected {
            torrent: of.map(|of| of.0),
            peer: entity,
            reason: reason.clone(),
        });
    }
}

fn despawn_peers(
    mut commands: Commands,
    mut reaper: ResMut<Reaper>,
    mut net: ResMut<NetPort>,
    mut streams: ResMut<Streams>,
    mut counts: ResMut<ConnectionCounts>,
    mut closing: ResMut<ClosingStreams>,
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
    peers: Query<(Option<&Peer>, Option<&PeerOf>)>,
) {
    for (entity, reason) in reaper.take() {
        let Ok((peer, of)) = peers.get(entity) else { continue };
        commands.entity(entity).despawn();
        // A source of blocks need not be a connection.
        let Some(peer) = peer else { continue };
        let is_orderly = reason.is_orderly();
        let tag = closing.expect(of.map(|of| of.0), &reason);
        net.push(NetRequest::Close {
            stream: peer.stream,
            is_orderly,
            tag,
        });
        streams.remove(peer.stream);
        counts.remove(entity);
    }
    // The ports have already run in this tick; the requests pushed here leave in the next one.
    wakeup.at(clock.now());
}
