//! # aLoRA: activated LoRA
//!
//! ## What it does
//! LoRA that leaves a sequence alone until a chosen text (the invocation) stands in it, and acts from the
//! first token of that text on.
//!
//! ## Update rule
//! `y_t = x_t Wᵀ + [t ≥ t₀] s · dropout(x_t) Aᵀ Bᵀ`, where `t₀` is the first token of the last occurrence of
//! `alora_invocation_tokens` among the tokens of a pass; LoRA otherwise.
//!
//! ## When to use, when not
//! For tasks that are asked of a long context that the base or other adapters have read already: what
//! was computed of the tokens before the invocation is the base's own and is shared
//! (`Session::fork_with`). Where a sequence is only ever read by one adapter, LoRA learns from more
//! tokens. A text without the invocation is the base's, and teaches nothing: such examples are counted
//! and named before training, and data in which none has it are refused.
//!
//! ## Cost
//! Trainable: LoRA's. Extra compute: LoRA's, for the tokens from the invocation on. It cannot be merged.
//!
//! ## Defaults and where they come from
//! Those of `lora`, with twice the rank and more, as the paper has it: `r = 32`, `lora_alpha = 32`. Without
//! `alora_invocation_tokens` the tokens are those of `invocation_text`, by default the start of an answer
//! in ChatML, which SmolLM2 and Qwen were trained with.
//!
//! ## Departures from the paper
//! The paper's adapters act from the invocation on; Hugging Face `peft` looks for it in the prompt and
//! takes the last occurrence, as is done here for the tokens of one pass. A sequence that goes on
//! (generation, further turns) stays adapted. An invocation that is spread over several passes is not seen.
//! Encoders, whose earlier tokens see the later ones, are refused.
//!
//! ## References
//! - Greenewald, Lastras, Parnell, Shah, Popa, Zizzo, Gunasekara, Rawat, Cox: Activated LoRA: Fine-tuned LLMs
//!   for Intrinsics, 2025, arXiv 2504.12397.

use std::ops::Range;

use burn::prelude::*;
use frugal_kernels::LowRankRows;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Embedding, Linear, LinearChange, LowRankChange, Mode,
    Parameter, Pass, Rows, SequenceLayout, SiteId,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::method::{Family, Method, MethodConfig};
use crate::methods::low_rank::lora::{self, Bias, Lora, LoraConfig};
use crate::settings::Settings;
use crate::support::dropout::dropout;
use crate::support::per_linear::{bad, linear_maps};

const NAME: &str = "alora";

/// The start of an answer in ChatML.
const CHATML: &str = "<|im_start|>assistant\n";

/// Registry entry.
pub const METHOD: Method = Method::of::<AloraConfig>(
    Family::LowRank,
    "LoRA that acts from a chosen text on and leaves what is before it to the base",
    include_str!("alora.rs"),
)
.aliases(&["activated-lora"])
.default_lr(5e-4)
.without_merge()
.peft_variant(|config| {
    let tokens = config.get("alora_invocation_tokens");
    tokens
        .and_then(Value::as_array)
        .is_some_and(|tokens| !tokens.is_empty())
});

/// Settings: those of LoRA and what it waits for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AloraConfig {
    /// The invocation; from `invocation_text` where there are none.
    pub alora_invocation_tokens: Vec<u32>,
    /// Text of the invocation.
    pub invocation_text: String,
    /// The rest.
    #[serde(flatten)]
    pub lora: LoraConfig,
}

impl Default for AloraConfig {
    fn default() -> Self {
        Self {
            alora_invocation_tokens: Vec::new(),
            invocation_text: CHATML.into(),
            lora: LoraConfig {
                r: 32,
                lora_alpha: 32.0,
                ..LoraConfig::default()
            },
        }
    }
}

