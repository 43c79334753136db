//! Opening files below a folder without following a link out of it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use ecs_torrent_components::session::FileId;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, mkdirat, openat, statat, unlinkat};
use rustix::io::Errno;

const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);
const FILE_MODE: Mode = Mode::from_raw_mode(0o666);
const FOLDER_MODE: Mode = Mode::from_raw_mode(0o777);

/// Flags for folders that are only passed through, which needs no right to list them.
#[cfg(target_os = "linux")]
const WALK: OFlags = FOLDER.union(OFlags::PATH);
#[cfg(not(target_os = "linux"))]
const WALK: OFlags = FOLDER;

/// Opens a folder by its full path. No component may be a link.
pub(crate) fn open_folder_at(path: &Path) -> io::Result<OwnedFd> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{ResolveFlags, openat2};
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match openat2(CWD, path, WALK, Mode::empty(), resolve) {
            Err(Errno::NOSYS | Errno::PERM) => {}
            result => return Ok(result?),
        }
    }
    walk_to(path)
}

/// Replaces `openat2` for a full path: opens one component at a time.
fn walk_to(path: &Path) -> io::Result<OwnedFd> {
    let start = if path.is_absolute() { "/" } else { "." };
    let mut folder = openat(CWD, start, WALK, Mode::empty())?;
    for component in path.components() {
        if let Component::Normal(name) = component {
            folder = openat(&folder, name, WALK | OFlags::NOFOLLOW, Mode::empty())?;
        }
    }
    Ok(folder)
}

/// Like [`open_folder_at`], but creates the folder and its ancestors if they are missing.
pub(crate) fn create_folder_at(path: &Path) -> io::Result<OwnedFd> {
    match open_folder_at(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => return result,
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a plain path"));
    };
    let parent = create_folder_at(parent)?;
    match mkdirat(&parent, name, FOLDER_MODE) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(openat(&parent, name, WALK | OFlags::NOFOLLOW, Mode::empty())?)
}

