//! Peers that violate the protocol: each violation affects only its own connection.

use std::io::Write;
use std::time::Instant;

use bytes::Bytes;
use ecs_torrent::components::peer::{CloseReason, TimeoutKind};
use ecs_torrent::protocol::geometry::BlockRequest;
use ecs_torrent::protocol::wire::{Frame, Message, Reserved, WireError};

use crate::bed::{Bed, DEADLINE, Seen, Torrent};
use crate::child::{is_own_process, memory_growth};
use crate::peer::{ScriptedPeer, connect_raw, handshake, read_handshake, unique_id};

const BLOCK: u32 = 16384;

fn seeding_bed() -> (Bed, Torrent) {
    let mut bed = Bed::new();
    let torrent = Torrent::new(300_000, 65536);
    bed.seed(&torrent);
    (bed, torrent)
}

/// Asserts that the engine closes a peer that sends `bytes` after its handshake for the expected reason, and keeps
/// serving another peer.
fn assert_closed_for(bytes: &[u8], is_expected: impl Fn(&WireError) -> bool) {
    let (mut bed, torrent) = seeding_bed();
    let mut bystander = ScriptedPeer::connect(bed.address(), &torrent);
    let mut offender = ScriptedPeer::connect(bed.address(), &torrent);
    let address = offender.address();
    offender.send_raw(bytes);
    offender.wait_closed();
    match bed.reason(address) {
        CloseReason::Wire(error) if is_expected(&error) => {}
        other => panic!("closed for: {other}"),
    }
    fetch_one(&mut bystander, &torrent);
}

/// Downloads a block to show that a connection works.
fn fetch_one(peer: &mut ScriptedPeer, torrent: &Torrent) {
    let request = torrent.metainfo.info.geometry.block(1, 0);
    peer.send(&Message::Interested);
    peer.wait_for_message(&Message::Unchoke);
    peer.send(&Message::Request(request));
    let block = peer.wait_for_block();
    assert_eq!(block.request, request);
    assert!(block.data.concat() == torrent.data[65536..65536 + BLOCK as usize]);
}

fn written(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.write(&mut bytes);
    bytes
}

/// Fault 20: a length prefix of 4 GiB closes the connection.
#[test]
fn a_length_prefix_of_four_gibibytes() {
    for id in [7, 20, 99] {
        assert_closed_for(&[0xff, 0xff, 0xff, 0xff, id], |error| {
            matches!(error, WireError::TooLong { .. })
        });
    }
}

/// Fault 20: the data after such a prefix is not buffered, however much a peer sends.
#[test]
fn a_length_prefix_of_four_gibibytes_buffers_nothing() {
    if !is_own_process("wire::a_length_prefix_of_four_gibibytes_buffers_nothing", Vec::new) {
        return;
    }
    let content = vec![7; 1 << 20];
    for id in [7, 20, 99] {
        let (mut bed, torrent) = seeding_bed();
        let mut peer = ScriptedPeer::connect(bed.address(), &torrent);
        let address = peer.address();
        let growth = memory_growth(|| {
            peer.send_raw(&[0xff, 0xff, 0xff, 0xff, id]);
            (0..64).for_each(|_| peer.send_raw(&content));
            assert!(matches!(
                bed.reason(address),
                CloseReason::Wire(WireError::TooLong { .. })
            ));
        });
        eprintln!("{growth} bytes");
        // Read buffers of 2 MiB, however much arrives.
        assert!(growth < 4 << 20, "{growth} bytes for what nobody asked for");
    }
}

/// Fault 21: a handshake that trickles in ends at its timeout, and the slot is free again.
#[test]
fn a_trickled_handshake() {
    let mut bed = Bed::with(|settings| {
        settings.peers.handshake_timeout_s = 2;
        settings.peers.max_unidentified = 1;
    });
    let torrent = Torrent::new(1000, 16384);
    bed.seed(&torrent);
    let mut slow = connect_raw(bed.address(), None);
    let address = slow.local_addr().unwrap();
    let bytes = handshake(torrent.info_hash(), unique_id(), Reserved::ours());
    let began = Instant::now();
    for byte in &bytes {
        if slow.write_all(&[*byte]).is_err() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
        if began.elapsed() > DEADLINE {
            break;
        }
    }
    assert_eq!(bed.reason(address), CloseReason::Timeout(TimeoutKind::Handshake));
    ScriptedPeer::connect(bed.address(), &torrent);
}

