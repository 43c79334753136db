//! Searches for torrents: which one is next, and when again.

use std::net::SocketAddr;
use std::time::Duration;

use bevy_ecs::prelude::*;
use ecs_torrent_components::candidates::{CandidateSource, CandidatesFound};
use ecs_torrent_components::dht::DhtError;
use ecs_torrent_components::settings::seconds;
use ecs_torrent_protocol::dht::id::NodeId;
use ecs_torrent_protocol::dht::node::{Announce, Event, Found, Goal, Node, SearchId};
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::time::Timestamp;

use super::{Dht, DhtParams, Inbox};

/// Time until a torrent that needs peers is searched for again if nobody was found; doubles each time, up to the interval
/// of announces.
const FIRST_RETRY: Duration = Duration::from_secs(15);

/// Shortest time between two searches for a torrent that has lost all of its peers.
const LEAST_WAIT: Duration = Duration::from_secs(60);

/// The part of an interval by which the next announce may come earlier, so that torrents which start together spread
/// over time.
const JITTER_PERCENT: usize = 25;

/// A torrent's searches in the DHT.
#[derive(Component, Debug, Default)]
pub struct DhtTorrent {
    /// The search in progress.
    search: Option<SearchId>,
    /// Whether the torrent waits in a queue.
    is_queued: bool,
    /// The time of the next search. An earlier deadline that fires is obsolete.
    due: Option<Timestamp>,
    /// The time at which the last search began.
    began: Option<Timestamp>,
    /// Searches in a row that found nobody.
    misses: u32,
}

/// Deadline of the next search for a torrent.
#[derive(Debug)]
pub(super) struct SearchDue(Entity);

impl DhtParams<'_, '_> {
    /// Queues the torrents that begin to connect to peers, that lack peers, or whose announce is due. Ends searches for
    /// torrents that turn out to be private.
    pub(super) fn queue_torrents(&mut self, dht: &mut Dht, node: &mut Node, inbox: &mut Inbox) {
        let now = self.clock.now();
        for changed in inbox.changed.read() {
            // Completion is announced with the next interval; a torrent that begins is searched for at once.
            if changed.begins_to_connect() {
                self.take_nodes(&mut dht.entry, node, changed.torrent);
                self.queue(dht, changed.torrent);
            }
        }
        for known in inbox.known.read() {
            let Ok((data, allowed, .., mut searched)) = self.torrents.get_mut(known.torrent) else {
                continue;
            };
            if allowed.has(CandidateSource::DHT) {
                continue;
            }
            if let Some(search) = searched.search.take() {
                node.cancel(search);
                dht.searches.remove(&search);
            }
            let is_for = |target: NodeId| data.hashes.wire_hashes().any(|hash| hash.0 == target.0);
            for (search, (target, answer)) in dht.answers.extract_if(.., |_, (target, _)| is_for(*target)) {
                node.cancel(search);
                answer.refuse(DhtError::TrackersOnly(InfoHash(target.0)));
            }
        }
        for wanted in inbox.wanted.read() {
            let Ok((.., searched)) = self.torrents.get(wanted.torrent) else {
                continue;
            };
            if searched.began.is_some_and(|began| now.since(began) >= LEAST_WAIT) {
                self.queue(dht, wanted.torrent);
            }
        }
        while let Some(SearchDue(torrent)) = self.due.pop_due(now) {
            let searched = self.torrents.get(torrent).map(|(.., searched)| searched.due);
            if searched.is_ok_and(|due| due.is_some_and(|due| due <= now)) {
                self.queue(dht, torrent);
            }
        }
    }

    fn queue(&mut self, dht: &mut Dht, torrent: Entity) {
        let Ok((_, allowed, lifecycle, .., mut searched)) = self.torrents.get_mut(torrent) else {
            return;
        };
        let is_idle = !searched.is_queued && searched.search.is_none();
        if !is_idle || !lifecycle.connects() || !allowed.has(CandidateSource::DHT) {
            return;
        }
        searched.is_queued = true;
        searched.due = None;
        let queue = if lifecycle.wants_peers() {
            &mut dht.needy
        } else {
            &mut dht.others
        };
        queue.push_back(torrent);
    }

