//! A torrent of another client, on its way to a session.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use ecs_torrent_components::labels::Labels;
use ecs_torrent_components::rate_limit::TransferLimits;
use ecs_torrent_components::seeding::SeedingLimits;
use ecs_torrent_components::session::{PartialPiece, Runs, Session, SessionTracker};
use ecs_torrent_components::settings::LabelSettings;
use ecs_torrent_engine::backends::staging::examine;
use ecs_torrent_engine::backends::whole_file::read_file;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::metainfo::{Metainfo, MetainfoLimits};

use super::documents::{MAX_RESUME_BYTES, named};
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
        let bytes = read_file(&self.metainfo, limits.bencode.max_bytes as u64).map_err(named(&self.metainfo))?;
        Metainfo::parse(&Bytes::from(bytes), &limits).map_err(named(&self.metainfo))
    }

    /// Returns the content of the file with the state, and the time at which it was saved.
    pub(super) fn resume(&self) -> Result<(Vec<u8>, SystemTime), String> {
        let path = &self.resume;
        let saved_at = fs::metadata(path).and_then(|status| status.modified());
        let bytes = read_file(path, MAX_RESUME_BYTES).map_err(named(path))?;
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
    partial: Vec<PartialPiece>,
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
            partial: Vec::new(),
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
        let blocks = Runs::of(blocks.take_while(|block| *block < count));
        if !blocks.is_empty() {
            self.partial.push(PartialPiece { piece, blocks });
        }
    }

    /// Finds the names that the files have, examines the files, and returns the session with remarks for the user.
    pub(super) fn finish(mut self) -> Result<(Session, Vec<String>), String> {
        let root = self.set_names()?;
        let info = &self.metainfo.info;
        let saved_at = self.saved_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let saved_ns = i64::try_from(saved_at.as_nanos()).unwrap_or(i64::MAX);
        let is_known = |piece: u32, have: &Bitfield, partial: &[PartialPiece]| {
            have.contains(piece) || partial.iter().any(|known| known.piece == piece)
        };
        let mut lost = None;
        let mut permitted = Vec::new();
        for (index, (file, path)) in (0..).zip(info.files.files().iter().zip(&self.paths)) {
            let below = path
                .strip_prefix(&root)
                .ok()
                .and_then(Path::to_str)
                .unwrap_or(&file.path);
            let found = match file.is_stored() {
                true => examine(&root, below).map_err(named(path))?,
                false => None,
            };
            let stamp = found.map(|(_, stamp)| stamp).filter(|stamp| {
                let modified_ns = stamp.seconds.saturating_mul(1_000_000_000) + i64::from(stamp.nanos);
                modified_ns <= saved_ns
            });
            self.session.files.push(stamp);
            self.session.ids.push(found.map(|(id, _)| id));
            if found.is_some() {
                permitted.push(index);
                continue;
            }
            // Bytes of pieces in files that do not exist are nowhere.
            for piece in info
                .geometry
                .pieces_of(file.offset..file.end())
                .filter(|_| file.has_bytes())
            {
                if is_known(piece, &self.have, &self.partial) && !self.skipped.contains(index) {
                    lost.get_or_insert(path.clone());
                }
                self.have.remove(piece);
                self.partial.retain(|known| known.piece != piece);
            }
        }
        if let Some(path) = lost {
            self.session.paused = true;
            let path = path.display();
            self.notes.push(format!(
                "it is paused, since {path} is not there; `relocate` names another folder"
            ));
        }
        if let Err(error) = self.session.limits.check() {
            self.notes.push(format!("its limits are left out: {error}"));
            self.session.limits = TransferLimits::default();
        }
        if let Err(error) = self.session.seeding.check() {
            self.notes.push(format!("its seeding limits are left out: {error}"));
            self.session.seeding = SeedingLimits::default();
        }
        self.session.root = root;
        self.session.permitted = Runs::of(permitted);
        self.session.have = Runs::of(self.have.iter());
        self.session.partial = self.partial;
        self.session.partial.sort_unstable_by_key(|known| known.piece);
        Ok((self.session, self.notes))
    }

    /// Derives the download folder, and the names of the torrent and its files there, from the paths of the files.
    fn set_names(&mut self) -> Result<PathBuf, String> {
        let files = self.metainfo.info.files.files();
        let belows = files
            .iter()
            .map(|file| file.path.split_once('/').map_or("", |(_, below)| below));
        let is_above_all = |top: &&Path| self.paths.iter().all(|path| path.starts_with(top));
        let mut tops = belows.clone().zip(&self.paths).filter_map(|(below, path)| {
            let depth = Path::new(below).components().count();
            path.ancestors().nth(depth).filter(|_| path.ends_with(below))
        });
        let top = tops.find(is_above_all).map(Path::to_owned);
        let top = top.ok_or("its files do not lie in a folder of their own, or have all other names")?;
        let (Some(root), Some(name)) = (top.parent().filter(|_| top.is_absolute()), top.file_name()) else {
            return Err(format!("{}: not a full path", top.display()));
        };
        let utf8 = |name: &Path| {
            name.to_str()
                .map(str::to_owned)
                .ok_or(format!("{}: not UTF-8", name.display()))
        };
        let name = utf8(Path::new(name))?;
        for (index, (below, path)) in (0..).zip(belows.zip(&self.paths)) {
            let actual = path.strip_prefix(&top).unwrap_or(path);
            if actual != Path::new(below) {
                self.session.file_names.insert(index, utf8(actual)?);
            }
        }
        self.session.renamed = Some(name).filter(|name| *name != self.metainfo.info.name);
        Ok(root.to_owned())
    }
}

/// The priority of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FilePriority {
    Skip,
    Low,
    Normal,
    High,
}
