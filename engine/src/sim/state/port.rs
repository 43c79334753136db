//! The State port over a simulated state folder.

use std::sync::{Arc, Mutex};

use super::super::NodeId;
use super::super::fabric::{Fabric, Work, lock};
use super::super::hub::{Mail, open, take};
use crate::port::Backend;
use crate::ports::state::{StateEvent, StateRequest};

/// The State port of a simulated engine.
pub(in super::super) struct SimState {
    node: NodeId,
    fabric: Arc<Mutex<Fabric>>,
    mail: Mail,
}

impl SimState {
    pub(in super::super) fn new(node: NodeId, fabric: Arc<Mutex<Fabric>>) -> Self {
        let mail = lock(&fabric).hub.mail(node);
        Self { node, fabric, mail }
    }
}

impl Backend<StateRequest, StateEvent> for SimState {
    fn submit(&mut self, requests: &mut Vec<StateRequest>) {
        let mut fabric = lock(&self.fabric);
        for request in requests.drain(..) {
            let latency = fabric.machines[self.node.0].state.latency;
            fabric.begin(self.node, latency, Work::State(request));
        }
    }

    fn poll(&mut self, max: usize, events: &mut Vec<StateEvent>) -> bool {
        take(&mut open(&self.mail).state, max, events)
    }
}
