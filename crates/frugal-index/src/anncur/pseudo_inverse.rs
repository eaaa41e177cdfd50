//! Pseudo-inverses that leave noise alone.

use faer::Mat;

use super::error::AnncurError;

/// What is done with small singular values.
///
/// A plain pseudo-inverse divides by all of them. Where `W` is nearly square its smallest ones are
/// noise alone, and estimates drown in it: with a table of rank 20 and a little noise, 100 anchor
/// queries and 100 anchor items find a fifth of what 50 items do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Regularization {
    /// Nothing, but for those below a relative 1e-15, as `numpy.linalg.pinv`: the official program.
    Plain,
    /// Singular values of at most this part of the largest one count as 0.
    Cutoff(f64),
    /// `(WᵀW + λI)⁻¹Wᵀ` with this λ.
    Ridge(f64),
}

impl Default for Regularization {
    fn default() -> Self {
        Self::Cutoff(0.1)
    }
}

impl Regularization {
    pub(super) fn check(self) -> Result<(), AnncurError> {
        let problem = match self {
            Self::Cutoff(part) if !(0.0..1.0).contains(&part) => {
                format!("the cut-off of singular values must be at least 0 and below 1, not {part}")
            }
            Self::Ridge(lambda) if !(lambda.is_finite() && lambda >= 0.0) => {
                format!("the ridge λ must be finite and at least 0, not {lambda}")
            }
            _ => return Ok(()),
        };
        Err(AnncurError::Option(problem))
    }

    /// What a singular value is multiplied by.
    fn inverted(self, value: f64, largest: f64) -> f64 {
        match self {
            Self::Plain if value > 1e-15 * largest => 1.0 / value,
            Self::Cutoff(part) if value > part.max(1e-15) * largest => 1.0 / value,
            Self::Ridge(lambda) if value > 1e-15 * largest => value / (value * value + lambda),
            _ => 0.0,
        }
    }
}

/// The pseudo-inverse of `w: [rows, columns] -> [columns, rows]`.
pub(super) fn pseudo_inverse(
    w: &Mat<f64>,
    regularization: Regularization,
) -> Result<Mat<f64>, AnncurError> {
    regularization.check()?;
    let svd = w.thin_svd().map_err(|_| AnncurError::Decomposition)?;
    let values = svd.S().column_vector();
    let largest = values.iter().fold(0.0f64, |most, value| most.max(*value));
    let mut scaled = svd.V().to_owned();
    for (i, value) in values.iter().enumerate() {
        let factor = regularization.inverted(*value, largest);
        scaled.col_mut(i).iter_mut().for_each(|v| *v *= factor);
    }
    Ok(scaled * svd.U().transpose())
}
