//! Whole numbers among the numbers of a checkpoint.

use std::collections::BTreeMap;

/// A whole number in parts of 16 bits, each of which a float holds exactly.
pub(super) fn whole(value: u64) -> Vec<f32> {
    (0..4)
        .map(|i| f32::from((value >> (16 * i)) as u16))
        .collect()
}

/// The whole number of a state.
pub(super) fn to_whole(name: &str, state: &BTreeMap<String, Vec<f32>>) -> Result<u64, String> {
    let parts = take(name, 4, state)?;
    let mut value = 0;
    for (i, part) in parts.iter().enumerate() {
        if !(*part >= 0.0 && *part <= 65_535.0 && part.fract() == 0.0) {
            return Err(format!("`{name}` is no whole number"));
        }
        value |= (*part as u64) << (16 * i);
    }
    Ok(value)
}

/// The numbers of a name, of which there must be so many.
pub(super) fn take<'s>(
    name: &str,
    len: usize,
    state: &'s BTreeMap<String, Vec<f32>>,
) -> Result<&'s [f32], String> {
    match state.get(name) {
        Some(values) if values.len() == len => Ok(values),
        Some(values) => Err(format!("`{name}` has {} numbers, not {len}", values.len())),
        None => Err(format!("`{name}` is not there")),
    }
}
