//! # MonteCLoRA: LoRA around whose `A` training samples
//!
//! ## What it does
//! LoRA whose `A` is drawn in every training step from a distribution around it that is learned too:
//! a mixture of normal samples. What is used in the end is its middle.
//!
//! ## Update rule
//! In training `A' = A + Σₙ wₙ εₙ`, `εₙ = sample_scaler · Z diag(√v)`, `v = e^{2ρ} χ²`, with `Z` normal, `χ²` of `r` degrees of freedom, and
//! `w` the softmax of `log α − mean(log α) + z √(α⁻¹ (1 − 2/N) + Σ α⁻¹ / N²)`, `α = e^π`: a Dirichlet variable, nearly. `ρ [r]` and
//! `π [N]` are trained with `A` and `B`. The loss has `kl_loss_weight` times the divergences from the priors added for each
//! layer, and `Σ w²` with `use_entropy`. Elsewhere it is LoRA.
//!
//! ## When to use, when not
//! Where LoRA's result depends much on seed and rate, or its probabilities are overconfident. With little
//! data; with much of it LoRA does the same for less.
//!
//! ## Cost
//! Trainable: LoRA's and `r + N` per layer. Extra compute in training: `N r d_in` random numbers per layer and pass. None after
//! merging.
//!
//! ## Defaults and where they come from
//! `num_samples = 8`, `sample_scaler = 1e-4`, `kl_loss_weight = 1e-5`, `dirichlet_prior = 0.1`, no entropy: Hugging Face `peft`. `ρ` and `π` start
//! uniform between 0 and 1; the rest as `lora`.
//!
//! ## Departures from the paper
//! `peft` leaves it to the user to add the terms of the loss; here they are a part of it, with `peft`'s signs. Samples are drawn from the
//! run's seed in every pass; `buffer_size`, how many `peft` draws at a time, has no effect.
//!
//! ## References
//! - Sengupta, Seth, Pathak, Raman, Gopalakrishnan, Chakraborty: Robust and Efficient Fine-tuning of LLMs with Bayesian
//!   Reparameterization of Low-Rank Adaptation, 2024, arXiv 2411.04358.

use burn::prelude::*;
use burn::tensor::activation::softmax;
use frugal_nn::{AdaptError, Adapter, BuildContext, Mode, Parameter, named_rng};
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::dropout::dropout;
use crate::support::lora_like::{self, LoraLike};
use crate::support::per_linear::{LinearAdapter, LinearSite, PerLinear, bad};
use crate::support::torch_random::TorchGenerator;

const NAME: &str = "monteclora";

/// Least variance, and least variance of the mixture's logits.
const LEAST: (f32, f32) = (1e-3, 1e-6);

/// Registry entry.
pub const METHOD: Method = Method::of::<MontecloraConfig>(
    Family::LowRank,
    "LoRA around whose first factor training samples",
    include_str!("monteclora.rs"),
)
.default_lr(5e-4)
.peft_variant(|config| {
    config
        .get("monteclora_config")
        .is_some_and(|v| !v.is_null())
});

/// The distribution, with `peft`'s names.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Samples of a mixture.
    pub num_samples: usize,
    /// Whether mixtures of one sample cost.
    pub use_entropy: bool,
    /// Prior of the mixture.
    pub dirichlet_prior: f64,
    /// Size of the samples.
    pub sample_scaler: f64,
    /// Weight of the divergences.
    pub kl_loss_weight: f64,
    /// Without effect.
    pub buffer_size: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            num_samples: 8,
            use_entropy: false,
            dirichlet_prior: 0.1,
            sample_scaler: 1e-4,
            kl_loss_weight: 1e-5,
            buffer_size: 150,
        }
    }
}

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MontecloraConfig {
    /// The distribution.
    pub monteclora_config: Sampling,
    /// The rest.
    #[serde(flatten)]
    pub lora: LoraLike,
}

