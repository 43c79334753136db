//! Parsing of large metainfo and of a tracker reply.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use ecs_torrent::protocol::bencode::{Document, Limits};
use ecs_torrent::protocol::metainfo::{Metainfo, MetainfoLimits};
use ecs_torrent::protocol::tracker::http::read_announce;

use crate::torrents;

const PIECE_COUNT: usize = 100_000;
const FILE_COUNT: usize = 10_000;

/// Number of peers in the reply, all of which are kept.
const PEER_COUNT: usize = 500;

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("bencode");
    let bytes = torrents::described(PIECE_COUNT, FILE_COUNT);
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("tokenise metainfo", |bencher| {
        bencher.iter(|| {
            let document = Document::parse(black_box(&bytes), &Limits::default()).unwrap();
            assert!(document.root().get(b"info").is_some());
        });
    });
    group.bench_function("parse metainfo", |bencher| {
        bencher.iter(|| {
            let metainfo = Metainfo::parse(black_box(&bytes), &MetainfoLimits::default()).unwrap();
            assert_eq!(metainfo.info.geometry.piece_count() as usize, PIECE_COUNT);
            assert_eq!(metainfo.info.files.files().len(), FILE_COUNT);
        });
    });
    let reply = reply();
    group.throughput(Throughput::Bytes(reply.len() as u64));
    group.bench_function("read announce", |bencher| {
        bencher.iter(|| {
            let response = read_announce(black_box(&reply), PEER_COUNT).unwrap();
            assert_eq!(response.peers.len(), PEER_COUNT);
        });
    });
    group.finish();
}

/// A compact reply (BEP 23).
fn reply() -> Vec<u8> {
    let mut reply = b"d8:completei900e10:incompletei100e8:intervali1800e5:peers3000:".to_vec();
    for number in 0..PEER_COUNT as u16 {
        reply.extend([10, 1]);
        reply.extend(number.to_be_bytes());
        reply.extend(6881_u16.to_be_bytes());
    }
    reply.push(b'e');
    reply
}
