//! The stop as seen by peers, trackers and the disk: its order, and the state that it leaves.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ecs_torrent::components::session::Session;
use ecs_torrent::components::torrent::StopPhase;
use ecs_torrent::events::Event;
use ecs_torrent::protocol::geometry::BlockRequest;
use ecs_torrent::protocol::wire::{Frame, Message, Reserved};
use ecs_torrent::{Error, InfoHash, RemoveOptions, TorrentId, TorrentState};

use crate::bed::{Bed, DEADLINE, Torrent, loopback};
use crate::http_tracker::{announce, ok, parameter, serve};
use crate::peer::{ScriptedPeer, connect_raw, handshake, read_handshake, unique_id};

pub const BLOCK: u64 = 16384;
pub const EMPTY_REPLY: &[u8] = b"d8:intervali900e5:peers0:e";
pub const KEEP_DATA: RemoveOptions = RemoveOptions { delete_data: false };

/// Begins a stop on a thread and returns the thread's handle, which yields the result.
pub fn begin_stop(bed: &Bed, id: InfoHash) -> JoinHandle<Result<(), Error>> {
    let torrents = bed.torrents();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(torrents.stop_and_serialize(id))
    })
}

/// A tracker that withholds its answer to `stopped` until it is released.
pub struct HeldTracker {
    pub url: String,
    pub stops: Receiver<String>,
    pub release: Sender<()>,
}

impl HeldTracker {
    pub fn start() -> Self {
        let (announced, stops) = channel();
        let (release, released) = channel();
        let (announced, released) = (Mutex::new(announced), Mutex::new(released));
        let address = serve(move |target| {
            if parameter(target, "event") == Some("stopped") {
                announced.lock().unwrap().send(target.to_owned()).unwrap();
                let _ = released.lock().unwrap().recv();
            }
            ok(EMPTY_REPLY)
        });
        Self {
            url: announce(address),
            stops,
            release,
        }
    }
}

fn requests(frames: &[Frame]) -> impl Iterator<Item = BlockRequest> {
    frames.iter().filter_map(|frame| match frame {
        Frame::Message(Message::Request(request)) => Some(*request),
        _ => None,
    })
}

/// Asserts the engine's last messages: one cancel for each of `outstanding` requests and no other, then not-interested,
/// then choke. Messages before the first cancel may add requests, which must be canceled too.
pub fn assert_last_messages(frames: &[Frame], outstanding: &BTreeSet<BlockRequest>) {
    let canceled = |frame: &Frame| match frame {
        Frame::Message(Message::Cancel(request)) => Some(*request),
        _ => None,
    };
    let begin = frames.iter().position(|frame| canceled(frame).is_some());
    let begin = begin.unwrap_or(frames.len().saturating_sub(2));
    let (before, last) = frames.split_at(begin);
    let mut outstanding = outstanding.clone();
    outstanding.extend(requests(before));
    let cancels: Vec<BlockRequest> = last.iter().map_while(canceled).collect();
    let once: BTreeSet<BlockRequest> = cancels.iter().copied().collect();
    assert_eq!(once.len(), cancels.len(), "each is canceled once: {cancels:?}");
    assert_eq!(once, outstanding, "what was outstanding is canceled");
    assert_eq!(
        &last[cancels.len()..],
        [Message::NotInterested, Message::Choke].map(Frame::Message)
    );
}

/// Connects a leecher that is unchoked and has received one block of `piece`.
pub fn leech_a_block(bed: &Bed, torrent: &Torrent, piece: u32) -> ScriptedPeer {
    let mut leecher = ScriptedPeer::connect(bed.address(), torrent);
    leecher.send(&Message::HaveNone);
    leecher.send(&Message::Interested);
    leecher.wait_for_message(&Message::Unchoke);
    leecher.send(&Message::Request(torrent.metainfo.info.geometry.block(piece, 0)));
    leecher.wait_for_block();
    leecher
}

