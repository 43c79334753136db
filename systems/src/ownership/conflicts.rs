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

/// Finds a file of the new torrent that conflicts with another torrent. There is no conflict if the other torrent holds
/// the whole file and nothing shows, without reading, that the content differs: then both may read the file, and
/// neither writes it.
///
/// `holder` returns the content and the held pieces of a torrent, if it runs.
pub(crate) fn find_conflict<'a>(
    registry: &FileRegistry,
    candidate: &Candidate<'_>,
    holder: impl Fn(InfoHash) -> Option<Holder<'a>>,
) -> Option<AddError> {
    let files = candidate.info.files.files().iter().enumerate();
    for (index, file) in files.filter(|(_, file)| file.has_bytes()) {
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bytes::Bytes;
    use ecs_torrent_components::session::{FileId, FileStamp};
    use ecs_torrent_engine::ports::disk::Provenance;
    use ecs_torrent_protocol::metainfo::{Metainfo, MetainfoLimits};

    use super::*;

    const PIECE: u64 = 16 << 10;

    /// A torrent of `files` over pieces of 16 KiB. The hash of each piece is one byte, repeated.
    fn torrent(files: &[(&str, u64)], pieces: &[u8]) -> Metainfo {
        let file = |(name, len): &(&str, u64)| format!("d6:lengthi{len}e4:pathl{}:{name}ee", name.len());
        let files: String = files.iter().map(file).collect();
        let (count, len) = (PIECE, pieces.len() * 20);
        let head = format!("d4:infod5:filesl{files}e4:name1:t12:piece lengthi{count}e6:pieces{len}:");
        let digests = pieces.iter().flat_map(|piece| [*piece; 20]);
        let bytes: Vec<u8> = head.bytes().chain(digests).chain(*b"ee").collect();
        Metainfo::parse(&Bytes::from(bytes), &MetainfoLimits::default()).unwrap()
    }

    /// Whether `added` may read the files of a running torrent in the same folder, which lacks some pieces. Files
    /// without bytes are not there.
    fn may_share(running: &Metainfo, lacking: &[u32], added: &Metainfo) -> bool {
        let keys = FolderKeys::new(Path::new("/downloads"));
        let mut registry = FileRegistry::default();
        let other = running.hashes.primary();
        let owned = keys.of_table(&running.info.files, |_| None);
        registry.set(other, &"running".into(), owned);
        let mut have = Bitfield::full(running.info.geometry.piece_count());
        for piece in lacking {
            have.remove(*piece);
        }
        let found = added.info.files.files().iter().zip(1..).map(|(file, inode)| {
            (file.len > 0).then_some(FoundFile {
                stamp: FileStamp {
                    len: file.len,
                    seconds: 1,
                    nanos: 0,
                    changed_ns: None,
                },
                id: FileId {
                    device: 1,
                    inode,
                    born_ns: None,
                },
                provenance: Provenance::Found,
            })
        });
        let candidate = Candidate {
            torrent: added.hashes.primary(),
            name: &"added".into(),
            info: &added.info,
            keys: &keys,
            found: &found.collect::<Vec<_>>(),
        };
        let holder = |torrent| {
            (torrent == other).then_some(Holder {
                info: &running.info,
                have: &have,
            })
        };
        find_conflict(&registry, &candidate, holder).is_none()
    }

    #[test]
    fn only_whole_files_of_the_same_length_and_content_are_shared() {
        let running = torrent(&[("x", 2 * PIECE), ("a", PIECE)], &[1, 2, 3]);
        let added = |pieces| torrent(&[("x", 2 * PIECE), ("b", PIECE)], pieces);
        assert!(may_share(&running, &[], &added(&[1, 2, 9])));
        assert!(may_share(&running, &[2], &added(&[1, 2, 9])), "it lacks none of x");
        assert!(!may_share(&running, &[1], &added(&[1, 2, 9])), "it lacks a part of x");
        assert!(!may_share(&running, &[], &added(&[1, 4, 9])), "a piece of x differs");
        let shorter = torrent(&[("x", PIECE), ("b", PIECE)], &[1, 9]);
        assert!(!may_share(&running, &[], &shorter));
    }

    #[test]
    fn only_pieces_that_lie_alike_in_the_file_are_compared() {
        // The pieces at the ends of x hold bytes of its neighbors too.
        let lengths = [PIECE / 2, 2 * PIECE, PIECE / 2];
        let table = |names: [&'static str; 3]| [0, 1, 2].map(|index| (names[index], lengths[index]));
        let running = torrent(&table(["a", "x", "b"]), &[1, 2, 3]);
        let added = |pieces| torrent(&table(["c", "x", "d"]), pieces);
        assert!(may_share(&running, &[], &added(&[7, 2, 8])));
        assert!(!may_share(&running, &[], &added(&[7, 9, 8])));
        // x begins at a piece in both torrents, though not at the same one.
        let first = torrent(&[("x", 2 * PIECE), ("a", 1)], &[1, 2, 3]);
        let second = |pieces| torrent(&[("b", PIECE), ("x", 2 * PIECE)], pieces);
        assert!(may_share(&first, &[], &second(&[7, 1, 2])));
        assert!(!may_share(&first, &[], &second(&[7, 1, 9])));
        assert!(!may_share(&second(&[7, 1, 9]), &[], &first));
        // x begins in the middle of a piece in one of them: only reading can tell.
        let shifted = torrent(&[("b", 5), ("x", 2 * PIECE)], &[7, 8, 9]);
        assert!(may_share(&first, &[], &shifted));
        assert!(may_share(&shifted, &[], &first));
    }

    #[test]
    fn an_empty_file_is_no_conflict() {
        let one = torrent(&[("a", PIECE), ("empty", 0)], &[1]);
        let two = torrent(&[("b", PIECE), ("empty", 0)], &[2]);
        assert!(may_share(&one, &[0], &two));
    }
}
