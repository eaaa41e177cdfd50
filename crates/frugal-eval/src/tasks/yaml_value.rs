//! YAML as PyYAML reads it: of a key that is given twice the last one counts.

use std::fmt;

use serde::de::{Deserialize, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess};
use serde_yaml_ng::value::{Tag, TaggedValue};
use serde_yaml_ng::{Mapping, Value};

/// The mapping that a file holds.
///
/// # Errors
/// Text that is no YAML, or holds something else.
pub(super) fn mapping(bytes: &[u8]) -> Result<Mapping, String> {
    let Last(value) = serde_yaml_ng::from_slice(bytes).map_err(|e| e.to_string())?;
    match value {
        Value::Mapping(mapping) => Ok(mapping),
        // Says what it is instead.
        other => serde_yaml_ng::from_value(other).map_err(|e| e.to_string()),
    }
}

struct Last(Value);

impl<'de> Deserialize<'de> for Last {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Visitor).map(Self)
    }
}

struct Visitor;

impl<'de> serde::de::Visitor<'de> for Visitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Last::deserialize(deserializer).map(|last| last.0)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Last(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Sequence(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut mapping = Mapping::new();
        while let Some((Last(key), Last(value))) = entries.next_entry()? {
            mapping.insert(key, value);
        }
        Ok(Value::Mapping(mapping))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<Value, A::Error> {
        let (tag, content) = data.variant::<String>()?;
        let Last(value) = content.newtype_variant()?;
        let tag = Tag::new(tag);
        Ok(Value::Tagged(Box::new(TaggedValue { tag, value })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_key_that_is_given_twice_the_last_counts() {
        let text = "a: 1\nb: {c: x, c: y}\nlist: [{d: 1, d: 2}]\na: !function utils.f\nn: ~\nf: 1.5\nt: true\n";
        let found = mapping(text.as_bytes()).unwrap();
        // What PyYAML's loader gives, with the tag as it is.
        let expected = "b: {c: y}\nlist: [{d: 2}]\na: !function utils.f\nn: ~\nf: 1.5\nt: true\n";
        let expected: Mapping = serde_yaml_ng::from_str(expected).unwrap();
        assert_eq!(found.len(), expected.len());
        for (key, value) in &expected {
            assert_eq!(found.get(key), Some(value), "{key:?}");
        }
        assert!(mapping(b"[1]").unwrap_err().contains("sequence"));
    }
}