/// Returns the offsets in the torrent, in bytes, of the blocks that a session records as stored on disk.
fn saved_blocks(session: &Session, torrent: &Torrent) -> BTreeSet<u64> {
    let geometry = &torrent.metainfo.info.geometry;
    let have = session.have.to_set(geometry.piece_count()).unwrap();
    let whole = have
        .iter()
        .flat_map(|piece| (0..geometry.block_count(piece)).map(move |block| (piece, block)));
    let partial = session.partial.iter().flat_map(|partial| {
        let blocks = partial.blocks.to_set(geometry.block_count(partial.piece)).unwrap();
        blocks.iter().map(|block| (partial.piece, block)).collect::<Vec<_>>()
    });
    let all = whole.chain(partial);
    all.map(|(piece, block)| geometry.span(geometry.block(piece, block)).offset)
        .collect()
}

/// The complete order of a stop, with outstanding requests and a peer being served. Peers get cancels, not-interested,
/// choke and an orderly close. Only after all peers have closed, `stopped` is sent with correct counters. After its
/// answer the session is written, and then the torrent is removed.
#[test]
fn a_download_is_stopped_in_order() {
    let tracker = HeldTracker::start();
    let torrent = Torrent::with_trackers(20 * 65536, 65536, std::slice::from_ref(&tracker.url));
    let listener = TcpListener::bind((loopback(110), 0)).unwrap();
    let mut bed = Bed::keeping(|settings| {
        settings.lifecycle.disconnect_timeout_ms = 60_000;
        settings.net.close_timeout_ms = 60_000;
        settings.lifecycle.announce_timeout_ms = 60_000;
        settings.session.checkpoint_interval_s = 3600;
        settings.uploads.choke_interval_s = 1;
    });
    let id = bed.download(&torrent, &[listener.local_addr().unwrap()]);
    let mut seed = ScriptedPeer::accept(&listener, &torrent);
    seed.send(&Message::HaveAll);
    seed.wait_for_message(&Message::Interested);
    seed.send(&Message::Unchoke);
    // One piece of four blocks completes, two blocks of the next piece are sent, and the rest stays outstanding.
    let requested: Vec<BlockRequest> = (0..10).map(|_| seed.wait_for_request()).collect();
    let piece = requested[0].piece;
    assert!(
        requested[..4].iter().all(|request| request.piece == piece),
        "{requested:?}"
    );
    let (given, owed) = requested.split_at(6);
    given.iter().for_each(|request| seed.answer(&torrent, *request));
    let mut owed: BTreeSet<BlockRequest> = owed.iter().copied().collect();
    bed.wait_until("the piece", || bed.stats(id).held_pieces() == 1);
    let mut leecher = leech_a_block(&bed, &torrent, piece);
    let downloaded = given.len() as u64 * BLOCK;
    bed.wait_until("the blocks to be counted", || {
        bed.stats(id).downloaded == downloaded && bed.session(id).is_some()
    });

    let mut events = bed.torrents().subscribe();
    let stop = begin_stop(&bed, id);
    let said = seed.rest();
    assert_last_messages(&said, &owed);
    leecher.rest();
    // The seed has not closed its side. The engine discards the blocks that it sends now, but still waits for its
    // close.
    owed.extend(requests(&said));
    owed.iter().for_each(|request| seed.answer(&torrent, *request));
    drop(leecher);
    assert_eq!(bed.stats(id).state, TorrentState::Stopping(StopPhase::DisconnectPeers));
    assert!(
        tracker.stops.try_recv().is_err(),
        "announced before the peers were gone"
    );
    drop(seed);

    let announced = tracker.stops.recv_timeout(DEADLINE).unwrap();
    assert_eq!(bed.stats(id).state, TorrentState::Stopping(StopPhase::AnnounceStopped));
    let left = torrent.data.len() as u64 - bed.stats(id).completed;
    assert!(left < torrent.data.len() as u64);
    for (name, value) in [("downloaded", downloaded), ("uploaded", BLOCK), ("left", left)] {
        assert_eq!(parameter(&announced, name).unwrap(), value.to_string(), "{name}");
    }
    let old = bed.session(id).unwrap();
    assert_eq!((old.downloaded, old.uploaded), (0, 0), "the session of before");
    assert!(!stop.is_finished());
    assert_eq!(bed.block_on(bed.torrents().list()).unwrap(), [id.into()]);
    tracker.release.send(()).unwrap();

    while bed.block_on(events.next()).unwrap() != Event::Stopped(id.into()) {}
    let new = bed.session(id).unwrap();
    assert_eq!((new.downloaded, new.uploaded), (downloaded, BLOCK));
    let offsets: BTreeSet<u64> = given
        .iter()
        .map(|request| torrent.metainfo.info.geometry.span(*request).offset)
        .collect();
    assert_eq!(saved_blocks(&new, &torrent), offsets);
    assert!(!new.partial.is_empty());
    let on_disk = std::fs::read(bed.folder().join("data")).unwrap();
    for offset in offsets {
        let range = offset as usize..(offset + BLOCK) as usize;
        assert!(
            on_disk[range.clone()] == torrent.data[range],
            "the block at {offset} is on the disk"
        );
    }
    stop.join().unwrap().unwrap();
    assert!(bed.block_on(bed.torrents().list()).unwrap().is_empty());
}

