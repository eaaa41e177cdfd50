//! The record that a run logs: named numbers at a step.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Names that the trainer logs and the report draws; those of evaluation start with `eval_`.
pub mod names {
    /// Training loss, in nats for each predicted token or example.
    pub const LOSS: &str = "loss";
    /// Validation loss, in the unit of [`LOSS`].
    pub const EVAL_LOSS: &str = "eval_loss";
    /// Learning rate of the step.
    pub const LEARNING_RATE: &str = "learning_rate";
    /// Norm of the gradient before clipping.
    pub const GRAD_NORM: &str = "grad_norm";
    /// Passes over the training data so far.
    pub const EPOCH: &str = "epoch";
    /// Training throughput.
    pub const TOKENS_PER_SECOND: &str = "tokens_per_second";
    /// Resident memory of the process, in bytes.
    pub const MEMORY_BYTES: &str = "memory_bytes";
    /// Time since the run began, in seconds.
    pub const ELAPSED_SECONDS: &str = "elapsed_seconds";
}

/// Named numbers at a step; in JSON one flat object such as `{"step":10,"loss":2.1}`.
///
/// JSON has no infinities and no NaN: they are written as the strings `"Infinity"`, `"-Infinity"`
/// and `"NaN"`. Other values that are not numbers are skipped when reading.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scalars {
    /// Optimiser steps taken.
    pub step: u64,
    /// Name and value, in the order of logging.
    pub values: Vec<(String, f64)>,
}

impl Scalars {
    /// No numbers yet.
    pub fn new(step: u64) -> Self {
        Self {
            step,
            values: Vec::new(),
        }
    }

    /// Adds one number.
    #[must_use]
    pub fn with(mut self, name: &str, value: f64) -> Self {
        self.values.push((name.to_owned(), value));
        self
    }

    /// The number of that name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.values
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| *value)
    }
}

impl Serialize for Scalars {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1 + self.values.len()))?;
        map.serialize_entry("step", &self.step)?;
        for (name, value) in &self.values {
            map.serialize_entry(name, &Number(*value))?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Scalars {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Flat;
        impl<'de> Visitor<'de> for Flat {
            type Value = Scalars;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a `step`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalars, A::Error> {
                let mut step = None;
                let mut values = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "step" {
                        step = Some(map.next_value()?);
                        continue;
                    }
                    let number = Number::from_json(&map.next_value::<serde_json::Value>()?);
                    values.extend(number.map(|number| (name, number.0)));
                }
                let step = step.ok_or_else(|| serde::de::Error::missing_field("step"))?;
                Ok(Scalars { step, values })
            }
        }
        deserializer.deserialize_map(Flat)
    }
}

/// A number in JSON, with strings for those that JSON lacks.
struct Number(f64);

impl Number {
    fn from_json(value: &serde_json::Value) -> Option<Self> {
        match value {
            serde_json::Value::Number(n) => n.as_f64(),
            serde_json::Value::String(s) => match s.as_str() {
                "NaN" => Some(f64::NAN),
                "Infinity" => Some(f64::INFINITY),
                "-Infinity" => Some(f64::NEG_INFINITY),
                _ => None,
            },
            _ => None,
        }
        .map(Self)
    }
}

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            value if value.is_finite() => serializer.serialize_f64(value),
            value if value.is_nan() => serializer.serialize_str("NaN"),
            value => serializer.serialize_str(if value > 0.0 { "Infinity" } else { "-Infinity" }),
        }
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            // What serde_json makes of a number that JSON lacks.
            serde_json::Value::Null => Ok(Self(f64::NAN)),
            value => Self::from_json(&value).ok_or_else(|| {
                serde::de::Error::custom(format!("expected a number, found {value}"))
            }),
        }
    }
}

/// A number as [`Scalars`] writes it, for `#[serde(with)]`; null is read as NaN.
pub mod number {
    use super::{Deserialize, Deserializer, Number, Serialize, Serializer};

    /// A finite number as such, another as text.
    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        Number(*value).serialize(serializer)
    }

    /// The inverse of [`serialize`].
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(Number::deserialize(deserializer)?.0)
    }
}

/// As [`number`], for numbers by name.
pub mod numbers {
    use std::collections::BTreeMap;

    use super::{Deserialize, Deserializer, Number, Serializer};

    /// Each number as [`super::number`] writes it.
    pub fn serialize<S: Serializer>(
        values: &BTreeMap<String, f64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(values.iter().map(|(name, value)| (name, Number(*value))))
    }

    /// The inverse of [`serialize`].
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<String, f64>, D::Error> {
        let values = BTreeMap::<String, Number>::deserialize(deserializer)?;
        Ok(values
            .into_iter()
            .map(|(name, value)| (name, value.0))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_json_even_when_they_are_not_numbers() {
        let record = Scalars::new(3)
            .with("loss", 0.1)
            .with("up", f64::INFINITY)
            .with("down", f64::NEG_INFINITY);
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(
            text,
            r#"{"step":3,"loss":0.1,"up":"Infinity","down":"-Infinity"}"#
        );
        assert_eq!(serde_json::from_str::<Scalars>(&text).unwrap(), record);
        let read: Scalars =
            serde_json::from_str(r#"{"note":"a","loss":"NaN","step":4,"nested":{"a":1},"lr":1}"#)
                .unwrap();
        assert!(
            read.step == 4
                && read.get("loss").unwrap().is_nan()
                && read.get("lr") == Some(1.0)
                && read.values.len() == 2
        );
        assert!(
            serde_json::from_str::<Scalars>(r#"{"loss":1}"#)
                .unwrap_err()
                .to_string()
                .contains("missing field `step`")
        );
    }
}
