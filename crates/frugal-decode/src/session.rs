//! Sequences in progress: their tokens and the keys and values of these.

use frugal_kernels::CacheType;
use frugal_nn::{
    ActiveAdapters, AdapterSet, Backbone, Input, KvCache, Mode, ModelError, Rows, SequenceLayout,
    select_rows, to_vec,
};

use crate::DecodeError;

/// Sequences that grow together; what was computed for their tokens is kept.
pub struct Session<'a> {
    backbone: &'a dyn Backbone,
    adapters: &'a AdapterSet,
    choice: ActiveAdapters,
    cache: KvCache,
    tokens: Vec<Vec<u32>>,
}

impl<'a> Session<'a> {
    /// Empty sequences on a backbone with these adapters.
    ///
    /// # Errors
    /// When the model cannot generate.
    pub fn new(
        backbone: &'a dyn Backbone,
        adapters: &'a AdapterSet,
        choice: ActiveAdapters,
        sequences: usize,
    ) -> Result<Self, DecodeError> {
        Self::with_cache(backbone, adapters, choice, sequences, CacheType::F32)
    }

    /// [`Session::new`] with a choice of how keys and values are held.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn with_cache(
        backbone: &'a dyn Backbone,
        adapters: &'a AdapterSet,
        choice: ActiveAdapters,
        sequences: usize,
        cache_type: CacheType,
    ) -> Result<Self, DecodeError> {
        if backbone.lm_head().is_none() {
            return Err(no_head(backbone));
        }
        let cache = KvCache::with_type(backbone.info().num_hidden_layers, sequences, cache_type);
        Ok(Self {
            backbone,
            adapters,
            choice,
            cache,
            tokens: vec![Vec::new(); sequences],
        })
    }

    /// Tokens of each sequence so far.
    pub fn tokens(&self) -> &[Vec<u32>] {
        &self.tokens
    }

    /// Bytes of keys and values held.
    pub fn cache_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// Tokens that every sequence may still get: the room of the longest one.
    pub fn remaining(&self) -> usize {
        self.remaining_each()
            .into_iter()
            .min()
            .unwrap_or(self.backbone.info().max_sequence)
    }

    /// Tokens that each sequence may still get.
    pub fn remaining_each(&self) -> Vec<usize> {
        let limit = self.backbone.info().max_sequence;
        self.cache
            .past()
            .iter()
            .map(|&used| limit.saturating_sub(used))
            .collect()
    }

    /// Appends at least one token to every sequence; returns the logits `[vocab]` that follow each.
    ///
    /// # Errors
    /// Token ids that the model lacks, sequences that get too long.
    pub fn append(&mut self, new: &[&[u32]]) -> Result<Vec<Vec<f32>>, DecodeError> {
        frugal_kernels::on_pool(|| self.append_here(new))
    }

    fn append_here(&mut self, new: &[&[u32]]) -> Result<Vec<Vec<f32>>, DecodeError> {
        let lengths: Vec<usize> = new.iter().map(|n| n.len()).collect();
        let limit = self.backbone.info().max_sequence;
        if let Some((&more, &used)) = lengths
            .iter()
            .zip(self.cache.past())
            .find(|&(&more, &used)| used + more > limit)
        {
            return Err(ModelError::TooLong {
                length: used + more,
                limit,
            }
            .into());
        }
        let layout = SequenceLayout::with_past(&lengths, self.cache.past());
        let ids = new.concat();
        let mut pass = self.adapters.pass(&self.choice, &layout, Mode::Eval)?;
        let last = layout.last_tokens();
        let input = Input::tokens(&ids, layout);
        let hidden = self
            .backbone
            .forward(&input, pass.as_mut(), Some(&mut self.cache))?;
        let logits = self
            .backbone
            .logits(select_rows(hidden, &last), Rows::Sequences, pass.as_mut())
            .ok_or_else(|| no_head(self.backbone))?;
        let vocab = logits.dims()[1];
        let logits = to_vec::<2>(logits);
        self.backbone.info().check_finite("logits", &logits)?;
        self.tokens
            .iter_mut()
            .zip(new)
            .for_each(|(tokens, new)| tokens.extend_from_slice(new));
        Ok(logits.chunks(vocab).map(<[f32]>::to_vec).collect())
    }

    /// Makes the only sequence equal `tokens` and returns the logits after it, computing only what
    /// differs from before.
    ///
    /// # Errors
    /// As [`Session::append`]; an empty sequence.
    pub fn rewind_to(&mut self, tokens: &[u32]) -> Result<Vec<f32>, DecodeError> {
        let Some(last) = tokens.len().checked_sub(1) else {
            return Err(DecodeError::EmptyPrompt { index: 0 });
        };
        let common = self.tokens[0]
            .iter()
            .zip(tokens)
            .take_while(|(a, b)| a == b)
            .count()
            .min(last);
        // Positions that a method put in front stay.
        let in_front = self.cache.past()[0] - self.tokens[0].len();
        self.cache
            .truncate(0, if common == 0 { 0 } else { in_front + common });
        self.tokens[0].truncate(common);
        Ok(self.append(&[&tokens[common..]])?.remove(0))
    }

    /// Drops the sequences for which `keep` is false.
    pub fn retain(&mut self, keep: &[bool]) {
        self.cache.retain(keep);
        let mut kept = keep.iter();
        self.tokens.retain(|_| *kept.next().unwrap_or(&false));
        if let ActiveAdapters::PerSequence(names) = &mut self.choice {
            let mut kept = keep.iter();
            names.retain(|_| *kept.next().unwrap_or(&false));
        }
    }
}

fn no_head(backbone: &dyn Backbone) -> DecodeError {
    let why = backbone.info().why_no_head();
    DecodeError::NoHead { why }
}
