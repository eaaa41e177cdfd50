//! # BD-LoRA: block-diagonal low-rank adaptation
//!
//! ## What it does
//! LoRA of which one factor of each layer is block-diagonal, so that a model that is split over several
//! devices computes the low-rank path without any exchange between them.
//!
//! ## Update rule
//! `y = x Wᵀ + s B A x`, where of the layers in `target_modules_bd_a` `A = diag(A₁, ..., A_n)` with `Aᵢ [r/n,
//! d_in/n]`, and of those in `target_modules_bd_b` `B = diag(B₁, ..., B_n)` with `Bᵢ [d_out/n, r/n]`.
//!
//! ## When to use, when not
//! For adapters that are served on `n` devices in parallel, and for smaller files at a rank. On one
//! device plain LoRA of a smaller rank does the same.
//!
//! ## Cost
//! Trainable: `r (d_in / n + d_out)` or `r (d_in + d_out / n)` per layer. Extra compute: in proportion. None
//! after merging.
//!
//! ## Defaults and where they come from
//! Two blocks; `A` in blocks for what reads the residual stream, `B` for what writes to it. The names of
//! `peft` have no defaults; these are the paper's column- and row-parallel layers turned round: with
//! its own split the factor next to the split side is the one in blocks.
//!
//! ## Departures from the paper
//! Blocks of `A` start Kaiming-uniform by the number of their columns.
//!
//! ## References
//! - Block-Diagonal LoRA for Eliminating Communication Overhead in Tensor Parallel LoRA Serving, 2025;
//!   `use_bdlora` of Hugging Face `peft`.

use burn::prelude::*;
use frugal_nn::{AdaptError, Adapter, BuildContext, Mode, Parameter, SiteInfo};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::dropout::dropout;
use crate::support::lora_like::{self, LoraLike};
use crate::support::per_linear::{LinearAdapter, LinearSite, PerLinear, bad};

const NAME: &str = "bd-lora";

/// Registry entry.
pub const METHOD: Method = Method::of::<BdLoraConfig>(
    Family::LowRank,
    "LoRA with a block-diagonal factor, for models that are split over devices",
    include_str!("bdlora.rs"),
)
.aliases(&["bdlora"])
.default_lr(5e-4)
.peft_variant(|config| config.get("use_bdlora").is_some_and(|v| !v.is_null()));

/// Which factors are in blocks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Blocks {
    /// Parts of the last names of layers whose `A` is in blocks.
    pub target_modules_bd_a: Option<Vec<String>>,
    /// The same for `B`.
    pub target_modules_bd_b: Option<Vec<String>>,
    /// Number of blocks.
    pub nblocks: usize,
    /// Refuse layers that are in neither list; otherwise they have a plain LoRA.
    pub match_strict: bool,
}

impl Default for Blocks {
    fn default() -> Self {
        let names = |list: &[&str]| Some(list.iter().map(|&name| name.to_owned()).collect());
        Self {
            target_modules_bd_a: names(&["o_proj", "down_proj", "output", "c_proj", "dense"]),
            target_modules_bd_b: names(&[
                "q_proj",
                "k_proj",
                "v_proj",
                "gate_proj",
                "up_proj",
                "query",
                "key",
                "value",
                "c_attn",
                "c_fc",
            ]),
            nblocks: 2,
            match_strict: false,
        }
    }
}

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BdLoraConfig {
    /// Which factors are in blocks.
    pub use_bdlora: Blocks,
    /// The rest.
    #[serde(flatten)]
    pub lora: LoraLike,
}

impl MethodConfig for BdLoraConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "LORA";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.use_bdlora.nblocks == 0 {
            return bad(NAME, "use_bdlora", "`nblocks` must be at least 1");
        }
        self.lora.validate(NAME)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        let mut settings = lora_like::from_peft::<BdLoraConfig>(NAME, config, &["use_bdlora"])?;
        // Absent fields mean peft's defaults, which are no lists, one block and strictness.
        if let Some(Value::Object(blocks)) = settings.get_mut("use_bdlora") {
            for (field, value) in [
                ("target_modules_bd_a", Value::Null),
                ("target_modules_bd_b", Value::Null),
                ("nblocks", 1.into()),
                ("match_strict", true.into()),
            ] {
                blocks.entry(field).or_insert(value);
            }
        }
        Ok(settings)
    }
}

