//! Inbound connections: admitted while there is room, before any byte is read from them.

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::bans::Bans;
use ecs_torrent_components::connections::ConnectionCounts;
use ecs_torrent_components::networks::AddressSet;
use ecs_torrent_components::peer::{CloseReason, Direction, Endpoint, Peer, Stage};
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::settings::{Settings, SettingsChanged};
use ecs_torrent_engine::ports::NetPort;
use ecs_torrent_engine::ports::net::{NetRequest, Streams};
use ecs_torrent_engine::schedule::Tick;

use crate::IntakeSet;
use crate::admission::Admission;
use crate::conditions::has_messages;
use crate::streams::{ReadyPeers, StreamAccepted};

/// Accepts inbound connections.
pub struct AcceptingPlugin;

impl Plugin for AcceptingPlugin {
    fn build(&self, app: &mut App) {
        let settings = app.world().get_resource::<Settings>();
        let mut bans = Bans::default();
        bans.block(
            settings
                .map(|settings| AddressSet::new(&settings.peers.blocked))
                .unwrap_or_default(),
        );
        app.init_resource::<ConnectionCounts>()
            .add_observer(close_excess)
            .add_observer(block_peers)
            .insert_resource(bans)
            .add_systems(
                Tick,
                accept_streams
                    .run_if(has_messages::<StreamAccepted>)
                    .in_set(IntakeSet::Accept),
            );
    }
}

/// Closes connections beyond limits that have been lowered.
fn close_excess(_: On<SettingsChanged>, mut admission: Admission) {
    admission.close_excess();
}

/// Refuses the peers that the user has blocked, and closes their connections.
fn block_peers(
    changed: On<SettingsChanged>,
    settings: Res<Settings>,
    mut bans: ResMut<Bans>,
    mut reaper: ResMut<Reaper>,
    peers: Query<(Entity, &Peer)>,
) {
    if !changed.names.iter().any(|name| name == "peers.blocked") {
        return;
    }
    bans.block(AddressSet::new(&settings.peers.blocked));
    for (entity, peer) in &peers {
        if peer
            .endpoint
            .address()
            .is_some_and(|address| bans.is_blocked(address.ip()))
        {
            reaper.close(entity, CloseReason::Banned);
        }
    }
}

fn accept_streams(
    mut accepted: MessageReader<StreamAccepted>,
    mut commands: Commands,
    mut net: ResMut<NetPort>,
    mut streams: ResMut<Streams>,
    mut ready: ResMut<ReadyPeers>,
    mut bans: ResMut<Bans>,
    mut admission: Admission,
) {
    let now = admission.clock.now();
    for &StreamAccepted {
        stream,
        remote,
        transport,
    } in accepted.read()
    {
        bans.expire(now);
        // Neither one address nor one subnet can take all slots (Fault 31).
        let is_banned = bans.refuses(now, remote, (&admission.settings.peers).into());
        if is_banned || !admission.make_room_for_handshake(remote) {
            tracing::debug!(peer = %remote, is_banned, "connection refused");
            let (is_orderly, tag) = (false, None);
            net.push(NetRequest::Close {
                stream,
                is_orderly,
                tag,
            });
            continue;
        }
        let peer = Peer {
            endpoint: Endpoint::Ip(remote),
            stream,
            transport: Some(transport),
            direction: Direction::Inbound,
            stage: Stage::Handshaking,
            since: now,
            peer_id: None,
            client: "".into(),
            listens_at: None,
        };
        let entity = commands.spawn_empty().id();
        admission.counts.add(entity, &peer, None, false);
        let wire = ready.open(entity, now, &admission.settings.net);
        commands.entity(entity).insert((peer, wire));
        streams.insert(stream, entity);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ecs_torrent_components::connections::ConnectionCounts;
    use ecs_torrent_components::ids::StreamId;
    use ecs_torrent_components::peer::Transport;
    use ecs_torrent_components::settings::Settings;
    use ecs_torrent_engine::ports::net::NetEvent;

    use super::*;
    use crate::testing::{Bed, NOW};

    /// Faults 30 and 31.
    #[test]
    fn a_banned_peer_or_one_beyond_the_limits_is_refused() {
        for (is_banned, limit, is_accepted) in [(false, 500, true), (true, 500, false), (false, 0, false)] {
            let mut bed = Bed::new(());
            bed.open_port::<NetRequest, NetEvent>(Vec::new());
            bed.world.init_resource::<Streams>();
            bed.world.init_resource::<ReadyPeers>();
            bed.world.init_resource::<Bans>();
            bed.world.init_resource::<ConnectionCounts>();
            bed.world.resource_mut::<Settings>().peers.max_connections = limit;
            let remote = "203.0.113.1:1".parse().unwrap();
            if is_banned {
                let mut bans = bed.world.resource_mut::<Bans>();
                bans.ban(NOW, Duration::from_secs(60), 9, remote);
            }
            let accepted = StreamAccepted {
                stream: StreamId(1),
                remote,
                transport: Transport::Tcp,
            };
            bed.run_after(accepted, accept_streams);
            assert_eq!(bed.world.resource::<Streams>().get(StreamId(1)).is_some(), is_accepted);
            let is_closed = !bed.world.resource::<NetPort>().outgoing().is_empty();
            assert_eq!(is_closed, !is_accepted);
        }
    }
}
