//! The list of classes of objectives.

use super::objective::Objective;
use super::{
    autoencoding, copying, deshuffling, infilling, next_token, prefix_lm, selective_copying,
};

/// A class of objectives.
pub struct ObjectiveClass {
    /// Its name.
    pub name: &'static str,
    /// What is learnt, in a few words.
    pub about: &'static str,
    /// All arms of the class, with lengths scaled by a factor.
    pub grid: fn(f64) -> Vec<Box<dyn Objective>>,
}

/// All classes, one line each.
#[rustfmt::skip]
pub const CLASSES: &[ObjectiveClass] = &[
    ObjectiveClass { name: infilling::NAME, about: "the spans that were taken out", grid: infilling::grid },
    ObjectiveClass { name: next_token::NAME, about: "the next token from the first on", grid: next_token::grid },
    ObjectiveClass { name: prefix_lm::NAME, about: "how a text goes on", grid: prefix_lm::grid },
    ObjectiveClass { name: selective_copying::NAME, about: "the spans between given delimiters", grid: selective_copying::grid },
    ObjectiveClass { name: copying::NAME, about: "the text again", grid: copying::grid },
    ObjectiveClass { name: deshuffling::NAME, about: "the text whose tokens were shuffled", grid: deshuffling::grid },
    ObjectiveClass { name: autoencoding::NAME, about: "the whole text of which spans were taken out", grid: autoencoding::grid },
];

/// The class of a name.
pub fn find(name: &str) -> Option<&'static ObjectiveClass> {
    CLASSES.iter().find(|class| class.name == name)
}

/// All arms of all classes, with lengths scaled by a factor.
pub fn grid(scale: f64) -> Vec<Box<dyn Objective>> {
    CLASSES
        .iter()
        .flat_map(|class| (class.grid)(scale))
        .collect()
}
