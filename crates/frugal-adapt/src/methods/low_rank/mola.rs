//! # MoLA: layer-wise allocation of LoRA experts
//!
//! ## What it does
//! Puts several LoRA experts and a router beside each linear layer and lets every token choose its
//! best `top_k`; blocks get different numbers of experts.
//!
//! ## Update rule
//! `s = softmax(G x)` over the `N` experts of the layer; `wᵢ = sᵢ / Σ s` over the `top_k` largest, 0
//! elsewhere; `y = x Wᵀ + (lora_alpha / r) Σ wᵢ Bᵢ Aᵢ dropout(x)`. The loss gains
//! `router_aux_loss_coef · Σ over blocks of N Σₑ fₑ Pₑ`, where `fₑ` is the share of choices that
//! went to expert `e` and `Pₑ` its mean probability, over all tokens and all adapted layers of the
//! block; 1 per block when balanced. With `balance = "layer"` the sum is over the adapted layers,
//! each by itself.
//!
//! ## When to use, when not
//! For mixtures of tasks in one adapter, where one low-rank change is too little. The result
//! depends on the input, so it cannot be merged and every token pays for routing: for one task,
//! LoRA is cheaper.
//!
//! ## Cost
//! Trainable: `N (r (d_in + d_out) + d_in)` per layer. Extra memory while training: `N r` numbers per
//! token and layer. Extra compute: `2 N (r (d_in + d_out) + d_in)` multiply-adds per token and map:
//! all experts are computed in one product and those not chosen are weighted with 0.
//!
//! ## Defaults and where they come from
//! `num_experts = [2, 4, 6, 8]` (the paper's inverted triangle: one entry per quarter of the
//! blocks), `top_k = 2`, `r = 8`, `lora_alpha = 16`, `lora_dropout = 0.05` and all linear layers as
//! in the released scripts. `router_aux_loss_coef = 0.001` is the released coefficient; there a
//! flag turns the term on, here 0 turns it off. `A` and `G` are uniform within `±1/sqrt(d_in)`, `B`
//! zero.
//!
//! ## Departures from the paper
//! `num_experts`, `r` and `top_k` may be lists of any length: block `j` of `m` gets entry
//! `⌊length · j / m⌋`, and a layer outside the blocks (BERT's pooler) the last. `top_k` is lowered to the number of experts; equal
//! probabilities go to the lower index. Dropout is drawn once per layer, not once per expert. Experts
//! lie side by side in one matrix: rows `i r .. (i + 1) r` of `A`, the same columns of `B`. A later
//! version of the paper finds middle blocks to need most experts, so the allocation is a setting
//! rather than a law.
//!
//! ## References
//! - Gao, Chen, Rao, Sun, Liu, Peng, Zhang, Guo, Yang, Subrahmanian: Higher Layers Need More LoRA
//!   Experts, 2024, arXiv 2402.08562.
//! - Fedus, Zoph, Shazeer: Switch Transformers, 2021, arXiv 2101.03961 (the balance term).

use std::collections::BTreeMap;

use burn::prelude::*;
use burn::tensor::activation::softmax;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Linear, LinearChange, Mode, Parameter, Pass, SiteId,
    named_rng, to_vec,
};
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::method::{Family, Method, MethodConfig};
use crate::support::dropout::dropout;
pub use crate::support::per_block::PerBlock;
use crate::support::per_linear::linear_maps;
use crate::support::{low_rank, own_files};
use crate::target::Targets;

const NAME: &str = "mola";
const PEFT_TYPE: &str = "MOLA";

/// Registry entry.
pub const METHOD: Method = Method::of::<MolaConfig>(
    Family::LowRank,
    "Routed LoRA experts, with a number of its own in every block",
    include_str!("mola.rs"),
)
.aliases(&["lora-experts"])
.default_lr(5e-4)
.without_merge();

