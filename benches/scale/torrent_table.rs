//! Torrents of one engine, of which at most one does something.

use std::time::{Duration, Instant};

use ecs_torrent::components::settings::Settings;
use ecs_torrent::engine::sim::{Content, NewNode};
use ecs_torrent::protocol::geometry::BLOCK_SIZE;
use ecs_torrent::systems::TorrentPlugins;

use crate::engines::{self, Idle};
use crate::watch::Stopwatch;
use crate::{median, torrents, us, watch};

/// Bytes that are downloaded while the others are idle.
const ACTIVE_BYTES: usize = 32 << 20;

pub fn table(counts: &[usize]) {
    println!(
        "| torrents | KiB each | µs to add, check, announce, save each | µs of an idle tick | µs per announce | µs per block of one more |"
    );
    println!("|---:|---:|---:|---:|---:|---:|");
    for &count in counts {
        let watch = watch();
        watch.start();
        let mut idle = Idle::new(count, watch.clone());
        let adding: Duration = watch.stop().iter().sum();
        let kib = watch.bytes() as f64 / 1024.0 / count as f64;
        idle.tick();
        let tick = median(101, || timed(|| idle.tick()));
        watch.start();
        idle.announce_again();
        let announcing: Duration = watch.stop().iter().sum();
        let block = download(&mut idle, &watch);
        println!(
            "| {count} | {kib:.1} | {:.1} | {:.1} | {:.1} | {:.2} |",
            us(adding) / count as f64,
            us(tick),
            us(announcing) / count as f64,
            us(block)
        );
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}

/// Downloads one more torrent; tells what the engine's ticks took for each block.
fn download(idle: &mut Idle, watch: &Stopwatch) -> Duration {
    let data = torrents::noise(ACTIVE_BYTES);
    let metainfo = torrents::of_data("active", &data, 256 << 10, None);
    let Idle { sim, node, .. } = idle;
    let seeder = sim.add(NewNode::new(engines::ip(2), Settings::default(), TorrentPlugins));
    let content = Content::new(metainfo.clone(), data.into());
    sim.put(seeder, "active", &content);
    engines::add(sim, seeder, &metainfo, "active", vec![]);
    engines::pass(sim, Duration::from_secs(10));
    engines::add(sim, *node, &metainfo, "active", vec![engines::listening(2)]);
    watch.start();
    let limit = sim.now() + Duration::from_secs(600);
    assert!(sim.run_until(limit, |sim| sim.has(*node, "active", &content)));
    let took: Duration = watch.stop().iter().sum();
    took / (ACTIVE_BYTES as u32 / BLOCK_SIZE)
}
