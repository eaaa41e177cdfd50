//! # UniPELT: LoRA, a prefix and adapters, each behind a gate
//!
//! ## What it does
//! Trains three methods side by side and lets each block decide from its input how much of each to
//! use.
//!
//! ## Update rule
//! With gates `g = σ(x w_g + b_g)`: query and value layers add `g · s · x Aᵀ Bᵀ`; the prefix of a
//! block enters attention as `[g P_K; K]` and `[g P_V; V]`; what the feed-forward adds to the
//! residual stream becomes `h + g · (f(h W_dᵀ + b_d) W_uᵀ + b_u)`. In encoders a gate is the mean
//! over the tokens of its sequence; in decoders a token has its own, and the prefix that of the
//! sequence's first token.
//!
//! ## When to use, when not
//! When it is unclear which method suits a task with few examples and size matters little. It
//! cannot be merged; where one of the three is known to work, use that.
//!
//! ## Cost
//! Trainable: those of the three methods, and `d + 1` per gate. Extra compute: those of the three
//! methods, also after training.
//!
//! ## Defaults and where they come from
//! LoRA of rank 8 and scale 2 on query and value, 10 prefix positions, a bottleneck of 48 with
//! ReLU: the paper's settings for BERT-base, with one gate per LoRA layer and per block for the
//! others.
//!
//! ## Departures from the paper
//! The paper's gates see the whole sequence, which in a decoder would show every token those after
//! it; hence the rule above. The network behind the feed-forward reads that half's output rather
//! than the normed sum. A closed gate makes the prefix zero, as in the released code, but does not
//! take its positions out of the softmax. Gates start near a half. The prefix starts from the
//! keys and values of a text, as in `prefix-tuning`; `init_text = ""` starts from random keys and
//! zero values, which add nothing but take their share of the attention.
//! BERT's pooler sees one token of a sequence, whose gate is its own.
//!
//! ## References
//! - Mao, Mathias, Hou, Almahairi, Ma, Han, Yih, Khabsa: UniPELT: A Unified Framework for
//!   Parameter-Efficient Language Model Tuning, 2021, arXiv 2110.07577.

use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::activation::sigmoid;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, KeyValue, Linear, LinearChange, Mode, Parameter, Pass, Rows,
    SequenceLayout, SiteId, SiteKind, SubLayer, SubLayerIo, mean_pool, named_rng, select_rows,
};
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::method::{Family, Method, MethodConfig};
use crate::methods::prompt::prefix_tuning::{Prefix, PrefixTuningConfig, Start};
use crate::settings::Settings;
use crate::support::bottleneck::{Bottleneck, NonLinearity, PerSubLayer, block_path, not_linear};
use crate::support::dense::Dense;
use crate::support::own_files;
use crate::support::text_start::DEFAULT_TEXT;
use crate::target::{Names, Targets};

const NAME: &str = "unipelt";

/// Registry entry.
pub const METHOD: Method = Method::of::<UniPeltConfig>(
    Family::Hybrid,
    "LoRA, a prefix and adapters, each behind a gate",
    include_str!("unipelt.rs"),
)
.aliases(&["uni-pelt"])
.without_merge()
.without_identity()
.without_mixed_batch();

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UniPeltConfig {
    /// Rank of LoRA.
    pub r: usize,
    /// Scale numerator of LoRA.
    pub lora_alpha: f64,
    /// Maps of LoRA; by default query and value, or what holds both.
    pub target_modules: Option<Names>,
    /// Positions of the prefix.
    pub num_virtual_tokens: usize,
    /// Width of the networks behind the feed-forward.
    pub bottleneck_dim: usize,
    /// What stands between their layers.
    pub non_linearity: NonLinearity,
    /// Text whose keys and values the prefix starts from; empty for random keys and zero values.
    pub init_text: String,
}

impl Default for UniPeltConfig {
    fn default() -> Self {
        Self {
            r: 8,
            lora_alpha: 16.0,
            target_modules: None,
            num_virtual_tokens: 10,
            bottleneck_dim: 48,
            non_linearity: NonLinearity::Relu,
            init_text: DEFAULT_TEXT.into(),
        }
    }
}

