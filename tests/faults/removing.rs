//! Removals, and the files that they leave.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use ecs_torrent::bevy_app::{App, Plugin};
use ecs_torrent::bevy_ecs::prelude::*;
use ecs_torrent::components::commands::{CommandQueue, RemoveError, RemoveTorrent, Removed, Reply};
use ecs_torrent::components::torrent::{StopPhase, Stopping};
use ecs_torrent::{InfoHash, RemoveOptions, Tick, TickSet};

use crate::bed::{Bed, DEADLINE, Torrent, loopback};
use crate::peer::listen_as_seed;
use crate::stopping::{BLOCK, HeldTracker, KEEP_DATA, begin_stop, leech_a_block};

/// Names of a torrent's files in the state folder.
pub fn saved_files(bed: &Bed, id: InfoHash) -> Vec<String> {
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
    bed.wait_until("started to be announced", || {
        bed.stats(id).trackers[0].status == "working"
    });
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
    bed.wait_until("a part", || bed.stats(id).completed > 1 << 20);
    bed.block_on(bed.torrents().remove(id, RemoveOptions { delete_data: true }))
        .unwrap();
    let left = |bed: &Bed| std::fs::read_dir(bed.folder()).unwrap().count() + saved_files(bed, id).len();
    assert_eq!(left(&bed), 0);
    // The torrent can be added again and then downloads from the beginning.
    bed.download(&torrent, &[seed]);
    bed.wait_complete(&torrent);
}
