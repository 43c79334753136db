//! The nodes of a scenario, and the actions of a user who starts the program.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use ecs_torrent_components::commands::{
    AddOptions, AddTorrent, CommandQueue, Reply, ResumeAll, TorrentSource, UnfetchedTorrent,
};
use ecs_torrent_components::hints::LinkHints;
use ecs_torrent_engine::sim::{Content, Crash, NewNode};
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::wire::Block;
use ecs_torrent_systems::TorrentPlugins;

use super::progress::{Progress, ProgressPlugin};
use super::{Actor, FOLDER, Stage, State};
use crate::sim::hostile::{HostileNode, HostilePeer, Hostility};
use crate::sim::invariants::{InvariantsPlugin, Truth};
use crate::sim::scenario::{Link, Who, address_of};

impl Stage<'_> {
    /// Adds all nodes.
    pub(super) fn spawn_nodes(&mut self) {
        let scenario = self.scenario;
        let mut number = 0;
        for group in &scenario.seeds {
            for _ in 0..group.count {
                self.add(Who::Seed(number), group.link, group.is_late);
                number += 1;
            }
        }
        let mut number = 0;
        for group in &scenario.leeches {
            for _ in 0..group.count {
                self.add(Who::Leech(number), group.link, group.is_late);
                number += 1;
            }
        }
        let mut number = 0;
        for group in &scenario.bystanders {
            for _ in 0..group.count {
                self.add(Who::Bystander(number), group.link, group.is_late);
                number += 1;
            }
        }
        self.spawn_hostile_peers();
        self.spawn_hostile_nodes();
    }

    fn spawn_hostile_peers(&mut self) {
        let scenario = self.scenario;
        let victims: Vec<SocketAddr> = self.actors.values().map(|actor| actor.address).collect();
        for (number, (hostility, link)) in (1..).zip(&scenario.hostiles) {
            let ip = match hostility {
                // Local addresses, which all other nodes have, are no subnet to the engine.
                Hostility::Sybil => Ipv4Addr::new(203, 0, 113, number as u8).into(),
                _ => address_of(self.next_ip),
            };
            let address = SocketAddr::new(ip, 6881);
            self.next_ip += 1;
            let host = self.sim.add_host(address);
            self.sim.net().set_access(host.id(), link.access());
            let now = self.sim.now();
            let peer = HostilePeer::new(
                host,
                *hostility,
                &self.content,
                victims.clone(),
                now,
                scenario.seed ^ (number << 32),
            );
            self.hostiles.push(peer);
        }
    }

    fn spawn_hostile_nodes(&mut self) {
        let scenario = self.scenario;
        for (number, hostility) in scenario.hostile_nodes.iter().enumerate() {
            let address = SocketAddr::new(address_of(self.next_ip), 6881);
            self.next_ip += 1;
            let accomplices = scenario.hostile_nodes.iter().enumerate();
            let accomplices = accomplices.filter(|(_, other)| *other == hostility);
            let accomplices = accomplices.map(|(other, _)| scenario.first_address_of(Who::HostileNode(other)));
            let seed = scenario.seed ^ ((number as u64 + 1) << 40);
            let mut node = HostileNode::new(*hostility, self.content.info_hash(), accomplices.collect(), seed);
            let id = self
                .sim
                .add_udp_host(address, move |_, from, datagram| node.answer(from, datagram));
            self.hostile_nodes.push(id);
        }
    }

    pub(super) fn add(&mut self, who: Who, link: Link, is_late: bool) {
        let ip = address_of(self.next_ip);
        self.next_ip += 1;
        let plugins = (
            TorrentPlugins,
            InvariantsPlugin,
            ProgressPlugin(self.content.info_hash()),
        );
        let new = NewNode::new(ip, self.scenario.engine_settings(), plugins)
            .access(link.access())
            .disk(self.scenario.disk);
        let node = self.sim.add((self.scenario.extend)(new));
        let address = self.sim.net().addresses(node)[0];
        let progress = self.sim.node(node).world().resource::<Progress>().clone();
        let actor = Actor {
            node,
            address,
            state: State::Up,
            progress,
            starts: 0,
            ahead: Duration::ZERO,
        };
        self.actors.insert(who, actor);
        if let Who::Seed(number) = who {
            for content in std::iter::once(&self.content).chain(&self.companions) {
                self.sim.put(node, FOLDER, content);
            }
            if number == 0 {
                for content in &self.idle {
                    self.sim.put(node, FOLDER, content);
                }
            }
        }
        match is_late {
            true => {
                self.sim.crash(node, Crash::Process);
                self.actor(who).state = State::Down;
            }
            false => self.begin(who),
        }
    }

    /// Performs the actions of a user who starts the program: resumes existing torrents and adds the scenario's
    /// torrent.
    pub(super) fn begin(&mut self, who: Who) {
        let node = self.node(who);
        let actor = self.actor(who);
        actor.state = State::Up;
        actor.starts += 1;
        let is_first = actor.starts == 1;
        let truth = {
            let view = self.sim.disk_view(node);
            let contents: BTreeMap<InfoHash, Content> = std::iter::once(&self.content)
                .chain(&self.idle)
                .chain(&self.companions)
                .map(|content| (content.info_hash(), content.clone()))
                .collect();
            let known = contents.clone();
            let disk = view.clone();
            let truth = Truth::new(move |metainfo, storage, piece| {
                // The files may have other names by now.
                let content = contents.get(&metainfo.hashes.primary());
                let content = content.map(|content| Content::new(metainfo.clone(), content.bytes().clone()));
                content.is_none_or(|content| view.holds(&storage.root, &content, piece))
            });
            truth
                .with_bytes(move |torrent, block| {
                    let content = known.get(&torrent.id());
                    content.is_none_or(|content| is_right(content, block))
                })
                .with_trespasses(move || disk.take_trespasses())
        };
        let mut adds = self.torrents_of(who);
        if is_first && who == Who::Seed(0) {
            adds.extend(self.idle.iter().map(|content| file(content, Vec::new())));
        }
        let world = self.sim.node(node).world_mut();
        world.insert_resource(truth);
        if !is_first {
            let (include_stopped, reply) = (false, Reply::ignored());
            world
                .resource_mut::<CommandQueue<ResumeAll>>()
                .0
                .push_back(ResumeAll { include_stopped, reply });
        }
        for (source, peers) in adds {
            let add = AddTorrent {
                source,
                options: AddOptions {
                    root: Some(FOLDER.into()),
                    peers,
                    ..AddOptions::default()
                },
                is_resumed: false,
                reply: Reply::ignored(),
            };
            world.resource_mut::<CommandQueue<AddTorrent>>().0.push_back(add);
        }
        self.sim.nudge(node);
    }

    /// Returns the torrents that the user of a node adds, each with the peers that the user names.
    fn torrents_of(&self, who: Who) -> Vec<(TorrentSource, Vec<SocketAddr>)> {
        let introducer = self.scenario.introducer.filter(|introducer| *introducer != who);
        let introducer = introducer.map(|introducer| self.scenario.first_address_of(introducer));
        let peers: Vec<SocketAddr> = introducer.into_iter().collect();
        let trackers = self.content.metainfo().trackers.clone();
        let named = match who {
            Who::Bystander(_) if self.scenario.has_outsiders => vec![link(&self.content, Vec::new(), Vec::new())],
            Who::Bystander(_) => Vec::new(),
            Who::Leech(_) if self.scenario.has_links => vec![link(&self.content, trackers, peers)],
            _ => vec![file(&self.content, peers)],
        };
        let companions = self.companions.iter().filter_map(|content| match who {
            Who::Seed(_) => Some(file(content, Vec::new())),
            Who::Leech(_) => Some(link(content, Vec::new(), Vec::new())),
            _ => None,
        });
        named.into_iter().chain(companions).collect()
    }
}

/// Returns a torrent file, and the peers that its user names.
fn file(content: &Content, peers: Vec<SocketAddr>) -> (TorrentSource, Vec<SocketAddr>) {
    (content.metainfo().clone().into(), peers)
}

/// Returns a magnet link of a torrent that contains these trackers and peers.
fn link(content: &Content, trackers: Vec<Vec<String>>, peers: Vec<SocketAddr>) -> (TorrentSource, Vec<SocketAddr>) {
    let link = TorrentSource::InfoHash(UnfetchedTorrent {
        info_hash: content.info_hash(),
        name: None,
        trackers,
        peers,
        hints: LinkHints::default(),
    });
    (link, Vec::new())
}

/// Returns whether a block has the torrent's bytes; mostly both are in the same memory.
fn is_right(content: &Content, block: &Block) -> bool {
    let geometry = &content.metainfo().info.geometry;
    if !geometry.contains(block.request) {
        return false;
    }
    let mut expected = content.slice(geometry.span(block.request));
    block.data.iter().all(|part| {
        let right = expected.split_to(part.len().min(expected.len()));
        std::ptr::eq(right.as_ptr(), part.as_ptr()) || right == part
    })
}
