//! Peers that connected before the metadata was known.

use std::net::SocketAddr;

use ecs_torrent::bevy_ecs::prelude::{Entity, With};
use ecs_torrent::components::candidates::{CandidateSource, Candidates, CandidatesFound};
use ecs_torrent::components::commands::{PauseOrStart, PauseTorrent, StartTorrent};
use ecs_torrent::components::messages::{Availability, AvailabilityReceived, PeerDisconnected};
use ecs_torrent::components::peer::{CloseReason, Direction, Peer, UncheckedPieces};
use ecs_torrent::prelude::{App, MessageReader, Plugin, ResMut, Resource, Tick, TickSet, Torrent, World};
use ecs_torrent::prelude::{IntoScheduleConfigs, Lifecycle};
use ecs_torrent::sim::invariants::InvariantsPlugin;

use super::fetching::Bed;
use super::*;

/// The record of [`RecorderPlugin`].
#[derive(Resource, Default)]
struct Recorded {
    have_count: usize,
    set_count: usize,
    reasons: Vec<CloseReason>,
}

/// Counts the announcements of peers about their pieces, and records why connections end.
#[derive(Clone, Copy)]
struct RecorderPlugin;

impl Plugin for RecorderPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<Recorded>()
            .add_systems(Tick, record.in_set(TickSet::Decide));
    }
}

fn record(
    mut received: MessageReader<AvailabilityReceived>,
    mut gone: MessageReader<PeerDisconnected>,
    mut recorded: ResMut<Recorded>,
) {
    for AvailabilityReceived { change, .. } in received.read() {
        match change {
            Availability::Have(_) => recorded.have_count += 1,
            _ => recorded.set_count += 1,
        }
    }
    let reasons = gone.read().map(|message| message.reason.clone());
    recorded.reasons.extend(reasons);
}

/// An engine at 10.0.0.1 and one at 10.0.0.2, which knows the torrent's hash.
fn two(seed: u64, content: Content, is_complete: bool) -> (Bed, NodeId) {
    let mut sim = Simulation::new(seed, Duration::from_millis(10));
    let plugins = (without_metadata(), InvariantsPlugin, RecorderPlugin);
    let other = sim.add_node(ip(1), Settings::default(), plugins);
    let leecher = sim.add_node(ip(2), Settings::default(), plugins);
    if is_complete {
        sim.put(other, "downloads", &content);
    }
    add(&mut sim, other, &content, vec![]);
    (Bed { sim, content, leecher }, other)
}

fn torrent_entity(world: &mut World) -> Entity {
    world.query_filtered::<Entity, With<Torrent>>().single(world).unwrap()
}

fn peer_count(world: &mut World) -> usize {
    world.query::<&PeerState>().iter(world).count()
}

impl Bed {
    fn until_unchecked_peer(&mut self) {
        let leecher = self.leecher;
        self.until("a peer", |sim| {
            let world = sim.node(leecher).world_mut();
            world.query::<&UncheckedPieces>().iter(world).count() == 1
        });
    }
}

/// Two thousand pieces are announced by a bitfield on a new connection.
#[test]
fn many_pieces_that_were_there_before_the_metadata_are_not_announced_one_by_one() {
    let content = torrent(2000 << 14, 1 << 14);
    let (mut bed, other) = two(31, content.clone(), false);
    bed.sim.put(bed.leecher, "downloads", &content);
    bed.add();
    bed.until_unchecked_peer();
    bed.supply(bed.info()).unwrap();
    bed.until("an upload", |sim| sim.has(other, "downloads", &content));
    let recorded = bed.sim.node(other).world_mut().resource::<Recorded>();
    assert_eq!(recorded.have_count, 0, "and {} sets", recorded.set_count);
    let leecher = bed.leecher;
    let recorded = bed.sim.node(leecher).world_mut().resource::<Recorded>();
    assert_eq!(recorded.reasons.first(), Some(&CloseReason::Reconnecting));
    assert!(
        bed.sim.now() < Timestamp::ZERO + Duration::from_secs(60),
        "it connects again at once"
    );
}

/// A torrent that turns out to be complete has no use for seeds, and its peers learn that it is one.
#[test]
fn a_torrent_that_is_complete_when_its_metadata_comes_leaves_seeds() {
    let content = torrent(300_001, 32768);
    let (mut bed, _) = two(32, content.clone(), true);
    bed.sim.put(bed.leecher, "downloads", &content);
    bed.add();
    bed.until_unchecked_peer();
    bed.supply(bed.info()).unwrap();
    bed.wait_for_state(&Lifecycle::Seeding);
    let leecher = bed.leecher;
    bed.until("a close", |sim| {
        let world = sim.node(leecher).world_mut();
        peer_count(world) == 0 && !world.resource::<Recorded>().reasons.is_empty()
    });
    let recorded = bed.sim.node(leecher).world_mut().resource::<Recorded>();
    assert_eq!(recorded.reasons.first(), Some(&CloseReason::Redundant));
}

#[test]
fn peers_learn_that_a_torrent_is_complete_when_its_metadata_comes() {
    let content = torrent(300_001, 32768);
    let (mut bed, other) = two(33, content.clone(), false);
    bed.sim.put(bed.leecher, "downloads", &content);
    bed.add();
    bed.until_unchecked_peer();
    // The other engine keeps the connection, so that the received messages can be examined.
    bed.sim.disk(other).set_slowness(1e6);
    bed.supply(bed.info()).unwrap();
    bed.until("upload_only", |sim| {
        let world = sim.node(other).world_mut();
        world.query::<&PeerState>().iter(world).any(|state| state.upload_only)
    });
}

