//! The stop, as peers, trackers and the disk see it: in which order, how long it may take, and what it leaves.

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
    AddTorrent, CommandQueue, RemoveError, RemoveTorrent, Removed, Reply, StopTorrent,
};
use ecs_torrent::components::session::Session;
use ecs_torrent::components::torrent::{StopPhase, Stopping};
use ecs_torrent::events::Event;
use ecs_torrent::protocol::create::{NewFile, NewTorrent};
use ecs_torrent::protocol::geometry::BlockRequest;
use ecs_torrent::protocol::hash::sha1;
use ecs_torrent::protocol::metainfo::{Metainfo, MetainfoLimits};
use ecs_torrent::protocol::wire::{Frame, Message, Reserved};
use ecs_torrent::{AddOptions, Error, InfoHash, RemoveOptions, Tick, TickSet, TorrentId};

use crate::bed::{Bed, DEADLINE, Torrent, loopback};
use crate::http_tracker::{announce, ok, parameter, serve};
use crate::peer::{ScriptedPeer, connect_raw, handshake, listen_as_seed, read_handshake, unique_id};

/// More than all phases of a stop take together, and less than any of these would take without their bounds.
const BOUND: Duration = Duration::from_secs(30);

const BLOCK: u64 = 16384;
const EMPTY_REPLY: &[u8] = b"d8:intervali900e5:peers0:e";
const KEEP_DATA: RemoveOptions = RemoveOptions { delete_data: false };

/// Begins a stop, and hands back who waits for it.
fn begin_stop(bed: &Bed, id: InfoHash) -> JoinHandle<Result<(), Error>> {
    let torrents = bed.torrents();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(torrents.stop_and_serialize(id))
    })
}

/// A tracker that answers `stopped` only when it is let.
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

/// Asserts how the engine took its leave: a cancel for each of `outstanding` requests and for nothing else, then
/// not-interested, then choke. Returns what it said before.
fn assert_farewell(frames: &[Frame], outstanding: &BTreeSet<BlockRequest>) {
    let cancelled = |frame: &Frame| match frame {
        Frame::Message(Message::Cancel(request)) => Some(*request),
        _ => None,
    };
    let begin = frames.iter().position(|frame| cancelled(frame).is_some());
    let begin = begin.unwrap_or(frames.len().saturating_sub(2));
    let (before, farewell) = frames.split_at(begin);
    let mut outstanding = outstanding.clone();
    outstanding.extend(requests(before));
    let cancels: Vec<BlockRequest> = farewell.iter().map_while(cancelled).collect();
    let once: BTreeSet<BlockRequest> = cancels.iter().copied().collect();
    assert_eq!(once.len(), cancels.len(), "each is cancelled once: {cancels:?}");
    assert_eq!(once, outstanding, "what was outstanding is cancelled");
    assert_eq!(
        &farewell[cancels.len()..],
        [Message::NotInterested, Message::Choke].map(Frame::Message)
    );
}

/// A leecher that has been let in and has got one block of `piece`.
fn leech_a_block(bed: &Bed, torrent: &Torrent, piece: u32) -> ScriptedPeer {
    let mut leecher = ScriptedPeer::connect(bed.address(), torrent);
    leecher.send(&Message::HaveNone);
    leecher.send(&Message::Interested);
    leecher.wait_for_message(&Message::Unchoke);
    leecher.send(&Message::Request(torrent.metainfo.info.geometry.block(piece, 0)));
    leecher.wait_for_block();
    leecher
}

/// The blocks that a session says are on the disk, as bytes from the beginning of the torrent.
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

/// The whole order, with requests outstanding and a peer that is served: cancels, not-interested, choke, an orderly
/// close; when all peers have closed, and not before, `stopped` with true counters; when it is answered, the session;
/// then the torrent is gone.
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
    // One piece of four blocks becomes whole, two blocks of the next are given, and the rest is owed.
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
    // The seed has not closed its side, and what it sends now finds nobody; still the close is waited for.
    owed.extend(requests(&said));
    owed.iter().for_each(|request| seed.answer(&torrent, *request));
    drop(leecher);
    assert_eq!(bed.stats(id).lifecycle, "stopping/disconnect_peers");
    assert!(tracker.stops.try_recv().is_err(), "told before the peers were gone");
    drop(seed);

    let told = tracker.stops.recv_timeout(DEADLINE).unwrap();
    assert_eq!(bed.stats(id).lifecycle, "stopping/announce_stopped");
    let left = torrent.data.len() as u64 - bed.stats(id).bytes_completed;
    assert!(left < torrent.data.len() as u64);
    for (name, value) in [("downloaded", downloaded), ("uploaded", BLOCK), ("left", left)] {
        assert_eq!(parameter(&told, name).unwrap(), value.to_string(), "{name}");
    }
    let old = bed.session(id).unwrap();
    assert_eq!((old.downloaded, old.uploaded), (0, 0), "the session of before");
    assert!(!stop.is_finished());
    assert_eq!(bed.block_on(bed.torrents().list()).unwrap(), [id]);
    tracker.release.send(()).unwrap();

    while bed.block_on(events.next()).unwrap() != Event::Stopped(id) {}
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