impl MethodConfig for MontecloraConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "LORA";

    fn validate(&self) -> Result<(), AdaptError> {
        let s = &self.monteclora_config;
        let fits = (1..=1024).contains(&s.num_samples)
            && s.dirichlet_prior > 0.0
            && s.dirichlet_prior.is_finite()
            && s.sample_scaler.is_finite()
            && s.kl_loss_weight.is_finite()
            && s.buffer_size > 0;
        if !fits {
            let reason = "`num_samples` must be from 1 to 1024, `dirichlet_prior` and `buffer_size` positive, the others finite";
            return bad(NAME, "monteclora_config", reason);
        }
        self.lora.validate(NAME)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        lora_like::from_peft::<MontecloraConfig>(NAME, config, &["monteclora_config"])
    }
}

fn build(
    config: MontecloraConfig,
    context: &BuildContext<'_>,
) -> Result<PerLinear<Sampled>, AdaptError> {
    config.validate()?;
    config.lora.check_patterns(context.sites)?;
    let sampling = config.monteclora_config;
    let constants = lora_like::constants(json!({"monteclora_config": sampling}));
    PerLinear::new(
        &METHOD,
        &config.lora.targets,
        context,
        &config,
        constants,
        |_, info| {
            let (r, _) = config.lora.of(info)?;
            let factors =
                config
                    .lora
                    .factors(info, (info.d_in, r), context.seed, &context.device)?;
            let n = sampling.num_samples;
            let name = |part: &str| format!("{}.lora_monteclora_sampler.{part}", info.path);
            let mut rng = named_rng(context.seed, &name("std_prior"));
            let mut uniform = |part: &str, len: usize| {
                let values = (0..len).map(|_| rng.random_range(0.0..1.0)).collect();
                Parameter::new(name(part), &[len], values, &context.device)
            };
            let unit = (0..r * r).map(|i| f32::from(u8::from(i % (r + 1) == 0)));
            let fixed = |part: &str, shape: &[usize], values: Vec<f32>| {
                Parameter::frozen(name(part), shape, values, &context.device)
            };
            Ok(Sampled {
                path: info.path.clone(),
                a: factors.a,
                b: factors.b,
                spread: uniform("std_prior", r),
                shares: uniform("expert_weights_prior", n),
                kept: [
                    fixed("gaussian_var_prior", &[r, r], unit.collect()),
                    fixed("expert_weights", &[n], vec![1.0 / n as f32; n]),
                ],
                sampling,
                scale: factors.scale,
                dropout: config.lora.lora_dropout,
            })
        },
    )
}

/// The pair of one layer and the distribution around it.
struct Sampled {
    path: String,
    /// `[r, d_in]`.
    a: Parameter,
    /// `[d_out, r]`.
    b: Parameter,
    /// `ρ [r]`.
    spread: Parameter,
    /// `π [num_samples]`.
    shares: Parameter,
    /// The last sample's variance and shares in files of `peft`: of no effect.
    kept: [Parameter; 2],
    sampling: Sampling,
    scale: f32,
    dropout: f64,
}

/// One draw.
struct Draw {
    /// `Z [num_samples, d_in r]`.
    normal: Tensor<2>,
    /// `v [r]`.
    variance: Tensor<1>,
    /// `w [num_samples]`.
    shares: Tensor<1>,
}

