//! Whole ticks of an engine: what it costs to have torrents and peers, whether they want something or not.

use std::sync::Arc;
use std::time::Duration;

use criterion::Criterion;

use crate::crowd::{Crowd, PIECE_COUNT};
use crate::engines::Idle;
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

/// A seed whose peers ask for nothing, then all at once.
fn bench_seed(criterion: &mut Criterion) {
    let mut crowd = Crowd::of_leechers(PEER_COUNT, Arc::default());
    criterion.bench_function("tick/2000 idle peers", |bencher| bencher.iter(|| crowd.idle_tick()));
    let mut now = crowd.now();
    criterion.bench_function("tick/2000 idle peers, all looked at", |bencher| {
        bencher.iter(|| {
            now += Duration::from_secs(1);
            crowd.tick(now);
        });
    });
    // Another one: the clock of the first is years ahead by now.
    let mut crowd = Crowd::of_leechers(PEER_COUNT, Arc::default());
    let mut bench = |name, cost: fn(Vec<Duration>) -> Duration| {
        criterion.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| (0..rounds).map(|_| cost(crowd.request_round())).sum());
        });
    };
    bench("tick/2000 peers request", |ticks| ticks[0]);
    bench("tick/2000 peers request, until all are served", |ticks| {
        ticks.iter().sum()
    });
}

/// A leecher whose peers all tell of a new piece.
fn bench_leech(criterion: &mut Criterion) {
    let mut crowd = Crowd::of_seeders(PEER_COUNT, Arc::default());
    let mut piece = 0;
    criterion.bench_function("tick/2000 peers tell of a piece", |bencher| {
        bencher.iter_custom(|rounds| {
            let round = |_| {
                piece = (piece + 1) % PIECE_COUNT as u32;
                crowd.have_round(piece)
            };
            (0..rounds).map(round).sum()
        });
    });
}
