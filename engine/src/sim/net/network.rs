//! All hosts and connections, and the connection handshake.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use ecs_torrent_components::ids::StreamId;
use ecs_torrent_protocol::time::Timestamp;
use slotmap::SlotMap;

use super::super::NodeId;
use super::super::flow::Flow;
use super::super::hub::Hub;
use super::super::keys::{ConnectionKey, DatagramKey};
use super::super::queue::SimEvent;
use super::super::random::up_to;
use super::connection::{Connection, End, EndState, Half, MAX_FRAME};
use super::host::{Datagram, Host, Power, UdpHost};
use super::path::{Path, Paths};
use crate::port::JobTag;
use crate::ports::net::{Filter, NetEvent, NetRequest, StreamError, TransportChoice};

/// Socket limits of the hosts' systems; the same on all hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketLimits {
    /// Send buffer of a connection in bytes. Buffered data counts as sent. Default 256 KiB.
    pub send_buffer_bytes: usize,
    /// Maximum bytes of a connection in flight or waiting to be read. Default 4 MiB.
    pub receive_buffer_bytes: usize,
    /// Accepted connections that the listener has not seen; further ones get no answer. Default 512.
    pub backlog: usize,
    /// Time without an acknowledgment after which a connection counts as broken. Default 15 min, as in Linux.
    pub give_up: Duration,
    /// Maximum wait before lost data is sent again, once it can arrive: evenly distributed from 0 to this, or to the
    /// time for which nothing arrived, if that is less. Default 5 s.
    pub max_resend_wait: Duration,
}

impl Default for SocketLimits {
    fn default() -> Self {
        Self {
            send_buffer_bytes: 256 << 10,
            receive_buffer_bytes: 4 << 20,
            backlog: 512,
            give_up: Duration::from_secs(15 * 60),
            max_resend_wait: Duration::from_secs(5),
        }
    }
}

/// The network: hosts, connections and paths.
pub(in super::super) struct Network {
    pub(super) hosts: Vec<Host>,
    pub(super) connections: SlotMap<ConnectionKey, Connection>,
    pub(super) listeners: BTreeMap<SocketAddr, NodeId>,
    pub(super) paths: Paths,
    pub(super) limits: SocketLimits,
    pub(super) datagrams: SlotMap<DatagramKey, Datagram>,
    pub(super) udp_hosts: BTreeMap<SocketAddr, UdpHost>,
    /// Number of local networks.
    pub(super) local_network_count: usize,
}

/// Wait before a connection request is sent again for the first time; it doubles each time.
const FIRST_SYN_WAIT: Duration = Duration::from_secs(1);

pub(super) const REFUSED: &str = "Connection refused";
const NO_ROUTE: &str = "Network is unreachable";

impl Network {
    pub(in super::super) fn new(path: Path) -> Self {
        Self {
            hosts: Vec::new(),
            connections: SlotMap::with_key(),
            listeners: BTreeMap::new(),
            paths: Paths::new(path),
            limits: SocketLimits::default(),
            datagrams: SlotMap::with_key(),
            udp_hosts: BTreeMap::new(),
            local_network_count: 0,
        }
    }

    /// Adds the host of the next node.
    pub(in super::super) fn add_host(&mut self, hub: &mut Hub, addresses: Vec<SocketAddr>, has_credit: bool) -> NodeId {
        let id = hub.add_node();
        for address in &addresses {
            self.listeners.insert(*address, id);
        }
        self.hosts.push(Host::new(hub.seed, id, addresses, has_credit));
        id
    }

    pub(super) fn carry_out(&mut self, hub: &mut Hub, node: NodeId, request: NetRequest) {
        match request {
            NetRequest::Connect {
                stream,
                to,
                transport,
                timeout,
            } => self.connect(hub, node, stream, to, transport, timeout),
            NetRequest::Filter {
                stream,
                incoming,
                outgoing,
            } => self.filter(hub, node, stream, incoming, outgoing),
            NetRequest::Send { stream, frames } => self.send(hub, node, stream, frames),
            NetRequest::Grant { stream, bytes } => self.grant(hub, node, stream, bytes),
            NetRequest::Close {
                stream,
                is_orderly,
                tag,
            } => self.close(hub, node, stream, is_orderly, tag),
            NetRequest::Datagram { to, data, .. } => self.send_datagram(hub, node, to, data),
            NetRequest::Join { group } => {
                self.hosts[node.0].groups.insert(group);
            }
            NetRequest::Multicast { group, data, .. } => self.send_multicast(hub, node, group, &data),
            // Name resolution is not part of the network.
            NetRequest::Resolve { .. } => {}
        }
    }