/// BEP 27: a peer that a source named which private torrents may not use is left, although the peer opened the
/// connection, and the session never names it.
#[test]
fn an_inbound_peer_of_a_refused_source_is_left_when_the_metadata_says_private() {
    let content = NewContent {
        is_private: true,
        ..NewContent::default()
    }
    .make();
    let (mut bed, _) = two(34, content.clone(), true);
    let plugins = (without_metadata(), InvariantsPlugin);
    let stranger = bed.sim.add_node(ip(3), Settings::default(), plugins);
    bed.add();
    bed.until_unchecked_peer();
    let strange = SocketAddr::from((ip(3), 6881));
    let leecher = bed.leecher;
    let world = bed.sim.node(leecher).world_mut();
    let torrent = torrent_entity(world);
    let mut candidates = world.get_mut::<Candidates>(torrent).unwrap();
    // It is not dialed: the engine does not notice.
    candidates.add(strange, CandidateSource::DHT, 0, 100);
    add(&mut bed.sim, stranger, &content, vec![(ip(2), 6881).into()]);
    let inbound = |sim: &mut Simulation| {
        let world = sim.node(leecher).world_mut();
        let mut peers = world.query::<&Peer>();
        peers
            .iter(world)
            .any(|peer| peer.direction == Direction::Inbound && peer.listens_at == Some(strange))
    };
    bed.until("an inbound peer", inbound);
    bed.supply(bed.info()).unwrap();
    bed.until("a saved session", |sim| {
        let session = sim.state(leecher).session(content.info_hash()).unwrap();
        assert!(session.lacks_metadata || !session.peers.contains(&strange));
        !session.lacks_metadata
    });
    bed.until("a close", |sim| {
        let recorded = sim.node(leecher).world_mut().resource::<Recorded>();
        recorded.reasons.contains(&CloseReason::Private)
    });
    bed.complete();
}

/// The session of a torrent without metadata may have its addresses from anywhere.
#[test]
fn addresses_of_an_earlier_run_are_forgotten_when_the_metadata_says_private() {
    let content = NewContent {
        is_private: true,
        ..NewContent::default()
    }
    .make();
    let (mut bed, _) = two(35, content, true);
    bed.add();
    bed.until_unchecked_peer();
    let strange = SocketAddr::from((ip(77), 6881));
    let leecher = bed.leecher;
    let known = |sim: &mut Simulation| {
        let world = sim.node(leecher).world_mut();
        let torrent = torrent_entity(world);
        world
            .get::<Candidates>(torrent)
            .unwrap()
            .get(strange)
            .map(|(source, _)| source)
    };
    let world = bed.sim.node(leecher).world_mut();
    let torrent = torrent_entity(world);
    world.write_message(CandidatesFound {
        torrent,
        peers: vec![strange.into()],
        source: CandidateSource::DHT,
        informant: None,
    });
    bed.sim.nudge(leecher);
    bed.until("a candidate", |sim| known(sim) == Some(CandidateSource::DHT.into()));
    let hash = bed.content.info_hash();
    let paused = bed.send(|reply| PauseOrStart::from(PauseTorrent { torrent: hash, reply }));
    assert_eq!(bed.wait(&paused), Ok(()));
    let started = bed.send(|reply| PauseOrStart::from(StartTorrent { torrent: hash, reply }));
    assert_eq!(bed.wait(&started), Ok(()));
    bed.sim.restart(leecher);
    bed.add();
    bed.until("a restored candidate", |sim| {
        known(sim) == Some(CandidateSource::UNFETCHED_SESSION.into())
    });
    bed.supply(bed.info()).unwrap();
    bed.complete();
    assert_eq!(known(&mut bed.sim), None);
}

/// A connection between complete peers ends without a failure: a torrent that lacks something again connects at once.
#[test]
fn a_torrent_that_lost_its_data_returns_to_redundant_peers_at_once() {
    let content = torrent(300_001, 32768);
    let (mut bed, _) = two(36, content.clone(), true);
    let leecher = bed.leecher;
    bed.sim.put(leecher, "downloads", &content);
    add(&mut bed.sim, leecher, &content, vec![]);
    bed.until("a seed", |sim| {
        stats(sim, leecher, &content).is_some_and(|stats| stats.state == ecs_torrent::TorrentState::Seeding)
    });
    let world = bed.sim.node(leecher).world_mut();
    let torrent = torrent_entity(world);
    world.write_message(CandidatesFound {
        torrent,
        peers: vec![SocketAddr::from((ip(1), 6881)).into()],
        source: CandidateSource::TRACKER,
        informant: None,
    });
    bed.sim.nudge(leecher);
    bed.until("a close", |sim| {
        let world = sim.node(leecher).world_mut();
        let recorded = world.resource::<Recorded>();
        !recorded.reasons.is_empty()
    });
    let hash = content.info_hash();
    let paused = bed.send(|reply| PauseOrStart::from(PauseTorrent { torrent: hash, reply }));
    assert_eq!(bed.wait(&paused), Ok(()));
    assert!(bed.sim.disk(leecher).delete("downloads/content"));
    let started = bed.send(|reply| PauseOrStart::from(StartTorrent { torrent: hash, reply }));
    assert_eq!(bed.wait(&started), Ok(()));
    let since = bed.sim.now();
    bed.until("a download", |sim| sim.has(leecher, "downloads", &content));
    assert!(bed.sim.now().since(since) < Duration::from_secs(5));
}