    /// Begins searches for torrents that wait, those in need first, as far as the node's budget allows.
    pub(super) fn begin_searches(&mut self, dht: &mut Dht, node: &mut Node) {
        let now = self.clock.now();
        while node.has_room(now) {
            let Some(torrent) = dht.needy.pop_front().or_else(|| dht.others.pop_front()) else {
                return;
            };
            let Ok((data, allowed, lifecycle, have, _, mut searched)) = self.torrents.get_mut(torrent) else {
                continue;
            };
            searched.is_queued = false;
            if !lifecycle.connects() || !allowed.has(CandidateSource::DHT) {
                continue;
            }
            let announce = self.local.0.first().map(|local| Announce {
                port: local.port(),
                implied_port: false,
                seed: have.is_some_and(|have| have.is_full()),
            });
            let goal = Goal::Peers {
                announce,
                scrape: false,
            };
            if let Some(search) = node.search(data.id().into(), goal, None, now) {
                searched.search = Some(search);
                searched.began = Some(now);
                dht.searches.insert(search, torrent);
            }
        }
    }

    /// Passes on the peers that searches have found, and sets the time of the next search where one has ended.
    pub(super) fn take_events(&mut self, dht: &mut Dht, node: &mut Node) {
        while let Some(event) = node.next_event() {
            match event {
                Event::Peers { search, peers, node } => {
                    if let Some((_, answer)) = dht.answers.get_mut(&search) {
                        answer.add_peers(&peers);
                    }
                    let Some(torrent) = dht.searches.get(&search) else {
                        continue;
                    };
                    self.found.write(CandidatesFound {
                        torrent: *torrent,
                        peers: peers.into_iter().map(Into::into).collect(),
                        source: CandidateSource::DHT,
                        informant: Some(node.ip()),
                    });
                }
                Event::Finished { search, found } => {
                    if let Some(torrent) = dht.searches.remove(&search) {
                        self.finish(torrent, &found);
                    } else if let Some((_, answer)) = dht.answers.remove(&search) {
                        answer.finish(*found);
                    }
                }
                Event::Announced { info_hash, peer } => self.take_announced(InfoHash(info_hash.0), peer),
                Event::ExternalAddress(address) => self.external.learn(address),
                Event::Ready(_) => {}
            }
        }
    }

    /// Takes a peer that has announced itself to our node. If the torrent is listed here, no search has to find the peer.
    fn take_announced(&mut self, info_hash: InfoHash, peer: SocketAddr) {
        let Some(torrent) = self.index.get(info_hash) else {
            return;
        };
        let is_wanted = self
            .torrents
            .get(torrent)
            .is_ok_and(|(_, allowed, lifecycle, ..)| lifecycle.connects() && allowed.has(CandidateSource::DHT));
        if is_wanted {
            self.found.write(CandidatesFound {
                torrent,
                peers: vec![peer.into()],
                source: CandidateSource::DHT,
                informant: Some(peer.ip()),
            });
        }
    }

    fn finish(&mut self, torrent: Entity, found: &Found) {
        let now = self.clock.now();
        let Ok((data, _, lifecycle, .., mut searched)) = self.torrents.get_mut(torrent) else {
            return;
        };
        searched.search = None;
        if !lifecycle.connects() {
            return;
        }
        let (nodes, stored) = (found.reply_count, found.stored_count);
        tracing::debug!(
            torrent = %data.label(),
            peers = found.peer_count,
            "searched the DHT: {nodes} nodes answered, {stored} store our address"
        );
        let interval = seconds(self.settings.dht.announce_interval_s);
        let is_miss = found.peer_count == 0 && lifecycle.wants_peers() || found.stored_count == 0;
        searched.misses = if is_miss { searched.misses.saturating_add(1) } else { 0 };
        let wait = match searched.misses {
            0 => interval,
            misses => (FIRST_RETRY * 2u32.pow((misses - 1).min(16))).min(interval),
        };
        let earlier = wait * self.random.below(JITTER_PERCENT) as u32 / 100;
        let due = now + wait.saturating_sub(earlier);
        searched.due = Some(due);
        self.due.set(due, SearchDue(torrent));
    }
}
