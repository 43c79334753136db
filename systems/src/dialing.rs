//! Connecting to peers: which address next, and how many at a time.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use bevy_app::{App, Plugin};
use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use ecs_torrent_components::bans::Bans;
use ecs_torrent_components::candidates::{CandidateSource, Candidates, Retry};
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{AddPeers, CommandQueue};
use ecs_torrent_components::connections::ConnectionCounts;
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::messages::{PeerDisconnected, PeersWanted, TorrentStarted};
use ecs_torrent_components::peer::{CloseReason, Direction, Endpoint, Outbox, Peer, Stage, Wire};
use ecs_torrent_components::settings::{Settings, seconds};
use ecs_torrent_components::torrent::{Lifecycle, PeerOf, TorrentIndex, TorrentPeers};
use ecs_torrent_engine::ports::NetPort;
use ecs_torrent_engine::ports::net::{Links, LocalAddresses, NetRequest};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::priority::peer_priority;

use crate::{DecideSet, ReapSet};

/// Connects to peers.
pub struct DialingPlugin;

impl Plugin for DialingPlugin {
    fn build(&self, app: &mut App) {
        app.add_message::<CandidatesFound>()
            .add_message::<PeersWanted>()
            .init_resource::<DialQueue>()
            .init_resource::<ExternalAddresses>()
            .init_resource::<Deadlines<Redial>>()
            .init_resource::<CommandQueue<AddPeers>>()
            .add_systems(
                Tick,
                (
                    (take_peers, add_candidates, queue_torrents, dial_peers)
                        .chain()
                        .in_set(DecideSet::Dialing),
                    release_candidates.in_set(ReapSet::Release),
                ),
            );
    }
}

/// Addresses at which peers of a torrent may be, from whoever finds some.
#[derive(Message, Debug, Clone)]
pub struct CandidatesFound {
    /// The torrent.
    pub torrent: Entity,
    /// The addresses.
    pub addresses: Vec<SocketAddr>,
    /// Who found them.
    pub source: CandidateSource,
}

/// Our addresses as others see them, from trackers (BEP 24); what canonical priorities are reckoned from (BEP 40).
#[derive(Resource, Debug, Default)]
pub struct ExternalAddresses(Vec<IpAddr>);

impl ExternalAddresses {
    /// Takes another's word for our address; the latest of a family counts.
    pub fn learn(&mut self, ip: IpAddr) {
        self.0.retain(|known| known.is_ipv4() != ip.is_ipv4());
        self.0.push(ip);
    }

    /// Where a peer at `remote` most likely sees us.
    fn seen_from(&self, remote: SocketAddr, local: &LocalAddresses) -> SocketAddr {
        let listening = local.for_family_of(remote);
        let known = self.0.iter().find(|ip| ip.is_ipv4() == remote.is_ipv4());
        let ip = known.copied().or(listening.map(|address| address.ip()));
        SocketAddr::new(ip.unwrap_or(remote.ip()), listening.map_or(0, |address| address.port()))
    }
}

/// Torrents that may connect to somebody.
#[derive(Resource, Debug, Default)]
struct DialQueue {
    torrents: VecDeque<Entity>,
}

impl DialQueue {
    fn add(&mut self, torrent: Entity, dialer: &mut Dialer) {
        if !dialer.is_listed {
            dialer.is_listed = true;
            self.torrents.push_back(torrent);
        }
    }
}

/// On every torrent: whether it is in the dial queue, or when it will be.
#[derive(Component, Debug, Default)]
pub struct Dialer {
    is_listed: bool,
    has_deadline: bool,
}

/// When an address of a torrent may be tried again.
#[derive(Debug)]
struct Redial(Entity);

fn take_peers(
    mut commands: ResMut<CommandQueue<AddPeers>>,
    index: Res<TorrentIndex>,
    mut found: MessageWriter<CandidatesFound>,
) {
    for AddPeers { torrent, peers } in commands.0.drain(..) {
        if let Some(torrent) = index.get(torrent) {
            let source = CandidateSource::User;
            found.write(CandidatesFound {
                torrent,
                addresses: peers,
                source,
            });
        }
    }
}

fn add_candidates(
    mut found: MessageReader<CandidatesFound>,
    settings: Res<Settings>,
    local: Res<LocalAddresses>,
    external: Res<ExternalAddresses>,
    clock: Res<Clock>,
    bans: Res<Bans>,
    mut queue: ResMut<DialQueue>,
    mut torrents: Query<(&mut Candidates, &mut Dialer)>,
) {
    for CandidatesFound {
        torrent,
        addresses,
        source,
    } in found.read()
    {
        let Ok((mut candidates, mut dialer)) = torrents.get_mut(*torrent) else {
            continue;
        };
        for &address in addresses {
            // Fault 30: trackers name us too.
            let is_banned = bans.has_address(clock.now(), address, settings.peers.bans_per_ip);
            if !is_banned && !local.0.contains(&address) {
                let priority = peer_priority(external.seen_from(address, &local), address);
                candidates.add(address, *source, priority, settings.peers.max_candidates);
            }
        }
        queue.add(*torrent, &mut dialer);
    }
}

