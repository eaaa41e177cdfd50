//! Cutting a text into chunks of a bounded size.

use std::ops::Range;

use frugal_eval::rag::sentence_ranges;
use thiserror::Error;

use super::markdown::sections;
use super::units::Units;

/// Where a text may be cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Splitter {
    /// After every `size` units, wherever that is.
    #[default]
    Fixed,
    /// Between sentences; one that is longer than a chunk is cut as by `Recursive`.
    Sentence,
    /// Between paragraphs, else lines, else sentences, else words, else anywhere: the coarsest that
    /// leaves parts small enough.
    Recursive,
    /// At the headings of Markdown, and within a section as by `Recursive`; no chunk is of two
    /// sections.
    Markdown,
}

/// How texts are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunker {
    splitter: Splitter,
    size: usize,
    overlap: usize,
}

/// Sizes that make no chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ChunkError {
    /// Chunks of nothing.
    #[error("the size of a chunk must be at least 1")]
    NoSize,
    /// Chunks that bring nothing new.
    #[error("an overlap of {overlap} leaves a chunk of {size} nothing new: it must be less")]
    Overlap {
        /// The overlap.
        overlap: usize,
        /// The size.
        size: usize,
    },
}

/// What parts a text, the coarsest first; an empty text parts every unit from the next.
const SEPARATORS: [&str; 5] = ["\n\n", "\n", ". ", " ", ""];

impl Chunker {
    /// Chunks of at most `size` units, of which each repeats up to `overlap` units of the one before:
    /// exactly so many with [`Splitter::Fixed`], whole parts with the others.
    ///
    /// # Errors
    /// A size of 0, an overlap that is not less than the size.
    pub fn new(splitter: Splitter, size: usize, overlap: usize) -> Result<Self, ChunkError> {
        match size {
            0 => Err(ChunkError::NoSize),
            _ if overlap >= size => Err(ChunkError::Overlap { overlap, size }),
            _ => Ok(Self {
                splitter,
                size,
                overlap,
            }),
        }
    }

    /// The bytes of each chunk, in order, without white space at their ends where a splitter other
    /// than [`Splitter::Fixed`] cut there. `units` are those of this text.
    pub fn cut(&self, text: &str, units: &Units) -> Vec<Range<usize>> {
        match self.splitter {
            Splitter::Fixed => self.fixed(units),
            Splitter::Sentence => {
                let mut parts = Vec::new();
                for sentence in up_to_next(sentence_ranges(text), text.len()) {
                    self.recurse(text, units, sentence, 3, &mut parts);
                }
                self.merge(text, units, &parts)
            }
            Splitter::Recursive => self.recursive(text, units, 0..text.len()),
            Splitter::Markdown => sections(text)
                .into_iter()
                .flat_map(|section| self.recursive(text, units, section.bytes))
                .collect(),
        }
    }

    /// As [`Splitter::Recursive`] cuts a part of the text.
    pub(super) fn cut_within(
        &self,
        text: &str,
        units: &Units,
        bytes: Range<usize>,
    ) -> Vec<Range<usize>> {
        self.recursive(text, units, bytes)
    }

    /// Windows whose stride is `size - overlap`; the last one brings at least one new unit.
    fn fixed(&self, units: &Units) -> Vec<Range<usize>> {
        let mut found = Vec::new();
        let mut start = 0;
        while start < units.len() {
            let end = (start + self.size).min(units.len());
            found.push(units.bytes(start..end));
            if end == units.len() {
                break;
            }
            start += self.size - self.overlap;
        }
        found
    }

    fn recursive(&self, text: &str, units: &Units, bytes: Range<usize>) -> Vec<Range<usize>> {
        let mut parts = Vec::new();
        self.recurse(text, units, bytes, 0, &mut parts);
        self.merge(text, units, &parts)
    }

    /// Parts of at most `size` units that follow each other without gaps, cut at the first separator
    /// from `level` on that stands in the text.
    fn recurse(
        &self,
        text: &str,
        units: &Units,
        bytes: Range<usize>,
        level: usize,
        parts: &mut Vec<Range<usize>>,
    ) {
        if units.count(&bytes) <= self.size {
            parts.push(bytes);
            return;
        }
        let separators = SEPARATORS.iter().enumerate().skip(level);
        for (level, separator) in separators {
            if separator.is_empty() {
                break;
            }
            let inside = &text[bytes.clone()];
            // A separator stays at the end of the part before it.
            let cuts: Vec<usize> = inside
                .match_indices(separator)
                .map(|(at, found)| bytes.start + at + found.len())
                .filter(|at| *at < bytes.end)
                .collect();
            if cuts.is_empty() {
                continue;
            }
            let mut start = bytes.start;
            for end in cuts.into_iter().chain([bytes.end]) {
                self.recurse(text, units, start..end, level + 1, parts);
                start = end;
            }
            return;
        }
        let inner = units.in_bytes(&bytes);
        let mut start = bytes.start;
        for first in inner.clone().step_by(self.size).skip(1) {
            let end = units.bytes(first..first + 1).start;
            parts.push(start..end);
            start = end;
        }
        parts.push(start..bytes.end);
    }

