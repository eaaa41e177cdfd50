//! The index on disk against the same documents in memory.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::*;
use crate::analyzer::Analyzer;
use crate::bm25::{Bm25, Bm25Index};
use crate::document::Document;
use crate::error::IndexError;
use crate::filter::Filter;
use crate::fusion::{Fusion, fuse};
use crate::vector::{Encoding, HnswOptions, Metric};

const DIMENSION: usize = 8;

fn encoder() -> Encoder {
    Encoder {
        model: "minilm-l6".into(),
        fingerprint: "abc".into(),
        dimension: DIMENSION,
        metric: Metric::Cosine,
        encoding: Encoding::F32,
    }
}

fn with_vectors() -> Settings {
    Settings {
        analyzer: Analyzer::Whitespace,
        encoder: Some(encoder()),
        hnsw: None,
    }
}

/// Texts of few different words, so that scores differ and terms repeat.
struct Random(ChaCha8Rng);

impl Random {
    fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    fn text(&mut self) -> String {
        let count = self.0.random_range(3..30);
        let words = (0..count).map(|_| format!("w{}", self.0.random_range(0u32..40).pow(2) / 40));
        words.collect::<Vec<_>>().join(" ")
    }

    fn vector(&mut self) -> Vec<f32> {
        (0..DIMENSION)
            .map(|_| self.0.random_range(-1.0..1.0))
            .collect()
    }
}

/// What should be in the index, in the order in which it was added.
#[derive(Default)]
struct Model {
    order: Vec<String>,
    documents: BTreeMap<String, (String, Vec<f32>)>,
}

impl Model {
    fn put(&mut self, id: &str, text: &str, vector: &[f32]) {
        self.remove(id);
        self.order.push(id.into());
        self.documents
            .insert(id.into(), (text.into(), vector.into()));
    }

    fn remove(&mut self, id: &str) {
        self.order.retain(|known| known != id);
        self.documents.remove(id);
    }

    fn bm25(&self, query: &str, k: usize, constants: Bm25) -> Vec<(String, f64)> {
        let mut index = Bm25Index::new(Analyzer::Whitespace);
        self.order
            .iter()
            .for_each(|id| index.add(&self.documents[id].0));
        let found = index.search(query, k, constants).unwrap().into_iter();
        found
            .map(|(i, score)| (self.order[i].clone(), score))
            .collect()
    }

    fn dense(&self, query: &[f32], k: usize) -> Vec<(String, f64)> {
        let length = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let mut found: Vec<(String, f64)> = (self.documents.iter())
            .map(|(id, (_, row))| {
                let pairs = row.iter().zip(query);
                let dot: f64 = pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                (id.clone(), dot / length(row) / length(query))
            })
            .collect();
        found.sort_by(|a, b| b.1.total_cmp(&a.1));
        found.truncate(k);
        found
    }
}

fn assert_same(found: &[Found], expected: &[(String, f64)], what: &str) {
    let scores: Vec<f64> = expected.iter().map(|e| e.1).collect();
    for (found, score) in found.iter().zip(&scores) {
        assert!(
            (found.score - score).abs() < 1e-5,
            "{what}: {found:?} {score}"
        );
    }
    assert_eq!(found.len(), expected.len(), "{what}");
    // Scores that differ by rounding alone may change places.
    for (i, one) in found.iter().enumerate() {
        let tied = expected
            .iter()
            .any(|(id, score)| *id == one.id && (score - scores[i]).abs() < 1e-5);
        let cut = (scores[i] - scores[scores.len() - 1]).abs() < 1e-5;
        assert!(tied || cut, "{what}: {one:?} {expected:?}");
    }
}

