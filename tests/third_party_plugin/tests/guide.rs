//! The examples of the plugin guide, in engines that transfer a torrent.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use ecs_torrent::prelude::*;
use third_party_plugin::client_block::ClientBlockPlugin;
use third_party_plugin::client_count::{ClientCountPlugin, CountClients};
use third_party_plugin::client_stats::{ClientBytes, ClientStatsPlugin};
use third_party_plugin::ends_first::EndsFirstPlugin;
use third_party_plugin::stop_log::StopLogPlugin;
use third_party_plugin::upload_limit::UploadLimitPlugin;

use crate::swarm::{PIECE_LENGTH, Swarm, engine, settings};

fn nothing(_: &mut App) {}

#[derive(Resource, Clone)]
struct TestSender<T: Send + 'static>(Sender<T>);

/// Returns a plugin that sends each reason for which a connection ends, and the receiving end.
fn close_reasons() -> (impl Fn(&mut App) + Clone + Send + Sync + 'static, Receiver<CloseReason>) {
    fn send(mut gone: MessageReader<PeerDisconnected>, sender: Res<TestSender<CloseReason>>) {
        for message in gone.read() {
            let _ = sender.0.send(message.reason.clone());
        }
    }
    let (sender, receiver) = channel();
    let plugin = move |app: &mut App| {
        app.insert_resource(TestSender(sender.clone()))
            .add_systems(Tick, send.after(TickSet::Reap));
    };
    (plugin, receiver)
}

#[test]
fn statistics_count_every_byte_by_client() {
    let swarm = Swarm::new(200_000);
    let (seed, leecher) = (engine(nothing, settings()), engine(ClientStatsPlugin, settings()));
    let address = swarm.seed(&seed);
    swarm.complete(&leecher, address);
    let look = |world: &mut World| world.resource::<ClientBytes>().clone();
    let ClientBytes(clients) = leecher.torrents().blocking().with_world(look).unwrap();
    assert_eq!(clients.values().sum::<u64>(), 200_000, "{clients:?}");
    assert!(
        clients.keys().all(|client| client.contains("ecs-torrent")),
        "{clients:?}"
    );
}

/// A command is answered from the world; an engine without the plugin refuses it by name.
#[test]
fn a_command_counts_the_connected_clients() {
    let swarm = Swarm::new(200_000);
    // The leecher stays connected for 20 s.
    let limit = UploadLimitPlugin { bytes_per_s: 10_000 };
    let (seed, plain) = (
        engine((ClientCountPlugin, limit), settings()),
        engine(nothing, settings()),
    );
    let count = || seed.torrents().blocking().ask(|reply| CountClients { reply }).unwrap();
    let address = swarm.seed(&seed);
    assert!(count().is_empty());
    let _torrent = swarm.download(&plain, address);
    let deadline = Instant::now() + Duration::from_secs(60);
    while count().values().sum::<usize>() != 1 {
        assert!(Instant::now() < deadline, "no peer has connected");
    }
    let refused = plain.torrents().blocking().ask(|reply| CountClients { reply });
    let error = refused.unwrap_err().to_string();
    assert_eq!(error, "this engine has no plugin that takes the command CountClients");
}

/// The blocked client gets nothing, and the reason is the plugin's own. Another client is not blocked.
#[test]
fn a_policy_blocks_a_client_by_name() {
    let swarm = Swarm::new(200_000);
    let (reasons, closed) = close_reasons();
    let block = ClientBlockPlugin(vec!["ecs-torrent".into()]);
    let seed = engine(
        move |app: &mut App| {
            app.add_plugins((block.clone(), reasons.clone()));
        },
        settings(),
    );
    let leecher = engine(nothing, settings());
    let address = swarm.seed(&seed);
    let (id, _) = swarm.download(&leecher, address);
    let reason = closed.recv_timeout(Duration::from_secs(60)).unwrap();
    let CloseReason::Plugin(plugin_reason) = &reason else {
        panic!("{reason}")
    };
    assert_eq!(plugin_reason.plugin(), "client block");
    assert!(
        reason.is_final() && reason.to_string().contains("is blocked"),
        "{reason}"
    );
    let stats = leecher.torrents().blocking().stats(id).unwrap();
    assert_eq!(stats.completed, 0);

    let swarm = Swarm::new(200_000);
    let seed = engine(ClientBlockPlugin(vec!["another client".into()]), settings());
    let address = swarm.seed(&seed);
    swarm.complete(&engine(nothing, settings()), address);
}

