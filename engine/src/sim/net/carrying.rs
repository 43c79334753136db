//! Data in transit: the sender's uplink, the path, the receiver's downlink, the receive buffer.
//!
//! An access link carries one segment at a time and serves connections and datagrams in turn, so that no connection
//! waits for the whole queue of another one. The data in flight of a connection is bounded as in TCP: by the receive
//! buffer, and on a narrow downlink by the amount that keeps the downlink busy.

use std::time::Duration;

use ecs_torrent_protocol::time::Timestamp;

use super::super::NodeId;
use super::super::flow::Flow;
use super::super::hub::Hub;
use super::super::keys::ConnectionKey;
use super::super::queue::SimEvent;
use super::super::random::up_to;
use super::carrier::Carrier;
use super::connection::{EndState, Received, Segment, StreamEnd};
use super::host::{Lane, Parcel, Pipe, Power};
use super::network::Network;
use crate::ports::net::{NetEvent, read_cost};

/// Minimum window: two segments, so that a connection never stops just to wait for an acknowledgment.
const MIN_WINDOW: usize = 2 * (17 << 10);

/// Size up to which a segment arrives when its transmission begins and occupies the link afterward. Most messages need
/// no event of their own this way.
const SMALL: usize = 256;

/// Queue at a narrow downlink, over all connections, in addition to the data in flight to it.
const DOWNLINK_QUEUE: u128 = 64 << 10;

impl Network {
    /// Queues a flow at its uplink, if it has data that may leave.
    pub(super) fn offer(&mut self, hub: &mut Hub, flow: Flow) {
        let Some(connection) = self.connections.get(flow.connection) else {
            return;
        };
        let half = &connection.halves[flow.sender as usize];
        if half.is_listed || !half.is_ready(usize::MAX) || !half.is_ready(self.window(flow)) {
            return;
        }
        let Some(connection) = self.connections.get_mut(flow.connection) else {
            return;
        };
        connection.halves[flow.sender as usize].is_listed = true;
        let (node, carrier) = (connection.ends[flow.sender as usize].host, connection.carrier);
        self.list(hub, node, carrier, flow);
    }

    /// Lets a flow that has data send it, over its carrier.
    pub(super) fn list(&mut self, hub: &mut Hub, node: NodeId, carrier: Carrier, flow: Flow) {
        match carrier {
            Carrier::AccessLink => {
                self.hosts[node.0].up.turns.push_back(Lane::Flow(flow));
                self.pump_up(hub, node);
            }
            Carrier::Pipe => self.send_through_pipe(hub, node, flow),
        }
    }

    fn send_through_pipe(&mut self, hub: &mut Hub, node: NodeId, flow: Flow) {
        let most = self.limits.receive_buffer_bytes;
        while let Some(connection) = self.connections.get_mut(flow.connection) {
            let there = connection.ends[1 - flow.sender as usize].host;
            let half = &mut connection.halves[flow.sender as usize];
            half.is_listed = false;
            if !half.is_ready(most) {
                return;
            }
            let segment = half.cut();
            self.hosts[node.0].traffic.sent_bytes += segment.bytes as u64;
            self.put_on_the_way(hub, flow, node, there, hub.now, segment);
            self.fill_quietly(hub, flow);
        }
    }

    /// Hands a segment that has passed the path to the receiving end, over its carrier.
    pub(super) fn hand_over(&mut self, hub: &mut Hub, node: NodeId, carrier: Carrier, flow: Flow, segment: Segment) {
        match carrier {
            Carrier::AccessLink => {
                let Some(connection) = self.connections.get_mut(flow.connection) else {
                    return;
                };
                let half = &mut connection.halves[flow.sender as usize];
                half.arrived.push_back(segment);
                if !half.is_listed_there {
                    half.is_listed_there = true;
                    self.hosts[node.0].down.turns.push_back(Lane::Flow(flow));
                }
                self.pump_down(hub, node);
            }
            Carrier::Pipe => {
                self.hosts[node.0].traffic.received_bytes += segment.bytes as u64;
                self.receive_segment(hub, flow, segment);
            }
        }
    }