/// What the choices of experts are balanced over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// All adapted layers of a block together.
    #[default]
    Block,
    /// Each adapted layer.
    Layer,
}

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MolaConfig {
    /// Rank of each expert, or a list of it as for `num_experts`.
    pub r: PerBlock,
    /// Scale numerator.
    pub lora_alpha: f64,
    /// Probability of dropping an input element of the experts while training.
    pub lora_dropout: f64,
    /// Experts per map: one entry per equal share of the blocks, from the lowest up.
    pub num_experts: PerBlock,
    /// Experts that a token chooses, or a list of it as for `num_experts`.
    pub top_k: PerBlock,
    /// Weight of the balance term; 0 leaves it out.
    pub router_aux_loss_coef: f64,
    /// Over what the balance term is taken.
    pub balance: Balance,
    /// Which layers.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for MolaConfig {
    fn default() -> Self {
        Self {
            r: PerBlock::All(8),
            lora_alpha: 16.0,
            lora_dropout: 0.05,
            num_experts: PerBlock::Shares(vec![2, 4, 6, 8]),
            top_k: PerBlock::All(2),
            router_aux_loss_coef: 1e-3,
            balance: Balance::Block,
            targets: Targets::default(),
        }
    }
}

impl MethodConfig for MolaConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = PEFT_TYPE;

    fn validate(&self) -> Result<(), AdaptError> {
        let bad = |field, reason: String| {
            Err(AdaptError::Config {
                method: NAME,
                field,
                reason,
            })
        };
        for (field, numbers) in [
            ("r", &self.r),
            ("top_k", &self.top_k),
            ("num_experts", &self.num_experts),
        ] {
            if !numbers.is_positive() {
                return bad(
                    field,
                    "needs one entry or more, each at least 1, such as [2, 4, 6, 8]".into(),
                );
            }
        }
        if !(0.0..=1.0).contains(&self.lora_dropout) {
            return bad(
                "lora_dropout",
                format!("{} is not within 0 (none) and 1 (all)", self.lora_dropout),
            );
        }
        if !(self.lora_alpha.is_finite() && self.lora_alpha > 0.0) {
            return bad(
                "lora_alpha",
                format!("{} is not a positive number", self.lora_alpha),
            );
        }
        if !(self.router_aux_loss_coef.is_finite() && self.router_aux_loss_coef >= 0.0) {
            return bad(
                "router_aux_loss_coef",
                format!(
                    "{} is not a number of at least 0",
                    self.router_aux_loss_coef
                ),
            );
        }
        Ok(())
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(Mola::new(self, context)?))
    }
}

/// Experts and router of one layer.
struct Experts {
    path: String,
    layer: Option<usize>,
    count: usize,
    /// Rank of each.
    r: usize,
    top_k: usize,
    /// All experts' `A` one below the other, `[count r, d_in]`.
    a: Parameter,
    /// All experts' `B` side by side, `[d_out, count r]`.
    b: Parameter,
    /// `[count, d_in]`.
    router: Parameter,
}

/// A MoLA adapter.
pub struct Mola {
    config: MolaConfig,
    /// Indexed by site.
    sites: Vec<Option<Experts>>,
    saved_targets: Value,
}

impl Mola {
    /// Builds experts and routers of every selected layer.
    ///
    /// # Errors
    /// Bad settings, no matching layer, tables among the targets.
    pub fn new(config: MolaConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        config.validate()?;
        let chosen = linear_maps(NAME, &config.targets, context)?;
        let mut sites: Vec<Option<Experts>> = (0..context.sites.len()).map(|_| None).collect();
        for &id in &chosen {
            sites[id.index()] = Some(experts(&config, context, id));
        }
        let saved_targets = crate::target::saved_targets(&config.targets, context.sites, &chosen);
        Ok(Self {
            config,
            sites,
            saved_targets,
        })
    }

    fn at(&self, site: SiteId) -> Option<&Experts> {
        self.sites.get(site.index())?.as_ref()
    }
}

