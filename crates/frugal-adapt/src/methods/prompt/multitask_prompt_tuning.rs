//! # Multitask prompt tuning: a shared prompt times a low-rank matrix of the task
//!
//! ## What it does
//! Learns input embeddings in front of every sequence, as prompt tuning does, and multiplies them
//! element by element by a matrix of low rank: the part that a task adds to a prompt which many
//! tasks share.
//!
//! ## Update rule
//! `h₀ = [P ⊙ (U V); E(x)]` with `P [num_virtual_tokens, d_model]`, `U [num_virtual_tokens, num_ranks]`,
//! `V [num_ranks, d_model]`, all trained; positions start at 0 on the prompt.
//!
//! ## When to use, when not
//! To go on from a prompt of `peft` that was distilled from several tasks. On one task from nothing it
//! is prompt tuning with a factor, whose rate suits it better because the factor is not.
//!
//! ## Cost
//! Trainable: `num_virtual_tokens (d_model + num_ranks) + num_ranks d_model`. Extra compute:
//! `num_virtual_tokens` positions in every sequence, also after training; it cannot be merged.
//!
//! ## Defaults and where they come from
//! 20 positions; one rank, as in the paper and Hugging Face `peft`. `P` starts from the embeddings of
//! `init_text`, repeated or cut to length (empty: standard normal values); `U V` starts at one in every
//! element, with a deviation of 0.02 in `U` and `V`, so that the prompt is this text at first. `peft`
//! starts them at zero with this deviation, where the prompt is near zero and learns slowly.
//!
//! ## Departures from the paper
//! The target stage alone: one task, whose matrix is trained with the prompt. Files of more tasks
//! (`num_tasks`) are refused, because each example would have to name its own. Distillation from the
//! prompts of source tasks is not offered, nor are starts from another file: read that file.
//!
//! ## References
//! - Wang, Panda, Karlinsky, Feris, Sun, Kim: Multitask Prompt Tuning Enables Parameter-Efficient
//!   Transfer Learning, 2023, arXiv 2303.02861.

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Linear, Mode, Parameter, Pass, named_rng, standard_normal,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::per_linear::bad;
use crate::support::prompt::{PromptPass, PromptShape, check_peft, not_a_weight};
use crate::support::text_start::{self, DEFAULT_TEXT};
use crate::support::values::object;

const NAME: &str = "multitask-prompt-tuning";
const PEFT_TYPE: &str = "MULTITASK_PROMPT_TUNING";

/// Deviation of the first values of `U` and `V`.
const DEVIATION: f32 = 0.02;

/// Registry entry.
pub const METHOD: Method = Method::of::<MultitaskPromptTuningConfig>(
    Family::Prompt,
    "A prompt times a low-rank matrix of the task",
    include_str!("multitask_prompt_tuning.rs"),
)
.aliases(&["mpt"])
.default_lr(3e-2)
.without_merge()
.without_identity()
.without_mixed_batch();

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MultitaskPromptTuningConfig {
    /// Positions in front of the input.
    pub num_virtual_tokens: usize,
    /// Rank of the task's matrix.
    pub num_ranks: usize,
    /// Text whose embeddings the prompt starts from; empty for standard normal values.
    pub init_text: String,
}

impl Default for MultitaskPromptTuningConfig {
    fn default() -> Self {
        Self {
            num_virtual_tokens: 20,
            num_ranks: 1,
            init_text: DEFAULT_TEXT.into(),
        }
    }
}

impl MethodConfig for MultitaskPromptTuningConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = PEFT_TYPE;

    fn validate(&self) -> Result<(), AdaptError> {
        if self.num_virtual_tokens == 0 {
            return bad(NAME, "num_virtual_tokens", "must be at least 1");
        }
        if !(1..=1024).contains(&self.num_ranks) {
            return bad(NAME, "num_ranks", "must be within 1 and 1024");
        }
        Ok(())
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(MultitaskPromptTuning::new(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        let rows = check_peft(NAME, config)?;
        if config
            .get("num_tasks")
            .is_some_and(|n| *n != json!(1) && !n.is_null())
        {
            let reason =
                "only prompts of one task are supported: each example would have to name its own";
            return bad(NAME, "num_tasks", reason);
        }
        let ranks = config.get("num_ranks").filter(|r| !r.is_null());
        // The values come from the file.
        Ok(object(json!({
            "num_virtual_tokens": rows,
            "num_ranks": ranks.cloned().unwrap_or(json!(1)),
            "init_text": "",
        })))
    }
}

/// A prompt and what its task makes of it.
struct MultitaskPromptTuning {
    /// `[1, num_virtual_tokens, num_ranks]`.
    cols: Parameter,
    /// `[1, num_ranks, d_model]`.
    rows: Parameter,
    /// `[num_virtual_tokens, d_model]`.
    prompt: Parameter,
    shape: PromptShape,
}

impl MultitaskPromptTuning {
    fn new(
        config: MultitaskPromptTuningConfig,
        context: &BuildContext<'_>,
    ) -> Result<Self, AdaptError> {
        config.validate()?;
        let (tokens, ranks) = (config.num_virtual_tokens, config.num_ranks);
        let d = context.info.hidden_size;
        let mut rng = named_rng(context.seed, "prompt_embeddings");
        let mut draw = |n: usize, mean: f32, deviation: f32| -> Vec<f32> {
            let next = |_| mean + deviation * standard_normal(&mut rng);
            (0..n).map(next).collect()
        };
        let (cols, rows) = (
            draw(tokens * ranks, 1.0, DEVIATION),
            draw(ranks * d, 1.0 / ranks as f32, DEVIATION),
        );
        let text = text_start::embeddings(NAME, Some(&config.init_text), tokens, context)?;
        let prompt = text.unwrap_or_else(|| draw(tokens * d, 0.0, 1.0));
        let new = |name: &str, shape: &[usize], values| {
            Parameter::new(name, shape, values, &context.device)
        };
        Ok(Self {
            cols: new("prefix_task_cols", &[1, tokens, ranks], cols),
            rows: new("prefix_task_rows", &[1, ranks, d], rows),
            prompt: new("prompt_embeddings", &[tokens, d], prompt),
            shape: PromptShape::of(context.info),
        })
    }

    /// `[num_virtual_tokens, d_model]`.
    fn rows(&self, mode: Mode) -> Tensor<2> {
        let task = self.cols.get::<3>(mode).matmul(self.rows.get::<3>(mode));
        self.prompt.get::<2>(mode) * task.squeeze_dim::<2>(0)
    }
}

impl Adapter for MultitaskPromptTuning {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.cols, &self.rows, &self.prompt]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.cols, &mut self.rows, &mut self.prompt]
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(PromptPass {
            rows: move || self.rows(mode),
        })
    }

    fn peft_config(&self) -> Map<String, Value> {
        let mut fields = self.shape.fields(PEFT_TYPE, self.prompt.shape()[0]);
        fields.extend(object(json!({
            "num_ranks": self.cols.shape()[2],
            "num_tasks": 1,
            "prompt_tuning_init": "RANDOM",
            "prompt_tuning_init_state_dict_path": null,
            "prompt_tuning_init_task": 0,
            "prompt_tuning_init_text": null,
            "tokenizer_name_or_path": null,
            "tokenizer_kwargs": null,
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
