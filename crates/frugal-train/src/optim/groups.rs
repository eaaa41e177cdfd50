//! Parameters that learn in a way of their own, by the pattern of their names.

use regex::Regex;
use serde::{Deserialize, Serialize};

/// Parameters whose name matches a pattern, and what holds for them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParamGroup {
    /// A regular expression that occurs in the name of the parameter: `lora_B`, `layers\.1[01]\.`.
    pub pattern: String,
    /// Factor on the learning rate; 0 keeps them as they are.
    #[serde(default = "one")]
    pub lr_scale: f64,
    /// Weight decay in place of the run's, for vectors and biases too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
}

fn one() -> f64 {
    1.0
}

impl ParamGroup {
    /// What is wrong with it.
    pub(crate) fn problem(&self) -> Option<String> {
        let non_negative = |x: f64| x.is_finite() && x >= 0.0;
        let (pattern, decay) = (&self.pattern, self.weight_decay.unwrap_or(0.0));
        if let Err(error) = Regex::new(pattern) {
            return Some(format!("{pattern:?} is no regular expression: {error}"));
        }
        if !non_negative(self.lr_scale) {
            let lr_scale = self.lr_scale;
            return Some(format!(
                "`lr_scale` {lr_scale} given for {pattern:?}, but it must be 0 or a positive number"
            ));
        }
        (!non_negative(decay)).then(|| {
            format!(
                "`weight_decay` {decay} given for {pattern:?}, but it must be 0 or a positive number"
            )
        })
    }
}

/// Groups whose patterns were read; the first that matches a name counts.
#[derive(Debug, Default)]
pub(super) struct Groups(Vec<(Regex, ParamGroup)>);

impl Groups {
    pub(super) fn new(groups: &[ParamGroup]) -> Result<Self, String> {
        let read = |group: &ParamGroup| match Regex::new(&group.pattern) {
            Ok(regex) => Ok((regex, group.clone())),
            Err(error) => Err(error.to_string()),
        };
        groups.iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn of(&self, name: &str) -> Option<&ParamGroup> {
        let found = self.0.iter().find(|(regex, _)| regex.is_match(name));
        found.map(|(_, group)| group)
    }

    /// The first group to which none of these names belongs.
    pub(super) fn unused<'a>(&self, names: impl Iterator<Item = &'a str> + Clone) -> Option<&str> {
        let mut groups = self.0.iter().enumerate();
        let is_used = |index: usize| {
            let first = |name: &str| self.0.iter().position(|(regex, _)| regex.is_match(name));
            names.clone().any(|name| first(name) == Some(index))
        };
        groups
            .find(|(index, _)| !is_used(*index))
            .map(|(_, (_, group))| group.pattern.as_str())
    }
}
