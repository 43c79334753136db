//! The volume of a folder: its mount point and its file system.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ecs_torrent_components::session::VolumeId;

use crate::backends::nearest::nearest_existing;
use crate::ports::disk::Volume;

/// A mounted volume.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mounted {
    mount_point: PathBuf,
    /// The type of the file system, if the system reports it.
    kind: Option<u32>,
    /// The identity of the file system, if it has one that stays the same over mounts.
    id: Option<VolumeId>,
}

/// The reason why a volume is not the expected one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WrongVolume {
    #[error("nothing is mounted at {}", .0.display())]
    Unmounted(PathBuf),
    #[error(
        "another volume is mounted at {} than the one that has the data; mount that one, or remove the torrent and add it \
         again",
        .0.display()
    )]
    Another(PathBuf),
}

/// Returns the volume of `path`. If the path does not exist, uses the nearest existing folder above it, since that is
/// where the path would be created.
pub(super) fn of(path: &Path) -> io::Result<Mounted> {
    let folder = fs::canonicalize(nearest_existing(path)?.0)?;
    let device = fs::metadata(&folder)?.dev();
    let same = |folder: &&Path| fs::metadata(folder).is_ok_and(|metadata| metadata.dev() == device);
    let mount_point = folder.ancestors().take_while(same).last().unwrap_or(&folder).to_owned();
    let (kind, id) = identify(&folder, device);
    Ok(Mounted { mount_point, kind, id })
}

impl Mounted {
    /// Checks that this is the expected volume, and returns it. Compares the identities of the file systems if both are
    /// known, and the mount points otherwise, because device numbers may change with each mount.
    pub(super) fn check(self, expected: Option<&Volume>) -> Result<Volume, WrongVolume> {
        let known = expected.and_then(|expected| expected.id.clone());
        let is_same = known.is_some() && self.id == known;
        // A volume mounted further down was mounted on purpose, unless the torrent has data on another one.
        if let Some(Volume { mount_point, .. }) = expected
            && !is_same
            && *mount_point != self.mount_point
            && mount_point.starts_with(&self.mount_point)
        {
            return Err(WrongVolume::Unmounted(mount_point.clone()));
        }
        let is_another = match (&known, &self.id) {
            (Some(known), Some(id)) => known.id != id.id,
            (Some(known), None) => self.kind.is_some_and(|kind| kind != known.kind),
            (None, _) => false,
        };
        if is_another {
            return Err(WrongVolume::Another(self.mount_point));
        }
        Ok(Volume {
            mount_point: self.mount_point,
            id: self.id.or(known),
        })
    }
}

/// File systems that derive `f_fsid` from the UUID, or from a random number per mount. Numbers from linux/magic.h and
/// the file systems' own sources. Other file systems derive it from the device number, which another volume may get.
#[cfg(target_os = "linux")]
const WITH_STABLE_FSID: [u32; 5] = [
    0xef53,      // ext2, ext3, ext4
    0x9123_683e, // Btrfs
    0xca45_1a4e, // bcachefs
    0x2fc1_2fc1, // ZFS
    0x0102_1994, // tmpfs
];

/// The links to block devices by the UUID of their file system, which udev maintains.
#[cfg(target_os = "linux")]
const BY_UUID: &str = "/dev/disk/by-uuid";

/// Returns the type of a folder's file system and, if there is one, its identity.
#[cfg(target_os = "linux")]
fn identify(folder: &Path, device: u64) -> (Option<u32>, Option<VolumeId>) {
    let Ok(found) = rustix::fs::statfs(folder) else {
        return (None, None);
    };
    let kind = found.f_type as u32;
    let id = if WITH_STABLE_FSID.contains(&kind) {
        let fsid = rustix::fs::statvfs(folder).map_or(0, |found| found.f_fsid);
        (fsid != 0).then(|| format!("{fsid:016x}"))
    } else {
        uuid_of(device, Path::new(BY_UUID))
    };
    (Some(kind), id.map(|id| VolumeId { kind, id }))
}

#[cfg(not(target_os = "linux"))]
fn identify(_: &Path, _: u64) -> (Option<u32>, Option<VolumeId>) {
    (None, None)
}