/// Fault 21: an incomplete message ends at its timeout.
#[test]
fn a_trickled_message() {
    let mut bed = Bed::with(|settings| settings.peers.frame_timeout_s = 2);
    let torrent = Torrent::new(1000, 16384);
    bed.seed(&torrent);
    let mut peer = ScriptedPeer::connect(bed.address(), &torrent);
    let address = peer.address();
    peer.send_raw(&[0, 0, 0, 13, 6, 0, 0]);
    peer.wait_closed();
    assert_eq!(bed.reason(address), CloseReason::Timeout(TimeoutKind::Frame));
}

/// Fault 22: a bitfield of the wrong size or with spare bits set closes the connection.
#[test]
fn bitfields_of_another_torrent() {
    // Five pieces need one byte and leave three spare bits.
    for bits in [&[0u8, 0][..], &[0b1111_1100]] {
        let message = written(&Message::Bitfield(Bytes::copy_from_slice(bits)));
        assert_closed_for(&message, |error| matches!(error, WireError::Bitfield(_)));
    }
}

/// Fault 23: indexes and offsets out of range close the connection.
#[test]
fn indexes_out_of_range() {
    let request = |piece, begin, len| BlockRequest { piece, begin, len };
    for message in [
        Message::Have(5),
        Message::Have(u32::MAX),
        Message::Request(request(5, 0, BLOCK)),
        Message::Request(request(0, 65536, 1)),
        Message::Request(request(4, 40_000, BLOCK)),
        Message::Cancel(request(u32::MAX, 0, BLOCK)),
        Message::AllowedFast(5),
    ] {
        assert_closed_for(&written(&message), |error| {
            matches!(error, WireError::OutOfRange { .. })
        });
    }
}

/// Fault 24: a request of zero length or above the maximum is rejected and has no other effect.
#[test]
fn zero_and_oversized_requests() {
    let (_bed, torrent) = seeding_bed();
    let mut peer = ScriptedPeer::connect(_bed.address(), &torrent);
    peer.send(&Message::Interested);
    peer.wait_for_message(&Message::Unchoke);
    for len in [0, 131_073, u32::MAX] {
        let request = BlockRequest {
            piece: 0,
            begin: 0,
            len,
        };
        peer.send(&Message::Request(request));
        peer.wait_for_message(&Message::RejectRequest(request));
    }
    fetch_one_more(&mut peer, &torrent);
}

fn fetch_one_more(peer: &mut ScriptedPeer, torrent: &Torrent) {
    let request = torrent.metainfo.info.geometry.block(0, 1);
    peer.send(&Message::Request(request));
    assert_eq!(peer.wait_for_block().request, request);
}

/// Fault 25: a flood of requests is capped at the announced queue length. The excess is rejected, and no request before
/// that.
#[test]
fn a_flood_of_requests_is_capped() {
    const CAP: usize = 20;
    let mut bed = Bed::with(|settings| settings.uploads.max_queue = CAP);
    let torrent = Torrent::new(4 << 20, 1 << 20);
    bed.seed(&torrent);
    let mut peer = ScriptedPeer::connect(bed.address(), &torrent);
    peer.send(&Message::Interested);
    peer.wait_for_message(&Message::Unchoke);
    let geometry = &torrent.metainfo.info.geometry;
    let requests = (0..4).flat_map(|piece| (0..64).map(move |block| geometry.block(piece, block)));
    let requests: Vec<BlockRequest> = requests.collect();
    let flood: Vec<u8> = requests
        .iter()
        .flat_map(|request| written(&Message::Request(*request)))
        .collect();
    peer.send_raw(&flood);
    // Rejected requests, each with the number of blocks received before.
    let (mut block_count, mut rejects) = (0, Vec::new());
    while block_count + rejects.len() < requests.len() {
        match peer.next().expect("the connection stays") {
            Frame::Block(_) => block_count += 1,
            Frame::Message(Message::RejectRequest(request)) => rejects.push((request, block_count)),
            Frame::Message(_) => {}
        }
    }
    assert!(
        !rejects.is_empty() && block_count >= CAP,
        "{block_count} blocks, {} rejects",
        rejects.len()
    );
    // Answers are sent in the order of their decisions: at each reject, the queue was exactly full.
    for (reject_count, (request, blocks_before)) in rejects.into_iter().enumerate() {
        let position = requests.iter().position(|other| *other == request).unwrap();
        let queued = position - reject_count - blocks_before;
        assert_eq!(queued, CAP, "requests in the queue when number {position} was rejected");
    }
}

