//! Peer exchange, local discovery and the exchange of metadata send nothing for private torrents, and nothing if they
//! are switched off. Packets are captured in a network of the test's own, in which multicast works.

use std::fs;
use std::process::{Command, Stdio};

use bytes::Bytes;
use ecs_torrent::protocol::extension::{ExtensionHandshake, HANDSHAKE_ID};
use ecs_torrent::protocol::metadata::{METADATA, MetadataMessage};
use ecs_torrent::protocol::pex::{PEX, PexMessage};

use crate::bed::{Daemon, succeed, torrent, torrent_with, wait_until};
use crate::capture::{Capture, Conversation};
use crate::skipping::skip;
use crate::unshare::{can_unshare, run_again};

/// Environment variable that is set in the process that runs a test in a network namespace of its own.
const MARK: &str = "ECS_TORRENT_NETWORK_NAMESPACE";

/// The id of messages of extensions (BEP 10).
const EXTENDED: u8 = 20;

/// Returns whether this process has a local network of its own. If not, runs the test of this name again in a network
/// namespace that has one. If there are no namespaces, the test is skipped, which is a failure under `REQUIRE_ALL=1`.
pub fn has_local_network(test: &str) -> bool {
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let kinds: [&[&str]; 2] = [&["--net"], &["--map-root-user", "--net"]];
    let Some(namespace) = kinds.into_iter().find(|kind| can_unshare(kind, &["ip", "link"])) else {
        skip(test, "it takes root or user namespaces, and `ip`");
        return false;
    };
    run_again(test, namespace, MARK);
    false
}

/// Changes the network of this namespace.
pub fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// Sets up the local network of this namespace, with the addresses 10.78.0.1 to 10.78.0.9.
fn set_up_network() {
    ip("link set lo up");
    ip("link add lan0 type veth peer name lan1");
    ip("link set lan0 up");
    ip("link set lan1 up");
    (1..10).for_each(|number| ip(&format!("addr add 10.78.0.{number}/24 dev lan0")));
}

/// A daemon at an address of the local network, with a port that names it in captured packets.
struct Host {
    daemon: Daemon,
    folder: tempfile::TempDir,
    port: u16,
}

impl Host {
    fn start(number: u16, arguments: &[&str]) -> Self {
        let (folder, port) = (tempfile::tempdir().unwrap(), 7000 + number);
        let listen = format!("10.78.0.{number}:{port}");
        let log = Stdio::from(fs::File::create(folder.path().join("log")).unwrap());
        let daemon = Daemon::start_listening(&listen, folder.path(), arguments, log);
        Self { daemon, folder, port }
    }

    /// Adds a torrent with content whose end is wrong, so that no peer completes it and all stay connected.
    fn seed(&self, name: &str, torrent: &Torrent) {
        let path = self.folder.path().join(name);
        let content = fs::read(&torrent.path).unwrap();
        let end = content.len() - 1000;
        fs::write(path, [&content[..end], &[0; 1000]].concat()).unwrap();
        assert_eq!(
            self.daemon
                .post("/api/v1/torrents?overwrite=true", &torrent.bytes)
                .status,
            201
        );
    }

    /// Adds a torrent, and names a peer of it.
    fn leech(&self, torrent: &Torrent, peer: &Host) {
        fs::write(self.folder.path().join("it.torrent"), &torrent.bytes).unwrap();
        succeed(self.folder.path(), &["add", "it.torrent", "--peer", &peer.daemon.peers]);
    }

    /// Adds a link of a torrent that names a peer.
    fn follow_link(&self, torrent: &Torrent, peer: &Host) {
        let link = format!("magnet:?xt=urn:btih:{}&x.pe={}", torrent.hash, peer.daemon.peers);
        succeed(self.folder.path(), &["add", &link]);
    }

    fn is_fetching(&self, torrent: &Torrent) -> bool {
        let path = format!("/api/v1/torrents/{}?fields=state", torrent.hash);
        self.daemon.get(&path).json()["state"] == "fetching_metadata"
    }

