//! When maps grow, and which.

use crate::methods::low_rank::increlora::config::IncreloraConfig;

/// Share of a run in which growth must end, when its pace is not given: the released scripts end it
/// after 30 to 40 %.
const GROWTH_SHARE: f64 = 0.35;

/// When and by how much a run grows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pace {
    pub(crate) top_h: usize,
    pub(crate) init_warmup: u64,
    pub(crate) interval: u64,
    pub(crate) warmup: u64,
}

impl Pace {
    /// For `missing` components in a run of `total_steps`.
    pub(crate) fn new(config: &IncreloraConfig, missing: usize, total_steps: u64) -> Self {
        let growing = missing.div_ceil(config.components());
        let mut top_h = config.top_h;
        let interval = if config.incre_interval > 0 {
            config.incre_interval
        } else {
            // The first round comes after two intervals.
            let steps = (GROWTH_SHARE * total_steps as f64) as u64;
            let possible = (steps.max(2) - 1) as usize;
            top_h = top_h.max(growing.div_ceil(possible));
            (steps / (growing.div_ceil(top_h) as u64 + 1)).max(1)
        };
        let or_interval = |steps: u64| if steps > 0 { steps } else { interval };
        Self {
            top_h,
            init_warmup: or_interval(config.init_warmup),
            interval,
            warmup: or_interval(config.warmup_steps),
        }
    }

    pub(crate) fn grows_at(&self, step: u64) -> bool {
        step > self.init_warmup && step.is_multiple_of(self.interval)
    }
}

/// The learning rate of tensors that are trained from some step on: it rises from zero to the full
/// rate and then falls as the run's schedule does, to the same end.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Clock {
    /// Step since which they are trained.
    pub(crate) begin: u64,
    /// The largest share of the peak rate that the run's schedule has given since the warm-up; 0
    /// before its end.
    pub(crate) peak: f32,
}

impl Clock {
    pub(crate) fn starting_at(begin: u64) -> Self {
        Self { begin, peak: 0.0 }
    }

    /// What the run's rate is multiplied by, where the schedule gives `run` of its peak. What is
    /// trained from the first step on follows the run, whose warm-up is its own.
    pub(crate) fn lr_scale(&mut self, step: u64, warmup: u64, run: f64) -> f64 {
        if self.begin == 0 {
            return 1.0;
        }
        if run <= 0.0 {
            return 0.0;
        }
        let passed = step.saturating_sub(self.begin);
        if passed < warmup {
            return passed as f64 / warmup as f64 / run;
        }
        self.peak = self.peak.max(run as f32);
        1.0 / f64::from(self.peak)
    }
}

/// Importance of a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Importance {
    pub(crate) mean: f32,
    pub(crate) uncertainty: f32,
}

impl Importance {
    pub(crate) fn update(&mut self, sensitivity: f32, beta1: f64, beta2: f64) {
        let mix = |old: f32, new: f32, beta: f64| {
            (beta * f64::from(old) + (1.0 - beta) * f64::from(new)) as f32
        };
        self.mean = mix(self.mean, sensitivity, beta1);
        self.uncertainty = mix(self.uncertainty, (sensitivity - self.mean).abs(), beta2);
    }

    pub(crate) fn score(&self) -> f32 {
        self.mean * self.uncertainty
    }
}

/// `Σ |ΔW ⊙ g| / √elements`.
pub(crate) fn sensitivity(delta: &[f32], gradient: &[f32]) -> f32 {
    let sum: f64 = delta
        .iter()
        .zip(gradient)
        .map(|(d, g)| f64::from((d * g).abs()))
        .sum();
    (sum / (delta.len() as f64).sqrt()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::test_model;

    fn close(found: &[f32], expected: &[f32]) {
        test_model::close(found, expected, 2e-6);
    }

    #[test]
    fn importance_is_smoothed_with_the_new_mean() {
        let mut importance = Importance::default();
        let expected = [
            (0.15, 0.1275, 0.019_125),
            (0.5775, 0.471_75, 0.272_436),
            (0.790_875, 0.582_356, 0.460_571),
        ];
        for (s, (mean, uncertainty, score)) in [1.0, 3.0, 2.0].into_iter().zip(expected) {
            importance.update(s, 0.85, 0.85);
            close(
                &[importance.mean, importance.uncertainty, importance.score()],
                &[mean, uncertainty, score],
            );
        }
    }

    #[derive(serde::Deserialize)]
    struct Golden {
        total: u64,
        warmup: u64,
        begins: Vec<u64>,
        rates: Vec<Vec<f64>>,
    }

    #[test]
    fn a_new_group_gets_the_full_rate_and_falls_over_the_steps_that_are_left() {
        let golden: Golden = serde_json::from_str(include_str!(
            "../../../../../../fixtures/methods/increlora.json"
        ))
        .unwrap();
        // The run's own schedule is that of the first group.
        let run: Vec<f64> = golden.rates.iter().map(|rates| rates[0]).collect();
        for (group, &begin) in golden.begins.iter().enumerate() {
            let mut clock = Clock::starting_at(begin);
            for step in begin..golden.total {
                let (run, expected) = (run[step as usize], golden.rates[step as usize][group]);
                let found = run * clock.lr_scale(step, golden.warmup, run);
                assert!(
                    (found - expected).abs() < 1e-6,
                    "group {group}, step {step}: {found} instead of {expected}"
                );
            }
        }
    }

    #[test]
    fn a_group_that_begins_while_the_run_warms_up_stays_below_its_rate() {
        let mut clock = Clock::starting_at(10);
        for step in 10..200 {
            let run = (step as f64 / 100.0).min(1.0);
            let found = run * clock.lr_scale(step, 5, run);
            assert!((0.0..=1.0 + 1e-6).contains(&found), "step {step}: {found}");
        }
        assert_eq!(clock.peak, 1.0);
    }

    #[test]
    fn rounds_fit_into_the_run() {
        let config = IncreloraConfig::default();
        let pace = Pace::new(
            &IncreloraConfig {
                incre_interval: 100,
                ..config.clone()
            },
            72,
            2000,
        );
        assert!(!pace.grows_at(100) && pace.grows_at(200) && !pace.grows_at(250));
        // 72 maps from rank 1 to a mean of 2, five at a time: 15 rounds.
        let rounds =
            |pace: Pace, total: u64| (0..total).filter(|&step| pace.grows_at(step)).count();
        let pace = Pace::new(&config, 72, 1000);
        assert_eq!(
            pace,
            Pace {
                top_h: 5,
                init_warmup: 21,
                interval: 21,
                warmup: 21
            }
        );
        assert!(rounds(pace, 351) >= 15);
        let short = Pace::new(&config, 72, 20);
        assert_eq!((short.top_h, short.interval), (12, 1));
        assert!(rounds(short, 20) >= 6);
    }
}