#[test]
fn an_index_that_was_changed_at_random_answers_as_one_that_was_made_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random::new(1);
    let mut model = Model::default();
    let mut index = Index::create(&dir.path().join("idx"), with_vectors()).unwrap();
    for round in 0..12 {
        let mut writer = index.writer().unwrap();
        for _ in 0..40 {
            let id = format!("d{}", random.0.random_range(0..150));
            let (text, vector) = (random.text(), random.vector());
            let document = Document::new(&id, &text);
            assert_eq!(
                writer.contains(&id).unwrap(),
                model.documents.contains_key(&id)
            );
            match random.0.random_range(0..4) {
                0 => {
                    let there = model.documents.contains_key(&id);
                    assert_eq!(writer.delete(&id).unwrap(), there);
                    model.remove(&id);
                }
                1 => {
                    writer.update(&document, Some(&vector)).unwrap();
                    model.put(&id, &text, &vector);
                }
                _ => match writer.add(&document, Some(&vector)) {
                    Ok(()) => model.put(&id, &text, &vector),
                    Err(IndexError::DuplicateDocument { .. }) => {}
                    Err(other) => panic!("{other}"),
                },
            }
        }
        match round % 5 {
            4 => writer.compact().unwrap(),
            _ => writer.commit().unwrap(),
        }
        drop(writer);
        assert!(index.reload().unwrap());
        assert_eq!(index.len(), model.documents.len());
        for constants in [Bm25::default(), Bm25 { k1: 1.2, b: 0.75 }] {
            let query = random.text();
            let found = index
                .search(&Query::text(&query).bm25(constants).top_k(15))
                .unwrap();
            assert_same(&found, &model.bm25(&query, 15, constants), "bm25");
        }
        let query = random.vector();
        let found = index
            .search(&Query::vector(query.clone()).top_k(15))
            .unwrap();
        assert_same(&found, &model.dense(&query, 15), "dense");
        let document = index.document(&found[0].id).unwrap().unwrap();
        assert_eq!(document.text, model.documents[&found[0].id].0);
    }
    // Merging keeps the number of files low.
    let files = std::fs::read_dir(index.folder()).unwrap().flatten();
    let vectors = files.filter(|f| f.file_name().to_string_lossy().ends_with(".vec"));
    assert!(vectors.count() <= 4);
    index.check().unwrap();
}

#[test]
fn hybrid_search_fuses_the_two_rankings() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random::new(2);
    let mut model = Model::default();
    let mut index = Index::create(&dir.path().join("idx"), with_vectors()).unwrap();
    let mut writer = index.writer().unwrap();
    for i in 0..60 {
        let (text, vector) = (random.text(), random.vector());
        let id = format!("d{i}");
        writer
            .add(&Document::new(&id, &text), Some(&vector))
            .unwrap();
        model.put(&id, &text, &vector);
    }
    writer.commit().unwrap();
    index.reload().unwrap();
    let (text, vector) = (random.text(), random.vector());
    let lists = [
        model.bm25(&text, 100, Bm25::default()),
        model.dense(&vector, 100),
    ];
    for fusion in [
        Fusion::default(),
        Fusion::MinMax {
            weights: vec![0.3, 0.7],
        },
    ] {
        let query = Query::hybrid(&text, vector.clone())
            .mode(Mode::Hybrid(fusion.clone()))
            .top_k(10);
        let found = index.search(&query).unwrap();
        let mut expected = fuse(&lists, &fusion).unwrap();
        expected.truncate(10);
        assert_same(&found, &expected, "hybrid");
        assert!(found.iter().all(|f| f.vector_score.is_some()));
    }
    // Many at once are each as one.
    let queries = [
        Query::text("w1 w2"),
        Query::vector(random.vector()).top_k(3),
        Query::hybrid("w3", random.vector()),
    ];
    let batch = index.search_batch(&queries).unwrap();
    for (query, found) in queries.iter().zip(batch) {
        assert_eq!(index.search(query).unwrap(), found);
    }
}

