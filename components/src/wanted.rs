//! The files of a torrent that the user wants, and the pieces that follow from this choice.
//!
//! A torrent without a [`FileChoice`] wants all of its files equally, and has none of these components.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use bevy_ecs::prelude::*;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::files::FileTable;
use ecs_torrent_protocol::geometry::Geometry;
use serde::{Deserialize, Serialize};

use crate::selection::FileSelection;
use crate::session::{Runs, Session};
use crate::torrent::Have;

/// The priority of a file, or of a piece: that of its most important file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FilePriority {
    /// The file is not wanted.
    Skip,
    /// The file is downloaded after all files of a higher priority.
    Low,
    /// The file is wanted.
    #[default]
    Normal,
    /// The file is downloaded before all files of a lower priority.
    High,
}

impl FilePriority {
    /// All priorities, ascending.
    pub const ALL: [Self; 4] = [Self::Skip, Self::Low, Self::Normal, Self::High];

    /// Returns the priority's name, as the JSON and the command line show it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }

    /// Whether a file of this priority is downloaded.
    #[must_use]
    pub fn is_wanted(self) -> bool {
        self != Self::Skip
    }
}

impl fmt::Display for FilePriority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is not a priority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a priority: use skip, low, normal or high")]
pub struct UnknownPriority(pub String);

impl FromStr for FilePriority {
    type Err = UnknownPriority;

    fn from_str(text: &str) -> Result<Self, UnknownPriority> {
        let named = Self::ALL.into_iter().find(|priority| priority.name() == text);
        named.ok_or_else(|| UnknownPriority(text.to_owned()))
    }
}

/// The order in which pieces of equal priority are requested, as the user chose it. By default the rarest come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PieceOrder {
    /// Pieces are requested in the order of the files, so that the beginning can be used early. This is worse for the
    /// swarm, because rare pieces are not distributed first.
    pub sequential: bool,
    /// The first and last pieces of each wanted file come first, because players look for the file's index there.
    pub ends_first: bool,
}

/// A change of a torrent's [`PieceOrder`]. `None` leaves a part as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PieceOrderChange {
    /// The new value of [`PieceOrder::sequential`].
    pub sequential: Option<bool>,
    /// The new value of [`PieceOrder::ends_first`].
    pub ends_first: Option<bool>,
}

impl PieceOrderChange {
    /// Returns the order after the change.
    #[must_use]
    pub fn apply(self, order: PieceOrder) -> PieceOrder {
        PieceOrder {
            sequential: self.sequential.unwrap_or(order.sequential),
            ends_first: self.ends_first.unwrap_or(order.ends_first),
        }
    }
}

/// The user's intent for the files of a torrent. Saved in the session.
#[derive(Component, Debug, Clone, PartialEq, Eq, Default)]
pub struct FileChoice {
    /// The files that the user selected before they were known.
    selection: Option<FileSelection>,
    /// The priorities by index. Files beyond the end have the default priority.
    priorities: Vec<FilePriority>,
    /// The order of pieces of equal priority.
    pub order: PieceOrder,
}

impl FileChoice {
    /// The choice of selected files. It takes effect when the files are known.
    #[must_use]
    pub fn selecting(selection: FileSelection) -> Self {
        Self {
            selection: Some(selection).filter(|selection| !selection.is_empty()),
            ..Self::default()
        }
    }

    /// Returns the choice after an add with a selection and an order. An empty selection leaves the files as they are.
    #[must_use]
    pub fn with_selection(self, selection: FileSelection, order: PieceOrder) -> Self {
        match selection.is_empty() {
            true => Self { order, ..self },
            false => Self {
                order,
                ..Self::selecting(selection)
            },
        }
    }

    /// Writes the choice into a session.
    pub fn save(&self, session: &mut Session) {
        session.selected = self.selection.clone().unwrap_or_default();
        session.skipped = self.runs_of(FilePriority::Skip);
        session.low = self.runs_of(FilePriority::Low);
        session.high = self.runs_of(FilePriority::High);
        session.sequential = self.order.sequential;
        session.ends_first = self.order.ends_first;
    }

