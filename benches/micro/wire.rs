//! Decoding and encoding of wire frames.

use criterion::{Criterion, Throughput};
use ecs_torrent::bevy_ecs::entity::Entity;
use ecs_torrent::components::peer::{FlushQueue, Outbox};

use crate::streams::{self, BLOCK_COUNT, FRAME_COUNT, Stream};

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wire");
    let stream = Stream::new();
    group.throughput(Throughput::Elements(FRAME_COUNT));
    let mut codec = Stream::codec();
    group.bench_function("decode", |bencher| {
        bencher.iter(|| assert_eq!(stream.decode(&mut codec), [BLOCK_COUNT; 3]));
    });
    let (peer, mut flush, mut outbox) = (Entity::PLACEHOLDER, FlushQueue::default(), Outbox::default());
    group.bench_function("encode", |bencher| {
        bencher.iter(|| assert_eq!(streams::encode(&stream, peer, &mut flush, &mut outbox), stream.len()));
    });
    group.finish();
}
