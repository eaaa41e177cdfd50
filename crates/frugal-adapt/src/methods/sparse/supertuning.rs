//! # Super-Tuning: training the largest weights
//!
//! ## What it does
//! Trains the few elements of each weight whose size is largest, with or without a low-rank change
//! beside them.
//!
//! ## Update rule
//! `W' = W + S (+ (lora_alpha / r) B A)`, `S` zero but for the `(1 − sparsity) d_in d_out` elements where `|W|` is
//! largest; with `select_top = false`, smallest.
//!
//! ## When to use, when not
//! For sparse changes whose places need no data. LoRA is faster: each step forms the whole weight.
//!
//! ## Cost
//! Trainable: `(1 − sparsity) d_in d_out` per layer, `r (d_in + d_out)` besides. Extra memory: an index per trained
//! element. None after merging.
//!
//! ## Defaults and where they come from
//! `sparsity = 0.99`, no low-rank part: Hugging Face `peft`.
//!
//! ## Departures from the paper
//! Indices are always in the file (`save_precomputed_indices`), and layers of more than 2²⁴ elements are
//! refused, because places are kept in single precision.
//!
//! ## References
//! - Super-Tuning of Hugging Face `peft`, version 0.21, after arXiv 2607.09287.

use burn::prelude::*;
use burn::tensor::IndexingUpdateOp;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Mode, Parameter, named_rng, standard_normal, to_vec,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::base_weights::linear_weights;
use crate::support::dropout::dropout;
use crate::support::per_linear::{self, LinearAdapter, LinearSite, PerLinear, bad, check_dropout};
use crate::support::values::kaiming;
use crate::target::{Names, Targets};

const NAME: &str = "supertuning";

/// Largest layer whose places single precision tells apart.
const MOST: usize = 1 << 24;

/// Registry entry.
pub const METHOD: Method = Method::of::<SupertuningConfig>(
    Family::Sparse,
    "The largest elements of each weight, and a low-rank change if wanted",
    include_str!("supertuning.rs"),
)
.aliases(&["super-tuning"])
.default_lr(1e-3);

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SupertuningConfig {
    /// Share of each weight that stays.
    pub sparsity: f64,
    /// Train the largest elements; otherwise the smallest.
    pub select_top: bool,
    /// Rank of a low-rank change besides; none if not given.
    pub r: Option<usize>,
    /// Scale numerator of the low-rank change.
    pub lora_alpha: Option<f64>,
    /// Probability of dropping an input element on the low-rank path while training.
    pub lora_dropout: f64,
    /// Start without a change; otherwise with a random one, for tests.
    pub init_weights: bool,
    /// Whether files hold the places: always.
    pub save_precomputed_indices: bool,
    /// Path endings, one regular expression over the whole path, or `all-linear`.
    pub target_modules: Names,
}

impl Default for SupertuningConfig {
    fn default() -> Self {
        Self {
            sparsity: 0.99,
            select_top: true,
            r: None,
            lora_alpha: None,
            lora_dropout: 0.0,
            init_weights: true,
            save_precomputed_indices: true,
            target_modules: Targets::default().target_modules,
        }
    }
}

impl MethodConfig for SupertuningConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "SUPERTUNING";

    fn validate(&self) -> Result<(), AdaptError> {
        if !(0.0..1.0).contains(&self.sparsity) {
            return bad(NAME, "sparsity", "must be at least 0 and below 1");
        }
        if !self.save_precomputed_indices {
            return bad(
                NAME,
                "save_precomputed_indices",
                "files always hold the places here",
            );
        }
        match (self.r, self.lora_alpha) {
            (Some(0), _) => bad(NAME, "r", "must be at least 1, or absent"),
            (Some(_), None) => bad(NAME, "lora_alpha", "needed where `r` is given"),
            (None, Some(_)) => bad(NAME, "lora_alpha", "without effect where `r` is not given"),
            (_, Some(alpha)) if !alpha.is_finite() => {
                bad(NAME, "lora_alpha", "must be a finite number")
            }
            _ => check_dropout(NAME, "lora_dropout", self.lora_dropout),
        }
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        per_linear::from_peft::<SupertuningConfig>(NAME, config, json!({}), &[])
    }
}

