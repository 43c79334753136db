//! Verifying files against a torrent, without an engine.

use std::path::Path;

use ecs_torrent_protocol::bitfield::Bitfield;
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
    /// The files with bad pieces, in the order of the torrent.
    pub files: Vec<BadFile>,
}

/// A file with bad pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadFile {
    /// Path below the folder.
    pub path: String,
    /// Number of bad pieces that contain bytes of the file. They may be bad because of a neighbor.
    pub bad: u32,
    /// Number of pieces that contain bytes of the file.
    pub pieces: u32,
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

/// Returns the files that have bytes in bad pieces.
fn bad_files(info: &Info, bad: &Bitfield) -> Vec<BadFile> {
    let stored = info
        .files
        .files()
        .iter()
        .filter(|file| file.is_stored() && file.len > 0);
    let counted = stored.map(|file| {
        let pieces = info.geometry.pieces_of(file.offset..file.end());
        let bad = pieces.clone().filter(|piece| bad.contains(*piece)).count();
        BadFile {
            path: file.path.to_string(),
            // There are at most as many as pieces.
            bad: bad as u32,
            pieces: pieces.end - pieces.start,
        }
    });
    counted.filter(|file| file.bad > 0).collect()
}

/// Maximum number of reasons that are kept.
const MAX_ERRORS: usize = 10;

/// Hashes a torrent's files below `root` on all processors. `on_bytes` receives the number of bytes hashed so far.
#[must_use]
pub fn verify(metainfo: &Metainfo, root: &Path, on_bytes: &(dyn Fn(u64) + Sync)) -> Verdict {
    let info = &metainfo.info;
    let mut verdict = Verdict::default();
    let mut bad = Bitfield::new(info.geometry.piece_count());
    for (piece, result) in (0..).zip(hash_pieces(root, &info.files, &info.geometry, on_bytes)) {
        match result {
            Ok(digest) if info.pieces.get(piece) == Some(&digest) => verdict.good += 1,
            Ok(_) => {
                bad.insert(piece);
            }
            Err(error) => {
                bad.insert(piece);
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
    verdict.bad = bad.count();
    verdict.files = bad_files(info, &bad);
    verdict
}
