//! Internal faults: a fault of a torrent restarts only that torrent, and a panic only restarts the engine.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use ecs_torrent::bevy_app::{App, Plugin};
use ecs_torrent::bevy_ecs::prelude::*;
use ecs_torrent::components::commands::{CommandQueue, Reply, SupplyMetadata, TorrentSource, UnfetchedTorrent};
use ecs_torrent::components::hints::LinkHints;
use ecs_torrent::components::lifecycle::Desired;
use ecs_torrent::components::messages::{FailTorrent, LifecycleChanged, Remedy};
use ecs_torrent::components::torrent::{Lifecycle, TorrentIndex};
use ecs_torrent::events::{Event, Subscription};
use ecs_torrent::{Error, InfoHash, Tick, TickSet, TorrentState};

use crate::bed::{Bed, DEADLINE, Torrent, loopback};
use crate::peer::listen_as_seed;

/// Starts a seed as slow as a typical one on the Internet; it counts the blocks that it sends.
fn slow_seed(last: u8, torrent: &Arc<Torrent>) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let given = Arc::new(AtomicUsize::new(0));
    let count = given.clone();
    let address = listen_as_seed(loopback(last), torrent, move |_, _| {
        thread::sleep(Duration::from_millis(2));
        count.fetch_add(1, Ordering::Relaxed);
        true
    });
    (address, given)
}

/// Makes a torrent fail as one of its own jobs would.
fn fail(bed: &Bed, id: InfoHash) {
    let fault = move |world: &mut World| {
        let torrent = world.resource::<TorrentIndex>().get(id).unwrap();
        world.write_message(FailTorrent {
            torrent,
            reason: "a fault of the test".into(),
            remedy: Remedy::Restart,
        });
    };
    bed.block_on(bed.torrents().with_world(fault)).unwrap();
}

/// Collects all events up to the first one that `wanted` accepts.
fn events_until(bed: &Bed, events: &mut Subscription, wanted: impl Fn(&Event) -> bool) -> Vec<Event> {
    let mut past = Vec::new();
    let collect = async {
        loop {
            past.push(events.next().await.expect("the engine runs"));
            if past.last().is_some_and(&wanted) {
                break;
            }
        }
    };
    bed.block_on(collect);
    past
}

/// A fault in one of two downloads: that torrent is restarted and completes, and the other is unaffected.
#[test]
fn a_fault_of_one_torrent_is_not_felt_by_another() {
    let (struck, other) = (Torrent::new(4 << 20, 65536), Torrent::new((4 << 20) + 1, 65536));
    let (struck, other) = (Arc::new(struck), Arc::new(other));
    let (first, _) = slow_seed(130, &struck);
    let (second, given) = slow_seed(131, &other);
    let mut bed = Bed::keeping(|settings| {
        settings.lifecycle.restart_delay_ms = 100;
        settings.peers.reconnect_backoff_s = 1;
    });
    let mut events = bed.torrents().subscribe();
    let struck_id = bed.add(&struck, "struck", &[first]);
    let other_id = bed.add(&other, "other", &[second]);
    bed.wait_until("parts of both", || {
        [struck_id, other_id]
            .iter()
            .all(|id| bed.stats(*id).completed > 1 << 19)
    });
    fail(&bed, struck_id);
    let mut past = events_until(&bed, &mut events, |event| *event == Event::Completed(other_id.into()));
    if !past.contains(&Event::Completed(struck_id.into())) {
        past.extend(events_until(&bed, &mut events, |event| {
            *event == Event::Completed(struck_id.into())
        }));
    }
    let reason = Arc::from("a fault of the test");
    assert!(past.contains(&Event::Restarting(struck_id.into(), reason)), "{past:?}");
    let expected = [
        Event::Added(other_id.into()),
        Event::Started(other_id.into()),
        Event::Completed(other_id.into()),
    ];
    let of_other: Vec<&Event> = past.iter().filter(|event| expected.contains(event)).collect();
    assert_eq!(of_other.len(), 3, "{past:?}");
    assert!(!past.iter().any(|event| matches!(event, Event::Failed(..))), "{past:?}");
    assert_eq!(
        given.load(Ordering::Relaxed),
        257,
        "no block of the other was asked for twice"
    );
    assert!(
        !bed.has_seen().iter().any(|seen| {
            let crate::bed::Seen::Disconnected(address, reason) = seen else {
                return false;
            };
            *address == second && *reason == ecs_torrent::components::peer::CloseReason::Stopping
        }),
        "the other's peer was not parted from"
    );
    for (torrent, folder) in [(&struck, "struck"), (&other, "other")] {
        assert!(std::fs::read(bed.folder().join(folder).join("data")).unwrap() == torrent.data);
    }
}

