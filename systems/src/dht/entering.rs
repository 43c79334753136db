//! Entering the network: the table of an earlier run, configured hosts, and nodes that peers name.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bevy_ecs::prelude::*;
use ecs_torrent_components::candidates::CandidateSource;
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::StatePort;
use ecs_torrent_engine::ports::net::{NetEvent, NetRequest};
use ecs_torrent_engine::ports::state::{BlobName, StateDone, StateRequest};
use ecs_torrent_engine::purpose;
use ecs_torrent_protocol::compact::Family;
use ecs_torrent_protocol::dht::node::Node;
use ecs_torrent_protocol::host_port::HostPort;
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::wire::Message;

use super::{Dht, DhtParams, Inbox};

/// The inbox of looked-up bootstrap hosts.
pub(super) const NAMES: Purpose = purpose!("dht bootstrap hosts");

/// The inbox of the saved table.
pub(super) const STATE: Purpose = purpose!("dht table");

/// Time until the bootstrap hosts are looked up again, while no node has answered.
const RETRY: Duration = Duration::from_secs(300);

/// Time between two saves of the table, and until the first one.
const SAVE_INTERVAL: Duration = Duration::from_secs(600);
const FIRST_SAVE: Duration = Duration::from_secs(60);

/// Maximum number of addresses of a bootstrap host.
const MAX_ADDRESSES: usize = 4;

/// Maximum number of nodes that one torrent, and all together, name while the table has too few nodes. A torrent names
/// the 8 nodes closest to it (BEP 5).
const MAX_NODES_PER_TORRENT: usize = 8;
const MAX_TORRENT_NODES: usize = 32;

/// The progress of entering the network.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// Nodes, and the torrents that name them, until the table has enough nodes.
    torrent_nodes: BTreeMap<HostPort, Entity>,
    /// The next time at which the bootstrap hosts are looked up, unless nodes have answered by then.
    lookup: Option<Timestamp>,
    /// The next time at which the table is saved.
    save: Option<Timestamp>,
}

impl Entry {
    /// Requests the tables of an earlier run, of so many nodes.
    pub(super) fn start(&mut self, state: &mut StatePort, count: usize) {
        state.open_inbox(STATE);
        for number in 0..count {
            let name = blob_name(number);
            let tag = tag_of(number);
            state.push(StateRequest::LoadBlob { tag, name });
        }
        self.lookup = Some(Timestamp::ZERO);
    }

    /// The time at which something is to be done.
    pub(super) fn deadline(&self) -> Timestamp {
        self.lookup
            .into_iter()
            .chain(self.save)
            .min()
            .unwrap_or(Timestamp::NEVER)
    }
}

impl DhtParams<'_, '_> {
    /// Takes the saved table and looked-up hosts, and looks hosts up while nobody has answered.
    pub(super) fn enter(&mut self, dht: &mut Dht, node: &mut Node) {
        let now = self.clock.now();
        for event in self.state.take(STATE) {
            let Ok(StateDone::BlobLoaded(Some(table))) = event.outcome else {
                continue;
            };
            let loaded = match (event.tag.number as usize).checked_sub(1) {
                None => node.load(&table, now),
                Some(further) => match dht.further.get_mut(further) {
                    Some(further) => further.node.load(&table, now),
                    None => continue,
                },
            };
            if let Err(error) = loaded {
                tracing::warn!(%error, "the saved table of the DHT is damaged");
            }
        }
        let entry = &mut dht.entry;
        let resolved: Vec<NetEvent> = self.net.take(NAMES).collect();
        for event in resolved {
            match event {
                NetEvent::Resolved {
                    tag,
                    result: Ok(addresses),
                } => {
                    let hosts = addresses.into_iter().take(MAX_ADDRESSES);
                    // The owner is the torrent that names the host.
                    if tag.owner == Entity::PLACEHOLDER {
                        hosts.for_each(|host| self.add_host(node, host));
                    } else {
                        hosts.for_each(|host| self.add_torrent_node(node, host));
                    }
                }
                NetEvent::Resolved { result: Err(error), .. } => {
                    tracing::debug!(%error, "a bootstrap host of the DHT was not found");
                }
                _ => {}
            }
        }
        if entry.lookup.is_some_and(|at| at <= now) {
            let is_ready = Family::ALL.iter().any(|family| node.is_ready(*family));
            let has_hosts = !self.settings.dht.bootstrap.is_empty() || !entry.torrent_nodes.is_empty();
            entry.lookup = (!is_ready && has_hosts).then_some(now + RETRY);
            if !is_ready {
                self.look_up_hosts(node);
                entry.torrent_nodes.retain(|_, torrent| self.may_search(*torrent));
                for (named, torrent) in &entry.torrent_nodes {
                    self.look_up_torrent_node(node, named, *torrent);
                }
            }
        }
        if entry.save.is_none() && Family::ALL.iter().any(|family| node.is_ready(*family)) {
            entry.save = Some(now + FIRST_SAVE);
        }
    }

