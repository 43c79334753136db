//! The engine's own folders, into which no torrent's path may lead.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use ecs_torrent_components::session::FileId;

use crate::backends::beneath::Status;

/// The engine's own folders, identified by device and inode, not by name: a different case, a link or a mount makes no
/// difference. The folders are held open, so that no other folder can reuse their inode numbers.
#[derive(Default)]
pub(super) struct Protected {
    folders: Vec<(FileId, File)>,
}

impl Protected {
    /// Opens the folders at `paths`, which must exist.
    pub(super) fn open(paths: &[&Path]) -> io::Result<Self> {
        let open = |path: &&Path| {
            let folder = File::open(path)?;
            Ok((Status::of(&folder)?.id, folder))
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

    /// Whether a folder is one of the protected folders or lies inside one. `path` is absolute and without links.
    pub(super) fn holds(&self, path: &Path) -> bool {
        let is_protected = |folder: &Path| {
            let status = Status::at(rustix::fs::CWD.as_fd(), folder);
            status.is_ok_and(|status| self.contains(status.id))
        };
        !self.is_empty() && path.ancestors().any(is_protected)
    }
}
