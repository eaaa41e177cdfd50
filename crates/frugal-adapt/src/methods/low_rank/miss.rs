//! # MiSS: matrix shard sharing
//!
//! ## What it does
//! One trained block is shared by all shards of a weight: the inputs are added up in groups, and
//! the sum is projected.
//!
//! ## Update rule
//! `y = x Wᵀ + b + (Σ_g x_g) D` with `x` cut into groups of `r` inputs and `D [r, d_out]`; with
//! `init_weights = "mini"`, `D [r, mini_r]` is repeated along the outputs; with `"bat"` the
//! weight's blocks `[r, r]` become `W + W D + D`, with a `D` per block of rows.
//!
//! ## When to use, when not
//! As a light alternative to LoRA: half its parameters at equal `r` on square layers, and one product
//! fewer. `"bat"` (first called Bone) uses the weight itself and costs a product of the whole
//! weight per step.
//!
//! ## Cost
//! Trainable: `r d_out` per map (`r mini_r`; `r d_out` with `"bat"`). Extra compute: `r d_out`
//! multiply-adds and `d_in` additions per token forward. None after merging.
//!
//! ## Defaults and where they come from
//! `r = 64`, `mini_r = 1`, all blocks zero: Hugging Face `peft`.
//!
//! ## Departures from the paper
//! None. Where `r` does not divide `d_in`, the last group is shorter, as in `peft`.
//!
//! ## References
//! - Kang, Yin: MiSS: Revisiting the Trade-off in LoRA with an Efficient Shard-Sharing Structure
//!   (first: Balancing LoRA Performance and Efficiency with Simple Shard Sharing, and Bone), 2024,
//!   arXiv 2409.15371.

use burn::prelude::*;
use frugal_nn::{AdaptError, Adapter, BuildContext, MergedLinear, Mode, Parameter, named_rng};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::methods::low_rank::lora::Init;
use crate::settings::Settings;
use crate::support::dropout::dropout;
use crate::support::orthogonal::inverse;
use crate::support::per_linear::{self, LinearAdapter, LinearSite, PerLinear, bad};
use crate::support::values::kaiming;
use crate::target::Targets;

const NAME: &str = "miss";

/// Registry entry.
pub const METHOD: Method = Method::of::<MissConfig>(
    Family::LowRank,
    "One trained block shared by all shards of each weight",
    include_str!("miss.rs"),
)
.aliases(&["bone"])
.default_lr(5e-4);

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MissConfig {
    /// Inputs per group.
    pub r: usize,
    /// Columns of the block with `init_weights = "mini"`.
    pub mini_r: usize,
    /// Probability of dropping an input element on the adapted path while training.
    pub miss_dropout: f64,
    /// `true`: one block. `"mini"`: one that is repeated along the outputs. `"bat"`: blocks that
    /// multiply the weight. `false`: one random block, for tests.
    pub init_weights: Init,
    /// Which layers.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for MissConfig {
    fn default() -> Self {
        Self {
            r: 64,
            mini_r: 1,
            miss_dropout: 0.0,
            init_weights: Init::Default(true),
            targets: Targets::default(),
        }
    }
}

impl MethodConfig for MissConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "MISS";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.r == 0 || self.mini_r == 0 {
            return bad(
                NAME,
                if self.r == 0 { "r" } else { "mini_r" },
                "must be at least 1",
            );
        }
        if self.kind().is_none() {
            return bad(
                NAME,
                "init_weights",
                "supported: true, false, \"mini\", \"bat\"",
            );
        }
        per_linear::check_dropout(NAME, "miss_dropout", self.miss_dropout)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        per_linear::from_peft_without_bias::<MissConfig>(NAME, config)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Shared,
    Mini,
    Bat,
}

impl MissConfig {
    fn kind(&self) -> Option<Kind> {
        match &self.init_weights {
            Init::Default(_) => Some(Kind::Shared),
            Init::Named(name) if name == "mini" => Some(Kind::Mini),
            Init::Named(name) if name == "bat" => Some(Kind::Bat),
            Init::Named(_) => None,
        }
    }
}

