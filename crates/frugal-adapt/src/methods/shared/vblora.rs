//! # VB-LoRA: vector bank
//!
//! ## What it does
//! LoRA whose factors are put together from a bank of vectors that all layers share: each piece is a
//! mixture of the few vectors that its logits rank highest.
//!
//! ## Update rule
//! Each piece of `A [r, d_in]` and `B [d_out, r]` is `Σ softmax(top-k logits) · bank[top-k]` with
//! pieces of `vector_length`; `y = x Wᵀ + x Aᵀ Bᵀ`.
//!
//! ## When to use, when not
//! For very small files over many maps: what is stored per layer are `k` indices and weights per
//! piece. Training holds the logits over the whole bank and is slower than LoRA.
//!
//! ## Cost
//! Trainable: `r (d_in + d_out) / vector_length · num_vectors` logits per layer, and the bank once.
//! Extra compute: LoRA's, and choosing the vectors. None after merging.
//!
//! ## Defaults and where they come from
//! `r = 4`, `num_vectors = 256`, `topk = 2`, bank uniform within 0.02, logits normal with deviation
//! 0.1: Hugging Face `peft`. `vector_length = 64`, which divides the sides of most small models;
//! `peft` has 256. The bank and the logits learn at the same rate; the paper's rates are 1e-3 and
//! 1e-2.
//!
//! ## Departures from the paper
//! Files hold the logits; the form with top-k weights only (`save_only_topk_weights`) is not
//! offered. The factors are random, not zero, at the start, as in the paper, so the model changes a
//! little before training.
//!
//! ## References
//! - Li, Han, Ji: VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks, 2024, arXiv
//!   2405.15179.

use burn::prelude::*;
use burn::tensor::activation::softmax;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Mode, Parameter, named_rng, standard_normal, to_vec,
};
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::dropout::dropout;
use crate::support::per_linear::{self, LinearAdapter, LinearSite, PerLinear, bad};
use crate::target::Targets;

const NAME: &str = "vblora";

/// Registry entry.
pub const METHOD: Method = Method::of::<VbloraConfig>(
    Family::Shared,
    "Low-rank factors put together from a shared bank of vectors",
    include_str!("vblora.rs"),
)
.aliases(&["vb-lora", "vector-bank"])
.default_lr(5e-3)
.without_identity();

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VbloraConfig {
    /// Rank.
    pub r: usize,
    /// Vectors in the bank.
    pub num_vectors: usize,
    /// Their length; divides both sides of every layer.
    pub vector_length: usize,
    /// Vectors that are mixed for one piece.
    pub topk: usize,
    /// Probability of dropping an input element on the low-rank path while training.
    pub vblora_dropout: f64,
    /// Initial values of the bank are within plus and minus this.
    pub init_vector_bank_bound: f64,
    /// Standard deviation of the initial logits.
    pub init_logits_std: f64,
    /// Which layers.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for VbloraConfig {
    fn default() -> Self {
        Self {
            r: 4,
            num_vectors: 256,
            vector_length: 64,
            topk: 2,
            vblora_dropout: 0.0,
            init_vector_bank_bound: 0.02,
            init_logits_std: 0.1,
            targets: Targets::default(),
        }
    }
}

impl MethodConfig for VbloraConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "VBLORA";

    fn validate(&self) -> Result<(), AdaptError> {
        for (field, value) in [
            ("r", self.r),
            ("num_vectors", self.num_vectors),
            ("vector_length", self.vector_length),
        ] {
            if value == 0 {
                return bad(NAME, field, "must be at least 1");
            }
        }
        if self.topk == 0 || self.topk > self.num_vectors {
            return bad(
                NAME,
                "topk",
                format!(
                    "must be within 1 and the {} vectors of the bank",
                    self.num_vectors
                ),
            );
        }
        if !(self.init_vector_bank_bound.is_finite() && self.init_vector_bank_bound > 0.0) {
            return bad(NAME, "init_vector_bank_bound", "must be above 0");
        }
        per_linear::check_dropout(NAME, "vblora_dropout", self.vblora_dropout)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        let fixed = [
            ("bias", &[json!("none")][..]),
            ("save_only_topk_weights", &[json!(false)][..]),
        ];
        per_linear::from_peft::<VbloraConfig>(NAME, config, json!({"vector_length": 256}), &fixed)
    }
}

