//! Evaluation of existing data: the pieces that the session and the files confirm, and the pieces that have to be
//! hashed.

use std::collections::BTreeSet;

use ecs_torrent_components::session::{FileStamp, Session};
use ecs_torrent_engine::ports::disk::border_pieces;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::files::FileTable;
use ecs_torrent_protocol::geometry::Geometry;

/// The combined result of a session and the files.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Findings {
    /// Pieces that are trusted.
    pub(super) have: Bitfield,
    /// Pieces that have to be hashed.
    pub(super) doubtful: Vec<u32>,
}

impl Findings {
    /// Lets pieces be hashed whatever the session and the files say.
    pub(super) fn doubt(&mut self, pieces: &Bitfield) {
        let mut doubtful: BTreeSet<u32> = self.doubtful.drain(..).collect();
        let count = self.have.len();
        for piece in pieces.iter().filter(|piece| *piece < count) {
            self.have.remove(piece);
            doubtful.insert(piece);
        }
        self.doubtful.extend(doubtful);
    }

    /// Takes pieces as held without a check if all of their files have the right length. Returns these pieces.
    pub(super) fn take_unverified(
        &mut self,
        stamps: &[Option<FileStamp>],
        geometry: &Geometry,
        files: &FileTable,
    ) -> Bitfield {
        let mut doubtful: BTreeSet<u32> = BTreeSet::new();
        for (file, stamp) in files.files().iter().zip(stamps).filter(|(file, _)| file.has_bytes()) {
            if stamp.map(|stamp| stamp.len) != Some(file.len) {
                doubtful.extend(geometry.pieces_of(file.offset..file.end()));
            }
        }
        let mut taken = Bitfield::new(self.have.len());
        for piece in self.doubtful.iter().filter(|piece| !doubtful.contains(piece)) {
            taken.insert(*piece);
        }
        self.doubtful.retain(|piece| doubtful.contains(piece));
        self.have.insert_all(&taken);
        taken
    }
}

