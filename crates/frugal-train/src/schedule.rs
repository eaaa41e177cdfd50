//! The learning rate of each optimiser step, with the formulas of Hugging Face transformers.
//!
//! Steps are optimiser steps, whatever the accumulation. Warm-up starts from a rate of 0 at step 0
//! (from `min_lr_ratio` for the warm-up-stable-decay schedule) as it does there.

use std::f64::consts::PI;

use crate::config::{DecayType, Scheduler, TrainConfig};

/// The learning rate over a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    kind: Scheduler,
    lr: f64,
    total: u64,
    warmup: u64,
    decay: u64,
    shape: DecayType,
    half_life: f64,
    min: f64,
    /// Steps between two resets of the moments, and over which the rate comes back after one.
    reset: u64,
    recovery: u64,
}

/// What the rate comes back from after a reset, as a share of what it comes back to.
const RECOVERED_FROM: f64 = 0.001;

impl Schedule {
    /// The schedule of a run of `total_steps`.
    pub fn new(config: &TrainConfig, total_steps: u64) -> Self {
        let part = |ratio: f64| (ratio * total_steps as f64).ceil() as u64;
        let warmup = if config.warmup_steps > 0 {
            config.warmup_steps
        } else {
            part(config.warmup_ratio)
        };
        Self {
            kind: config.lr_scheduler_type,
            lr: config.lr,
            total: total_steps,
            warmup,
            decay: match config.decay_steps {
                0 => part(config.decay_ratio),
                steps => steps,
            }
            .min(total_steps.saturating_sub(warmup)),
            shape: config.decay_type,
            half_life: config.decay_half_life,
            min: if config.min_lr > 0.0 {
                config.min_lr / config.lr
            } else {
                config.min_lr_ratio
            },
            reset: config.moment_reset_steps,
            recovery: config.reset_recovery_steps,
        }
    }

    /// Steps of the warm-up.
    pub fn warmup_steps(&self) -> u64 {
        self.warmup
    }

    /// Steps before the decay of `warmup_stable_decay`: the step that follows these is the last at the
    /// full rate. None of schedules that have no such decay.
    pub fn decay_start(&self) -> Option<u64> {
        let decays = self.kind == Scheduler::WarmupStableDecay && self.decay > 0;
        decays.then(|| self.total.saturating_sub(self.decay).max(self.warmup))
    }

    /// Learning rate of the step that follows `step` finished ones.
    pub fn lr(&self, step: u64) -> f64 {
        self.lr * self.factor(step)
    }

    /// Share of the peak rate at the step that follows `step` finished ones.
    pub fn factor(&self, step: u64) -> f64 {
        if self.reset == 0 || step < self.reset {
            return self.undisturbed(step);
        }
        let since = step % self.reset;
        if since >= self.recovery {
            return self.undisturbed(step);
        }
        // Straight to where the schedule is at the end of the recovery, as in
        // `cosine_quick_recovery` of Memory_Efficient_Pretraining.
        let target = self.undisturbed(step - since + self.recovery);
        let progress = match self.recovery {
            1 => 1.0,
            steps => since as f64 / (steps - 1) as f64,
        };
        target * (RECOVERED_FROM + (1.0 - RECOVERED_FROM) * progress)
    }

