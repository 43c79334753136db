//! The DHT on IPv4 and IPv6 at once (BEP 32): daemons at 127.0.0.1 and ::1, and raw questions to them.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use ecs_torrent::protocol::compact::Family;
use ecs_torrent::protocol::dht::id::NodeId;
use ecs_torrent::protocol::dht::krpc::{Body, Message, Method, Packet, Query, Want};
use serde_json::json;

use crate::bed::{Daemon, PATIENCE, succeed, torrent, wait_until};
use crate::skipping::skip;

const V4_ONLY: Want = Want { v4: true, v6: false };
const V6_ONLY: Want = Want { v4: false, v6: true };

/// Returns whether the machine has IPv6; a test ends if not.
pub fn has_ipv6(test: &str) -> bool {
    let socket = UdpSocket::bind("[::1]:0");
    socket
        .map_err(|error| skip(test, &format!("no IPv6 loopback address: {error}")))
        .is_ok()
}

/// Starts a daemon that listens at an address.
pub fn start(listen: &str, folder: &Path, arguments: &[&str]) -> Daemon {
    let log = Stdio::from(fs::File::create(folder.join("log")).unwrap());
    Daemon::start_listening(listen, folder, arguments, log)
}

/// Starts a daemon that listens at both addresses, on different ports.
fn start_dual(folder: &Path, arguments: &[&str]) -> Daemon {
    start("127.0.0.1:0", folder, &[&["--listen", "[::1]:0"], arguments].concat())
}

/// The listen addresses of a daemon: IPv4, IPv6.
fn addresses(daemon: &Daemon) -> [SocketAddr; 2] {
    let all = daemon.peers.split(" and ").map(|address| address.parse().unwrap());
    let all: Vec<SocketAddr> = all.collect();
    [false, true].map(|is_v6| *all.iter().find(|address| address.is_ipv6() == is_v6).unwrap())
}

/// Whether the daemon knows as many good nodes of each family: IPv4, IPv6.
fn has_nodes(daemon: &Daemon, counts: [u64; 2]) -> bool {
    let stats = daemon.get("/api/v1/dht").json();
    let good = ["ipv4", "ipv6"].map(|family| stats[family]["good_nodes"].as_u64().unwrap_or(0));
    good[0] >= counts[0] && good[1] >= counts[1]
}

/// An answer to a raw question.
#[derive(Debug, Default)]
struct Answer {
    /// Addresses of the listed nodes of each family.
    nodes: [Vec<SocketAddr>; 2],
    values: Vec<SocketAddr>,
    token: Vec<u8>,
    error: Option<i64>,
}

/// A host that asks without being a node.
struct Asker(UdpSocket);

impl Asker {
    fn new(family: Family) -> Self {
        let socket = match family {
            Family::V4 => UdpSocket::bind("127.0.0.1:0"),
            Family::V6 => UdpSocket::bind("[::1]:0"),
        };
        let socket = socket.unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        Self(socket)
    }

    fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    /// Asks until there is an answer.
    fn ask(&self, to: SocketAddr, method: Method<'_>, want: Option<Want>) -> Answer {
        let question = Message {
            transaction: b"ours",
            version: None,
            external: None,
            body: Body::Query(Query {
                id: NodeId([7; 20]),
                is_read_only: true,
                want,
                method: Ok(method),
            }),
        };
        let question = question.write();
        let begin = Instant::now();
        let mut buffer = [0; 4096];
        while begin.elapsed() < PATIENCE {
            self.0.send_to(&question, to).unwrap();
            while let Ok((len, from)) = self.0.recv_from(&mut buffer) {
                assert_eq!(from, to);
                let packet = Packet::parse(&buffer[..len]).unwrap();
                match packet.message().unwrap().body {
                    Body::Reply(reply) => {
                        let list = |family| reply.contacts(family).map(|(_, address)| address).collect();
                        return Answer {
                            nodes: Family::ALL.map(list),
                            values: reply.values.clone(),
                            token: reply.token.unwrap_or_default().to_vec(),
                            error: None,
                        };
                    }
                    Body::Error { code, .. } => {
                        return Answer {
                            error: Some(code),
                            ..Answer::default()
                        };
                    }
                    Body::Query(_) => {}
                }
            }
        }
        panic!("{to} does not answer");
    }

