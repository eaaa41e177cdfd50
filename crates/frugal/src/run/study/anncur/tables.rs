//! The tables of scores: one of a known rank, one of a real cross-encoder.

use std::path::Path;

use frugal_core::fs::{FileError, write_atomic};
use frugal_index::anncur::{Counted, ScoreTable, best};
use frugal_index::{
    Analyzer, Bm25, Bm25Index, CorpusOptions, Document, IndexError, read_corpus, read_queries,
};
use frugal_models::load::Lookup;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use super::super::{StudyError, StudyEvent, StudyRequest};
use super::scorers::{CrossEncoder, dense_rankings};

/// Rankings of the items by something cheaper, one for each query.
pub(super) type FirstStage = (String, Vec<Vec<usize>>);

/// Scores of all queries with all items, and what is compared with it.
pub(super) struct Case {
    pub(super) name: String,
    pub(super) table: ScoreTable,
    pub(super) anchor_queries: usize,
    pub(super) first_stages: Vec<FirstStage>,
    pub(super) note: String,
}

/// Rank and noise of the table on which plain pseudo-inverses fail.
const RANK: usize = 20;
const NOISE: f64 = 0.3;
/// How far a first stage is off: as a part of the deviation of the scores.
const FIRST_STAGE_NOISE: f64 = 0.7;

fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let (u, v): (f64, f64) = (rng.random_range(1e-12..1.0), rng.random());
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// A table of rank 20 with noise, and a first stage that sees its scores blurred.
pub(super) fn synthetic(smoke: bool) -> Result<Case, StudyError> {
    let name = "rank 20 with noise".to_owned();
    let (queries, items) = if smoke { (60, 120) } else { (400, 1000) };
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut draw = |count: usize| (0..count).map(|_| normal(&mut rng)).collect::<Vec<f64>>();
    let (left, right) = (draw(queries * RANK), draw(RANK * items));
    let (noise, blur) = (draw(queries * items), draw(queries * items));
    let value = |at: usize| {
        let (i, j) = (at / items, at % items);
        let product = (0..RANK).map(|r| left[i * RANK + r] * right[r * items + j]);
        product.sum::<f64>() / (RANK as f64).sqrt() + NOISE * noise[at]
    };
    let values: Vec<f64> = (0..queries * items).map(value).collect();
    let rankings = (0..queries).map(|query| {
        let row = query * items..(query + 1) * items;
        let blurred: Vec<f64> = row
            .map(|at| values[at] + FIRST_STAGE_NOISE * blur[at])
            .collect();
        best(&blurred, items)
    });
    let first_stages = vec![("a blurred first stage".to_owned(), rankings.collect())];
    let failed = |e| StudyError::arm(&name, e);
    Ok(Case {
        table: ScoreTable::new(queries, items, values.clone()).map_err(failed)?,
        anchor_queries: queries / 2,
        first_stages,
        note: format!(
            "{name}: {queries} queries x {items} items, half of the queries are anchors; the first stage sees each score with noise of {FIRST_STAGE_NOISE} of its deviation"
        ),
        name,
    })
}

/// Words of an item that are read: what matters is the table, not how good the model is.
const WORDS: usize = 40;

