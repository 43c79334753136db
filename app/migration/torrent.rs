//! A torrent of another client, on its way to a session.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use ecs_torrent_components::labels::Labels;
use ecs_torrent_components::names::NewNames;
use ecs_torrent_components::seeding::SeedingLimits;
use ecs_torrent_components::session::{FileId, FileStamp, PartialPiece, Runs, Session, SessionTracker};
use ecs_torrent_components::settings::{LEAST_LIMIT, LabelSettings};
use ecs_torrent_engine::backends::staging::examine;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::files::FileEntry;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::metainfo::{Metainfo, MetainfoLimits};

use super::documents::{BLOCK, named, read_regular};
use crate::archive::LeftOut;

/// The files in which another client keeps a torrent.
#[derive(Debug)]
pub(super) struct SavedTorrent {
    pub(super) metainfo: PathBuf,
    pub(super) resume: PathBuf,
    /// The place in the client's queue.
    pub(super) place: usize,
}

impl SavedTorrent {
    pub(super) fn metainfo(&self) -> Result<Metainfo, String> {
        let limits = MetainfoLimits::default();
        let bytes = read_regular(&self.metainfo).map_err(named(&self.metainfo))?;
        Metainfo::parse(&Bytes::from(bytes), &limits).map_err(named(&self.metainfo))
    }

    /// Returns the content of the file with the state, and the time at which it was saved.
    pub(super) fn resume(&self) -> Result<(Vec<u8>, SystemTime), String> {
        let path = &self.resume;
        let saved_at = fs::metadata(path).and_then(|status| status.modified());
        let bytes = read_regular(path).map_err(named(path))?;
        Ok((bytes, saved_at.map_err(named(path))?))
    }

    pub(super) fn left_out(&self, reason: String) -> LeftOut {
        let name = self.resume.file_name().unwrap_or_default();
        LeftOut {
            id: name.to_string_lossy().into_owned(),
            name: String::new(),
            reason,
        }
    }
}

/// A torrent of another client, as it is being read.
pub(super) struct OtherTorrent<'a> {
    pub(super) metainfo: &'a Metainfo,
    pub(super) session: Session,
    pub(super) have: Bitfield,
    /// The blocks on the disk of pieces that are not held.
    partial: BTreeMap<u32, Vec<u32>>,
    /// Whether the other client has not verified the pieces itself.
    pub(super) is_unverified: bool,
    /// The path of each file.
    pub(super) paths: Vec<PathBuf>,
    /// When the other client saved its state. It knows nothing of later changes.
    pub(super) saved_at: SystemTime,
    skipped: Bitfield,
    notes: Vec<String>,
}

impl<'a> OtherTorrent<'a> {
    pub(super) fn new(id: InfoHash, metainfo: &'a Metainfo) -> Self {
        let geometry = &metainfo.info.geometry;
        let files = metainfo.info.files.files();
        Self {
            session: Session {
                name: metainfo.info.name.clone(),
                total_size: geometry.total_size(),
                piece_length: geometry.piece_length(),
                pieces: geometry.piece_count(),
                ..Session::new(id)
            },
            have: Bitfield::new(geometry.piece_count()),
            partial: BTreeMap::new(),
            is_unverified: false,
            paths: Vec::new(),
            saved_at: SystemTime::UNIX_EPOCH,
            skipped: Bitfield::new(files.len() as u32),
            notes: Vec::new(),
            metainfo,
        }
    }

    /// Sets the paths of the files: those of the torrent below a folder.
    pub(super) fn lie_below(&mut self, folder: &Path) {
        let files = self.metainfo.info.files.files();
        self.paths = files.iter().map(|file| folder.join(&*file.path)).collect();
    }

    /// Whether the files lie in a folder of the torrent.
    pub(super) fn is_multi_file(&self) -> bool {
        let files = self.metainfo.info.files.files();
        files.first().is_some_and(|file| file.path.contains('/'))
    }

    /// Sets the trackers that the user edited: those that differ from the ones of the torrent file.
    pub(super) fn set_trackers(&mut self, tiers: Vec<Vec<String>>) {
        if tiers == self.metainfo.trackers {
            return;
        }
        self.session.are_trackers_edited = true;
        let tiers = tiers.into_iter().enumerate();
        let trackers = tiers.flat_map(|(tier, urls)| {
            urls.into_iter().map(move |url| SessionTracker {
                url,
                tier,
                // A torrent is announced as completed once, by the client that completed it.
                was_completed: true,
                seeders: None,
                leechers: None,
            })
        });
        self.session.trackers = trackers.collect();
    }

    /// Sets labels and category. A note names each one that cannot be a label here.
    pub(super) fn set_labels(&mut self, labels: impl IntoIterator<Item = String>, category: Option<String>) {
        let bounds = LabelSettings::default().bounds();
        let mut kept = Labels::default();
        for label in labels {
            let mut more = kept.clone();
            more.labels.insert(label);
            match more.check(bounds) {
                Ok(()) => kept = more,
                Err(error) => self.notes.push(error.to_string()),
            }
        }
        let named = Labels {
            category,
            ..Labels::default()
        };
        match named.check(bounds) {
            Ok(()) => self.session.category = named.category,
            Err(error) => self.notes.push(error.to_string()),
        }
        self.session.labels = kept.labels.into_iter().collect();
    }

