//! What the methods share that put trained positions in front of every sequence.

use burn::prelude::*;
use frugal_nn::{AdaptError, Backbone, BackboneInfo, Frozen, Pass, SequenceLayout, SiteKind};
use serde_json::{Map, Value, json};

use crate::support::values::object;

/// What every prompt of `peft` must have; returns `num_virtual_tokens`.
pub(crate) fn check_peft(
    method: &'static str,
    config: &Map<String, Value>,
) -> Result<u64, AdaptError> {
    let bad = |field, reason: &str| AdaptError::Config {
        method,
        field,
        reason: reason.into(),
    };
    if config
        .get("num_transformer_submodules")
        .is_some_and(|n| !n.is_null() && n.as_u64() != Some(1))
    {
        return Err(bad(
            "num_transformer_submodules",
            "only models of one stack are supported",
        ));
    }
    let rows = config.get("num_virtual_tokens").and_then(Value::as_u64);
    rows.ok_or_else(|| bad("num_virtual_tokens", "the key is missing"))
}

/// The settings of a prompt from a configuration of `peft`: these fields, and what says that its
/// values come from the file.
///
/// # Errors
/// As [`check_peft`].
pub(crate) fn of_inference(
    method: &'static str,
    config: &Map<String, Value>,
    fields: &[&str],
) -> Result<Map<String, Value>, AdaptError> {
    check_peft(method, config)?;
    let given = |field: &&str| {
        let value = config.get(*field).filter(|value| !value.is_null())?;
        Some(((*field).to_owned(), value.clone()))
    };
    let mut settings: Map<String, Value> = fields.iter().filter_map(given).collect();
    settings.insert("inference_mode".into(), json!(true));
    settings.insert("init_text".into(), json!(""));
    Ok(settings)
}

/// Why a method that adds positions cannot be merged.
pub(crate) fn not_a_weight(method: &'static str) -> AdaptError {
    let reason = "it adds positions, not weights; ship the adapter beside the model".into();
    AdaptError::Unsupported {
        method,
        action: "be merged",
        reason,
    }
}

/// Puts the rows of `prompt` in front of every sequence, unless they are in the cache already.
fn prepend(
    hidden_states: Tensor<2>,
    layout: &mut SequenceLayout,
    prompt: impl FnOnce() -> Tensor<2>,
) -> Tensor<2> {
    if layout.past.iter().any(|&past| past > 0) {
        return hidden_states;
    }
    let prompt = prompt();
    let parts = layout
        .cu_seqlens
        .windows(2)
        .flat_map(|w| [prompt.clone(), hidden_states.clone().slice(w[0]..w[1])])
        .collect();
    *layout = layout.prepend(prompt.dims()[0]);
    Tensor::cat(parts, 0)
}

/// The token embeddings of a model, `[vocab_size, d_model]`.
pub(crate) fn token_table(backbone: &dyn Backbone) -> Option<Tensor<2>> {
    let (first, _) = backbone
        .sites()
        .iter()
        .find(|(_, s)| s.kind == SiteKind::Embedding)?;
    let mut found = None;
    backbone.visit_weights(&mut |part| {
        if let Frozen::Embedding(table) = part
            && table.site == first
        {
            found = Some(table.weight.dense());
        }
    });
    found
}

/// What files of prompts say about the model.
#[derive(Clone, Copy)]
pub(crate) struct PromptShape {
    pub token_dim: usize,
    num_layers: usize,
    num_attention_heads: usize,
}

impl PromptShape {
    pub fn of(model: &BackboneInfo) -> Self {
        Self {
            token_dim: model.hidden_size,
            num_layers: model.num_hidden_layers,
            num_attention_heads: model.num_attention_heads,
        }
    }

    /// The fields that all prompts of `peft` have.
    pub fn fields(&self, peft_type: &str, rows: usize) -> Map<String, Value> {
        object(json!({
            "peft_type": peft_type,
            "num_virtual_tokens": rows,
            "token_dim": self.token_dim,
            "num_transformer_submodules": 1,
            "num_attention_heads": self.num_attention_heads,
            "num_layers": self.num_layers,
            "modules_to_save": null,
        }))
    }
}

/// Puts rows `[num_virtual_tokens, d_model]` in front of every sequence.
pub(crate) struct PromptPass<F> {
    pub rows: F,
}

impl<F: Fn() -> Tensor<2>> Pass for PromptPass<F> {
    fn embed(&mut self, hidden_states: Tensor<2>, layout: &mut SequenceLayout) -> Tensor<2> {
        prepend(hidden_states, layout, &self.rows)
    }
}
