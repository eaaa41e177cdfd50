//! Spans that are taken out of a text.

use std::ops::Range;

use rand::{Rng, RngCore};

/// How much is taken out, in pieces of which length.
#[derive(Clone, Copy, Debug)]
pub(super) struct Masking {
    /// Share of the tokens.
    pub rate: f64,
    /// Mean length of a span.
    pub mean_span: usize,
}

impl Masking {
    /// Spans of a text of this length at most: those of the shortest kind.
    pub fn max_spans(&self, length: usize) -> usize {
        let masked = self.budget(length);
        masked
            .div_ceil(self.shortest())
            .min(length.div_ceil(2))
            .max(1)
    }

    /// As in the released code, lengths lie between a third of the mean and three times the mean.
    fn shortest(&self) -> usize {
        (self.mean_span / 3).max(1)
    }

    fn budget(&self, length: usize) -> usize {
        let most = length.saturating_sub(1).max(1);
        ((length as f64 * self.rate).round() as usize).clamp(1, most)
    }

    /// Spans of a text of `length` tokens, at most `limit` of them, ascending, with tokens between
    /// them. Lengths are Poisson's.
    pub fn spans(&self, length: usize, limit: usize, rng: &mut dyn RngCore) -> Vec<Range<usize>> {
        let limit = limit.min(length.div_ceil(2));
        let (mut left, mut lengths) = (self.budget(length), Vec::new());
        while left > 0 && lengths.len() < limit {
            let drawn = poisson(self.mean_span as f64, rng);
            let drawn = drawn.clamp(self.shortest(), 3 * self.mean_span).min(left);
            // One token has to stay between two spans.
            let used: usize = lengths.iter().sum::<usize>() + lengths.len();
            let drawn = drawn.min(length.saturating_sub(used));
            if drawn == 0 {
                break;
            }
            lengths.push(drawn);
            left -= drawn;
        }
        let inner = lengths.len().saturating_sub(1);
        let free = length - lengths.iter().sum::<usize>() - inner;
        // Where the free tokens lie between the spans: each way is as likely as any other.
        let mut cuts: Vec<usize> = (0..lengths.len())
            .map(|_| rng.random_range(0..=free))
            .collect();
        cuts.sort_unstable();
        let (mut at, mut before) = (0, 0);
        let mut spans = Vec::with_capacity(lengths.len());
        for (i, (cut, length)) in cuts.into_iter().zip(lengths).enumerate() {
            at += cut - before + usize::from(i > 0);
            before = cut;
            spans.push(at..at + length);
            at += length;
        }
        spans
    }
}

/// A number of Poisson's distribution (Knuth).
fn poisson(mean: f64, rng: &mut dyn RngCore) -> usize {
    let (limit, mut product, mut count) = ((-mean).exp(), 1.0, 0);
    loop {
        product *= rng.random::<f64>();
        if product <= limit {
            return count;
        }
        count += 1;
    }
}

/// What is left of a text, in pieces, one more than there are spans.
pub(super) fn kept<'t>(text: &'t [u32], spans: &[Range<usize>]) -> Vec<&'t [u32]> {
    let starts = std::iter::once(0).chain(spans.iter().map(|span| span.end));
    let ends = spans
        .iter()
        .map(|span| span.start)
        .chain(std::iter::once(text.len()));
    starts.zip(ends).map(|(from, to)| &text[from..to]).collect()
}

/// Pieces with a sentinel between each two.
pub(super) fn with_sentinels(pieces: &[&[u32]], sentinels: &[u32]) -> Vec<u32> {
    let mut joined = Vec::new();
    for (i, piece) in pieces.iter().enumerate() {
        if i > 0 {
            joined.push(sentinels[i - 1]);
        }
        joined.extend_from_slice(piece);
    }
    joined
}
