//! # BitFit: biases only
//!
//! ## What it does
//! Trains the biases of linear layers and norms and nothing else.
//!
//! ## Update rule
//! `y = x Wᵀ + b` and `norm(x) ⊙ g + b`, with `b` trained from the model's own values.
//!
//! ## When to use, when not
//! On encoders and older decoders (BERT, RoBERTa, GPT-2) with small or medium data. Models without
//! biases (Llama, SmolLM2) get them on all linear layers but the head, from zero. Qwen 2 has some, on
//! queries, keys and values, and trains these.
//!
//! ## Cost
//! Trainable: one number per output channel, about 0.1 % of BERT. No extra compute forward, no
//! weight gradients backward. None after merging.
//!
//! ## Defaults and where they come from
//! All biases; `target_modules` narrows them, for example to `["query", "intermediate.dense"]`,
//! which the paper found to be nearly as good. The learning rate is three times the paper's upper
//! end, from a sweep (`benchmarks/rates`).
//!
//! ## Departures from the paper
//! Models without biases get some. A Llama with them is a model that `transformers` reads
//! (`attention_bias`, `mlp_bias`), so they merge. Hugging Face `peft` has no method of its own for it; the same biases can be read from and
//! written to its LoRA files with `bias = "all"`, beside low-rank factors.
//!
//! ## References
//! - Ben Zaken, Ravfogel, Goldberg: BitFit: Simple Parameter-efficient Fine-tuning for
//!   Transformer-based Masked Language-models, 2021, arXiv 2106.10199.

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Conv, ConvChange, Frozen, Linear, LinearChange,
    MergedLinear, Mode, Norm, NormChange, Parameter, Pass, SiteId, SiteInfo, to_vec,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::{per_linear, values};
use crate::target::{Names, Targets};

const NAME: &str = "bitfit";

/// Registry entry.
pub const METHOD: Method = Method::of::<BitfitConfig>(
    Family::Sparse,
    "Trains the biases of linear layers and norms",
    include_str!("bitfit.rs"),
)
.aliases(&["bias-tuning"])
.default_lr(3e-3);

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BitfitConfig {
    /// Path endings, or one regular expression over the whole path, of layers and norms; those
    /// without a bias are passed over.
    pub target_modules: Names,
    /// Same grammar; wins over the targets.
    pub exclude_modules: Option<Names>,
}

impl Default for BitfitConfig {
    fn default() -> Self {
        Self {
            target_modules: Names::Pattern(".*".into()),
            exclude_modules: None,
        }
    }
}

impl MethodConfig for BitfitConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "BITFIT";

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(Bitfit::new(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        per_linear::from_peft::<BitfitConfig>(NAME, config, json!({}), &[])
    }
}

/// A BitFit adapter.
pub struct Bitfit {
    config: BitfitConfig,
    /// Indexed by site.
    biases: Vec<Option<Parameter>>,
}

impl Bitfit {
    /// Copies the selected biases.
    ///
    /// # Errors
    /// No matching layer or norm.
    pub fn new(config: BitfitConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        // A model without any gets them on its linear layers.
        let none = !context.sites.iter().any(|(_, site)| site.has_bias);
        let trains = |site: &SiteInfo| site.has_bias || (none && site.kind.is_inner_linear());
        let targets = Targets {
            target_modules: config.target_modules.clone(),
            exclude_modules: config.exclude_modules.clone(),
            ..Targets::default()
        };
        let mut biases: Vec<Option<Parameter>> = (0..context.sites.len()).map(|_| None).collect();
        let device = &context.device;
        let bias = |path: &str, values: Vec<f32>| {
            Parameter::new(format!("{path}.bias"), &[values.len()], values, device)
        };
        for id in targets.choose(context.sites, trains)? {
            let info = context.sites.info(id);
            biases[id.index()] = Some(bias(&info.path, vec![0.0; info.d_out]));
        }
        if let Some(backbone) = context.backbone {
            backbone.visit_weights(&mut |part| {
                let (site, value) = match part {
                    Frozen::Linear(l) => (l.site, &l.bias),
                    Frozen::Norm(n) => (n.site, &n.bias),
                    Frozen::Conv(c) => (c.site, &c.bias),
                    Frozen::Embedding(_) | Frozen::Param(_) => return,
                };
                if let (Some(slot), Some(value)) = (biases[site.index()].as_mut(), value) {
                    *slot = bias(&context.sites.info(site).path, to_vec(value.clone()));
                }
            });
        }
        Ok(Self { config, biases })
    }

