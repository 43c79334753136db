//! Whole ticks of an engine with many torrents or peers, idle and busy.

use std::sync::Arc;
use std::time::Duration;

use criterion::Criterion;

use crate::engines::Idle;
use crate::many_peers::{ManyPeers, PIECE_COUNT};
use crate::watch::Stopwatch;

const PEER_COUNT: usize = 2000;

pub fn bench(criterion: &mut Criterion) {
    for count in [1, 1_000, 100_000] {
        let mut idle = Idle::new(count, Arc::new(Stopwatch::default()));
        idle.tick();
        criterion.bench_function(&format!("tick/{count} idle torrents"), |bencher| {
            bencher.iter(|| idle.tick());
        });
    }
    bench_seed(criterion);
    bench_leech(criterion);
}

/// Times a seed whose peers are idle first and then all request a block at once.
fn bench_seed(criterion: &mut Criterion) {
    let mut many_peers = ManyPeers::of_leechers(PEER_COUNT, Arc::default());
    criterion.bench_function("tick/2000 idle peers", |bencher| {
        bencher.iter(|| many_peers.idle_tick());
    });
    let mut now = many_peers.now();
    criterion.bench_function("tick/2000 idle peers, all looked at", |bencher| {
        bencher.iter(|| {
            now += Duration::from_secs(1);
            many_peers.tick(now);
        });
    });
    // Creates new peers, because the first one's clock is years ahead by now.
    let mut many_peers = ManyPeers::of_leechers(PEER_COUNT, Arc::default());
    let mut bench = |name, cost: fn(Vec<Duration>) -> Duration| {
        criterion.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| (0..rounds).map(|_| cost(many_peers.request_round())).sum());
        });
    };
    bench("tick/2000 peers request", |ticks| ticks[0]);
    bench("tick/2000 peers request, until all are served", |ticks| {
        ticks.iter().sum()
    });
}

/// Times a leecher whose peers all send a `Have` for the same piece.
fn bench_leech(criterion: &mut Criterion) {
    let mut many_peers = ManyPeers::of_seeders(PEER_COUNT, Arc::default());
    let mut piece = 0;
    criterion.bench_function("tick/2000 peers tell of a piece", |bencher| {
        bencher.iter_custom(|rounds| {
            let round = |_| {
                piece = (piece + 1) % PIECE_COUNT as u32;
                many_peers.have_round(piece)
            };
            (0..rounds).map(round).sum()
        });
    });
}
