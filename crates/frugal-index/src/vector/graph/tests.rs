//! What graphs find, beside what is exact.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::vector::{Encoding, Metric, VectorBuilder};

const DIMENSION: usize = 32;

/// Vectors around a hundred centers, as those of texts are, and queries near some of them.
fn clustered(rows: usize, queries: usize) -> (Vec<f32>, Vec<f32>) {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut draw =
        |count: usize| -> Vec<f32> { (0..count).map(|_| rng.random_range(-1.0..1.0)).collect() };
    let centers = draw(100 * DIMENSION);
    let mut around = |count: usize| -> Vec<f32> {
        let noise = draw(count * DIMENSION);
        let at = |i: usize| (i / DIMENSION * 37 % 100) * DIMENSION + i % DIMENSION;
        let parts = noise.iter().enumerate();
        parts
            .map(|(i, noise)| centers[at(i)] + 0.5 * noise)
            .collect()
    };
    (around(rows), around(queries))
}

fn graph(dir: &Path, vectors: &[f32], metric: Metric, encoding: Encoding) -> VectorGraph {
    let mut builder = VectorBuilder::new(DIMENSION, metric, encoding).unwrap();
    for (i, vector) in vectors.chunks(DIMENSION).enumerate() {
        builder.push(i as u64 * 3, vector).unwrap();
    }
    let path = dir.join(format!("{metric}-{encoding}.vec"));
    builder.write(&path).unwrap();
    let index = VectorIndex::open(&path).unwrap();
    let path = path.with_extension("hnsw");
    VectorGraph::write(&index, &path, HnswOptions::default()).unwrap();
    VectorGraph::open(&path, &index).unwrap()
}

fn recall(exact: &[Vec<Neighbor>], found: &[Vec<Neighbor>]) -> f64 {
    let (mut hits, mut all) = (0, 0);
    for (exact, found) in exact.iter().zip(found) {
        all += exact.len();
        hits += exact.iter().filter(|e| found.contains(e)).count();
    }
    hits as f64 / all as f64
}

#[test]
fn a_graph_finds_nearly_what_an_exact_search_finds_in_every_encoding() {
    let dir = tempfile::tempdir().unwrap();
    let (vectors, queries) = clustered(4000, 100);
    for (metric, encoding) in [
        (Metric::Cosine, Encoding::F32),
        (Metric::Ip, Encoding::F32),
        (Metric::L2, Encoding::F32),
        (Metric::Cosine, Encoding::F16),
        (Metric::L2, Encoding::Int8),
        (Metric::Cosine, Encoding::Binary),
    ] {
        let graph = graph(dir.path(), &vectors, metric, encoding);
        // A graph walks by the 8-bit numbers, not by their signs.
        let exact = match encoding {
            Encoding::Binary => graph.search_where(&queries, 10, 4000, |_| true).unwrap(),
            _ => graph.index().search(&queries, 10).unwrap(),
        };
        let at = |ef: usize| {
            recall(
                &exact,
                &graph.search_where(&queries, 10, ef, |_| true).unwrap(),
            )
        };
        let (narrow, wide) = (at(31), at(200));
        assert!(wide >= 0.98, "{metric} {encoding}: {wide}");
        assert!(wide >= narrow, "{metric} {encoding}: {wide} {narrow}");
    }
}

#[test]
fn a_graph_finds_allowed_rows_only() {
    let dir = tempfile::tempdir().unwrap();
    let (vectors, queries) = clustered(3000, 50);
    let graph = graph(dir.path(), &vectors, Metric::Cosine, Encoding::F32);
    let allowed = |row: usize| row % 3 == 1;
    let exact = graph.index().search_where(&queries, 10, allowed).unwrap();
    let found = graph.search_where(&queries, 10, 100, allowed).unwrap();
    assert!(
        found
            .iter()
            .flatten()
            .all(|near| allowed(near.key as usize / 3))
    );
    assert!(recall(&exact, &found) >= 0.95);
    assert_eq!(
        graph
            .search_where(&queries[..DIMENSION], 0, 10, |_| true)
            .unwrap(),
        [vec![]]
    );
    assert_eq!(
        graph
            .search_where(&queries[..DIMENSION], 5, 10, |_| false)
            .unwrap(),
        [vec![]]
    );
    assert!(
        graph
            .search_where(&[f32::NAN; DIMENSION], 5, 10, |_| true)
            .is_err()
    );
}

