//! The end of connections.

use ecs_torrent_components::ids::StreamId;

use super::super::NodeId;
use super::super::flow::Flow;
use super::super::hub::Hub;
use super::super::keys::ConnectionKey;
use super::super::queue::SimEvent;
use super::super::random::happens;
use super::connection::{EndState, Received, Segment, StreamEnd};
use super::network::Network;
use crate::port::JobTag;
use crate::ports::net::{NetEvent, StreamError};

pub(super) const RESET: &str = "Connection reset by peer";
pub(super) const TIMED_OUT: &str = "Connection timed out";

impl Network {
    pub(super) fn close(
        &mut self,
        hub: &mut Hub,
        node: NodeId,
        stream: StreamId,
        is_orderly: bool,
        tag: Option<JobTag>,
    ) {
        let Some(flow) = self.flow(node, stream) else {
            // The connection has already ended.
            return Self::send_gone(hub, node, tag);
        };
        let Some(connection) = self.connections.get_mut(flow.connection) else {
            return;
        };
        let end = &mut connection.ends[flow.sender as usize];
        if !is_orderly || end.state != EndState::Open {
            Self::send_gone(hub, node, tag);
            return self.abort(hub, flow);
        }
        end.state = EndState::Closing(tag);
        connection.halves[flow.sender as usize].is_finishing = true;
        let timeout = self.hosts[node.0].close_timeout;
        hub.plan(timeout, SimEvent::CloseTimeout(flow));
        self.fill(hub, flow);
        // Unread data of the peer is discarded; the end of its stream may be among it.
        self.discard_unread(hub, flow);
    }

    fn discard_unread(&mut self, hub: &mut Hub, flow: Flow) {
        let Some(connection) = self.connections.get_mut(flow.connection) else {
            return;
        };
        let half = &mut connection.halves[flow.reversed().sender as usize];
        let has_end = matches!(half.unread.back(), Some(Received::End));
        let unread = half.unread.drain(..).map(|received| match received {
            Received::Chunk(chunk) => chunk.len(),
            Received::End => 0,
        });
        half.outstanding -= unread.sum::<usize>();
        match has_end {
            true => self.finish_closing(hub, flow),
            false => self.offer(hub, flow.reversed()),
        }
    }

    /// Completes an orderly close after both sides have closed.
    pub(super) fn finish_closing(&mut self, hub: &mut Hub, flow: Flow) {
        let Some(connection) = self.connections.get(flow.connection) else {
            return;
        };
        let end = &connection.ends[flow.sender as usize];
        if let EndState::Closing(tag) = end.state {
            Self::send_gone(hub, end.host, tag);
        }
        self.end(flow);
    }

    pub(super) fn time_close(&mut self, hub: &mut Hub, flow: Flow) {
        let Some(connection) = self.connections.get(flow.connection) else {
            return;
        };
        let end = &connection.ends[flow.sender as usize];
        let EndState::Closing(tag) = end.state else { return };
        Self::send_gone(hub, end.host, tag);
        // Data that has left arrives, followed by the end of the stream.
        match connection.halves[flow.sender as usize].queue.is_empty() {
            true => self.end(flow),
            false => self.abort(hub, flow),
        }
    }

    /// Ends one side at once. Unsent data is dropped, data in flight may be lost, and the other side gets a reset.
    pub(super) fn abort(&mut self, hub: &mut Hub, flow: Flow) {
        self.send_reset(hub, flow);
        self.end(flow);
    }

    fn send_reset(&mut self, hub: &mut Hub, flow: Flow) {
        let Some(connection) = self.connections.get_mut(flow.connection) else {
            return;
        };
        let from = connection.ends[flow.sender as usize].host;
        let there = &connection.ends[1 - flow.sender as usize];
        let to = there.host;
        if there.state == EndState::Ended {
            return;
        }
        let half = &mut connection.halves[flow.sender as usize];
        half.drop_unsent();
        if happens(&mut self.hosts[from.0].reset_luck, 0.5) {
            half.in_flight.clear();
        }
        let segment = Segment::control(StreamEnd::Reset);
        self.put_on_the_way(hub, flow, from, to, hub.now, segment);
    }