/// A peer that never stops sending sees the same: no request behind the farewell, and no reset.
#[test]
fn nothing_is_asked_for_behind_the_farewell() {
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
                // As slow as a peer of the Internet.
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

/// A seed goes the same way.
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
    assert_eq!(bed.stats(id).lifecycle, "stopping/disconnect_peers");
    assert!(tracker.stops.try_recv().is_err(), "told before the peer was gone");
    drop(leecher);
    let told = tracker.stops.recv_timeout(DEADLINE).unwrap();
    let counts = ["downloaded", "uploaded", "left"].map(|name| parameter(&told, name).unwrap());
    assert_eq!(counts, ["0", "16384", "0"]);
    assert_eq!(bed.stats(id).lifecycle, "stopping/announce_stopped");
    assert_eq!(bed.session(id).unwrap().uploaded, 0, "the session of before");
    tracker.release.send(()).unwrap();
    stop.join().unwrap().unwrap();
    assert_eq!(bed.session(id).unwrap().uploaded, BLOCK);
    assert!(bed.block_on(bed.torrents().list()).unwrap().is_empty());
}

/// Stopped as soon as it is added, whether its files have been looked at or not.
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

/// Both come in the same tick.
#[test]
fn a_stop_in_the_tick_of_the_add() {
    let torrent = Torrent::new(100_000, 16384);
    let bed = Bed::keeping(|_| {});
    let (metainfo, root) = (torrent.metainfo.clone(), bed.folder().to_owned());
    let (sender, stopped) = channel();
    let sender = Mutex::new(sender);
    let both = move |world: &mut World| {
        let add = AddTorrent {
            metainfo: metainfo.clone(),
            options: AddOptions {
                root: Some(root),
                ..AddOptions::default()
            },
            is_resumed: false,
            reply: Reply::ignored(),
        };
        world.resource_mut::<CommandQueue<AddTorrent>>().0.push_back(add);
        let stop = StopTorrent {
            torrent: metainfo.hashes.primary(),
            reply: Reply::new(move |result| sender.lock().unwrap().send(result).unwrap()),
        };
        world.resource_mut::<CommandQueue<StopTorrent>>().0.push_back(stop);
    };
    bed.block_on(bed.torrents().with_world(both)).unwrap();
    stopped.recv_timeout(DEADLINE).expect("an answer").unwrap();
    assert!(bed.block_on(bed.torrents().list()).unwrap().is_empty());
}

/// A torrent of a file that is one hole of `len` bytes, and whose hashes are anyone's.
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

/// Stopped while much existing data is checked: the check ends with it, and what is not known is not saved.
#[test]
fn a_stop_during_a_check() {
    let bed = Bed::keeping(|_| {});
    let torrent = hollow_torrent(&bed, 64 << 30);
    let id = bed.add(&torrent, "", &[]);
    bed.wait_until("the check", || bed.stats(id).bytes_checked > 0);
    assert_eq!(bed.stats(id).lifecycle, "checking");
    let begin = Instant::now();
    bed.block_on(bed.torrents().stop_and_serialize(id)).unwrap();
    assert!(begin.elapsed() < BOUND, "{:?}", begin.elapsed());
    assert!(bed.block_on(bed.torrents().list()).unwrap().is_empty());
    // Whether there is a session or not, the next run looks again.
    let id = bed.add(&torrent, "", &[]);
    bed.wait_until("the next check", || bed.stats(id).bytes_checked > 0);
    bed.block_on(bed.torrents().stop_and_serialize(id)).unwrap();
}

/// A second stop while one runs joins it.
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
    // Letters are read in the order in which they were sent, so the stops have been heard when this is answered.
    let release = async {
        let stats = torrents.stats(id).await.unwrap();
        assert_eq!(stats.lifecycle, "stopping/announce_stopped");
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

/// What is not there.
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
}

