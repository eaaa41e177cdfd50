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
        serde_json::from_value(settings).map_err(|error| format!("`{}`: {error}", self.name))
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
                named.settings.insert(key, map.next_value()?);
            }
        }
        Ok(named)
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
}
