//! The distributed hash table (BEP 5): finds peers of torrents, and announces us, without a tracker.
//!
//! The node itself is `ecs_torrent_protocol::dht::node`. This feature carries its datagrams, gives it the addresses to
//! enter the network by, decides which torrent is searched for next, and keeps its table between runs.

mod commands;
mod entering;
mod events;
mod further;
#[cfg(test)]
mod tests;
mod torrents;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::candidates::{AllowedSources, CandidateSource, CandidatesFound};
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::CommandQueue;
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::dht::{
    DhtAddressKnown, DhtAnnounced, DhtReady, FindDhtPeers, GetDhtItem, GetDhtStats, PutDhtItem,
};
use ecs_torrent_components::messages::{LifecycleChanged, MetadataKnown, PeerConnected, PeersWanted, PortReceived};
use ecs_torrent_components::peer::{FlushQueue, Outbox, Peer, Wire};
use ecs_torrent_components::random::Random;
use ecs_torrent_components::settings::{DhtSettings, Settings};
use ecs_torrent_components::torrent::{Content, Have, Lifecycle, PeerOf, Torrent, TorrentIndex};
use ecs_torrent_engine::port::OpenInbox;
use ecs_torrent_engine::ports::net::{DHT_DATAGRAMS, LocalAddresses, NetEvent, NetRequest};
use ecs_torrent_engine::ports::{NetPort, StatePort};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::compact::Family;
use ecs_torrent_protocol::dht::id::NodeId;
use ecs_torrent_protocol::dht::krpc::Want;
use ecs_torrent_protocol::dht::lookup::Parallelism;
use ecs_torrent_protocol::dht::node::{Node, NodeSettings, NodeStats, SearchId};
use ecs_torrent_protocol::dht::peers::PeerLimits;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::time::Timestamp;

use self::commands::{Answer, DhtCommands, WaitingCommands};
use self::entering::{Entry, NAMES, STATE};
use self::events::{DhtEvents, EventLimits};
use self::further::FurtherNode;
pub use self::torrents::DhtTorrent;
use self::torrents::{SearchDue, WaitingTorrents};
use crate::DecideSet;
use crate::dialing::ExternalAddresses;
use crate::ownership::{FileRegistry, Survey};

/// Finds peers in the distributed hash table.
pub struct DhtPlugin;

impl Plugin for DhtPlugin {
    fn build(&self, app: &mut App) {
        app.register_required_components::<Torrent, DhtTorrent>();
        // Without a node, datagrams stay outside.
        if app
            .world()
            .get_resource::<Settings>()
            .is_none_or(|settings| settings.dht.enabled)
        {
            app.open_inbox::<NetRequest, NetEvent>(DHT_DATAGRAMS);
        }
        app.init_resource::<Dht>()
            .init_resource::<Deadlines<SearchDue>>()
            .init_resource::<CommandQueue<GetDhtStats>>()
            .init_resource::<CommandQueue<FindDhtPeers>>()
            .init_resource::<CommandQueue<GetDhtItem>>()
            .init_resource::<CommandQueue<PutDhtItem>>()
            .add_message::<DhtReady>()
            .add_message::<DhtAddressKnown>()
            .add_message::<DhtAnnounced>()
            .add_systems(Tick, run_dht.run_if(has_work).in_set(DecideSet::Dht));
    }
}

/// The node, and the searches for torrents.
#[derive(Resource, Debug, Default)]
pub struct Dht {
    /// `None` until the first tick, or if the settings disable it.
    node: Option<Box<Node>>,
    /// Nodes at further listen addresses (BEP 45).
    further: Vec<FurtherNode>,
    /// The torrents that searches are for.
    searches: BTreeMap<SearchId, Entity>,
    /// The targets of searches for users, and where their results go.
    answers: BTreeMap<SearchId, (NodeId, Answer)>,
    waiting: WaitingTorrents,
    entry: Entry,
    /// The limits on events; `None` before the first.
    event_limits: Option<EventLimits>,
    /// The time of the next call of the node, or of the next attempt to enter the network.
    deadline: Option<Timestamp>,
}

impl Dht {
    /// Counts what the node holds and has done; `None` without a node.
    #[must_use]
    pub fn stats(&self, now: Timestamp) -> Option<NodeStats> {
        self.node.as_ref().map(|node| node.stats(now))
    }
}

