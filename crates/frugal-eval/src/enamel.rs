//! How efficient generated code is: eff@k over expert references, and the runner that measures
//! Python solutions.
//!
//! # What it does
//! A problem has levels of tests with growing inputs. A solution is timed on each test, several
//! times, in turn with an expert's reference. Each level gives
//! a score of 1 where the solution is as fast as the reference and 0 where it runs into the time
//! limit; a wrong answer anywhere gives 0 for all. `eff@k` is the expected best score among `k`
//! solutions.
//!
//! # Update rule
//! `T = α · max t*`, over the levels with weight;
//! `f_l = max(0, T − max_m t_{l,m}) / (T − max_m t*_{l,m})`; `e = Σ h_l f_l / Σ h_l`;
//! `eff@k = Σ_{r ≥ k} λ_r e_(r)` over the sorted scores of `n` solutions with `λ_n = k / n`,
//! `λ_r = λ_{r+1} (1 − (k − 1) / r)`.
//!
//! # When to use, when not
//! For code whose running time matters and where correctness alone says too little. A quiet machine
//! gives the best times; nothing here runs in parallel.
//!
//! # Cost
//! `O(n log n)` for the arithmetic. Measuring takes the tests of a level times `repeats` times up
//! to `T` each.
//!
//! # Defaults and where they come from
//! `α = 2`, weights 0, 3, 3, 4, tests 8, 4, 4, 4, 6 repeats (1 on levels without weight), 4 GiB, 10
//! ms of tolerance before a run is ended, seed 998244353: those of the reference implementation.
//!
//! # Departures from the paper
//! Each solution has a sandboxed process and a deadline of its own. Inputs, answers and the checker
//! are in another process, the reference in a third, and the clock in none of them: a solution
//! decides nothing but what it returns. The reference is measured again beside each solution, their
//! runs in turn, so that what slows the machine slows both; what calling an empty function costs is
//! subtracted, and what takes microseconds is called up to 400 times in a run, each time loaded
//! anew; differences below 0.4 µs a call are none. Where a solution's first
//! call on an input takes longer than its later ones, by more than the reference's does, every run is
//! the first of a process: what a program remembers of earlier runs makes none faster by more than
//! 1.3 times and 0.1 ms. Loading, copying and handing over have deadlines of their own. Outputs are compared as
//! plain values. The helpers that the input generators call are written anew: they draw the same
//! kinds of inputs, not the same ones. Times are those of the processor unless the clock on the
//! wall is asked for, so that other work on the machine disturbs less.
//!
//! # References
//! Qiu, Zeng, Ezick, Lott, Tong: How efficient is LLM-generated code? A rigorous & high-standard
//! benchmark, 2025, arXiv 2406.06647. Hodges, Lehmann: Estimates of Location Based on Rank Tests,
//! 1963.

use std::path::Path;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::sandbox::SandboxError;
use frugal_core::fs::FileError;

mod log;
mod measure;
mod subject;

pub use log::{MeasuredLog, key};
pub use measure::measure;

/// What can go wrong beside the solutions themselves.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EnamelError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file that is not what it should be.
    #[error("{file}: {reason}")]
    Malformed {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A problem whose own reference does not run here.
    #[error("problem {problem}: the reference cannot be measured: {reason}")]
    Reference {
        /// Number of the problem.
        problem: usize,
        /// What happened.
        reason: String,
    },
    /// Settings that contradict each other.
    #[error("{0}")]
    Settings(String),
}

/// The problems of HumanEval that are left out: their references are as fast as anything could be.
pub const LEFT_OUT: [usize; 22] = [
    2, 23, 41, 45, 53, 60, 71, 92, 97, 99, 102, 123, 124, 135, 137, 138, 144, 148, 156, 157, 159,
    160,
];

/// Weights of the sorted scores `e_(k)..=e_(n)` in [`eff_at_k`], in rising order of the scores;
/// they add up to 1.
pub fn eff_at_k_weights(n: usize, k: usize) -> Vec<f64> {
    if k == 0 || k > n {
        return Vec::new();
    }
    let mut weights = vec![k as f64 / n as f64];
    for r in (k..n).rev() {
        weights.push(weights[weights.len() - 1] * (1.0 - (k - 1) as f64 / r as f64));
    }
    weights.reverse();
    weights
}