    fn runs_of(&self, priority: FilePriority) -> Runs {
        let files = (0..).zip(&self.priorities);
        Runs::of(files.filter(|(_, of)| **of == priority).map(|(file, _)| file))
    }

    /// Whether all files are wanted equally, and pieces in the usual order.
    #[must_use]
    pub fn is_default(&self) -> bool {
        let is_default = |priority: &FilePriority| *priority == FilePriority::default();
        let has_order = self.order != PieceOrder::default();
        self.selection.is_none() && !has_order && self.priorities.iter().all(is_default)
    }

    /// Returns the priority of a file.
    #[must_use]
    pub fn priority(&self, file: usize) -> FilePriority {
        self.priorities.get(file).copied().unwrap_or_default()
    }

    /// Returns the files that are not wanted, of `count` files.
    #[must_use]
    pub fn skipped(&self, count: u32) -> Bitfield {
        let mut skipped = Bitfield::new(count);
        for (file, priority) in (0..).zip(&self.priorities) {
            if !priority.is_wanted() {
                skipped.insert(file);
            }
        }
        skipped
    }

    /// Sets the priority of a file.
    pub fn set(&mut self, file: usize, priority: FilePriority) {
        if file >= self.priorities.len() {
            if priority == FilePriority::default() {
                return;
            }
            self.priorities.resize(file + 1, FilePriority::default());
        }
        self.priorities[file] = priority;
    }

    /// Turns the selection into priorities, once the files are known. Returns false if the user selected files and the
    /// torrent has none of them.
    pub fn resolve(&mut self, files: &FileTable) -> bool {
        let Some(selection) = self.selection.take() else {
            return true;
        };
        let selected = selection.selected(files);
        for (file, is_selected) in selected.iter().enumerate() {
            if !is_selected {
                self.set(file, FilePriority::Skip);
            }
        }
        let mut stored = files.files().iter().zip(&selected);
        stored.any(|(file, is_selected)| file.is_stored() && *is_selected)
    }
}

/// The pieces that follow from a torrent's [`FileChoice`]: a piece is wanted if a wanted file has bytes in it.
#[derive(Component, Debug, Clone)]
pub struct WantedPieces {
    /// The priority of each piece.
    priorities: Box<[FilePriority]>,
    /// The pieces that are held or not wanted.
    unneeded: Bitfield,
    /// The first and last pieces of wanted files, if the user wants them first.
    ends: Option<Bitfield>,
}

impl WantedPieces {
    /// Derives the pieces from the choice. `have` are the held pieces.
    #[must_use]
    pub fn new(choice: &FileChoice, files: &FileTable, geometry: &Geometry, have: &Bitfield) -> Self {
        let count = geometry.piece_count() as usize;
        let mut priorities = vec![None; count];
        for (index, file) in files.files().iter().enumerate().filter(|(_, file)| file.has_bytes()) {
            let priority = Some(choice.priority(index));
            for piece in geometry.pieces_of(file.offset..file.end()) {
                let most = &mut priorities[piece as usize];
                *most = priority.max(*most);
            }
        }
        // Padding takes nothing from the network.
        let priorities = priorities.into_iter().map(Option::unwrap_or_default).collect();
        let mut wanted = Self {
            priorities,
            unneeded: Bitfield::default(),
            ends: choice.order.ends_first.then(|| ends_of(choice, files, geometry)),
        };
        wanted.record_found(have);
        wanted
    }

