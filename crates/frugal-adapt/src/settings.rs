//! Settings of methods by name, typed or not.

use frugal_core::suggest::did_you_mean;
use frugal_nn::AdaptError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Settings by name.
pub type Settings = Map<String, Value>;

/// A method's typed settings; unknown names come with the nearest known one.
///
/// # Errors
/// [`AdaptError::Settings`].
pub(crate) fn parse<T: DeserializeOwned + Serialize + Default>(
    method: &'static str,
    settings: &Settings,
) -> Result<T, AdaptError> {
    let known = defaults::<T>();
    let unknown: Vec<String> = settings
        .keys()
        .filter(|key| !known.contains_key(*key))
        .map(
            |key| match did_you_mean(key, known.keys().map(String::as_str)) {
                Some(near) => format!("unknown setting `{key}` (did you mean `{near}`?)"),
                None => format!(
                    "unknown setting `{key}`; it has: {}",
                    known.keys().cloned().collect::<Vec<_>>().join(", ")
                ),
            },
        )
        .collect();
    if !unknown.is_empty() {
        return Err(AdaptError::Settings {
            method,
            reason: unknown.join("; "),
        });
    }
    serde_json::from_value(Value::Object(settings.clone())).map_err(|error| {
        // Beside the defaults alone, the one at fault shows itself.
        let of_one = settings.iter().find_map(|(key, value)| {
            let mut all = known.clone();
            all.insert(key.clone(), value.clone());
            Some(format!(
                "`{key}`: {}",
                serde_json::from_value::<T>(Value::Object(all)).err()?
            ))
        });
        AdaptError::Settings {
            method,
            reason: of_one.unwrap_or_else(|| error.to_string()),
        }
    })
}

/// Every setting with its default.
pub(crate) fn defaults<T: Serialize + Default>() -> Settings {
    match serde_json::to_value(T::default()) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}
