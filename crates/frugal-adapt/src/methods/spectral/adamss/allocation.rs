//! Which groups go on learning.

use std::collections::BTreeMap;

use burn::prelude::*;
use frugal_nn::seam::derived_cache::DerivedCache;
use frugal_nn::{
    AdaptError, Adapter, GradientSum, Linear, MergedLinear, Mode, Parameter, Pass, StepContext,
};
use serde_json::{Map, Value};

use crate::methods::spectral::adamss::config::AdamssConfig;
use crate::methods::spectral::adamss::score::Score;
use crate::methods::spectral::adamss::spaces::Spaces;
use crate::support::per_linear::PerLinear;

/// An AdaMSS adapter.
pub(super) struct Adamss {
    pub spaces: PerLinear<Spaces>,
    /// Where groups are to stop.
    pub schedule: Option<AdamssConfig>,
}

impl Adamss {
    /// Groups that may learn after this step.
    fn target(&self, config: &AdamssConfig, step: u64) -> usize {
        let total: usize = self.spaces.parts().map(|(_, part)| part.scores.len()).sum();
        let target = config.asa_target_subspaces as f64;
        let done =
            (step - config.init_warmup) as f64 / (config.final_warmup - config.init_warmup) as f64;
        let left = (1.0 - done)
            .clamp(0.0, 1.0)
            .powf(config.asa_schedule_exponent);
        (target + (total as f64 - target) * left) as usize
    }

    /// Stops the groups of lowest score, of those that have one.
    fn stop(&mut self, target: usize) {
        let scores = self.spaces.parts().flat_map(|(_, part)| &part.scores);
        let mut scores: Vec<f32> = scores.filter_map(Score::value).collect();
        if scores.is_empty() {
            return;
        }
        scores.sort_by(|a, b| b.total_cmp(a));
        let threshold = match target {
            0 => f32::INFINITY,
            _ if target >= scores.len() => f32::NEG_INFINITY,
            _ => scores[target - 1],
        };
        for part in self.spaces.parts_mut() {
            for score in &mut part.scores {
                if let Some(value) = score.value() {
                    score.stopped = value <= threshold;
                }
            }
        }
    }
}

impl Adapter for Adamss {
    fn method(&self) -> &'static str {
        self.spaces.method()
    }

    fn parameters(&self) -> Vec<&Parameter> {
        self.spaces.parameters()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.spaces.parameters_mut()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        self.spaces.pass(mode)
    }

    fn cached_pass<'a>(&'a self, kept: &'a DerivedCache) -> Box<dyn Pass + 'a> {
        self.spaces.cached_pass(kept)
    }

    fn peft_config(&self) -> Map<String, Value> {
        self.spaces.peft_config()
    }

    fn weight_delta(&self, base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        self.spaces.weight_delta(base)
    }

    fn merged_linear(&self, base: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        self.spaces.merged_linear(base)
    }

    fn unmerged_linear(&self, merged: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        self.spaces.unmerged_linear(merged)
    }

    fn needs_trainer(&self) -> bool {
        self.schedule.is_some()
    }

    fn before_step(&mut self, _context: &StepContext, gradients: &mut GradientSum) {
        if self.schedule.is_none() {
            return;
        }
        for part in self.spaces.parts_mut() {
            let groups = part.a.iter().zip(&part.b).zip(&mut part.scores);
            for ((a, b), score) in groups {
                score.gradients = [a, b].map(|side| match score.stopped {
                    true => {
                        gradients.remove(side.name());
                        Vec::new()
                    }
                    false => gradients.get(side.name()).unwrap_or_default().to_vec(),
                });
            }
        }
    }

    fn after_step(&mut self, context: &StepContext) {
        let Some(config) = self.schedule.clone() else {
            return;
        };
        let step = context.step.saturating_sub(1);
        if !(config.init_warmup..=config.final_warmup).contains(&step) {
            return;
        }
        let betas = [config.asa_importance_beta, config.asa_uncertainty_beta];
        for part in self.spaces.parts_mut() {
            let groups = part.a.iter().zip(&part.b).zip(&mut part.scores);
            for ((a, b), score) in groups {
                score.update([a.to_vec(), b.to_vec()], betas.map(|beta| beta as f32));
            }
        }
        if step.is_multiple_of(config.mask_interval) {
            self.stop(self.target(&config, step));
            let scores = self.spaces.parts_mut().flat_map(|part| &mut part.scores);
            scores.for_each(|score| score.sides = Default::default());
        }
    }

    fn state(&self) -> BTreeMap<String, Vec<f32>> {
        let mut state = BTreeMap::new();
        if self.schedule.is_none() {
            return state;
        }
        for (path, part) in self.spaces.parts() {
            for (group, score) in part.scores.iter().enumerate() {
                let stopped = vec![f32::from(u8::from(score.stopped))];
                state.insert(format!("stopped.{path}.{group}"), stopped);
                for (side, letter) in score.sides.iter().zip(["A", "B"]) {
                    for (values, what) in side.iter().zip(["importance", "uncertainty"]) {
                        let key = format!("{what}.{path}.{letter}.{group}");
                        state.insert(key, values.clone());
                    }
                }
            }
        }
        state
    }

    fn restore(&mut self, state: &BTreeMap<String, Vec<f32>>) -> Result<(), String> {
        if self.schedule.is_none() {
            return Ok(());
        }
        let paths: Vec<String> = self
            .spaces
            .parts()
            .map(|(path, _)| path.to_owned())
            .collect();
        for (path, part) in paths.iter().zip(self.spaces.parts_mut()) {
            let groups = part.a.iter().zip(&part.b).zip(&mut part.scores);
            for (group, ((a, b), score)) in groups.enumerate() {
                let get = |key: String, sizes: [usize; 2]| {
                    let found = state.get(&key).filter(|v| sizes.contains(&v.len()));
                    found
                        .cloned()
                        .ok_or_else(|| format!("`{key}` is missing or has another size"))
                };
                score.stopped = get(format!("stopped.{path}.{group}"), [1, 1])?[0] != 0.0;
                for (side, (letter, len)) in
                    score.sides.iter_mut().zip([("A", a.len()), ("B", b.len())])
                {
                    for (values, what) in side.iter_mut().zip(["importance", "uncertainty"]) {
                        *values = get(format!("{what}.{path}.{letter}.{group}"), [0, len])?;
                    }
                }
            }
        }
        Ok(())
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}
