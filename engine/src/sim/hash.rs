//! The simulated hashers.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::NodeId;
use super::fabric::{Fabric, Work, lock};
use super::hub::{Mail, open, take};
use crate::port::Backend;
use crate::ports::hash::{HashEvent, HashRequest};

/// The Hash port of a simulated engine: every request takes half a millisecond, with unlimited parallelism.
pub(super) struct SimHash {
    node: NodeId,
    fabric: Arc<Mutex<Fabric>>,
    mail: Mail,
}

/// Simulated time of a hash request.
const HASH_TIME: Duration = Duration::from_micros(500);

impl SimHash {
    pub(super) fn new(node: NodeId, fabric: Arc<Mutex<Fabric>>) -> Self {
        let mail = lock(&fabric).hub.mail(node);
        Self { node, fabric, mail }
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
        take(&mut open(&self.mail).hash, max, events)
    }
}
