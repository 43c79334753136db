//! The nearest existing ancestor of a path: the folder in which something missing would be created.

use std::fs::{self, Metadata};
use std::io;
use std::path::Path;

/// Returns the nearest ancestor of a path that exists, or the path itself, and its metadata. Links are followed.
///
/// # Errors
/// If an ancestor cannot be examined, or none exists.
pub fn nearest_existing(path: &Path) -> io::Result<(&Path, Metadata)> {
    for ancestor in path.ancestors() {
        // The last ancestor of a relative path is empty.
        let ancestor = if ancestor.as_os_str().is_empty() {
            Path::new(".")
        } else {
            ancestor
        };
        match fs::metadata(ancestor) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found.map(|metadata| (ancestor, metadata)),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_would_be_created_in_the_nearest_folder() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        fs::write(folder.join("file"), "x").unwrap();
        let nearest = |path: &str| nearest_existing(&folder.join(path)).map(|(path, _)| path.to_owned());
        assert_eq!(nearest("a/b").unwrap(), folder);
        assert_eq!(nearest("file").unwrap(), folder.join("file"));
        assert_eq!(nearest("file/below").unwrap_err().kind(), io::ErrorKind::NotADirectory);
        std::os::unix::fs::symlink("nowhere", folder.join("dangling")).unwrap();
        assert_eq!(nearest("dangling/x").unwrap(), folder);
        assert_eq!(nearest_existing(Path::new("not/there")).unwrap().0, Path::new("."));
    }
}
