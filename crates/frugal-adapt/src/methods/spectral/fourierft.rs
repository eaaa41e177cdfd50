//! # FourierFT: coefficients in the frequency domain
//!
//! ## What it does
//! The change of a weight is the inverse Fourier transform of a few trained coefficients at random
//! frequencies, the same ones for all layers of a size.
//!
//! ## Update rule
//! `ΔW = scaling · Re(ifft2(S))`, `S [d_out, d_in]` zero but for `n_frequency` trained entries.
//!
//! ## When to use, when not
//! For very small files: a thousand numbers per layer, whatever its size. Steps are slow on a CPU,
//! because `ΔW` is formed anew each time; prefer IA³ or VeRA there unless the file size decides.
//!
//! ## Cost
//! Trainable: `n_frequency` per layer. Extra memory: `2 n_frequency (d_in + d_out)` numbers per size
//! of layer. Extra compute: `2 n_frequency d_in d_out` multiply-adds per layer and step, forward, and
//! twice that backward. None after merging.
//!
//! ## Defaults and where they come from
//! `n_frequency = 1000`, `scaling = 150`, seed 777: paper and Hugging Face `peft`. The coefficients
//! start at standard normal values, so the model changes a little before training
//! (`init_weights = true` starts at zero). The places are those that PyTorch draws from the seed,
//! as in `peft`.
//!
//! ## Departures from the paper
//! The paper's frequency bias (a band that is preferred) is not offered, as in `peft`.
//!
//! ## References
//! - Gao, Wang, Chen, Liu, Wu, Chen, Li: Parameter-Efficient Fine-Tuning with Discrete Fourier
//!   Transform, 2024, arXiv 2405.03003.

use std::collections::HashMap;
use std::sync::Arc;

use burn::prelude::*;
use frugal_nn::{AdaptError, Adapter, BuildContext, Parameter, named_rng, standard_normal};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::pattern::Patterns;
use crate::settings::Settings;
use crate::support::per_linear::{self, LinearAdapter, LinearSite, PerLinear, bad};
use crate::support::torch_random::TorchGenerator;
use crate::target::{Targets, check_patterns, pattern_value};

const NAME: &str = "fourierft";

/// Registry entry.
pub const METHOD: Method = Method::of::<FourierConfig>(
    Family::Spectral,
    "A few trained coefficients of each weight's Fourier transform",
    include_str!("fourierft.rs"),
)
.aliases(&["fourier"])
.default_lr(3e-2)
.without_identity();

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FourierConfig {
    /// Coefficients per layer.
    pub n_frequency: usize,
    /// Scale of the change.
    pub scaling: f64,
    /// Seed of their places.
    pub random_loc_seed: u64,
    /// Start without a change.
    pub init_weights: bool,
    /// Number of coefficients by path pattern.
    pub n_frequency_pattern: Patterns<usize>,
    /// Which layers.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for FourierConfig {
    fn default() -> Self {
        Self {
            n_frequency: 1000,
            scaling: 150.0,
            random_loc_seed: 777,
            init_weights: false,
            n_frequency_pattern: Patterns::new(),
            targets: Targets::default(),
        }
    }
}

impl MethodConfig for FourierConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "FOURIERFT";

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
        per_linear::from_peft_without_bias::<FourierConfig>(NAME, config)
    }
}

/// Elements that the waves of one size of layer may have: 2 GiB.
const MAX_WAVES: u64 = 1 << 29;

/// What the coefficients of one size of layer multiply: `Re(ifft2)` of one entry at `(u, v)` is
/// `cos(2π (u i / d_out + v j / d_in)) / (d_out d_in)`, a sum of two products of waves along the
/// rows and the columns.
struct Waves {
    /// `[d_out, 2 n]`: cosines, then negative sines.
    rows: Tensor<2>,
    /// `[d_in, 2 n]`: cosines, then sines.
    cols: Tensor<2>,
}

