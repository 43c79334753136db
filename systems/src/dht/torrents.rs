//! Searches for torrents: which one is next, and when again.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use bevy_ecs::prelude::*;
use ecs_torrent_components::candidates::{CandidateSource, CandidatesFound};
use ecs_torrent_components::dht::{DhtAddressKnown, DhtError, DhtReady};
use ecs_torrent_components::settings::seconds;
use ecs_torrent_engine::ports::net::LocalAddresses;
use ecs_torrent_protocol::compact::Family;
use ecs_torrent_protocol::dht::id::NodeId;
use ecs_torrent_protocol::dht::node::{Announce, Event, Found, Goal, Node, SearchId};
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::time::Timestamp;

use super::events::{EventLimits, Outcome};
use super::{Dht, DhtParams, Inbox};

/// Time until a torrent that needs peers is searched for again if nobody was found; doubles each time, up to the
/// interval of announces.
const FIRST_RETRY: Duration = Duration::from_secs(15);

/// Shortest time between two searches for a torrent that has no peers, although the last search found some: they may
/// have left, or a lying node may have invented them.
const LEAST_WAIT: Duration = Duration::from_secs(60);

/// The part of an interval by which the next announce may come earlier. The second announce of a torrent comes at any
/// time of most of an interval, so that torrents which start together spread evenly; the later ones keep them apart.
const FIRST_JITTER_PERCENT: usize = 80;
const JITTER_PERCENT: usize = 20;

/// One of so many searches is for a torrent that has peers, even while others need some: announces would lapse
/// otherwise.
const TURNS: u32 = 4;

/// Torrents that wait for a search.
#[derive(Debug, Default)]
pub(super) struct WaitingTorrents {
    /// Torrents that need peers.
    needy: VecDeque<Entity>,
    /// Torrents that are announced again. Torrents that need peers meanwhile are in both queues.
    others: VecDeque<Entity>,
    turn: u32,
}

/// The queue in which a torrent waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Queue {
    Needy,
    Others,
}

impl WaitingTorrents {
    fn queue(&mut self, queue: Queue) -> &mut VecDeque<Entity> {
        match queue {
            Queue::Needy => &mut self.needy,
            Queue::Others => &mut self.others,
        }
    }

    /// Takes the next torrent: most often one that needs peers.
    fn take(&mut self) -> Option<(Entity, Queue)> {
        self.turn = (self.turn + 1) % TURNS;
        let order = match self.turn {
            0 => [Queue::Others, Queue::Needy],
            _ => [Queue::Needy, Queue::Others],
        };
        order
            .into_iter()
            .find_map(|queue| Some((self.queue(queue).pop_front()?, queue)))
    }
}

/// A torrent's searches in the DHT.
#[derive(Component, Debug, Default)]
pub struct DhtTorrent {
    /// The search in progress.
    search: Option<SearchId>,
    /// The queue in which the torrent waits.
    queue: Option<Queue>,
    /// Whether the queue of the others contains the torrent, perhaps from the time before it needed peers.
    is_in_others: bool,
    /// The time of the next search. An earlier deadline that fires is obsolete.
    due: Option<Timestamp>,
    /// The time at which the last search began.
    began: Option<Timestamp>,
    /// Whether a search has announced us.
    has_announced: bool,
    /// Searches in a row that found nobody.
    misses: u32,
    /// Whether the torrent has lost all of its peers, or could not reach any, since the last search began.
    lacks_peers: bool,
    /// The last outcome that was published.
    published: Option<Outcome>,
}

/// Deadline of the next search for a torrent.
#[derive(Debug)]
pub(super) struct SearchDue(Entity);