fn build(
    config: VbloraConfig,
    context: &BuildContext<'_>,
) -> Result<PerLinear<Logits>, AdaptError> {
    config.validate()?;
    let (r, n, length, device) = (
        config.r,
        config.num_vectors,
        config.vector_length,
        &context.device,
    );
    let constants =
        json!({"bias": "none", "fan_in_fan_out": false, "save_only_topk_weights": false});
    let maps = PerLinear::new(
        &METHOD,
        &config.targets,
        context,
        &config,
        constants,
        |_, info| {
            let (path, d_in, d_out) = (&info.path, info.d_in, info.d_out);
            if !d_in.is_multiple_of(length) || !d_out.is_multiple_of(length) {
                return bad(
                    NAME,
                    "vector_length",
                    format!("{length} does not divide both sides of `{path}` ({d_out} x {d_in})"),
                );
            }
            let mut rng = named_rng(context.seed, path);
            let mut logits = |name: &str, shape: [usize; 3]| {
                let values = (0..shape.iter().product())
                    .map(|_| config.init_logits_std as f32 * standard_normal(&mut rng))
                    .collect();
                Parameter::new(
                    format!("{path}.vblora_logits_{name}"),
                    &shape,
                    values,
                    device,
                )
            };
            Ok(Logits {
                a: logits("A", [r, d_in / length, n]),
                b: logits("B", [d_out / length, r, n]),
                topk: config.topk,
                dropout: config.vblora_dropout,
            })
        },
    )?;
    let bound = config.init_vector_bank_bound as f32;
    let mut rng = named_rng(context.seed, "vector bank");
    let bank = (0..n * length)
        .map(|_| rng.random_range(-bound..bound))
        .collect();
    Ok(maps.with_shared(
        vec![Parameter::new(
            "base_model.vblora_vector_bank",
            &[n, length],
            bank,
            device,
        )],
        true,
    ))
}

/// The logits of one layer.
struct Logits {
    /// `[r, d_in / length, num_vectors]`.
    a: Parameter,
    /// `[d_out / length, r, num_vectors]`.
    b: Parameter,
    topk: usize,
    dropout: f64,
}

impl Logits {
    /// Mixtures of the bank for these logits: `[x, y, length]`.
    fn mixtures(&self, logits: &Parameter, at: &LinearSite<'_>) -> Tensor<3> {
        let (logits, bank) = (logits.get::<3>(at.mode), at.shared[0].get::<2>(at.mode));
        let [x, y, n] = logits.dims();
        let (length, k) = (bank.dims()[1], self.topk);
        // Which ones are highest is decided outside the gradient graph.
        let mut chosen: Vec<i64> = Vec::with_capacity(x * y * k);
        for row in to_vec(logits.clone().inner()).chunks_exact(n) {
            let mut order: Vec<usize> = (0..n).collect();
            order.sort_by(|&i, &j| row[j].total_cmp(&row[i]).then(i.cmp(&j)));
            chosen.extend(order[..k].iter().map(|&i| i as i64));
        }
        let device = logits.device().inner();
        let places =
            Tensor::<3, Int>::from_data(TensorData::new(chosen.clone(), [x, y, k]), &device);
        let weights = softmax(logits.gather(2, places), 2).reshape([x * y, 1, k]);
        let rows = Tensor::<1, Int>::from_data(TensorData::from(chosen.as_slice()), &device);
        weights
            .matmul(bank.select(0, rows).reshape([x * y, k, length]))
            .reshape([x, y, length])
    }

    /// `A [r, d_in]` and `B [d_out, r]`.
    fn factors(&self, at: &LinearSite<'_>) -> (Tensor<2>, Tensor<2>) {
        let (a, b) = (self.mixtures(&self.a, at), self.mixtures(&self.b, at));
        let ([r, pieces, length], [rows, _, _]) = (a.dims(), b.dims());
        (
            a.reshape([r, pieces * length]),
            b.swap_dims(1, 2).reshape([rows * length, r]),
        )
    }
}

impl LinearAdapter for Logits {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.a, &self.b]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.a, &mut self.b]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        let (a, b) = self.factors(at);
        b.matmul(a)
    }

    fn materializes_weight(&self) -> bool {
        false
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        let (a, b) = at.keep(|| self.factors(at));
        match at.mode {
            Mode::Train { seed } if self.dropout > 0.0 => {
                let dropped = dropout(x.clone(), self.dropout, seed, at.path);
                at.base.forward(x)
                    + frugal_kernels::linear(frugal_kernels::linear(dropped, a, None), b, None)
            }
            _ => at.base.forward_low_rank(x, a, b, 1.0),
        }
    }
}
