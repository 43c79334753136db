//! Injected disk faults.

use std::io;

use ecs_torrent_protocol::time::Timestamp;
use rustix::io::Errno;

/// Operations of a disk that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskOperation {
    /// Checking which files exist.
    Look,
    /// Creating files and reserving space.
    Prepare,
    /// Reading blocks.
    Read,
    /// Writing blocks.
    Write,
    /// Syncing to stable storage. After a failure, the unsynced data never becomes durable, even if a later sync
    /// succeeds: operating systems drop it.
    Sync,
    /// Deleting files.
    Delete,
    /// A step of a move to another place.
    Move,
}

/// The kind of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFault {
    /// EIO: the device is broken.
    Io,
    /// ENOSPC: no space, regardless of the capacity.
    Full,
    /// EROFS: the system has remounted the volume read-only.
    ReadOnly,
    /// A partial write, followed by EIO. Equal to [`DiskFault::Io`] for other operations.
    Short,
}

/// Duration of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasting {
    /// The next operations, this many.
    Next(u32),
    /// Until a simulated time.
    Until(Timestamp),
    /// Until it is cleared.
    Always,
}

impl DiskFault {
    pub(in super::super) fn error(self) -> io::Error {
        let errno = match self {
            Self::Io | Self::Short => Errno::IO,
            Self::Full => Errno::NOSPC,
            Self::ReadOnly => Errno::ROFS,
        };
        errno.into()
    }
}

/// Active faults, by operation.
pub(in super::super) struct Faults<O>(Vec<(O, DiskFault, Lasting)>);

impl<O> Default for Faults<O> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<O: Copy + PartialEq> Faults<O> {
    pub(in super::super) fn add(&mut self, operation: O, fault: DiskFault, lasting: Lasting) {
        self.0.push((operation, fault, lasting));
    }

    pub(in super::super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The fault that an operation gets now, if any.
    pub(in super::super) fn strike(&mut self, operation: O, now: Timestamp) -> Option<DiskFault> {
        self.0.retain(|(.., lasting)| match lasting {
            Lasting::Next(left) => *left > 0,
            Lasting::Until(end) => now < *end,
            Lasting::Always => true,
        });
        let (_, fault, lasting) = self.0.iter_mut().find(|(failing, ..)| *failing == operation)?;
        if let Lasting::Next(left) = lasting {
            *left -= 1;
        }
        Some(*fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_last_for_their_duration() {
        let mut faults = Faults::default();
        let at = Timestamp::from_nanos;
        faults.add(DiskOperation::Read, DiskFault::Io, Lasting::Next(2));
        faults.add(DiskOperation::Write, DiskFault::Full, Lasting::Until(at(5)));
        let mut count = |operation, now| (0..3).filter(|_| faults.strike(operation, at(now)).is_some()).count();
        assert_eq!(count(DiskOperation::Read, 0), 2);
        assert_eq!((count(DiskOperation::Write, 4), count(DiskOperation::Write, 5)), (3, 0));
        faults.add(DiskOperation::Sync, DiskFault::Io, Lasting::Always);
        assert_eq!(faults.strike(DiskOperation::Sync, at(9)), Some(DiskFault::Io));
        faults.clear();
        assert_eq!(faults.strike(DiskOperation::Sync, at(9)), None);
    }
}
