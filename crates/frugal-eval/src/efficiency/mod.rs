//! Six measures of what running a model costs: memory, utilisation, latency, throughput, power,
//! compression.
//!
//! # What it does
//! While a program runs, its memory and processor time are sampled; from the samples and from what
//! the program did come measures that compare systems of any kind. [`normalised`] puts compared
//! systems on one scale for a radar chart.
//!
//! # Update rule
//! Over a run of duration `T`: average memory `(1/T) ∫ M dt`; average utilisation
//! `(processor time) / (T · processors)`; average latency `T / iterations`; throughput
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
//! carried over to processors.
//!
//! # References
//! Yuan et al.: EfficientLLM: Efficiency in Large Language Models, 2025, arXiv 2505.13840.

mod system;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

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
        })
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

/// Values of compared systems on a scale from 0 (worst) to 1 (best); all 1 if they do not differ.
/// Missing values stay so, and what is not finite is worst.
pub fn normalised(values: &[Option<f64>], lower_is_better: bool) -> Vec<Option<f64>> {
    let known = || values.iter().flatten().copied().filter(|v| v.is_finite());
    let (low, high) = (
        known().fold(f64::INFINITY, f64::min),
        known().fold(f64::NEG_INFINITY, f64::max),
    );
    let scaled = |v: f64| match (high > low, lower_is_better) {
        _ if !v.is_finite() => 0.0,
        (false, _) => 1.0,
        (true, true) => (high - v) / (high - low),
        (true, false) => (v - low) / (high - low),
    };
    values.iter().map(|v| v.map(scaled)).collect()
}

/// Samples a process that was started, and all that it starts, until it ends.
///
/// # Errors
/// If the system does not say whether it has ended.
pub fn watch(child: &mut Child) -> std::io::Result<(ExitStatus, Vec<Sample>)> {
    let begin = Instant::now();
    let mut sampler = Sampler::new(child.id());
    let mut samples = Vec::new();
    // Closer at first, so that a short run is seen more than once.
    let mut pause = INTERVAL / 16;
    loop {
        samples.extend(sampler.sample(begin.elapsed().as_secs_f64()));
        if let Some(status) = child.try_wait()? {
            return Ok((status, samples));
        }
        std::thread::sleep(pause);
        pause = (2 * pause).min(INTERVAL);
    }
}

/// Samples a program and all processes that it started, where `/proc` tells.
#[derive(Debug)]
pub struct Sampler {
    root: u32,
    ticks: f64,
    page: f64,
    /// Processor seconds of processes that have ended, by what was seen of them last.
    seen: BTreeMap<u32, f64>,
}

impl Sampler {
    /// Samples the process of this number.
    pub fn new(root: u32) -> Self {
        // Both have been these values on every Linux platform for long.
        Self {
            root,
            ticks: 100.0,
            page: 4096.0,
            seen: BTreeMap::new(),
        }
    }

    /// The state now; `None` once the program has ended, or where there is no `/proc`.
    pub fn sample(&mut self, seconds: f64) -> Option<Sample> {
        let mut stats = BTreeMap::new();
        for entry in std::fs::read_dir("/proc").ok()?.flatten() {
            let Some(number) = entry
                .file_name()
                .to_str()
                .and_then(|n| n.parse::<u32>().ok())
            else {
                continue;
            };
            if let Some(stat) = std::fs::read_to_string(entry.path().join("stat"))
                .ok()
                .and_then(|text| parse(&text))
            {
                stats.insert(number, stat);
            }
        }
        stats.get(&self.root)?;
        let ours = |mut number: u32| {
            while number != self.root {
                match stats.get(&number) {
                    Some(stat) if stat.parent != 0 && stat.parent != number => number = stat.parent,
                    _ => return false,
                }
            }
            true
        };
        let mut memory = 0.0;
        for (number, stat) in &stats {
            if ours(*number) {
                memory += stat.pages * self.page;
                self.seen.insert(*number, stat.ticks / self.ticks);
            }
        }
        // A program that has ended but was not waited for has no memory left.
        (memory > 0.0).then(|| Sample {
            seconds,
            memory,
            processor_seconds: self.seen.values().sum(),
            joules: joules(),
        })
    }
}

struct Stat {
    parent: u32,
    ticks: f64,
    pages: f64,
}

/// A line of `/proc/N/stat`; the name in it may hold anything, so fields are counted from its end.
fn parse(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |i: usize| fields.get(i)?.parse::<f64>().ok();
    // State is field 0 here: parent 1, user and system time 11 and 12, resident pages 21.
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        ticks: number(11)? + number(12)?,
        pages: number(21)?,
    })
}

/// The energy counter of the first processor package.
fn joules() -> Option<f64> {
    let text = std::fs::read_to_string("/sys/class/powercap/intel-rapl:0/energy_uj").ok()?;
    text.trim().parse::<f64>().ok().map(|micro| micro * 1e-6)
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
            normalised(&[Some(1.0), Some(f64::INFINITY), Some(2.0)], true),
            [Some(1.0), Some(0.0), Some(0.0)]
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_program_can_be_sampled() {
        let mut sampler = Sampler::new(std::process::id());
        let first = sampler.sample(0.0).unwrap();
        let block = vec![1u8; 64 << 20];
        let busy = Instant::now();
        let mut sum = 0u64;
        while busy.elapsed() < Duration::from_millis(300) {
            sum = sum.wrapping_add(block.iter().map(|b| u64::from(*b)).sum::<u64>());
        }
        let second = sampler.sample(0.3).unwrap();
        assert!(
            sum > 0 && second.memory > first.memory + 32e6,
            "{first:?} {second:?}"
        );
        assert!(
            second.processor_seconds > first.processor_seconds,
            "{first:?} {second:?}"
        );
        let stat = parse("12 (a) b) (c) S 7 12 12 0 -1 4194560 9 0 0 0 150 50 0 0 20 0 1 0 5 1000 321 18446744073709551615").unwrap();
        assert_eq!((stat.parent, stat.ticks, stat.pages), (7, 200.0, 321.0));
    }
}