impl Sampled {
    fn draw(&self, seed: u64, mode: Mode) -> Draw {
        let [r, d_in] = [self.a.shape()[0], self.a.shape()[1]];
        let n = self.sampling.num_samples;
        let mut generator = TorchGenerator::of_place(seed, &self.path);
        let all = generator.randn((n * d_in * r + r * r + n).max(16));
        let (normal, rest) = all.split_at(n * d_in * r);
        let (squares, rest) = rest.split_at(r * r);
        let square = |row: &[f32]| row.iter().map(|z| z * z).sum::<f32>();
        let squares: Vec<f32> = squares.chunks(r).map(square).collect();
        let spread = self.spread.get::<1>(mode);
        let device = spread.device().inner();
        let vector = |values: Vec<f32>| {
            let len = values.len();
            Tensor::<1>::from_data(TensorData::new(values, [len]), &device)
        };
        let variance = ((spread * 2.0).exp() * vector(squares)).clamp_min(LEAST.0);
        let logits = self.shares.get::<1>(mode);
        let inverse = logits.clone().neg().exp();
        let each = inverse.clone() * (1.0 - 2.0 / n as f32);
        let common = inverse.sum() / (n * n) as f32;
        let deviation = ((each + common).clamp_min(LEAST.1) + LEAST.1).sqrt();
        let middle = logits.clone() - logits.mean();
        let drawn = deviation * vector(rest[..n].to_vec()) + middle;
        Draw {
            normal: Tensor::from_data(TensorData::new(normal.to_vec(), [n, d_in * r]), &device),
            variance,
            shares: softmax(drawn, 0),
        }
    }

    /// `A' [r, d_in]`.
    fn sample(&self, seed: u64, mode: Mode) -> Tensor<2> {
        let [r, d_in] = [self.a.shape()[0], self.a.shape()[1]];
        let draw = self.draw(seed, mode);
        let mixed = draw.shares.unsqueeze::<2>().matmul(draw.normal);
        let change = mixed.reshape([d_in, r]) * draw.variance.sqrt().unsqueeze::<2>();
        self.a.get::<2>(mode) + change.transpose() * self.sampling.sample_scaler as f32
    }
}

impl LinearAdapter for Sampled {
    fn parameters(&self) -> Vec<&Parameter> {
        let [variance, shares] = &self.kept;
        vec![
            &self.a,
            &self.b,
            &self.spread,
            &self.shares,
            variance,
            shares,
        ]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let [variance, shares] = &mut self.kept;
        vec![
            &mut self.a,
            &mut self.b,
            &mut self.spread,
            &mut self.shares,
            variance,
            shares,
        ]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        self.b.get::<2>(at.mode).matmul(self.a.get::<2>(at.mode)) * self.scale
    }

    fn materializes_weight(&self) -> bool {
        false
    }

    fn samples(&self) -> bool {
        true
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        let b = self.b.get::<2>(at.mode);
        let Mode::Train { seed } = at.mode else {
            return at
                .base
                .forward_low_rank(x, self.a.get::<2>(at.mode), b, self.scale);
        };
        let a = self.sample(seed, at.mode);
        if self.dropout == 0.0 {
            return at.base.forward_low_rank(x, a, b, self.scale);
        }
        let y = at.base.forward(x.clone());
        let x = dropout(x, self.dropout, seed, at.path);
        y + frugal_kernels::linear(frugal_kernels::linear(x, a, None), b, None) * self.scale
    }

    fn penalty(&self, mode: Mode) -> Option<Tensor<1>> {
        let Mode::Train { seed } = mode else {
            return None;
        };
        let (r, n) = (self.a.shape()[0] as f32, self.sampling.num_samples as f32);
        let draw = self.draw(seed, mode);
        let logits = self.shares.get::<1>(mode);
        let values: Vec<f64> = self.shares.to_vec().into_iter().map(f64::from).collect();
        let (value, slopes) = dirichlet(&values, self.sampling.dirichlet_prior);
        let device = logits.device().inner();
        let slopes =
            Tensor::<1>::from_data(TensorData::new(slopes.clone(), [slopes.len()]), &device);
        let still = Tensor::from_inner(logits.clone().inner());
        let of_shares = ((logits - still) * slopes).sum() + value;
        let twice = self.spread.get::<1>(mode) * 2.0;
        let of_spread = (twice.clone().exp().sum() - twice.sum() - r) * (0.5 * r);
        let variance = draw.variance.clone();
        let of_samples = (variance.clone().sum() - variance.log().sum() - r) * (0.5 * n);
        let all = (of_shares + of_spread + of_samples) * self.sampling.kl_loss_weight as f32;
        Some(match self.sampling.use_entropy {
            true => all + draw.shares.powi_scalar(2).sum(),
            false => all,
        })
    }
}

