//! # CPT: examples in front of the input whose embeddings are trained within narrow bounds
//!
//! ## What it does
//! Puts the tokens of a context (a description, worked examples) in front of every sequence and
//! refines their embeddings; each may move away from its token by a small distance only, which keeps
//! the context what it says.
//!
//! ## Update rule
//! `h₀ = [E(c) + Δ; E(x)]` with the tokens `c [n]` and `Δ [n, d_model]` trained; after each step row `i` is
//! brought back to `‖Δᵢ‖ ≤ εᵢ sqrt(d_model / 2048)`, where `ε` is `opt_projection_epsilon` for tokens of an
//! input and `opt_projection_format_epsilon` for those of the format around it; other rows stay zero.
//!
//! ## When to use, when not
//! With a handful of examples, where in-context learning works and training overfits. With many
//! examples the bounds are in the way: prompt tuning has none.
//!
//! ## Cost
//! Trainable: `n * d_model`. Extra compute: `n` positions in every sequence, also after training; it
//! cannot be merged.
//!
//! ## Defaults and where they come from
//! Both bounds 0.1: Hugging Face `peft`. Without `cpt_token_ids` the tokens are those of `init_text`, and
//! without `cpt_tokens_type_mask` all are of the format's type, as in `peft`. Types are modulo 4: 1 format
//! of the input, 2 input, 3 format of the output, 0 label.
//!
//! ## Departures from the paper
//! Labels in the context add nothing to the loss, so contexts with labels are not trained on here
//! and the decay of their weights (`opt_weighted_loss_type`) has nothing to act on; adapters that
//! `peft` trained with them are read, used and saved again. Files hold the refined embeddings alone;
//! one that is trained on moves within the same bounds around these, as in `peft`. `peft` has CPT for decoders without a head
//! only.
//!
//! ## References
//! - Blau, Kimhi, Belinkov, Bronstein, Baskin: Context-aware Prompt Tuning: Advancing In-Context
//!   Learning with Adversarial Methods, 2024, arXiv 2410.17222.

use std::collections::BTreeMap;

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, GradientSum, Linear, Mode, Parameter, Pass, StepContext,
    lookup, named_rng, standard_normal, to_vec,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::per_linear::bad;
use crate::support::prompt::{PromptPass, PromptShape, check_peft, not_a_weight, token_table};
use crate::support::text_start::{self, DEFAULT_TEXT};
use crate::support::values::object;

const NAME: &str = "cpt";

/// Width of the models that the bounds are meant for.
const WIDTH_OF_BOUNDS: f64 = 2048.0;

/// Registry entry.
pub const METHOD: Method = Method::of::<CptConfig>(
    Family::Prompt,
    "A context in front of the input, refined within narrow bounds",
    include_str!("cpt.rs"),
)
.default_lr(1e-2)
.without_merge()
.without_identity()
.without_mixed_batch()
.not_trained_on(|settings| {
    let types = settings.get("cpt_tokens_type_mask")?.as_array()?;
    let mut types = types.iter().filter_map(Value::as_u64);
    let has_labels = types.any(|kind| is_label(kind as u32));
    has_labels.then_some(
        "its context holds labels (types 4, 8, ... in `cpt_tokens_type_mask`), which are not trained on here",
    )
});

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CptConfig {
    /// Positions, where no tokens are given.
    pub num_virtual_tokens: usize,
    /// The context.
    pub cpt_token_ids: Vec<u32>,
    /// Which of its tokens are no padding; all.
    pub cpt_mask: Vec<u32>,
    /// What each of its tokens is.
    pub cpt_tokens_type_mask: Vec<u32>,
    /// Largest change of a token of an input.
    pub opt_projection_epsilon: f64,
    /// Largest change of a token of the format.
    pub opt_projection_format_epsilon: f64,
    /// Weights of labels in the loss, `"none"` or `"decay"`: of no effect without labels.
    pub opt_weighted_loss_type: String,
    /// Factor from one label to the one before it.
    pub opt_loss_decay_factor: f64,
    /// Text of the context, where no tokens are given.
    pub init_text: String,
    /// Hold the finished embeddings only, as files do.
    pub inference_mode: bool,
}