/// Fault 25: a peer that requests blocks and never reads them is closed, and holds no more memory than the limit of one
/// peer.
#[test]
fn a_peer_that_never_reads() {
    if !is_own_process("wire::a_peer_that_never_reads", Vec::new) {
        return;
    }
    let mut bed = Bed::with(|settings| {
        settings.peers.send_timeout_s = 2;
        // Large enough that no request is rejected.
        settings.uploads.max_queue = 4096;
    });
    let torrent = Torrent::new(64 << 20, 1 << 20);
    bed.seed(&torrent);
    let mut peer = ScriptedPeer::connect(bed.address(), &torrent);
    let address = peer.address();
    peer.send(&Message::Interested);
    peer.wait_for_message(&Message::Unchoke);
    let geometry = &torrent.metainfo.info.geometry;
    let requests = (0..64).flat_map(|piece| (0..64).map(move |block| geometry.block(piece, block)));
    let flood: Vec<u8> = requests
        .flat_map(|request| written(&Message::Request(request)))
        .collect();
    let mut reason = None;
    let growth = memory_growth(|| {
        peer.send_raw(&flood);
        reason = Some(bed.reason(address));
    });
    assert_eq!(reason, Some(CloseReason::Timeout(TimeoutKind::Send)));
    // 2 MiB of blocks (`uploads.peer_memory_bytes`), and as much again for buffers in transit.
    eprintln!("{growth} bytes");
    assert!(growth < 4 << 20, "{growth} bytes for a peer that reads nothing");
}

/// A message of the fast extension without negotiation closes the connection but does not ban the peer.
#[test]
fn a_fast_message_without_the_extension() {
    let (mut bed, torrent) = seeding_bed();
    let mut peer = ScriptedPeer::connect_plain(bed.address(), &torrent);
    let address = peer.address();
    peer.send(&Message::HaveNone);
    peer.wait_closed();
    assert_eq!(bed.reason(address), CloseReason::Wire(WireError::NotNegotiated(15)));
    // Not banned: the same address may connect again.
    ScriptedPeer::connect_plain(bed.address(), &torrent);
}

/// BEP 3: without the fast extension there are no rejects; requests while choked stay unanswered.
#[test]
fn a_peer_without_extensions_is_served() {
    let (_bed, torrent) = seeding_bed();
    let mut peer = ScriptedPeer::connect_plain(_bed.address(), &torrent);
    let first = peer.next().unwrap();
    assert_eq!(
        first,
        Frame::Message(Message::Bitfield(Bytes::from_static(&[0b1111_1000])))
    );
    let (early, late) = (
        torrent.metainfo.info.geometry.block(3, 0),
        torrent.metainfo.info.geometry.block(2, 0),
    );
    peer.send(&Message::Request(early));
    peer.send(&Message::Interested);
    peer.wait_for_message(&Message::Unchoke);
    // An invalid request is not served; the next messages show that it was not answered either.
    peer.send(&Message::Request(BlockRequest { len: 0, ..early }));
    peer.send(&Message::Request(late));
    peer.wait_for("the block", |frame| match frame {
        Frame::Block(block) => (block.request == late).then_some(()),
        other => panic!("{other:?}"),
    });
}

