//! # DoRA: weight-decomposed low-rank adaptation
//!
//! ## What it does
//! LoRA with the length of each row of the weight trained apart from its direction.
//!
//! ## Update rule
//! `V = W + s B A`, `y = (m / ‖V‖) ⊙ (x Vᵀ) + b` with `m [d_out]` and `‖V‖` the length of each row,
//! which counts as a constant in the gradient. Of a token table, `e = (m / ‖V‖) ⊙ (W + s Aᵀ Bᵀ)[id]`
//! with the lengths of its columns, one for each feature.
//!
//! ## When to use, when not
//! Where LoRA at a low rank falls short of full tuning. Each step costs more than LoRA's.
//!
//! ## Cost
//! Trainable: LoRA's and `d_out` per layer. Extra compute over LoRA: `r d_in d_out` multiply-adds per
//! map and step for the lengths of the rows, whatever the number of tokens; `V` itself is not
//! formed. None after merging.
//!
//! ## Defaults and where they come from
//! Those of `lora`. `m` starts at the row lengths of `W`, so nothing changes at first.
//!
//! ## Departures from the paper
//! The paper normalises columns of weights stored `[d_in, d_out]`, which are the rows here. A bias on
//! `B` is refused. Token tables are adapted as `peft` does it. With dropout the change of direction and length sees the
//! dropped input, the frozen part the whole one, as in Hugging Face `peft`.
//!
//! ## References
//! - Liu, Wang, Yin, Molchanov, Wang, Cheng, Chen: DoRA: Weight-Decomposed Low-Rank Adaptation,
//!   2024, arXiv 2402.09353.

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Conv, ConvChange, DerivedCache, Embedding, Frozen, Linear,
    LinearChange, MergedLinear, Mode, Norm, NormChange, Parameter, Pass, SiteId, Weight, to_vec,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::method::{Family, Method, MethodConfig};
use crate::methods::low_rank::lora::{self, Lora, LoraConfig, LoraPass};
use crate::settings::Settings;
use crate::support::pair::Pair;
use crate::support::per_linear::bad;

const NAME: &str = "dora";

/// Registry entry.
pub const METHOD: Method = Method::of::<DoraConfig>(
    Family::LowRank,
    "A low-rank change of direction and a length per row, for chosen linear layers",
    include_str!("dora.rs"),
)
.default_lr(5e-4)
.peft_variant(|config| config.get("use_dora") == Some(&Value::Bool(true)));

/// LoRA's settings, but for a bias on `B`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DoraConfig(pub LoraConfig);