    /// Sets the priorities of the files.
    pub(super) fn set_priorities(&mut self, priorities: &[FilePriority]) {
        let of = |priority| {
            let numbered = (0..).zip(priorities).filter(move |(_, other)| **other == priority);
            numbered.map(|(index, _)| index)
        };
        let count = self.skipped.len();
        for index in of(FilePriority::Skip).take_while(|index| *index < count) {
            self.skipped.insert(index);
        }
        self.session.skipped = Runs::of(self.skipped.iter());
        self.session.low = Runs::of(of(FilePriority::Low));
        self.session.high = Runs::of(of(FilePriority::High));
    }

    /// Sets the blocks of a piece that are on the disk, by their indexes.
    pub(super) fn set_blocks(&mut self, piece: u32, blocks: impl Iterator<Item = u32>) {
        let geometry = &self.metainfo.info.geometry;
        if piece >= geometry.piece_count() || self.have.contains(piece) {
            return;
        }
        let count = geometry.block_count(piece);
        let blocks: Vec<u32> = blocks.take_while(|block| *block < count).collect();
        if !blocks.is_empty() {
            self.partial.insert(piece, blocks);
        }
    }

    /// Finds the names that the files have, examines the files, and returns the session with notes for the user.
    /// `claimed` has the files of the torrents before this one.
    pub(super) fn finish(mut self, claimed: &mut HashSet<PathBuf>) -> Result<(Session, Vec<String>), String> {
        let root = self.set_names()?;
        // The engine resolves the download folder too. Below it, no link is followed.
        let root = root.canonicalize().unwrap_or(root);
        if root.to_str().is_none() {
            return Err(format!("{}: not UTF-8", root.display()));
        }
        let found = self.examine_files(&root)?;
        self.drop_absent(&found)?;
        let mut permitted = Vec::new();
        for (index, (found, path)) in (0..).zip(found.iter().zip(&self.paths)) {
            let is_shared = found.is_some() && !claimed.insert(path.clone());
            if is_shared {
                self.notes
                    .push(format!("{} is another torrent's too: it is checked", path.display()));
            }
            let stamp = found.map(|(_, stamp)| stamp);
            let stamp = stamp.filter(|stamp| !is_shared && self.is_unchanged(index as usize, stamp));
            self.session.files.push(stamp);
            self.session.ids.push(found.map(|(id, _)| id));
            permitted.extend(found.is_some().then_some(index));
        }
        self.set_limits();
        self.session.root = root;
        self.session.permitted = Runs::of(permitted);
        self.session.have = Runs::of(self.have.iter());
        let partial = self.partial.into_iter().map(|(piece, blocks)| PartialPiece {
            piece,
            blocks: Runs::of(blocks),
        });
        self.session.partial = partial.collect();
        Ok((self.session, self.notes))
    }

    /// Returns the identity and the stamp of each file that exists.
    fn examine_files(&mut self, root: &Path) -> Result<Vec<Option<(FileId, FileStamp)>>, String> {
        let files = self.metainfo.info.files.files();
        let names = self.session.names();
        let table = names.table(&self.metainfo.info.files);
        let mut found = Vec::with_capacity(files.len());
        for (entry, path) in table.files().iter().zip(&mut self.paths) {
            *path = root.join(&*entry.path);
            found.push(match entry.is_stored() {
                true => examine(root, &entry.path).map_err(named(path))?,
                false => None,
            });
        }
        Ok(found)
    }

    /// Drops the pieces of which bytes lie in files that do not exist. If no data exists at all, its volume may be
    /// elsewhere, and the torrent is not imported. If only some is missing, the torrent waits for the user.
    fn drop_absent(&mut self, found: &[Option<(FileId, FileStamp)>]) -> Result<(), String> {
        let info = &self.metainfo.info;
        let mut absent = None;
        let mut dropped = Bitfield::new(info.geometry.piece_count());
        for (index, (file, found)) in (0..).zip(info.files.files().iter().zip(found)) {
            if found.is_some() || !file.has_bytes() {
                continue;
            }
            for piece in info.geometry.pieces_of(file.offset..file.end()) {
                let is_known = self.have.contains(piece) || self.partial.contains_key(&piece);
                if is_known && !self.skipped.contains(index) {
                    absent.get_or_insert(&self.paths[index as usize]);
                }
                dropped.insert(piece);
            }
        }
        self.have = self.have.without(&dropped);
        self.partial.retain(|piece, _| !dropped.contains(*piece));
        let Some(path) = absent.map(|path| path.display()) else {
            return Ok(());
        };
        if found.iter().all(Option::is_none) {
            return Err(format!(
                "{path} is not there: import the torrent again when its data is in its place"
            ));
        }
        self.notes.push(format!("it is paused, since {path} is not there"));
        self.session.paused = true;
        Ok(())
    }

