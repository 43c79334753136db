//! Selections of files by index and by pattern, made before the files are known.

use std::ops::RangeInclusive;

use ecs_torrent_protocol::files::FileTable;
use globset::{Glob, GlobSet, GlobSetBuilder};
use serde::{Deserialize, Serialize};

/// Maximum number of ranges and patterns of a selection. Each file is compared with each of them.
pub const MAX_SELECTORS: usize = 256;

/// Maximum length of a pattern in bytes. The compiled form of a pattern is many times larger than its text.
pub const MAX_GLOB_BYTES: usize = 1024;

/// Files that are chosen before the torrent's files are known: by index, as in a magnet link (BEP 53), or by pattern.
/// A file that one of the selectors names is wanted, and every other file is skipped.
///
/// ```
/// use ecs_torrent_components::selection::FileSelection;
///
/// let selection = FileSelection::new([0..=0, 2..=4], ["*.flac"]).unwrap();
/// assert!(!selection.is_empty());
/// assert!(FileSelection::new([], ["[a-"]).is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FileSelection {
    /// First and last indexes of runs of files.
    files: Vec<(u32, u32)>,
    /// Patterns of paths below the download folder.
    globs: Vec<String>,
}

/// Reasons why files cannot be selected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectionError {
    /// A pattern cannot be read.
    #[error("{glob:?} is not a pattern: {reason}")]
    BadGlob {
        /// The pattern.
        glob: String,
        /// The reason.
        reason: String,
    },
    /// A run of files ends before it begins.
    #[error("{0}-{1} is not a range of files: it ends before it begins")]
    Reversed(u32, u32),
    /// There are more than [`MAX_SELECTORS`] ranges or patterns.
    #[error("more than {MAX_SELECTORS} ranges and patterns of files")]
    TooMany,
}

impl FileSelection {
    /// Selects the files in `ranges`, counted from 0, and those whose path matches one of `globs`. In a pattern, `*`
    /// matches any part of a path, also across folders.
    ///
    /// # Errors
    /// If a pattern or range is invalid, or if there are too many.
    pub fn new<'g>(
        ranges: impl IntoIterator<Item = RangeInclusive<u32>>,
        globs: impl IntoIterator<Item = &'g str>,
    ) -> Result<Self, SelectionError> {
        let mut selection = Self::default();
        for range in ranges {
            let (first, last) = range.into_inner();
            if first > last {
                return Err(SelectionError::Reversed(first, last));
            }
            selection.files.push((first, last));
        }
        for glob in globs {
            compile(glob)?;
            selection.globs.push(glob.to_owned());
        }
        match selection.files.len() + selection.globs.len() > MAX_SELECTORS {
            true => Err(SelectionError::TooMany),
            false => Ok(selection),
        }
    }

    /// Whether nothing is selected, so that the selection does not affect any file.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.globs.is_empty()
    }

    /// Returns whether each file of a table is selected. Selectors that name no file have no effect.
    #[must_use]
    pub fn selected(&self, files: &FileTable) -> Vec<bool> {
        let globs = self.compiled();
        let entries = files.files().iter();
        let mut selected: Vec<bool> = match globs.is_empty() {
            true => vec![false; entries.len()],
            false => entries.map(|file| globs.is_match(&*file.path)).collect(),
        };
        for &(first, last) in &self.files {
            let end = selected.len().min((last as usize).saturating_add(1));
            if let Some(run) = selected.get_mut(first as usize..end) {
                run.fill(true);
            }
        }
        selected
    }

    /// Whether the selection leaves nothing of a torrent with these files.
    #[must_use]
    pub fn excludes_all(&self, files: &FileTable) -> bool {
        let mut files = files.files().iter().zip(self.selected(files));
        !self.is_empty() && !files.any(|(file, is_selected)| file.is_stored() && is_selected)
    }

    /// Returns the patterns in a form that can be matched. A session that was edited by hand may have invalid ones,
    /// which match nothing.
    fn compiled(&self) -> GlobSet {
        let mut set = GlobSetBuilder::new();
        let globs = self.globs.iter().take(MAX_SELECTORS);
        globs.filter_map(|glob| compile(glob).ok()).for_each(|glob| {
            set.add(glob);
        });
        set.build().unwrap_or_else(|_| GlobSet::empty())
    }
}

/// A pattern of paths, such as `*.flac`. `*` matches any part of a path, also across folders.
#[derive(Debug, Clone)]
pub struct GlobMatcher(globset::GlobMatcher);

impl GlobMatcher {
    /// Reads a pattern.
    ///
    /// # Errors
    /// If the pattern is invalid or too long.
    pub fn new(glob: &str) -> Result<Self, SelectionError> {
        compile(glob).map(|glob| Self(glob.compile_matcher()))
    }

    /// Whether a path matches the pattern.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        self.0.is_match(path)
    }
}

fn compile(glob: &str) -> Result<Glob, SelectionError> {
    let bad = |reason: String| SelectionError::BadGlob {
        glob: glob.chars().take(80).collect(),
        reason,
    };
    if glob.len() > MAX_GLOB_BYTES {
        return Err(bad(format!("it is longer than {MAX_GLOB_BYTES} bytes")));
    }
    let parsed = Glob::new(glob).map_err(|error| bad(error.kind().to_string()))?;
    // A set reports patterns that are too large when they are compiled.
    let is_usable = GlobSetBuilder::new().add(parsed.clone()).build();
    is_usable.map(|_| parsed).map_err(|error| bad(error.kind().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn useless_selections_are_refused() {
        let new = |ranges: &[RangeInclusive<u32>], glob: &str| FileSelection::new(ranges.iter().cloned(), [glob]);
        assert!(matches!(new(&[], "[a"), Err(SelectionError::BadGlob { .. })));
        let long = "a".repeat(MAX_GLOB_BYTES + 1);
        assert!(matches!(new(&[], &long), Err(SelectionError::BadGlob { .. })));
        let reversed = RangeInclusive::new(2, 1);
        assert_eq!(new(&[reversed], "*"), Err(SelectionError::Reversed(2, 1)));
        assert_eq!(new(&vec![0..=1; MAX_SELECTORS], "*"), Err(SelectionError::TooMany));
        // Patterns that expand are refused or matched quickly.
        let _ = new(&[], &"{a,b}".repeat(200));
        let _ = new(&[], &"**/".repeat(300));
    }
}
