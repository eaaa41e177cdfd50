//! Which shared parameter each weight reads, and with which sign.

use serde::{Deserialize, Serialize};

/// Modulus of the universal hash.
const PRIME: u64 = 2_038_074_743;

/// How weights are mapped to parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mapper {
    /// Rotated copies of the whole array one after another: every parameter is used equally often.
    #[default]
    RandomFold,
    /// Tiles of the matrix at random places of the array.
    Roast,
    /// Every weight for itself.
    Hashed,
}

/// SplitMix64.
pub fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The universal hash `((a₀ x + a₁ x² + a₂) mod P) mod m`.
#[derive(Clone, Copy, Debug)]
pub struct Hash {
    a: [u64; 3],
}

impl Hash {
    /// With odd coefficients from a seed.
    pub fn new(seed: u64) -> Self {
        let draw = |i: u64| (mix(seed.wrapping_mul(3).wrapping_add(i)) % PRIME) | 1;
        Self {
            a: [draw(0), draw(1), draw(2)],
        }
    }

    /// With these coefficients.
    #[cfg(test)]
    pub fn with(a: [u64; 3]) -> Self {
        Self { a }
    }

    /// A number below `m`.
    pub fn of(&self, x: u64, m: usize) -> usize {
        let x = x % PRIME;
        // Every product of two factors below P fits into 64 bits.
        let square = x * x % PRIME;
        let sum = self.a[0] * x % PRIME + self.a[1] * square % PRIME + self.a[2];
        (sum % PRIME % m as u64) as usize
    }
}

/// A matrix in the flat row of all shared weights.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// First flat index.
    pub offset: usize,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
}

impl Span {
    /// Weights.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }
}

/// Where all weights of an array of `m` parameters point.
#[derive(Clone, Copy, Debug)]
pub struct Mapping {
    /// Kind.
    pub mapper: Mapper,
    /// Parameters.
    pub m: usize,
    /// Tile of `roast`, rows and columns.
    pub block: [usize; 2],
    /// Seed of hash and signs.
    pub seed: u64,
}

impl Mapping {
    /// The parameters that a fold's part `span` reads in order, as ranges of the array.
    pub fn fold(&self, span: Span) -> Vec<std::ops::Range<usize>> {
        self.fold_with(span, |chunk| Hash::new(self.seed).of(chunk as u64, self.m))
    }

    pub(crate) fn fold_with(
        &self,
        span: Span,
        rotation: impl Fn(usize) -> usize,
    ) -> Vec<std::ops::Range<usize>> {
        let (m, end) = (self.m, span.offset + span.len());
        let (mut ranges, mut at) = (Vec::new(), span.offset);
        while at < end {
            let chunk = at / m;
            let start = (rotation(chunk) + at % m) % m;
            let length = (end - at).min(m - at % m).min(m - start);
            ranges.push(start..start + length);
            at += length;
        }
        ranges
    }

    /// The parameter of every weight of a matrix, row by row.
    pub fn indices(&self, span: Span) -> Vec<usize> {
        let (hash, m) = (Hash::new(self.seed), self.m);
        match self.mapper {
            Mapper::RandomFold => self.fold(span).into_iter().flatten().collect(),
            Mapper::Hashed => (span.offset..span.offset + span.len())
                .map(|i| hash.of(i as u64, m))
                .collect(),
            Mapper::Roast => {
                let [height, width] = self.block;
                let size = (height * width).min(m);
                let tiles_per_row = span.cols.div_ceil(width);
                let place = |row: usize, col: usize| {
                    let tile = (row / height * tiles_per_row + col / width) as u64;
                    let start = hash.of(mix(span.offset as u64) ^ tile, m - size + 1);
                    start + (row % height * width + col % width) % size
                };
                (0..span.rows)
                    .flat_map(|row| (0..span.cols).map(move |col| place(row, col)))
                    .collect()
            }
        }
    }

    /// `+1` or `-1` for every weight of a matrix.
    pub fn signs(&self, span: Span) -> Vec<f32> {
        let mut out = Vec::with_capacity(span.len());
        let (mut word, mut bits) = (usize::MAX, 0u64);
        for i in span.offset..span.offset + span.len() {
            if i / 64 != word {
                (word, bits) = (i / 64, mix(self.seed ^ mix((i / 64) as u64)));
            }
            out.push(if bits >> (i % 64) & 1 == 1 { 1.0 } else { -1.0 });
        }
        out
    }
}

