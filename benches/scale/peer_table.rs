//! Cost of the peers of one torrent.

use std::time::{Duration, Instant};

use ecs_torrent::components::torrent::PeerOf;
use ecs_torrent::engine::sim::{Content, NewNode};
use ecs_torrent::protocol::wire::Message;
use ecs_torrent::systems::TorrentPlugins;

use crate::many_peers::{self, ManyPeers};
use crate::peers::Peers;
use crate::{engines, median, torrents, us, watch};

/// Size and piece length of the torrent whose `Have`s go to idle peers, in bytes.
const STATE_BYTES: usize = 32 << 20;
const STATE_PIECE: u32 = 64 << 10;

pub fn table(counts: &[usize]) {
    println!(
        "| peers | KiB each | µs of an idle tick | ns each per look (1 s) | ns per have received | ns per have sent | µs per block served |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---:|");
    let alone = least_download(0);
    for &count in counts {
        let mut seed = ManyPeers::of_leechers(count, watch());
        let kib = seed.bytes_per_peer() as f64 / 1024.0;
        let idle = median(101, || timed(|| seed.idle_tick()));
        let served = median(11, || seed.request_round().iter().sum());
        let mut now = seed.now();
        let look = median(51, || {
            now += Duration::from_secs(1);
            timed(|| seed.tick(now))
        });
        drop(seed);
        let mut leech = ManyPeers::of_seeders(count, watch());
        let mut piece = 0;
        let received = median(51, || {
            piece += 1;
            leech.have_round(piece)
        });
        drop(leech);
        let learned = least_download(count).saturating_sub(alone) / (STATE_BYTES as u32 / STATE_PIECE);
        let each = |time: Duration| us(time) * 1000.0 / count as f64;
        println!(
            "| {count} | {kib:.1} | {:.1} | {:.0} | {:.0} | {:.0} | {:.2} |",
            us(idle),
            each(look),
            each(received),
            each(learned),
            each(served) / 1000.0
        );
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}

/// Returns the minimum time of three downloads, because other load on the machine only adds time.
fn least_download(onlookers: usize) -> Duration {
    let times = (0..3).map(|_| download(onlookers));
    times.min().unwrap_or_default()
}

/// Downloads a torrent while `onlookers` other peers without pieces or requests are connected. Returns the total time
/// of the engine's ticks.
fn download(onlookers: usize) -> Duration {
    let (mut sim, watch) = (engines::simulation(), watch());
    let data = torrents::noise(STATE_BYTES);
    let metainfo = torrents::of_data("data", &data, STATE_PIECE, None);
    let content = Content::new(metainfo.clone(), data.into());
    let settings = many_peers::settings(onlookers + 1);
    let new = |last| NewNode::new(engines::ip(last), settings.clone(), TorrentPlugins);
    let leecher = sim.add(new(1).probe(watch.clone()));
    engines::add(&mut sim, leecher, &metainfo, "data", vec![]);
    engines::pass(&mut sim, Duration::from_secs(60));
    let mut peers = Peers::connect(&mut sim, onlookers, engines::listening(1), metainfo.hashes.primary());
    peers.say(|_| Message::HaveNone);
    engines::pass(&mut sim, Duration::from_secs(1));
    let world = sim.node(leecher).world_mut();
    assert_eq!(world.query::<&PeerOf>().iter(world).count(), onlookers);
    let seeder = sim.add(new(2));
    sim.put(seeder, "data", &content);
    engines::add(&mut sim, seeder, &metainfo, "data", vec![engines::listening(1)]);
    watch.start();
    let limit = sim.now() + Duration::from_secs(600);
    assert!(sim.run_until(limit, |sim| sim.has(leecher, "data", &content)));
    watch.stop().iter().sum()
}
