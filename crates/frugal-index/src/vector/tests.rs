//! Searches against a reference in double precision, and damaged files.

use std::path::Path;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

fn random(rows: usize, dimension: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..rows * dimension)
        .map(|_| rng.random_range(-1.0..1.0))
        .collect()
}

fn build(vectors: &[f32], dimension: usize, metric: Metric, encoding: Encoding) -> VectorBuilder {
    let mut builder = VectorBuilder::new(dimension, metric, encoding).unwrap();
    for (i, vector) in vectors.chunks(dimension).enumerate() {
        builder.push(i as u64 * 3, vector).unwrap();
    }
    builder
}

fn index(
    dir: &Path,
    vectors: &[f32],
    dimension: usize,
    metric: Metric,
    encoding: Encoding,
) -> VectorIndex {
    let path = dir.join(format!("{metric}-{encoding}.vec"));
    build(vectors, dimension, metric, encoding)
        .write(&path)
        .unwrap();
    VectorIndex::open(&path).unwrap()
}

/// The nearest rows by the definition of the metric.
fn reference(vectors: &[f32], query: &[f32], metric: Metric, k: usize) -> Vec<(u64, f64)> {
    let wide = |v: &f32| f64::from(*v);
    let length = |v: &[f32]| v.iter().map(|x| wide(x).powi(2)).sum::<f64>().sqrt();
    let mut scores: Vec<(u64, f64)> = (vectors.chunks(query.len()).enumerate())
        .map(|(i, row)| {
            let pairs = row.iter().zip(query);
            let dot: f64 = pairs.clone().map(|(a, b)| wide(a) * wide(b)).sum();
            let score = match metric {
                Metric::Ip => dot,
                Metric::Cosine => dot / length(row) / length(query),
                Metric::L2 => -pairs.map(|(a, b)| (wide(a) - wide(b)).powi(2)).sum::<f64>(),
            };
            (i as u64 * 3, score)
        })
        .collect();
    scores.sort_by(|a, b| b.1.total_cmp(&a.1));
    scores.truncate(k);
    scores
}

const METRICS: [Metric; 3] = [Metric::Ip, Metric::Cosine, Metric::L2];

