//! A part of a run that is chosen by name, with settings of its own.

use std::fmt;

use serde::de::{DeserializeOwned, Error, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

/// A name, and settings where the defaults are not meant: `"sgd"`, or
/// `{ name = "sgd", momentum = 0.8 }`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Named {
    /// As its registry lists it; empty where none was given.
    pub name: String,
    /// Its own settings.
    pub settings: Map<String, Value>,
}

impl From<&str> for Named {
    fn from(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            settings: Map::new(),
        }
    }
}

impl Named {
    /// Whether nothing was given.
    pub fn is_unset(&self) -> bool {
        self.name.is_empty() && self.settings.is_empty()
    }

    /// The settings as the part itself knows them.
    ///
    /// # Errors
    /// Settings that it does not have, or of another kind.
    pub fn read<S: DeserializeOwned>(&self) -> Result<S, String> {
        let settings = Value::Object(self.settings.clone());
        serde_path_to_error::deserialize(settings).map_err(|error| {
            let (key, name) = (error.path().to_string(), &self.name);
            let reason = error.into_inner();
            match key.as_str() {
                "" | "." => format!("`{name}`: {reason}"),
                key => format!("`{name}`: `{key}`: {reason}"),
            }
        })
    }
}

impl Serialize for Named {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.settings.is_empty() {
            return serializer.serialize_str(&self.name);
        }
        let mut map = serializer.serialize_map(None)?;
        if !self.name.is_empty() {
            map.serialize_entry("name", &self.name)?;
        }
        for (key, value) in &self.settings {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NameOrMap)
    }
}

struct NameOrMap;

impl<'de> Visitor<'de> for NameOrMap {
    type Value = Named;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name, or a table with `name` and settings")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Named, E> {
        Ok(name.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Named, A::Error> {
        let mut named = Named::default();
        while let Some(key) = map.next_key::<String>()? {
            if key == "name" {
                named.name = map.next_value()?;
            } else {
                let value: Value = map.next_value()?;
                if has_null(&value) {
                    let reason = format!("`{key}`: null given, or a number that is not finite");
                    return Err(A::Error::custom(reason));
                }
                named.settings.insert(key, value);
            }
        }
        Ok(named)
    }
}

/// Numbers that are not finite become `null` on the way from a file, which would mean the default.
fn has_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(values) => values.iter().any(has_null),
        Value::Object(values) => values.values().any(has_null),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_stand_alone_or_with_settings() {
        let read = |text: &str| serde_json::from_str::<Named>(text).unwrap();
        assert_eq!(read(r#""lion""#), "lion".into());
        let with = read(r#"{"name": "sgd", "momentum": 0.5}"#);
        assert_eq!(
            (with.name.as_str(), &with.settings["momentum"]),
            ("sgd", &Value::from(0.5))
        );
        for named in [with, "lion".into(), Named::default()] {
            let text = serde_json::to_string(&named).unwrap();
            assert_eq!(read(&text), named, "{text}");
        }
    }

    #[test]
    fn a_setting_that_is_no_number_is_named() {
        #[derive(Debug, Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        struct Settings {
            scale: f64,
            bound: Option<f64>,
        }
        let named = |text: &str| serde_json::from_str::<Named>(text);
        let error = named(r#"{"name": "x", "scale": "much"}"#).unwrap();
        let error = error.read::<Settings>().unwrap_err();
        assert!(
            error.contains("`x`") && error.contains("`scale`"),
            "{error}"
        );
        let unknown = named(r#"{"name": "x", "scael": 1}"#).unwrap();
        let unknown = unknown.read::<Settings>().unwrap_err();
        assert!(unknown.contains("`scael`"), "{unknown}");
        let read = named(r#"{"name": "x", "bound": 2, "scale": 0.5}"#).unwrap();
        let read: Settings = read.read().unwrap();
        assert_eq!((read.scale, read.bound), (0.5, Some(2.0)));
        // What NaN becomes on its way from TOML.
        for value in ["null", "[1, null]", "{\"a\": null}"] {
            let error = named(&format!(r#"{{"name": "x", "bound": {value}}}"#)).unwrap_err();
            assert!(error.to_string().contains("`bound`"), "{error}");
        }
    }
}