    /// Updates the pieces of files whose priority has changed. Returns the pieces whose place in the order has changed,
    /// ascending. The work is proportional to the sizes of these files and to the number of files that share a piece
    /// with them; with [`PieceOrder::ends_first`], before or after the change, to the size of the torrent.
    pub fn update(
        &mut self,
        choice: &FileChoice,
        changed: impl IntoIterator<Item = usize>,
        (files, geometry): (&FileTable, &Geometry),
        have: &Bitfield,
    ) -> Vec<u32> {
        if choice.order.ends_first || self.ends.is_some() {
            let before = std::mem::replace(self, Self::new(choice, files, geometry, have));
            let place = |wanted: &Self, piece| (wanted.priority(piece), wanted.is_end(piece));
            let is_changed = |piece: &u32| place(&before, *piece) != place(self, *piece);
            return (0..geometry.piece_count()).filter(is_changed).collect();
        }
        let mut pieces = BTreeSet::new();
        for file in changed {
            let file = files.files().get(file).filter(|file| file.has_bytes());
            pieces.extend(
                file.into_iter()
                    .flat_map(|file| geometry.pieces_of(file.offset..file.end())),
            );
        }
        let is_changed = |piece: &u32| {
            let span = geometry.piece_span(*piece);
            let places = files.slices(span).filter_map(|slice| slice.place);
            let most = places.map(|place| choice.priority(place.file)).max();
            let priority = most.unwrap_or_default();
            if priority.is_wanted() && !have.contains(*piece) {
                self.unneeded.remove(*piece);
            } else {
                self.unneeded.insert(*piece);
            }
            let before = &mut self.priorities[*piece as usize];
            std::mem::replace(before, priority) != priority
        };
        pieces.into_iter().filter(is_changed).collect()
    }

    /// Returns the priority of a piece.
    #[must_use]
    pub fn priority(&self, piece: u32) -> FilePriority {
        self.priorities.get(piece as usize).copied().unwrap_or_default()
    }

    /// Whether a piece is at an end of a wanted file, and the user wants these pieces first.
    #[must_use]
    pub fn is_end(&self, piece: u32) -> bool {
        self.ends.as_ref().is_some_and(|ends| ends.contains(piece))
    }

    /// Whether a piece is wanted, held or not.
    #[must_use]
    pub fn is_wanted(&self, piece: u32) -> bool {
        self.priority(piece).is_wanted()
    }

    /// Returns the pieces that are held or not wanted.
    #[must_use]
    pub fn unneeded(&self) -> &Bitfield {
        &self.unneeded
    }

    /// Returns the pieces that are wanted, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let pieces = (0..).zip(&self.priorities);
        pieces
            .filter(|(_, priority)| priority.is_wanted())
            .map(|(piece, _)| piece)
    }

    /// Records that a piece is held. Returns whether it was needed.
    pub fn record_stored(&mut self, piece: u32) -> bool {
        self.unneeded.insert(piece)
    }

    /// Records which pieces are held.
    pub fn record_found(&mut self, have: &Bitfield) {
        self.unneeded.clone_from(have);
        for (piece, priority) in (0..).zip(&self.priorities) {
            if !priority.is_wanted() {
                self.unneeded.insert(piece);
            }
        }
    }
}

impl Session {
    /// Returns the choice of files that the session contains; `None` if all files are wanted equally. `file_count` is
    /// the number of files of the torrent, 0 while they are not known.
    #[must_use]
    pub fn file_choice(&self, file_count: u32) -> Option<FileChoice> {
        let mut choice = FileChoice::selecting(self.selected.clone());
        choice.order = PieceOrder {
            sequential: self.sequential,
            ends_first: self.ends_first,
        };
        for (runs, priority) in [
            (&self.skipped, FilePriority::Skip),
            (&self.low, FilePriority::Low),
            (&self.high, FilePriority::High),
        ] {
            let files = runs.to_set(file_count).unwrap_or_default();
            files.iter().for_each(|file| choice.set(file as usize, priority));
        }
        (!choice.is_default()).then_some(choice)
    }

