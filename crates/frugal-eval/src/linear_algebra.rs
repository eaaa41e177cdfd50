//! Small dense linear algebra in f64: as much as the measures here need. Spectra come from `faer`.

/// A matrix `[rows, columns]`, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub columns: usize,
    /// Elements, row by row.
    pub data: Vec<f64>,
}

impl Matrix {
    /// A matrix of zeros.
    pub fn zeros(rows: usize, columns: usize) -> Self {
        Self {
            rows,
            columns,
            data: vec![0.0; rows * columns],
        }
    }

    /// From rows of equal length; shorter rows are filled with zeros.
    pub fn from_rows(rows: &[Vec<f64>]) -> Self {
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut matrix = Self::zeros(rows.len(), columns);
        for (i, row) in rows.iter().enumerate() {
            matrix.row_mut(i)[..row.len()].copy_from_slice(row);
        }
        matrix
    }

    /// A row.
    pub fn row(&self, i: usize) -> &[f64] {
        &self.data[i * self.columns..(i + 1) * self.columns]
    }

    /// A row, to be changed.
    pub fn row_mut(&mut self, i: usize) -> &mut [f64] {
        &mut self.data[i * self.columns..(i + 1) * self.columns]
    }

    /// `Σ w_i · row_i row_iᵀ`, `[columns, columns]`; all weights are 1 if there are none.
    pub fn gram(&self, weights: Option<&[f64]>) -> Self {
        let n = self.columns;
        let mut out = Self::zeros(n, n);
        for i in 0..self.rows {
            let (row, weight) = (self.row(i), weights.map_or(1.0, |w| w[i]));
            for a in 0..n {
                let scaled = weight * row[a];
                if scaled != 0.0 {
                    out.data[a * n..a * n + a + 1]
                        .iter_mut()
                        .zip(row)
                        .for_each(|(o, b)| *o += scaled * b);
                }
            }
        }
        for a in 0..n {
            for b in 0..a {
                out.data[b * n + a] = out.data[a * n + b];
            }
        }
        out
    }
}

/// Inner product.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Cholesky factor of a symmetric positive definite matrix.
pub struct Cholesky {
    n: usize,
    /// Lower triangle, row by row.
    lower: Vec<f64>,
}

impl Cholesky {
    /// `None` if the matrix is not positive definite.
    pub fn new(matrix: &Matrix) -> Option<Self> {
        let n = matrix.rows;
        let mut lower = matrix.data.clone();
        for i in 0..n {
            for j in 0..=i {
                let sum =
                    lower[i * n + j] - dot(&lower[i * n..i * n + j], &lower[j * n..j * n + j]);
                if i == j {
                    if sum.is_nan() || sum <= 0.0 {
                        return None;
                    }
                    lower[i * n + i] = sum.sqrt();
                } else {
                    lower[i * n + j] = sum / lower[j * n + j];
                }
            }
        }
        Some(Self { n, lower })
    }

    /// Solves `A x = b`.
    pub fn solve(&self, b: &[f64]) -> Vec<f64> {
        let n = self.n;
        let mut x = b.to_vec();
        for i in 0..n {
            let sum = x[i] - dot(&self.lower[i * n..i * n + i], &x[..i]);
            x[i] = sum / self.lower[i * n + i];
        }
        for i in (0..n).rev() {
            let sum = x[i]
                - (i + 1..n)
                    .map(|k| self.lower[k * n + i] * x[k])
                    .sum::<f64>();
            x[i] = sum / self.lower[i * n + i];
        }
        x
    }
}

/// The matrix as the solvers read it.
fn view(matrix: &Matrix) -> faer::MatRef<'_, f64> {
    faer::MatRef::from_row_major_slice(&matrix.data, matrix.rows, matrix.columns)
}

/// Eigenvalues of a symmetric matrix, in rising order; `None` if the solver does not converge,
/// which finite input does not bring about.
pub fn symmetric_eigenvalues(matrix: &Matrix) -> Option<Vec<f64>> {
    if matrix.rows == 0 {
        return Some(Vec::new());
    }
    view(matrix)
        .self_adjoint_eigenvalues(faer::Side::Lower)
        .ok()
}

/// Singular values, in falling order; `None` as for [`symmetric_eigenvalues`].
pub fn singular_values(matrix: &Matrix) -> Option<Vec<f64>> {
    if matrix.rows == 0 || matrix.columns == 0 {
        return Some(Vec::new());
    }
    view(matrix).singular_values().ok()
}

