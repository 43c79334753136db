//! The Net port over the simulated network.

use std::sync::{Arc, Mutex};

use super::super::NodeId;
use super::super::fabric::{Fabric, lock};
use super::super::hub::{Mail, open, take};
use crate::port::{Backend, Purpose};
use crate::ports::net::{NetEvent, NetRequest};

/// The Net port of a simulated engine, or of a host that the caller plays.
pub struct SimNet {
    node: NodeId,
    fabric: Arc<Mutex<Fabric>>,
    mail: Mail,
}

impl SimNet {
    pub(in super::super) fn new(node: NodeId, fabric: Arc<Mutex<Fabric>>) -> Self {
        let mail = lock(&fabric).hub.mail(node);
        Self { node, fabric, mail }
    }

    /// The host's id in the simulation.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.node
    }
}

impl Backend<NetRequest, NetEvent> for SimNet {
    fn submit(&mut self, requests: &mut Vec<NetRequest>) {
        let mut fabric = lock(&self.fabric);
        let fabric = &mut *fabric;
        for request in requests.drain(..) {
            match request {
                NetRequest::Resolve { tag, host, port } => fabric.resolve(self.node, tag, &host, port),
                request => fabric.net.carry_out(&mut fabric.hub, self.node, request),
            }
        }
    }

    fn poll(&mut self, max: usize, events: &mut Vec<NetEvent>) -> bool {
        let first = events.len();
        let has_more = {
            let inbox = &mut *open(&self.mail);
            let has_more = take(&mut inbox.net, max, events);
            inbox.datagrams.take(events) | has_more
        };
        let is_accepted = |event: &&NetEvent| matches!(event, NetEvent::Accepted { .. });
        let seen = events[first..].iter().filter(is_accepted).count();
        if seen > 0 {
            lock(&self.fabric).net.record_seen(self.node, seen);
        }
        has_more
    }

    fn open_inbox(&mut self, purpose: Purpose) {
        open(&self.mail).datagrams.open(purpose);
    }
}
