//! Hashing of full pieces, slice by slice.

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, Throughput};
use ecs_torrent::bevy_ecs::entity::Entity;
use ecs_torrent::components::settings::StorageSettings;
use ecs_torrent::engine::backends::hash::RayonHash;
use ecs_torrent::engine::port::{Backend, JobTag};
use ecs_torrent::engine::ports::hash::{Digests, HashKind, HashRequest, compute};
use ecs_torrent::engine::purpose;
use ecs_torrent::engine::wake::Waker;
use ecs_torrent::protocol::geometry::BLOCK_SIZE;
use ecs_torrent::protocol::hash::sha1;

use crate::torrents;

/// Number of pieces in a batch and bytes per piece.
const PIECE_COUNT: usize = 16;
const PIECE_LENGTH: usize = 256 << 10;

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("verify");
    let data = Bytes::from(torrents::noise(PIECE_LENGTH));
    let expected = Digests::Piece(sha1([&data[..]]));
    let blocks = blocks(&data);
    group.throughput(Throughput::Bytes(PIECE_LENGTH as u64));
    group.bench_function("one piece", |bencher| {
        bencher.iter(|| assert_eq!(compute(HashKind::Sha1Piece, black_box(&blocks)), expected));
    });
    let waker = Waker::for_this_thread();
    let settings = StorageSettings::default();
    let mut hash = RayonHash::start(&settings, &waker).unwrap();
    group.throughput(Throughput::Bytes((PIECE_COUNT * PIECE_LENGTH) as u64));
    group.bench_function("16 pieces, one thread per processor", |bencher| {
        bencher.iter(|| {
            let mut requests = (0..PIECE_COUNT as u64)
                .map(|number| request(number, blocks.clone()))
                .collect();
            let mut events = Vec::new();
            hash.submit(&mut requests);
            while events.len() < PIECE_COUNT {
                waker.begin_tick();
                hash.poll(usize::MAX, &mut events);
                if events.len() < PIECE_COUNT {
                    waker.wait(Duration::from_secs(1));
                }
            }
            assert!(events.iter().all(|event| event.digests.as_ref() == Some(&expected)));
        });
    });
    group.finish();
}

fn request(number: u64, spans: Vec<Bytes>) -> HashRequest {
    let tag = JobTag {
        purpose: purpose!("verify"),
        owner: Entity::PLACEHOLDER,
        number,
    };
    let kind = HashKind::Sha1Piece;
    HashRequest { tag, kind, spans }
}

/// Splits a piece into slices as received: one per block, but two for every eighth block.
fn blocks(piece: &Bytes) -> Vec<Bytes> {
    let mut slices = Vec::new();
    for (number, start) in (0..piece.len()).step_by(BLOCK_SIZE as usize).enumerate() {
        let mut block = piece.slice(start..start + BLOCK_SIZE as usize);
        if number % 8 == 7 {
            slices.push(block.split_to(5000));
        }
        slices.push(block);
    }
    slices
}