#[test]
fn filters_hold_for_words_and_vectors_and_name_fields_that_are_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random::new(3);
    let mut index = Index::create(&dir.path().join("idx"), with_vectors()).unwrap();
    let mut writer = index.writer().unwrap();
    let metadata = [
        json!({"year": 1959, "lang": "en", "tags": ["a", "b"], "info": {"open": true}}),
        json!({"year": "1961", "lang": "de", "tags": ["b"], "date": "2024-05-01T00:00:00Z"}),
        json!({"year": 1962.5, "lang": "en", "info": {"open": false}}),
        json!({"lang": "fr", "note": "x".repeat(70_000)}),
    ];
    for (i, metadata) in metadata.iter().enumerate() {
        let mut document = Document::new(format!("d{i}"), "wing");
        document.metadata = metadata.as_object().unwrap().clone();
        writer.add(&document, Some(&random.vector())).unwrap();
    }
    writer.commit().unwrap();
    index.reload().unwrap();
    assert!(index.fields().any(|field| field == "info.open"));
    for (filters, expected) in [
        (vec!["year>1960"], vec!["d1", "d2"]),
        (vec!["year<=1961"], vec!["d0", "d1"]),
        (vec!["year=1961"], vec!["d1"]),
        (vec!["lang in en,fr"], vec!["d0", "d2", "d3"]),
        (vec!["lang!=en"], vec!["d1", "d3"]),
        (vec!["year>1960", "lang=en"], vec!["d2"]),
        (vec!["tags=b"], vec!["d0", "d1"]),
        (vec!["info.open=true"], vec!["d0"]),
        (vec!["date>2024-01-01"], vec!["d1"]),
        (vec!["year!=1959"], vec!["d1", "d2", "d3"]),
    ] {
        let filter = Filter::parse(&filters).unwrap();
        for query in [Query::text("wing"), Query::vector(random.vector())] {
            let found = index.search(&query.filter(filter.clone())).unwrap();
            let mut ids: Vec<&str> = found.iter().map(|f| f.id.as_str()).collect();
            ids.sort_unstable();
            assert_eq!(ids, expected, "{filters:?}");
        }
    }
    let wrong = Query::text("wing").filter(Filter::parse(&["yaer>1960"]).unwrap());
    let error = index.search(&wrong).unwrap_err().to_string();
    assert!(error.contains("did you mean `year`?"), "{error}");
    for (filter, hint) in [
        ("year>19 60", "are numbers, and `19 60` is not one"),
        ("year<1,960", "comma"),
        ("lang>5", "no value of `lang` is one"),
        ("info.open>true", "none is the larger"),
    ] {
        let asked = Filter::parse(&[filter]).map(|filter| Query::text("wing").filter(filter));
        let error = asked.and_then(|query| index.search(&query)).unwrap_err();
        assert!(error.to_string().contains(hint), "{filter}: {error}");
    }
    // What was too long to compare is kept all the same.
    let note = index.document("d3").unwrap().unwrap().metadata["note"].clone();
    assert_eq!(note.as_str().unwrap().len(), 70_000);
}

#[test]
fn documents_and_vectors_that_cannot_be_indexed_are_refused_and_the_rest_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = Index::create(&dir.path().join("idx"), with_vectors()).unwrap();
    let mut writer = index.writer().unwrap();
    let vector = [1.0; DIMENSION];
    let good = Document::new("a", "wing");
    writer.add(&good, Some(&vector)).unwrap();
    let mut nan = vector;
    nan[3] = f32::NAN;
    let long = Document::new("x".repeat(5000), "wing");
    for (document, vector, part) in [
        (
            &good,
            Some(&vector[..]),
            "the document `a` is in the index already",
        ),
        (&Document::new("", "x"), Some(&vector), "empty identifier"),
        (
            &Document::new("b", " "),
            Some(&vector),
            "`b` has neither a title nor a text",
        ),
        (&Document::new("b", "x"), None, "`b` has no vector"),
        (
            &Document::new("b", "x"),
            Some(&vector[..3]),
            "the vector of `b` has 3 numbers, but the index holds vectors of 8",
        ),
        (
            &Document::new("b", "x"),
            Some(&nan),
            "the vector of `b`: number 3 is NaN",
        ),
        (
            &Document::new("b", "x"),
            Some(&[0.0; DIMENSION]),
            "all zeros",
        ),
        (&long, Some(&vector), "more than 4096 bytes"),
    ] {
        let error = writer.add(document, vector).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    // A refused update keeps the old document.
    assert!(writer.update(&good, Some(&nan)).is_err());
    writer
        .add(&Document::new("b", "flutter"), Some(&vector))
        .unwrap();
    writer.commit().unwrap();
    index.reload().unwrap();
    assert_eq!(index.len(), 2);
    for query in [
        Query::vector(vec![1.0; 3]),
        Query::vector(nan.to_vec()),
        Query::text("x").mode(Mode::Dense),
        Query::text("x").bm25(Bm25 { k1: -1.0, b: 0.4 }),
    ] {
        assert!(index.search(&query).is_err());
    }
    assert_eq!(index.search(&Query::text("")).unwrap(), []);
    assert_eq!(index.search(&Query::text("wing").top_k(0)).unwrap(), []);
    let plain = Index::create(&dir.path().join("plain"), Settings::default()).unwrap();
    assert!(
        plain
            .search(&Query::vector(vec![1.0]))
            .unwrap_err()
            .to_string()
            .contains("no vectors")
    );
    assert!(
        plain
            .writer()
            .unwrap()
            .add(&good, Some(&vector))
            .unwrap_err()
            .to_string()
            .contains("without an encoder")
    );
}