    /// The same without resets.
    fn undisturbed(&self, step: u64) -> f64 {
        let above_min = |factor: f64| factor * (1.0 - self.min) + self.min;
        if step < self.warmup {
            let factor = step as f64 / self.warmup as f64;
            // What an exponential decay ends at is no floor.
            let from_min =
                self.kind == Scheduler::WarmupStableDecay && self.shape != DecayType::Exp;
            return if from_min { above_min(factor) } else { factor };
        }
        let steps_after =
            |start: u64, length: u64| ((step - start) as f64 / length.max(1) as f64).min(1.0);
        let half_cosine = |progress: f64| 0.5 * (1.0 + (PI * progress).cos());
        match self.kind {
            Scheduler::Constant => 1.0,
            Scheduler::Linear => {
                above_min(1.0 - steps_after(self.warmup, self.total.saturating_sub(self.warmup)))
            }
            Scheduler::Cosine => above_min(half_cosine(steps_after(
                self.warmup,
                self.total.saturating_sub(self.warmup),
            ))),
            Scheduler::WarmupStableDecay => {
                let Some(start) = self.decay_start().filter(|start| step >= *start) else {
                    return 1.0;
                };
                let progress = steps_after(start, self.decay);
                match self.shape {
                    DecayType::Cosine => above_min(half_cosine(progress)),
                    DecayType::Linear => above_min(1.0 - progress),
                    DecayType::OneMinusSqrt => above_min(1.0 - progress.sqrt()),
                    DecayType::Exp if self.half_life > 0.0 => {
                        0.5_f64.powf((step - start) as f64 / self.half_life)
                    }
                    DecayType::Exp => self.min.powf(progress),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Written by transformers 5.23.0: `get_last_lr` before each of ten steps with lr = 10 of
    // get_constant_schedule_with_warmup(4), get_linear_schedule_with_warmup(2, 10),
    // get_cosine_schedule_with_warmup(2, 10), get_cosine_with_min_lr_schedule_with_warmup(2, 10,
    // min_lr_rate=0.1), the same with min_lr=0.25, and get_wsd_schedule(2, num_decay_steps=3,
    // num_training_steps=10, min_lr_ratio=0.1).
    const CONSTANT: [f64; 10] = [0.0, 2.5, 5.0, 7.5, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0];
    const LINEAR: [f64; 10] = [0.0, 5.0, 10.0, 8.75, 7.5, 6.25, 5.0, 3.75, 2.5, 1.25];
    const COSINE: [f64; 10] = [
        0.0,
        5.0,
        10.0,
        9.619397662556434,
        8.535533905932738,
        6.913417161825449,
        5.0,
        3.0865828381745515,
        1.4644660940672627,
        0.3806023374435663,
    ];
    const COSINE_MIN: [f64; 10] = [
        0.0,
        5.0,
        10.0,
        9.65745789630079,
        8.681980515339463,
        7.222075445642904,
        5.5,
        3.777924554357096,
        2.3180194846605366,
        1.3425421036992096,
    ];
    const COSINE_FLOOR: [f64; 10] = [
        0.0,
        5.0,
        10.0,
        9.628912720992522,
        8.572145558284419,
        6.9905817327798125,
        5.125,
        3.2594182672201875,
        1.677854441715581,
        0.6210872790074772,
    ];
    const STABLE: [f64; 10] = [1.0, 5.5, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 7.75, 3.25];

    fn check(kind: Scheduler, warmup_steps: u64, min_lr_ratio: f64, expected: &[f64; 10]) {
        let config = TrainConfig {
            lr: 10.0,
            lr_scheduler_type: kind,
            warmup_steps,
            min_lr_ratio,
            decay_ratio: 0.3,
            ..TrainConfig::default()
        };
        let schedule = Schedule::new(&config, 10);
        for (step, lr) in expected.iter().enumerate() {
            assert!(
                (schedule.lr(step as u64) - lr).abs() < 1e-12,
                "{kind:?} step {step}: {} instead of {lr}",
                schedule.lr(step as u64)
            );
        }
    }

    #[test]
    fn rates_equal_those_of_transformers() {
        check(Scheduler::Constant, 4, 0.0, &CONSTANT);
        check(Scheduler::Linear, 2, 0.0, &LINEAR);
        check(Scheduler::Cosine, 2, 0.0, &COSINE);
        check(Scheduler::Cosine, 2, 0.1, &COSINE_MIN);
        check(Scheduler::WarmupStableDecay, 2, 0.1, &STABLE);
    }

    // Written by transformers 5.24.0 as above: get_wsd_schedule(2, 4, num_training_steps=10,
    // min_lr_ratio=0.1) with decay_type="linear" and "1-sqrt".
    const STABLE_LINEAR: [f64; 10] = [1.0, 5.5, 10.0, 10.0, 10.0, 10.0, 10.0, 7.75, 5.5, 3.25];
    const STABLE_SQRT: [f64; 10] = [
        1.0,
        5.5,
        10.0,
        10.0,
        10.0,
        10.0,
        10.0,
        5.5,
        3.6360389693210715,
        2.205771365940053,
    ];

    #[test]
    fn shapes_of_the_decay_equal_those_of_transformers() {
        for (decay_type, expected) in [
            (DecayType::Linear, STABLE_LINEAR),
            (DecayType::OneMinusSqrt, STABLE_SQRT),
        ] {
            let config = TrainConfig {
                lr: 10.0,
                lr_scheduler_type: Scheduler::WarmupStableDecay,
                warmup_steps: 2,
                min_lr_ratio: 0.1,
                decay_steps: 4,
                decay_type,
                ..TrainConfig::default()
            };
            let schedule = Schedule::new(&config, 10);
            assert_eq!(schedule.decay_start(), Some(6));
            for (step, lr) in expected.iter().enumerate() {
                let found = schedule.lr(step as u64);
                assert!((found - lr).abs() < 1e-12, "{decay_type:?} {step}: {found}");
            }
        }
    }

    fn wsd(change: impl FnOnce(&mut TrainConfig)) -> Schedule {
        let mut config = TrainConfig {
            lr: 0.01,
            lr_scheduler_type: Scheduler::WarmupStableDecay,
            warmup_steps: 100,
            decay_steps: 100,
            ..TrainConfig::default()
        };
        change(&mut config);
        Schedule::new(&config, 1000)
    }

    /// The schedule of arXiv 2404.06395, section 4.2: W = 100, T = 900, S = 1000, computed by hand.
    #[test]
    fn the_rate_halves_with_the_half_life_from_where_the_decay_begins() {
        let halving = wsd(|config| {
            config.decay_type = DecayType::Exp;
            config.decay_half_life = 30.0;
            // The half-life wins.
            config.min_lr_ratio = 0.3;
        });
        let linear = wsd(|config| config.decay_type = DecayType::Linear);
        let ratio = wsd(|config| {
            config.decay_type = DecayType::Exp;
            config.min_lr_ratio = 0.1;
        });
        for (schedule, step, lr) in [
            (&halving, 50, 0.005),
            (&halving, 100, 0.01),
            (&halving, 899, 0.01),
            (&halving, 900, 0.01),
            (&halving, 930, 0.005),
            (&halving, 960, 0.0025),
            (&halving, 1000, 0.000_992_125_657),
            (&linear, 50, 0.005),
            (&linear, 900, 0.01),
            (&linear, 950, 0.005),
            (&linear, 1000, 0.0),
            (&ratio, 50, 0.005),
            (&ratio, 950, 0.003_162_277_66),
            (&ratio, 1000, 0.001),
        ] {
            let found = schedule.lr(step);
            assert!((found - lr).abs() < 1e-9, "{schedule:?} {step}: {found}");
        }
    }

    #[test]
    fn an_absolute_floor_does_not_depend_on_the_peak() {
        let floor = |lr: f64| {
            let config = TrainConfig {
                lr,
                lr_scheduler_type: Scheduler::Cosine,
                warmup_steps: 2,
                min_lr: 0.25,
                min_lr_ratio: 0.5,
                ..TrainConfig::default()
            };
            Schedule::new(&config, 10)
        };
        for (step, lr) in COSINE_FLOOR.iter().enumerate() {
            assert!(
                (floor(10.0).lr(step as u64) - lr).abs() < 1e-12,
                "step {step}"
            );
        }
        for peak in [0.25, 1.0, 10.0] {
            assert!(
                (floor(peak).lr(10) - 0.25).abs() < 1e-15
                    && (floor(peak).lr(6) - (peak + 0.25) / 2.0).abs() < 1e-12,
                "{peak}"
            );
        }
    }

    #[test]
    fn the_rate_comes_back_after_a_reset_as_in_the_authors_schedule() {
        let config = TrainConfig {
            lr: 1.0,
            lr_scheduler_type: Scheduler::Cosine,
            warmup_steps: 1100,
            min_lr_ratio: 0.1,
            moment_reset_steps: 200,
            ..TrainConfig::default()
        };
        let schedule = Schedule::new(&config, 11_000);
        // Written by `get_cosine_schedule_with_quick_recovery`.
        let expected = [
            (1999, 0.981_812),
            (2000, 0.000_981),
            (2001, 0.109_913),
            (2005, 0.545_640),
            (2009, 0.981_367),
        ];
        for (step, factor) in expected {
            let found = schedule.factor(step);
            assert!((found - factor).abs() < 1e-6, "{step}: {found}");
        }
        // The first period has the schedule's own warm-up.
        assert_eq!(schedule.factor(5), 5.0 / 1100.0);
        assert_eq!(schedule.factor(0), 0.0);
    }

    #[test]
    fn a_warmup_longer_than_the_run_never_decays() {
        let config = TrainConfig {
            lr: 1.0,
            warmup_steps: 20,
            ..TrainConfig::default()
        };
        assert_eq!(Schedule::new(&config, 10).lr(9), 0.45);
        let wsd = TrainConfig {
            lr_scheduler_type: Scheduler::WarmupStableDecay,
            ..config
        };
        assert_eq!(Schedule::new(&wsd, 10).lr(9), 0.45);
    }

    #[test]
    fn the_warmup_ratio_counts_optimiser_steps() {
        let config = TrainConfig {
            lr: 1.0,
            warmup_ratio: 0.5,
            ..TrainConfig::default()
        };
        assert_eq!(Schedule::new(&config, 8).factor(2), 0.5);
    }
}
