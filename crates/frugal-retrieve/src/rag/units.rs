//! In what the size of a chunk is counted.

use std::ops::Range;

use frugal_core::tokenizer::{TextTokenizer, TokenizerError};

/// The units of one text, as bytes in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Units {
    starts: Vec<usize>,
    ends: Vec<usize>,
}

impl Units {
    fn of(ranges: impl Iterator<Item = Range<usize>>) -> Self {
        let (starts, ends) = ranges.map(|range| (range.start, range.end)).unzip();
        Self { starts, ends }
    }

    /// Every character, white space included.
    pub fn characters(text: &str) -> Self {
        Self::of(text.char_indices().map(|(at, c)| at..at + c.len_utf8()))
    }

    /// What stands between white space.
    pub fn words(text: &str) -> Self {
        let at = |word: &str| word.as_ptr() as usize - text.as_ptr() as usize;
        let words = text.split_whitespace();
        Self::of(words.map(|word| at(word)..at(word) + word.len()))
    }

    /// Tokens. A character of several tokens begins one unit: no chunk splits a code point.
    ///
    /// # Errors
    /// A text that the tokenizer cannot spell.
    pub fn tokens(text: &str, tokenizer: &TextTokenizer) -> Result<Self, TokenizerError> {
        let spans = tokenizer.encode_spans(text, false)?;
        let mut units = Self {
            starts: Vec::with_capacity(spans.ids.len()),
            ends: Vec::with_capacity(spans.ids.len()),
        };
        for (start, end) in spans.offsets {
            let whole = text.is_char_boundary(start) && text.is_char_boundary(end);
            let behind = units.starts.last().is_none_or(|last| start > *last);
            if whole && behind && end > start {
                units.starts.push(start);
                units.ends.push(end);
            }
        }
        Ok(units)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// The bytes from the first of these units to the end of the last.
    pub(super) fn bytes(&self, units: Range<usize>) -> Range<usize> {
        self.starts[units.start]..self.ends[units.end - 1]
    }

    /// How many begin in these bytes.
    pub(super) fn count(&self, bytes: &Range<usize>) -> usize {
        self.in_bytes(bytes).len()
    }

    /// Those that begin in these bytes.
    pub(super) fn in_bytes(&self, bytes: &Range<usize>) -> Range<usize> {
        let before = |byte: usize| self.starts.partition_point(|start| *start < byte);
        before(bytes.start)..before(bytes.end)
    }
}
