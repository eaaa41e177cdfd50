//! What is compared and how it is stored.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::VectorError;
use crate::error::IndexError;

/// How near two vectors are; higher is nearer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Inner product.
    Ip,
    /// Cosine of the angle. Vectors are stored with length 1.
    #[default]
    Cosine,
    /// Squared Euclidean distance, negated.
    L2,
}

/// How a number of a vector is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// 32 bits: as it is.
    #[default]
    F32,
    /// 16 bits.
    F16,
    /// 8 bits with one scale for each vector.
    Int8,
    /// Its sign. The best by signs are ordered by 8-bit numbers that are kept beside them, so a
    /// search reads a 32nd of what it reads as `f32`, the file is 28 % of the size.
    Binary,
}

/// The most numbers of a vector.
pub(super) const MOST_NUMBERS: usize = 1 << 16;

impl Metric {
    const ALL: [Self; 3] = [Self::Ip, Self::Cosine, Self::L2];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Cosine => "cosine",
            Self::L2 => "l2",
        }
    }

    pub(super) fn code(self) -> u8 {
        self as u8
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|m| m.code() == code)
    }
}

impl Encoding {
    const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Int8, Self::Binary];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
            Self::Binary => "binary",
        }
    }

    pub(super) fn code(self) -> u8 {
        self as u8
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|e| e.code() == code)
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Metric {
    type Err = IndexError;

    fn from_str(name: &str) -> Result<Self, IndexError> {
        let found = Self::ALL.into_iter().find(|m| m.name() == name);
        found.ok_or_else(|| IndexError::Name {
            kind: "metric",
            name: name.into(),
            known: Self::ALL.map(|m| format!("`{m}`")).join(", "),
        })
    }
}

impl FromStr for Encoding {
    type Err = IndexError;

    fn from_str(name: &str) -> Result<Self, IndexError> {
        let found = Self::ALL.into_iter().find(|e| e.name() == name);
        found.ok_or_else(|| IndexError::Name {
            kind: "encoding of vectors",
            name: name.into(),
            known: Self::ALL.map(|e| format!("`{e}`")).join(", "),
        })
    }
}

/// Refuses what can never be stored or searched.
pub(crate) fn check_kind(
    dimension: usize,
    metric: Metric,
    encoding: Encoding,
) -> Result<(), VectorError> {
    if !(1..=MOST_NUMBERS).contains(&dimension) {
        return Err(VectorError::BadDimension {
            found: dimension,
            most: MOST_NUMBERS,
        });
    }
    if encoding == Encoding::Binary && metric == Metric::L2 {
        return Err(VectorError::Unsuited {
            encoding: encoding.name(),
            metric: metric.name(),
        });
    }
    Ok(())
}

/// Refuses a vector that can never be stored or searched with.
pub(crate) fn check_vector(
    vector: &[f32],
    dimension: usize,
    metric: Metric,
    name: &str,
) -> Result<(), VectorError> {
    prepared(vector, dimension, metric, &|| name.to_owned()).map(|_| ())
}

/// Checks a vector and brings it to the form that is stored or searched with.
pub(super) fn prepared(
    vector: &[f32],
    dimension: usize,
    metric: Metric,
    what: &dyn Fn() -> String,
) -> Result<Vec<f32>, VectorError> {
    if vector.len() != dimension {
        return Err(VectorError::Dimension {
            what: what(),
            found: vector.len(),
            expected: dimension,
        });
    }
    if let Some(place) = vector.iter().position(|v| !v.is_finite()) {
        return Err(VectorError::NotFinite {
            what: what(),
            place,
            value: vector[place],
        });
    }
    let square: f64 = vector.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
    // A product of two such vectors is at most this, by Cauchy and Schwarz; a quarter for distances.
    if square > f64::from(f32::MAX) / 4.0 {
        return Err(VectorError::TooLarge {
            what: what(),
            kind: "32-bit products",
        });
    }
    if metric != Metric::Cosine {
        return Ok(vector.to_vec());
    }
    match square > 0.0 {
        true => {
            let length = square.sqrt();
            let scaled = vector.iter().map(|v| (f64::from(*v) / length) as f32);
            Ok(scaled.collect())
        }
        false => Err(VectorError::Zero { what: what() }),
    }
}