impl MethodConfig for AloraConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "LORA";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.alora_invocation_tokens.is_empty() && self.invocation_text.is_empty() {
            let reason = "give the tokens from which the adapter acts, or `invocation_text`";
            return bad(NAME, "alora_invocation_tokens", reason);
        }
        if self.lora.bias != Bias::None || self.lora.lora_bias {
            let reason = "biases would act before the invocation too: use `bias = \"none\"` and `lora_bias = false`";
            return bad(NAME, "bias", reason);
        }
        self.lora.validate_for(NAME)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(Alora::new(self, context)?))
    }

    fn parse(settings: &Settings) -> Result<Self, AdaptError> {
        let mut all = settings.clone();
        // A flattened structure has defaults of its own.
        all.entry("r").or_insert(json!(32));
        all.entry("lora_alpha").or_insert(json!(32.0));
        crate::settings::parse(NAME, &all)
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        let own = "alora_invocation_tokens";
        let mut settings = lora::variant_from_peft(NAME, config, &[own])?;
        settings.entry("r").or_insert(json!(8));
        settings.extend(config.get(own).map(|v| (own.to_owned(), v.clone())));
        settings.insert("invocation_text".into(), json!(""));
        Ok(settings)
    }
}

/// An aLoRA adapter.
pub struct Alora {
    lora: Lora,
    invocation: Vec<u32>,
    /// The table of tokens, which sees their ids.
    table: Option<SiteId>,
}

impl Alora {
    /// Builds the pairs of every selected layer.
    ///
    /// # Errors
    /// Bad settings, an encoder, tables among the targets, an invocation that is no text of the model.
    pub fn new(config: AloraConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        config.validate()?;
        if context.info.is_encoder {
            return Err(AdaptError::Unsupported {
                method: NAME,
                action: "act on an encoder",
                reason:
                    "its earlier tokens see the later ones, so none of them would stay the base's"
                        .into(),
            });
        }
        linear_maps(NAME, &config.lora.targets(), context)?;
        let mut invocation = config.alora_invocation_tokens;
        if invocation.is_empty() {
            // Planning needs no tokenizer.
            invocation = context
                .tokenize
                .map_or_else(|| vec![0], |tokenize| tokenize(&config.invocation_text));
        }
        if invocation.is_empty() {
            return bad(NAME, "invocation_text", "the text has no tokens");
        }
        let size = context.info.vocab_size;
        if let Some(id) = invocation.iter().find(|id| **id as usize >= size) {
            let reason = format!("{id} is no token of the model, which has {size}");
            return bad(NAME, "alora_invocation_tokens", reason);
        }
        let table = context.sites.iter().find(|(_, site)| site.token_table);
        Ok(Self {
            lora: Lora::named(NAME, config.lora, context)?,
            invocation,
            table: table.map(|(id, _)| id),
        })
    }

    /// Where the last occurrence of the invocation begins among these tokens.
    fn find(&self, ids: &[u32]) -> Option<usize> {
        ids.windows(self.invocation.len())
            .rposition(|window| window == self.invocation)
    }
}

struct AloraPass<'a> {
    adapter: &'a Alora,
    mode: Mode,
    ids: Vec<u32>,
    sequences: Vec<Active>,
}

/// A sequence in a pass.
struct Active {
    /// Its rows.
    rows: Range<usize>,
    /// The first of them that is adapted; the end where none is.
    from: usize,
}

impl AloraPass<'_> {
    /// Which of so many rows are adapted.
    fn active(&self, rows: Rows, count: usize) -> Vec<Range<usize>> {
        let adapted = |s: &Active| s.from < s.rows.end;
        let mut ranges: Vec<Range<usize>> = Vec::new();
        let mut add = |range: Range<usize>| match ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => ranges.push(range),
        };
        match rows {
            Rows::Sequences => self
                .sequences
                .iter()
                .enumerate()
                .filter(|(_, s)| adapted(s))
                .for_each(|(i, _)| add(i..i + 1)),
            Rows::OfSequence(i) => match self.sequences.get(i) {
                Some(s) if adapted(s) && s.from == s.rows.start => add(0..count),
                Some(s) if adapted(s) && s.rows.len() == count => add(s.from - s.rows.start..count),
                _ => {}
            },
            // A pass that needs token rows is not asked for chosen ones.
            Rows::Tokens | Rows::PerToken(_) | Rows::Chosen => {
                let per = match rows {
                    Rows::PerToken(n) => n,
                    _ => 1,
                };
                self.sequences
                    .iter()
                    .filter(|s| adapted(s))
                    .for_each(|s| add(s.from * per..s.rows.end * per));
            }
        }
        ranges.retain(|range| range.end <= count);
        ranges
    }
}

