//! Comparisons that say which tensor is worst, by how much, and what was allowed.

use frugal::adapt::Adapter;

/// A failed comparison or another broken promise.
pub type Checked = Result<(), String>;

/// A tensor by name.
pub type Named = (String, Vec<f32>);

/// Whether two tensors are as close as allowed.
pub fn close(what: &str, found: &[f32], expected: &[f32], allowed: f32) -> Checked {
    if found.len() != expected.len() {
        let (found, expected) = (found.len(), expected.len());
        return Err(format!("{what}: {found} numbers, not {expected}"));
    }
    let (at, difference) = worst(found, expected);
    if difference <= allowed {
        return Ok(());
    }
    Err(format!(
        "{what}: the largest difference is {difference:e} at {at} ({:e}, not {:e}), allowed is {allowed:e}",
        found[at], expected[at]
    ))
}

/// The largest absolute difference and where it is; a number against none counts as infinite.
pub fn worst(a: &[f32], b: &[f32]) -> (usize, f32) {
    let differences = a.iter().zip(b).map(|(a, b)| match (a - b).abs() {
        difference if difference.is_nan() && a.to_bits() != b.to_bits() => f32::INFINITY,
        difference if difference.is_nan() => 0.0,
        difference => difference,
    });
    differences.enumerate().fold(
        (0, 0.0),
        |worst, next| if next.1 > worst.1 { next } else { worst },
    )
}

/// Names and values of an adapter's parameters.
pub fn parameters(adapter: &dyn Adapter) -> Vec<Named> {
    let parameters = adapter.parameters().into_iter();
    parameters
        .map(|p| (p.name().to_owned(), p.to_vec()))
        .collect()
}

/// Whether all tensors have the same bits.
pub fn same_bits(what: &str, found: &[Named], expected: &[Named]) -> Checked {
    let names = |all: &[Named]| all.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    if names(found) != names(expected) {
        let (found, expected) = (names(found), names(expected));
        return Err(format!("{what}: there are {found:?}, not {expected:?}"));
    }
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let other: Vec<(&str, f32)> = found
        .iter()
        .zip(expected)
        .filter(|((_, found), (_, expected))| bits(found) != bits(expected))
        .map(|((name, found), (_, expected))| (name.as_str(), worst(found, expected).1))
        .collect();
    match other.iter().max_by(|a, b| a.1.total_cmp(&b.1)) {
        None => Ok(()),
        Some((name, difference)) => Err(format!(
            "{what}: {} of {} tensors differ, the most `{name}` by {difference:e}, allowed is 0",
            other.len(),
            found.len()
        )),
    }
}
