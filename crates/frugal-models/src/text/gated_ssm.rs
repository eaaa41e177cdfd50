//! Gated SSM: blocks of one norm and one gated linear recurrence, which is state space model and
//! feed-forward layer in one, without attention and without positions.
//!
//! Blouir et al., *Birdie: Advancing State Space Models with Reward-Driven Objectives and Curricula*,
//! EMNLP 2024, arXiv 2411.01030, section 3.1. `transformers` has no such class: folders are a type of
//! our own. Of a normalised input x `[tokens, hidden_size]`, with N = `state_size` channels,
//!
//! `f = sigmoid(W_f x)`, `i = sigmoid(W_i x)`, `z = W_z x`, `o = act(W_o x)`,
//! `h[t] = f[t] ⊙ h[t - 1] + i[t] ⊙ z[t]`, `y = W_out (o ⊙ h)`.
//!
//! There are no biases unless `use_bias` says so, on which the paper says nothing: a block has 5
//! `hidden_size` `state_size` parameters and the norm's. With `reverse_size` above 0 so many channels of every second block run
//! backwards over what comes before the first `gen_token_id`; numbers of parameters and operations stay.
//!
//! Tensors: `backbone.embeddings.weight`, `backbone.layers.N.norm.weight`,
//! `backbone.layers.N.mixer.{f_proj,i_proj,z_proj,o_proj}.weight` `[state_size, hidden_size]`,
//! `backbone.layers.N.mixer.out_proj.weight` `[hidden_size, state_size]`, `backbone.norm_f.weight`.

use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::activation::sigmoid;
use frugal_nn::state::DecodeState;
use frugal_nn::{
    Backbone, BlockState, Frozen, HeadLayout, Linear, ModelError, Pass, SequenceLayout, SiteInfo,
    SiteTable, UsualTargets,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::activation::Activation;
use crate::architecture::{Architecture, Cost, Family, KeyTable, ModelConfig, RecurrenceCost};
use crate::blocks::checks::activate;
use crate::blocks::mixer_decoder::{Mixer, MixerDecoder};
use crate::blocks::prefix::{Directions, TwoWays, remembered};
use crate::blocks::sites::Sites;
use crate::fresh::{Fresh, FreshSizes, Own};
use crate::keys::{self, Size, TokenId};
use crate::weights::WeightLoader;

/// Gated SSM.
pub static GATED_SSM: Family = Family {
    model_type: "gated_ssm",
    class: "GatedSsmForCausalLM",
    classifier_class: "GatedSsmForSequenceClassification",
    base_prefix: "backbone.",
    is_encoder: false,
    in_transformers: false,
    head: HeadLayout::Score,
    // Without a choice in peft: what goes into the state, and what a block gives.
    usual_targets: UsualTargets {
        ia3: &["z_proj", "out_proj"],
        ia3_feedforward: "out_proj",
    },
    read,
    fresh: Some(Fresh {
        about: "gated linear recurrences, without attention; may read prefixes in both directions",
        config: fresh,
    }),
    keys: KeyTable {
        honored: keys::names::<GatedSsmConfig>,
        refused: &[],
        without_effect: &[],
    },
};

/// Keys of the configuration; defaults are the paper's.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct GatedSsmConfig {
    vocab_size: Size,
    hidden_size: Size,
    /// Channels of the recurrence.
    state_size: Size,
    num_hidden_layers: Size,
    /// Whether projections have biases.
    use_bias: bool,
    /// Of the output gate.
    hidden_act: Activation,
    rms_norm_eps: f64,
    /// Channels of every second block that run backwards; 0 for a model that reads from left to
    /// right.
    reverse_size: usize,
    /// The token that ends what is read in both directions.
    gen_token_id: TokenId,
    tie_word_embeddings: bool,
    pad_token_id: TokenId,
}

impl Default for GatedSsmConfig {
    fn default() -> Self {
        Self {
            vocab_size: Size(32_000),
            hidden_size: Size(2048),
            state_size: Size(2560),
            num_hidden_layers: Size(48),
            use_bias: false,
            hidden_act: Activation::Gelu,
            rms_norm_eps: 1e-6,
            reverse_size: 0,
            gen_token_id: TokenId(None),
            tie_word_embeddings: true,
            pad_token_id: TokenId(None),
        }
    }
}

/// What differs between models of this type.
#[derive(Debug)]
struct GatedSsm {
    state_size: usize,
    use_bias: bool,
    two_ways: TwoWays,
}

fn fresh(sizes: &FreshSizes, own: &Own<'_>) -> Result<Value, ModelError> {
    let state = own.size("state_size", sizes.intermediate_size)?;
    Ok(json!({
        "hidden_size": sizes.hidden_size, "num_hidden_layers": sizes.num_hidden_layers,
        "state_size": state, "use_bias": false, "hidden_act": "gelu", "rms_norm_eps": 1e-6, "reverse_size": 0,
        "gen_token_id": null, "tie_word_embeddings": true, "initializer_range": 0.02,
    }))
}

