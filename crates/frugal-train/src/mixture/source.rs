//! The examples of a mixture, step by step.

use std::collections::BTreeMap;

use frugal_core::pretext::{CLASSES, Objective, PrefixLm, Special, find, fitted};
use frugal_nn::{named_rng, uniform};

use super::controller::{Controller, class_weights, normalized};
use super::settings::{MixtureConfig, MixtureKind};
use super::state::{to_whole, whole};
use crate::Tokenized;
use crate::source::ExampleSource;

/// UL2's shares: next tokens, prefix language modelling, infilling.
const UL2: [(&str, f64); 3] = [("next_token", 0.6), ("prefix_lm", 0.2), ("infilling", 0.2)];
/// Share of a text that UL2's prefix language modelling reads.
const UL2_PREFIX: f64 = 0.75;
/// The longest example of the paper, which lengths are scaled from.
const PAPER_LENGTH: f64 = 2048.0;
/// Most sentinels of a vocabulary without another setting.
const MAX_SENTINELS: usize = 256;

/// The text that examples are made of.
#[derive(Clone, Copy, Debug)]
pub struct MixtureText<'a> {
    /// To learn from.
    pub train: &'a [u32],
    /// To measure on.
    pub validation: &'a [u32],
    /// Most tokens of an example.
    pub max_length: usize,
    /// Most tokens of a micro-batch, unless a single example has more.
    pub max_tokens: usize,
    /// Micro-batches of a step.
    pub micro_batches: usize,
}

/// Examples of arms that are drawn.
pub struct Mixture {
    arms: Vec<Box<dyn Objective>>,
    classes: Vec<usize>,
    special: Special,
    stream: Vec<u32>,
    max_length: usize,
    max_tokens: usize,
    micro_batches: usize,
    seed: u64,
    sets: Vec<Vec<Tokenized>>,
    policy: Policy,
    /// Examples drawn so far.
    drawn: u64,
    /// Steps after which the arms were measured last.
    measured: Option<u64>,
}

enum Policy {
    Fixed(Vec<f32>),
    Driven(Box<Controller>),
}

impl MixtureConfig {
    /// The factor on lengths for examples of at most `max_length` tokens.
    pub fn scale(&self, max_length: usize) -> f64 {
        let default = (max_length as f64 / PAPER_LENGTH).min(1.0);
        self.length_scale.unwrap_or(default)
    }

    /// The arms of a mixture of this kind.
    pub fn arms(&self, kind: MixtureKind, max_length: usize) -> Vec<Box<dyn Objective>> {
        let scale = self.scale(max_length);
        let of = |name: &str| find(name).map_or_else(Vec::new, |class| (class.grid)(scale));
        match kind {
            MixtureKind::Ntp => of("next_token"),
            MixtureKind::Ul2 => {
                let mut arms = of("next_token");
                arms.push(Box::new(PrefixLm::new(scale, Some(UL2_PREFIX))));
                arms.extend(of("infilling"));
                arms
            }
            MixtureKind::Fixed | MixtureKind::Birdie => CLASSES
                .iter()
                .map(|class| class.name)
                .filter(|name| self.classes.is_empty() || self.classes.iter().any(|c| c == name))
                .flat_map(of)
                .collect(),
        }
    }

    /// How many sentinels the vocabulary of a mixture of this kind has.
    pub fn num_sentinels(&self, kind: MixtureKind, max_length: usize) -> usize {
        let arms = self.arms(kind, max_length);
        let needed = arms
            .iter()
            .map(|arm| arm.sentinels(arm.lengths()[1].min(max_length)));
        let needed = needed.max().unwrap_or(0).min(MAX_SENTINELS);
        self.sentinels.unwrap_or(needed)
    }

    /// The shares of all arms before anything is measured.
    fn shares(
        &self,
        kind: MixtureKind,
        arms: &[Box<dyn Objective>],
        classes: &[usize],
    ) -> Vec<f64> {
        let given: BTreeMap<&str, f64> = match kind {
            MixtureKind::Ul2 => UL2.into(),
            _ => self.weights.iter().map(|(n, w)| (n.as_str(), *w)).collect(),
        };
        if given.is_empty() {
            return normalized(&vec![1.0; arms.len()]);
        }
        let within = class_weights(classes);
        let of_class = arms
            .iter()
            .map(|arm| given.get(arm.class()).copied().unwrap_or(0.0));
        let shares = of_class.zip(within).map(|(share, within)| share * within);
        normalized(&shares.collect::<Vec<f64>>())
    }
}

impl Mixture {
    /// A mixture over a text.
    ///
    /// # Errors
    /// A text or a length in which an arm has no place.
    pub fn new(
        kind: MixtureKind,
        config: &MixtureConfig,
        special: Special,
        text: &MixtureText<'_>,
        seed: u64,
    ) -> Result<Self, String> {
        let arms = config.arms(kind, text.max_length);
        let classes: Vec<usize> = arms
            .iter()
            .map(|arm| {
                let mut found = CLASSES.iter().map(|class| class.name);
                found.position(|name| name == arm.class()).unwrap_or(0)
            })
            .collect();
        let shares = config.shares(kind, &arms, &classes);
        let policy = match kind {
            MixtureKind::Birdie => {
                let controller = config.controller.clone();
                Policy::Driven(Box::new(Controller::new(controller, classes.clone(), seed)))
            }
            _ => Policy::Fixed(shares.iter().map(|share| *share as f32).collect()),
        };
        let mut made = Self {
            sets: Vec::new(),
            arms,
            classes,
            special,
            stream: text.train.to_vec(),
            max_length: text.max_length,
            max_tokens: text.max_tokens,
            micro_batches: text.micro_batches.max(1),
            seed,
            policy,
            drawn: 0,
            measured: None,
        };
        for arm in 0..made.arms.len() {
            if made.sample(arm, text.train, "try", 0).is_none() {
                return Err(format!(
                    "no example of `{}` fits into {} tokens",
                    made.arms[arm].name(),
                    text.max_length
                ));
            }
            let set = (0..config.eval_samples as u64)
                .map_while(|i| made.sample(arm, text.validation, "held out", i));
            let set: Vec<Tokenized> = set.collect();
            if set.is_empty() {
                return Err("the held-out text is empty".into());
            }
            made.sets.push(set);
        }
        Ok(made)
    }

