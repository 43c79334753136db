//! Commands of users: the node's state, peers of any torrent, items.

use std::net::SocketAddr;

use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::commands::{CommandQueue, Reply};
use ecs_torrent_components::dht::{
    DhtError, DhtNetwork, DhtPeers, DhtStats, FindDhtPeers, FurtherDhtNode, GetDhtItem, GetDhtStats, PutDhtItem,
};
use ecs_torrent_protocol::compact::Family;
use ecs_torrent_protocol::dht::id::NodeId;
use ecs_torrent_protocol::dht::items::{Item, immutable_target, mutable_target};
use ecs_torrent_protocol::dht::node::{Found, Goal, Node, NodeStats};
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::magnet::MutableLink;
use ecs_torrent_protocol::time::Timestamp;

use super::Dht;
use super::further::FurtherNode;

/// Commands that wait.
#[derive(SystemParam)]
pub(super) struct DhtCommands<'w> {
    stats: ResMut<'w, CommandQueue<GetDhtStats>>,
    peers: ResMut<'w, CommandQueue<FindDhtPeers>>,
    gets: ResMut<'w, CommandQueue<GetDhtItem>>,
    puts: ResMut<'w, CommandQueue<PutDhtItem>>,
}

/// Reads whether commands wait.
#[derive(SystemParam)]
pub(super) struct WaitingCommands<'w> {
    stats: Res<'w, CommandQueue<GetDhtStats>>,
    peers: Res<'w, CommandQueue<FindDhtPeers>>,
    gets: Res<'w, CommandQueue<GetDhtItem>>,
    puts: Res<'w, CommandQueue<PutDhtItem>>,
}

impl WaitingCommands<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.stats.0.is_empty() && self.peers.0.is_empty() && self.gets.0.is_empty() && self.puts.0.is_empty()
    }
}

/// A user's search in progress.
#[derive(Debug)]
pub(super) enum Answer {
    Peers(Reply<Result<DhtPeers, DhtError>>, Vec<SocketAddr>),
    Item(Reply<Result<Option<Item>, DhtError>>),
    Stored(Reply<Result<usize, DhtError>>),
}

impl Answer {
    /// Adds peers that the search has found.
    pub(super) fn add_peers(&mut self, found: &[SocketAddr]) {
        if let Self::Peers(_, peers) = self {
            peers.extend(found);
        }
    }

    /// Answers the user: the search has ended.
    pub(super) fn finish(self, found: Found) {
        if found.reply_count == 0 && found.item.is_none() {
            return self.refuse(DhtError::NoNodes);
        }
        match self {
            Self::Peers(reply, peers) => reply.send(Ok(DhtPeers {
                peers,
                seeds: found.swarm.map(|(seeds, _)| seeds.round() as u64),
                downloaders: found.swarm.map(|(_, others)| others.round() as u64),
                nodes: found.reply_count,
                took: found.duration,
            })),
            Self::Item(reply) => reply.send(Ok(found.item)),
            Self::Stored(reply) => reply.send(match found.refusal {
                Some(code) if found.stored_count == 0 => Err(DhtError::Refused(code)),
                _ => Ok(found.stored_count),
            }),
        }
    }

    pub(super) fn refuse(self, error: DhtError) {
        match self {
            Self::Peers(reply, _) => reply.send(Err(error)),
            Self::Item(reply) => reply.send(Err(error)),
            Self::Stored(reply) => reply.send(Err(error)),
        }
    }
}

impl DhtCommands<'_> {
    /// Refuses all commands: there is no node.
    pub(super) fn refuse(&mut self) {
        for command in self.stats.0.drain(..) {
            command.reply.send(DhtStats::default());
        }
        self.searches().for_each(|(.., answer)| answer.refuse(DhtError::Off));
    }

    /// Whether commands wait for searches.
    pub(super) fn has_searches(&self) -> bool {
        !self.peers.0.is_empty() || !self.gets.0.is_empty() || !self.puts.0.is_empty()
    }

    /// Answers questions about the node.
    pub(super) fn answer_stats(&mut self, dht: &Dht, node: &Node, now: Timestamp) {
        for command in self.stats.0.drain(..) {
            command.reply.send(stats(dht, node, now));
        }
    }

    /// Begins the searches of commands. `is_trackers_only` returns whether no datagram may name a hash.
    pub(super) fn carry_out(
        &mut self,
        dht: &mut Dht,
        node: &mut Node,
        now: Timestamp,
        is_trackers_only: impl Fn(InfoHash) -> bool,
    ) {
        for (target, goal, answer) in self.searches() {
            // An item may name a torrent too (BEP 46).
            let named = match &goal {
                Goal::Put { item, .. } => MutableLink::torrent_in(&item.value),
                _ => None,
            };
            let refused = [Some(InfoHash(target.0)), named]
                .into_iter()
                .flatten()
                .find(|hash| is_trackers_only(*hash));
            if let Some(refused) = refused {
                answer.refuse(DhtError::TrackersOnly(refused));
                continue;
            }
            match node.search(target, goal, None, now) {
                Some(search) => drop(dht.answers.insert(search, (target, answer))),
                None => answer.refuse(DhtError::Busy),
            }
        }
    }

    fn searches(&mut self) -> impl Iterator<Item = (NodeId, Goal, Answer)> + '_ {
        let peers = self.peers.0.drain(..).map(|command| {
            let goal = Goal::Peers {
                announce: None,
                scrape: true,
            };
            (command.torrent.into(), goal, Answer::Peers(command.reply, Vec::new()))
        });
        let gets = self.gets.0.drain(..).map(|command| {
            let goal = Goal::Get { salt: command.salt };
            (command.target, goal, Answer::Item(command.reply))
        });
        let puts = self.puts.0.drain(..).map(|command| {
            let PutDhtItem { item, salt, cas, reply } = command;
            let target = match &item.proof {
                Some(proof) => mutable_target(&proof.key, &salt),
                None => immutable_target(&item.value),
            };
            (target, Goal::Put { item, salt, cas }, Answer::Stored(reply))
        });
        peers.chain(gets).chain(puts)
    }
}

fn stats(dht: &Dht, first: &Node, now: Timestamp) -> DhtStats {
    let mut all = first.stats(now);
    let mut further = Vec::new();
    for FurtherNode { local, node } in &dht.further {
        let stats = node.stats(now);
        further.extend(
            network(node, &stats, Family::of(local.ip())).map(|network| FurtherDhtNode {
                address: *local,
                network,
            }),
        );
        all.stored_torrents += stats.stored_torrents;
        all.stored_peers += stats.stored_peers;
        all.stored_items += stats.stored_items;
        all.counters += stats.counters;
    }
    DhtStats {
        ipv4: network(first, &all, Family::V4),
        ipv6: network(first, &all, Family::V6),
        further,
        is_read_only: first.is_read_only(),
        stored_torrents: all.stored_torrents,
        stored_peers: all.stored_peers,
        stored_items: all.stored_items,
        searches: all.searches,
        counters: all.counters,
    }
}

fn network(node: &Node, stats: &NodeStats, family: Family) -> Option<DhtNetwork> {
    let table = &stats.tables[family as usize];
    node.is_enabled(family).then(|| DhtNetwork {
        id: node.id(family),
        external_address: node.external_address(family),
        good_nodes: table.good,
        nodes: table.nodes,
    })
}