impl DhtParams<'_, '_> {
    /// Queues the torrents that begin to connect to peers, that lack peers, or whose announce is due. Ends searches for
    /// torrents that stop to connect, or turn out to be private.
    pub(super) fn queue_torrents(&mut self, dht: &mut Dht, node: &mut Node, inbox: &mut Inbox) {
        let now = self.clock.now();
        for changed in inbox.changed.read() {
            // Completion is announced with the next interval; a torrent that begins is searched for at once.
            if changed.begins_to_connect() {
                self.take_nodes(&mut dht.entry, node, changed.torrent);
                self.queue(dht, changed.torrent, false);
            } else {
                self.end_needless(dht, node, changed.torrent);
            }
        }
        for known in inbox.known.read() {
            self.end_needless(dht, node, known.torrent);
        }
        for wanted in inbox.wanted.read() {
            let Ok((.., mut searched)) = self.torrents.get_mut(wanted.torrent) else {
                continue;
            };
            let Some(began) = searched.began else { continue };
            let earliest = began + LEAST_WAIT;
            if earliest <= now {
                self.queue(dht, wanted.torrent, true);
            } else if !std::mem::replace(&mut searched.lacks_peers, true) && searched.search.is_none() {
                self.set_due(wanted.torrent, earliest);
            }
        }
        while let Some(SearchDue(torrent)) = self.due.pop_due(now) {
            let Ok((.., searched)) = self.torrents.get(torrent) else {
                continue;
            };
            if searched.due.is_some_and(|due| due <= now) {
                let lacks_peers = searched.lacks_peers;
                self.queue(dht, torrent, lacks_peers);
            }
        }
    }

    /// Ends the searches for a torrent that may not have any: its own also if it no longer connects to peers, for they
    /// would announce us.
    fn end_needless(&mut self, dht: &mut Dht, node: &mut Node, torrent: Entity) {
        let Ok((data, allowed, lifecycle, .., mut searched)) = self.torrents.get_mut(torrent) else {
            return;
        };
        let is_allowed = allowed.has(CandidateSource::DHT);
        if !(is_allowed && lifecycle.connects())
            && let Some(search) = searched.search.take()
        {
            node.cancel(search);
            dht.searches.remove(&search);
        }
        if is_allowed {
            return;
        }
        let is_for = |target: NodeId| data.hashes.wire_hashes().any(|hash| hash.0 == target.0);
        for (search, (target, answer)) in dht.answers.extract_if(.., |_, (target, _)| is_for(*target)) {
            node.cancel(search);
            answer.refuse(DhtError::TrackersOnly(InfoHash(target.0)));
        }
    }

    /// Sets the time of the next search for a torrent, unless an earlier one is set.
    fn set_due(&mut self, torrent: Entity, at: Timestamp) {
        if let Ok((.., mut searched)) = self.torrents.get_mut(torrent)
            && searched.due.is_none_or(|due| at < due)
        {
            searched.due = Some(at);
            self.due.set(at, SearchDue(torrent));
        }
    }

    /// Lets a torrent wait for a search. One that has lost its peers, has not been searched for, or found nobody last
    /// time needs peers if it downloads.
    fn queue(&mut self, dht: &mut Dht, torrent: Entity, lacks_peers: bool) {
        let Ok((_, allowed, lifecycle, .., mut searched)) = self.torrents.get_mut(torrent) else {
            return;
        };
        if searched.search.is_some() || !lifecycle.connects() || !allowed.has(CandidateSource::DHT) {
            return;
        }
        let is_needy = lifecycle.wants_peers() && (lacks_peers || searched.began.is_none() || searched.misses > 0);
        let queue = if is_needy { Queue::Needy } else { Queue::Others };
        if searched.queue == Some(queue) || searched.queue == Some(Queue::Needy) {
            return;
        }
        searched.queue = Some(queue);
        searched.due = None;
        let is_in_others = queue == Queue::Others && std::mem::replace(&mut searched.is_in_others, true);
        if !is_in_others {
            dht.waiting.queue(queue).push_back(torrent);
        }
    }

