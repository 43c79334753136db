//! Torrents whose peers are found in the distributed hash table (BEP 5).

use ecs_torrent::components::commands::{ResumeAll, StopTorrent, SupplyMetadata, TorrentSource, UnfetchedTorrent};
use ecs_torrent::components::dht::{DhtError, DhtStats, FindDhtPeers, GetDhtItem, GetDhtStats, PutDhtItem};
use ecs_torrent::components::hints::LinkHints;
use ecs_torrent::engine::sim::{Crash, NewNode};
use ecs_torrent::protocol::dht::items::{Item, mutable_target, public_key};
use ecs_torrent::protocol::dht::node::NodeStats;
use ecs_torrent::protocol::hash::{InfoHash, sha1};
use ecs_torrent::protocol::magnet::MutableLink;
use ecs_torrent::sim::invariants::{Invariant, InvariantsPlugin, Violation, Violations};
use ecs_torrent::systems::dht::Dht;

use super::mutants::AllowsAll;
use super::*;
use crate::skipping::is_unoptimized;

/// A network of engines that enter the DHT by the first one, a seed, and a leecher that knows the torrent's hash.
struct Network {
    sim: Simulation,
    content: Content,
    others: Vec<NodeId>,
    seeder: NodeId,
    leecher: NodeId,
}

fn settings(has_dht: bool) -> Settings {
    let mut settings = Settings::default();
    settings.dht.enabled = has_dht;
    settings.dht.bootstrap = vec![format!("{}:6881", ip(100))];
    settings
}

impl Network {
    fn new(is_private: bool, has_dht: bool) -> Self {
        let mut network = Self::of(12, is_private, has_dht);
        let (seeder, content) = (network.seeder, network.content.clone());
        add(&mut network.sim, seeder, &content, vec![]);
        network.run(20);
        network
    }

    /// A network in which the seed has its data, and no torrent is added yet.
    fn of(other_count: u8, is_private: bool, has_dht: bool) -> Self {
        let content = NewContent {
            len: 300_001,
            is_private,
            ..NewContent::default()
        }
        .make();
        let mut sim = Simulation::new(7, Duration::from_millis(50));
        let plugins = (TorrentPlugins, InvariantsPlugin);
        let mut add_node = |ip| sim.add(NewNode::new(ip, settings(has_dht), plugins));
        let others = (100..100 + other_count).map(|n| add_node(ip(n))).collect();
        let seeder = add_node(ip(10));
        let leecher = add_node(ip(11));
        sim.put(seeder, "downloads", &content);
        let mut network = Self {
            sim,
            content,
            others,
            seeder,
            leecher,
        };
        network.run(20);
        network
    }

    /// Adds the torrent to the leecher by its hash alone.
    fn add_magnet(&mut self) {
        self.add_magnet_to(self.leecher);
    }

    fn add_magnet_to(&mut self, node: NodeId) {
        add_unfetched(&mut self.sim, node, self.content.info_hash());
    }

    /// Adds a torrent to the leecher by a hash whose metadata arrives while the DHT is searched.
    fn add_magnet_with(&mut self, info: &Bytes) -> InfoHash {
        let torrent = InfoHash(sha1([&info[..]]));
        let leecher = self.leecher;
        add_unfetched(&mut self.sim, leecher, torrent);
        self.sim.run_for(Duration::from_millis(150));
        let supply = SupplyMetadata {
            torrent,
            info: info.clone(),
            reply: Reply::ignored(),
        };
        let world = self.sim.node(leecher).world_mut();
        world.resource_mut::<CommandQueue<SupplyMetadata>>().0.push_back(supply);
        self.sim.nudge(leecher);
        torrent
    }

    /// Sends a command to the leecher, and waits for its answer.
    fn send<C: Send + Sync + 'static, T: Send + 'static>(&mut self, command: impl FnOnce(Reply<T>) -> C) -> T {
        let slot = Arc::new(Mutex::new(None));
        let out = slot.clone();
        let command = command(Reply::new(move |answer| *out.lock().unwrap() = Some(answer)));
        let world = self.sim.node(self.leecher).world_mut();
        world.resource_mut::<CommandQueue<C>>().0.push_back(command);
        self.sim.nudge(self.leecher);
        self.run(10);
        slot.lock().unwrap().take().expect("an answer")
    }

    fn completes(&mut self, seconds: u64) -> bool {
        let (leecher, content) = (self.leecher, self.content.clone());
        let limit = self.sim.now() + Duration::from_secs(seconds);
        let is_complete = self.sim.run_until(limit, |sim| sim.has(leecher, "downloads", &content));
        self.check();
        is_complete
    }