/// BEP 54: a piece revoked by `lt_donthave` is not requested.
#[test]
fn a_withdrawn_piece() {
    let mut bed = Bed::new();
    let torrent = Torrent::new(2 * 16384, 16384);
    bed.download(&torrent, &[]);
    let mut peer = ScriptedPeer::connect(bed.address(), &torrent);
    let id = peer.wait_for("the extension handshake", |frame| match frame {
        Frame::Message(Message::Extended { id: 0, payload }) => {
            let handshake = ecs_torrent::protocol::extension::ExtensionHandshake::read(&payload).unwrap();
            assert_eq!(
                handshake.client.as_deref(),
                Some(concat!("ecs-torrent ", env!("CARGO_PKG_VERSION")))
            );
            assert!(handshake.request_queue.is_some() && handshake.listen_port.is_some());
            handshake.extensions.get("lt_donthave").copied()
        }
        _ => None,
    });
    peer.send(&Message::HaveAll);
    peer.wait_for_message(&Message::Interested);
    let payload = Bytes::from_static(&[0, 0, 0, 1]);
    peer.send(&Message::Extended { id, payload });
    peer.send(&Message::Unchoke);
    let request = peer.wait_for_request();
    assert_eq!(request.piece, 0);
    peer.send_block(request, &torrent.data[..16384]);
    peer.wait_for_message(&Message::NotInterested);
    assert!(!bed.has_seen().iter().any(|seen| matches!(seen, Seen::Completed)));
}

/// BEP 6: a suggested piece is requested first if no piece is rarer, and the suggesting peer gets a `Have` once it
/// completes.
#[test]
fn a_piece_that_is_suggested() {
    let mut bed = Bed::new();
    let torrent = Torrent::new(8 * 16384, 16384);
    bed.download(&torrent, &[]);
    let mut peer = ScriptedPeer::connect(bed.address(), &torrent);
    peer.send(&Message::HaveAll);
    peer.wait_for_message(&Message::Interested);
    peer.send(&Message::SuggestPiece(5));
    peer.send(&Message::Unchoke);
    let request = peer.wait_for_request();
    assert_eq!(request.piece, 5);
    peer.answer(&torrent, request);
    peer.wait_for_message(&Message::Have(5));
    // No further piece is suggested, so the rest is requested without suggestions.
    for _ in 0..7 {
        let request = peer.wait_for_request();
        peer.answer(&torrent, request);
    }
    bed.wait_complete(&torrent);
}

/// A seed suggests each piece to one interested peer. After those peers have left, it suggests the pieces again to new
/// peers.
#[test]
fn pieces_that_a_seed_suggests() {
    const PIECES: u32 = 16;
    let mut bed = Bed::new();
    let torrent = Torrent::new(PIECES as usize * 16384, 16384);
    bed.seed(&torrent);
    for _ in 0..2 {
        let connect = || {
            let mut peer = ScriptedPeer::connect(bed.address(), &torrent);
            peer.send(&Message::HaveNone);
            peer.send(&Message::Interested);
            peer.wait_for_message(&Message::Unchoke);
            peer
        };
        let suggestions = |peer: &mut ScriptedPeer, count: u32| -> Vec<u32> {
            let suggestion = |frame| match frame {
                Frame::Message(Message::SuggestPiece(piece)) => Some(piece),
                _ => None,
            };
            (0..count).map(|_| peer.wait_for("a suggestion", suggestion)).collect()
        };
        let (mut first, mut second) = (connect(), connect());
        // Suggestions for a quarter of a second, at least 128 KiB.
        let mut out = suggestions(&mut second, 8);
        let requested = (0..PIECES).find(|piece| !out.contains(piece)).unwrap();
        first.send(&Message::Request(torrent.metainfo.info.geometry.block(requested, 0)));
        out.push(requested);
        out.extend(suggestions(&mut first, PIECES - 9));
        out.sort_unstable();
        assert!(out.into_iter().eq(0..PIECES));
        for mut peer in [first, second] {
            (0..PIECES).for_each(|piece| peer.send(&Message::Have(piece)));
            let address = peer.address();
            drop(peer);
            bed.reason(address);
        }
    }
}

/// A peer that requests an unknown torrent is closed without an answer.
#[test]
fn an_unknown_torrent() {
    let (mut bed, _torrent) = seeding_bed();
    let mut stream = connect_raw(bed.address(), None);
    let address = stream.local_addr().unwrap();
    let bytes = handshake(ecs_torrent::InfoHash([9; 20]), unique_id(), Reserved::ours());
    stream.write_all(&bytes).unwrap();
    assert!(read_handshake(&mut stream).is_none());
    assert_eq!(bed.reason(address), CloseReason::UnknownTorrent);
}
