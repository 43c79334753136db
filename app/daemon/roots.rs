//! The folders that clients may choose as download folders.

use std::io;
use std::path::{Component, Path, PathBuf};

/// Error of a folder that torrents may not be downloaded into.
#[derive(Debug, thiserror::Error)]
pub(super) enum RootError {
    /// The folder is not below an allowed one.
    #[error("{}: not in {}, nor in a folder of api.allow_roots", root.display(), download_dir.display())]
    Outside { root: PathBuf, download_dir: PathBuf },
    /// The folder cannot be examined, or is not a folder.
    #[error("{}: {error}", root.display())]
    Unusable { root: PathBuf, error: io::Error },
}

/// The allowed folders, with all symbolic links resolved.
#[derive(Debug)]
pub(super) struct Roots {
    download_dir: PathBuf,
    others: Vec<PathBuf>,
}

impl Roots {
    /// Resolves the download folder, which is created if missing, and other folders, which may be missing.
    pub(super) fn new(download_dir: &Path, others: &[PathBuf]) -> io::Result<Self> {
        std::fs::create_dir_all(download_dir)?;
        let others = others.iter().filter_map(|root| match resolve(root) {
            Ok(root) => Some(root),
            Err(error) => {
                tracing::warn!(root = %root.display(), %error, "a folder of api.allow_roots cannot be used");
                None
            }
        });
        Ok(Self {
            download_dir: download_dir.canonicalize()?,
            others: others.collect(),
        })
    }

    /// Returns the folder that `folder` refers to, free of symbolic links. A relative path is relative to the download
    /// folder.
    pub(super) fn find(&self, folder: &Path) -> Result<PathBuf, RootError> {
        let root = self.download_dir.join(folder);
        let outside = || RootError::Outside {
            root: folder.to_owned(),
            download_dir: self.download_dir.clone(),
        };
        if root.components().any(|part| part == Component::ParentDir) {
            return Err(outside());
        }
        let found = resolve(&root).map_err(|error| RootError::Unusable { root, error })?;
        let mut allowed = std::iter::once(&self.download_dir).chain(&self.others);
        if allowed.any(|allowed| found.starts_with(allowed)) {
            Ok(found)
        } else {
            Err(outside())
        }
    }
}

/// Resolves the symbolic links of the existing part of a path, which has to be a folder.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut existing = std::path::absolute(path)?;
    let mut missing = Vec::new();
    // A dangling link exists; its name is not free.
    while let Err(error) = existing.symlink_metadata() {
        match (error.kind(), existing.file_name()) {
            (io::ErrorKind::NotFound, Some(name)) => missing.push(name.to_owned()),
            _ => return Err(error),
        }
        existing.pop();
    }
    let mut found = existing.canonicalize()?;
    if !found.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    found.extend(missing.iter().rev());
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fault 94.
    #[test]
    fn a_chosen_name_stays_inside() {
        let temporary = tempfile::tempdir().unwrap();
        let base = temporary.path().canonicalize().unwrap();
        let (inside, other) = (base.join("downloads"), base.join("other"));
        std::fs::create_dir_all(inside.join("films")).unwrap();
        std::fs::create_dir(&other).unwrap();
        std::fs::write(inside.join("file"), "").unwrap();
        let link = |target: &Path, name: &str| std::os::unix::fs::symlink(target, inside.join(name)).unwrap();
        link(&base, "up");
        link(Path::new("films"), "same");
        link(&base.join("nowhere"), "dangling");
        let roots = Roots::new(&inside, std::slice::from_ref(&other)).unwrap();
        let find = |folder: &str| roots.find(Path::new(folder)).ok();
        for (folder, found) in [
            ("", inside.clone()),
            (".", inside.clone()),
            ("new/deep", inside.join("new/deep")),
            ("same/new", inside.join("films/new")),
            (inside.join("films").to_str().unwrap(), inside.join("films")),
            (other.join("x").to_str().unwrap(), other.join("x")),
        ] {
            assert_eq!(find(folder), Some(found), "{folder}");
        }
        let beside = base.join("downloads2");
        for folder in [
            "..",
            "films/../..",
            "films/../films",
            "/",
            "/etc",
            "up",
            "up/other2",
            "dangling",
            "dangling/x",
            "file",
            "file/x",
            "nul\0byte",
            beside.to_str().unwrap(),
        ] {
            assert_eq!(find(folder), None, "{folder}");
        }
    }
}