    /// Answers data that arrives at an ended connection.
    pub(super) fn answer_with_reset(&mut self, hub: &mut Hub, flow: Flow, end: Option<StreamEnd>) {
        if end != Some(StreamEnd::Reset) {
            self.send_reset(hub, flow.reversed());
        }
    }

    /// Ends a connection after the peer's stream ended and was read completely.
    pub(super) fn end_by_peer(&mut self, hub: &mut Hub, flow: Flow) {
        self.deliver_closed(hub, flow, StreamError::EndOfStream);
        let Some(connection) = self.connections.get_mut(flow.connection) else {
            return;
        };
        let (from, to) = (
            connection.ends[flow.sender as usize].host,
            connection.ends[1 - flow.sender as usize].host,
        );
        connection.halves[flow.sender as usize].drop_unsent();
        if connection.ends[1 - flow.sender as usize].state != EndState::Ended {
            let segment = Segment::control(StreamEnd::Finished);
            self.put_on_the_way(hub, flow, from, to, hub.now, segment);
        }
        self.end(flow);
    }

    pub(super) fn end_by_reset(&mut self, hub: &mut Hub, flow: Flow) {
        self.deliver_closed(hub, flow, StreamError::Carrier(RESET.into()));
        self.end(flow);
    }

    /// Ends a connection whose sender got no acknowledgment for too long.
    pub(super) fn give_up(&mut self, hub: &mut Hub, flow: Flow) {
        let Some(connection) = self.connections.get(flow.connection) else {
            return;
        };
        let since = connection.halves[flow.sender as usize].stalled_since;
        if since.is_some_and(|since| since + self.limits.give_up <= hub.now) {
            self.deliver_closed(hub, flow, StreamError::Carrier(TIMED_OUT.into()));
            self.vanish(flow);
        }
    }

    /// Ends one side silently: stalled data is not sent again.
    pub(super) fn vanish(&mut self, flow: Flow) {
        let Some(connection) = self.connections.get_mut(flow.connection) else {
            return;
        };
        let half = &mut connection.halves[flow.sender as usize];
        if half.stalled_since.take().is_some() {
            half.in_flight.clear();
        }
        self.end(flow);
    }

    /// Notifies a world that a connection ended, or that its requested close is complete.
    fn deliver_closed(&mut self, hub: &mut Hub, flow: Flow, reason: StreamError) {
        let Some(connection) = self.connections.get(flow.connection) else {
            return;
        };
        let end = &connection.ends[flow.sender as usize];
        match end.state {
            EndState::Ended => {}
            // The world has not seen this connection.
            EndState::Opening if flow.sender == 1 => {}
            EndState::Closing(tag) => Self::send_gone(hub, end.host, tag),
            EndState::Opening | EndState::Open => {
                let stream = end.stream;
                hub.deliver_net(end.host, NetEvent::Closed { stream, reason });
            }
        }
    }

    /// Resets a connection from outside; both ends are notified.
    pub(super) fn reset(&mut self, hub: &mut Hub, connection: ConnectionKey) {
        for sender in [0, 1] {
            let flow = Flow { connection, sender };
            self.end_by_reset(hub, flow);
        }
    }

    /// The connections between two hosts.
    pub(super) fn between(&self, a: NodeId, b: NodeId) -> Vec<ConnectionKey> {
        let is_theirs = |hosts: [NodeId; 2]| hosts == [a, b] || hosts == [b, a];
        let found = self
            .connections
            .iter()
            .filter(|(_, connection)| is_theirs([connection.ends[0].host, connection.ends[1].host]));
        found.map(|(key, _)| key).collect()
    }

    /// The flows that a host sends, one per connection.
    pub(super) fn flows_of(&self, node: NodeId) -> Vec<Flow> {
        let ends = self.connections.iter().flat_map(|(key, connection)| {
            let sides = [0, 1].map(|sender| (sender, connection.ends[sender as usize].host));
            sides.map(|(sender, host)| {
                (
                    host,
                    Flow {
                        connection: key,
                        sender,
                    },
                )
            })
        });
        ends.filter(|(host, _)| *host == node).map(|(_, flow)| flow).collect()
    }
}
