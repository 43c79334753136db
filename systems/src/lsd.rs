//! Local service discovery (BEP 14): announces torrents to the local network by multicast, and finds peers there.
//!
//! Each running torrent is announced every five minutes, several in one message, and at most one message is sent a
//! minute. The Net port sends and receives on the interfaces of the local network; where there is none, nothing
//! happens.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::candidates::{AllowedSources, CandidateSource, CandidatesFound};
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::messages::{LifecycleChanged, MetadataKnown};
use ecs_torrent_components::peer::Allowance;
use ecs_torrent_components::random::Random;
use ecs_torrent_components::settings::{Settings, seconds};
use ecs_torrent_components::torrent::{Lifecycle, Torrent, TorrentIndex};
use ecs_torrent_engine::port::OpenInbox;
use ecs_torrent_engine::ports::NetPort;
use ecs_torrent_engine::ports::net::{LSD_DATAGRAMS, LocalAddresses, NetEvent, NetRequest};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::compact::Family;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::lsd::{GROUP_V4, GROUP_V6, LocalAnnounce, MAX_HASHES};
use ecs_torrent_protocol::time::Timestamp;

use crate::DecideSet;
use crate::conditions::{has_events, has_messages_of_two, is_due};

/// Time between two messages (BEP 14).
const MESSAGE_INTERVAL: Duration = Duration::from_secs(60);

/// Time for which a message waits for more torrents to announce: many start together.
const GATHER: Duration = Duration::from_secs(1);

/// Burst of messages that are read from one host, and the interval between two after the burst. Clients that announce
/// one torrent in a message send many at their start.
const PER_HOST: (u32, Duration) = (20, Duration::from_secs(5));

/// Burst of messages that are read from all hosts together, and the interval between two after the burst. A host can
/// forge any number of addresses. A message names at most 24 torrents, so this costs microseconds per second.
const IN_ALL: (u32, Duration) = (200, Duration::from_millis(50));

/// Maximum number of hosts whose messages are counted. Beyond it, counting begins again, within the limit of all hosts.
const MAX_HOSTS: usize = 256;

/// Announces torrents to the local network.
pub struct LsdPlugin;

impl Plugin for LsdPlugin {
    fn build(&self, app: &mut App) {
        app.register_required_components::<Torrent, LocalAnnouncer>();
        app.open_inbox::<NetRequest, NetEvent>(LSD_DATAGRAMS)
            .init_resource::<LocalDiscovery>()
            .init_resource::<Deadlines<LocalTurn>>()
            .add_systems(
                Tick,
                (
                    list_torrents.run_if(has_messages_of_two::<LifecycleChanged, MetadataKnown>),
                    receive_local.run_if(has_events::<NetRequest, NetEvent>(LSD_DATAGRAMS)),
                    announce_locally.run_if(may_announce),
                )
                    .chain()
                    .in_set(DecideSet::LocalDiscovery),
            );
    }
}

/// When a torrent is announced next; `None` if it is not announced. A turn at any other time is obsolete.
#[derive(Component, Debug, Default)]
pub struct LocalAnnouncer {
    due: Option<Timestamp>,
}

/// A torrent whose next announcement is due.
#[derive(Debug)]
struct LocalTurn(Entity);

/// The state of local discovery.
#[derive(Resource, Debug, Default)]
struct LocalDiscovery {
    /// Text by which the engine recognizes its own messages.
    cookie: Option<String>,
    /// Earliest time of the next message.
    earliest: Timestamp,
    /// The messages that may still be read from each host, and from all.
    hosts: BTreeMap<IpAddr, Allowance>,
    in_all: Option<Allowance>,
}

impl LocalDiscovery {
    /// Returns when the next message may be sent, if a torrent waits for one.
    fn next(&self, turns: &Deadlines<LocalTurn>) -> Option<Timestamp> {
        turns.next().map(|due| due.max(self.earliest))
    }

    /// Whether a message of a host may be read.
    fn allows(&mut self, host: IpAddr, now: Timestamp) -> bool {
        if self.hosts.len() >= MAX_HOSTS && !self.hosts.contains_key(&host) {
            self.hosts.clear();
        }
        let full = |(most, interval)| Allowance::new(now, most, interval);
        let of_host = self.hosts.entry(host).or_insert_with(|| full(PER_HOST));
        // A host beyond its limit does not use up the limit of all hosts.
        of_host.take(now) && self.in_all.get_or_insert_with(|| full(IN_ALL)).take(now)
    }
}

/// The components of a torrent that decide whether it is announced.
type Announced = (
    &'static Torrent,
    &'static Lifecycle,
    &'static AllowedSources,
    &'static mut LocalAnnouncer,
);

/// Lists torrents that begin to run, or turn out to be public.
fn list_torrents(
    mut changed: MessageReader<LifecycleChanged>,
    mut known: MessageReader<MetadataKnown>,
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
    discovery: Res<LocalDiscovery>,
    mut turns: ResMut<Deadlines<LocalTurn>>,
    mut torrents: Query<Announced>,
) {
    let changed = changed.read().map(|changed| changed.torrent);
    for entity in changed.chain(known.read().map(|known| known.torrent)) {
        let Ok((_, lifecycle, allowed, mut announcer)) = torrents.get_mut(entity) else {
            continue;
        };
        if lifecycle.connects() && allowed.has(CandidateSource::LOCAL_DISCOVERY) && announcer.due.is_none() {
            let at = clock.now() + GATHER;
            announcer.due = Some(at);
            turns.set(at, LocalTurn(entity));
            wakeup.at(at.max(discovery.earliest));
        }
    }
}

