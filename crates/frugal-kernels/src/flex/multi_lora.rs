//! A linear layer with a low-rank correction of its own for each range of rows.

use std::ops::Range;
use std::sync::Arc;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::dense::{column_sums, matrix_tensor, rows, scaled_low};
use super::matrix::{Matrix, MatrixMut, Threads, product};
use super::record::{Op, Operand, present, record};
use super::tensor::{contiguous, tensor_of, values};
use super::weight::{Base, Weight};
use crate::linear::LowRankRows;
use crate::packed::Packed;
use crate::save_policy::Cost;

/// Up to this many rows the pairs go side by side; above, the threads share each product.
const FEW_ROWS: usize = 64;

/// [`multi_lora_linear`](crate::multi_lora_linear) on Flex.
pub(crate) fn multi_lora_linear(
    x: &Tensor<2>,
    weight: &Weight<'_>,
    bias: Option<&Tensor<1>>,
    pairs: &[LowRankRows],
) -> Option<Tensor<2>> {
    let (x, (weight, packed), bias) = (Operand::new(x)?, weight.split()?, Operand::optional(bias)?);
    let operands = pairs
        .iter()
        .map(|pair| Some((Operand::new(&pair.a)?, Operand::new(&pair.b)?)))
        .collect::<Option<Vec<_>>>()?;
    // Trained pairs are joined, so that the operation has as many inputs whatever their number.
    let trained = operands
        .iter()
        .any(|(a, b)| a.is_tracked() || b.is_tracked());
    let flat = |tensor: &Tensor<2>| tensor.clone().reshape([-1]);
    let joined = trained.then(|| {
        Tensor::<1>::cat(
            pairs
                .iter()
                .flat_map(|pair| [flat(&pair.a), flat(&pair.b)])
                .collect(),
            0,
        )
    });
    let joined = Operand::optional(joined.as_ref())?;
    let mut end = 0;
    let placed = pairs.iter().zip(operands).map(|(pair, (a, b))| {
        let ([r, d], [out, _]) = (pair.a.dims(), pair.b.dims());
        let (start, middle) = (end, end + r * d);
        end = middle + out * r;
        let factors = if trained {
            Factors::Joined([start..middle, middle..end])
        } else {
            Factors::Own([a.tensor, b.tensor])
        };
        Pair {
            rows: pair.rows.clone(),
            r,
            scale: pair.scale,
            factors,
        }
    });
    let pairs: Arc<[Pair]> = placed.collect();
    let op = Op {
        cost: Cost::Heavy,
        reads: |[for_x, for_weight, _, for_pairs]| {
            [for_weight || for_pairs, for_x, false, for_x || for_pairs]
        },
        forward: move |[x, weight, bias, joined]: &[Option<FlexTensor>; 4], wanted: [bool; 4]| {
            let (x, joined) = (present(x), joined.as_ref().map(contiguous));
            let joined = joined.as_ref().map(values);
            let weight = Base::new(weight.as_ref(), packed.as_ref());
            let shape = [rows(x), weight.dims()[0]];
            let mut y = weight.affine(x, bias.as_ref(), None);
            let lows = each(&pairs, &mut y, shape, |pair, mut y, threads| {
                let [a, b] = pair.factors(joined);
                let low = scaled_low(pair.of(Matrix::of(x)), a, pair.scale);
                y.add(pair.low(&low), b.t(), 1.0, threads);
                low
            });
            let lows = if wanted[3] { lows } else { Vec::new() };
            (
                tensor_of(y, shape),
                Saved {
                    packed: packed.clone(),
                    pairs: pairs.clone(),
                    lows: lows.into(),
                },
            )
        },
        backward,
    };
    Some(record(
        [Some(&x), weight.as_ref(), bias.as_ref(), joined.as_ref()],
        op,
    ))
}

#[derive(Clone, Debug)]
struct Saved {
    packed: Option<Arc<Packed>>,
    pairs: Arc<[Pair]>,
    /// `scale * x · aᵀ` of each pair, if the pairs want gradients.
    lows: Arc<[Vec<f32>]>,
}