/// SciFact under a cross-encoder in `cross-encoder` of the data folder; otherwise why it is left out.
pub(super) fn real(
    request: &StudyRequest<'_>,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<Result<Case, String>, StudyError> {
    let name = "SciFact".to_owned();
    let (model, folder) = (
        request.data_dir.join("cross-encoder"),
        request.data_dir.join("scifact"),
    );
    for needed in [&model, &folder] {
        if !needed.is_dir() {
            return Ok(Err(format!(
                "{name} under a real cross-encoder was left out: {} is not there (a classifier with one output, in Hugging Face's layout, and the BEIR folder)",
                needed.display()
            )));
        }
    }
    let (queries, items) = if request.smoke { (12, 30) } else { (160, 400) };
    let failed = |e: IndexError| StudyError::arm("SciFact", e);
    let mut documents = Vec::new();
    read_corpus(&folder, &CorpusOptions::default(), |document: Document| {
        documents.push(document);
        Ok::<(), IndexError>(())
    })
    .map_err(failed)?;
    // Evenly over the corpus, so that all topics are there.
    let step = (documents.len() / items).max(1);
    let items: Vec<String> = (documents.iter().step_by(step).take(items))
        .map(|document| shortened(&document.title_and_text()))
        .collect();
    let asked = read_queries(&folder).map_err(failed)?;
    let queries: Vec<String> = asked.into_iter().map(|q| q.1).take(queries).collect();
    let table = scored(request, &model, &queries, &items, observe)?;
    let mut first_stages = vec![("BM25".to_owned(), by_words(&queries, &items)?)];
    let mut note = format!(
        "{name}: {} queries x {} items of at most {WORDS} words, {} anchor queries",
        queries.len(),
        items.len(),
        queries.len() * 5 / 8
    );
    match dense_rankings(&queries, &items) {
        Ok(rankings) => first_stages.insert(0, ("minilm-l6".into(), rankings)),
        Err(error) => note += &format!("; minilm-l6 as a first stage was left out: {error}"),
    }
    Ok(Ok(Case {
        anchor_queries: table.rows() * 5 / 8,
        table,
        first_stages,
        note,
        name,
    }))
}

fn shortened(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().take(WORDS).collect();
    words.join(" ")
}

fn by_words(queries: &[String], items: &[String]) -> Result<Vec<Vec<usize>>, StudyError> {
    let mut index = Bm25Index::new(Analyzer::English);
    items.iter().for_each(|item| index.add(item));
    let ranked = queries.iter().map(|query| {
        let found = index.search(query, items.len(), Bm25::default())?;
        let mut ranking: Vec<usize> = found.into_iter().map(|found| found.0).collect();
        // Items without a word of the query come last, in their order.
        let missing = (0..items.len()).filter(|item| !ranking.contains(item));
        let missing: Vec<usize> = missing.collect();
        ranking.extend(missing);
        Ok(ranking)
    });
    let ranked: Result<_, IndexError> = ranked.collect();
    ranked.map_err(|e| StudyError::arm("BM25", e))
}

/// The whole table, kept in the folder of the study row by row, so that an interrupted run goes on.
fn scored(
    request: &StudyRequest<'_>,
    model: &Path,
    queries: &[String],
    items: &[String],
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<ScoreTable, StudyError> {
    let arm = |e: Box<dyn std::error::Error + Send + Sync>| StudyError::arm("cross-encoder", e);
    let texts = [queries, items].concat().join("\n");
    let key = Sha256::digest(format!("{}\n{texts}", model.display()).as_bytes());
    let key: String = key.iter().take(4).map(|b| format!("{b:02x}")).collect();
    let path = request.out.join(format!("scores-{key}.f32"));
    let mut values: Vec<f32> = match std::fs::read(&path) {
        Ok(bytes) => (bytes.chunks_exact(4))
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(FileError::at(&path, "cannot read")(e).into()),
    };
    values.truncate(values.len() / items.len() * items.len());
    let done = (values.len() / items.len()).min(queries.len());
    if done < queries.len() {
        observe(StudyEvent::Planned {
            steps: (queries.len() - done) as u64,
        });
        let lookup = Lookup::default();
        let encoder = CrossEncoder::open(model, queries, items, &lookup).map_err(arm)?;
        let mut scorer = Counted::new(encoder);
        let all: Vec<usize> = (0..items.len()).collect();
        for query in done..queries.len() {
            request.check()?;
            let scores = scorer.score(query, &all).map_err(|e| arm(e.into()))?;
            values.extend(scores.iter().map(|score| *score as f32));
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            write_atomic(&path, &bytes)?;
            let what = format!("query {} of {} scored", query + 1, queries.len());
            observe(StudyEvent::Step { what });
        }
    }
    let values = values.into_iter().map(f64::from);
    let values = values.take(queries.len() * items.len()).collect();
    ScoreTable::new(queries.len(), items.len(), values).map_err(|e| arm(e.into()))
}