    fn run(&mut self, seconds: u64) {
        self.sim.run_for(Duration::from_secs(seconds));
        self.check();
    }

    fn nodes(&self) -> Vec<NodeId> {
        self.others.iter().copied().chain([self.seeder, self.leecher]).collect()
    }

    fn check(&mut self) {
        for node in self.nodes() {
            let found = self.sim.node(node).world_mut().resource_mut::<Violations>().take();
            assert!(found.is_empty(), "{found:?}");
        }
    }

    fn stats(&mut self, node: NodeId) -> Option<NodeStats> {
        let now = self.sim.now();
        self.sim.node(node).world().resource::<Dht>().stats(now)
    }

    /// The number of torrents of which any engine stores peers.
    fn stored(&mut self) -> usize {
        let nodes = self.nodes();
        nodes
            .into_iter()
            .filter_map(|node| Some(self.stats(node)?.stored_torrents))
            .sum()
    }
}

/// Adds a torrent to an engine by its hash alone.
fn add_unfetched(sim: &mut Simulation, node: NodeId, info_hash: InfoHash) {
    let source = TorrentSource::InfoHash(UnfetchedTorrent {
        info_hash,
        name: None,
        trackers: vec![],
        peers: Vec::new(),
        hints: LinkHints::default(),
    });
    let options = AddOptions {
        root: Some("downloads".into()),
        ..AddOptions::default()
    };
    let world = sim.node(node).world_mut();
    let mut queue = world.resource_mut::<CommandQueue<AddTorrent>>();
    queue.0.push_back(AddTorrent {
        source,
        options,
        is_resumed: false,
        reply: Reply::ignored(),
    });
    sim.nudge(node);
}

#[test]
fn a_magnet_without_trackers_downloads_by_the_dht_alone() {
    let mut network = Network::new(false, true);
    assert!(network.stored() >= 8, "the seed is announced");
    network.add_magnet();
    // The table is warm: a lookup, a connection, metadata and content take less than two seconds.
    assert!(network.completes(2));
    let mut without = Network::new(false, false);
    without.add_magnet();
    assert!(!without.completes(60), "the test needs the DHT to pass");
    let nodes = without.nodes();
    assert!(nodes.into_iter().all(|node| without.stats(node).is_none()));
}

/// An engine that has just started, with an empty table and one bootstrap host.
#[test]
fn a_cold_start_takes_two_seconds() {
    let mut network = Network::new(false, true);
    let plugins = (TorrentPlugins, InvariantsPlugin);
    let newcomer = network.sim.add(NewNode::new(ip(200), settings(true), plugins));
    network.add_magnet_to(newcomer);
    network.leecher = newcomer;
    assert!(network.completes(2));
}

/// Searches, items and state for users of the library.
#[test]
fn commands_are_answered() {
    let mut network = Network::new(false, true);
    let torrent = network.content.info_hash();
    let found = network.send(|reply| FindDhtPeers { torrent, reply }).unwrap();
    assert_eq!(found.peers, [(ip(10), 6881).into()]);
    assert!(found.nodes >= 8 && found.seeds == Some(1), "{found:?}");
    let item = Item::sign(&[7; 32], b"salt", 1, b"5:value").unwrap();
    let target = mutable_target(&public_key(&[7; 32]), b"salt");
    let put = |item: Item| {
        move |reply| PutDhtItem {
            item,
            salt: b"salt".to_vec(),
            cas: None,
            reply,
        }
    };
    assert!(network.send(put(item.clone())).unwrap() >= 6);
    let get = |reply| GetDhtItem {
        target,
        salt: b"salt".to_vec(),
        reply,
    };
    assert_eq!(network.send(get), Ok(Some(item)));
    let older = Item::sign(&[7; 32], b"salt", 0, b"3:old").unwrap();
    assert_eq!(network.send(put(older)), Err(DhtError::Refused(302)));
    let stats = network.send(|reply| GetDhtStats { reply });
    assert!(stats.ipv4.is_some_and(|ipv4| ipv4.good_nodes >= 8) && stats.ipv6.is_none());
    let mut without = Network::new(false, false);
    let refused = without.send(|reply| FindDhtPeers { torrent, reply });
    assert_eq!(refused, Err(DhtError::Off));
    assert_eq!(without.send(|reply| GetDhtStats { reply }), DhtStats::default());
}

