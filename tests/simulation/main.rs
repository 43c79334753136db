//! Simulated swarms in one process, on a virtual clock.

#![allow(
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test may fail as it likes, and its modules are seen by nobody else"
)]

mod adding;
mod carriers;
mod choosing;
mod dht;
mod discovery;
mod efficiency;
mod fetching;
mod found;
mod full;
mod hostile;
mod joining;
mod late;
mod limits;
mod long_links;
mod magnets;
#[path = "../support/masking.rs"]
mod masking;
mod mutants;
mod optional;
mod playback;
mod queue;
mod readers;
mod scenarios;
mod seeding;
#[path = "../support/skipping.rs"]
mod skipping;
mod stops;
mod sweep;
mod trackers;

use std::net::IpAddr;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ecs_torrent::bevy_app::PluginGroupBuilder;
use ecs_torrent::components::commands::{AddOptions, AddTorrent, CommandQueue, GetStats, Reply};
use ecs_torrent::components::ids::StreamId;
use ecs_torrent::components::peer::PeerState;
use ecs_torrent::components::settings::{Settings, TrackerSettings};
use ecs_torrent::components::stats::TorrentStats;
use ecs_torrent::components::torrent::Have;
use ecs_torrent::engine::port::Backend;
use ecs_torrent::engine::ports::net::{NetRequest, TransportChoice};
use ecs_torrent::engine::sim::{Content, NewContent, NodeId, Simulation, SocketLimits, TrackerOptions};
use ecs_torrent::protocol::geometry::BlockRequest;
use ecs_torrent::protocol::peer_id::PeerId;
use ecs_torrent::protocol::time::Timestamp;
use ecs_torrent::protocol::wire::{Handshake, Message, Reserved};
use ecs_torrent::systems::TorrentPlugins;
use ecs_torrent::systems::metadata::MetadataPlugin;

use self::optional::Without;

/// Returns all features but the exchange of metadata, for tests that supply it themselves.
fn without_metadata() -> Without {
    Without(PluginGroupBuilder::disable::<MetadataPlugin>)
}

fn torrent(size: usize, piece_length: u32) -> Content {
    torrent_with_trackers(size, piece_length, &[])
}

fn torrent_with_trackers(size: usize, piece_length: u32, trackers: &[&str]) -> Content {
    let new = NewContent {
        len: size,
        piece_length,
        trackers: trackers.iter().map(|url| vec![(*url).to_owned()]).collect(),
        ..NewContent::default()
    };
    new.make()
}

fn ip(last: u8) -> IpAddr {
    [10, 0, 0, last].into()
}

fn add(sim: &mut Simulation, node: NodeId, content: &Content, peers: Vec<std::net::SocketAddr>) {
    let command = AddTorrent {
        source: content.metainfo().clone().into(),
        options: AddOptions {
            root: Some("downloads".into()),
            peers,
            ..AddOptions::default()
        },
        is_resumed: false,
        reply: Reply::ignored(),
    };
    sim.node(node)
        .world_mut()
        .resource_mut::<CommandQueue<AddTorrent>>()
        .0
        .push_back(command);
    sim.nudge(node);
}

/// Sends a command to a node and returns where its answer arrives.
fn send<C: Send + Sync + 'static, T: Send + 'static>(
    sim: &mut Simulation,
    node: NodeId,
    command: impl FnOnce(Reply<T>) -> C,
) -> Receiver<T> {
    let (sender, answers) = channel();
    let command = command(Reply::new(move |answer| drop(sender.send(answer))));
    let world = sim.node(node).world_mut();
    world.resource_mut::<CommandQueue<C>>().0.push_back(command);
    sim.nudge(node);
    answers
}

fn stats(sim: &mut Simulation, node: NodeId, content: &Content) -> Option<TorrentStats> {
    let slot = Arc::new(Mutex::new(None));
    let out = slot.clone();
    let command = GetStats {
        torrent: content.info_hash(),
        reply: Reply::new(move |stats| *out.lock().unwrap() = Some(stats)),
    };
    sim.node(node)
        .world_mut()
        .resource_mut::<CommandQueue<GetStats>>()
        .0
        .push_back(command);
    let now = sim.now();
    sim.node(node).tick(now);
    let answer = slot.lock().unwrap().take();
    answer.and_then(Result::ok)
}

