//! Mamba-2: as Mamba, with heads that share a decay and a step, and one projection in front.
//!
//! <https://huggingface.co/docs/transformers/model_doc/mamba2>

use std::sync::Arc;

use frugal_nn::{Backbone, HeadLayout, ModelError, SiteInfo, SiteKind, SiteTable, UsualTargets};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::activation::Activation;
use crate::architecture::{
    Architecture, Cost, Family, FirstValues, KeyTable, ModelConfig, RecurrenceCost,
};
use crate::blocks::mamba2_mixer::{Mamba2Mixer, Mixer2Sizes};
use crate::blocks::mixer_decoder::MixerDecoder;
use crate::blocks::mixer_init::MixerInit;
use crate::blocks::sites::Sites;
use crate::fresh::{Fresh, FreshSizes, Own};
use crate::keys::{self, Size, TokenId, bad};
use crate::weights::WeightLoader;

/// Mamba-2.
pub static MAMBA2: Family = Family {
    model_type: "mamba2",
    class: "Mamba2ForCausalLM",
    // Hugging Face has no such class; a folder with a head is read here.
    classifier_class: "Mamba2ForSequenceClassification",
    base_prefix: "backbone.",
    is_encoder: false,
    in_transformers: true,
    head: HeadLayout::Score,
    // Without a choice in peft, and without keys and values: what the mixer reads, and what it gives.
    usual_targets: UsualTargets {
        ia3: &["in_proj", "out_proj"],
        ia3_feedforward: "out_proj",
    },
    read,
    fresh: Some(Fresh {
        about: "state spaces whose heads share a decay",
        config: fresh,
    }),
    keys: KeyTable {
        honored: keys::names::<Mamba2Config>,
        refused: &[],
        without_effect: &[
            // Sums are in single precision here, the size of chunks changes no number, and nothing
            // is projected from a narrow vector of steps.
            "residual_in_fp32",
            "chunk_size",
            "time_step_rank",
        ],
    },
};

/// Keys of `Mamba2Config`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct Mamba2Config {
    vocab_size: Size,
    hidden_size: Size,
    state_size: Size,
    num_heads: Size,
    head_dim: Size,
    n_groups: Size,
    num_hidden_layers: Size,
    layer_norm_epsilon: f64,
    expand: Size,
    conv_kernel: Size,
    use_bias: bool,
    use_conv_bias: bool,
    hidden_act: Activation,
    initializer_range: f64,
    time_step_min: f64,
    time_step_max: f64,
    time_step_floor: f64,
    time_step_limit: Value,
    rescale_prenorm_residual: bool,
    tie_word_embeddings: bool,
    pad_token_id: TokenId,
}

impl Default for Mamba2Config {
    fn default() -> Self {
        Self {
            vocab_size: Size(32_768),
            hidden_size: Size(4096),
            state_size: Size(128),
            num_heads: Size(128),
            head_dim: Size(64),
            n_groups: Size(8),
            num_hidden_layers: Size(64),
            layer_norm_epsilon: 1e-5,
            expand: Size(2),
            conv_kernel: Size(4),
            use_bias: false,
            use_conv_bias: true,
            hidden_act: Activation::Silu,
            initializer_range: 0.1,
            time_step_min: 0.001,
            time_step_max: 0.1,
            time_step_floor: 1e-4,
            time_step_limit: Value::Null,
            rescale_prenorm_residual: false,
            tie_word_embeddings: false,
            pad_token_id: TokenId(Some(1)),
        }
    }
}

/// What differs between models of this type.
#[derive(Debug)]
struct Mamba2 {
    sizes: Mixer2Sizes,
    use_bias: bool,
    use_conv_bias: bool,
    init: MixerInit,
}

fn fresh(sizes: &FreshSizes, own: &Own<'_>) -> Result<Value, ModelError> {
    let expand = own.size("expand", 2)?;
    let channels = expand * sizes.hidden_size;
    // 64 as in the configuration class, less where that does not divide the channels.
    let usual = [64, 32, 16, 8, 4, 2]
        .into_iter()
        .find(|width| channels.is_multiple_of(*width));
    let head_dim = own.size("head_dim", usual.unwrap_or(1))?;
    Ok(json!({
        "hidden_size": sizes.hidden_size, "num_hidden_layers": sizes.num_hidden_layers,
        "state_size": 128, "expand": expand, "head_dim": head_dim, "num_heads": channels / head_dim,
        "n_groups": 1, "conv_kernel": 4, "use_bias": false, "use_conv_bias": true,
        "hidden_act": "silu", "layer_norm_epsilon": 1e-5, "initializer_range": 0.1,
        "tie_word_embeddings": true,
    }))
}

