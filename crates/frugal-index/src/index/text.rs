//! Exact BM25 over the posting lists of the text index.

use std::collections::BTreeMap;
use std::sync::Arc;

use tantivy::schema::IndexRecordOption;
use tantivy::{SegmentReader, Term};

use super::snapshot::{Loaded, Snapshot, guarded};
use crate::bm25::Bm25;
use crate::error::IndexError;
use crate::top_k::TopK;

/// The best documents by their words: key and score. Only living documents count, also for the
/// number of documents and their mean length, so that the scores are those of an index without what
/// was deleted. Lengths are exact.
pub(super) fn search(
    snapshot: &Snapshot,
    query: &str,
    k: usize,
    constants: Bm25,
    allowed: Option<&[Vec<bool>]>,
) -> Result<Vec<(u64, f64)>, IndexError> {
    let constants = constants.check()?;
    let loaded = snapshot.loaded()?;
    let mut terms: BTreeMap<String, f32> = BTreeMap::new();
    let analyzer = snapshot.state.settings.analyzer;
    analyzer.each(query, |term| {
        *terms.entry(term.to_owned()).or_default() += 1.0
    });
    let norms = norms(snapshot, loaded, constants);
    let readers = snapshot.searcher.segment_readers();
    let mut top = TopK::new(k);
    guarded(&snapshot.folder, || {
        let mut scores: Vec<Vec<f32>> = (readers.iter())
            .map(|reader| vec![0.0; reader.max_doc() as usize])
            .collect();
        for (term, repeated) in &terms {
            let term = Term::from_field_text(snapshot.fields.body, term);
            let mut with_term = 0;
            for reader in readers {
                with_term += u64::from(living(reader, &term)?);
            }
            let idf = Bm25::idf(loaded.places.len() as u64, with_term);
            let weight = (idf * (constants.k1 + 1.0)) as f32 * repeated;
            for (i, reader) in readers.iter().enumerate() {
                add(reader, &term, weight, &norms[i], &mut scores[i])?;
            }
        }
        for (i, reader) in readers.iter().enumerate() {
            let keys = &loaded.segments[i].keys;
            let allowed = allowed.map(|allowed| &allowed[i]);
            for (document, score) in scores[i].iter().enumerate() {
                let score = f64::from(*score);
                if score > 0.0
                    && score >= top.threshold()
                    && !reader.is_deleted(document as u32)
                    && allowed.is_none_or(|allowed| allowed[document])
                {
                    top.push(score, keys[document]);
                }
            }
        }
        Ok(())
    })?;
    let found = top.into_sorted().into_iter();
    Ok(found.map(|scored| (scored.item, scored.score)).collect())
}

/// Number of living documents with a term.
fn living(reader: &SegmentReader, term: &Term) -> tantivy::Result<u32> {
    let inverted = reader.inverted_index(term.field())?;
    match reader.alive_bitset() {
        None => Ok(inverted.doc_freq(term)?),
        Some(alive) => {
            let postings = inverted.read_postings(term, IndexRecordOption::Basic)?;
            Ok(postings.map_or(0, |postings| postings.doc_freq_given_deletes(alive)))
        }
    }
}

fn add(
    reader: &SegmentReader,
    term: &Term,
    weight: f32,
    norms: &[f32],
    scores: &mut [f32],
) -> tantivy::Result<()> {
    let inverted = reader.inverted_index(term.field())?;
    let Some(info) = inverted.get_term_info(term)? else {
        return Ok(());
    };
    let option = IndexRecordOption::WithFreqs;
    let mut block = inverted.read_block_postings_from_terminfo(&info, option)?;
    while block.block_len() > 0 {
        for (document, frequency) in block.docs().iter().zip(block.freqs()) {
            let document = *document as usize;
            let frequency = *frequency as f32;
            scores[document] += weight * frequency / (frequency + norms[document]);
        }
        block.advance();
    }
    Ok(())
}

/// What is added to each frequency in the denominator, kept for the next query.
fn norms(snapshot: &Snapshot, loaded: &Loaded, constants: Bm25) -> Arc<Vec<Vec<f32>>> {
    // A panic while it is held leaves a whole value.
    let mut kept = match snapshot.norms.lock() {
        Ok(kept) => kept,
        Err(poisoned) => poisoned.into_inner(),
    };
    if let Some((known, norms)) = kept.as_ref()
        && *known == constants
    {
        return Arc::clone(norms);
    }
    let of = |length: &u32| constants.norm(f64::from(*length), loaded.mean_length) as f32;
    let segments = loaded.segments.iter();
    let norms: Arc<Vec<Vec<f32>>> = Arc::new(
        segments
            .map(|columns| columns.lengths.iter().map(of).collect())
            .collect(),
    );
    *kept = Some((constants, Arc::clone(&norms)));
    norms
}
