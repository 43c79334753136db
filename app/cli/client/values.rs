//! Values of the daemon's answers.

use serde_json::Value;

/// Returns a string, or nothing for a value of another kind.
pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
