//! Outbound connections: selects the next address to dial, and limits how many are dialed at a time.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::bans::Bans;
use ecs_torrent_components::candidates::{CandidateSource, CandidateSources, Candidates, CandidatesFound, Retry};
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{AddPeers, CommandQueue};
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::messages::{LifecycleChanged, MetadataKnown, PeerDisconnected, PeersWanted, SessionLoaded};
use ecs_torrent_components::peer::{CloseReason, Direction, Endpoint, Peer, Stage};
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::settings::{PeerSettings, Settings, seconds};
use ecs_torrent_components::torrent::{Lifecycle, PeerOf, Torrent, TorrentIndex, TorrentPeers};
use ecs_torrent_components::work_list::{Listed, WorkList};
use ecs_torrent_engine::ports::NetPort;
use ecs_torrent_engine::ports::net::{LocalAddresses, NetRequest, Streams, TransportChoice};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::priority::peer_priority;
use ecs_torrent_protocol::time::Timestamp;

use crate::admission::{Admission, DialFor};
use crate::conditions::{has_due, has_messages};
use crate::streams::ReadyPeers;
use crate::{DecideSet, ReapSet};

/// Connects to peers.
pub struct DialingPlugin;

impl Plugin for DialingPlugin {
    fn build(&self, app: &mut App) {
        app.register_required_components::<Torrent, Candidates>();
        app.register_required_components::<Torrent, Dialer>();
        app.add_message::<CandidatesFound>()
            .add_message::<PeersWanted>()
            .init_resource::<CandidateSources>()
            .init_resource::<DialQueue>()
            .init_resource::<ExternalAddresses>()
            .init_resource::<Deadlines<Redial>>()
            .init_resource::<CommandQueue<AddPeers>>()
            .add_observer(restore_candidates)
            .add_systems(
                Tick,
                (
                    (
                        take_peers,
                        refuse_known_peers.run_if(has_messages::<MetadataKnown>),
                        add_candidates.run_if(has_messages::<CandidatesFound>),
                        queue_torrents.run_if(may_queue),
                        dial_peers.run_if(|queue: Res<DialQueue>| queue.has_torrents()),
                    )
                        .chain()
                        .in_set(DecideSet::Dialing),
                    release_candidates.in_set(ReapSet::Release),
                ),
            );
    }
}

/// Our external addresses as reported by trackers (BEP 24). Canonical peer priorities are computed from them (BEP 40).
#[derive(Resource, Debug, Default)]
pub(crate) struct ExternalAddresses(Vec<IpAddr>);

impl ExternalAddresses {
    /// Records our address as reported by another host. The latest one of each family counts.
    pub(crate) fn learn(&mut self, ip: IpAddr) {
        self.0.retain(|known| known.is_ipv4() != ip.is_ipv4());
        self.0.push(ip);
    }

    /// Returns our address as a peer at `remote` most likely sees it.
    fn seen_from(&self, remote: SocketAddr, local: &LocalAddresses) -> SocketAddr {
        let listening = local.for_family_of(remote);
        let known = self.0.iter().find(|ip| ip.is_ipv4() == remote.is_ipv4());
        let ip = known.copied().or(listening.map(|address| address.ip()));
        SocketAddr::new(ip.unwrap_or(remote.ip()), listening.map_or(0, |address| address.port()))
    }
}

/// Torrents that may have an address to dial.
#[derive(Resource, Debug, Default)]
struct DialQueue {
    torrents: WorkList<Dialer>,
    /// The torrents that may have an address that a user named. They come first.
    urgent: WorkList<Dialer>,
}

impl DialQueue {
    fn has_torrents(&self) -> bool {
        !self.torrents.is_empty() || !self.urgent.is_empty()
    }

    fn add(&mut self, torrent: Entity, dialer: &mut Dialer) {
        self.torrents.add(torrent, &mut dialer.listed);
    }

    fn add_urgent(&mut self, torrent: Entity, dialer: &mut Dialer) {
        self.urgent.add(torrent, &mut dialer.urgent);
    }
}

/// Dialing state of every torrent: whether it is in the dial queue, or when it will be.
#[derive(Component, Debug, Default)]
pub struct Dialer {
    listed: Listed,
    urgent: Listed,
    deadline: Option<Timestamp>,
}

/// First delay before the address of an evicted connection is tried again. Other addresses come first.
const EVICTED_BACKOFF: Duration = Duration::from_secs(60);

/// Longest delay before a peer is tried again that was reached and closed the connection before its handshake: the peer
/// is online but full.
const REFUSED_BACKOFF: Duration = Duration::from_secs(30);

/// Number of different random delays.
const JITTER_STEPS: u32 = 1000;

