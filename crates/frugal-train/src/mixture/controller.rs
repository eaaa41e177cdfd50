//! The reward-driven controller: from the losses of all arms to the distribution that the next
//! examples are drawn from.

use std::collections::BTreeMap;

use frugal_nn::{named_rng, uniform};

use super::reward::{class_totals, reward};
use super::reward_model::{Evaluated, RewardModel};
use super::schedule::Schedule;
use super::settings::ControllerConfig;
use super::state::{take, to_whole, whole};

/// Shape of the Pareto distribution of one half of the candidates.
const PARETO_SHAPE: f64 = 1.0;

/// Losses that were measured, and what was done about them.
#[derive(Clone, Debug)]
pub struct Controller {
    config: ControllerConfig,
    schedule: Schedule,
    /// The class of each arm.
    classes: Vec<usize>,
    seed: u64,
    model: RewardModel,
    history: Vec<Evaluated>,
    losses: Option<Vec<f32>>,
    action: Vec<f32>,
}

/// The share that an arm has in the reward of its class: `1 / arms of the class`.
pub fn class_weights(classes: &[usize]) -> Vec<f64> {
    let size = |class: &usize| classes.iter().filter(|c| *c == class).count();
    classes
        .iter()
        .map(|class| 1.0 / size(class) as f64)
        .collect()
}

/// Numbers that are 0 or more, divided by their sum; all alike where that is 0 or no number.
pub fn normalized(values: &[f64]) -> Vec<f64> {
    let sum: f64 = values.iter().sum();
    match sum > 0.0 && sum.is_finite() {
        true => values.iter().map(|value| value / sum).collect(),
        false => vec![1.0 / values.len().max(1) as f64; values.len()],
    }
}

impl Controller {
    /// One that has measured nothing, for arms of these classes.
    pub fn new(config: ControllerConfig, classes: Vec<usize>, seed: u64) -> Self {
        let arms = classes.len();
        let sizes = [config.reward_layers, config.reward_width];
        Self {
            schedule: config.schedule(),
            model: RewardModel::new(arms, sizes, config.reward_lr, seed),
            config,
            seed,
            history: Vec::new(),
            losses: None,
            action: vec![1.0 / arms as f32; arms],
            classes,
        }
    }

    /// The distribution that examples are drawn from.
    pub fn action(&self) -> &[f32] {
        &self.action
    }

    /// When it measures.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Takes the losses of all arms after so many steps: rewards what was done since the last time,
    /// fits the reward model to all that was seen, and from the end of the uniform steps on picks the
    /// next distribution. The answer is the rewards of the classes, the first time nothing.
    ///
    /// # Panics
    /// For another number of losses than arms.
    pub fn measured(&mut self, step: u64, losses: &[f64]) -> Vec<f64> {
        assert_eq!(losses.len(), self.classes.len(), "a loss for each arm");
        // What was measured is what a checkpoint keeps.
        let losses: Vec<f32> = losses.iter().map(|loss| *loss as f32).collect();
        let Some(old) = self.losses.replace(losses.clone()) else {
            return Vec::new();
        };
        let rewards: Vec<f64> = old
            .iter()
            .zip(&losses)
            .map(|(old, new)| reward(f64::from(*old), f64::from(*new)))
            .collect();
        self.history.push(Evaluated {
            losses: old.iter().map(|loss| finite(*loss)).collect(),
            action: self.action.clone(),
            rewards: rewards.iter().map(|reward| *reward as f32).collect(),
        });
        self.model.fit(&self.history, self.config.fit_steps);
        if self.schedule.decides(step) {
            self.action = self.choose(step, &losses);
        }
        class_totals(&rewards, &self.classes)
    }

    /// The mean of the best candidates.
    fn choose(&self, step: u64, losses: &[f32]) -> Vec<f32> {
        let candidates = self.candidates(step);
        let losses: Vec<f32> = losses.iter().map(|loss| finite(*loss)).collect();
        let foretold = self.model.predict(&self.history, &losses, &candidates);
        let weights = class_weights(&self.classes);
        let score = |rewards: &Vec<f32>| -> f64 {
            let each = rewards.iter().zip(&weights);
            each.map(|(reward, weight)| f64::from(*reward) * weight)
                .sum()
        };
        let mut ranked: Vec<(f64, usize)> = foretold
            .iter()
            .map(score)
            .zip(0..candidates.len())
            .collect();
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        ranked.truncate(self.config.top_candidates);
        let mut mean = vec![0.0f64; self.classes.len()];
        for (_, candidate) in &ranked {
            for (sum, share) in mean.iter_mut().zip(&candidates[*candidate]) {
                *sum += f64::from(*share);
            }
        }
        normalized(&mean)
            .iter()
            .map(|share| *share as f32)
            .collect()
    }

    /// Distributions that are drawn: of uniform numbers, which lie near the uniform one where there are
    /// many arms, and of Pareto's, which do not.
    fn candidates(&self, step: u64) -> Vec<Vec<f32>> {
        let mut rng = named_rng(self.seed, &format!("candidates of step {step}"));
        let mut one = |pareto: bool| {
            let draw = |_| {
                let u = uniform(&mut rng);
                match pareto {
                    true => (1.0 - u).powf(-1.0 / PARETO_SHAPE) - 1.0,
                    false => u,
                }
            };
            let values: Vec<f64> = (0..self.classes.len()).map(draw).collect();
            normalized(&values).iter().map(|v| *v as f32).collect()
        };
        (0..self.config.candidates)
            .map(|i| one(i % 2 == 1))
            .collect()
    }

    /// Everything that a resumed run needs.
    pub(super) fn save(&self, state: &mut BTreeMap<String, Vec<f32>>) {
        state.insert("action".into(), self.action.clone());
        if let Some(losses) = &self.losses {
            state.insert("losses".into(), losses.clone());
        }
        let all = self.history.iter();
        let history = all.flat_map(|e| [&e.losses[..], &e.action, &e.rewards].concat());
        state.insert("history.length".into(), whole(self.history.len() as u64));
        if !self.history.is_empty() {
            state.insert("history".into(), history.collect());
        }
        self.model.save(state);
    }

    /// Goes on from what [`Controller::save`] gave.
    pub(super) fn restore(&mut self, state: &BTreeMap<String, Vec<f32>>) -> Result<(), String> {
        let arms = self.classes.len();
        let count = to_whole("history.length", state)? as usize;
        let mut history = Vec::new();
        if count > 0 {
            let len = count.checked_mul(3 * arms).ok_or("`history` is too long")?;
            for row in take("history", len, state)?.chunks(3 * arms) {
                history.push(Evaluated {
                    losses: row[..arms].to_vec(),
                    action: row[arms..2 * arms].to_vec(),
                    rewards: row[2 * arms..].to_vec(),
                });
            }
        }
        let losses = match state.contains_key("losses") {
            true => Some(take("losses", arms, state)?.to_vec()),
            false => None,
        };
        let action = take("action", arms, state)?.to_vec();
        self.model.restore(state)?;
        (self.history, self.losses, self.action) = (history, losses, action);
        Ok(())
    }
}

/// A loss that the reward model can read.
fn finite(loss: f32) -> f32 {
    if loss.is_finite() { loss } else { 0.0 }
}
