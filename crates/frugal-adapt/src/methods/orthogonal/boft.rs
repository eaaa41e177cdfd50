//! # BOFT: orthogonal butterfly
//!
//! ## What it does
//! Rotates a layer's input by a product of block rotations, with permutations between them that let
//! every input reach every other, and scales each output.
//!
//! ## Update rule
//! `y = s ⊙ ((x B) Wᵀ) + b`, `B = Π P D Pᵀ` with block-diagonal `D` of Cayley transforms of
//! `(R − Rᵀ) / 2`, `R` trained.
//!
//! ## When to use, when not
//! Like OFT, where the rotation should mix distant inputs at few parameters. One factor (the
//! default) is OFT with exact rotations and output scales.
//!
//! ## Cost
//! Trainable: `m d_in b + d_out` per layer for `m` factors of block size `b`. Extra compute:
//! `m d_in b` multiply-adds per token forward. None after merging.
//!
//! ## Defaults and where they come from
//! `boft_block_size = 4`, one factor: Hugging Face `peft`. `R` starts at zero, the scales at one.
//!
//! ## Departures from the paper
//! None. `peft` falls back to one factor where its CUDA kernel is missing, so a file with more
//! cannot be read by it on a CPU; here the number of factors is as set on every device. Files that
//! `peft` made so have one factor under a configuration of more, and are read with one.
//!
//! ## References
//! - Liu, Qiu, Feng, Xiu, Xue, Yu, Feng, Liu, Heo, Peng, Wen, Black, Weller, Schölkopf:
//!   Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization, 2023, arXiv 2311.06243.

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Linear, MergedLinear, Mode, Parameter, named_rng,
    standard_normal, to_vec,
};
use rand::seq::SliceRandom;
use rand::{Rng, RngCore};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::orthogonal::{cayley, rotate};
use crate::support::per_linear::{self, LinearAdapter, LinearSite, PerLinear, bad};
use crate::target::Targets;

const NAME: &str = "boft";

/// Registry entry.
pub const METHOD: Method = Method::of::<BoftConfig>(
    Family::Orthogonal,
    "A product of block rotations of each layer's input, and output scales",
    include_str!("boft.rs"),
)
.aliases(&["butterfly"])
.default_lr(2e-3);

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BoftConfig {
    /// Block size, or 0 where the number of blocks is given.
    pub boft_block_size: usize,
    /// Number of blocks, or 0 where the block size is given.
    pub boft_block_num: usize,
    /// Number of factors.
    pub boft_n_butterfly_factor: usize,
    /// Share of the blocks of one factor that are the identity in a training pass.
    pub boft_dropout: f64,
    /// Start without a change; otherwise with a random one, for tests.
    pub init_weights: bool,
    /// Which layers.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for BoftConfig {
    fn default() -> Self {
        Self {
            boft_block_size: 4,
            boft_block_num: 0,
            boft_n_butterfly_factor: 1,
            boft_dropout: 0.0,
            init_weights: true,
            targets: Targets::default(),
        }
    }
}

impl MethodConfig for BoftConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "BOFT";

    fn validate(&self) -> Result<(), AdaptError> {
        if (self.boft_block_size == 0) == (self.boft_block_num == 0) {
            return bad(
                NAME,
                "boft_block_size",
                "give either a block size or the number of blocks, and 0 for the other",
            );
        }
        if !(1..=32).contains(&self.boft_n_butterfly_factor) {
            return bad(NAME, "boft_n_butterfly_factor", "must be within 1 and 32");
        }
        per_linear::check_dropout(NAME, "boft_dropout", self.boft_dropout)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        per_linear::from_peft_without_bias::<BoftConfig>(NAME, config)
    }
}

impl BoftConfig {
    /// Size and number of the blocks for layers of this width.
    fn blocks(&self, path: &str, d_in: usize) -> Result<(usize, usize), AdaptError> {
        let given = self.boft_block_size.max(self.boft_block_num);
        if !d_in.is_multiple_of(given) {
            let field = if self.boft_block_size > 0 {
                "boft_block_size"
            } else {
                "boft_block_num"
            };
            return bad(
                NAME,
                field,
                format!("{given} does not divide the {d_in} inputs of `{path}`"),
            );
        }
        let (size, number) = if self.boft_block_size > 0 {
            (given, d_in / given)
        } else {
            (d_in / given, given)
        };
        let strides = 1_usize << (self.boft_n_butterfly_factor - 1);
        if strides > 1 && (!number.is_multiple_of(strides) || !size.is_multiple_of(2)) {
            let reason = format!(
                "{} factors need an even block size and a number of blocks that {strides} divides; `{path}` has {number} of size {size}",
                self.boft_n_butterfly_factor
            );
            return bad(NAME, "boft_n_butterfly_factor", reason);
        }
        Ok((size, number))
    }
}

