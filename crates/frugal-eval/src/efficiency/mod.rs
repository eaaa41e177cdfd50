//! Six measures of what running a model costs: memory, utilisation, latency, throughput, power,
//! compression.
//!
//! # What it does
//! While a program runs, its memory and processor time are sampled; from the samples and from what
//! the program did come measures that compare systems of any kind. [`normalised`] puts compared
//! systems on one scale for a radar chart, on which differences within noise stay small.
//!
//! # Update rule
//! Over a run of duration `T`: average memory `(1/T) ∫ M dt`; average utilisation
//! `(processor time) / (T · processors)`; FLOP utilisation `(4 N + 2 N_trained) · tokens / T` as a
//! share of the machine's matrix products; average latency `T / iterations`; throughput
//! `tokens / (parameters · T)` for training (samples instead of tokens for fine-tuning),
//! `tokens / T` for generation; average power `(1/T) ∫ P dt`; compression
//! `(size before / size after) · (score after / score before)`. Integrals by the trapezoidal rule.
//!
//! # When to use, when not
//! To compare configurations on one machine. Tokens for each parameter and second reward large
//! models: never put them beside plain tokens a second. Compression needs a score of which more is
//! better; for perplexity take its inverse.
//!
//! # Cost
//! Reading a few files of `/proc` twenty times a second.
//!
//! # Defaults and where they come from
//! Samples every 50 ms. Memory is the resident size of all processes of the program. Power is
//! measured where the kernel lets its energy counter be read; elsewhere it is modelled as 10 W idle
//! and 15 W for each busy processor, and marked so.
//!
//! # Departures from the paper
//! The benchmark published no code; these are its definitions as far as its text gives them,
//! carried over to processors. The scale spans at least a tenth of the best value.
//!
//! # References
//! Yuan et al.: EfficientLLM: Efficiency in Large Language Models, 2025, arXiv 2505.13840.

mod energy;
mod sampler;
mod system;

use std::path::Path;
use std::time::Duration;

pub use energy::EnergyCounter;
pub use sampler::{Sampler, processor_seconds, watch};
use serde::{Deserialize, Serialize};
pub use system::{GENERATION_FILE, Scaled, System, scaled};

/// Name of the file that [`Efficiency`] is kept in beside a run's record.
pub const EFFICIENCY_FILE: &str = "efficiency.json";

/// Time between samples.
pub const INTERVAL: Duration = Duration::from_millis(50);

/// The state of a program at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Seconds since it began.
    pub seconds: f64,
    /// Resident bytes of all its processes.
    pub memory: f64,
    /// Processor seconds used so far.
    pub processor_seconds: f64,
    /// Joules used so far by the machine, where they can be read.
    pub joules: Option<f64>,
}

/// How power is reckoned where it cannot be measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PowerModel {
    /// Watts of the idle machine.
    pub idle: f64,
    /// Watts that a busy processor adds.
    pub processor: f64,
}

impl Default for PowerModel {
    fn default() -> Self {
        Self {
            idle: 10.0,
            processor: 15.0,
        }
    }
}

/// What a run cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Efficiency {
    /// Seconds.
    pub seconds: f64,
    /// Average memory, in bytes.
    pub average_memory: f64,
    /// Highest memory, in bytes.
    pub peak_memory: f64,
    /// Average share of the processors that was used.
    pub utilisation: f64,
    /// Average power in watts.
    pub average_power: f64,
    /// Whether power is modelled and not measured.
    pub power_is_modelled: bool,
    /// Energy in joules.
    pub energy: f64,
    /// Operations that the model needs in a second, as a share of what the machine can do at most;
    /// where a run says how many tokens it trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flop_utilisation: Option<f64>,
    /// What the machine can do at most by its own matrix products, 10⁹ operations a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_gflops: Option<f64>,
}

/// Operations of training on so many tokens: twice the parameters forward, as much for the
/// gradients of activations, and twice the trained parameters for their own. `6 N D` where all are
/// trained.
pub fn training_flops(parameters: f64, trained: f64, tokens: f64) -> f64 {
    (4.0 * parameters + 2.0 * trained) * tokens
}

