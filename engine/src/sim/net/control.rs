//! A scenario's control of the network.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use ecs_torrent_components::peer::Transport;

use super::super::NodeId;
use super::super::fabric::{Fabric, lock};
use super::super::hub::Hub;
use super::carrier::Carrier;
use super::connection::EndState;
use super::host::{Access, Power, Traffic};
use super::network::{Network, SocketLimits};
use super::path::Path;
use crate::ports::net::NetEvent;

/// Controls the network of a simulation; all changes take effect at once. Nodes are engines and other hosts alike.
///
/// # Panics
/// Every function, if a node is not part of this simulation.
pub struct NetControl<'s> {
    pub(in super::super) fabric: &'s Mutex<Fabric>,
}

impl NetControl<'_> {
    fn lock(&self) -> MutexGuard<'_, Fabric> {
        lock(self.fabric)
    }

    /// Sets a host's access link. A transmission in progress keeps its duration.
    pub fn set_access(&self, node: NodeId, access: Access) {
        let host = &mut self.lock().net.hosts[node.0];
        host.up.bytes_per_s = access.up_bytes_per_s;
        host.down.bytes_per_s = access.down_bytes_per_s;
    }

    /// Sets the path between all pairs of hosts without a path of their own.
    pub fn set_default_path(&self, path: Path) {
        self.lock().net.paths.default = path;
    }

    /// Sets the path between two hosts.
    pub fn set_path(&self, a: NodeId, b: NodeId, path: Path) {
        self.lock().net.paths.set(a, b, path);
    }

    /// The path between two hosts.
    #[must_use]
    pub fn path(&self, a: NodeId, b: NodeId) -> Path {
        *self.lock().net.paths.between(a, b)
    }

    /// Sets the systems' socket limits, for later operations.
    pub fn set_limits(&self, limits: SocketLimits) {
        self.lock().net.limits = limits;
    }

    /// Cuts all paths between `some` and `others`, in addition to earlier cuts. Data on connections waits and is sent
    /// again when the path is open; datagrams are lost; connections cannot be made.
    pub fn partition(&self, some: &[NodeId], others: &[NodeId]) {
        self.lock().net.paths.cut(some, others);
    }

    /// Restores all paths that were cut.
    pub fn heal(&self) {
        let fabric = &mut *self.lock();
        fabric.net.paths.heal();
        fabric.net.resume_stalled(&mut fabric.hub);
    }

    /// Resets all connections between two hosts: both are notified at once and lose unread data. Returns the number of
    /// connections.
    pub fn reset(&self, a: NodeId, b: NodeId) -> usize {
        let fabric = &mut *self.lock();
        let connections = fabric.net.between(a, b);
        connections
            .iter()
            .for_each(|key| fabric.net.reset(&mut fabric.hub, *key));
        connections.len()
    }

    /// Blocks the connections between two hosts permanently, without notifying either: each end detects it when its
    /// data is not acknowledged, after [`SocketLimits::give_up`]. New connections can be made. Returns the number of
    /// connections.
    pub fn sever(&self, a: NodeId, b: NodeId) -> usize {
        let connections = self.lock().net.between(a, b);
        for key in &connections {
            if let Some(connection) = self.lock().net.connections.get_mut(*key) {
                connection.is_severed = true;
            }
        }
        connections.len()
    }

    /// Puts hosts into a local network of their own, in which they reach each other by multicast. Hosts are in none at
    /// first.
    pub fn set_local_network(&self, nodes: &[NodeId]) {
        let net = &mut self.lock().net;
        net.local_network_count += 1;
        for node in nodes {
            net.hosts[node.0].local_network = Some(net.local_network_count);
        }
    }

    /// Sets whether a host refuses new connections.
    pub fn set_refusing(&self, node: NodeId, is_refusing: bool) {
        self.lock().net.hosts[node.0].is_refusing = is_refusing;
    }

    /// Sets the carriers of a host's new streams, in the order in which they are tried. Hosts have only TCP at first,
    /// over their access links. Both hosts of a stream need its transport; the connecting one decides how it travels.
    pub fn set_carriers(&self, node: NodeId, carriers: Vec<(Transport, Carrier)>) {
        self.lock().net.hosts[node.0].carriers = carriers;
    }

    /// Sets whether a host reads its connections. Otherwise its receive buffers fill up, and its peers have to stop.
    pub fn set_reading(&self, node: NodeId, is_reading: bool) {
        let fabric = &mut *self.lock();
        fabric.net.hosts[node.0].is_reading = is_reading;
        fabric.net.read_all(&mut fabric.hub, node);
    }

    /// Moves a host to another address of the family of `ip`, with the same ports. Its connections are severed; see
    /// [`NetControl::sever`]. The host notices the change if it has joined a multicast group.
    pub fn move_node(&self, node: NodeId, ip: IpAddr) {
        let fabric = &mut *self.lock();
        if !fabric.net.hosts[node.0].groups.is_empty() {
            fabric.hub.deliver_net(node, NetEvent::AddressesChanged);
        }
        let net = &mut fabric.net;
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

    /// Listening addresses of a host.
    #[must_use]
    pub fn addresses(&self, node: NodeId) -> Vec<SocketAddr> {
        self.lock().net.hosts[node.0].addresses.clone()
    }

    /// Number of a host's connections that are open, being made or being closed.
    #[must_use]
    pub fn connection_count(&self, node: NodeId) -> usize {
        self.lock().net.hosts[node.0].streams.len()
    }

    /// Bytes that a host has sent and received so far.
    #[must_use]
    pub fn traffic(&self, node: NodeId) -> Traffic {
        self.lock().net.hosts[node.0].traffic
    }
}

impl Network {
    /// Sets the power state of a host; stalled data may arrive when the host is back.
    pub(in super::super) fn set_power(&mut self, hub: &mut Hub, node: NodeId, power: Power) {
        self.hosts[node.0].power = power;
        if power != Power::Off {
            self.resume_stalled(hub);
            self.pump_up(hub, node);
        }
    }

    /// Ends all connections of a host without an engine, with resets or silently.
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
