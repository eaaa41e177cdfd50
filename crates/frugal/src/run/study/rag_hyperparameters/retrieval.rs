//! How well each way to cut documents is found by.

use std::time::Instant;

use frugal_eval::rag::average_precision;
use frugal_index::{Encoding, Metric, VectorBuilder, VectorError, VectorIndex};

use super::super::{Outcome, StudyError, StudyRequest};
use super::arms::{ANSWERED, Arm, CONTEXT, RANKED};
use super::questions::{Question, Questions};
use super::rig::{Piece, Rig};

/// An arm with its chunks, vectors and values question by question, over all seeds.
pub(super) struct Retrieved {
    pub(super) arm: Arm,
    pub(super) pieces: Vec<Piece>,
    pub(super) vectors: Vec<Vec<f32>>,
    pub(super) index: VectorIndex,
    /// Passages of a prompt.
    pub(super) k: usize,
    pub(super) chunk_seconds: f64,
    pub(super) ndcg: Vec<f64>,
    pub(super) precision: Vec<f64>,
}

impl Retrieved {
    pub(super) fn mean(&self) -> f64 {
        self.ndcg.iter().sum::<f64>() / self.ndcg.len().max(1) as f64
    }

    /// The best pieces for a vector.
    pub(super) fn search(&self, vector: &[f32], k: usize) -> Result<Vec<usize>, VectorError> {
        let found = self.index.search(vector, k)?.into_iter().flatten();
        Ok(found.map(|neighbor| neighbor.key as usize).collect())
    }

    pub(super) fn is_right(&self, piece: usize, question: &Question) -> bool {
        let piece = &self.pieces[piece];
        piece.document == question.document
            && piece.bytes.start <= question.place.start
            && piece.bytes.end >= question.place.end
    }
}

/// An index in memory of a file that is gone when the study ends.
pub(super) fn store(vectors: &[Vec<f32>], encoding: Encoding) -> Result<VectorIndex, StudyError> {
    let failed = |e: VectorError| StudyError::arm("store", e);
    let dimension = vectors.first().map_or(1, Vec::len);
    let mut builder = VectorBuilder::new(dimension, Metric::Cosine, encoding).map_err(failed)?;
    for (key, vector) in vectors.iter().enumerate() {
        builder.push(key as u64, vector).map_err(failed)?;
    }
    let folder = tempfile::tempdir().map_err(|e| StudyError::arm("store", e))?;
    let path = folder.path().join("vectors");
    builder.write(&path).map_err(failed)?;
    // The mapping outlives the name of the file.
    VectorIndex::open(&path).map_err(failed)
}

