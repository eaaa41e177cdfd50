//! Examples that are made while a run goes on, in place of a fixed set.

use std::collections::BTreeMap;

use crate::Tokenized;

/// Where the examples of a step come from when no fixed set gives them. What it makes must follow from
/// its settings and its state alone, so that a resumed run makes the same.
pub trait ExampleSource {
    /// The micro-batches of the next step.
    fn step(&mut self) -> Vec<Vec<Tokenized>>;

    /// Whether the sets are to be measured after so many steps, before the next one.
    fn is_due(&self, step: u64) -> bool;

    /// The sets that it is to be told the losses of; the same at every time.
    fn sets(&self) -> &[Vec<Tokenized>];

    /// Takes the losses of the sets after so many steps; the answer is for the log.
    fn measured(&mut self, step: u64, losses: &[f64]) -> BTreeMap<String, f64>;

    /// What a resumed run needs.
    fn state(&self) -> BTreeMap<String, Vec<f32>>;

    /// Goes on from a state.
    ///
    /// # Errors
    /// A state that is not one of this source.
    fn restore(&mut self, state: &BTreeMap<String, Vec<f32>>) -> Result<(), String>;
}

/// What its state is called beside that of an adapter.
pub(crate) const PREFIX: &str = "examples.";

/// The state of an adapter with that of a source beside it.
pub(crate) fn joined(
    mut adapter: BTreeMap<String, Vec<f32>>,
    source: Option<BTreeMap<String, Vec<f32>>>,
) -> BTreeMap<String, Vec<f32>> {
    let source = source.into_iter().flatten();
    adapter.extend(source.map(|(name, values)| (format!("{PREFIX}{name}"), values)));
    adapter
}

/// What [`joined`] has put together.
pub(crate) fn parted(all: BTreeMap<String, Vec<f32>>) -> [BTreeMap<String, Vec<f32>>; 2] {
    let (mut adapter, mut source) = (BTreeMap::new(), BTreeMap::new());
    for (name, values) in all {
        match name.strip_prefix(PREFIX) {
            Some(own) => source.insert(own.to_owned(), values),
            None => adapter.insert(name, values),
        };
    }
    [adapter, source]
}
