//! The State port over a simulated state folder.

use std::sync::{Arc, Mutex};

use super::super::NodeId;
use super::super::fabric::{Fabric, Work};
use super::super::hub::take;
use super::super::place::Place;
use crate::port::Backend;
use crate::ports::state::{StateEvent, StateRequest};

/// The State port of a simulated engine.
pub(in super::super) struct SimState(Place);

impl SimState {
    pub(in super::super) fn new(node: NodeId, fabric: Arc<Mutex<Fabric>>) -> Self {
        Self(Place::new(node, fabric))
    }
}

impl Backend<StateRequest, StateEvent> for SimState {
    fn submit(&mut self, requests: &mut Vec<StateRequest>) {
        let mut fabric = self.0.fabric();
        for request in requests.drain(..) {
            let latency = fabric.machines[self.0.node.0].state.latency;
            fabric.begin(self.0.node, latency, Work::State(request));
        }
    }

    fn poll(&mut self, max: usize, events: &mut Vec<StateEvent>) -> bool {
        take(&mut self.0.inbox().state, max, events)
    }
}