/// What the mixture's divergence from its prior counts as, as `peft` computes it, and its slope for each
/// logarithm of `α`.
fn dirichlet(logs: &[f64], prior: f64) -> (f32, Vec<f32>) {
    let alpha: Vec<f64> = logs.iter().map(|l| l.exp()).collect();
    let (sum, of_prior) = (alpha.iter().sum::<f64>(), prior * alpha.len() as f64);
    let (of_sum, its_slope) = (digamma(sum), trigamma(sum));
    let terms = alpha
        .iter()
        .map(|a| ln_gamma(*a) - ln_gamma(prior) + (a - prior) * (digamma(*a) - of_sum));
    let value = ln_gamma(sum) - ln_gamma(of_prior) + terms.sum::<f64>();
    let slope = |a: &f64| {
        let own = 2.0 * digamma(*a) + (a - prior) * trigamma(*a);
        (a * (own - its_slope * (sum - of_prior))) as f32
    };
    (value as f32, alpha.iter().map(slope).collect())
}

/// Moves `x` to where the series converges, adding up what the steps count.
fn shifted(mut x: f64, step: impl Fn(f64) -> f64) -> (f64, f64) {
    let mut sum = 0.0;
    while x < 10.0 {
        sum += step(x);
        x += 1.0;
    }
    (x, sum)
}

/// `ln Γ(x)` of positive numbers, by Stirling's series.
fn ln_gamma(x: f64) -> f64 {
    let (x, sum) = shifted(x, f64::ln);
    let (inverse, square) = (1.0 / x, 1.0 / (x * x));
    let series =
        inverse * (1.0 / 12.0 - square * (1.0 / 360.0 - square * (1.0 / 1260.0 - square / 1680.0)));
    (x - 0.5) * x.ln() - x + 0.5 * std::f64::consts::TAU.ln() + series - sum
}

/// Its slope.
fn digamma(x: f64) -> f64 {
    let (x, sum) = shifted(x, |x| 1.0 / x);
    let square = 1.0 / (x * x);
    let series =
        square * (1.0 / 12.0 - square * (1.0 / 120.0 - square * (1.0 / 252.0 - square / 240.0)));
    x.ln() - 0.5 / x - series - sum
}

/// The slope of that.
fn trigamma(x: f64) -> f64 {
    let (x, sum) = shifted(x, |x| 1.0 / (x * x));
    let square = 1.0 / (x * x);
    let series =
        square * (1.0 / 6.0 - square * (1.0 / 30.0 - square * (1.0 / 42.0 - square / 30.0)));
    1.0 / x + 0.5 * square + series / x + sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_of_gamma() {
        // Γ(5) = 24, Γ(1/2) = √π, ψ(1) = −γ, ψ'(1) = π² / 6.
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-10, "{found}");
        near(ln_gamma(5.0), 24f64.ln());
        near(ln_gamma(0.5), 0.5 * std::f64::consts::PI.ln());
        near(digamma(1.0), -0.577_215_664_901_532_9);
        near(trigamma(1.0), std::f64::consts::PI.powi(2) / 6.0);
    }

    #[test]
    fn the_slopes_of_the_divergence_are_those_of_its_value() {
        let logs = [0.1, 0.7, 0.4];
        let (_, slopes) = dirichlet(&logs, 0.1);
        for (i, slope) in slopes.iter().enumerate() {
            let at = |by: f64| {
                let mut logs = logs;
                logs[i] += by;
                f64::from(dirichlet(&logs, 0.1).0)
            };
            let found = (at(1e-2) - at(-1e-2)) / 2e-2;
            assert!((found - f64::from(*slope)).abs() < 2e-3, "{found} {slope}");
        }
    }
}
