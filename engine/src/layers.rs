//! The settings of an engine when it starts: the configuration's, overridden by the saved changes.

use ecs_torrent_components::settings::{SettingChanges, SettingLayers, Settings};

/// Applies the saved changes to the settings of the configuration. `saved` is the content of the blob. Changes that
/// cannot be used are dropped with a warning: an engine must start.
pub(crate) fn read(configured: &Settings, saved: Option<&[u8]>) -> SettingLayers {
    let changes = saved.map(serde_json::from_slice::<SettingChanges>);
    let changes = changes.transpose().unwrap_or_else(|error| {
        tracing::warn!(%error, "the saved changes of settings are damaged, so those of the configuration are in force");
        None
    });
    let (layers, errors) = SettingLayers::new(configured.clone(), changes.unwrap_or_default());
    for error in errors {
        tracing::warn!(%error, "a saved change of a setting does not fit the configuration, and is dropped");
    }
    if !layers.changes.0.is_empty() {
        let names: Vec<&str> = layers.changes.0.keys().map(String::as_str).collect();
        tracing::info!(settings = names.join(", "), "changes made at run time are in force");
    }
    layers
}