/// The seed receives the requests for these pieces before all others.
#[test]
fn the_picker_begins_with_both_ends() {
    fn send(mut requested: MessageReader<UploadRequested>, sender: Res<TestSender<u32>>) {
        for message in requested.read() {
            let _ = sender.0.send(message.request.piece);
        }
    }
    let swarm = Swarm::new(64 * PIECE_LENGTH);
    let (sender, requested) = channel();
    let seed = engine(
        move |app: &mut App| {
            app.insert_resource(TestSender(sender.clone()))
                .add_systems(Tick, send.in_set(TickSet::Decide));
        },
        settings(),
    );
    let leecher = engine(EndsFirstPlugin { count: 2 }, settings());
    let address = swarm.seed(&seed);
    swarm.complete(&leecher, address);
    let mut first: Vec<u32> = requested.try_iter().take(4).collect();
    first.sort_unstable();
    assert_eq!(first, [0, 1, 62, 63]);
}

/// The time can only be longer on a slow machine, so that the comparison is safe.
#[test]
fn a_peer_gets_no_more_than_its_upload_limit() {
    let swarm = Swarm::new(1 << 20);
    let mut limited = settings();
    // The bytes that may leave at once, beyond the budget.
    limited.uploads.peer_memory_bytes = 1 << 16;
    let seed = engine(UploadLimitPlugin { bytes_per_s: 1 << 20 }, limited);
    let address = swarm.seed(&seed);
    let leecher = engine(nothing, settings());
    let begin = Instant::now();
    swarm.complete(&leecher, address);
    // All but the first tenth of a second's budget and the last burst has to be earned.
    let least = Duration::from_millis(800);
    assert!(begin.elapsed() >= least, "{:?}", begin.elapsed());
}

/// The line is in the file when the caller has the answer to the stop.
#[test]
fn a_stop_waits_for_its_line() {
    let swarm = Swarm::new(200_000);
    let path = swarm.folder.path().join("stops.log");
    let log = StopLogPlugin { path: path.clone() };
    let (seed, leecher) = (engine(log, settings()), engine(nothing, settings()));
    let address = swarm.seed(&seed);
    swarm.complete(&leecher, address);
    seed.torrents().blocking().stop_all_and_serialize().unwrap();
    let text = std::fs::read_to_string(path).unwrap();
    let [line] = text.lines().collect::<Vec<_>>()[..] else {
        panic!("{text}")
    };
    assert!(line.ends_with(") uploaded 200000 bytes"), "{line}");
}

/// A pipe that nobody reads holds the plugin's thread, and not the stop: the plugin's own limit ends the wait, long
/// before that of the phase.
#[test]
fn a_stop_does_not_wait_for_a_log_that_hangs() {
    let swarm = Swarm::new(200_000);
    let path = swarm.folder.path().join("stops.pipe");
    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    let mut settings = settings();
    settings.lifecycle.release_timeout_ms = 60_000;
    let seed = engine(StopLogPlugin { path }, settings);
    swarm.seed(&seed);
    let begin = Instant::now();
    seed.torrents().blocking().stop_all_and_serialize().unwrap();
    let times = Duration::from_millis(400)..Duration::from_secs(30);
    assert!(times.contains(&begin.elapsed()), "{:?}", begin.elapsed());
    assert!(seed.torrents().blocking().list().unwrap().is_empty());
}
