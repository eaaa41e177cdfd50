//! Adapters: what is trained beside a frozen backbone, and how it meets it.

pub mod adalora;
pub mod adapter_fusion;
mod base;
pub mod bitfit;
pub mod boft;
pub mod bottleneck;
pub mod c3a;
pub mod combine;
pub mod compacter;
mod dense;
pub mod diff_pruning;
pub mod dora;
pub mod fish_mask;
pub mod fourierft;
pub mod full;
mod gradients;
pub mod head;
pub mod houlsby;
pub mod hra;
pub mod ia3;
pub mod id3;
pub mod increlora;
mod kept;
pub mod ln_tuning;
pub mod loftq;
pub mod loha;
pub mod lokr;
pub mod lora;
mod lora_config;
pub mod lora_fa;
pub mod lora_plus;
mod low_rank;
pub mod lycoris;
pub mod mam;
mod maps;
pub mod merge;
pub mod miss;
pub mod mola;
pub mod mos;
pub mod oft;
pub mod olora;
mod orthogonal;
mod overlay;
mod own;
pub mod p_tuning;
pub mod parallel_adapter;
mod parameter;
mod pass;
mod pattern;
pub mod peft;
mod peft_read;
pub mod peft_support;
pub mod pela;
pub mod pfeiffer;
pub mod pissa;
pub mod prefix_tuning;
pub mod prompt_tuning;
pub mod pst;
pub mod qa_lora;
mod rank_budget;
pub mod registry;
pub mod reparameterize;
mod residual;
pub mod road;
pub mod rslora;
mod set;
pub mod shira;
mod sizes;
mod sparse;
pub mod ssf;
pub mod stable_rps;
pub mod svd;
pub mod svfit;
mod target;
mod torch_random;
pub mod trainable_tokens;
pub mod unipelt;
pub mod vblora;
pub mod vera;

use std::collections::BTreeMap;

use burn::prelude::*;
use serde_json::Value;
use thiserror::Error;

pub use gradients::GradientSum;
pub use head::{Head, HeadConfig, Pooling};
pub use kept::{Fixed, Kept};
pub use parameter::{Mode, Parameter, to_vec};
pub use pass::{Enter, KeyValue, LowRankChange, Pass, Plain, SubLayer};
pub use pattern::Patterns;
pub use set::{AdapterSet, Choice, Entry};
pub use target::{Layers, Names, TargetError, Targets};

pub use merge::MergedLinear;

use crate::model::{Backbone, Embedding, Linear, ModelConfig, Norm, SiteTable};

/// What can go wrong with an adapter.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AdaptError {
    /// A setting of the method is out of range.
    #[error("method `{method}`: `{field}`: {reason}")]
    Config {
        /// Method.
        method: &'static str,
        /// Field at fault.
        field: &'static str,
        /// What is wrong and what would work.
        reason: String,
    },
    /// Target selection matched nothing or was malformed.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The method cannot do this.
    #[error("method `{method}` cannot {action}: {reason}")]
    Unsupported {
        /// Method.
        method: &'static str,
        /// What was asked.
        action: &'static str,
        /// Why, and what to do instead.
        reason: String,
    },
    /// Settings that the method does not have, or of the wrong kind.
    #[error("method `{method}`: {reason}")]
    Settings {
        /// Method.
        method: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// No method of this name.
    #[error("unknown method `{name}`{}; known: {known}", suggestion.as_ref().map_or(String::new(), |s| format!(" (did you mean `{s}`?)")))]
    UnknownMethod {
        /// What was asked for.
        name: String,
        /// Nearest name.
        suggestion: Option<String>,
        /// All names.
        known: String,
    },
    /// A kind of adapter that only `peft` has.
    #[error("adapters of `peft_type` {peft_type} are not supported{hint}")]
    PeftType {
        /// What the file says.
        peft_type: String,
        /// What comes near.
        hint: String,
    },
    /// A merged weight is infinite or not a number.
    #[error("the weight of `{path}` is not finite: the adapter or the model is damaged")]
    NotFinite {
        /// Path of the map.
        path: String,
    },
    /// An adapter folder that cannot be used.
    #[error("{}: {reason}", path.display())]
    Folder {
        /// File.
        path: std::path::PathBuf,
        /// What is wrong and what would work.
        reason: String,
    },
    /// The tensors of an adapter file do not fit the adapter.
    #[error("{}: the tensors do not fit the adapter and this model: {}", path.display(), peft::misfits(report))]
    Tensors {
        /// File.
        path: std::path::PathBuf,
        /// Lists of tensors.
        report: Box<frugal_formats::safetensors::LoadReport>,
    },
    /// An adapter of another model.
    #[error("the adapter was made for `{base_model}`, not for `{model}`")]
    OtherModel {
        /// The model that its folder names.
        base_model: String,
        /// What the user asked for.
        model: String,
        /// How it does not fit.
        source: Box<AdaptError>,
    },
    /// Classification heads that do not become one.
    #[error("the classification heads cannot be combined: {reason}")]
    Heads {
        /// Why, and what would work.
        reason: String,
    },
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] frugal_core::fs::FileError),
    /// A file cannot be read.
    #[error(transparent)]
    Model(#[from] crate::model::ModelError),
    /// A choice of adapters that does not fit the batch.
    #[error(
        "{given} adapters were chosen for a batch of {sequences} sequences: give one per sequence"
    )]
    Choices {
        /// Choices.
        given: usize,
        /// Sequences.
        sequences: usize,
    },
    /// No adapter of this name is loaded.
    #[error("no adapter named `{name}`; loaded: {loaded}")]
    UnknownAdapter {
        /// What was asked for.
        name: String,
        /// What there is.
        loaded: String,
    },
}

