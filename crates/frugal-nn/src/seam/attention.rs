//! What a pass may say of attention beside what the architecture does: which tokens see each other,
//! where they stand, what is added to the scores, and whose scores it wants to see.

use burn::prelude::*;
use frugal_kernels::ScoreBias;

use crate::layout::SequenceLayout;

/// Which tokens of a sequence see each other, in every layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AttentionMask {
    /// As the architecture has it.
    #[default]
    Model,
    /// Each token sees itself and those before it.
    Causal,
    /// All tokens see each other.
    Bidirectional,
    /// The first tokens of each sequence, this many, see each other in both directions; the others
    /// see themselves and all before them.
    Prefix(Vec<usize>),
    /// Each sequence is blocks of these lengths, in order. A token sees those before it in its own
    /// block and the whole of the first block; in the last block, of all blocks. Its cost grows
    /// linearly with the number of blocks.
    Blocks(Vec<Vec<usize>>),
}

/// Rows whose attention scores a pass wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScoreRows {
    /// Block number.
    pub layer: usize,
    /// Tokens of the batch, ascending.
    pub rows: Vec<usize>,
}

/// Attention scores of chosen rows of one sequence, before mask, bias and softmax.
#[derive(Clone, Debug)]
pub struct AttentionScores {
    /// Block number.
    pub layer: usize,
    /// Number of the sequence.
    pub sequence: usize,
    /// The rows, counted from the first token of the sequence.
    pub rows: Vec<usize>,
    /// `[heads, rows, tokens of the sequence]`, scaled and capped as the model does it.
    pub values: Tensor<3>,
}

/// What one pass wants of attention.
#[derive(Clone, Debug, Default)]
pub struct AttentionControl {
    /// Which tokens see each other.
    pub mask: AttentionMask,
    /// Positions of all tokens in place of those of the layout, `[tokens]`.
    pub position_ids: Option<Vec<u32>>,
    /// Added to the scores of every layer; only where keys are the sequence's own tokens in order,
    /// which they are not under [`AttentionMask::Prefix`] and [`AttentionMask::Blocks`].
    pub score_bias: Option<ScoreBias>,
    /// Scores that go to [`Pass::attention_scores`](crate::Pass::attention_scores).
    pub score_rows: Option<ScoreRows>,
}

impl AttentionControl {
    /// Whether it fits a batch, and a model of so many heads and layers.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(
        &self,
        layout: &SequenceLayout,
        heads: usize,
        layers: usize,
    ) -> Result<(), String> {
        let (lengths, tokens) = (layout.lengths(), layout.tokens());
        if layout.past.iter().any(|&past| past > 0) {
            return Err("it acts on whole sequences, and some go on from a cache".into());
        }
        if let Some(ids) = &self.position_ids
            && ids.len() != tokens
        {
            return Err(format!("{} positions for {tokens} tokens", ids.len()));
        }
        check_mask(&self.mask, &lengths)?;
        if let Some(bias) = &self.score_bias {
            if matches!(
                self.mask,
                AttentionMask::Prefix(_) | AttentionMask::Blocks(_)
            ) {
                return Err("a score bias does not go with prefix or block masks".into());
            }
            check_bias(bias, heads, &lengths)?;
        }
        if let Some(ScoreRows { layer, rows }) = &self.score_rows {
            if *layer >= layers {
                return Err(format!(
                    "scores of block {layer} were asked for, there are {layers}"
                ));
            }
            if !rows.is_sorted_by(|a, b| a < b) || rows.last().is_some_and(|&row| row >= tokens) {
                return Err(format!(
                    "rows of scores must be ascending and below {tokens}, the number of tokens"
                ));
            }
        }
        Ok(())
    }
}

fn check_mask(mask: &AttentionMask, lengths: &[usize]) -> Result<(), String> {
    let count = |given: usize| {
        let sequences = lengths.len();
        match given == sequences {
            true => Ok(()),
            false => Err(format!(
                "a mask of {given} sequences for a batch of {sequences}"
            )),
        }
    };
    match mask {
        AttentionMask::Model | AttentionMask::Causal | AttentionMask::Bidirectional => Ok(()),
        AttentionMask::Prefix(prefixes) => {
            count(prefixes.len())?;
            let longer = prefixes.iter().zip(lengths).find(|(p, n)| p > n);
            longer.map_or(Ok(()), |(prefix, length)| {
                Err(format!(
                    "a prefix of {prefix} tokens in a sequence of {length}"
                ))
            })
        }
        AttentionMask::Blocks(blocks) => {
            count(blocks.len())?;
            let fits = |(blocks, length): (&Vec<usize>, &usize)| {
                blocks.iter().all(|&n| n > 0) && blocks.iter().sum::<usize>() == *length
            };
            match blocks.iter().zip(lengths).position(|pair| !fits(pair)) {
                None => Ok(()),
                Some(i) => Err(format!(
                    "blocks of {:?} tokens do not make up sequence {i}, which has {} tokens (with those that a method put in front)",
                    blocks[i], lengths[i]
                )),
            }
        }
    }
}

fn check_bias(bias: &ScoreBias, heads: usize, lengths: &[usize]) -> Result<(), String> {
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let total: usize = lengths.iter().sum();
    match bias {
        ScoreBias::Keys(bias) if bias.dims() == [total] => Ok(()),
        ScoreBias::Keys(bias) => Err(format!("a score bias {:?} for {total} keys", bias.dims())),
        ScoreBias::Positions(bias) => {
            let [of, queries, keys] = bias.dims();
            if (of == 1 || of == heads) && queries >= longest && keys >= longest {
                return Ok(());
            }
            Err(format!(
                "a score bias {:?} where 1 or {heads} heads and {longest} queries and keys are needed",
                bias.dims()
            ))
        }
    }
}