/// Mean over all `k`-subsets of the scores of the best score in the subset; `None` unless
/// `1 ≤ k ≤ n`.
///
/// Averaging over all subsets instead of drawing one is the Rao-Blackwell improvement: the same
/// expectation, at most `k/n` of the variance.
pub fn eff_at_k(scores: &[f64], k: usize) -> Option<f64> {
    let weights = eff_at_k_weights(scores.len(), k);
    let mut sorted = scores.to_vec();
    sorted.sort_by(f64::total_cmp);
    (!weights.is_empty()).then(|| {
        sorted[k - 1..]
            .iter()
            .zip(&weights)
            .map(|(e, w)| e * w)
            .sum()
    })
}

/// Chance that one of `k` solutions out of `n`, `passed` of which are right, is right; `None`
/// unless `1 ≤ k ≤ n`.
pub fn pass_at_k(n: usize, passed: usize, k: usize) -> Option<f64> {
    let scores: Vec<f64> = (0..n).map(|i| if i < passed { 1.0 } else { 0.0 }).collect();
    eff_at_k(&scores, k)
}

/// Hodges-Lehmann estimate of location: the median of the means of all pairs, each value with
/// itself included.
pub fn hodges_lehmann(times: &[f64]) -> Option<f64> {
    let pairs: Vec<f64> = times
        .iter()
        .enumerate()
        .flat_map(|(i, a)| times[..=i].iter().map(move |b| (a + b) / 2.0))
        .collect();
    frugal_core::metrics::median(&pairs)
}

/// Reference times of a problem, each the slowest test of its level in seconds, with the weights of
/// the levels.
#[derive(Clone, Debug, PartialEq)]
pub struct References {
    /// By level.
    pub slowest: Vec<f64>,
    /// By level; 0 leaves a level out of the score.
    pub hardness: Vec<f64>,
}

impl References {
    /// The time limit of the problem: `factor` times the slowest reference that counts.
    pub fn limit(&self, factor: f64) -> f64 {
        let counted = self
            .slowest
            .iter()
            .zip(&self.hardness)
            .filter(|(_, h)| **h > 0.0);
        factor * counted.map(|(t, _)| *t).fold(0.0, f64::max)
    }

    /// Score of a solution whose slowest test of each level took these seconds; levels that are
    /// missing were not reached and count 0, as does a time at or above the limit.
    pub fn score(&self, slowest: &[f64], factor: f64) -> f64 {
        let limit = self.limit(factor);
        let level = |l: usize| {
            slowest
                .get(l)
                .map_or(0.0, |t| (limit - t).max(0.0) / (limit - self.slowest[l]))
        };
        let counted = (0..self.hardness.len()).filter(|l| self.hardness[*l] > 0.0);
        counted.map(|l| self.hardness[l] * level(l)).sum::<f64>()
            / self.hardness.iter().sum::<f64>()
    }
}

/// What time is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// Time that the processor spent on the solution: other work on the machine does not count.
    Processor,
    /// Time that passed.
    Wall,
}

/// How solutions are measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Limit as a multiple of the slowest reference.
    pub timeout_factor: f64,
    /// Weight of each level.
    pub hardness: Vec<f64>,
    /// Tests of each level.
    pub tests: Vec<usize>,
    /// Runs of each test on levels with weight.
    pub repeats: usize,
    /// Address space of a solution, in bytes.
    pub memory: u64,
    /// Seconds above the limit after which a run is ended.
    pub tolerance: f64,
    /// Seed of the inputs.
    pub seed: u64,
    /// What time is measured by.
    pub clock: Clock,
    /// Seconds for one solution of one problem, after which it is given up.
    pub wall_seconds: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            timeout_factor: 2.0,
            hardness: vec![0.0, 3.0, 3.0, 4.0],
            tests: vec![8, 4, 4, 4],
            repeats: 6,
            memory: 4 << 30,
            tolerance: 0.01,
            seed: 998_244_353,
            clock: Clock::Processor,
            wall_seconds: 300.0,
        }
    }
}

