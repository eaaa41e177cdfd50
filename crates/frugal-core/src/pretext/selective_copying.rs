//! Selective copying: the input asks for spans of a text by what stands around them; the target is
//! the spans.

use std::ops::Range;

use rand::{Rng, RngCore};

use super::objective::{Lengths, Objective, Pair, range, scaled};
use super::special::Special;

pub(super) const NAME: &str = "selective_copying";

/// Tokens of a span.
const SPAN: Lengths = [4, 32];
/// Tokens of a delimiter.
const DELIMITER: Lengths = [1, 8];

#[derive(Debug)]
struct SelectiveCopying {
    lengths: Lengths,
    spans: usize,
    /// Whether the query stands in front of the context.
    query_first: bool,
}

pub(super) fn grid(scale: f64) -> Vec<Box<dyn Objective>> {
    let mut arms: Vec<Box<dyn Objective>> = Vec::new();
    for spans in 1..=4 {
        for query_first in [true, false] {
            for lengths in [[384, 768], [768, 1536]] {
                arms.push(Box::new(SelectiveCopying {
                    lengths: scaled(lengths, scale),
                    spans,
                    query_first,
                }));
            }
        }
    }
    arms
}

/// A span, and how many tokens on either side of it name it.
struct Asked {
    span: Range<usize>,
    before: usize,
    after: usize,
}

impl SelectiveCopying {
    /// One span in each of as many equal parts of the text, with its delimiters in the same part.
    fn asked(&self, length: usize, rng: &mut dyn RngCore) -> Vec<Asked> {
        let parts = self.spans.min(length / 3).max(1);
        let mut asked = Vec::with_capacity(parts);
        for part in 0..parts {
            let (from, to) = (part * length / parts, (part + 1) * length / parts);
            let room = to - from;
            if room < 3 {
                continue;
            }
            let mut draw = |[low, high]: Lengths, most: usize| {
                let most = high.min(most).max(1);
                rng.random_range(low.min(most)..=most)
            };
            let span = draw(SPAN, room - 2);
            let before = draw(DELIMITER, (room - span) / 2);
            let after = draw(DELIMITER, room - span - before);
            let free = room - span - before - after;
            let start = from + before + rng.random_range(0..=free);
            asked.push(Asked {
                span: start..start + span,
                before,
                after,
            });
        }
        asked
    }
}

impl Objective for SelectiveCopying {
    fn class(&self) -> &'static str {
        NAME
    }

    fn setting(&self) -> String {
        let first = if self.query_first { "query" } else { "context" };
        format!(
            "{} tokens, {} spans, {first} first",
            range(self.lengths),
            self.spans
        )
    }

    fn lengths(&self) -> Lengths {
        self.lengths
    }

    fn build(&self, text: &[u32], special: &Special, rng: &mut dyn RngCore) -> Pair {
        let [copy, start, end, context, done] = special.marks;
        let (mut query, mut label) = (vec![copy], Vec::new());
        for Asked {
            span,
            before,
            after,
        } in self.asked(text.len(), rng)
        {
            query.push(start);
            query.extend_from_slice(&text[span.start - before..span.start]);
            query.push(end);
            query.extend_from_slice(&text[span.end..span.end + after]);
            label.extend_from_slice(&text[span]);
        }
        label.push(done);
        let context = std::iter::once(context).chain(text.iter().copied());
        let input = match self.query_first {
            true => query.into_iter().chain(context).collect(),
            false => context.chain(query).collect(),
        };
        Pair { input, label }
    }
}
