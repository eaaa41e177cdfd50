//! One file or a list of them, as configurations hold it. In memory a list is one text with a name
//! on each line.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Paths {
    One(String),
    Several(Vec<String>),
}

impl From<&str> for Paths {
    fn from(text: &str) -> Self {
        if text.contains('\n') {
            Self::Several(text.lines().map(str::to_owned).collect())
        } else {
            Self::One(text.to_owned())
        }
    }
}

impl From<Paths> for String {
    fn from(paths: Paths) -> Self {
        match paths {
            Paths::One(name) => name,
            Paths::Several(names) => names.join("\n"),
        }
    }
}

pub(super) fn serialize<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    Paths::from(text).serialize(serializer)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let wrong = |_| serde::de::Error::custom("invalid type: other, expected a file or a list of files");
    Paths::deserialize(deserializer).map(String::from).map_err(wrong)
}

/// The names of a text that stands for one file or several.
pub(super) fn names(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

/// The same where nothing may be given.
pub(super) mod optional {
    use serde::{Deserializer, Serialize, Serializer};

    use super::Paths;

    pub(in crate::run) fn serialize<S: Serializer>(
        text: &Option<String>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        text.as_deref().map(Paths::from).serialize(serializer)
    }

    pub(in crate::run) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<String>, D::Error> {
        super::deserialize(deserializer).map(Some)
    }
}
