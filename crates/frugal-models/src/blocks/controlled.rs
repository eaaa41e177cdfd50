//! Attention where a pass says which tokens see each other.
//!
//! A mask becomes ragged attention over chosen keys: a group of queries that sees the same stretches
//! of keys is a sequence of its own, so that what is masked is never computed. Block masks follow
//! *Scalable In-context Ranking with Generative Models* (arXiv 2510.05396), whose cost is linear in
//! the number of blocks.

use std::ops::Range;

use burn::prelude::*;
use frugal_kernels::{AttentionSpec, attention, biased_attention};
use frugal_nn::{
    AttentionControl, AttentionMask, AttentionScores, ModelError, Pass, ScoreRows, SequenceLayout,
    select_rows,
};

/// Attention of the tokens of a batch to each other as `control` says.
///
/// # Shapes
/// q: `[tokens, heads * head_dim] -> [tokens, heads * head_dim]`; k, v:
/// `[tokens, kv_heads * head_dim]`
pub(crate) fn attend_controlled(
    layer: usize,
    layout: &SequenceLayout,
    control: &AttentionControl,
    [q, k, v]: [Tensor<2>; 3],
    mut spec: AttentionSpec,
    pass: &mut dyn Pass,
) -> Tensor<2> {
    if let Some(wanted) = &control.score_rows
        && wanted.layer == layer
    {
        for scores in chosen_scores(wanted, layout, &q, &k, &spec) {
            pass.attention_scores(scores);
        }
    }
    match &control.mask {
        AttentionMask::Model => {}
        AttentionMask::Causal => spec.causal = true,
        AttentionMask::Bidirectional => spec.causal = false,
        AttentionMask::Prefix(prefixes) => {
            return with_prefixes(prefixes, layout, [q, k, v], &spec);
        }
        AttentionMask::Blocks(blocks) => return in_blocks(blocks, layout, [q, k, v], spec),
    }
    match &control.score_bias {
        Some(bias) => biased_attention(q, k, v, bias, &spec),
        None => attention(q, k, v, &spec),
    }
}

/// Each block of queries is a sequence of its own, with the first block's keys in front of its own.
fn in_blocks(
    blocks: &[Vec<usize>],
    layout: &SequenceLayout,
    [q, k, v]: [Tensor<2>; 3],
    mut spec: AttentionSpec,
) -> Tensor<2> {
    let (mut cu_q, mut cu_k, mut keys) = (vec![0], vec![0], Vec::new());
    for (lengths, &start) in blocks.iter().zip(layout.cu_seqlens.iter()) {
        let first = lengths.first().copied().unwrap_or(0);
        let mut begin = start;
        for (i, &length) in lengths.iter().enumerate() {
            let end = begin + length;
            if i == 0 || i + 1 == lengths.len() {
                keys.extend(start..end);
            } else {
                keys.extend(start..start + first);
                keys.extend(begin..end);
            }
            cu_q.push(end);
            cu_k.push(keys.len());
            begin = end;
        }
    }
    (spec.causal, spec.window) = (true, None);
    (spec.cu_q, spec.cu_k) = (cu_q.into(), cu_k.into());
    attention(q, select_rows(k, &keys), select_rows(v, &keys), &spec)
}

/// The prefixes see themselves in both directions; the rest comes behind them.
fn with_prefixes(
    prefixes: &[usize],
    layout: &SequenceLayout,
    [q, k, v]: [Tensor<2>; 3],
    spec: &AttentionSpec,
) -> Tensor<2> {
    let whole = || layout.cu_seqlens.windows(2).map(|w| w[0]..w[1]);
    let heads: Vec<Range<usize>> = whole()
        .zip(prefixes)
        .map(|(s, n)| s.start..s.start + n)
        .collect();
    let tails: Vec<Range<usize>> = whole()
        .zip(prefixes)
        .map(|(s, n)| s.start + n..s.end)
        .collect();
    let all: Vec<Range<usize>> = whole().collect();
    let mut outputs = Vec::with_capacity(2);
    let mut order: Vec<usize> = Vec::with_capacity(layout.tokens());
    for (queries, keys, causal) in [(&heads, &heads, false), (&tails, &all, true)] {
        let rows: Vec<usize> = queries.iter().cloned().flatten().collect();
        if rows.is_empty() {
            continue;
        }
        // A sequence without queries here has no keys either.
        let keys: Vec<Range<usize>> = keys
            .iter()
            .zip(queries)
            .map(|(k, q)| if q.is_empty() { 0..0 } else { k.clone() })
            .collect();
        let spec = AttentionSpec {
            causal,
            window: None,
            cu_q: boundaries(queries),
            cu_k: boundaries(&keys),
            ..spec.clone()
        };
        let keys: Vec<usize> = keys.into_iter().flatten().collect();
        let [q, k, v] =
            [(&q, &rows), (&k, &keys), (&v, &keys)].map(|(x, rows)| select_rows(x.clone(), rows));
        outputs.push(attention(q, k, v, &spec));
        order.extend(rows);
    }
    let mut place = vec![0; order.len()];
    for (from, &to) in order.iter().enumerate() {
        place[to] = from;
    }
    select_rows(Tensor::cat(outputs, 0), &place)
}