/// A peer that never stops sending gets the same close: no request after the last messages, and no reset.
#[test]
fn nothing_is_requested_after_the_close() {
    let torrent = Arc::new(Torrent::new(8 << 20, 65536));
    let listener = TcpListener::bind((loopback(111), 0)).unwrap();
    let mut bed = Bed::keeping(|_| {});
    let id = bed.download(&torrent, &[listener.local_addr().unwrap()]);
    let mut seed = ScriptedPeer::accept(&listener, &torrent);
    let data = torrent.clone();
    let seed = thread::spawn(move || {
        seed.send(&Message::HaveAll);
        seed.send(&Message::Unchoke);
        let mut frames = Vec::new();
        while let Some(frame) = seed.try_next().expect("an orderly close") {
            if let Frame::Message(Message::Request(request)) = frame {
                // As slow as a typical peer on the Internet.
                thread::sleep(Duration::from_millis(3));
                seed.answer(&data, request);
            }
            frames.push(frame);
        }
        frames
    });
    bed.wait_until("a part", || bed.stats(id).downloaded > 1 << 20);
    begin_stop(&bed, id).join().unwrap().unwrap();
    let frames = seed.join().unwrap();
    let begin = frames
        .iter()
        .position(|frame| matches!(frame, Frame::Message(Message::Cancel(_))))
        .expect("something was outstanding");
    assert_eq!(requests(&frames[begin..]).count(), 0);
    let end = [Message::NotInterested, Message::Choke].map(Frame::Message);
    assert!(frames.ends_with(&end), "{:?}", &frames[begin..]);
    assert!(bed.session(id).unwrap().downloaded > 1 << 20);
}

/// A seeding torrent stops in the same order.
#[test]
fn a_seed_is_stopped_in_order() {
    let tracker = HeldTracker::start();
    let torrent = Torrent::with_trackers(300_000, 65536, std::slice::from_ref(&tracker.url));
    let mut bed = Bed::keeping(|settings| {
        settings.lifecycle.disconnect_timeout_ms = 60_000;
        settings.net.close_timeout_ms = 60_000;
        settings.lifecycle.announce_timeout_ms = 60_000;
        settings.session.checkpoint_interval_s = 3600;
    });
    let id = bed.seed(&torrent);
    bed.wait_until("the first session", || bed.session(id).is_some());
    let mut leecher = leech_a_block(&bed, &torrent, 0);
    bed.wait_until("the block to be counted", || bed.stats(id).uploaded == BLOCK);
    let stop = begin_stop(&bed, id);
    assert_last_messages(&leecher.rest(), &BTreeSet::new());
    assert_eq!(bed.stats(id).state, TorrentState::Stopping(StopPhase::DisconnectPeers));
    assert!(tracker.stops.try_recv().is_err(), "announced before the peer was gone");
    drop(leecher);
    let announced = tracker.stops.recv_timeout(DEADLINE).unwrap();
    let counts = ["downloaded", "uploaded", "left"].map(|name| parameter(&announced, name).unwrap());
    assert_eq!(counts, ["0", "16384", "0"]);
    assert_eq!(bed.stats(id).state, TorrentState::Stopping(StopPhase::AnnounceStopped));
    assert_eq!(bed.session(id).unwrap().uploaded, 0, "the session of before");
    tracker.release.send(()).unwrap();
    stop.join().unwrap().unwrap();
    assert_eq!(bed.session(id).unwrap().uploaded, BLOCK);
    assert!(bed.block_on(bed.torrents().list()).unwrap().is_empty());
}