    /// Returns the choice of a torrent to which the session belongs. `given` is the choice that the user made since the
    /// program started: it replaces that of the session, but a choice of an order alone leaves the session's files.
    #[must_use]
    pub fn file_choice_after(&self, file_count: u32, given: Option<&FileChoice>) -> Option<FileChoice> {
        let saved = self.file_choice(file_count);
        match (given, saved) {
            (Some(given), Some(saved)) if given.selection.is_none() && given.priorities.is_empty() => {
                let order = given.order;
                Some(FileChoice { order, ..saved })
            }
            (Some(given), _) => Some(given.clone()),
            (None, saved) => saved,
        }
    }
}

/// Whether a torrent with this choice skips a file.
#[must_use]
pub fn is_skipped(choice: Option<&FileChoice>, file: usize) -> bool {
    choice.is_some_and(|choice| !choice.priority(file).is_wanted())
}

/// Returns the pieces that a torrent needs no longer: those that it holds, and those that it does not want.
#[must_use]
pub fn unneeded<'t>(have: &'t Have, wanted: Option<&'t WantedPieces>) -> &'t Bitfield {
    wanted.map_or(have, WantedPieces::unneeded)
}

/// Share of a file at each of its ends, as a divisor: the indexes of Matroska and MP4 files fit into one percent.
const END_DIVISOR: u64 = 100;

/// Maximum number of bytes at each end of a file, because indexes of long files are smaller than that.
const MAX_END_BYTES: u64 = 16 << 20;

/// Returns the first and last pieces of the wanted files: those with the first and last percent of each file's bytes.
fn ends_of(choice: &FileChoice, files: &FileTable, geometry: &Geometry) -> Bitfield {
    let mut ends = Bitfield::new(geometry.piece_count());
    let entries = files.files().iter().enumerate();
    for (_, file) in entries.filter(|(index, file)| file.has_bytes() && choice.priority(*index).is_wanted()) {
        let len = (file.len / END_DIVISOR).clamp(1, MAX_END_BYTES);
        let first = geometry.pieces_of(file.offset..file.offset + len);
        for piece in first.chain(geometry.pieces_of(file.end() - len..file.end())) {
            ends.insert(piece);
        }
    }
    ends
}

#[cfg(test)]
mod tests {
    use std::ops::RangeInclusive;

    use ecs_torrent_protocol::files::{FileAttributes, FileEntry};
    use ecs_torrent_protocol::hash::InfoHash;
    use proptest::prelude::*;

    use super::*;

    /// Files of these lengths, and their pieces of 10 bytes.
    fn files(lengths: &[u64]) -> (FileTable, Geometry) {
        let mut offset = 0;
        let entries = lengths.iter().enumerate().map(|(index, &len)| {
            offset += len;
            FileEntry {
                path: format!("album/{index}.{}", if index % 2 == 0 { "flac" } else { "txt" }).into(),
                len,
                offset: offset - len,
                attributes: FileAttributes::default(),
            }
        });
        let table = FileTable::new(entries.collect());
        let geometry = Geometry::new(table.total_size(), 10).unwrap();
        (table, geometry)
    }

    fn resolved(selection: FileSelection, files: &FileTable) -> (Vec<FilePriority>, bool) {
        let mut choice = FileChoice::selecting(selection);
        let has_any = choice.resolve(files);
        let priorities = (0..files.files().len()).map(|file| choice.priority(file));
        (priorities.collect(), has_any)
    }

    #[test]
    fn a_selection_names_files_by_index_and_by_pattern() {
        use FilePriority::{Normal, Skip};
        let (table, _) = files(&[5; 4]);
        let select = |ranges: &[RangeInclusive<u32>], globs: &[&str]| {
            let selection = FileSelection::new(ranges.iter().cloned(), globs.iter().copied()).unwrap();
            resolved(selection, &table)
        };
        assert_eq!(
            select(&[1..=2, 9..=u32::MAX], &[]),
            (vec![Skip, Normal, Normal, Skip], true)
        );
        assert_eq!(select(&[], &["*.flac"]), (vec![Normal, Skip, Normal, Skip], true));
        assert_eq!(
            select(&[3..=3], &["album/0.*"]),
            (vec![Normal, Skip, Skip, Normal], true)
        );
        assert_eq!(select(&[7..=8], &["*.mp3"]), (vec![Skip; 4], false), "no such file");
        assert_eq!(select(&[], &[]), (vec![Normal; 4], true), "nothing is said");
    }

