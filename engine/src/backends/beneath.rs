//! Opening files below a folder without following a link out of it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};
use std::sync::{Mutex, PoisonError};

use ecs_torrent_components::session::{FileId, FileStamp};
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

/// Metadata of a file or folder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Status {
    pub(crate) id: FileId,
    pub(crate) stamp: FileStamp,
    pub(crate) link_count: u32,
    kind: FileType,
}

impl Status {
    /// Returns the metadata of an open file.
    pub(crate) fn of(file: impl AsFd) -> io::Result<Self> {
        let file = file.as_fd();
        #[cfg(target_os = "linux")]
        if let Some(status) = Self::with_birth(file, "", AtFlags::EMPTY_PATH)? {
            return Ok(status);
        }
        Ok(rustix::fs::fstat(file)?.into())
    }

    /// Returns the metadata of a path. If the path is a link, that of the link itself.
    pub(crate) fn at(folder: BorrowedFd<'_>, path: impl rustix::path::Arg + Copy) -> io::Result<Self> {
        #[cfg(target_os = "linux")]
        if let Some(status) = Self::with_birth(folder, path, AtFlags::SYMLINK_NOFOLLOW)? {
            return Ok(status);
        }
        Ok(statat(folder, path, AtFlags::SYMLINK_NOFOLLOW)?.into())
    }

    /// Requests the time of creation too. `None` on kernels before 4.11, and in sandboxes that do not know the system
    /// call.
    #[cfg(target_os = "linux")]
    fn with_birth(folder: BorrowedFd<'_>, path: impl rustix::path::Arg, flags: AtFlags) -> io::Result<Option<Self>> {
        use rustix::fs::{StatxFlags, makedev, statx};
        let found = match statx(folder, path, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME) {
            Err(Errno::NOSYS | Errno::PERM) => return Ok(None),
            found => found?,
        };
        let birth = found.stx_btime;
        let is_known = found.stx_mask & StatxFlags::BTIME.bits() != 0 && (birth.tv_sec, birth.tv_nsec) != (0, 0);
        Ok(Some(Self {
            id: FileId {
                device: makedev(found.stx_dev_major, found.stx_dev_minor),
                inode: found.stx_ino,
                born_ns: is_known.then(|| nanoseconds(birth.tv_sec, birth.tv_nsec.into())),
            },
            stamp: FileStamp {
                len: found.stx_size,
                seconds: found.stx_mtime.tv_sec,
                nanos: found.stx_mtime.tv_nsec,
                changed_ns: Some(nanoseconds(found.stx_ctime.tv_sec, found.stx_ctime.tv_nsec.into())),
            },
            link_count: found.stx_nlink,
            kind: FileType::from_raw_mode(found.stx_mode.into()),
        }))
    }

    /// Checks that this is a regular file. No others are read or written.
    pub(crate) fn regular(self) -> io::Result<Self> {
        match self.kind.is_file() {
            true => Ok(self),
            false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
        }
    }

    /// Whether this is a folder, and not a link to one.
    pub(crate) fn is_folder(&self) -> bool {
        self.kind.is_dir()
    }
}

impl From<Stat> for Status {
    fn from(stat: Stat) -> Self {
        let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
        let changed_nanos = i64::try_from(stat.st_ctime_nsec).unwrap_or(0);
        Self {
            id: FileId {
                device: stat.st_dev,
                inode: stat.st_ino,
                born_ns: None,
            },
            stamp: FileStamp {
                len: stat.st_size.try_into().unwrap_or(0),
                seconds: stat.st_mtime,
                nanos,
                changed_ns: Some(nanoseconds(stat.st_ctime, changed_nanos)),
            },
            link_count: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            kind: FileType::from_raw_mode(stat.st_mode),
        }
    }
}

/// Returns a time in nanoseconds since 1970. 64 bits suffice until the year 2262.
fn nanoseconds(seconds: i64, nanos: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// The extended attribute that marks what a torrent created.
const MARK: &str = "user.ecs_torrent.owner";

/// Marks a file or folder as created by a torrent. Fails on volumes without extended attributes.
pub(crate) fn set_mark(file: impl AsFd, mark: &str) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(
        file,
        MARK,
        mark.as_bytes(),
        rustix::fs::XattrFlags::empty(),
    )?)
}

/// Whether a file or folder has a mark.
pub(crate) fn has_mark(file: impl AsFd, mark: &str) -> bool {
    let mut found = [0; 64];
    let len = rustix::fs::fgetxattr(file, MARK, &mut found[..]);
    len.is_ok_and(|len| found.get(..len) == Some(mark.as_bytes()))
}