#[test]
fn the_same_vectors_give_the_same_graph() {
    let (vectors, _) = clustered(1500, 0);
    let bytes = [0, 1].map(|_| {
        let dir = tempfile::tempdir().unwrap();
        let graph = graph(dir.path(), &vectors, Metric::Cosine, Encoding::F32);
        std::fs::read(&graph.path).unwrap()
    });
    assert_eq!(bytes[0], bytes[1]);
}

#[test]
fn damaged_graphs_give_an_error_or_the_right_answer() {
    let dir = tempfile::tempdir().unwrap();
    let (vectors, queries) = clustered(300, 5);
    let whole = graph(dir.path(), &vectors, Metric::L2, Encoding::F32);
    let right = whole.search_where(&queries, 5, 50, |_| true).unwrap();
    let content = std::fs::read(&whole.path).unwrap();
    let path = dir.path().join("damaged.hnsw");
    let mut refused = 0;
    let mut try_bytes = |bytes: &[u8], what: &str| {
        std::fs::write(&path, bytes).unwrap();
        let found = VectorGraph::open(&path, whole.index())
            .and_then(|graph| graph.search_where(&queries, 5, 50, |_| true));
        match found {
            Ok(found) => assert_eq!(found, right, "{what}"),
            Err(error) => {
                assert!(error.to_string().contains("damaged.hnsw"), "{error}");
                refused += 1;
            }
        }
    };
    for at in (0..64).chain((64..content.len()).step_by(97)) {
        let mut bytes = content.clone();
        bytes[at] ^= 1 << (at % 8);
        try_bytes(&bytes, &format!("a bit of byte {at}"));
    }
    for length in (0..70).chain((70..content.len()).step_by(1001)) {
        try_bytes(&content[..length], &format!("cut to {length}"));
    }
    try_bytes(&[content.as_slice(), b"x"].concat(), "a byte more");
    assert!(refused > 300, "{refused}");
}

/// Sizes that would take all memory and links that lead nowhere, under checksums that hold.
#[test]
fn links_are_checked_before_they_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    let (vectors, queries) = clustered(300, 1);
    let whole = graph(dir.path(), &vectors, Metric::L2, Encoding::F32);
    let content = std::fs::read(&whole.path).unwrap();
    let path = dir.path().join("forged.hnsw");
    let base = 4 * (1 + 300);
    // Entry, level of a row, number of links of a row, a link.
    for (at, part) in [
        (0, "leads nowhere"),
        (4 * 7, "impossible sizes"),
        (base, "leads nowhere"),
        (base + 4, "leads nowhere"),
    ] {
        let mut body = content[64..].to_vec();
        body[at + 2] = 0x7f;
        let header = Header {
            check: crc32c::crc32c(&body),
            ..whole.header
        };
        file::write(&path, &header, &body).unwrap();
        let forged = VectorGraph::open(&path, whole.index()).unwrap();
        let error = forged.search_where(&queries, 5, 50, |_| true).unwrap_err();
        assert!(error.to_string().contains(part), "{at}: {error}");
    }
}

#[test]
fn the_graph_of_other_vectors_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (vectors, _) = clustered(300, 1);
    let one = graph(dir.path(), &vectors, Metric::L2, Encoding::F32);
    let other = graph(dir.path(), &vectors, Metric::Ip, Encoding::F32);
    let error = VectorGraph::open(&one.path, other.index()).unwrap_err();
    assert!(
        error.to_string().contains("it links other vectors"),
        "{error}"
    );
    for (m, ef_construction) in [(1, 10), (100_000, 10), (8, 0)] {
        let options = HnswOptions {
            m,
            ef_construction,
            ..HnswOptions::default()
        };
        assert!(VectorGraph::write(one.index(), &dir.path().join("x"), options).is_err());
    }
}
