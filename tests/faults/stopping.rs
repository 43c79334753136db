//! The stop as seen by peers, trackers and the disk: its order, its duration, and the state that it leaves.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ecs_torrent::bevy_app::{App, Plugin};
use ecs_torrent::bevy_ecs::prelude::*;
use ecs_torrent::components::commands::{
    AddTorrent, CommandQueue, RemoveError, RemoveTorrent, Removed, Reply, ResumeTorrent, StopTorrent,
};
use ecs_torrent::components::session::Session;
use ecs_torrent::components::torrent::{StopPhase, Stopping};
use ecs_torrent::events::Event;
use ecs_torrent::protocol::create::{NewFile, NewTorrent};
use ecs_torrent::protocol::geometry::BlockRequest;
use ecs_torrent::protocol::hash::sha1;
use ecs_torrent::protocol::metainfo::{Metainfo, MetainfoLimits};
use ecs_torrent::protocol::wire::{Frame, Message, Reserved};
use ecs_torrent::{AddOptions, Error, InfoHash, RemoveOptions, Tick, TickSet, TorrentId, TorrentState};

use crate::bed::{Bed, DEADLINE, Torrent, loopback};
use crate::http_tracker::{announce, ok, parameter, serve};
use crate::peer::{ScriptedPeer, connect_raw, handshake, listen_as_seed, read_handshake, unique_id};

/// Longer than all phases of a stop together, and shorter than any unbounded phase would take.
const BOUND: Duration = Duration::from_secs(30);

const BLOCK: u64 = 16384;
const EMPTY_REPLY: &[u8] = b"d8:intervali900e5:peers0:e";
const KEEP_DATA: RemoveOptions = RemoveOptions { delete_data: false };

/// Begins a stop on a thread and returns the thread's handle, which yields the result.
fn begin_stop(bed: &Bed, id: InfoHash) -> JoinHandle<Result<(), Error>> {
    let torrents = bed.torrents();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(torrents.stop_and_serialize(id))
    })
}

/// A tracker that withholds its answer to `stopped` until it is released.
struct HeldTracker {
    url: String,
    stops: Receiver<String>,
    release: Sender<()>,
}

