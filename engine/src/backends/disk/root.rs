//! The download folder, while a job uses it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::Stat;

use crate::backends::beneath;

/// A download folder, opened when it is first needed.
pub(super) struct Root<'p> {
    path: &'p Path,
    folder: Option<OwnedFd>,
}

impl<'p> Root<'p> {
    pub(super) fn new(path: &'p Path) -> Self {
        Self { path, folder: None }
    }

    /// Opens a file to be read, and tells how it is.
    pub(super) fn open(&mut self, path: &str) -> io::Result<(OwnedFd, Stat)> {
        beneath::open(self.folder()?, path, false)
    }

    /// Opens a file to be written, created where it is not there, and tells how it is.
    pub(super) fn open_or_create(&mut self, path: &str) -> io::Result<(OwnedFd, Stat)> {
        beneath::create(self.created_folder()?, path)
    }

    /// The same where none is expected to be there; one that is new needs no look.
    pub(super) fn create(&mut self, path: &str) -> io::Result<(OwnedFd, Option<Stat>)> {
        match beneath::create_new(self.created_folder()?, path) {
            Ok(file) => Ok((file, None)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let (file, stat) = self.open_or_create(path)?;
                Ok((file, Some(stat)))
            }
            Err(error) => Err(error),
        }
    }

    fn created_folder(&mut self) -> io::Result<BorrowedFd<'_>> {
        if let Err(error) = self.folder() {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(error);
            }
            fs::create_dir_all(self.path)?;
        }
        self.folder()
    }

    fn folder(&mut self) -> io::Result<BorrowedFd<'_>> {
        let folder = match self.folder.take() {
            Some(folder) => folder,
            None => beneath::open_root(self.path)?,
        };
        let folder: &OwnedFd = self.folder.insert(folder);
        Ok(folder.as_fd())
    }
}
