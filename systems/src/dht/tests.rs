//! The order and the rate of searches, counted in datagrams. A few nodes that answer everything stand for the network.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bevy_ecs::system::SystemId;
use bytes::Bytes;
use ecs_torrent_engine::ports::net::{Datagram, DatagramKind};
use ecs_torrent_engine::ports::state::{StateEvent, StateRequest};
use ecs_torrent_protocol::dht::id::NodeId;
use ecs_torrent_protocol::dht::krpc::{Body, Message, Method, Packet, Reply};
use ecs_torrent_protocol::hash::{InfoHash, InfoHashes};

use super::*;
use crate::testing::{Bed, NOW, torrent};

/// Time between two ticks. An answer takes as long.
const STEP: Duration = Duration::from_millis(200);

/// The number of nodes, all of which are asked and store each torrent.
const NODES: u8 = 8;

struct Network {
    bed: Bed,
    system: SystemId,
    ids: Vec<NodeId>,
    /// The datagrams that were sent in the last tick.
    sent: Vec<(SocketAddr, Bytes)>,
    now: Timestamp,
    /// Torrents by the time of their announce to a node.
    announced: Vec<(Timestamp, InfoHash)>,
    /// Whether the nodes know a peer of each torrent.
    has_peers: bool,
    /// Bytes sent in each second.
    bytes: BTreeMap<u64, usize>,
    /// Queries to each node in each second.
    queries: BTreeMap<(SocketAddr, u64), usize>,
    /// The number of times that the node was ready.
    ready: usize,
    /// Torrents whose searches were published, with the numbers of peers and nodes.
    published: Vec<(Entity, usize, usize)>,
}

fn address(node: u8) -> SocketAddr {
    ([20, node, 1, 1], 6881).into()
}

fn hash(number: u32) -> InfoHash {
    let mut hash = [7; 20];
    hash[..4].copy_from_slice(&number.to_be_bytes());
    InfoHash(hash)
}

impl Network {
    /// Creates a network that takes all queries, as one of thousands of nodes would.
    fn new(query_bytes_per_s: u32) -> Self {
        Self::with_limits(query_bytes_per_s, 100_000)
    }

    fn with_limits(query_bytes_per_s: u32, queries_to_host_per_s: u32) -> Self {
        let mut bed = Bed::new(DhtPlugin);
        let world = &mut bed.world;
        world.init_resource::<Messages<LifecycleChanged>>();
        world.init_resource::<Messages<MetadataKnown>>();
        world.init_resource::<Messages<PeersWanted>>();
        world.init_resource::<Messages<PeerConnected>>();
        world.init_resource::<Messages<PortReceived>>();
        world.init_resource::<Messages<CandidatesFound>>();
        world.init_resource::<ExternalAddresses>();
        world.init_resource::<TorrentIndex>();
        world.insert_resource(LocalAddresses(vec![([0, 0, 0, 0], 6881).into()]));
        let mut settings = world.resource_mut::<Settings>();
        settings.dht.query_bytes_per_s = query_bytes_per_s;
        settings.dht.queries_to_host_per_s = queries_to_host_per_s;
        settings.dht.bootstrap = (1..=NODES).map(|node| address(node).to_string()).collect();
        bed.open_port::<StateRequest, StateEvent>(Vec::new());
        bed.open_port::<NetRequest, NetEvent>(Vec::new());
        let mut random = Random::from_seed([3; 32]);
        let system = bed.world.register_system(run_dht);
        Self {
            bed,
            system,
            ids: (1..=NODES)
                .map(|node| NodeId::random_for(address(node).ip(), random.generator()))
                .collect(),
            sent: Vec::new(),
            now: NOW,
            announced: Vec::new(),
            has_peers: false,
            bytes: BTreeMap::new(),
            queries: BTreeMap::new(),
            ready: 0,
            published: Vec::new(),
        }
    }

    /// Adds torrents that begin now.
    fn add(&mut self, numbers: std::ops::Range<u32>, state: &Lifecycle) -> Vec<Entity> {
        let allowed: ecs_torrent_components::candidates::SourceSet = CandidateSource::DHT.into();
        let added: Vec<Entity> = numbers
            .map(|number| {
                let mut names = torrent();
                names.hashes = InfoHashes {
                    v1: Some(hash(number)),
                    v2: None,
                };
                let parts = (names, AllowedSources(allowed), state.clone(), DhtTorrent::default());
                self.bed.world.spawn(parts).id()
            })
            .collect();
        for torrent in &added {
            self.bed.world.write_message(LifecycleChanged {
                torrent: *torrent,
                from: Lifecycle::Adding,
                to: state.clone(),
            });
        }
        added
    }

