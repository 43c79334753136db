//! Floods of messages that are cheap to send: they cost the engine no more than they cost the sender.

use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ecs_torrent::Tick;
use ecs_torrent::bevy_app::{App, Plugin};
use ecs_torrent::components::peer::CloseReason;
use ecs_torrent::engine::ports::net::{DatagramCounts, DatagramKind};
use ecs_torrent::engine::schedule::TickSet;
use ecs_torrent::protocol::create::{NewFile, NewTorrent};
use ecs_torrent::protocol::extension::ExtensionHandshake;
use ecs_torrent::protocol::hash::sha1;
use ecs_torrent::protocol::metainfo::{Metainfo, MetainfoLimits};
use ecs_torrent::protocol::wire::{Frame, Message, Reserved, WireError};

use crate::bed::{Bed, DEADLINE, Torrent, loopback};
use crate::child::is_own_process;
use crate::content::noise;
use crate::peer::{ScriptedPeer, connect_raw, handshake, listen_as_seed, read_handshake, unique_id};

const BLOCK: usize = 16384;

/// A torrent of which no peer has any data; only its number of pieces matters.
fn torrent_of_many_pieces(piece_count: usize) -> Torrent {
    let torrent = NewTorrent {
        name: "large".into(),
        files: vec![NewFile {
            path: vec![],
            len: (BLOCK * piece_count) as u64,
        }],
        piece_length: BLOCK as u32,
        pieces: vec![sha1([&noise(1, BLOCK)[..]]); piece_count],
        ..NewTorrent::default()
    };
    let bytes = Bytes::from(torrent.encode().unwrap());
    Torrent {
        metainfo: Arc::new(Metainfo::parse(&bytes, &MetainfoLimits::default()).unwrap()),
        data: Vec::new(),
    }
}

fn written(messages: impl IntoIterator<Item = Message>) -> Vec<u8> {
    let mut bytes = Vec::new();
    messages.into_iter().for_each(|message| message.write(&mut bytes));
    bytes
}

/// The extended message id under which the engine accepts `lt_donthave`.
fn dont_have_id(peer: &mut ScriptedPeer) -> u8 {
    peer.wait_for("the extension handshake", |frame| match frame {
        Frame::Message(Message::Extended { id: 0, payload }) => ExtensionHandshake::read(&payload)
            .unwrap()
            .extensions
            .get("lt_donthave")
            .copied(),
        _ => None,
    })
}

/// Thirty peers have all pieces and alternate `lt_donthave` and `Have`. Each change used to make the picker walk over
/// all pieces twice; now it is one step. A peer that continues is closed. Another torrent is downloaded meanwhile.
#[test]
fn pieces_withdrawn_in_turns() {
    let mut bed = Bed::new();
    let large = torrent_of_many_pieces(100_000);
    bed.download(&large, &[]);
    let mut attackers: Vec<ScriptedPeer> = (0..30).map(|_| ScriptedPeer::connect(bed.address(), &large)).collect();
    let addresses: Vec<_> = attackers.iter().map(ScriptedPeer::address).collect();
    for attacker in &mut attackers {
        let id = dont_have_id(attacker);
        let turn = |piece: u32| {
            let payload = Bytes::copy_from_slice(&piece.to_be_bytes());
            [Message::Extended { id, payload }, Message::Have(piece)]
        };
        attacker.send(&Message::HaveAll);
        attacker.send_raw(&written((0..2000).flat_map(turn)));
    }
    let torrent = Arc::new(Torrent::new(20 * BLOCK, BLOCK as u32));
    let seed = listen_as_seed(loopback(170), &torrent, |_, _| true);
    bed.download(&torrent, &[seed]);
    bed.wait_complete(&torrent);
    for address in addresses {
        bed.wait_for_in_past("the end of a peer that changes its mind", |seen| {
            matches!(seen, crate::bed::Seen::Disconnected(other, CloseReason::Wire(WireError::TooManyChanges))
                if *other == address)
        });
    }
}