/// Restores the addresses of an earlier run. Those of a private torrent came from its trackers.
fn restore_candidates(loaded: On<SessionLoaded>, settings: Res<Settings>, mut torrents: Query<&mut Candidates>) {
    let Ok(mut candidates) = torrents.get_mut(loaded.torrent) else {
        return;
    };
    for peer in loaded.session.peers.iter().take(settings.session.max_peers) {
        candidates.add(*peer, CandidateSource::SESSION, 0, settings.peers.max_candidates);
    }
}

/// Deadline at which an address of a torrent may be tried again.
#[derive(Debug)]
struct Redial(Entity);

fn take_peers(
    mut commands: ResMut<CommandQueue<AddPeers>>,
    index: Res<TorrentIndex>,
    mut found: MessageWriter<CandidatesFound>,
) {
    for AddPeers { torrent, peers } in commands.0.drain(..) {
        if let Some(torrent) = index.get(torrent) {
            found.write(CandidatesFound {
                torrent,
                peers: peers.into_iter().map(Into::into).collect(),
                source: CandidateSource::USER,
            });
        }
    }
}

/// Removes peers whose source a private torrent does not allow, once its metadata says that it is private, and closes
/// their connections.
fn refuse_known_peers(
    mut known: MessageReader<MetadataKnown>,
    sources: Res<CandidateSources>,
    mut reaper: ResMut<Reaper>,
    mut torrents: Query<(&Torrent, &mut Candidates, Option<&TorrentPeers>)>,
    peers: Query<&Peer>,
) {
    for MetadataKnown { torrent } in known.read() {
        let Ok((known, mut candidates, connected)) = torrents.get_mut(*torrent) else {
            continue;
        };
        let is_refused = |candidates: &Candidates, address| {
            let found = candidates.get(address);
            found.is_some_and(|(source, _)| !sources.allows(source, known.private))
        };
        for entity in connected.into_iter().flat_map(RelationshipTarget::iter) {
            let dialed = peers
                .get(entity)
                .ok()
                .filter(|peer| peer.direction == Direction::Outbound);
            let address = dialed.and_then(|peer| peer.listens_at);
            if address.is_some_and(|address| is_refused(&candidates, address)) {
                reaper.close(entity, CloseReason::Private);
            }
        }
        let refused: Vec<SocketAddr> = candidates
            .iter()
            .filter(|address| is_refused(&candidates, *address))
            .collect();
        refused.into_iter().for_each(|address| candidates.remove(address));
    }
}

/// Adds found peers to the candidates of their torrents. No other system adds peers of a source, so that private
/// torrents (BEP 27) need no check elsewhere.
fn add_candidates(
    mut found: MessageReader<CandidatesFound>,
    settings: Res<Settings>,
    local: Res<LocalAddresses>,
    external: Res<ExternalAddresses>,
    clock: Res<Clock>,
    bans: Res<Bans>,
    sources: Res<CandidateSources>,
    mut queue: ResMut<DialQueue>,
    mut torrents: Query<(&Torrent, &mut Candidates, &mut Dialer)>,
) {
    for CandidatesFound { torrent, peers, source } in found.read() {
        let Ok((known, mut candidates, mut dialer)) = torrents.get_mut(*torrent) else {
            continue;
        };
        if !sources.allows(*source, known.private) {
            let (source, count) = (sources.name_of(*source), peers.len());
            tracing::debug!(torrent = %known.label(), source, count, "peers refused: the torrent is private");
            continue;
        }
        for &peer in peers {
            let address = peer.address;
            // Fault 30: trackers also return our own address. An address that a user named is tried, whatever it is.
            let is_own = *source != CandidateSource::USER && local.0.contains(&address);
            if !is_own && !is_refused(&bans, &clock, &settings, *source, address) {
                let priority = peer_priority(external.seen_from(address, &local), address);
                candidates.add(peer, *source, priority, settings.peers.max_candidates);
            }
        }
        if *source == CandidateSource::USER {
            queue.add_urgent(*torrent, &mut dialer);
        }
        queue.add(*torrent, &mut dialer);
    }
}

/// Returns whether an address is banned. An address that a user named is refused only for its own ban, not for those of
/// its neighbors.
fn is_refused(bans: &Bans, clock: &Clock, settings: &Settings, source: CandidateSource, address: SocketAddr) -> bool {
    match source {
        CandidateSource::USER => bans.has(clock.now(), address),
        _ => bans.refuses(clock.now(), address, (&settings.peers).into()),
    }
}

/// Returns whether torrents may begin to connect or dial again. If not, requests a tick at the next redial.
fn may_queue(
    changed: Res<Messages<LifecycleChanged>>,
    redials: Res<Deadlines<Redial>>,
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
) -> bool {
    !changed.is_empty() || has_due(redials, clock, wakeup)
}

