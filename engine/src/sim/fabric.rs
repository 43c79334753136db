//! What happens, when, and to whom.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt::Debug;
use std::hash::{Hash, Hasher};
use std::mem;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ecs_torrent_protocol::time::Timestamp;

use super::disk::Folders;
use super::net::Wires;
use super::state::Sessions;
use super::{NodeId, lock};
use crate::port::Backend;
use crate::ports::disk::DiskEvent;
use crate::ports::hash::{HashEvent, HashRequest, compute};
use crate::ports::http::{HttpError, HttpEvent, HttpPart, HttpRequest};
use crate::ports::net::NetEvent;
use crate::ports::state::StateEvent;

/// Something that will happen to a node.
#[derive(Debug)]
pub(super) enum Event {
    Net(NetEvent),
    Disk(DiskEvent),
    Hash(HashEvent),
    Http(HttpEvent),
    State(StateEvent),
}

struct Scheduled {
    at: Timestamp,
    sequence: u64,
    node: NodeId,
    event: Event,
}

/// What has happened to a node and has not been polled.
#[derive(Default)]
struct Inbox {
    net: Vec<NetEvent>,
    disk: Vec<DiskEvent>,
    hash: Vec<HashEvent>,
    http: Vec<HttpEvent>,
    state: Vec<StateEvent>,
}

/// A host that answers datagrams: at a time, from an address, with these bytes, it sends back these.
pub(super) type UdpHost = Box<dyn FnMut(Timestamp, SocketAddr, &[u8]) -> Vec<Vec<u8>> + Send>;

pub(super) struct Fabric {
    pub(super) now: Timestamp,
    sequence: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    inboxes: Vec<Inbox>,
    /// Nothing, where nobody asks for it.
    trace: Option<TraceHasher>,
    pub(super) latency: Duration,
    pub(super) listeners: BTreeMap<SocketAddr, NodeId>,
    pub(super) windows: Vec<u32>,
    pub(super) wires: Wires,
    pub(super) disks: Vec<Folders>,
    pub(super) sessions: Vec<Sessions>,
    pub(super) udp_hosts: BTreeMap<SocketAddr, UdpHost>,
}

impl Fabric {
    pub(super) fn new(latency: Duration) -> Self {
        Self {
            now: Timestamp::ZERO,
            sequence: 0,
            queue: BinaryHeap::new(),
            inboxes: Vec::new(),
            trace: Some(TraceHasher::default()),
            latency,
            listeners: BTreeMap::new(),
            windows: Vec::new(),
            wires: Wires::default(),
            disks: Vec::new(),
            sessions: Vec::new(),
            udp_hosts: BTreeMap::new(),
        }
    }

    pub(super) fn add_node(&mut self, address: SocketAddr, window: u32) -> NodeId {
        let id = NodeId(self.inboxes.len());
        self.listeners.insert(address, id);
        self.inboxes.push(Inbox::default());
        self.windows.push(window);
        self.disks.push(Folders::default());
        self.sessions.push(Sessions::default());
        id
    }

    pub(super) fn now(&self) -> Timestamp {
        self.now
    }

    pub(super) fn trace(&self) -> u64 {
        self.trace.as_ref().map_or(0, TraceHasher::finish)
    }

    pub(super) fn stop_tracing(&mut self) {
        self.trace = None;
    }

    pub(super) fn next_event(&self) -> Option<Timestamp> {
        self.queue.peek().map(|Reverse(scheduled)| scheduled.at)
    }

