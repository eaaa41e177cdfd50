//! Values as configurations and flags spell them.

/// How configurations spell it.
pub(super) fn name(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        other => other.unwrap_or_default().to_string(),
    }
}