fn queue_torrents(
    mut changed: MessageReader<LifecycleChanged>,
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
    mut redials: ResMut<Deadlines<Redial>>,
    mut queue: ResMut<DialQueue>,
    mut torrents: Query<&mut Dialer>,
) {
    let now = clock.now();
    for LifecycleChanged { torrent, .. } in changed.read().filter(|changed| changed.begins_to_connect()) {
        if let Ok(mut dialer) = torrents.get_mut(*torrent) {
            queue.add_urgent(*torrent, &mut dialer);
            queue.add(*torrent, &mut dialer);
        }
    }
    while let Some(Redial(torrent)) = redials.pop_due(now) {
        if let Ok(mut dialer) = torrents.get_mut(torrent) {
            dialer.deadline.take_if(|at| *at <= now);
            queue.add_urgent(torrent, &mut dialer);
            queue.add(torrent, &mut dialer);
        }
    }
    wakeup.at_next(redials.next());
}

/// Result of an attempt to dial an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialed {
    /// An address is being dialed, or was found to be banned. There may be another one.
    Yes,
    /// The torrent has no address to dial now, or none of the requested kind.
    NoAddress,
    /// There is no room in the torrent or in the engine.
    NoRoom,
    /// Too many connections are being opened.
    Later,
}

#[derive(SystemParam)]
struct DialParams<'w, 's> {
    commands: Commands<'w, 's>,
    bans: Res<'w, Bans>,
    wakeup: Res<'w, Wakeup>,
    net: ResMut<'w, NetPort>,
    streams: ResMut<'w, Streams>,
    ready: ResMut<'w, ReadyPeers>,
    redials: ResMut<'w, Deadlines<Redial>>,
    wanted: MessageWriter<'w, PeersWanted>,
    admission: Admission<'w, 's>,
    torrents: Query<'w, 's, (&'static mut Candidates, &'static mut Dialer, &'static Lifecycle)>,
}

/// Dials all addresses that users named, then one address per turn for each torrent that has one, up to the limits.
fn dial_peers(mut queue: ResMut<DialQueue>, mut params: DialParams) {
    while let Some(torrent) = queue.urgent.front() {
        match params.dial(torrent, true) {
            Dialed::Yes => continue,
            Dialed::Later => break,
            Dialed::NoAddress | Dialed::NoRoom => {}
        }
        queue.urgent.pop();
        if let Ok((_, mut dialer, _)) = params.torrents.get_mut(torrent) {
            dialer.urgent.clear();
        }
    }
    while let Some(torrent) = queue.torrents.front() {
        let dialed = params.dial(torrent, false);
        if dialed == Dialed::Later {
            break;
        }
        queue.torrents.pop();
        if let Ok((_, mut dialer, _)) = params.torrents.get_mut(torrent) {
            dialer.listed.clear();
            if dialed == Dialed::Yes {
                queue.add(torrent, &mut dialer);
            }
        }
    }
}

impl DialParams<'_, '_> {
    /// Connects to the best address of a torrent; with `only_user_named`, only to one that a user named.
    fn dial(&mut self, torrent: Entity, only_user_named: bool) -> Dialed {
        let now = self.admission.clock.now();
        let Ok((mut candidates, mut dialer, lifecycle)) = self.torrents.get_mut(torrent) else {
            return Dialed::NoAddress;
        };
        if !lifecycle.connects() {
            return Dialed::NoAddress;
        }
        let wants_peers = lifecycle.wants_peers();
        let dial = match candidates.is_next_user_named(now) {
            true => DialFor::User,
            false => DialFor::Other,
        };
        let next = candidates.next_ready(now);
        if only_user_named && dial != DialFor::User {
            return Dialed::NoAddress;
        }
        if next.is_none_or(|at| at > now) {
            let is_alone = self.admission.counts.of_torrent(torrent).total == 0;
            if wants_peers && is_alone {
                self.wanted.write(PeersWanted { torrent });
                self.wakeup.at(now);
            }
            if let Some(next) = next {
                dialer.wake_at(torrent, next, &mut self.redials, &self.wakeup);
            }
            return Dialed::NoAddress;
        }
        if !self.admission.may_open(dial) {
            return Dialed::Later;
        }
        if !self.admission.make_room_for_dial(torrent, &candidates, dial) {
            let next = self.admission.next_search();
            dialer.wake_at(torrent, next, &mut self.redials, &self.wakeup);
            return Dialed::NoRoom;
        }
        let Some(address) = candidates.take_best(now) else {
            return Dialed::NoAddress;
        };
        let source = match dial {
            DialFor::User => CandidateSource::USER,
            DialFor::Other => CandidateSource::TRACKER,
        };
        if is_refused(
            &self.bans,
            &self.admission.clock,
            &self.admission.settings,
            source,
            address,
        ) {
            candidates.remove(address);
            return Dialed::Yes;
        }
        self.connect(torrent, address, dial == DialFor::User);
        Dialed::Yes
    }

