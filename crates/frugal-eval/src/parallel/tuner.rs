//! The search for a plan: a random start, then plans that a surrogate thinks well of.

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use thiserror::Error;

use super::forest::Forest;
use super::plan::{ParallelPlan, Schedule, ZeroStage};
use super::shape::TransformerShape;

/// The choices that are searched, each a list of values.
#[derive(Clone, Debug, PartialEq)]
pub struct SearchSpace {
    /// Tensor-parallel degrees.
    pub tensor: Vec<u64>,
    /// Pipeline degrees.
    pub pipeline: Vec<u64>,
    /// Sequences of a micro-batch.
    pub micro_batch: Vec<u64>,
    /// Stages of ZeRO.
    pub zero: Vec<ZeroStage>,
    /// Schedules with their chunks.
    pub schedule: Vec<(Schedule, u64)>,
    /// Whether layers are computed again.
    pub recompute: Vec<bool>,
}

impl Default for SearchSpace {
    fn default() -> Self {
        Self {
            tensor: vec![1, 2, 4, 8],
            pipeline: vec![1, 2, 4, 8, 12, 16, 32, 64],
            micro_batch: vec![1, 2, 4, 5, 8, 10, 16, 20],
            zero: vec![ZeroStage::NONE, ZeroStage::OPTIMIZER],
            schedule: vec![(Schedule::OneFOneB, 1), (Schedule::Interleaved, 2)],
            recompute: vec![true, false],
        }
    }
}

/// A search for the plan with the highest measured value.
#[derive(Clone, Debug)]
pub struct PlanTuner {
    /// What is searched.
    pub space: SearchSpace,
    /// Devices.
    pub world: u64,
    /// Sequences of a step.
    pub batch: u64,
    /// What the search does not change.
    pub base: ParallelPlan,
    /// Plans that are drawn at random before the surrogate is asked.
    pub random_start: usize,
    /// Decides the draws.
    pub seed: u64,
}

/// A plan that was tried.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlanTrial {
    /// The plan.
    pub plan: ParallelPlan,
    /// What was measured; none of a failure.
    pub value: Option<f64>,
    /// Why it failed.
    pub error: Option<String>,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tuned {
    /// The best plan; none if all failed.
    pub best: Option<PlanTrial>,
    /// All plans in the order in which they were tried.
    pub trials: Vec<PlanTrial>,
    /// Plans of the space that fit the model, the devices and the batch.
    pub candidates: usize,
}

/// A space in which no plan fits.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "no plan of the search space fits {world} devices and a global batch of {batch} sequences: last refused: {reason}"
)]
pub struct NoPlan {
    /// Devices.
    pub world: u64,
    /// Sequences of a step.
    pub batch: u64,
    /// Why the last plan was refused.
    pub reason: String,
}

/// Standard deviations that count in favour of a plan, as in DeepHyper.
const KAPPA: f64 = 1.96;
const TREES: usize = 64;

impl PlanTuner {
    /// A search of the default space.
    pub fn new(world: u64, batch: u64, seed: u64) -> Self {
        Self {
            space: SearchSpace::default(),
            world,
            batch,
            base: ParallelPlan::default(),
            random_start: 8,
            seed,
        }
    }

