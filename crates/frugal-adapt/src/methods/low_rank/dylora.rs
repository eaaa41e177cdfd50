//! # DyLoRA: LoRA that works at every rank up to its own
//!
//! ## What it does
//! Trains LoRA with a rank that is drawn anew at each step, so that the first rows and columns alone are
//! already a good adapter: the rank can be chosen after training.
//!
//! ## Update rule
//! At each step `b` is drawn uniformly from `min_rank` to `r`, and `y = x Wᵀ + (alpha / b) B[:, :b] A[:b] x`. With
//! `frozen` only the last of these rows and columns is updated, so that smaller ranks stay as they are.
//! Outside of training `b = rank`.
//!
//! ## When to use, when not
//! Where adapters of several sizes are wanted of one training, or the right rank is not known. A LoRA
//! trained at one rank is a little better at that rank.
//!
//! ## Cost
//! As LoRA of rank `r` at most. None after merging.
//!
//! ## Defaults and where they come from
//! Ranks from 1, as in the paper, and all of them updated (`frozen = false`). `rank` is `r` if not given. Start
//! and scale are LoRA's.
//!
//! ## Departures from the paper
//! One rank is drawn for each step, for all layers. Files are plain LoRA of the rank in use.
//!
//! ## References
//! - Valipour, Rezagholizadeh, Kobyzev, Ghodsi: DyLoRA: Parameter Efficient Tuning of Pre-trained
//!   Models using Dynamic Search-Free Low-Rank Adaptation, 2022, arXiv 2210.07558.

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Linear, LinearChange, LowRankChange, Mode, Parameter, Pass,
    named_rng, to_vec,
};
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::method::{Family, Method, MethodConfig};
use crate::methods::low_rank::lora::{self, Bias, Factors, Lora, LoraConfig};
use crate::settings::Settings;
use crate::support::low_rank;
use crate::support::pair::Pair;
use crate::support::per_linear::{bad, linear_maps};

const NAME: &str = "dylora";

/// Registry entry.
pub const METHOD: Method = Method::of::<DyloraConfig>(
    Family::LowRank,
    "LoRA of which the first rows are an adapter at every rank",
    include_str!("dylora.rs"),
)
.default_lr(2e-4)
// Files do not show it.
.peft_variant(|_| false);

/// Settings: those of LoRA and which ranks are trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DyloraConfig {
    /// Smallest rank that is drawn.
    pub min_rank: usize,
    /// Update only the last row and column of the rank that is drawn.
    pub frozen: bool,
    /// Rank outside of training and in files; `r` if not given.
    pub rank: Option<usize>,
    /// The rest.
    #[serde(flatten)]
    pub lora: LoraConfig,
}

impl Default for DyloraConfig {
    fn default() -> Self {
        Self {
            min_rank: 1,
            frozen: false,
            rank: None,
            lora: LoraConfig::default(),
        }
    }
}

impl MethodConfig for DyloraConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "LORA";

    fn validate(&self) -> Result<(), AdaptError> {
        self.lora.validate_for(NAME)?;
        if self.lora.bias != Bias::None || self.lora.lora_bias {
            return bad(
                NAME,
                "bias",
                "only the factors are trained: use `bias = \"none\"`",
            );
        }
        if self.lora.rank_pattern.values().next().is_some() {
            return bad(NAME, "rank_pattern", "one rank is drawn for all layers");
        }
        let range = 1..=self.lora.r;
        if !range.contains(&self.min_rank) {
            return bad(
                NAME,
                "min_rank",
                format!("must be from 1 to `r`, {}", self.lora.r),
            );
        }
        match self.rank {
            Some(rank) if !range.contains(&rank) => bad(
                NAME,
                "rank",
                format!("must be from 1 to `r`, {}", self.lora.r),
            ),
            _ => Ok(()),
        }
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        self.validate()?;
        linear_maps(NAME, &self.lora.targets(), context)?;
        Ok(Box::new(Dylora {
            lora: Lora::named(NAME, self.lora.clone(), context)?,
            config: self,
        }))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        lora::variant_from_peft(NAME, config, &[])
    }
}

/// The adapter.
struct Dylora {
    lora: Lora,
    config: DyloraConfig,
}

impl Dylora {
    /// The rank of a pass.
    fn rank(&self, mode: Mode) -> usize {
        let r = self.config.lora.r;
        match mode {
            Mode::Train { seed } => named_rng(seed, "rank").random_range(self.config.min_rank..=r),
            Mode::Eval => self.config.rank.unwrap_or(r),
        }
    }

    /// The factors of a layer at a rank, and their scale.
    fn at(&self, pair: &Pair, rank: usize, mode: Mode) -> (Tensor<2>, Tensor<2>, f32) {
        let part = |tensor: Tensor<2>, dim: usize| {
            if mode.is_train() && self.config.frozen && rank > 1 {
                let before = tensor.clone().narrow(dim, 0, rank - 1).detach();
                Tensor::cat(vec![before, tensor.narrow(dim, rank - 1, 1)], dim)
            } else {
                tensor.narrow(dim, 0, rank)
            }
        };
        let (a, b) = (part(pair.a.get(mode), 0), part(pair.b.get(mode), 1));
        // The pair's scale is that of the whole rank.
        let whole = pair.a.shape()[0] as f32;
        let raise = match self.config.lora.use_rslora {
            true => (whole / rank as f32).sqrt(),
            false => whole / rank as f32,
        };
        (a, b, pair.scale * raise)
    }
}

struct DyloraPass<'a> {
    adapter: &'a Dylora,
    mode: Mode,
    rank: usize,
}

impl Pass for DyloraPass<'_> {
    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        let Some(pair) = self.adapter.lora.at(base.site) else {
            return base.forward(x);
        };
        let (a, b, scale) = self.adapter.at(pair, self.rank, self.mode);
        let dropping = low_rank::Dropping {
            p: self.adapter.config.lora.lora_dropout,
            mode: self.mode,
            path: &pair.path,
        };
        low_rank::forward(base, x, a, b, scale, &dropping)
    }

    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        let Some(pair) = self.adapter.lora.at(base.site) else {
            return LinearChange::None;
        };
        if self.mode.is_train() && self.adapter.config.lora.lora_dropout > 0.0 {
            return LinearChange::Opaque;
        }
        let (a, b, scale) = self.adapter.at(pair, self.rank, self.mode);
        LinearChange::LowRank(LowRankChange { a, b, scale })
    }
}

impl Adapter for Dylora {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        self.lora.parameters()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.lora.parameters_mut()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(DyloraPass {
            adapter: self,
            mode,
            rank: self.rank(mode),
        })
    }

    fn peft_config(&self) -> Map<String, Value> {
        self.lora.peft_config()
    }

    fn weight_delta(&self, base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        let rank = self.rank(Mode::Eval);
        Ok(self.lora.at(base.site).map(|pair| {
            let (a, b, scale) = self.at(pair, rank, Mode::Eval);
            b.matmul(a) * scale
        }))
    }

    fn to_inference(&self) -> Option<Box<dyn Adapter>> {
        let rank = self.rank(Mode::Eval);
        (rank < self.config.lora.r).then(|| {
            let factors = |pair: &Pair| {
                let (a, b, _) = self.at(pair, rank, Mode::Eval);
                Factors {
                    path: pair.path.clone(),
                    rank,
                    a: to_vec(a),
                    b: to_vec(b),
                }
            };
            Box::new(self.lora.at_rank(rank, factors)) as Box<dyn Adapter>
        })
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}
