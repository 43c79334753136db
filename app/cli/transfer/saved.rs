//! The bytes that a stopped torrent still lacks, read from its saved state.

use std::path::{Path, PathBuf};

use ecs_torrent::TorrentId;
use ecs_torrent::components::session::Session;
use ecs_torrent::engine::backends::whole_file::read_file;
use ecs_torrent::protocol::geometry::Geometry;

/// Longest saved state that is read, in bytes.
const MAX_SESSION_BYTES: u64 = 512 << 20;

/// Returns the file with the saved state of a torrent.
pub(super) fn session_path(state_dir: &Path, torrent: TorrentId) -> PathBuf {
    state_dir.join("state").join(format!("{torrent}.ron"))
}

/// Returns the bytes that the next run has to download. `None` if the saved state cannot be read, or if the user does
/// not want all files: the state alone does not tell where the wanted ones lie.
pub(super) fn missing_bytes(state_dir: &Path, torrent: TorrentId) -> Option<u64> {
    let bytes = read_file(&session_path(state_dir, torrent), MAX_SESSION_BYTES).ok()?;
    let session = Session::parse(&bytes, torrent.0).ok()?;
    if !session.skipped.is_empty() || !session.selected.is_empty() {
        return None;
    }
    let geometry = Geometry::new(session.total_size, session.piece_length)?;
    let have = session.have.to_set(geometry.piece_count())?;
    let mut missing = geometry.total_size().checked_sub(geometry.size_of(&have))?;
    let partial = session.partial.iter();
    for piece in partial.filter(|piece| piece.piece < geometry.piece_count() && !have.contains(piece.piece)) {
        let blocks = piece.blocks.to_set(geometry.block_count(piece.piece))?;
        let bytes = blocks
            .iter()
            .map(|block| u64::from(geometry.block(piece.piece, block).len));
        missing = missing.saturating_sub(bytes.sum());
    }
    Some(missing)
}
