//! The attacks. Each thread of an attack repeats one function until the soak ends.

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use ecs_torrent::protocol::create::{NewFile, NewTorrent};
use ecs_torrent::protocol::extension::DONT_HAVE;
use ecs_torrent::protocol::extension::{ExtensionHandshake, HANDSHAKE_ID};
use ecs_torrent::protocol::geometry::BlockRequest;
use ecs_torrent::protocol::wire::{BLOCK_HEADER_LEN, Message, write_block_header};

use crate::content::noise;
use crate::daemon::Daemon;
use crate::honest::Target;
use crate::wire::{Random, bytes_of, connect, flood, shake_hands};

/// The id under which the daemon receives `lt_donthave`: ids count from 1, and its plugin is the first to register one.
const DONT_HAVE_ID: u8 = 1;

/// One kind of attack, run by several threads.
pub struct Attack {
    pub name: &'static str,
    pub what: &'static str,
    threads: usize,
    /// One round, which is repeated until the soak ends.
    round: fn(&Attacker),
}

/// Data available to one thread of an attack.
pub struct Attacker {
    daemon: Arc<Daemon>,
    target: Target,
    stop: Arc<AtomicBool>,
    /// The thread's number among all attackers.
    number: u64,
    /// The last two bytes of the thread's address.
    from: [u8; 2],
}

pub const ATTACKS: &[Attack] = &[
    Attack {
        name: "silent",
        what: "120 connections shake hands and say nothing more",
        threads: 4,
        round: silent,
    },
    Attack {
        name: "half-open",
        what: "handshakes that never end, renewed all the time",
        threads: 6,
        round: half_open,
    },
    Attack {
        name: "flip-flop",
        what: "have and lt_donthave in turns after HaveAll",
        threads: 30,
        round: flip_flop,
    },
    Attack {
        name: "tiny-frames",
        what: "frames of a few bytes at full speed",
        threads: 10,
        round: tiny_frames,
    },
    Attack {
        name: "allowed-fast",
        what: "one allowed-fast block again and again",
        threads: 4,
        round: allowed_fast,
    },
    Attack {
        name: "never-reads",
        what: "requests without end, and no answer is read",
        threads: 4,
        round: never_reads,
    },
    Attack {
        name: "poison",
        what: "seeds whose blocks are wrong",
        threads: 2,
        round: poison,
    },
    Attack {
        name: "datagrams",
        what: "datagrams of rubbish",
        threads: 1,
        round: datagrams,
    },
    Attack {
        name: "health",
        what: "pipelined requests for the health, whose answers are not read",
        threads: 4,
        round: health,
    },
    Attack {
        name: "heads",
        what: "halves of HTTP heads, renewed",
        threads: 2,
        round: heads,
    },
    Attack {
        name: "passwords",
        what: "wrong tokens",
        threads: 2,
        round: passwords,
    },
    Attack {
        name: "torrents",
        what: "torrents that aim at the state folder and at others' files",
        threads: 1,
        round: torrents,
    },
];

/// Starts the attacks whose names begin with one of `names`, or all attacks if `names` is empty.
pub fn start(names: &[String], daemon: &Arc<Daemon>, target: &Target, stop: &Arc<AtomicBool>) -> Vec<JoinHandle<()>> {
    let is_wanted =
        |attack: &&Attack| names.is_empty() || names.iter().any(|name| attack.name.starts_with(name.as_str()));
    let mut threads = Vec::new();
    for attack in ATTACKS.iter().filter(is_wanted) {
        for _ in 0..attack.threads {
            let number = threads.len() as u64;
            let attacker = Attacker {
                daemon: daemon.clone(),
                target: target.clone(),
                stop: stop.clone(),
                number,
                from: [1 + (number / 40) as u8, 2 + (number % 40) as u8],
            };
            threads.push(thread::spawn(move || {
                while attacker.goes_on() {
                    (attack.round)(&attacker);
                    thread::sleep(Duration::from_millis(100));
                }
            }));
        }
    }
    threads
}

impl Attacker {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn peer(&self) -> Option<std::net::TcpStream> {
        shake_hands(self.daemon.peers, self.from, &self.target, self.number)
    }

    /// Sends the same bytes again and again, at most `rate` bytes a second.
    fn flood_after(&self, first: &[Message], bytes: &[u8], rate: usize, reads: bool) {
        let Some(mut stream) = self.peer() else { return };
        if stream.write_all(&bytes_of(first)).is_ok() {
            flood(stream, bytes, rate, reads, &self.stop);
        }
    }
}