    fn at(&self, site: SiteId, mode: Mode) -> Option<Tensor<1>> {
        self.biases
            .get(site.index())?
            .as_ref()
            .map(|b| b.get::<1>(mode))
    }
}

struct BitfitPass<'a> {
    adapter: &'a Bitfit,
    mode: Mode,
}

impl Pass for BitfitPass<'_> {
    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        match self.adapter.at(base.site, self.mode) {
            Some(bias) => Linear {
                bias: Some(bias),
                ..base.clone()
            }
            .forward(x),
            None => base.forward(x),
        }
    }

    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        LinearChange::opaque_if(self.adapter.at(base.site, self.mode).is_some())
    }

    fn conv_change(&mut self, base: &Conv) -> ConvChange {
        match self.adapter.at(base.site, self.mode) {
            None => ConvChange::None,
            bias => ConvChange::Parameters(base.weight.clone(), bias),
        }
    }

    fn norm_change(&mut self, base: &Norm) -> NormChange {
        match self.adapter.at(base.site, self.mode) {
            None => NormChange::None,
            bias => NormChange::Parameters(base.weight.clone(), bias),
        }
    }
}

impl Adapter for Bitfit {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        self.biases.iter().flatten().collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.biases.iter_mut().flatten().collect()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(BitfitPass {
            adapter: self,
            mode,
        })
    }

    fn peft_config(&self) -> Map<String, Value> {
        let mut config = values::object(json!(self.config));
        config.insert("peft_type".into(), json!(METHOD.peft_type));
        config
    }

    fn weight_delta(&self, _base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Ok(None)
    }

    fn merged_linear(&self, base: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        let merged = |bias| MergedLinear {
            weight: base.weight.dense(),
            bias: Some(bias),
        };
        Ok(self.at(base.site, Mode::Eval).map(merged))
    }

    fn unmerged_linear(&self, merged: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        if self.at(merged.site, Mode::Eval).is_none() {
            return Ok(None);
        }
        let reason = "it replaced the biases; load the base model".into();
        Err(AdaptError::Unsupported {
            method: NAME,
            action: "be taken out again",
            reason,
        })
    }

    fn merged_norm(&self, base: &Norm) -> Option<(Tensor<1>, Option<Tensor<1>>)> {
        self.at(base.site, Mode::Eval)
            .map(|bias| (base.weight.clone(), Some(bias)))
    }

    fn merged_conv(&self, base: &Conv) -> Option<(Tensor<2>, Option<Tensor<1>>)> {
        self.at(base.site, Mode::Eval)
            .map(|bias| (base.weight.clone(), Some(bias)))
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use frugal_models::ModelConfig;

    fn build(config: Value, settings: Value) -> Result<usize, String> {
        let config = ModelConfig::from_json(config, "test").unwrap();
        let sites = config.sites();
        let context = BuildContext {
            info: &config.info(),
            sites: &sites,
            backbone: None,
            device: Device::flex(),
            seed: 0,
            tokenize: None,
        };
        (METHOD.build)(&values::object(settings), &context)
            .map(|a| a.num_trainable())
            .map_err(|e| e.to_string())
    }

    #[test]
    fn bert_base_has_the_published_share_of_biases() {
        let config = json!({"model_type": "bert", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2});
        // Per block 4 attention layers, 2 feed-forward layers, 2 norms; the norm of the embeddings; the
        // pooler.
        let expected = 12 * (4 * 768 + 3072 + 768 + 2 * 768) + 768 + 768;
        assert_eq!(build(config.clone(), json!({})), Ok(expected));
        // The paper's smaller variant.
        assert_eq!(
            build(
                config,
                json!({"target_modules": ["query", "intermediate.dense"]})
            ),
            Ok(12 * (768 + 3072))
        );
    }

    #[test]
    fn a_model_without_biases_gets_them_on_its_linear_layers() {
        let config = json!({"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64});
        // Per block q, k, v, o, gate, up, down; neither norms nor the head.
        let expected = 2 * (32 + 16 + 16 + 32 + 48 + 48 + 32);
        assert_eq!(build(config, json!({})), Ok(expected));
    }
}