    /// All plans of the space that fit the model, the devices and the batch. What breaks a constraint
    /// is left out here, since that is known without trying it.
    ///
    /// # Errors
    /// None of them fits.
    pub fn candidates(&self, shape: &TransformerShape) -> Result<Vec<ParallelPlan>, NoPlan> {
        let mut found = Vec::new();
        let mut reason = String::from("the space is empty");
        let space = &self.space;
        for &tensor in &space.tensor {
            for &pipeline in &space.pipeline {
                for &micro_batch in &space.micro_batch {
                    for &(schedule, chunks) in &space.schedule {
                        let plan = ParallelPlan {
                            tensor,
                            pipeline,
                            micro_batch,
                            schedule,
                            chunks,
                            ..self.base
                        };
                        let plan = plan.for_world(self.world, self.batch);
                        let checked = plan.and_then(|plan| plan.check(shape).map(|()| plan));
                        let plan = match checked {
                            Ok(plan) => plan,
                            Err(error) => {
                                reason = error.to_string();
                                continue;
                            }
                        };
                        // Alone in a pipeline a stage has nothing to interleave with.
                        if pipeline == 1 && chunks > 1 {
                            continue;
                        }
                        for &zero in &space.zero {
                            for &recompute in &space.recompute {
                                found.push(ParallelPlan {
                                    zero,
                                    recompute,
                                    ..plan
                                });
                            }
                        }
                    }
                }
            }
        }
        if found.is_empty() {
            return Err(NoPlan {
                world: self.world,
                batch: self.batch,
                reason,
            });
        }
        Ok(found)
    }

    /// Tries `trials` plans, each once. `measure` gives what is to be as large as can be, or why the
    /// plan failed; a failure counts as the worst value so far, from which the surrogate learns where
    /// the memory ends.
    ///
    /// # Errors
    /// No plan of the space fits.
    pub fn tune<E: std::fmt::Display>(
        &self,
        shape: &TransformerShape,
        trials: usize,
        mut measure: impl FnMut(&ParallelPlan) -> Result<f64, E>,
    ) -> Result<Tuned, NoPlan> {
        let mut left = self.candidates(shape)?;
        let candidates = left.len();
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        left.shuffle(&mut rng);
        let mut done: Vec<PlanTrial> = Vec::new();
        while done.len() < trials && !left.is_empty() {
            let next = if done.len() < self.random_start {
                left.len() - 1
            } else {
                most_promising(&done, &left, &mut rng)
            };
            let plan = left.swap_remove(next);
            let (value, error) = match measure(&plan) {
                Ok(value) if value.is_finite() => (Some(value), None),
                Ok(value) => (None, Some(format!("measured {value}"))),
                Err(error) => (None, Some(error.to_string())),
            };
            done.push(PlanTrial { plan, value, error });
        }
        let best = done
            .iter()
            .filter(|trial| trial.value.is_some())
            .max_by(|a, b| {
                a.value
                    .unwrap_or(f64::MIN)
                    .total_cmp(&b.value.unwrap_or(f64::MIN))
            });
        Ok(Tuned {
            best: best.cloned(),
            trials: done,
            candidates,
        })
    }
}

/// What the surrogate sees of a plan: degrees and batches by their logarithm.
fn features(plan: &ParallelPlan) -> Vec<f64> {
    let log = |v: u64| (v as f64).log2();
    vec![
        log(plan.tensor),
        log(plan.pipeline),
        log(plan.micro_batch),
        log(plan.micro_batches),
        f64::from(u8::from(plan.zero)),
        log(plan.chunks),
        f64::from(u8::from(plan.schedule == Schedule::GPipe)),
        f64::from(u8::from(plan.recompute)),
    ]
}

