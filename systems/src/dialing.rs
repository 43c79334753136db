//! Outbound connections: selects the next address to dial, and limits how many are dialed at a time.

mod adding;
mod allowing;

use std::net::SocketAddr;
use std::time::Duration;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::bans::Bans;
use ecs_torrent_components::candidates::{
    AllowedSources, CandidateSource, CandidateSources, Candidates, CandidatesFound, Retry,
};
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{AddPeers, CommandQueue};
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::messages::{LifecycleChanged, MetadataKnown, PeerDisconnected, PeersWanted};
use ecs_torrent_components::peer::{CloseReason, Direction, Endpoint, Peer, PeerPieces, PeerState, Stage};
use ecs_torrent_components::settings::{PeerSettings, Settings, millis, seconds};
use ecs_torrent_components::torrent::{Lifecycle, PeerOf, Torrent};
use ecs_torrent_components::work_list::{Listed, WorkList};
use ecs_torrent_engine::ports::NetPort;
use ecs_torrent_engine::ports::net::{NetRequest, Streams, TransportChoice};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::time::Timestamp;

pub(crate) use self::adding::ExternalAddresses;
use self::adding::{add_candidates, is_refused, refuse_known_peers, restore_candidates, take_peers};
use self::allowing::{
    ChangedSources, allow_sources, has_changed_sources, list_edited, list_private, list_torrent, list_trackers,
};
use crate::admission::{Admission, DialFor};
use crate::conditions::{has_due, has_messages};
use crate::streams::ReadyPeers;
use crate::{AnnounceSet, DecideSet, ReapSet};

/// Connects to peers.
pub struct DialingPlugin;