/// Returns the UUID of the file system on a block device. `None` for file systems without a device, such as NFS.
#[cfg(target_os = "linux")]
fn uuid_of(device: u64, links: &Path) -> Option<String> {
    use std::os::unix::fs::FileTypeExt;

    let is_it = |link: &fs::DirEntry| {
        let found = fs::metadata(link.path());
        found.is_ok_and(|found| found.file_type().is_block_device() && found.rdev() == device)
    };
    let link = fs::read_dir(links).ok()?.flatten().find(is_it)?;
    link.file_name().into_string().ok()
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

    fn mounted(mount_point: &str, kind: u32, id: &str) -> Mounted {
        let id = (!id.is_empty()).then(|| VolumeId { kind, id: id.into() });
        Mounted {
            mount_point: mount_point.into(),
            kind: Some(kind),
            id,
        }
    }

    fn volume(mount_point: &str, id: Option<(u32, &str)>) -> Volume {
        Volume {
            mount_point: mount_point.into(),
            id: id.map(|(kind, id)| VolumeId { kind, id: id.into() }),
        }
    }

    #[test]
    fn a_path_that_is_not_there_lies_where_it_would_be_created() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b/c");
        assert_eq!(of(&deep).unwrap(), of(folder.path()).unwrap());
        assert_eq!(of(Path::new("/proc/self")).unwrap().mount_point, Path::new("/proc"));
        assert!(of(Path::new("not/there")).is_ok());
    }

    #[test]
    fn the_identity_of_a_file_system_decides_where_it_is_known() {
        let usual = volume("/data", Some((1, "a")));
        let another = || Err(WrongVolume::Another("/data".into()));
        assert_eq!(mounted("/data", 1, "a").check(Some(&usual)), Ok(usual.clone()));
        assert_eq!(mounted("/data", 1, "b").check(Some(&usual)), another());
        assert_eq!(mounted("/data", 2, "").check(Some(&usual)), another(), "another type");
        assert_eq!(
            mounted("/data", 2, "a").check(Some(&usual)),
            Ok(volume("/data", Some((2, "a")))),
            "another driver"
        );
        assert_eq!(
            mounted("/data", 1, "").check(Some(&usual)),
            Ok(usual.clone()),
            "what was known once stays known"
        );
        let elsewhere = volume("/mnt", Some((1, "a")));
        assert_eq!(mounted("/mnt", 1, "a").check(Some(&usual)), Ok(elsewhere.clone()));
        assert_eq!(
            mounted("/", 1, "a").check(Some(&elsewhere)),
            Ok(volume("/", Some((1, "a"))))
        );
        assert_eq!(
            mounted("/", 1, "b").check(Some(&usual)),
            Err(WrongVolume::Unmounted("/data".into()))
        );
    }

    #[test]
    fn the_mount_point_decides_otherwise() {
        let usual = volume("/mnt/data", None);
        let unmounted = Err(WrongVolume::Unmounted("/mnt/data".into()));
        assert_eq!(mounted("/", 1, "a").check(Some(&usual)), unmounted);
        for place in ["/mnt/data", "/mnt/data/below", "/other"] {
            let found = mounted(place, 1, "").check(Some(&usual));
            assert_eq!(found, Ok(volume(place, None)), "a volume that somebody mounted");
        }
        assert_eq!(
            mounted("/mnt/data", 1, "a").check(None),
            Ok(volume("/mnt/data", Some((1, "a"))))
        );
    }

    /// File systems without a stable number are known by the links of their block devices.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_block_device_is_found_by_its_link() {
        use std::os::unix::fs::{FileTypeExt, symlink};

        let links = tempfile::tempdir().unwrap();
        symlink("/dev/null", links.path().join("no-block-device")).unwrap();
        symlink("/not/there", links.path().join("dangling")).unwrap();
        let devices = fs::read_dir("/dev").unwrap().flatten();
        let is_block_device = |device: &fs::DirEntry| device.file_type().is_ok_and(|kind| kind.is_block_device());
        let Some(device) = devices.into_iter().find(is_block_device) else {
            return;
        };
        let number = device.metadata().unwrap().rdev();
        assert_eq!(uuid_of(number, links.path()), None);
        symlink(device.path(), links.path().join("1234-ABCD")).unwrap();
        assert_eq!(uuid_of(number, links.path()), Some("1234-ABCD".into()));
        assert_eq!(uuid_of(number, Path::new("/not/there")), None);
    }
}