    /// Runs ticks, in which the nodes answer what was sent in the tick before.
    fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            self.now += STEP;
            let sent = std::mem::take(&mut self.sent);
            let answers = sent.into_iter().filter_map(|(to, data)| self.answer(to, &data));
            let answers: Vec<NetEvent> = answers.collect();
            self.bed.open_port::<NetRequest, NetEvent>(answers);
            let world = &mut self.bed.world;
            world.resource_mut::<Clock>().advance_to(self.now);
            world.run_system(self.system).expect("all parameters exist");
            world.resource_mut::<Messages<LifecycleChanged>>().clear();
            world.resource_mut::<Messages<PeersWanted>>().clear();
            world.resource_mut::<Messages<CandidatesFound>>().clear();
            self.ready += world.resource_mut::<Messages<DhtReady>>().drain().count();
            let mut published = world.resource_mut::<Messages<DhtAnnounced>>();
            let published = published.drain();
            self.published
                .extend(published.map(|event| (event.torrent, event.peers, event.nodes)));
            for request in world.resource::<NetPort>().outgoing() {
                if let NetRequest::Datagram { to, data, .. } = request {
                    self.sent.push((*to, data.clone()));
                    let second = self.now.since(NOW).as_secs();
                    *self.bytes.entry(second).or_default() += data.len();
                    *self.queries.entry((*to, second)).or_default() += 1;
                }
            }
        }
    }

    fn answer(&mut self, to: SocketAddr, data: &Bytes) -> Option<NetEvent> {
        let node = (1..=NODES).find(|node| address(*node) == to)?;
        let packet = Packet::parse(data).ok()?;
        let message = packet.message().ok()?;
        let Body::Query(query) = &message.body else { return None };
        if let (Ok(Method::AnnouncePeer { info_hash, .. }), 1) = (query.method, node) {
            self.announced.push((self.now, InfoHash(info_hash.0)));
        }
        let peer = SocketAddr::from(([30, 1, 1, 1], 6881));
        let has_peers = self.has_peers && matches!(query.method, Ok(Method::GetPeers { .. }));
        let reply = Reply {
            values: has_peers.then_some(peer).into_iter().collect(),
            token: Some(b"token"),
            ..Reply::new(self.ids[usize::from(node) - 1])
        };
        let answer = Message {
            transaction: message.transaction,
            version: None,
            external: None,
            body: Body::Reply(reply),
        };
        Some(NetEvent::Datagram {
            kind: DatagramKind::Dht,
            datagram: Datagram {
                to: ([0, 0, 0, 0], 6881).into(),
                from: to,
                arrived: self.now,
                data: answer.write().into(),
            },
        })
    }

    /// Returns the torrents that were announced from one time to another, in seconds since the start.
    fn announced(&self, from: u64, to: u64) -> Vec<InfoHash> {
        let is_then = |at: &Timestamp| (from..to).contains(&at.since(NOW).as_secs());
        self.announced
            .iter()
            .filter(|(at, _)| is_then(at))
            .map(|(_, hash)| *hash)
            .collect()
    }
}

fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

/// The budget holds at any time, torrents take turns, and those in need come first without stopping the others.
#[test]
fn a_hundred_thousand_torrents_stay_within_the_budget() {
    const BUDGET: u32 = 8 << 10;
    let mut network = Network::new(BUDGET);
    network.add(0..100_000, &Lifecycle::Seeding);
    network.run_for(minutes(5));
    let before = network.announced(0, 300);
    // 8 requests for peers and 8 announces take some 2 KiB.
    assert!(before.len() > 900, "{} announces: the budget is used", before.len());
    assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), before.len(), "each once");
    let counts: Vec<usize> = (1..5)
        .map(|minute| network.announced(60 * minute, 60 * (minute + 1)).len())
        .collect();
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    assert!(most * 10 < least * 11, "{counts:?}");

    network.add(100_000..100_100, &Lifecycle::Downloading);
    network.run_for(minutes(1));
    let after = network.announced(300, 360);
    let needy: BTreeSet<&InfoHash> = after.iter().filter(|torrent| **torrent >= hash(100_000)).collect();
    assert_eq!(needy.len(), 100);
    let others = after.iter().filter(|torrent| **torrent < hash(100_000)).count();
    assert!((30..150).contains(&others), "{others} of {}", after.len());

    // The first three seconds have the burst.
    for (second, sent) in network.bytes.range(10..) {
        assert!(*sent < 2 * BUDGET as usize, "{sent} bytes in second {second}");
    }
    for second in network.bytes.keys() {
        let sent: usize = network.bytes.range(*second..second + 10).map(|(_, bytes)| bytes).sum();
        // A burst of three seconds, and the announces of the searches in progress.
        assert!(
            sent < 13 * BUDGET as usize + 32 * 8 * 160,
            "{sent} bytes from second {second}"
        );
    }
}

