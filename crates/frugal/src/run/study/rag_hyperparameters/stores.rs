//! Kinds of stores on the vectors of the best arm, and those vectors as files for other programs.

use std::time::Instant;

use frugal_core::fs::{create_dir, write_atomic};
use frugal_index::Encoding;
use frugal_retrieve::{Elements, Vectors};
use serde_json::json;

use super::super::{Outcome, StudyError, StudyRequest};
use super::arms::RANKED;
use super::questions::Questions;
use super::retrieval::{Retrieved, store};
use super::rig::Rig;

/// What stores of other programs are asked and should find.
pub(super) struct Peers {
    queries: Vec<Vec<f32>>,
    exact: Vec<Vec<usize>>,
}

pub(super) fn measure(
    best: &Retrieved,
    rig: &Rig,
    questions: &Questions,
    request: &StudyRequest<'_>,
    outcome: &mut Outcome,
) -> Result<Peers, StudyError> {
    let failed = |e: Box<dyn std::error::Error + Send + Sync>| StudyError::arm("stores", e);
    let seed = request.seeds.first().copied().unwrap_or(0);
    let drawn = questions.drawn(seed, RANKED);
    let texts: Vec<&str> = drawn
        .iter()
        .map(|number| questions.questions[*number].text.as_str())
        .collect();
    let queries = rig.embed(&texts).map_err(|e| failed(e.into()))?;
    let mut exact: Vec<Vec<usize>> = Vec::new();
    for query in &queries {
        exact.push(best.search(query, best.k).map_err(|e| failed(e.into()))?);
    }
    for (name, encoding) in [
        ("store f32", Encoding::F32),
        ("store f16", Encoding::F16),
        ("store int8", Encoding::Int8),
        ("store binary, rescored", Encoding::Binary),
    ] {
        request.check()?;
        let index = store(&best.vectors, encoding)?;
        for seed in &request.seeds {
            let (mut hits, mut seconds) = (0, 0.0);
            for (query, exact) in queries.iter().zip(&exact) {
                let begin = Instant::now();
                let found = index.search(query, best.k).map_err(|e| failed(e.into()))?;
                seconds += begin.elapsed().as_secs_f64();
                let found = found.into_iter().flatten();
                hits += found.filter(|n| exact.contains(&(n.key as usize))).count();
            }
            let asked = (best.k * queries.len()).max(1) as f64;
            outcome.add(name, "recall@k of exact", *seed, hits as f64 / asked);
            outcome.add(
                name,
                "ms/search",
                *seed,
                1e3 * seconds / queries.len() as f64,
            );
        }
    }
    Ok(Peers { queries, exact })
}

/// Vectors, queries and exact answers, for the stores of other programs.
pub(super) fn leave(
    best: &Retrieved,
    Peers { queries, exact }: &Peers,
    request: &StudyRequest<'_>,
) -> Result<(), StudyError> {
    let folder = request.out.join("peers");
    create_dir(&folder)?;
    for (name, rows) in [
        ("vectors.npy", best.vectors.as_slice()),
        ("queries.npy", queries.as_slice()),
    ] {
        let vectors = Vectors {
            count: rows.len(),
            width: rows.first().map_or(0, Vec::len),
            elements: Elements::Float32(rows.concat()),
            ranges: None,
        };
        vectors.save_npy(&folder.join(name))?;
    }
    let about = json!({ "arm": best.arm.name(), "k": best.k, "exact": exact });
    write_atomic(&folder.join("exact.json"), about.to_string().as_bytes())?;
    Ok(())
}
