//! ecs-torrent as a library, for figures that its program does not report.

use std::fs;
use std::io::{BufRead, stdin};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ecs_torrent::components::settings::Settings;
use ecs_torrent::components::tick_times::TickTimes;
use ecs_torrent::components::torrent::Lifecycle;
use ecs_torrent::engine::sim::Simulation;
use ecs_torrent::protocol::time::Timestamp;
use ecs_torrent::{AddOptions, Engine, Error, TorrentPlugins, Torrents};
use tokio::task::JoinSet;

use crate::options;
use crate::small;

/// Interval between checks whether all torrents are up.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Number of adds that wait for the disk at the same time.
const ADDED_AT_ONCE: usize = 256;

pub fn run(command: options::Engine) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let work = async {
        match command {
            options::Engine::Prepare { torrents, data, state } => prepare(&torrents, &data, state).await,
            options::Engine::Restart { state } => restart(state).await,
            options::Engine::Peers {
                torrent,
                folder,
                state,
                listen,
            } => peers(torrent, folder, state, listen).await,
            options::Engine::Tick { torrents } => {
                tick(torrents);
                Ok(())
            }
        }
    };
    match runtime.map(|runtime| runtime.block_on(work)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn settings(state: PathBuf, listen: SocketAddr) -> Settings {
    let mut settings = Settings::default();
    settings.session.state_dir = Some(state);
    settings.net.listen = vec![listen];
    settings
}

fn anywhere() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

async fn prepare(torrents: &Path, data: &Path, state: PathBuf) -> Result<(), Error> {
    let engine = Engine::builder()
        .plugins(TorrentPlugins)
        .settings(settings(state, anywhere()))
        .start()?;
    // An add is answered when it is durable, so one at a time would wait for the disk.
    let mut adding = JoinSet::new();
    let mut count = 0;
    for entry in fs::read_dir(torrents).unwrap() {
        if adding.len() == ADDED_AT_ONCE {
            adding.join_next().await.unwrap().unwrap()?;
        }
        let (torrents, path) = (engine.torrents().clone(), entry.unwrap().path());
        let options = AddOptions {
            root: Some(data.to_owned()),
            ..AddOptions::default()
        };
        adding.spawn(async move { torrents.download_with(path, options).await.map(drop) });
        count += 1;
    }
    while let Some(added) = adding.join_next().await {
        added.unwrap()?;
    }
    wait_until_seeding(&engine.torrents(), count).await?;
    engine.torrents().stop_all_and_serialize().await
}

async fn restart(state: PathBuf) -> Result<(), Error> {
    let engine = Engine::builder()
        .plugins(TorrentPlugins)
        .settings(settings(state, anywhere()))
        .start()?;
    let torrents = engine.torrents();
    let count = torrents.resume_all().await?;
    wait_until_seeding(&torrents, count).await?;
    println!("up with {count}");
    std::future::pending().await
}

async fn wait_until_seeding(torrents: &Torrents, count: usize) -> Result<(), Error> {
    loop {
        let seeding = torrents
            .with_world(|world| {
                let mut all = world.query::<&Lifecycle>();
                all.iter(world)
                    .filter(|lifecycle| **lifecycle == Lifecycle::Seeding)
                    .count()
            })
            .await?;
        if seeding >= count {
            return Ok(());
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

async fn peers(torrent: PathBuf, folder: PathBuf, state: PathBuf, listen: SocketAddr) -> Result<(), Error> {
    let mut settings = settings(state, listen);
    let many = 4000;
    settings.peers.max_connections = many;
    settings.peers.max_per_torrent = many;
    settings.peers.max_inbound_per_ip = many;
    settings.peers.max_unidentified = many;
    settings.uploads.slots = many;
    let engine = Engine::builder().plugins(TorrentPlugins).settings(settings).start()?;
    let torrents = engine.torrents();
    let options = AddOptions {
        root: Some(folder),
        require_complete: true,
        ..AddOptions::default()
    };
    torrents.download_with(torrent, options).await?;
    wait_until_seeding(&torrents, 1).await?;
    println!("ready");
    for line in stdin().lock().lines() {
        let p99_ms = torrents
            .with_world(|world| {
                let times = std::mem::take(&mut *world.resource_mut::<TickTimes>());
                times.quantile(0.99).as_secs_f64() * 1000.0
            })
            .await?;
        if line.is_ok() {
            println!("{p99_ms}");
        }
    }
    Ok(())
}

/// Number of timed ticks of a simulated engine.
const TICKS: u32 = 20_000;

fn tick(torrents: u32) {
    let mut sim = Simulation::new(1, Duration::from_millis(1));
    let node = sim.add_node([10, 0, 0, 1].into(), Settings::default(), TorrentPlugins);
    small::add_complete(&mut sim, node, torrents);
    let hour = sim.now() + Duration::from_secs(3600);
    let all_are_up = sim.run_until(hour, |sim| small::count_seeding(sim, node) == torrents as usize);
    assert!(all_are_up, "not all torrents are up");
    let calm = sim.now() + Duration::from_secs(600);
    sim.run_until(calm, |_| false);
    let now: Timestamp = sim.now();
    let core = sim.node(node);
    let begun = Instant::now();
    for _ in 0..TICKS {
        core.tick(now);
    }
    println!("{}", begun.elapsed().as_secs_f64() * 1e6 / f64::from(TICKS));
}
