//! Small volumes of memory, mounted for one test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::skipping::skip;

/// Whether volumes can be mounted. Where they cannot, `test` is told to be skipped, which is a failure under
/// `REQUIRE_ALL=1`; it ends then.
pub fn can_mount(test: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        skip(test, "mounting takes root");
    }
    is_root
}

/// A mounted volume, taken away at the end.
pub struct Volume {
    place: PathBuf,
}

impl Volume {
    /// A volume of `len` bytes at `place`, which is created.
    pub fn new(place: &Path, len: usize) -> Self {
        fs::create_dir_all(place).unwrap();
        mount(&["-t", "tmpfs", "-o", &format!("size={len}"), "tmpfs"], place);
        Self {
            place: place.to_owned(),
        }
    }

    /// The same volume at another place, too.
    pub fn again(&self, place: &Path) -> Self {
        fs::create_dir_all(place).unwrap();
        mount(&["--bind", self.place.to_str().unwrap()], place);
        Self {
            place: place.to_owned(),
        }
    }

    /// Allows no more writes.
    pub fn make_read_only(&self) {
        mount(&["-o", "remount,ro"], &self.place);
    }

    /// Fills it up with one file, which is returned.
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
}

impl Drop for Volume {
    /// Takes it away, whoever still has files open on it.
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.place).status();
    }
}

fn mount(arguments: &[&str], place: &Path) {
    let output = Command::new("mount").args(arguments).arg(place).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