impl HeldTracker {
    fn start() -> Self {
        let (told, stops) = channel();
        let (release, released) = channel();
        let (told, released) = (Mutex::new(told), Mutex::new(released));
        let address = serve(move |target| {
            if parameter(target, "event") == Some("stopped") {
                told.lock().unwrap().send(target.to_owned()).unwrap();
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

/// A tracker that never answers.
fn dead_tracker() -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = announce(listener.local_addr().unwrap());
    thread::spawn(move || listener.incoming().collect::<Vec<_>>());
    url
}

fn requests(frames: &[Frame]) -> impl Iterator<Item = BlockRequest> {
    frames.iter().filter_map(|frame| match frame {
        Frame::Message(Message::Request(request)) => Some(*request),
        _ => None,
    })
}

/// Asserts the engine's last messages: one cancel for each of `outstanding` requests and no other, then not-interested,
/// then choke. Messages before the first cancel may add requests, which must be canceled too.
fn assert_farewell(frames: &[Frame], outstanding: &BTreeSet<BlockRequest>) {
    let canceled = |frame: &Frame| match frame {
        Frame::Message(Message::Cancel(request)) => Some(*request),
        _ => None,
    };
    let begin = frames.iter().position(|frame| canceled(frame).is_some());
    let begin = begin.unwrap_or(frames.len().saturating_sub(2));
    let (before, farewell) = frames.split_at(begin);
    let mut outstanding = outstanding.clone();
    outstanding.extend(requests(before));
    let cancels: Vec<BlockRequest> = farewell.iter().map_while(canceled).collect();
    let once: BTreeSet<BlockRequest> = cancels.iter().copied().collect();
    assert_eq!(once.len(), cancels.len(), "each is canceled once: {cancels:?}");
    assert_eq!(once, outstanding, "what was outstanding is canceled");
    assert_eq!(
        &farewell[cancels.len()..],
        [Message::NotInterested, Message::Choke].map(Frame::Message)
    );
}

/// Connects a leecher that is unchoked and has received one block of `piece`.
fn leech_a_block(bed: &Bed, torrent: &Torrent, piece: u32) -> ScriptedPeer {
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
    let asked: Vec<BlockRequest> = (0..10).map(|_| seed.wait_for_request()).collect();
    let piece = asked[0].piece;
    assert!(asked[..4].iter().all(|request| request.piece == piece), "{asked:?}");
    let (given, owed) = asked.split_at(6);
    given.iter().for_each(|request| seed.answer(&torrent, *request));
    let mut owed: BTreeSet<BlockRequest> = owed.iter().copied().collect();
    bed.wait_until("the piece", || bed.stats(id).pieces_completed == 1);
    let mut leecher = leech_a_block(&bed, &torrent, piece);
    let downloaded = given.len() as u64 * BLOCK;
    bed.wait_until("the blocks to be counted", || {
        bed.stats(id).downloaded == downloaded && bed.session(id).is_some()
    });

    let mut events = bed.torrents().subscribe();
    let stop = begin_stop(&bed, id);
    let said = seed.rest();
    assert_farewell(&said, &owed);
    leecher.rest();
    // The seed has not closed its side. The engine discards the blocks that it sends now, but still waits for its
    // close.
    owed.extend(requests(&said));
    owed.iter().for_each(|request| seed.answer(&torrent, *request));
    drop(leecher);
    assert_eq!(
        bed.stats(id).lifecycle,
        TorrentState::Stopping(StopPhase::DisconnectPeers)
    );
    assert!(tracker.stops.try_recv().is_err(), "told before the peers were gone");
    drop(seed);

    let told = tracker.stops.recv_timeout(DEADLINE).unwrap();
    assert_eq!(
        bed.stats(id).lifecycle,
        TorrentState::Stopping(StopPhase::AnnounceStopped)
    );
    let left = torrent.data.len() as u64 - bed.stats(id).bytes_completed;
    assert!(left < torrent.data.len() as u64);
    for (name, value) in [("downloaded", downloaded), ("uploaded", BLOCK), ("left", left)] {
        assert_eq!(parameter(&told, name).unwrap(), value.to_string(), "{name}");
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

/// A peer that never stops sending gets the same close: no request after the farewell, and no reset.
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
    assert_farewell(&leecher.rest(), &BTreeSet::new());
    assert_eq!(
        bed.stats(id).lifecycle,
        TorrentState::Stopping(StopPhase::DisconnectPeers)
    );
    assert!(tracker.stops.try_recv().is_err(), "told before the peer was gone");
    drop(leecher);
    let told = tracker.stops.recv_timeout(DEADLINE).unwrap();
    let counts = ["downloaded", "uploaded", "left"].map(|name| parameter(&told, name).unwrap());
    assert_eq!(counts, ["0", "16384", "0"]);
    assert_eq!(
        bed.stats(id).lifecycle,
        TorrentState::Stopping(StopPhase::AnnounceStopped)
    );
    assert_eq!(bed.session(id).unwrap().uploaded, 0, "the session of before");
    tracker.release.send(()).unwrap();
    stop.join().unwrap().unwrap();
    assert_eq!(bed.session(id).unwrap().uploaded, BLOCK);
    assert!(bed.block_on(bed.torrents().list()).unwrap().is_empty());
}

/// A torrent is stopped right after it is added, whether its files have been checked or not.
#[test]
fn a_stop_right_behind_the_add() {
    let torrent = Torrent::new(100_000, 16384);
    let bed = Bed::keeping(|_| {});
    for _ in 0..20 {
        let id = bed.add(&torrent, "", &[]);
        bed.block_on(bed.torrents().stop_and_serialize(id)).unwrap();
        assert!(bed.block_on(bed.torrents().list()).unwrap().is_empty());
    }
}

/// Commands that arrive in the tick of an add that cannot be decided yet: each waits for the decision, and is then
/// carried out.
#[test]
fn commands_in_the_tick_of_the_add() {
    let torrent = Torrent::new(100_000, 16384);
    for command in ["stop", "remove", "resume"] {
        // The add waits for the names of the stopped torrents, which a new engine does not know yet.
        let bed = Bed::keeping(|_| {});
        let answers = add_and(&bed, &torrent, command);
        assert_carried_out(&bed, &torrent, command, &answers);
    }
}

/// Commands about a torrent that is being stopped, while an add of it waits for that: they follow the add.
#[test]
fn commands_behind_an_add_that_waits_for_a_stop() {
    for command in ["stop", "remove", "resume"] {
        let tracker = HeldTracker::start();
        let torrent = Torrent::with_trackers(100_000, 16384, std::slice::from_ref(&tracker.url));
        let mut bed = Bed::keeping(|settings| settings.lifecycle.announce_timeout_ms = 60_000);
        let id = bed.seed(&torrent);
        bed.wait_until("the announce", || bed.stats(id).trackers[0].status == "working");
        let stop = begin_stop(&bed, id);
        tracker.stops.recv_timeout(DEADLINE).unwrap();
        let answers = add_and(&bed, &torrent, command);
        // Commands are processed in the order in which they were sent, so this answer shows that they have been taken.
        bed.stats(id);
        assert!(answers.try_recv().is_err(), "{command}: answered before the add");
        // One answer for each `stopped`.
        for _ in 0..2 {
            tracker.release.send(()).unwrap();
        }
        assert_carried_out(&bed, &torrent, command, &answers);
        stop.join().unwrap().unwrap();
    }
}

/// Requests an add and a command about the same torrent, which arrive in one tick. Returns the command's answer.
fn add_and(bed: &Bed, torrent: &Torrent, command: &'static str) -> Receiver<CommandResult> {
    let (metainfo, root) = (torrent.metainfo.clone(), bed.folder().to_owned());
    let (sender, answers) = channel();
    let both = move |world: &mut World| {
        let add = AddTorrent {
            source: metainfo.clone().into(),
            options: AddOptions {
                root: Some(root),
                ..AddOptions::default()
            },
            is_resumed: false,
            reply: Reply::ignored(),
        };
        world.resource_mut::<CommandQueue<AddTorrent>>().0.push_back(add);
        push_command(world, command, metainfo.hashes.primary(), sender);
    };
    bed.block_on(bed.torrents().with_world(both)).unwrap();
    answers
}

/// Asserts that a command was carried out after the add: a stopped torrent is saved, a removed one is gone, and a
/// resumed one is listed.
fn assert_carried_out(bed: &Bed, torrent: &Torrent, command: &str, answers: &Receiver<CommandResult>) {
    assert_eq!(answers.recv_timeout(DEADLINE).expect("an answer"), Ok(()), "{command}");
    let listed = bed.block_on(bed.torrents().list()).unwrap();
    assert_eq!(listed.len(), usize::from(command == "resume"), "{command}");
    if command != "resume" {
        let is_saved = !saved_files(bed, torrent.info_hash()).is_empty();
        assert_eq!(is_saved, command == "stop", "{command}");
    }
}

type CommandResult = Result<(), String>;

/// Puts a command into its queue, whose answer goes to `sender`.
fn push_command(world: &mut World, command: &str, torrent: InfoHash, sender: Sender<CommandResult>) {
    fn push<C: Send + Sync + 'static>(world: &mut World, command: C) {
        world.resource_mut::<CommandQueue<C>>().0.push_back(command);
    }
    let options = KEEP_DATA;
    match command {
        "stop" => push(
            world,
            StopTorrent {
                torrent,
                reply: reply_to(sender),
            },
        ),
        "remove" => push(
            world,
            RemoveTorrent {
                torrent,
                options,
                reply: reply_to(sender),
            },
        ),
        "resume" => push(
            world,
            ResumeTorrent {
                torrent,
                reply: reply_to(sender),
            },
        ),
        _ => unreachable!(),
    }
}

/// Creates a reply that goes to `sender`.
fn reply_to<T, E: ToString>(sender: Sender<CommandResult>) -> Reply<Result<T, E>> {
    let sender = Mutex::new(sender);
    Reply::new(move |result: Result<T, E>| {
        let result = result.map(drop).map_err(|error| error.to_string());
        sender.lock().unwrap().send(result).unwrap();
    })
}

/// A torrent of one file that is a hole of `len` bytes, with arbitrary piece hashes.
fn hollow_torrent(bed: &Bed, len: u64) -> Torrent {
    let piece_length = 1 << 20;
    let torrent = NewTorrent {
        name: "data".into(),
        files: vec![NewFile { path: vec![], len }],
        piece_length,
        pieces: vec![sha1([&b"anything"[..]]); len.div_ceil(u64::from(piece_length)) as usize],
        ..NewTorrent::default()
    };
    let bytes = Bytes::from(torrent.encode().unwrap());
    std::fs::File::create(bed.folder().join("data"))
        .unwrap()
        .set_len(len)
        .unwrap();
    Torrent {
        metainfo: Arc::new(Metainfo::parse(&bytes, &MetainfoLimits::default()).unwrap()),
        data: Vec::new(),
    }
}

/// A stop while much existing data is checked ends the check and saves nothing that is not yet known.
#[test]
fn a_stop_during_a_check() {
    let bed = Bed::keeping(|_| {});
    let torrent = hollow_torrent(&bed, 64 << 30);
    let id = bed.add(&torrent, "", &[]);
    bed.wait_until("the check", || bed.stats(id).bytes_checked > 0);
    assert_eq!(bed.stats(id).lifecycle, TorrentState::Checking);
    let begin = Instant::now();
    bed.block_on(bed.torrents().stop_and_serialize(id)).unwrap();
    assert!(begin.elapsed() < BOUND, "{:?}", begin.elapsed());
    assert!(bed.block_on(bed.torrents().list()).unwrap().is_empty());
    // Whether there is a session or not, the next run checks the data again.
    let id = bed.add(&torrent, "", &[]);
    bed.wait_until("the next check", || bed.stats(id).bytes_checked > 0);
    bed.block_on(bed.torrents().stop_and_serialize(id)).unwrap();
}

/// A second stop joins the one in progress.
#[test]
fn a_second_stop_joins_the_first() {
    let tracker = HeldTracker::start();
    let torrent = Torrent::with_trackers(100_000, 16384, std::slice::from_ref(&tracker.url));
    let mut bed = Bed::keeping(|settings| settings.lifecycle.announce_timeout_ms = 60_000);
    let id = bed.seed(&torrent);
    bed.wait_until("started to be told", || bed.stats(id).trackers[0].status == "working");
    let first = begin_stop(&bed, id);
    tracker.stops.recv_timeout(DEADLINE).unwrap();
    let torrents = bed.torrents();
    // Commands are processed in the order in which they were sent, so this answer shows that the stops have been
    // received.
    let release = async {
        let stats = torrents.stats(id).await.unwrap();
        assert_eq!(stats.lifecycle, TorrentState::Stopping(StopPhase::AnnounceStopped));
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
    assert!(tracker.stops.try_recv().is_err(), "the tracker is told once");
    assert!(bed.block_on(bed.torrents().list()).unwrap().is_empty());
}

/// One stopped torrent comes back where it was, and no other. A resume that follows a stop waits for its end.
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
        (stats.lifecycle, stats.root.as_path()),
        (TorrentState::Seeding, bed.folder())
    );
    assert!(!bed.folder().join("elsewhere").exists());
}

/// A tracker that never answers delays the stop until its deadline; the session is saved all the same.
#[test]
fn a_dead_tracker_costs_its_deadline() {
    let torrent = Torrent::with_trackers(100_000, 16384, &[dead_tracker()]);
    let mut bed = Bed::keeping(|settings| settings.lifecycle.announce_timeout_ms = 500);
    let id = bed.seed(&torrent);
    bed.wait_until("the tracker to be asked", || {
        bed.stats(id).trackers[0].status == "announcing"
    });
    let begin = Instant::now();
    bed.block_on(bed.torrents().stop_and_serialize(id)).unwrap();
    let took = begin.elapsed();
    assert!((Duration::from_millis(500)..BOUND).contains(&took), "{took:?}");
    assert!(bed.session(id).is_some());
    assert!(bed.block_on(bed.torrents().list()).unwrap().is_empty());
}

/// Fifty torrents with a dead tracker stop in parallel: in one deadline, not in fifty.
#[test]
fn all_torrents_stop_side_by_side() {
    let url = dead_tracker();
    let bed = Bed::keeping(|settings| settings.lifecycle.announce_timeout_ms = 1000);
    let ids: Vec<InfoHash> = (0..50)
        .map(|number| {
            let torrent = Torrent::with_trackers(20_000 + number, 16384, std::slice::from_ref(&url));
            bed.add(&torrent, &number.to_string(), &[])
        })
        .collect();
    bed.wait_until("the tracker to be asked for each", || {
        ids.iter().all(|id| bed.stats(*id).trackers[0].status == "announcing")
    });
    let begin = Instant::now();
    bed.block_on(bed.torrents().stop_all_and_serialize()).unwrap();
    assert!(begin.elapsed() < BOUND, "{:?}", begin.elapsed());
    assert!(bed.block_on(bed.torrents().list()).unwrap().is_empty());
    assert!(ids.iter().all(|id| bed.session(*id).is_some()));
}

/// A thousand peers all get an orderly close, within a bounded time.
#[test]
fn a_thousand_peers_are_disconnected_in_order() {
    const COUNT: usize = 1000;
    raise_file_limit();
    let torrent = Torrent::new(100_000, 16384);
    let mut bed = Bed::keeping(|settings| {
        settings.peers.max_connections = 2 * COUNT;
        settings.peers.max_per_torrent = 2 * COUNT;
        settings.peers.max_inbound_per_ip = 2 * COUNT;
        settings.peers.max_unidentified = 2 * COUNT;
    });
    let id = bed.seed(&torrent);
    let peers: Vec<ScriptedPeer> = (0..COUNT)
        .map(|_| {
            let mut peer = ScriptedPeer::connect(bed.address(), &torrent);
            peer.send(&Message::HaveNone);
            peer
        })
        .collect();
    bed.wait_until("all peers", || bed.stats(id).peers.len() == COUNT);
    let begin = Instant::now();
    let stop = begin_stop(&bed, id);
    for mut peer in peers {
        assert_farewell(&peer.rest(), &BTreeSet::new());
    }
    stop.join().unwrap().unwrap();
    assert!(begin.elapsed() < BOUND, "{:?}", begin.elapsed());
    assert!(bed.session(id).is_some());
}

fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// Names of a torrent's files in the state folder.
fn saved_files(bed: &Bed, id: InfoHash) -> Vec<String> {
    let files = std::fs::read_dir(bed.state()).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names
        // A save may be in progress.
        .filter(|name| name.contains(&id.to_string()) && !name.ends_with(".tmp"))
        .collect();
    names.sort();
    names
}

/// A removal without the data deletes the session and the `.torrent` and nothing else.
#[test]
fn removing_leaves_the_data() {
    let torrent = Torrent::new(100_000, 16384);
    let mut bed = Bed::keeping(|_| {});
    let id = bed.seed(&torrent);
    bed.wait_until("the session", || bed.session(id).is_some());
    assert_eq!(saved_files(&bed, id), [format!("{id}.ron"), format!("{id}.torrent")]);
    bed.block_on(bed.torrents().remove(id, KEEP_DATA)).unwrap();
    assert!(saved_files(&bed, id).is_empty());
    assert!(std::fs::read(bed.folder().join("data")).unwrap() == torrent.data);
    assert!(bed.block_on(bed.torrents().list()).unwrap().is_empty());
    assert_eq!(bed.block_on(bed.torrents().resume_all()).unwrap(), 0);
}

/// A removal during a stop joins it: nothing is saved, and both calls are answered.
#[test]
fn a_removal_joins_a_stop() {
    let tracker = HeldTracker::start();
    let torrent = Torrent::with_trackers(100_000, 16384, std::slice::from_ref(&tracker.url));
    let mut bed = Bed::keeping(|settings| settings.lifecycle.announce_timeout_ms = 60_000);
    let id = bed.seed(&torrent);
    bed.wait_until("the session", || bed.session(id).is_some());
    bed.wait_until("started to be told", || bed.stats(id).trackers[0].status == "working");
    let stop = begin_stop(&bed, id);
    tracker.stops.recv_timeout(DEADLINE).unwrap();
    let torrents = bed.torrents();
    // As in the second stop above: this answer shows that the removal has been received.
    let release = async {
        torrents.stats(id).await.unwrap();
        tracker.release.send(()).unwrap();
    };
    let joined = async { tokio::join!(torrents.remove(id, KEEP_DATA), release) };
    bed.block_on(joined).0.unwrap();
    stop.join().unwrap().unwrap();
    assert!(saved_files(&bed, id).is_empty());
    assert!(std::fs::read(bed.folder().join("data")).unwrap() == torrent.data);
}

type RemoveReply = Result<Removed, RemoveError>;

/// Plugin that removes a torrent when its stop reaches the session phase.
#[derive(Clone)]
struct RemoveWhileSaving {
    torrent: InfoHash,
    answer: Sender<RemoveReply>,
}

#[derive(Resource)]
struct Pending(Mutex<Option<RemoveWhileSaving>>);

impl Plugin for RemoveWhileSaving {
    fn build(&self, app: &mut App) {
        app.insert_resource(Pending(Mutex::new(Some(self.clone()))));
        app.add_systems(Tick, remove_while_saving.in_set(TickSet::Assemble));
    }
}

fn remove_while_saving(
    pending: Res<Pending>,
    stopping: Query<&Stopping>,
    mut queue: ResMut<CommandQueue<RemoveTorrent>>,
) {
    let is_saving = stopping.iter().any(|stop| stop.phase == StopPhase::WriteSession);
    if let Some(RemoveWhileSaving { torrent, answer }) = is_saving.then(|| pending.0.lock().unwrap().take()).flatten() {
        let answer = Mutex::new(answer);
        queue.0.push_back(RemoveTorrent {
            torrent,
            options: KEEP_DATA,
            reply: Reply::new(move |result| answer.lock().unwrap().send(result).unwrap()),
        });
    }
}

/// A removal also joins a stop that is writing the session.
#[test]
fn a_removal_while_the_session_is_written() {
    let torrent = Torrent::new(100_000, 16384);
    let (answer, answers) = channel();
    let plugin = RemoveWhileSaving {
        torrent: torrent.info_hash(),
        answer,
    };
    let mut bed = Bed::with_plugin(|_| {}, plugin);
    let id = bed.seed(&torrent);
    bed.wait_until("the session", || bed.session(id).is_some());
    // Uploads a block so that the session has a change to save.
    leech_a_block(&bed, &torrent, 0);
    bed.wait_until("the block to be counted", || bed.stats(id).uploaded == BLOCK);
    begin_stop(&bed, id).join().unwrap().unwrap();
    answers.recv_timeout(DEADLINE).unwrap().unwrap();
    assert!(saved_files(&bed, id).is_empty(), "{:?}", saved_files(&bed, id));
}

/// Fault 105: removing a downloading torrent with its data leaves no files, even later.
#[test]
fn removing_with_jobs_in_flight() {
    let torrent = Arc::new(Torrent::new(8 << 20, 16384));
    let seed = listen_as_seed(loopback(112), &torrent, |_, _| {
        thread::sleep(Duration::from_millis(1));
        true
    });
    let mut bed = Bed::keeping(|_| {});
    let id = bed.download(&torrent, &[seed]);
    bed.wait_until("a part", || bed.stats(id).bytes_completed > 1 << 20);
    bed.block_on(bed.torrents().remove(id, RemoveOptions { delete_data: true }))
        .unwrap();
    let left = |bed: &Bed| std::fs::read_dir(bed.folder()).unwrap().count() + saved_files(bed, id).len();
    assert_eq!(left(&bed), 0);
    // The torrent can be added again and then downloads from the beginning.
    bed.download(&torrent, &[seed]);
    bed.wait_complete(&torrent);
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
    assert_eq!(stats.lifecycle, TorrentState::Failed);
    assert!(stats.error.unwrap().contains("not saved"));
    std::fs::remove_dir(&in_the_way).unwrap();
    assert_eq!(bed.session(id).unwrap().uploaded, 0, "the old one is as it was");
    bed.block_on(bed.torrents().stop_and_serialize(id)).unwrap();
    assert_eq!(bed.session(id).unwrap().uploaded, BLOCK);
    assert!(bed.block_on(bed.torrents().list()).unwrap().is_empty());
}

/// A stop does not wait for connections that are still being established.
#[test]
fn a_stop_while_connections_are_being_made() {
    let torrent = Torrent::new(100_000, 16384);
    let mut bed = Bed::keeping(|_| {});
    // The system accepts the connection, and no peer ever answers.
    let silent = TcpListener::bind((loopback(113), 0)).unwrap();
    // A network reserved for documentation (RFC 5737): no host answers.
    let nowhere: SocketAddr = ([192, 0, 2, 1], 6881).into();
    let id = bed.download(&torrent, &[silent.local_addr().unwrap(), nowhere]);
    silent.accept().unwrap();
    let begin = Instant::now();
    bed.block_on(bed.torrents().stop_and_serialize(id)).unwrap();
    assert!(begin.elapsed() < BOUND, "{:?}", begin.elapsed());
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
    bed.wait_until("seeding", || bed.stats(id).lifecycle == TorrentState::Seeding);
}

/// A peer that connects while a torrent stops is rejected and leaves no open connection.
#[test]
fn a_stopping_engine_accepts_no_peer() {
    let tracker = HeldTracker::start();
    let torrent = Torrent::with_trackers(100_000, 16384, std::slice::from_ref(&tracker.url));
    let mut bed = Bed::keeping(|settings| settings.lifecycle.announce_timeout_ms = 60_000);
    let id = bed.seed(&torrent);
    bed.wait_until("started to be told", || bed.stats(id).trackers[0].status == "working");
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
