//! Budgets of rank: how many parts may live at which step, and how important each is (AdaLoRA,
//! arXiv 2303.10512).

/// When ranks shrink, in steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Schedule {
    pub total: u64,
    pub tinit: u64,
    pub tfinal: u64,
}

impl Schedule {
    /// Triplets that may live after `step`, and whether a choice is due.
    pub fn budget(self, step: u64, initial: usize, target: usize, delta_t: u64) -> (usize, bool) {
        if step <= self.tinit {
            return (initial, false);
        }
        if step > self.last_choice() {
            return (target, true);
        }
        let left = 1.0 - (step - self.tinit) as f64 / (self.last_choice() - self.tinit) as f64;
        let budget = (initial - target) as f64 * left.powi(3) + target as f64;
        (budget as usize, step.is_multiple_of(delta_t))
    }

    /// After this step the choice is final.
    pub fn last_choice(self) -> u64 {
        self.total.saturating_sub(self.tfinal)
    }
}

/// Running averages of one parameter's importance.
#[derive(Default)]
pub(crate) struct Importance {
    pub exp_avg_ipt: Vec<f32>,
    pub exp_avg_unc: Vec<f32>,
}

impl Importance {
    pub fn update(&mut self, values: &[f32], gradient: &[f32], beta1: f32, beta2: f32) {
        self.exp_avg_ipt.resize(values.len(), 0.0);
        self.exp_avg_unc.resize(values.len(), 0.0);
        for (((value, gradient), average), uncertainty) in values
            .iter()
            .zip(gradient)
            .zip(&mut self.exp_avg_ipt)
            .zip(&mut self.exp_avg_unc)
        {
            let importance = (value * gradient).abs();
            *average = beta1 * *average + (1.0 - beta1) * importance;
            *uncertainty = beta2 * *uncertainty + (1.0 - beta2) * (importance - *average).abs();
        }
    }

    pub fn score(&self, i: usize) -> f32 {
        self.exp_avg_ipt
            .get(i)
            .zip(self.exp_avg_unc.get(i))
            .map_or(0.0, |(a, u)| a * u)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_falls_by_the_cube_of_what_is_left() {
        // Written by peft 0.21.2: RankAllocator.budget_schedule(t) with 24 triplets, 12 wanted,
        // total_step 20, tinit 4, tfinal 6, deltaT 2.
        let schedule = Schedule {
            total: 20,
            tinit: 4,
            tfinal: 6,
        };
        let found: Vec<(usize, bool)> = [1, 4, 5, 6, 8, 11, 13, 14, 15, 20]
            .map(|t| schedule.budget(t, 24, 12, 2))
            .into();
        assert_eq!(found, PEFT);
    }
    const PEFT: [(usize, bool); 10] = [
        (24, false),
        (24, false),
        (20, false),
        (18, true),
        (14, true),
        (12, false),
        (12, false),
        (12, true),
        (12, true),
        (12, true),
    ];
}
