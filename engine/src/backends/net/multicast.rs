//! Multicast in the local network: a socket for each group, which sends and receives on the interfaces that the engine
//! listens on.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use ecs_torrent_protocol::time::Timestamp;
use if_addrs::{IfAddr, Interface, get_if_addrs};
use quinn_udp::{Transmit, UdpSocketState};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockAddr, SockRef, Socket, Type};
use tokio::net::UdpSocket;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::Shared;
use crate::ports::net::{DatagramKind, NetEvent};

/// Number of routers that a datagram may pass. The groups of BEP 14 are limited to the site, which may have several
/// networks.
const HOPS: u32 = 16;

/// Maximum length of a datagram that is taken: that of an Ethernet frame.
const MAX_DATAGRAM: usize = 1500;

/// Maximum number of interfaces per group. Linux admits 20 memberships per socket (`igmp_max_memberships`).
const MAX_INTERFACES: usize = 16;

/// Maximum number of datagrams that wait until the interfaces are known: one for each listen address of a family.
const MAX_WAITING: usize = 16;

/// Pause after a socket failed to receive, in which other errors would be logged as well.
const RECEIVE_PAUSE: Duration = Duration::from_secs(1);

/// Time between two looks at the addresses of the interfaces.
const WATCH_INTERVAL: Duration = Duration::from_secs(5);

/// The joined groups.
#[derive(Default)]
pub(super) struct Groups {
    groups: BTreeMap<SocketAddr, Arc<Group>>,
    is_watching: bool,
}

/// A group.
struct Group {
    address: SocketAddr,
    state: Mutex<Membership>,
}

#[derive(Default)]
struct Membership {
    socket: Option<Arc<GroupSocket>>,
    links: Vec<Link>,
    /// Indices of the interfaces on which the socket is a member of the group.
    joined: BTreeSet<u32>,
    /// Datagrams that wait until the interfaces are known, with the listen addresses that they are about.
    waiting: Vec<(SocketAddr, Bytes)>,
    is_joining: bool,
}

struct GroupSocket {
    socket: UdpSocket,
    state: UdpSocketState,
}

/// An address of an interface in a local network.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Link {
    index: u32,
    ip: IpAddr,
    prefix_len: u8,
}

/// Whether an engine that listens at `local` can be reached at `ip`.
pub(super) fn includes(local: SocketAddr, ip: IpAddr) -> bool {
    local.is_ipv4() == ip.is_ipv4() && (local.ip().is_unspecified() || local.ip() == ip)
}

impl Link {
    /// Returns the link if it is in a local network of the group's family, and the engine listens on it. Loopback
    /// interfaces reach nobody, and point-to-point links have no neighbors.
    fn of(interface: &Interface, group: SocketAddr, local: &[SocketAddr]) -> Option<Self> {
        let (ip, prefix_len) = match &interface.addr {
            IfAddr::V4(v4) => (IpAddr::V4(v4.ip), v4.prefixlen),
            IfAddr::V6(v6) => (IpAddr::V6(v6.ip), v6.prefixlen),
        };
        let is_single = prefix_len >= if ip.is_ipv4() { 31 } else { 127 };
        let is_network = !interface.is_loopback() && !interface.is_p2p() && !is_single;
        let is_usable = ip.is_ipv4() == group.is_ipv4() && is_network;
        let link = Self {
            index: interface.index?,
            ip,
            prefix_len,
        };
        (is_usable && local.iter().any(|local| includes(*local, ip))).then_some(link)
    }

    /// Whether a sender is in the interface's network.
    fn has_neighbor(&self, sender: SocketAddr) -> bool {
        match (self.ip, sender) {
            (IpAddr::V4(own), SocketAddr::V4(sender)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix_len)).unwrap_or(0);
                own.to_bits() & mask == sender.ip().to_bits() & mask
            }
            (IpAddr::V6(own), SocketAddr::V6(sender)) => {
                if sender.ip().is_unicast_link_local() {
                    return sender.scope_id() == self.index;
                }
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix_len)).unwrap_or(0);
                own.to_bits() & mask == sender.ip().to_bits() & mask
            }
            _ => false,
        }
    }
}

impl Groups {
    /// Joins a group on interfaces that are new, and leaves it on those that are gone. Reading the interfaces may
    /// block, so another thread does it.
    pub(super) fn join(&mut self, runtime: &Handle, shared: &Arc<Shared>, address: SocketAddr) {
        if !std::mem::replace(&mut self.is_watching, true) {
            runtime.spawn(watch(shared.clone()));
        }
        let group = self.groups.entry(address).or_insert_with(|| {
            let state = Mutex::default();
            Arc::new(Group { address, state })
        });
        if std::mem::replace(&mut group.state().is_joining, true) {
            return;
        }
        let (group, shared) = (group.clone(), shared.clone());
        let entered = runtime.clone();
        runtime.spawn_blocking(move || {
            let _context = entered.enter();
            let links = get_if_addrs().unwrap_or_else(|error| {
                tracing::debug!("interfaces: {error}");
                Vec::new()
            });
            let links = links
                .iter()
                .filter_map(|link| Link::of(link, group.address, &shared.local));
            group.set_links(links.collect(), &shared);
        });
    }

