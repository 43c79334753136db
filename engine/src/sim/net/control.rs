//! What a scenario does to the network.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use super::super::NodeId;
use super::super::fabric::{Fabric, lock};
use super::super::hub::Hub;
use super::connection::EndState;
use super::host::{Access, Power, Traffic};
use super::network::{Network, SocketLimits};
use super::path::Path;

/// A hand on the network of a simulation; what it does, it does now. Nodes are engines and other hosts alike.
///
/// # Panics
/// Every function, where a node is not of this simulation.
pub struct NetControl<'s> {
    pub(in super::super) fabric: &'s Mutex<Fabric>,
}

impl NetControl<'_> {
    fn lock(&self) -> MutexGuard<'_, Fabric> {
        lock(self.fabric)
    }

    /// Gives a host another access link. What is being sent takes as long as it would have.
    pub fn set_access(&self, node: NodeId, access: Access) {
        let host = &mut self.lock().net.hosts[node.0];
        host.up.bytes_per_s = access.up_bytes_per_s;
        host.down.bytes_per_s = access.down_bytes_per_s;
    }

    /// Sets the way between all hosts that have none of their own.
    pub fn set_default_path(&self, path: Path) {
        self.lock().net.paths.default = path;
    }

    /// Sets the way between two hosts.
    pub fn set_path(&self, a: NodeId, b: NodeId, path: Path) {
        self.lock().net.paths.set(a, b, path);
    }

    /// The way between two hosts.
    #[must_use]
    pub fn path(&self, a: NodeId, b: NodeId) -> Path {
        *self.lock().net.paths.between(a, b)
    }

    /// Sets what systems do with sockets, for what is done from now on.
    pub fn set_limits(&self, limits: SocketLimits) {
        self.lock().net.limits = limits;
    }

    /// Cuts all ways between `some` and `others`, beside what is cut already. What connections carry waits, and is sent
    /// again when the way is open; datagrams are lost; connections cannot be made.
    pub fn partition(&self, some: &[NodeId], others: &[NodeId]) {
        self.lock().net.paths.cut(some, others);
    }

    /// Opens all ways that were cut.
    pub fn heal(&self) {
        let fabric = &mut *self.lock();
        fabric.net.paths.heal();
        fabric.net.resume_stalled(&mut fabric.hub);
    }

    /// Resets all connections between two hosts: both hear of it at once, and lose what was not read. Tells how many
    /// there were.
    pub fn reset(&self, a: NodeId, b: NodeId) -> usize {
        let fabric = &mut *self.lock();
        let connections = fabric.net.between(a, b);
        connections
            .iter()
            .for_each(|key| fabric.net.reset(&mut fabric.hub, *key));
        connections.len()
    }

    /// Lets nothing pass any more on the connections between two hosts, for ever, without telling either: each end
    /// finds out when what it sends is not acknowledged, after [`SocketLimits::give_up`]. New connections can be made.
    /// Tells how many there were.
    pub fn sever(&self, a: NodeId, b: NodeId) -> usize {
        let connections = self.lock().net.between(a, b);
        for key in &connections {
            if let Some(connection) = self.lock().net.connections.get_mut(*key) {
                connection.is_severed = true;
            }
        }
        connections.len()
    }

    /// Whether a host refuses new connections.
    pub fn set_refusing(&self, node: NodeId, is_refusing: bool) {
        self.lock().net.hosts[node.0].is_refusing = is_refusing;
    }

    /// Whether a host reads its connections; one that does not fills its receive buffers, and stops its peers then.
    pub fn set_reading(&self, node: NodeId, is_reading: bool) {
        let fabric = &mut *self.lock();
        fabric.net.hosts[node.0].is_reading = is_reading;
        fabric.net.read_all(&mut fabric.hub, node);
    }

    /// Moves a host to another address of the family of `ip`, its ports as they were. Its connections are severed; see
    /// [`NetControl::sever`].
    pub fn move_node(&self, node: NodeId, ip: IpAddr) {
        let net = &mut self.lock().net;
        for address in &mut net.hosts[node.0].addresses {
            if address.is_ipv4() == ip.is_ipv4() {
                net.listeners.remove(address);
                address.set_ip(ip);
                net.listeners.insert(*address, node);
            }
        }
        for flow in net.flows_of(node) {
            if let Some(connection) = net.connections.get_mut(flow.connection) {
                connection.is_severed = true;
            }
        }
    }

    /// Where a host listens.
    #[must_use]
    pub fn addresses(&self, node: NodeId) -> Vec<SocketAddr> {
        self.lock().net.hosts[node.0].addresses.clone()
    }

    /// Connections of a host that are open, being made or being closed.
    #[must_use]
    pub fn connection_count(&self, node: NodeId) -> usize {
        self.lock().net.hosts[node.0].links.len()
    }

    /// What a host has moved so far.
    #[must_use]
    pub fn traffic(&self, node: NodeId) -> Traffic {
        self.lock().net.hosts[node.0].traffic
    }
}

impl Network {
    /// Sets what answers at a host; what has stalled on the way to it may arrive when it is back.
    pub(in super::super) fn set_power(&mut self, hub: &mut Hub, node: NodeId, power: Power) {
        self.hosts[node.0].power = power;
        if power != Power::Off {
            self.resume_stalled(hub);
            self.pump_up(hub, node);
        }
    }

    /// Ends all connections of a host, whose engine is gone: with resets, or without a word.
    pub(in super::super) fn drop_connections(&mut self, hub: &mut Hub, node: NodeId, is_silent: bool) {
        for flow in self.flows_of(node) {
            let connection = self.connections.get(flow.connection);
            let has_ended = connection.is_none_or(|c| c.ends[flow.sender as usize].state == EndState::Ended);
            match (has_ended, is_silent) {
                (true, _) => {}
                (false, true) => self.vanish(flow),
                (false, false) => self.abort(hub, flow),
            }
        }
        self.hosts[node.0].unseen = 0;
    }

    pub(in super::super) fn set_close_timeout(&mut self, node: NodeId, time: Duration) {
        self.hosts[node.0].close_timeout = time;
    }
}
