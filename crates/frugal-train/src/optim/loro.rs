//! LORO: descent on the manifold of matrices of a fixed rank, for weights that are trained as two
//! factors.
//!
//! Mo, Huang, Pan: Parameter and Memory Efficient Pretraining via Low-rank Riemannian Optimization,
//! ICLR 2025; follows `LORO_optimizer` of `Memory_Efficient_Pretraining`. Of a pair `B [m, r]`,
//! `A [r, n]` Adam's directions move both factors by `r / m` of the learning rate; every `update_k`
//! updates the product takes one step in the tangent space and goes back to the nearest matrix of
//! rank r, whose factors share its singular values; the moments of the pair, which were of the old
//! factors, are zero then. All that is not in pairs follows AdamW.
//!
//! With `B = Q_B R_B`, `Aᵀ = Q_A R_A` and directions `D_B`, `D_A` in place of `G Aᵀ` and `BᵀG` the
//! tangent step is known without `G [m, n]`: `G Q_A = D_B R_A⁻¹`, `Q_BᵀG = R_B⁻ᵀ D_A`, and
//!
//! ```text
//! W − η P(G) = [Q_B, Q_B'] [[R_B R_Aᵀ − η Q_BᵀG Q_A, −η R_A'ᵀ], [−η R_B', 0]] [Q_A, Q_A']ᵀ
//! ```
//!
//! where `Q_B' R_B'` is what `G Q_A` has outside of `Q_B`, `Q_A' R_A'` what `GᵀQ_B` has outside of
//! `Q_A`. The code has `R_B` for `R_B'`, which is no tangent step, and adds weight decay to the
//! gradient; here weights decay as with AdamW.

use frugal_nn::linalg::{qr, svd};
use frugal_nn::{Gradient, Parameter};
use serde::{Deserialize, Serialize};

use super::adamw::{AdamW, Betas};
use super::remembered::Remembered;
use super::state::StateTensor;
use super::{Optimizer, Pending, SavedState, Update};
use crate::config::TrainConfig;

/// What the names of the two factors differ in.
const FACTORS: [&str; 2] = ["lora_A", "lora_B"];

/// Settings of [`Loro`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoroConfig {
    /// Updates between two steps on the manifold.
    pub update_k: u64,
}

impl Default for LoroConfig {
    fn default() -> Self {
        Self { update_k: 200 }
    }
}

/// The optimizer.
#[derive(Debug)]
pub struct Loro {
    config: LoroConfig,
    betas: Betas,
    factors: Remembered,
    others: AdamW,
}

impl Loro {
    /// One that remembers nothing.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn new(config: LoroConfig, train: &TrainConfig) -> Result<Self, String> {
        if config.update_k == 0 {
            return Err("`loro`: `update_k` 0 given, but it must be positive".into());
        }
        Ok(Self {
            config,
            betas: Betas::new(train),
            factors: Remembered::default(),
            others: AdamW::new(train),
        })
    }

    /// One update of `B A`.
    fn update_pair<'p>(&mut self, a: &mut Pending<'p>, b: &mut Pending<'p>) {
        let (d_a, rate, exact) = self.direction(a);
        let (d_b, _, _) = self.direction(b);
        let &[m, r] = b.parameter.shape() else {
            unreachable!("pairs are of matrices")
        };
        let n = a.parameter.shape()[1];
        let [decay_a, decay_b] =
            [&*a, &*b].map(|factor| (factor.update.lr * factor.update.weight_decay) as f32);
        let mut values = [a.parameter.to_vec(), b.parameter.to_vec()];
        let stepped = exact
            .then(|| retracted(&values, [&d_a, &d_b], [m, n, r], rate))
            .flatten();
        if let Some(on_manifold) = stepped {
            values = on_manifold;
        } else {
            let rate = (rate * r as f64 / m as f64) as f32;
            for (values, direction) in values.iter_mut().zip([&d_a, &d_b]) {
                values
                    .iter_mut()
                    .zip(direction)
                    .for_each(|(v, d)| *v -= rate * d);
            }
        }
        let [a_values, b_values] = values;
        for (factor, mut values, decay) in [(a, a_values, decay_a), (b, b_values, decay_b)] {
            values.iter_mut().for_each(|v| *v *= 1.0 - decay);
            factor.parameter.set(values);
        }
    }

    /// Adam's direction of one factor, the learning rate with its correction of bias, and whether
    /// this is a step on the manifold.
    fn direction(&mut self, factor: &Pending<'_>) -> (Vec<f32>, f64, bool) {
        let parameter = &factor.parameter;
        let len = parameter.len();
        let slots = self.factors.next(parameter.name());
        let h = self.betas.step(&factor.update, slots.step);
        let device = parameter.device();
        let gradient = factor.gradient.tensor(&device) * h.grad_scale;
        let exp_avg =
            slots.get("exp_avg", len, &device) * h.beta1 + gradient.clone() * (1.0 - h.beta1);
        let exp_avg_sq = slots.get("exp_avg_sq", len, &device) * h.beta2
            + gradient.clone() * gradient.clone() * (1.0 - h.beta2);
        let bias1 = 1.0 - h.beta1.powf(h.step as f64);
        let bias2 = 1.0 - h.beta2.powf(h.step as f64);
        let direction = exp_avg.clone() / (exp_avg_sq.clone().sqrt() / bias2.sqrt() + h.eps);
        let exact = h.step.is_multiple_of(self.config.update_k);
        if exact {
            slots.set("exp_avg", gradient.zeros_like());
            slots.set("exp_avg_sq", gradient.zeros_like());
            slots.step = 0;
        } else {
            slots.set("exp_avg", exp_avg);
            slots.set("exp_avg_sq", exp_avg_sq);
        }
        (frugal_nn::to_vec(direction), h.lr / bias1, exact)
    }
}

