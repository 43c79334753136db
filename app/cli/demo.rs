//! `demo`: a tracker, a seeder and a downloader in one process, over real sockets and real files.

mod tracker;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use ecs_torrent::events::Event;
use ecs_torrent::making::{MakeOptions, Plan};
use ecs_torrent::protocol::metainfo::Metainfo;
use ecs_torrent::verifying::verify;
use ecs_torrent::{AddOptions, Engine, Settings, Source, TorrentPlugins};
use indicatif::ProgressBar;

use self::tracker::DemoTracker;
use super::output::{self, Screen};
use super::signals::{self, Signals};
use super::{CliError, ExitCodes, Outcome};

#[derive(Debug, Args)]
#[command(after_help = "\
The demo uses sockets on 127.0.0.1, and files in a temporary folder that it
removes at the end, also after a signal.

Example:
  ecs-torrent demo --size 1024")]
pub(super) struct DemoArgs {
    /// Size of the torrent in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    size: u32,
}

/// Time without any progress after which the demo has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Commands to try after the demo.
const NEXT: [&str; 3] = [
    "Next, try:",
    "  ecs-torrent download FILE.torrent    a torrent file, or a magnet link in quotes",
    "  ecs-torrent daemon                   an engine for `add`, `list` and other programs",
];

/// Time limit for removing the folder while disk threads of the stopped engines may still write to it.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn run(args: DemoArgs, screen: Screen) -> Result<Outcome, CliError> {
    let mut signals = Signals::new()?;
    signals.set_code(ExitCodes::INTERRUPTED);
    let folder = tempfile::Builder::new().prefix("ecs-torrent-demo-").tempdir();
    let folder = folder.map_err(CliError::io("cannot make a temporary folder"))?;
    signals.remove_at_end(folder.path().to_owned());
    let result = run_in(folder.path(), &args, &screen, &mut signals).await;
    // Disk threads of the engines may still close files in the folder.
    signals::remove(folder.path(), REMOVE_TIMEOUT);
    match result {
        Ok(()) => Ok(Outcome::Done),
        Err(CliError::Interrupted) => {
            screen.error("interrupted");
            Ok(Outcome::Interrupted)
        }
        Err(error) => Err(error),
    }
}

async fn run_in(folder: &Path, args: &DemoArgs, screen: &Screen, signals: &mut Signals) -> Result<(), CliError> {
    let total = u64::from(args.size) << 20;
    screen.line(format!("Making a torrent of {} in 5 files.", output::bytes(total)));
    let is_interrupted = Arc::new(AtomicBool::new(false));
    let (there, flag) = (folder.join("seeder/demo"), is_interrupted.clone());
    let bar = screen.hashing_bar(total, "writing");
    let mut writing = tokio::task::spawn_blocking({
        let bar = bar.clone();
        move || write_files(&there, total, &flag, &bar)
    });
    let written = tokio::select! {
        written = &mut writing => written,
        () = signals.next() => {
            is_interrupted.store(true, Ordering::Release);
            writing.await
        }
    };
    bar.finish_and_clear();
    if is_interrupted.load(Ordering::Acquire) {
        return Err(CliError::Interrupted);
    }
    written
        .unwrap_or_else(|panic| Err(std::io::Error::other(panic)))
        .map_err(CliError::io("cannot write the files"))?;
    let engines = [engine()?, engine()?];
    let [seeder, leecher] = &engines;
    let result = tokio::select! {
        result = transfer(folder, total, seeder, leecher, screen) => result,
        () = signals.next() => Err(CliError::Interrupted),
    };
    let stop_all = async {
        for engine in [leecher, seeder] {
            engine.torrents().stop_all_and_serialize().await?;
        }
        Ok::<(), CliError>(())
    };
    let stopped = tokio::select! {
        stopped = stop_all => stopped,
        () = signals.next() => Err(CliError::Interrupted),
    };
    drop(engines);
    let metainfo = result?;
    stopped?;
    let here = folder.join("downloads");
    let pieces = metainfo.info.geometry.piece_count();
    let verdict = tokio::task::spawn_blocking(move || verify(&metainfo, &here, &|_| {}));
    let verdict = tokio::select! {
        verdict = verdict => verdict.map_err(|panic| CliError::Other(panic.to_string()))?,
        () = signals.next() => return Err(CliError::Interrupted),
    };
    if !verdict.is_good() {
        return Err(CliError::Other(format!(
            "{} of {pieces} pieces are not what they should be",
            verdict.bad
        )));
    }
    screen.line(format!("All {} pieces are verified.", verdict.good));
    NEXT.iter().for_each(|line| screen.line(line));
    Ok(())
}

