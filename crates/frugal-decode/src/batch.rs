//! Which sequences share a forward pass.

use frugal_nn::{ActiveAdapters, AdaptError, AdapterSet};

/// A sequence that wants to go on.
pub(crate) struct Member<'a> {
    pub adapters: &'a ActiveAdapters,
    /// Whether nothing of it is computed yet.
    pub begins: bool,
}

/// Sequences of one forward pass, and the adapters that act in it.
#[derive(Debug, PartialEq)]
pub(crate) struct Batch {
    pub members: Vec<usize>,
    pub adapters: ActiveAdapters,
}

/// Puts together what can share a pass: sequences with the same adapters, and those whose adapters
/// can be chosen per sequence unless each adapter needs a pass `of_its_own`.
pub(crate) fn batches(
    members: &[Member<'_>],
    adapters: &AdapterSet,
    of_its_own: bool,
) -> Result<Vec<Batch>, AdaptError> {
    let mut mixed: Vec<(Option<&str>, usize)> = Vec::new();
    let mut batches: Vec<(Batch, bool)> = Vec::new();
    for (i, member) in members.iter().enumerate() {
        let (name, mixable) = match member.adapters {
            ActiveAdapters::Base => (None, true),
            ActiveAdapters::One(name) => {
                let adapter = &adapters.get(name)?.adapter;
                (Some(name.as_str()), adapter.supports_mixed_batch())
            }
            ActiveAdapters::Combined(_) | ActiveAdapters::PerSequence(_) => (None, false),
        };
        if mixable && !of_its_own {
            mixed.push((name, i));
            continue;
        }
        // A method that puts positions in front does so for all sequences of a pass or for none.
        let begins = member.begins && !mixable;
        let same = batches
            .iter_mut()
            .find(|(batch, of)| *of == begins && batch.adapters == *member.adapters);
        match same {
            Some((batch, _)) => batch.members.push(i),
            None => batches.push((
                Batch {
                    members: vec![i],
                    adapters: member.adapters.clone(),
                },
                begins,
            )),
        }
    }
    let mut batches: Vec<Batch> = batches.into_iter().map(|(batch, _)| batch).collect();
    batches.extend(mixed_batch(mixed));
    Ok(batches)
}

/// One pass over sequences that each choose an adapter; neighbours with the same one are computed
/// together.
fn mixed_batch(mut mixed: Vec<(Option<&str>, usize)>) -> Option<Batch> {
    let first = mixed.first()?.0;
    let adapters = if mixed.iter().all(|(name, _)| *name == first) {
        first.map_or(ActiveAdapters::Base, |name| {
            ActiveAdapters::One(name.into())
        })
    } else {
        mixed.sort_by_key(|(name, _)| *name);
        let names = mixed.iter().map(|(name, _)| name.map(str::to_owned));
        ActiveAdapters::PerSequence(names.collect())
    };
    Some(Batch {
        members: mixed.into_iter().map(|(_, i)| i).collect(),
        adapters,
    })
}