/// A second stop joins the one in progress.
#[test]
fn a_second_stop_joins_the_first() {
    let tracker = HeldTracker::start();
    let torrent = Torrent::with_trackers(100_000, 16384, std::slice::from_ref(&tracker.url));
    let mut bed = Bed::keeping(|settings| settings.lifecycle.announce_timeout_ms = 60_000);
    let id = bed.seed(&torrent);
    bed.wait_until("started to be announced", || {
        bed.stats(id).trackers[0].status == "working"
    });
    let first = begin_stop(&bed, id);
    tracker.stops.recv_timeout(DEADLINE).unwrap();
    let torrents = bed.torrents();
    // Commands are processed in the order in which they were sent, so this answer shows that the stops have been
    // received.
    let release = async {
        let stats = torrents.stats(id).await.unwrap();
        assert_eq!(stats.state, TorrentState::Stopping(StopPhase::AnnounceStopped));
        tracker.release.send(()).unwrap();
    };
    let joined = async {
        tokio::join!(
            torrents.stop_and_serialize(id),
            torrents.stop_all_and_serialize(),
            release
        )
    };
    let (second, all, ()) = bed.block_on(joined);
    for result in [first.join().unwrap(), second, all] {
        result.unwrap();
    }
    assert!(tracker.stops.try_recv().is_err(), "the tracker gets stopped once");
    assert!(bed.block_on(bed.torrents().list()).unwrap().is_empty());
}

/// One stopped torrent is listed again as it was, and no other. A resume that follows a stop waits for its end.
#[test]
fn one_stopped_torrent_is_resumed() {
    let bed = Bed::keeping(|_| {});
    let one = bed.add(&Torrent::new(100_000, 16384), "one", &[]);
    let other = bed.add(&Torrent::new(100_001, 16384), "other", &[]);
    let torrents = bed.torrents();
    bed.block_on(torrents.stop_all_and_serialize()).unwrap();
    for _ in 0..2 {
        bed.block_on(torrents.resume(one)).unwrap();
        assert_eq!(bed.block_on(torrents.list()).unwrap(), [one.into()]);
    }
    assert_eq!(bed.stats(one).root, bed.folder().join("one"));
    let (stopped, resumed) =
        bed.block_on(async { tokio::join!(torrents.stop_and_serialize(one), torrents.resume(one)) });
    stopped.unwrap();
    resumed.unwrap();
    assert_eq!(bed.block_on(torrents.list()).unwrap(), [one.into()]);
    bed.block_on(torrents.resume(other)).unwrap();
    assert_eq!(bed.block_on(torrents.list()).unwrap(), [one.into(), other.into()]);
}

/// Calls for a torrent that does not exist.
#[test]
fn an_unknown_torrent() {
    let bed = Bed::keeping(|_| {});
    let id = TorrentId(InfoHash([7; 20]));
    let torrents = bed.torrents();
    bed.block_on(torrents.stop_and_serialize(id)).unwrap();
    bed.block_on(torrents.stop_all_and_serialize()).unwrap();
    let is_unknown = |error: Error| matches!(error, Error::TorrentNotFound(_)) && error.to_string().contains("0707");
    assert!(is_unknown(bed.block_on(torrents.stats(id)).unwrap_err()));
    assert!(is_unknown(bed.block_on(torrents.list_files(id)).unwrap_err()));
    assert!(is_unknown(bed.block_on(torrents.remove(id, KEEP_DATA)).unwrap_err()));
    assert!(is_unknown(bed.block_on(torrents.resume(id)).unwrap_err()));
}

