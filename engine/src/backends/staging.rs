//! The files of a state folder, for exports, and additions of many files at once, for imports.
//!
//! An addition first writes its files to the folder `STAGED` of the state folder. Renaming that folder to `DECIDED`
//! decides the addition: before that, a killed process leaves nothing that counts; after that, the next program that
//! locks the state folder finishes what was begun.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use ecs_torrent_components::session::{EXTENSION, FileId, FileStamp};
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::metainfo::MetainfoLimits;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

use super::{beneath, whole_file};
use crate::ports::state::{BlobName, MAX_BLOB_BYTES};

/// The subfolder for sessions.
pub(super) const SESSIONS: &str = "state";

/// The subfolder in which an addition is prepared.
const STAGED: &str = "import.tmp";

/// The subfolder of an addition that is decided, and may be unfinished.
const DECIDED: &str = "import";

/// Maximum size of a session file. The session of a torrent with half a million files takes a tenth of it.
pub(super) const MAX_SESSION_BYTES: u64 = 512 << 20;

pub(super) const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);

/// Sessions contain passkeys of trackers, and the keys of the torrents' files.
const FILE_MODE: u32 = 0o600;

/// Extension of torrent files.
const TORRENT: &str = "torrent";

/// Extension of blobs.
const BLOB: &str = "blob";

/// Returns the identity and the stamp of a file below a folder, as a session records them. Follows no links.
///
/// # Errors
/// If something else than a file or nothing is there, or it cannot be examined.
pub fn examine(root: &Path, path: &str) -> io::Result<Option<(FileId, FileStamp)>> {
    let opened = beneath::open_folder_at(root).and_then(|root| beneath::open(root.as_fd(), path, false));
    match opened {
        Ok((_, status)) => Ok(Some((status.id, status.stamp))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A file of a state folder. The order is that of the names within one kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StateFile {
    /// The session of a torrent.
    Session(InfoHash),
    /// The metainfo of a torrent.
    Metainfo(InfoHash),
    /// The state of a feature.
    Blob(BlobName),
}

impl StateFile {
    /// Parses the name of a file. `None` for other files: temporary ones, and those that were set aside.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let (stem, extension) = name.rsplit_once('.')?;
        let file = match extension {
            EXTENSION => Self::Session(stem.parse().ok()?),
            TORRENT => Self::Metainfo(stem.parse().ok()?),
            BLOB => Self::Blob(BlobName::new(stem).ok()?),
            _ => return None,
        };
        // An info-hash has other spellings too.
        (file.name() == name).then_some(file)
    }

    /// Returns the name of the file.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Session(torrent) => format!("{torrent}.{EXTENSION}"),
            Self::Metainfo(torrent) => format!("{torrent}.{TORRENT}"),
            Self::Blob(name) => format!("{}.{BLOB}", name.as_str()),
        }
    }

    /// Returns the maximum size of the file in bytes.
    #[must_use]
    pub fn max_bytes(&self) -> u64 {
        match self {
            Self::Session(_) => MAX_SESSION_BYTES,
            Self::Metainfo(_) => MetainfoLimits::default().bencode.max_bytes as u64,
            Self::Blob(_) => MAX_BLOB_BYTES as u64,
        }
    }
}

/// The files of a state folder that an engine may be using. Each file is the old or the new version as a whole.
#[derive(Debug)]
pub struct StateFiles {
    sessions: OwnedFd,
}