/// Adding what is there changes nothing.
#[test]
fn the_same_torrent_twice() {
    let torrent = Torrent::new(100_000, 16384);
    let mut bed = Bed::keeping(|_| {});
    let id = bed.seed(&torrent);
    assert_eq!(bed.add(&torrent, "elsewhere", &[]), id);
    assert_eq!(bed.block_on(bed.torrents().list()).unwrap(), [id]);
    let stats = bed.stats(id);
    assert_eq!(
        (stats.lifecycle.as_str(), stats.root.as_path()),
        ("seeding", bed.folder())
    );
    assert!(!bed.folder().join("elsewhere").exists());
}

/// A tracker that never answers holds the stop for its deadline, and the session is saved all the same.
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

/// Fifty torrents with a dead tracker stop side by side: in one deadline, not in fifty.
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

/// A thousand peers all see an orderly close, in a time that has a bound.
#[test]
fn a_thousand_peers_are_parted_from_in_order() {
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

/// What the state folder holds of a torrent.
fn saved_files(bed: &Bed, id: InfoHash) -> Vec<String> {
    let files = std::fs::read_dir(bed.state()).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names
        // A saving may be under way.
        .filter(|name| name.contains(&id.to_string()) && !name.ends_with(".tmp"))
        .collect();
    names.sort();
    names
}

/// Removing without the data deletes the session and the `.torrent`, and nothing else.
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

/// A removal while a stop runs joins it: nothing is saved, and both are answered.
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
    // As above.
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

/// Removes a torrent when its stop has come to the session.
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

/// Also where the stop is just writing the session.
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
    // So that there is something to be saved.
    leech_a_block(&bed, &torrent, 0);
    bed.wait_until("the block to be counted", || bed.stats(id).uploaded == BLOCK);
    begin_stop(&bed, id).join().unwrap().unwrap();
    answers.recv_timeout(DEADLINE).unwrap().unwrap();
    assert!(saved_files(&bed, id).is_empty(), "{:?}", saved_files(&bed, id));
}

/// Fault 105: a torrent that is removed with its data while it downloads leaves nothing, also not later.
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
    // It can be added again, and then it downloads from the beginning.
    bed.download(&torrent, &[seed]);
    bed.wait_complete(&torrent);
}

/// Fault 84: where the session cannot be saved, the stop says so, the torrent stays visible, and can be stopped again.
#[test]
fn a_session_that_cannot_be_saved() {
    let torrent = Torrent::new(100_000, 16384);
    let mut bed = Bed::keeping(|_| {});
    let id = bed.seed(&torrent);
    bed.wait_until("the session", || bed.session(id).is_some());
    leech_a_block(&bed, &torrent, 0);
    bed.wait_until("the block to be counted", || bed.stats(id).uploaded == BLOCK);
    // The folder is held open, so that nothing can take its place; but something may be where the new session goes first.
    let in_the_way = bed.state().join(format!("{id}.tmp"));
    std::fs::create_dir(&in_the_way).unwrap();
    let error = bed.block_on(bed.torrents().stop_and_serialize(id)).unwrap_err();
    assert!(matches!(error, Error::Stop(_)), "{error}");
    let stats = bed.stats(id);
    assert_eq!(stats.lifecycle, "failed");
    assert!(stats.error.unwrap().contains("not saved"));
    std::fs::remove_dir(&in_the_way).unwrap();
    assert_eq!(bed.session(id).unwrap().uploaded, 0, "the old one is as it was");
    bed.block_on(bed.torrents().stop_and_serialize(id)).unwrap();
    assert_eq!(bed.session(id).unwrap().uploaded, BLOCK);
    assert!(bed.block_on(bed.torrents().list()).unwrap().is_empty());
}

/// The address of a peer that listens but has never been reached is no reason to wait.
#[test]
fn a_stop_while_connections_are_being_made() {
    let torrent = Torrent::new(100_000, 16384);
    let mut bed = Bed::keeping(|_| {});
    // Accepted by the system, and never answered by anybody.
    let silent = TcpListener::bind((loopback(113), 0)).unwrap();
    // A network for documentation (RFC 5737): nobody answers.
    let nowhere: SocketAddr = ([192, 0, 2, 1], 6881).into();
    let id = bed.download(&torrent, &[silent.local_addr().unwrap(), nowhere]);
    silent.accept().unwrap();
    let begin = Instant::now();
    bed.block_on(bed.torrents().stop_and_serialize(id)).unwrap();
    assert!(begin.elapsed() < BOUND, "{:?}", begin.elapsed());
}

/// A stop that comes before the saved session has been read leaves it as it is, however often.
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
    bed.wait_until("seeding", || bed.stats(id).lifecycle == "seeding");
}

/// Who knocks while a torrent stops is not let in, and finds no open connection afterwards.
#[test]
fn nobody_gets_in_while_it_stops() {
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