    /// Sends a datagram over each interface of a group that a listen address includes.
    pub(super) fn send(&mut self, address: SocketAddr, local: SocketAddr, data: Bytes) {
        let Some(group) = self.groups.get(&address) else {
            return;
        };
        let mut state = group.state();
        match state.is_joining {
            true if state.waiting.len() < MAX_WAITING => state.waiting.push((local, data)),
            true => {}
            false => group.send(&state, local, &data),
        }
    }
}

impl Group {
    fn state(&self) -> MutexGuard<'_, Membership> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Updates the memberships to the present interfaces, and sends the datagrams that wait for them.
    fn set_links(self: &Arc<Self>, found: Vec<Link>, shared: &Arc<Shared>) {
        let mut state = self.state();
        if state.socket.is_none() && !found.is_empty() {
            match GroupSocket::open(self.address) {
                Ok(socket) => {
                    let socket = Arc::new(socket);
                    state.socket = Some(socket.clone());
                    tokio::spawn(receive(socket, self.clone(), shared.clone()));
                }
                Err(error) => tracing::debug!("multicast group {}: {error}", self.address),
            }
        }
        if let Some(socket) = state.socket.clone() {
            self.follow(&mut state, &socket, found);
        }
        for (local, data) in std::mem::take(&mut state.waiting) {
            self.send(&state, local, &data);
        }
        state.is_joining = false;
    }

    /// Makes a socket a member of the group on the interfaces of `found`, and on no others.
    fn follow(&self, state: &mut Membership, socket: &GroupSocket, found: Vec<Link>) {
        let there: BTreeSet<u32> = found.iter().map(|link| link.index).take(MAX_INTERFACES).collect();
        for gone in state.joined.difference(&there) {
            // The interface may be gone.
            drop(socket.leave(self.address.ip(), *gone));
        }
        state.joined.retain(|index| there.contains(index));
        for new in there {
            if !state.joined.contains(&new) {
                match socket.join(self.address.ip(), new) {
                    Ok(()) => {
                        state.joined.insert(new);
                    }
                    Err(error) => tracing::debug!("multicast group {} on interface {new}: {error}", self.address),
                }
            }
        }
        let joined = &state.joined;
        state.links = found.into_iter().filter(|link| joined.contains(&link.index)).collect();
    }

    fn send(&self, state: &Membership, local: SocketAddr, data: &[u8]) {
        let Some(socket) = &state.socket else {
            return;
        };
        let mut sent = BTreeSet::new();
        let links = state.links.iter().filter(|link| includes(local, link.ip));
        for link in links.filter(|link| sent.insert(link.index)) {
            if let Err(error) = socket.send(self.address, link, local, data) {
                tracing::debug!("a multicast datagram was not sent over {}: {error}", link.ip);
            }
        }
    }
}

impl GroupSocket {
    /// Opens the socket of a group. Other programs use the same port.
    fn open(group: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(group), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        // Several engines on a machine find each other.
        match group {
            SocketAddr::V4(_) => {
                socket.set_multicast_loop_v4(true)?;
                socket.set_multicast_ttl_v4(HOPS)?;
            }
            SocketAddr::V6(_) => {
                socket.set_only_v6(true)?;
                socket.set_multicast_loop_v6(true)?;
                socket.set_multicast_hops_v6(HOPS)?;
            }
        }
        // Bound to the group, the socket gets no other datagrams.
        socket.bind(&SockAddr::from(group))?;
        let socket = UdpSocket::from_std(socket.into())?;
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Self { socket, state })
    }

    fn join(&self, group: IpAddr, index: u32) -> io::Result<()> {
        match group {
            IpAddr::V4(group) => {
                SockRef::from(&self.socket).join_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(index))
            }
            IpAddr::V6(group) => self.socket.join_multicast_v6(&group, index),
        }
    }

    fn leave(&self, group: IpAddr, index: u32) -> io::Result<()> {
        match group {
            IpAddr::V4(group) => {
                SockRef::from(&self.socket).leave_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(index))
            }
            IpAddr::V6(group) => self.socket.leave_multicast_v6(&group, index),
        }
    }

    /// Sends a datagram over an interface. Its source is the address that the engine listens at, or any address of the
    /// interface if it listens at all of them.
    ///
    /// The runtime does not know at once that a new socket can send, so the datagram is sent without waiting for
    /// readiness. If the buffers are full, the datagram is lost.
    fn send(&self, to: SocketAddr, link: &Link, local: SocketAddr, data: &[u8]) -> io::Result<()> {
        let options = SockRef::from(&self.socket);
        match link.ip {
            IpAddr::V4(ip) => options.set_multicast_if_v4(&ip)?,
            IpAddr::V6(_) => options.set_multicast_if_v6(link.index)?,
        }
        let transmit = Transmit {
            destination: to,
            ecn: None,
            contents: data,
            segment_size: None,
            src_ip: Some(local.ip()).filter(|ip| !ip.is_unspecified()),
        };
        self.state.try_send((&self.socket).into(), &transmit)
    }
}

