//! JSON values as `peft` writes them, and initial values.

use serde_json::{Map, Value, json};

/// A number as `peft` writes it: without a fraction where it has none.
pub(crate) fn whole(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e9 {
        json!(value as i64)
    } else {
        json!(value)
    }
}

/// The layer of a JSON object.
pub(crate) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// Uniform within `±1/sqrt(fan_in)`: Kaiming's initialisation with `a = sqrt(5)`.
pub(crate) fn kaiming(rng: &mut impl rand::Rng, len: usize, fan_in: usize) -> Vec<f32> {
    let bound = 1.0 / (fan_in as f32).sqrt();
    (0..len).map(|_| rng.random_range(-bound..bound)).collect()
}