    /// Begins searches for torrents that wait, as far as the node's budget allows.
    pub(super) fn begin_searches(&mut self, dht: &mut Dht, node: &mut Node) {
        let now = self.clock.now();
        while node.has_room(now) {
            let Some((torrent, queue)) = dht.waiting.take() else {
                return;
            };
            let Ok((data, allowed, lifecycle, have, _, mut searched)) = self.torrents.get_mut(torrent) else {
                continue;
            };
            searched.is_in_others &= queue != Queue::Others;
            if searched.queue != Some(queue) {
                continue;
            }
            searched.queue = None;
            if !lifecycle.connects() || !allowed.has(CandidateSource::DHT) {
                continue;
            }
            let announce = ports(&self.local).map(|ports| Announce {
                ports,
                implied_port: false,
                seed: have.is_some_and(|have| have.is_full()),
            });
            let goal = Goal::Peers {
                announce,
                scrape: false,
            };
            if let Some(search) = node.search(data.id().into(), goal, None, now) {
                if queue == Queue::Others {
                    node.set_patient(search);
                }
                searched.search = Some(search);
                searched.began = Some(now);
                searched.lacks_peers = false;
                dht.searches.insert(search, torrent);
            }
        }
    }

    /// Passes on the peers that searches have found, and sets the time of the next search where one has ended.
    pub(super) fn take_events(&mut self, dht: &mut Dht, node: &mut Node) {
        let now = self.clock.now();
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
                        self.finish(
                            torrent,
                            &found,
                            dht.event_limits.get_or_insert_with(|| EventLimits::new(now)),
                        );
                    } else if let Some((_, answer)) = dht.answers.remove(&search) {
                        answer.finish(*found);
                    }
                }
                Event::Announced { info_hash, peer } => self.take_announced(InfoHash(info_hash.0), peer),
                Event::ExternalAddress(address) => {
                    self.external.learn(address);
                    let limits = dht.event_limits.get_or_insert_with(|| EventLimits::new(now));
                    self.events.publish_address(DhtAddressKnown { address }, limits, now);
                }
                Event::Ready(family) => {
                    self.introduce_further(dht, node, family);
                    let limits = dht.event_limits.get_or_insert_with(|| EventLimits::new(now));
                    self.events.publish_ready(DhtReady { family }, limits, now);
                }
            }
        }
    }

    /// Takes a peer that has announced itself to our node. If the torrent is listed here, no search has to find the
    /// peer.
    pub(super) fn take_announced(&mut self, info_hash: InfoHash, peer: SocketAddr) {
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

    fn finish(&mut self, torrent: Entity, found: &Found, limits: &mut EventLimits) {
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
        self.events
            .publish_search(torrent, found, &mut searched.published, limits, now);
        let interval = seconds(self.settings.dht.announce_interval_s);
        let is_miss = found.peer_count == 0 && lifecycle.wants_peers() || found.stored_count == 0;
        searched.misses = if is_miss { searched.misses.saturating_add(1) } else { 0 };
        let wait = match searched.misses {
            0 => interval,
            misses => (FIRST_RETRY * 2u32.pow((misses - 1).min(16))).min(interval),
        };
        let is_first = !is_miss && !std::mem::replace(&mut searched.has_announced, !is_miss);
        let jitter_percent = if is_first { FIRST_JITTER_PERCENT } else { JITTER_PERCENT };
        let earlier = wait * self.random.below(jitter_percent) as u32 / 100;
        let mut due = now + wait.saturating_sub(earlier);
        if searched.lacks_peers
            && let Some(began) = searched.began
        {
            due = due.min(began + LEAST_WAIT);
        }
        searched.due = None;
        self.set_due(torrent, due);
    }
}

/// Returns the ports at which we listen in each family. The port of the other family stands for one that is missing.
fn ports(local: &LocalAddresses) -> Option<[u16; 2]> {
    let first = local.0.first()?.port();
    let port = |family| local.0.iter().find(|local| Family::of(local.ip()) == family);
    Some(Family::ALL.map(|family| port(family).map_or(first, SocketAddr::port)))
}
