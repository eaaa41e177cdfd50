//! When maps grow, and which.

use crate::methods::low_rank::increlora::config::IncreloraConfig;

/// Share of a run in which growth must end, when its pace is not given.
const GROWTH_SHARE: f64 = 0.7;

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

    /// Share of the rate of a tensor that has been trained since step `begin`.
    pub(crate) fn factor(&self, step: u64, begin: u64) -> f64 {
        ((step - begin.min(step)) as f64 / self.warmup as f64).min(1.0)
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

    fn close(found: &[f32], expected: &[f32]) {
        found
            .iter()
            .zip(expected)
            .for_each(|(f, e)| assert!((f - e).abs() < 2e-6, "{found:?} instead of {expected:?}"));
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

    #[test]
    fn a_group_warms_up_from_its_own_beginning() {
        let config = IncreloraConfig {
            incre_interval: 100,
            warmup_steps: 50,
            ..IncreloraConfig::default()
        };
        let pace = Pace::new(&config, 72, 2000);
        assert_eq!(
            (
                pace.factor(300, 300),
                pace.factor(325, 300),
                pace.factor(350, 300),
                pace.factor(400, 300)
            ),
            (0.0, 0.5, 1.0, 1.0)
        );
        assert!(!pace.grows_at(100) && pace.grows_at(200) && !pace.grows_at(250));
    }

    #[test]
    fn rounds_fit_into_the_run() {
        let config = IncreloraConfig::default();
        // 72 maps from rank 1 to a mean of 2, five at a time: 15 rounds.
        let rounds =
            |pace: Pace, total: u64| (0..total).filter(|&step| pace.grows_at(step)).count();
        let pace = Pace::new(&config, 72, 1000);
        assert_eq!(
            pace,
            Pace {
                top_h: 5,
                init_warmup: 43,
                interval: 43,
                warmup: 43
            }
        );
        assert!(rounds(pace, 700) >= 15);
        let short = Pace::new(&config, 72, 10);
        assert_eq!((short.top_h, short.interval), (12, 1));
        assert!(rounds(short, 10) >= 6);
    }
}