/// After three consecutive restarts the torrent stays failed, visibly, until it is added again.
#[test]
fn a_torrent_that_fails_again_and_again_stays_failed() {
    let torrent = Torrent::new(100_000, 16384);
    let mut bed = Bed::keeping(|settings| {
        settings.lifecycle.restart_delay_ms = 10;
        settings.lifecycle.restart_window_s = 600;
    });
    let id = bed.download(&torrent, &[]);
    let mut events = bed.torrents().subscribe();
    let is_restart = |event: &Event| matches!(event, Event::Restarting(..) | Event::Failed(..));
    for _ in 0..3 {
        fail(&bed, id);
        let past = events_until(&bed, &mut events, is_restart);
        assert!(matches!(past.last(), Some(Event::Restarting(..))), "{past:?}");
        events_until(&bed, &mut events, |event| *event == Event::Started(id.into()));
        assert_eq!(bed.stats(id).state, TorrentState::Downloading);
    }
    fail(&bed, id);
    let past = events_until(&bed, &mut events, is_restart);
    assert_eq!(
        past.last(),
        Some(&Event::Failed(id.into(), "a fault of the test".into()))
    );
    let stats = bed.stats(id);
    assert_eq!(stats.state, TorrentState::Failed);
    assert_eq!(stats.error.as_deref(), Some("a fault of the test"));
    assert_eq!(bed.block_on(bed.torrents().list()).unwrap(), [id.into()]);
    let look = |world: &mut World| world.query::<&Lifecycle>().single(world).cloned();
    let lifecycle = bed.block_on(bed.torrents().with_world(look)).unwrap().unwrap();
    assert!(
        matches!(lifecycle, Lifecycle::Failed { retry_at: None, .. }),
        "nothing is tried again: {lifecycle:?}"
    );
    bed.block_on(bed.torrents().stop_and_serialize(id)).unwrap();
    bed.add(&torrent, "", &[]);
    events_until(&bed, &mut events, |event| *event == Event::Started(id.into()));
    assert_eq!(bed.stats(id).state, TorrentState::Downloading);
}

/// A system that panics once when triggered.
#[derive(Clone, Default)]
struct Bomb(Arc<AtomicBool>);

#[derive(Resource)]
struct Fuse(Arc<AtomicBool>);

impl Plugin for Bomb {
    fn build(&self, app: &mut App) {
        app.insert_resource(Fuse(self.0.clone()));
        app.add_systems(Tick, explode.in_set(TickSet::Decide));
    }
}

fn explode(fuse: Res<Fuse>) {
    assert!(!fuse.0.swap(false, Ordering::Relaxed), "the bomb of a test");
}

impl Bomb {
    /// Triggers the panic and returns after it has happened.
    fn light(&self, bed: &Bed) {
        self.0.store(true, Ordering::Relaxed);
        // Wakes the engine; the command may arrive before, during or after the panic.
        let _ = bed.block_on(bed.torrents().list());
        bed.wait_until("the bomb", || !self.0.load(Ordering::Relaxed));
    }
}

/// Waits until an engine that has panicked lists its torrents again.
fn wait_until_listed(bed: &Bed, mut expected: Vec<InfoHash>) {
    expected.sort();
    bed.wait_until("the torrents to be listed again", || {
        let list = bed.block_on(bed.torrents().list());
        list.is_ok_and(|mut list| {
            list.sort();
            list.iter().map(|id| id.0).eq(expected.iter().copied())
        })
    });
}

