//! The volume of a folder.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Returns the mount point of the volume of `path`, and its device. If the path does not exist, uses the nearest
/// existing folder above it, since that is where the path would be created.
///
/// Volumes are identified by mount point, since many have a different device number each time.
pub(super) fn of(path: &Path) -> io::Result<(PathBuf, u64)> {
    let folder = fs::canonicalize(existing(path)?)?;
    let device = fs::metadata(&folder)?.dev();
    let same = |folder: &&Path| fs::metadata(folder).is_ok_and(|metadata| metadata.dev() == device);
    let mounted_at = folder.ancestors().take_while(same).last().unwrap_or(&folder);
    Ok((mounted_at.to_owned(), device))
}

fn existing(path: &Path) -> io::Result<&Path> {
    let mut nearest = path;
    loop {
        match fs::metadata(nearest) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => match nearest.parent() {
                Some(parent) if parent.as_os_str().is_empty() => return Ok(Path::new(".")),
                Some(parent) => nearest = parent,
                None => return Err(error),
            },
            Err(error) => return Err(error),
            Ok(_) => return Ok(nearest),
        }
    }
}

/// Whether a folder lies on another machine, or is served by another program. A file's modification time may then
/// change without a write: a Windows server, for example, sets it when the file is closed.
#[cfg(target_os = "linux")]
pub(super) fn is_remote(folder: &std::os::fd::OwnedFd) -> bool {
    /// Magic numbers from linux/magic.h and the file systems' own sources.
    const REMOTE: [u32; 10] = [
        0x6969,      // NFS
        0x517b,      // SMB
        0xff53_4d42, // CIFS
        0xfe53_4d42, // SMB 2 and 3
        0x6573_5546, // FUSE
        0x0102_1997, // 9P
        0x00c3_6400, // Ceph
        0x5346_414f, // AFS
        0x0bd0_0bd0, // Lustre
        0x786f_4256, // VirtualBox
    ];
    rustix::fs::fstatfs(folder).is_ok_and(|found| REMOTE.contains(&(found.f_type as u32)))
}

/// Always true: other systems do not report this, so times are not relied on.
#[cfg(not(target_os = "linux"))]
pub(super) fn is_remote(_: &std::os::fd::OwnedFd) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_not_there_lies_where_it_would_be_created() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b/c");
        assert_eq!(of(&deep).unwrap(), of(folder.path()).unwrap());
        let (mounted_at, _) = of(Path::new("/proc/self")).unwrap();
        assert_eq!(mounted_at, Path::new("/proc"));
        assert!(of(Path::new("not/there")).is_ok());
    }
}
