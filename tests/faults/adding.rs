//! Commands about a torrent that is being added.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use ecs_torrent::bevy_ecs::prelude::World;
use ecs_torrent::components::commands::{AddTorrent, CommandQueue, RemoveTorrent, Reply, ResumeTorrent, StopTorrent};
use ecs_torrent::{AddOptions, InfoHash};

use crate::bed::{Bed, DEADLINE, Torrent};
use crate::removing::saved_files;
use crate::stopping::{HeldTracker, KEEP_DATA, begin_stop};

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