/// Messages that the DHT reads.
#[derive(SystemParam)]
struct Inbox<'w, 's> {
    changed: MessageReader<'w, 's, LifecycleChanged>,
    known: MessageReader<'w, 's, MetadataKnown>,
    wanted: MessageReader<'w, 's, PeersWanted>,
    connected: MessageReader<'w, 's, PeerConnected>,
    ports: MessageReader<'w, 's, PortReceived>,
}

/// A torrent's data on which its searches depend.
type SearchedTorrent = (
    &'static Torrent,
    &'static AllowedSources,
    &'static Lifecycle,
    Option<&'static Have>,
    Option<&'static Content>,
    &'static mut DhtTorrent,
);

#[derive(SystemParam)]
struct DhtParams<'w, 's> {
    clock: Res<'w, Clock>,
    settings: Res<'w, Settings>,
    local: Res<'w, LocalAddresses>,
    random: ResMut<'w, Random>,
    net: ResMut<'w, NetPort>,
    state: ResMut<'w, StatePort>,
    due: ResMut<'w, Deadlines<SearchDue>>,
    flush: ResMut<'w, FlushQueue>,
    found: MessageWriter<'w, CandidatesFound>,
    events: DhtEvents<'w>,
    external: ResMut<'w, ExternalAddresses>,
    index: Res<'w, TorrentIndex>,
    stopped: Option<Res<'w, FileRegistry>>,
    survey: Option<ResMut<'w, Survey>>,
    torrents: Query<'w, 's, SearchedTorrent>,
    peers: Query<'w, 's, (&'static Peer, &'static PeerOf, &'static Wire, &'static mut Outbox)>,
}

/// Returns whether the DHT has something to do. If not, requests a tick for its next deadline.
fn has_work(
    dht: Res<Dht>,
    settings: Res<Settings>,
    net: Res<NetPort>,
    state: Res<StatePort>,
    due: Res<Deadlines<SearchDue>>,
    inbox: Inbox,
    commands: WaitingCommands,
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
) -> bool {
    if !settings.dht.enabled {
        return !commands.is_empty();
    }
    let next = dht.deadline.into_iter().chain(due.next()).min();
    let has_messages = !inbox.changed.is_empty()
        || !inbox.known.is_empty()
        || !inbox.wanted.is_empty()
        || !inbox.connected.is_empty()
        || !inbox.ports.is_empty()
        || !commands.is_empty();
    let has_events = net.has_events_for(DHT_DATAGRAMS) || net.has_events_for(NAMES) || state.has_events_for(STATE);
    let has_work = dht.node.is_none() || has_messages || has_events || next.is_some_and(|next| next <= clock.now());
    if !has_work {
        wakeup.at_next(next);
    }
    has_work
}

/// Runs the node for one tick.
fn run_dht(
    mut dht: ResMut<Dht>,
    mut inbox: Inbox,
    mut commands: DhtCommands,
    mut params: DhtParams,
    wakeup: Res<Wakeup>,
) {
    if !params.settings.dht.enabled {
        commands.refuse();
        return;
    }
    let now = params.clock.now();
    let dht = &mut *dht;
    let mut node = match dht.node.take() {
        Some(node) => node,
        None => params.start(dht),
    };
    params.enter(dht, &mut node);
    params.receive(dht, &mut node);
    params.exchange_ports(&mut inbox, &mut node);
    params.queue_torrents(dht, &mut node, &mut inbox);
    let are_stopped_known = params.are_stopped_known(&commands, &wakeup);
    commands.answer_stats(dht, &node, now);
    if are_stopped_known {
        commands.carry_out(dht, &mut node, now, |hash| params.is_trackers_only(hash));
    }
    if node.deadline() <= now {
        node.advance(now);
    }
    params.take_events(dht, &mut node);
    params.begin_searches(dht, &mut node);
    params.save(dht, &node);
    params.send(&mut node, None);
    params.run_further(dht);
    let next = node.deadline().min(dht.entry.deadline()).min(dht.further_deadline());
    dht.deadline = (next < Timestamp::NEVER).then_some(next);
    wakeup.at_next(dht.deadline.into_iter().chain(params.due.next()).min());
    dht.node = Some(node);
}

