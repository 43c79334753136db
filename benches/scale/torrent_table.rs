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
const ACTIVE_BYTES: usize = 256 << 20;

/// What an engine with some idle torrents has cost.
struct Cost {
    bytes: i64,
    adding: Duration,
    idle_tick: Duration,
    announcing: Duration,
    block: Duration,
}

/// The first torrent brings what is there once, like tables; the others are told without that.
pub fn table(counts: &[usize]) {
    println!(
        "| torrents | KiB each | µs to add, check, announce, save one | µs of an idle tick | µs per announce | µs per block of one more |"
    );
    println!("|---:|---:|---:|---:|---:|---:|");
    let first = cost(1);
    for &count in counts {
        let (cost, others) = match count {
            1 => (&first, 1.0),
            _ => (&cost(count), count as f64 - 1.0),
        };
        let (bytes, adding, announcing) = match count {
            1 => (0, Duration::ZERO, Duration::ZERO),
            _ => (first.bytes, first.adding, first.announcing),
        };
        println!(
            "| {count} | {:.1} | {:.1} | {:.1} | {:.1} | {:.2} |",
            (cost.bytes - bytes) as f64 / 1024.0 / others,
            us(cost.adding.saturating_sub(adding)) / others,
            us(cost.idle_tick),
            us(cost.announcing.saturating_sub(announcing)) / others,
            us(cost.block)
        );
    }
}

fn cost(count: usize) -> Cost {
    let watch = watch();
    watch.start();
    let mut idle = Idle::new(count, watch.clone());
    let adding = watch.stop().iter().sum();
    let bytes = watch.bytes();
    idle.tick();
    let idle_tick = median(101, || timed(|| idle.tick()));
    watch.start();
    idle.announce_again();
    let announcing = watch.stop().iter().sum();
    Cost {
        bytes,
        adding,
        idle_tick,
        announcing,
        block: download(&mut idle, &watch),
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
