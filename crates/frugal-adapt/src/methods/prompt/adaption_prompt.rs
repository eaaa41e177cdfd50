//! # LLaMA-Adapter: prompts behind a gate in the upper blocks
//!
//! ## What it does
//! In the upper blocks every token also attends to a trained prompt, by a softmax of its own, and what it finds
//! there is added behind a gate that starts closed.
//!
//! ## Update rule
//! `heads ← heads + g · softmax(q Kᵀ / √d_h) V` with `K = P W_kᵀ`, `V = P W_vᵀ` from the block's own frozen layers, `P [adapter_len, d_model]`
//! and `g [1]` trained; `q` are the block's queries, rotated where it rotates them, and `K` is not rotated.
//! A Llama whose output projection has a bias adds it once more in the adapted blocks, also behind a closed gate: `peft` puts what is
//! found through the whole projection by itself (`AdaptedAttention.forward` of `peft/tuners/adaption_prompt/layer.py`).
//!
//! ## When to use, when not
//! To teach an instruction format or a task to a decoder with few numbers, where a change of weights is not
//! wanted and a prefix disturbs the model before training. It cannot be merged, and adds a small attention to every token.
//!
//! ## Cost
//! Trainable: `adapter_layers (adapter_len d_model + 1)`. Extra compute: `2 adapter_len` products of the heads' width per token and
//! adapted block; `K` and `V` once per pass.
//!
//! ## Defaults and where they come from
//! `adapter_len = 10`: the paper; it adapts the upper 30 of 32 blocks, here all of them with `adapter_layers = 0`. `P` is standard
//! normal and `g` zero, as in the released code.
//!
//! ## Departures from the paper
//! One gate for a block, as in Hugging Face `peft`; the paper's code has one for each head. `peft` has the method for Llama, Mistral and
//! GPT-2; on GPT-2 it adds what is found behind the output projection, which is not done here, so its files for GPT-2 are refused. Every
//! model works whose blocks have layers for keys and for values of their own and do not normalise the keys.
//!
//! ## References
//! - Zhang, Han, Liu, Gao, Zhou, Hu, Yan, Lu, Li, Qiao: LLaMA-Adapter: Efficient Fine-tuning of Language
//!   Models with Zero-init Attention, 2023, arXiv 2303.16199.

use burn::prelude::*;
use burn::tensor::activation::softmax;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Linear, Mode, Parameter, Pass, SiteId, SubLayer, SubLayerIo,
    named_rng, standard_normal,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::per_linear::{bad, frozen_maps};
use crate::support::values::object;

const NAME: &str = "adaption-prompt";

/// Endings of the layers for keys and for values, and what of their paths is the attention's.
const LAYERS: [(&str, &str); 2] = [
    (".k_proj", ".v_proj"),
    (".attention.self.key", ".attention.self.value"),
];

/// Models for which `peft` has the method with an output projection behind it, by `model_type`.
const PROJECTED: [&str; 2] = ["llama", "mistral"];

/// Registry entry.
pub const METHOD: Method = Method::of::<AdaptionPromptConfig>(
    Family::Prompt,
    "Prompts in the upper blocks, attended to behind a gate",
    include_str!("adaption_prompt.rs"),
)
.aliases(&["llama-adapter"])
.default_lr(1e-2)
.without_merge();

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdaptionPromptConfig {
    /// Rows of a prompt.
    pub adapter_len: usize,
    /// How many blocks from the top have one; 0 for all.
    pub adapter_layers: usize,
}

impl Default for AdaptionPromptConfig {
    fn default() -> Self {
        Self {
            adapter_len: 10,
            adapter_layers: 0,
        }
    }
}