/// Makes a torrent from the seeder's files and downloads it.
async fn transfer(
    folder: &Path,
    total: u64,
    seeder: &Engine,
    leecher: &Engine,
    screen: &Screen,
) -> Result<Arc<Metainfo>, CliError> {
    let (there, here) = (folder.join("seeder"), folder.join("downloads"));
    let tracker = DemoTracker::start()
        .await
        .map_err(CliError::io("cannot start the tracker"))?;
    let options = MakeOptions {
        trackers: vec![tracker.announce_url()],
        ..MakeOptions::default()
    };
    let plan = Plan::new(&there.join("demo"), options)?;
    let bar = screen.hashing_bar(total, "hashing");
    let moving = bar.clone();
    let torrent = tokio::task::spawn_blocking(move || plan.make(&|done| moving.set_position(done))).await;
    let torrent = torrent.map_err(|panic| CliError::Other(panic.to_string()))??;
    bar.finish_and_clear();
    let metainfo = Source::from(Bytes::from(torrent)).load()?;
    screen.line(format!(
        "Tracker at {}, seeder at {}.",
        tracker.address(),
        seeder.local_addresses()[0]
    ));
    let at = |root: &Path| AddOptions {
        root: Some(root.to_owned()),
        ..AddOptions::default()
    };
    let mut seeding = seeder.torrents().subscribe();
    seeder.torrents().download_with(metainfo.clone(), at(&there)).await?;
    while !matches!(seeding.next().await, Some(Event::Started(_)) | None) {}
    tracker.wait_for_peer().await;

    let torrents = leecher.torrents();
    let id = torrents.download_with(metainfo.clone(), at(&here)).await?;
    let began = Instant::now();
    let bar = screen.bar(total);
    bar.set_prefix("downloading");
    let mut last_progress = (0, began);
    let stats = loop {
        let stats = torrents.stats(id).await?;
        let speed = output::speed(stats.speed.download);
        let peers = output::count(stats.peers.len(), "peer");
        bar.set_message(format!(
            "{speed}, {peers}, {}/{} pieces",
            stats.held_pieces(),
            stats.pieces.map_or(0, |pieces| pieces.total)
        ));
        bar.set_position(stats.completed);
        // Either call alone may have been skipped, as too soon after the last one.
        bar.force_draw();
        if stats.is_complete() {
            break stats;
        }
        if stats.completed > last_progress.0 {
            last_progress = (stats.completed, Instant::now());
        }
        if last_progress.1.elapsed() > PATIENCE || stats.error.is_some() {
            let reason = stats.error.unwrap_or_else(|| "nothing has come for a minute".into());
            return Err(CliError::Other(format!(
                "the download stopped at {}: {reason}",
                output::bytes(stats.completed)
            )));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let time = began.elapsed();
    bar.finish_and_clear();
    let average = (total as f64 / time.as_secs_f64().max(0.001)) as u64;
    screen.line(format!(
        "Downloaded {} in {} ({}).",
        output::bytes(stats.downloaded),
        output::duration(time),
        output::speed(average)
    ));
    Ok(metainfo)
}

fn engine() -> Result<Engine, CliError> {
    let mut settings = Settings::default();
    settings.session.state_dir = None;
    settings.net.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
    Ok(Engine::builder().plugins(TorrentPlugins).settings(settings).start()?)
}

/// Writes files of odd sizes with non-repeating bytes. One file is empty, and one lies in its own folder.
fn write_files(folder: &Path, total: u64, is_interrupted: &AtomicBool, bar: &ProgressBar) -> std::io::Result<()> {
    let small = [
        ("notes/read me.txt", 1_234),
        ("empty", 0),
        ("one byte", 1),
        ("odd.bin", total / 3 + 7),
    ];
    let rest = total - small.iter().map(|(_, len)| len).sum::<u64>();
    for (seed, (name, len)) in (1..).zip(small.into_iter().chain([("large.bin", rest)])) {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(folder))?;
        let mut file = std::io::BufWriter::new(bar.wrap_write(std::fs::File::create(path)?));
        write_noise(&mut file, seed, len, is_interrupted)?;
    }
    Ok(())
}

fn write_noise(out: &mut impl std::io::Write, seed: u64, len: u64, is_interrupted: &AtomicBool) -> std::io::Result<()> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut left = len;
    while left > 0 && !is_interrupted.load(Ordering::Relaxed) {
        // xorshift64 is sufficient to make every block different.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let part = left.min(8) as usize;
        out.write_all(&state.to_le_bytes()[..part])?;
        left -= part as u64;
    }
    out.flush()
}