/// Fault 104: a panic in a plugin's system. The engine is rebuilt from its saved state, existing handles keep working,
/// and the active torrents complete.
#[test]
fn a_panic_in_a_system() {
    let (seeding, loading) = (Torrent::new(100_000, 16384), Torrent::new(4 << 20, 65536));
    let loading = Arc::new(loading);
    let (seed, _) = slow_seed(132, &loading);
    let bomb = Bomb::default();
    let mut bed = Bed::with_plugin(
        |settings| {
            settings.session.checkpoint_interval_s = 1;
            settings.peers.reconnect_backoff_s = 1;
        },
        bomb.clone(),
    );
    let seeding_id = bed.seed(&seeding);
    let loading_id = bed.add(&loading, "loading", &[seed]);
    bed.wait_until("a saved part", || {
        bed.session(loading_id).is_some_and(|session| session.downloaded > 0)
    });
    let torrents = bed.torrents();
    let saved = bed.session(loading_id).unwrap().downloaded;
    bomb.light(&bed);
    wait_until_listed(&bed, vec![seeding_id, loading_id]);
    bed.wait_until("completion", || {
        bed.block_on(torrents.stats(loading_id))
            .is_ok_and(|stats| stats.is_complete())
    });
    assert!(std::fs::read(bed.folder().join("loading/data")).unwrap() == loading.data);
    bed.wait_until("seeding", || bed.stats(seeding_id).state == TorrentState::Seeding);
    bed.block_on(torrents.stop_all_and_serialize()).unwrap();
    // Pieces that were written after the last save are found by hashing, and count no second time.
    assert!(bed.session(loading_id).unwrap().downloaded >= saved);
}

/// Fault 104: a torrent whose metadata is not known survives the panic too, with its trackers and peers.
#[test]
fn a_panic_keeps_a_torrent_without_metadata() {
    let torrent = Arc::new(Torrent::new(200_000, 16384));
    let (seed, _) = slow_seed(138, &torrent);
    let bomb = Bomb::default();
    let bed = Bed::with_plugin(|settings| settings.peers.reconnect_backoff_s = 1, bomb.clone());
    let (id, root) = (torrent.info_hash(), bed.folder().to_owned());
    let source = TorrentSource::InfoHash(UnfetchedTorrent {
        info_hash: id,
        name: None,
        trackers: vec![vec!["http://127.0.0.138:9/announce".to_owned()]],
        peers: Vec::new(),
        hints: LinkHints::default(),
    });
    bed.add_source(source, &[seed]);
    bed.wait_until("a peer", || !bed.stats(id).peers.is_empty());
    bomb.light(&bed);
    wait_until_listed(&bed, vec![id]);
    bed.wait_until("the state", || bed.stats(id).state == TorrentState::FetchingMetadata);
    let stats = bed.stats(id);
    assert_eq!(
        (stats.trackers.len(), stats.name, stats.root),
        (1, id.to_string(), root.clone())
    );
    let (sender, answers) = channel();
    let supply = SupplyMetadata {
        torrent: id,
        info: torrent.metainfo.info_bytes.clone(),
        reply: Reply::new(move |answer| drop(sender.send(answer))),
    };
    let push = |world: &mut World| world.resource_mut::<CommandQueue<SupplyMetadata>>().0.push_back(supply);
    bed.block_on(bed.torrents().with_world(push)).unwrap();
    assert_eq!(answers.recv_timeout(DEADLINE), Ok(Ok(())));
    bed.wait_until("completion", || bed.stats(id).is_complete());
    assert!(std::fs::read(root.join("data")).unwrap() == torrent.data);
}

/// A bomb, and a record of the states that torrents enter.
#[derive(Clone, Default)]
struct RecordingBomb {
    bomb: Bomb,
    states: Arc<Mutex<Vec<TorrentState>>>,
}

#[derive(Resource)]
struct States(Arc<Mutex<Vec<TorrentState>>>);

impl Plugin for RecordingBomb {
    fn build(&self, app: &mut App) {
        self.bomb.build(app);
        app.insert_resource(States(self.states.clone()));
        app.add_systems(Tick, record_states.in_set(TickSet::Respond));
    }
}

fn record_states(mut changed: MessageReader<LifecycleChanged>, states: Res<States>) {
    let entered = changed.read().map(|change| change.to.state());
    states.0.lock().unwrap().extend(entered);
}

