//! Without a DHT, and for private torrents, nothing leaves: packets captured on the loopback device, over IPv4 and
//! IPv6.

use std::fs;
use std::path::Path;

use crate::bed::{Daemon, succeed, torrent, torrent_with, wait_until};
use crate::capture::{Capture, Conversation, Datagram};
use crate::dual_stack::{has_ipv6, start};
use crate::skipping::skip;

/// Listen addresses of the daemons.
const V4: &str = "127.0.0.1:0";
const V6: &str = "[::1]:0";

/// The id of the message that names a node (BEP 5, `PORT`).
const PORT: u8 = 9;

/// Two daemons that exchange a private torrent, and then a public one.
struct Exchange {
    capture: Capture,
    ports: [u16; 2],
    private: [u8; 20],
    public: [u8; 20],
    _daemons: [Daemon; 2],
    _folders: [tempfile::TempDir; 2],
}

impl Exchange {
    /// Runs the exchange between daemons at an address with these arguments; `None` if packets cannot be captured here.
    fn run(name: &str, listen: &str, arguments: &[&str]) -> Option<Self> {
        let capture = match Capture::start() {
            Ok(capture) => capture,
            Err(error) => {
                skip(name, &format!("packets cannot be captured: {error}"));
                return None;
            }
        };
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [folder, theirs] = [folders[0].path(), folders[1].path()];
        let private = torrent_with(theirs, "private.bin", 1, |options| options.private = true);
        let public = torrent(theirs, "public.bin", 2, &[]);
        let seed = start(listen, theirs, &[&["--download-dir", "."], arguments].concat());
        let daemon = start(listen, folder, arguments);
        for (hash, bytes) in [&private, &public] {
            assert_eq!(seed.post("/api/v1/torrents", bytes).status, 201);
            fs::write(folder.join("it.torrent"), bytes).unwrap();
            succeed(folder, &["add", "it.torrent", "--peer", &seed.peers]);
            let path = format!("/api/v1/torrents/{hash}?fields=state");
            wait_until("the content", || daemon.get(&path).json()["state"] == "seeding");
        }
        let port = |daemon: &Daemon| daemon.peers.rsplit_once(':').unwrap().1.parse().unwrap();
        let raw = |(hash, _): &(String, Vec<u8>)| const_hex(hash);
        Some(Self {
            capture,
            ports: [port(&daemon), port(&seed)],
            private: raw(&private),
            public: raw(&public),
            _daemons: [daemon, seed],
            _folders: folders,
        })
    }

    fn datagrams(&self) -> Vec<Datagram> {
        self.ports
            .iter()
            .flat_map(|port| self.capture.datagrams_from(*port))
            .collect()
    }

    /// Whether a datagram of one of the daemons contains these bytes.
    fn is_named(&self, part: &[u8]) -> bool {
        let has_part = |datagram: &Datagram| datagram.data.windows(part.len()).any(|window| window == part);
        self.datagrams().iter().any(has_part)
    }

    /// Returns the messages of the daemons to each other about a torrent.
    fn conversations(&self, torrent: [u8; 20]) -> Vec<Conversation> {
        let streams = self.capture.streams_at(&self.ports);
        let all = streams.iter().filter_map(|stream| Conversation::read(stream));
        all.filter(|conversation| conversation.info_hash == torrent).collect()
    }

    /// Whether the daemons have named their nodes to each other in connections of a torrent, or announced that they
    /// have some.
    fn names_nodes(&self, torrent: [u8; 20]) -> bool {
        let conversations = self.conversations(torrent);
        assert!(conversations.len() >= 2, "the peers have spoken about the torrent");
        assert!(conversations.iter().any(|conversation| conversation.messages.len() > 5));
        let names = |conversation: &Conversation| {
            conversation.has_dht || conversation.messages.iter().any(|(id, _)| *id == PORT)
        };
        conversations.iter().any(names)
    }
}

fn const_hex(text: &str) -> [u8; 20] {
    std::array::from_fn(|index| u8::from_str_radix(&text[2 * index..2 * index + 2], 16).unwrap())
}

/// BEP 27. The public torrent shows that the same daemons do announce public torrents.
#[test]
fn a_private_torrent_is_never_named_in_the_dht() {
    names_only_public_torrents("a_private_torrent_is_never_named_in_the_dht", V4);
}

#[test]
fn a_private_torrent_is_never_named_in_the_dht_of_ipv6() {
    let name = "a_private_torrent_is_never_named_in_the_dht_of_ipv6";
    if has_ipv6(name) {
        names_only_public_torrents(name, V6);
    }
}

fn names_only_public_torrents(name: &str, listen: &str) {
    let folder = tempfile::tempdir().unwrap();
    let node = start(listen, folder.path(), &[]);
    let arguments = ["--dht-node", &node.peers];
    let Some(exchange) = Exchange::run(name, listen, &arguments) else {
        return;
    };
    wait_until("an announce", || exchange.is_named(b"13:announce_peer"));
    wait_until("the nodes' ports", || exchange.names_nodes(exchange.public));
    assert!(exchange.is_named(&exchange.public));
    assert!(!exchange.is_named(&exchange.private), "{:?}", exchange.datagrams());
    assert!(!exchange.names_nodes(exchange.private));
    let stored = succeed(folder.path(), &["dht", "stats", "--json"]);
    let stored: serde_json::Value = serde_json::from_str(&stored).unwrap();
    assert_eq!(stored["stored_torrents"], 1, "{stored}");
    let refused = lookup(exchange._folders[0].path(), exchange.private);
    assert!(
        refused.contains("private here") && refused.contains("trackers"),
        "{refused}"
    );
}

fn lookup(folder: &Path, torrent: [u8; 20]) -> String {
    let hash: String = torrent.iter().map(|byte| format!("{byte:02x}")).collect();
    crate::bed::fail(folder, &["dht", "lookup", &hash])
}

#[test]
fn a_daemon_without_a_dht_sends_no_datagram_of_it() {
    sends_no_datagram_of_the_dht("a_daemon_without_a_dht_sends_no_datagram_of_it", V4);
}

#[test]
fn a_daemon_without_a_dht_sends_no_datagram_of_it_over_ipv6() {
    let name = "a_daemon_without_a_dht_sends_no_datagram_of_it_over_ipv6";
    if has_ipv6(name) {
        sends_no_datagram_of_the_dht(name, V6);
    }
}

fn sends_no_datagram_of_the_dht(name: &str, listen: &str) {
    let Some(exchange) = Exchange::run(name, listen, &["--no-dht"]) else {
        return;
    };
    let of_dht = |datagram: &Datagram| datagram.data.starts_with(b"d");
    assert!(!exchange.datagrams().iter().any(of_dht), "{:?}", exchange.datagrams());
    assert!(!exchange.names_nodes(exchange.public) && !exchange.names_nodes(exchange.private));
}
