//! Tests of the network, as hosts observe it.

use std::net::SocketAddr;
use std::time::Duration;

use bevy_ecs::entity::Entity;
use bytes::Bytes;
use ecs_torrent_components::ids::StreamId;
use ecs_torrent_components::peer::Transport;
use ecs_torrent_components::settings::NetSettings;
use ecs_torrent_protocol::time::Timestamp;

use super::super::{Access, Carrier, NodeId, Path, SimNet, Simulation, SocketLimits};
use crate::port::{Backend, JobTag};
use crate::ports::net::{Cipher, Filter, NetEvent, NetRequest, StreamError, TransportChoice};
use crate::purpose;

const LATENCY: Duration = Duration::from_millis(10);
const STREAM: StreamId = StreamId(2);

fn address(last: u8) -> SocketAddr {
    ([10, 0, 0, last], 6881).into()
}

/// A tracker's answer with a number in it.
fn numbered(number: u32) -> Bytes {
    let number = number.to_be_bytes();
    [&[0, 0, 0, 1, 0, 0, 0, 0][..], &number].concat().into()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A host and its events so far, with their times.
struct Peer {
    net: SimNet,
    seen: Vec<(Timestamp, NetEvent)>,
}

impl Peer {
    fn new(sim: &mut Simulation, last: u8) -> Self {
        let net = sim.add_host(address(last));
        let seen = Vec::new();
        Self { net, seen }
    }

    fn id(&self) -> NodeId {
        self.net.id()
    }

    fn ask(&mut self, request: NetRequest) {
        self.net.submit(&mut vec![request]);
    }

    fn connect(&mut self, stream: StreamId, to: u8) {
        let (to, timeout) = (address(to), Duration::from_secs(10));
        self.ask(NetRequest::Connect {
            stream,
            to,
            transport: TransportChoice::Either,
            timeout,
        });
    }

    fn send(&mut self, stream: StreamId, count: usize, len: usize) {
        let frames = (0..count).map(|number| vec![number as u8; len].into()).collect();
        self.ask(NetRequest::Send { stream, frames });
    }

    fn close(&mut self, stream: StreamId, is_orderly: bool) {
        let tag = Some(JobTag::new(purpose!("test"), Entity::PLACEHOLDER));
        self.ask(NetRequest::Close {
            stream,
            is_orderly,
            tag,
        });
    }

    fn look(&mut self, now: Timestamp) {
        let mut events = Vec::new();
        self.net.poll(usize::MAX, &mut events);
        self.seen.extend(events.into_iter().map(|event| (now, event)));
    }

    fn bytes(&self) -> Vec<u8> {
        let chunk = |(_, event): &(_, NetEvent)| match event {
            NetEvent::Received { chunk, .. } => chunk.to_vec(),
            _ => Vec::new(),
        };
        self.seen.iter().flat_map(chunk).collect()
    }

    fn received(&self, stream: StreamId) -> usize {
        let len = |(_, event): &(_, NetEvent)| match event {
            NetEvent::Received { stream: found, chunk } if *found == stream => chunk.len(),
            _ => 0,
        };
        self.seen.iter().map(len).sum()
    }

    fn sent(&self) -> usize {
        let bytes = |(_, event): &(_, NetEvent)| match event {
            NetEvent::Sent { bytes, .. } => *bytes,
            _ => 0,
        };
        self.seen.iter().map(bytes).sum()
    }

    fn accepted(&self) -> StreamId {
        let streams = self.seen.iter().filter_map(|(_, event)| match event {
            NetEvent::Accepted { stream, .. } => Some(*stream),
            _ => None,
        });
        streams.last().expect("a connection was accepted")
    }

    fn datagrams(&self) -> Vec<Bytes> {
        let data = self.seen.iter().filter_map(|(_, event)| match event {
            NetEvent::Datagram { datagram, .. } => Some(datagram.data.clone()),
            _ => None,
        });
        data.collect()
    }

    /// Time and reason of the last connection's end.
    fn end(&self) -> Option<(Duration, String)> {
        self.seen.iter().rev().find_map(|(at, event)| match event {
            NetEvent::Closed { reason, .. } => Some((at.since(Timestamp::ZERO), reason.to_string())),
            _ => None,
        })
    }

    fn last_at(&self) -> Duration {
        self.seen
            .last()
            .map_or(Duration::ZERO, |(at, _)| at.since(Timestamp::ZERO))
    }
}

fn run(sim: &mut Simulation, time: Duration, peers: &mut [&mut Peer]) {
    let limit = sim.now() + time;
    let mut goes_on = true;
    while goes_on {
        let now = sim.now();
        peers.iter_mut().for_each(|peer| peer.look(now));
        goes_on = sim.step(limit);
    }
}

/// Two hosts with a connection, from the first to the second.
fn pair(sim: &mut Simulation) -> (Peer, Peer) {
    let (mut one, mut other) = (Peer::new(sim, 1), Peer::new(sim, 2));
    one.connect(STREAM, 2);
    run(sim, ms(100), &mut [&mut one, &mut other]);
    assert_eq!(one.last_at(), LATENCY * 2, "one round trip");
    assert_eq!(other.last_at(), LATENCY * 3);
    one.seen.clear();
    (one, other)
}

fn near(found: Duration, expected: Duration) {
    let off = found.abs_diff(expected);
    assert!(off <= expected / 50 + ms(1), "{found:?} and not {expected:?}");
}

#[test]
fn a_connection_is_as_fast_as_the_slower_access_link() {
    for (up, down, seconds) in [
        (1_000_000, 2_000_000, 4),
        (2_000_000, 500_000, 8),
        (1_000_000, 1_000_000, 4),
    ] {
        let mut sim = Simulation::new(1, LATENCY);
        let (mut one, mut other) = pair(&mut sim);
        sim.net().set_access(one.id(), Access::asymmetric(up, 1));
        sim.net().set_access(other.id(), Access::asymmetric(1, down));
        one.send(STREAM, 400, 10_000);
        run(&mut sim, Duration::from_secs(20), &mut [&mut one, &mut other]);
        assert_eq!((one.sent(), other.bytes().len()), (4_000_000, 4_000_000));
        near(other.last_at(), Duration::from_secs(seconds) + ms(110));
        assert_eq!(sim.net().traffic(one.id()).sent_bytes, 4_000_000);
    }
}

#[test]
fn unlimited_links_add_latency_only() {
    let mut sim = Simulation::new(1, LATENCY);
    let (mut one, mut other) = pair(&mut sim);
    one.send(STREAM, 100, 16384);
    run(&mut sim, ms(100), &mut [&mut one, &mut other]);
    assert_eq!(other.bytes().len(), 1_638_400);
    assert_eq!(other.last_at(), ms(110));
}

#[test]
fn a_long_queue_does_not_block_other_connections() {
    let mut sim = Simulation::new(1, LATENCY);
    let (mut one, mut other) = pair(&mut sim);
    let mut third = Peer::new(&mut sim, 3);
    one.connect(StreamId(4), 3);
    run(&mut sim, ms(100), &mut [&mut one, &mut other, &mut third]);
    sim.net().set_access(one.id(), Access::symmetric(1_000_000));
    one.send(STREAM, 128, 16384);
    run(&mut sim, ms(500), &mut [&mut one, &mut other, &mut third]);
    let begun = sim.now();
    one.send(StreamId(4), 1, 16384);
    run(&mut sim, ms(100), &mut [&mut one, &mut other, &mut third]);
    let took = third.last_at() - begun.since(Timestamp::ZERO);
    assert!(took < ms(60), "its turn comes behind two segments: {took:?}");
}

#[test]
fn connections_share_a_narrow_downlink_evenly() {
    let mut sim = Simulation::new(1, LATENCY);
    let mut receiver = Peer::new(&mut sim, 1);
    sim.net().set_access(receiver.id(), Access::symmetric(1_000_000));
    let mut senders: Vec<Peer> = (2..6).map(|last| Peer::new(&mut sim, last)).collect();
    for sender in &mut senders {
        sender.connect(STREAM, 1);
        sender.send(STREAM, 1000, 16384);
    }
    run(&mut sim, Duration::from_secs(4), &mut [&mut receiver]);
    let shares: Vec<usize> = (0..4)
        .map(|number| receiver.received(StreamId(number * 2 + 1)))
        .collect();
    let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
    assert!(most - least <= 2 * 16384, "{shares:?}");
    let total: usize = shares.iter().sum();
    assert!((3_800_000..4_000_000).contains(&total), "{total}");
    // The queue at the downlink is bounded, and small compared to the senders' queues.
    let unread: usize = senders
        .iter_mut()
        .map(|sender| {
            sender.look(sim.now());
            sender.sent()
        })
        .sum();
    assert!(unread - total < 4 * (256 << 10) + (512 << 10), "{}", unread - total);
}

#[test]
fn bytes_stay_in_order_whatever_the_jitter() {
    let mut sim = Simulation::new(1, LATENCY);
    let (mut one, mut other) = pair(&mut sim);
    sim.net().set_default_path(Path::new(LATENCY).with_jitter(ms(100)));
    for _ in 0..200 {
        one.send(STREAM, 3, 5);
        run(&mut sim, ms(3), &mut [&mut one, &mut other]);
    }
    run(&mut sim, ms(500), &mut [&mut one, &mut other]);
    let expected: Vec<u8> = [[0; 5], [1; 5], [2; 5]].concat().repeat(200);
    assert_eq!(other.bytes(), expected);
}

#[test]
fn a_peer_that_does_not_read_stops_the_sender() {
    let mut sim = Simulation::new(1, LATENCY);
    let (mut one, mut other) = pair(&mut sim);
    let limits = SocketLimits {
        send_buffer_bytes: 64 << 10,
        receive_buffer_bytes: 128 << 10,
        ..SocketLimits::default()
    };
    sim.net().set_limits(limits);
    sim.net().set_reading(other.id(), false);
    one.send(STREAM, 1000, 1024);
    run(&mut sim, Duration::from_secs(10), &mut [&mut one, &mut other]);
    assert_eq!(other.bytes().len(), 0);
    let most = (64 << 10) + (128 << 10);
    assert!((most..most + (20 << 10)).contains(&one.sent()), "{}", one.sent());
    sim.net().set_reading(other.id(), true);
    run(&mut sim, Duration::from_secs(10), &mut [&mut one, &mut other]);
    assert_eq!((one.sent(), other.bytes().len()), (1000 << 10, 1000 << 10));
}

#[test]
fn a_partition_delays_what_connections_carry_and_loses_datagrams() {
    let mut sim = Simulation::new(1, LATENCY);
    let (mut one, mut other) = pair(&mut sim);
    let (a, b) = (one.id(), other.id());
    let datagram = |peer: &mut Peer, byte: u32| {
        let data = numbered(byte);
        peer.ask(NetRequest::Datagram {
            from: None,
            to: address(2),
            data,
        });
    };
    one.send(STREAM, 1, 10);
    datagram(&mut one, 1);
    sim.net().partition(&[a], &[b]);
    one.send(STREAM, 1, 20);
    run(&mut sim, Duration::from_secs(60), &mut [&mut one, &mut other]);
    datagram(&mut one, 2);
    one.connect(StreamId(4), 2);
    run(&mut sim, Duration::from_secs(20), &mut [&mut one, &mut other]);
    assert_eq!(one.end().unwrap().1, "no answer");
    assert_eq!(
        (other.bytes().len(), other.datagrams().len(), other.end()),
        (0, 0, None)
    );
    sim.net().heal();
    run(&mut sim, Duration::from_secs(6), &mut [&mut one, &mut other]);
    datagram(&mut one, 3);
    run(&mut sim, Duration::from_secs(1), &mut [&mut one, &mut other]);
    assert_eq!(other.bytes().len(), 30, "sent again");
    assert_eq!(other.datagrams(), [numbered(3)]);
}

#[test]
fn a_connection_that_lasts_through_a_short_partition_is_made_by_repeating() {
    let mut sim = Simulation::new(1, LATENCY);
    let (mut one, mut other) = (Peer::new(&mut sim, 1), Peer::new(&mut sim, 2));
    sim.net().partition(&[one.id()], &[other.id()]);
    one.connect(STREAM, 2);
    run(&mut sim, ms(2500), &mut [&mut one, &mut other]);
    sim.net().heal();
    run(&mut sim, ms(1000), &mut [&mut one, &mut other]);
    assert!(
        matches!(one.seen[..], [(_, NetEvent::Connected { stream: STREAM, .. })]),
        "{:?}",
        one.seen
    );
    near(one.last_at(), ms(3020));
}

#[test]
fn a_sender_detects_a_vanished_peer() {
    let mut sim = Simulation::new(1, LATENCY);
    let (mut one, mut other) = pair(&mut sim);
    let limits = SocketLimits {
        give_up: Duration::from_secs(60),
        ..SocketLimits::default()
    };
    sim.net().set_limits(limits);
    assert_eq!(sim.net().sever(one.id(), other.id()), 1);
    run(&mut sim, Duration::from_secs(600), &mut [&mut one, &mut other]);
    assert_eq!((one.end(), other.end()), (None, None), "half open, and nobody knows");
    one.send(STREAM, 1, 1);
    run(&mut sim, Duration::from_secs(61), &mut [&mut one, &mut other]);
    assert_eq!(one.end().unwrap().1, "Connection timed out");
    assert_eq!((other.end(), other.bytes().len()), (None, 0));
}

#[test]
fn an_orderly_close_delivers_everything_first() {
    let mut sim = Simulation::new(1, LATENCY);
    let (mut one, mut other) = pair(&mut sim);
    sim.net().set_access(one.id(), Access::symmetric(1_000_000));
    one.send(STREAM, 50, 10_000);
    one.close(STREAM, true);
    run(&mut sim, Duration::from_secs(5), &mut [&mut one, &mut other]);
    assert_eq!(other.bytes().len(), 500_000);
    let (at, reason) = other.end().unwrap();
    assert_eq!(reason, "end of stream");
    near(at, ms(610));
    assert!(matches!(one.seen.last(), Some((_, NetEvent::Gone { .. }))));
    assert_eq!(one.last_at(), at + LATENCY, "when the other side has closed too");
    assert_eq!(
        (
            sim.net().connection_count(one.id()),
            sim.net().connection_count(other.id())
        ),
        (0, 0)
    );
}

#[test]
fn a_close_at_once_resets_and_may_lose_what_is_on_the_way() {
    let mut received = Vec::new();
    for seed in 0..20 {
        let mut sim = Simulation::new(seed, LATENCY);
        let (mut one, mut other) = pair(&mut sim);
        one.send(STREAM, 1, 100);
        one.close(STREAM, false);
        run(&mut sim, Duration::from_secs(1), &mut [&mut one, &mut other]);
        assert_eq!(other.end().unwrap().1, "Connection reset by peer");
        assert!(matches!(one.seen.last(), Some((_, NetEvent::Gone { .. }))));
        assert_eq!(sim.net().connection_count(other.id()), 0);
        received.push(other.bytes().len());
    }
    assert!(received.contains(&0) && received.contains(&100), "{received:?}");
}

#[test]
fn data_to_a_closed_end_is_answered_with_a_reset() {
    let mut sim = Simulation::new(1, LATENCY);
    let (mut one, mut other) = pair(&mut sim);
    let stream = other.accepted();
    one.close(STREAM, true);
    other.send(stream, 1, 10);
    run(&mut sim, Duration::from_secs(3), &mut [&mut one, &mut other]);
    assert_eq!(one.bytes().len(), 0, "it has closed, and reads away what comes");
    assert_eq!(other.end().unwrap().1, "end of stream");
}

#[test]
fn an_injected_reset_reaches_both_ends() {
    let mut sim = Simulation::new(1, LATENCY);
    let (mut one, mut other) = pair(&mut sim);
    assert_eq!(sim.net().reset(other.id(), one.id()), 1);
    run(&mut sim, ms(1), &mut [&mut one, &mut other]);
    for peer in [&one, &other] {
        assert_eq!(peer.end().unwrap().1, "Connection reset by peer");
    }
    one.send(STREAM, 1, 1);
    one.close(STREAM, true);
    run(&mut sim, ms(100), &mut [&mut one, &mut other]);
    assert!(
        matches!(one.seen.last(), Some((_, NetEvent::Gone { .. }))),
        "its close ends at once"
    );
}

#[test]
fn connections_fail_realistically() {
    let mut sim = Simulation::new(1, LATENCY);
    let (mut one, mut other) = (Peer::new(&mut sim, 1), Peer::new(&mut sim, 2));
    sim.net().set_refusing(other.id(), true);
    one.connect(STREAM, 2);
    run(&mut sim, ms(100), &mut [&mut one, &mut other]);
    assert_eq!(one.end().unwrap(), (LATENCY * 2, "Connection refused".into()));
    one.connect(StreamId(4), 77);
    run(&mut sim, Duration::from_secs(20), &mut [&mut one, &mut other]);
    assert_eq!(one.end().unwrap(), (ms(10_100), "no answer".into()));
    let (to, timeout) = ("[::1]:6881".parse().unwrap(), Duration::from_secs(1));
    let stream = StreamId(6);
    one.ask(NetRequest::Connect {
        stream,
        to,
        transport: TransportChoice::Either,
        timeout,
    });
    run(&mut sim, ms(1), &mut [&mut one, &mut other]);
    assert_eq!(one.end().unwrap().1, "Network is unreachable");
    assert_eq!(other.seen.len(), 0);
}

#[test]
fn a_full_backlog_answers_when_there_is_room() {
    let mut sim = Simulation::new(1, LATENCY);
    let limits = SocketLimits {
        backlog: 3,
        ..SocketLimits::default()
    };
    sim.net().set_limits(limits);
    let (mut one, mut other) = (Peer::new(&mut sim, 1), Peer::new(&mut sim, 2));
    (1..=5).for_each(|number| one.connect(StreamId(number * 2), 2));
    run(&mut sim, ms(500), &mut [&mut one]);
    assert_eq!(one.seen.len(), 3);
    run(&mut sim, ms(1500), &mut [&mut one, &mut other]);
    assert_eq!((one.seen.len(), other.seen.len()), (5, 5));
}

#[test]
fn datagrams_are_lost_duplicated_and_delayed_at_the_set_rates() {
    let mut sim = Simulation::new(1, LATENCY);
    let (mut one, mut other) = (Peer::new(&mut sim, 1), Peer::new(&mut sim, 2));
    let path = Path::new(LATENCY)
        .with_loss(0.2)
        .with_duplication(0.1)
        .with_reordering(0.3);
    sim.net().set_path(one.id(), other.id(), path);
    for number in 0..2000u32 {
        let data = numbered(number);
        one.ask(NetRequest::Datagram {
            from: None,
            to: address(2),
            data,
        });
        run(&mut sim, ms(1), &mut [&mut one, &mut other]);
    }
    run(&mut sim, ms(100), &mut [&mut one, &mut other]);
    let numbers: Vec<u32> = other
        .datagrams()
        .iter()
        .map(|data| u32::from_be_bytes(data[8..].try_into().unwrap()))
        .collect();
    let mut known = numbers.clone();
    known.sort_unstable();
    known.dedup();
    let (lost, doubled) = (2000 - known.len(), numbers.len() - known.len());
    let late = numbers.windows(2).filter(|pair| pair[0] > pair[1]).count();
    // A datagram that is both duplicated and lost arrives once.
    assert!((300..420).contains(&lost), "{lost}");
    assert!((110..210).contains(&doubled), "{doubled}");
    assert!((200..900).contains(&late), "{late}");
}

#[test]
fn a_host_that_moves_is_found_at_its_new_address_only() {
    let mut sim = Simulation::new(1, LATENCY);
    let (mut one, mut other) = pair(&mut sim);
    sim.net().move_node(other.id(), [10, 0, 0, 9].into());
    one.send(STREAM, 1, 10);
    one.connect(StreamId(4), 9);
    one.connect(StreamId(6), 2);
    run(&mut sim, Duration::from_secs(20), &mut [&mut one, &mut other]);
    assert_eq!(other.bytes().len(), 0, "the old connection leads nowhere");
    assert!(one.seen.iter().any(|(_, event)| matches!(
        event,
        NetEvent::Connected {
            stream: StreamId(4),
            ..
        }
    )));
    assert_eq!(one.end().unwrap().1, "no answer");
}

#[test]
fn a_seed_decides_everything() {
    let trace = |seed| {
        let mut sim = Simulation::new(seed, LATENCY);
        let (mut one, mut other) = pair(&mut sim);
        sim.net()
            .set_default_path(Path::new(LATENCY).with_jitter(ms(5)).with_loss(0.5));
        for number in 0..50 {
            one.send(STREAM, 2, 1000);
            let data = numbered(number);
            one.ask(NetRequest::Datagram {
                from: None,
                to: address(2),
                data,
            });
            run(&mut sim, ms(1), &mut [&mut one, &mut other]);
        }
        run(&mut sim, ms(100), &mut [&mut one, &mut other]);
        sim.trace()
    };
    assert_eq!(trace(1), trace(1));
    assert_ne!(trace(1), trace(2));
}

/// A host that does not poll loses datagrams beyond the ring's capacity, and gets their number.
#[test]
fn datagrams_beyond_the_ring_are_dropped_and_counted() {
    let mut sim = Simulation::new(1, LATENCY);
    let (mut one, mut other) = (Peer::new(&mut sim, 1), Peer::new(&mut sim, 2));
    for _ in 0..1000 {
        let data = numbered(7);
        one.ask(NetRequest::Datagram {
            from: None,
            to: address(2),
            data,
        });
    }
    run(&mut sim, ms(100), &mut [&mut one]);
    let settings = NetSettings::default();
    let (most, per_tick) = (settings.max_datagrams, settings.max_datagrams_per_tick);
    other.look(sim.now());
    assert_eq!(other.datagrams().len(), per_tick, "the budget of a tick");
    run(&mut sim, ms(100), &mut [&mut one, &mut other]);
    other.look(sim.now());
    let dropped = other.seen.iter().find_map(|(_, event)| match event {
        NetEvent::DatagramsDropped { count, .. } => Some(*count as usize),
        _ => None,
    });
    assert_eq!((other.datagrams().len(), dropped), (most, Some(1000 - most)));
}

const PIPE: Transport = Transport::Other("pipe");

/// Two hosts with a second carrier, of which the first one prefers it.
fn hosts_with_pipes(sim: &mut Simulation) -> (Peer, Peer) {
    let (one, other) = (Peer::new(sim, 1), Peer::new(sim, 2));
    for peer in [&one, &other] {
        let carriers = vec![(PIPE, Carrier::Pipe), (Transport::Tcp, Carrier::AccessLink)];
        sim.net().set_carriers(peer.id(), carriers);
    }
    (one, other)
}

fn transports(peer: &Peer) -> Vec<Transport> {
    let transport = |(_, event): &(_, NetEvent)| match event {
        NetEvent::Connected { transport, .. } | NetEvent::Accepted { transport, .. } => Some(*transport),
        _ => None,
    };
    peer.seen.iter().filter_map(transport).collect()
}

#[test]
fn a_pipe_carries_a_stream_past_the_access_links() {
    let mut sim = Simulation::new(1, LATENCY);
    let (mut one, mut other) = hosts_with_pipes(&mut sim);
    sim.net().set_access(one.id(), Access::symmetric(1000));
    one.connect(STREAM, 2);
    run(&mut sim, ms(100), &mut [&mut one, &mut other]);
    assert_eq!((transports(&one), transports(&other)), (vec![PIPE], vec![PIPE]));
    one.send(STREAM, 400, 10_000);
    run(&mut sim, Duration::from_secs(10), &mut [&mut one, &mut other]);
    assert_eq!(other.received(other.accepted()), 4_000_000);
    near(other.last_at(), ms(100) + LATENCY);
    let stream = other.accepted();
    other.send(stream, 1, 10);
    one.close(STREAM, true);
    run(&mut sim, Duration::from_secs(10), &mut [&mut one, &mut other]);
    assert_eq!(sim.net().connection_count(other.id()), 0);
}

#[test]
fn a_refused_transport_gives_way_to_the_next() {
    let mut sim = Simulation::new(1, LATENCY);
    let (mut one, mut other) = hosts_with_pipes(&mut sim);
    sim.net()
        .set_carriers(other.id(), vec![(Transport::Tcp, Carrier::AccessLink)]);
    one.connect(STREAM, 2);
    run(&mut sim, ms(100), &mut [&mut one, &mut other]);
    assert_eq!(transports(&one), [Transport::Tcp]);
    let choice = TransportChoice::Only(Transport::Utp);
    let (stream, to, timeout) = (StreamId(4), address(2), Duration::from_secs(10));
    one.ask(NetRequest::Connect {
        stream,
        to,
        transport: choice,
        timeout,
    });
    run(&mut sim, ms(100), &mut [&mut one, &mut other]);
    let expected = StreamError::NoCarrier(choice);
    let is_it = |(_, event): &(_, NetEvent)| matches!(event, NetEvent::Closed { reason, .. } if *reason == expected);
    assert!(one.seen.iter().any(is_it));
}

struct Flip;

impl Cipher for Flip {
    fn apply(&mut self, bytes: &mut [u8]) {
        bytes.iter_mut().for_each(|byte| *byte = !*byte);
    }
}

#[test]
fn a_filter_begins_at_its_position() {
    let mut sim = Simulation::new(1, LATENCY);
    let (mut one, mut other) = pair(&mut sim);
    let filter = || Some(Filter::new(25, Flip));
    one.ask(NetRequest::Filter {
        stream: STREAM,
        incoming: None,
        outgoing: filter(),
    });
    one.send(STREAM, 3, 10);
    // Bytes have arrived that the receiving world has not taken.
    run(&mut sim, ms(100), &mut [&mut one]);
    let stream = other.accepted();
    other.ask(NetRequest::Filter {
        stream,
        incoming: filter(),
        outgoing: None,
    });
    one.send(STREAM, 3, 10);
    run(&mut sim, ms(100), &mut [&mut one, &mut other]);
    let message = [[0; 10], [1; 10], [2; 10]].concat();
    assert_eq!(other.bytes(), message.repeat(2));
}