/// Returns the metadata of a path. If the path is a link, that of the link itself.
pub(crate) fn stat_of(folder: BorrowedFd<'_>, path: impl rustix::path::Arg) -> io::Result<Stat> {
    Ok(statat(folder, path, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Returns the identity of a file.
pub(crate) fn id_of(stat: &Stat) -> FileId {
    FileId {
        device: stat.st_dev,
        inode: stat.st_ino,
    }
}

/// Whether the entry is a folder, and not a link to one.
pub(crate) fn is_folder(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode).is_dir()
}

/// Opens `path`, relative and `/`-separated, below `root`, and returns the file with its metadata. No component may be
/// a link: if a torrent or another user of the machine puts one there, this fails instead of opening a file elsewhere.
pub(crate) fn open(root: BorrowedFd<'_>, path: &str, is_writable: bool) -> io::Result<(OwnedFd, Stat)> {
    let flags = if is_writable { OFlags::RDWR } else { OFlags::RDONLY };
    regular(open_with(root, path, flags, Mode::empty())?)
}

/// Whether a folder below `root` may contain files. False if there is no such folder.
pub(crate) fn may_hold(root: BorrowedFd<'_>, folder: &str) -> bool {
    let found = open_with(root, folder, FOLDER | OFlags::RDONLY, Mode::empty());
    !found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Creates the folders above a file if they are missing.
pub(crate) fn create_folders(root: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    let Some((folders, _)) = path.rsplit_once('/') else {
        return Ok(());
    };
    let mut folder: Option<OwnedFd> = None;
    for component in folders.split('/') {
        let parent = folder.as_ref().map_or(root, AsFd::as_fd);
        match mkdirat(parent, component, FOLDER_MODE) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        folder = Some(open_folder(parent, component)?);
    }
    Ok(())
}

/// Creates an empty file in an existing folder. Fails if the name is taken.
pub(crate) fn create_new(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    open_with(root, path, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, FILE_MODE)
}

/// Deletes a file below `root`, following no links. Only removes a name, and not that of a folder.
pub(crate) fn unlink(root: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    remove(root, path, AtFlags::empty())
}

/// Deletes an empty folder below `root`, following no links.
pub(crate) fn remove_folder(root: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    remove(root, path, AtFlags::REMOVEDIR)
}

fn remove(root: BorrowedFd<'_>, path: &str, flags: AtFlags) -> io::Result<()> {
    let (folder, name) = match path.rsplit_once('/') {
        Some((folders, name)) => (Some(walk_folders(root, folders)?), name),
        None => (None, path),
    };
    let parent = folder.as_ref().map_or(root, AsFd::as_fd);
    Ok(unlinkat(parent, name, flags)?)
}

fn open_with(root: BorrowedFd<'_>, path: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    // Never blocks on a FIFO that somebody put there, and never acquires a controlling terminal.
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{ResolveFlags, openat2};
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match openat2(root, path, flags, mode, resolve) {
            // Kernels before 5.6, and sandboxes that do not know the system call.
            Err(Errno::NOSYS | Errno::PERM) => {}
            result => return Ok(result?),
        }
    }
    walk(root, path, flags, mode)
}

/// Replaces `openat2`: opens one component at a time.
fn walk(root: BorrowedFd<'_>, path: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let Some((folders, name)) = path.rsplit_once('/') else {
        return Ok(openat(root, path, flags, mode)?);
    };
    let folder = walk_folders(root, folders)?;
    Ok(openat(folder, name, flags, mode)?)
}

/// Opens a folder below `root`, one component at a time.
fn walk_folders(root: BorrowedFd<'_>, folders: &str) -> io::Result<OwnedFd> {
    let mut components = folders.split('/');
    let mut folder = open_folder(root, components.next().unwrap_or_default())?;
    for component in components {
        folder = open_folder(folder.as_fd(), component)?;
    }
    Ok(folder)
}

fn open_folder(parent: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    if matches!(name, "" | "." | "..") {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a plain name"));
    }
    Ok(openat(
        parent,
        name,
        FOLDER | OFlags::RDONLY | OFlags::NOFOLLOW,
        Mode::empty(),
    )?)
}

/// Checks that a file is a regular file. No others are read or written.
fn regular(file: OwnedFd) -> io::Result<(OwnedFd, Stat)> {
    let stat = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode).is_file() {
        Ok((file, stat))
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Opens a path in both ways: with the system call of newer Linux kernels, and with its replacement.
    fn open_both(root: &OwnedFd, path: &str) -> [io::Result<OwnedFd>; 2] {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        [
            open(root.as_fd(), path, true).map(|(file, _)| file),
            walk(root.as_fd(), path, flags, Mode::empty()),
        ]
    }

    fn create(root: &OwnedFd, path: &str) -> io::Result<OwnedFd> {
        create_folders(root.as_fd(), path)?;
        create_new(root.as_fd(), path)
    }

    #[test]
    fn files_are_created_with_their_folders() {
        let folder = tempfile::tempdir().unwrap();
        let root = open_folder_at(folder.path()).unwrap();
        for path in ["a/b/c.txt", "plain", "a/d/new"] {
            create(&root, path).unwrap();
        }
        assert!(may_hold(root.as_fd(), "a/b") && !may_hold(root.as_fd(), "a/c") && !may_hold(root.as_fd(), "c/b"));
        let error = create_new(root.as_fd(), "a/d/new").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(folder.path().join("a/b/c.txt").is_file() && folder.path().join("plain").is_file());
        assert!(open_both(&root, "a/b/c.txt").iter().all(Result::is_ok));
    }

    /// Fault 12: a link, to a file or a folder, outside or in a loop, is never followed.
    #[test]
    fn links_are_never_followed() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("victim"), "safe").unwrap();
        let folder = tempfile::tempdir().unwrap();
        symlink(outside.path(), folder.path().join("dir")).unwrap();
        symlink(outside.path().join("victim"), folder.path().join("file")).unwrap();
        symlink("loop", folder.path().join("loop")).unwrap();
        symlink(outside.path().join("new"), folder.path().join("dangling")).unwrap();
        let root = open_folder_at(folder.path()).unwrap();
        for path in ["dir/victim", "file", "loop", "loop/x", "dangling", "../victim"] {
            assert!(open_both(&root, path).iter().all(Result::is_err), "{path}");
            assert!(create(&root, path).is_err(), "{path}");
        }
        assert!(create(&root, "dir/sub/new").is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    /// A link in place of a folder above is not followed.
    #[test]
    fn whole_paths_lead_through_no_link() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        create_folder_at(&base.join("a/b/c")).unwrap();
        create_folder_at(&base.join("a/b/c")).unwrap();
        symlink(base.join("a"), base.join("link")).unwrap();
        for open in [open_folder_at, walk_to, create_folder_at] {
            assert!(open(&base.join("a/b/c")).is_ok());
            for path in ["link", "link/b", "link/new"] {
                assert!(open(&base.join(path)).is_err(), "{path}");
            }
        }
        assert!(!base.join("a/new").exists());
    }

    #[test]
    fn other_things_than_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("folder")).unwrap();
        rustix::fs::mknodat(
            CWD,
            folder.path().join("fifo"),
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let root = open_folder_at(folder.path()).unwrap();
        assert!(open(root.as_fd(), "fifo", false).is_err());
        assert!(open(root.as_fd(), "folder", false).is_err());
    }
}
