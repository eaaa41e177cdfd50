//! Adapter files of methods that `peft` does not have: the same layout, a `peft_type` of their own,
//! and every setting under its own name, so that the file alone rebuilds the adapter.

use frugal_nn::AdaptError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::settings::{self, Settings};

/// Typed settings of a method whose target modules have a default of their own, which a flattened
/// field does not take from the settings' `Default`.
///
/// # Errors
/// [`AdaptError::Settings`].
pub(crate) fn parse<T: DeserializeOwned + Serialize + Default>(
    method: &'static str,
    settings: &Settings,
) -> Result<T, AdaptError> {
    let mut all = settings::defaults::<T>();
    all.extend(settings.clone());
    settings::parse(method, &all)
}

/// `adapter_config.json` of a method without targets: all its settings.
pub(crate) fn all_to_file<T: Serialize>(peft_type: &str, config: &T) -> Settings {
    let mut fields = match serde_json::to_value(config) {
        Ok(Value::Object(fields)) => fields,
        _ => Settings::new(),
    };
    fields.insert("peft_type".into(), json!(peft_type));
    fields
}

/// The same of a method with targets, as [`saved_targets`](crate::peft) spells them.
pub(crate) fn to_file<T: Serialize>(
    peft_type: &str,
    config: &T,
    saved_targets: &Value,
) -> Settings {
    let mut fields = all_to_file(peft_type, config);
    fields.insert("target_modules".into(), saved_targets.clone());
    fields
}

/// The settings in such a file; what it leaves out has the method's defaults.
pub(crate) fn from_file<T: Serialize + Default>(config: &Settings) -> Settings {
    let known = settings::defaults::<T>();
    config
        .iter()
        .filter(|(name, value)| known.contains_key(*name) && !value.is_null())
        .map(|(n, v)| (n.clone(), v.clone()))
        .collect()
}
