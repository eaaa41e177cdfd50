//! The measures that BEIR's tables show, as its own evaluator computes them.

use super::evaluate::Options;
use super::measure::Measure;

/// `ndcg@k`, `map@k`, `recall@k` and `P@k` for each cut-off.
pub fn beir_measures(cutoffs: &[usize]) -> Vec<Measure> {
    let kinds: [fn(usize) -> Measure; 4] = [
        |k| Measure::Ndcg(Some(k)),
        |k| Measure::Map(Some(k)),
        Measure::Recall,
        Measure::Precision,
    ];
    let of = |kind: &fn(usize) -> Measure| cutoffs.iter().map(|k| kind(*k)).collect::<Vec<_>>();
    kinds.iter().flat_map(of).collect()
}

/// A document with the query's own identifier is left out; queries that the run lacks count as 0,
/// where BEIR's evaluator would leave them out of the mean.
pub fn beir_options() -> Options {
    Options {
        all_queries: true,
        ignore_identical_ids: true,
        ..Options::default()
    }
}