#[test]
fn there_is_one_writer_and_what_it_does_not_commit_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("idx");
    let mut index = Index::create(&folder, Settings::default()).unwrap();
    let mut writer = index.writer().unwrap();
    assert!(matches!(index.writer(), Err(IndexError::Lock(_))));
    writer.add(&Document::new("a", "x"), None).unwrap();
    writer.commit().unwrap();
    writer.add(&Document::new("b", "x"), None).unwrap();
    writer.delete("a").unwrap();
    drop(writer);
    index.reload().unwrap();
    assert_eq!((index.len(), index.contains("a").unwrap()), (1, true));
    assert!(!index.reload().unwrap());
    // A commit without changes changes nothing.
    index.writer().unwrap().commit().unwrap();
    assert_eq!(Index::open(&folder).unwrap().generation(), 1);
    assert!(matches!(
        Index::create(&folder, Settings::default()),
        Err(IndexError::Exists { .. })
    ));
    assert!(matches!(
        Index::open(dir.path()),
        Err(IndexError::NotAnIndex { .. })
    ));
}

#[test]
fn a_reader_goes_on_while_the_index_is_rewritten() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random::new(4);
    let index = Index::create(&dir.path().join("idx"), with_vectors()).unwrap();
    let mut writer = index.writer().unwrap();
    for i in 0..20 {
        writer
            .add(
                &Document::new(format!("d{i}"), random.text()),
                Some(&random.vector()),
            )
            .unwrap();
    }
    writer.commit().unwrap();
    let reader = Index::open(index.folder()).unwrap();
    for i in 0..20 {
        writer.delete(&format!("d{i}")).unwrap();
    }
    writer
        .add(&Document::new("new", "w1"), Some(&random.vector()))
        .unwrap();
    writer.compact().unwrap();
    assert_eq!(reader.len(), 20);
    assert_eq!(
        reader
            .search(&Query::vector(random.vector()).top_k(30))
            .unwrap()
            .len(),
        20
    );
    assert!(reader.document("d7").unwrap().is_some());
    let now = Index::open(index.folder()).unwrap();
    assert_eq!((now.len(), now.contains("d7").unwrap()), (1, false));
    now.check().unwrap();
}

#[test]
fn an_index_of_another_model_is_not_searched() {
    let dir = tempfile::tempdir().unwrap();
    let index = Index::create(&dir.path().join("idx"), with_vectors()).unwrap();
    let asked = encoder();
    index.check_encoder(&asked).unwrap();
    // The folder of a model may move, and vectors may be stored otherwise.
    let moved = Encoder {
        model: "elsewhere".into(),
        encoding: Encoding::Int8,
        ..encoder()
    };
    index.check_encoder(&moved).unwrap();
    for other in [
        Encoder {
            fingerprint: "def".into(),
            ..encoder()
        },
        Encoder {
            metric: Metric::Ip,
            ..encoder()
        },
    ] {
        let error = index.check_encoder(&other).unwrap_err().to_string();
        assert!(
            error.contains("was made with `minilm-l6` (abc, 8 numbers, cosine), not with"),
            "{error}"
        );
    }
    let wrong = Settings {
        encoder: Some(Encoder {
            dimension: 0,
            ..encoder()
        }),
        ..Settings::default()
    };
    assert!(Index::create(&dir.path().join("other"), wrong).is_err());
    assert!(!dir.path().join("other").exists());
}