impl Plugin for DialingPlugin {
    fn build(&self, app: &mut App) {
        app.register_required_components::<Torrent, Candidates>();
        app.register_required_components::<Torrent, Dialer>();
        app.register_required_components::<Torrent, AllowedSources>();
        app.add_message::<CandidatesFound>()
            .add_message::<PeersWanted>()
            .init_resource::<CandidateSources>()
            .init_resource::<DialQueue>()
            .init_resource::<ExternalAddresses>()
            .init_resource::<Deadlines<Redial>>()
            .init_resource::<CommandQueue<AddPeers>>()
            .init_resource::<ChangedSources>()
            .add_observer(restore_candidates)
            .add_observer(list_torrent)
            .add_observer(list_trackers)
            .add_observer(list_edited)
            .add_observer(list_private)
            .add_systems(
                Tick,
                (
                    (
                        allow_sources.run_if(has_changed_sources),
                        refuse_known_peers.run_if(has_messages::<MetadataKnown>),
                    )
                        .chain()
                        .in_set(AnnounceSet::Privacy),
                    (
                        take_peers,
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

/// First delay before an address is tried again whose peer violated the protocol.
const OFFENSE_BACKOFF: Duration = Duration::from_secs(300);

/// First delay before an address is tried again whose peer is already connected, over another address or from its side.
const DUPLICATE_BACKOFF: Duration = Duration::from_secs(60);

/// Longest delay before a peer is tried again that was reached and closed the connection before its handshake: the peer
/// is online but full.
const REFUSED_BACKOFF: Duration = Duration::from_secs(30);

/// Number of different random delays.
const JITTER_STEPS: u32 = 1000;

/// Deadline at which an address of a torrent may be tried again.
#[derive(Debug)]
struct Redial(Entity);

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
    mut torrents: Query<(&mut Dialer, &mut Candidates)>,
) {
    let now = clock.now();
    let needs_peers = |changed: &&LifecycleChanged| changed.begins_to_connect() || changed.wants_more();
    for LifecycleChanged { torrent, to, .. } in changed.read().filter(needs_peers) {
        if let Ok((mut dialer, mut candidates)) = torrents.get_mut(*torrent) {
            if to.wants_peers() {
                candidates.recall_redundant();
            }
            queue.add_urgent(*torrent, &mut dialer);
            queue.add(*torrent, &mut dialer);
        }
    }
    while let Some(Redial(torrent)) = redials.pop_due(now) {
        if let Ok((mut dialer, _)) = torrents.get_mut(torrent) {
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
        candidates.wake(now);
        let dial = match candidates.is_next_user_named() {
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
        let may_hurry = candidates.has_untried_ready() && candidates.failures_of(address) == 0;
        self.connect(torrent, address, dial == DialFor::User, may_hurry);
        Dialed::Yes
    }

    /// Connects to an address. With `may_hurry`, the attempt ends soon: other addresses wait, and this one is tried
    /// again with the full timeout.
    fn connect(&mut self, torrent: Entity, address: SocketAddr, is_user_named: bool, may_hurry: bool) {
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
        let settings = &self.admission.settings;
        let mut timeout = seconds(settings.net.connect_timeout_s);
        if may_hurry && !is_user_named {
            timeout = timeout.min(millis(settings.peers.first_attempt_ms));
        }
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
    peers: Query<(&Peer, Option<&PeerPieces>, Option<&PeerState>)>,
    mut torrents: Query<(&mut Candidates, &mut Dialer, &Lifecycle)>,
) {
    let limits = &settings.peers;
    for PeerDisconnected { torrent, peer, reason } in gone.read() {
        let Some((mut candidates, mut dialer, lifecycle)) = torrent.and_then(|torrent| torrents.get_mut(torrent).ok())
        else {
            continue;
        };
        let peer = peers.get(*peer).ok();
        if let Some((peer, pieces, state, address)) =
            peer.and_then(|peer| Some((peer.0, peer.1, peer.2, peer.0.listens_at?)))
        {
            // The other side may be the first to notice that both are complete.
            let has_all = pieces.is_some_and(PeerPieces::is_complete) || state.is_some_and(|state| state.upload_only);
            let is_seen_first = matches!(reason, CloseReason::Remote(_)) && has_all && lifecycle.is_finished();
            let is_redundant = *reason == CloseReason::Redundant || (is_seen_first && !limits.keep_redundant);
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
            let is_elsewhere = match reason {
                CloseReason::OtherAddress(connected) => candidates.set_elsewhere(address, *connected),
                _ => false,
            };
            if is_redundant {
                candidates.set_redundant(address);
            } else if !is_forgotten && !is_elsewhere {
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
        CloseReason::Wire(_) => seconds(limits.reconnect_backoff_s).max(OFFENSE_BACKOFF),
        CloseReason::Duplicate | CloseReason::OtherAddress(_) => {
            seconds(limits.reconnect_backoff_s).max(DUPLICATE_BACKOFF)
        }
        // We closed it, for a reason of our own: the peer is as good as before.
        CloseReason::Stopping | CloseReason::Reconnecting => Duration::ZERO,
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
    use ecs_torrent_engine::ports::net::LocalAddresses;
    use ecs_torrent_protocol::wire::WireError;

    use super::*;
    use crate::testing::{Bed, NOW};

    pub(super) fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn at(seconds: u64) -> Timestamp {
        NOW + Duration::from_secs(seconds)
    }

    pub(super) fn bed() -> Bed {
        let mut bed = Bed::new((DialingPlugin, crate::streams::StreamsPlugin));
        bed.open_port::<NetRequest, ecs_torrent_engine::ports::net::NetEvent>(Vec::new());
        bed.world.insert_resource(LocalAddresses(vec![address("192.0.2.99:1")]));
        bed.world.init_resource::<Bans>();
        bed.world.init_resource::<Streams>();
        bed.world
            .init_resource::<ecs_torrent_components::connections::ConnectionCounts>();
        bed.world.entity_mut(bed.torrent).insert(crate::testing::torrent());
        bed.world
            .entity_mut(bed.torrent)
            .insert((Candidates::default(), Dialer::default()));
        let all = AllowedSources(CandidateSources::default().serving(false));
        bed.world.entity_mut(bed.torrent).insert(all);
        bed
    }

    #[test]
    fn an_address_is_tried_again_later_the_less_likely_it_answers() {
        let limits = PeerSettings::default();
        let remote = || CloseReason::Remote("gone".into());
        let delay = |reason: &CloseReason, chance| retry(reason, Stage::Connected, false, &limits, chance).backoff;
        assert_eq!(delay(&remote(), 0), seconds(5));
        assert_eq!(delay(&remote(), JITTER_STEPS / 2), Duration::from_millis(5625));
        assert_eq!(delay(&CloseReason::Evicted, 0), EVICTED_BACKOFF);
        assert_eq!(delay(&CloseReason::Wire(WireError::TooManyChanges), 0), OFFENSE_BACKOFF);
        assert_eq!(delay(&CloseReason::Duplicate, 0), DUPLICATE_BACKOFF);
        assert_eq!(delay(&CloseReason::Stopping, JITTER_STEPS - 1), Duration::ZERO);
        let most = |reason: &CloseReason, stage| retry(reason, stage, false, &limits, 0).max_backoff;
        assert_eq!(
            most(&remote(), Stage::Handshaking),
            REFUSED_BACKOFF,
            "it is online, and full"
        );
        assert_eq!(
            most(&remote(), Stage::Connected),
            seconds(limits.max_reconnect_backoff_s)
        );
        assert_eq!(
            most(&CloseReason::Evicted, Stage::Handshaking),
            seconds(limits.max_reconnect_backoff_s)
        );
    }

    #[test]
    fn delays_differ_by_time_and_port() {
        let now = Timestamp::from_nanos(5_000_700_999);
        assert_eq!(jitter(now, address("192.0.2.1:6")), 706);
        assert_eq!(jitter(now, address("192.0.2.1:300")), 0);
        assert_eq!(jitter(now + Duration::from_micros(7), address("192.0.2.1:6")), 713);
    }

    #[test]
    fn the_earliest_redial_counts() {
        let mut dialer = Dialer::default();
        let mut redials = Deadlines::default();
        for (due, count) in [(5, 1), (9, 1), (5, 1), (3, 2)] {
            dialer.wake_at(Entity::PLACEHOLDER, at(due), &mut redials, &Wakeup::default());
            assert_eq!(redials.len(), count);
        }
    }

    /// An address that we dialed counts as failed; one that an inbound peer claimed does not.
    #[test]
    fn a_gone_peer_leaves_its_address() {
        for (direction, reason, expected) in [
            (Direction::Outbound, CloseReason::Corrupt, None),
            (
                Direction::Outbound,
                CloseReason::ConnectFailed("refused".into()),
                Some(true),
            ),
            (
                Direction::Inbound,
                CloseReason::ConnectFailed("refused".into()),
                Some(false),
            ),
            (Direction::Outbound, CloseReason::Stopping, Some(false)),
        ] {
            let mut bed = bed();
            let mut peer = bed.connection(direction);
            let address = peer.endpoint.address().unwrap();
            peer.listens_at = Some(address);
            let mut candidates = bed.get_mut::<Candidates>(bed.torrent);
            candidates.add(address, CandidateSource::TRACKER, 0, 9);
            assert_eq!(candidates.take_best(NOW), Some(address));
            let peer = bed.world.spawn(peer).id();
            bed.world.resource_mut::<Settings>().peers.max_failures = 1;
            let gone = PeerDisconnected {
                torrent: Some(bed.torrent),
                peer,
                reason: reason.clone(),
            };
            bed.run_after(gone, release_candidates);
            let is_known = bed.get::<Candidates>(bed.torrent).len() == 1;
            assert_eq!(
                is_known,
                expected == Some(false),
                "{reason}: dropped at its first failure"
            );
            let queue = bed.world.resource::<DialQueue>();
            assert!(queue.has_torrents() && queue.urgent.front() == Some(bed.torrent));
        }
    }

    /// No side of a connection between complete peers has failed, whichever notices first.
    #[test]
    fn a_complete_peer_of_a_complete_torrent_waits_without_a_failure() {
        let remote = || CloseReason::Remote("gone".into());
        for (reason, lifecycle, pieces, is_redundant) in [
            (CloseReason::Redundant, Lifecycle::Seeding, PeerPieces::all(3), true),
            (remote(), Lifecycle::Seeding, PeerPieces::all(3), true),
            (remote(), Lifecycle::Downloading, PeerPieces::all(3), false),
            (remote(), Lifecycle::Seeding, PeerPieces::none(3), false),
        ] {
            for direction in [Direction::Outbound, Direction::Inbound] {
                let mut bed = bed();
                let mut peer = bed.connection(direction);
                let address = peer.endpoint.address().unwrap();
                peer.listens_at = Some(address);
                let mut candidates = bed.get_mut::<Candidates>(bed.torrent);
                candidates.add(address, CandidateSource::TRACKER, 0, 9);
                assert_eq!(candidates.take_best(NOW), Some(address));
                let peer = bed.world.spawn((peer, pieces.clone())).id();
                *bed.get_mut::<Lifecycle>(bed.torrent) = lifecycle.clone();
                let gone = PeerDisconnected {
                    torrent: Some(bed.torrent),
                    peer,
                    reason: reason.clone(),
                };
                bed.run_after(gone, release_candidates);
                let next = bed.get::<Candidates>(bed.torrent).next_ready(NOW);
                assert_eq!(next.is_none(), is_redundant, "{reason}");
                let changed = LifecycleChanged {
                    torrent: bed.torrent,
                    from: Lifecycle::Adding,
                    to: Lifecycle::Downloading,
                };
                bed.run_after(changed, queue_torrents);
                let next = bed.get::<Candidates>(bed.torrent).next_ready(NOW);
                assert_eq!(next == Some(NOW), is_redundant, "{reason}");
            }
        }
    }

    /// Dials the torrent's addresses. Returns how many peers are being dialed, and how many of them a user named.
    fn dial(bed: &mut Bed) -> (usize, usize) {
        let mut queue = std::mem::take(&mut *bed.world.resource_mut::<DialQueue>());
        let torrent = bed.torrent;
        let mut dialer = bed.get_mut::<Dialer>(torrent);
        *dialer = Dialer::default();
        queue.add_urgent(torrent, &mut dialer);
        queue.add(torrent, &mut dialer);
        bed.world.insert_resource(queue);
        bed.run(dial_peers);
        let peers: Vec<Entity> = bed
            .world
            .query_filtered::<Entity, With<Peer>>()
            .iter(&bed.world)
            .collect();
        let counts = bed
            .world
            .resource::<ecs_torrent_components::connections::ConnectionCounts>();
        let user_named = peers.iter().filter(|peer| counts.is_user_named(**peer));
        (peers.len(), user_named.count())
    }

    #[test]
    fn user_named_peers_are_dialed_and_known_as_such() {
        let mut bed = bed();
        let torrent = bed.torrent;
        let add = |bed: &mut Bed, text, source| {
            bed.get_mut::<Candidates>(bed.torrent).add(address(text), source, 0, 9);
        };
        add(&mut bed, "192.0.2.7:1", CandidateSource::TRACKER);
        assert_eq!(dial(&mut bed), (1, 0));
        add(&mut bed, "192.0.2.8:1", CandidateSource::TRACKER);
        add(&mut bed, "192.0.2.9:1", CandidateSource::USER);
        assert!(!bed.world.resource::<DialQueue>().has_torrents());
        bed.world.resource_scope(|world, mut queue: Mut<DialQueue>| {
            queue.add_urgent(torrent, &mut world.get_mut::<Dialer>(torrent).unwrap());
            assert!(queue.has_torrents());
        });
        bed.run(dial_peers);
        let counts = bed
            .world
            .resource::<ecs_torrent_components::connections::ConnectionCounts>();
        assert_eq!(counts.total, 2, "user-named ones come first");
        assert_eq!(dial(&mut bed), (3, 1));
    }

    /// An address that failed, that a user named, or that no other waits behind, gets the full timeout.
    #[test]
    fn first_attempts_are_short_while_untried_addresses_wait() {
        let mut bed = bed();
        let mut candidates = bed.get_mut::<Candidates>(bed.torrent);
        candidates.add(address("192.0.2.5:1"), CandidateSource::TRACKER, 0, 9);
        candidates.take_best(NOW);
        let retry = retry(
            &CloseReason::Stopping,
            Stage::Connecting,
            true,
            &PeerSettings::default(),
            0,
        );
        candidates.release(address("192.0.2.5:1"), NOW, retry);
        for (text, source, priority) in [
            ("192.0.2.6:1", CandidateSource::USER, 0),
            ("192.0.2.7:1", CandidateSource::TRACKER, 9),
            ("192.0.2.8:1", CandidateSource::TRACKER, 1),
        ] {
            candidates.add(address(text), source, priority, 9);
        }
        dial(&mut bed);
        let timeouts = bed
            .world
            .resource::<NetPort>()
            .outgoing()
            .iter()
            .filter_map(|request| match request {
                NetRequest::Connect { to, timeout, .. } => Some((to.to_string(), timeout.as_secs())),
                _ => None,
            });
        let full = Settings::default().net.connect_timeout_s;
        let expected = [("6", full), ("7", 3), ("8", full), ("5", full)];
        let expected = expected.map(|(last, timeout)| (format!("192.0.2.{last}:1"), timeout));
        assert_eq!(timeouts.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn nothing_is_queued_while_no_torrent_begins() {
        let mut bed = bed();
        bed.world.init_resource::<Messages<LifecycleChanged>>();
        assert!(!bed.holds(may_queue));
    }

    /// A download asks for peers only when it has none.
    #[test]
    fn a_torrent_without_addresses_asks_for_peers_if_it_is_alone() {
        for (lifecycle, is_alone, asks) in [
            (Lifecycle::Downloading, true, true),
            (Lifecycle::Downloading, false, false),
            (Lifecycle::Seeding, true, false),
        ] {
            let mut bed = bed();
            let is_seeding = lifecycle == Lifecycle::Seeding;
            *bed.get_mut::<Lifecycle>(bed.torrent) = lifecycle;
            if !is_alone {
                let peer = bed.connection(Direction::Inbound);
                let (entity, torrent) = (bed.world.spawn_empty().id(), bed.torrent);
                let mut counts = bed
                    .world
                    .resource_mut::<ecs_torrent_components::connections::ConnectionCounts>();
                counts.add(entity, &peer, Some(torrent), false);
            }
            dial(&mut bed);
            let count = bed.world.resource_mut::<Messages<PeersWanted>>().drain().count();
            assert_eq!(count > 0, asks, "{is_seeding} {is_alone}");
        }
    }
}