impl MethodConfig for DoraConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "LORA";

    fn validate(&self) -> Result<(), AdaptError> {
        self.0.validate_for(NAME)?;
        if self.0.lora_bias {
            bad(
                NAME,
                "lora_bias",
                "a bias on B has no place in a product of length and direction",
            )
        } else {
            Ok(())
        }
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(Dora::new(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        lora::variant_from_peft(NAME, config, &["use_dora"])
    }
}

/// A DoRA adapter.
pub struct Dora {
    lora: Lora,
    /// Lengths of rows, of a table of columns, indexed by site.
    magnitudes: Vec<Option<Parameter>>,
    /// Squares of these of the frozen weight, indexed by site.
    squares: Vec<Option<Tensor<1>>>,
}

impl Dora {
    /// Builds the pairs, and the lengths from the backbone's weights (from ones when planning).
    ///
    /// # Errors
    /// Those of LoRA.
    pub fn new(config: DoraConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        config.validate()?;
        let lora = Lora::named(NAME, config.0, context)?;
        let mut squares: Vec<Option<Tensor<1>>> = vec![None; context.sites.len()];
        let mut lengths: Vec<Option<Vec<f32>>> = vec![None; context.sites.len()];
        if let Some(backbone) = context.backbone {
            let mut add = |site: SiteId, of: Directions<'_>| {
                if let Some(pair) = lora.at(site) {
                    let own = of.squares();
                    lengths[site.index()] = Some(to_vec(of.lengths(pair, &own)));
                    squares[site.index()] = Some(own);
                }
            };
            backbone.visit_weights(&mut |part| match part {
                Frozen::Linear(base) => add(base.site, Directions::Rows(&base.weight)),
                Frozen::Embedding(base) => add(base.site, Directions::Columns(&base.weight)),
                Frozen::Norm(_) | Frozen::Conv(_) | Frozen::Param(_) => {}
            });
        }
        let mut magnitude = |id: SiteId| {
            let pair = lora.at(id)?;
            let len = pair.b.shape()[0];
            let values = lengths[id.index()].take();
            Some(Parameter::new(
                format!("{}.lora_magnitude_vector", pair.path),
                &[len],
                values.unwrap_or_else(|| vec![1.0; len]),
                &context.device,
            ))
        };
        let magnitudes = context.sites.iter().map(|(id, _)| magnitude(id)).collect();
        Ok(Self {
            lora,
            magnitudes,
            squares,
        })
    }

    /// The pair of an adapted layer or table and the factors `m / ‖V‖`.
    fn at(
        &self,
        site: SiteId,
        base: Directions<'_>,
        mode: Mode,
        kept: Option<&DerivedCache>,
    ) -> Option<(&Pair, Tensor<1>)> {
        let (pair, magnitude) = (self.lora.at(site)?, self.magnitudes[site.index()].as_ref()?);
        let squares = || {
            self.squares[site.index()]
                .clone()
                .unwrap_or_else(|| base.squares())
        };
        let factors = || magnitude.get::<1>(mode) / base.lengths(pair, &squares());
        Some((
            pair,
            kept.map_or_else(factors, |kept| kept.keep(site, factors)),
        ))
    }

    fn at_linear(
        &self,
        base: &Linear,
        mode: Mode,
        kept: Option<&DerivedCache>,
    ) -> Option<(&Pair, Tensor<1>)> {
        self.at(base.site, Directions::Rows(&base.weight), mode, kept)
    }

    fn at_table(
        &self,
        base: &Embedding,
        mode: Mode,
        kept: Option<&DerivedCache>,
    ) -> Option<(&Pair, Tensor<1>)> {
        self.at(base.site, Directions::Columns(&base.weight), mode, kept)
    }
}

/// The vectors of a weight whose lengths count: rows of a linear layer `[d_out, d_in]`, columns of a
/// table `[rows, d_out]`.
#[derive(Clone, Copy)]
enum Directions<'a> {
    Rows(&'a Weight),
    Columns(&'a Weight),
}

impl Directions<'_> {
    /// `‖W‖²` of each, `[d_out]`.
    fn squares(self) -> Tensor<1> {
        match self {
            Self::Rows(weight) => {
                let sum = weight.dense().powi_scalar(2).sum_dim(1);
                sum.squeeze_dim::<1>(1)
            }
            Self::Columns(weight) => {
                let sum = weight.dense().powi_scalar(2).sum_dim(0);
                sum.squeeze_dim::<1>(0)
            }
        }
    }

    /// `‖V‖` of each, outside the gradient graph, from
    /// `‖V‖² = ‖W‖² + (2 s W Aᵀ + s² B A Aᵀ) · B`.
    fn lengths(self, pair: &Pair, squares: &Tensor<1>) -> Tensor<1> {
        let (a, b, s) = (
            pair.a.get::<2>(Mode::Eval),
            pair.b.get::<2>(Mode::Eval),
            pair.scale,
        );
        let wa = match self {
            Self::Rows(weight) => {
                frugal_kernels::linear(a.clone(), weight.dense(), None).transpose()
            }
            Self::Columns(weight) => a.clone().matmul(weight.dense()).transpose(),
        };
        let ba = b.clone().matmul(a.clone().matmul(a.transpose()));
        let change = ((wa * (2.0 * s) + ba * (s * s)) * b)
            .sum_dim(1)
            .squeeze_dim::<1>(1);
        (squares.clone() + change).clamp_min(0.0).sqrt()
    }
}

struct DoraPass<'a> {
    adapter: &'a Dora,
    lora: LoraPass<'a>,
    kept: Option<&'a DerivedCache>,
}

