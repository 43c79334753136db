//! Routes about the settings: reading all, changing those of the engine.

use std::path::Path;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use ecs_torrent_components::settings::{INCOMPLETE_DIR, SettingsPatch};
use serde_json::{Map, Value, json};

use super::Shared;
use super::answers::Refusal;
use super::requests::{NoParameters, read, require_type};
use super::roots::{RootError, Roots};

/// Longest body with changes, in bytes: the maximum number of blocked networks (`peers.blocked`) fits.
const MAX_CHANGES: usize = 512 << 10;

/// Returns the settings in force, and what was changed at run time.
pub(super) async fn get(State(shared): State<Shared>, _: NoParameters) -> Result<Json<Value>, Refusal> {
    let report = shared.torrents.settings().await?;
    let mut settings = report.settings.to_json();
    for (section, values) in &shared.file_settings {
        settings[section] = values.clone();
    }
    Ok(Json(json!({
        "settings": settings,
        "changes": report.changes,
        "needs_restart": report.needs_restart,
        "alternative_limits": report.alternative_limits,
    })))
}

pub(super) async fn change(
    State(shared): State<Shared>,
    _: NoParameters,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Refusal> {
    require_type(&headers, &["application/json"], "send the settings as application/json")?;
    let (bytes, _permit) = read(&shared, &headers, body).await?;
    if bytes.len() > MAX_CHANGES {
        let why = format!("the settings are longer than {MAX_CHANGES} bytes");
        return Err(Refusal::of("body", StatusCode::PAYLOAD_TOO_LARGE, why));
    }
    let bad = |why: String| Refusal::of("body", StatusCode::BAD_REQUEST, why);
    let sections: Map<String, Value> = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
    let mut patch = patch(sections, &shared.file_settings)?;
    find_folder(&shared.roots, &mut patch).map_err(|error| {
        Refusal::of(
            INCOMPLETE_DIR,
            StatusCode::FORBIDDEN,
            format!("{INCOMPLETE_DIR}: {error}"),
        )
    })?;
    let changed = shared.torrents.change_settings(patch).await?;
    Ok(Json(json!({"needs_restart": changed.needs_restart})))
}

/// Replaces the folder for incomplete torrents of a patch by the folder that the path refers to, if a client may choose
/// it. An empty path is refused later, with the rest of the patch.
pub(super) fn find_folder(roots: &Roots, patch: &mut SettingsPatch) -> Result<(), RootError> {
    if let Some(Some(Value::String(folder))) = patch.0.get_mut(INCOMPLETE_DIR)
        && !folder.is_empty()
    {
        *folder = roots.find(Path::new(&*folder))?.to_string_lossy().into_owned();
    }
    Ok(())
}

/// Reads sections with settings. `null` is a return to the value of the configuration.
fn patch(sections: Map<String, Value>, file_settings: &Map<String, Value>) -> Result<SettingsPatch, Refusal> {
    let mut patch = SettingsPatch::default();
    for (section, settings) in sections {
        if file_settings.contains_key(&section) {
            let why = format!("{section}: these settings are changed in the configuration file only");
            return Err(Refusal::of(section, StatusCode::BAD_REQUEST, why));
        }
        let Value::Object(settings) = settings else {
            let why = format!("{section}: a section is an object with settings");
            return Err(Refusal::of(section, StatusCode::BAD_REQUEST, why));
        };
        for (name, value) in settings {
            let value = (!value.is_null()).then_some(value);
            patch.0.insert(format!("{section}.{name}"), value);
        }
    }
    Ok(patch)
}
