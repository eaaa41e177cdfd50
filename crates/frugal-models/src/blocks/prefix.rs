//! Models that read the beginning of a sequence in both directions, and the recurrences among them (Birdie, arXiv 2411.01030,
//! section 3.2 and appendix A).
//!
//! Some channels of a state run from the last token of a prefix to its first. Behind the prefix these
//! channels have no memory: a token's state there is what it puts in itself. So nothing behind the
//! prefix reaches a token in front of its own, except what the token right behind the prefix puts in,
//! which is always the same one ([`prefix_control`]).

use std::sync::Arc;

use burn::prelude::*;
use frugal_kernels::{LinearRecurrence, linear_recurrence};
use frugal_nn::layout::{Content, Input};
use frugal_nn::state::DecodeState;
use frugal_nn::{AttentionControl, AttentionMask, ModelError, Pass, SequenceLayout};

use crate::keys::{TokenId, bad};

/// What a configuration says of reading in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TwoWays {
    /// Channels of the state that run backwards in every second block; 0 in a model that reads from
    /// left to right.
    pub reverse_size: usize,
    /// The token that ends a prefix.
    pub gen_token: Option<u32>,
}

impl TwoWays {
    /// Checks the keys `reverse_size` and `gen_token_id`.
    ///
    /// # Errors
    /// More channels than there are, a token outside the vocabulary.
    pub fn read(
        [reverse_size, width]: [usize; 2],
        gen_token: TokenId,
        vocab_size: usize,
        source: &str,
    ) -> Result<Self, ModelError> {
        if reverse_size >= width && reverse_size > 0 {
            let reason =
                format!("{reverse_size} given, but it must be below {width}, all channels");
            return Err(bad(source, "reverse_size", reason));
        }
        Ok(Self {
            reverse_size,
            gen_token: check_gen_token(gen_token, vocab_size, source)?,
        })
    }

    /// Channels that run backwards in a block: every second block has them, from the second on.
    pub fn of_block(&self, layer: usize) -> usize {
        match layer % 2 {
            0 => 0,
            _ => self.reverse_size,
        }
    }

    /// The token that ends a prefix, where anything follows from it.
    pub fn prefix_token(&self) -> Option<u32> {
        self.gen_token.filter(|_| self.reverse_size > 0)
    }
}

/// The key `gen_token_id`.
///
/// # Errors
/// A token outside the vocabulary.
pub(crate) fn check_gen_token(
    token: TokenId,
    vocab_size: usize,
    source: &str,
) -> Result<Option<u32>, ModelError> {
    match token.0 {
        Some(id) if id as usize >= vocab_size => {
            let reason = format!("{id} is outside the vocabulary of {vocab_size}");
            Err(bad(source, "gen_token_id", reason))
        }
        token => Ok(token),
    }
}

/// Control of a pass over these tokens: the prefix of a sequence is what comes before the first
/// `token`, and nothing where there is none or the sequence goes on from a cache.
pub(crate) fn prefix_control(
    token: Option<u32>,
    input: &Input<'_>,
    layout: &SequenceLayout,
) -> Option<AttentionControl> {
    let (token, Content::Tokens(ids)) = (token?, &input.content) else {
        return None;
    };
    let given = input.layout.cu_seqlens.windows(2);
    let prefixes = given.zip(&layout.past).map(|(w, &past)| {
        let found = ids[w[0]..w[1]].iter().position(|&id| id == token);
        match found {
            Some(at) if past == 0 && at > 0 => at + layout.prepended,
            _ => 0,
        }
    });
    let prefixes: Vec<usize> = prefixes.collect();
    prefixes.iter().any(|&n| n > 0).then(|| AttentionControl {
        mask: AttentionMask::Prefix(prefixes),
        ..AttentionControl::default()
    })
}

/// Refuses a control that says more than where prefixes end.
///
/// # Errors
/// What has no place in a recurrence.
pub(crate) fn check_prefix_only(
    control: &AttentionControl,
    two_ways: TwoWays,
) -> Result<(), String> {
    let plain = control.position_ids.is_none()
        && control.score_bias.is_none()
        && control.score_rows.is_none();
    match &control.mask {
        AttentionMask::Model | AttentionMask::Causal if plain => Ok(()),
        AttentionMask::Prefix(_) if plain && two_ways.reverse_size > 0 => Ok(()),
        AttentionMask::Prefix(_) if plain => Err(
            "the recurrence reads from left to right: a model with `reverse_size` above 0 takes prefixes"
                .into(),
        ),
        _ => Err("a recurrence takes prefixes and no other mask, positions or scores".into()),
    }
}