    fn get_peers(&self, to: SocketAddr, info_hash: NodeId) -> Answer {
        let method = Method::GetPeers {
            info_hash,
            no_seed: false,
            scrape: false,
        };
        self.ask(to, method, None)
    }
}

/// A daemon that enters by one address of one family finds nodes of both. Answers list the nodes of the family of the
/// question, or of those that it wants.
#[test]
fn answers_list_the_wanted_families() {
    if !has_ipv6("answers_list_the_wanted_families") {
        return;
    }
    let folders = [(); 4].map(|()| tempfile::tempdir().unwrap());
    let [first, second, third, fourth] = folders.each_ref().map(tempfile::TempDir::path);
    let dual = start_dual(first, &[]);
    let [v4, v6] = addresses(&dual);
    let old = start("127.0.0.1:0", second, &["--dht-node", &v4.to_string()]);
    let new = start("[::1]:0", third, &["--dht-node", &v6.to_string()]);
    wait_until("nodes of both families", || has_nodes(&dual, [1, 1]));
    let newcomer = start_dual(fourth, &["--dht-node", &v4.to_string()]);
    wait_until("nodes of both families, by one of them", || {
        has_nodes(&newcomer, [2, 1])
    });
    wait_until("the newcomer", || has_nodes(&dual, [2, 1]));

    let [old, new] = [&old, &new].map(|daemon| daemon.peers.parse::<SocketAddr>().unwrap());
    let target = NodeId([9; 20]);
    for (family, to) in [(Family::V4, v4), (Family::V6, v6)] {
        let asker = Asker::new(family);
        let nodes = |want| asker.ask(to, Method::FindNode { target }, want).nodes;
        for (want, has) in [
            (None, [family == Family::V4, family == Family::V6]),
            (Some(V4_ONLY), [true, false]),
            (Some(V6_ONLY), [false, true]),
            (Some(Want::BOTH), [true, true]),
        ] {
            let [in_v4, in_v6] = nodes(want);
            assert_eq!(
                [in_v4.contains(&old), in_v6.contains(&new)],
                has,
                "{want:?} {in_v4:?} {in_v6:?}"
            );
            assert_eq!([!in_v4.is_empty(), !in_v6.is_empty()], has, "{want:?}");
            assert!(in_v4.iter().all(SocketAddr::is_ipv4) && in_v6.iter().all(SocketAddr::is_ipv6));
        }
    }
}

/// A seed at two addresses with different ports is announced in both networks, each time with the port of that address.
/// A daemon in either network finds it by a link without addresses.
#[test]
fn torrents_are_announced_and_found_in_both_networks() {
    if !has_ipv6("torrents_are_announced_and_found_in_both_networks") {
        return;
    }
    let folders = [(); 4].map(|()| tempfile::tempdir().unwrap());
    let [first, second, third, fourth] = folders.each_ref().map(tempfile::TempDir::path);
    let node = start_dual(first, &[]);
    let [v4, v6] = addresses(&node);
    let (in_v4, in_v6) = (v4.to_string(), v6.to_string());
    let known = ["--dht-node", &in_v4, "--dht-node", &in_v6];
    let seed = start_dual(second, &[&["--download-dir", "."], &known[..]].concat());
    wait_until("the node in both networks", || has_nodes(&seed, [1, 1]));
    let (hash, bytes) = torrent(second, "one.bin", 1, &[]);
    assert_eq!(seed.post("/api/v1/torrents", &bytes).status, 201);

    let info_hash = NodeId(const_hex::decode_to_array(&hash).unwrap());
    let expected = addresses(&seed);
    assert_ne!(expected[0].port(), expected[1].port());
    for (family, to, peer) in [(Family::V4, v4, expected[0]), (Family::V6, v6, expected[1])] {
        let asker = Asker::new(family);
        wait_until("an announce", || !asker.get_peers(to, info_hash).values.is_empty());
        assert_eq!(asker.get_peers(to, info_hash).values, [peer]);
    }
    let found = succeed(first, &["dht", "lookup", &hash, "--json"]);
    let found: serde_json::Value = serde_json::from_str(&found).unwrap();
    let mut peers: Vec<&str> = found["peers"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|it| it.as_str())
        .collect();
    peers.sort_unstable();
    assert_eq!(json!(peers), json!(expected), "{found}");

    let link = format!("magnet:?xt=urn:btih:{hash}");
    for (listen, folder, node) in [("127.0.0.1:0", third, &in_v4), ("[::1]:0", fourth, &in_v6)] {
        let leech = start(listen, folder, &["--dht-node", node, "--no-lsd", "--no-pex"]);
        succeed(folder, &["add", &link]);
        let path = format!("/api/v1/torrents/{hash}?fields=state");
        wait_until("the content", || leech.get(&path).json()["state"] == "seeding");
    }
}