/// Returns whether a message may be sent, and a torrent waits for one. If not, requests a tick at that time.
fn may_announce(
    turns: Res<Deadlines<LocalTurn>>,
    discovery: Res<LocalDiscovery>,
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
) -> bool {
    is_due(discovery.next(&turns), &clock, &wakeup)
}

#[derive(SystemParam)]
struct Announcing<'w> {
    clock: Res<'w, Clock>,
    wakeup: Res<'w, Wakeup>,
    settings: Res<'w, Settings>,
    local: Res<'w, LocalAddresses>,
    random: ResMut<'w, Random>,
    net: ResMut<'w, NetPort>,
    discovery: ResMut<'w, LocalDiscovery>,
}

/// Announces the torrents that are due, as many as fit into a message.
fn announce_locally(
    mut turns: ResMut<Deadlines<LocalTurn>>,
    mut announcing: Announcing,
    mut torrents: Query<Announced>,
) {
    let now = announcing.clock.now();
    let mut hashes = Vec::new();
    while hashes.len() < MAX_HASHES
        && let Some(LocalTurn(entity)) = turns.pop_due(now)
    {
        let Ok((torrent, lifecycle, allowed, mut announcer)) = torrents.get_mut(entity) else {
            continue;
        };
        if announcer.due.is_none_or(|due| due > now) {
            continue;
        }
        // A torrent that stops running is listed again when it runs.
        announcer.due = None;
        if lifecycle.connects() && allowed.has(CandidateSource::LOCAL_DISCOVERY) {
            hashes.push(torrent.id());
            let next = now + seconds(announcing.settings.lsd.interval_s);
            announcer.due = Some(next);
            turns.set(next, LocalTurn(entity));
        }
    }
    if !hashes.is_empty() {
        announcing.send(&hashes);
    }
    announcing.wakeup.at_next(announcing.discovery.next(&turns));
}

impl Announcing<'_> {
    fn send(&mut self, hashes: &[InfoHash]) {
        let now = self.clock.now();
        self.discovery.earliest = now + MESSAGE_INTERVAL;
        let random = &mut self.random;
        let cookie = self
            .discovery
            .cookie
            .get_or_insert_with(|| format!("{:08x}{:08x}", random.number(), random.number()));
        tracing::debug!(count = hashes.len(), "torrents announced in the local network");
        let mut joined = Vec::new();
        for &local in &self.local.0 {
            let (family, group) = match local {
                SocketAddr::V4(_) => (Family::V4, GROUP_V4.into()),
                SocketAddr::V6(_) => (Family::V6, GROUP_V6.into()),
            };
            // Interfaces come and go, so the group is joined before each message.
            if !joined.contains(&group) {
                joined.push(group);
                self.net.push(NetRequest::Join { group });
            }
            let announce = LocalAnnounce {
                port: local.port(),
                hashes: hashes.to_vec(),
                cookie: Some(cookie.clone()),
            };
            let data = announce.write(family);
            self.net.push(NetRequest::Multicast { group, local, data });
        }
    }
}

/// Finds the peers that announce themselves. A peer's address is the sender's, with the port in the message. When our
/// own addresses have changed, all torrents are announced again soon: the neighbors know the old address.
fn receive_local(
    clock: Res<Clock>,
    index: Res<TorrentIndex>,
    mut net: ResMut<NetPort>,
    mut discovery: ResMut<LocalDiscovery>,
    mut turns: ResMut<Deadlines<LocalTurn>>,
    mut found: MessageWriter<CandidatesFound>,
    mut torrents: Query<(Entity, &Torrent, &AllowedSources, &mut LocalAnnouncer)>,
) {
    let now = clock.now();
    for event in net.take(LSD_DATAGRAMS) {
        let datagram = match event {
            NetEvent::Datagram { datagram, .. } => datagram,
            NetEvent::AddressesChanged => {
                discovery.earliest = discovery.earliest.min(now + GATHER);
                for (entity, .., mut announcer) in &mut torrents {
                    if announcer.due.is_some() {
                        announcer.due = Some(now + GATHER);
                        turns.set(now + GATHER, LocalTurn(entity));
                    }
                }
                continue;
            }
            _ => continue,
        };
        if !discovery.allows(datagram.from.ip(), now) {
            continue;
        }
        let announce = match LocalAnnounce::read(&datagram.data) {
            Ok(announce) => announce,
            Err(error) => {
                tracing::debug!(peer = %datagram.from, %error, "a message of local discovery ignored");
                continue;
            }
        };
        if announce.cookie.is_some() && announce.cookie == discovery.cookie {
            continue;
        }
        let mut address = datagram.from;
        address.set_port(announce.port);
        for torrent in announce.hashes.iter().filter_map(|hash| index.get(*hash)) {
            if let Ok((_, known, allowed, _)) = torrents.get(torrent)
                && allowed.has(CandidateSource::LOCAL_DISCOVERY)
            {
                tracing::debug!(torrent = %known.label(), peer = %address, "local discovery found a peer");
                found.write(CandidatesFound {
                    torrent,
                    peers: vec![address.into()],
                    source: CandidateSource::LOCAL_DISCOVERY,
                    informant: Some(address.ip()),
                });
            }
        }
    }
}