/// Opens `path`, relative and `/`-separated, below `root`, and returns the file with its metadata. No component may be
/// a link: if a torrent or another user of the machine puts one there, this fails instead of opening a file elsewhere.
pub(crate) fn open(root: BorrowedFd<'_>, path: &str, is_writable: bool) -> io::Result<(OwnedFd, Status)> {
    let flags = if is_writable { OFlags::RDWR } else { OFlags::RDONLY };
    let file = open_with(root, path, flags, Mode::empty())?;
    let status = Status::of(&file)?.regular()?;
    Ok((file, status))
}

/// Like [`open`], for reading, but leaves it to the caller to examine the opened entry.
pub(crate) fn open_unexamined(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    open_with(root, path, OFlags::RDONLY, Mode::empty())
}

/// Whether a folder below `root` may contain files. False if there is no such folder.
pub(crate) fn may_hold(root: BorrowedFd<'_>, folder: &str) -> bool {
    let found = open_with(root, folder, FOLDER | OFlags::RDONLY, Mode::empty());
    !found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Opens a folder below `root`, following no links.
pub(crate) fn open_folder_below(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    open_with(root, path, FOLDER | OFlags::RDONLY, Mode::empty())
}

/// The name of a new folder below the root until it has its mark. Reserved: an empty folder of this name is deleted.
pub(crate) const NEW_FOLDER: &str = ".ecs-torrent-new-folder";

/// One folder at a time carries [`NEW_FOLDER`].
static CREATING: Mutex<()> = Mutex::new(());

/// Creates the folders above a file if they are missing, and calls `mark` with each that it created. A folder gets its
/// name after its mark, so that a kill leaves no unmarked folder.
pub(crate) fn create_folders(root: BorrowedFd<'_>, path: &str, mark: impl Fn(&OwnedFd)) -> io::Result<()> {
    let Some((folders, _)) = path.rsplit_once('/') else {
        return Ok(());
    };
    let mut folder: Option<OwnedFd> = None;
    for component in folders.split('/') {
        let parent = folder.as_ref().map_or(root, AsFd::as_fd);
        let opened = match open_folder(parent, component) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => create_folder(root, parent, component, &mark)?,
            result => result?,
        };
        folder = Some(opened);
    }
    Ok(())
}

/// Creates and marks a folder, or opens the one that somebody else created meanwhile.
fn create_folder(
    root: BorrowedFd<'_>,
    parent: BorrowedFd<'_>,
    name: &str,
    mark: impl Fn(&OwnedFd),
) -> io::Result<OwnedFd> {
    if let Ok(folder) = create_marked_folder(root, parent, name, &mark) {
        return Ok(folder);
    }
    // File systems that cannot rename without replacing, and folders on another file system than the root.
    let is_new = match mkdirat(parent, name, FOLDER_MODE) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(error) => return Err(error.into()),
    };
    let folder = open_folder(parent, name)?;
    if is_new {
        mark(&folder);
    }
    Ok(folder)
}

fn create_marked_folder(
    root: BorrowedFd<'_>,
    parent: BorrowedFd<'_>,
    name: &str,
    mark: impl Fn(&OwnedFd),
) -> io::Result<OwnedFd> {
    let _creating = CREATING.lock().unwrap_or_else(PoisonError::into_inner);
    delete_new_folder(root);
    mkdirat(root, NEW_FOLDER, FOLDER_MODE)?;
    let folder = open_folder(root, NEW_FOLDER)?;
    mark(&folder);
    let named = give_name_to_folder(root, parent, name);
    if named.is_err() {
        delete_new_folder(root);
    }
    named.map(|()| folder)
}

fn give_name_to_folder(root: BorrowedFd<'_>, parent: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    return Ok(rustix::fs::renameat_with(
        root,
        NEW_FOLDER,
        parent,
        name,
        rustix::fs::RenameFlags::NOREPLACE,
    )?);
    #[cfg(not(target_os = "linux"))]
    return {
        let _ = (root, parent, name);
        Err(io::ErrorKind::Unsupported.into())
    };
}

/// Deletes the unnamed folder that a kill may have left.
fn delete_new_folder(root: BorrowedFd<'_>) {
    let _ = remove_folder(root, NEW_FOLDER);
}

/// Deletes the folder that a kill may have left below `root` while it was being created.
pub(crate) fn clean(root: BorrowedFd<'_>) {
    let _creating = CREATING.lock().unwrap_or_else(PoisonError::into_inner);
    delete_new_folder(root);
}

/// The folder of a file, kept open from one file to the next, since a torrent lists the files of a folder together. It
/// is held for one write only, so that the next write sees changes by other programs.
pub(crate) struct Parent<'r> {
    root: BorrowedFd<'r>,
    path: Box<str>,
    folder: Option<OwnedFd>,
}