    /// Joins parts that follow each other to chunks of at most `size` units; a chunk begins with the
    /// last parts of the one before that have at most `overlap` units together.
    fn merge(&self, text: &str, units: &Units, parts: &[Range<usize>]) -> Vec<Range<usize>> {
        let counts: Vec<usize> = parts.iter().map(|part| units.count(part)).collect();
        let mut found = Vec::new();
        let (mut first, mut total) = (0, 0);
        for (next, count) in counts.iter().enumerate() {
            if total + count > self.size && next > first {
                found.push(parts[first].start..parts[next - 1].end);
                while first < next && (total > self.overlap || total + count > self.size) {
                    total -= counts[first];
                    first += 1;
                }
            }
            total += count;
        }
        if first < parts.len() {
            found.push(parts[first].start..parts[parts.len() - 1].end);
        }
        let trimmed = found.into_iter().map(|bytes| trim(text, bytes));
        trimmed.filter(|bytes| !bytes.is_empty()).collect()
    }
}

pub(super) fn trim(text: &str, bytes: Range<usize>) -> Range<usize> {
    let part = &text[bytes.clone()];
    let start = bytes.start + (part.len() - part.trim_start().len());
    start..start + part.trim().len()
}

/// Ranges that reach to the beginning of the next, so that nothing lies between them.
pub(super) fn up_to_next(ranges: Vec<Range<usize>>, end: usize) -> Vec<Range<usize>> {
    let next = ranges.iter().skip(1).map(|range| range.start).chain([end]);
    let pairs = ranges.iter().zip(next);
    pairs.map(|(range, next)| range.start..next).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(splitter: Splitter, size: usize, overlap: usize, text: &str) -> Vec<&str> {
        let chunker = Chunker::new(splitter, size, overlap).unwrap();
        let found = chunker.cut(text, &Units::words(text));
        found.into_iter().map(|bytes| &text[bytes]).collect()
    }

    #[test]
    fn windows_are_as_many_as_the_formula_says_and_cover_the_text() {
        let text = "aé".repeat(500);
        let units = Units::characters(&text);
        for (size, overlap, windows) in [(128, 0, 8), (128, 16, 9), (256, 64, 5), (1000, 1, 1)] {
            let chunker = Chunker::new(Splitter::Fixed, size, overlap).unwrap();
            let found = chunker.cut(&text, &units);
            assert_eq!(found.len(), windows, "{size}, {overlap}");
            let mut joined = text[found[0].clone()].to_owned();
            for chunk in &found[1..] {
                joined.extend(text[chunk.clone()].chars().skip(overlap));
            }
            assert_eq!(joined, text);
        }
        assert_eq!(
            Chunker::new(Splitter::Fixed, 4, 4),
            Err(ChunkError::Overlap {
                overlap: 4,
                size: 4
            })
        );
        assert_eq!(Chunker::new(Splitter::Fixed, 0, 0), Err(ChunkError::NoSize));
    }

    #[test]
    fn sentences_stay_whole_and_are_repeated_whole() {
        let text = "One two. Three four. Five six.";
        assert_eq!(
            cut(Splitter::Sentence, 4, 2, text),
            ["One two. Three four.", "Three four. Five six."]
        );
        assert_eq!(
            cut(Splitter::Sentence, 1, 0, text),
            ["One", "two.", "Three", "four.", "Five", "six."]
        );
    }

    #[test]
    fn recursive_cuts_at_the_coarsest_separator_that_suffices() {
        let text = "a b c\n\nd e\nf g h i\n\nj";
        assert_eq!(
            cut(Splitter::Recursive, 6, 0, text),
            ["a b c", "d e\nf g h i", "j"]
        );
        assert_eq!(
            cut(Splitter::Recursive, 4, 0, text),
            ["a b c", "d e", "f g h i", "j"]
        );
        assert_eq!(cut(Splitter::Recursive, 100, 0, text), [text]);
    }

    #[test]
    fn no_chunk_is_of_two_sections() {
        let text = "Before.\n# A\na b\n## B\nc d e f\n# C\ng";
        assert_eq!(
            cut(Splitter::Markdown, 100, 0, text),
            ["Before.", "# A\na b", "## B\nc d e f", "# C\ng"]
        );
    }

    #[test]
    fn every_unit_is_in_a_chunk_and_no_chunk_is_too_long() {
        let text: String = (0..400)
            .map(|i| match i % 13 {
                0 => format!("w{i}.\n\n"),
                4 => format!("w{i}.\n# h{i}\n"),
                7 => format!("w{i}! "),
                _ => format!("w{i} "),
            })
            .collect();
        let units = Units::words(&text);
        for splitter in [
            Splitter::Fixed,
            Splitter::Sentence,
            Splitter::Recursive,
            Splitter::Markdown,
        ] {
            for (size, overlap) in [(1, 0), (5, 2), (64, 63), (10_000, 0)] {
                let chunker = Chunker::new(splitter, size, overlap).unwrap();
                let mut covered = 0;
                for bytes in chunker.cut(&text, &units) {
                    let inside = units.in_bytes(&bytes);
                    assert!(
                        inside.len() <= size,
                        "{splitter:?} {size}: {}",
                        inside.len()
                    );
                    assert!(
                        inside.start <= covered,
                        "{splitter:?} {size}: a gap at {covered}"
                    );
                    assert!(inside.end > covered, "{splitter:?} {size}: nothing new");
                    covered = inside.end;
                }
                assert_eq!(covered, units.len(), "{splitter:?} {size}");
            }
        }
    }

    #[test]
    fn an_empty_text_has_no_chunks() {
        for splitter in [
            Splitter::Fixed,
            Splitter::Sentence,
            Splitter::Recursive,
            Splitter::Markdown,
        ] {
            assert!(cut(splitter, 3, 0, "").is_empty());
            assert!(cut(splitter, 3, 0, " \n\n ").is_empty(), "{splitter:?}");
        }
    }
}
