//! Labels of torrents, and the category of a torrent.

use std::collections::BTreeSet;

use bevy_ecs::prelude::*;
use serde::{Deserialize, Serialize};

/// The labels and the category of a torrent that has any.
#[derive(Component, Debug, Clone, PartialEq, Eq, Default)]
pub struct Labels {
    /// The labels, in alphabetic order.
    pub labels: BTreeSet<String>,
    /// The category.
    pub category: Option<String>,
}

impl Labels {
    /// Whether there are neither labels nor a category.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.category.is_none()
    }

    /// Returns these labels and those of `other`, with the category of `other` if that has one.
    #[must_use]
    pub fn merged(&self, other: &Self) -> Self {
        Self {
            labels: self.labels.union(&other.labels).cloned().collect(),
            category: other.category.clone().or_else(|| self.category.clone()),
        }
    }

    /// Checks the number of labels and each of them, and the category.
    ///
    /// # Errors
    /// Returns the first problem.
    pub fn check(&self, bounds: LabelBounds) -> Result<(), LabelError> {
        for label in &self.labels {
            check_label(label, "label", bounds)?;
        }
        if let Some(category) = &self.category {
            check_label(category, "category", bounds)?;
        }
        let most = bounds.max_per_torrent;
        if self.labels.len() > most {
            return Err(LabelError::TooMany { most });
        }
        Ok(())
    }
}

/// Bounds of labels, from the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelBounds {
    /// Maximum number of labels of a torrent.
    pub max_per_torrent: usize,
    /// Maximum length of a label, or of the name of a category, in bytes.
    pub max_length_bytes: usize,
}

impl LabelBounds {
    /// The upper ends of the ranges of both settings.
    pub const WIDEST: Self = Self {
        max_per_torrent: 1000,
        max_length_bytes: 255,
    };
}

/// A change of a torrent's labels and category.
///
/// ```
/// use ecs_torrent_components::labels::{Labels, LabelsPatch};
///
/// let patch = LabelsPatch { add: vec!["linux".into()], ..LabelsPatch::default() };
/// let labels = patch.apply(&Labels::default());
/// assert!(labels.labels.contains("linux"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LabelsPatch {
    /// The labels that replace the torrent's.
    pub set: Option<Vec<String>>,
    /// Labels that the torrent gets.
    pub add: Vec<String>,
    /// Labels that the torrent loses. A label that it does not have makes no difference.
    pub remove: Vec<String>,
    /// The new category, or `Some(None)` for none.
    pub category: Option<Option<String>>,
}

impl LabelsPatch {
    /// Returns the labels after the change.
    #[must_use]
    pub fn apply(&self, before: &Labels) -> Labels {
        let mut labels = match &self.set {
            Some(labels) => labels.iter().cloned().collect(),
            None => before.labels.clone(),
        };
        for label in &self.remove {
            labels.remove(label);
        }
        labels.extend(self.add.iter().cloned());
        let category = self.category.clone().unwrap_or_else(|| before.category.clone());
        Labels { labels, category }
    }
}

/// A category that has a download folder of its own. A category without one needs no definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Category {
    /// The name of the category.
    pub name: String,
    /// The folder into which torrents are downloaded that are added with the category; a relative one is relative to
    /// the download folder.
    pub folder: String,
}

/// Reasons to refuse a label or a category.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// The text cannot be a label, or the name of a category.
    #[error("{text:?} cannot be a {what}: {reason}")]
    Bad {
        /// `label` or `category`.
        what: &'static str,
        /// The text, cut to a readable length.
        text: String,
        /// The reason.
        reason: String,
    },
    /// The torrent would have too many labels.
    #[error("a torrent can have {most} labels, see labels.max_per_torrent")]
    TooMany {
        /// The maximum number.
        most: usize,
    },
}

impl LabelError {
    /// Returns the part of a request that is wrong.
    #[must_use]
    pub fn what(&self) -> &'static str {
        match self {
            Self::Bad { what, .. } => what,
            Self::TooMany { .. } => "label",
        }
    }
}

/// Checks a label, or the name of a category. Commas separate labels in lists.
fn check_label(text: &str, what: &'static str, bounds: LabelBounds) -> Result<(), LabelError> {
    let reason = if text.is_empty() {
        "it is empty".to_owned()
    } else if text.len() > bounds.max_length_bytes {
        let most = bounds.max_length_bytes;
        format!(
            "it has {} bytes, it can have {most}, see labels.max_length_bytes",
            text.len()
        )
    } else if text.trim() != text {
        "it begins or ends with white space".to_owned()
    } else if text.contains(',') {
        "it has a comma".to_owned()
    } else if text.chars().any(char::is_control) {
        "it has a control character".to_owned()
    } else {
        return Ok(());
    };
    let text = text.chars().take(MAX_SHOWN).collect();
    Err(LabelError::Bad { what, text, reason })
}

/// Maximum number of characters of a bad label in its error.
const MAX_SHOWN: usize = 80;

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(of: &[&str], category: Option<&str>) -> Labels {
        Labels {
            labels: of.iter().map(|label| (*label).to_owned()).collect(),
            category: category.map(str::to_owned),
        }
    }

    fn texts(of: &[&str]) -> Vec<String> {
        of.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn changes_replace_add_and_remove() {
        let before = labels(&["a", "b"], Some("x"));
        let patch = |set: Option<&[&str]>, add: &[&str], remove: &[&str]| LabelsPatch {
            set: set.map(texts),
            add: texts(add),
            remove: texts(remove),
            category: None,
        };
        assert_eq!(patch(None, &[], &[]).apply(&before), before);
        let changed = patch(None, &["c", "a"], &["b", "unknown"]).apply(&before);
        assert_eq!(changed, labels(&["a", "c"], Some("x")));
        let set = patch(Some(&["d"]), &["e"], &[]).apply(&before);
        assert_eq!(set, labels(&["d", "e"], Some("x")));
        let category = LabelsPatch {
            category: Some(None),
            ..LabelsPatch::default()
        };
        assert_eq!(category.apply(&before), labels(&["a", "b"], None));
        assert!(labels(&[], None).is_empty() && !labels(&[], Some("x")).is_empty());
    }

    #[test]
    fn labels_are_short_plain_and_few() {
        let bounds = LabelBounds {
            max_per_torrent: 2,
            max_length_bytes: 4,
        };
        let check = |of: &[&str], category| labels(of, category).check(bounds);
        for good in [&["a", "üb"][..], &["a b"], &[]] {
            assert_eq!(check(good, Some("x")), Ok(()), "{good:?}");
        }
        for bad in ["", " a", "a ", "a,b", "a\nb", "a\u{7f}", "abcde"] {
            let error = check(&[bad], None).unwrap_err();
            assert_eq!((error.what(), error.to_string().lines().count()), ("label", 1));
            assert_eq!(check(&[], Some(bad)).unwrap_err().what(), "category");
        }
        assert_eq!(check(&["a", "b", "c"], None), Err(LabelError::TooMany { most: 2 }));
        let long = check(&["x".repeat(1000).as_str()], None).unwrap_err().to_string();
        assert!(long.len() < 200, "{long}");
    }
}
