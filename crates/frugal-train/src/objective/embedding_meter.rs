//! How well an encoder finds what belongs together, within a part of the data.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use burn::prelude::*;
use frugal_core::metrics::RegressionReport;
use frugal_nn::{ModelError, select_rows, to_vec};

use super::text_sets::{Similarity, TextSet, TextSets};
use super::vector_loss::{Kind, VectorLoss};
use super::{Evaluation, Forward, Meter};
use crate::Tokenized;

/// Anchors that are compared with all texts at a time.
const ANCHORS: usize = 128;
/// How deep rankings are looked at.
const DEPTH: usize = 10;

type Vectors<'a> =
    Box<dyn Fn(&[&Tokenized], &mut Forward<'_>) -> Result<Tensor<2>, ModelError> + 'a>;
type Loss<'a> = Box<dyn Fn(&TextSets<'_>) -> Tensor<1> + 'a>;

/// Vectors of all texts of a part; each anchor should have its own text nearest among those of the
/// whole part, or pairs should be as near as their scores say.
pub(super) struct VectorMeter<'a> {
    kind: Kind,
    similarity: Similarity,
    batch_size: usize,
    compute: Vectors<'a>,
    loss: Loss<'a>,
    sets: Vec<TextSet>,
    vectors: Vec<Tensor<2>>,
}

impl<'a> VectorMeter<'a> {
    pub(super) fn new(
        loss: &dyn VectorLoss,
        batch_size: usize,
        compute: Vectors<'a>,
        of: Loss<'a>,
    ) -> Self {
        Self {
            kind: loss.kind(),
            similarity: loss.similarity(),
            batch_size,
            compute,
            loss: of,
            sets: Vec::new(),
            vectors: Vec::new(),
        }
    }

    /// The mean of the loss in batches as training has them, so that it does not depend on how the
    /// evaluation was divided.
    fn mean_loss(&self, all: &TextSets<'_>) -> f64 {
        let (mut sum, mut start) = (0.0, 0);
        for sets in self.sets.chunks(self.batch_size) {
            let end = start + sets.iter().map(|set| set.texts.len()).sum::<usize>();
            let rows: Vec<usize> = (start..end).collect();
            let vectors = all.rows(&rows);
            sum += f64::from(to_vec((self.loss)(&TextSets { vectors, sets }))[0]);
            start = end;
        }
        sum / self.sets.len() as f64
    }

    fn correlations(&self, all: &TextSets<'_>) -> BTreeMap<String, f64> {
        let found = to_vec(all.to_anchors(self.similarity));
        let found: Vec<f64> = found.into_iter().map(f64::from).collect();
        let given = self.sets.iter().flat_map(|set| &set.scores);
        let given: Vec<f64> = given.map(|score| f64::from(*score)).collect();
        let report = RegressionReport::new(&given, &found, 1)
            .expect("every example was checked to have two texts and a score");
        BTreeMap::from([
            ("pearson".into(), report.pearson),
            ("spearman".into(), report.spearman),
        ])
    }