/// The order in which factor `level` of several sees the inputs: within runs of `b · 2^level`, the
/// even half-blocks first.
fn butterfly(d_in: usize, size: usize, level: usize) -> Vec<usize> {
    let (half, run) = (size / 2, size << level);
    let within = |i: usize| {
        let (place, inner, count) = (i / half, i % half, run / half);
        let source = if place < count.div_ceil(2) {
            2 * place
        } else {
            2 * (place - count.div_ceil(2)) + 1
        };
        source * half + inner
    };
    (0..d_in).map(|i| i / run * run + within(i % run)).collect()
}

fn build(
    config: BoftConfig,
    context: &BuildContext<'_>,
) -> Result<PerLinear<Rotation>, AdaptError> {
    config.validate()?;
    let constants = json!({"bias": "none", "fan_in_fan_out": false});
    PerLinear::new(
        &METHOD,
        &config.targets,
        context,
        &config,
        constants,
        |_, info| {
            let (size, number) = config.blocks(&info.path, info.d_in)?;
            let factors = config.boft_n_butterfly_factor;
            let mut rng = named_rng(context.seed, &info.path);
            let mut values = |len: usize, start: f32| -> Vec<f32> {
                let mut value = || {
                    if config.init_weights {
                        start
                    } else {
                        start + 0.1 * standard_normal(&mut rng)
                    }
                };
                (0..len).map(|_| value()).collect()
            };
            let (r, s) = (
                values(factors * number * size * size, 0.0),
                values(info.d_out, 1.0),
            );
            let orders = (0..factors)
                .filter(|_| factors > 1)
                .map(|level| Order::new(&butterfly(info.d_in, size, level), &context.device));
            Ok(Rotation {
                r: Parameter::new(
                    format!("{}.boft_R", info.path),
                    &[factors, number, size, size],
                    r,
                    &context.device,
                ),
                s: Parameter::new(
                    format!("{}.boft_s", info.path),
                    &[info.d_out, 1],
                    s,
                    &context.device,
                ),
                orders: orders.collect(),
                dropout: config.boft_dropout,
            })
        },
    )
}

/// A permutation of columns and its inverse.
struct Order {
    forward: Tensor<1, Int>,
    back: Tensor<1, Int>,
}

impl Order {
    fn new(order: &[usize], device: &Device) -> Self {
        let mut back = vec![0_i64; order.len()];
        order
            .iter()
            .enumerate()
            .for_each(|(i, &j)| back[j] = i as i64);
        let forward: Vec<i64> = order.iter().map(|&j| j as i64).collect();
        let tensor = |v: &[i64]| Tensor::from_data(TensorData::from(v), &device.clone().inner());
        Self {
            forward: tensor(&forward),
            back: tensor(&back),
        }
    }
}

/// Rotation of the input and scales of the output of one layer.
struct Rotation {
    /// `[factors, blocks, size, size]`.
    r: Parameter,
    /// `[d_out, 1]`.
    s: Parameter,
    /// Permutations around the factors; empty where there is one factor.
    orders: Vec<Order>,
    dropout: f64,
}

impl Rotation {
    /// The block rotations of every factor, each `[blocks, size, size]`.
    fn factors(&self, at: &LinearSite<'_>) -> Vec<Tensor<3>> {
        let [factors, number, size] = [self.r.shape()[0], self.r.shape()[1], self.r.shape()[2]];
        let r = self
            .r
            .get::<4>(at.mode)
            .reshape([factors * number, size, size]);
        let rotations = cayley((r.clone() - r.swap_dims(1, 2)) * 0.5);
        let mut out: Vec<Tensor<3>> = (0..factors)
            .map(|i| rotations.clone().narrow(0, i * number, number))
            .collect();
        if let Mode::Train { seed } = at.mode
            && self.dropout > 0.0
            && number > 1
        {
            let mut rng = named_rng(seed, at.path);
            let one = rng.random_range(0..factors);
            out[one] = with_identities(
                out[one].clone(),
                (self.dropout * number as f64) as usize,
                &mut rng,
            );
        }
        out
    }