impl MethodConfig for AdaptionPromptConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "ADAPTION_PROMPT";

    fn validate(&self) -> Result<(), AdaptError> {
        match self.adapter_len {
            0 => bad(NAME, "adapter_len", "must be at least 1"),
            _ => Ok(()),
        }
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(AdaptionPrompt::new(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        let target = config.get("target_modules").filter(|v| !v.is_null());
        if target.is_some_and(|target| target != "self_attn") {
            let reason = "only `self_attn` is supported: the attention of Llama and Mistral";
            return bad(NAME, "target_modules", reason);
        }
        let mut settings = Settings::new();
        for field in ["adapter_len", "adapter_layers"] {
            match config.get(field).filter(|value| !value.is_null()) {
                Some(value) => settings.insert(field.into(), value.clone()),
                None => return bad(NAME, field, "the key is missing"),
            };
        }
        Ok(settings)
    }
}

/// The prompt of one block.
struct Prompt {
    layer: usize,
    /// `P [1, adapter_len, d_model]`.
    rows: Parameter,
    /// `g [1]`.
    gate: Parameter,
    /// The block's frozen layers for keys and for values; nothing when planning.
    layers: Option<[Linear; 2]>,
    /// Bias `[d_model]` of the output projection, of the models for which `peft` has the method.
    bias: Option<Tensor<1>>,
}

/// A LLaMA-Adapter.
pub struct AdaptionPrompt {
    prompts: Vec<Prompt>,
    length: usize,
    /// Heads of queries, heads of keys and their width.
    heads: [usize; 3],
}

impl AdaptionPrompt {
    /// Builds the prompts of the upper blocks.
    ///
    /// # Errors
    /// Bad settings, more blocks than the model has, attention of another kind.
    pub fn new(
        config: AdaptionPromptConfig,
        context: &BuildContext<'_>,
    ) -> Result<Self, AdaptError> {
        config.validate()?;
        let info = context.info;
        if config.adapter_len > info.max_sequence {
            let reason = format!(
                "{} is more than the {} positions of the model",
                config.adapter_len, info.max_sequence
            );
            return bad(NAME, "adapter_len", reason);
        }
        let unsupported = |reason: &str| {
            Err(AdaptError::Unsupported {
                method: NAME,
                action: "act on this model",
                reason: reason.into(),
            })
        };
        let mut found: Vec<(usize, String, [SiteId; 2])> = Vec::new();
        let projected = PROJECTED.contains(&info.model_type);
        for (id, site) in context.sites.iter() {
            if site.path.ends_with("k_norm") {
                return unsupported("its blocks normalise keys, which a prompt's would not be");
            }
            let Some(layer) = site.layer else { continue };
            for (key, value) in LAYERS {
                let Some(stem) = site.path.strip_suffix(key) else {
                    continue;
                };
                let path = key.strip_suffix(".key").unwrap_or_default();
                let Some(value) = context.sites.find(&format!("{stem}{value}")) else {
                    continue;
                };
                found.push((layer, format!("{stem}{path}"), [id, value]));
            }
        }
        let heads = [
            info.num_attention_heads,
            info.num_key_value_heads,
            info.head_dim,
        ];
        let fits = |sites: &[SiteId; 2]| {
            sites
                .iter()
                .all(|&id| context.sites.info(id).d_out == heads[1] * heads[2])
        };
        if found.len() != info.num_hidden_layers || !found.iter().all(|(.., sites)| fits(sites)) {
            return unsupported(
                "its blocks have no layers for keys and for values of their own (`k_proj` and `v_proj`)",
            );
        }
        let count = match config.adapter_layers {
            0 => found.len(),
            count => count,
        };
        let Some(first) = found.len().checked_sub(count) else {
            let reason = format!("{count} are more than the model's {} blocks", found.len());
            return bad(NAME, "adapter_layers", reason);
        };
        let chosen = found.split_off(first);
        let output = |path: &str| {
            let path = format!("{path}.o_proj");
            projected.then(|| context.sites.find(&path)).flatten()
        };
        let outputs = chosen.iter().filter_map(|(_, path, _)| output(path));
        let ids = chosen.iter().flat_map(|(.., sites)| *sites);
        let ids: Vec<SiteId> = ids.chain(outputs).collect();
        let frozen = frozen_maps(context, &ids);
        let prompt = |(layer, path, [key, value]): (usize, String, [SiteId; 2])| {
            let name = format!("{path}.adaption_prompt");
            let mut rng = named_rng(context.seed, &name);
            let shape = [1, config.adapter_len, info.hidden_size];
            let values = (0..shape[1] * shape[2])
                .map(|_| standard_normal(&mut rng))
                .collect();
            let gate = format!("{path}.adaption_gate");
            let bias = output(&path).and_then(|id| frozen[id.index()].as_ref()?.bias.clone());
            Prompt {
                layer,
                bias,
                rows: Parameter::new(name, &shape, values, &context.device),
                gate: Parameter::new(gate, &[1], vec![0.0], &context.device),
                layers: frozen[key.index()]
                    .clone()
                    .zip(frozen[value.index()].clone())
                    .map(|(key, value)| [key, value]),
            }
        };
        Ok(Self {
            prompts: chosen.into_iter().map(prompt).collect(),
            length: config.adapter_len,
            heads,
        })
    }
}

struct AdaptionPromptPass<'a> {
    adapter: &'a AdaptionPrompt,
    mode: Mode,
}