fn experts(config: &MolaConfig, context: &BuildContext<'_>, id: SiteId) -> Experts {
    let (info, device) = (context.sites.info(id), &context.device);
    let (path, d_in, d_out) = (info.path.clone(), info.d_in, info.d_out);
    let of_block = |numbers: &PerBlock| numbers.at(info.layer, context.info.num_hidden_layers);
    let (count, r) = (of_block(&config.num_experts), of_block(&config.r));
    let (rows, bound) = (count * r, 1.0 / (d_in as f32).sqrt());
    let draw = |what: &str, rows: usize| -> Vec<f32> {
        let mut rng = named_rng(context.seed, &format!("{path} {what}"));
        (0..rows * d_in)
            .map(|_| rng.random_range(-bound..bound))
            .collect()
    };
    Experts {
        a: Parameter::new(
            format!("{path}.lora_A.weight"),
            &[rows, d_in],
            draw("lora_A", rows),
            device,
        ),
        b: Parameter::new(
            format!("{path}.lora_B.weight"),
            &[d_out, rows],
            vec![0.0; d_out * rows],
            device,
        ),
        router: Parameter::new(
            format!("{path}.router.weight"),
            &[count, d_in],
            draw("router", count),
            device,
        ),
        layer: info.layer,
        count,
        r,
        top_k: of_block(&config.top_k),
        path,
    }
}

/// What a router decided.
struct Routing {
    /// Probabilities of all experts, `[tokens, experts]`.
    probabilities: Tensor<2>,
    /// Weights of the chosen experts, 0 elsewhere, `[tokens, experts]`.
    weights: Tensor<2>,
    /// How often each expert was chosen, `[experts]`.
    chosen: Vec<f32>,
}

/// Chooses the `top_k` most probable experts of every token by their logits `[tokens, experts]`.
fn route(logits: Tensor<2>, top_k: usize) -> Routing {
    let [tokens, experts] = logits.dims();
    let probabilities = softmax(logits, 1);
    let values = to_vec(probabilities.clone().inner());
    let (mut mask, mut chosen) = (vec![0.0f32; tokens * experts], vec![0.0f32; experts]);
    let mut order: Vec<usize> = Vec::with_capacity(experts);
    for (row, mask) in values.chunks(experts).zip(mask.chunks_mut(experts)) {
        order.clear();
        order.extend(0..experts);
        // A stable sort, so that equal probabilities go to the lower index.
        order.sort_by(|&i, &j| row[j].total_cmp(&row[i]));
        for &expert in order.iter().take(top_k) {
            (mask[expert], chosen[expert]) = (1.0, chosen[expert] + 1.0);
        }
    }
    let device = probabilities.device().inner();
    let kept = probabilities.clone()
        * Tensor::<2>::from_data(TensorData::new(mask, [tokens, experts]), &device);
    let weights = kept.clone() / kept.sum_dim(1);
    Routing {
        probabilities,
        weights,
        chosen,
    }
}

/// Choices and probabilities of one block, pooled over its layers.
struct Load {
    chosen: Vec<f32>,
    /// Sum of probabilities, `[experts]`.
    probabilities: Tensor<1>,
    tokens: usize,
}

impl Load {
    fn new(routing: &Routing) -> Self {
        let [tokens, experts] = routing.probabilities.dims();
        let probabilities = routing.probabilities.clone().sum_dim(0).reshape([experts]);
        Self {
            chosen: routing.chosen.clone(),
            probabilities,
            tokens,
        }
    }

    fn join(self, other: Self) -> Self {
        Self {
            chosen: self
                .chosen
                .iter()
                .zip(&other.chosen)
                .map(|(a, b)| a + b)
                .collect(),
            probabilities: self.probabilities + other.probabilities,
            tokens: self.tokens + other.tokens,
        }
    }

