//! Small files as a whole: read up to a limit, replaced atomically.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};

/// Reads all of a file.
///
/// # Errors
/// If the file cannot be read, or has more than `max` bytes.
pub fn read_bounded(file: File, max: u64) -> io::Result<Vec<u8>> {
    let len = file.metadata()?.len().min(max);
    // One byte more than the length finds the end of the file without growing; one more than allowed shows that a file,
    // a device or a pipe is too long.
    let mut bytes = Vec::with_capacity(len as usize + 1);
    file.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::other(format!("longer than {max} bytes")));
    }
    Ok(bytes)
}

/// Replaces a file of a folder atomically: at every moment, and after a power failure, either the old or the new file is
/// there, complete. The new name itself is durable once the folder is synced. `temporary` is the name in this folder
/// under which the new file is written first; a file that has this name is lost.
///
/// # Errors
/// If the file cannot be written; the old one is unchanged then.
pub fn replace(folder: impl AsFd, name: &Path, temporary: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let folder = folder.as_fd();
    let write = || {
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mut file = File::from(openat(folder, temporary, flags, Mode::from_raw_mode(mode))?);
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(renameat(folder, temporary, folder, name)?)
    };
    write().inspect_err(|_: &io::Error| {
        let _ = unlinkat(folder, temporary, AtFlags::empty());
    })
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
