//! The simulated hashers.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::NodeId;
use super::fabric::{Fabric, lock};
use super::hub::take;
use super::jobs::Work;
use crate::port::Backend;
use crate::ports::hash::{HashEvent, HashRequest};

/// The Hash port of a simulated engine: everything takes half a millisecond, and any number at a time.
pub(super) struct SimHash {
    node: NodeId,
    fabric: Arc<Mutex<Fabric>>,
}

/// Time that a hash takes in a simulation.
const HASH_TIME: Duration = Duration::from_micros(500);

impl SimHash {
    pub(super) fn new(node: NodeId, fabric: Arc<Mutex<Fabric>>) -> Self {
        Self { node, fabric }
    }
}

impl Backend<HashRequest, HashEvent> for SimHash {
    fn submit(&mut self, requests: &mut Vec<HashRequest>) {
        let mut fabric = lock(&self.fabric);
        for HashRequest { tag, kind, spans } in requests.drain(..) {
            let digests = Some(fabric.hub.contents.digest(kind, &spans));
            fabric.begin(self.node, HASH_TIME, Work::Hash(HashEvent { tag, digests, spans }));
        }
    }

    fn poll(&mut self, max: usize, events: &mut Vec<HashEvent>) -> bool {
        take(&mut lock(&self.fabric).hub.inbox(self.node).hash, max, events)
    }
}
