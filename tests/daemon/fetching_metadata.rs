//! Metadata that comes slowly, piece by piece: kills, pauses and stops in the middle.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use bytes::Bytes;
use ecs_torrent::protocol::extension::ExtensionHandshake;
use ecs_torrent::protocol::hash::{InfoHash, sha1};
use ecs_torrent::protocol::metadata::{METADATA, MetadataMessage, PIECE_LEN, piece_count, piece_len};
use ecs_torrent::protocol::metainfo::torrent_file;
use ecs_torrent::protocol::peer_id::PeerId;
use ecs_torrent::protocol::wire::{HANDSHAKE_LEN, Handshake, Message, Reserved};
use serde_json::{Value, json};

use crate::bed::{Daemon, PATIENCE, fail, succeed, torrent, wait_until};

/// Id of `ut_metadata` in messages to the peer.
const OURS: u8 = 7;

/// A peer that has a torrent's metadata and nothing else. It sends what a test passes to it.
struct MetadataPeer {
    address: SocketAddr,
    connections: Receiver<Connection>,
}

/// A connection to the engine, after the handshakes.
struct Connection {
    stream: TcpStream,
    requests: Receiver<u32>,
    /// Id of `ut_metadata` in messages to the engine.
    theirs: u8,
}

impl MetadataPeer {
    fn start(info: &Bytes) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, connections) = channel();
        let info = info.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (sender, info) = (sender.clone(), info.clone());
                // A connection ends when the engine or the test closes it.
                thread::spawn(move || converse(stream.unwrap(), &info, &sender));
            }
        });
        Self { address, connections }
    }

    /// Waits for the next connection.
    fn accept(&self) -> Connection {
        self.connections.recv_timeout(PATIENCE).expect("a connection")
    }
}

/// Answers the handshakes of the engine, and passes its requests on.
fn converse(mut stream: TcpStream, info: &Bytes, connections: &Sender<Connection>) -> io::Result<()> {
    let mut theirs = [0; HANDSHAKE_LEN];
    stream.read_exact(&mut theirs)?;
    let info_hash = InfoHash(sha1([&info[..]]));
    assert_eq!(Handshake::read(&theirs).unwrap().info_hash, info_hash);
    let mut ours = Vec::new();
    Handshake {
        reserved: Reserved::ours(),
        info_hash,
        peer_id: PeerId(*b"-XX0001-metadatapeer"),
    }
    .write(&mut ours);
    let extensions = ExtensionHandshake {
        extensions: [(METADATA.to_owned(), OURS)].into(),
        metadata_size: Some(info.len() as u32),
        ..ExtensionHandshake::default()
    };
    write_extended(&mut ours, 0, &extensions.write());
    stream.write_all(&ours)?;
    let (sender, requests) = channel();
    let mut requests = Some(requests);
    loop {
        let mut len = [0; 4];
        stream.read_exact(&mut len)?;
        let mut message = vec![0; u32::from_be_bytes(len) as usize];
        stream.read_exact(&mut message)?;
        match message[..] {
            [20, 0, ref payload @ ..] => {
                let theirs = ExtensionHandshake::read(payload).unwrap().extensions[METADATA];
                if let Some(requests) = requests.take() {
                    let stream = stream.try_clone()?;
                    let connection = Connection {
                        stream,
                        requests,
                        theirs,
                    };
                    // The test may be over.
                    let _ = connections.send(connection);
                }
            }
            [20, OURS, ref payload @ ..] => {
                let message = MetadataMessage::read(&Bytes::copy_from_slice(payload)).unwrap();
                if let Some(MetadataMessage::Request { piece }) = message {
                    let _ = sender.send(piece);
                }
            }
            _ => {}
        }
    }
}

fn write_extended(bytes: &mut Vec<u8>, id: u8, payload: &[u8]) {
    let payload = Bytes::copy_from_slice(payload);
    Message::Extended { id, payload }.write(bytes);
}

impl Connection {
    /// Waits for a request, and answers it.
    fn answer(&mut self, info: &Bytes) {
        let piece = self.requests.recv_timeout(PATIENCE).expect("a request");
        let size = info.len() as u32;
        let (begin, len) = ((piece * PIECE_LEN) as usize, piece_len(size, piece) as usize);
        let data = MetadataMessage::Data {
            piece,
            total_size: size,
            data: info.slice(begin..begin + len),
        };
        let mut bytes = Vec::new();
        write_extended(&mut bytes, self.theirs, &data.write());
        self.stream.write_all(&bytes).unwrap();
    }
}

/// Returns the info dictionary of a torrent, made so long that it has several pieces.
fn long_info(torrent: &[u8]) -> Bytes {
    let metainfo = ecs_torrent::Source::from(Bytes::copy_from_slice(torrent))
        .load()
        .unwrap();
    let info = metainfo.info_bytes.strip_suffix(b"e").unwrap();
    let noise = "x".repeat(4 * PIECE_LEN as usize);
    Bytes::from([info, format!("7:x_noise{}:{noise}e", noise.len()).as_bytes()].concat())
}