    #[test]
    fn a_session_keeps_the_choice() {
        let session = Session::new(InfoHash([7; 20]));
        assert_eq!(session.file_choice(9), None);
        let mut choice = FileChoice::default();
        for (file, priority) in [
            (0, FilePriority::Skip),
            (1, FilePriority::Skip),
            (5, FilePriority::High),
        ] {
            choice.set(file, priority);
        }
        choice.set(3, FilePriority::Low);
        let mut unresolved = FileChoice::selecting(FileSelection::new([3..=4], ["*.b"]).unwrap());
        unresolved.order.sequential = true;
        let ordered = FileChoice {
            order: PieceOrder {
                ends_first: true,
                ..PieceOrder::default()
            },
            ..FileChoice::default()
        };
        for choice in [&choice, &unresolved, &ordered] {
            let mut saved = session.clone();
            choice.save(&mut saved);
            let read = Session::parse(saved.to_text().as_bytes(), saved.info_hash).unwrap();
            assert_eq!(read.file_choice(6).as_ref(), Some(choice));
            // The line about the user's intent has the choice too.
            let salvaged = Session::salvage(
                saved.to_text().replacen("uploaded: 0", "uploaded: 1", 1).as_bytes(),
                saved.info_hash,
            );
            let intent = salvaged.intent.expect("the line is intact");
            assert_eq!(intent.file_choice(6).as_ref(), Some(choice));
        }
        // An order that the user gives at an add leaves the files of the session, a selection does not.
        let mut saved = session.clone();
        choice.save(&mut saved);
        let both = saved.file_choice_after(6, Some(&ordered)).unwrap();
        assert!(both.order.ends_first && both.priority(5) == FilePriority::High);
        assert_eq!(
            saved.file_choice_after(6, Some(&unresolved)).as_ref(),
            Some(&unresolved)
        );
        unresolved.resolve(&files(&[1; 6]).0);
        assert!(!unresolved.is_default() && unresolved.priority(3) == FilePriority::Normal);
    }

    #[test]
    fn the_ends_of_wanted_files_are_a_percent_of_each() {
        // Pieces of 10 bytes: files of 1500, 15, 0 and 3000 bytes.
        let (table, geometry) = files(&[1500, 15, 0, 3000]);
        let mut choice = FileChoice::default();
        choice.order.ends_first = true;
        choice.set(3, FilePriority::Skip);
        let have = Bitfield::new(geometry.piece_count());
        let wanted = WantedPieces::new(&choice, &table, &geometry, &have);
        let ends: Vec<u32> = (0..geometry.piece_count())
            .filter(|piece| wanted.is_end(*piece))
            .collect();
        assert_eq!(ends, [0, 1, 148, 149, 150, 151]);
        assert_eq!(wanted.priority(151), FilePriority::Normal);
    }