impl<'r> Parent<'r> {
    pub(crate) fn new(root: BorrowedFd<'r>) -> Self {
        Self {
            root,
            path: Box::default(),
            folder: None,
        }
    }

    /// The folder below which the files lie.
    pub(crate) fn root(&self) -> BorrowedFd<'r> {
        self.root
    }

    /// Returns the folder of a file, and the file's name in it.
    fn of<'p>(&mut self, path: &'p str) -> io::Result<(BorrowedFd<'_>, &'p str)> {
        let Some((folders, name)) = path.rsplit_once('/') else {
            return Ok((self.root, path));
        };
        let is_open = self.folder.is_some() && *self.path == *folders;
        let folder = match self.folder.take().filter(|_| is_open) {
            Some(folder) => folder,
            None => {
                self.path = folders.into();
                open_folder_below(self.root, folders)?
            }
        };
        let folder: &OwnedFd = self.folder.insert(folder);
        Ok((folder.as_fd(), name))
    }

    /// Opens the folder again for the next file.
    pub(crate) fn close(&mut self) {
        self.folder = None;
    }
}

/// Creates an empty file in an existing folder and calls `mark` with it. Fails if the name is taken. On file systems
/// with unnamed files (`O_TMPFILE`), the file gets its name after its mark, so that a kill leaves no unmarked file. The
/// returned metadata is from before the mark.
pub(crate) fn create_new(
    parent: &mut Parent<'_>,
    path: &str,
    mark: impl Fn(&OwnedFd, &Status),
) -> io::Result<(OwnedFd, Status)> {
    let (folder, name) = parent.of(path)?;
    #[cfg(target_os = "linux")]
    match create_marked(folder, name, &mark) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {}
        result => return result,
    }
    let file = open_with(folder, name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, FILE_MODE)?;
    let status = Status::of(&file)?;
    mark(&file, &status);
    Ok((file, status))
}

#[cfg(target_os = "linux")]
fn create_marked(
    folder: BorrowedFd<'_>,
    name: &str,
    mark: impl Fn(&OwnedFd, &Status),
) -> io::Result<(OwnedFd, Status)> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = openat(folder, ".", flags, FILE_MODE)?;
    let status = Status::of(&file)?;
    mark(&file, &status);
    give_name(&file, folder, name)?;
    Ok((file, status))
}

/// Gives a name to a file without one. Before Linux 6.10, a process needs a capability to do so by the descriptor
/// alone; without it, the file is reached by its path in `/proc`, which costs half as much again.
#[cfg(target_os = "linux")]
fn give_name(file: &OwnedFd, parent: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::fs::linkat;

    static NEEDS_PATH: AtomicBool = AtomicBool::new(false);
    if !NEEDS_PATH.load(Ordering::Relaxed) {
        match linkat(file, "", parent, name, AtFlags::EMPTY_PATH) {
            // The folder may be gone too; the second attempt reports that.
            Err(Errno::NOENT) => {}
            result => return Ok(result?),
        }
    }
    let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(CWD, unnamed, parent, name, AtFlags::SYMLINK_FOLLOW)?;
    NEEDS_PATH.store(true, Ordering::Relaxed);
    Ok(())
}

/// Gives an open file a second name in an existing folder of the same file system. Fails if the name is taken.
pub(crate) fn link(file: &OwnedFd, parent: &mut Parent<'_>, path: &str) -> io::Result<()> {
    let (folder, name) = parent.of(path)?;
    #[cfg(target_os = "linux")]
    return give_name(file, folder, name);
    #[cfg(not(target_os = "linux"))]
    return {
        let _ = (file, folder, name);
        Err(io::ErrorKind::Unsupported.into())
    };
}

/// Gives an open file another name in the folder in which it is. Fails if the name is taken. Where that cannot be done
/// in one step, a kill may leave the file with both names.
pub(crate) fn rename_new(file: &OwnedFd, parent: &mut Parent<'_>, from: &str, to: &str) -> io::Result<()> {
    let root = parent.root();
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{RenameFlags, renameat_with};

        let name = from.rsplit_once('/').map_or(from, |(_, name)| name);
        let (folder, new_name) = parent.of(to)?;
        match renameat_with(folder, name, folder, new_name, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
            result => return Ok(result?),
        }
    }
    link(file, parent, to)?;
    unlink(root, from)
}

