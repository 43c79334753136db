//! Verifying files against a torrent, without an engine.

use std::path::Path;

use ecs_torrent_protocol::metainfo::{Info, Metainfo};

use crate::hashing::hash_pieces;

/// Result of a verification.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// Pieces with the right hash.
    pub good: u32,
    /// Pieces with another hash, or whose bytes are missing.
    pub bad: u32,
    /// The first reasons why pieces are bad, without duplicates: files that are missing or cannot be read. A piece with
    /// wrong bytes is only counted.
    pub errors: Vec<String>,
}

impl Verdict {
    /// Returns whether all data is present and correct.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.bad == 0
    }
}

/// Names the files of a piece that are missing or too short.
fn missing(root: &Path, info: &Info, piece: u32) -> Vec<String> {
    let span = info.geometry.piece_span(piece);
    let files = info.files.files().iter().filter(|file| file.is_stored());
    let files = files.filter(|file| file.offset < span.end() && file.end() > span.offset);
    let missing = files.filter_map(|file| match std::fs::metadata(root.join(&*file.path)) {
        Ok(found) if found.len() < file.len => {
            Some(format!("{}: has {} of {} bytes", file.path, found.len(), file.len))
        }
        Ok(_) => None,
        Err(_) => Some(format!("{}: missing", file.path)),
    });
    missing.take(MAX_ERRORS).collect()
}

/// Maximum number of reasons that are kept.
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
                let mut reasons = match error.is_absence() {
                    true => missing(root, info, piece),
                    false => Vec::new(),
                };
                if reasons.is_empty() {
                    reasons.push(error.to_string());
                }
                for reason in reasons {
                    if verdict.errors.len() < MAX_ERRORS && !verdict.errors.contains(&reason) {
                        verdict.errors.push(reason);
                    }
                }
            }
        }
    }
    verdict
}
