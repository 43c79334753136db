//! Verifying files against a torrent, without an engine.

use std::path::Path;

use ecs_torrent_protocol::metainfo::Metainfo;

use crate::hashing::hash_pieces;

/// Result of a verification.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// Pieces with the right hash.
    pub good: u32,
    /// Pieces with another hash, or whose bytes are missing.
    pub bad: u32,
    /// The first reasons why bytes could not be read, without duplicates. Missing data is not a reason.
    pub errors: Vec<String>,
}

impl Verdict {
    /// Returns whether all data is present and correct.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.bad == 0
    }
}

/// Most reasons that are kept.
const MAX_ERRORS: usize = 10;

/// Hashes a torrent's files below `root` on all processors. `on_bytes` receives the number of bytes hashed so far.
#[must_use]
pub fn verify(metainfo: &Metainfo, root: &Path, on_bytes: &(dyn Fn(u64) + Sync)) -> Verdict {
    let info = &metainfo.info;
    let mut verdict = Verdict::default();
    for (piece, result) in (0..).zip(hash_pieces(root, &info.files, &info.geometry, on_bytes)) {
        match result {
            Ok(digest) if info.pieces.get(piece) == Some(&digest) => verdict.good += 1,
            Ok(_) => verdict.bad += 1,
            Err(error) => {
                verdict.bad += 1;
                let text = error.to_string();
                if !error.is_absence() && verdict.errors.len() < MAX_ERRORS && !verdict.errors.contains(&text) {
                    verdict.errors.push(text);
                }
            }
        }
    }
    verdict
}