fn read(raw: &Value, source: &str) -> Result<ModelConfig, ModelError> {
    let required = [
        "vocab_size",
        "hidden_size",
        "state_size",
        "num_hidden_layers",
    ];
    let k: GatedSsmConfig = keys::read(raw, source, &required)?;
    let (width, state_size, vocab_size) = (k.hidden_size.0, k.state_size.0, k.vocab_size.0);
    let num_hidden_layers = keys::layers("num_hidden_layers", k.num_hidden_layers, source)?;
    let two_ways = TwoWays::read(
        [k.reverse_size, state_size],
        k.gen_token_id,
        vocab_size,
        source,
    )?;
    Ok(ModelConfig {
        family: &GATED_SSM,
        hidden_size: width,
        intermediate_size: state_size,
        num_hidden_layers,
        // There are no heads.
        num_attention_heads: 1,
        num_key_value_heads: 1,
        head_dim: width,
        vocab_size,
        // There are no positions.
        max_position_embeddings: 1 << 20,
        norm_eps: k.rms_norm_eps,
        activation: k.hidden_act,
        tie_word_embeddings: k.tie_word_embeddings,
        pad_token_id: k.pad_token_id.0,
        architecture: Arc::new(GatedSsm {
            state_size,
            use_bias: k.use_bias,
            two_ways,
        }),
        raw: raw.clone(),
        source: source.into(),
    })
}

impl Architecture for GatedSsm {
    fn arithmetic(&self, _config: &ModelConfig) -> Value {
        json!({
            "state_size": self.state_size,
            "use_bias": self.use_bias,
            "reverse_size": self.two_ways.reverse_size,
            "gen_token_id": self.two_ways.prefix_token(),
        })
    }

    fn sites(&self, c: &ModelConfig) -> Vec<SiteInfo> {
        let (mut sites, d, n) = (Sites::default(), c.hidden_size, self.state_size);
        sites.token_table("backbone.embeddings".into(), c);
        for i in 0..c.num_hidden_layers {
            let block = format!("backbone.layers.{i}");
            sites.norm(format!("{block}.norm"), Some(i), d);
            for name in ["f_proj", "i_proj", "z_proj", "o_proj"] {
                sites.linear(format!("{block}.mixer.{name}"), i, [d, n], self.use_bias);
            }
            sites.output(format!("{block}.mixer.out_proj"), i, [n, d], self.use_bias);
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
                channels: self.state_size,
                projected: self.state_size,
                state: 1,
                feed_forward: 0,
            }),
            ..Cost::of_decoder(config)
        }
    }

    fn is_attention_only(&self) -> bool {
        true
    }

    fn build(
        &self,
        config: &ModelConfig,
        sites: Arc<SiteTable>,
        loader: &mut WeightLoader<'_>,
    ) -> Result<Arc<dyn Backbone>, ModelError> {
        let (activation, two_ways) = (config.activation, self.two_ways);
        MixerDecoder::load_two_ways(
            config,
            sites,
            loader,
            Some(two_ways),
            |loader, path, layer| {
                let mut linear = |name: &str| loader.linear(&format!("{path}.{name}"));
                Ok(Box::new(GatedSsmMixer {
                    f_proj: linear("f_proj")?,
                    i_proj: linear("i_proj")?,
                    z_proj: linear("z_proj")?,
                    o_proj: linear("o_proj")?,
                    out_proj: linear("out_proj")?,
                    activation,
                    reverse: two_ways.of_block(layer),
                    state_size: self.state_size,
                }))
            },
        )
    }
}

/// The recurrence of one block.
struct GatedSsmMixer {
    f_proj: Linear,
    i_proj: Linear,
    z_proj: Linear,
    o_proj: Linear,
    out_proj: Linear,
    activation: Activation,
    state_size: usize,
    /// Channels that run backwards.
    reverse: usize,
}

impl GatedSsmMixer {
    fn mix(
        &self,
        layer: usize,
        directions: &Directions<'_>,
        layout: &SequenceLayout,
        x: Tensor<2>,
        pass: &mut dyn Pass,
        cache: Option<&mut DecodeState>,
    ) -> Tensor<2> {
        let f = sigmoid(pass.linear(&self.f_proj, x.clone()));
        let i = sigmoid(pass.linear(&self.i_proj, x.clone()));
        let z = pass.linear(&self.z_proj, x.clone());
        let o = match self.activation {
            Activation::Gelu => frugal_kernels::gelu(pass.linear(&self.o_proj, x)),
            Activation::Silu => frugal_kernels::silu(pass.linear(&self.o_proj, x)),
            other => activate(other, pass.linear(&self.o_proj, x)),
        };
        let size = [1, self.state_size - self.reverse];
        let initial = cache
            .as_deref()
            .and_then(|cache| remembered(layer, layout, 0, size, cache, &f.device()));
        let (h, last) = directions.run([f, i * z], initial);
        if let Some(cache) = cache {
            for sequence in 0..layout.sequences() {
                let state = last.clone().narrow(0, sequence, 1);
                cache.set_recurrent(layer, sequence, vec![state]);
            }
        }
        pass.linear(&self.out_proj, o * h)
    }
}

impl Mixer for GatedSsmMixer {
    fn forward(
        &self,
        layer: usize,
        layout: &SequenceLayout,
        x: Tensor<2>,
        pass: &mut dyn Pass,
        cache: Option<&mut DecodeState>,
    ) -> Tensor<2> {
        let directions = Directions::new(layout, self.reverse, None);
        self.mix(layer, &directions, layout, x, pass, cache)
    }

    fn forward_controlled(
        &self,
        layer: usize,
        state: &BlockState,
        x: Tensor<2>,
        pass: &mut dyn Pass,
        cache: Option<&mut DecodeState>,
    ) -> Tensor<2> {
        let control = state.attention.as_deref();
        let directions = Directions::new(&state.layout, self.reverse, control);
        self.mix(layer, &directions, &state.layout, x, pass, cache)
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        [
            &self.f_proj,
            &self.i_proj,
            &self.z_proj,
            &self.o_proj,
            &self.out_proj,
        ]
        .into_iter()
        .for_each(|linear| visit(Frozen::Linear(linear)));
    }
}
