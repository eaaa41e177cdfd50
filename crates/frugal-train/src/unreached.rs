//! Examples that an adapter has no part in.

use std::fmt::{self, Display, Formatter};

use frugal_nn::Adapter;

use crate::{Target, Tokenized};

/// Examples that teach an adapter nothing, as they lack what it acts on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreached {
    /// Registered name of the adapter's method.
    pub method: &'static str,
    /// How many they are.
    pub examples: usize,
    /// Of how many.
    pub of: usize,
    /// What they lack, and the way out.
    pub reason: String,
}

impl Unreached {
    /// Those among `examples`; `None` where every example has what the adapter acts on. An example
    /// of several texts has it where one of them has.
    pub fn among(adapter: &dyn Adapter, examples: &[Tokenized]) -> Option<Self> {
        let (mut count, mut reason) = (0, None);
        for example in examples {
            if let Some(found) = lacks(adapter, example) {
                count += 1;
                reason.get_or_insert(found);
            }
        }
        Some(Self {
            method: adapter.method(),
            examples: count,
            of: examples.len(),
            reason: reason?,
        })
    }

    /// Whether nothing could be learnt.
    pub fn is_all(&self) -> bool {
        self.examples == self.of
    }
}

fn lacks(adapter: &dyn Adapter, example: &Tokenized) -> Option<String> {
    let Target::Texts { lengths, .. } = &example.labels else {
        return adapter.lacks(&example.input_ids);
    };
    let (mut rest, mut reason) = (example.input_ids.as_slice(), None);
    for length in lengths {
        let (text, behind) = rest.split_at((*length).min(rest.len()));
        reason = Some(adapter.lacks(text)?);
        rest = behind;
    }
    reason
}

impl Display for Unreached {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            method,
            examples,
            of,
            reason,
        } = self;
        if self.is_all() {
            write!(
                f,
                "method `{method}` would learn nothing: all {of} training examples have {reason}"
            )
        } else {
            write!(
                f,
                "{examples} of {of} training examples teach method `{method}` nothing: they have {reason}"
            )
        }
    }
}
