//! Mamba: blocks of one norm and one selective state space mixer, without attention and without
//! positions.
//!
//! <https://huggingface.co/docs/transformers/model_doc/mamba>

use std::sync::Arc;

use frugal_nn::{Backbone, HeadLayout, ModelError, SiteInfo, SiteKind, SiteTable, UsualTargets};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use crate::activation::Activation;
use crate::architecture::{
    Architecture, Cost, Family, FirstValues, KeyTable, ModelConfig, RecurrenceCost,
};
use crate::blocks::mamba_mixer::{MambaMixer, MixerSizes};
use crate::blocks::mixer_decoder::MixerDecoder;
use crate::blocks::mixer_init::{MixerInit, by_inputs, within};
use crate::blocks::sites::Sites;
use crate::fresh::{Fresh, FreshSizes, Own};
use crate::keys::{self, Size, TokenId};
use crate::weights::WeightLoader;

/// Mamba.
pub static MAMBA: Family = Family {
    model_type: "mamba",
    class: "MambaForCausalLM",
    // Hugging Face has no such class; a folder with a head is read here.
    classifier_class: "MambaForSequenceClassification",
    base_prefix: "backbone.",
    is_encoder: false,
    in_transformers: true,
    head: HeadLayout::Score,
    // Without a choice in peft, and without keys and values: what the mixer reads, and what it gives.
    usual_targets: UsualTargets {
        ia3: &["x_proj", "out_proj"],
        ia3_feedforward: "out_proj",
    },
    read,
    fresh: Some(Fresh {
        about: "selective state spaces, without attention",
        config: fresh,
    }),
    keys: KeyTable {
        honored: keys::names::<MambaConfig>,
        refused: &[],
        without_effect: &[
            // Sums are in single precision here, and there is one way to compute the scan.
            "residual_in_fp32",
            "use_mambapy",
            "use_associative_scan",
        ],
    },
};

/// Keys of `MambaConfig`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct MambaConfig {
    vocab_size: Size,
    hidden_size: Size,
    state_size: Size,
    num_hidden_layers: Size,
    layer_norm_epsilon: f64,
    expand: Size,
    /// Wins over `expand`, from which it follows elsewhere.
    intermediate_size: Option<Size>,
    conv_kernel: Size,
    use_bias: bool,
    use_conv_bias: bool,
    hidden_act: Activation,
    initializer_range: f64,
    time_step_rank: Rank,
    time_step_scale: f64,
    time_step_min: f64,
    time_step_max: f64,
    time_step_init_scheme: StepInit,
    time_step_floor: f64,
    rescale_prenorm_residual: bool,
    tie_word_embeddings: bool,
    pad_token_id: TokenId,
}

impl Default for MambaConfig {
    fn default() -> Self {
        Self {
            vocab_size: Size(50_280),
            hidden_size: Size(768),
            state_size: Size(16),
            num_hidden_layers: Size(32),
            layer_norm_epsilon: 1e-5,
            expand: Size(2),
            intermediate_size: None,
            conv_kernel: Size(4),
            use_bias: false,
            use_conv_bias: true,
            hidden_act: Activation::Silu,
            initializer_range: 0.1,
            time_step_rank: Rank(None),
            time_step_scale: 1.0,
            time_step_min: 0.001,
            time_step_max: 0.1,
            time_step_init_scheme: StepInit::Random,
            time_step_floor: 1e-4,
            rescale_prenorm_residual: false,
            tie_word_embeddings: true,
            pad_token_id: TokenId(Some(0)),
        }
    }
}

/// A width, or `auto`: a sixteenth of the model's, rounded up.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(transparent)]
struct Rank(Option<usize>);

impl<'de> Deserialize<'de> for Rank {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        if value == "auto" {
            return Ok(Self(None));
        }
        match value.as_u64() {
            Some(n) if n > 0 && n < (1 << 31) => Ok(Self(Some(n as usize))),
            _ => Err(serde::de::Error::custom(format!(
                "expected \"auto\" or a positive whole number, found {value}"
            ))),
        }
    }
}

/// How the projection of the steps begins.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StepInit {
    Random,
    Constant,
}

/// What differs between models of this type.
#[derive(Debug)]
struct Mamba {
    sizes: MixerSizes,
    use_bias: bool,
    use_conv_bias: bool,
    init: MixerInit,
    /// Factor on the bound of the steps' projection.
    step_scale: f64,
    step_init: StepInit,
}

fn fresh(sizes: &FreshSizes, own: &Own<'_>) -> Result<Value, ModelError> {
    let expand = own.size("expand", 2)?;
    Ok(json!({
        "hidden_size": sizes.hidden_size, "num_hidden_layers": sizes.num_hidden_layers,
        "state_size": 16, "expand": expand, "intermediate_size": expand * sizes.hidden_size,
        "conv_kernel": 4, "use_bias": false, "use_conv_bias": true, "hidden_act": "silu",
        "layer_norm_epsilon": 1e-5, "initializer_range": 0.1,
        "time_step_rank": sizes.hidden_size.div_ceil(16), "tie_word_embeddings": true,
    }))
}