    /// Lets `event` happen to `node` after `delay`.
    pub(super) fn schedule(&mut self, node: NodeId, delay: Duration, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse(Scheduled {
            at: self.now + delay,
            sequence: self.sequence,
            node,
            event,
        }));
    }

    /// Moves the clock, lets what is due happen, and tells to which nodes.
    pub(super) fn advance_to(&mut self, now: Timestamp) -> BTreeSet<NodeId> {
        self.now = self.now.max(now);
        let mut reached = BTreeSet::new();
        while self.next_event().is_some_and(|at| at <= self.now) {
            let Some(Reverse(Scheduled { node, event, .. })) = self.queue.pop() else {
                break;
            };
            if let Some(trace) = &mut self.trace {
                trace.note(&(self.now.as_nanos(), node.0, &event));
            }
            reached.insert(node);
            let inbox = &mut self.inboxes[node.0];
            match event {
                Event::Net(event) => inbox.net.push(event),
                Event::Disk(event) => inbox.disk.push(event),
                Event::Hash(event) => inbox.hash.push(event),
                Event::Http(event) => inbox.http.push(event),
                Event::State(event) => inbox.state.push(event),
            }
        }
        reached
    }

    pub(super) fn take_net(&mut self, node: NodeId, events: &mut Vec<NetEvent>) {
        for event in mem::take(&mut self.inboxes[node.0].net) {
            // Bytes wait for credit at the door, like in a socket.
            match event {
                NetEvent::Received { link, chunk } => self.wires.admit(node, link, chunk, events),
                other => events.push(other),
            }
        }
    }

    pub(super) fn take_disk(&mut self, node: NodeId, events: &mut Vec<DiskEvent>) {
        events.append(&mut self.inboxes[node.0].disk);
    }

    pub(super) fn take_state(&mut self, node: NodeId, events: &mut Vec<StateEvent>) {
        events.append(&mut self.inboxes[node.0].state);
    }
}

/// A digest over the textual form of events, payloads included: slow and certain.
#[derive(Default)]
struct TraceHasher(std::hash::DefaultHasher);

impl TraceHasher {
    fn note(&mut self, event: &impl Debug) {
        format!("{event:?}").hash(&mut self.0);
    }

    fn finish(&self) -> u64 {
        self.0.finish()
    }
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// The Hash port of a simulated engine: computes at once, tells a little later.
pub(super) struct SimHash {
    node: NodeId,
    fabric: Arc<Mutex<Fabric>>,
}

impl SimHash {
    pub(super) fn new(node: NodeId, fabric: Arc<Mutex<Fabric>>) -> Self {
        Self { node, fabric }
    }
}

/// Time that a hash takes in a simulation.
const HASH_TIME: Duration = Duration::from_micros(500);

impl Backend<HashRequest, HashEvent> for SimHash {
    fn submit(&mut self, requests: &mut Vec<HashRequest>) {
        let mut fabric = lock(&self.fabric);
        for HashRequest { tag, kind, spans } in requests.drain(..) {
            let digests = Some(compute(kind, &spans));
            fabric.schedule(self.node, HASH_TIME, Event::Hash(HashEvent { tag, digests, spans }));
        }
    }

    fn poll(&mut self, _max: usize, events: &mut Vec<HashEvent>) -> bool {
        events.append(&mut lock(&self.fabric).inboxes[self.node.0].hash);
        false
    }
}

/// The Http port of a simulated engine: there are no HTTP servers in this world yet.
pub(super) struct SimHttp {
    node: NodeId,
    fabric: Arc<Mutex<Fabric>>,
}

impl SimHttp {
    pub(super) fn new(node: NodeId, fabric: Arc<Mutex<Fabric>>) -> Self {
        Self { node, fabric }
    }
}

impl Backend<HttpRequest, HttpEvent> for SimHttp {
    fn submit(&mut self, requests: &mut Vec<HttpRequest>) {
        let mut fabric = lock(&self.fabric);
        let latency = fabric.latency;
        for HttpRequest { tag, .. } in requests.drain(..) {
            let part = HttpPart::End(Err(HttpError::Transport("connection refused".into())));
            fabric.schedule(self.node, latency, Event::Http(HttpEvent { tag, part }));
        }
    }

    fn poll(&mut self, _max: usize, events: &mut Vec<HttpEvent>) -> bool {
        events.append(&mut lock(&self.fabric).inboxes[self.node.0].http);
        false
    }
}
