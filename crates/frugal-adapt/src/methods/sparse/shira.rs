//! # SHiRA: sparse high-rank adapter
//!
//! ## What it does
//! Trains a few of each weight's own elements, chosen at random once, and leaves the rest frozen.
//!
//! ## Update rule
//! `ΔW[i, j] = w[k]` at the `r (d_in + d_out)` chosen places `(i, j)`, zero elsewhere.
//!
//! ## When to use, when not
//! Where adapters are switched often on a deployed model: merging overwrites one or two percent of
//! the weights. Several adapters overlap little. At equal size LoRA trains faster.
//!
//! ## Cost
//! Trainable: `r (d_in + d_out)` per layer, as LoRA; files hold two whole numbers per value besides.
//! Extra compute: forming `ΔW` per layer and step, and a gradient of the whole weight backward. None
//! after merging.
//!
//! ## Defaults and where they come from
//! `r = 32` and a random support: Hugging Face `peft`. The values start at zero.
//!
//! ## Departures from the paper
//! Of the paper's supports (random, magnitude, gradient, SNIP, strided) the random one is offered,
//! as in `peft`. With `random_seed` the support is the one that PyTorch draws from that seed;
//! without, it follows from the run's seed.
//!
//! ## References
//! - Bhardwaj, Pandey, Priyadarshi, Ganapathy, Kadambi, Esteves, Borse, Whatmough, Garrepalli, van
//!   Baalen, Teague, Nagel: Sparse High Rank Adapters, 2024, arXiv 2406.13175.

use burn::prelude::*;
use burn::tensor::IndexingUpdateOp;
use frugal_nn::{AdaptError, Adapter, BuildContext, Parameter, named_rng, standard_normal};
use rand::RngCore;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::per_linear::{self, LinearAdapter, LinearSite, PerLinear, bad};
use crate::support::torch_random::TorchGenerator;
use crate::target::{Names, Targets};

const NAME: &str = "shira";

/// Registry entry.
pub const METHOD: Method = Method::of::<ShiraConfig>(
    Family::Sparse,
    "A random few of each weight's own elements",
    include_str!("shira.rs"),
)
.aliases(&["sparse-high-rank"])
.default_lr(2e-3);

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShiraConfig {
    /// As many values are trained as LoRA has at this rank.
    pub r: usize,
    /// Seed of the support; that of the run if not given.
    pub random_seed: Option<u64>,
    /// Start at zero; otherwise at random values, for tests.
    pub init_weights: bool,
    /// Path endings, one regular expression over the whole path, or `all-linear`.
    pub target_modules: Names,
}

impl Default for ShiraConfig {
    fn default() -> Self {
        Self {
            r: 32,
            random_seed: None,
            init_weights: true,
            target_modules: Targets::default().target_modules,
        }
    }
}

impl MethodConfig for ShiraConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "SHIRA";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.r == 0 {
            bad(NAME, "r", "must be at least 1")
        } else {
            Ok(())
        }
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        per_linear::from_peft::<ShiraConfig>(
            NAME,
            config,
            json!({}),
            &[("mask_type", &[json!("random")])],
        )
    }
}

fn build(
    config: ShiraConfig,
    context: &BuildContext<'_>,
) -> Result<PerLinear<Support>, AdaptError> {
    config.validate()?;
    let targets = Targets {
        target_modules: config.target_modules.clone(),
        ..Targets::default()
    };
    let constants = json!({"mask_type": "random", "fan_in_fan_out": false});
    PerLinear::new(&METHOD, &targets, context, &config, constants, |_, info| {
        let places = info.d_in * info.d_out;
        let count = config.r.saturating_mul(info.d_in + info.d_out);
        if count > places {
            let reason = format!(
                "{} asks for {count} of the {places} elements of `{}`: use a smaller one",
                config.r, info.path
            );
            return bad(NAME, "r", reason);
        }
        let mut rng = named_rng(context.seed, &info.path);
        let mut generator = TorchGenerator::new(
            config
                .random_seed
                .unwrap_or_else(|| u64::from(rng.next_u32())),
        );
        let mut chosen = generator.permutation(places, count);
        chosen.sort_unstable();
        let (rows, cols) = (
            chosen.iter().map(|i| (i / info.d_in) as f32),
            chosen.iter().map(|i| (i % info.d_in) as f32),
        );
        let values = if config.init_weights {
            vec![0.0; count]
        } else {
            (0..count).map(|_| standard_normal(&mut rng)).collect()
        };
        let (path, device) = (&info.path, &context.device);
        Ok(Support {
            weight: Parameter::new(format!("{path}.shira_weight"), &[count], values, device),
            indices: Parameter::frozen(
                format!("{path}.shira_indices"),
                &[2, count],
                rows.chain(cols).collect(),
                device,
            )
            .as_whole_numbers()
            .indices_below(&[info.d_out, info.d_in]),
        })
    })
}

/// The trained elements of one weight.
struct Support {
    /// `[count]`.
    weight: Parameter,
    /// Rows and columns, `[2, count]`.
    indices: Parameter,
}

impl LinearAdapter for Support {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.weight, &self.indices]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.weight, &mut self.indices]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        let ([d_out, d_in], weight) = (at.base.weight.dims(), self.weight.get::<1>(at.mode));
        let indices = self.indices.to_vec();
        let (rows, cols) = indices.split_at(self.weight.len());
        let flat: Vec<i64> = rows
            .iter()
            .zip(cols)
            .map(|(&i, &j)| (i as usize * d_in + j as usize) as i64)
            .collect();
        let flat = Tensor::<1, Int>::from_data(
            TensorData::from(flat.as_slice()),
            &weight.device().inner(),
        );
        let zeros = Tensor::<1>::zeros([d_out * d_in], &weight.device());
        zeros
            .select_assign(0, flat, weight, IndexingUpdateOp::Add)
            .reshape([d_out, d_in])
    }
}

#[cfg(test)]
mod tests {
    use crate::support::values;

    use super::*;
    use frugal_models::ModelConfig;

    #[test]
    fn as_many_values_as_lora_has() {
        let config = json!({"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64});
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
        let build = |r: usize| {
            (METHOD.build)(
                &values::object(json!({"r": r, "target_modules": ["q_proj", "v_proj"]})),
                &context,
            )
        };
        assert_eq!(build(3).unwrap().num_trainable(), 2 * 3 * (64 + 48));
        let message = build(11).err().unwrap().to_string();
        assert!(
            message.contains("528 of the 512 elements of `model.layers.0.self_attn.v_proj`"),
            "{message}"
        );
    }
}
