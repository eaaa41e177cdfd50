//! Two thin matrices whose product is a weight, or a part of one.

use burn::prelude::*;
use frugal_nn::linalg::{qr, svd};
use frugal_nn::{BuildContext, Mode, Parameter, named_rng};
use rand::Rng;

/// `scale · B A`.
pub(super) struct Factors {
    /// `[rank, d_in]`.
    pub(super) a: Parameter,
    /// `[d_out, rank]`.
    pub(super) b: Parameter,
    scale: f32,
    rank: usize,
    d_in: usize,
    d_out: usize,
}

impl Factors {
    /// `A` as PyTorch makes linear layers; `B` likewise, or zero where `starts_at_zero`.
    pub(super) fn new(
        path: &str,
        [d_out, d_in]: [usize; 2],
        rank: usize,
        lora_alpha: f64,
        starts_at_zero: bool,
        context: &BuildContext<'_>,
    ) -> Self {
        let (a, b) = (
            format!("{path}.lora_A.weight"),
            format!("{path}.lora_B.weight"),
        );
        let of_b = if starts_at_zero {
            vec![0.0; d_out * rank]
        } else {
            kaiming(d_out * rank, rank, context.seed, &b)
        };
        let of_a = kaiming(rank * d_in, d_in, context.seed, &a);
        Self {
            a: Parameter::new(a, &[rank, d_in], of_a, &context.device),
            b: Parameter::new(b, &[d_out, rank], of_b, &context.device),
            scale: (lora_alpha / rank as f64) as f32,
            rank,
            d_in,
            d_out,
        }
    }

    /// The output `[rows, d_out]` for an input `[rows, d_in]`.
    pub(super) fn forward(&self, x: Tensor<2>, bias: Option<Tensor<1>>, mode: Mode) -> Tensor<2> {
        let low = frugal_kernels::linear(x, self.a.get::<2>(mode), None) * self.scale;
        frugal_kernels::linear(low, self.b.get::<2>(mode), bias)
    }

    /// The whole product `[d_out, d_in]`.
    pub(super) fn product(&self, mode: Mode) -> Tensor<2> {
        let b = self.b.get::<2>(mode) * self.scale;
        b.matmul(self.a.get::<2>(mode))
    }

    /// Gives both factors the singular values by half each, and leaves the product as it is:
    /// `B' = U Σ^½`, `A' = Σ^½ Vᵀ` (arXiv 2505.22922, section 4). From QR decompositions of the
    /// factors and the singular values of a matrix `[rank, rank]`, so that the product is never
    /// formed.
    pub(super) fn balance(&mut self) {
        let (m, n, r) = (self.d_out, self.d_in, self.rank);
        let of_b = qr(&self.b.to_vec(), m, r);
        let of_a = qr(&transposed(&self.a.to_vec(), r, n), n, r);
        let core = product(&of_b.r, &transposed(&of_a.r, r, r), r, r);
        let found = svd(&core, r, r);
        let root = |k: usize| found.s[k].max(0.0).sqrt();
        let left: Vec<f32> = (0..r * r).map(|i| found.u[i] * root(i % r)).collect();
        let right: Vec<f32> = (0..r * r).map(|i| found.vt[i] * root(i / r)).collect();
        let b = product(&of_b.q, &left, r, r);
        let a = product(&right, &transposed(&of_a.q, n, r), r, n);
        // Weights that are not finite stay for the trainer to find.
        if a.iter().chain(&b).all(|v| v.is_finite()) {
            self.a.set(a);
            self.b.set(b);
        }
    }

    /// A new `A` and a `B` of zeros.
    pub(super) fn redraw(&mut self, seed: u64) {
        let name = self.a.name().to_owned();
        self.a
            .set(kaiming(self.rank * self.d_in, self.d_in, seed, &name));
        self.b.set(vec![0.0; self.d_out * self.rank]);
    }
}

/// Uniform within `±1 / √fan_in`: `kaiming_uniform_` with `a = √5`.
pub(super) fn kaiming(len: usize, fan_in: usize, seed: u64, name: &str) -> Vec<f32> {
    let bound = 1.0 / (fan_in as f32).sqrt();
    let mut rng = named_rng(seed, name);
    (0..len).map(|_| rng.random_range(-bound..bound)).collect()
}

/// `a [rows, inner]` times `b [inner, cols]`, summed in double precision.
fn product(a: &[f32], b: &[f32], inner: usize, cols: usize) -> Vec<f32> {
    let row = |row: &[f32]| {
        let mut out = vec![0.0f64; cols];
        for (&x, b) in row.iter().zip(b.chunks_exact(cols)) {
            let terms = out.iter_mut().zip(b);
            terms.for_each(|(o, &y)| *o += f64::from(x) * f64::from(y));
        }
        out.into_iter().map(|v| v as f32).collect::<Vec<f32>>()
    };
    a.chunks_exact(inner).flat_map(row).collect()
}

fn transposed(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let at = |i: usize| values[(i % rows) * cols + i / rows];
    (0..values.len()).map(at).collect()
}
