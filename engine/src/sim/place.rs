//! The place of a simulated port: its node, the rest of the simulation, and the events that wait for the port.

use std::sync::{Arc, Mutex, MutexGuard};

use super::NodeId;
use super::fabric::{Fabric, lock};
use super::hub::{Inbox, Mail, open};

/// The place of a node's port in the simulation.
pub(super) struct Place {
    pub(super) node: NodeId,
    fabric: Arc<Mutex<Fabric>>,
    mail: Mail,
}

impl Place {
    pub(super) fn new(node: NodeId, fabric: Arc<Mutex<Fabric>>) -> Self {
        let mail = lock(&fabric).hub.mail(node);
        Self { node, fabric, mail }
    }

    /// Returns everything outside the engines.
    pub(super) fn fabric(&self) -> MutexGuard<'_, Fabric> {
        lock(&self.fabric)
    }

    /// Returns the events that wait for the node's ports.
    pub(super) fn inbox(&self) -> MutexGuard<'_, Inbox> {
        open(&self.mail)
    }
}
