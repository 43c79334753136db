//! The client that is measured: an engine in a process of its own.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ecs_torrent::events::Event;
use ecs_torrent::{AddOptions, Engine, Settings, Source, TorrentPlugins, Torrents};

/// Good nodes in a warm table, and the time in which it fills.
const WARM: usize = 8;
const WARMING: Duration = Duration::from_secs(8);

/// Time limit of a measurement.
const PATIENCE: Duration = Duration::from_secs(60);

/// Prints the milliseconds until the metadata is known. Arguments: the way (`peer`, `warm` or `cold`), the address to
/// listen at, the magnet link, and the address of a peer or node.
pub fn run(arguments: &[String]) -> ExitCode {
    let [mode, address, link, known] = arguments else {
        eprintln!("client MODE ADDRESS LINK HOST:PORT");
        return ExitCode::FAILURE;
    };
    let folder = tempfile::tempdir().unwrap();
    let known: SocketAddr = known.parse().unwrap();
    let mut settings = Settings::default();
    settings.net.listen = vec![address.parse().unwrap()];
    settings.lsd.enabled = false;
    settings.dht.enabled = mode != "peer";
    settings.dht.bootstrap = vec![known.to_string()];
    settings.storage.download_dir = folder.path().to_owned();
    settings.session.state_dir = Some(folder.path().join("state"));
    let begun = Instant::now();
    let engine = Engine::builder()
        .plugins(TorrentPlugins)
        .settings(settings)
        .start()
        .unwrap();
    let torrents = engine.torrents();
    let begun = match &**mode {
        "warm" => {
            wait_until_warm(&torrents);
            Instant::now()
        }
        "peer" => Instant::now(),
        _ => begun,
    };
    let mut events = torrents.subscribe();
    let options = AddOptions {
        peers: if mode == "peer" { vec![known] } else { Vec::new() },
        ..AddOptions::default()
    };
    torrents
        .blocking()
        .download_with(Source::from(link.as_str()), options)
        .unwrap();
    while begun.elapsed() < PATIENCE {
        match events.next_blocking() {
            Some(Event::MetadataReceived(_)) => {
                println!("{}", begun.elapsed().as_millis());
                return ExitCode::SUCCESS;
            }
            Some(_) => {}
            None => break,
        }
    }
    ExitCode::FAILURE
}

/// Waits for a table with nodes, and for the end of the search that has filled it.
fn wait_until_warm(torrents: &Torrents) {
    let begun = Instant::now();
    let is_warm = || {
        let stats = pollster::block_on(torrents.dht().stats()).unwrap();
        stats.ipv4.is_some_and(|network| network.good_nodes >= WARM)
    };
    while !is_warm() {
        assert!(begun.elapsed() < PATIENCE, "the table stays cold");
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(WARMING);
}
