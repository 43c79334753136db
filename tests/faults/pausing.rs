//! The pause as seen by peers and trackers: it leaves them as a stop does, and a start comes back to them.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use ecs_torrent::bevy_app::{App, Plugin};
use ecs_torrent::bevy_ecs::prelude::*;
use ecs_torrent::components::torrent::StopPhase;
use ecs_torrent::events::Event;
use ecs_torrent::protocol::wire::{Frame, Message, Reserved};
use ecs_torrent::systems::stop_participants::{AddStopParticipant, Ending, StopDuty};
use ecs_torrent::{Tick, TickSet, TorrentState};

use crate::bed::{Bed, DEADLINE, Torrent, loopback};
use crate::http_tracker::{announce, ok, parameter, serve};
use crate::peer::{ScriptedPeer, connect_raw, handshake, unique_id};

/// Starts a tracker without peers; returns its URL, and the events of the announces that it gets.
fn tracker() -> (String, Receiver<String>) {
    let (sender, events) = channel();
    let sender = Mutex::new(sender);
    let address = serve(move |target| {
        let event = parameter(target, "event").unwrap_or("none").to_owned();
        let _ = sender.lock().unwrap().send(event);
        // A long interval: only a start may announce again.
        ok(b"d8:intervali3600e12:min intervali3600e5:peers0:e")
    });
    (announce(address), events)
}

/// A stop participant of another plugin.
#[derive(Clone, Default)]
struct Endings(Arc<Mutex<Vec<Ending>>>);

#[derive(Resource)]
struct EndingRecords(Endings);

impl Plugin for Endings {
    fn build(&self, app: &mut App) {
        app.insert_resource(EndingRecords(self.clone()))
            .add_stop_participant::<EndingRecords>(StopPhase::HaltDownloads, None)
            .add_systems(Tick, record_endings.in_set(TickSet::Respond));
    }
}

fn record_endings(mut duty: StopDuty<EndingRecords>, records: Res<EndingRecords>) {
    for turn in duty.take() {
        records.0.0.lock().unwrap().push(turn.ending);
        duty.finish(turn.torrent);
    }
}

/// A download is paused in the order of a stop: cancels, not interested, choke, the close, `stopped`. While it is
/// paused, connections are refused and nothing is announced. A start announces `started` at once, whatever the interval
/// is, and dials the seed again. Another plugin takes part.
#[test]
fn a_download_is_paused_in_order() {
    let (url, events) = tracker();
    let torrent = Torrent::with_trackers(20 * 65536, 65536, std::slice::from_ref(&url));
    let listener = TcpListener::bind((loopback(130), 0)).unwrap();
    let endings = Endings::default();
    let mut bed = Bed::with_plugin(|settings| settings.peers.reconnect_backoff_s = 1, endings.clone());
    let id = bed.download(&torrent, &[listener.local_addr().unwrap()]);
    let next = |wanted: &str| assert_eq!(events.recv_timeout(DEADLINE).unwrap(), wanted);
    next("started");
    let mut seed = ScriptedPeer::accept(&listener, &torrent);
    seed.send(&Message::HaveAll);
    seed.wait_for_message(&Message::Interested);
    seed.send(&Message::Unchoke);
    let requested: Vec<_> = (0..6).map(|_| seed.wait_for_request()).collect();
    requested[..2]
        .iter()
        .for_each(|request| seed.answer(&torrent, *request));
    bed.wait_until("the blocks", || bed.stats(id).downloaded == 2 * 16384);

    let mut facade_events = bed.torrents().subscribe();
    let torrents = bed.torrents();
    let pausing = std::thread::spawn(move || torrents.blocking().pause(id));
    let said = seed.rest();
    let end = [Message::NotInterested, Message::Choke].map(Frame::Message);
    assert!(said.ends_with(&end), "{said:?}");
    let cancels = said
        .iter()
        .filter(|frame| matches!(frame, Frame::Message(Message::Cancel(_))));
    assert!(cancels.count() >= 4, "{said:?}");
    assert!(events.try_recv().is_err(), "the duty ended before the peer was gone");
    drop(seed);
    next("stopped");
    pausing.join().unwrap().unwrap();
    let stats = bed.stats(id);
    assert_eq!((stats.state, stats.peers.len()), (TorrentState::Paused, 0));
    assert_eq!(stats.trackers[0].status, "idle");
    while bed.block_on(facade_events.next()).unwrap() != Event::Paused(id.into()) {}
    let session = bed.session(id).unwrap();
    assert!(session.paused && session.downloaded == 2 * 16384);

    // A leecher that connects gets no handshake.
    let mut leecher = connect_raw(bed.address(), None);
    leecher
        .write_all(&handshake(id, unique_id(), Reserved::ours()))
        .unwrap();
    assert_eq!(leecher.read(&mut [0; 1]).unwrap_or(0), 0);
    // The seed of another torrent is lost later, and is dialed again.
    let other = Torrent::new(65536, 65536);
    let others = TcpListener::bind((loopback(131), 0)).unwrap();
    bed.add(&other, "other", &[others.local_addr().unwrap()]);
    (0..2).for_each(|_| drop(ScriptedPeer::accept(&others, &other)));
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "a paused torrent dials");
    assert!(events.try_recv().is_err(), "a paused torrent announces");
    listener.set_nonblocking(false).unwrap();

    bed.block_on(bed.torrents().start(id)).unwrap();
    next("started");
    let mut seed = ScriptedPeer::accept(&listener, &torrent);
    seed.send(&Message::HaveAll);
    seed.wait_for_message(&Message::Interested);
    assert_eq!(bed.stats(id).state, TorrentState::Downloading);
    assert_eq!(*endings.0.lock().unwrap(), [Ending::Pause]);
    bed.block_on(bed.torrents().stop_and_serialize(id)).unwrap();
    let until_resumed = true;
    assert_eq!(endings.0.lock().unwrap()[1], Ending::Save { until_resumed });
}