#[test]
fn flat_search_finds_exactly_what_double_precision_finds() {
    let dir = tempfile::tempdir().unwrap();
    // Several blocks, the last one not full; a dimension that no vector register divides.
    for (rows, dimension) in [(2500, 37), (1030, 384), (3, 1)] {
        let vectors = random(rows, dimension, 1);
        let queries = random(9, dimension, 2);
        for metric in METRICS {
            let index = index(dir.path(), &vectors, dimension, metric, Encoding::F32);
            // One at a time, as a few products, and as a matrix product.
            for count in [1, 3, 9] {
                let found = index.search(&queries[..count * dimension], 10).unwrap();
                for (query, found) in queries.chunks(dimension).zip(&found) {
                    let expected = reference(&vectors, query, metric, 10);
                    let keys: Vec<u64> = found.iter().map(|f| f.key).collect();
                    let wanted: Vec<u64> = expected.iter().map(|f| f.0).collect();
                    if dimension > 1 {
                        assert_eq!(keys, wanted, "{metric}, {count} queries");
                    }
                    for (found, (_, score)) in found.iter().zip(expected) {
                        assert!(
                            (found.score - score).abs() < 1e-5,
                            "{metric}: {found:?} {score}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn narrow_encodings_find_nearly_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (dimension, k) = (128, 10);
    let vectors = random(4000, dimension, 3);
    // Queries near a vector, as real ones are.
    let noise = random(50, dimension, 4);
    let near = vectors.iter().zip(&noise).map(|(a, b)| a + 0.7 * b);
    let queries: Vec<f32> = near.take(50 * dimension).collect();
    let exact = index(
        dir.path(),
        &vectors,
        dimension,
        Metric::Cosine,
        Encoding::F32,
    );
    let exact = exact.search(&queries, k).unwrap();
    for (encoding, least) in [
        (Encoding::F16, 0.99),
        (Encoding::Int8, 0.95),
        (Encoding::Binary, 0.8),
    ] {
        let narrow = index(dir.path(), &vectors, dimension, Metric::Cosine, encoding);
        let found = narrow.search(&queries, k).unwrap();
        let (mut same, mut first) = (0, 0);
        for (exact, found) in exact.iter().zip(&found) {
            let keys: Vec<u64> = exact.iter().map(|e| e.key).collect();
            same += found.iter().filter(|f| keys.contains(&f.key)).count();
            first += usize::from(found[0].key == keys[0]);
            assert!((found[0].score - exact[0].score).abs() < 0.01);
        }
        let recall = same as f64 / (50 * k) as f64;
        assert!(recall >= least, "{encoding}: {recall}");
        assert_eq!(first, 50, "{encoding}");
        // A few at a time go another way than many.
        let one = narrow.search(&queries[..dimension], k).unwrap();
        assert_eq!(one[0], found[0], "{encoding}");
    }
}

#[test]
fn narrow_encodings_hold_for_distances_too() {
    let dir = tempfile::tempdir().unwrap();
    let vectors = random(1500, 64, 5);
    let queries = random(5, 64, 6);
    for encoding in [Encoding::F16, Encoding::Int8] {
        for metric in METRICS {
            let index = index(dir.path(), &vectors, 64, metric, encoding);
            let found = index.search(&queries, 20).unwrap();
            for (query, found) in queries.chunks(64).zip(&found) {
                let wanted = reference(&vectors, query, metric, 20);
                let keys: Vec<u64> = wanted.iter().map(|w| w.0).collect();
                let same = found.iter().filter(|f| keys.contains(&f.key)).count();
                assert!(same >= 17, "{metric} {encoding}: {same}");
            }
        }
    }
}

#[test]
fn only_allowed_rows_are_found_and_never_more_than_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let vectors = random(2100, 16, 7);
    let query = random(1, 16, 8);
    for encoding in [Encoding::F32, Encoding::Binary] {
        let index = index(dir.path(), &vectors, 16, Metric::Cosine, encoding);
        let found = index
            .search_where(&query, 500, |row| row % 21 == 4)
            .unwrap();
        assert_eq!(found[0].len(), 100);
        assert!(found[0].iter().all(|f| f.key / 3 % 21 == 4));
        assert_eq!(index.search(&query, usize::MAX).unwrap()[0].len(), 2100);
        assert_eq!(index.search(&query, 0).unwrap(), [vec![]]);
        assert!(index.search(&[], 5).unwrap().is_empty());
    }
    let path = dir.path().join("empty.vec");
    build(&[], 16, Metric::L2, Encoding::F32)
        .write(&path)
        .unwrap();
    let empty = VectorIndex::open(&path).unwrap();
    assert!(empty.is_empty());
    assert_eq!(empty.search(&query, 5).unwrap(), [vec![]]);
}

#[test]
fn vectors_that_cannot_be_compared_are_refused_by_name() {
    let mut builder = VectorBuilder::new(2, Metric::Cosine, Encoding::F16).unwrap();
    builder.push(5, &[1.0, 2.0]).unwrap();
    for (vector, part) in [
        (
            &[1.0][..],
            "the vector 9 has 1 numbers, but the index holds vectors of 2",
        ),
        (&[1.0, f32::NAN], "the vector 9: number 1 is NaN"),
        (&[f32::INFINITY, 0.0], "the vector 9: number 0 is inf"),
        (&[0.0, 0.0], "all zeros"),
        (&[3e38, 3e38], "too large for 32-bit products"),
    ] {
        let error = builder.push(9, vector).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let error = builder.push(5, &[1.0, 0.0]).unwrap_err().to_string();
    assert_eq!(error, "the key 5 comes after 5; keys must ascend");
    assert_eq!(builder.len(), 1);
    let mut halves = VectorBuilder::new(1, Metric::Ip, Encoding::F16).unwrap();
    assert!(
        halves
            .push(0, &[1e6])
            .unwrap_err()
            .to_string()
            .contains("16 bits")
    );
    assert!(VectorBuilder::new(0, Metric::Ip, Encoding::F32).is_err());
    assert!(VectorBuilder::new(1 << 20, Metric::Ip, Encoding::F32).is_err());
    assert!(VectorBuilder::new(8, Metric::L2, Encoding::Binary).is_err());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.vec");
    builder.write(&path).unwrap();
    let index = VectorIndex::open(&path).unwrap();
    for query in [&[1.0][..], &[1.0, 2.0, 3.0], &[f32::NAN, 0.0], &[0.0, 0.0]] {
        assert!(index.search(query, 1).is_err());
    }
    let mut other = VectorBuilder::new(2, Metric::Ip, Encoding::F16).unwrap();
    assert!(matches!(
        other.append(&index, |_| true),
        Err(VectorError::OtherKind { .. })
    ));
}

#[test]
fn opening_reads_the_header_only() {
    let dir = tempfile::tempdir().unwrap();
    let (rows, dimension) = (100_000, 384);
    let vectors = random(1000, dimension, 9).repeat(rows / 1000);
    let opened = index(dir.path(), &vectors, dimension, Metric::Ip, Encoding::F32);
    let path = dir.path().join("ip-f32.vec");
    drop(opened);
    let start = std::time::Instant::now();
    let opened = VectorIndex::open(&path).unwrap();
    let time = start.elapsed();
    assert_eq!(opened.len(), rows);
    assert!(time.as_millis() < 50, "{time:?}");
}

/// Every kind of file, cut and with flipped bits in every region: an error, or the right answer.
#[test]
fn damaged_files_give_an_error_or_the_right_answer() {
    let dir = tempfile::tempdir().unwrap();
    let vectors = random(1100, 24, 10);
    let queries = random(5, 24, 11);
    let mut refused = 0;
    for (metric, encoding) in [
        (Metric::Cosine, Encoding::F32),
        (Metric::L2, Encoding::Int8),
        (Metric::L2, Encoding::F16),
        (Metric::Ip, Encoding::Binary),
    ] {
        let right = index(dir.path(), &vectors, 24, metric, encoding);
        let right = right.search(&queries, 5).unwrap();
        let whole = std::fs::read(dir.path().join(format!("{metric}-{encoding}.vec"))).unwrap();
        let path = dir.path().join("damaged.vec");
        let mut try_file = |bytes: &[u8], what: &str| {
            // Another name each time: a mapping of the old file may still be there.
            std::fs::remove_file(&path).ok();
            std::fs::write(&path, bytes).unwrap();
            let found = VectorIndex::open(&path).and_then(|index| index.search(&queries, 5));
            match found {
                Ok(found) => assert_eq!(found, right, "{encoding}: {what}"),
                Err(_) => refused += 1,
            }
        };
        let step = whole.len() / 150;
        for at in (0..64)
            .chain((64..whole.len()).step_by(step))
            .chain(whole.len() - 9..whole.len())
        {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            try_file(&bytes, &format!("bit of byte {at}"));
        }
        for length in (0..70).chain((70..whole.len()).step_by(step * 3)) {
            try_file(&whole[..length], &format!("cut to {length}"));
        }
        try_file(&[whole.as_slice(), &[0]].concat(), "a byte more");
    }
    assert!(refused > 1000, "{refused}");
}