/// The control of a pass of a model of such recurrences and nothing else.
///
/// # Errors
/// What has no place.
pub(crate) fn control_of(
    two_ways: TwoWays,
    layers: usize,
    input: &Input<'_>,
    layout: &SequenceLayout,
    pass: &mut dyn Pass,
) -> Result<Option<Arc<AttentionControl>>, ModelError> {
    let control = match pass.attention(layout)? {
        Some(control) => {
            check_prefix_only(&control, two_ways)
                .and_then(|()| control.check(layout, 1, layers))
                .map_err(|reason| ModelError::Attention { reason })?;
            Some(control)
        }
        None => prefix_control(two_ways.prefix_token(), input, layout),
    };
    Ok(control.map(Arc::new))
}

/// Whose tokens a recurrence runs over, and how far its channels read backwards.
pub(crate) struct Directions<'a> {
    layout: &'a SequenceLayout,
    /// Channels that run backwards, behind the others.
    reverse: usize,
    /// For each token whether it has no memory in these.
    labels: Arc<[bool]>,
}

impl<'a> Directions<'a> {
    /// With `reverse` channels that run backwards in the prefixes of this control.
    pub fn new(
        layout: &'a SequenceLayout,
        reverse: usize,
        control: Option<&AttentionControl>,
    ) -> Self {
        let prefixes = match control.map(|control| &control.mask) {
            Some(AttentionMask::Prefix(prefixes)) => Some(prefixes),
            _ => None,
        };
        let sequences = layout.cu_seqlens.windows(2).enumerate();
        let labels = sequences.flat_map(|(i, w)| {
            let prefix = prefixes.and_then(|all| all.get(i)).copied().unwrap_or(0);
            (0..w[1] - w[0]).map(move |place| place >= prefix)
        });
        Self {
            layout,
            reverse,
            labels: labels.collect(),
        }
    }

    /// Where the state of a channel is what a token puts in: 1, elsewhere 0, `[tokens, width]`. Of
    /// channels that run forwards that is the first token of a text.
    pub fn begins(&self, width: usize, device: &Device) -> Tensor<2> {
        let (tokens, forward) = (self.layout.tokens(), width - self.reverse);
        let mut values = Vec::with_capacity(tokens * width);
        for (position, &label) in self.layout.position_ids.iter().zip(self.labels.iter()) {
            values.extend(std::iter::repeat_n(f32::from(*position == 0), forward));
            values.extend(std::iter::repeat_n(f32::from(label), self.reverse));
        }
        Tensor::from_data(TensorData::new(values, [tokens, width]), device)
    }

    /// `h[t] = a[t] h[t ∓ 1] + b[t]`, `[tokens, width]`. With a cache, sequences go on from what
    /// `part` of what `layer` remembers says, and the answer's second is what it remembers then, one
    /// row for each sequence.
    pub fn run(
        &self,
        [a, b]: [Tensor<2>; 2],
        initial: Option<Tensor<2>>,
    ) -> (Tensor<2>, Tensor<2>) {
        let [_, width] = a.dims();
        let forward = width - self.reverse;
        let part = |t: &Tensor<2>, from: usize, len: usize| match len == width {
            true => t.clone(),
            false => t.clone().narrow(1, from, len),
        };
        let cu = &self.layout.cu_seqlens;
        let h = linear_recurrence(LinearRecurrence {
            a: part(&a, 0, forward),
            b: part(&b, 0, forward),
            initial_state: initial,
            resets: None,
            reverse: false,
            cu_seqlens: cu.clone(),
        });
        let last = frugal_nn::select_rows(h.clone(), &self.layout.last_tokens());
        if self.reverse == 0 {
            return (h, last);
        }
        let b = part(&b, forward, self.reverse);
        let backwards = if self.labels.iter().all(|&label| label) {
            b
        } else {
            linear_recurrence(LinearRecurrence {
                a: part(&a, forward, self.reverse),
                b,
                initial_state: None,
                resets: Some(self.labels.clone()),
                reverse: true,
                cu_seqlens: cu.clone(),
            })
        };
        (Tensor::cat(vec![h, backwards], 1), last)
    }
}

/// A part of what `layer` remembers of the sequences, one below the other; zeros of `size` for
/// those that have not begun, nothing if none has.
pub(crate) fn remembered(
    layer: usize,
    layout: &SequenceLayout,
    part: usize,
    size: [usize; 2],
    cache: &DecodeState,
    device: &Device,
) -> Option<Tensor<2>> {
    let mut sequences = 0..layout.sequences();
    if sequences
        .clone()
        .all(|s| cache.recurrent(layer, s).is_none())
        || size[0] == 0
    {
        return None;
    }
    let parts = sequences.by_ref().map(|s| match cache.recurrent(layer, s) {
        Some(parts) => parts[part].clone(),
        None => Tensor::zeros(size, device),
    });
    Some(Tensor::cat(parts.collect(), 0))
}