impl Pass for AdaptionPromptPass<'_> {
    fn beside_attention(&mut self, layer: usize, q: &Tensor<2>, scale: f32) -> Option<Tensor<2>> {
        let prompt = self.adapter.prompts.iter().find(|p| p.layer == layer)?;
        let layers = prompt.layers.as_ref()?;
        let ([heads, kv_heads, d], length) = (self.adapter.heads, self.adapter.length);
        let (tokens, groups) = (q.dims()[0], heads / kv_heads);
        let rows = prompt.rows.get::<3>(self.mode).squeeze_dim::<2>(0);
        let [keys, values] = layers.each_ref().map(|layer| {
            let all = layer.forward(rows.clone()).reshape([length, kv_heads, d]);
            all.swap_dims(0, 1)
        });
        let of_kv_head = |x: Tensor<2>| {
            let x = x.reshape([tokens, kv_heads, groups * d]).swap_dims(0, 1);
            x.reshape([kv_heads, tokens * groups, d])
        };
        let scores = of_kv_head(q.clone()).matmul(keys.swap_dims(1, 2)) * scale;
        let found = softmax(scores, 2).matmul(values);
        let found = found
            .reshape([kv_heads, tokens, groups * d])
            .swap_dims(0, 1)
            .reshape([tokens, heads * d]);
        Some(found * prompt.gate.get::<1>(self.mode).reshape([1, 1]))
    }

    fn sub_layer(&mut self, io: SubLayerIo<'_>) -> Tensor<2> {
        let mut prompts = self.adapter.prompts.iter();
        let bias = (io.kind == SubLayer::Attention)
            .then(|| {
                prompts
                    .find(|prompt| prompt.layer == io.layer)?
                    .bias
                    .clone()
            })
            .flatten();
        match bias {
            Some(bias) => io.output + bias.unsqueeze::<2>(),
            None => io.output,
        }
    }
}

impl Adapter for AdaptionPrompt {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        let prompts = self.prompts.iter();
        prompts.flat_map(|p| [&p.gate, &p.rows]).collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let prompts = self.prompts.iter_mut();
        prompts.flat_map(|p| [&mut p.gate, &mut p.rows]).collect()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(AdaptionPromptPass {
            adapter: self,
            mode,
        })
    }

    fn weight_delta(&self, _base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Err(AdaptError::Unsupported {
            method: NAME,
            action: "be merged",
            reason: "it adds an attention, not weights; ship the adapter beside the model".into(),
        })
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }

    fn peft_config(&self) -> Map<String, Value> {
        object(json!({
            "peft_type": "ADAPTION_PROMPT", "target_modules": "self_attn", "adapter_len": self.length,
            "adapter_layers": self.prompts.len(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_in_another_form_were_passed_over() {
        let read = |target: Value| {
            let config = json!({"adapter_len": 2, "adapter_layers": 1, "target_modules": target});
            AdaptionPromptConfig::from_peft(config.as_object().unwrap())
        };
        assert!(read(json!("self_attn")).is_ok() && read(Value::Null).is_ok());
        for target in [
            json!("mlp"),
            json!(["self_attn"]),
            json!(-1),
            json!({}),
            json!(true),
        ] {
            let error = read(target.clone()).unwrap_err().to_string();
            assert!(error.contains("target_modules"), "{target}: {error}");
        }
    }
}
