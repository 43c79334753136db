//! Memory use is bounded, however fast the network and however slow the disk.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ecs_torrent::components::commands::{AddTorrent, CommandQueue, Reply};
use ecs_torrent::components::peer::UploadMemory;
use ecs_torrent::components::torrent::{Counters, Have};
use ecs_torrent::engine::backends::{self, net::Carriers};
use ecs_torrent::engine::core::{Backends, Core};
use ecs_torrent::engine::port::Backend;
use ecs_torrent::engine::ports::disk::{DiskEvent, DiskRequest};
use ecs_torrent::engine::wake::Waker;
use ecs_torrent::protocol::create::{NewFile, NewTorrent};
use ecs_torrent::protocol::hash::sha1;
use ecs_torrent::protocol::metainfo::{Metainfo, MetainfoLimits};
use ecs_torrent::protocol::time::Timestamp;
use ecs_torrent::protocol::wire::Message;
use ecs_torrent::{AddOptions, Settings, TorrentPlugins};

use crate::bed::{Bed, DEADLINE, Torrent, loopback};
use crate::child::{is_own_process, peak_memory};
use crate::content::noise;
use crate::peer::{ScriptedPeer, listen_as_seed};

const PIECE: usize = 1 << 20;
const PIECES: usize = 200;

/// Write speed of the slow disk, in bytes per second.
const DISK_SPEED: f64 = 60e6;

/// How long the disk stalls after the first write request.
const STANDSTILL: Duration = Duration::from_secs(2);

/// A torrent that repeats the same piece two hundred times.
fn monotonous_torrent() -> Torrent {
    let piece = noise(1, PIECE);
    let torrent = NewTorrent {
        name: "data".into(),
        files: vec![NewFile {
            path: vec![],
            len: (PIECE * PIECES) as u64,
        }],
        piece_length: PIECE as u32,
        pieces: vec![sha1([&piece[..]]); PIECES],
        ..NewTorrent::default()
    };
    let bytes = Bytes::from(torrent.encode().unwrap());
    Torrent {
        metainfo: Arc::new(Metainfo::parse(&bytes, &MetainfoLimits::default()).unwrap()),
        data: piece.repeat(PIECES),
    }
}

/// Wrapper of the real disk that holds back each write for its simulated duration. The bytes stay in memory until then.
struct SlowDisk {
    disk: Box<dyn Backend<DiskRequest, DiskEvent>>,
    /// Pending writes, each with the time when it completes.
    waiting: VecDeque<(Instant, DiskRequest)>,
    free_at: Option<Instant>,
}

impl Backend<DiskRequest, DiskEvent> for SlowDisk {
    fn submit(&mut self, requests: &mut Vec<DiskRequest>) {
        let now = Instant::now();
        let mut at_once = Vec::new();
        for request in requests.drain(..) {
            let DiskRequest::Write { span, .. } = &request else {
                at_once.push(request);
                continue;
            };
            let begin = self.free_at.unwrap_or(now + STANDSTILL).max(now);
            let end = begin + Duration::from_secs_f64(f64::from(span.len) / DISK_SPEED);
            self.free_at = Some(end);
            self.waiting.push_back((end, request));
        }
        self.disk.submit(&mut at_once);
    }

    fn poll(&mut self, max: usize, events: &mut Vec<DiskEvent>) -> bool {
        let now = Instant::now();
        let mut due = Vec::new();
        while self.waiting.front().is_some_and(|(at, _)| *at <= now) {
            due.extend(self.waiting.pop_front().map(|(_, request)| request));
        }
        self.disk.submit(&mut due);
        self.disk.poll(max, events)
    }
}

/// Faults 98 and 101: two hundred mebibytes arrive at loopback speed for a disk that stalls at first and is slow
/// afterward. The engine requests only as much as fits in memory, the process stays small, and the download completes.
#[test]
fn a_slow_disk_holds_up_the_network_and_not_the_memory() {
    let variables = || {
        let torrent = Arc::new(monotonous_torrent());
        let file = std::env::temp_dir().join(format!("ecs-torrent-{}.torrent", std::process::id()));
        std::fs::write(&file, &torrent.metainfo.bytes).unwrap();
        let seed = listen_as_seed(loopback(150), &torrent, |_, _| true);
        vec![("SEED", seed.to_string()), ("TORRENT", file.display().to_string())]
    };
    let name = "memory::a_slow_disk_holds_up_the_network_and_not_the_memory";
    if is_own_process(name, variables) {
        download_to_a_slow_disk();
    }
}

