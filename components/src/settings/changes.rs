//! Settings that users change while an engine runs.
//!
//! The changes override the settings of the configuration and are kept in the state folder. [`Effect`] says when a
//! changed setting takes effect.

use std::collections::{BTreeMap, BTreeSet};

use bevy_ecs::prelude::*;
use ecs_torrent_protocol::text::plain_type_error;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Numbers, SettingError, Settings};
use crate::commands::Reply;
use crate::networks::Network;

/// The name of the setting of the folder for incomplete torrents.
pub const INCOMPLETE_DIR: &str = "storage.incomplete_dir";

/// Settings that differ from the configuration, by name (`section.name`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SettingChanges(pub BTreeMap<String, Value>);

/// A change of some settings: the new value of each, or `None` for a return to the configuration's value.
///
/// ```
/// use ecs_torrent_components::settings::SettingsPatch;
///
/// let patch = SettingsPatch::default()
///     .set("limits.download_bytes_per_s", 500_000)
///     .reset("limits.upload_bytes_per_s");
/// assert_eq!(patch.0.len(), 2);
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SettingsPatch(pub BTreeMap<String, Option<Value>>);

impl SettingsPatch {
    /// Adds a new value.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.insert(name.to_owned(), Some(value.into()));
        self
    }

    /// Adds a return to the value of the configuration.
    #[must_use]
    pub fn reset(mut self, name: &str) -> Self {
        self.0.insert(name.to_owned(), None);
        self
    }
}

/// When a change of a setting takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// At once.
    Now,
    /// When the engine starts again: a thread, a socket or a table is made once from the value.
    AfterRestart,
    /// The setting is changed in the configuration only: it locates the changes themselves, or limits the folders of
    /// the API's clients.
    ConfigurationOnly,
}

impl Effect {
    /// Returns the effect of the setting `section.name`.
    #[must_use]
    pub fn of(section: &str, name: &str) -> Self {
        match (section, name) {
            ("session", "state_dir") | ("storage", "download_dir") => Self::ConfigurationOnly,
            ("net", "connect_timeout_s")
            | ("storage", "check_memory_bytes" | "incomplete_dir" | "part_suffix")
            | ("dht", "announce_interval_s") => Self::Now,
            ("net" | "storage" | "dht", _)
            | ("tick", "min_interval_us")
            | ("trackers", "reach")
            | ("metadata", "trackers_only")
            | ("pex" | "lsd", "enabled")
            | ("lifecycle", "max_restarts" | "restart_window_s") => Self::AfterRestart,
            _ => Self::Now,
        }
    }
}

/// Reasons to refuse a change of settings. Nothing is changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// No setting has the name.
    #[error("{0}: there is no such setting")]
    Unknown(String),
    /// The setting is changed in the configuration only.
    #[error("{0}: it is changed in the configuration file only")]
    ConfigurationOnly(String),
    /// The value is of another kind.
    #[error("{name}: {reason}")]
    Value {
        /// The setting, as `section.name`.
        name: String,
        /// The problem, human-readable.
        reason: String,
    },
    /// The engine would not work with the value.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The network that is to be unblocked is not blocked.
    #[error("{0} is not blocked")]
    NotBlocked(Network),
    /// The changes cannot be saved.
    #[error("the settings cannot be saved: {0}")]
    Unsaved(String),
}

impl ChangeError {
    /// Returns the name of the setting at fault, as `section.name`.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        match self {
            Self::Unknown(name) | Self::ConfigurationOnly(name) | Self::Value { name, .. } => Some(name.clone()),
            Self::Setting(error) => {
                let (section, name) = error.key();
                Some(format!("{section}.{name}"))
            }
            Self::NotBlocked(_) | Self::Unsaved(_) => None,
        }
    }
}