    /// Whether the host has all of a torrent except the piece that no peer has.
    fn has_received(&self, torrent: &Torrent) -> bool {
        let path = format!("/api/v1/torrents/{}?fields=downloaded", torrent.hash);
        self.daemon.get(&path).json()["downloaded"].as_u64() > Some(50_000)
    }
}

/// A torrent, and its whole content.
struct Torrent {
    hash: String,
    bytes: Vec<u8>,
    path: std::path::PathBuf,
}

impl Torrent {
    fn new(folder: &std::path::Path, name: &str, seed: u64, is_private: bool) -> Self {
        let (hash, bytes) = match is_private {
            true => torrent_with(folder, name, seed, |options| options.private = true),
            false => torrent(folder, name, seed, &[]),
        };
        let path = folder.join(name);
        Self { hash, bytes, path }
    }

    fn raw_hash(&self) -> [u8; 20] {
        const_hex::decode_to_array(&self.hash).unwrap()
    }
}

/// The conversations of peers about a torrent.
struct Talk(Vec<((u16, u16), Conversation)>);

impl Talk {
    fn about(torrent: &Torrent, capture: &Capture) -> Self {
        let mut all = capture.conversations();
        all.retain(|(_, conversation)| conversation.info_hash == torrent.raw_hash());
        Self(all)
    }

    /// The extensions that were offered to anybody.
    fn offered(&self) -> Vec<String> {
        let handshakes = self.0.iter().flat_map(|(_, conversation)| handshakes(conversation));
        handshakes
            .flat_map(|handshake| handshake.extensions.into_keys())
            .collect()
    }

    /// The messages of an extension: the ports of sender and receiver, and the payload.
    fn messages(&self, extension: &str) -> Vec<((u16, u16), Vec<u8>)> {
        let mut found = Vec::new();
        for ((from, to), conversation) in &self.0 {
            // The receiver's handshake names the id.
            let answers = self.0.iter().filter(|(ends, _)| *ends == (*to, *from));
            let ids: Vec<u8> = answers
                .flat_map(|(_, answer)| handshakes(answer))
                .filter_map(|handshake| handshake.extensions.get(extension).copied())
                .collect();
            for (id, content) in &conversation.messages {
                if *id == EXTENDED && content.first().is_some_and(|id| ids.contains(id)) {
                    found.push(((*from, *to), content[1..].to_vec()));
                }
            }
        }
        found
    }

    /// Whether a peer has named another one.
    fn names_peers(&self) -> bool {
        let messages = self.messages(PEX);
        let read = messages
            .iter()
            .filter_map(|(_, payload)| PexMessage::read(payload, 200).ok());
        read.into_iter().any(|message| !message.added.is_empty())
    }

    /// Whether a peer has sent metadata.
    fn has_metadata(&self) -> bool {
        let is_data = |payload: &[u8]| {
            let read = MetadataMessage::read(&Bytes::copy_from_slice(payload));
            matches!(read, Ok(Some(MetadataMessage::Data { .. })))
        };
        self.messages(METADATA).iter().any(|(_, payload)| is_data(payload))
    }

    /// Checks that the peers have spoken, that each of them was read, and that none has offered or used these
    /// extensions.
    fn expect_without(&self, extensions: &[&str]) {
        let senders = self
            .0
            .iter()
            .filter(|(_, conversation)| !handshakes(conversation).is_empty());
        assert!(senders.count() >= 4, "two connections");
        assert!(self.0.iter().any(|(_, conversation)| conversation.messages.len() > 5));
        let offered = self.offered();
        for extension in extensions {
            assert!(
                !offered.iter().any(|offered| offered == extension),
                "{extension}: {offered:?}"
            );
            assert_eq!(self.messages(extension), []);
        }
    }
}

fn handshakes(conversation: &Conversation) -> Vec<ExtensionHandshake> {
    let messages = conversation.messages.iter().filter(|(id, _)| *id == EXTENDED);
    let handshakes = messages.filter_map(|(_, content)| content.strip_prefix(&[HANDSHAKE_ID]));
    handshakes
        .filter_map(|payload| ExtensionHandshake::read(payload).ok())
        .collect()
}

