//! Tests of engines and machines: their ticks and how they end.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bevy_app::App;
use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::ids::StreamId;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_protocol::time::Timestamp;

use super::{Crash, NewNode, NodeId, SimNet, Simulation};
use crate::port::{Backend, OpenInbox};
use crate::ports::NetPort;
use crate::ports::net::{NetEvent, NetRequest, STREAMS, TRACKER_DATAGRAMS, TransportChoice};
use crate::schedule::{Tick, TickSet};

const LATENCY: Duration = Duration::from_millis(10);

fn address(last: u8) -> SocketAddr {
    ([10, 0, 0, last], 6881).into()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// The times at which this world ticked.
#[derive(Resource, Default)]
struct Ticks(Vec<Timestamp>);

/// A world that records its ticks and requests one 300 ms after each.
fn noting(app: &mut App) {
    let record = |mut ticks: ResMut<Ticks>, clock: Res<Clock>, wakeup: Res<Wakeup>| {
        ticks.0.push(clock.now());
        wakeup.at(clock.now() + ms(300));
    };
    app.open_inbox::<NetRequest, NetEvent>(TRACKER_DATAGRAMS)
        .open_inbox::<NetRequest, NetEvent>(STREAMS)
        .init_resource::<Ticks>()
        .add_systems(Tick, record.in_set(TickSet::Decide));
}

fn add(sim: &mut Simulation, last: u8) -> NodeId {
    sim.add(NewNode::new([10, 0, 0, last].into(), Settings::default(), noting))
}

fn ticks(sim: &mut Simulation, node: NodeId) -> Vec<u64> {
    let ticks = &sim.node(node).world().resource::<Ticks>().0;
    ticks.iter().map(|at| at.as_nanos() / 1_000_000).collect()
}

/// A host with a connection to a node.
fn connected(sim: &mut Simulation, last: u8) -> SimNet {
    let mut host = sim.add_host(address(last));
    let (stream, to, timeout) = (StreamId(2), address(1), Duration::from_secs(10));
    host.submit(&mut vec![NetRequest::Connect {
        stream,
        to,
        transport: TransportChoice::Either,
        timeout,
    }]);
    sim.run_for(ms(50));
    assert!(matches!(poll(&mut host)[..], [NetEvent::Connected { .. }]));
    host
}

fn poll(host: &mut SimNet) -> Vec<NetEvent> {
    let mut events = Vec::new();
    host.poll(usize::MAX, &mut events);
    events
}

fn datagram(host: &mut SimNet) {
    let (to, data) = (address(1), bytes::Bytes::from_static(&[0; 8]));
    host.submit(&mut vec![NetRequest::Datagram { from: None, to, data }]);
}

#[test]
fn a_node_ticks_at_its_deadlines_and_when_something_comes() {
    let mut sim = Simulation::new(1, LATENCY);
    let node = add(&mut sim, 1);
    let mut host = sim.add_host(address(2));
    sim.run_for(ms(700));
    assert_eq!(ticks(&mut sim, node), [0, 300, 600]);
    (0..3).for_each(|_| datagram(&mut host));
    sim.run_for(ms(400));
    assert_eq!(ticks(&mut sim, node), [0, 300, 600, 710, 1010]);
    assert_eq!(sim.tick_count(node), 5);
    assert_eq!(
        sim.now(),
        Timestamp::ZERO + ms(1100),
        "time passes where nothing happens"
    );
}

#[test]
fn removed_components_are_forgotten_after_two_ticks() {
    #[derive(Component)]
    struct Brief;
    let brief = |app: &mut App| {
        let respawn =
            |mut commands: Commands, old: Query<Entity, With<Brief>>, wakeup: Res<Wakeup>, clock: Res<Clock>| {
                old.iter().for_each(|entity| commands.entity(entity).despawn());
                commands.spawn(Brief);
                wakeup.at(clock.now() + ms(10));
            };
        app.add_systems(Tick, respawn.in_set(TickSet::Decide));
    };
    let mut sim = Simulation::new(1, LATENCY);
    let node = sim.add(NewNode::new([10, 0, 0, 1].into(), Settings::default(), brief));
    sim.run_for(ms(1000));
    let world = sim.node(node).world();
    let removed = world.removed_components().iter();
    let kept: usize = removed.map(|(_, entities)| entities.len()).sum();
    assert!((1..=2).contains(&kept), "one a tick, for two ticks: {kept}");
}

#[test]
fn a_hook_sees_every_tick() {
    let mut sim = Simulation::new(1, LATENCY);
    let nodes = [add(&mut sim, 1), add(&mut sim, 2)];
    let seen = Rc::new(RefCell::new(Vec::new()));
    let notes = seen.clone();
    sim.on_tick(move |node, core, now| {
        assert_eq!(core.world().resource::<Clock>().now(), now);
        notes.borrow_mut().push(node);
    });
    sim.run_for(ms(350));
    assert_eq!(*seen.borrow(), [nodes[0], nodes[1], nodes[0], nodes[1]]);
}

#[test]
fn a_killed_process_resets_its_connections_and_can_begin_again() {
    let mut sim = Simulation::new(1, LATENCY);
    let node = add(&mut sim, 1);
    let mut host = connected(&mut sim, 2);
    sim.crash(node, Crash::Process);
    assert!(!sim.is_up(node));
    sim.run_for(ms(100));
    let events = poll(&mut host);
    assert!(
        matches!(&events[..], [NetEvent::Closed { reason, .. }] if reason.to_string().contains("reset")),
        "{events:?}"
    );
    let (stream, to, timeout) = (StreamId(4), address(1), Duration::from_secs(10));
    host.submit(&mut vec![NetRequest::Connect {
        stream,
        to,
        transport: TransportChoice::Either,
        timeout,
    }]);
    sim.run_for(ms(100));
    let events = poll(&mut host);
    assert!(
        matches!(&events[..], [NetEvent::Closed { reason, .. }] if reason.to_string().contains("refused")),
        "{events:?}"
    );
    let count = sim.tick_count(node);
    sim.run_for(Duration::from_secs(10));
    assert_eq!(sim.tick_count(node), count, "nobody ticks");
    sim.restart(node);
    sim.run_for(ms(10));
    assert_eq!(ticks(&mut sim, node).len(), 1, "a new world");
    connected(&mut sim, 3);
}

#[test]
fn a_machine_without_power_says_nothing_until_it_is_back() {
    let mut sim = Simulation::new(1, LATENCY);
    let node = add(&mut sim, 1);
    let mut host = connected(&mut sim, 2);
    sim.crash(node, Crash::Power);
    let stream = StreamId(2);
    let frames = vec![bytes::Bytes::from_static(b"anybody?")];
    host.submit(&mut vec![NetRequest::Send { stream, frames }]);
    sim.run_for(Duration::from_secs(60));
    assert!(matches!(poll(&mut host)[..], [NetEvent::Sent { .. }]));
    sim.restart(node);
    sim.run_for(Duration::from_secs(6));
    let events = poll(&mut host);
    assert!(
        matches!(&events[..], [NetEvent::Closed { reason, .. }] if reason.to_string().contains("reset")),
        "{events:?}"
    );
}

#[test]
fn a_sleeping_machine_receives_everything_when_it_wakes() {
    let mut sim = Simulation::new(1, LATENCY);
    let node = add(&mut sim, 1);
    let mut host = connected(&mut sim, 2);
    grant(&mut sim, node);
    sim.run_for(ms(300));
    let before = ticks(&mut sim, node).len();
    sim.suspend(node, Duration::from_secs(100));
    let (stream, frames) = (StreamId(2), vec![bytes::Bytes::from_static(b"hello")]);
    host.submit(&mut vec![NetRequest::Send { stream, frames }]);
    sim.run_for(Duration::from_secs(99));
    assert_eq!(ticks(&mut sim, node).len(), before);
    sim.run_for(Duration::from_secs(10));
    assert_eq!(ticks(&mut sim, node)[before], 100_350);
    assert!(has_received(&mut sim, node));
}

/// Lets the first stream that a node accepted deliver bytes.
fn grant(sim: &mut Simulation, node: NodeId) {
    let (stream, bytes) = (StreamId(1), 1 << 20);
    let world = sim.node(node).world_mut();
    world
        .resource_mut::<NetPort>()
        .push(NetRequest::Grant { stream, bytes });
}

fn has_received(sim: &mut Simulation, node: NodeId) -> bool {
    let mut net = sim.node(node).world_mut().resource_mut::<NetPort>();
    net.take(STREAMS)
        .any(|event| matches!(event, NetEvent::Received { .. }))
}

#[test]
fn a_stream_begins_without_credit() {
    let mut sim = Simulation::new(1, LATENCY);
    let node = add(&mut sim, 1);
    let mut host = connected(&mut sim, 2);
    let (stream, frames) = (StreamId(2), vec![bytes::Bytes::from_static(b"hello")]);
    host.submit(&mut vec![NetRequest::Send { stream, frames }]);
    sim.run_for(Duration::from_secs(10));
    assert!(!has_received(&mut sim, node));
    grant(&mut sim, node);
    sim.run_for(Duration::from_secs(1));
    assert!(has_received(&mut sim, node));
}

#[test]
fn a_clock_jumps_forward_for_one_node_alone() {
    let mut sim = Simulation::new(1, LATENCY);
    let (node, other) = (add(&mut sim, 1), add(&mut sim, 2));
    sim.run_for(ms(100));
    sim.jump_clock(node, Duration::from_secs(3600));
    sim.run_for(ms(250));
    assert_eq!(ticks(&mut sim, node), [0, 3_600_100]);
    sim.run_for(ms(100));
    assert_eq!(ticks(&mut sim, node), [0, 3_600_100, 3_600_400]);
    assert_eq!(ticks(&mut sim, other), [0, 300]);
}

#[test]
fn crashes_are_determined_by_the_seed() {
    let trace = |crash| {
        let mut sim = Simulation::new(7, LATENCY);
        let node = add(&mut sim, 1);
        let mut host = connected(&mut sim, 2);
        datagram(&mut host);
        sim.crash(node, crash);
        sim.run_for(ms(500));
        sim.restart(node);
        sim.run_for(ms(500));
        sim.trace()
    };
    assert_eq!(trace(Crash::Power), trace(Crash::Power));
    assert_ne!(trace(Crash::Power), trace(Crash::Process));
}