/// Syncs the names in a folder below `root`; `.` is `root` itself.
pub(crate) fn sync_folder(root: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    Ok(rustix::fs::fsync(open_folder_below(root, path)?)?)
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
    let (folder, name) = parent_of(root, path)?;
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
    match path.rsplit_once('/') {
        Some((folders, name)) => Ok(openat(walk_folders(root, folders)?, name, flags, mode)?),
        None => Ok(openat(root, path, flags, mode)?),
    }
}

/// Opens the folder of a path, unless that is `root`, and returns the last component.
fn parent_of<'p>(root: BorrowedFd<'_>, path: &'p str) -> io::Result<(Option<OwnedFd>, &'p str)> {
    Ok(match path.rsplit_once('/') {
        Some((folders, name)) => (Some(open_folder_below(root, folders)?), name),
        None => (None, path),
    })
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
        create_folders(root.as_fd(), path, |_| ())?;
        create_new(&mut Parent::new(root.as_fd()), path, |_, _| ()).map(|(file, _)| file)
    }

    #[test]
    fn files_are_created_with_their_folders() {
        let folder = tempfile::tempdir().unwrap();
        let root = open_folder_at(folder.path()).unwrap();
        for path in ["a/b/c.txt", "plain", "a/d/new"] {
            create(&root, path).unwrap();
        }
        assert!(may_hold(root.as_fd(), "a/b") && !may_hold(root.as_fd(), "a/c") && !may_hold(root.as_fd(), "c/b"));
        let error = create_new(&mut Parent::new(root.as_fd()), "a/d/new", |_, _| ()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(folder.path().join("a/b/c.txt").is_file() && folder.path().join("plain").is_file());
        assert!(open_both(&root, "a/b/c.txt").iter().all(Result::is_ok));
    }

    /// The folder of several files is opened once.
    #[test]
    fn a_folder_is_opened_once_for_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let root = open_folder_at(folder.path()).unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        let mut parent = Parent::new(root.as_fd());
        let create = |parent: &mut Parent<'_>, path| create_new(parent, path, |_, _| ());
        create(&mut parent, "a/b/1").unwrap();
        fs::rename(folder.path().join("a"), folder.path().join("c")).unwrap();
        create(&mut parent, "a/b/2").unwrap();
        assert!(folder.path().join("c/b/2").is_file());
        // Another folder is opened, and so is the same one after it was closed.
        for path in ["a/3", "a/b/4"] {
            assert_eq!(create(&mut parent, path).unwrap_err().kind(), io::ErrorKind::NotFound);
        }
        create(&mut parent, "c/b/5").unwrap();
        fs::rename(folder.path().join("c"), folder.path().join("a")).unwrap();
        parent.close();
        assert_eq!(
            create(&mut parent, "c/b/6").unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        create(&mut parent, "7").unwrap();
    }

    /// A kill between the creation and the mark would leave a file that is not recognized as the torrent's.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_has_its_mark_before_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let root = open_folder_at(folder.path()).unwrap();
        let unnamed = openat(&root, ".", OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, FILE_MODE);
        fs::create_dir(folder.path().join("a")).unwrap();
        for path in ["plain", "a/b"] {
            let is_marked_first = std::cell::Cell::new(false);
            let mark = |_: &OwnedFd, _: &Status| is_marked_first.set(!folder.path().join(path).exists());
            create_new(&mut Parent::new(root.as_fd()), path, mark).unwrap();
            assert_eq!(is_marked_first.get(), unnamed.is_ok(), "{path}");
            assert!(folder.path().join(path).is_file());
        }
    }

    /// A kill between the creation and the mark would leave a folder that counts as the user's.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_folder_has_its_mark_before_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let root = open_folder_at(folder.path()).unwrap();
        let exists = |path: &str| folder.path().join(path).exists();
        fs::create_dir(folder.path().join(NEW_FOLDER)).unwrap();
        let marked = std::cell::Cell::new(0);
        let mark = |_: &OwnedFd| {
            assert!(!exists(["a", "a/b"][marked.get()]));
            marked.set(marked.get() + 1);
        };
        create_folders(root.as_fd(), "a/b/file", mark).unwrap();
        assert_eq!(marked.get(), 2);
        assert!(exists("a/b") && !exists(NEW_FOLDER));

        fs::create_dir(folder.path().join(NEW_FOLDER)).unwrap();
        clean(root.as_fd());
        assert!(!exists(NEW_FOLDER), "left by a kill");
        fs::create_dir(folder.path().join(NEW_FOLDER)).unwrap();
        fs::write(folder.path().join(NEW_FOLDER).join("photo"), "").unwrap();
        create_folders(root.as_fd(), "c/file", |_| ()).unwrap();
        clean(root.as_fd());
        assert!(exists("c") && folder.path().join(NEW_FOLDER).join("photo").exists());
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

    /// A link in place of a parent folder is not followed.
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