    /// Maximum number of a flow's bytes that are sent and not read.
    fn window(&self, flow: Flow) -> usize {
        let Some(connection) = self.connections.get(flow.connection) else {
            return 0;
        };
        let sender = connection.ends[flow.sender as usize].host;
        let receiver = connection.ends[1 - flow.sender as usize].host;
        let most = self.limits.receive_buffer_bytes;
        let down = &self.hosts[receiver.0].down;
        let Some(rate) = down.bytes_per_s else { return most };
        let round_trip = self.latency(sender, receiver).as_nanos() * 2;
        let on_the_way = u128::from(rate) * round_trip / 1_000_000_000;
        let share = (on_the_way * 2 + DOWNLINK_QUEUE) / (down.turns.len() as u128 + 1);
        (share as usize).clamp(MIN_WINDOW.min(most), most)
    }

    /// Sends while the uplink is free.
    pub(super) fn pump_up(&mut self, hub: &mut Hub, node: NodeId) {
        while self.hosts[node.0].up.free_at <= hub.now && self.hosts[node.0].power != Power::Off {
            let Some(lane) = self.hosts[node.0].up.turns.pop_front() else {
                return;
            };
            match lane {
                Lane::Flow(flow) => self.send_segment(hub, node, flow),
                Lane::Datagrams => self.send_next_datagram(hub, node),
            }
        }
        let up = &mut self.hosts[node.0].up;
        if up.free_at > hub.now && !up.turns.is_empty() && !up.is_planned {
            up.is_planned = true;
            hub.queue.plan(up.free_at, SimEvent::UplinkFree(node));
        }
    }

    pub(super) fn free_uplink(&mut self, hub: &mut Hub, node: NodeId) {
        self.hosts[node.0].up.is_planned = false;
        self.pump_up(hub, node);
    }

    fn send_segment(&mut self, hub: &mut Hub, node: NodeId, flow: Flow) {
        let window = self.window(flow);
        let Some(connection) = self.connections.get_mut(flow.connection) else {
            return;
        };
        let there = connection.ends[1 - flow.sender as usize].host;
        let half = &mut connection.halves[flow.sender as usize];
        half.is_listed = false;
        if !half.is_ready(window) {
            return;
        }
        let segment = half.cut();
        let leaves = self.occupy_uplink(hub.now, node, segment.bytes);
        self.put_on_the_way(hub, flow, node, there, leaves, segment);
        // The flow may have room for more data, and goes to the end of the turns.
        self.refill(hub, flow);
    }

    /// Occupies the uplink for this many bytes; returns the time at which they have left.
    pub(super) fn occupy_uplink(&mut self, now: Timestamp, node: NodeId, bytes: usize) -> Timestamp {
        let host = &mut self.hosts[node.0];
        host.traffic.sent_bytes += bytes as u64;
        let leaves = now + host.up.time_for(bytes);
        host.up.free_at = leaves;
        leaves
    }

    /// As [`Network::fill`], but within the pump.
    fn refill(&mut self, hub: &mut Hub, flow: Flow) {
        let window = self.window(flow);
        self.fill_quietly(hub, flow);
        let Some(connection) = self.connections.get_mut(flow.connection) else {
            return;
        };
        let host = connection.ends[flow.sender as usize].host;
        let half = &mut connection.halves[flow.sender as usize];
        if half.is_ready(window) {
            half.is_listed = true;
            self.hosts[host.0].up.turns.push_back(Lane::Flow(flow));
        }
    }

    /// Moves queued frames of the world into the socket, without offering the flow to its carrier.
    pub(super) fn fill_quietly(&mut self, hub: &mut Hub, flow: Flow) {
        let room = self.limits.send_buffer_bytes.max(1);
        let Some(connection) = self.connections.get_mut(flow.connection) else {
            return;
        };
        let end = &connection.ends[flow.sender as usize];
        let (host, stream) = (end.host, end.stream);
        let bytes = connection.halves[flow.sender as usize].fill(room);
        if bytes > 0 && end.state == EndState::Open {
            hub.deliver_net(host, NetEvent::Sent { stream, bytes });
        }
    }

    pub(super) fn put_on_the_way(
        &mut self,
        hub: &mut Hub,
        flow: Flow,
        from: NodeId,
        to: NodeId,
        leaves: Timestamp,
        segment: Segment,
    ) {
        let latency = self.draw_latency(from, to);
        let Some(connection) = self.connections.get_mut(flow.connection) else {
            return;
        };
        let half = &mut connection.halves[flow.sender as usize];
        let at = Self::arrival(&mut half.last_arrival, leaves, latency);
        half.in_flight.push_back((at, segment));
        hub.queue.plan(at, SimEvent::Arrival(flow));
    }

