//! Models that are trained on the labelled items themselves.

use serde::{Deserialize, Serialize};

use super::error::SelectError;
use crate::linear_algebra::{Cholesky, Matrix, dot};

/// A model whose predictions do not depend on the order of what it is trained on.
pub trait Learner {
    /// For each row the prediction of the model that was trained on all other rows.
    ///
    /// # Errors
    /// If it has no solution.
    fn leave_one_out(&self, features: &[Vec<f64>], good: &[bool]) -> Result<Vec<f64>, SelectError>;

    /// Predictions for `test` of the model that was trained on `train`.
    ///
    /// # Errors
    /// If it has no solution.
    fn fit_predict(
        &self,
        train: &[Vec<f64>],
        good: &[bool],
        test: &[Vec<f64>],
    ) -> Result<Vec<f64>, SelectError>;
}

impl Learner for Box<dyn Learner> {
    fn leave_one_out(&self, features: &[Vec<f64>], good: &[bool]) -> Result<Vec<f64>, SelectError> {
        self.as_ref().leave_one_out(features, good)
    }

    fn fit_predict(
        &self,
        train: &[Vec<f64>],
        good: &[bool],
        test: &[Vec<f64>],
    ) -> Result<Vec<f64>, SelectError> {
        self.as_ref().fit_predict(train, good, test)
    }
}

/// A ridge regression that is trained on the labelled items.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ridge {
    /// Penalty on the squared coefficients of standardised features; the intercept is free.
    pub penalty: f64,
    /// Weigh items so that both outcomes weigh the same.
    pub balance: bool,
}

impl Default for Ridge {
    fn default() -> Self {
        Self {
            penalty: 1.0,
            balance: true,
        }
    }
}

impl Learner for Ridge {
    fn leave_one_out(&self, features: &[Vec<f64>], good: &[bool]) -> Result<Vec<f64>, SelectError> {
        let rows = with_intercept(&Scale::new(features).apply(features));
        let weights = weights(good, self.balance);
        let (factor, right) = self.system(&rows, good)?;
        let coefficients = factor.solve(&right);
        let without = |i: usize| {
            let leverage = weights[i] * dot(rows.row(i), &factor.solve(rows.row(i)));
            (dot(rows.row(i), &coefficients) - leverage * target(good[i])) / (1.0 - leverage)
        };
        Ok((0..rows.rows).map(without).collect())
    }

    fn fit_predict(
        &self,
        train: &[Vec<f64>],
        good: &[bool],
        test: &[Vec<f64>],
    ) -> Result<Vec<f64>, SelectError> {
        let scale = Scale::new(train);
        let (rows, asked) = (
            with_intercept(&scale.apply(train)),
            with_intercept(&scale.apply(test)),
        );
        let (factor, right) = self.system(&rows, good)?;
        let coefficients = factor.solve(&right);
        Ok((0..asked.rows)
            .map(|i| dot(asked.row(i), &coefficients))
            .collect())
    }
}

pub(super) fn target(good: bool) -> f64 {
    if good { 1.0 } else { 0.0 }
}

impl Ridge {
    /// The weighted normal equations with the penalty on all but the intercept.
    fn system(&self, rows: &Matrix, good: &[bool]) -> Result<(Cholesky, Vec<f64>), SelectError> {
        let weights = weights(good, self.balance);
        let mut gram = rows.gram(Some(&weights));
        for d in 1..rows.columns {
            gram.data[d * rows.columns + d] += self.penalty;
        }
        let factor = Cholesky::new(&gram).ok_or(SelectError::Singular(self.penalty))?;
        let mut right = vec![0.0; rows.columns];
        for i in 0..rows.rows {
            right
                .iter_mut()
                .zip(rows.row(i))
                .for_each(|(r, v)| *r += weights[i] * target(good[i]) * v);
        }
        Ok((factor, right))
    }
}

/// A ridge regression with a Gaussian kernel, `exp(-gamma |a - b|²) + 1` over standardised features:
/// what is not linear in them is found too, and the constant stands for the intercept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    /// Penalty on the squared norm of the function.
    pub penalty: f64,
    /// Width of the kernel; `None` for one over the number of features.
    pub gamma: Option<f64>,
    /// Weigh items so that both outcomes weigh the same.
    pub balance: bool,
}

impl Default for Kernel {
    fn default() -> Self {
        Self {
            penalty: 1.0,
            gamma: None,
            balance: true,
        }
    }
}