fn read(raw: &Value, source: &str) -> Result<ModelConfig, ModelError> {
    let required = ["vocab_size", "hidden_size", "num_hidden_layers"];
    let k: Mamba2Config = keys::read(raw, source, &required)?;
    let (width, layers) = (k.hidden_size.0, k.num_hidden_layers);
    let num_hidden_layers = keys::layers("num_hidden_layers", layers, source)?;
    let sizes = Mixer2Sizes {
        heads: k.num_heads.0,
        head_dim: k.head_dim.0,
        groups: k.n_groups.0,
        state: k.state_size.0,
        taps: k.conv_kernel.0,
    };
    let (stated, inner) = (
        k.expand.0.saturating_mul(width),
        sizes.heads.saturating_mul(sizes.head_dim),
    );
    if stated != inner || inner >= 1 << 31 {
        let reason = format!(
            "{} heads of {} are {inner} channels, `expand` times `hidden_size` are {stated}",
            sizes.heads, sizes.head_dim
        );
        return Err(bad(source, "num_heads", reason));
    }
    if !sizes.heads.is_multiple_of(sizes.groups) {
        let reason = format!(
            "{} does not divide the {} of `num_heads`",
            sizes.groups, sizes.heads
        );
        return Err(bad(source, "n_groups", reason));
    }
    if sizes.groups.saturating_mul(sizes.state) >= 1 << 30 {
        let reason = format!(
            "{} for each of {} groups are more than any model has",
            sizes.state, sizes.groups
        );
        return Err(bad(source, "state_size", reason));
    }
    if !is_unlimited(&k.time_step_limit) {
        let reason = format!(
            "{} is not supported, only steps from 0 to infinity: the reference applies it to whole texts and not token by token",
            k.time_step_limit
        );
        return Err(bad(source, "time_step_limit", reason));
    }
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
    Ok(ModelConfig {
        family: &MAMBA2,
        hidden_size: width,
        intermediate_size: inner,
        num_hidden_layers,
        // There are no heads that attend.
        num_attention_heads: 1,
        num_key_value_heads: 1,
        head_dim: width,
        vocab_size: k.vocab_size.0,
        // There are no positions; no paper goes beyond this length.
        max_position_embeddings: 1 << 20,
        norm_eps: k.layer_norm_epsilon,
        activation: k.hidden_act,
        tie_word_embeddings: k.tie_word_embeddings,
        pad_token_id: k.pad_token_id.0,
        architecture: Arc::new(Mamba2 {
            sizes,
            use_bias: k.use_bias,
            use_conv_bias: k.use_conv_bias,
            init,
        }),
        raw: without_limit(raw),
        source: source.into(),
    })
}

/// The file without the limit of the steps, which is none and which versions of the reference spell
/// in ways that others do not read.
fn without_limit(raw: &Value) -> Value {
    let mut raw = raw.clone();
    if let Some(map) = raw.as_object_mut() {
        map.remove("time_step_limit");
    }
    raw
}

/// Whether steps may be anything from 0 up; transformers 5 writes infinity as an object.
fn is_unlimited(limit: &Value) -> bool {
    let Some(pair) = limit.as_array() else {
        return limit.is_null();
    };
    let infinite = |value: &Value| {
        let text = value.get("__float__").unwrap_or(value);
        text == "Infinity"
    };
    matches!(pair.as_slice(), [low, high] if low.as_f64() == Some(0.0) && infinite(high))
}

impl Architecture for Mamba2 {
    fn arithmetic(&self, _config: &ModelConfig) -> Value {
        json!({
            "state_size": self.sizes.state,
            "num_heads": self.sizes.heads,
            "n_groups": self.sizes.groups,
            "conv_kernel": self.sizes.taps,
            "use_bias": self.use_bias,
            "use_conv_bias": self.use_conv_bias,
        })
    }

    fn sites(&self, c: &ModelConfig) -> Vec<SiteInfo> {
        let (mut sites, d, sizes) = (Sites::default(), c.hidden_size, self.sizes);
        let (inner, convolved) = (sizes.inner(), sizes.convolved());
        sites.token_table("backbone.embeddings".into(), c);
        for i in 0..c.num_hidden_layers {
            let block = format!("backbone.layers.{i}");
            let p = |name: &str| format!("{block}.mixer.{name}");
            sites.norm(format!("{block}.norm"), Some(i), d);
            let projected = inner + convolved + sizes.heads;
            sites.linear(p("in_proj"), i, [d, projected], self.use_bias);
            let (conv, bias) = (SiteKind::Conv, self.use_conv_bias);
            sites.add(p("conv1d"), conv, Some(i), [sizes.taps, convolved], bias);
            for name in ["dt_bias", "A_log", "D"] {
                let size = [1, sizes.heads];
                sites
                    .add(p(name), SiteKind::Param, Some(i), size, false)
                    .is_vector = true;
            }
            sites.norm(p("norm"), Some(i), inner);
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
                channels: self.sizes.inner(),
                projected: 2 * self.sizes.groups * self.sizes.state,
                state: self.sizes.state,
                feed_forward: 0,
            }),
            ..Cost::of_decoder(config)
        }
    }

    fn is_attention_only(&self) -> bool {
        true
    }

    /// As `Mamba2PreTrainedModel._init_weights` has it.
    fn first_values(
        &self,
        _config: &ModelConfig,
        site: &SiteInfo,
        tensor: FirstValues,
        seed: u64,
    ) -> Option<Vec<f32>> {
        match (site.name(), tensor) {
            ("A_log", FirstValues::Weight) => {
                Some((1..=site.d_out).map(|n| (n as f32).ln()).collect())
            }
            ("dt_bias", FirstValues::Weight) => {
                Some(self.init.steps(&site.weight_name(), site.d_out, seed))
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
            let (activation, eps) = (config.activation, config.norm_eps);
            let mixer = Mamba2Mixer::load(loader, path, self.sizes, activation, eps)?;
            Ok(Box::new(mixer))
        })
    }
}
