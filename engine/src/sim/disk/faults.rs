//! What goes wrong with a disk, when it is told to.

use std::io;

use ecs_torrent_protocol::time::Timestamp;
use rustix::io::Errno;

/// What a disk does, as far as it can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskOperation {
    /// Looking which files are there.
    Look,
    /// Creating files and reserving space.
    Prepare,
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Bringing to the platter. What was written and not synced is lost to the platter by such a failure, even where a
    /// later sync succeeds: systems forget it.
    Sync,
    /// Deleting.
    Delete,
}

/// How it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFault {
    /// EIO: the device is broken.
    Io,
    /// ENOSPC: no space, whatever the capacity.
    Full,
    /// EROFS: the system has made it read-only.
    ReadOnly,
    /// A write of which a part is written, and then EIO. The same as [`DiskFault::Io`] for what is no write.
    Short,
}

/// How long something fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasting {
    /// The next so many times.
    Next(u32),
    /// Until a point in the simulation's time.
    Until(Timestamp),
    /// Until it is mended.
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

/// Faults that are in force, by what they are faults of.
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

    /// How an operation fails now, if it does.
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
    fn faults_last_as_long_as_they_are_told() {
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