impl DhtParams<'_, '_> {
    /// Starts the node in the families in which we listen, and those at further addresses.
    fn start(&mut self, dht: &mut Dht) -> Box<Node> {
        let families = Family::ALL.map(|family| self.local.0.iter().any(|local| Family::of(local.ip()) == family));
        let settings = node_settings(&self.settings.dht, families);
        let count = 1 + further::addresses(&self.local).len();
        let mut settings = further::share(settings, count);
        if count > 1 {
            let id_variant = self.random.below(8) as u8;
            settings.id_variant = Some(id_variant);
            dht.further = self.start_further(&settings, id_variant);
        }
        dht.entry.start(&mut self.state, count);
        Box::new(Node::new(settings, self.random.bytes(), self.clock.now()))
    }

    /// Passes the received datagrams to the nodes that they were sent to. The first node has all that came to other
    /// addresses, and its answers leave from where the questions came in.
    fn receive(&mut self, dht: &mut Dht, node: &mut Node) {
        let now = self.clock.now();
        let datagrams: Vec<NetEvent> = self.net.take(DHT_DATAGRAMS).collect();
        for event in datagrams {
            let NetEvent::Datagram { datagram, .. } = event else {
                continue;
            };
            match dht.further.iter_mut().find(|further| further.local == datagram.to) {
                Some(further) => further.node.receive(&datagram.data, datagram.from, now),
                None => {
                    node.receive(&datagram.data, datagram.from, now);
                    self.send(node, Some((datagram.from, datagram.to)));
                }
            }
        }
    }

    /// Sends the datagrams of the first node. `answered` is the address of a question, and the one of ours at which it
    /// arrived (BEP 45).
    fn send(&mut self, node: &mut Node, answered: Option<(SocketAddr, SocketAddr)>) {
        while let Some((to, data)) = node.next_datagram() {
            if self.may_send(to) {
                let from = answered.filter(|(from, _)| *from == to).map(|(_, own)| own);
                let data = data.into();
                self.net.push(NetRequest::Datagram { from, to, data });
            }
        }
    }

    /// Whether a torrent may be searched for, and its peers may learn of our node.
    fn may_search(&self, torrent: Entity) -> bool {
        let torrent = self.torrents.get(torrent);
        torrent.is_ok_and(|(_, allowed, ..)| allowed.has(CandidateSource::DHT))
    }

    /// Whether a torrent that is listed here, and may not be searched for, or a stopped private one has the hash. No
    /// datagram may name it.
    fn is_trackers_only(&self, hash: InfoHash) -> bool {
        let torrent = self.index.get(hash).and_then(|torrent| self.torrents.get(torrent).ok());
        match torrent {
            Some((_, allowed, ..)) => !allowed.has(CandidateSource::DHT),
            None => self.stopped.as_ref().is_some_and(|stopped| stopped.is_private(hash)),
        }
    }

    /// Whether it is known which stopped torrents are private, as far as a command has to know.
    fn are_stopped_known(&mut self, commands: &DhtCommands<'_>, wakeup: &Wakeup) -> bool {
        let now = self.clock.now();
        let survey = self.survey.as_mut().filter(|_| commands.has_searches());
        survey.is_none_or(|survey| survey.request(wakeup, now).is_done())
    }

    /// Whether a datagram may leave to this address: a socket that is bound to this machine's loopback address speaks
    /// to this machine only.
    fn may_send(&self, to: SocketAddr) -> bool {
        let local = self.local.for_family_of(to);
        local.is_some_and(|local| !local.ip().is_loopback() || to.ip().is_loopback())
    }
}

fn node_settings(settings: &DhtSettings, [v4, v6]: [bool; 2]) -> NodeSettings {
    NodeSettings {
        families: Want { v4, v6 },
        parallelism: Parallelism {
            alpha: settings.alpha,
            beta: settings.beta,
        },
        max_searches: settings.max_searches,
        peers: PeerLimits {
            max_torrents: settings.max_stored_torrents,
            max_peers: settings.max_stored_peers,
            ..NodeSettings::default().peers
        },
        max_items: settings.max_stored_items,
        host_queries_per_s: settings.host_queries_per_s,
        host_burst: settings.host_queries_per_s.saturating_mul(10),
        queries_to_host_per_s: settings.queries_to_host_per_s,
        answer_bytes_per_s: settings.answer_bytes_per_s,
        max_amplification: settings.max_amplification,
        query_bytes_per_s: settings.query_bytes_per_s,
        is_read_only: settings.read_only,
        ..NodeSettings::default()
    }
}