fn silent(attacker: &Attacker) {
    let connections: Vec<_> = (0..30).filter_map(|_| attacker.peer()).collect();
    for _ in 0..100 {
        if !attacker.goes_on() {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    drop(connections);
}

fn half_open(attacker: &Attacker) {
    let mut connections: Vec<_> = (0..20)
        .filter_map(|_| connect(attacker.daemon.peers, attacker.from))
        .collect();
    for connection in &mut connections {
        let _ = connection.write_all(b"\x13BitTorrent");
    }
    thread::sleep(Duration::from_secs(1));
}

fn flip_flop(attacker: &Attacker) {
    let handshake = ExtensionHandshake {
        extensions: [(DONT_HAVE.to_owned(), DONT_HAVE_ID)].into(),
        ..ExtensionHandshake::default()
    };
    let first = [
        Message::Extended {
            id: HANDSHAKE_ID,
            payload: handshake.write().into(),
        },
        Message::HaveAll,
    ];
    let mut turns = Vec::new();
    for piece in 0..64u32 {
        turns.push(Message::Extended {
            id: DONT_HAVE_ID,
            payload: Bytes::copy_from_slice(&piece.to_be_bytes()),
        });
        turns.push(Message::Have(piece));
    }
    attacker.flood_after(&first, &bytes_of(&turns), 38 << 10, true);
}

fn tiny_frames(attacker: &Attacker) {
    let frames = bytes_of(&[Message::Interested, Message::NotInterested]).repeat(2000);
    attacker.flood_after(&[Message::HaveNone], &frames, 4 << 20, true);
}

fn allowed_fast(attacker: &Attacker) {
    let requests: Vec<_> = (0..attacker.target.geometry.piece_count().min(64))
        .map(|piece| {
            Message::Request(BlockRequest {
                piece,
                begin: 0,
                len: 16 << 10,
            })
        })
        .collect();
    attacker.flood_after(&[Message::HaveNone], &bytes_of(&requests), 16 << 10, true);
}

fn never_reads(attacker: &Attacker) {
    let piece = (attacker.number % u64::from(attacker.target.geometry.piece_count())) as u32;
    let requests = vec![
        Message::Request(BlockRequest {
            piece,
            begin: 0,
            len: 16 << 10
        });
        100
    ];
    attacker.flood_after(
        &[Message::HaveNone, Message::Interested],
        &bytes_of(&requests),
        64 << 10,
        false,
    );
}

/// Announces all pieces, unchokes, and answers each request with wrong bytes.
fn poison(attacker: &Attacker) {
    let Some(mut stream) = attacker.peer() else { return };
    let mut bytes = bytes_of(&[Message::HaveAll, Message::Unchoke]);
    let geometry = &attacker.target.geometry;
    let mut random = Random(attacker.number + 1);
    for _ in 0..200 {
        if stream.write_all(&bytes).is_err() || !attacker.goes_on() {
            return;
        }
        let piece = (random.next() % u64::from(geometry.piece_count())) as u32;
        let mut buffer = [0; 17 * 100];
        let Ok(len @ 1..) = stream.read(&mut buffer) else {
            return;
        };
        bytes.clear();
        // A request has 17 bytes: four of length, the id 6, piece, offset, length.
        for request in buffer[..len]
            .windows(17)
            .filter(|window| window[..5] == [0, 0, 0, 13, 6])
        {
            let number =
                |at: usize| u32::from_be_bytes([request[at], request[at + 1], request[at + 2], request[at + 3]]);
            let block = BlockRequest {
                piece: number(5),
                begin: number(9),
                len: number(13).min(16 << 10),
            };
            bytes.reserve(BLOCK_HEADER_LEN + block.len as usize);
            write_block_header(&mut bytes, block);
            bytes.extend(noise(u64::from(piece), block.len as usize));
        }
    }
}

fn datagrams(attacker: &Attacker) {
    let Ok(socket) = UdpSocket::bind("127.0.0.1:0") else {
        return;
    };
    // Of a tracker, by its first bytes.
    let mut rubbish = noise(attacker.number, 400);
    rubbish[..4].copy_from_slice(&[0, 0, 0, 1]);
    for _ in 0..2000 {
        let _ = socket.send_to(&rubbish, attacker.daemon.peers);
    }
}

fn health(attacker: &Attacker) {
    let host = attacker.daemon.api;
    let request = format!("GET /api/v1/health HTTP/1.1\r\nHost: {host}\r\n\r\n").repeat(200);
    let streams: Vec<_> = (0..20).filter_map(|_| connect(host, attacker.from)).collect();
    let threads: Vec<_> = streams
        .into_iter()
        .map(|stream| {
            let (request, stop) = (request.clone(), attacker.stop.clone());
            thread::spawn(move || flood(stream, request.as_bytes(), 1 << 20, false, &stop))
        })
        .collect();
    threads.into_iter().for_each(|thread| drop(thread.join()));
}

fn heads(attacker: &Attacker) {
    let mut streams: Vec<_> = (0..200)
        .filter_map(|_| connect(attacker.daemon.api, attacker.from))
        .collect();
    for stream in &mut streams {
        let _ = stream.write_all(b"GET /api/v1/torrents HTTP/1.1\r\nHos");
    }
    thread::sleep(Duration::from_secs(2));
}

fn passwords(attacker: &Attacker) {
    let host = attacker.daemon.api;
    for number in 0..100 {
        let Some(mut stream) = connect(host, attacker.from) else {
            return;
        };
        let request = format!(
            "GET /api/v1/torrents HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAuthorization: Bearer {number}\r\n\r\n"
        );
        if stream.write_all(request.as_bytes()).is_ok() {
            let _ = stream.read(&mut [0; 512]);
        }
    }
}

/// Adds torrents through the API as a careless user would: one with the name of the state folder, one with the honest
/// torrent's file. Then removes them with their data.
fn torrents(attacker: &Attacker) {
    for name in [".ecs_torrent", "honest", ".ssh"] {
        let file = |path: &str| NewFile {
            path: vec![path.to_owned()],
            len: 100,
        };
        let torrent = NewTorrent {
            name: name.to_owned(),
            files: vec![file("api_token"), file("lock")],
            piece_length: 16 << 10,
            pieces: vec![[7; 20]],
            ..NewTorrent::default()
        };
        let Ok(bytes) = torrent.encode() else { return };
        if let Some((_, body)) = attacker.daemon.request("POST", "/api/v1/torrents", &bytes) {
            let answer: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            if let Some(hash) = answer["info_hash"].as_str() {
                let path = format!("/api/v1/torrents/{hash}?delete_data=true");
                let _ = attacker.daemon.request("DELETE", &path, b"");
            }
        }
        thread::sleep(Duration::from_millis(500));
    }
}