/// BEP 27: neither announced nor searched for, from the file or from the moment at which a peer's metadata says so.
#[test]
fn private_torrents_never_appear_in_the_dht() {
    if is_unoptimized(
        "private_torrents_never_appear_in_the_dht",
        "simulates an hour, which takes long without optimization",
    ) {
        return;
    }
    let mut network = Network::new(true, true);
    let before = network.stats(network.seeder).unwrap().counters.queries_sent;
    network.run(3600);
    assert_eq!(network.stored(), 0);
    let sent = network.stats(network.seeder).unwrap().counters.queries_sent - before;
    assert!(sent < 400, "upkeep only: {sent} queries");
}

/// The test of the test above: a rule that allows the DHT shows in the datagrams, in searches and in announces.
#[test]
fn a_private_torrent_that_appears_in_the_dht_is_found_out() {
    let mut network = Network::of(12, true, true);
    let plugins = (TorrentPlugins, InvariantsPlugin, AllowsAll);
    let seeder = network.sim.add(NewNode::new(ip(20), settings(true), plugins));
    let content = network.content.clone();
    network.sim.put(seeder, "downloads", &content);
    add(&mut network.sim, seeder, &content, vec![]);
    network.run(20);
    let found = network.sim.node(seeder).world_mut().resource_mut::<Violations>().take();
    for text in ["get_peers to", "announce_peer to"] {
        let is_leak =
            |violation: &Violation| violation.invariant == Invariant::Private && violation.what.contains(text);
        assert!(found.iter().any(is_leak), "{text}: {found:?}");
    }
}

/// A private torrent that is listed here is not even searched for by command, also when its metadata comes later.
#[test]
fn commands_do_not_name_private_torrents() {
    for is_known in [true, false] {
        let mut network = Network::of(12, true, true);
        let torrent = network.content.info_hash();
        let (seeder, leecher, content) = (network.seeder, network.leecher, network.content.clone());
        add(&mut network.sim, seeder, &content, vec![]);
        network.run(5);
        if is_known {
            add(&mut network.sim, leecher, &content, vec![]);
            network.run(5);
        } else {
            assert!(network.send(|reply| FindDhtPeers { torrent, reply }).is_ok());
            network.add_magnet();
            network.run(5);
            assert!(network.send(|reply| FindDhtPeers { torrent, reply }).is_ok());
            add(&mut network.sim, leecher, &content, vec![]);
            network.run(5);
        }
        let refused = Err(DhtError::TrackersOnly(torrent));
        assert_eq!(network.send(|reply| FindDhtPeers { torrent, reply }), refused);
        let (target, salt) = (torrent.into(), Vec::new());
        let got = network.send(|reply| GetDhtItem { target, salt, reply });
        assert_eq!(got, Err(DhtError::TrackersOnly(torrent)));
        // Under a public key (BEP 46).
        let (salt, cas) = (Vec::new(), None);
        let item = Item::sign(&[1; 32], &salt, 1, &MutableLink::value_of(torrent)).unwrap();
        let put = network.send(|reply| PutDhtItem { item, salt, cas, reply });
        assert_eq!(put, Err(DhtError::TrackersOnly(torrent)));
        // A stopped torrent is as private as a listed one, and so is one that an earlier run stopped.
        assert!(network.send(|reply| StopTorrent { torrent, reply }).is_ok());
        assert_eq!(network.send(|reply| FindDhtPeers { torrent, reply }), refused);
        network.sim.restart(leecher);
        assert_eq!(network.send(|reply| FindDhtPeers { torrent, reply }), refused);
    }
}

/// Metadata that cannot be used may say that the torrent is private (BEP 27). The search in progress ends, so that no
/// node stores our address, and after a crash there is no other.
#[test]
fn unusable_metadata_of_a_private_torrent_ends_its_search() {
    let info = |is_private: bool| {
        let private = if is_private { "7:privatei1e" } else { "" };
        Bytes::from(format!(
            "d6:lengthi5e4:name1:x12:piece lengthi16384e6:pieces3:abc{private}e"
        ))
    };
    let mut network = Network::of(12, false, true);
    network.add_magnet_with(&info(true));
    network.run(20);
    assert_eq!(network.stored(), 0);
    let leecher = network.leecher;
    network.sim.crash(leecher, Crash::Process);
    network.sim.restart(leecher);
    assert!(
        network
            .send(|reply| ResumeAll {
                include_stopped: false,
                reply
            })
            .is_ok()
    );
    let queries = |network: &mut Network| network.stats(leecher).unwrap().counters.queries_sent;
    network.run(60);
    let before = queries(&mut network);
    network.run(60);
    assert!(queries(&mut network) - before < 60, "upkeep only");
    assert_eq!(network.stored(), 0);
}

