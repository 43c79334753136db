//! Files of which a torrent has every byte.

use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::files::{FileEntry, FileTable};
use ecs_torrent_protocol::geometry::Geometry;

/// Returns the files of which every byte is verified.
pub(crate) fn whole_files(files: &FileTable, geometry: &Geometry, have: &Bitfield) -> Bitfield {
    let mut whole = Bitfield::new(files.files().len() as u32);
    for (index, file) in (0..).zip(files.files()) {
        if is_whole(file, geometry, have) {
            whole.insert(index);
        }
    }
    whole
}

/// Whether every byte of a file is verified.
pub(super) fn is_whole(file: &FileEntry, geometry: &Geometry, have: &Bitfield) -> bool {
    geometry
        .pieces_of(file.offset..file.end())
        .all(|piece| have.contains(piece))
}