    /// Which text belongs to the anchor of a set.
    fn own(&self, set: &TextSet) -> u64 {
        let best = match self.kind {
            Kind::Taught => {
                let scores = set.scores.iter().enumerate();
                scores.max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)))
            }
            Kind::Ranked | Kind::Scored => None,
        };
        set.texts[1 + best.map_or(0, |(i, _)| i)]
    }

    fn ranks(&self, all: &TextSets<'_>) -> BTreeMap<String, f64> {
        // A text that comes several times is one text, an anchor that does one anchor.
        let mut place: HashMap<u64, usize> = HashMap::new();
        let mut rows = Vec::new();
        let mut anchors: HashMap<u64, usize> = HashMap::new();
        let mut wanted: Vec<(usize, BTreeSet<usize>)> = Vec::new();
        for (set, start) in self.sets.iter().zip(all.anchors()) {
            for (i, text) in set.texts.iter().enumerate().skip(1) {
                place.entry(*text).or_insert_with(|| {
                    rows.push(start + i);
                    rows.len() - 1
                });
            }
            let at = *anchors.entry(set.texts[0]).or_insert_with(|| {
                wanted.push((start, BTreeSet::new()));
                wanted.len() - 1
            });
            wanted[at].1.insert(place[&self.own(set)]);
        }
        let texts = all.rows(&rows);
        let mut sums = [0.0; 3];
        for some in wanted.chunks(ANCHORS) {
            let of: Vec<usize> = some.iter().map(|(row, _)| *row).collect();
            let anchors = select_rows(all.vectors.clone(), &of);
            let scores = to_vec(self.similarity.matrix(anchors, texts.clone()));
            for ((_, own), scores) in some.iter().zip(scores.chunks_exact(rows.len())) {
                let found = quality(scores, own);
                sums.iter_mut().zip(found).for_each(|(sum, x)| *sum += x);
            }
        }
        let mean = |sum: f64| sum / wanted.len() as f64;
        BTreeMap::from([
            ("accuracy@1".into(), mean(sums[0])),
            ("mrr@10".into(), mean(sums[1])),
            ("ndcg@10".into(), mean(sums[2])),
        ])
    }
}

/// Accuracy at 1, reciprocal rank and nDCG at 10 of one anchor. Equal scores count against the texts
/// that are wanted.
fn quality(scores: &[f32], wanted: &BTreeSet<usize>) -> [f64; 3] {
    let mut own: Vec<f32> = wanted.iter().map(|i| scores[*i]).collect();
    own.sort_by(|a, b| b.total_cmp(a));
    let ahead = |score: f32| {
        let others = scores.iter().enumerate();
        let others = others.filter(|(i, s)| **s >= score && !wanted.contains(i));
        others.count()
    };
    let ranks: Vec<usize> = own
        .iter()
        .enumerate()
        .map(|(i, score)| 1 + i + ahead(*score))
        .collect();
    let gain = |rank: usize| 1.0 / ((rank + 1) as f64).log2();
    let ideal: f64 = (1..=own.len().min(DEPTH)).map(gain).sum();
    let within = ranks.iter().copied().filter(|rank| *rank <= DEPTH);
    let first = ranks[0];
    [
        f64::from(u8::from(first == 1)),
        if first <= DEPTH {
            1.0 / first as f64
        } else {
            0.0
        },
        within.map(gain).sum::<f64>() / ideal,
    ]
}

impl Meter for VectorMeter<'_> {
    fn add(
        &mut self,
        examples: &[&Tokenized],
        forward: &mut Forward<'_>,
    ) -> Result<(), ModelError> {
        self.vectors.push((self.compute)(examples, forward)?);
        self.sets.extend(examples.iter().map(|e| TextSet::of(e)));
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Evaluation {
        let vectors = Tensor::cat(std::mem::take(&mut self.vectors), 0);
        let all = TextSets {
            vectors,
            sets: &self.sets,
        };
        let mut metrics = match self.kind {
            Kind::Scored => self.correlations(&all),
            Kind::Ranked | Kind::Taught => self.ranks(&all),
        };
        metrics.insert("loss".into(), self.mean_loss(&all));
        Evaluation {
            metrics,
            targets: self.sets.len(),
            ..Evaluation::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_those_of_trec_eval() {
        // Documents 0 and 3 of four are relevant: pytrec_eval 0.5.11 gives success_1 0, recip_rank
        // 0.5 and ndcg_cut_10 0.650921.
        let found = quality(&[0.8, 0.9, 0.7, 0.5], &BTreeSet::from([0, 3]));
        assert_eq!(found[..2], [0.0, 0.5]);
        assert!((found[2] - 0.650_920_9).abs() < 1e-6, "{found:?}");
        // Equal scores are no success.
        assert_eq!(quality(&[0.5, 0.5], &BTreeSet::from([0]))[0], 0.0);
    }
}