    /// Delivers the first segment in flight, if the path is open.
    pub(super) fn arrive(&mut self, hub: &mut Hub, flow: Flow) {
        let Some(connection) = self.connections.get(flow.connection) else {
            return;
        };
        let from = connection.ends[flow.sender as usize].host;
        let to = connection.ends[1 - flow.sender as usize].host;
        let is_open = !connection.is_severed && self.may_pass(from, to);
        let Some(connection) = self.connections.get_mut(flow.connection) else {
            return;
        };
        let half = &mut connection.halves[flow.sender as usize];
        if half.in_flight.front().is_none_or(|(at, _)| *at > hub.now) {
            return;
        }
        if !is_open {
            if half.stalled_since.is_none() {
                half.stalled_since = Some(hub.now);
                hub.plan(self.limits.give_up, SimEvent::GiveUp(flow));
            }
            return;
        }
        let Some((_, segment)) = half.in_flight.pop_front() else {
            return;
        };
        let carrier = connection.carrier;
        self.hand_over(hub, to, carrier, flow, segment);
    }

    /// Schedules retransmission of all stalled flows that can reach their receiver now.
    pub(super) fn resume_stalled(&mut self, hub: &mut Hub) {
        let stalled: Vec<Flow> = self
            .connections
            .iter()
            .filter(|(_, connection)| !connection.is_severed)
            .flat_map(|(connection, state)| {
                let flows = [0, 1].map(|sender| Flow { connection, sender });
                flows
                    .into_iter()
                    .filter(|flow| state.halves[flow.sender as usize].stalled_since.is_some())
            })
            .collect();
        for flow in stalled {
            self.resume(hub, flow);
        }
    }

    fn resume(&mut self, hub: &mut Hub, flow: Flow) {
        let Some(connection) = self.connections.get(flow.connection) else {
            return;
        };
        let from = connection.ends[flow.sender as usize].host;
        let to = connection.ends[1 - flow.sender as usize].host;
        let since = connection.halves[flow.sender as usize].stalled_since;
        let Some(since) = since.filter(|_| self.may_pass(from, to)) else {
            return;
        };
        let most = self.limits.max_resend_wait.min(hub.now.since(since));
        let wait = Duration::from_nanos(up_to(&mut self.hosts[from.0].jitter, most.as_nanos() as u64));
        let latency = self.latency(from, to);
        let Some(connection) = self.connections.get_mut(flow.connection) else {
            return;
        };
        let half = &mut connection.halves[flow.sender as usize];
        half.stalled_since = None;
        half.last_arrival = half.last_arrival.max(hub.now + wait + latency);
        let at = hub.now + wait + latency;
        for (arrival, _) in half.in_flight.iter_mut().filter(|(arrival, _)| *arrival <= at) {
            *arrival = at;
            hub.queue.plan(at, SimEvent::Arrival(flow));
        }
    }

    /// Receives while the downlink is free.
    pub(super) fn pump_down(&mut self, hub: &mut Hub, node: NodeId) {
        while self.hosts[node.0].down.carried.is_none() {
            let down = &mut self.hosts[node.0].down;
            if down.free_at > hub.now {
                return plan_downlink(hub, node, down);
            }
            let Some(lane) = self.hosts[node.0].down.turns.pop_front() else {
                return;
            };
            let Some(parcel) = self.next_parcel(node, lane) else {
                continue;
            };
            let bytes = match &parcel {
                Parcel::Segment(_, segment) => segment.bytes,
                Parcel::Datagram(datagram) => datagram.data.len(),
            };
            let host = &mut self.hosts[node.0];
            host.traffic.received_bytes += bytes as u64;
            host.down.free_at = hub.now + host.down.time_for(bytes);
            if bytes <= SMALL || host.down.free_at == hub.now {
                self.receive(hub, node, parcel);
            } else {
                host.down.carried = Some(parcel);
                return plan_downlink(hub, node, &mut self.hosts[node.0].down);
            }
        }
    }

