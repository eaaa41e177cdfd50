//! Stretches of texts in tokens, for measures of models on texts.
//!
//! Each begins with the special tokens that the tokenizer puts in front of a text by default, such
//! as BOS, since a model that was trained with them has never seen a text without: Gemma's
//! probabilities are worthless then.

use frugal_core::tokenizer::Spans;
use frugal_eval::tasks::ModelFailure;

use super::language_model::{HarnessModel, Stretch};

impl HarnessModel<'_> {
    /// Consecutive stretches of `length` tokens of a text, at most `most` of them (0 for all), each
    /// with the tokenizer's own special tokens in front, which count in its length. A shorter rest
    /// is left out unless it is all there is.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn stretches(
        &self,
        text: &str,
        length: usize,
        most: usize,
    ) -> Result<Vec<Stretch>, ModelFailure> {
        let spans = self.tokenizer.encode_spans(text, true)?;
        let (front, body) = split(&spans);
        let length = self.stretch_length(length);
        let room = length.saturating_sub(front.len()).max(1);
        let all = spans.ids[body.clone()]
            .chunks(room)
            .zip(spans.offsets[body.clone()].chunks(room));
        let whole = all.filter(|(ids, _)| ids.len() == room || body.len() < room);
        Ok(whole
            .take(if most == 0 { usize::MAX } else { most })
            .map(|(ids, offsets)| stretch(&spans.ids[front.clone()], ids, offsets))
            .collect())
    }

    /// The first `length` tokens of one text, special tokens included, as the official code of
    /// information capacity cuts its samples; texts of fewer than two tokens have none.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn sample(&self, text: &str, length: usize) -> Result<Option<Stretch>, ModelFailure> {
        let spans = self.tokenizer.encode_spans(text, true)?;
        let (front, body) = split(&spans);
        let room = self.stretch_length(length).saturating_sub(front.len());
        let kept = body.start..body.end.min(body.start + room);
        let found = stretch(
            &spans.ids[front],
            &spans.ids[kept.clone()],
            &spans.offsets[kept],
        );
        Ok(Some(found).filter(|s| s.ids.len() > 1 && s.bytes > 0))
    }

    fn stretch_length(&self, length: usize) -> usize {
        length.clamp(2, self.backbone.info().max_sequence)
    }
}

/// The special tokens in front of a text and the text itself; what the tokenizer adds at the end is
/// in neither, since it stands for no text.
fn split(spans: &Spans) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
    let of_text = |(from, to): &(usize, usize)| from < to;
    let first = spans
        .offsets
        .iter()
        .position(of_text)
        .unwrap_or(spans.ids.len());
    let last = spans
        .offsets
        .iter()
        .rposition(of_text)
        .map_or(first, |i| i + 1);
    (0..first, first..last)
}

/// With special tokens in front the first of them only serves as context and all of the text is
/// predicted; without, the first token of the text is the context.
fn stretch(front: &[u32], ids: &[u32], offsets: &[(usize, usize)]) -> Stretch {
    let start = if front.is_empty() {
        offsets.first().map_or(0, |o| o.1)
    } else {
        offsets.first().map_or(0, |o| o.0)
    };
    let end = offsets.iter().map(|o| o.1).max().unwrap_or(start);
    Stretch {
        ids: [front, ids].concat(),
        bytes: end.saturating_sub(start) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(offsets: &[(usize, usize)]) -> Spans {
        Spans {
            ids: (0..offsets.len() as u32).collect(),
            offsets: offsets.to_vec(),
            token_type_ids: vec![0; offsets.len()],
        }
    }

    #[test]
    fn special_tokens_stand_for_no_bytes() {
        // BOS, three tokens of seven bytes, EOS.
        let found = spans(&[(0, 0), (0, 3), (3, 5), (5, 7), (0, 0)]);
        let (front, body) = split(&found);
        assert_eq!((front.clone(), body.clone()), (0..1, 1..4));
        let with = stretch(
            &found.ids[front],
            &found.ids[body.clone()],
            &found.offsets[body],
        );
        assert_eq!((with.ids, with.bytes), (vec![0, 1, 2, 3], 7));
        // Without BOS the first token is context, and its three bytes are not predicted.
        let plain = spans(&[(0, 3), (3, 5), (5, 7)]);
        let (front, body) = split(&plain);
        let without = stretch(
            &plain.ids[front],
            &plain.ids[body.clone()],
            &plain.offsets[body],
        );
        assert_eq!((without.ids, without.bytes), (vec![0, 1, 2], 4));
        assert_eq!(split(&spans(&[(0, 0)])), (0..1, 1..1));
    }
}
