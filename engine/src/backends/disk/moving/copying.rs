//! Copying a file to another file system, verified.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Timespec, Timestamps, fsync, ftruncate, futimens};
use rustix::io::{Errno, pwrite};

use super::super::files::{Files, Result, read_exactly};
use crate::backends::beneath::Status;
use crate::ports::disk::{DiskAction, DiskError};

/// Bytes copied at a time: they are read back to be verified while they are in the processor's cache.
const CHUNK: usize = 256 << 10;

/// A file that is being copied.
pub(super) struct Copying {
    index: usize,
    source: OwnedFd,
    /// The file as it was when the copy began.
    status: Status,
    target: OwnedFd,
    /// Everything before it is copied.
    offset: u64,
    /// End of the bytes that are stored in one run from `offset` on: holes are not copied.
    run_end: u64,
    buffer: Vec<u8>,
    copy: Vec<u8>,
}

impl Copying {
    /// Begins to copy `source` to the empty file `target`. If the file system can share the bytes, they are shared.
    pub(super) fn begin(
        index: usize,
        (source, status): (OwnedFd, Status),
        target: OwnedFd,
        to: &Files,
    ) -> Result<Self> {
        let len = status.stamp.len;
        let offset = match share(&source, &target) {
            true => len,
            false => {
                let failed = |error: Errno| DiskError::new(DiskAction::Write, to.path(to.entry(index)), error.into());
                ftruncate(&target, len).map_err(failed)?;
                0
            }
        };
        Ok(Self {
            index,
            source,
            status,
            target,
            offset,
            run_end: offset,
            buffer: vec![0; CHUNK],
            copy: vec![0; CHUNK],
        })
    }

    pub(super) fn is_done(&self) -> bool {
        self.offset >= self.status.stamp.len
    }

    /// Copies some bytes, and returns the number of bytes by which the copy came forward.
    pub(super) fn copy_some(&mut self, from: &Files, to: &Files) -> Result<u64> {
        let begin = self.offset;
        let reading = |error| DiskError::new(DiskAction::Read, from.path(from.entry(self.index)), error);
        let writing = |error| DiskError::new(DiskAction::Write, to.path(to.entry(self.index)), error);
        if self.offset >= self.run_end {
            (self.offset, self.run_end) =
                next_run(&self.source, self.offset, self.status.stamp.len).map_err(reading)?;
        }
        let len = (self.run_end - self.offset).min(CHUNK as u64) as usize;
        let (buffer, copy) = (&mut self.buffer[..len], &mut self.copy[..len]);
        read_exactly(&self.source, self.offset, buffer).map_err(reading)?;
        write_all(&self.target, self.offset, buffer).map_err(writing)?;
        read_exactly(&self.target, self.offset, copy).map_err(writing)?;
        if buffer != copy {
            return Err(writing(io::Error::other(
                "the bytes that were written are read back differently",
            )));
        }
        self.offset += len as u64;
        Ok(self.offset - begin)
    }

    /// Makes the copy durable, and gives it the time of the original, which marks it as complete.
    pub(super) fn finish(&self, from: &Files, to: &Files) -> Result<()> {
        let reading = |error| DiskError::new(DiskAction::Read, from.path(from.entry(self.index)), error);
        let now = Status::of(&self.source).map_err(reading)?;
        if now.stamp != self.status.stamp {
            return Err(reading(io::Error::other(
                "somebody else has changed it while it was copied",
            )));
        }
        let syncing = |error: Errno| DiskError::new(DiskAction::Sync, to.path(to.entry(self.index)), error.into());
        fsync(&self.target).map_err(syncing)?;
        let time = Timespec {
            tv_sec: self.status.stamp.seconds,
            tv_nsec: self.status.stamp.nanos.into(),
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        futimens(&self.target, &times).map_err(syncing)?;
        fsync(&self.target).map_err(syncing)
    }
}

/// Lets a file share the bytes of another one, where the file system can (Btrfs, XFS).
#[cfg(target_os = "linux")]
fn share(source: &OwnedFd, target: &OwnedFd) -> bool {
    rustix::fs::ioctl_ficlone(target, source).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn share(_: &OwnedFd, _: &OwnedFd) -> bool {
    false
}

/// Returns the next run of bytes that are not a hole, from `offset` on.
#[cfg(target_os = "linux")]
fn next_run(file: &OwnedFd, offset: u64, len: u64) -> io::Result<(u64, u64)> {
    use rustix::fs::{SeekFrom, seek};

    let begin = match seek(file, SeekFrom::Data(offset)) {
        Ok(begin) => begin.min(len),
        Err(Errno::NXIO) => return Ok((len, len)),
        // A file system without holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok((offset, len)),
        Err(error) => return Err(error.into()),
    };
    let end = seek(file, SeekFrom::Hole(begin)).unwrap_or(len);
    Ok((begin, end.min(len)))
}

#[cfg(not(target_os = "linux"))]
fn next_run(_: &OwnedFd, offset: u64, len: u64) -> io::Result<(u64, u64)> {
    Ok((offset, len))
}

fn write_all(file: &OwnedFd, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match pwrite(file, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                bytes = &bytes[written..];
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