    fn connect(
        &mut self,
        hub: &mut Hub,
        node: NodeId,
        stream: StreamId,
        to: SocketAddr,
        choice: TransportChoice,
        timeout: Duration,
    ) {
        let host = &mut self.hosts[node.0];
        let allowed = host.carriers.iter().rev();
        let mut alternatives: Vec<_> = allowed
            .filter(|(transport, _)| choice.allows(*transport))
            .copied()
            .collect();
        let Some((transport, carrier)) = alternatives.pop() else {
            let reason = StreamError::NoCarrier(choice);
            return hub.deliver_net(node, NetEvent::Closed { stream, reason });
        };
        let Some(address) = host.source_for(to.ip()) else {
            let reason = StreamError::Carrier(NO_ROUTE.into());
            return hub.deliver_net(node, NetEvent::Closed { stream, reason });
        };
        let end = End::new(node, stream, address, EndState::Opening, host.first_credit());
        // The accepting host is known when the request arrives.
        let nobody = End::new(node, StreamId(0), to, EndState::Ended, 0);
        let key = self.connections.insert(Connection {
            ends: [end, nobody],
            halves: [Half::default(), Half::default()],
            to,
            transport,
            carrier,
            alternatives,
            deadline: hub.now + timeout,
            tries: 0,
            is_severed: false,
        });
        self.hosts[node.0].streams.insert(stream, (key, 0));
        self.send_syn(hub, key);
        hub.plan(timeout, SimEvent::ConnectTimeout(key));
    }

    /// Handles the arrival of a connection request, if it arrives.
    pub(super) fn receive_syn(&mut self, hub: &mut Hub, key: ConnectionKey) {
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        if connection.ends[0].state != EndState::Opening {
            return;
        }
        let (from, to) = (connection.ends[0].host, connection.to);
        let transport = connection.transport;
        let host = self.host_at(to).filter(|there| self.may_pass(from, *there));
        let Some(there) = host else {
            return self.repeat_syn(hub, key);
        };
        let latency = self.latency(from, there);
        let listener = &self.hosts[there.0];
        let has_carrier = listener.carriers.iter().any(|(other, _)| *other == transport);
        if listener.power == Power::Idle || listener.is_refusing || !has_carrier || !self.listeners.contains_key(&to) {
            if let Some(connection) = self.connections.get_mut(key) {
                // The refusal is reported when the answer is back.
                connection.is_severed = true;
            }
            return hub.plan(latency, SimEvent::Connected(key));
        }
        if listener.unseen >= self.limits.backlog {
            return self.repeat_syn(hub, key);
        }
        self.establish(hub, key, there, latency);
    }

    /// Sends a connection request.
    fn send_syn(&mut self, hub: &mut Hub, key: ConnectionKey) {
        if let Some(connection) = self.connections.get(key) {
            let (from, to) = (connection.ends[0].host, connection.to);
            let there = self.listeners.get(&to).copied();
            hub.plan(self.latency(from, there.unwrap_or(from)), SimEvent::Syn(key));
        }
    }

    fn repeat_syn(&mut self, hub: &mut Hub, key: ConnectionKey) {
        if let Some(connection) = self.connections.get_mut(key) {
            let wait = FIRST_SYN_WAIT * (1 << connection.tries.min(10));
            connection.tries += 1;
            if hub.now + wait < connection.deadline {
                hub.plan(wait, SimEvent::Syn(key));
            }
        }
    }