/// A torrent that is paused or stopped while it is searched for is not announced.
#[test]
fn searches_end_with_their_torrent() {
    let mut network = Network::of(12, false, true);
    let torrent = network.content.info_hash();
    network.add_magnet();
    network.sim.run_for(Duration::from_millis(150));
    assert_eq!(network.stats(network.leecher).unwrap().searches, 1);
    assert!(network.send(|reply| StopTorrent { torrent, reply }).is_ok());
    network.run(20);
    assert_eq!(network.stored(), 0);
    assert_eq!(network.stats(network.leecher).unwrap().searches, 0);
}

/// Announces are repeated before other nodes forget them, and end with the torrent.
#[test]
fn announces_keep_a_torrent_alive() {
    if is_unoptimized(
        "announces_keep_a_torrent_alive",
        "simulates an hour, which takes long without optimization",
    ) {
        return;
    }
    let mut network = Network::new(false, true);
    network.run(3600);
    assert!(network.stored() >= 8);
    let seeder = network.seeder;
    let before = network.stats(seeder).unwrap().counters;
    network.run(1800);
    let after = network.stats(seeder).unwrap().counters;
    let sent = after.bytes_sent - before.bytes_sent;
    assert!(sent < 200_000, "{sent} bytes in half an hour");
}

/// The table outlives a restart: the network is entered without the bootstrap host.
#[test]
fn the_table_is_kept_between_runs() {
    let mut network = Network::new(false, true);
    network.run(120);
    let (leecher, host) = (network.leecher, network.others.remove(0));
    network.sim.restart(leecher);
    network.sim.crash(host, Crash::Process);
    network.run(30);
    let tables = network.stats(leecher).unwrap().tables;
    assert!(tables[0].good >= 6, "{tables:?}");
    network.add_magnet();
    assert!(network.completes(10));
}

/// A peer names its node, by which an engine without a bootstrap host enters the network (BEP 5, `PORT`).
#[test]
fn peers_name_their_nodes() {
    let mut network = Network::new(false, true);
    let mut lonely = settings(true);
    lonely.dht.bootstrap.clear();
    let plugins = (TorrentPlugins, InvariantsPlugin);
    let newcomer = network.sim.add(NewNode::new(ip(200), lonely, plugins));
    network.run(60);
    let idle = network.sim.tick_count(newcomer);
    network.run(60);
    assert_eq!(network.stats(newcomer).unwrap().tables[0].nodes, 0);
    let ticks = network.sim.tick_count(newcomer) - idle;
    assert!(ticks <= 120, "a node without contacts sleeps: {ticks} ticks");
    let content = network.content.clone();
    let peer = (ip(10), 6881).into();
    add(&mut network.sim, newcomer, &content, vec![peer]);
    network.run(30);
    let tables = network.stats(newcomer).unwrap().tables;
    assert!(tables[0].good >= 8, "{tables:?}");
}

/// A peer that announces itself to our node is dialed at once: the torrent's next search is minutes away.
#[test]
fn peers_that_announce_themselves_to_us_are_dialed() {
    let mut network = Network::of(2, false, true);
    network.add_magnet();
    network.run(600);
    let seeder = network.seeder;
    let content = network.content.clone();
    add(&mut network.sim, seeder, &content, vec![]);
    assert!(network.completes(3));
}

/// A torrent names nodes (BEP 5), by which an engine without a bootstrap host enters the network, also after a restart:
/// the nodes are part of the saved torrent. Nodes of a private torrent are not used.
#[test]
fn torrents_name_nodes_and_keep_them_between_runs() {
    for is_private in [false, true] {
        let mut network = Network::new(false, true);
        let mut lonely = settings(true);
        lonely.dht.bootstrap.clear();
        let plugins = (TorrentPlugins, InvariantsPlugin);
        let newcomer = network.sim.add(NewNode::new(ip(200), lonely, plugins));
        network.leecher = newcomer;
        let (info, nodes) = (
            network.content.clone(),
            vec![format!("{}:6881", ip(100)).parse().unwrap()],
        );
        let content = NewContent {
            len: 300_001,
            nodes,
            is_private,
            ..NewContent::default()
        }
        .make();
        assert_eq!(content.info_hash() == info.info_hash(), !is_private);
        add(&mut network.sim, newcomer, &content, vec![]);
        if is_private {
            network.run(60);
            assert_eq!(network.stats(newcomer).unwrap().counters.queries_sent, 0);
            continue;
        }
        assert!(network.completes(10));
        // The table is not saved yet.
        network.sim.restart(newcomer);
        let resumed = network.send(|reply| ResumeAll {
            include_stopped: false,
            reply,
        });
        assert_eq!(resumed, Ok(1));
        network.run(20);
        let tables = network.stats(newcomer).unwrap().tables;
        assert!(tables[0].good >= 8, "{tables:?}");
    }
}