    /// The arms.
    pub fn arms(&self) -> &[Box<dyn Objective>] {
        &self.arms
    }

    /// The class of each arm, as a place in [`CLASSES`].
    pub fn classes(&self) -> &[usize] {
        &self.classes
    }

    /// The distribution that arms are drawn from.
    pub fn action(&self) -> &[f32] {
        match &self.policy {
            Policy::Fixed(shares) => shares,
            Policy::Driven(controller) => controller.action(),
        }
    }

    /// The separator between input and target.
    pub fn generate(&self) -> u32 {
        self.special.generate
    }

    fn sample(&self, arm: usize, stream: &[u32], use_for: &str, number: u64) -> Option<Tokenized> {
        let mut rng = named_rng(
            self.seed,
            &format!("{use_for} example {number} of arm {arm}"),
        );
        let objective = self.arms[arm].as_ref();
        fitted(objective, stream, &self.special, self.max_length, &mut rng).map(|f| f.example)
    }

    /// The example of a number, of an arm that is drawn now.
    fn example(&self, number: u64) -> Option<Tokenized> {
        let mut rng = named_rng(self.seed, &format!("arm of example {number}"));
        let mut left = uniform(&mut rng);
        let shares = self.action();
        let mut arm = shares.iter().rposition(|share| *share > 0.0).unwrap_or(0);
        for (i, share) in shares.iter().enumerate() {
            left -= f64::from(*share);
            if left < 0.0 {
                arm = i;
                break;
            }
        }
        self.sample(arm, &self.stream, "training", number)
    }

    /// What is told of a measurement.
    fn told(&self, losses: &[f64], rewards: &[f64]) -> BTreeMap<String, f64> {
        let mut told = BTreeMap::new();
        let shares = self.action().iter().map(|share| f64::from(*share));
        let shares: Vec<f64> = shares.collect();
        let mut by_class = vec![0.0; CLASSES.len()];
        for (share, class) in shares.iter().zip(&self.classes) {
            by_class[*class] += share;
        }
        let means = super::reward::class_totals(losses, &self.classes);
        for (i, class) in CLASSES.iter().enumerate() {
            if !self.classes.contains(&i) {
                continue;
            }
            let name = class.name;
            told.insert(format!("mixture/share/{name}"), by_class[i]);
            told.insert(format!("mixture/loss/{name}"), means[i]);
            if let Some(reward) = rewards.get(i) {
                told.insert(format!("mixture/reward/{name}"), *reward);
            }
        }
        for (i, arm) in self.arms.iter().enumerate() {
            let name = format!("{i:02} {}", arm.name());
            told.insert(format!("mixture/arm_share/{name}"), shares[i]);
            told.insert(format!("mixture/arm_loss/{name}"), losses[i]);
        }
        told
    }
}

impl ExampleSource for Mixture {
    fn step(&mut self) -> Vec<Vec<Tokenized>> {
        let mut batches = Vec::with_capacity(self.micro_batches);
        for _ in 0..self.micro_batches {
            let (mut batch, mut tokens) = (Vec::new(), 0);
            // An example that does not fit any more is the first of the next batch, of whatever arm is
            // drawn then: dropping it would make long ones rare.
            while let Some(example) = self.example(self.drawn) {
                if !batch.is_empty() && tokens + example.len() > self.max_tokens {
                    break;
                }
                tokens += example.len();
                batch.push(example);
                self.drawn += 1;
            }
            batches.push(batch);
        }
        batches
    }

    fn is_due(&self, step: u64) -> bool {
        match &self.policy {
            Policy::Fixed(_) => false,
            Policy::Driven(controller) => {
                self.measured != Some(step) && controller.schedule().is_due(step)
            }
        }
    }

    fn sets(&self) -> &[Vec<Tokenized>] {
        &self.sets
    }

    fn measured(&mut self, step: u64, losses: &[f64]) -> BTreeMap<String, f64> {
        self.measured = Some(step);
        let rewards = match &mut self.policy {
            Policy::Fixed(_) => Vec::new(),
            Policy::Driven(controller) => controller.measured(step, losses),
        };
        self.told(losses, &rewards)
    }

    fn state(&self) -> BTreeMap<String, Vec<f32>> {
        let mut state = BTreeMap::from([("drawn".to_owned(), whole(self.drawn))]);
        // A step that there is not says that nothing was measured.
        let measured = self.measured.unwrap_or(u64::MAX);
        state.insert("measured".into(), whole(measured));
        if let Policy::Driven(controller) = &self.policy {
            controller.save(&mut state);
        }
        state
    }

    fn restore(&mut self, state: &BTreeMap<String, Vec<f32>>) -> Result<(), String> {
        let drawn = to_whole("drawn", state)?;
        let measured = to_whole("measured", state)?;
        if let Policy::Driven(controller) = &mut self.policy {
            controller.restore(state)?;
        }
        self.drawn = drawn;
        self.measured = (measured != u64::MAX).then_some(measured);
        Ok(())
    }
}