/// Fault 104: a paused torrent without metadata does not fetch it after the panic, not even for one tick.
#[test]
fn a_panic_keeps_a_paused_torrent_without_metadata_paused() {
    let torrent = Torrent::new(200_000, 16384);
    let plugin = RecordingBomb::default();
    let bed = Bed::with_plugin(|settings| settings.peers.reconnect_backoff_s = 1, plugin.clone());
    let listener = TcpListener::bind((loopback(139), 0)).unwrap();
    let id = torrent.info_hash();
    let source = TorrentSource::InfoHash(UnfetchedTorrent {
        info_hash: id,
        name: None,
        trackers: Vec::new(),
        peers: Vec::new(),
        hints: LinkHints::default(),
    });
    bed.add_source(source, &[listener.local_addr().unwrap()]);
    let connected = listener.accept().unwrap();
    bed.block_on(bed.torrents().pause(id)).unwrap();
    drop(connected);
    plugin.states.lock().unwrap().clear();
    plugin.bomb.light(&bed);
    wait_until_listed(&bed, vec![id]);
    bed.wait_until("the pause", || bed.stats(id).state == TorrentState::Paused);
    let states = plugin.states.lock().unwrap().clone();
    assert!(states.iter().all(|state| *state == TorrentState::Paused), "{states:?}");
    bed.block_on(bed.torrents().start(id)).unwrap();
    listener.accept().unwrap();
}

/// A system that panics once while a torrent is being paused.
#[derive(Clone, Default)]
struct PauseBomb(Arc<AtomicBool>);

impl Plugin for PauseBomb {
    fn build(&self, app: &mut App) {
        app.insert_resource(Fuse(self.0.clone()));
        app.add_systems(Tick, explode_in_a_pause.in_set(TickSet::Decide));
    }
}

fn explode_in_a_pause(fuse: Res<Fuse>, torrents: Query<(&Desired, &Lifecycle)>) {
    let is_pausing = |(desired, lifecycle): (&Desired, &Lifecycle)| {
        *desired == Desired::Pause && matches!(lifecycle, Lifecycle::Stopping { .. })
    };
    if torrents.iter().any(is_pausing) {
        explode(fuse);
    }
}

/// Fault 104: a torrent that is being paused at the panic stays listed, and can be paused again.
#[test]
fn a_panic_during_a_pause() {
    let torrent = Torrent::new(100_000, 16384);
    let bomb = PauseBomb::default();
    let mut bed = Bed::with_plugin(|_| {}, bomb.clone());
    let id = bed.seed(&torrent);
    bed.wait_until("the session", || bed.session(id).is_some());
    bomb.0.store(true, Ordering::Relaxed);
    let _ = bed.block_on(bed.torrents().pause(id));
    bed.wait_until("the panic", || !bomb.0.load(Ordering::Relaxed));
    wait_until_listed(&bed, vec![id]);
    bed.block_on(bed.torrents().pause(id)).unwrap();
    assert_eq!(bed.stats(id).state, TorrentState::Paused);
    assert!(bed.session(id).is_some_and(|session| session.paused));
}

/// Fault 104: after three consecutive restarts the next panic ends the engine, and calls report that.
#[test]
fn an_engine_that_panics_again_and_again_ends() {
    let torrent = Torrent::new(100_000, 16384);
    let bomb = Bomb::default();
    let mut bed = Bed::with_plugin(|settings| settings.lifecycle.restart_window_s = 600, bomb.clone());
    let id = bed.seed(&torrent);
    let mut events = bed.torrents().subscribe();
    bed.wait_until("the session", || bed.session(id).is_some());
    for _ in 0..3 {
        bomb.light(&bed);
        wait_until_listed(&bed, vec![id]);
    }
    bomb.light(&bed);
    let torrents = bed.torrents();
    bed.wait_until("the end", || bed.block_on(torrents.list()).is_err());
    let error = bed.block_on(torrents.list()).unwrap_err();
    assert!(matches!(error, Error::EngineGone(_)), "{error}");
    assert!(error.to_string().contains("stopped"), "{error}");
    let ended = async { tokio::time::timeout(DEADLINE, async { while events.next().await.is_some() {} }).await };
    bed.block_on(ended)
        .expect("subscriptions end with the engine, even if handles are left");
    assert!(bed.session(id).is_some(), "what was saved is as it was");
}