impl MethodConfig for UniPeltConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "UNIPELT";

    fn validate(&self) -> Result<(), AdaptError> {
        let sizes = [
            ("r", self.r),
            ("num_virtual_tokens", self.num_virtual_tokens),
            ("bottleneck_dim", self.bottleneck_dim),
        ];
        for (field, value) in sizes {
            if value == 0 {
                return Err(AdaptError::Config {
                    method: NAME,
                    field,
                    reason: "must be at least 1".into(),
                });
            }
        }
        if !(self.lora_alpha > 0.0 && self.lora_alpha.is_finite()) {
            return Err(AdaptError::Config {
                method: NAME,
                field: "lora_alpha",
                reason: "must be a positive number".into(),
            });
        }
        Ok(())
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(UniPelt::new(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        let mut settings = own_files::from_file::<Self>(config);
        // The values come from the file.
        settings.insert("init_text".into(), json!(""));
        Ok(settings)
    }
}

/// A low-rank change with a gate.
#[derive(Clone)]
struct GatedPair {
    /// `[r, d_in]`.
    a: Parameter,
    /// `[d_out, r]`.
    b: Parameter,
    gate: Dense,
}

impl GatedPair {
    fn new(
        config: &UniPeltConfig,
        context: &BuildContext<'_>,
        id: SiteId,
    ) -> Result<Self, AdaptError> {
        let info = context.sites.info(id);
        let (path, device, r) = (&info.path, &context.device, config.r);
        if info.kind == SiteKind::Embedding {
            let reason = format!("`{path}` is a table of rows, not a linear layer");
            return Err(AdaptError::Config {
                method: NAME,
                field: "target_modules",
                reason,
            });
        }
        let bound = 1.0 / (info.d_in as f32).sqrt();
        let mut rng = named_rng(context.seed, path);
        let a = (0..r * info.d_in)
            .map(|_| rng.random_range(-bound..bound))
            .collect();
        Ok(Self {
            a: Parameter::new(format!("{path}.lora_A.weight"), &[r, info.d_in], a, device),
            b: Parameter::new(
                format!("{path}.lora_B.weight"),
                &[info.d_out, r],
                vec![0.0; info.d_out * r],
                device,
            ),
            gate: Dense::uniform(&format!("{path}.gate"), info.d_in, 1, context.seed, device),
        })
    }
}

/// A UniPELT adapter.
pub struct UniPelt {
    config: UniPeltConfig,
    /// Indexed by site.
    pairs: Vec<Option<GatedPair>>,
    prefix: Prefix,
    /// By block.
    prefix_gates: Vec<Dense>,
    networks: PerSubLayer<(Bottleneck, Dense)>,
    causal: bool,
}

impl UniPelt {
    /// Builds the three methods and their gates.
    ///
    /// # Errors
    /// Bad settings, no matching layer.
    pub fn new(config: UniPeltConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        config.validate()?;
        let (d, count, device) = (
            context.info.hidden_size,
            context.info.num_hidden_layers,
            &context.device,
        );
        let gate = |name: &str| Dense::uniform(name, d, 1, context.seed, device);
        let network = |name: &str| {
            (
                Bottleneck::new(name, config.bottleneck_dim, config.non_linearity, context),
                gate(&format!("{name}.gate")),
            )
        };
        let prefix = PrefixTuningConfig {
            num_virtual_tokens: config.num_virtual_tokens,
            init_text: config.init_text.clone(),
            ..PrefixTuningConfig::default()
        };
        // Before the layers that LoRA changes: these say what a model lacks.
        let prefix = Prefix::new(NAME, &prefix, Start::ZeroValues, context)?;
        let networks = PerSubLayer::new(NAME, None, &[SubLayer::Mlp], context, network)?;
        // Those of several architectures.
        let usual = Names::List(
            [
                "q_proj",
                "v_proj",
                "query",
                "value",
                "c_attn",
                "query.value_param_tokens",
                "value.value_param_tokens",
            ]
            .map(str::to_owned)
            .to_vec(),
        );
        let target_modules = config
            .target_modules
            .clone()
            .or_else(|| usual.of_model(context.sites))
            .unwrap_or(usual);
        let targets = Targets {
            target_modules,
            ..Targets::default()
        };
        let mut pairs: Vec<Option<GatedPair>> = (0..context.sites.len()).map(|_| None).collect();
        for id in targets.select(context.sites)? {
            pairs[id.index()] = Some(GatedPair::new(&config, context, id)?);
        }
        Ok(Self {
            pairs,
            prefix,
            prefix_gates: (0..count)
                .map(|layer| gate(&format!("{}.prefix_gate", block_path(context.sites, layer))))
                .collect(),
            networks,
            causal: !context.info.is_encoder,
            config,
        })
    }

    fn at(&self, site: SiteId) -> Option<&GatedPair> {
        self.pairs.get(site.index())?.as_ref()
    }
}

struct UniPeltPass<'a> {
    adapter: &'a UniPelt,
    mode: Mode,
    table: Tensor<2>,
    cu_seqlens: Arc<[usize]>,
    /// Input of the attention that runs.
    attention_input: Option<Tensor<2>>,
}

impl UniPeltPass<'_> {
    /// The gate of every row, `[rows, 1]`: of each token by itself (decoders), the mean of its
    /// sequence (encoders).
    fn gates(&self, gate: &Dense, x: Tensor<2>, rows: Rows) -> Tensor<2> {
        let own = sigmoid(gate.forward(x, self.mode));
        if self.adapter.causal || rows != Rows::Tokens {
            return own;
        }
        let of_token: Vec<usize> = self
            .cu_seqlens
            .windows(2)
            .enumerate()
            .flat_map(|(s, w)| std::iter::repeat_n(s, w[1] - w[0]))
            .collect();
        select_rows(mean_pool(own, &self.cu_seqlens), &of_token)
    }

    /// The gate of every sequence's prefix, `[sequences, 1]`.
    fn sequence_gates(&self, gate: &Dense, x: Tensor<2>) -> Tensor<2> {
        if self.adapter.causal {
            let first = &self.cu_seqlens[..self.cu_seqlens.len() - 1];
            return sigmoid(gate.forward(select_rows(x, first), self.mode));
        }
        mean_pool(sigmoid(gate.forward(x, self.mode)), &self.cu_seqlens)
    }
}