/// `Σ λ` and number of weights of every parameter.
pub struct Usage {
    /// `Σ λ`.
    pub sum: Vec<f32>,
    /// Weights.
    pub count: Vec<f32>,
}

impl Usage {
    /// Of all matrices, each with its `λ`.
    pub fn new(m: usize, weights: impl Iterator<Item = (Vec<usize>, f32)>) -> Self {
        let (mut sum, mut count) = (vec![0.0; m], vec![0.0; m]);
        for (indices, lambda) in weights {
            for j in indices {
                sum[j] += lambda;
                count[j] += 1.0;
            }
        }
        Self { sum, count }
    }

    /// What the gradient of each parameter is divided by: `Σ λ`, 1 where nothing reads it.
    pub fn sums(&self) -> Vec<f32> {
        self.sum
            .iter()
            .zip(&self.count)
            .map(|(s, n)| if *n > 0.0 { *s } else { 1.0 })
            .collect()
    }

    /// What the update of each parameter is divided by: the mean `λ`, 1 where nothing reads it.
    /// Both make `Γ = (Σ λ)² / n`.
    pub fn mean(&self) -> Vec<f32> {
        self.sum
            .iter()
            .zip(&self.count)
            .map(|(s, n)| if *n > 0.0 { s / n } else { 1.0 })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(mapper: Mapper, m: usize) -> Mapping {
        Mapping {
            mapper,
            m,
            block: [2, 2],
            seed: 7,
        }
    }

    fn flat(len: usize) -> Span {
        Span {
            offset: 0,
            rows: 1,
            cols: len,
        }
    }

    /// `Γ`, which a step of gradient descent is divided by.
    fn gamma(usage: &Usage) -> Vec<f32> {
        usage
            .sums()
            .into_iter()
            .zip(usage.mean())
            .map(|(sum, mean)| sum * mean)
            .collect()
    }

    #[test]
    fn the_worked_fold() {
        let fold = mapping(Mapper::RandomFold, 4).fold_with(flat(10), |chunk| [2, 0, 3][chunk]);
        let indices: Vec<usize> = fold.into_iter().flatten().collect();
        assert_eq!(indices, [2, 3, 0, 1, 0, 1, 2, 3, 3, 0]);
        let usage = Usage::new(
            4,
            [(indices[..6].to_vec(), 2.0), (indices[6..].to_vec(), 0.5)].into_iter(),
        );
        assert_eq!(usage.count, [3.0, 2.0, 2.0, 3.0]);
        assert_eq!(usage.sum, [4.5, 4.0, 2.5, 3.0]);
        assert_eq!(gamma(&usage), [6.75, 8.0, 3.125, 3.0]);
    }

    #[test]
    fn the_hash_is_that_of_the_released_code() {
        let hash = Hash::with([3, 5, 7]);
        assert_eq!(
            (0..5).map(|x| hash.of(x, 4)).collect::<Vec<_>>(),
            [3, 3, 1, 1, 3]
        );
        // Far beyond where the unreduced polynomial leaves 64 bits.
        let (x, a) = (
            123_456_789_012u128,
            [2_000_000_011u128, 1_999_999_999, 12_345],
        );
        let exact = ((a[0] * x + a[1] * x * x + a[2]) % u128::from(PRIME) % 1000) as usize;
        assert_eq!(Hash::with(a.map(|a| a as u64)).of(x as u64, 1000), exact);
    }

    #[test]
    fn a_fold_uses_all_parameters_equally_often() {
        for (n, m) in [(10, 4), (60, 17), (64, 64), (1000, 999), (5, 8)] {
            let usage = Usage::new(
                m,
                [(mapping(Mapper::RandomFold, m).indices(flat(n)), 1.0)].into_iter(),
            );
            let (least, most) = (
                usage.count.iter().copied().fold(f32::MAX, f32::min),
                usage.count.iter().copied().fold(0.0, f32::max),
            );
            assert!(
                most - least <= 1.0 && usage.count.iter().sum::<f32>() == n as f32,
                "{n} {m}"
            );
        }
        // Hashing weight by weight leaves about 1/e of the array unused.
        let usage = Usage::new(
            10_000,
            [(mapping(Mapper::Hashed, 10_000).indices(flat(10_000)), 1.0)].into_iter(),
        );
        let unused = usage.count.iter().filter(|c| **c == 0.0).count() as f64 / 1e4;
        assert!((unused - (-1.0f64).exp()).abs() < 0.02, "{unused}");
    }

    #[test]
    fn a_part_of_the_fold_is_the_same_as_a_part_of_the_whole() {
        for mapper in [Mapper::RandomFold, Mapper::Hashed] {
            let whole = mapping(mapper, 17);
            let part = Span {
                offset: 23,
                rows: 4,
                cols: 5,
            };
            assert_eq!(whole.indices(part), whole.indices(flat(60))[23..43]);
            assert_eq!(whole.signs(part), whole.signs(flat(60))[23..43]);
        }
    }

    #[test]
    fn tiles_lie_together_and_within_the_array() {
        let roast = mapping(Mapper::Roast, 50);
        let indices = roast.indices(Span {
            offset: 0,
            rows: 4,
            cols: 6,
        });
        assert!(indices.iter().all(|&j| j < 50));
        let tile = [indices[0], indices[1], indices[6], indices[7]];
        assert_eq!(tile, [tile[0], tile[0] + 1, tile[0] + 2, tile[0] + 3]);
    }

    #[test]
    fn signs_are_balanced() {
        let signs = mapping(Mapper::RandomFold, 8).signs(flat(100_000));
        assert!((signs.iter().sum::<f32>() / 1e5).abs() < 0.01);
    }

    /// Least squares by gradient descent on `ψ`, or on the weights themselves when `m == n` maps
    /// one to one.
    fn descend(sigma: f32, scaled: bool, n: usize, m: usize) -> Vec<f32> {
        let map = mapping(Mapper::RandomFold, m);
        let (indices, signs) = (map.indices(flat(n)), map.signs(flat(n)));
        let lambda = |i: usize| if i < n / 2 { 0.3 / sigma } else { 0.1 / sigma };
        let halves = [
            (indices[..n / 2].to_vec(), lambda(0)),
            (indices[n / 2..].to_vec(), lambda(n - 1)),
        ];
        let gamma = gamma(&Usage::new(m, halves.into_iter()));
        let wave = |i: usize, f: f64| (i as f64 * f).sin() as f32;
        let mut psi: Vec<f32> = (0..m).map(|j| sigma * wave(j + 1, 1.7)).collect();
        let weights = |psi: &[f32]| {
            (0..n)
                .map(|i| lambda(i) * signs[i] * psi[indices[i]])
                .collect::<Vec<_>>()
        };
        for _ in 0..30 {
            let w = weights(&psi);
            let mut gradient = vec![0.0; m];
            for i in 0..n {
                gradient[indices[i]] += lambda(i) * signs[i] * (w[i] - wave(i, 0.9));
            }
            for j in 0..m {
                psi[j] -= 0.1 * gradient[j] / if scaled { gamma[j] } else { 1.0 };
            }
        }
        weights(&psi)
    }

    #[test]
    fn scaled_gradients_make_runs_independent_of_the_initial_scale() {
        // Runs that left the range of numbers are as far apart as can be.
        let apart = |a: f32, b: f32| {
            if (a - b).is_finite() {
                (a - b).abs()
            } else {
                f32::INFINITY
            }
        };
        let far = |a: &[f32], b: &[f32]| {
            a.iter()
                .zip(b)
                .map(|(&a, &b)| apart(a, b))
                .fold(0.0, f32::max)
        };
        assert!(far(&descend(0.01, true, 60, 17), &descend(0.1, true, 60, 17)) < 1e-5);
        let unscaled = far(&descend(0.01, false, 60, 17), &descend(0.1, false, 60, 17));
        assert!(unscaled > 0.1, "{unscaled}");
    }

    #[test]
    fn without_compression_it_is_plain_gradient_descent() {
        let n = 40;
        let map = mapping(Mapper::RandomFold, n);
        let (indices, signs) = (map.indices(flat(n)), map.signs(flat(n)));
        let wave = |i: usize, f: f64| (i as f64 * f).sin() as f32;
        let mut w: Vec<f32> = (0..n)
            .map(|i| (if i < n / 2 { 0.3 } else { 0.1 }) * signs[i] * wave(indices[i] + 1, 1.7))
            .collect();
        for _ in 0..30 {
            for (i, w) in w.iter_mut().enumerate() {
                *w -= 0.1 * (*w - wave(i, 0.9));
            }
        }
        for sigma in [0.01, 1.0] {
            descend(sigma, true, n, n)
                .iter()
                .zip(&w)
                .for_each(|(a, b)| assert!((a - b).abs() < 1e-5, "{a} {b}"));
        }
    }
}