impl Default for CptConfig {
    fn default() -> Self {
        Self {
            num_virtual_tokens: 20,
            cpt_token_ids: Vec::new(),
            cpt_mask: Vec::new(),
            cpt_tokens_type_mask: Vec::new(),
            opt_projection_epsilon: 0.1,
            opt_projection_format_epsilon: 0.1,
            opt_weighted_loss_type: "none".into(),
            opt_loss_decay_factor: 1.0,
            init_text: DEFAULT_TEXT.into(),
            inference_mode: false,
        }
    }
}

impl MethodConfig for CptConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "CPT";

    fn validate(&self) -> Result<(), AdaptError> {
        let rows = self.rows();
        if rows == 0 {
            return bad(NAME, "num_virtual_tokens", "must be at least 1");
        }
        for (field, list) in [
            ("cpt_mask", &self.cpt_mask),
            ("cpt_tokens_type_mask", &self.cpt_tokens_type_mask),
        ] {
            if !list.is_empty() && list.len() != rows {
                let reason = format!("{} numbers for {rows} tokens", list.len());
                return bad(NAME, field, reason);
            }
        }
        if self.cpt_mask.contains(&0) {
            let reason = "padding in the context is not supported: leave it away";
            return bad(NAME, "cpt_mask", reason);
        }
        for (field, bound) in [
            ("opt_projection_epsilon", self.opt_projection_epsilon),
            (
                "opt_projection_format_epsilon",
                self.opt_projection_format_epsilon,
            ),
        ] {
            if !(bound > 0.0 && bound.is_finite()) {
                return bad(NAME, field, "must be a positive number");
            }
        }
        if !["none", "decay"].contains(&self.opt_weighted_loss_type.as_str()) {
            return bad(
                NAME,
                "opt_weighted_loss_type",
                "must be \"none\" or \"decay\"",
            );
        }
        if !self.inference_mode && self.cpt_tokens_type_mask.iter().copied().any(is_label) {
            let reason = "labels in the context (types 4, 8, ...) are not trained on here";
            return bad(NAME, "cpt_tokens_type_mask", reason);
        }
        Ok(())
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(Cpt::new(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        let rows = check_peft(NAME, config)?;
        let known = crate::settings::defaults::<CptConfig>();
        let given = config
            .iter()
            .filter(|(name, value)| known.contains_key(*name) && !value.is_null());
        let mut settings: Settings = given.map(|(n, v)| (n.clone(), v.clone())).collect();
        settings.insert("num_virtual_tokens".into(), json!(rows));
        // The values come from the file.
        settings.insert("init_text".into(), json!(""));
        settings.insert("inference_mode".into(), json!(true));
        Ok(settings)
    }
}

impl CptConfig {
    fn rows(&self) -> usize {
        match self.cpt_token_ids.len() {
            0 => self.num_virtual_tokens,
            given => given,
        }
    }

    /// How far each row may move; 0 where it is not trained.
    fn bounds(&self, d_model: usize) -> Vec<f32> {
        let scale = (d_model as f64 / WIDTH_OF_BOUNDS).sqrt();
        let bound = |kind: u32| match kind % 4 {
            1 | 3 => self.opt_projection_format_epsilon * scale,
            2 => self.opt_projection_epsilon * scale,
            _ => 0.0,
        };
        let kind = |row: usize| self.cpt_tokens_type_mask.get(row).copied().unwrap_or(1);
        (0..self.rows())
            .map(|row| bound(kind(row)) as f32)
            .collect()
    }
}

fn is_label(kind: u32) -> bool {
    kind > 0 && kind.is_multiple_of(4)
}

/// Where the context's embeddings are held.
enum Held {
    /// As they are trained.
    Parts {
        /// `[n, d_model]`.
        embedding: Parameter,
        /// `[n, d_model]`.
        delta: Parameter,
        /// Length that each row of `delta` may have.
        bounds: Vec<f32>,
        /// 1 for trained rows, `[n, 1]`.
        mask: Tensor<2>,
    },
    /// As files hold them.
    Whole {
        /// `[n, d_model]`.
        all: Parameter,
        /// What they were before training, once there is training.
        start: Option<Vec<f32>>,
        /// How far each row may move from there.
        bounds: Vec<f32>,
    },
}

/// Name of what is kept across a resume.
const START: &str = "embeddings before training";

/// 1 for rows that may move, `[n, 1]`.
fn trained(bounds: &[f32], device: &Device) -> Tensor<2> {
    let mask = bounds.iter().map(|&bound| f32::from(u8::from(bound > 0.0)));
    let mask = TensorData::new(mask.collect::<Vec<f32>>(), [bounds.len(), 1]);
    Tensor::from_data(mask, &device.clone().inner())
}

/// Makes rows that are longer than their bounds as long as these.
fn shorten(rows: &mut [f32], bounds: &[f32]) {
    let d = rows.len() / bounds.len().max(1);
    for (row, &bound) in rows.chunks_exact_mut(d.max(1)).zip(bounds) {
        let length = row.iter().map(|v| v * v).sum::<f32>().sqrt();
        if length > bound {
            row.iter_mut().for_each(|v| *v *= bound / length);
        }
    }
}

/// A context and its change.
struct Cpt {
    config: CptConfig,
    held: Held,
    shape: PromptShape,
}

impl Cpt {
    fn new(config: CptConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        config.validate()?;
        let (rows, d, device) = (config.rows(), context.info.hidden_size, &context.device);
        if config.inference_mode {
            let name = "prompt_embeddings";
            let all = Parameter::new(name, &[rows, d], vec![0.0; rows * d], device);
            return Ok(Self {
                held: Held::Whole {
                    all,
                    start: None,
                    bounds: config.bounds(d),
                },
                config,
                shape: PromptShape::of(context.info),
            });
        }
        let vocabulary = context.info.vocab_size;
        let ids = &config.cpt_token_ids;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
            let reason = format!("there is no token {id} among {vocabulary}");
            return bad(NAME, "cpt_token_ids", reason);
        }
        let table = context
            .backbone
            .and_then(token_table)
            .filter(|_| !ids.is_empty());
        let found = match table {
            Some(table) => Some(to_vec(lookup(table, ids))),
            None => text_start::embeddings(NAME, Some(&config.init_text), rows, context)?,
        };
        let mut rng = named_rng(context.seed, "cpt");
        let mut draw = |deviation: f32| -> Vec<f32> {
            let next = |_| deviation * standard_normal(&mut rng);
            (0..rows * d).map(next).collect()
        };
        let delta = vec![0.0; rows * d];
        let values = found.unwrap_or_else(|| draw(1.0));
        let bounds = config.bounds(d);
        let mask = trained(&bounds, device);
        Ok(Self {
            held: Held::Parts {
                embedding: Parameter::frozen("embedding.weight", &[rows, d], values, device),
                delta: Parameter::new("delta_embedding.weight", &[rows, d], delta, device),
                bounds,
                mask,
            },
            config,
            shape: PromptShape::of(context.info),
        })
    }

    fn rows(&self, mode: Mode) -> Tensor<2> {
        match &self.held {
            Held::Parts {
                embedding,
                delta,
                mask,
                ..
            } => embedding.get::<2>(Mode::Eval) + delta.get::<2>(mode) * mask.clone(),
            Held::Whole { all, bounds, .. } if mode.is_train() => {
                let mask = trained(bounds, &all.device());
                let (kept, moved) = (all.get::<2>(Mode::Eval), all.get::<2>(mode));
                kept * (-mask.clone() + 1.0) + moved * mask
            }
            Held::Whole { all, .. } => all.get::<2>(mode),
        }
    }
}

