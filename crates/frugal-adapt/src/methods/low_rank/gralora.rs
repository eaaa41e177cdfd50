//! # GraLoRA: granular low-rank adaptation
//!
//! ## What it does
//! Cuts a weight into `k × k` blocks, each with a low-rank change of its own: at the same number of
//! parameters as LoRA the whole change has a rank `k` times as high, and an outlier among the inputs
//! touches the blocks of its column only.
//!
//! ## Update rule
//! With the input in `k` pieces `xⱼ` and the output in `k` pieces `yᵢ`: `yᵢ += s Σⱼ xⱼ A_{j,i} B_{i,j}`,
//! where `A_{j,i} [d_in/k, r/k]` and `B_{i,j} [r/k, d_out/k]`, `s = alpha / (r + hybrid_r)`. A LoRA of
//! rank `hybrid_r` over the whole weight can be added, at the same scale.
//!
//! ## When to use, when not
//! At ranks where LoRA stops gaining (64 and above). At small ranks the blocks have too little room:
//! the hybrid part is for them.
//!
//! ## Cost
//! Trainable: `r (d_in + d_out)` per layer, `hybrid_r (d_in + d_out)` besides. Extra compute: as
//! LoRA's of rank `r`. None after merging.
//!
//! ## Defaults and where they come from
//! `r = 32`, `alpha = 64`, `gralora_k = 2`, no hybrid part: Hugging Face `peft`. `A` is Kaiming-uniform
//! by the number of its columns in a block, `B` zero.
//!
//! ## Departures from the paper
//! None. `r` must be divisible by `gralora_k`, where `peft` would leave rows without use.
//!
//! ## References
//! - Jung, Ahn, Kim, Kim, Park: GraLoRA: Granular Low-Rank Adaptation for Parameter-Efficient
//!   Fine-Tuning, 2025, arXiv 2505.20355.

use burn::prelude::*;
use frugal_nn::{AdaptError, Adapter, BuildContext, Mode, Parameter, SiteInfo, named_rng};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::dropout::dropout;
use crate::support::layer_targets::LayerTargets;
use crate::support::per_linear::{self, LinearAdapter, LinearSite, PerLinear, bad};
use crate::support::values::kaiming;

const NAME: &str = "gralora";

/// Registry entry.
pub const METHOD: Method = Method::of::<GraloraConfig>(
    Family::LowRank,
    "A low-rank change of each block of each weight",
    include_str!("gralora.rs"),
)
.default_lr(2e-4);

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GraloraConfig {
    /// Rank that a row of blocks has together.
    pub r: usize,
    /// Rank of the LoRA over the whole weight; 0 for none.
    pub hybrid_r: usize,
    /// Scale numerator.
    pub alpha: f64,
    /// Probability of dropping an input element on the adapted path while training.
    pub gralora_dropout: f64,
    /// Blocks along each side.
    pub gralora_k: usize,
    /// Start without a change; otherwise with a random one, for tests.
    pub init_weights: bool,
    /// Which layers.
    #[serde(flatten)]
    pub targets: LayerTargets,
}

impl Default for GraloraConfig {
    fn default() -> Self {
        Self {
            r: 32,
            hybrid_r: 0,
            alpha: 64.0,
            gralora_dropout: 0.0,
            gralora_k: 2,
            init_weights: true,
            targets: LayerTargets::default(),
        }
    }
}

impl MethodConfig for GraloraConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "GRALORA";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.gralora_k == 0 {
            return bad(NAME, "gralora_k", "must be at least 1");
        }
        if self.r == 0 || !self.r.is_multiple_of(self.gralora_k) {
            return bad(
                NAME,
                "r",
                format!(
                    "{} is not a positive multiple of `gralora_k`, which is {}",
                    self.r, self.gralora_k
                ),
            );
        }
        if !self.alpha.is_finite() {
            return bad(NAME, "alpha", "must be a finite number");
        }
        per_linear::check_dropout(NAME, "gralora_dropout", self.gralora_dropout)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        per_linear::from_peft_without_bias::<GraloraConfig>(NAME, config)
    }
}

fn build(
    config: GraloraConfig,
    context: &BuildContext<'_>,
) -> Result<PerLinear<Blocks>, AdaptError> {
    config.validate()?;
    let targets = config.targets.all();
    let constants = json!({"bias": "none", "fan_in_fan_out": false});
    PerLinear::new(&METHOD, &targets, context, &config, constants, |_, info| {
        part(&config, context, info)
    })
}