impl Settings {
    /// Returns the settings as JSON: sections with settings. Bytes of paths that are not UTF-8 are replaced.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut settings = self.clone();
        let folders = [
            Some(&mut settings.storage.download_dir),
            settings.storage.incomplete_dir.as_mut(),
            settings.session.state_dir.as_mut(),
        ];
        for folder in folders.into_iter().flatten() {
            *folder = folder.to_string_lossy().into_owned().into();
        }
        serde_json::to_value(settings).unwrap_or_default()
    }

    /// Returns these settings with changes, checked as a whole.
    ///
    /// # Errors
    /// Returns the first change that is not possible.
    pub fn with(&self, changes: &SettingChanges) -> Result<Self, ChangeError> {
        let (mut tree, numbers) = (self.to_json(), self.numbers());
        let mut changed = self.clone();
        for (key, value) in &changes.0 {
            let unknown = || ChangeError::Unknown(key.clone());
            let (section, name) = key.split_once('.').ok_or_else(unknown)?;
            let slot = tree.get_mut(section).and_then(|section| section.get_mut(name));
            let slot = slot.ok_or_else(unknown)?;
            if Effect::of(section, name) == Effect::ConfigurationOnly {
                return Err(ChangeError::ConfigurationOnly(key.clone()));
            }
            let number = numbers
                .iter()
                .find(|number| (number.section, number.name) == (section, name));
            let integer = value.as_i64().map(i128::from).or(value.as_u64().map(i128::from));
            if let (Some(number), Some(integer)) = (number, integer) {
                number.check(integer)?;
            }
            *slot = value.clone();
            changed = Self::deserialize(&tree).map_err(|error| ChangeError::Value {
                name: key.clone(),
                reason: plain_type_error(&error.to_string()),
            })?;
        }
        let chosen = changes.0.contains_key(INCOMPLETE_DIR);
        let chosen = chosen.then(|| changed.storage.incomplete_dir.take());
        changed.take_folders(self);
        if let Some(folder) = chosen {
            changed.storage.incomplete_dir = folder;
        }
        changed.check()?;
        Ok(changed)
    }

    /// Takes the folders of other settings, which JSON may have changed.
    fn take_folders(&mut self, other: &Self) {
        self.storage.download_dir.clone_from(&other.storage.download_dir);
        self.storage.incomplete_dir.clone_from(&other.storage.incomplete_dir);
        self.session.state_dir.clone_from(&other.session.state_dir);
    }

    /// Returns the names of the settings that differ, as `section.name`.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let (ours, theirs) = (self.to_json(), other.to_json());
        let sections = ours.as_object().into_iter().flatten();
        let names = sections.flat_map(|(section, settings)| {
            let settings = settings.as_object().into_iter().flatten();
            settings.map(move |(name, value)| (section, name, value))
        });
        names
            .filter(|(section, name, value)| theirs[section.as_str()][name.as_str()] != **value)
            .map(|(section, name, _)| format!("{section}.{name}"))
            .collect()
    }
}

/// The settings of an engine in layers: the configuration, overridden by the changes.
#[derive(Resource, Debug, Clone, Default)]
pub struct SettingLayers {
    /// The settings of the configuration.
    pub configured: Settings,
    /// The saved changes.
    pub changes: SettingChanges,
    /// The settings with which the engine works. Changes that need a restart are not part of them.
    pub active: Settings,
    /// Maximum number of connections that the system allows this process; it bounds `peers.max_connections`.
    pub max_connections: Option<usize>,
}

impl SettingLayers {
    /// Applies saved changes on top of the settings of the configuration. Changes that are not possible with them are
    /// dropped; the errors say why.
    #[must_use]
    pub fn new(configured: Settings, mut changes: SettingChanges) -> (Self, Vec<ChangeError>) {
        let mut errors = Vec::new();
        let active = loop {
            let error = match configured.with(&changes) {
                Ok(active) => break active,
                Err(error) => error,
            };
            let before = changes.0.len();
            if let ChangeError::Setting(SettingError::Order { section, large, .. }) = &error {
                changes.0.remove(&format!("{section}.{large}"));
            }
            if let Some(name) = error.name() {
                changes.0.remove(&name);
            }
            errors.push(error);
            if changes.0.len() == before {
                // The configuration itself is at fault.
                changes.0.clear();
                break configured.clone();
            }
        };
        let layers = Self {
            configured,
            changes,
            active,
            max_connections: None,
        };
        (layers, errors)
    }

    /// Returns the changes with a patch applied to them.
    ///
    /// # Errors
    /// If the settings would not be valid as a whole.
    pub fn patched(&self, changes: &SettingChanges, patch: &SettingsPatch) -> Result<SettingChanges, ChangeError> {
        let mut patched = changes.clone();
        for (name, value) in &patch.0 {
            match value {
                Some(value) => drop(patched.0.insert(name.clone(), value.clone())),
                None if self.has(name) => drop(patched.0.remove(name)),
                None => return Err(ChangeError::Unknown(name.clone())),
            }
        }
        self.configured.with(&patched)?;
        Ok(patched)
    }

