//! What the tokens of objectives are called in a vocabulary.

use super::registry::CLASSES;
use super::special::{MARKS, Special};

/// The separator between input and target.
const GEN: &str = "<|gen|>";

/// The name of a sentinel.
pub fn sentinel_name(number: usize) -> String {
    format!("<|mask_{number}|>")
}

/// Names of all of them for a tokenizer, with so many sentinels.
pub fn special_names(sentinels: usize) -> Vec<String> {
    let classes = CLASSES.iter().map(|class| format!("<|{}|>", class.name));
    let marks = MARKS.iter().map(|mark| format!("<|{mark}|>"));
    let sentinels = (0..sentinels).map(sentinel_name);
    std::iter::once(GEN.to_owned())
        .chain(classes)
        .chain(marks)
        .chain(sentinels)
        .collect()
}

impl Special {
    /// The ids that `id` gives these names.
    ///
    /// # Errors
    /// The first name that has none.
    pub fn find(sentinels: usize, id: impl Fn(&str) -> Option<u32>) -> Result<Self, String> {
        let names = special_names(sentinels);
        let ids = names.iter().map(|name| id(name).ok_or(name.clone()));
        let ids = ids.collect::<Result<Vec<u32>, String>>()?;
        let (classes, marks) = (CLASSES.len(), MARKS.len());
        let mut own = [0; MARKS.len()];
        own.copy_from_slice(&ids[1 + classes..][..marks]);
        Ok(Self {
            generate: ids[0],
            classes: ids[1..=classes].to_vec(),
            marks: own,
            sentinels: ids[1 + classes + marks..].to_vec(),
        })
    }
}

/// The token of a class.
pub(super) fn class_token(special: &Special, name: &str) -> Option<u32> {
    let place = CLASSES.iter().position(|class| class.name == name)?;
    special.classes.get(place).copied()
}
