//! Inbound connections: admitted while there is room, before any byte is read from them.

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::bans::Bans;
use ecs_torrent_components::connections::ConnectionCounts;
use ecs_torrent_components::peer::{Direction, Endpoint, Peer, Stage};
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
        app.init_resource::<ConnectionCounts>()
            .init_resource::<Bans>()
            .add_systems(
                Tick,
                accept_streams
                    .run_if(has_messages::<StreamAccepted>)
                    .in_set(IntakeSet::Accept),
            );
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
        // Fault 31: neither one address nor one subnet can take all slots.
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