    fn connect(&mut self, torrent: Entity, address: SocketAddr, is_user_named: bool) {
        let now = self.admission.clock.now();
        let stream = self.streams.next_id();
        let peer = Peer {
            endpoint: Endpoint::Ip(address),
            stream,
            transport: None,
            direction: Direction::Outbound,
            stage: Stage::Connecting,
            since: now,
            peer_id: None,
            client: "".into(),
            listens_at: Some(address),
        };
        let entity = self.commands.spawn_empty().id();
        self.admission.counts.add(entity, &peer, Some(torrent), is_user_named);
        let wire = self.ready.open(entity, now, &self.admission.settings.net);
        let parts = (peer, PeerOf(torrent), wire);
        self.commands.entity(entity).insert(parts);
        self.streams.insert(stream, entity);
        let timeout = seconds(self.admission.settings.net.connect_timeout_s);
        self.net.push(NetRequest::Connect {
            stream,
            to: address,
            transport: TransportChoice::Either,
            timeout,
        });
    }
}

impl Dialer {
    /// Schedules the torrent to be queued again at that time, or earlier.
    fn wake_at(&mut self, torrent: Entity, at: Timestamp, redials: &mut Deadlines<Redial>, wakeup: &Wakeup) {
        if self.deadline.is_none_or(|deadline| at < deadline) {
            self.deadline = Some(at);
            redials.set(at, Redial(torrent));
            wakeup.at(at);
        }
    }
}

/// Releases the addresses of ended connections, to be tried again later or never.
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
        let peer = peers.get(*peer).ok();
        if let Some((peer, address)) = peer.and_then(|peer| Some((peer, peer.listens_at?))) {
            let direction = peer.direction;
            // An address that an inbound peer claims for itself is forgotten with the connection. The peer cannot make
            // us forget an address that others report.
            let is_forgotten = reason.is_final()
                && match direction {
                    Direction::Outbound => {
                        candidates.remove(address);
                        true
                    }
                    Direction::Inbound => candidates.remove_claimed(address),
                };
            if !is_forgotten {
                let is_failure = reason.is_failure() && direction == Direction::Outbound;
                let retry = retry(reason, peer.stage, is_failure, limits, jitter(clock.now(), address));
                candidates.release(address, clock.now(), retry);
            }
        }
        if let Some(torrent) = torrent {
            queue.add_urgent(*torrent, &mut dialer);
            queue.add(*torrent, &mut dialer);
        }
    }
}

/// Returns a number below [`JITTER_STEPS`]. The low digits of the time are random enough.
fn jitter(now: Timestamp, address: SocketAddr) -> u32 {
    let micros = now.as_nanos() / 1000 + u64::from(address.port());
    (micros % u64::from(JITTER_STEPS)) as u32
}

/// Returns when an address is tried again. Up to a fifth of the delay is random, so that clients do not always redial
/// in the same order.
fn retry(reason: &CloseReason, stage: Stage, is_failure: bool, limits: &PeerSettings, chance: u32) -> Retry {
    let max_backoff = seconds(limits.max_reconnect_backoff_s);
    let is_refused = stage == Stage::Handshaking && matches!(reason, CloseReason::Remote(_));
    let backoff = match reason {
        CloseReason::Evicted => seconds(limits.reconnect_backoff_s).max(EVICTED_BACKOFF),
        // We closed the connection because of the torrent. The address has not failed.
        CloseReason::Stopping => Duration::ZERO,
        _ => seconds(limits.reconnect_backoff_s),
    };
    Retry {
        is_failure,
        backoff: backoff + backoff / 4 * chance / JITTER_STEPS,
        max_backoff: match is_refused {
            true => max_backoff.min(REFUSED_BACKOFF),
            false => max_backoff,
        },
        max_user_backoff: seconds(limits.max_user_backoff_s),
        max_failures: limits.max_failures,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_latest_external_address_of_each_family_counts() {
        let local = LocalAddresses(vec![address("10.0.0.1:6881"), address("[fd00::1]:6882")]);
        let mut external = ExternalAddresses::default();
        let seen = |external: &ExternalAddresses, remote| external.seen_from(address(remote), &local);
        assert_eq!(seen(&external, "192.0.2.9:1"), address("10.0.0.1:6881"));
        for ip in ["198.51.100.1", "2001:db8::1", "198.51.100.2"] {
            external.learn(ip.parse().unwrap());
        }
        assert_eq!(seen(&external, "192.0.2.9:1"), address("198.51.100.2:6881"));
        assert_eq!(seen(&external, "[2001:db8::9]:1"), address("[2001:db8::1]:6882"));
    }
}