impl StateFiles {
    /// Opens a state folder for reading.
    ///
    /// # Errors
    /// If the folder does not exist or cannot be opened.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let outer = rustix::fs::open(state_dir, FOLDER, Mode::empty())?;
        let sessions = openat(&outer, SESSIONS, FOLDER | OFlags::NOFOLLOW, Mode::empty())?;
        Ok(Self { sessions })
    }

    /// Lists the files, ordered by their names.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn list(&self) -> io::Result<Vec<StateFile>> {
        let mut files = Vec::new();
        for name in names_of(self.sessions.as_fd())? {
            files.extend(name.to_str().ok().and_then(StateFile::parse));
        }
        files.sort_by_cached_key(StateFile::name);
        Ok(files)
    }

    /// Whether the folder has a file.
    #[must_use]
    pub fn has(&self, file: &StateFile) -> bool {
        beneath::Status::at(self.sessions.as_fd(), file.name().as_str()).is_ok()
    }

    /// Whether the folder has a torrent's session or metainfo.
    #[must_use]
    pub fn has_torrent(&self, torrent: InfoHash) -> bool {
        self.has(&StateFile::Session(torrent)) || self.has(&StateFile::Metainfo(torrent))
    }

    /// Reads a file. `None` if it has vanished meanwhile.
    ///
    /// # Errors
    /// If the file cannot be read, is not a regular file, or is too long.
    pub fn read(&self, file: &StateFile) -> io::Result<Option<Vec<u8>>> {
        read_regular(self.sessions.as_fd(), &file.name(), file.max_bytes())
    }
}

/// Reads a regular file of a folder, without following a link. `None` if it does not exist.
pub(super) fn read_regular(folder: BorrowedFd<'_>, name: &str, max: u64) -> io::Result<Option<Vec<u8>>> {
    // A pipe that nobody writes to would hold up the thread for ever.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match openat(folder, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    whole_file::read_bounded(file, max).map(Some)
}

/// Files that are added to a state folder together, or not at all. Only one may exist for a state folder at a time: the
/// caller holds the folder's lock, or is the only holder in this program.
#[derive(Debug)]
pub struct Staging {
    outer: OwnedFd,
    staged: OwnedFd,
    sessions: OwnedFd,
}

impl Staging {
    /// Begins an addition, and deletes the files of an earlier one that was not decided.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn begin(state_dir: &Path) -> io::Result<Self> {
        let outer = rustix::fs::open(state_dir, FOLDER, Mode::empty())?;
        let sessions = openat(&outer, SESSIONS, FOLDER | OFlags::NOFOLLOW, Mode::empty())?;
        finish(outer.as_fd(), sessions.as_fd())?;
        rustix::fs::mkdirat(&outer, STAGED, Mode::RWXU)?;
        let staged = openat(&outer, STAGED, FOLDER | OFlags::NOFOLLOW, Mode::empty())?;
        Ok(Self {
            outer,
            staged,
            sessions,
        })
    }

    /// Adds a file.
    ///
    /// # Errors
    /// If the file cannot be written, or was added before.
    pub fn add(&mut self, file: &StateFile, bytes: &[u8]) -> io::Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let created = openat(&self.staged, file.name(), flags, Mode::from_raw_mode(FILE_MODE))?;
        let mut created = File::from(created);
        created.write_all(bytes)?;
        // On Linux, one sync covers all files.
        if cfg!(not(target_os = "linux")) {
            created.sync_all()?;
        }
        Ok(())
    }

    /// Adds all files to the state folder, durably. A file that the state folder has keeps its content.
    ///
    /// # Errors
    /// If a folder cannot be written. Then the state folder has all files or none, or has them all when it is locked
    /// the next time.
    pub fn commit(self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        rustix::fs::syncfs(&self.staged)?;
        rustix::fs::fsync(&self.staged)?;
        renameat(&self.outer, STAGED, &self.outer, DECIDED)?;
        rustix::fs::fsync(&self.outer)?;
        finish(self.outer.as_fd(), self.sessions.as_fd())
    }
}

impl Drop for Staging {
    /// Deletes an addition that was not decided.
    fn drop(&mut self) {
        if let Err(error) = delete_folder(self.outer.as_fd(), STAGED) {
            tracing::debug!(%error, "cannot delete the files of an import");
        }
    }
}

