//! A learning rate as configurations hold it: a number, or a word where the method's own is meant.

use std::fmt;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserializer, Serializer};

/// Stands for 0, which in memory means that no rate was given: so a 0 that somebody writes is no
/// rate either, but a mistake.
const AUTO: &str = "auto";

pub(super) fn serialize<S: Serializer>(rate: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if *rate == 0.0 {
        serializer.serialize_str(AUTO)
    } else {
        serializer.serialize_f64(*rate)
    }
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    deserializer.deserialize_any(Rate)
}

struct Rate;

impl Visitor<'_> for Rate {
    type Value = f64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a number or `{AUTO}`")
    }

    fn visit_f64<E: Error>(self, rate: f64) -> Result<f64, E> {
        // The words of the check that refuses the other rates which are not positive.
        if rate == 0.0 {
            Err(E::custom("0 given, but it must be a positive number"))
        } else {
            Ok(rate)
        }
    }

    fn visit_i64<E: Error>(self, rate: i64) -> Result<f64, E> {
        self.visit_f64(rate as f64)
    }

    fn visit_u64<E: Error>(self, rate: u64) -> Result<f64, E> {
        self.visit_f64(rate as f64)
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<f64, E> {
        if word == AUTO {
            Ok(0.0)
        } else {
            Err(E::invalid_type(Unexpected::Str(word), &self))
        }
    }
}