/// Adding a torrent again changes nothing.
#[test]
fn the_same_torrent_twice() {
    let torrent = Torrent::new(100_000, 16384);
    let mut bed = Bed::keeping(|_| {});
    let id = bed.seed(&torrent);
    assert_eq!(bed.add(&torrent, "elsewhere", &[]), id);
    assert_eq!(bed.block_on(bed.torrents().list()).unwrap(), [id.into()]);
    let stats = bed.stats(id);
    assert_eq!(
        (stats.state, stats.root.as_path()),
        (TorrentState::Seeding, bed.folder())
    );
    assert!(!bed.folder().join("elsewhere").exists());
}

/// Fault 84: if the session cannot be saved, the stop returns an error, and the torrent stays visible and can be
/// stopped again.
#[test]
fn a_session_that_cannot_be_saved() {
    let torrent = Torrent::new(100_000, 16384);
    let mut bed = Bed::keeping(|_| {});
    let id = bed.seed(&torrent);
    bed.wait_until("the session", || bed.session(id).is_some());
    leech_a_block(&bed, &torrent, 0);
    bed.wait_until("the block to be counted", || bed.stats(id).uploaded == BLOCK);
    // The engine holds the folder open, so it cannot be replaced. The path where the new session is written first can
    // be blocked.
    let in_the_way = bed.state().join(format!("{id}.tmp"));
    std::fs::create_dir(&in_the_way).unwrap();
    let error = bed.block_on(bed.torrents().stop_and_serialize(id)).unwrap_err();
    assert!(matches!(error, Error::Stop(_)), "{error}");
    let stats = bed.stats(id);
    assert_eq!(stats.state, TorrentState::Failed);
    assert!(stats.error.unwrap().contains("not saved"));
    std::fs::remove_dir(&in_the_way).unwrap();
    assert_eq!(bed.session(id).unwrap().uploaded, 0, "the old one is as it was");
    bed.block_on(bed.torrents().stop_and_serialize(id)).unwrap();
    assert_eq!(bed.session(id).unwrap().uploaded, BLOCK);
    assert!(bed.block_on(bed.torrents().list()).unwrap().is_empty());
}

/// A stop before the saved session has been read leaves the session unchanged, however often it is repeated.
#[test]
fn a_stop_before_the_session_is_read() {
    let torrent = Torrent::new(100_000, 16384);
    let mut bed = Bed::keeping(|_| {});
    let id = bed.seed(&torrent);
    leech_a_block(&bed, &torrent, 0);
    bed.wait_until("the block to be counted", || bed.stats(id).uploaded == BLOCK);
    let torrents = bed.torrents();
    bed.block_on(torrents.stop_and_serialize(id)).unwrap();
    let session = bed.session(id).unwrap();
    for _ in 0..20 {
        assert_eq!(bed.block_on(torrents.resume_all()).unwrap(), 1);
        bed.block_on(torrents.stop_all_and_serialize()).unwrap();
        assert_eq!(bed.session(id).unwrap().have, session.have);
        assert_eq!(bed.session(id).unwrap().uploaded, BLOCK);
    }
    bed.block_on(torrents.resume_all()).unwrap();
    bed.wait_until("seeding", || bed.stats(id).state == TorrentState::Seeding);
}

/// A peer that connects while a torrent stops is rejected and leaves no open connection.
#[test]
fn a_stopping_engine_accepts_no_peer() {
    let tracker = HeldTracker::start();
    let torrent = Torrent::with_trackers(100_000, 16384, std::slice::from_ref(&tracker.url));
    let mut bed = Bed::keeping(|settings| settings.lifecycle.announce_timeout_ms = 60_000);
    let id = bed.seed(&torrent);
    bed.wait_until("started to be announced", || {
        bed.stats(id).trackers[0].status == "working"
    });
    let stop = begin_stop(&bed, id);
    tracker.stops.recv_timeout(DEADLINE).unwrap();
    let mut late = connect_raw(bed.address(), None);
    late.write_all(&handshake(torrent.info_hash(), unique_id(), Reserved::ours()))
        .unwrap();
    assert!(read_handshake(&mut late).is_none(), "let in by a torrent that stops");
    assert!(bed.stats(id).peers.is_empty());
    tracker.release.send(()).unwrap();
    stop.join().unwrap().unwrap();
}