impl Pass for AloraPass<'_> {
    fn embedding(&mut self, base: &Embedding, ids: &[u32]) -> Tensor<2> {
        if Some(base.site) == self.adapter.table {
            self.ids = ids.to_vec();
        }
        base.forward(ids)
    }

    fn embed(&mut self, hidden_states: Tensor<2>, layout: &mut SequenceLayout) -> Tensor<2> {
        let bounds = layout.cu_seqlens.clone();
        self.sequences = bounds
            .windows(2)
            .zip(layout.invoked_at.iter_mut().zip(&layout.past))
            .map(|(bounds, (invoked_at, past))| {
                let rows = bounds[0]..bounds[1];
                let found = match invoked_at {
                    Some(_) => Some(0),
                    None => self
                        .ids
                        .get(rows.clone())
                        .and_then(|ids| self.adapter.find(ids)),
                };
                if let Some(offset) = found {
                    invoked_at.get_or_insert(past + offset);
                }
                let from = found.map_or(rows.end, |offset| rows.start + offset);
                Active { rows, from }
            })
            .collect();
        hidden_states
    }

    fn needs_token_rows(&self) -> bool {
        true
    }

    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        self.linear_rows(base, x, Rows::Tokens)
    }

    fn linear_rows(&mut self, base: &Linear, x: Tensor<2>, rows: Rows) -> Tensor<2> {
        let Some(pair) = self.adapter.lora.at(base.site) else {
            return base.forward(x);
        };
        let active = self.active(rows, x.dims()[0]);
        let (a, b) = (pair.a.get::<2>(self.mode), pair.b.get::<2>(self.mode));
        let p = self.adapter.lora.config.lora_dropout;
        if let Mode::Train { seed } = self.mode
            && p > 0.0
        {
            let dropped = dropout(x.clone(), p, seed, &pair.path);
            let count = x.dims()[0];
            let mut mask = vec![0.0f32; count];
            active
                .into_iter()
                .for_each(|rows| mask[rows].fill(pair.scale));
            let device = x.device().inner();
            let mask = Tensor::<2>::from_data(TensorData::new(mask, [count, 1]), &device);
            let low = frugal_kernels::linear(dropped, a, None);
            return base.forward(x) + frugal_kernels::linear(low, b, None) * mask;
        }
        let pairs: Vec<LowRankRows> = active
            .into_iter()
            .map(|rows| LowRankRows {
                rows,
                a: a.clone(),
                b: b.clone(),
                scale: pair.scale,
            })
            .collect();
        match pairs.is_empty() {
            true => base.forward(x),
            false => base.forward_low_rank_rows(x, &pairs),
        }
    }

    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        let Some(pair) = self.adapter.lora.at(base.site) else {
            return LinearChange::None;
        };
        let drops = self.mode.is_train() && self.adapter.lora.config.lora_dropout > 0.0;
        if self.sequences.iter().all(|s| s.from == s.rows.end) {
            LinearChange::None
        } else if !drops && self.sequences.iter().all(|s| s.from == s.rows.start) {
            LinearChange::LowRank(LowRankChange {
                a: pair.a.get(self.mode),
                b: pair.b.get(self.mode),
                scale: pair.scale,
            })
        } else {
            LinearChange::Opaque
        }
    }
}

impl Adapter for Alora {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        self.lora.parameters()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.lora.parameters_mut()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(AloraPass {
            adapter: self,
            mode,
            ids: Vec::new(),
            sequences: Vec::new(),
        })
    }

    fn weight_delta(&self, _base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Err(AdaptError::Unsupported {
            method: NAME,
            action: "be merged",
            reason: "it acts on a part of each sequence; ship the adapter beside the model".into(),
        })
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }

    fn waits_for_invocation(&self) -> bool {
        true
    }

    fn lacks(&self, ids: &[u32]) -> Option<String> {
        let reason = || {
            format!(
                "no invocation (tokens {:?}), from which it acts: give a text that stands in the data as `invocation_text` or its tokens as `alora_invocation_tokens`, or use `lora`",
                self.invocation
            )
        };
        self.find(ids).is_none().then(reason)
    }

    fn peft_config(&self) -> Map<String, Value> {
        let mut config = self.lora.peft_config();
        config.insert("alora_invocation_tokens".into(), json!(self.invocation));
        config
    }
}
