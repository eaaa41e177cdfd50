//! One file or a list of them, as configurations hold it. In memory a list is one text with a name
//! on each line.

use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserializer, Serialize, Serializer};

/// The text as a file holds it.
#[derive(Serialize)]
#[serde(untagged)]
enum Paths<'a> {
    One(&'a str),
    Several(Vec<&'a str>),
}

impl<'a> From<&'a str> for Paths<'a> {
    fn from(text: &'a str) -> Self {
        if text.contains('\n') {
            Self::Several(text.lines().collect())
        } else {
            Self::One(text)
        }
    }
}

pub(super) fn serialize<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    Paths::from(text).serialize(serializer)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    deserializer.deserialize_any(Names)
}

/// Reads a text, or a list of texts.
struct Names;

impl<'de> Visitor<'de> for Names {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<String, A::Error> {
        let mut found: Vec<String> = Vec::new();
        while let Some(name) = names.next_element()? {
            found.push(name);
        }
        Ok(found.join("\n"))
    }
}

/// The names of a text that stands for one file or several.
pub(super) fn names(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

/// The same where nothing may be given.
pub(super) mod optional {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

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
        let names = Option::<Given>::deserialize(deserializer)?;
        Ok(names.map(|Given(text)| text))
    }

    struct Given(String);

    impl<'de> Deserialize<'de> for Given {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            super::deserialize(deserializer).map(Self)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::TuneConfig;

    #[test]
    fn a_list_of_files_is_read_and_written_as_a_list() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("run.toml");
        let read = |text: &str| {
            std::fs::write(&file, text).unwrap();
            frugal_core::config::load::<TuneConfig>(Some(&file), &[]).unwrap()
        };
        let config = read("[data]\ntrain = [\"a.jsonl\", \"b.jsonl\"]\nvalidation = \"c.jsonl\"\n");
        assert_eq!(config.data.train, "a.jsonl\nb.jsonl");
        let (validation, test) = (
            config.data.validation.as_deref(),
            config.data.test.as_deref(),
        );
        assert_eq!((validation, test), (Some("c.jsonl"), None));
        assert_eq!(
            read(&frugal_core::config::to_toml(&config).unwrap()),
            config
        );
        let json = serde_json::to_value(&config).unwrap();
        assert_eq!(json["data"]["train"][1], "b.jsonl");
        assert_eq!(serde_json::from_value::<TuneConfig>(json).unwrap(), config);
    }
}
