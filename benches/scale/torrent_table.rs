//! Cost of the torrents of one engine, of which at most one is active.

use std::time::{Duration, Instant};

use ecs_torrent::components::settings::Settings;
use ecs_torrent::engine::sim::{Content, NewNode};
use ecs_torrent::protocol::geometry::BLOCK_SIZE;
use ecs_torrent::systems::TorrentPlugins;

use crate::engines::{self, Idle};
use crate::watch::Stopwatch;
use crate::{median, torrents, us, watch};

/// Bytes downloaded while the other torrents are idle.
const ACTIVE_BYTES: usize = 256 << 20;

/// Costs of an engine with idle torrents.
#[derive(Clone, Copy)]
struct Cost {
    bytes: i64,
    adding: Duration,
    idle_tick: Duration,
    announcing: Duration,
    block: Duration,
}

/// Prints one row per count. The costs of the first torrent include one-time costs such as tables; those of the others
/// do not.
pub fn table(counts: &[usize]) {
    println!(
        "| torrents | KiB each | µs to add, check, announce, save one | µs of an idle tick | µs per announce | µs per block of one more |"
    );
    println!("|---:|---:|---:|---:|---:|---:|");
    // Discards the costs of the process's very first engine.
    cost(1);
    let first = cost(1);
    for &count in counts {
        let cost = if count == 1 { first } else { cost(count) };
        let others = (count - 1) as f64;
        // Leaves out differences that are indistinguishable from noise.
        let each = |whole: f64, first: f64| match count {
            1 => format!("{first:.1}"),
            _ if whole < 1.2 * first => "–".into(),
            _ => format!("{:.1}", (whole - first) / others),
        };
        println!(
            "| {count} | {} | {} | {:.1} | {} | {:.2} |",
            each(cost.bytes as f64 / 1024.0, first.bytes as f64 / 1024.0),
            each(us(cost.adding), us(first.adding)),
            us(cost.idle_tick),
            each(us(cost.announcing), us(first.announcing)),
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
    // Lets the engine save the changes.
    engines::pass(&mut idle.sim, Duration::from_secs(120));
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

/// Downloads one more torrent. Returns the time of the engine's ticks per block.
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