    fn has(&self, name: &str) -> bool {
        let tree = self.configured.to_json();
        let section_and_name = name.split_once('.');
        section_and_name.is_some_and(|(section, name)| tree.get(section).is_some_and(|tree| tree.get(name).is_some()))
    }

    /// Applies saved changes: to the active settings, and to those that the systems read, as far as they take effect at
    /// once. Returns the names of the settings that took effect.
    pub fn apply(&mut self, changes: SettingChanges, settings: &mut Settings) -> Vec<String> {
        let Ok(target) = self.configured.with(&changes) else {
            return Vec::new();
        };
        self.changes = changes;
        let mut names = self.active.differences(&target);
        names.retain(|name| effect_of(name) == Effect::Now);
        let (mut active, from, mut read) = (self.active.to_json(), target.to_json(), settings.to_json());
        for name in &names {
            let Some((section, name)) = name.split_once('.') else {
                continue;
            };
            for tree in [&mut active, &mut read] {
                tree[section][name] = from[section][name].clone();
            }
        }
        // The values come from settings, so they are of the right kinds.
        for (settings, tree) in [(&mut self.active, &active), (settings, &read)] {
            if let Ok(mut changed) = Settings::deserialize(tree) {
                changed.take_folders(settings);
                if names.iter().any(|name| name == INCOMPLETE_DIR) {
                    changed
                        .storage
                        .incomplete_dir
                        .clone_from(&target.storage.incomplete_dir);
                }
                *settings = changed;
            }
        }
        if let Some(most) = self.max_connections {
            settings.peers.max_connections = settings.peers.max_connections.min(most);
        }
        names
    }

    /// Returns the names of the settings that a restart would change.
    #[must_use]
    pub fn needs_restart(&self) -> Vec<String> {
        let target = self.configured.with(&self.changes);
        let mut names = target.map_or_else(|_| Vec::new(), |target| self.active.differences(&target));
        names.retain(|name| effect_of(name) == Effect::AfterRestart);
        names
    }
}

fn effect_of(name: &str) -> Effect {
    name.split_once('.')
        .map_or(Effect::Now, |(section, name)| Effect::of(section, name))
}

/// Changes settings.
#[derive(Debug)]
pub struct ChangeSettings {
    /// The changes.
    pub patch: SettingsPatch,
    /// Answered when the changes are durable and in force, or with the reason for the refusal.
    pub reply: Reply<Result<ChangedSettings, ChangeError>>,
}

/// Adds networks to the blocked ones (`peers.blocked`) and removes others. Unlike a new value of the setting, it keeps
/// the changes that others make at the same time.
#[derive(Debug)]
pub struct EditBlocked {
    /// The change.
    pub edit: BlockedEdit,
    /// Answered with the blocked networks when the change is durable and in force, or with the reason for the refusal.
    pub reply: Reply<Result<Vec<Network>, ChangeError>>,
}

/// A change of the blocked networks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BlockedEdit {
    /// Networks to block. Networks that are blocked already stay where they are.
    pub add: Vec<Network>,
    /// Networks to unblock.
    pub remove: Vec<Network>,
}

impl BlockedEdit {
    /// Returns the blocked networks after the change.
    ///
    /// # Errors
    /// [`ChangeError::NotBlocked`] with the first network that cannot be removed.
    pub fn apply(&self, blocked: &[Network]) -> Result<Vec<Network>, ChangeError> {
        let mut known: BTreeSet<Network> = blocked.iter().copied().collect();
        let mut removed = BTreeSet::new();
        for network in &self.remove {
            if !known.remove(network) {
                return Err(ChangeError::NotBlocked(*network));
            }
            removed.insert(*network);
        }
        let mut edited = blocked.to_vec();
        edited.retain(|network| !removed.contains(network));
        edited.extend(self.add.iter().filter(|network| known.insert(**network)));
        Ok(edited)
    }
}

/// A change of settings that was carried out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ChangedSettings {
    /// The settings of the change that take effect only after a restart, as `section.name`.
    pub needs_restart: Vec<String>,
}

/// Some settings have changed. Observers apply values that they have copied; other features read [`Settings`].
#[derive(Event, Debug, Clone)]
pub struct SettingsChanged {
    /// The names of the settings, as `section.name`.
    pub names: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(of: &[(&str, Value)]) -> SettingChanges {
        SettingChanges(of.iter().map(|(name, value)| ((*name).into(), value.clone())).collect())
    }

