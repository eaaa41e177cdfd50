//! The settings of a mixture.

use std::collections::BTreeMap;

use frugal_core::pretext::CLASSES;
use frugal_core::suggest::did_you_mean;
use serde::{Deserialize, Serialize};

use super::schedule::Schedule;
use crate::named::Named;

/// How arms are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MixtureKind {
    /// Next tokens alone.
    Ntp,
    /// UL2-like: 60 % next tokens, 20 % prefix language modelling of 75 % prefixes, 20 % infilling.
    Ul2,
    /// All arms alike, or shares of classes that are given.
    Fixed,
    /// By the reward-driven controller.
    Birdie,
}

/// All kinds, with the names that settings have for them and what they are.
pub const MIXTURES: &[(&str, MixtureKind, &str)] = &[
    ("ntp", MixtureKind::Ntp, "next tokens behind a separator"),
    (
        "ul2",
        MixtureKind::Ul2,
        "60 % next tokens, 20 % prefix language modelling, 20 % infilling",
    ),
    (
        "mixture",
        MixtureKind::Fixed,
        "all arms of all classes alike, or given shares of classes",
    ),
    (
        "birdie",
        MixtureKind::Birdie,
        "arms drawn as a reward model expects them to pay",
    ),
];

/// Settings of a mixture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MixtureConfig {
    /// Whether what stands in front of the separator is read in both directions.
    pub bidirectional: bool,
    /// Factor on the lengths of all arms; by default the longest example over 2048, at most 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length_scale: Option<f64>,
    /// Sentinels of the vocabulary; by default as many as the arms need, at most 256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sentinels: Option<usize>,
    /// Classes of objectives; all by default.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// Shares of classes, for `mixture`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub weights: BTreeMap<String, f64>,
    /// Of `birdie`: held-out examples that each arm is measured on, the same every time.
    pub eval_samples: usize,
    /// Of `birdie`.
    #[serde(flatten)]
    pub controller: ControllerConfig,
}

impl Default for MixtureConfig {
    fn default() -> Self {
        Self {
            bidirectional: true,
            length_scale: None,
            sentinels: None,
            classes: Vec::new(),
            weights: BTreeMap::new(),
            eval_samples: 4,
            controller: ControllerConfig::default(),
        }
    }
}

/// Settings of the controller.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ControllerConfig {
    /// Steps with every arm as likely as any other.
    pub uniform_steps: u64,
    /// Steps after which all arms are measured.
    pub evaluations: Vec<u64>,
    /// Behind these: every so many steps.
    pub evaluation_interval: u64,
    /// Distributions that the reward model is asked about; half of them uniform, half Pareto.
    pub candidates: usize,
    /// How many of the best of them are averaged.
    pub top_candidates: usize,
    /// Steps that the reward model is fitted for at each evaluation.
    pub fit_steps: usize,
    /// Blocks of the reward model.
    pub reward_layers: usize,
    /// Its width.
    pub reward_width: usize,
    /// Its learning rate.
    pub reward_lr: f64,
}

impl Default for ControllerConfig {
    fn default() -> Self {
        Self {
            uniform_steps: 250,
            evaluations: vec![10, 50, 250, 500, 1000, 1500, 2000],
            evaluation_interval: 1000,
            candidates: 2048,
            top_candidates: 8,
            fit_steps: 200,
            reward_layers: 2,
            reward_width: 32,
            reward_lr: 5e-4,
        }
    }
}

impl ControllerConfig {
    /// When arms are measured.
    pub fn schedule(&self) -> Schedule {
        Schedule {
            uniform_steps: self.uniform_steps,
            evaluations: self.evaluations.clone(),
            every: self.evaluation_interval,
        }
    }
}

/// Names of the settings of any mixture.
const KEYS: [&str; 5] = [
    "bidirectional",
    "length_scale",
    "sentinels",
    "classes",
    "weights",
];
/// Names of those of the controller, which alone has arms measured.
const CONTROLLER_KEYS: [&str; 10] = [
    "eval_samples",
    "uniform_steps",
    "evaluations",
    "evaluation_interval",
    "candidates",
    "top_candidates",
    "fit_steps",
    "reward_layers",
    "reward_width",
    "reward_lr",
];