/// A token that was given over one family is of no use over the other, and an announce is stored in one network only.
#[test]
fn tokens_and_stored_peers_belong_to_one_network() {
    if !has_ipv6("tokens_and_stored_peers_belong_to_one_network") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let node = start_dual(folder.path(), &[]);
    let to = addresses(&node);
    let info_hash = NodeId([5; 20]);
    let askers = Family::ALL.map(Asker::new);
    let tokens = [0, 1].map(|index| askers[index].get_peers(to[index], info_hash).token);
    let announce = |family: usize, token: &[u8]| {
        let method = Method::AnnouncePeer {
            info_hash,
            port: 0,
            implied_port: true,
            token,
            seed: false,
        };
        askers[family].ask(to[family], method, None).error
    };
    assert_eq!(announce(0, &tokens[1]), Some(203));
    assert_eq!(announce(1, &tokens[0]), Some(203));
    let stored = |family: usize| askers[family].get_peers(to[family], info_hash).values;
    assert_eq!([stored(0), stored(1)], [[], []]);
    assert_eq!(announce(1, &tokens[1]), None);
    let own = SocketAddr::new([0, 0, 0, 0, 0, 0, 0, 1].into(), askers[1].port());
    assert_eq!([stored(0), stored(1)], [vec![], vec![own]]);
    let stats = succeed(folder.path(), &["dht", "stats", "--json"]);
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    assert_eq!(
        (&stats["stored_torrents"], &stats["stored_peers"]),
        (&json!(1), &json!(1)),
        "{stats}"
    );
}

/// A seed is listed by its IPv4 address and by its IPv6 address. One connection to it stays, and the other address is
/// not dialed meanwhile (BEP 10, `ipv4` and `ipv6`).
#[test]
fn a_peer_with_two_addresses_is_connected_once() {
    if !has_ipv6("a_peer_with_two_addresses_is_connected_once") {
        return;
    }
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [ours, theirs] = folders.each_ref().map(tempfile::TempDir::path);
    let (hash, bytes) = torrent(theirs, "one.bin", 1, &[]);
    // The transfer lasts for the whole test.
    let slow = ["--download-dir", ".", "--upload-limit", "10240"];
    let seed = start_dual(theirs, &slow);
    assert_eq!(seed.post("/api/v1/torrents", &bytes).status, 201);
    wait_until("the seed", || {
        seed.get(&format!("/api/v1/torrents/{hash}?fields=state")).json()["state"] == "seeding"
    });
    let leecher = start_dual(ours, &["--no-dht"]);
    fs::write(ours.join("it.torrent"), &bytes).unwrap();
    let [v4, v6] = addresses(&seed).map(|address| address.to_string());
    succeed(ours, &["add", "it.torrent", "--peer", &v4, "--peer", &v6]);
    let log = || fs::read_to_string(ours.join("log")).unwrap();
    wait_until("the second address", || log().contains("the peer is connected at "));
    let peers = |daemon: &Daemon| {
        let peers = daemon.get(&format!("/api/v1/torrents/{hash}/peers")).json();
        peers.as_array().unwrap().len()
    };
    wait_until("one connection", || [peers(&leecher), peers(&seed)] == [1, 1]);
}
