//! Folders of the engine's own, into which no torrent's path may lead.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use ecs_torrent_components::session::FileId;

use crate::backends::beneath::{self, id_of};

/// The engine's own folders, known by what they are and not by their names: another case, a link or a mount changes
/// nothing. They are held open, so that no other folder gets one of their numbers.
#[derive(Default)]
pub(super) struct Protected {
    folders: Vec<(FileId, File)>,
}

impl Protected {
    /// The folders at `paths`, which are there.
    pub(super) fn open(paths: &[&Path]) -> io::Result<Self> {
        let open = |path: &&Path| {
            let folder = File::open(path)?;
            Ok((id_of(&rustix::fs::fstat(&folder)?), folder))
        };
        let folders = paths.iter().map(open).collect::<io::Result<_>>()?;
        Ok(Self { folders })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.folders.is_empty()
    }

    pub(super) fn contains(&self, id: FileId) -> bool {
        self.folders.iter().any(|(protected, _)| *protected == id)
    }

    /// Whether a folder is one of them, or lies in one; `path` is whole and without links.
    pub(super) fn holds(&self, path: &Path) -> bool {
        let is_protected = |folder: &Path| {
            let stat = beneath::stat_of(rustix::fs::CWD.as_fd(), folder);
            stat.is_ok_and(|stat| self.contains(id_of(&stat)))
        };
        !self.is_empty() && path.ancestors().any(is_protected)
    }
}