    pub(super) fn free_downlink(&mut self, hub: &mut Hub, node: NodeId) {
        self.hosts[node.0].down.is_planned = false;
        if let Some(parcel) = self.hosts[node.0].down.carried.take() {
            self.receive(hub, node, parcel);
        }
        self.pump_down(hub, node);
    }

    fn next_parcel(&mut self, node: NodeId, lane: Lane) -> Option<Parcel> {
        match lane {
            Lane::Flow(flow) => {
                let half = &mut self.connections.get_mut(flow.connection)?.halves[flow.sender as usize];
                let segment = half.arrived.pop_front();
                half.is_listed_there = !half.arrived.is_empty();
                if half.is_listed_there {
                    self.hosts[node.0].down.turns.push_back(lane);
                }
                segment.map(|segment| Parcel::Segment(flow, segment))
            }
            Lane::Datagrams => self.next_received_datagram(node).map(Parcel::Datagram),
        }
    }

    fn receive(&mut self, hub: &mut Hub, node: NodeId, parcel: Parcel) {
        match parcel {
            Parcel::Segment(flow, segment) => self.receive_segment(hub, flow, segment),
            Parcel::Datagram(datagram) => self.receive_datagram(hub, node, datagram),
        }
    }

    pub(super) fn receive_segment(&mut self, hub: &mut Hub, flow: Flow, segment: Segment) {
        let Some(connection) = self.connections.get_mut(flow.connection) else {
            return;
        };
        let half = &mut connection.halves[flow.sender as usize];
        match connection.ends[1 - flow.sender as usize].state {
            EndState::Ended => self.answer_with_reset(hub, flow, segment.end),
            EndState::Closing(_) => {
                half.outstanding -= segment.bytes;
                match segment.end {
                    Some(_) => self.finish_closing(hub, flow.reversed()),
                    None => self.offer(hub, flow),
                }
            }
            EndState::Opening | EndState::Open => {
                half.unread.extend(segment.frames.into_iter().map(Received::Chunk));
                match segment.end {
                    Some(StreamEnd::Reset) => return self.end_by_reset(hub, flow.reversed()),
                    Some(StreamEnd::Finished) => half.unread.push_back(Received::End),
                    None => {}
                }
                self.read(hub, flow);
            }
        }
    }

    /// Delivers received data to the world, as far as the world's credit allows.
    pub(super) fn read(&mut self, hub: &mut Hub, flow: Flow) {
        let Some(connection) = self.connections.get_mut(flow.connection) else {
            return;
        };
        let half = &mut connection.halves[flow.sender as usize];
        let end = &mut connection.ends[1 - flow.sender as usize];
        let (node, stream) = (end.host, end.stream);
        if end.state != EndState::Open || half.unread.is_empty() || !self.hosts[node.0].is_reading {
            return;
        }
        let before = half.outstanding;
        let has_credit = self.hosts[node.0].has_credit;
        while end.credit > 0
            && let Some(received) = half.unread.pop_front()
        {
            match received {
                Received::Chunk(chunk) => {
                    half.outstanding -= chunk.len();
                    if has_credit {
                        end.credit -= i64::from(read_cost(chunk.len()));
                    }
                    let position = end.received;
                    end.received += chunk.len() as u64;
                    let chunk = match &mut end.incoming {
                        Some(filter) => filter.apply_to(position, chunk),
                        None => chunk,
                    };
                    hub.deliver_net(node, NetEvent::Received { stream, chunk });
                }
                Received::End => return self.end_by_peer(hub, flow.reversed()),
            }
        }
        if half.outstanding < before {
            self.offer(hub, flow);
        }
    }

    pub(super) fn read_all(&mut self, hub: &mut Hub, node: NodeId) {
        let mut streams: Vec<(ConnectionKey, u8)> = self.hosts[node.0].streams.values().copied().collect();
        streams.sort_unstable();
        for (connection, reader) in streams {
            let sender = 1 - reader;
            self.read(hub, Flow { connection, sender });
        }
    }
}

/// Schedules the next turn of a downlink for when it is free, if there is anything to carry.
fn plan_downlink(hub: &mut Hub, node: NodeId, down: &mut Pipe) {
    let has_work = down.carried.is_some() || !down.turns.is_empty();
    if has_work && !down.is_planned {
        down.is_planned = true;
        hub.queue.plan(down.free_at, SimEvent::DownlinkFree(node));
    }
}