/// The plan with the highest upper confidence bound.
fn most_promising(done: &[PlanTrial], left: &[ParallelPlan], rng: &mut impl Rng) -> usize {
    let worst = done
        .iter()
        .filter_map(|trial| trial.value)
        .fold(f64::INFINITY, f64::min);
    let worst = if worst.is_finite() { worst } else { 0.0 };
    let rows: Vec<Vec<f64>> = done.iter().map(|trial| features(&trial.plan)).collect();
    let values: Vec<f64> = done.iter().map(|t| t.value.unwrap_or(worst)).collect();
    let forest = Forest::fit(&rows, &values, TREES, rng);
    let bound = |plan: &ParallelPlan| {
        let (mean, deviation) = forest.predict(&features(plan));
        mean + KAPPA * deviation
    };
    let bounds: Vec<f64> = left.iter().map(bound).collect();
    (0..left.len())
        .max_by(|&a, &b| bounds[a].total_cmp(&bounds[b]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::cost::CostModel;
    use super::super::machine::Machine;
    use super::super::memory::BytesPerParameter;
    use super::super::shape::GPT_22B;
    use super::*;

    fn model() -> CostModel {
        CostModel {
            shape: GPT_22B,
            machine: Machine::frontier().unwrap(),
            bytes: BytesPerParameter::MIXED_ADAM,
        }
    }

    fn median(values: &mut [f64]) -> f64 {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    }

    #[test]
    fn fifteen_trials_beat_the_median_of_random_plans() {
        let model = model();
        let value = |plan: &ParallelPlan| model.estimate(plan).map(|e| e.sequences_per_second);
        let mut all: Vec<f64> = PlanTuner::new(128, 640, 0)
            .candidates(&GPT_22B)
            .unwrap()
            .iter()
            .map(|plan| value(plan).unwrap_or(0.0))
            .collect();
        let middle = median(&mut all);
        assert!(all[0] == 0.0 && middle > 0.0, "some plans fail, not most");
        for seed in 0..20 {
            let tuner = PlanTuner::new(128, 640, seed);
            let found = tuner.tune(&GPT_22B, 15, value).unwrap();
            assert_eq!(found.trials.len(), 15);
            let best = found.best.unwrap().value.unwrap();
            assert!(best > 1.1 * middle, "{seed}: {best} {middle}");
        }
    }

    #[test]
    fn failures_are_tried_less_and_less() {
        let model = model();
        let value = |plan: &ParallelPlan| model.estimate(plan).map(|e| e.sequences_per_second);
        let failures = |trials: &[PlanTrial]| trials.iter().filter(|t| t.value.is_none()).count();
        let (mut early, mut late) = (0, 0);
        for seed in 0..10 {
            let mut tuner = PlanTuner::new(16, 160, seed);
            tuner.random_start = 15;
            let found = tuner.tune(&GPT_22B, 30, value).unwrap();
            early += failures(&found.trials[..15]);
            late += failures(&found.trials[15..]);
        }
        assert!(early >= 20 && 3 * late < 2 * early, "{early} {late}");
    }

    #[test]
    fn a_space_without_a_plan_says_why() {
        let error = PlanTuner::new(7, 7, 0).tune(&GPT_22B, 5, |_| Ok::<_, String>(1.0));
        // One device of each kind but seven replicas: that there is.
        assert!(error.is_ok());
        let mut tuner = PlanTuner::new(6, 7, 0);
        tuner.space.tensor = vec![3];
        let error = tuner
            .tune(&GPT_22B, 5, |_| Ok::<_, String>(1.0))
            .unwrap_err();
        assert!(error.to_string().contains("devices"), "{error}");
    }

    #[test]
    fn a_search_repeats_itself_and_keeps_failures() {
        let tuner = PlanTuner::new(64, 640, 3);
        let fails = |plan: &ParallelPlan| {
            if plan.tensor == 1 {
                Err("too large")
            } else {
                Ok(plan.tensor as f64)
            }
        };
        let found = tuner.tune(&GPT_22B, 12, fails).unwrap();
        assert_eq!(found, tuner.tune(&GPT_22B, 12, fails).unwrap());
        assert_eq!(found.best.unwrap().plan.tensor, 8);
        let failed = found.trials.iter().filter(|t| t.value.is_none());
        assert!(
            failed
                .clone()
                .all(|t| t.error.as_deref() == Some("too large"))
        );
        let at_random = PlanTuner {
            random_start: usize::MAX,
            ..tuner
        };
        let all = at_random.tune(&GPT_22B, usize::MAX, fails).unwrap();
        assert_eq!(all.trials.len(), all.candidates);
        assert!(all.trials.iter().any(|t| t.value.is_none()));
    }
}