/// Lets a seed and a leecher finish a torrent; returns the trace's hash and the time it took.
fn run(seed: u64) -> (u64, Duration) {
    let content = torrent(1_000_001, 65536);
    let mut sim = Simulation::new(seed, Duration::from_millis(10));
    let seeder = sim.add_node(ip(1), Settings::default(), TorrentPlugins);
    let leecher = sim.add_node(ip(2), Settings::default(), TorrentPlugins);
    sim.put(seeder, "downloads", &content);
    add(&mut sim, seeder, &content, vec![]);
    add(&mut sim, leecher, &content, vec![(ip(1), 6881).into()]);
    let limit = Timestamp::ZERO + Duration::from_secs(60);
    let finished = sim.run_until(limit, |sim| sim.has(leecher, "downloads", &content));
    assert!(finished, "{:?}", stats(&mut sim, leecher, &content));
    let took = sim.now().since(Timestamp::ZERO);
    let trace = sim.trace();
    let limit = limit + Duration::from_secs(10);
    assert!(sim.run_until(limit, |sim| {
        stats(sim, leecher, &content).is_some_and(|s| s.is_complete())
    }));
    let stats = stats(&mut sim, leecher, &content).unwrap();
    assert_eq!(
        (stats.state, stats.downloaded, stats.wasted),
        (ecs_torrent::TorrentState::Seeding, 1_000_001, 0)
    );
    (trace, took)
}

/// The same plugins run over simulated backends, and the seed determines the whole run.
#[test]
fn two_engines_finish_a_torrent_the_same_way_twice() {
    let (trace, took) = run(1);
    assert_eq!(run(1), (trace, took));
    assert_ne!(run(2).0, trace, "another seed, another run");
}

/// An event that a backend reports at once, such as bytes accepted by a socket's buffer, is processed in the next tick.
/// That tick comes no sooner than the minimum interval of the settings.
#[test]
fn an_engine_that_sends_does_not_tick_again_at_once() {
    let content = torrent(1_000_001, 65536);
    let mut sim = Simulation::new(1, Duration::from_millis(10));
    let mut settings = Settings::default();
    settings.tick.min_interval_us = 5_000;
    let least = Duration::from_millis(5);
    let seeder = sim.add_node(ip(1), settings.clone(), TorrentPlugins);
    let leecher = sim.add_node(ip(2), settings, TorrentPlugins);
    sim.put(seeder, "downloads", &content);
    add(&mut sim, seeder, &content, vec![]);
    add(&mut sim, leecher, &content, vec![(ip(1), 6881).into()]);
    let last = Arc::new(Mutex::new(std::collections::BTreeMap::new()));
    sim.on_tick(move |node, _, now| {
        if let Some(before) = last.lock().unwrap().insert(node, now) {
            assert!(
                now.since(before) >= least,
                "{node:?} ticks at {before:?} and at {now:?}"
            );
        }
    });
    let limit = Timestamp::ZERO + Duration::from_secs(60);
    assert!(sim.run_until(limit, |sim| sim.has(leecher, "downloads", &content)));
}

/// Fault 58: the connection id of a UDP tracker is used for a minute and then requested again.
#[test]
fn an_expired_connection_to_a_udp_tracker_is_renewed() {
    let mut sim = Simulation::new(1, Duration::from_millis(10));
    let settings = Settings {
        trackers: TrackerSettings {
            min_interval_s: 25,
            ..TrackerSettings::default()
        },
        ..Settings::default()
    };
    let node = sim.add_node(ip(1), settings, TorrentPlugins);
    let announced = Arc::new(Mutex::new(Vec::new()));
    let record = announced.clone();
    sim.add_udp_host((ip(9), 6969).into(), move |now, _from, packet| {
        let word = |at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().unwrap());
        let (action, transaction) = (word(8), word(12));
        record
            .lock()
            .unwrap()
            .push((now.since(Timestamp::ZERO).as_secs(), action));
        let reply = match action {
            0 => vec![0, transaction, 7, 7],
            _ => vec![1, transaction, 25, 0, 0],
        };
        vec![reply.into_iter().flat_map(u32::to_be_bytes).collect()]
    });
    let content = torrent_with_trackers(1000, 16384, &["udp://10.0.0.9:6969"]);
    add(&mut sim, node, &content, vec![]);
    sim.run_until(Timestamp::ZERO + Duration::from_secs(110), |_| false);
    let announced = announced.lock().unwrap().clone();
    let announces: Vec<u64> = announced
        .iter()
        .filter(|(_, action)| *action == 1)
        .map(|(time, _)| *time)
        .collect();
    let connects: Vec<u64> = announced
        .iter()
        .filter(|(_, action)| *action == 0)
        .map(|(time, _)| *time)
        .collect();
    assert_eq!(announces, [0, 25, 50, 75, 100]);
    assert_eq!(connects, [0, 75], "after a minute, and not before");
}