    #[test]
    fn a_change_is_checked_with_all_other_settings() {
        let settings = Settings::default();
        let refused = |name: &str, value: Value| settings.with(&changes(&[(name, value)])).unwrap_err().to_string();
        assert_eq!(refused("limits", 1.into()), "limits: there is no such setting");
        assert_eq!(refused("limits.x", 1.into()), "limits.x: there is no such setting");
        assert!(refused("session.state_dir", "x".into()).contains("configuration file only"));
        assert!(refused("storage.download_dir", "x".into()).contains("configuration file only"));
        let error = refused("storage.incomplete_dir", "".into());
        assert_eq!(error, "storage.incomplete_dir: the path is empty");
        for (value, reason) in [
            (Value::from(-5), "-5 is too small"),
            (100.into(), "100 is too small"),
            (u64::MAX.into(), "is too large"),
            (1.5.into(), "a whole number from 0 on is expected, not 1.5"),
            ("fast".into(), "not the text \"fast\""),
            (Value::Null, "a whole number from 0 on is expected"),
        ] {
            let error = refused("limits.upload_bytes_per_s", value);
            assert!(
                error.starts_with("limits.upload_bytes_per_s: ") && error.contains(reason),
                "{error}"
            );
        }
        let error = refused("requests.min_depth", 20.into());
        assert_eq!(
            error,
            "requests.min_depth: 20 is more than requests.initial_depth, which is 16"
        );
        let both = changes(&[("requests.min_depth", 20.into()), ("requests.initial_depth", 30.into())]);
        let changed = settings.with(&both).unwrap();
        assert_eq!((changed.requests.min_depth, changed.requests.initial_depth), (20, 30));
        let names = settings.differences(&changed);
        assert_eq!(names, ["requests.initial_depth", "requests.min_depth"]);
    }

    #[test]
    fn changes_that_no_longer_fit_the_configuration_are_dropped_by_name() {
        let mut configured = Settings::default();
        configured.requests.initial_depth = 10;
        let saved = changes(&[
            ("requests.min_depth", 12.into()),
            ("limits.upload_bytes_per_s", 20_000.into()),
            ("gone.setting", 1.into()),
        ]);
        let (layers, errors) = SettingLayers::new(configured, saved);
        assert_eq!(layers.changes, changes(&[("limits.upload_bytes_per_s", 20_000.into())]));
        assert_eq!(layers.active.limits.upload_bytes_per_s, 20_000);
        assert_eq!(layers.active.requests.min_depth, 4);
        let names: Vec<_> = errors.iter().filter_map(ChangeError::name).collect();
        assert_eq!(names, ["gone.setting", "requests.min_depth"]);
    }

    #[test]
    fn only_what_may_change_at_run_time_changes() {
        let (mut layers, _) = SettingLayers::new(Settings::default(), SettingChanges::default());
        layers.max_connections = Some(900);
        let mut settings = layers.active.clone();
        let patch = SettingsPatch::default()
            .set("net.threads", 3)
            .set("peers.max_connections", 5000)
            .set("storage.incomplete_dir", "/incomplete")
            .set("uploads.slots", 3);
        let patched = layers.patched(&layers.changes, &patch).unwrap();
        let names = layers.apply(patched, &mut settings);
        assert_eq!(
            names,
            ["peers.max_connections", "storage.incomplete_dir", "uploads.slots"]
        );
        assert_eq!(settings.storage.incomplete_dir, Some("/incomplete".into()));
        assert_eq!((settings.net.threads, settings.uploads.slots), (1, 3));
        assert_eq!(
            settings.peers.max_connections, 900,
            "the process may not open more files"
        );
        assert_eq!(layers.needs_restart(), ["net.threads"]);
        // The saved changes apply as a whole at the next start.
        let (next, _) = SettingLayers::new(Settings::default(), layers.changes.clone());
        assert_eq!((next.active.net.threads, next.active.uploads.slots), (3, 3));

        let back = SettingsPatch::default().reset("net.threads").reset("uploads.slots");
        let back = back.reset("storage.incomplete_dir");
        let patched = layers.patched(&layers.changes, &back).unwrap();
        assert_eq!(
            layers.apply(patched, &mut settings),
            ["storage.incomplete_dir", "uploads.slots"]
        );
        assert_eq!(settings.storage.incomplete_dir, None);
        assert_eq!(settings.uploads.slots, 8);
        assert_eq!(layers.needs_restart(), Vec::<String>::new());
        let unknown = SettingsPatch::default().reset("uploads.slot");
        let error = layers.patched(&layers.changes, &unknown).unwrap_err();
        assert_eq!(error.name().as_deref(), Some("uploads.slot"));
    }
}