impl Kernel {
    fn value(&self, a: &[f64], b: &[f64]) -> f64 {
        let gamma = self.gamma.unwrap_or(1.0 / a.len().max(1) as f64);
        let distance: f64 = a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum();
        (-gamma * distance).exp() + 1.0
    }

    /// The factor of `K + penalty / weights`.
    fn factor(&self, rows: &[Vec<f64>], good: &[bool]) -> Result<Cholesky, SelectError> {
        let weights = weights(good, self.balance);
        let n = rows.len();
        let mut system = Matrix::zeros(n, n);
        for i in 0..n {
            for j in 0..=i {
                let value = self.value(&rows[i], &rows[j]);
                system.data[i * n + j] = value;
                system.data[j * n + i] = value;
            }
            system.data[i * n + i] += self.penalty / weights[i];
        }
        Cholesky::new(&system).ok_or(SelectError::Singular(self.penalty))
    }
}

impl Learner for Kernel {
    fn leave_one_out(&self, features: &[Vec<f64>], good: &[bool]) -> Result<Vec<f64>, SelectError> {
        let rows = Scale::new(features).apply(features);
        let factor = self.factor(&rows, good)?;
        let targets: Vec<f64> = good.iter().map(|g| target(*g)).collect();
        let dual = factor.solve(&targets);
        let mut unit = vec![0.0; rows.len()];
        let mut without = Vec::with_capacity(rows.len());
        for i in 0..rows.len() {
            unit[i] = 1.0;
            let inverse = factor.solve(&unit)[i];
            unit[i] = 0.0;
            without.push(targets[i] - dual[i] / inverse);
        }
        Ok(without)
    }

    fn fit_predict(
        &self,
        train: &[Vec<f64>],
        good: &[bool],
        test: &[Vec<f64>],
    ) -> Result<Vec<f64>, SelectError> {
        let scale = Scale::new(train);
        let rows = scale.apply(train);
        let targets: Vec<f64> = good.iter().map(|g| target(*g)).collect();
        let dual = self.factor(&rows, good)?.solve(&targets);
        let predict = |asked: &Vec<f64>| {
            let values = rows.iter().zip(&dual);
            values
                .map(|(row, weight)| weight * self.value(row, asked))
                .sum()
        };
        Ok(scale.apply(test).iter().map(predict).collect())
    }
}

pub(super) fn weights(good: &[bool], balance: bool) -> Vec<f64> {
    let many = good.iter().filter(|g| **g).count();
    let few = good.len() - many;
    if !balance || many == 0 || few == 0 {
        return vec![1.0; good.len()];
    }
    let (of_good, of_bad) = if many < few {
        (few as f64 / many as f64, 1.0)
    } else {
        (1.0, many as f64 / few as f64)
    };
    good.iter()
        .map(|g| if *g { of_good } else { of_bad })
        .collect()
}

/// Mean and spread of each feature, by which all are brought to one scale.
pub(super) struct Scale(Vec<(f64, f64)>);

impl Scale {
    pub(super) fn new(features: &[Vec<f64>]) -> Self {
        let columns = features.first().map_or(0, Vec::len);
        let n = features.len().max(1) as f64;
        let of = |c: usize| {
            let mean = features.iter().map(|row| row[c]).sum::<f64>() / n;
            let squares: f64 = features.iter().map(|row| (row[c] - mean).powi(2)).sum();
            (mean, (squares / n).sqrt())
        };
        Self((0..columns).map(of).collect())
    }

    /// A feature that does not vary says nothing.
    pub(super) fn apply(&self, features: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let scaled = |(value, (mean, spread)): (&f64, &(f64, f64))| {
            if *spread > 0.0 {
                (value - mean) / spread
            } else {
                0.0
            }
        };
        let row = |row: &Vec<f64>| row.iter().zip(&self.0).map(scaled).collect();
        features.iter().map(row).collect()
    }
}

/// Rows with a one in front.
pub(super) fn with_intercept(rows: &[Vec<f64>]) -> Matrix {
    let columns = rows.first().map_or(0, Vec::len) + 1;
    let mut matrix = Matrix::zeros(rows.len(), columns);
    for (i, row) in rows.iter().enumerate() {
        let place = matrix.row_mut(i);
        place[0] = 1.0;
        place[1..].copy_from_slice(row);
    }
    matrix
}