/// Few nodes are known. None gets more queries than a host takes, and torrents in need come first.
#[test]
fn torrents_in_need_come_first_where_hosts_are_the_limit() {
    let mut network = Network::with_limits(48 << 10, 4);
    network.add(0..500, &Lifecycle::Seeding);
    network.run_for(minutes(1));
    let before = network.announced.len();
    assert!((80..=130).contains(&before), "{before} of 500 announces");
    network.add(500..520, &Lifecycle::Downloading);
    network.run_for(Duration::from_secs(30));
    let after = network.announced[before..].iter().map(|(_, torrent)| *torrent);
    let needy: BTreeSet<InfoHash> = after.filter(|torrent| *torrent >= hash(500)).collect();
    assert_eq!(needy.len(), 20, "of {}", network.announced.len() - before);
    for node in (1..=NODES).map(address) {
        for second in 0..80 {
            let sent: usize = network
                .queries
                .range((node, second)..(node, second + 10))
                .map(|(_, count)| count)
                .sum();
            // One more for the search that fills the table before the limit counts.
            assert!(sent <= 51, "{sent} queries to {node} from second {second}");
        }
    }
}

/// Torrents that begin at the same moment are announced at different times from then on.
#[test]
fn announces_of_torrents_that_start_together_spread() {
    let mut network = Network::new(48 << 10);
    network.add(0..1000, &Lifecycle::Seeding);
    network.run_for(minutes(70));
    assert_eq!(
        network.announced(0, 120).len(),
        1000,
        "all at once at first, as fast as the budget allows"
    );
    let counts: Vec<usize> = (1..6)
        .map(|part| network.announced(600 * part + 600, 600 * part + 1200).len())
        .collect();
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    assert!(most * 2 < least * 3, "announces in ten minutes: {counts:?}");
}

/// A torrent that loses its peers overtakes those that wait for their turn.
#[test]
fn a_torrent_that_loses_its_peers_is_searched_for_at_once() {
    let mut network = Network::new(4 << 10);
    network.has_peers = true;
    let wanted = network.add(0..1, &Lifecycle::Downloading)[0];
    network.run_for(minutes(2));
    network.add(1..5000, &Lifecycle::Seeding);
    network.run_for(minutes(1));
    let before = network.announced.len();
    network.bed.world.write_message(PeersWanted { torrent: wanted });
    network.run_for(Duration::from_secs(40));
    let position = network.announced[before..]
        .iter()
        .position(|(_, torrent)| *torrent == hash(0));
    assert!(position.is_some_and(|position| position < 40), "{position:?}");
}

/// Nodes name peers that nobody can reach, so the torrent has none, whether it says so during the search or after it.
/// It is searched for again after a minute, not with the next announce.
#[test]
fn a_torrent_whose_peers_are_invented_is_searched_for_again() {
    for millis in [200, 10_000, 100_000] {
        let mut network = Network::new(48 << 10);
        network.has_peers = true;
        let wanted = network.add(0..1, &Lifecycle::Downloading)[0];
        network.run_for(Duration::from_millis(millis));
        network.bed.world.write_message(PeersWanted { torrent: wanted });
        network.run_for(minutes(4));
        let again = (millis / 1000).max(60);
        assert_eq!(network.announced(0, again).len(), 1, "{:?}", network.announced);
        let announced = network.announced(again, again + 10).len();
        assert_eq!(announced, 1, "{:?}", network.announced);
        assert_eq!(network.announced(again + 10, 240).len(), 0);
    }
}

#[test]
fn the_outcome_of_searches_is_published_when_it_changes() {
    let mut network = Network::new(48 << 10);
    network.has_peers = true;
    let torrent = network.add(0..1, &Lifecycle::Downloading)[0];
    network.run_for(minutes(65));
    let nodes = usize::from(NODES);
    assert!(network.announced(0, 65 * 60).len() >= 3, "announced again and again");
    assert_eq!((network.ready, &network.published[..]), (1, &[(torrent, 1, nodes)][..]));
    network.has_peers = false;
    network.run_for(minutes(25));
    assert_eq!(network.published[1..], [(torrent, 0, nodes)]);
}

/// A log of events holds 4096. Torrents that are not published at first are published after a later search.
#[test]
fn news_about_many_torrents_are_bounded() {
    let mut network = Network::new(1 << 20);
    network.add(0..1500, &Lifecycle::Seeding);
    network.run_for(minutes(1));
    assert_eq!(network.announced(0, 60).len(), 1500);
    let count = network.published.len();
    assert!((512..512 + 5 * 61).contains(&count), "{count}");
    network.run_for(minutes(60));
    let torrents: BTreeSet<Entity> = network.published.iter().map(|(torrent, ..)| *torrent).collect();
    assert_eq!((torrents.len(), network.published.len()), (1500, 1500), "each once");
}
