//! Small files as a whole: read up to a limit, created and replaced atomically.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, linkat, openat, renameat, renameat_with, unlinkat};
use rustix::io::Errno;

/// Reads all of a file.
///
/// # Errors
/// If the file cannot be read, or has more than `max` bytes.
pub fn read_bounded(file: File, max: u64) -> io::Result<Vec<u8>> {
    let len = file.metadata()?.len();
    if len > max {
        return Err(longer(max));
    }
    // One byte more than the length finds the end of the file without growing.
    read_rest(file, Vec::with_capacity(len as usize + 1), max)
}

/// Reads all of the file at a path.
///
/// # Errors
/// If the file cannot be read, or has more than `max` bytes.
pub fn read_file(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    read_bounded(File::open(path)?, max)
}

/// Reads all of a text file.
///
/// # Errors
/// If the file cannot be read, has more than `max` bytes, or is not UTF-8.
pub fn read_text(path: &Path, max: u64) -> io::Result<String> {
    let bytes = read_file(path, max)?;
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not a text file"))
}

/// Reads all of a stream, such as the standard input.
///
/// # Errors
/// If the stream cannot be read, or has more than `max` bytes.
pub fn read_stream(stream: impl Read, max: u64) -> io::Result<Vec<u8>> {
    read_rest(stream, Vec::new(), max)
}

fn read_rest(stream: impl Read, mut bytes: Vec<u8>, max: u64) -> io::Result<Vec<u8>> {
    // One byte more than allowed shows that a file, a device or a pipe is too long.
    stream.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(longer(max));
    }
    Ok(bytes)
}

fn longer(max: u64) -> io::Error {
    io::Error::other(format!("longer than {max} bytes"))
}

/// Replaces a file of a folder atomically: at every moment, and after a power failure, either the old or the new file
/// is there, complete. The new name itself is durable once the folder is synced. `temporary` is the name in this folder
/// under which the new file is written first; a file that has this name is lost.
///
/// # Errors
/// If the file cannot be written; the old one is unchanged then.
pub fn replace(folder: impl AsFd, name: &Path, temporary: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let folder = folder.as_fd();
    let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = openat(folder, temporary, flags, Mode::from_raw_mode(mode));
    finish(folder, name, temporary, file, bytes, Existing::Replace)
}

/// The fate of an existing file that has the name of a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// The existing file stays, and the creation fails with [`io::ErrorKind::AlreadyExists`].
    Keep,
    /// The new file takes its place.
    Replace,
}

/// Creates a file atomically in a folder that also holds files of others: the name appears with the complete file, and
/// no other file is lost.
///
/// # Errors
/// If the file cannot be written, or the name is taken; nothing has changed then.
pub fn create(path: &Path, mode: u32, bytes: &[u8], existing: Existing) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    loop {
        let temporary = temporary_beside(path);
        match openat(CWD, &temporary, flags, Mode::from_raw_mode(mode)) {
            // A killed process that had the same number left it.
            Err(Errno::EXIST) => {}
            file => return finish(CWD, path, &temporary, Ok(file?), bytes, existing),
        }
    }
}

/// Returns a name in the folder of `path` that this process has not used before.
fn temporary_beside(path: &Path) -> PathBuf {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let number = LAST.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".ecs-torrent-{}-{number}.tmp", std::process::id()))
}

/// Writes a new file, if it could be opened, and gives it its name. Deletes it if that fails.
fn finish(
    folder: BorrowedFd<'_>,
    name: &Path,
    temporary: &Path,
    file: rustix::io::Result<OwnedFd>,
    bytes: &[u8],
    existing: Existing,
) -> io::Result<()> {
    let write = || {
        let mut file = File::from(file?);
        file.write_all(bytes)?;
        file.sync_all()?;
        match existing {
            Existing::Replace => Ok(renameat(folder, temporary, folder, name)?),
            Existing::Keep => rename_new_at((folder, temporary), (folder, name)),
        }
    };
    write().inspect_err(|_: &io::Error| {
        let _ = unlinkat(folder, temporary, AtFlags::empty());
    })
}

/// Renames a file, unless the new name is taken.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] if the new name is taken; the file has its old name after any error.
pub fn rename_new(old: &Path, new: &Path) -> io::Result<()> {
    rename_new_at((CWD, old), (CWD, new))
}

/// Moves a file to another folder, unless the name is taken there.
pub(super) fn rename_new_between(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &Path) -> io::Result<()> {
    rename_new_at((from, name), (to, name))
}

fn rename_new_at((from, old): (BorrowedFd<'_>, &Path), (to, new): (BorrowedFd<'_>, &Path)) -> io::Result<()> {
    match renameat_with(from, old, to, new, RenameFlags::NOREPLACE) {
        // The file system cannot do that in one step.
        Err(Errno::INVAL | Errno::NOSYS) => {
            linkat(from, old, to, new, AtFlags::empty())?;
            // Once the new name is there, a second one is a blemish and no failure.
            let _ = unlinkat(from, old, AtFlags::empty());
            Ok(())
        }
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, b"12345").unwrap();
        let read = |max| read_bounded(File::open(&path).unwrap(), max);
        assert_eq!(read(5).unwrap(), b"12345");
        assert_eq!(read(u64::MAX).unwrap(), b"12345");
        assert_eq!(read(4).unwrap_err().to_string(), "longer than 4 bytes");
        let endless = read_bounded(File::open("/dev/zero").unwrap(), 1000).unwrap_err();
        assert_eq!(endless.to_string(), "longer than 1000 bytes");
        assert_eq!(read_stream(&b"12345"[..], 5).unwrap(), b"12345");
        assert!(read_stream(&b"12345"[..], 4).is_err());
        assert_eq!(read_text(&path, 5).unwrap(), "12345");
        assert!(read_text(&path, 4).is_err());
        fs::write(&path, b"\xff").unwrap();
        assert_eq!(read_text(&path, 5).unwrap_err().to_string(), "not a text file");
    }

    #[test]
    fn a_new_file_replaces_another_one_only_on_request() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        create(&path, 0o600, b"first", Existing::Keep).unwrap();
        let taken = create(&path, 0o600, b"second", Existing::Keep).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"first");
        create(&path, 0o600, b"third", Existing::Replace).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"third");
        // A file that has the name of the next temporary file is not lost.
        let next = temporary_beside(&path);
        let (start, number) = next
            .to_str()
            .unwrap()
            .trim_end_matches(".tmp")
            .rsplit_once('-')
            .unwrap();
        let number: u64 = number.parse().unwrap();
        let in_the_way: Vec<_> = (number + 1..number + 20)
            .map(|next| format!("{start}-{next}.tmp"))
            .collect();
        in_the_way
            .iter()
            .for_each(|path| fs::write(path, "somebody's").unwrap());
        create(&path, 0o600, b"fourth", Existing::Replace).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"fourth");
        assert!(in_the_way.iter().all(|path| fs::read(path).unwrap() == b"somebody's"));
        assert!(create(&folder.path().join("no/folder"), 0o600, b"x", Existing::Keep).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1 + in_the_way.len());
    }

    #[test]
    fn a_failed_replacement_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let handle = File::open(folder.path()).unwrap();
        let put = |name: &str, bytes| replace(&handle, Path::new(name), Path::new("new"), 0o600, bytes);
        put("file", b"old").unwrap();
        put("file", b"newer").unwrap();
        assert_eq!(fs::read(folder.path().join("file")).unwrap(), b"newer");
        fs::create_dir(folder.path().join("taken")).unwrap();
        assert!(put("taken", b"x").is_err(), "a folder has this name");
        let mut names: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["file", "taken"]);
    }
}
