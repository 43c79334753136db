//! Checking a download folder before a torrent is added.

use std::fs::{self, DirBuilder};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use ecs_torrent_components::settings::SettingError;
use ecs_torrent_engine::backends::nearest::nearest_existing;

/// A folder that torrents cannot be downloaded into.
#[derive(Debug, thiserror::Error)]
#[error("cannot download into {}: {error}", folder.display())]
pub struct FolderError {
    /// The folder.
    pub folder: PathBuf,
    /// The reason.
    pub error: io::Error,
}

/// Checks that files can be created in a download folder, which may be missing. Creates a temporary folder in the
/// nearest existing folder, and removes it at once, since only this shows for certain that files can be created.
///
/// A folder that already contains an entry called `name`, the torrent's file or folder, is only checked to be a folder:
/// the torrent may be complete. A full volume is not an error either, since the engine waits for space.
///
/// # Errors
/// If part of the path is not a folder, or if nothing can be created in it.
pub fn check_writable(folder: &Path, name: &str) -> Result<(), FolderError> {
    check(folder, Some(name))
}

/// Checks that `storage.incomplete_dir` can be used, as [`check_writable`] does.
pub(crate) fn check_incomplete_dir(folder: &Path) -> Result<(), SettingError> {
    check(folder, None).map_err(|error| SettingError::Folder {
        section: "storage",
        name: "incomplete_dir",
        reason: error.to_string(),
    })
}

fn check(folder: &Path, name: Option<&str>) -> Result<(), FolderError> {
    let failed = |error| FolderError {
        folder: folder.to_owned(),
        error,
    };
    let absolute = std::path::absolute(folder).map_err(failed)?;
    let (existing, metadata) = nearest_existing(&absolute).map_err(failed)?;
    if !metadata.is_dir() {
        return Err(failed(io::ErrorKind::NotADirectory.into()));
    }
    if name.is_some_and(|name| fs::symlink_metadata(folder.join(name)).is_ok()) {
        return Ok(());
    }
    match probe(existing) {
        Err(error) if !is_full(&error) => Err(failed(error)),
        _ => Ok(()),
    }
}

fn probe(folder: &Path) -> io::Result<()> {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let number = LAST.fetch_add(1, Ordering::Relaxed);
    let path = folder.join(format!(".ecs-torrent-{}-{number}", std::process::id()));
    match DirBuilder::new().create(&path) {
        Ok(()) => fs::remove_dir(&path),
        // A process that had the same number left it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_that_no_file_can_be_created_in_are_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path();
        fs::write(folder.join("file"), "mine").unwrap();
        assert!(check_writable(folder, "x").is_ok());
        assert!(check_writable(&folder.join("new/deep"), "x").is_ok());
        for bad in ["file", "file/below"] {
            let error = check_writable(&folder.join(bad), "x").unwrap_err();
            assert_eq!(error.error.kind(), io::ErrorKind::NotADirectory, "{error}");
        }
        assert!(check_writable(Path::new("/proc/x"), "x").is_err());
        let names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["file"]);
    }
}