    #[test]
    fn a_piece_has_the_priority_of_its_most_important_file() {
        use FilePriority::{High, Low, Normal, Skip};
        // Pieces:  0: file 0; 1: files 0, 1, 2; 2: file 2; 3: files 2 and 4 (3 is empty).
        let (table, geometry) = files(&[15, 2, 16, 0, 7]);
        let mut choice = FileChoice::default();
        for (file, priority) in [Skip, Low, Skip, High, High].into_iter().enumerate() {
            choice.set(file, priority);
        }
        let have = Bitfield::new(4);
        let wanted = WantedPieces::new(&choice, &table, &geometry, &have);
        let priorities: Vec<_> = (0..4).map(|piece| wanted.priority(piece)).collect();
        assert_eq!(priorities, [Skip, Low, Skip, High]);
        assert_eq!(wanted.unneeded().iter().collect::<Vec<_>>(), [0, 2]);
        choice.set(4, Skip);
        let mut wanted = wanted;
        assert_eq!(wanted.update(&choice, [3, 4, 99], (&table, &geometry), &have), [3]);
        choice.set(2, Normal);
        assert_eq!(wanted.update(&choice, [2], (&table, &geometry), &have), [1, 2, 3]);
        assert_eq!(wanted.unneeded().iter().collect::<Vec<_>>(), [0]);
        wanted.record_stored(1);
        assert_eq!(wanted.unneeded().iter_missing().collect::<Vec<_>>(), [2, 3]);
        wanted.record_found(&have);
        assert_eq!(wanted.unneeded().iter_missing().collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(wanted.iter().collect::<Vec<_>>(), [1, 2, 3]);
    }

    /// The largest torrents take no noticeable time, whatever the choice: half a million files, most of them in pieces
    /// of many files, and each of them changed.
    #[test]
    fn half_a_million_files_are_chosen_in_one_pass() {
        let (table, _) = files(&[3; 500_000]);
        let geometry = Geometry::new(table.total_size(), 16 << 10).unwrap();
        let ranges = (0..256).map(|run| run * 7..=u32::MAX);
        let selection = FileSelection::new(ranges, []).unwrap();
        let mut choice = FileChoice::selecting(selection);
        assert!(choice.resolve(&table));
        let have = Bitfield::new(geometry.piece_count());
        let mut wanted = WantedPieces::new(&choice, &table, &geometry, &have);
        assert!(wanted.unneeded().is_empty());
        for priority in [FilePriority::Skip, FilePriority::High] {
            (0..500_000).for_each(|file| choice.set(file, priority));
            let changed = wanted.update(&choice, 0..500_000, (&table, &geometry), &have);
            assert_eq!(changed.len(), geometry.piece_count() as usize);
            assert_eq!(wanted.unneeded().is_full(), priority == FilePriority::Skip);
        }
        choice.set(1, FilePriority::Skip);
        let mut session = Session::new(InfoHash([7; 20]));
        choice.save(&mut session);
        assert_eq!(session.file_choice(500_000), Some(choice));
    }

    proptest! {
        /// An update has the result of a new derivation.
        #[test]
        fn updates_are_complete(
            lengths in proptest::collection::vec(0u64..25, 1..20),
            held in proptest::collection::vec(0u32..50, 0..20),
            steps in proptest::collection::vec(
                (proptest::collection::vec((0usize..22, 0usize..4), 0..6), any::<bool>()),
                0..8,
            ),
        ) {
            let (table, geometry) = files(&lengths);
            let mut have = Bitfield::new(geometry.piece_count());
            for piece in held {
                have.insert(piece);
            }
            let mut choice = FileChoice::default();
            let mut wanted = WantedPieces::new(&choice, &table, &geometry, &have);
            prop_assert_eq!(wanted.unneeded(), &have);
            for (step, ends_first) in steps {
                let before = wanted.clone();
                choice.order.ends_first = ends_first;
                for (file, priority) in &step {
                    choice.set(*file, FilePriority::ALL[*priority]);
                }
                let changed = wanted.update(&choice, step.iter().map(|(file, _)| *file), (&table, &geometry), &have);
                let fresh = WantedPieces::new(&choice, &table, &geometry, &have);
                prop_assert_eq!(&wanted.priorities, &fresh.priorities);
                prop_assert_eq!(&wanted.unneeded, &fresh.unneeded);
                prop_assert_eq!(&wanted.ends, &fresh.ends);
                let place = |wanted: &WantedPieces, piece| (wanted.priority(piece), wanted.is_end(piece));
                let differs = |piece: &u32| place(&before, *piece) != place(&wanted, *piece);
                prop_assert_eq!(changed, (0..geometry.piece_count()).filter(differs).collect::<Vec<_>>());
            }
        }
    }
}
