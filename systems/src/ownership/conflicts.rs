//! Conflicts: whether a new torrent may use files that another torrent uses.

use std::sync::Arc;

use ecs_torrent_components::commands::AddError;
use ecs_torrent_engine::ports::disk::FoundFile;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::files::FileEntry;
use ecs_torrent_protocol::geometry::Geometry;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::metainfo::Info;

use super::whole::is_whole;
use super::{FileKey, FileRegistry, FolderKeys, Owner};

/// A torrent that is to be added, with its files as they were found.
pub(crate) struct Candidate<'a> {
    pub(crate) torrent: InfoHash,
    pub(crate) name: &'a Arc<str>,
    pub(crate) info: &'a Info,
    pub(crate) keys: &'a FolderKeys<'a>,
    pub(crate) found: &'a [Option<FoundFile>],
}

/// The content and the held pieces of a running torrent.
#[derive(Clone, Copy)]
pub(crate) struct Holder<'a> {
    pub(crate) info: &'a Info,
    pub(crate) have: &'a Bitfield,
}

/// Finds a file of the new torrent that conflicts with another torrent. There is no conflict where the other torrent
/// holds all of the file with the same content, as far as that can be told without reading: then both may read it, and
/// neither writes it.
///
/// `holder` returns the content and the held pieces of a torrent, if it runs.
pub(crate) fn find_conflict<'a>(
    registry: &FileRegistry,
    candidate: &Candidate<'_>,
    holder: impl Fn(InfoHash) -> Option<Holder<'a>>,
) -> Option<AddError> {
    let files = candidate.info.files.files().iter().enumerate();
    for (index, file) in files.filter(|(_, file)| file.is_stored() && file.len > 0) {
        let found = candidate.found.get(index).copied().flatten();
        let id = found.map(|found| FileKey::of_id(found.id));
        let keys = candidate.keys.all(&file.path).chain(id);
        for (key, owner) in keys.flat_map(|key| registry.others(key, candidate.torrent).map(move |owner| (key, owner)))
        {
            let is_there = found.is_some_and(|found| found.stamp.len == file.len);
            let is_held = match holder(owner.torrent) {
                Some(holder) => holds(owner, key, &holder, candidate.info, file),
                None => owner.held(key),
            };
            if !(is_there && is_held) {
                return Some(AddError::FilesTaken {
                    torrent: candidate.name.clone(),
                    other: owner.name.clone(),
                    path: file.path.clone(),
                });
            }
        }
    }
    None
}

/// Whether a running torrent holds all of a file, and nothing is known to differ.
fn holds(owner: &Owner, key: FileKey, holder: &Holder<'_>, info: &Info, file: &FileEntry) -> bool {
    let theirs = owner
        .file_of(key)
        .and_then(|index| holder.info.files.files().get(index));
    theirs.is_some_and(|theirs| {
        theirs.len == file.len
            && is_whole(theirs, &holder.info.geometry, holder.have)
            && !is_known_to_differ((holder.info, theirs), (info, file))
    })
}

/// Compares the hashes of pieces that lie entirely in the file and begin at the same offset of it in both torrents.
/// Without such pieces, only reading can tell.
fn is_known_to_differ((a, a_file): (&Info, &FileEntry), (b, b_file): (&Info, &FileEntry)) -> bool {
    let length = u64::from(a.geometry.piece_length());
    if length != u64::from(b.geometry.piece_length()) || a_file.offset % length != b_file.offset % length {
        return false;
    }
    let (a_inner, b_inner) = (inner(a_file, &a.geometry), inner(b_file, &b.geometry));
    a_inner
        .zip(b_inner)
        .any(|(a_piece, b_piece)| a.expected_digest(a_piece) != b.expected_digest(b_piece))
}

/// Returns the pieces that lie entirely in a file.
fn inner<'g>(file: &FileEntry, geometry: &'g Geometry) -> impl Iterator<Item = u32> + use<'g> {
    let (start, end) = (file.offset, file.end());
    let pieces = geometry.pieces_of(start..end);
    pieces.filter(move |piece| {
        let span = geometry.piece_span(*piece);
        span.offset >= start && span.end() <= end
    })
}