fn build(
    config: SupertuningConfig,
    context: &BuildContext<'_>,
) -> Result<PerLinear<Largest>, AdaptError> {
    config.validate()?;
    let targets = Targets {
        target_modules: config.target_modules.clone(),
        ..Targets::default()
    };
    let weights = linear_weights(context);
    PerLinear::new(
        &METHOD,
        &targets,
        context,
        &config,
        json!({}),
        |id, info| {
            let (path, d_in, d_out) = (&info.path, info.d_in, info.d_out);
            let places = d_in * d_out;
            if places > MOST {
                let reason =
                    format!("`{path}` has {places} elements: at most {MOST} are supported");
                return bad(NAME, "target_modules", reason);
            }
            let count = (places as f64 * (1.0 - config.sparsity)) as usize;
            if count == 0 {
                let reason =
                    format!("leaves nothing to train of the {places} elements of `{path}`");
                return bad(NAME, "sparsity", reason);
            }
            let mut order: Vec<usize> = (0..places).collect();
            if let Some(weight) = &weights[id.index()] {
                let sizes: Vec<f32> = to_vec(weight.clone().abs());
                match config.select_top {
                    true => order.sort_by(|&i, &j| sizes[j].total_cmp(&sizes[i])),
                    false => order.sort_by(|&i, &j| sizes[i].total_cmp(&sizes[j])),
                }
            }
            let indices = order[..count].iter().map(|&i| i as f32).collect();
            let mut rng = named_rng(context.seed, path);
            let values = match config.init_weights {
                true => vec![0.0; count],
                false => (0..count).map(|_| standard_normal(&mut rng)).collect(),
            };
            let new = |name: &str, shape: &[usize], values| {
                let name = format!("{path}.supertuning_{name}");
                Parameter::new(name, shape, values, &context.device)
            };
            let low_rank = config.r.map(|r| {
                let a = kaiming(&mut rng, r * d_in, d_in);
                let b = match config.init_weights {
                    true => vec![0.0; d_out * r],
                    false => kaiming(&mut rng, d_out * r, r),
                };
                let scale = config.lora_alpha.unwrap_or(0.0) / r as f64;
                LowRank {
                    a: new("lora_A.weight", &[r, d_in], a),
                    b: new("lora_B.weight", &[d_out, r], b),
                    scale: scale as f32,
                    dropout: config.lora_dropout,
                }
            });
            Ok(Largest {
                values: new("values", &[count], values),
                indices: new("indices", &[count], indices)
                    .freeze()
                    .as_whole_numbers()
                    .indices_below(&[places]),
                low_rank,
            })
        },
    )
}

/// The low-rank change of one layer.
struct LowRank {
    /// `[r, d_in]`.
    a: Parameter,
    /// `[d_out, r]`.
    b: Parameter,
    scale: f32,
    dropout: f64,
}

/// The trained elements of one layer.
struct Largest {
    /// `[n]`.
    values: Parameter,
    /// Places in the weight, row by row, `[n]`.
    indices: Parameter,
    low_rank: Option<LowRank>,
}

impl Largest {
    fn sparse(&self, at: &LinearSite<'_>) -> Tensor<2> {
        let [d_out, d_in] = at.base.weight.dims();
        let values = self.values.get::<1>(at.mode);
        let places: Vec<i64> = self
            .indices
            .to_vec()
            .into_iter()
            .map(|i| i as i64)
            .collect();
        let places = Tensor::<1, Int>::from_data(
            TensorData::from(places.as_slice()),
            &values.device().inner(),
        );
        Tensor::<1>::zeros([d_out * d_in], &values.device())
            .select_assign(0, places, values, IndexingUpdateOp::Add)
            .reshape([d_out, d_in])
    }
}

impl LinearAdapter for Largest {
    fn parameters(&self) -> Vec<&Parameter> {
        let low_rank = self.low_rank.iter().flat_map(|part| [&part.a, &part.b]);
        [&self.values, &self.indices]
            .into_iter()
            .chain(low_rank)
            .collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let low_rank = self
            .low_rank
            .iter_mut()
            .flat_map(|part| [&mut part.a, &mut part.b]);
        [&mut self.values, &mut self.indices]
            .into_iter()
            .chain(low_rank)
            .collect()
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        match &self.low_rank {
            Some(part) => {
                let product = part.b.get::<2>(at.mode).matmul(part.a.get::<2>(at.mode));
                self.sparse(at) + product * part.scale
            }
            None => self.sparse(at),
        }
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        let weight = at.base.weight.dense() + self.sparse(at);
        let y = frugal_kernels::linear(x.clone(), weight, at.base.bias.clone());
        let Some(part) = &self.low_rank else {
            return y;
        };
        let x = match at.mode {
            Mode::Train { seed } if part.dropout > 0.0 => dropout(x, part.dropout, seed, at.path),
            _ => x,
        };
        let low = frugal_kernels::linear(x, part.a.get::<2>(at.mode), None);
        y + frugal_kernels::linear(low, part.b.get::<2>(at.mode), None) * part.scale
    }
}
