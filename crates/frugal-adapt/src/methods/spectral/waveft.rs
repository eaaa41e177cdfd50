//! # WaveFT: coefficients of wavelets
//!
//! ## What it does
//! The change of a weight is the inverse wavelet transform of a few trained coefficients at random
//! places: each moves a small patch of the weight.
//!
//! ## Update rule
//! `ΔW = scaling · IDWT(S)`, `S [d_out, d_in]` zero but for `n_frequency` trained entries, with one level of
//! the two-dimensional transform. With `use_idwt = false` the entries are elements of the weight
//! themselves: `ΔW = scaling · S`.
//!
//! ## When to use, when not
//! For small files whose size is chosen number by number, as FourierFT, at a far lower cost per step:
//! a coefficient touches four elements, not all of them.
//!
//! ## Cost
//! Trainable: `n_frequency` per layer. Extra compute: `ΔW` is formed at each step, `4 n_frequency`
//! additions and one sum of two weights. None after merging.
//!
//! ## Defaults and where they come from
//! `n_frequency = 2592` (LoRA of rank 1 on the paper's model), `scaling = 25`, Haar's wavelet (`db1`), seed
//! 777: paper and Hugging Face `peft`, whose places are drawn again from the seed.
//! `proportional_parameters` shares the sum of all coefficients out by the size of the layers.
//!
//! ## Departures from the paper
//! Of the wavelets, `db1` and `db2` are offered.
//!
//! ## References
//! - Bilican, Yılmaz, Tekalp: Exploring Sparsity for Parameter Efficient Fine Tuning Using Wavelets,
//!   2025, arXiv 2505.12532.

use std::collections::HashMap;
use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::IndexingUpdateOp;
use frugal_nn::{AdaptError, Adapter, BuildContext, Parameter, named_rng, standard_normal};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::pattern::Patterns;
use crate::settings::Settings;
use crate::support::per_linear::{self, LinearAdapter, LinearSite, PerLinear, bad, linear_maps};
use crate::support::torch_random::TorchGenerator;
use crate::target::{Targets, check_patterns, pattern_value};

const NAME: &str = "waveft";

/// Registry entry.
pub const METHOD: Method = Method::of::<WaveftConfig>(
    Family::Spectral,
    "A few trained coefficients of each weight's wavelet transform",
    include_str!("waveft.rs"),
)
.aliases(&["wavelet"])
.default_lr(2e-4);

/// A wavelet, by its name in `peft`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wavelet {
    /// Haar's.
    #[default]
    Db1,
    /// Daubechies' of four coefficients.
    Db2,
}

impl Wavelet {
    /// Low-pass coefficients of the reconstruction.
    fn low(self) -> Vec<f64> {
        match self {
            Self::Db1 => vec![std::f64::consts::FRAC_1_SQRT_2; 2],
            Self::Db2 => {
                let (root, unit) = (3.0_f64.sqrt(), 4.0 * std::f64::consts::SQRT_2);
                [1.0 + root, 3.0 + root, 3.0 - root, 1.0 - root]
                    .map(|c| c / unit)
                    .to_vec()
            }
        }
    }

    /// High-pass coefficients: the others backwards, with alternating signs.
    fn high(self) -> Vec<f64> {
        let low = self.low();
        let signs = [1.0, -1.0].into_iter().cycle();
        low.into_iter()
            .rev()
            .zip(signs)
            .map(|(c, s)| c * s)
            .collect()
    }
}

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WaveftConfig {
    /// Coefficients per layer.
    pub n_frequency: usize,
    /// Scale of the change.
    pub scaling: f64,
    /// The wavelet.
    pub wavelet_family: Wavelet,
    /// Transform the coefficients; otherwise they are elements of the weight.
    pub use_idwt: bool,
    /// Seed of their places.
    pub random_loc_seed: u64,
    /// Number of coefficients by path pattern.
    pub n_frequency_pattern: Patterns<usize>,
    /// Share the coefficients of all layers out by size.
    pub proportional_parameters: bool,
    /// Start without a change.
    pub init_weights: bool,
    /// Which layers.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for WaveftConfig {
    fn default() -> Self {
        Self {
            n_frequency: 2592,
            scaling: 25.0,
            wavelet_family: Wavelet::Db1,
            use_idwt: true,
            random_loc_seed: 777,
            n_frequency_pattern: Patterns::new(),
            proportional_parameters: false,
            init_weights: true,
            targets: Targets::default(),
        }
    }
}

impl MethodConfig for WaveftConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "WAVEFT";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.n_frequency == 0 || self.n_frequency_pattern.values().any(|&n| n == 0) {
            return bad(NAME, "n_frequency", "must be at least 1");
        }
        if self.scaling.is_finite() {
            Ok(())
        } else {
            bad(NAME, "scaling", "must be a finite number")
        }
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        per_linear::from_peft_without_bias::<WaveftConfig>(NAME, config)
    }
}

/// Where the coefficients of one size of layer go: entry `n` of these adds `weights[n]` times
/// coefficient `of[n]` to element `to[n]`.
struct Patches {
    of: Vec<i64>,
    to: Vec<i64>,
    weights: Vec<f32>,
}