/// Finishes the addition that was decided, and deletes one that was not.
pub(super) fn finish(outer: BorrowedFd<'_>, sessions: BorrowedFd<'_>) -> io::Result<()> {
    delete_folder(outer, STAGED)?;
    let decided = match openat(outer, DECIDED, FOLDER | OFlags::NOFOLLOW, Mode::empty()) {
        Ok(decided) => decided,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let names = names_of(decided.as_fd())?;
    let mut files: Vec<_> = names
        .iter()
        .filter_map(|name| StateFile::parse(name.to_str().ok()?))
        .collect();
    // A session comes after the metainfo that it belongs to.
    files.sort_by_key(|file| matches!(file, StateFile::Session(_)));
    for file in files {
        let name = file.name();
        match whole_file::rename_new_between(decided.as_fd(), sessions, Path::new(&name)) {
            // The state folder has got the file meanwhile, from an engine.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result?,
        }
    }
    rustix::fs::fsync(sessions)?;
    delete_folder(outer, DECIDED)?;
    Ok(rustix::fs::fsync(outer)?)
}

/// Deletes a folder that contains files only, if it exists.
fn delete_folder(outer: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let folder = match openat(outer, name, FOLDER | OFlags::NOFOLLOW, Mode::empty()) {
        Ok(folder) => folder,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for name in names_of(folder.as_fd())? {
        unlinkat(&folder, name, AtFlags::empty())?;
    }
    Ok(unlinkat(outer, name, AtFlags::REMOVEDIR)?)
}

/// Returns the names of the files in a folder.
fn names_of(folder: BorrowedFd<'_>) -> io::Result<Vec<std::ffi::CString>> {
    let is_itself = |name: &CStr| matches!(name.to_bytes(), b"." | b"..");
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if !is_itself(entry.file_name()) && entry.file_type() != FileType::Directory {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const FIRST: InfoHash = InfoHash([1; 20]);
    const SECOND: InfoHash = InfoHash([2; 20]);

    fn state_dir() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(SESSIONS)).unwrap();
        folder
    }

    fn names(state_dir: &Path) -> Vec<String> {
        let files = StateFiles::open(state_dir).unwrap().list().unwrap();
        files.iter().map(StateFile::name).collect()
    }

    #[test]
    fn only_names_of_a_state_folder_are_names() {
        let hash = FIRST.to_string();
        for name in [
            format!("{hash}.ron"),
            format!("{hash}.torrent"),
            "dht-4.blob".to_owned(),
        ] {
            assert_eq!(StateFile::parse(&name).unwrap().name(), name);
        }
        let upper = InfoHash([0xab; 20]).to_string().to_uppercase();
        for name in ["../a.blob", "a/b.blob", ".blob", "x.ron", "token", "a.blob.damaged", ""] {
            assert_eq!(StateFile::parse(name), None, "{name:?}");
        }
        assert_eq!(StateFile::parse(&format!("{upper}.ron")), None);
    }

    #[test]
    fn files_are_added_together_and_replace_none() {
        let folder = state_dir();
        let kept = folder.path().join(SESSIONS).join(StateFile::Session(FIRST).name());
        fs::write(&kept, "old").unwrap();
        let mut staging = Staging::begin(folder.path()).unwrap();
        for file in [StateFile::Session(FIRST), StateFile::Session(SECOND)] {
            staging.add(&file, b"new").unwrap();
        }
        let twice = staging.add(&StateFile::Session(SECOND), b"other").unwrap_err();
        assert_eq!(twice.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(
            names(folder.path()),
            [StateFile::Session(FIRST).name()],
            "nothing is decided yet"
        );
        staging.commit().unwrap();
        assert_eq!(names(folder.path()).len(), 2);
        assert_eq!(fs::read(&kept).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left");
    }

    /// A kill before the decision leaves nothing, a kill after it leaves everything.
    #[test]
    fn a_killed_addition_is_whole_or_nothing() {
        let folder = state_dir();
        let mut staging = Staging::begin(folder.path()).unwrap();
        staging.add(&StateFile::Session(FIRST), b"new").unwrap();
        std::mem::forget(staging);
        drop(Staging::begin(folder.path()).unwrap());
        assert!(names(folder.path()).is_empty());
        // The first of three files was moved before the kill.
        let files = [
            StateFile::Metainfo(FIRST),
            StateFile::Session(FIRST),
            StateFile::Session(SECOND),
        ];
        fs::create_dir(folder.path().join(DECIDED)).unwrap();
        fs::write(folder.path().join(SESSIONS).join(files[0].name()), "new").unwrap();
        for file in &files[1..] {
            fs::write(folder.path().join(DECIDED).join(file.name()), "new").unwrap();
        }
        drop(Staging::begin(folder.path()).unwrap());
        assert_eq!(names(folder.path()).len(), 3);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left");
    }
}
