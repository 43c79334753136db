//! Simulated servers: hosts that answer on their own.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ecs_torrent_protocol::time::Timestamp;

use super::fabric::Fabric;
use super::http::HttpReply;
use super::random::stream;
use super::tracker::{SimTracker, TrackerOptions};
use super::{NodeId, Simulation};

impl Simulation {
    /// Adds a host that answers datagrams, like a UDP tracker. Its function gets the time, the sender's address and the
    /// datagram, and returns the datagrams to send back.
    pub fn add_udp_host(
        &mut self,
        address: SocketAddr,
        mut answer: impl FnMut(Timestamp, SocketAddr, &[u8]) -> Vec<Vec<u8>> + Send + 'static,
    ) -> NodeId {
        let mut fabric = self.fabric();
        let at_once = |reply| (Duration::ZERO, reply);
        fabric.net.set_udp_host(
            address,
            Box::new(move |now, from, packet| answer(now, from, packet).into_iter().map(at_once).collect()),
        );
        fabric.add_server(address)
    }

    /// Adds a host that answers HTTP requests. Its function gets the time, the client's address, and the path and
    /// query.
    pub fn add_http_host(
        &mut self,
        address: SocketAddr,
        answer: impl FnMut(Timestamp, IpAddr, &str) -> HttpReply + Send + 'static,
    ) -> NodeId {
        let mut fabric = self.fabric();
        fabric.http_hosts.insert(address, Box::new(answer));
        fabric.add_server(address)
    }

    /// Adds a tracker that answers at `address`, over HTTP and over UDP.
    pub fn add_tracker(&mut self, address: SocketAddr, options: TrackerOptions) -> SimTracker {
        let mut fabric = self.fabric();
        let node = fabric.add_server(address);
        let tracker = SimTracker::new(address, options, stream(fabric.hub.seed, b"tracker ", node));
        let (over_udp, over_http) = (tracker.clone(), tracker.clone());
        let handle = move |now, from, packet: &[u8]| over_udp.handle(now, from, packet);
        fabric.net.set_udp_host(address, Box::new(handle));
        let get = move |now, from, target: &str| over_http.get(now, from, target);
        fabric.http_hosts.insert(address, Box::new(get));
        tracker
    }
}

impl Fabric {
    /// The host at an address, added if there is none; it refuses peer connections.
    fn add_server(&mut self, address: SocketAddr) -> NodeId {
        if let Some(node) = self.net.listener(address) {
            return node;
        }
        let node = self.add_node(vec![address], false);
        self.net.refuse(node);
        node
    }
}