/// BEP 15: a packet that a UDP tracker does not answer is sent again after 15 s, then after twice as long.
#[test]
fn a_lost_packet_to_a_udp_tracker_is_sent_again() {
    let mut sim = Simulation::new(1, Duration::from_millis(10));
    let node = sim.add_node(ip(1), Settings::default(), TorrentPlugins);
    let announced = Arc::new(Mutex::new(Vec::new()));
    let record = announced.clone();
    sim.add_udp_host((ip(9), 6969).into(), move |now, _from, packet| {
        let word = |at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().unwrap());
        let (action, transaction) = (word(8), word(12));
        let mut announced = record.lock().unwrap();
        announced.push((now.since(Timestamp::ZERO).as_secs(), action));
        let reply = match (action, announced.len()) {
            (0, 3..) => vec![0, transaction, 7, 7],
            (1, 5..) => vec![1, transaction, 1800, 0, 0],
            _ => return Vec::new(),
        };
        vec![reply.into_iter().flat_map(u32::to_be_bytes).collect()]
    });
    let content = torrent_with_trackers(1000, 16384, &["udp://10.0.0.9:6969"]);
    add(&mut sim, node, &content, vec![]);
    sim.run_until(Timestamp::ZERO + Duration::from_secs(200), |_| false);
    // Two connects and one announce are lost.
    let announced = announced.lock().unwrap().clone();
    assert_eq!(announced[..3], [(0, 0), (15, 0), (45, 0)]);
    assert_eq!(announced[3].1, 1);
    assert_eq!(
        announced.last().unwrap().1,
        1,
        "the announce is sent again until it is answered"
    );
    assert!(announced.len() >= 5, "{announced:?}");
}

/// BEP 3: a download without known peers announces before the interval is over, with increasing delays while the
/// announces yield no peers.
#[test]
fn a_torrent_without_peers_announces_early() {
    let mut sim = Simulation::new(1, Duration::from_millis(10));
    let tracker = sim.add_tracker((ip(9), 80).into(), TrackerOptions::default());
    let [alone, visitor] = [1, 2].map(|last| sim.add_node(ip(last), Settings::default(), TorrentPlugins));
    let content = torrent_with_trackers(1000, 16384, &[&tracker.http_url()]);
    add(&mut sim, alone, &content, vec![]);
    sim.run_for(Duration::from_secs(1000));
    // While a peer is connected, the interval applies; the early announces start over when the last peer is gone.
    let address = sim.net().addresses(alone);
    add(&mut sim, visitor, &torrent(1000, 16384), address);
    sim.run_for(Duration::from_secs(500));
    assert!(sim.net().reset(alone, visitor) > 0);
    sim.run_for(Duration::from_secs(1));
    let times: Vec<u64> = tracker
        .announces()
        .iter()
        .map(|a| a.at.since(Timestamp::ZERO).as_secs())
        .collect();
    assert_eq!(times, [0, 60, 180, 420, 900, 1500]);
}

/// Fault 100: a clock that jumps hours forward during a download, as after a long sleep, ends only what has timed out
/// meanwhile. The torrent continues by itself. (Jumps of the wall clock do not reach the engine: it reads a monotonic
/// clock, and its time never goes back.)
#[test]
fn a_clock_that_jumps() {
    for who in ["leecher", "seeder", "both"] {
        let content = torrent(4_000_003, 65536);
        let mut sim = Simulation::new(3, Duration::from_millis(10));
        let seeder = sim.add_node(ip(1), Settings::default(), TorrentPlugins);
        let leecher = sim.add_node(ip(2), Settings::default(), TorrentPlugins);
        sim.put(seeder, "downloads", &content);
        add(&mut sim, seeder, &content, vec![]);
        add(&mut sim, leecher, &content, vec![(ip(1), 6881).into()]);
        let limit = Timestamp::ZERO + Duration::from_secs(60);
        let is_begun = |sim: &mut Simulation| {
            let have = sim
                .node(leecher)
                .world_mut()
                .query::<&Have>()
                .single(sim.node(leecher).world());
            have.is_ok_and(|have| have.count() > 5)
        };
        assert!(sim.run_until(limit, is_begun));
        assert!(!sim.has(leecher, "downloads", &content), "it is in the middle");
        let jump = Duration::from_secs(2 * 3600);
        for (node, name) in [(leecher, "leecher"), (seeder, "seeder")] {
            if who == name || who == "both" {
                sim.jump_clock(node, jump);
            }
        }
        let finished = sim.run_until(sim.now() + Duration::from_secs(600), |sim| {
            sim.has(leecher, "downloads", &content)
        });
        assert!(finished, "{who}: {:?}", stats(&mut sim, leecher, &content));
    }
}