/// Whether a datagram names the torrent, as bytes or in hexadecimal.
fn is_named(capture: &Capture, torrent: &Torrent) -> bool {
    let (raw, text) = (torrent.raw_hash(), torrent.hash.as_bytes());
    capture.datagrams().iter().any(|datagram| {
        let is_raw = datagram.data.windows(20).any(|window| window == raw);
        is_raw
            || datagram
                .data
                .windows(40)
                .any(|window| window.eq_ignore_ascii_case(text))
    })
}

/// BEP 27. Three daemons share a private torrent and a public one, which shows that the same daemons announce it. Three
/// others share a public torrent with everything switched off. An outsider knows the hashes and an address.
#[test]
fn private_torrents_and_switches_silence_every_way_to_find_peers() {
    const NAME: &str = "private_torrents::private_torrents_and_switches_silence_every_way_to_find_peers";
    if !has_local_network(NAME) {
        return;
    }
    set_up_network();
    let capture = match Capture::start_both_ways() {
        Ok(capture) => capture,
        Err(error) => return skip(NAME, &format!("packets cannot be captured: {error}")),
    };
    let contents = tempfile::tempdir().unwrap();
    let [private, public, quiet] = [("private", 1, true), ("public", 2, false), ("quiet", 3, false)]
        .map(|(name, seed, is_private)| Torrent::new(contents.path(), name, seed, is_private));
    let off = ["--download-dir", ".", "--no-dht", "--no-lsd", "--no-pex"];
    let silent = [5, 6, 7].map(|number| Host::start(number, &off));
    silent[0].seed("quiet", &quiet);
    silent[1..].iter().for_each(|host| host.leech(&quiet, &silent[0]));
    let hosts = [1, 2, 3].map(|number| Host::start(number, &["--download-dir", "."]));
    for (name, torrent) in [("private", &private), ("public", &public)] {
        hosts[0].seed(name, torrent);
        hosts[1..].iter().for_each(|host| host.leech(torrent, &hosts[0]));
    }
    for (torrent, hosts) in [(&quiet, &silent), (&private, &hosts), (&public, &hosts)] {
        for host in &hosts[1..] {
            wait_until("the content", || host.has_received(torrent));
        }
    }
    let talk = |torrent| Talk::about(torrent, &capture);
    wait_until("peer exchange", || talk(&public).names_peers());
    wait_until("an announcement in the local network", || is_named(&capture, &public));
    wait_until("a node's datagrams", || {
        let datagrams = capture.datagrams();
        datagrams.iter().any(|datagram| datagram.data.starts_with(b"d1:"))
    });
    // The same steps of the other daemons came earlier.
    assert!(!is_named(&capture, &private) && !is_named(&capture, &quiet));
    talk(&private).expect_without(&[PEX, METADATA]);
    talk(&quiet).expect_without(&[PEX]);
    let of_silent = |from: u16| silent.iter().any(|host| host.port == from);
    let datagrams = capture.datagrams();
    assert!(!datagrams.iter().any(|datagram| of_silent(datagram.from)), "no DHT");

    let outsider = Host::start(4, &[]);
    outsider.follow_link(&private, &hosts[0]);
    outsider.follow_link(&public, &hosts[0]);
    wait_until("metadata", || !outsider.is_fetching(&public));
    wait_until("an announcement of the outsider", || is_named(&capture, &private));
    wait_until("the answer of a private peer", || {
        let private = talk(&private);
        private.0.iter().any(|((from, _), conversation)| {
            *from == hosts[0].port
                && handshakes(conversation)
                    .iter()
                    .any(|hello| hello.metadata_size.is_none())
        })
    });
    assert!(talk(&public).has_metadata());
    assert!(outsider.is_fetching(&private) && !talk(&private).has_metadata());
    // The others know of the outsider, and none has connected to it for the private torrent.
    let is_call = |(ends, _): &&((u16, u16), Conversation)| ends.1 == outsider.port;
    assert_eq!(talk(&private).0.iter().filter(is_call).count(), 0);
}