/// Which factor of a layer is in blocks.
#[derive(Clone, Copy, PartialEq)]
enum InBlocks {
    A,
    B,
    Neither,
}

impl Blocks {
    fn of(&self, info: &SiteInfo, r: usize) -> Result<InBlocks, AdaptError> {
        let (path, n) = (&info.path, self.nblocks);
        let last = path.rsplit('.').next().unwrap_or(path);
        let named = |list: &Option<Vec<String>>| {
            list.iter()
                .flatten()
                .any(|part| last.contains(part.as_str()))
        };
        let (which, sides) = match (
            named(&self.target_modules_bd_a),
            named(&self.target_modules_bd_b),
        ) {
            (true, true) => {
                let reason = format!("`{path}` is in both lists");
                return bad(NAME, "use_bdlora", reason);
            }
            (false, false) if self.match_strict => {
                let reason = format!("`{path}` is in neither list, and `match_strict` is set");
                return bad(NAME, "use_bdlora", reason);
            }
            (false, false) => return Ok(InBlocks::Neither),
            (true, false) => (InBlocks::A, [info.d_in, r]),
            (false, true) => (InBlocks::B, [info.d_out, r]),
        };
        match sides.into_iter().find(|side| !side.is_multiple_of(n)) {
            Some(side) => bad(
                NAME,
                "use_bdlora",
                format!("{side} rows or columns of a factor of `{path}` make no {n} equal blocks"),
            ),
            None => Ok(which),
        }
    }
}

fn build(config: BdLoraConfig, context: &BuildContext<'_>) -> Result<PerLinear<Pair>, AdaptError> {
    config.validate()?;
    config.lora.check_patterns(context.sites)?;
    let n = config.use_bdlora.nblocks;
    let constants = lora_like::constants(json!({"use_bdlora": config.use_bdlora}));
    PerLinear::new(
        &METHOD,
        &config.lora.targets,
        context,
        &config,
        constants,
        |_, info| {
            let (r, _) = config.lora.of(info)?;
            let in_blocks = config.use_bdlora.of(info, r)?;
            let columns = match in_blocks {
                InBlocks::A => (info.d_in / n, r),
                InBlocks::B => (info.d_in, r / n),
                InBlocks::Neither => (info.d_in, r),
            };
            let factors = config
                .lora
                .factors(info, columns, context.seed, &context.device)?;
            Ok(Pair {
                a: factors.a,
                b: factors.b,
                scale: factors.scale,
                dropout: config.lora.lora_dropout,
                in_blocks,
                blocks: n,
            })
        },
    )
}

/// The factors of one layer.
struct Pair {
    /// `[r, d_in]`, or its blocks one under the other, `[r, d_in / n]`.
    a: Parameter,
    /// `[d_out, r]` or `[d_out, r / n]`.
    b: Parameter,
    scale: f32,
    dropout: f64,
    in_blocks: InBlocks,
    blocks: usize,
}

impl Pair {
    /// `x` through a factor `[rows, columns]`, in blocks or not.
    fn through(&self, x: Tensor<2>, factor: &Parameter, in_blocks: bool, mode: Mode) -> Tensor<2> {
        if !in_blocks {
            return frugal_kernels::linear(x, factor.get::<2>(mode), None);
        }
        let (tokens, n) = (x.dims()[0], self.blocks);
        let [rows, columns] = [factor.shape()[0], factor.shape()[1]];
        let x = x.reshape([tokens, n, columns]).swap_dims(0, 1);
        let blocks = factor.get::<2>(mode).reshape([n, rows / n, columns]);
        x.matmul(blocks.swap_dims(1, 2))
            .swap_dims(0, 1)
            .reshape([tokens, rows])
    }

    fn change(&self, x: Tensor<2>, mode: Mode) -> Tensor<2> {
        let low = self.through(x, &self.a, self.in_blocks == InBlocks::A, mode);
        self.through(low, &self.b, self.in_blocks == InBlocks::B, mode) * self.scale
    }
}

impl LinearAdapter for Pair {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.a, &self.b]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.a, &mut self.b]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        let d_in = at.base.weight.dims()[1];
        let one = Tensor::eye(d_in, &self.a.get::<2>(Mode::Eval).device());
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