fn queue_torrents(
    mut started: MessageReader<TorrentStarted>,
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
    mut redials: ResMut<Deadlines<Redial>>,
    mut queue: ResMut<DialQueue>,
    mut torrents: Query<&mut Dialer>,
) {
    for TorrentStarted { torrent } in started.read() {
        if let Ok(mut dialer) = torrents.get_mut(*torrent) {
            queue.add(*torrent, &mut dialer);
        }
    }
    while let Some(Redial(torrent)) = redials.pop_due(clock.now()) {
        if let Ok(mut dialer) = torrents.get_mut(torrent) {
            dialer.has_deadline = false;
            queue.add(torrent, &mut dialer);
        }
    }
    wakeup.at_next(redials.next());
}

/// One address a turn for each torrent that wants one, as far as the limits go.
fn dial_peers(
    mut commands: Commands,
    clock: Res<Clock>,
    settings: Res<Settings>,
    bans: Res<Bans>,
    wakeup: Res<Wakeup>,
    mut net: ResMut<NetPort>,
    mut links: ResMut<Links>,
    mut counts: ResMut<ConnectionCounts>,
    mut queue: ResMut<DialQueue>,
    mut redials: ResMut<Deadlines<Redial>>,
    mut wanted: MessageWriter<PeersWanted>,
    mut torrents: Query<(&mut Candidates, &mut Dialer, &Lifecycle, Option<&TorrentPeers>)>,
) {
    let now = clock.now();
    let limits = &settings.peers;
    let mut dialed: EntityHashMap<usize> = EntityHashMap::default();
    while counts.half_open < limits.max_half_open && counts.total < limits.max_connections {
        let Some(entity) = queue.torrents.pop_front() else {
            break;
        };
        let Ok((mut candidates, mut dialer, lifecycle, peers)) = torrents.get_mut(entity) else {
            continue;
        };
        dialer.is_listed = false;
        let known = peers.map_or(0, RelationshipTarget::len);
        let new = dialed.get(&entity).copied().unwrap_or(0);
        if !lifecycle.is_running() || known + new >= limits.max_per_torrent {
            continue;
        }
        let Some(address) = candidates.take_best(now) else {
            if known + new == 0 && *lifecycle == Lifecycle::Downloading {
                wanted.write(PeersWanted { torrent: entity });
                wakeup.at(now);
            }
            if let (Some(next), false) = (candidates.next_ready(now), dialer.has_deadline) {
                dialer.has_deadline = true;
                redials.set(next, Redial(entity));
                wakeup.at(next);
            }
            continue;
        };
        queue.add(entity, &mut dialer);
        if bans.has_address(now, address, limits.bans_per_ip) {
            candidates.remove(address);
            continue;
        }
        let link = links.next_id();
        let peer = Peer {
            endpoint: Endpoint::Ip(address),
            link,
            direction: Direction::Outbound,
            stage: Stage::Connecting,
            since: now,
            peer_id: None,
            client: "".into(),
            listens_at: Some(address),
        };
        counts.add(&peer);
        let spawned = commands
            .spawn((peer, PeerOf(entity), Wire::new(now), Outbox::default()))
            .id();
        links.insert(link, spawned);
        let timeout = seconds(settings.net.connect_timeout_s);
        net.push(NetRequest::Connect {
            link,
            to: address,
            timeout,
        });
        *dialed.entry(entity).or_default() += 1;
    }
}

/// Where a connection has ended, its address may be tried again, later or never.
fn release_candidates(
    mut gone: MessageReader<PeerDisconnected>,
    clock: Res<Clock>,
    settings: Res<Settings>,
    mut queue: ResMut<DialQueue>,
    peers: Query<&Peer>,
    mut torrents: Query<(&mut Candidates, &mut Dialer)>,
) {
    let limits = &settings.peers;
    for PeerDisconnected { torrent, peer, reason } in gone.read() {
        let Some((mut candidates, mut dialer)) = torrent.and_then(|torrent| torrents.get_mut(torrent).ok()) else {
            continue;
        };
        if let Some(address) = peers.get(*peer).ok().and_then(|peer| peer.listens_at) {
            if is_final(reason) {
                candidates.remove(address);
            } else {
                candidates.release(
                    address,
                    clock.now(),
                    Retry {
                        is_failure: reason.is_failure(),
                        backoff: seconds(limits.reconnect_backoff_s),
                        max_backoff: seconds(limits.max_reconnect_backoff_s),
                        max_failures: limits.max_failures,
                    },
                );
            }
        }
        if let Some(torrent) = torrent {
            queue.add(*torrent, &mut dialer);
        }
    }
}

/// Whether trying the address again makes no sense, unless it is named anew.
fn is_final(reason: &CloseReason) -> bool {
    matches!(
        reason,
        CloseReason::Myself | CloseReason::Corrupt | CloseReason::Banned | CloseReason::Redundant
    )
}