impl Efficiency {
    /// From samples of a run on so many processors; `None` of fewer than two samples.
    pub fn new(samples: &[Sample], processors: usize, model: PowerModel) -> Option<Self> {
        let (first, last) = (samples.first()?, samples.last()?);
        let seconds = last.seconds - first.seconds;
        if samples.len() < 2 || seconds <= 0.0 {
            return None;
        }
        let busy = last.processor_seconds - first.processor_seconds;
        let measured = first
            .joules
            .zip(last.joules)
            .map(|(a, b)| b - a)
            .filter(|e| *e > 0.0);
        let energy = measured.unwrap_or(model.idle * seconds + model.processor * busy);
        Some(Self {
            seconds,
            average_memory: time_average(
                &samples
                    .iter()
                    .map(|s| (s.seconds, s.memory))
                    .collect::<Vec<_>>(),
            )?,
            peak_memory: samples.iter().map(|s| s.memory).fold(0.0, f64::max),
            utilisation: busy / (seconds * processors.max(1) as f64),
            average_power: energy / seconds,
            power_is_modelled: measured.is_none(),
            energy,
            flop_utilisation: None,
            peak_gflops: None,
        })
    }

    /// Fills in the share of the machine's operations that a run used which trained `trained` of
    /// `parameters` on `tokens` in `seconds`.
    #[must_use]
    pub fn with_flops(self, peak_gflops: f64, flops: f64, seconds: f64) -> Self {
        let known = peak_gflops > 0.0 && seconds > 0.0 && flops > 0.0;
        Self {
            flop_utilisation: known.then(|| flops / seconds / (1e9 * peak_gflops)),
            peak_gflops: (peak_gflops > 0.0).then_some(peak_gflops),
            ..self
        }
    }

    /// Reads what was kept beside a run, if anything was.
    pub fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(folder.join(EFFICIENCY_FILE)).ok()?).ok()
    }
}

/// Average over time of a quantity known at some moments, by the trapezoidal rule; `None` of fewer
/// than two moments.
pub fn time_average(points: &[(f64, f64)]) -> Option<f64> {
    let duration = points.last()?.0 - points.first()?.0;
    let area: f64 = points
        .windows(2)
        .map(|w| 0.5 * (w[0].1 + w[1].1) * (w[1].0 - w[0].0))
        .sum();
    (points.len() > 1 && duration > 0.0).then(|| area / duration)
}

/// Tokens (or samples) for each parameter and second.
pub fn throughput_per_parameter(units: f64, parameters: f64, seconds: f64) -> f64 {
    units / (parameters * seconds)
}

/// How much smaller a model became, scaled by what is left of its score.
pub fn compression(size_before: f64, size_after: f64, score_before: f64, score_after: f64) -> f64 {
    size_before / size_after * (score_after / score_before)
}

/// The scale of [`normalised`] spans at least this share of the best value: what differs by less is
/// within what repeated measurements differ by.
const LEAST_SPAN: f64 = 0.1;

/// Values of compared systems on a scale from 1 (best) to 0 (worst, or a tenth off the best if all
/// are closer than that): differences within noise stay small. Missing values stay so, and what is
/// not finite is worst.
pub fn normalised(values: &[Option<f64>], lower_is_better: bool) -> Vec<Option<f64>> {
    normalised_beyond(values, &[], lower_is_better)
}