impl Pass for DoraPass<'_> {
    fn embedding(&mut self, base: &Embedding, ids: &[u32]) -> Tensor<2> {
        let changed = self.lora.embedding(base, ids);
        match self.adapter.at_table(base, self.lora.mode, self.kept) {
            Some((_, factors)) => changed * factors.unsqueeze::<2>(),
            None => changed,
        }
    }

    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        let mode = self.lora.mode;
        let Some((pair, factors)) = self.adapter.at_linear(base, mode, self.kept) else {
            return self.lora.linear(base, x);
        };
        let (a, b, factors) = (
            pair.a.get::<2>(mode),
            pair.b.get::<2>(mode),
            factors.unsqueeze::<2>(),
        );
        let bias = self.lora.bias(base.site, base.bias.as_ref());
        let (rate, plain) = (
            self.adapter.lora.config.lora_dropout,
            Linear {
                bias: None,
                ..base.clone()
            },
        );
        let y = match mode {
            Mode::Train { seed } if rate > 0.0 => {
                let dropped = crate::support::dropout::dropout(x.clone(), rate, seed, &pair.path);
                let changed = plain.forward_low_rank(dropped.clone(), a, b, pair.scale) * factors;
                plain.forward(x) - plain.forward(dropped) + changed
            }
            _ => plain.forward_low_rank(x, a, b, pair.scale) * factors,
        };
        match bias {
            Some(bias) => y + bias.unsqueeze::<2>(),
            None => y,
        }
    }

    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        match self.lora.linear_change(base) {
            LinearChange::None => LinearChange::None,
            _ => LinearChange::Opaque,
        }
    }

    fn norm_change(&mut self, base: &Norm) -> NormChange {
        self.lora.norm_change(base)
    }

    fn conv_change(&mut self, base: &Conv) -> ConvChange {
        self.lora.conv_change(base)
    }
}

impl Adapter for Dora {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        self.lora
            .parameters()
            .into_iter()
            .chain(self.magnitudes.iter().flatten())
            .collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.lora
            .parameters_mut()
            .into_iter()
            .chain(self.magnitudes.iter_mut().flatten())
            .collect()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(DoraPass {
            adapter: self,
            lora: LoraPass {
                adapter: &self.lora,
                mode,
            },
            kept: None,
        })
    }

    fn cached_pass<'a>(&'a self, kept: &'a DerivedCache) -> Box<dyn Pass + 'a> {
        Box::new(DoraPass {
            adapter: self,
            lora: LoraPass {
                adapter: &self.lora,
                mode: Mode::Eval,
            },
            kept: Some(kept),
        })
    }

    fn peft_config(&self) -> Map<String, Value> {
        let mut config = self.lora.peft_config();
        config.insert("use_dora".into(), json!(true));
        config
    }

    fn weight_delta(&self, base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Ok(self
            .merged_linear(base)?
            .map(|merged| merged.weight - base.weight.dense()))
    }

    fn merged_linear(&self, base: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        let Some((pair, factors)) = self.at_linear(base, Mode::Eval, None) else {
            return self.lora.merged_linear(base);
        };
        let bias = self
            .lora
            .bias(base.site)
            .map(|b| b.get::<1>(Mode::Eval))
            .or_else(|| base.bias.clone());
        let weight = (base.weight.dense() + pair.delta(Mode::Eval)) * factors.unsqueeze_dim::<2>(1);
        Ok(Some(MergedLinear { weight, bias }))
    }

    fn unmerged_linear(&self, merged: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        if self.lora.at(merged.site).is_none() {
            return self.lora.unmerged_linear(merged);
        }
        let reason = "its merge loses the lengths of the base's rows; load the base model".into();
        Err(AdaptError::Unsupported {
            method: NAME,
            action: "be taken out again",
            reason,
        })
    }

    fn merged_embedding(&self, base: &Embedding) -> Option<Tensor<2>> {
        let (_, factors) = self.at_table(base, Mode::Eval, None)?;
        Some(self.lora.merged_embedding(base)? * factors.unsqueeze::<2>())
    }

    fn merged_norm(&self, base: &Norm) -> Option<(Tensor<1>, Option<Tensor<1>>)> {
        self.lora.merged_norm(base)
    }

    fn merged_conv(&self, base: &Conv) -> Option<(Tensor<2>, Option<Tensor<1>>)> {
        self.lora.merged_conv(base)
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}
