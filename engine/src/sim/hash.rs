//! The simulated hashers.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::NodeId;
use super::fabric::{Fabric, Work};
use super::hub::take;
use super::place::Place;
use crate::port::Backend;
use crate::ports::hash::{HashEvent, HashRequest};

/// The Hash port of a simulated engine: every request takes half a millisecond, with unlimited parallelism.
pub(super) struct SimHash(Place);

/// Simulated time of a hash request.
const HASH_TIME: Duration = Duration::from_micros(500);

impl SimHash {
    pub(super) fn new(node: NodeId, fabric: Arc<Mutex<Fabric>>) -> Self {
        Self(Place::new(node, fabric))
    }
}

impl Backend<HashRequest, HashEvent> for SimHash {
    fn submit(&mut self, requests: &mut Vec<HashRequest>) {
        let mut fabric = self.0.fabric();
        for HashRequest { tag, kind, spans } in requests.drain(..) {
            let digests = Some(fabric.hub.contents.digest(kind, &spans));
            fabric.begin(self.0.node, HASH_TIME, Work::Hash(HashEvent { tag, digests, spans }));
        }
    }

    fn poll(&mut self, max: usize, events: &mut Vec<HashEvent>) -> bool {
        take(&mut self.0.inbox().hash, max, events)
    }
}