    fn is_loopback(&self) -> bool {
        self.local.0.iter().all(|local| local.ip().is_loopback())
    }

    /// Looks the bootstrap hosts up. A node on loopback addresses has no use for names.
    fn look_up_hosts(&mut self, node: &mut Node) {
        let is_loopback = self.is_loopback();
        let settings = self.settings.clone();
        for host in &settings.dht.bootstrap {
            if let Ok(address) = host.parse::<SocketAddr>() {
                self.add_host(node, address);
            } else if let Some((name, port)) = host.rsplit_once(':')
                && let Ok(port) = port.parse()
                && !is_loopback
            {
                let (tag, host) = (JobTag::new(NAMES, Entity::PLACEHOLDER), name.to_owned());
                self.net.push(NetRequest::Resolve { tag, host, port });
            }
        }
    }

    /// Takes the nodes that a torrent names (BEP 5) while the table has too few nodes.
    pub(super) fn take_nodes(&mut self, entry: &mut Entry, node: &mut Node, torrent: Entity) {
        let Ok((_, allowed, .., Some(content), _)) = self.torrents.get(torrent) else {
            return;
        };
        if content.0.nodes.is_empty() || !allowed.has(CandidateSource::DHT) {
            return;
        }
        if !node.needs_contacts() {
            entry.torrent_nodes.clear();
            return;
        }
        let content = content.0.clone();
        for named in content.nodes.iter().take(MAX_NODES_PER_TORRENT) {
            if entry.torrent_nodes.len() < MAX_TORRENT_NODES && !entry.torrent_nodes.contains_key(named) {
                entry.torrent_nodes.insert(named.clone(), torrent);
                self.look_up_torrent_node(node, named, torrent);
                entry.lookup.get_or_insert(self.clock.now() + RETRY);
            }
        }
    }

    fn look_up_torrent_node(&mut self, node: &mut Node, named: &HostPort, torrent: Entity) {
        let HostPort { host, port } = named.clone();
        if let Ok(ip) = host.parse::<IpAddr>() {
            self.add_torrent_node(node, SocketAddr::new(ip, port));
        } else if !self.is_loopback() {
            let tag = JobTag::new(NAMES, torrent);
            self.net.push(NetRequest::Resolve { tag, host, port });
        }
    }

    /// Pings a node that a torrent names. A torrent comes from the Internet, so it may name nodes there, and those of a
    /// more private network only if we listen in no more public one.
    fn add_torrent_node(&mut self, node: &mut Node, address: SocketAddr) {
        if self.local.scope().may_reach(address.ip()) && self.may_send(address) {
            node.add_node(address, self.clock.now());
        }
    }

    fn add_host(&mut self, node: &mut Node, address: SocketAddr) {
        if self.may_send(address) {
            node.add_host(address, self.clock.now());
        }
    }

    /// Names our node to peers that have one, and pings the nodes that peers name (BEP 5, `PORT`).
    pub(super) fn exchange_ports(&mut self, inbox: &mut Inbox, node: &mut Node) {
        let now = self.clock.now();
        for connected in inbox.connected.read() {
            let is_allowed = self.may_search(connected.torrent);
            let Ok((peer, _, wire, mut outbox)) = self.peers.get_mut(connected.peer) else {
                continue;
            };
            let local = peer
                .endpoint
                .address()
                .and_then(|address| self.local.for_family_of(address));
            if let (true, true, Some(local)) = (wire.session.dht, is_allowed, local) {
                self.flush
                    .send(connected.peer, &mut outbox, &Message::Port(local.port()));
            }
        }
        for named in inbox.ports.read() {
            let Ok((peer, of, ..)) = self.peers.get(named.peer) else {
                continue;
            };
            if let (true, Some(address)) = (self.may_search(of.0), peer.endpoint.address()) {
                node.add_node(SocketAddr::new(address.ip(), named.port), now);
            }
        }
    }

    /// Saves the table if it is time.
    pub(super) fn save(&mut self, dht: &mut Dht, node: &Node) {
        let now = self.clock.now();
        if dht.entry.save.is_some_and(|at| at <= now) {
            dht.entry.save = Some(now + SAVE_INTERVAL);
            let further = dht.further.iter().map(|further| &*further.node);
            for (number, node) in std::iter::once(node).chain(further).enumerate() {
                let (tag, name) = (tag_of(number), blob_name(number));
                let bytes = node.save(now).into();
                self.state.push(StateRequest::SaveBlob { tag, name, bytes });
            }
        }
    }
}

/// Returns the name of a node's table; the first node has number 0.
fn blob_name(number: usize) -> BlobName {
    let name = match number {
        0 => "dht".to_owned(),
        further => format!("dht-{}", further + 1),
    };
    BlobName::new(&name).expect("lower-case letters and digits")
}

fn tag_of(number: usize) -> JobTag {
    let number = number as u64;
    JobTag {
        number,
        ..JobTag::new(STATE, Entity::PLACEHOLDER)
    }
}
