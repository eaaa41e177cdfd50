//! Indexing and searching by words, timed: Frugal's side of `benches/peers/bm25.py`.
//!
//! ```text
//! bm25_speed FOLDER K ROUNDS
//! ```
//!
//! Reads `documents.txt` and `queries.txt` of the folder, one text a line, words between blanks;
//! writes what was found to `found.tsv` and `found_in_memory.tsv`, and prints one line of JSON.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use frugal_index::{Analyzer, Bm25, Bm25Index, Document, Index, Query, Settings};

type Failure = Box<dyn std::error::Error>;

fn lines(path: &Path) -> Result<Vec<String>, Failure> {
    let text = std::fs::read_to_string(path)?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Seconds to index into a folder, and to answer all queries each round.
fn on_disk(
    folder: &Path,
    documents: &[String],
    queries: &[String],
    k: usize,
    rounds: usize,
) -> Result<(f64, Vec<f64>, String), Failure> {
    std::fs::remove_dir_all(folder).ok();
    let begin = Instant::now();
    let settings = Settings {
        analyzer: Analyzer::Whitespace,
        ..Settings::default()
    };
    let mut index = Index::create(folder, settings)?;
    let mut writer = index.writer()?;
    for (i, text) in documents.iter().enumerate() {
        writer.add(&Document::new(i.to_string(), text.as_str()), None)?;
    }
    writer.commit()?;
    let indexing = begin.elapsed().as_secs_f64();
    drop(writer);
    index.reload()?;
    let queries: Vec<Query> = queries
        .iter()
        .map(|query| Query::text(query.as_str()).top_k(k))
        .collect();
    index.search(&queries[0])?;
    let mut seconds = Vec::new();
    let mut found = Vec::new();
    for _ in 0..rounds {
        let begin = Instant::now();
        found = index.search_batch(&queries)?;
        seconds.push(begin.elapsed().as_secs_f64());
    }
    let mut text = String::new();
    for (query, found) in found.iter().enumerate() {
        for found in found {
            writeln!(text, "{query}\t{}\t{}", found.id, found.score)?;
        }
    }
    Ok((indexing, seconds, text))
}

/// As [`on_disk`] in memory alone: indexing with one thread, searches with all.
fn in_memory(
    documents: &[String],
    queries: &[String],
    k: usize,
    rounds: usize,
) -> Result<(f64, Vec<f64>, String), Failure> {
    let begin = Instant::now();
    let mut index = Bm25Index::new(Analyzer::Whitespace);
    documents.iter().for_each(|text| index.add(text));
    let weights = index.weights(Bm25::default())?;
    let indexing = begin.elapsed().as_secs_f64();
    let mut seconds = Vec::new();
    let mut found = Vec::new();
    for _ in 0..rounds {
        let begin = Instant::now();
        found = weights.search_batch(queries, k);
        seconds.push(begin.elapsed().as_secs_f64());
    }
    let mut text = String::new();
    for (query, found) in found.iter().enumerate() {
        for (document, score) in found {
            writeln!(text, "{query}\t{document}\t{score}")?;
        }
    }
    Ok((indexing, seconds, text))
}

#[allow(clippy::print_stdout)]
fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, k, rounds] = arguments.as_slice() else {
        return Err("bm25_speed FOLDER K ROUNDS".into());
    };
    let (folder, k, rounds) = (Path::new(folder), k.parse()?, rounds.parse()?);
    let documents = lines(&folder.join("documents.txt"))?;
    let queries = lines(&folder.join("queries.txt"))?;
    let (indexing, seconds, found) =
        on_disk(&folder.join("index"), &documents, &queries, k, rounds)?;
    std::fs::write(folder.join("found.tsv"), found)?;
    let (memory_indexing, memory_seconds, found) = in_memory(&documents, &queries, k, rounds)?;
    std::fs::write(folder.join("found_in_memory.tsv"), found)?;
    println!(
        "{{\"indexing\": {indexing}, \"queries\": {seconds:?}, \"memory_indexing\": {memory_indexing}, \"memory_queries\": {memory_seconds:?}}}"
    );
    Ok(())
}