fn build(config: MissConfig, context: &BuildContext<'_>) -> Result<PerLinear<Block>, AdaptError> {
    config.validate()?;
    let (r, kind) = (config.r, config.kind().unwrap_or(Kind::Shared));
    PerLinear::new(
        &METHOD,
        &config.targets,
        context,
        &config,
        json!({"bias": "none"}),
        |_, info| {
            let (path, d_in, d_out) = (&info.path, info.d_in, info.d_out);
            if r > d_in {
                return bad(
                    NAME,
                    "r",
                    format!("{r} exceeds the {d_in} inputs of `{path}`"),
                );
            }
            let shape = match kind {
                Kind::Shared => vec![r, d_out],
                Kind::Mini if d_out.is_multiple_of(config.mini_r) => vec![r, config.mini_r],
                Kind::Mini => {
                    return bad(
                        NAME,
                        "mini_r",
                        format!(
                            "{} does not divide the {d_out} outputs of `{path}`",
                            config.mini_r
                        ),
                    );
                }
                Kind::Bat if d_in.is_multiple_of(r) && d_out.is_multiple_of(r) => {
                    vec![d_out / r, r, r]
                }
                Kind::Bat => {
                    return bad(
                        NAME,
                        "r",
                        format!("{r} does not divide both sides of `{path}` ({d_out} x {d_in})"),
                    );
                }
            };
            let len = shape.iter().product();
            let mut rng = named_rng(context.seed, path);
            let random = config.init_weights == Init::Default(false);
            let values = if random {
                kaiming(&mut rng, len, d_out)
            } else {
                vec![0.0; len]
            };
            let block = Parameter::new(
                format!("{path}.miss_block"),
                &shape,
                values,
                &context.device,
            );
            Ok(Block {
                block,
                kind,
                d_out,
                dropout: config.miss_dropout,
            })
        },
    )
}

/// The block of one layer.
struct Block {
    /// `[r, d_out]`, `[r, mini_r]`, or `[d_out / r, r, r]`.
    block: Parameter,
    kind: Kind,
    d_out: usize,
    dropout: f64,
}

impl Block {
    /// `D [r, d_out]` of the two kinds that project sums.
    fn projection(&self, mode: Mode) -> Tensor<2> {
        let block = self.block.get::<2>(mode);
        let times = self.d_out / self.block.shape()[1];
        if times == 1 {
            block
        } else {
            block.repeat_dim(1, times)
        }
    }

    /// Blocks of the weight `[d_out / r, d_in / r · r, r]` as rows for a product from the right.
    fn split(&self, weight: Tensor<2>) -> Tensor<3> {
        let ([d_out, d_in], r) = (weight.dims(), self.block.shape()[1]);
        weight.reshape([d_out / r, r * d_in / r, r])
    }
}

impl LinearAdapter for Block {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.block]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.block]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        let [d_out, d_in] = at.base.weight.dims();
        if self.kind == Kind::Bat {
            let block = self.block.get::<3>(at.mode);
            let (rows, r) = (d_out / self.block.shape()[1], self.block.shape()[1]);
            let product = self.split(at.base.weight.dense()).matmul(block.clone());
            // D is added to every block of its rows.
            let added = block
                .unsqueeze_dim::<4>(2)
                .expand([rows, r, d_in / r, r])
                .reshape([rows, r * d_in / r, r]);
            return (product + added).reshape([d_out, d_in]);
        }
        let r = self.block.shape()[0];
        self.projection(at.mode)
            .transpose()
            .repeat_dim(1, d_in.div_ceil(r))
            .narrow(1, 0, d_in)
    }

    fn materializes_weight(&self) -> bool {
        false
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        if self.kind == Kind::Bat {
            return frugal_kernels::linear(
                x,
                at.base.weight.dense() + self.delta(at),
                at.base.bias.clone(),
            );
        }
        let y = at.base.forward(x.clone());
        let x = match at.mode {
            Mode::Train { seed } if self.dropout > 0.0 => dropout(x, self.dropout, seed, at.path),
            _ => x,
        };
        let ([tokens, d_in], r) = (x.dims(), self.block.shape()[0]);
        let groups = d_in.div_ceil(r);
        let missing = groups * r - d_in;
        let x = if missing == 0 {
            x
        } else {
            Tensor::cat(
                vec![x.clone(), Tensor::zeros([tokens, missing], &x.device())],
                1,
            )
        };
        let sums = x
            .reshape([tokens, groups, r])
            .sum_dim(1)
            .squeeze_dim::<2>(1);
        y + sums.matmul(self.projection(at.mode))
    }

    fn unmerged(&self, at: &LinearSite<'_>) -> Result<MergedLinear, String> {
        let merged = at.base.weight.dense();
        if self.kind != Kind::Bat {
            return Ok(MergedLinear {
                weight: merged - self.delta(at),
                bias: at.base.bias.clone(),
            });
        }
        // W' = W (I + D) + D.
        let ([d_out, d_in], block) = (merged.dims(), self.block.get::<3>(Mode::Eval));
        let (rows, r) = (d_out / block.dims()[1], block.dims()[1]);
        let added = block
            .clone()
            .unsqueeze_dim::<4>(2)
            .expand([rows, r, d_in / r, r])
            .reshape([rows, r * d_in / r, r]);
        let one = Tensor::<2>::eye(r, &block.device()).unsqueeze::<3>();
        let weight = (self.split(merged) - added)
            .matmul(inverse(&(block + one)))
            .reshape([d_out, d_in]);
        Ok(MergedLinear {
            weight,
            bias: at.base.bias.clone(),
        })
    }
}
