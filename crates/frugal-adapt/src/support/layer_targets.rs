//! Which layers, for methods whose files in `peft` know no exclusions.

use serde::{Deserialize, Serialize};

use crate::target::{Layers, Names, Targets};

/// Which layers, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LayerTargets {
    /// Path endings, one regular expression over the whole path, or `all-linear`.
    pub target_modules: Names,
    /// Only these blocks.
    pub layers_to_transform: Option<Layers>,
    /// Name of the list of blocks in the path.
    pub layers_pattern: Option<Names>,
}

impl Default for LayerTargets {
    fn default() -> Self {
        Self {
            target_modules: Targets::default().target_modules,
            layers_to_transform: None,
            layers_pattern: None,
        }
    }
}

impl LayerTargets {
    /// The same as a selection, which leaves nothing out.
    pub fn all(&self) -> Targets {
        Targets {
            target_modules: self.target_modules.clone(),
            layers_to_transform: self.layers_to_transform.clone(),
            layers_pattern: self.layers_pattern.clone(),
            ..Targets::default()
        }
    }
}
