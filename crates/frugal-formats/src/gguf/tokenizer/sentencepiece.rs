//! SentencePiece's BPE from scores: as merges with byte fallback, the way Hugging Face converts
//! such models.

use tokenizers::Tokenizer;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Sequence as Normalizers};

use super::problem::{library, wrong};
use super::{GgufProblem, token_type};

/// What stands for a space.
pub(super) const SPACE: &str = "▁";
/// No vocabulary holds a longer token, and the work grows with the square of the length.
const MAX_TOKEN_BYTES: usize = 512;

/// Every way to join two tokens to a normal token, best first: by score, then longer parts first,
/// then in vocabulary order.
pub(super) fn merges(
    tokens: &[String],
    types: &[u64],
    scores: &[f32],
    vocab: &Vocab,
) -> Result<Merges, GgufProblem> {
    struct Join<'a> {
        score: f32,
        chars: (usize, usize),
        left: &'a str,
        right: &'a str,
    }
    let mut joins = Vec::new();
    for (id, token) in tokens
        .iter()
        .enumerate()
        .filter(|&(id, _)| types[id] == token_type::NORMAL)
    {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(wrong(
                "tokens",
                format!(
                    "token {id} has {} bytes; no vocabulary has that",
                    token.len()
                ),
            ));
        }
        let total = token.chars().count();
        let mut own: Vec<(u32, u32, Join<'_>)> = token
            .char_indices()
            .enumerate()
            .skip(1)
            .filter_map(|(chars, (at, _))| {
                let (left, right) = token.split_at(at);
                let join = Join {
                    score: scores[id],
                    chars: (chars, total - chars),
                    left,
                    right,
                };
                Some((*vocab.get(left)?, *vocab.get(right)?, join))
            })
            .collect();
        own.sort_by_key(|&(left, right, _)| (left, right));
        joins.extend(own.into_iter().map(|(_, _, join)| join));
    }
    joins.sort_by(|a, b| {
        b.score
            .total_cmp(&a.score)
            .then_with(|| b.chars.cmp(&a.chars))
    });
    Ok(joins
        .into_iter()
        .map(|join| (join.left.to_owned(), join.right.to_owned()))
        .collect())
}

/// The tokenizer; with `prefix` a space goes before each text.
pub(super) fn tokenizer(
    vocab: Vocab,
    merges: Merges,
    unk: Option<String>,
    prefix: bool,
) -> Result<Tokenizer, GgufProblem> {
    let mut builder = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .fuse_unk(true)
        .byte_fallback(true);
    if let Some(unk) = unk {
        builder = builder.unk_token(unk);
    }
    let mut tokenizer = Tokenizer::new(builder.build().map_err(library)?);

    let spaces: NormalizerWrapper = Replace::new(" ", SPACE).map_err(library)?.into();
    let mut decoders: Vec<DecoderWrapper> = vec![
        Replace::new(SPACE, " ").map_err(library)?.into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
    ];
    if prefix {
        let prepend: NormalizerWrapper = Prepend::new(SPACE.to_owned()).into();
        tokenizer.with_normalizer(Some(Normalizers::new(vec![prepend, spaces])));
        decoders.push(Strip::new(' ', 1, 0).into());
    } else {
        tokenizer.with_normalizer(Some(spaces));
    }
    tokenizer.with_decoder(Some(Decoders::new(decoders)));
    Ok(tokenizer)
}
