//! Peers that connect to us: let in as far as the limits go, before anything is read from them.

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::bans::Bans;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::connections::ConnectionCounts;
use ecs_torrent_components::peer::{Direction, Endpoint, Outbox, Peer, Stage, Wire};
use ecs_torrent_components::settings::Settings;
use ecs_torrent_engine::ports::NetPort;
use ecs_torrent_engine::ports::net::{Links, NetRequest};
use ecs_torrent_engine::schedule::Tick;

use crate::IntakeSet;
use crate::links::LinkAccepted;

/// Accepts connections.
pub struct AcceptingPlugin;

impl Plugin for AcceptingPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<ConnectionCounts>()
            .init_resource::<Bans>()
            .add_systems(Tick, accept_links.in_set(IntakeSet::Accept));
    }
}

fn accept_links(
    mut accepted: MessageReader<LinkAccepted>,
    mut commands: Commands,
    mut net: ResMut<NetPort>,
    mut links: ResMut<Links>,
    mut counts: ResMut<ConnectionCounts>,
    bans: Res<Bans>,
    clock: Res<Clock>,
    settings: Res<Settings>,
) {
    let now = clock.now();
    let limits = &settings.peers;
    for &LinkAccepted { link, remote } in accepted.read() {
        // Fault 31: one address cannot take all places.
        let is_full = counts.total >= limits.max_connections
            || counts.unidentified >= limits.max_unidentified
            || counts.inbound_from(remote.ip()) >= limits.max_inbound_per_ip;
        if is_full || bans.has_address(now, remote, limits.bans_per_ip) {
            tracing::debug!(%remote, is_full, "connection refused");
            let (is_orderly, tag) = (false, None);
            net.push(NetRequest::Close { link, is_orderly, tag });
            continue;
        }
        let peer = Peer {
            endpoint: Endpoint::Ip(remote),
            link,
            direction: Direction::Inbound,
            stage: Stage::Handshaking,
            since: now,
            peer_id: None,
            client: "".into(),
            listens_at: None,
        };
        counts.add(&peer);
        let entity = commands.spawn((peer, Wire::new(now), Outbox::default())).id();
        links.insert(link, entity);
    }
}