fn read(raw: &Value, source: &str) -> Result<ModelConfig, ModelError> {
    let required = ["vocab_size", "hidden_size", "num_hidden_layers"];
    let k: MambaConfig = keys::read(raw, source, &required)?;
    let (width, expand) = (k.hidden_size.0, k.expand.0);
    let num_hidden_layers = keys::layers("num_hidden_layers", k.num_hidden_layers, source)?;
    let inner = match k.intermediate_size {
        Some(stated) => stated.0,
        None => expand.saturating_mul(width),
    };
    if inner >= 1 << 31 {
        let reason = format!("{expand} times the width {width} is more than any model has");
        return Err(keys::bad(source, "expand", reason));
    }
    keys::positive("time_step_scale", k.time_step_scale, source)?;
    let init = MixerInit {
        std: k.initializer_range,
        min: k.time_step_min,
        max: k.time_step_max,
        floor: k.time_step_floor,
        residual: match k.rescale_prenorm_residual {
            true => (num_hidden_layers as f64).sqrt(),
            false => 1.0,
        },
    };
    init.check(source)?;
    let sizes = MixerSizes {
        inner,
        state: k.state_size.0,
        taps: k.conv_kernel.0,
        rank: k.time_step_rank.0.unwrap_or(width.div_ceil(16)),
    };
    Ok(ModelConfig {
        family: &MAMBA,
        hidden_size: width,
        intermediate_size: inner,
        num_hidden_layers,
        // There are no heads.
        num_attention_heads: 1,
        num_key_value_heads: 1,
        head_dim: width,
        vocab_size: k.vocab_size.0,
        // There are no positions; the paper goes to this length (figure 5).
        max_position_embeddings: 1 << 20,
        norm_eps: k.layer_norm_epsilon,
        activation: k.hidden_act,
        tie_word_embeddings: k.tie_word_embeddings,
        pad_token_id: k.pad_token_id.0,
        architecture: Arc::new(Mamba {
            sizes,
            use_bias: k.use_bias,
            use_conv_bias: k.use_conv_bias,
            init,
            step_scale: k.time_step_scale,
            step_init: k.time_step_init_scheme,
        }),
        raw: raw.clone(),
        source: source.into(),
    })
}

impl Architecture for Mamba {
    fn arithmetic(&self, _config: &ModelConfig) -> Value {
        json!({
            "state_size": self.sizes.state,
            "conv_kernel": self.sizes.taps,
            "time_step_rank": self.sizes.rank,
            "use_bias": self.use_bias,
            "use_conv_bias": self.use_conv_bias,
        })
    }

    fn sites(&self, c: &ModelConfig) -> Vec<SiteInfo> {
        let MixerSizes {
            inner,
            state,
            taps,
            rank,
        } = self.sizes;
        let (mut sites, d) = (Sites::default(), c.hidden_size);
        sites.token_table("backbone.embeddings".into(), c);
        for i in 0..c.num_hidden_layers {
            let block = format!("backbone.layers.{i}");
            let p = |name: &str| format!("{block}.mixer.{name}");
            sites.norm(format!("{block}.norm"), Some(i), d);
            sites.linear(p("in_proj"), i, [d, 2 * inner], self.use_bias);
            let (conv, bias) = (SiteKind::Conv, self.use_conv_bias);
            sites.add(p("conv1d"), conv, Some(i), [taps, inner], bias);
            sites.linear(p("x_proj"), i, [inner, rank + 2 * state], false);
            sites.linear(p("dt_proj"), i, [rank, inner], true);
            let param = SiteKind::Param;
            sites.add(p("A_log"), param, Some(i), [state, inner], false);
            sites
                .add(p("D"), param, Some(i), [1, inner], false)
                .is_vector = true;
            sites.output(p("out_proj"), i, [inner, d], self.use_bias);
        }
        sites.norm("backbone.norm_f".into(), None, d);
        sites.lm_head(c);
        sites.finish()
    }

    fn cost(&self, config: &ModelConfig) -> Cost {
        Cost {
            cache_width: 0,
            key_value_width: 0,
            recurrence: Some(RecurrenceCost {
                channels: self.sizes.inner,
                projected: self.sizes.rank + 2 * self.sizes.state,
                state: self.sizes.state,
                feed_forward: 0,
            }),
            ..Cost::of_decoder(config)
        }
    }

    fn is_attention_only(&self) -> bool {
        true
    }

    /// As `MambaPreTrainedModel._init_weights` has it.
    fn first_values(
        &self,
        _config: &ModelConfig,
        site: &SiteInfo,
        tensor: FirstValues,
        seed: u64,
    ) -> Option<Vec<f32>> {
        let len = site.d_in * site.d_out;
        match (site.name(), tensor) {
            ("A_log", FirstValues::Weight) => {
                let row = |n: usize| ((n % site.d_in + 1) as f32).ln();
                Some((0..len).map(row).collect())
            }
            ("dt_proj", FirstValues::Weight) => {
                let bound = by_inputs(site) * self.step_scale;
                Some(match self.step_init {
                    StepInit::Constant => vec![bound as f32; len],
                    StepInit::Random => within(bound, site, seed),
                })
            }
            ("dt_proj", FirstValues::Bias) => {
                let name = format!("{}.bias", site.path);
                Some(self.init.steps(&name, site.d_out, seed))
            }
            (_, FirstValues::Weight) => self.init.weight(site, seed),
            (_, FirstValues::Bias) => None,
        }
    }

    fn build(
        &self,
        config: &ModelConfig,
        sites: Arc<SiteTable>,
        loader: &mut WeightLoader<'_>,
    ) -> Result<Arc<dyn Backbone>, ModelError> {
        MixerDecoder::load(config, sites, loader, |loader, path| {
            let mixer = MambaMixer::load(loader, path, self.sizes, config.activation)?;
            Ok(Box::new(mixer))
        })
    }
}
