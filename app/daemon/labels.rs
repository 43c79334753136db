//! Labels and categories in requests.

use std::path::PathBuf;

use serde::Deserialize;

use super::Shared;
use super::answers::Refusal;
use super::requests::Query;
use crate::{Labels, LabelsPatch};

/// A change of labels: all of them, or some that are added and removed.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a list of labels, or an object with `add` and `remove`, is expected"
)]
pub(super) enum LabelsChange {
    Set(Vec<String>),
    Edit(LabelsEdit),
}

/// Labels to add and to remove.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct LabelsEdit {
    add: Vec<String>,
    remove: Vec<String>,
}

/// Returns the change of a torrent's labels and category.
pub(super) fn patch(change: Option<LabelsChange>, category: Option<Option<String>>) -> LabelsPatch {
    let mut patch = LabelsPatch {
        category,
        ..LabelsPatch::default()
    };
    match change {
        Some(LabelsChange::Set(labels)) => patch.set = Some(labels),
        Some(LabelsChange::Edit(LabelsEdit { add, remove })) => (patch.add, patch.remove) = (add, remove),
        None => {}
    }
    patch
}

/// Returns the labels and the category with which a torrent is added.
pub(super) fn given(query: &Query) -> Labels {
    Labels {
        labels: query.all("label").map(str::to_owned).collect(),
        category: query.one("category").map(str::to_owned),
    }
}

/// Returns the download folder of a category, if it has one.
pub(super) async fn folder_of(shared: &Shared, category: &str) -> Result<Option<PathBuf>, Refusal> {
    let settings = shared.torrents.settings().await?.settings;
    Ok(settings.labels.folder_of(category).map(PathBuf::from))
}