/// `a` as a matrix of `rows` times one of `inner` columns, in double precision: `[rows, cols]`.
fn product(a: &[f32], b: &[f32], inner: usize, cols: usize) -> Vec<f32> {
    let row = |row: &[f32]| {
        let mut out = vec![0.0f64; cols];
        for (&x, b) in row.iter().zip(b.chunks_exact(cols)) {
            out.iter_mut()
                .zip(b)
                .for_each(|(o, &y)| *o += f64::from(x) * f64::from(y));
        }
        out.into_iter().map(|v| v as f32).collect::<Vec<f32>>()
    };
    a.chunks_exact(inner).flat_map(row).collect()
}

fn transposed(a: &[f32], cols: usize) -> Vec<f32> {
    let rows = a.len() / cols;
    (0..a.len())
        .map(|i| a[(i % rows) * cols + i / rows])
        .collect()
}

/// `X R⁻¹` for an upper triangle `R [r, r]`; nothing where it has no inverse.
fn times_inverse(x: &[f32], triangle: &[f32], r: usize) -> Option<Vec<f32>> {
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(r) {
        let mut solved = vec![0.0f64; r];
        for j in 0..r {
            let known: f64 = (0..j)
                .map(|i| solved[i] * f64::from(triangle[i * r + j]))
                .sum();
            solved[j] = (f64::from(row[j]) - known) / f64::from(triangle[j * r + j]);
        }
        out.extend(solved.into_iter().map(|v| v as f32));
    }
    out.iter().all(|v| v.is_finite()).then_some(out)
}

/// What columns `x [rows, r]` have outside of the orthonormal `q [rows, r]`, as `Q' R'`.
fn outside(x: &[f32], q: &[f32], rows: usize, r: usize) -> frugal_nn::linalg::Qr {
    let inside = product(q, &product(&transposed(q, r), x, rows, r), r, r);
    let rest: Vec<f32> = x.iter().zip(&inside).map(|(x, y)| x - y).collect();
    qr(&rest, rows, r)
}

