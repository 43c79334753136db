//! A log file that is renamed when it is full.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The log file and its predecessors: `FILE`, `FILE.1`, which is the latest one, `FILE.2` and so on.
pub(in crate::cli) struct RotatingFile {
    path: PathBuf,
    file: File,
    size: u64,
    max_bytes: u64,
    max_files: usize,
}

impl RotatingFile {
    /// Opens a file, and continues it if it exists. `max_files` is at least 1.
    pub(in crate::cli) fn open(path: &Path, max_bytes: u64, max_files: usize) -> io::Result<Self> {
        let file = append_to(path)?;
        Ok(Self {
            path: path.to_owned(),
            size: file.metadata()?.len(),
            file,
            max_bytes,
            max_files,
        })
    }

    /// Appends a line. A line is never divided among two files. If a full file cannot be renamed, it gets the line and
    /// those that follow; it is renamed when as many bytes more are written.
    pub(super) fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let is_full = self.size > 0 && self.size + line.len() as u64 > self.max_bytes;
        let rotated = if is_full { self.rotate() } else { Ok(()) };
        if rotated.is_err() {
            self.size = 0;
        }
        self.file.write_all(line)?;
        self.size += line.len() as u64;
        rotated
    }

    /// Renames each file to the next number; the last one is replaced.
    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.max_files).rev() {
            let newer = match number {
                1 => self.path.clone(),
                number => self.numbered(number - 1),
            };
            match std::fs::rename(newer, self.numbered(number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    let path = self.path.display();
                    return Err(io::Error::other(format!("cannot rename {path}: {error}")));
                }
                _ => {}
            }
        }
        if self.max_files == 1 {
            std::fs::remove_file(&self.path)?;
        }
        self.file = append_to(&self.path)?;
        self.size = self.file.metadata()?.len();
        Ok(())
    }

    fn numbered(&self, number: usize) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

/// Opens a file that only its owner may read: lines name torrents and peers.
fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn full_files_are_renamed_and_the_oldest_one_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).ok();
        let mut file = RotatingFile::open(&path, 10, 3).unwrap();
        for line in ["1 234\n", "2\n", "3 456789 longer\n", "4 234\n", "5\n"] {
            file.write(line.as_bytes()).unwrap();
        }
        assert_eq!(read("log").unwrap(), "4 234\n5\n");
        assert_eq!(read("log.1").unwrap(), "3 456789 longer\n");
        assert_eq!(read("log.2").unwrap(), "1 234\n2\n");
        // A new start continues the file.
        let mut file = RotatingFile::open(&path, 10, 3).unwrap();
        file.write(b"6\n").unwrap();
        file.write(b"7\n").unwrap();
        assert_eq!(read("log").unwrap(), "7\n");
        assert_eq!(read("log.1").unwrap(), "4 234\n5\n6\n");
        assert_eq!(read("log.2").unwrap(), "3 456789 longer\n");
        assert_eq!(read("log.3"), None);
        // Nothing is lost while the file cannot be renamed.
        fs::remove_file(folder.path().join("log.1")).unwrap();
        fs::create_dir_all(folder.path().join("log.1/in-the-way")).unwrap();
        let mut stuck = RotatingFile::open(&path, 10, 2).unwrap();
        stuck.write(b"7 23456789\n").unwrap_err();
        stuck.write(b"7 3\n").unwrap_err();
        assert_eq!(read("log").unwrap(), "7\n7 23456789\n7 3\n");
        fs::remove_dir_all(folder.path().join("log.1")).unwrap();
        let mut only = RotatingFile::open(&path, 10, 1).unwrap();
        only.write(b"8 23456789\n").unwrap();
        assert_eq!(read("log").unwrap(), "8 23456789\n");
    }
}