/// The smaller one of `XXᵀ` and `XᵀX`: both have the squares of the singular values for
/// eigenvalues, the larger one with zeros beside them.
pub fn smaller_gram(matrix: &Matrix) -> Matrix {
    let x = view(matrix);
    let gram = if matrix.rows < matrix.columns {
        x * x.transpose()
    } else {
        x.transpose() * x
    };
    let n = gram.nrows();
    let mut out = Matrix::zeros(n, n);
    for i in 0..n {
        for j in 0..n {
            out.data[i * n + j] = gram[(i, j)];
        }
    }
    out
}

/// Ordinary least squares of `y` on the columns of `x`; `None` if these are linearly dependent.
pub fn least_squares(x: &Matrix, y: &[f64]) -> Option<Vec<f64>> {
    if x.rows == 0 || x.rows < x.columns {
        return None;
    }
    let mut right = vec![0.0; x.columns];
    for (i, value) in y.iter().enumerate() {
        right
            .iter_mut()
            .zip(x.row(i))
            .for_each(|(r, v)| *r += v * value);
    }
    Cholesky::new(&x.gram(None)).map(|c| c.solve(&right))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(rows: usize, columns: usize) -> Matrix {
        let value = |k: usize| (0.37 * k as f64 + 0.003 * (k * k) as f64).sin();
        Matrix {
            rows,
            columns,
            data: (0..rows * columns).map(value).collect(),
        }
    }

    #[test]
    fn a_system_is_solved() {
        let gram = wave(30, 8).gram(None);
        let expected: Vec<f64> = (0..8).map(|i| f64::from(i) - 3.5).collect();
        let right: Vec<f64> = (0..8).map(|i| dot(gram.row(i), &expected)).collect();
        let found = Cholesky::new(&gram).unwrap().solve(&right);
        assert!(
            found
                .iter()
                .zip(&expected)
                .all(|(a, b)| (a - b).abs() < 1e-10),
            "{found:?}"
        );
        assert!(Cholesky::new(&Matrix::from_rows(&[vec![1.0, 2.0], vec![2.0, 1.0]])).is_none());
    }

    #[test]
    fn eigenvalues_have_the_moments_of_the_matrix() {
        // [[2, 1], [1, 2]] has 1 and 3; a diagonal matrix has its diagonal.
        let mut two =
            symmetric_eigenvalues(&Matrix::from_rows(&[vec![2.0, 1.0], vec![1.0, 2.0]])).unwrap();
        two.sort_by(f64::total_cmp);
        assert!((two[0] - 1.0).abs() < 1e-12 && (two[1] - 3.0).abs() < 1e-12);
        for n in [1, 3, 17, 60] {
            let matrix = wave(n + 2, n).gram(None);
            let values = symmetric_eigenvalues(&matrix).unwrap();
            // Trace of the matrix, of its square, and of its cube.
            let square: f64 = matrix.data.iter().map(|v| v * v).sum();
            let trace: f64 = (0..n).map(|i| matrix.row(i)[i]).sum();
            let scale = trace.max(1.0);
            assert!(
                (values.iter().sum::<f64>() - trace).abs() < 1e-10 * scale,
                "{n}"
            );
            assert!(
                (values.iter().map(|v| v * v).sum::<f64>() - square).abs() < 1e-9 * scale * scale,
                "{n}"
            );
            let cube: f64 = (0..n)
                .map(|i| {
                    (0..n)
                        .map(|j| {
                            matrix.row(i)[j]
                                * (0..n)
                                    .map(|k| matrix.row(j)[k] * matrix.row(k)[i])
                                    .sum::<f64>()
                        })
                        .sum::<f64>()
                })
                .sum();
            assert!(
                (values.iter().map(|v| v.powi(3)).sum::<f64>() - cube).abs() < 1e-8 * scale.powi(3),
                "{n}"
            );
        }
    }

    #[test]
    fn a_line_is_found() {
        let x = Matrix::from_rows(&[
            vec![1.0, 0.0],
            vec![1.0, 1.0],
            vec![1.0, 2.0],
            vec![1.0, 3.0],
        ]);
        let found = least_squares(&x, &[1.0, 3.0, 5.0, 7.0]).unwrap();
        assert!((found[0] - 1.0).abs() < 1e-12 && (found[1] - 2.0).abs() < 1e-12);
    }
}