/// The factors `[a, b]` after a step of this rate in the tangent space and back; nothing where a
/// factor has not its whole rank, or the tangent space no room beside it.
fn retracted(
    [a, b]: &[Vec<f32>; 2],
    [d_a, d_b]: [&[f32]; 2],
    [m, n, r]: [usize; 3],
    rate: f64,
) -> Option<[Vec<f32>; 2]> {
    if 2 * r > m.min(n) {
        return None;
    }
    let (of_b, of_a) = (qr(b, m, r), qr(&transposed(a, n), n, r));
    // [m, r] and [n, r].
    let g_qa = times_inverse(d_b, &of_a.r, r)?;
    let gt_qb = times_inverse(&transposed(d_a, n), &of_b.r, r)?;
    let beside_b = outside(&g_qa, &of_b.q, m, r);
    let beside_a = outside(&gt_qb, &of_a.q, n, r);
    let now = product(&of_b.r, &transposed(&of_a.r, r), r, r);
    let inside = product(&transposed(&gt_qb, r), &of_a.q, n, r);
    let rate = rate as f32;
    let mut core = vec![0.0f32; 4 * r * r];
    for i in 0..r {
        for j in 0..r {
            core[i * 2 * r + j] = now[i * r + j] - rate * inside[i * r + j];
            core[i * 2 * r + r + j] = -rate * beside_a.r[j * r + i];
            core[(r + i) * 2 * r + j] = -rate * beside_b.r[i * r + j];
        }
    }
    let found = svd(&core, 2 * r, 2 * r);
    let root = |k: usize| found.s[k].sqrt();
    let joined = |q: &[f32], beside: &[f32]| -> Vec<f32> {
        let rows = q.chunks_exact(r).zip(beside.chunks_exact(r));
        rows.flat_map(|(x, y)| x.iter().chain(y).copied()).collect()
    };
    // [2r, r] each.
    let left: Vec<f32> = (0..2 * r * r)
        .map(|i| found.u[(i / r) * 2 * r + i % r] * root(i % r))
        .collect();
    let right: Vec<f32> = (0..2 * r * r)
        .map(|i| found.vt[(i % r) * 2 * r + i / r] * root(i % r))
        .collect();
    let new_b = product(&joined(&of_b.q, &beside_b.q), &left, 2 * r, r);
    let new_a = product(&joined(&of_a.q, &beside_a.q), &right, 2 * r, r);
    let finite = new_a.iter().chain(&new_b).all(|v| v.is_finite());
    finite.then(|| [transposed(&new_a, r), new_b])
}

/// The name of the factor that goes with this one.
fn partner(name: &str) -> Option<String> {
    let [a, b] = FACTORS;
    if name.contains(a) {
        Some(name.replacen(a, b, 1))
    } else if name.contains(b) {
        Some(name.replacen(b, a, 1))
    } else {
        None
    }
}

impl Optimizer for Loro {
    fn name(&self) -> &'static str {
        "loro"
    }

    fn check(&self, parameters: &[&Parameter]) -> Result<(), String> {
        let is_factor = |parameter: &&&Parameter| {
            let name = partner(parameter.name());
            name.is_some_and(|name| parameters.iter().any(|other| other.name() == name))
        };
        if parameters.iter().any(|parameter| is_factor(&parameter)) {
            return Ok(());
        }
        Err("`loro`: no trained weight is in two factors `lora_A` and `lora_B`, so that all would follow AdamW; `frugal pretrain --reparam low_rank` trains such".into())
    }

    fn update_all(&mut self, mut pending: Vec<Pending<'_>>) {
        while let Some(mut first) = pending.pop() {
            let name = first.parameter.name();
            let other = partner(name).and_then(|partner| {
                let at = pending
                    .iter()
                    .position(|p| p.parameter.name() == partner.as_str())?;
                let (x, y) = (first.parameter.shape(), pending[at].parameter.shape());
                let is_a = name.contains(FACTORS[0]);
                let (a, b) = if is_a { (x, y) } else { (y, x) };
                let fits = a.len() == 2 && b.len() == 2 && a[0] == b[1];
                fits.then_some((at, is_a))
            });
            match other {
                Some((at, is_a)) => {
                    let mut second = pending.swap_remove(at);
                    if is_a {
                        self.update_pair(&mut first, &mut second);
                    } else {
                        self.update_pair(&mut second, &mut first);
                    }
                }
                None => self.update(first.parameter, first.gradient, &first.update),
            }
        }
    }

    fn update(&mut self, parameter: &mut Parameter, gradient: &Gradient, update: &Update) {
        self.others.update(parameter, gradient, update);
    }

    fn state_bytes(&self, _: &str, shape: &[usize]) -> u64 {
        super::bytes_of(2 * super::numel(shape))
    }

    fn state(&self) -> Vec<(String, StateTensor<'_>)> {
        let factors = self.factors.state().into_iter();
        let factors = factors.map(|(name, tensor)| (format!("loro.{name}"), tensor));
        factors.chain(self.others.state()).collect()
    }

    fn restore(&mut self, state: SavedState) -> Result<(), String> {
        let (mut factors, mut others) = (SavedState::new(), SavedState::new());
        for (name, tensor) in state {
            match name.strip_prefix("loro.") {
                Some(rest) => factors.insert(rest.to_owned(), tensor),
                None => others.insert(name, tensor),
            };
        }
        let factors = Remembered::restored(factors, &["exp_avg", "exp_avg_sq"])?;
        self.others.restore(others)?;
        self.factors = factors;
        Ok(())
    }
}