/// The metadata is fetched again after each interruption, and the torrent completes with its link's web seed.
#[test]
fn metadata_is_fetched_in_spite_of_kills_pauses_and_stops() {
    let (temporary, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (folder, theirs) = (temporary.path(), other.path());
    let (_, file) = torrent(theirs, "one.bin", 1, &[]);
    let info = long_info(&file);
    let hash = InfoHash(sha1([&info[..]])).to_string();
    let pieces = piece_count(info.len() as u32);
    let peer = MetadataPeer::start(&info);
    // A slow peer stays the only one that gets requests.
    fs::write(folder.join("c.ron"), "(metadata: (request_timeout_ms: 600000))").unwrap();
    let arguments = ["--config", "c.ron", "--no-dht"];
    let mut daemon = Daemon::start_with(folder, &arguments);
    let web_seed = "http://127.0.0.1:9/one.bin";
    let port = peer.address.port();
    let link = format!("magnet:?xt=urn:btih:{hash}&x.pe=localhost:{port}&ws={web_seed}");
    succeed(folder, &["add", &link]);
    let progress = |daemon: &Daemon| {
        let path = format!("/api/v1/torrents/{hash}?fields=metadata");
        daemon.get(&path).json()["metadata"].clone()
    };
    // Sends some pieces, and waits until the engine has them.
    let send_some = |daemon: &Daemon, count: u32| {
        let mut connection = peer.accept();
        (0..count).for_each(|_| connection.answer(&info));
        let received = json!({"received": count, "pieces": pieces});
        wait_until("pieces of the metadata", || progress(daemon) == received);
        connection
    };
    let first = send_some(&daemon, 2);
    daemon.kill();
    drop(first);

    daemon = Daemon::start_with(folder, &arguments);
    let second = send_some(&daemon, 3);
    assert_eq!(daemon.post(&format!("/api/v1/torrents/{hash}/pause"), b"").status, 204);
    drop(second);
    // The kill of a paused torrent changes nothing either.
    daemon.kill();
    daemon = Daemon::start_with(folder, &arguments);
    let state = |daemon: &Daemon| daemon.get(&format!("/api/v1/torrents/{hash}?fields=state")).json()["state"].clone();
    wait_until("the pause", || state(&daemon) == "paused");
    succeed(folder, &["start", &hash]);
    let third = send_some(&daemon, 1);
    succeed(folder, &["stop", &hash]);
    drop(third);
    assert_eq!(daemon.hashes(), [""; 0]);

    let mut events = daemon.events();
    succeed(folder, &["resume", &hash]);
    let mut last = send_some(&daemon, pieces - 1);
    last.answer(&info);
    let known = events.wait_for("metadata_received");
    assert_eq!(known, json!({"info_hash": hash}));
    drop(last);
    // The event follows when the metadata is saved.
    daemon.kill();
    let saved = folder.join(format!(".ecs_torrent/state/{hash}.torrent"));

    // The metadata and the web seed of the link are in the saved torrent file.
    let saved = ecs_torrent::Source::from(saved).load().unwrap();
    assert_eq!(
        (&saved.info_bytes, &saved.web_seeds[..]),
        (&info, &[web_seed.to_owned()][..])
    );
    fs::write(theirs.join("long.torrent"), torrent_file(&info, &[], &[])).unwrap();
    let seed = Daemon::start_with(theirs, &["--no-dht", "--download-dir", "."]);
    succeed(theirs, &["add", "long.torrent"]);
    daemon = Daemon::start_with(folder, &arguments);
    let mut events = daemon.events();
    succeed(folder, &["add", &link, "--peer", &seed.peers]);
    let done = |state: &Value| state == "seeding";
    if !done(&state(&daemon)) {
        events.wait_for("completed");
    }
    let data = fs::read(folder.join("downloads/one.bin")).unwrap();
    assert!(data == fs::read(theirs.join("one.bin")).unwrap());
}

/// Metadata that has the right hash and is no torrent is not written to a torrent file.
#[test]
fn metadata_that_is_no_torrent_is_not_fetched() {
    let folder = tempfile::tempdir().unwrap();
    let info = Bytes::from_static(b"d4:name1:xe");
    let peer = MetadataPeer::start(&info);
    let link = format!("magnet:?xt=urn:btih:{}", InfoHash(sha1([&info[..]])));
    let address = peer.address.to_string();
    let arguments = [
        "fetch",
        &link,
        "-q",
        "--peer",
        &address,
        "--listen",
        "127.0.0.1:0",
        "--no-dht",
        "-o",
        "x.torrent",
    ];
    let answering = thread::spawn(move || peer.accept().answer(&info));
    let failed = fail(folder.path(), &arguments);
    answering.join().unwrap();
    assert!(failed.contains("its metadata cannot be used"), "{failed}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
