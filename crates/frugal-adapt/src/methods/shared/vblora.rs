//! # VB-LoRA: vector bank
//!
//! ## What it does
//! LoRA whose factors are put together from a bank of vectors that all layers share: each piece is a
//! mixture of the few vectors that its logits rank highest.
//!
//! ## Update rule
//! Each piece of `A [r, d_in]` and `B [d_out, r]` is `Σ softmax(top-k logits) · bank[top-k]` with
//! pieces of `vector_length`; `y = x Wᵀ + x Aᵀ Bᵀ`.
//!
//! ## When to use, when not
//! For very small files over many maps: what is stored per layer are `k` indices and weights per
//! piece. Training holds the logits over the whole bank and is slower than LoRA.
//!
//! ## Cost
//! Trainable: `r (d_in + d_out) / vector_length · num_vectors` logits per layer, and the bank once.
//! Extra compute: LoRA's, and choosing the vectors. None after merging.
//!
//! ## Defaults and where they come from
//! `r = 4`, `num_vectors = 256`, `topk = 2`, bank uniform within 0.02, logits normal with deviation
//! 0.1: Hugging Face `peft`. `vector_length = 64`, which divides the sides of most small models;
//! `peft` has 256. The bank and the logits learn at the same rate; the paper's rates are 1e-3 and
//! 1e-2.
//!
//! ## Departures from the paper
//! Files hold the logits, or with `save_only_topk_weights` the chosen vectors and their weights,
//! which are smaller and cannot be trained on. The factors are random, not zero, at the start, as in the paper, so the model changes a
//! little before training.
//!
//! ## References
//! - Li, Han, Ji: VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks, 2024, arXiv
//!   2405.15179.

mod logits;
mod top_k;

use frugal_nn::{AdaptError, Adapter, BuildContext, Parameter, named_rng, standard_normal};
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::per_linear::{self, PerLinear, bad};
use crate::target::Targets;
use logits::Logits;

const NAME: &str = "vblora";

/// Registry entry.
pub const METHOD: Method = Method::of::<VbloraConfig>(
    Family::Shared,
    "Low-rank factors put together from a shared bank of vectors",
    include_str!("vblora.rs"),
)
.aliases(&["vb-lora", "vector-bank"])
.default_lr(5e-3)
.without_identity();

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VbloraConfig {
    /// Rank.
    pub r: usize,
    /// Vectors in the bank.
    pub num_vectors: usize,
    /// Their length; divides both sides of every layer.
    pub vector_length: usize,
    /// Vectors that are mixed for one piece.
    pub topk: usize,
    /// Probability of dropping an input element on the low-rank path while training.
    pub vblora_dropout: f64,
    /// Initial values of the bank are within plus and minus this.
    pub init_vector_bank_bound: f64,
    /// Standard deviation of the initial logits.
    pub init_logits_std: f64,
    /// Whether files hold the chosen vectors and their weights alone, from which the logits cannot
    /// be had again.
    pub save_only_topk_weights: bool,
    /// Whether there are such weights instead of logits, as in a file with
    /// `save_only_topk_weights`; they are not trained.
    pub only_topk_weights: bool,
    /// Which layers.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for VbloraConfig {
    fn default() -> Self {
        Self {
            r: 4,
            num_vectors: 256,
            vector_length: 64,
            topk: 2,
            vblora_dropout: 0.0,
            init_vector_bank_bound: 0.02,
            init_logits_std: 0.1,
            save_only_topk_weights: false,
            only_topk_weights: false,
            targets: Targets::default(),
        }
    }
}

impl MethodConfig for VbloraConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "VBLORA";

    fn validate(&self) -> Result<(), AdaptError> {
        for (field, value) in [
            ("r", self.r),
            ("num_vectors", self.num_vectors),
            ("vector_length", self.vector_length),
        ] {
            if value == 0 {
                return bad(NAME, field, "must be at least 1");
            }
        }
        if self.topk == 0 || self.topk > self.num_vectors {
            return bad(
                NAME,
                "topk",
                format!(
                    "must be within 1 and the {} vectors of the bank",
                    self.num_vectors
                ),
            );
        }
        if !(self.init_vector_bank_bound.is_finite() && self.init_vector_bank_bound > 0.0) {
            return bad(NAME, "init_vector_bank_bound", "must be above 0");
        }
        per_linear::check_dropout(NAME, "vblora_dropout", self.vblora_dropout)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        let (small, smaller_files) = (self.only_topk_weights, self.save_only_topk_weights);
        let adapter = build(self, context)?;
        Ok(match (small, smaller_files) {
            (true, _) => Box::new(top_k::of(&adapter)),
            (false, true) => Box::new(adapter.finished_as(|adapter| Box::new(top_k::of(adapter)))),
            (false, false) => Box::new(adapter),
        })
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        let fixed = [("bias", &[json!("none")][..])];
        let differing = json!({"vector_length": 256});
        let mut settings = per_linear::from_peft::<VbloraConfig>(NAME, config, differing, &fixed)?;
        // A file that says so holds nothing else.
        if settings.get("save_only_topk_weights") == Some(&json!(true)) {
            settings.insert("only_topk_weights".into(), json!(true));
        }
        Ok(settings)
    }
}

fn build(
    config: VbloraConfig,
    context: &BuildContext<'_>,
) -> Result<PerLinear<Logits>, AdaptError> {
    config.validate()?;
    let (r, n, length, device) = (
        config.r,
        config.num_vectors,
        config.vector_length,
        &context.device,
    );
    let saves_small = config.save_only_topk_weights || config.only_topk_weights;
    let constants =
        json!({"bias": "none", "fan_in_fan_out": false, "save_only_topk_weights": saves_small});
    let maps = PerLinear::new(
        &METHOD,
        &config.targets,
        context,
        &config,
        constants,
        |_, info| {
            let (path, d_in, d_out) = (&info.path, info.d_in, info.d_out);
            if !d_in.is_multiple_of(length) || !d_out.is_multiple_of(length) {
                return bad(
                    NAME,
                    "vector_length",
                    format!("{length} does not divide both sides of `{path}` ({d_out} x {d_in})"),
                );
            }
            let mut rng = named_rng(context.seed, path);
            let mut logits = |name: &str, shape: [usize; 3]| {
                let values = (0..shape.iter().product())
                    .map(|_| config.init_logits_std as f32 * standard_normal(&mut rng))
                    .collect();
                Parameter::new(
                    format!("{path}.vblora_logits_{name}"),
                    &shape,
                    values,
                    device,
                )
            };
            Ok(Logits {
                a: logits("A", [r, d_in / length, n]),
                b: logits("B", [d_out / length, r, n]),
                topk: config.topk,
                dropout: config.vblora_dropout,
            })
        },
    )?;
    // A matter of this program, which follows from the file.
    let maps = maps.without_field("only_topk_weights");
    let bound = config.init_vector_bank_bound as f32;
    let mut rng = named_rng(context.seed, "vector bank");
    let bank = (0..n * length)
        .map(|_| rng.random_range(-bound..bound))
        .collect();
    Ok(maps.with_shared(
        vec![Parameter::new(
            "base_model.vblora_vector_bank",
            &[n, length],
            bank,
            device,
        )],
        true,
    ))
}