    /// `N Σ f P`, `[1]`.
    fn balance(self) -> Tensor<1> {
        let (experts, selections) = (self.chosen.len() as f32, self.chosen.iter().sum::<f32>());
        let factors: Vec<f32> = self
            .chosen
            .iter()
            .map(|c| experts * c / (selections * self.tokens as f32))
            .collect();
        let device = self.probabilities.device().inner();
        (self.probabilities * Tensor::<1>::from_data(TensorData::from(factors.as_slice()), &device))
            .sum()
    }
}

struct MolaPass<'a> {
    adapter: &'a Mola,
    mode: Mode,
    /// By what balance is taken over: a block (`None` for layers outside the blocks), or a layer.
    loads: BTreeMap<Option<usize>, Load>,
}

impl MolaPass<'_> {
    fn record(&mut self, site: SiteId, layer: Option<usize>, routing: &Routing) {
        if !self.mode.is_train() || self.adapter.config.router_aux_loss_coef == 0.0 {
            return;
        }
        let key = match self.adapter.config.balance {
            Balance::Block => layer,
            Balance::Layer => Some(site.index()),
        };
        let load = Load::new(routing);
        let joined = match self.loads.remove(&key) {
            Some(before) => before.join(load),
            None => load,
        };
        self.loads.insert(key, joined);
    }
}

impl Pass for MolaPass<'_> {
    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        let Some(site) = self.adapter.at(base.site) else {
            return base.forward(x);
        };
        let (config, mode) = (&self.adapter.config, self.mode);
        let (a, b, scale) = (
            site.a.get::<2>(mode),
            site.b.get::<2>(mode),
            (config.lora_alpha / site.r as f64) as f32,
        );
        if site.count == 1 {
            // The only expert's weight is 1 whatever the router says.
            let dropping = low_rank::Dropping {
                p: config.lora_dropout,
                mode,
                path: &site.path,
            };
            return low_rank::forward(base, x, a, b, scale, &dropping);
        }
        let routing = route(
            frugal_kernels::linear(x.clone(), site.router.get::<2>(mode), None),
            site.top_k,
        );
        self.record(base.site, site.layer, &routing);
        let seen = match mode {
            Mode::Train { seed } if config.lora_dropout > 0.0 => {
                dropout(x.clone(), config.lora_dropout, seed, &site.path)
            }
            _ => x.clone(),
        };
        let tokens = x.dims()[0];
        let inner = frugal_kernels::linear(seen, a, None).reshape([tokens, site.count, site.r]);
        let weighted =
            (inner * routing.weights.unsqueeze_dim::<3>(2)).reshape([tokens, site.count * site.r]);
        base.forward(x) + frugal_kernels::linear(weighted, b, None) * scale
    }

    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        LinearChange::opaque_if(self.adapter.at(base.site).is_some())
    }

    fn auxiliary_loss(&mut self) -> Option<Tensor<1>> {
        let loads = std::mem::take(&mut self.loads);
        let total = loads
            .into_values()
            .map(Load::balance)
            .reduce(|sum, loss| sum + loss)?;
        Some(total * self.adapter.config.router_aux_loss_coef)
    }
}

impl Adapter for Mola {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        self.sites
            .iter()
            .flatten()
            .flat_map(|s| [&s.a, &s.b, &s.router])
            .collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.sites
            .iter_mut()
            .flatten()
            .flat_map(|s| [&mut s.a, &mut s.b, &mut s.router])
            .collect()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(MolaPass {
            adapter: self,
            mode,
            loads: BTreeMap::new(),
        })
    }

    fn peft_config(&self) -> Map<String, Value> {
        own_files::to_file(PEFT_TYPE, &self.config, &self.saved_targets)
    }

    fn weight_delta(&self, _base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        let reason = "its experts are chosen by the input, which no single weight can express; use it unmerged".into();
        Err(AdaptError::Unsupported {
            method: NAME,
            action: "be merged",
            reason,
        })
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
