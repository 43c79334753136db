//! Location of a torrent's files: the folder and the name that the user chose.

use std::path::{Component, PathBuf};
use std::sync::Arc;

use ecs_torrent_components::commands::{AddError, AddOptions, TorrentSource};
use ecs_torrent_components::names::NewNames;
use ecs_torrent_components::settings::{LabelSettings, Settings};
use ecs_torrent_protocol::metainfo::Metainfo;
use ecs_torrent_protocol::safe_path::check_name;

/// Returns the download folder that the options name directly or by their category, if any.
pub(super) fn root_of(options: &AddOptions, settings: &Settings) -> Option<PathBuf> {
    let download_dir = &settings.storage.download_dir;
    let of_category = || {
        let folder = settings.labels.folder_of(options.labels.category.as_deref()?)?;
        Some(download_dir.join(folder))
    };
    let root = options.root.clone().or_else(of_category);
    match &options.into {
        Some(into) => Some(root.unwrap_or_else(|| download_dir.to_owned()).join(into)),
        None => root,
    }
}

/// Refuses folders and names that lead out of the download folder or would be changed, selections without a file, and
/// labels that cannot be used.
pub(super) fn check(options: &AddOptions, source: &TorrentSource, labels: &LabelSettings) -> Result<(), AddError> {
    options.labels.check(labels.bounds())?;
    if let TorrentSource::Metainfo(metainfo) = source
        && options.select.excludes_all(&metainfo.info.files)
    {
        let torrent = metainfo.info.name.as_str().into();
        return Err(AddError::NothingSelected { torrent });
    }
    if let Some(name) = &options.name {
        check_name(name).map_err(|reason| AddError::BadName {
            name: name.clone(),
            reason,
        })?;
    }
    let is_below = |into: &PathBuf| {
        let is_plain = |part| matches!(part, Component::Normal(_));
        into.components().next().is_some() && into.components().all(is_plain)
    };
    match &options.into {
        Some(into) if !is_below(into) => Err(AddError::BadFolder { into: into.clone() }),
        _ => Ok(()),
    }
}

/// Returns the torrent with another name for its file or folder; its bytes and hashes stay.
pub(super) fn renamed(metainfo: &Arc<Metainfo>, name: &str) -> Arc<Metainfo> {
    let names = NewNames {
        name: Some(name.to_owned()),
        ..NewNames::default()
    };
    names.apply(metainfo)
}

#[cfg(test)]
mod tests {
    use ecs_torrent_components::labels::{Category, Labels};
    use ecs_torrent_components::selection::FileSelection;

    use super::*;

    #[test]
    fn names_and_folders_that_lead_elsewhere_are_refused() {
        let named = |name: &str| AddOptions {
            name: Some(name.into()),
            ..AddOptions::default()
        };
        let source = TorrentSource::Metainfo(crate::testing::content().0);
        let checked = |options: &AddOptions| check(options, &source, &LabelSettings::default());
        for name in ["", ".", "..", ".ssh", "a/b", "a\\b", "a\nb", "a\u{202e}b"] {
            assert!(
                matches!(checked(&named(name)), Err(AddError::BadName { .. })),
                "{name:?}"
            );
        }
        let into = |folder: &str| AddOptions {
            into: Some(folder.into()),
            ..AddOptions::default()
        };
        for folder in ["", "..", "a/..", "a/../b", "/a", "./a/../.."] {
            assert!(
                matches!(checked(&into(folder)), Err(AddError::BadFolder { .. })),
                "{folder:?}"
            );
        }
        assert_eq!(checked(&named("an album (2)")), Ok(()));
        assert_eq!(checked(&into("new/deep")), Ok(()));
        for (file, is_refused) in [(0, false), (1, true)] {
            let options = AddOptions {
                select: FileSelection::new([file..=file], []).unwrap(),
                ..AddOptions::default()
            };
            assert_eq!(
                matches!(checked(&options), Err(AddError::NothingSelected { .. })),
                is_refused
            );
        }
        let mut settings = Settings::default();
        settings.storage.download_dir = "/downloads".into();
        let root = |options: &AddOptions| root_of(options, &settings);
        assert_eq!(root(&into("new")), Some("/downloads/new".into()));
        assert_eq!(root(&AddOptions::default()), None);
    }

    /// The folder of a category applies if the user names no folder.
    #[test]
    fn a_category_names_a_folder() {
        let mut settings = Settings::default();
        settings.storage.download_dir = "/downloads".into();
        for (name, folder) in [("tv", "shows"), ("iso", "/iso")] {
            let (name, folder) = (name.into(), folder.into());
            settings.labels.categories.push(Category { name, folder });
        }
        let of = |category: &str, into: Option<&str>, root: Option<&str>| {
            let labels = Labels {
                category: Some(category.into()),
                ..Labels::default()
            };
            let options = AddOptions {
                labels,
                into: into.map(Into::into),
                root: root.map(Into::into),
                ..AddOptions::default()
            };
            root_of(&options, &settings)
        };
        assert_eq!(of("tv", None, None), Some("/downloads/shows".into()));
        assert_eq!(of("iso", Some("new"), None), Some("/iso/new".into()));
        assert_eq!(of("iso", None, Some("/other")), Some("/other".into()));
        assert_eq!(of("unknown", None, None), None);
    }
}