#[cfg(unix)]
#[test]
fn a_reader_needs_no_right_to_write() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("idx");
    let index = Index::create(&folder, Settings::default()).unwrap();
    let mut writer = index.writer().unwrap();
    writer.add(&Document::new("a", "wing"), None).unwrap();
    writer.commit().unwrap();
    drop(writer);
    let mode = |mode| std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(mode));
    mode(0o555).unwrap();
    let names = |folder: &std::path::Path| std::fs::read_dir(folder).unwrap().count();
    let before = names(&folder);
    let found = Index::open(&folder)
        .unwrap()
        .search(&Query::text("wings"))
        .unwrap();
    assert_eq!((found.len(), names(&folder)), (1, before));
    mode(0o755).unwrap();
}

#[test]
fn an_index_with_graphs_answers_as_one_without_after_every_kind_of_change() {
    let dir = tempfile::tempdir().unwrap();
    let hnsw = HnswOptions {
        min_rows: 100,
        ..HnswOptions::default()
    };
    let with_graphs = Settings {
        hnsw: Some(hnsw),
        ..with_vectors()
    };
    let mut made = Random::new(3);
    let vectors: Vec<Vec<f32>> = (0..900).map(|_| made.vector()).collect();
    let mut indexes = [with_graphs, with_vectors()].map(|settings| {
        let name = if settings.hnsw.is_some() {
            "graphs"
        } else {
            "exact"
        };
        let index = Index::create(&dir.path().join(name), settings).unwrap();
        let mut writer = index.writer().unwrap();
        for (i, vector) in vectors.iter().enumerate() {
            let mut document = Document::new(format!("d{i}"), "wing");
            document.metadata.insert("part".into(), (i % 50).into());
            writer.add(&document, Some(vector)).unwrap();
            if i == 700 {
                writer.commit().unwrap();
            }
        }
        (0..900).step_by(7).for_each(|i| {
            writer.delete(&format!("d{i}")).unwrap();
        });
        writer.commit().unwrap();
        drop(writer);
        index
    });
    for compacted in [false, true] {
        for index in &mut indexes {
            if compacted {
                index.writer().unwrap().compact().unwrap();
            }
            index.reload().unwrap();
            index.check().unwrap();
        }
        let [graphs, exact] = &indexes;
        let names = std::fs::read_dir(graphs.folder()).unwrap().flatten();
        let names = names.filter(|f| f.file_name().to_string_lossy().ends_with(".hnsw"));
        assert!(names.count() >= 1);
        for filter in [&[][..], &["part<25"], &["part=3"]] {
            let filter = Filter::parse(filter).unwrap();
            let mut same = 0;
            for _ in 0..30 {
                let query = Query::vector(made.vector())
                    .top_k(10)
                    .filter(filter.clone());
                let wanted = exact.search(&query).unwrap();
                let found = graphs.search(&query).unwrap();
                assert_eq!(found.len(), wanted.len());
                same += found.iter().filter(|f| wanted.contains(f)).count();
                // All that is asked for is exact.
                let all = query.effort(Effort::Exact);
                assert_eq!(graphs.search(&all).unwrap(), wanted);
                let deep = all.effort(Effort::default()).top_k(500);
                assert_eq!(graphs.search(&deep).unwrap(), exact.search(&deep).unwrap());
            }
            assert!(same >= 285, "{compacted} {filter:?}: {same} of 300");
        }
    }
    // Programs that know no graphs still read an index without.
    let version = |index: &Index| {
        let text = std::fs::read_to_string(index.folder().join("manifest.jsonl")).unwrap();
        let body: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        (body["version"].as_u64(), text.contains("hnsw"))
    };
    assert_eq!(version(&indexes[0]), (Some(2), true));
    assert_eq!(version(&indexes[1]), (Some(1), false));
    let settings = Settings {
        hnsw: Some(hnsw),
        ..Settings::default()
    };
    assert!(Index::create(&dir.path().join("no"), settings).is_err());
}
