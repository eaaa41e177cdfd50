//! Products with a Hessian from differences of gradients.

use super::error::UnrollError;
use super::inner::{Element, InnerGradient, InnerLoss, Tensors, is_finite, norm};

/// How far apart the gradients of a central difference are, along a direction of length 1.
#[derive(Clone, Debug)]
pub struct Differences {
    fixed: Option<f64>,
    tolerance: f64,
    /// By step, as far as they were searched for.
    found: Vec<Option<f64>>,
}

impl Differences {
    /// Always so far.
    pub fn fixed(distance: f64) -> Self {
        Self {
            fixed: Some(distance),
            tolerance: 0.0,
            found: Vec::new(),
        }
    }

    /// Searched for once for each step, until a product with the Hessian is stable to `tolerance`.
    pub fn searched(tolerance: f64) -> Self {
        Self {
            fixed: None,
            tolerance,
            found: Vec::new(),
        }
    }

    /// Forgets what was found, so that it is searched for again.
    pub fn forget(&mut self) {
        self.found.clear();
    }

    /// The distance of a step. A search begins at a hundredth of the length of the weights, and at
    /// 0.01 at least.
    pub(super) fn distance<F: Element, L: InnerLoss<F>>(
        &mut self,
        step: usize,
        loss: &mut L,
        fast: &[Vec<F>],
        direction: &[Vec<F>],
    ) -> Result<f64, UnrollError<L::Error>> {
        if let Some(fixed) = self.fixed {
            return Ok(fixed);
        }
        if self.found.len() < step {
            self.found.resize(step, None);
        }
        if let Some(found) = self.found[step - 1] {
            return Ok(found);
        }
        let start = 1e-2 * norm(fast).max(1.0);
        let found = stable_difference(loss, fast, direction, start, self.tolerance);
        let found = found.map_err(|error| match error {
            UnrollError::NotFinite { .. } => UnrollError::NotFinite { step },
            other => other,
        })?;
        self.found[step - 1] = Some(found);
        Ok(found)
    }
}

/// The derivative of both gradients along a direction, times its length: `H λ` and the mixed one.
pub(super) fn product<F: Element, L: InnerLoss<F>>(
    loss: &mut L,
    fast: &[Vec<F>],
    direction: &[Vec<F>],
    difference: f64,
    step: usize,
) -> Result<InnerGradient<F>, UnrollError<L::Error>> {
    let length = norm(direction);
    if !length.is_finite() {
        return Err(UnrollError::NotFinite { step });
    }
    let mut at = |offset: f64| {
        let scale = if length > 0.0 { offset / length } else { 0.0 };
        let moved: Tensors<F> = fast
            .iter()
            .zip(direction)
            .map(|(values, along)| {
                let pairs = values.iter().zip(along);
                pairs
                    .map(|(value, along)| F::of(value.get() + scale * along.get()))
                    .collect()
            })
            .collect();
        loss.gradient(&moved).map_err(UnrollError::Loss)
    };
    let (ahead, behind) = (at(difference)?, at(-difference)?);
    let factor = length / (2.0 * difference);
    let apart = |ahead: Tensors<F>, behind: Tensors<F>| -> Tensors<F> {
        let mut ahead = ahead;
        let pairs = ahead.iter_mut().flatten().zip(behind.iter().flatten());
        pairs.for_each(|(a, b)| *a = F::of((a.get() - b.get()) * factor));
        ahead
    };
    let found = InnerGradient {
        loss: 0.0,
        fast: apart(ahead.fast, behind.fast),
        other: apart(ahead.other, behind.other),
    };
    match is_finite(&found.fast) && is_finite(&found.other) {
        true => Ok(found),
        false => Err(UnrollError::NotFinite { step }),
    }
}

/// A distance for the differences of an inner loss at which halving it changes the product with a
/// direction by less than `tolerance` of its length: from `start`, it is halved and doubled in turn,
/// at most so many times as make a factor of 2⁸ either way. The least change that was seen decides
/// where none is that small.
///
/// # Errors
/// What the inner loss says, values that are not finite (of a step 0, as none is known here).
pub fn stable_difference<F: Element, L: InnerLoss<F>>(
    loss: &mut L,
    fast: &[Vec<F>],
    direction: &[Vec<F>],
    start: f64,
    tolerance: f64,
) -> Result<f64, UnrollError<L::Error>> {
    let mut best = (f64::INFINITY, start);
    if norm(direction) == 0.0 {
        return Ok(start);
    }
    let offsets = (0..=8).flat_map(|i| [i, -i]).skip(1);
    for exponent in offsets {
        let wide = start * 2f64.powi(exponent);
        let a = product(loss, fast, direction, wide, 0)?.fast;
        let b = product(loss, fast, direction, wide / 2.0, 0)?.fast;
        let length = norm(&b);
        let apart: f64 = a
            .iter()
            .flatten()
            .zip(b.iter().flatten())
            .map(|(a, b)| (a.get() - b.get()).powi(2))
            .sum();
        let change = match length > 0.0 {
            true => apart.sqrt() / length,
            false => apart.sqrt(),
        };
        if change < best.0 {
            best = (change, wide / 2.0);
        }
        if best.0 <= tolerance {
            break;
        }
    }
    Ok(best.1)
}