/// `causal` attention with the rows of prefixes in place of which these see each other in both
/// directions.
pub(crate) fn over_prefixes(
    prefixes: &[usize],
    layout: &SequenceLayout,
    causal: Tensor<2>,
    [q, k, v]: [Tensor<2>; 3],
    spec: &AttentionSpec,
) -> Tensor<2> {
    let whole = layout.cu_seqlens.windows(2).zip(prefixes);
    let heads: Vec<Range<usize>> = whole.map(|(w, n)| w[0]..w[0] + n).collect();
    let rows: Vec<usize> = heads.iter().cloned().flatten().collect();
    if rows.is_empty() {
        return causal;
    }
    let spec = AttentionSpec {
        causal: false,
        window: None,
        cu_q: boundaries(&heads),
        cu_k: boundaries(&heads),
        ..spec.clone()
    };
    let [q, k, v] = [q, k, v].map(|x| select_rows(x, &rows));
    let both = attention(q, k, v, &spec);
    let [tokens, _] = causal.dims();
    let mut place: Vec<usize> = (0..tokens).collect();
    for (i, &row) in rows.iter().enumerate() {
        place[row] = tokens + i;
    }
    select_rows(Tensor::cat(vec![causal, both], 0), &place)
}

fn boundaries(ranges: &[Range<usize>]) -> std::sync::Arc<[usize]> {
    let ends = ranges.iter().scan(0, |sum, range| {
        *sum += range.len();
        Some(*sum)
    });
    std::iter::once(0).chain(ends).collect()
}

/// `q · kᵀ` of the wanted rows with all keys of their sequences.
fn chosen_scores(
    wanted: &ScoreRows,
    layout: &SequenceLayout,
    q: &Tensor<2>,
    k: &Tensor<2>,
    spec: &AttentionSpec,
) -> Vec<AttentionScores> {
    let (heads, kv_heads, dim) = (spec.num_heads, spec.num_kv_heads, spec.head_dim);
    let group = heads / kv_heads;
    let of_sequence = |(sequence, bounds): (usize, &[usize])| {
        let within = |row: &&usize| (bounds[0]..bounds[1]).contains(*row);
        let rows: Vec<usize> = wanted.rows.iter().filter(within).copied().collect();
        if rows.is_empty() {
            return None;
        }
        let (count, tokens) = (rows.len(), bounds[1] - bounds[0]);
        // Query heads that share a key head become extra rows of one product.
        let q = select_rows(q.clone(), &rows)
            .reshape([count, kv_heads, group, dim])
            .permute([1, 2, 0, 3])
            .reshape([kv_heads, group * count, dim]);
        let k = k
            .clone()
            .slice(bounds[0]..bounds[1])
            .reshape([tokens, kv_heads, dim])
            .permute([1, 2, 0]);
        let mut values = q.matmul(k) * spec.scale;
        if let Some(cap) = spec.softcap {
            values = (values / cap).tanh() * cap;
        }
        Some(AttentionScores {
            layer: wanted.layer,
            sequence,
            rows: rows.iter().map(|row| row - bounds[0]).collect(),
            values: values.reshape([heads, count, tokens]),
        })
    };
    layout
        .cu_seqlens
        .windows(2)
        .enumerate()
        .filter_map(of_sequence)
        .collect()
}

/// Refuses a control of attention on a model that has no place for one.
///
/// # Errors
/// [`ModelError::Attention`] that names the model.
pub(crate) fn refuse_control(
    model_type: &str,
    layout: &SequenceLayout,
    pass: &mut dyn Pass,
) -> Result<(), ModelError> {
    match pass.attention(layout)? {
        None => Ok(()),
        Some(_) => Err(ModelError::Attention {
            reason: format!(
                "`{model_type}` has no place for it: use a decoder with grouped-query attention, such as `llama`, `qwen2` or `gemma3_text`"
            ),
        }),
    }
}

/// A window that hides what a prefix or block mask shows.
///
/// # Errors
/// [`ModelError::Attention`] with both lengths.
pub(crate) fn check_window(
    control: &AttentionControl,
    window: Option<usize>,
    layout: &SequenceLayout,
) -> Result<(), ModelError> {
    let longest = layout.lengths().into_iter().max().unwrap_or(0);
    match (&control.mask, window) {
        (AttentionMask::Prefix(_) | AttentionMask::Blocks(_), Some(window)) if window < longest => {
            Err(ModelError::Attention {
                reason: format!(
                    "blocks of this model attend within a window of {window} tokens, and a prefix or block mask was given for {longest}: shorten the sequence"
                ),
            })
        }
        _ => Ok(()),
    }
}