/// Messages that change state are allowed as often as clients use them; beyond that they end the connection.
#[test]
fn redundant_messages() {
    let extended = || Message::Extended {
        id: 0,
        payload: Bytes::from_static(b"de"),
    };
    // A client may send a bitfield in place of many haves. The last message has a wrong length.
    let many = (0..100).map(|_| Message::Bitfield(Bytes::from_static(&[0x10])));
    let bitfields = [&written(many)[..], &[0, 0, 0, 2, 0, 0]].concat();
    let floods = [
        (bitfields, WireError::BadLength { id: 0, len: 2 }),
        (
            written((0..50).flat_map(|_| [Message::HaveNone, Message::HaveAll])),
            WireError::TooManyBitfields,
        ),
        (
            written((0..200).flat_map(|_| [Message::Choke, Message::Unchoke])),
            WireError::TooManyChanges,
        ),
        (written((0..2000).map(|_| extended())), WireError::TooManyChanges),
    ];
    let mut bed = Bed::new();
    let torrent = Torrent::new(4 * BLOCK, BLOCK as u32);
    bed.download(&torrent, &[]);
    for (bytes, error) in floods {
        let mut peer = ScriptedPeer::connect(bed.address(), &torrent);
        let address = peer.address();
        peer.send_raw(&bytes);
        assert_eq!(bed.reason(address), CloseReason::Wire(error));
    }
}

/// BEP 6: a choked peer requests one block of an allowed-fast piece a thousand times. It gets the block twice, and 998
/// rejects.
#[test]
fn an_allowed_fast_block_again_and_again() {
    const COUNT: usize = 1000;
    let mut bed = Bed::with(|settings| settings.uploads.max_queue = COUNT);
    let torrent = Arc::new(Torrent::new(8 * BLOCK, BLOCK as u32));
    // All pieces but one, so that the torrent keeps downloading.
    let seed = listen_as_seed(loopback(171), &torrent, |request, _| request.piece != 5);
    let id = bed.download(&torrent, &[seed]);
    bed.wait_until("seven pieces", || bed.stats(id).held_pieces() == 7);
    let mut peer = ScriptedPeer::connect(bed.address(), &torrent);
    let piece = peer.wait_for("an allowed-fast piece", |frame| match frame {
        Frame::Message(Message::AllowedFast(piece)) => Some(piece),
        _ => None,
    });
    let request = torrent.metainfo.info.geometry.block(piece, 0);
    peer.send_raw(&written(std::iter::repeat_n(Message::Request(request), COUNT)));
    let (mut blocks, mut rejects) = (0, 0);
    while blocks + rejects < COUNT {
        match peer.next().expect("the connection stays") {
            Frame::Block(block) => {
                assert_eq!(block.request, request);
                blocks += 1;
            }
            Frame::Message(Message::RejectRequest(rejected)) => {
                assert_eq!(rejected, request);
                rejects += 1;
            }
            Frame::Message(Message::Unchoke) => panic!("it has not said that it is interested"),
            Frame::Message(_) => {}
        }
    }
    assert_eq!((blocks, rejects), (2, COUNT - 2));
}

/// Resident memory of this process.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() << 10
}

/// Connects to a torrent from many addresses, so that no per-address limit applies, and then reads nothing.
fn connect_many(bed: &Bed, torrent: &Torrent, count: u8) -> Vec<TcpStream> {
    (0..count)
        .map(|number| {
            let from = IpAddr::from(Ipv4Addr::new(127, 0, 1 + number / 25, 1 + number % 25));
            let mut stream = connect_raw(bed.address(), Some(from));
            stream
                .write_all(&handshake(torrent.info_hash(), unique_id(), Reserved::ours()))
                .unwrap();
            read_handshake(&mut stream).expect("the engine's handshake");
            stream.set_nonblocking(true).unwrap();
            stream
        })
        .collect()
}