    /// Whether a file is as the other client knew it: written before that saved its state, and long enough for its
    /// verified bytes.
    fn is_unchanged(&self, index: usize, stamp: &FileStamp) -> bool {
        let info = &self.metainfo.info;
        let saved_at = self.saved_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let modified_ns = stamp
            .seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(stamp.nanos.into());
        let is_older = i128::from(modified_ns) <= saved_at.as_nanos() as i128;
        let file = &info.files.files()[index];
        let end_of = |piece: u32| {
            let size = match self.partial.get(&piece) {
                Some(blocks) if !self.have.contains(piece) => {
                    u64::from(blocks.last().map_or(0, |last| last + 1)) * BLOCK
                }
                _ => u64::from(info.geometry.piece_size(piece)),
            };
            info.geometry.piece_offset(piece) + size.min(info.geometry.piece_size(piece).into())
        };
        let mut pieces = info.geometry.pieces_of(file.offset..file.end()).rev();
        let last = pieces.find(|piece| self.have.contains(*piece) || self.partial.contains_key(piece));
        let least = last.map_or(0, |piece| end_of(piece).min(file.end()).saturating_sub(file.offset));
        is_older && !self.is_unverified && (least..=file.len).contains(&stamp.len)
    }

    /// Drops the limits that cannot be set here.
    fn set_limits(&mut self) {
        let limits = &mut self.session.limits;
        for limit in [&mut limits.download_bytes_per_s, &mut limits.upload_bytes_per_s] {
            if let Some(rate) = limit.filter(|rate| *rate < LEAST_LIMIT) {
                self.notes
                    .push(format!("its limit of {rate} bytes/s is raised to {LEAST_LIMIT}"));
                *limit = Some(LEAST_LIMIT);
            }
        }
        let given = self.session.seeding;
        self.session.seeding = SeedingLimits::default();
        let set: [fn(&mut SeedingLimits, &SeedingLimits); 3] = [
            |limits, given| limits.ratio_percent = given.ratio_percent,
            |limits, given| limits.time_s = given.time_s,
            |limits, given| limits.idle_s = given.idle_s,
        ];
        for set in set {
            let mut one = SeedingLimits::default();
            set(&mut one, &given);
            match one.check() {
                Ok(()) => set(&mut self.session.seeding, &given),
                Err(error) => self.notes.push(format!("a seeding limit is left out: {error}")),
            }
        }
    }

    /// Derives the download folder, and the names of the torrent and its files there, from the paths of the files.
    fn set_names(&mut self) -> Result<PathBuf, String> {
        let table = &self.metainfo.info.files;
        let below = |file: &'a FileEntry| file.path.split_once('/').map_or("", |(_, below)| below);
        let belows = table.files().iter().map(below);
        if let Some(path) = self.paths.iter().find(|path| leads_elsewhere(path)) {
            return Err(format!("{}: not a full path without `..`", path.display()));
        }
        let mut paths = self.paths.iter();
        let first = paths.next().ok_or("it has no files")?;
        let common = paths.fold(first.as_path(), |common, path| {
            let is_above = |folder: &&Path| path.starts_with(folder);
            common.ancestors().find(is_above).unwrap_or(Path::new("/"))
        });
        let mut tops = belows.clone().zip(&self.paths).filter_map(|(below, path)| {
            let depth = Path::new(below).components().count();
            path.ancestors().nth(depth).filter(|_| path.ends_with(below))
        });
        let top = tops.find(|top| common.starts_with(top)).map(Path::to_owned);
        let top = top.ok_or_else(|| format!("{}: not below a folder with all files", first.display()))?;
        let (Some(root), Some(name)) = (top.parent(), top.file_name()) else {
            return Err(format!("{}: not a file in a folder", top.display()));
        };
        let utf8 = |name: &Path| {
            let text = name.to_str().map(str::to_owned);
            text.ok_or_else(|| format!("{}: not UTF-8", name.display()))
        };
        let mut names = NewNames {
            name: Some(utf8(Path::new(name))?),
            files: BTreeMap::new(),
        };
        for (index, (below, path)) in (0..).zip(belows.zip(&self.paths)) {
            let actual = path.strip_prefix(&top).unwrap_or(path);
            if actual != Path::new(below) {
                names.files.insert(index, utf8(actual)?);
            }
        }
        let names = names.checked(table).map_err(|error| error.to_string())?;
        for name in names.files.values().chain(&names.name) {
            if SUFFIXES.iter().any(|suffix| name.ends_with(suffix)) {
                self.notes
                    .push(format!("{name} keeps this name: `rename` it when it is complete"));
            }
        }
        (self.session.renamed, self.session.file_names) = (names.name, names.files);
        Ok(root.to_owned())
    }
}

/// The suffixes by which other clients mark incomplete files.
const SUFFIXES: [&str; 2] = [".part", ".!qB"];

/// Whether a path is not a full one, or leads through its own parent folders.
fn leads_elsewhere(path: &Path) -> bool {
    !path.is_absolute() || path.components().any(|part| part == Component::ParentDir)
}

/// The priority of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FilePriority {
    Skip,
    Low,
    Normal,
    High,
}
