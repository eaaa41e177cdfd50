//! How much each label counts.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The word for weights that follow from how frequent the labels are.
const BALANCED: &str = "balanced";

/// How much each label counts: `"balanced"`, or `"a=1,b=2"`, or a table. Labels that are not named
/// count 1.
#[derive(Clone, Debug, PartialEq)]
pub enum LabelWeights {
    /// The rarer, the more.
    Balanced,
    /// A number for each of these labels.
    Given(BTreeMap<String, f64>),
}

impl LabelWeights {
    /// From the form of the command line.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.trim() == BALANCED {
            return Ok(Self::Balanced);
        }
        let mut weights = BTreeMap::new();
        for part in text.split(',') {
            let read = || {
                let (label, weight) = part.rsplit_once('=')?;
                Some((label.trim().to_owned(), weight.trim().parse().ok()?))
            };
            let (label, weight) = read().ok_or_else(|| {
                format!("{part:?} is no weight: give `{BALANCED}`, or a number for each label as in `ham=1,spam=3`")
            })?;
            if weights.insert(label.clone(), weight).is_some() {
                return Err(format!("the label {label:?} has two weights"));
            }
        }
        Self::of(weights)
    }

    fn of(weights: BTreeMap<String, f64>) -> Result<Self, String> {
        match weights.iter().find(|(_, w)| !(w.is_finite() && **w > 0.0)) {
            Some((label, weight)) => Err(format!(
                "{weight} given for the label {label:?}, but it must be a positive number"
            )),
            None => Ok(Self::Given(weights)),
        }
    }

    /// The weight of each label, where `balanced` gives those that depend on the data.
    ///
    /// # Errors
    /// A label that the head does not have.
    pub(super) fn for_labels(
        &self,
        labels: &[String],
        balanced: impl FnOnce() -> Vec<f32>,
    ) -> Result<Vec<f32>, String> {
        let given = match self {
            Self::Balanced => return Ok(balanced()),
            Self::Given(given) => given,
        };
        match given.keys().find(|label| !labels.contains(label)) {
            Some(unknown) => Err(format!(
                "a weight is given for the label {unknown:?}, but the labels are {}",
                labels.join(", ")
            )),
            None => Ok(labels
                .iter()
                .map(|label| given.get(label).map_or(1.0, |w| *w as f32))
                .collect()),
        }
    }
}

impl Serialize for LabelWeights {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Balanced => serializer.serialize_str(BALANCED),
            Self::Given(weights) => weights.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for LabelWeights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrMap)
    }
}

struct TextOrMap;

impl<'de> Visitor<'de> for TextOrMap {
    type Value = LabelWeights;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{BALANCED}`, or a weight for each label")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<LabelWeights, E> {
        LabelWeights::parse(text).map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<LabelWeights, A::Error> {
        let mut weights = BTreeMap::new();
        while let Some((label, weight)) = map.next_entry()? {
            weights.insert(label, weight);
        }
        LabelWeights::of(weights).map_err(A::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_read_in_three_forms_and_refused_with_a_reason() {
        let read = |json: &str| serde_json::from_str::<LabelWeights>(json);
        assert_eq!(read(r#""balanced""#).unwrap(), LabelWeights::Balanced);
        assert_eq!(
            read(r#""a=1, b = 2.5""#).unwrap(),
            read(r#"{"a": 1, "b": 2.5}"#).unwrap()
        );
        for (bad, reason) in [
            (r#""heavy""#, "\"heavy\" is no weight"),
            (r#""a=1,a=2""#, "two weights"),
            (r#""a=0""#, "must be a positive number"),
            (r#"{"a": -1.0}"#, "must be a positive number"),
        ] {
            let error = read(bad).unwrap_err().to_string();
            assert!(error.contains(reason), "{bad}: {error}");
        }
        let labels = ["x".to_owned(), "y".to_owned()];
        let of = |text: &str| {
            LabelWeights::parse(text)
                .unwrap()
                .for_labels(&labels, || vec![7.0; 2])
        };
        assert_eq!(of("y=3"), Ok(vec![1.0, 3.0]));
        assert_eq!(of("balanced"), Ok(vec![7.0, 7.0]));
        assert!(of("z=3").unwrap_err().contains("the labels are x, y"));
    }
}