/// The same with the standard deviations of the values, where they are known: the scale spans at
/// least twice the largest of them.
pub fn normalised_beyond(
    values: &[Option<f64>],
    deviations: &[Option<f64>],
    lower_is_better: bool,
) -> Vec<Option<f64>> {
    let known = || values.iter().flatten().copied().filter(|v| v.is_finite());
    let (low, high) = (
        known().fold(f64::INFINITY, f64::min),
        known().fold(f64::NEG_INFINITY, f64::max),
    );
    let best = if lower_is_better { low } else { high };
    let noise = deviations.iter().flatten().copied().fold(0.0, f64::max);
    let span = (high - low).max(LEAST_SPAN * best.abs()).max(2.0 * noise);
    let scaled = |v: f64| match v.is_finite() {
        false => 0.0,
        true if span > 0.0 => 1.0 - (v - best).abs() / span,
        true => 1.0,
    };
    values.iter().map(|v| v.map(scaled)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(memory: impl Fn(f64) -> f64) -> Vec<Sample> {
        let at = |i: u32| f64::from(i) * 0.5;
        let sample = |i| Sample {
            seconds: at(i),
            memory: memory(at(i)),
            processor_seconds: 1.5 * at(i),
            joules: None,
        };
        (0..=20).map(sample).collect()
    }

    #[test]
    fn averages_of_known_traces() {
        let constant = Efficiency::new(&trace(|_| 7e8), 2, PowerModel::default()).unwrap();
        assert!((constant.average_memory - 7e8).abs() < 1e-3 && constant.peak_memory == 7e8);
        // The mean of a ramp is its middle, also when the moments are not evenly spaced.
        let ramp = Efficiency::new(&trace(|t| 1e6 * t), 2, PowerModel::default()).unwrap();
        assert!((ramp.average_memory - 5e6).abs() < 1e-3);
        assert!((time_average(&[(0.0, 0.0), (1.0, 2.0), (4.0, 8.0)]).unwrap() - 4.0).abs() < 1e-12);
        // One and a half of two processors busy.
        assert!((ramp.utilisation - 0.75).abs() < 1e-12);
        // 10 W idle and 15 W for each busy processor.
        assert!(
            (ramp.average_power - 32.5).abs() < 1e-12
                && ramp.power_is_modelled
                && (ramp.energy - 325.0).abs() < 1e-9
        );
        assert!(Efficiency::new(&trace(|_| 1.0)[..1], 1, PowerModel::default()).is_none());
    }

    #[test]
    fn energy_is_measured_where_it_can_be() {
        let mut samples = trace(|_| 1.0);
        samples
            .iter_mut()
            .for_each(|s| s.joules = Some(1000.0 + 42.0 * s.seconds));
        let found = Efficiency::new(&samples, 2, PowerModel::default()).unwrap();
        assert!((found.average_power - 42.0).abs() < 1e-9 && !found.power_is_modelled);
    }

    #[test]
    fn compression_and_throughput() {
        assert_eq!(compression(100.0, 100.0, 0.8, 0.8), 1.0);
        assert!((compression(16.0, 4.5, 1.0, 0.96) - 3.41333).abs() < 5e-6);
        assert!((throughput_per_parameter(1e6, 1e8, 10.0) - 1e-3).abs() < 1e-15);
    }

    #[test]
    fn systems_are_put_on_one_scale() {
        assert_eq!(
            normalised(&[Some(1.0), Some(3.0), None, Some(2.0)], false),
            [Some(0.0), Some(1.0), None, Some(0.5)]
        );
        assert_eq!(
            normalised(&[Some(1.0), Some(3.0)], true),
            [Some(1.0), Some(0.0)]
        );
        assert_eq!(
            normalised(&[Some(2.0), Some(2.0)], true),
            [Some(1.0), Some(1.0)]
        );
        assert_eq!(normalised(&[None], true), [None]);
        assert_eq!(
            normalised(&[Some(0.0), Some(0.0)], true),
            [Some(1.0), Some(1.0)]
        );
        assert_eq!(
            normalised(&[Some(1.0), Some(f64::INFINITY), Some(2.0)], true),
            [Some(1.0), Some(0.0), Some(0.0)]
        );
    }

    #[test]
    fn differences_within_noise_are_not_stretched_to_best_and_worst() {
        // 166.8 against 167.0 MiB, a tenth of a percent: a hundredth of the scale.
        let found = normalised(&[Some(166.8), Some(167.0)], true);
        assert_eq!(found[0], Some(1.0));
        assert!((found[1].unwrap() - (1.0 - 0.2 / 16.68)).abs() < 1e-12);
        // 0.70 against 0.90 with a deviation of 0.2 over seeds is half of the scale.
        let values = [Some(0.7), Some(0.9)];
        let found = normalised_beyond(&values, &[Some(0.2), Some(0.05)], false);
        assert!((found[0].unwrap() - 0.5).abs() < 1e-12 && found[1] == Some(1.0));
    }

    #[test]
    fn operations_as_a_share_of_the_machine() {
        // All parameters trained: 6 N D.
        assert_eq!(training_flops(1e6, 1e6, 1e3), 6e9);
        // An adapter of a hundredth: 4.02 N D.
        assert!((training_flops(1e6, 1e4, 1e3) - 4.02e9).abs() < 1.0);
        let found = Efficiency::new(&trace(|_| 1.0), 2, PowerModel::default())
            .unwrap()
            .with_flops(60.0, 6e11, 20.0);
        assert!((found.flop_utilisation.unwrap() - 0.5).abs() < 1e-12);
        assert_eq!(
            found.clone().with_flops(0.0, 6e11, 20.0).flop_utilisation,
            None
        );
    }
}
