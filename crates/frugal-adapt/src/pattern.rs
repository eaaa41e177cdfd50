//! Regular expressions of settings: Python's grammar with look-around, over the paths of a model.

use std::fmt;
use std::marker::PhantomData;

use fancy_regex::{Regex, RegexBuilder};
use frugal_nn::TargetError;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Values by pattern, in the order of the file: the first that matches counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Patterns<V>(Vec<(String, V)>);

impl<V> Patterns<V> {
    /// None.
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// Patterns and values in order.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &V)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// The patterns in order.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.0.iter().map(|(key, _)| key)
    }

    /// The values in order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.0.iter().map(|(_, value)| value)
    }

    /// The same, to change.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.0.iter_mut().map(|(_, value)| value)
    }
}

impl<V> Default for Patterns<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V> FromIterator<(String, V)> for Patterns<V> {
    fn from_iter<I: IntoIterator<Item = (String, V)>>(iter: I) -> Self {
        Self(iter.into_iter().collect())
    }
}

impl<V: Serialize> Serialize for Patterns<V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Patterns<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<V>(PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for InOrder<V> {
            type Value = Patterns<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("values by pattern")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    all.push(entry);
                }
                Ok(Patterns(all))
            }
        }

        deserializer.deserialize_map(InOrder(PhantomData))
    }
}

/// Steps that one expression may take on one path. Ordinary ones need a few hundred.
const MAX_STEPS: usize = 100_000;

/// A compiled expression, with what its errors call it.
pub(crate) struct Pattern {
    field: &'static str,
    text: String,
    regex: Regex,
}

impl Pattern {
    /// An expression that must match the whole path.
    pub fn whole(field: &'static str, pattern: &str) -> Result<Self, TargetError> {
        Self::new(field, pattern, &format!("^(?:{pattern})$"))
    }

    /// An expression for the last components of a path: `^(.*\.)?(KEY)$`.
    pub fn ending(field: &'static str, key: &str) -> Result<Self, TargetError> {
        Self::new(field, key, &format!(r"^(.*\.)?({key})$"))
    }

    /// `text` is what the user wrote, `regex` what is compiled of it.
    pub fn new(field: &'static str, text: &str, regex: &str) -> Result<Self, TargetError> {
        let regex = RegexBuilder::new(regex)
            .backtrack_limit(MAX_STEPS)
            .build()
            .map_err(|e| TargetError::Pattern {
                field,
                pattern: text.into(),
                reason: e.to_string(),
            })?;
        Ok(Self {
            field,
            text: text.into(),
            regex,
        })
    }

    /// Whether it matches.
    pub fn is_match(&self, path: &str) -> Result<bool, TargetError> {
        self.regex
            .is_match(path)
            .map_err(|e| self.too_long(path, &e))
    }

    /// The number in its first group, where it matches.
    pub fn number(&self, path: &str) -> Result<Option<usize>, TargetError> {
        let found = self
            .regex
            .captures(path)
            .map_err(|e| self.too_long(path, &e))?;
        Ok(found.and_then(|groups| groups.get(1)?.as_str().parse().ok()))
    }

    fn too_long(&self, path: &str, error: &fancy_regex::Error) -> TargetError {
        TargetError::Pattern {
            field: self.field,
            pattern: self.text.clone(),
            reason: format!("it cannot be matched against `{path}`: {error}; use a simpler one"),
        }
    }
}

/// The patterns of an adapter for a bare base model, whose paths lack the prefix that task classes
/// put before them (`bert.`), rewritten for paths that have it.
pub(crate) struct Bare {
    prefix: String,
}

impl Bare {
    /// `prefix` with its dot, `bert.`.
    pub fn new(prefix: &str) -> Self {
        Self {
            prefix: fancy_regex::escape(prefix).into_owned(),
        }
    }

    /// An anchor at the start of the bare path.
    fn anchor(&self) -> String {
        format!("(?<=^{})", self.prefix)
    }

    /// A pattern over the whole path.
    pub fn whole(&self, pattern: &str) -> String {
        format!("{}(?:{})", self.prefix, self.ending(pattern))
    }

    /// A pattern over the last components.
    pub fn ending(&self, pattern: &str) -> String {
        replace_anchors(pattern, &self.anchor())
    }

    /// The pattern that [`Bare::whole`] or [`Bare::ending`] was given.
    pub fn undo(&self, pattern: &str) -> String {
        let inner = pattern
            .strip_prefix(self.prefix.as_str())
            .and_then(|p| p.strip_prefix("(?:")?.strip_suffix(')'));
        inner.unwrap_or(pattern).replace(&self.anchor(), "^")
    }
}

/// Every `^` that is an anchor (neither escaped nor in a class) replaced.
fn replace_anchors(pattern: &str, by: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let (mut escaped, mut class) = (false, false);
    for c in pattern.chars() {
        match c {
            '^' if !escaped && !class => out.push_str(by),
            _ => out.push(c),
        }
        class = match c {
            '[' if !escaped => true,
            ']' if !escaped => false,
            _ => class,
        };
        escaped = c == '\\' && !escaped;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_may_look_around() {
        let pattern = Pattern::whole("target_modules", r"(?!.*vision).*\.(q_proj|v_proj)").unwrap();
        assert!(pattern.is_match("model.layers.0.self_attn.q_proj").unwrap());
        assert!(
            !pattern
                .is_match("vision.layers.0.self_attn.q_proj")
                .unwrap()
        );
    }

    #[test]
    fn a_pattern_that_would_run_forever_is_refused() {
        let pattern = Pattern::whole("target_modules", r"(?:(a+)\1?)+b").unwrap();
        let text = "a".repeat(60) + "c";
        let message = pattern.is_match(&text).unwrap_err().to_string();
        assert!(message.contains("`target_modules`"), "{message}");
        assert!(message.contains("use a simpler one"), "{message}");
    }

    #[test]
    fn anchors_of_bare_paths_move_behind_the_prefix_and_back() {
        let bare = Bare::new("bert.");
        for pattern in [
            r"^encoder.layer.0",
            r"(^encoder|^embeddings)\..*[^a]\^?",
            "query",
        ] {
            let ending = bare.ending(pattern);
            assert_eq!(bare.undo(&ending), pattern);
            assert_eq!(bare.undo(&bare.whole(pattern)), pattern);
        }
        let matches = |pattern: &str, path: &str| {
            Pattern::ending("alpha_pattern", &bare.ending(pattern))
                .unwrap()
                .is_match(path)
                .unwrap()
        };
        assert!(matches(
            "^encoder.layer.0.*",
            "bert.encoder.layer.0.output.dense"
        ));
        assert!(!matches("^layer.0.*", "bert.encoder.layer.0.output.dense"));
        let whole = Pattern::whole("target_modules", &bare.whole("^encoder.*query")).unwrap();
        assert!(
            whole
                .is_match("bert.encoder.layer.0.attention.self.query")
                .unwrap()
        );
        assert!(
            !whole
                .is_match("encoder.layer.0.attention.self.query")
                .unwrap()
        );
    }
}