impl Pass for UniPeltPass<'_> {
    fn embed(&mut self, hidden_states: Tensor<2>, layout: &mut SequenceLayout) -> Tensor<2> {
        self.cu_seqlens = layout.cu_seqlens.clone();
        hidden_states
    }

    /// The gates of a sequence are means over its tokens.
    fn needs_token_rows(&self) -> bool {
        true
    }

    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        self.linear_rows(base, x, Rows::Tokens)
    }

    fn linear_rows(&mut self, base: &Linear, x: Tensor<2>, rows: Rows) -> Tensor<2> {
        let adapter = self.adapter;
        let Some(pair) = adapter.at(base.site) else {
            return base.forward(x);
        };
        let gate = self.gates(&pair.gate, x.clone(), rows);
        let scale = adapter.config.lora_alpha / adapter.config.r as f64;
        let low = frugal_kernels::linear(x.clone(), pair.a.get::<2>(self.mode), None);
        base.forward(x)
            + frugal_kernels::linear(low, pair.b.get::<2>(self.mode), None) * gate * scale
    }

    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        LinearChange::opaque_if(self.adapter.at(base.site).is_some())
    }

    fn before_sub_layer(&mut self, _layer: usize, kind: SubLayer, input: &Tensor<2>) {
        if kind == SubLayer::Attention {
            self.attention_input = Some(input.clone());
        }
    }

    fn key_value(&mut self, layer: usize) -> Option<KeyValue> {
        let input = self.attention_input.take()?;
        let gates = self.sequence_gates(&self.adapter.prefix_gates[layer], input);
        let KeyValue { key, value } = self.adapter.prefix.key_value(&self.table, layer);
        let sequences = gates.dims()[0];
        let gated = |rows: Tensor<2>| {
            Tensor::cat(
                (0..sequences)
                    .map(|s| rows.clone() * gates.clone().slice(s..s + 1))
                    .collect(),
                0,
            )
        };
        Some(KeyValue {
            key: gated(key),
            value: gated(value),
        })
    }

    fn prefix_length(&self) -> usize {
        self.adapter.prefix.rows()
    }

    fn sub_layer(&mut self, io: SubLayerIo<'_>) -> Tensor<2> {
        let SubLayerIo {
            layer,
            kind,
            output,
            ..
        } = io;
        let Some((network, gate)) = self.adapter.networks.get(layer, kind) else {
            return output;
        };
        let gate = self.gates(gate, output.clone(), Rows::Tokens);
        output.clone() + network.forward(output, self.mode) * gate
    }
}

impl Adapter for UniPelt {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        let pairs = self
            .pairs
            .iter()
            .flatten()
            .flat_map(|p| [&p.a, &p.b].into_iter().chain(p.gate.parameters()));
        let networks = self
            .networks
            .iter()
            .flat_map(|(network, gate)| network.parameters().chain(gate.parameters()));
        pairs
            .chain(self.prefix.parameters())
            .chain(self.prefix_gates.iter().flat_map(Dense::parameters))
            .chain(networks)
            .collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let pairs = self.pairs.iter_mut().flatten().flat_map(|p| {
            [&mut p.a, &mut p.b]
                .into_iter()
                .chain(p.gate.parameters_mut())
        });
        let networks = self
            .networks
            .iter_mut()
            .flat_map(|(network, gate)| network.parameters_mut().chain(gate.parameters_mut()));
        let gates = self.prefix_gates.iter_mut().flat_map(Dense::parameters_mut);
        pairs
            .chain(self.prefix.parameters_mut())
            .chain(gates)
            .chain(networks)
            .collect()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        let table = self.prefix.table(mode);
        Box::new(UniPeltPass {
            adapter: self,
            mode,
            table,
            cu_seqlens: Arc::from([0]),
            attention_input: None,
        })
    }

    fn to_inference(&self) -> Option<Box<dyn Adapter>> {
        let prefix = self.prefix.to_inference()?;
        Some(Box::new(Self {
            config: self.config.clone(),
            pairs: self.pairs.clone(),
            prefix,
            prefix_gates: self.prefix_gates.clone(),
            networks: self
                .networks
                .copy(|(network, gate)| (network.copy(), gate.clone())),
            causal: self.causal,
        }))
    }

    fn peft_config(&self) -> Map<String, Value> {
        let mut config = own_files::all_to_file("UNIPELT", &self.config);
        // It says how values begin; the file has them.
        config.remove("init_text");
        config
    }

    fn weight_delta(&self, _base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Err(not_linear(NAME))
    }

    fn supports_mixed_batch(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests;