impl Patches {
    fn new(config: &WaveftConfig, d_out: usize, d_in: usize, count: usize) -> Self {
        let places = TorchGenerator::new(config.random_loc_seed).permutation(d_out * d_in, count);
        let mut patches = Self {
            of: vec![],
            to: vec![],
            weights: vec![],
        };
        let (low, high) = (config.wavelet_family.low(), config.wavelet_family.high());
        // The transform gives as many rows as it takes, less these.
        let lost = low.len() - 2;
        let half = |d: usize| (d + lost).div_ceil(2);
        for (n, place) in places.into_iter().enumerate() {
            let (i, j) = (place / d_in, place % d_in);
            if !config.use_idwt {
                patches.push(n, i * d_in + j, 1.0);
                continue;
            }
            // The places lie in the middle of a spectrum with room for the borders.
            let offset = |d: usize| (2 * half(d) - d) / 2;
            let (i, j) = (i + offset(d_out), j + offset(d_in));
            // The right half of the spectrum holds what varies along the rows, the lower half what
            // varies along the columns.
            let rows = if j < half(d_in) { &low } else { &high };
            let cols = if i < half(d_out) { &low } else { &high };
            let at = |p: usize, half: usize, t: usize| (2 * (p % half) + t).checked_sub(lost);
            for (s, row) in rows.iter().enumerate() {
                for (t, col) in cols.iter().enumerate() {
                    let (row_at, col_at) = (at(i, half(d_out), s), at(j, half(d_in), t));
                    if let (Some(y), Some(x)) = (row_at, col_at)
                        && y < d_out
                        && x < d_in
                    {
                        patches.push(n, y * d_in + x, (row * col) as f32);
                    }
                }
            }
        }
        patches
    }

    fn push(&mut self, of: usize, to: usize, weight: f32) {
        self.of.push(of as i64);
        self.to.push(to as i64);
        self.weights.push(weight);
    }
}

fn build(
    config: WaveftConfig,
    context: &BuildContext<'_>,
) -> Result<PerLinear<Spectrum>, AdaptError> {
    config.validate()?;
    check_patterns(
        "n_frequency_pattern",
        &config.n_frequency_pattern,
        context.sites,
    )?;
    let chosen = linear_maps(NAME, &config.targets, context)?;
    let size = |info: &frugal_nn::SiteInfo| info.d_in * info.d_out;
    let all: usize = chosen.iter().map(|&id| size(context.sites.info(id))).sum();
    let mut known: HashMap<(usize, usize, usize), Arc<Patches>> = HashMap::new();
    let constants = json!({"bias": "none", "fan_in_fan_out": false});
    PerLinear::new(
        &METHOD,
        &config.targets,
        context,
        &config,
        constants,
        |_, info| {
            let count = if config.proportional_parameters {
                let budget = (config.n_frequency * chosen.len()) as f64;
                let share = (size(info) as f64 / all as f64 * budget).round_ties_even();
                (share as usize).max(1)
            } else {
                pattern_value(
                    "n_frequency_pattern",
                    &config.n_frequency_pattern,
                    &info.path,
                )?
                .unwrap_or(config.n_frequency)
            };
            if count > size(info) {
                let reason = format!(
                    "{count} exceeds the {} elements of `{}`",
                    size(info),
                    info.path
                );
                return bad(NAME, "n_frequency", reason);
            }
            let values = if config.init_weights {
                vec![0.0; count]
            } else {
                let mut rng = named_rng(context.seed, &info.path);
                (0..count)
                    .map(|_| 0.01 * standard_normal(&mut rng))
                    .collect()
            };
            let new = || Arc::new(Patches::new(&config, info.d_out, info.d_in, count));
            Ok(Spectrum {
                coefficients: Parameter::new(
                    format!("{}.waveft_spectrum", info.path),
                    &[count],
                    values,
                    &context.device,
                ),
                patches: known
                    .entry((info.d_out, info.d_in, count))
                    .or_insert_with(new)
                    .clone(),
                scale: config.scaling as f32,
            })
        },
    )
}

/// The coefficients of one layer.
struct Spectrum {
    /// `[n]`.
    coefficients: Parameter,
    patches: Arc<Patches>,
    scale: f32,
}

impl LinearAdapter for Spectrum {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.coefficients]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.coefficients]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        let [d_out, d_in] = at.base.weight.dims();
        let coefficients = self.coefficients.get::<1>(at.mode) * self.scale;
        let device = coefficients.device().inner();
        let places = |list: &[i64]| Tensor::<1, Int>::from_data(TensorData::from(list), &device);
        let weights =
            Tensor::<1>::from_data(TensorData::from(self.patches.weights.as_slice()), &device);
        let values = coefficients.select(0, places(&self.patches.of)) * weights;
        Tensor::<1>::zeros([d_out * d_in], &values.device())
            .select_assign(0, places(&self.patches.to), values, IndexingUpdateOp::Add)
            .reshape([d_out, d_in])
    }
}