/// Reports new addresses at which neighbors reach us, for as long as the engine lives.
async fn watch(shared: Arc<Shared>) {
    let mut known: Option<Vec<Link>> = None;
    loop {
        let reader = shared.clone();
        let found = spawn_blocking(move || {
            let interfaces = get_if_addrs().unwrap_or_default();
            let links = interfaces.iter().filter_map(|interface| {
                // A link that suits one group suits every group of its family.
                let group = SocketAddr::new(interface.ip(), 0);
                Link::of(interface, group, &reader.local)
            });
            links.collect::<Vec<Link>>()
        });
        let Ok(found) = found.await else { return };
        if known.is_some_and(|known| found.iter().any(|link| !known.contains(link))) {
            shared.sink.push(NetEvent::AddressesChanged);
        }
        known = Some(found);
        sleep(WATCH_INTERVAL).await;
    }
}

/// Receives a group's datagrams from neighbors, for as long as the engine lives.
async fn receive(socket: Arc<GroupSocket>, group: Arc<Group>, shared: Arc<Shared>) {
    let mut buffer = [0; MAX_DATAGRAM];
    loop {
        let (len, from) = match socket.socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!("multicast group {}: {error}", group.address);
                sleep(RECEIVE_PAUSE).await;
                continue;
            }
        };
        // The kernel delivers the datagrams of interfaces that other programs have joined, too.
        if !group.state().links.iter().any(|link| link.has_neighbor(from)) {
            continue;
        }
        let arrived = Timestamp::ZERO + shared.epoch.elapsed();
        let data = &buffer[..len];
        let kind = DatagramKind::LocalDiscovery;
        let copy = || Bytes::copy_from_slice(data);
        if shared.datagrams().push_as(kind, from, group.address, arrived, copy) {
            shared.sink.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use if_addrs::{Ifv4Addr, Ifv6Addr};

    use super::*;

    fn link(text: &str, prefix_len: u8) -> Link {
        Link {
            index: 3,
            ip: text.parse().unwrap(),
            prefix_len,
        }
    }

    #[test]
    fn neighbors_are_in_the_network_of_the_interface() {
        let near = |link: &Link, sender: &str| link.has_neighbor(sender.parse().unwrap());
        let v4 = link("192.168.1.5", 24);
        assert!(near(&v4, "192.168.1.77:9") && !near(&v4, "192.168.2.77:9") && !near(&v4, "[fd00::1]:9"));
        let v6 = link("fd00::5", 64);
        assert!(near(&v6, "[fd00::77]:9") && !near(&v6, "[fd01::77]:9"));
        assert!(near(&v6, "[fe80::1%3]:9") && !near(&v6, "[fe80::1%4]:9"));
        assert!(near(&link("10.0.0.1", 0), "8.8.8.8:1") && !near(&link("10.0.0.1", 32), "8.8.8.8:1"));
    }

    fn interface(addr: IfAddr) -> Interface {
        Interface {
            name: "eth0".into(),
            addr,
            index: Some(3),
            oper_status: if_addrs::IfOperStatus::Up,
            is_p2p: false,
        }
    }

    fn v4(ip: [u8; 4], prefixlen: u8) -> Interface {
        interface(IfAddr::V4(Ifv4Addr {
            ip: ip.into(),
            netmask: Ipv4Addr::UNSPECIFIED,
            prefixlen,
            broadcast: None,
        }))
    }

    fn v6(ip: Ipv6Addr) -> Interface {
        interface(IfAddr::V6(Ifv6Addr {
            ip,
            netmask: Ipv6Addr::UNSPECIFIED,
            prefixlen: 64,
            broadcast: None,
        }))
    }

    /// Nothing is sent over other interfaces: one of them may bypass a user's VPN.
    #[test]
    fn only_interfaces_that_the_engine_listens_on_are_used() {
        let group: SocketAddr = "239.192.152.143:6771".parse().unwrap();
        let group_v6: SocketAddr = "[ff15::efc0:988f]:6771".parse().unwrap();
        let is_used =
            |interface: &Interface, group, local: &str| Link::of(interface, group, &[local.parse().unwrap()]).is_some();
        let lan = v4([192, 168, 1, 5], 24);
        assert!(is_used(&lan, group, "0.0.0.0:1") && is_used(&lan, group, "192.168.1.5:1"));
        assert!(!is_used(&lan, group, "192.168.1.6:1") && !is_used(&lan, group, "127.0.0.1:1"));
        assert!(!is_used(&lan, group, "[::]:1") && !is_used(&lan, group_v6, "0.0.0.0:1"));
        assert!(!is_used(&v4([127, 0, 0, 1], 8), group, "0.0.0.0:1"), "loopback");
        assert!(!is_used(&v4([10, 8, 0, 2], 32), group, "0.0.0.0:1"), "a tunnel");
        let lan = v6("fe80::1".parse().unwrap());
        assert!(is_used(&lan, group_v6, "[::]:1") && !is_used(&lan, group, "[::]:1"));
    }
}