/// A hundred connections send frames of five and six bytes as fast as the engine reads them: not interested, unknown
/// messages, and messages of unknown extensions. The engine used to allocate gigabytes for the decoded messages and
/// keep them. Now each connection has its share of a tick, and the excess waits in the kernel. Another peer is served
/// meanwhile, and the memory is released afterward.
#[test]
fn tiny_frames() {
    if is_own_process("floods::tiny_frames", Vec::new) {
        flood_with_tiny_frames();
    }
}

fn flood_with_tiny_frames() {
    const ROUNDS: u32 = 300;
    const WINDOW: u32 = 256 << 10;
    let mut bed = Bed::with(|settings| settings.net.idle_window_bytes = WINDOW);
    let torrent = Torrent::new(300_000, 65536);
    bed.seed(&torrent);
    let connected = connect_many(&bed, &torrent, 99);
    let mut bystander = ScriptedPeer::connect(bed.address(), &torrent);
    bystander.send(&Message::Interested);
    bystander.wait_for_message(&Message::Unchoke);
    let before = resident_bytes();
    // Whole frames, unless the kernel accepts only a part; sending then resumes from that point.
    let mut frames = written([Message::NotInterested, Message::NotInterested]);
    frames.extend([[0, 0, 0, 2, 99, 7], [0, 0, 0, 2, 20, 99]].concat());
    let (period, frames) = (frames.len(), frames.repeat(4096));
    let mut sent_bytes = vec![0; connected.len()];
    let (mut most, begin) = (before, Instant::now());
    for round in 0..ROUNDS {
        for (mut stream, sent) in connected.iter().zip(&mut sent_bytes) {
            match stream.write(&frames[*sent % period..]) {
                Ok(bytes) => *sent += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("the engine takes what is valid: {error}"),
            }
        }
        let request = torrent.metainfo.info.geometry.block(round % 4, 1);
        bystander.send(&Message::Request(request));
        assert_eq!(bystander.wait_for_block().request, request);
        most = most.max(resident_bytes());
    }
    drop(connected);
    bed.wait_until("the memory to be given back", || resident_bytes() < before + (10 << 20));
    let (most, sent) = (most - before, sent_bytes.iter().sum::<usize>());
    eprintln!(
        "{} KiB more at most, {} MiB sent in {:?}",
        most >> 10,
        sent >> 20,
        begin.elapsed()
    );
    // The receive windows, plus a few chunks and decoded messages.
    assert!(most < (99 * u64::from(WINDOW)) + (16 << 20), "{most} bytes more");
}

/// A plugin that makes each tick slow.
#[derive(Clone)]
struct SlowTicks;

impl Plugin for SlowTicks {
    fn build(&self, app: &mut App) {
        use ecs_torrent::bevy_ecs::prelude::*;
        let sleep = || std::thread::sleep(Duration::from_millis(200));
        app.add_systems(Tick, sleep.after(TickSet::Reap));
    }
}

/// Datagrams arrive faster than ticks process them: excess datagrams are dropped and counted.
#[test]
fn datagrams_while_ticks_are_slow() {
    if is_own_process("floods::datagrams_while_ticks_are_slow", Vec::new) {
        flood_with_datagrams();
    }
}

fn flood_with_datagrams() {
    let bed = Bed::with_plugin(|_| {}, SlowTicks);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let dropped = || {
        let torrents = bed.torrents();
        let look =
            torrents.with_world(|world| world.resource::<DatagramCounts>().dropped[DatagramKind::Tracker as usize]);
        bed.block_on(look).unwrap()
    };
    assert_eq!(dropped(), 0);
    let before = resident_bytes();
    let (datagram, begin) = ([0; 4000], Instant::now());
    while dropped() < 20_000 {
        for _ in 0..10_000 {
            let _ = socket.send_to(&datagram, bed.address());
        }
        assert!(begin.elapsed() < DEADLINE, "{} dropped", dropped());
    }
    let more = resident_bytes().saturating_sub(before);
    eprintln!(
        "{} dropped in {:?}, {} KiB more",
        dropped(),
        begin.elapsed(),
        more >> 10
    );
    // Twenty thousand datagrams would take 80 MB.
    assert!(more < 16 << 20, "{more} bytes more");
}
