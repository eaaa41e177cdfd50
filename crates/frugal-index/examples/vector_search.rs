//! Exact search over a file of vectors, timed: Frugal's side of `benches/peers/vector_search.py`.
//!
//! ```text
//! vector_search FOLDER DIMENSION K ROUNDS
//! ```
//!
//! Reads `vectors.f32` and `queries.f32` of the folder, writes the keys that were found to
//! `found.u32`, and prints one line of JSON.

use std::path::Path;
use std::time::Instant;

use frugal_index::{Encoding, Metric, Neighbor, VectorBuilder, VectorIndex};

type Failure = Box<dyn std::error::Error>;

fn numbers(path: &Path) -> Result<Vec<f32>, Failure> {
    let bytes = std::fs::read(path)?;
    let numbers = bytes.chunks_exact(4);
    Ok(numbers
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect())
}

/// The largest amount of memory that the process had, in bytes.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// Seconds for each round over all queries, so many at a time.
fn rounds(
    index: &VectorIndex,
    queries: &[f32],
    batch: usize,
    k: usize,
    rounds: usize,
) -> Result<(Vec<f64>, Vec<Vec<Neighbor>>), Failure> {
    let mut seconds = Vec::new();
    let mut found = Vec::new();
    for _ in 0..rounds {
        found.clear();
        let begin = Instant::now();
        for queries in queries.chunks(batch * index.dimension()) {
            found.extend(index.search(queries, k)?);
        }
        seconds.push(begin.elapsed().as_secs_f64());
    }
    Ok((seconds, found))
}

#[allow(clippy::print_stdout)]
fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, dimension, k, count] = arguments.as_slice() else {
        return Err("vector_search FOLDER DIMENSION K ROUNDS".into());
    };
    let (folder, dimension): (_, usize) = (Path::new(folder), dimension.parse()?);
    let (k, count) = (k.parse()?, count.parse()?);
    let path = folder.join("vectors.vec");
    if !path.exists() {
        let vectors = numbers(&folder.join("vectors.f32"))?;
        let mut builder = VectorBuilder::new(dimension, Metric::Ip, Encoding::F32)?;
        for (key, vector) in vectors.chunks_exact(dimension).enumerate() {
            builder.push(key as u64, vector)?;
        }
        builder.write(&path)?;
        // The memory of searching is that of a process that did not build.
        println!("{{\"built\": {}}}", builder.len());
        return Ok(());
    }
    let queries = numbers(&folder.join("queries.f32"))?;
    let begin = Instant::now();
    let index = VectorIndex::open(&path)?;
    let opening = begin.elapsed().as_secs_f64();
    // The first pass compares checksums.
    index.search(&queries[..dimension], k)?;
    let (one, found) = rounds(&index, &queries, 1, k, count)?;
    let (many, same) = rounds(&index, &queries, 64, k, count)?;
    let keys = |found: &[Vec<Neighbor>]| -> Vec<u64> {
        found.iter().flatten().map(|near| near.key).collect()
    };
    if keys(&found) != keys(&same) {
        return Err("one at a time and 64 at a time find different vectors".into());
    }
    let bytes = keys(&found)
        .into_iter()
        .flat_map(|key| (key as u32).to_le_bytes());
    std::fs::write(folder.join("found.u32"), bytes.collect::<Vec<u8>>())?;
    println!(
        "{{\"opening\": {opening}, \"1\": {one:?}, \"64\": {many:?}, \"peak\": {}}}",
        peak_memory().unwrap_or(0)
    );
    Ok(())
}