fn part(
    config: &GraloraConfig,
    context: &BuildContext<'_>,
    info: &SiteInfo,
) -> Result<Blocks, AdaptError> {
    let (k, r, path) = (config.gralora_k, config.r, &info.path);
    if !info.d_in.is_multiple_of(k) || !info.d_out.is_multiple_of(k) {
        return bad(
            NAME,
            "gralora_k",
            format!(
                "`{path}` ({} x {}) cannot be cut into {k} x {k} equal blocks",
                info.d_out, info.d_in
            ),
        );
    }
    let mut rng = named_rng(context.seed, path);
    let (inputs, outputs) = (info.d_in / k, info.d_out / k);
    let a = kaiming(&mut rng, info.d_in * r, inputs);
    let mut second = |len: usize, fan_in: usize| match config.init_weights {
        true => vec![0.0; len],
        false => kaiming(&mut rng, len, fan_in),
    };
    let b = second(r * info.d_out, r);
    let general_b = second(config.hybrid_r * info.d_out, config.hybrid_r.max(1));
    let new = |name: &str, shape: &[usize], values| {
        Parameter::new(
            format!("{path}.gralora_{name}"),
            shape,
            values,
            &context.device,
        )
    };
    let h = config.hybrid_r;
    let general = (h > 0).then(|| {
        let a = kaiming(&mut rng, h * info.d_in, info.d_in);
        [
            new("A_general.weight", &[h, info.d_in], a),
            new("B_general.weight", &[info.d_out, h], general_b),
        ]
    });
    Ok(Blocks {
        a: new("A", &[k, inputs, r], a),
        b: new("B", &[k, r, outputs], b),
        general,
        scale: (config.alpha / (r + h) as f64) as f32,
        dropout: config.gralora_dropout,
    })
}

/// The changes of one layer's blocks.
struct Blocks {
    /// Of each piece of the input, for all pieces of the output one after another:
    /// `[k, d_in / k, r]`.
    a: Parameter,
    /// Of each piece of the output, for all pieces of the input one after another:
    /// `[k, r, d_out / k]`.
    b: Parameter,
    /// `A [h, d_in]` and `B [d_out, h]` of the whole weight.
    general: Option<[Parameter; 2]>,
    scale: f32,
    dropout: f64,
}

impl Blocks {
    /// `[tokens, d_in]` to what is added, `[tokens, d_out]`.
    fn change(&self, x: Tensor<2>, mode: Mode) -> Tensor<2> {
        let (tokens, k, r) = (x.dims()[0], self.a.shape()[0], self.a.shape()[2]);
        let pieces = x
            .clone()
            .reshape([tokens as i32, k as i32, -1])
            .swap_dims(0, 1);
        // What a piece of the input says to each piece of the output is handed over to that piece.
        let low = pieces
            .matmul(self.a.get::<3>(mode))
            .reshape([k, tokens, k, r / k])
            .permute([2, 1, 0, 3])
            .reshape([k, tokens, r]);
        let out = low.matmul(self.b.get::<3>(mode)).swap_dims(0, 1);
        let mut out = out.reshape([tokens as i32, -1]);
        if let Some([a, b]) = &self.general {
            let low = frugal_kernels::linear(x, a.get::<2>(mode), None);
            out = out + frugal_kernels::linear(low, b.get::<2>(mode), None);
        }
        out * self.scale
    }
}

impl LinearAdapter for Blocks {
    fn parameters(&self) -> Vec<&Parameter> {
        [&self.a, &self.b]
            .into_iter()
            .chain(self.general.iter().flatten())
            .collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        [&mut self.a, &mut self.b]
            .into_iter()
            .chain(self.general.iter_mut().flatten())
            .collect()
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        let [_, d_in] = at.base.weight.dims();
        let one = Tensor::eye(d_in, &self.a.get::<3>(Mode::Eval).device());
        self.change(one, Mode::Eval).transpose()
    }

    fn materializes_weight(&self) -> bool {
        false
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        let y = at.base.forward(x.clone());
        let x = match at.mode {
            Mode::Train { seed } if self.dropout > 0.0 => dropout(x, self.dropout, seed, at.path),
            _ => x,
        };
        y + self.change(x, at.mode)
    }
}
