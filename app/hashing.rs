//! Hashing files in parallel, without an engine.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ecs_torrent_components::ids::StorageId;
use ecs_torrent_engine::backends::disk::{FileBuffers, FileCache, Files};
use ecs_torrent_engine::ports::disk::DiskError;
use ecs_torrent_protocol::files::FileTable;
use ecs_torrent_protocol::geometry::{Geometry, Span};
use ecs_torrent_protocol::hash::Sha1Digest;
use rayon::prelude::*;
use sha1::{Digest as _, Sha1};

/// Bytes read at a time: small enough to be hashed while they are in the cache.
const READ_BYTES: u32 = 128 << 10;

/// Files kept open.
const MAX_OPEN: usize = 128;

/// Hashes every piece of the files below `root`, on all processors; `on_bytes` hears how many bytes are done, from
/// any thread.
pub(crate) fn hash_pieces(
    root: &Path,
    table: &FileTable,
    geometry: &Geometry,
    on_bytes: &(dyn Fn(u64) + Sync),
) -> Vec<Result<Sha1Digest, DiskError>> {
    let cache = Arc::new(FileCache::new(MAX_OPEN));
    let files = Files::new(StorageId(0), root.to_owned(), None, table.clone(), cache);
    let buffers = FileBuffers::default();
    let done = AtomicU64::new(0);
    let hash_piece = |piece: u32| {
        let mut hasher = Sha1::new();
        let Span { mut offset, len } = geometry.piece_span(piece);
        let end = offset + u64::from(len);
        while offset < end {
            let len = (end - offset).min(u64::from(READ_BYTES)) as u32;
            hasher.update(files.read(Span { offset, len }, &buffers)?);
            offset += u64::from(len);
        }
        on_bytes(done.fetch_add(u64::from(len), Ordering::Relaxed) + u64::from(len));
        Ok(hasher.finalize().into())
    };
    (0..geometry.piece_count()).into_par_iter().map(hash_piece).collect()
}
