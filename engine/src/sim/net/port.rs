//! The Net port over the simulated network.

use std::sync::{Arc, Mutex};

use super::super::NodeId;
use super::super::fabric::Fabric;
use super::super::hub::take;
use super::super::place::Place;
use crate::port::{Backend, Purpose};
use crate::ports::net::{NetEvent, NetRequest};

/// The Net port of a simulated engine, or of a host that the caller plays.
pub struct SimNet(Place);

impl SimNet {
    pub(in super::super) fn new(node: NodeId, fabric: Arc<Mutex<Fabric>>) -> Self {
        Self(Place::new(node, fabric))
    }

    /// The host's id in the simulation.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.0.node
    }
}

impl Backend<NetRequest, NetEvent> for SimNet {
    fn submit(&mut self, requests: &mut Vec<NetRequest>) {
        let mut fabric = self.0.fabric();
        let fabric = &mut *fabric;
        for request in requests.drain(..) {
            match request {
                NetRequest::Resolve { tag, host, port } => fabric.resolve(self.0.node, tag, &host, port),
                request => fabric.net.carry_out(&mut fabric.hub, self.0.node, request),
            }
        }
    }

    fn poll(&mut self, max: usize, events: &mut Vec<NetEvent>) -> bool {
        let first = events.len();
        let has_more = {
            let inbox = &mut *self.0.inbox();
            let has_more = take(&mut inbox.net, max, events);
            inbox.datagrams.take(events) | has_more
        };
        let is_accepted = |event: &&NetEvent| matches!(event, NetEvent::Accepted { .. });
        let seen = events[first..].iter().filter(is_accepted).count();
        if seen > 0 {
            self.0.fabric().net.record_seen(self.0.node, seen);
        }
        has_more
    }

    fn open_inbox(&mut self, purpose: Purpose) {
        self.0.inbox().datagrams.open(purpose);
    }
}