/// Trusts a session where each file matches it; pieces in other files are in doubt.
pub(super) fn evaluate(
    session: Option<&Session>,
    stamps: &[Option<FileStamp>],
    geometry: &Geometry,
    files: &FileTable,
    is_parted: impl Fn(usize) -> bool,
) -> Findings {
    let count = geometry.piece_count();
    let file_count = files.files().len();
    let known = session.and_then(|session| Some((session, session.have.to_set(count)?)));
    let Some((session, mut have)) =
        known.filter(|(session, _)| session.files.len() >= file_count && stamps.len() >= file_count)
    else {
        let is_any_there = stamps.iter().flatten().any(|stamp| stamp.len > 0);
        return Findings {
            have: Bitfield::new(count),
            doubtful: if is_any_there { (0..count).collect() } else { Vec::new() },
        };
    };
    let mut in_doubt = Bitfield::new(count);
    let is_same = |saved: &Option<FileStamp>, found: &Option<FileStamp>| matches!((saved, found), (Some(saved), Some(found)) if saved.matches(found));
    // The part file follows the torrent's files.
    let part_of = |stamps: &[Option<FileStamp>]| stamps.get(file_count).copied().flatten();
    let (saved_part, found_part) = (part_of(&session.files), part_of(stamps));
    let has_part = is_same(&saved_part, &found_part) || (saved_part.is_none() && found_part.is_none());
    let all = files.files().iter().zip(&session.files).zip(stamps).enumerate();
    for (index, ((file, saved), found)) in all.filter(|(_, ((file, _), _))| file.len > 0) {
        if !has_part && is_parted(index) {
            for piece in border_pieces(file, geometry.piece_length().into(), geometry.total_size()) {
                have.remove(piece);
                in_doubt.insert(piece);
            }
        }
        if is_same(saved, found) {
            continue;
        }
        // The bytes of a parted file in border pieces are in the part file.
        let elsewhere: Vec<u32> = match has_part && is_parted(index) {
            true => border_pieces(file, geometry.piece_length().into(), geometry.total_size()).collect(),
            false => Vec::new(),
        };
        let pieces = geometry.pieces_of(file.offset..file.end());
        for piece in pieces.filter(|piece| !elsewhere.contains(piece)) {
            // If a file is absent in the session and on the disk, only the pieces that the session lists as held are in
            // doubt.
            if have.remove(piece) || saved != found {
                in_doubt.insert(piece);
            }
        }
    }
    Findings {
        have,
        doubtful: in_doubt.iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use ecs_torrent_components::session::Runs;
    use ecs_torrent_protocol::files::FileEntry;

    use super::*;

    const SEEN: FileStamp = FileStamp {
        len: 15,
        seconds: 7,
        nanos: 1,
        changed_ns: Some(9),
    };

    /// Three files of 15 bytes over pieces of 10: the second piece is shared by the first two files.
    fn files() -> FileTable {
        let entry = |number: u64| FileEntry {
            path: number.to_string().into(),
            len: 15,
            offset: number * 15,
            attributes: Default::default(),
        };
        FileTable::new((0..3).map(entry).collect())
    }

    fn session(have: &[u32], files: [Option<FileStamp>; 3]) -> Session {
        Session {
            have: Runs::of(have.iter().copied()),
            files: files.to_vec(),
            ..crate::testing::session()
        }
    }

    fn evaluated(session: Option<&Session>, stamps: [Option<FileStamp>; 3]) -> (Vec<u32>, Vec<u32>) {
        let geometry = Geometry::new(45, 10).unwrap();
        let Findings { have, doubtful } = evaluate(session, &stamps, &geometry, &files(), |_| false);
        (have.iter().collect(), doubtful)
    }

    #[test]
    fn a_session_is_believed_where_the_files_are_as_it_says() {
        let saved = session(&[0, 1, 2], [Some(SEEN), Some(SEEN), None]);
        assert_eq!(
            evaluated(Some(&saved), [Some(SEEN), Some(SEEN), None]),
            (vec![0, 1, 2], vec![])
        );
    }

    #[test]
    fn only_what_is_in_doubt_is_hashed() {
        let saved = session(&[0, 1, 2, 3, 4], [Some(SEEN); 3]);
        let touched = FileStamp { nanos: 2, ..SEEN };
        assert_eq!(
            evaluated(Some(&saved), [Some(SEEN), Some(SEEN), Some(touched)]),
            (vec![0, 1, 2], vec![3, 4])
        );
        // The modification time can be set back, the time of the last change cannot.
        let set_back = FileStamp {
            changed_ns: Some(10),
            ..SEEN
        };
        let stamps = [Some(SEEN), Some(SEEN), Some(set_back)];
        assert_eq!(evaluated(Some(&saved), stamps), (vec![0, 1, 2], vec![3, 4]));
        // Fault 81: pieces of a missing file are hashed and not trusted.
        assert_eq!(
            evaluated(Some(&saved), [None, Some(SEEN), Some(SEEN)]),
            (vec![2, 3, 4], vec![0, 1])
        );
        // A file that the session does not confirm.
        let lost = session(&[0, 1, 2, 3, 4], [Some(SEEN), Some(SEEN), None]);
        assert_eq!(
            evaluated(Some(&lost), [Some(SEEN), Some(SEEN), None]),
            (vec![0, 1, 2], vec![3, 4])
        );
        // A file written after the session: its contents are unverified.
        let fresh = session(&[], [None; 3]);
        assert_eq!(evaluated(Some(&fresh), [None, None, Some(SEEN)]), (vec![], vec![3, 4]));
    }

    #[test]
    fn a_check_of_some_pieces_leaves_the_others() {
        let geometry = Geometry::new(45, 10).unwrap();
        let saved = session(&[0, 1, 2, 3], [Some(SEEN); 3]);
        let touched = FileStamp { nanos: 2, ..SEEN };
        let stamps = [Some(touched), Some(SEEN), Some(SEEN)];
        let mut findings = evaluate(Some(&saved), &stamps, &geometry, &files(), |_| false);
        assert_eq!(findings.doubtful, [0, 1]);
        let mut pieces = Bitfield::new(5);
        for piece in [1, 3, 4] {
            pieces.insert(piece);
        }
        findings.doubt(&pieces);
        let Findings { have, doubtful } = findings;
        assert_eq!((have.iter().collect(), doubtful), (vec![2], vec![0, 1, 3, 4]));
    }

    #[test]
    fn only_files_of_the_right_length_are_taken_without_a_check() {
        let geometry = Geometry::new(45, 10).unwrap();
        let long = FileStamp { len: 16, ..SEEN };
        for (stamps, have, in_doubt) in [
            ([Some(SEEN); 3], vec![0, 1, 2, 3, 4], vec![]),
            ([Some(SEEN), Some(long), Some(SEEN)], vec![0, 3, 4], vec![1, 2]),
            ([None, Some(SEEN), Some(SEEN)], vec![2, 3, 4], vec![0, 1]),
            ([None; 3], vec![], vec![]),
        ] {
            let mut findings = evaluate(None, &stamps, &geometry, &files(), |_| false);
            let taken = findings.take_unverified(&stamps, &geometry, &files());
            assert_eq!(taken.iter().collect::<Vec<_>>(), have);
            assert_eq!(findings.have.iter().collect::<Vec<_>>(), have);
            assert_eq!(findings.doubtful, in_doubt);
        }
    }

    #[test]
    fn without_a_session_all_that_is_there_is_hashed() {
        assert_eq!(evaluated(None, [None; 3]), (vec![], vec![]));
        assert_eq!(evaluated(None, [None, Some(SEEN), None]), (vec![], vec![0, 1, 2, 3, 4]));
        let empty = FileStamp { len: 0, ..SEEN };
        assert_eq!(evaluated(None, [Some(empty); 3]), (vec![], vec![]), "no byte to hash");
        let mut cut = session(&[0, 1], [Some(SEEN); 3]);
        cut.files.clear();
        assert_eq!(evaluated(Some(&cut), [Some(SEEN); 3]), (vec![], vec![0, 1, 2, 3, 4]));
        let mut wrong = session(&[0, 1], [Some(SEEN); 3]);
        wrong.have = Runs::of([7]);
        assert_eq!(evaluated(Some(&wrong), [Some(SEEN); 3]).0, Vec::<u32>::new());
    }
}
