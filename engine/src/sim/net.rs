//! The simulated network: hosts with access links, connections between them, datagrams, and network faults.
//!
//! A connection behaves like TCP as far as a world can observe: bytes arrive in order, a receiver that does not read
//! stops the sender, an orderly close delivers all sent data, a reset may not. There are no packets: a connection moves
//! segments of about 16 KiB, whose bytes are passed by reference.

mod carrier;
mod carrying;
mod closing;
mod connection;
mod control;
mod host;
mod network;
mod path;
mod port;
#[cfg(test)]
mod tests;
mod udp;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

pub use self::carrier::Carrier;
pub use self::control::NetControl;
pub use self::host::{Access, Traffic};
pub(super) use self::host::{Power, UdpHost};
pub(super) use self::network::Network;
pub use self::network::SocketLimits;
pub use self::path::Path;
pub use self::port::SimNet;
use super::NodeId;
use super::hub::Hub;
use super::queue::SimEvent;

impl Network {
    fn record_seen(&mut self, node: NodeId, count: usize) {
        let unseen = &mut self.hosts[node.0].unseen;
        *unseen = unseen.saturating_sub(count);
    }

    /// Runs a scheduled network event.
    pub(super) fn happen(&mut self, hub: &mut Hub, what: SimEvent) {
        match what {
            SimEvent::Arrival(flow) => self.arrive(hub, flow),
            SimEvent::UplinkFree(node) => self.free_uplink(hub, node),
            SimEvent::DownlinkFree(node) => self.free_downlink(hub, node),
            SimEvent::Datagram(key) => self.datagram_arrives(hub, key),
            SimEvent::Syn(key) => self.receive_syn(hub, key),
            SimEvent::Connected(key) => self.receive_answer(hub, key),
            SimEvent::Accepted(key) => self.receive_acknowledgment(hub, key),
            SimEvent::ConnectTimeout(key) => self.time_connect(hub, key),
            SimEvent::CloseTimeout(flow) => self.time_close(hub, flow),
            SimEvent::GiveUp(flow) => self.give_up(hub, flow),
            SimEvent::Job(_) | SimEvent::Awake(_) => {}
        }
    }
}

/// Accessors for the other parts of the simulation.
impl Network {
    pub(super) fn addresses_of(&self, node: NodeId) -> Vec<SocketAddr> {
        self.hosts[node.0].addresses.clone()
    }

    pub(super) fn listener(&self, address: SocketAddr) -> Option<NodeId> {
        self.listeners.get(&address).copied()
    }

    pub(super) fn refuse(&mut self, node: NodeId) {
        self.hosts[node.0].is_refusing = true;
    }

    pub(super) fn host_of(&self, to: SocketAddr) -> Option<NodeId> {
        self.host_at(to)
    }

    pub(super) fn time_between(&self, a: NodeId, b: NodeId) -> Duration {
        self.latency(a, b)
    }

    pub(super) fn is_open(&self, from: NodeId, to: NodeId) -> bool {
        self.may_pass(from, to) && self.may_pass(to, from)
    }

    pub(super) fn source_ip(&self, node: NodeId, to: IpAddr) -> Option<IpAddr> {
        self.hosts[node.0].address_for(to).map(|address| address.ip())
    }

    /// Makes an address answer datagrams.
    pub(super) fn set_udp_host(&mut self, address: SocketAddr, host: UdpHost) {
        self.udp_hosts.insert(address, host);
    }
}