    fn establish(&mut self, hub: &mut Hub, key: ConnectionKey, there: NodeId, latency: Duration) {
        let host = &mut self.hosts[there.0];
        let stream = host.next_accepted();
        host.unseen += 1;
        host.streams.insert(stream, (key, 1));
        let credit = host.first_credit();
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        connection.ends[1] = End::new(there, stream, connection.to, EndState::Opening, credit);
        // No data overtakes the handshake.
        connection.halves[0].last_arrival = hub.now + latency * 2;
        connection.halves[1].last_arrival = hub.now + latency;
        hub.plan(latency, SimEvent::Connected(key));
        hub.plan(latency * 2, SimEvent::Accepted(key));
    }

    /// Handles the answer to a connection request.
    pub(super) fn receive_answer(&mut self, hub: &mut Hub, key: ConnectionKey) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let end = &mut connection.ends[0];
        if end.state != EndState::Opening {
            return;
        }
        if connection.is_severed {
            let Some((transport, carrier)) = connection.alternatives.pop() else {
                return self.fail_opening(hub, key, StreamError::Carrier(REFUSED.into()));
            };
            (connection.transport, connection.carrier) = (transport, carrier);
            connection.is_severed = false;
            return self.send_syn(hub, key);
        }
        end.state = EndState::Open;
        let (host, stream) = (end.host, end.stream);
        let transport = connection.transport;
        hub.deliver_net(host, NetEvent::Connected { stream, transport });
        let sender = 0;
        self.fill(
            hub,
            Flow {
                connection: key,
                sender,
            },
        );
    }

    pub(super) fn receive_acknowledgment(&mut self, hub: &mut Hub, key: ConnectionKey) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let (remote, transport) = (connection.ends[0].address, connection.transport);
        let end = &mut connection.ends[1];
        let (host, stream) = (end.host, end.stream);
        if end.state == EndState::Opening {
            end.state = EndState::Open;
            hub.deliver_net(
                host,
                NetEvent::Accepted {
                    stream,
                    remote,
                    transport,
                },
            );
            let sender = 1;
            self.fill(
                hub,
                Flow {
                    connection: key,
                    sender,
                },
            );
        }
    }

    pub(super) fn time_connect(&mut self, hub: &mut Hub, key: ConnectionKey) {
        let is_opening = |connection: &Connection| connection.ends[0].state == EndState::Opening;
        if self.connections.get(key).is_some_and(is_opening) {
            self.fail_opening(hub, key, StreamError::NoAnswer);
        }
    }

    fn fail_opening(&mut self, hub: &mut Hub, key: ConnectionKey, reason: StreamError) {
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        let (host, stream) = (connection.ends[0].host, connection.ends[0].stream);
        hub.deliver_net(host, NetEvent::Closed { stream, reason });
        let sender = 0;
        self.abort(
            hub,
            Flow {
                connection: key,
                sender,
            },
        );
    }

    fn send(&mut self, hub: &mut Hub, node: NodeId, stream: StreamId, frames: Vec<Bytes>) {
        let Some(flow) = self.flow(node, stream) else { return };
        let Some(connection) = self.connections.get_mut(flow.connection) else {
            return;
        };
        if matches!(connection.ends[flow.sender as usize].state, EndState::Closing(_)) {
            return;
        }
        let end = &mut connection.ends[flow.sender as usize];
        let queue = &mut connection.halves[flow.sender as usize].queue;
        for mut frame in frames {
            let position = end.sent;
            end.sent += frame.len() as u64;
            if let Some(filter) = &mut end.outgoing {
                frame = filter.apply_to(position, frame);
            }
            while frame.len() > MAX_FRAME {
                queue.push_back(frame.split_to(MAX_FRAME));
            }
            if !frame.is_empty() {
                queue.push_back(frame);
            }
        }
        self.fill(hub, flow);
    }

    /// Moves queued frames of the world into the socket, and starts sending.
    pub(super) fn fill(&mut self, hub: &mut Hub, flow: Flow) {
        let room = self.limits.send_buffer_bytes.max(1);
        let Some(connection) = self.connections.get_mut(flow.connection) else {
            return;
        };
        let end = &connection.ends[flow.sender as usize];
        if !matches!(end.state, EndState::Open | EndState::Closing(_)) {
            return;
        }
        let bytes = connection.halves[flow.sender as usize].fill(room);
        if bytes > 0 && end.state == EndState::Open {
            let stream = end.stream;
            hub.deliver_net(end.host, NetEvent::Sent { stream, bytes });
        }
        self.offer(hub, flow);
    }

    /// Sets a filter for each direction of an end, unless that direction has one.
    fn filter(
        &mut self,
        hub: &mut Hub,
        node: NodeId,
        stream: StreamId,
        incoming: Option<Filter>,
        outgoing: Option<Filter>,
    ) {
        let Some(flow) = self.flow(node, stream) else { return };
        let Some(connection) = self.connections.get_mut(flow.connection) else {
            return;
        };
        let end = &mut connection.ends[flow.sender as usize];
        if let Some(filter) = outgoing {
            end.outgoing.get_or_insert(filter);
        }
        if let Some(mut filter) = incoming.filter(|_| end.incoming.is_none()) {
            hub.filter_waiting(node, stream, end.received, &mut filter);
            end.incoming = Some(filter);
        }
    }

    fn grant(&mut self, hub: &mut Hub, node: NodeId, stream: StreamId, bytes: u32) {
        let Some(flow) = self.flow(node, stream) else { return };
        if let Some(connection) = self.connections.get_mut(flow.connection) {
            connection.ends[flow.sender as usize].credit += i64::from(bytes);
            self.read(hub, flow.reversed());
        }
    }

    /// The outgoing flow of a node's connection.
    pub(super) fn flow(&self, node: NodeId, stream: StreamId) -> Option<Flow> {
        let &(connection, sender) = self.hosts[node.0].streams.get(&stream)?;
        Some(Flow { connection, sender })
    }

    pub(super) fn latency(&self, from: NodeId, to: NodeId) -> Duration {
        self.paths.between(from, to).latency
    }

    /// Latency of the next transmission, including jitter.
    pub(super) fn draw_latency(&mut self, from: NodeId, to: NodeId) -> Duration {
        let path = self.paths.between(from, to);
        let most = path.jitter.as_nanos() as u64;
        path.latency + Duration::from_nanos(up_to(&mut self.hosts[from.0].jitter, most))
    }

    /// The host at an address, even if nothing listens on its port.
    pub(super) fn host_at(&self, address: SocketAddr) -> Option<NodeId> {
        if let Some(node) = self.listeners.get(&address) {
            return Some(*node);
        }
        let has_it = |host: &Host| host.addresses.iter().any(|own| own.ip() == address.ip());
        self.hosts.iter().position(has_it).map(NodeId)
    }

    /// Whether one host's traffic reaches the other host's system.
    pub(super) fn may_pass(&self, from: NodeId, to: NodeId) -> bool {
        self.hosts[to.0].power != Power::Off && !self.paths.is_cut(from, to)
    }

    /// Removes an end, and the connection with its last end.
    pub(super) fn end(&mut self, flow: Flow) {
        let Some(connection) = self.connections.get_mut(flow.connection) else {
            return;
        };
        let end = &mut connection.ends[flow.sender as usize];
        if flow.sender == 1 && end.state == EndState::Opening {
            let unseen = &mut self.hosts[end.host.0].unseen;
            *unseen = unseen.saturating_sub(1);
        }
        end.state = EndState::Ended;
        let (host, stream) = (end.host, end.stream);
        connection.halves[flow.sender as usize].drop_unsent();
        let both_ended = connection.ends.iter().all(|end| end.state == EndState::Ended);
        if self.hosts[host.0]
            .streams
            .get(&stream)
            .is_some_and(|(key, _)| *key == flow.connection)
        {
            self.hosts[host.0].streams.remove(&stream);
        }
        if both_ended {
            self.connections.remove(flow.connection);
        }
    }

    /// Notifies a world of the end of an orderly close, if it asked for that.
    pub(super) fn send_gone(hub: &mut Hub, node: NodeId, tag: Option<JobTag>) {
        if let Some(tag) = tag {
            hub.deliver_net(node, NetEvent::Gone { tag });
        }
    }

    /// In-order arrival time of a segment that leaves at `leaves`.
    pub(super) fn arrival(last: &mut Timestamp, leaves: Timestamp, latency: Duration) -> Timestamp {
        *last = (*last).max(leaves + latency);
        *last
    }
}
