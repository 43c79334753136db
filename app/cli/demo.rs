//! `demo`: a tracker, a seeder and a downloader in one process, over real sockets and real files.

mod tracker;

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use ecs_torrent::events::Event;
use ecs_torrent::making::{MakeOptions, Plan};
use ecs_torrent::verifying::verify;
use ecs_torrent::{AddOptions, Engine, Settings, Source, TorrentPlugins};

use self::tracker::DemoTracker;
use super::output::{self, Screen};
use super::{CliError, Outcome};

#[derive(Debug, Args)]
#[command(after_help = "\
Everything stays on this machine: sockets on 127.0.0.1, files in a temporary folder that is removed at the end.

Example:
  ecs-torrent demo --size 1024")]
pub(super) struct DemoArgs {
    /// Size of the torrent in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    size: u32,
}

/// Time without any progress after which the demo has failed.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn run(args: DemoArgs, screen: Screen) -> Result<Outcome, CliError> {
    let folder = tempfile::Builder::new().prefix("ecs-torrent-demo-").tempdir();
    let folder = folder.map_err(CliError::io("cannot make a temporary folder"))?;
    let (there, here) = (folder.path().join("seeder"), folder.path().join("downloads"));
    let total = u64::from(args.size) << 20;
    screen.line(format!("Making a torrent of {} in 5 files.", output::bytes(total)));
    write_files(&there.join("demo"), total).map_err(CliError::io("cannot write the files"))?;

    let tracker = DemoTracker::start()
        .await
        .map_err(CliError::io("cannot start the tracker"))?;
    let options = MakeOptions {
        trackers: vec![tracker.announce_url()],
        ..MakeOptions::default()
    };
    let plan = Plan::new(&there.join("demo"), options)?;
    let bar = screen.hashing_bar(total, "hashing");
    let torrent = plan.make(&|done| bar.set_position(done))?;
    bar.finish_and_clear();
    let metainfo = Source::from(Bytes::from(torrent)).load()?;

    let seeder = engine()?;
    let leecher = engine()?;
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
        bar.set_position(stats.bytes_completed);
        let speed = output::speed(stats.speed.download);
        let peers = output::count(stats.peers.len(), "peer");
        bar.set_message(format!(
            "{speed}, {peers}, {}/{} pieces",
            stats.pieces_completed, stats.pieces
        ));
        if stats.is_complete() {
            break stats;
        }
        if stats.bytes_completed > last_progress.0 {
            last_progress = (stats.bytes_completed, Instant::now());
        }
        if last_progress.1.elapsed() > PATIENCE || stats.error.is_some() {
            let reason = stats.error.unwrap_or_else(|| "nothing has come for a minute".into());
            return Err(CliError::Other(format!(
                "the download stopped at {}: {reason}",
                output::bytes(stats.bytes_completed)
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
    torrents.stop_all_and_serialize().await?;
    seeder.torrents().stop_all_and_serialize().await?;

    let verdict = verify(&metainfo, &here, &|_| {});
    if !verdict.is_good() {
        return Err(CliError::Other(format!(
            "{} of {} pieces are not what they should be",
            verdict.bad, stats.pieces
        )));
    }
    screen.line(format!("{} pieces verified", verdict.good));
    Ok(Outcome::Done)
}

fn engine() -> Result<Engine, CliError> {
    let mut settings = Settings::default();
    settings.session.state_dir = None;
    settings.net.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
    Ok(Engine::builder().plugins(TorrentPlugins).settings(settings).start()?)
}

/// Files of odd sizes, one of them empty, one in a folder of its own, of bytes that do not repeat.
fn write_files(folder: &Path, total: u64) -> std::io::Result<()> {
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
        let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
        write_noise(&mut file, seed, len)?;
    }
    Ok(())
}

fn write_noise(out: &mut impl std::io::Write, seed: u64, len: u64) -> std::io::Result<()> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut left = len;
    while left > 0 {
        // xorshift64: enough to make every block another one.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let part = left.min(8) as usize;
        out.write_all(&state.to_le_bytes()[..part])?;
        left -= part as u64;
    }
    out.flush()
}
