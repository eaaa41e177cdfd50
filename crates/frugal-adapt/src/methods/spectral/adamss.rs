//! # AdaMSS: adaptive multi-subspaces
//!
//! ## What it does
//! Groups the outputs of each layer by how they use the weight's largest singular directions, and learns a change of
//! very low rank for each group, within these directions. It can give up the groups that matter least.
//!
//! ## Update rule
//! `[W b] ≈ U Σ V_rᵀ`; k-means puts the rows of `U` into `num_subspaces` groups; for the outputs of group `i`, `ΔWᵢ = Bᵢ Aᵢ V_rᵀ`, with `V_rᵀ [r, d_in (+ 1)]`
//! frozen, `Aᵢ [rᵢ, r]` and `Bᵢ [rows, rᵢ]` trained, `rᵢ = min(subspace_rank, rows)`. With `use_asa`, every `mask_interval` steps between `init_warmup` and
//! `final_warmup` only the groups of highest score go on learning, `k` of all `n` in the model, `k = target + (n − target) (1 − progress)^exponent`; the score
//! is the mean of `I U` over `A` plus that over `B`, with `I ← β I + (1 − β) |w g|` and `U` the same of `|I − |w g||`.
//!
//! ## When to use, when not
//! For files of a few numbers per output where a common low rank for all outputs is too coarse. Each weight is decomposed when the
//! adapter is made and whenever a file is read.
//!
//! ## Cost
//! Trainable: `Σᵢ rᵢ (r + rows)` per layer: `num_subspaces r + d_out` with rank 1. Extra memory: `r d_in` frozen numbers, which files hold.
//! Extra compute: `r d_in` per token. None after merging.
//!
//! ## Defaults and where they come from
//! `r = 100`, `num_subspaces = 5`, `subspace_rank = 1`, groups stay all (`use_asa = false`): Hugging Face `peft`. `Aᵢ` starts as the leading directions
//! of its group, `Bᵢ` zero. Decomposition and groups are drawn with `peft`'s numbers, so files fit.
//!
//! ## Departures from the paper
//! At most one direction less than a layer has outputs: with all of them every output is equally far from every other, and rounding
//! decides the groups, also where `peft` reads its own files; such files are refused. `num_subspaces` is at most the number of outputs; a layer whose rows do not fill their
//! groups is refused. Masked groups keep what they learned, as in `peft`.
//!
//! ## References
//! - AdaMSS: Adaptive Multi-Subspace Approach for Parameter-Efficient Fine-Tuning, 2025, NeurIPS; behaviour follows
//!   Hugging Face `peft`.

mod allocation;
mod clusters;
mod config;
mod score;
mod spaces;

use frugal_formats::safetensors::LoadReport;
use frugal_nn::{AdaptError, Adapter, BuildContext};
use serde_json::{Value, json};

use crate::method::{Family, Method, MethodConfig};
use crate::methods::spectral::adamss::allocation::Adamss;
pub use crate::methods::spectral::adamss::config::AdamssConfig;
use crate::methods::spectral::adamss::config::NAME;
use crate::methods::spectral::adamss::spaces::Spaces;
use crate::settings::Settings;
use crate::support::per_linear::{self, PerLinear, bad, frozen_maps, linear_maps};

/// Registry entry.
pub const METHOD: Method = Method::of::<AdamssConfig>(
    Family::Spectral,
    "A change of very low rank for each group of outputs, within singular directions",
    include_str!("adamss.rs"),
)
.default_lr(5e-3)
.misfit(all_directions);

/// A file of `peft` with as many directions as a layer has outputs: its groups of outputs are not in the
/// file, and rounding decided them, so that `peft` itself does not find them again elsewhere.
fn all_directions(report: &LoadReport) -> Option<String> {
    let (key, ..) = report.mis_shaped.iter().find(|(key, expected, found)| {
        key.ends_with(".adamss_newB") && expected.first().map(|r| r + 1) == found.first().copied()
    })?;
    Some(format!(
        "`{key}`: `r` is not below the layer's outputs, all of which are then equally far apart: rounding decided their groups, which the file does not hold; make the adapter with a smaller `r`"
    ))
}

impl MethodConfig for AdamssConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "ADAMSS";

    fn validate(&self) -> Result<(), AdaptError> {
        for (field, value) in [
            ("r", self.r),
            ("num_subspaces", self.num_subspaces),
            ("subspace_rank", self.subspace_rank),
            ("asa_target_subspaces", self.asa_target_subspaces),
            ("mask_interval", self.mask_interval as usize),
        ] {
            if value == 0 {
                return bad(NAME, field, "must be at least 1");
            }
        }
        for (field, value) in [
            ("asa_importance_beta", self.asa_importance_beta),
            ("asa_uncertainty_beta", self.asa_uncertainty_beta),
            ("svd_threshold", self.svd_threshold),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return bad(NAME, field, "must be within 0 and 1");
            }
        }
        if self
            .init_weights
            .as_deref()
            .is_some_and(|w| w != "orthogonal")
        {
            return bad(NAME, "init_weights", "supported: \"orthogonal\", none");
        }
        if self.use_asa && self.final_warmup <= self.init_warmup {
            return bad(NAME, "final_warmup", "must be above `init_warmup`");
        }
        match self.asa_schedule_exponent >= 0.0 && self.asa_schedule_exponent.is_finite() {
            true => Ok(()),
            false => bad(NAME, "asa_schedule_exponent", "must be 0 or more"),
        }
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        self.validate()?;
        let schedule = self.use_asa.then(|| self.clone());
        let spaces = build(self, context)?;
        Ok(Box::new(Adamss { spaces, schedule }))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        let mut settings = per_linear::from_peft::<AdamssConfig>(NAME, config, json!({}), &[])?;
        if config.get("init_weights").is_none_or(Value::is_null) {
            settings.insert("init_weights".into(), Value::Null);
        }
        Ok(settings)
    }
}

fn build(
    config: AdamssConfig,
    context: &BuildContext<'_>,
) -> Result<PerLinear<Spaces>, AdaptError> {
    let targets = config.targets.all();
    let chosen = linear_maps(NAME, &targets, context)?;
    let frozen = frozen_maps(context, &chosen);
    PerLinear::new(
        &METHOD,
        &targets,
        context,
        &config,
        json!({}),
        |id, info| Spaces::new(&config, frozen[id.index()].as_ref(), info, context),
    )
}