/// Small messages are charged to the peer's receive window by their processing cost, and the window is granted again: a
/// peer that sends little at a time is read indefinitely.
#[test]
fn small_messages_do_not_use_a_window_up() {
    let mut settings = Settings::default();
    settings.net.receive_window_bytes = 64 << 10;
    let content = torrent(1000, 16384);
    let mut sim = Simulation::new(1, Duration::from_millis(10));
    let node = sim.add_node(ip(1), settings, TorrentPlugins);
    add(&mut sim, node, &content, vec![]);
    let mut peer = sim.add_host((ip(2), 6881).into());
    let stream = StreamId(2);
    let (to, timeout) = ((ip(1), 6881).into(), Duration::from_secs(10));
    let handshake = Handshake {
        reserved: Reserved::default(),
        info_hash: content.info_hash(),
        peer_id: PeerId(*b"-EC0100-aaaaaaaaaaaa"),
    };
    let mut hello = BytesMut::new();
    handshake.write(&mut hello);
    sim.run_for(Duration::from_secs(1));
    peer.submit(&mut vec![NetRequest::Connect {
        stream,
        to,
        transport: TransportChoice::Either,
        timeout,
    }]);
    let mut say = |sim: &mut Simulation, bytes: Bytes| {
        let frames = vec![bytes];
        peer.submit(&mut vec![NetRequest::Send { stream, frames }]);
        sim.run_for(Duration::from_millis(2));
    };
    say(&mut sim, hello.freeze());
    for _ in 0..1000 {
        // A keep-alive.
        say(&mut sim, Bytes::from_static(&[0; 4]));
    }
    say(&mut sim, Bytes::from_static(&[0, 0, 0, 1, 2]));
    sim.run_for(Duration::from_secs(1));
    let world = sim.node(node).world_mut();
    let state = world.query::<&PeerState>().single(world).unwrap();
    assert!(state.peer_interested, "the last message was read");
}

/// Blocks that wait for a peer that does not read are not uploaded yet.
#[test]
fn a_block_counts_as_uploaded_when_it_has_left() {
    const BLOCKS: u32 = 20;
    let content = torrent(1 << 20, 1 << 20);
    let mut sim = Simulation::new(1, Duration::from_millis(10));
    sim.net().set_limits(SocketLimits {
        send_buffer_bytes: 64 << 10,
        receive_buffer_bytes: 64 << 10,
        ..SocketLimits::default()
    });
    let node = sim.add_node(ip(1), Settings::default(), TorrentPlugins);
    sim.put(node, "downloads", &content);
    add(&mut sim, node, &content, vec![]);
    sim.run_for(Duration::from_secs(1));
    let mut peer = sim.add_host((ip(2), 6881).into());
    let stream = StreamId(2);
    let (to, timeout) = ((ip(1), 6881).into(), Duration::from_secs(10));
    let mut bytes = BytesMut::new();
    let handshake = Handshake {
        reserved: Reserved::default(),
        info_hash: content.info_hash(),
        peer_id: PeerId(*b"-EC0100-aaaaaaaaaaaa"),
    };
    handshake.write(&mut bytes);
    Message::Interested.write(&mut bytes);
    let frames = vec![bytes.split().freeze()];
    peer.submit(&mut vec![
        NetRequest::Connect {
            stream,
            to,
            transport: TransportChoice::Either,
            timeout,
        },
        NetRequest::Send { stream, frames },
    ]);
    // Until the peer is unchoked.
    sim.run_for(Duration::from_secs(20));
    sim.net().set_reading(peer.id(), false);
    for number in 0..BLOCKS {
        let (piece, begin, len) = (0, number * 16384, 16384);
        Message::Request(BlockRequest { piece, begin, len }).write(&mut bytes);
    }
    let frames = vec![bytes.freeze()];
    peer.submit(&mut vec![NetRequest::Send { stream, frames }]);
    sim.run_for(Duration::from_secs(2));
    let uploaded = |sim: &mut Simulation| stats(sim, node, &content).unwrap().uploaded;
    let early = uploaded(&mut sim);
    assert!(early > 0, "the peer is served");
    assert!(
        early <= (64 + 64 + 16) << 10,
        "{early} bytes: more than the sockets hold"
    );
    sim.net().set_reading(peer.id(), true);
    sim.run_for(Duration::from_secs(2));
    assert_eq!(uploaded(&mut sim), u64::from(BLOCKS) * 16384);
}