impl AdaptError {
    /// Whether an adapter and a model that do not belong together could be the reason.
    fn is_misfit(&self) -> bool {
        matches!(
            self,
            Self::Target(_) | Self::Tensors { .. }
        )
    }
}

/// What a method needs to build an adapter; known before any weight is read.
pub struct BuildContext<'a> {
    /// Sizes of the backbone.
    pub config: &'a ModelConfig,
    /// Its sites.
    pub sites: &'a SiteTable,
    /// The backbone itself, for methods that start from its weights; absent when planning.
    pub backbone: Option<&'a dyn Backbone>,
    /// Device of the parameters.
    pub device: Device,
    /// Decides the initial values.
    pub seed: u64,
    /// Token ids of the text that a prompt starts from.
    pub tokenize: Option<&'a dyn Fn(&str) -> Vec<u32>>,
}

/// `scale · B A`, added to the weight at `path`.
pub struct LowRank<'a> {
    /// Path of the map.
    pub path: &'a str,
    /// `[r, d_in]`.
    pub a: &'a Parameter,
    /// `[d_out, r]`.
    pub b: &'a Parameter,
    /// Factor.
    pub scale: f32,
}

/// The trainer's position, for methods that follow the schedule.
#[derive(Clone, Copy, Debug)]
pub struct StepContext {
    /// Optimiser steps done.
    pub step: u64,
    /// Optimiser steps of the run.
    pub total_steps: u64,
    /// Decides the randomness of this step.
    pub seed: u64,
}

/// An adapter: named parameters, a forward pass over a backbone, and its file form.
///
/// Everything else (optimiser, checkpoints, resume, merge, several adapters at once) works on this
/// trait alone.
pub trait Adapter: Send + Sync {
    /// Registered name of the method.
    fn method(&self) -> &'static str;

    /// All parameters in a fixed order.
    fn parameters(&self) -> Vec<&Parameter>;

    /// The same, to update.
    fn parameters_mut(&mut self) -> Vec<&mut Parameter>;

    /// Tensors whose gradient a method wants to see in [`Adapter::before_step`] without training or
    /// storing them; it takes these gradients out there.
    fn probes(&self) -> Vec<&Parameter> {
        Vec::new()
    }

    /// Hooks for one forward pass.
    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_>;

    /// Hooks for one of several passes without gradients, between which the parameters stay as they
    /// are: what a method forms of them may be kept.
    fn pass_keeping<'a>(&'a self, _kept: &'a Kept) -> Box<dyn Pass + 'a> {
        self.pass(Mode::Eval)
    }

    /// Fields of `adapter_config.json` except those that every method has.
    fn peft_config(&self) -> serde_json::Map<String, Value>;

    /// What the adapter adds to a linear map's weight `[d_out, d_in]`; `None` where it leaves the
    /// map alone.
    ///
    /// # Errors
    /// [`AdaptError::Unsupported`] for methods that no weight can express.
    fn weight_delta(&self, base: &Linear) -> Result<Option<Tensor<2>>, AdaptError>;