pub(super) fn measure(
    arm: &Arm,
    rig: &Rig,
    questions: &Questions,
    request: &StudyRequest<'_>,
    outcome: &mut Outcome,
) -> Result<Retrieved, StudyError> {
    let failed = |e: Box<dyn std::error::Error + Send + Sync>| StudyError::arm(arm.name(), e);
    let begin = Instant::now();
    let mut pieces = Vec::new();
    for (number, text) in questions.documents.iter().enumerate() {
        pieces.extend(rig.cut(arm, number, text)?);
    }
    let chunk_seconds = begin.elapsed().as_secs_f64();
    let texts: Vec<&str> = pieces.iter().map(|p| p.passage.text.as_str()).collect();
    let vectors = rig.embed(&texts).map_err(|e| failed(e.into()))?;
    let index = store(&vectors, Encoding::F32)?;
    let index_seconds = begin.elapsed().as_secs_f64();
    let mut tokens = 0;
    for text in &texts {
        let found = rig.tokenizer()?.encode(text, false);
        tokens += found.map_err(|e| failed(e.into()))?.len();
    }
    let k = ((CONTEXT * texts.len()) as f64 / tokens.max(1) as f64).round() as usize;
    let mut found = Retrieved {
        arm: *arm,
        k: k.clamp(1, pieces.len()),
        pieces,
        vectors,
        index,
        chunk_seconds,
        ndcg: Vec::new(),
        precision: Vec::new(),
    };
    let count = if request.smoke { ANSWERED } else { RANKED };
    for seed in &request.seeds {
        let name = arm.name();
        let (mut sums, mut seconds) = ([0.0; 3], 0.0);
        let drawn = questions.drawn(*seed, count);
        for number in &drawn {
            let question = &questions.questions[*number];
            let begin = Instant::now();
            let vector = rig.embed(&[&question.text]).map_err(|e| failed(e.into()))?;
            let best = found
                .search(&vector[0], found.k)
                .map_err(|e| failed(e.into()))?;
            seconds += begin.elapsed().as_secs_f64();
            let right: Vec<bool> = best.iter().map(|p| found.is_right(*p, question)).collect();
            let all = (0..found.pieces.len())
                .filter(|p| found.is_right(*p, question))
                .count();
            let (ndcg, precision) = (ndcg(&right, all), average_precision(&right));
            found.ndcg.push(ndcg);
            found.precision.push(precision);
            sums[0] += ndcg;
            sums[1] += precision;
            sums[2] += f64::from(u8::from(right.contains(&true)));
        }
        let n = drawn.len() as f64;
        for (measure, sum) in ["nDCG@k", "context precision", "answer in context"]
            .iter()
            .zip(sums)
        {
            outcome.add(&name, measure, *seed, sum / n);
        }
        outcome.add(&name, "ms/query", *seed, 1e3 * seconds / n);
        outcome.add(&name, "chunks", *seed, found.pieces.len() as f64);
        outcome.add(&name, "k", *seed, found.k as f64);
        outcome.add(&name, "index s", *seed, index_seconds);
    }
    Ok(found)
}

/// nDCG of binary grades; 0 where no piece has the whole answer.
pub(super) fn ndcg(right: &[bool], all: usize) -> f64 {
    let gain = |rank: usize| 1.0 / ((rank + 2) as f64).log2();
    let found: f64 = right
        .iter()
        .enumerate()
        .filter(|(_, r)| **r)
        .map(|(i, _)| gain(i))
        .sum();
    let ideal: f64 = (0..all.min(right.len())).map(gain).sum();
    if ideal == 0.0 { 0.0 } else { found / ideal }
}

/// The arm of the highest mean nDCG; the first of equal ones.
pub(super) fn best(found: &[Retrieved]) -> usize {
    let mut best = 0;
    for (i, arm) in found.iter().enumerate() {
        if arm.mean() > found[best].mean() {
            best = i;
        }
    }
    best
}

/// Mean over the arms with a value, less the mean over all, as sentences.
pub(super) fn main_effects(found: &[Retrieved]) -> Vec<String> {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let all: Vec<f64> = found.iter().map(Retrieved::mean).collect();
    let grand = mean(&all);
    let factors: [(&str, fn(&Arm) -> String); 3] = [
        ("chunker", |arm| format!("{:?}", arm.cutter).to_lowercase()),
        ("size", |arm| arm.size.to_string()),
        ("overlap", |arm| format!("{} %", 100.0 * arm.overlap)),
    ];
    let of = |(name, level): &(&str, fn(&Arm) -> String)| {
        let mut levels: Vec<(String, Vec<f64>)> = Vec::new();
        for arm in found {
            let level = level(&arm.arm);
            match levels.iter_mut().find(|(known, _)| *known == level) {
                Some((_, values)) => values.push(arm.mean()),
                None => levels.push((level, vec![arm.mean()])),
            }
        }
        let levels = levels.iter();
        let shown = levels.map(|(level, values)| format!("{level} {:+.4}", mean(values) - grand));
        format!(
            "main effect of the {name} on nDCG@k: {}",
            shown.collect::<Vec<_>>().join(", ")
        )
    };
    factors.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::ndcg;

    #[test]
    fn one_right_passage_at_the_second_rank_has_the_discount_of_its_rank() {
        assert!((ndcg(&[false, true], 1) - 0.630_929_753_6).abs() < 1e-9);
        assert_eq!(ndcg(&[true, true], 2), 1.0);
        assert_eq!(ndcg(&[false, false], 0), 0.0);
    }
}
