//! The simulated network: connections that deliver in order, after a while, as far as the receiver grants.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use ecs_torrent_components::ids::LinkId;

use super::fabric::{Event, Fabric};
use super::{NodeId, lock};
use crate::port::Backend;
use crate::ports::net::{NetEvent, NetRequest};

/// One end of a connection.
type End = (NodeId, LinkId);

/// All connections, each by both of its ends.
#[derive(Default)]
pub(super) struct Wires {
    ends: BTreeMap<End, EndState>,
    last_accepted: u64,
}

struct EndState {
    other: End,
    credit: i64,
    /// Arrived, and not granted yet.
    held: VecDeque<Bytes>,
}

impl Wires {
    /// Hands a chunk that has arrived to the world, as far as it has credit.
    pub(super) fn admit(&mut self, node: NodeId, link: LinkId, chunk: Bytes, events: &mut Vec<NetEvent>) {
        if let Some(end) = self.ends.get_mut(&(node, link)) {
            if !chunk.is_empty() {
                end.held.push_back(chunk);
            }
            end.release(link, events);
        }
    }

    /// Adds credit; true if something waits for it.
    fn grant(&mut self, node: NodeId, link: LinkId, bytes: u32) -> bool {
        self.ends.get_mut(&(node, link)).is_some_and(|end| {
            end.credit += i64::from(bytes);
            end.credit > 0 && !end.held.is_empty()
        })
    }
}

impl EndState {
    fn release(&mut self, link: LinkId, events: &mut Vec<NetEvent>) {
        while self.credit > 0
            && let Some(chunk) = self.held.pop_front()
        {
            self.credit -= chunk.len() as i64;
            events.push(NetEvent::Received { link, chunk });
        }
    }
}

/// The Net port of a simulated engine.
pub struct SimNet {
    node: NodeId,
    fabric: Arc<Mutex<Fabric>>,
}

impl SimNet {
    pub(super) fn new(node: NodeId, fabric: Arc<Mutex<Fabric>>) -> Self {
        Self { node, fabric }
    }
}

impl Backend<NetRequest, NetEvent> for SimNet {
    fn submit(&mut self, requests: &mut Vec<NetRequest>) {
        let mut fabric = lock(&self.fabric);
        for request in requests.drain(..) {
            fabric.carry(self.node, request);
        }
    }

    fn poll(&mut self, _max: usize, events: &mut Vec<NetEvent>) -> bool {
        lock(&self.fabric).take_net(self.node, events);
        false
    }
}

impl Fabric {
    fn carry(&mut self, node: NodeId, request: NetRequest) {
        let latency = self.latency;
        match request {
            NetRequest::Connect { link, to, .. } => match self.listeners.get(&to).copied() {
                Some(there) => {
                    self.wires.last_accepted += 2;
                    let here = (node, link);
                    let there = (there, LinkId(self.wires.last_accepted + 1));
                    for (end, other) in [(here, there), (there, here)] {
                        let state = EndState {
                            other,
                            credit: i64::from(self.windows[end.0.0]),
                            held: VecDeque::new(),
                        };
                        self.wires.ends.insert(end, state);
                    }
                    let remote = self.address_of(node);
                    let link = there.1;
                    self.schedule(there.0, latency, Event::Net(NetEvent::Accepted { link, remote }));
                    let link = here.1;
                    self.schedule(node, latency * 2, Event::Net(NetEvent::Connected { link }));
                }
                None => {
                    let reason = "connection refused".into();
                    self.schedule(node, latency * 2, Event::Net(NetEvent::Closed { link, reason }));
                }
            },
            NetRequest::Send { link, frames } => {
                let Some((there, far_link)) = self.wires.ends.get(&(node, link)).map(|end| end.other) else {
                    return;
                };
                let bytes = frames.iter().map(Bytes::len).sum();
                for chunk in frames {
                    let link = far_link;
                    self.schedule(there, latency, Event::Net(NetEvent::Received { link, chunk }));
                }
                self.schedule(node, latency, Event::Net(NetEvent::Sent { link, bytes }));
            }
            NetRequest::Grant { link, bytes } => {
                if self.wires.grant(node, link, bytes) {
                    // Nothing new arrives, but what was held can be let in.
                    let chunk = Bytes::new();
                    self.schedule(node, Duration::ZERO, Event::Net(NetEvent::Received { link, chunk }));
                }
            }
            NetRequest::Close { link, tag, .. } => {
                if let Some(end) = self.wires.ends.remove(&(node, link)) {
                    let (there, link) = end.other;
                    let reason = "end of stream".into();
                    self.schedule(there, latency, Event::Net(NetEvent::Closed { link, reason }));
                }
                if let Some(tag) = tag {
                    self.schedule(node, latency, Event::Net(NetEvent::Gone { tag }));
                }
            }
            NetRequest::Datagram { to, data } => {
                let from = self.listening_address(node);
                if let Some(host) = self.udp_hosts.get_mut(&to) {
                    for reply in host(self.now, from, &data) {
                        let (from, data) = (to, reply.into());
                        self.schedule(node, latency * 2, Event::Net(NetEvent::Datagram { from, data }));
                    }
                }
            }
            // There are no names in this world: an address is its own.
            NetRequest::Resolve { tag, host, port } => {
                let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
                let result = ip.map(|ip| vec![(ip, port).into()]).map_err(|_| "no such host".into());
                self.schedule(node, latency, Event::Net(NetEvent::Resolved { tag, result }));
            }
        }
    }

    /// Where a node's connections come from: its address, and a port that is nobody's listening port.
    fn address_of(&self, node: NodeId) -> SocketAddr {
        SocketAddr::new(self.listening_address(node).ip(), 50_000)
    }

    fn listening_address(&self, node: NodeId) -> SocketAddr {
        let listening = self.listeners.iter().find(|(_, owner)| **owner == node);
        *listening.expect("every node listens").0
    }
}
