//! Hashing files in parallel, without an engine.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use ecs_torrent_components::ids::StorageId;
use ecs_torrent_engine::backends::disk::{FileBuffers, Files, SharedFiles};
use ecs_torrent_engine::ports::disk::{DiskError, ReadPurpose};
use ecs_torrent_protocol::files::FileTable;
use ecs_torrent_protocol::geometry::{Geometry, Span};
use ecs_torrent_protocol::hash::Sha1Digest;
use ecs_torrent_protocol::sha1_pair::Sha1Pair;
use rayon::prelude::*;

/// Bytes read at a time: small enough to be hashed while they are in the cache.
const READ_BYTES: u32 = 128 << 10;

/// Files kept open.
const MAX_OPEN: usize = 128;

/// Hashes every piece of the files below `root` on all processors. `on_bytes` receives the number of bytes hashed so
/// far, from any thread.
pub(crate) fn hash_pieces(
    root: &Path,
    table: &FileTable,
    geometry: &Geometry,
    on_bytes: &(dyn Fn(u64) + Sync),
) -> Vec<Result<Sha1Digest, DiskError>> {
    let shared = Arc::new(SharedFiles::new(MAX_OPEN));
    let files = Files::new(StorageId(0), root, None, table.clone(), shared);
    let buffers = FileBuffers::default();
    let done = AtomicU64::new(0);
    let hash_two = |first: u32| {
        // Hashing two pieces together takes little longer than hashing one.
        let mut pieces = [first, first + 1].map(|piece| Reading {
            rest: match piece < geometry.piece_count() {
                true => geometry.piece_span(piece),
                false => Span { offset: 0, len: 0 },
            },
            error: None,
        });
        let len: u64 = pieces.iter().map(|piece| u64::from(piece.rest.len)).sum();
        let mut hashes = Sha1Pair::default();
        while pieces.iter().any(|piece| piece.rest.len > 0) {
            let parts = pieces.each_mut().map(|piece| piece.read(&files, &buffers));
            hashes.update(parts.each_ref().map(|part| &part[..]));
        }
        on_bytes(done.fetch_add(len, Ordering::Relaxed) + len);
        pieces
            .into_iter()
            .zip(hashes.finish())
            .map(|(piece, digest)| piece.error.map_or(Ok(digest), Err))
    };
    let count = geometry.piece_count();
    let pairs = (0..count.div_ceil(2)).into_par_iter();
    let mut digests: Vec<_> = pairs.flat_map_iter(|pair| hash_two(2 * pair)).collect();
    digests.truncate(count as usize);
    digests
}

/// A piece that is being read.
struct Reading {
    rest: Span,
    error: Option<DiskError>,
}

impl Reading {
    /// Returns the next bytes; empty after the last ones or after an error.
    fn read(&mut self, files: &Files, buffers: &FileBuffers) -> Bytes {
        let Span { offset, len } = self.rest;
        let now = len.min(READ_BYTES);
        if now == 0 {
            return Bytes::new();
        }
        self.rest = Span {
            offset: offset + u64::from(now),
            len: len - now,
        };
        files
            .read(Span { offset, len: now }, ReadPurpose::Check, buffers)
            .unwrap_or_else(|error| {
                self.rest.len = 0;
                self.error = Some(error);
                Bytes::new()
            })
    }
}
