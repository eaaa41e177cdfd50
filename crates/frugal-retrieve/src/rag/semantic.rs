//! Cutting where the meaning changes: between sentences whose vectors are far apart.

use std::ops::Range;

use frugal_eval::rag::{cosine, sentence_ranges};

use super::chunker::{Chunker, trim, up_to_next};
use super::units::Units;

/// From which distance of neighbours on a text is cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Breakpoint {
    /// Above this percentile of the distances, from 0 to 100, linearly between ranks.
    Percentile(f64),
    /// Above the mean by so many (population) standard deviations.
    StandardDeviation(f64),
    /// Above the mean by so many ranges between the quartiles.
    Interquartile(f64),
}

/// How a text is cut by meaning.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SemanticOptions {
    /// Where it is cut.
    pub breakpoint: Breakpoint,
    /// Sentences on each side that are embedded with a sentence.
    pub buffer: usize,
    /// What cuts a chunk that is too long nevertheless.
    pub longest: Option<Chunker>,
}

impl Default for SemanticOptions {
    fn default() -> Self {
        Self {
            breakpoint: Breakpoint::Percentile(95.0),
            buffer: 1,
            longest: None,
        }
    }
}

impl Breakpoint {
    fn threshold(self, distances: &[f64]) -> f64 {
        let mut sorted = distances.to_vec();
        sorted.sort_by(f64::total_cmp);
        let mean = sorted.iter().sum::<f64>() / sorted.len() as f64;
        match self {
            Self::Percentile(q) => percentile(&sorted, q),
            Self::StandardDeviation(factor) => {
                let squares: f64 = sorted.iter().map(|d| (d - mean).powi(2)).sum();
                mean + factor * (squares / sorted.len() as f64).sqrt()
            }
            Self::Interquartile(factor) => {
                let range = percentile(&sorted, 75.0) - percentile(&sorted, 25.0);
                mean + factor * range
            }
        }
    }
}

fn percentile(sorted: &[f64], q: f64) -> f64 {
    let place = q.clamp(0.0, 100.0) / 100.0 * (sorted.len() - 1) as f64;
    let (low, high) = (
        sorted[place.floor() as usize],
        sorted[place.ceil() as usize],
    );
    low + (high - low) * place.fract()
}

/// The bytes of each chunk. `embed` gives a vector for each text; it is asked once.
///
/// # Errors
/// What `embed` meets.
pub fn semantic_chunks<E>(
    text: &str,
    units: &Units,
    options: &SemanticOptions,
    embed: &mut dyn FnMut(&[&str]) -> Result<Vec<Vec<f32>>, E>,
) -> Result<Vec<Range<usize>>, E> {
    let sentences = sentence_ranges(text);
    let last = sentences.len().saturating_sub(1);
    let mut cuts = Vec::new();
    if sentences.len() > 1 {
        let around = |i: usize| {
            let first = &sentences[i.saturating_sub(options.buffer)];
            &text[first.start..sentences[(i + options.buffer).min(last)].end]
        };
        let windows: Vec<&str> = (0..sentences.len()).map(around).collect();
        let vectors = embed(&windows)?;
        let distances: Vec<f64> = vectors
            .windows(2)
            .map(|pair| 1.0 - cosine(&pair[0], &pair[1]))
            .collect();
        if !distances.is_empty() {
            let threshold = options.breakpoint.threshold(&distances);
            let above = distances.iter().enumerate();
            cuts.extend(above.filter(|(_, d)| **d > threshold).map(|(i, _)| i + 1));
        }
    }
    let sentences = up_to_next(sentences, text.len());
    let mut found = Vec::new();
    let mut first = 0;
    for end in cuts.into_iter().chain([sentences.len()]) {
        if let Some(inside) = sentences
            .get(first..end)
            .filter(|inside| !inside.is_empty())
        {
            let bytes = trim(text, inside[0].start..inside[inside.len() - 1].end);
            match options.longest {
                None => found.push(bytes),
                Some(chunker) => found.extend(chunker.cut_within(text, units, bytes)),
            }
        }
        first = end;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::chunker::Splitter;
    use super::*;

    /// A vector for each sentence alone (buffer 0): an angle that stands in it, in degrees.
    fn cut(text: &str, breakpoint: Breakpoint, longest: Option<Chunker>) -> Vec<&str> {
        let mut embed = |texts: &[&str]| -> Result<Vec<Vec<f32>>, ()> {
            let angle = |text: &&str| {
                let digits: String = text.chars().filter(char::is_ascii_digit).collect();
                let angle: f32 = digits.parse().map_err(|_| ())?;
                Ok(vec![angle.to_radians().cos(), angle.to_radians().sin()])
            };
            texts.iter().map(angle).collect()
        };
        let options = SemanticOptions {
            breakpoint,
            buffer: 0,
            longest,
        };
        let found = semantic_chunks(text, &Units::words(text), &options, &mut embed).unwrap();
        found.into_iter().map(|bytes| &text[bytes]).collect()
    }

    #[test]
    fn equal_sentences_are_one_chunk_and_the_percentile_decides() {
        let same = "At 10. At 10. At 10.";
        assert_eq!(cut(same, Breakpoint::Percentile(95.0), None), [same]);
        let text = "At 0. At 5. At 60. At 62.";
        assert_eq!(cut(text, Breakpoint::Percentile(100.0), None), [text]);
        // Distances of 5, 55 and 2 degrees: everywhere but at the smallest.
        assert_eq!(
            cut(text, Breakpoint::Percentile(0.0), None),
            ["At 0.", "At 5.", "At 60. At 62."]
        );
        assert_eq!(
            cut(text, Breakpoint::Percentile(95.0), None),
            ["At 0. At 5.", "At 60. At 62."]
        );
        assert_eq!(
            cut(text, Breakpoint::StandardDeviation(1.0), None),
            ["At 0. At 5.", "At 60. At 62."]
        );
    }

    #[test]
    fn a_chunk_of_one_meaning_that_is_too_long_is_cut() {
        let longest = Chunker::new(Splitter::Recursive, 4, 0).ok();
        let text = "At 10. At 10. At 10.";
        assert_eq!(
            cut(text, Breakpoint::Percentile(95.0), longest),
            ["At 10. At 10.", "At 10."]
        );
        assert!(cut("", Breakpoint::Percentile(95.0), None).is_empty());
    }
}