impl Waves {
    fn new(seed: u64, d_out: usize, d_in: usize, count: usize, device: &Device) -> Self {
        let places = TorchGenerator::new(seed).permutation(d_out * d_in, count);
        let side = |length: usize, sine: f64, frequency: &dyn Fn(usize) -> usize| {
            let angle = |k: usize| std::f64::consts::TAU * k as f64 / length as f64;
            let (cos, sin): (Vec<f32>, Vec<f32>) = (0..length)
                .map(|k| (angle(k).cos() as f32, (sine * angle(k).sin()) as f32))
                .unzip();
            let mut values = Vec::with_capacity(length * 2 * count);
            for i in 0..length {
                values.extend(places.iter().map(|&p| cos[frequency(p) * i % length]));
                values.extend(places.iter().map(|&p| sin[frequency(p) * i % length]));
            }
            Tensor::from_data(
                TensorData::new(values, [length, 2 * count]),
                &device.clone().inner(),
            )
        };
        Self {
            rows: side(d_out, -1.0, &|p| p / d_in),
            cols: side(d_in, 1.0, &|p| p % d_in),
        }
    }
}

fn build(
    config: FourierConfig,
    context: &BuildContext<'_>,
) -> Result<PerLinear<Spectrum>, AdaptError> {
    config.validate()?;
    check_patterns(
        "n_frequency_pattern",
        &config.n_frequency_pattern,
        context.sites,
    )?;
    let mut known: HashMap<(usize, usize, usize), Arc<Waves>> = HashMap::new();
    let constants = json!({"bias": "none", "fan_in_fan_out": false});
    PerLinear::new(
        &METHOD,
        &config.targets,
        context,
        &config,
        constants,
        |_, info| {
            let count = pattern_value(
                "n_frequency_pattern",
                &config.n_frequency_pattern,
                &info.path,
            )?
            .unwrap_or(config.n_frequency);
            let places = info.d_in * info.d_out;
            if count > places {
                return bad(
                    NAME,
                    "n_frequency",
                    format!("{count} exceeds the {places} elements of `{}`", info.path),
                );
            }
            // Each has a wave along every row and every column.
            let waves = 2 * (info.d_in + info.d_out) as u64 * count as u64;
            if waves > MAX_WAVES {
                let gib = (waves * 4) as f64 / f64::from(1 << 30);
                return bad(
                    NAME,
                    "n_frequency",
                    format!(
                        "{count} coefficients of `{}` take {gib:.1} GiB of waves: use fewer",
                        info.path
                    ),
                );
            }
            let mut rng = named_rng(context.seed, &info.path);
            let values = if config.init_weights {
                vec![0.0; count]
            } else {
                (0..count).map(|_| standard_normal(&mut rng)).collect()
            };
            let new = || {
                Arc::new(Waves::new(
                    config.random_loc_seed,
                    info.d_out,
                    info.d_in,
                    count,
                    &context.device,
                ))
            };
            Ok(Spectrum {
                coefficients: Parameter::new(
                    format!("{}.fourierft_spectrum", info.path),
                    &[count],
                    values,
                    &context.device,
                ),
                waves: known
                    .entry((info.d_out, info.d_in, count))
                    .or_insert_with(new)
                    .clone(),
                scale: (config.scaling / places as f64) as f32,
            })
        },
    )
}

/// The coefficients of one layer.
struct Spectrum {
    /// `[n]`.
    coefficients: Parameter,
    waves: Arc<Waves>,
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
        let c = self.coefficients.get::<1>(at.mode) * self.scale;
        let both = Tensor::cat(vec![c.clone(), c], 0).unsqueeze::<2>();
        let (rows, cols) = (self.waves.rows.clone(), self.waves.cols.clone());
        // The coefficients go to the smaller side.
        let (rows, cols) = if rows.dims()[0] < cols.dims()[0] {
            (rows * both, cols)
        } else {
            (rows, cols * both)
        };
        frugal_kernels::linear(rows, cols, None)
    }
}