fn backward(
    [x, weight, _, joined]: [Option<FlexTensor>; 4],
    saved: Saved,
    dy: FlexTensor,
    [for_x, for_weight, for_bias, for_pairs]: [bool; 4],
    [waiting, ..]: &mut [Option<FlexTensor>; 4],
) -> [Option<FlexTensor>; 4] {
    let (dy, joined) = (Matrix::of(&dy), joined.as_ref().map(contiguous));
    let joined = joined.as_ref().map(values);
    let dlow = |pair: &Pair| product(pair.of(dy), pair.factors(joined)[1], pair.scale);
    let dlows: Vec<Vec<f32>> = if for_x || for_pairs {
        saved.pairs.iter().map(dlow).collect()
    } else {
        Vec::new()
    };
    let dx = for_x.then(|| {
        let base = Base::new(weight.as_ref(), saved.packed.as_ref());
        let mut dx = base.input_gradient(dy, None, waiting);
        for (pair, dlow) in saved.pairs.iter().zip(&dlows) {
            let mut dx = MatrixMut::new(dx.storage_mut(), dy.rows, base.dims()[1]);
            dx.narrow_rows(&pair.rows).add(
                pair.low(dlow),
                pair.factors(joined)[0],
                1.0,
                Threads::All,
            );
        }
        dx
    });
    let x = x.as_ref().map(Matrix::of);
    let dweight = x
        .filter(|_| for_weight)
        .map(|x| matrix_tensor(dy.t(), x, 1.0));
    let dpairs = x.filter(|_| for_pairs).map(|x| {
        let mut gradients = Vec::with_capacity(joined.map_or(0, <[f32]>::len));
        for ((pair, dlow), low) in saved.pairs.iter().zip(&dlows).zip(saved.lows.iter()) {
            gradients.extend(product(pair.low(dlow).t(), pair.of(x), 1.0));
            gradients.extend(product(pair.of(dy).t(), pair.low(low), 1.0));
        }
        let len = gradients.len();
        tensor_of(gradients, [len])
    });
    [dx, dweight, for_bias.then(|| column_sums(dy)), dpairs]
}

/// A pair and where it acts.
#[derive(Clone, Debug)]
struct Pair {
    rows: Range<usize>,
    r: usize,
    scale: f32,
    factors: Factors,
}

/// Where the factors a and b of a pair are.
#[derive(Clone, Debug)]
enum Factors {
    Own([FlexTensor; 2]),
    /// In the tensor that joins all pairs.
    Joined([Range<usize>; 2]),
}

impl Pair {
    /// Its rows.
    fn of<'a>(&self, matrix: Matrix<'a>) -> Matrix<'a> {
        matrix.narrow_rows(self.rows.start, self.rows.len())
    }

    /// a `[r, in]` and b `[out, r]`.
    fn factors<'a>(&'a self, joined: Option<&'a [f32]>) -> [Matrix<'a>; 2] {
        match &self.factors {
            Factors::Own(factors) => factors.each_ref().map(Matrix::of),
            Factors::Joined([a, b]) => {
                let joined = joined.expect("trained pairs are joined");
                let width = |place: &Range<usize>| place.len().checked_div(self.r).unwrap_or(0);
                [
                    Matrix::new(&joined[a.clone()], self.r, width(a)),
                    Matrix::new(&joined[b.clone()], width(b), self.r),
                ]
            }
        }
    }

    /// A matrix `[rows, r]`.
    fn low<'a>(&self, values: &'a [f32]) -> Matrix<'a> {
        Matrix::new(values, self.rows.len(), self.r)
    }
}

/// What `f` makes of each pair and its rows of `out`.
fn each<R: Send>(
    pairs: &[Pair],
    mut out: &mut [f32],
    [rows, cols]: [usize; 2],
    f: impl Fn(&Pair, MatrixMut<'_>, Threads) -> R + Sync,
) -> Vec<R> {
    let mut end = 0;
    let mut parts = Vec::with_capacity(pairs.len());
    for pair in pairs {
        let (part, rest) = out.split_at_mut((pair.rows.end - end) * cols);
        parts.push((pair, &mut part[(pair.rows.start - end) * cols..]));
        (out, end) = (rest, pair.rows.end);
    }
    let run = |(pair, part): (&Pair, &mut [f32]), threads| {
        f(pair, MatrixMut::new(part, pair.rows.len(), cols), threads)
    };
    if rows <= FEW_ROWS {
        parts
            .into_par_iter()
            .map(|part| run(part, Threads::One))
            .collect()
    } else {
        parts
            .into_iter()
            .map(|part| run(part, Threads::All))
            .collect()
    }
}