impl Settings {
    /// Checks ranges.
    ///
    /// # Errors
    /// [`EnamelError::Settings`] naming the one at fault.
    pub fn check(&self) -> Result<(), EnamelError> {
        let bad = |what: &str| Err(EnamelError::Settings(what.into()));
        if !(self.timeout_factor.is_finite() && self.timeout_factor > 1.0) {
            return bad("the time limit must be above 1 times the reference");
        }
        if self.tests.len() != self.hardness.len() || self.tests.contains(&0) {
            return bad("give as many weights as levels, and at least one test for each level");
        }
        if !(self.hardness.iter().all(|h| *h >= 0.0 && h.is_finite())
            && self.hardness.iter().sum::<f64>() > 0.0)
        {
            return bad("weights must not be negative, and one must be above 0");
        }
        if self.repeats == 0 {
            return bad("give at least one repeat");
        }
        if !(self.wall_seconds > 0.0 && self.wall_seconds <= 1e6) {
            return bad("a solution must have between 0 and a million seconds");
        }
        if !(self.tolerance >= 0.0 && self.tolerance.is_finite()) {
            return bad("the tolerance must not be negative");
        }
        Ok(())
    }
}

/// One problem, with the column names of the benchmark's CSV.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `HumanEval/N`.
    pub task_id: String,
    /// Signature and documentation.
    pub prompt: String,
    /// Python function `generate_input(size, lid, cid)`.
    pub input_generator: String,
    /// Sizes of the levels, with spaces between.
    pub input_levels: String,
    /// Body of the expert's solution.
    pub reference_solution: String,
    /// Python function `__check(input, answer, output)`.
    pub checker: String,
    /// Name of the function.
    pub entry_point: String,
}

/// Reads the problems.
///
/// # Errors
/// When the file cannot be read or lacks a column.
pub fn problems(path: &Path) -> Result<Vec<Problem>, EnamelError> {
    let bytes = frugal_core::fs::read_data(path)?;
    let malformed = |e: csv::Error| EnamelError::Malformed {
        file: path.display().to_string(),
        reason: e.to_string(),
    };
    csv::Reader::from_reader(bytes.as_slice())
        .deserialize()
        .collect::<Result<_, _>>()
        .map_err(malformed)
}

/// Reads solutions, `solutions[problem][sample]`: a JSON list of lists, or an object of lists by
/// problem number.
///
/// # Errors
/// When the file cannot be read or is something else.
pub fn solutions(path: &Path, problems: usize) -> Result<Vec<Vec<String>>, EnamelError> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum File {
        List(Vec<Vec<String>>),
        Object(std::collections::BTreeMap<String, Vec<String>>),
    }
    let bytes = frugal_core::fs::read_data(path)?;
    let malformed = |reason: String| EnamelError::Malformed {
        file: path.display().to_string(),
        reason,
    };
    let file: File = serde_json::from_slice(&bytes)
        .map_err(|_| malformed("expected a JSON list with a list of solutions for each problem, or an object of them by number".into()))?;
    let mut all = match file {
        File::List(list) => list,
        File::Object(object) => {
            let mut all = vec![Vec::new(); problems];
            for (number, codes) in object {
                let place = number.parse::<usize>().ok().and_then(|n| all.get_mut(n));
                let place =
                    place.ok_or_else(|| malformed(format!("there is no problem {number}")))?;
                *place = codes;
            }
            all
        }
    };
    all.resize(problems.max(all.len()), Vec::new());
    Ok(all)
}

/// Why a solution was not measured to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Above the time limit.
    Timeout,
    /// Out of memory.
    Memory,
    /// A number too large for the machine.
    Overflow,
    /// A wrong answer.
    Wrong,
    /// An exception.
    Error,
}

/// What became of a solution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Whether it counts as right: a limit that is hit above the first level does not make it
    /// wrong.
    pub passed: bool,
    /// Its score.
    pub efficiency: f64,
    /// Why it was not measured to the end.
    pub verdict: Option<Verdict>,
    /// Level at which it stopped.
    pub level: Option<usize>,
    /// More about an exception.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Seconds of the slowest test of each level that was completed.
    pub seconds: Vec<f64>,
    /// The same of the reference, which ran beside it.
    pub reference_seconds: Vec<f64>,
}

#[cfg(test)]
mod tests;