impl Adapter for Cpt {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        match &self.held {
            Held::Parts {
                embedding, delta, ..
            } => vec![embedding, delta],
            Held::Whole { all, .. } => vec![all],
        }
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        match &mut self.held {
            Held::Parts {
                embedding, delta, ..
            } => vec![embedding, delta],
            Held::Whole { all, .. } => vec![all],
        }
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(PromptPass {
            rows: move || self.rows(mode),
        })
    }

    fn before_step(&mut self, _context: &StepContext, _gradients: &mut GradientSum) {
        if let Held::Whole { all, start, .. } = &mut self.held {
            let values = all.to_vec();
            let start = start.get_or_insert_with(|| values.clone());
            // The change is what is trained, and decayed.
            all.set(values.iter().zip(&*start).map(|(v, s)| v - s).collect());
        }
    }

    fn after_step(&mut self, _context: &StepContext) {
        match &mut self.held {
            Held::Parts { delta, bounds, .. } => {
                let mut values = delta.to_vec();
                shorten(&mut values, bounds);
                delta.set(values);
            }
            Held::Whole {
                all,
                start: Some(start),
                bounds,
            } => {
                let mut change = all.to_vec();
                shorten(&mut change, bounds);
                all.set(change.iter().zip(&*start).map(|(c, s)| s + c).collect());
            }
            Held::Whole { start: None, .. } => {}
        }
    }

    fn state(&self) -> BTreeMap<String, Vec<f32>> {
        match &self.held {
            Held::Whole {
                start: Some(start), ..
            } => BTreeMap::from([(START.to_owned(), start.clone())]),
            _ => BTreeMap::new(),
        }
    }

    fn restore(&mut self, state: &BTreeMap<String, Vec<f32>>) -> Result<(), String> {
        if let Held::Whole { all, start, .. } = &mut self.held
            && let Some(found) = state.get(START)
        {
            if found.len() != all.len() {
                return Err(format!(
                    "`{START}` has {} values, not {}",
                    found.len(),
                    all.len()
                ));
            }
            *start = Some(found.clone());
        }
        Ok(())
    }

    fn needs_trainer(&self) -> bool {
        true
    }

    fn to_inference(&self) -> Option<Box<dyn Adapter>> {
        if matches!(self.held, Held::Whole { .. }) {
            return None;
        }
        let rows = self.rows(Mode::Eval);
        let (shape, device) = (rows.dims(), rows.device());
        let all = Parameter::new("prompt_embeddings", &shape, to_vec(rows), &device);
        Some(Box::new(Self {
            config: CptConfig {
                inference_mode: true,
                ..self.config.clone()
            },
            held: Held::Whole {
                all,
                start: None,
                bounds: self.config.bounds(shape[1]),
            },
            shape: self.shape,
        }))
    }

    fn peft_config(&self) -> Map<String, Value> {
        let (c, rows) = (&self.config, self.config.rows());
        let list = |given: &[u32], otherwise: u32| match given.is_empty() {
            true => vec![otherwise; rows],
            false => given.to_vec(),
        };
        let mut fields = self.shape.fields("CPT", rows);
        fields.extend(object(json!({
            "cpt_token_ids": list(&c.cpt_token_ids, 0),
            "cpt_mask": list(&c.cpt_mask, 1),
            "cpt_tokens_type_mask": list(&c.cpt_tokens_type_mask, 1),
            "opt_projection_epsilon": c.opt_projection_epsilon,
            "opt_projection_format_epsilon": c.opt_projection_format_epsilon,
            "opt_weighted_loss_type": c.opt_weighted_loss_type,
            "opt_loss_decay_factor": c.opt_loss_decay_factor,
            "tokenizer_name_or_path": null,
        })));
        fields
    }

    fn weight_delta(&self, _base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Err(not_a_weight(NAME))
    }

    fn supports_mixed_batch(&self) -> bool {
        false
    }
}