    /// A linear map with the adapter merged into it; `None` where the adapter leaves it alone.
    ///
    /// # Errors
    /// [`AdaptError::Unsupported`] for methods that no weight can express.
    fn merged_linear(&self, base: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        let delta = self.weight_delta(base)?;
        Ok(delta.map(|delta| MergedLinear {
            weight: base.weight.dense() + delta,
            bias: base.bias.clone(),
        }))
    }

    /// Whether [`Pass::linear`] forms a whole weight for this map, so that several passes without
    /// gradients do better to form [`Adapter::merged_linear`] once. Only where that leaves the bias
    /// as it is.
    fn forms_weight(&self, _base: &Linear) -> bool {
        false
    }

    /// The same of [`Pass::embedding`] and [`Adapter::merged_embedding`].
    fn forms_table(&self, _base: &Embedding) -> bool {
        false
    }

    /// Takes the adapter out of a map that [`Adapter::merged_linear`] gave; `None` where it leaves
    /// the map alone.
    ///
    /// # Errors
    /// [`AdaptError::Unsupported`] for methods whose merge loses the base.
    fn unmerged_linear(&self, merged: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        let delta = self.weight_delta(merged)?;
        Ok(delta.map(|delta| MergedLinear {
            weight: merged.weight.dense() - delta,
            bias: merged.bias.clone(),
        }))
    }

    /// A table with the adapter merged into it.
    fn merged_embedding(&self, _base: &Embedding) -> Option<Tensor<2>> {
        None
    }

    /// Gain and bias of a norm with the adapter merged into it.
    fn merged_norm(&self, _base: &Norm) -> Option<(Tensor<1>, Option<Tensor<1>>)> {
        None
    }

    /// The adapter as low-rank factors of linear maps, where it is no more than that; for export to
    /// other formats.
    fn low_rank_factors(&self) -> Option<Vec<LowRank<'_>>> {
        None
    }

    /// Before the optimiser's step: a method may read the gradients (importance), mask or rescale
    /// them.
    fn before_step(&mut self, _context: &StepContext, _gradients: &mut GradientSum) {}

    /// After the optimiser's step.
    fn after_step(&mut self, _context: &StepContext) {}

    /// What a resumed run needs besides the parameters: running statistics, masks. Empty for most
    /// methods.
    fn state(&self) -> BTreeMap<String, Vec<f32>> {
        BTreeMap::new()
    }

    /// Takes back what [`Adapter::state`] gave; called before the parameters' values are set.
    ///
    /// # Errors
    /// What is missing or has another size.
    fn restore(&mut self, _state: &BTreeMap<String, Vec<f32>>) -> Result<(), String> {
        Ok(())
    }

    /// The adapter as files keep it, where that is less than what is trained: a prompt without the
    /// network that made it, the ranks that are left, the entries that changed.
    fn finished(&self) -> Option<Box<dyn Adapter>> {
        None
    }

    /// Whether the method has reached the form that it promises (its final sparsity, its whole
    /// budget); until then no evaluation counts as the best one.
    fn is_complete(&self) -> bool {
        true
    }

    /// Whether training takes more than gradients: hooks around the optimiser's step, terms of the
    /// loss, rates of its own. Such an adapter is trained by [`crate::train`] only.
    fn needs_trainer(&self) -> bool {
        !self.is_complete()
            || !self.probes().is_empty()
            || self.parameters().iter().any(|p| p.lr_scale() != 1.0)
    }

    /// Whether rows of a batch may use this adapter while others use another.
    fn supports_mixed_batch(&self) -> bool;

    /// Number of trainable elements.
    fn num_trainable(&self) -> usize {
        self.parameters()
            .iter()
            .filter(|p| p.is_trainable())
            .map(|p| p.len())
            .sum()
    }
}

/// A random stream for one named thing, independent of the order in which things are made.
pub fn stream(seed: u64, name: &str) -> rand_chacha::ChaCha8Rng {
    use rand::SeedableRng;
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update(name.as_bytes());
    rand_chacha::ChaCha8Rng::from_seed(hash.finalize().into())
}

/// A standard normal number (Box-Muller).
pub(crate) fn normal(rng: &mut impl rand::Rng) -> f32 {
    let u: f64 = 1.0 - rng.random::<f64>();
    let v: f64 = rng.random();
    ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
}
