//! Small memory-backed volumes, mounted for one test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::skipping::skip;
use crate::unshare::{can_unshare, run_again};

/// Environment variable that is set in the process that runs a test in a mount namespace of its own.
const MARK: &str = "ECS_TORRENT_MOUNT_NAMESPACE";

/// Returns whether volumes can be mounted here; a test ends if not. Without root, first runs the test of this name in a
/// user and mount namespace of its own. If there are no such namespaces either, the test is skipped, which is a failure
/// under `REQUIRE_ALL=1`.
pub fn can_mount(test: &str) -> bool {
    let is_possible = |namespaces: &[&str]| can_unshare(namespaces, &["true"]);
    let is_root = rustix::process::geteuid().is_root();
    if is_root && (std::env::var_os(MARK).is_some() || is_possible(&["--mount"])) {
        return true;
    }
    let namespace = ["--map-root-user", "--mount"];
    if !is_possible(&namespace) {
        skip(test, "mounting takes root, or user namespaces");
        return false;
    }
    run_again(test, &namespace, MARK);
    false
}

/// A mounted volume, which is unmounted on drop.
pub struct Volume {
    place: PathBuf,
}

impl Volume {
    /// Mounts a volume of `len` bytes at `place`, which is created.
    pub fn new(place: &Path, len: usize) -> Self {
        fs::create_dir_all(place).unwrap();
        mount(&["-t", "tmpfs", "-o", &format!("size={len}"), "tmpfs"], place);
        Self {
            place: place.to_owned(),
        }
    }

    /// Mounts a volume of `len` bytes whose names ignore case and normalization, if the kernel has such volumes, or
    /// else an ordinary one.
    pub fn folding(place: &Path, len: usize) -> Self {
        fs::create_dir_all(place).unwrap();
        let options = format!("size={len},casefold");
        let folding = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(place)
            .output();
        if !folding.unwrap().status.success() {
            return Self::new(place, len);
        }
        let volume = Self {
            place: place.to_owned(),
        };
        // The folders of the volume inherit the attribute.
        assert!(Command::new("chattr").arg("+F").arg(place).status().unwrap().success());
        volume
    }

    /// Mounts the same volume at another place too.
    pub fn again(&self, place: &Path) -> Self {
        Self::bind(&self.place, place)
    }

    /// Mounts a folder at another place too.
    pub fn bind(folder: &Path, place: &Path) -> Self {
        fs::create_dir_all(place).unwrap();
        mount(&["--bind", folder.to_str().unwrap()], place);
        Self {
            place: place.to_owned(),
        }
    }

    /// Makes the mount read-only.
    pub fn make_read_only(&self) {
        // The option applies to the mount, not to the file system, which a user namespace may not change.
        mount(&["-o", "remount,bind,ro"], &self.place);
    }

    /// Fills the volume with one file and returns its path.
    pub fn fill(&self) -> PathBuf {
        let ballast = self.place.join("ballast");
        let mut zeros = fs::File::open("/dev/zero").unwrap();
        let filled = std::io::copy(&mut zeros, &mut fs::File::create(&ballast).unwrap());
        assert_eq!(filled.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        ballast
    }

    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Unmounts the volume without force.
    ///
    /// # Panics
    /// If a file or folder on it is still open.
    #[track_caller]
    pub fn unmount(self) {
        let output = Command::new("umount").arg(&self.place).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::mem::forget(self);
    }
}

impl Drop for Volume {
    /// Unmounts the volume, even if files on it are still open.
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.place).status();
    }
}

fn mount(arguments: &[&str], place: &Path) {
    let output = Command::new("mount").args(arguments).arg(place).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