impl MixtureKind {
    /// The kind of a name.
    ///
    /// # Errors
    /// A name that there is not.
    pub fn find(name: &str) -> Result<Self, String> {
        let known: Vec<&str> = MIXTURES.iter().map(|(name, ..)| *name).collect();
        let found = MIXTURES.iter().find(|(known, ..)| *known == name);
        found.map(|(_, kind, _)| *kind).ok_or_else(|| {
            let near = did_you_mean(name, known.iter().copied())
                .map_or(String::new(), |near| format!("; did you mean `{near}`?"));
            let known = known.join(", ");
            format!("there is no mixture of objectives `{name}`{near} (one of {known}; `causal_lm` for plain text)")
        })
    }
}

impl MixtureConfig {
    /// Reads the settings of a mixture that is chosen by name.
    ///
    /// # Errors
    /// A name or a setting that there is not, a value out of range: the setting and what is wrong.
    pub fn read(named: &Named) -> Result<(MixtureKind, Self), (String, String)> {
        let kind = MixtureKind::find(&named.name).map_err(|reason| ("name".into(), reason))?;
        let known = || KEYS.into_iter().chain(CONTROLLER_KEYS);
        let is_unknown = |key: &&String| !known().any(|name| name == key.as_str());
        if let Some(key) = named.settings.keys().find(is_unknown) {
            let near = did_you_mean(key, known())
                .map_or(String::new(), |near| format!("; did you mean `{near}`?"));
            return Err((key.clone(), format!("there is no such setting{near}")));
        }
        let of_controller = |key: &&String| CONTROLLER_KEYS.contains(&key.as_str());
        if kind != MixtureKind::Birdie
            && let Some(key) = named.settings.keys().find(of_controller)
        {
            let reason = format!(
                "only `birdie` is driven by a controller, whose setting it is; `{}` would not read it",
                named.name
            );
            return Err((key.clone(), reason));
        }
        let config: Self = named.read().map_err(|reason| (String::new(), reason))?;
        config.check(kind)?;
        Ok((kind, config))
    }

    fn check(&self, kind: MixtureKind) -> Result<(), (String, String)> {
        let refuse = |key: &str, reason: String| Err((key.to_owned(), reason));
        let c = &self.controller;
        let sizes = [
            ("eval_samples", self.eval_samples, 1 << 12),
            ("candidates", c.candidates, 1 << 16),
            ("top_candidates", c.top_candidates, c.candidates),
            ("fit_steps", c.fit_steps, 1 << 16),
            ("reward_layers", c.reward_layers, 64),
            ("reward_width", c.reward_width, 1 << 12),
        ];
        for (key, value, most) in sizes {
            if value == 0 || value > most {
                return refuse(key, format!("{value} given, but it must be 1 to {most}"));
            }
        }
        if let Some(count) = self.sentinels.filter(|n| *n == 0 || *n > 1 << 14) {
            return refuse(
                "sentinels",
                format!("{count} given, but it must be 1 to 16384"),
            );
        }
        if let Some(scale) = self.length_scale.filter(|s| !(*s > 0.0 && *s <= 16.0)) {
            let reason = format!("{scale} given, but it must be above 0 and at most 16");
            return refuse("length_scale", reason);
        }
        if !(c.reward_lr > 0.0 && c.reward_lr.is_finite()) {
            return refuse(
                "reward_lr",
                format!("{} given, but it must be above 0", c.reward_lr),
            );
        }
        let named = self.classes.iter().map(|name| ("classes", name));
        for (key, name) in named.chain(self.weights.keys().map(|name| ("weights", name))) {
            if !CLASSES.iter().any(|class| class.name == name) {
                let known: Vec<&str> = CLASSES.iter().map(|class| class.name).collect();
                let reason = format!("there is no class `{name}` (one of {})", known.join(", "));
                return refuse(key, reason);
            }
        }
        if !self.weights.is_empty() && kind != MixtureKind::Fixed {
            return refuse("weights", "only `mixture` takes shares of classes".into());
        }
        if !self.classes.is_empty() && matches!(kind, MixtureKind::Ntp | MixtureKind::Ul2) {
            return refuse("classes", "this mixture has its own".into());
        }
        let bad = self
            .weights
            .iter()
            .find(|(_, w)| !(**w >= 0.0 && w.is_finite()));
        if let Some((name, weight)) = bad {
            return refuse(
                "weights",
                format!("{weight} of `{name}`, but it must be 0 or more"),
            );
        }
        let has = |name: &String| self.classes.is_empty() || self.classes.contains(name);
        let total: f64 = self
            .weights
            .iter()
            .filter(|(n, _)| has(n))
            .map(|(_, w)| w)
            .sum();
        if !self.weights.is_empty() && total <= 0.0 {
            return refuse("weights", "no class has a share".into());
        }
        Ok(())
    }
}