    /// `x P D Pᵀ`, or with `D` turned back.
    fn apply(&self, x: Tensor<2>, level: usize, blocks: Tensor<3>) -> Tensor<2> {
        match self.orders.get(level) {
            Some(order) => {
                rotate(x.select(1, order.back.clone()), blocks).select(1, order.forward.clone())
            }
            None => rotate(x, blocks),
        }
    }

    /// `x B`: the last factor acts first.
    fn rotated(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        at.keep(|| self.factors(at))
            .into_iter()
            .enumerate()
            .rev()
            .fold(x, |x, (level, blocks)| self.apply(x, level, blocks))
    }

    fn scaled(&self, weight: Tensor<2>, scales: Tensor<2>, at: &LinearSite<'_>) -> MergedLinear {
        MergedLinear {
            weight: weight * scales,
            bias: at.base.bias.clone(),
        }
    }
}

/// `count` of the blocks become the identity.
fn with_identities(blocks: Tensor<3>, count: usize, rng: &mut impl RngCore) -> Tensor<3> {
    let ([number, size, _], device) = (blocks.dims(), blocks.device().inner());
    let mut dropped: Vec<f32> = (0..number)
        .map(|i| f32::from(u8::from(i < count)))
        .collect();
    dropped.shuffle(rng);
    let mask = Tensor::<3>::from_data(TensorData::new(dropped, [number, 1, 1]), &device);
    let identity = Tensor::<2>::eye(size, &device).unsqueeze::<3>();
    blocks * (mask.clone().neg() + 1.0) + identity * mask
}

impl LinearAdapter for Rotation {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.r, &self.s]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.r, &mut self.s]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        self.merged(at).weight - at.base.weight.dense()
    }

    fn materializes_weight(&self) -> bool {
        false
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        let y = Linear {
            bias: None,
            ..at.base.clone()
        }
        .forward(self.rotated(at, x));
        let y = y * self.s.get::<2>(at.mode).reshape([1, self.s.len()]);
        match &at.base.bias {
            Some(bias) => y + bias.clone().unsqueeze::<2>(),
            None => y,
        }
    }

    fn merged(&self, at: &LinearSite<'_>) -> MergedLinear {
        let turned = self
            .factors(at)
            .into_iter()
            .map(|blocks| blocks.swap_dims(1, 2))
            .enumerate();
        let weight = turned.fold(at.base.weight.dense(), |w, (level, blocks)| {
            self.apply(w, level, blocks)
        });
        self.scaled(weight, self.s.get::<2>(Mode::Eval), at)
    }

    fn unmerged(&self, at: &LinearSite<'_>) -> Result<MergedLinear, String> {
        let s = self.s.get::<2>(Mode::Eval);
        if to_vec(s.clone()).iter().any(|s| s.abs() < 1e-6) {
            return Err(format!(
                "a scale of `{}` is zero, so its output is lost; load the base model",
                at.path
            ));
        }
        let scaled = self.scaled(at.base.weight.dense(), s.recip(), at);
        Ok(MergedLinear {
            weight: self.rotated(at, scaled.weight),
            bias: scaled.bias,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutations_are_those_of_peft() {
        // `block_butterfly_perm(16, 4, 2, 2)` and `(16, 2, 2, 2)` of peft 0.21: sizes of 4 on
        // levels 0 and 1.
        assert_eq!(butterfly(16, 4, 0), PLAIN);
        assert_eq!(butterfly(16, 4, 1), STRIDED);
    }

    #[test]
    fn blocks_must_divide_the_inputs() {
        let config = BoftConfig {
            boft_block_size: 5,
            ..BoftConfig::default()
        };
        assert!(
            config
                .blocks("q_proj", 32)
                .unwrap_err()
                .to_string()
                .contains("5 does not divide the 32 inputs of `q_proj`")
        );
        let config = BoftConfig {
            boft_n_butterfly_factor: 4,
            ..BoftConfig::default()
        };
        assert!(
            config
                .blocks("q_proj", 48)
                .unwrap_err()
                .to_string()
                .contains("8 divides")
        );
    }

    const PLAIN: [usize; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    const STRIDED: [usize; 16] = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15];
}