fn download_to_a_slow_disk() {
    let seed: SocketAddr = std::env::var("SEED").unwrap().parse().unwrap();
    let bytes = Bytes::from(std::fs::read(std::env::var("TORRENT").unwrap()).unwrap());
    std::fs::remove_file(std::env::var("TORRENT").unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut settings = Settings::default();
    settings.session.state_dir = None;
    settings.net.listen = vec![(loopback(1), 0).into()];
    settings.storage.disk_threads = 1;
    // The completion of a delayed write does not wake the engine.
    settings.tick.max_interval_ms = 5;
    let piece_memory = settings.requests.piece_memory_bytes;

    let waker = Waker::for_this_thread();
    let real = backends::real(&settings, &Carriers::default(), Instant::now(), &waker).unwrap();
    let slow = Backends {
        disk: Box::new(SlowDisk {
            disk: real.disk,
            waiting: VecDeque::new(),
            free_at: None,
        }),
        ..real
    };
    let mut core = Core::new(settings, slow, [0; 32], waker.clone(), |app| {
        app.add_plugins(TorrentPlugins);
    });
    let add = AddTorrent {
        source: Arc::new(Metainfo::parse(&bytes, &MetainfoLimits::default()).unwrap()).into(),
        options: AddOptions {
            root: Some(folder.path().to_owned()),
            peers: vec![seed],
            ..AddOptions::default()
        },
        is_resumed: false,
        reply: Reply::ignored(),
    };
    core.world_mut()
        .resource_mut::<CommandQueue<AddTorrent>>()
        .0
        .push_back(add);
    let mut state = core.world_mut().query::<(&Counters, &Have)>();
    let (begin, mut most_pending, mut before_first) = (Instant::now(), 0, 0);
    loop {
        waker.begin_tick();
        let next = core.tick(Timestamp::ZERO + begin.elapsed());
        if let Ok((counters, have)) = state.single(core.world()) {
            let pending = counters.downloaded - u64::from(have.count()) * PIECE as u64;
            most_pending = pending.max(most_pending);
            if have.count() == 0 {
                before_first = pending;
            }
            if have.is_full() {
                break;
            }
        }
        assert!(begin.elapsed() < DEADLINE, "it does not come to an end");
        waker.wait(next.since(Timestamp::ZERO + begin.elapsed()));
    }
    let peak = peak_memory();
    eprintln!(
        "{:?}, at most {} MiB ahead of the disk ({} MiB before its first write), peak {} MiB",
        begin.elapsed(),
        most_pending >> 20,
        before_first >> 20,
        peak >> 20
    );
    assert!(
        (piece_memory / 2..=piece_memory).contains(&before_first),
        "it goes on until the memory for pieces is used, and no further: {before_first}"
    );
    assert!(most_pending <= piece_memory, "ahead of the disk: {most_pending}");
    assert!(peak < 128 << 20, "{peak} bytes in use");
    let piece = noise(1, PIECE);
    let data = std::fs::read(folder.path().join("data")).unwrap();
    assert_eq!(data.len(), PIECE * PIECES);
    assert!(data.chunks(PIECE).all(|chunk| chunk == piece));
}

/// Fault 25: peers that request a lot and read nothing hold no more memory than the upload limit, and not all of it:
/// another peer is served meanwhile.
#[test]
fn peers_that_never_read_leave_memory_to_others() {
    let limit = 4 << 20;
    // More requests than kernel buffers hold for a connection.
    let count = 2000;
    let mut bed = Bed::with(|settings| {
        settings.uploads.memory_bytes = limit;
        settings.uploads.max_queue = count as usize;
    });
    let torrent = Torrent::new(32 << 20, 1 << 20);
    bed.seed(&torrent);
    let geometry = &torrent.metainfo.info.geometry;
    let requests: Vec<u8> = (0..count)
        .flat_map(|number| {
            let mut message = Vec::new();
            Message::Request(geometry.block(number / 64, number % 64)).write(&mut message);
            message
        })
        .collect();
    let mut idle: Vec<ScriptedPeer> = Vec::new();
    for _ in 0..6 {
        let mut peer = ScriptedPeer::connect(bed.address(), &torrent);
        peer.send(&Message::Interested);
        peer.wait_for_message(&Message::Unchoke);
        peer.send_raw(&requests);
        idle.push(peer);
    }
    let used = || {
        let torrents = bed.torrents();
        let look = torrents.with_world(|world| world.resource::<UploadMemory>().used_bytes());
        bed.block_on(look).unwrap()
    };
    bed.wait_until("memory to be held for those who do not read", || used() > limit / 2);
    let mut reader = ScriptedPeer::connect(bed.address(), &torrent);
    reader.send(&Message::Interested);
    reader.wait_for_message(&Message::Unchoke);
    for number in 0..64 {
        reader.send(&Message::Request(geometry.block(9, number)));
        assert_eq!(reader.wait_for_block().request, geometry.block(9, number));
        assert!(used() < limit + (256 << 10), "{} bytes are held", used());
    }
    drop(idle);
}
