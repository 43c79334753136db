//! The rarest-first order of a large torrent.

use std::hint::black_box;

use criterion::{BenchmarkGroup, Criterion, measurement::WallTime};
use ecs_torrent::components::peer::PeerPieces;
use ecs_torrent::components::random::Random;
use ecs_torrent::protocol::bitfield::Bitfield;
use ecs_torrent::systems::picking::rarity::RarityOrder;

const PIECE_COUNT: u32 = 100_000;

/// Number of peers, each with a random half of the pieces, before timing starts.
const PEER_COUNT: usize = 50;

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("picker");
    let mut random = Random::from_seed([1; 32]);
    group.bench_function("new", |bencher| {
        bencher.iter(|| {
            let order = RarityOrder::new(PIECE_COUNT, |_| true, &mut random);
            assert_eq!(order.pickable_count(), PIECE_COUNT);
        });
    });
    let mut order = RarityOrder::new(PIECE_COUNT, |_| true, &mut random);
    for _ in 0..PEER_COUNT {
        order.add_peer(&half(&mut random), &mut random);
    }
    bench_availability(&mut group, &mut order, &mut random);
    let few: Vec<u32> = (0..100).map(|_| random.below(PIECE_COUNT as usize) as u32).collect();
    let peers = [
        ("a seed", PeerPieces::all(PIECE_COUNT)),
        ("half", half(&mut random)),
        ("100 pieces", of(few)),
    ];
    for (name, pieces) in peers {
        group.bench_function(format!("pick, {name}"), |bencher| {
            bencher.iter(|| {
                let piece = order.pick(black_box(&pieces), None, &mut random, |_| true).unwrap();
                order.remove(piece);
                order.insert(piece, &mut random);
            });
        });
        assert_eq!(order.pickable_count(), PIECE_COUNT);
    }
    group.finish();
}

fn bench_availability(group: &mut BenchmarkGroup<'_, WallTime>, order: &mut RarityOrder, random: &mut Random) {
    // Each iteration adds a copy and removes it, so counts stay the same for any number of iterations.
    let mut pieces = (0..PIECE_COUNT).cycle().step_by(7919);
    group.bench_function("have, and back", |bencher| {
        bencher.iter(|| {
            let piece = pieces.next().unwrap();
            let before = order.availability(piece);
            order.add_copy(piece, random);
            assert_eq!(order.availability(piece), before + 1);
            order.remove_copy(piece, random);
        });
    });
    let peer = half(random);
    let first = (0..PIECE_COUNT).find(|piece| peer.has(*piece)).unwrap();
    group.bench_function("bitfield of half, and back", |bencher| {
        bencher.iter(|| {
            let before = order.availability(first);
            order.add_peer(&peer, random);
            assert_eq!(order.availability(first), before + 1);
            order.remove_peer(&peer, random);
        });
    });
}

fn half(random: &mut Random) -> PeerPieces {
    of((0..PIECE_COUNT).filter(|_| random.below(2) == 0))
}

fn of(indexes: impl IntoIterator<Item = u32>) -> PeerPieces {
    let mut bits = Bitfield::new(PIECE_COUNT);
    for index in indexes {
        bits.insert(index);
    }
    bits.into()
}
