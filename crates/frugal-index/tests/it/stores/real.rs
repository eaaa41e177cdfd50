//! The same calls with the same answers, wherever the vectors are.

use frugal_index::store::{
    StoreEntry, StoreHit, StoreOptions, StoreTarget, VectorStore, open_store,
};
use frugal_index::{Filter, Metric};

use super::servers::{chroma, postgres};
use super::{DIMENSION, entry, settings, vector};

/// The answer by the definition of the metric.
fn reference(entries: &[StoreEntry], query: &[f32], metric: Metric) -> Vec<(String, f64)> {
    let wide = |v: &[f32]| v.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let query = wide(query);
    let mut all: Vec<(String, f64)> = (entries.iter())
        .map(|entry| {
            let vector = wide(&entry.vector);
            let score = match metric {
                Metric::Ip => dot(&vector, &query),
                Metric::Cosine => {
                    dot(&vector, &query) / (dot(&vector, &vector) * dot(&query, &query)).sqrt()
                }
                Metric::L2 => -(vector.iter().zip(&query))
                    .map(|(a, b)| (a - b) * (a - b))
                    .sum::<f64>(),
            };
            (entry.document.id.clone(), score)
        })
        .collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all
}

fn assert_close(found: &[StoreHit], wanted: &[(String, f64)]) {
    let ids: Vec<&String> = found.iter().map(|hit| &hit.document.id).collect();
    assert_eq!(ids, wanted.iter().map(|w| &w.0).collect::<Vec<_>>());
    for (hit, (_, score)) in found.iter().zip(wanted) {
        assert!((hit.score - score).abs() < 1e-4, "{} {score}", hit.score);
    }
}

/// Everything that a store promises.
fn keeps_its_promises(address: &str, metric: Metric) {
    let target: StoreTarget = format!("{address}#t_{metric}").parse().unwrap();
    holds(&target, metric);
}

fn holds(target: &StoreTarget, metric: Metric) {
    let options = StoreOptions::default();
    let wanted = settings(metric);
    let absent = open_store(target, None, options).map(|_| ()).unwrap_err();
    assert!(!absent.to_string().is_empty());
    let mut store = open_store(target, Some(&wanted), options).unwrap();
    assert_eq!(store.count().unwrap(), 0);
    assert!(store.nearest(&vector(1), 5).unwrap().is_empty());
    let mut entries: Vec<StoreEntry> = (0..150).map(entry).collect();
    store.upsert(&entries).unwrap();
    // Again, with one that has changed and one that is new.
    entries[3].document.text = "other".into();
    entries[3].vector = vector(9003);
    entries.push(entry(150));
    store.upsert(&entries).unwrap();
    assert_eq!(store.count().unwrap(), 151);
    let mut ids = store.ids().unwrap();
    ids.sort();
    let mut known: Vec<String> = entries.iter().map(|e| e.document.id.clone()).collect();
    known.sort();
    assert_eq!(ids, known);
    let asked = [entries[3].document.id.clone(), "none".into()];
    let found = store.documents(&asked).unwrap();
    assert_eq!(found, [Some(entries[3].document.clone()), None]);
    searches(store.as_mut(), &entries, metric);
    store.delete(&[asked[0].clone(), "none".into()]).unwrap();
    entries.remove(3);
    assert_eq!(store.count().unwrap(), 150);
    searches(store.as_mut(), &entries, metric);
    refusals(store.as_mut(), &entries);
    // Another process, and another model.
    drop(store);
    let mut store = open_store(target, None, options).unwrap();
    assert_eq!(store.settings().encoder, wanted.encoder);
    assert_eq!(store.count().unwrap(), 150);
    let mut other = wanted;
    other.encoder.fingerprint = "xyz".into();
    let error = open_store(target, Some(&other), options).map(|_| ());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("made with `test` (abc"), "{error}");
}

fn searches(store: &mut dyn VectorStore, entries: &[StoreEntry], metric: Metric) {
    for seed in 500..505 {
        let query = vector(seed);
        let wanted = reference(entries, &query, metric);
        assert_close(&store.nearest(&query, 7).unwrap(), &wanted[..7]);
        for filter in [
            &["year>=2050"][..],
            &["zip=1"],
            &["tags=t2", "year<2000"],
            &["nested.part=false"],
            &["tags!=t1"],
            &["year=1950"],
        ] {
            let filter = Filter::parse(filter).unwrap();
            let fitting = wanted.iter().filter(|(id, _)| {
                let entry = entries.iter().find(|e| e.document.id == *id).unwrap();
                filter.fits(&entry.document.metadata)
            });
            let fitting: Vec<(String, f64)> = fitting.take(7).cloned().collect();
            assert!(!fitting.is_empty());
            assert_close(&store.search(&query, 7, &filter).unwrap(), &fitting);
        }
    }
    let nothing = Filter::parse(&["yeer>1900"]).unwrap();
    let error = store.search(&vector(1), 7, &nothing).unwrap_err();
    assert!(
        error.to_string().contains("no document has a field `yeer`"),
        "{error}"
    );
}

fn refusals(store: &mut dyn VectorStore, entries: &[StoreEntry]) {
    let before = store.count().unwrap();
    let new = entry(700);
    let with = |change: &dyn Fn(&mut StoreEntry)| {
        let mut changed = new.clone();
        change(&mut changed);
        vec![entry(701), changed]
    };
    for (entries, part) in [
        (
            with(&|e| e.document.id = entry(701).document.id),
            "is there twice",
        ),
        (with(&|e| e.document.id.clear()), "empty identifier"),
        (with(&|e| e.document.id.push('\0')), "identifier"),
        (
            with(&|e| {
                e.document.text.clear();
                e.document.title.clear();
            }),
            "neither a title nor a text",
        ),
        (with(&|e| e.vector.truncate(3)), "has 3 numbers"),
        (with(&|e| e.vector[2] = f32::NAN), "number 2 is NaN"),
        (with(&|e| e.vector[2] = f32::INFINITY), "number 2 is inf"),
    ] {
        let error = store.upsert(&entries).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    for query in [&[0.5; 3][..], &[f32::NAN; DIMENSION]] {
        assert!(store.nearest(query, 3).is_err());
    }
    assert_eq!(store.count().unwrap(), before);
    assert_eq!(before, entries.len());
}

#[test]
fn the_embedded_store_keeps_its_promises() {
    for metric in [Metric::Cosine, Metric::Ip, Metric::L2] {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("idx");
        holds(&folder.to_str().unwrap().parse().unwrap(), metric);
    }
}

#[test]
fn postgresql_with_pgvector_keeps_its_promises() {
    let Some(server) = postgres() else { return };
    for metric in [Metric::Cosine, Metric::Ip, Metric::L2] {
        keeps_its_promises(&server.address, metric);
    }
    // A table of somebody else is left alone.
    let target: StoreTarget = format!("{}#strangers", server.address).parse().unwrap();
    server.sql("CREATE TABLE strangers (a int)");
    let error = open_store(
        &target,
        Some(&settings(Metric::Ip)),
        StoreOptions::default(),
    );
    let error = error.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("not made by `frugal index`"), "{error}");
}

#[test]
fn chroma_keeps_its_promises() {
    let Some(server) = chroma() else { return };
    for metric in [Metric::Cosine, Metric::Ip, Metric::L2] {
        keeps_its_promises(&server.address, metric);
    }
}
