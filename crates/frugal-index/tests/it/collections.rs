//! BM25 on real collections, against published and independent values.

use std::path::{Path, PathBuf};

use frugal_eval::retrieval::{Evaluation, Measure, Options, Qrels, Run, evaluate};
use frugal_index::{
    Analyzer, Bm25, Bm25Index, CorpusOptions, Document, Index, IndexError, Query, Settings,
    read_corpus, read_queries,
};

/// A folder of FRUGAL_DATA, which is not part of the repository.
#[allow(clippy::print_stderr)]
fn data(name: &str) -> Option<PathBuf> {
    let data = std::env::var_os("FRUGAL_DATA").map(PathBuf::from);
    let found = data
        .map(|data| data.join(name))
        .filter(|path| path.exists());
    if found.is_none() {
        eprintln!("skipped: no `{name}` in FRUGAL_DATA");
    }
    found
}

const MEASURES: [Measure; 4] = [
    Measure::Ndcg(Some(10)),
    Measure::Map(None),
    Measure::Mrr(Some(10)),
    Measure::Recall(100),
];

fn indexed(folder: &Path, documents: &[Document]) -> Index {
    let mut index = Index::create(&folder.join("idx"), Settings::default()).unwrap();
    let mut writer = index.writer().unwrap();
    for document in documents {
        writer.add(document, None).unwrap();
    }
    writer.commit().unwrap();
    drop(writer);
    index.reload().unwrap();
    index
}

fn searched(index: &Index, queries: &[(String, String)], k: usize) -> Run {
    let asked: Vec<Query> = queries
        .iter()
        .map(|(_, text)| Query::text(text).top_k(k))
        .collect();
    let mut run = Run::new("bm25");
    for ((id, _), found) in queries.iter().zip(index.search_batch(&asked).unwrap()) {
        run.insert_empty(id);
        for found in found {
            run.insert(id, &found.id, found.score).unwrap();
        }
    }
    run
}

fn in_memory(documents: &[Document], queries: &[(String, String)], k: usize) -> Run {
    let mut index = Bm25Index::new(Analyzer::English);
    documents
        .iter()
        .for_each(|d| index.add(&d.title_and_text()));
    let mut run = Run::new("bm25-memory");
    for (id, text) in queries {
        run.insert_empty(id);
        for (place, score) in index.search(text, k, Bm25::default()).unwrap() {
            run.insert(id, &documents[place].id, score).unwrap();
        }
    }
    run
}

#[allow(clippy::print_stderr)]
fn evaluated(name: &str, qrels: &Qrels, run: &Run) -> Evaluation {
    let options = Options {
        all_queries: true,
        ..Options::default()
    };
    let found = evaluate(qrels, run, &MEASURES, &options).unwrap();
    for (measure, mean) in MEASURES.iter().zip(&found.means) {
        eprintln!("{name}: {measure} {mean:.4}");
    }
    found
}

#[test]
fn bm25_on_scifact_is_that_of_pyserini() {
    let Some(folder) = data("scifact") else {
        return;
    };
    let mut documents = Vec::new();
    let report = read_corpus(&folder, &CorpusOptions::default(), |document| {
        documents.push(document);
        Ok::<(), IndexError>(())
    })
    .unwrap();
    assert_eq!((report.documents, report.empty.len()), (5183, 0));
    let qrels = Qrels::read(&folder.join("qrels-test.tsv")).unwrap();
    assert_eq!(qrels.len(), 300);
    let queries: Vec<_> = (read_queries(&folder).unwrap().into_iter())
        .filter(|(id, _)| qrels.get(id).is_some())
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let index = indexed(dir.path(), &documents);
    let found = evaluated("scifact", &qrels, &searched(&index, &queries, 1000));
    // Pyserini's regression for the flat index of BEIR: nDCG@10 0.679, recall@100 0.925.
    assert!(
        (found.means[0] - 0.679).abs() <= 0.005,
        "{}",
        found.means[0]
    );
    assert!((found.means[3] - 0.925).abs() <= 0.01, "{}", found.means[3]);
    let memory = evaluated(
        "scifact in memory",
        &qrels,
        &in_memory(&documents, &queries, 1000),
    );
    for (disk, memory) in found.means.iter().zip(&memory.means) {
        assert!((disk - memory).abs() < 1e-4);
    }
}

/// Records of SMART's format: number, title and text.
fn smart(path: &Path, title: &str, text: &str) -> Vec<Document> {
    let bytes = std::fs::read(path).unwrap();
    let content = String::from_utf8_lossy(&bytes).into_owned();
    let mut found: Vec<Document> = Vec::new();
    let mut field = "";
    for line in content.lines().map(str::trim_end) {
        if let Some(id) = line.strip_prefix(".I ") {
            let id: u32 = id.trim().parse().unwrap();
            found.push(Document::new(id.to_string(), ""));
        } else if line.len() == 2 && line.starts_with('.') {
            field = if line == title {
                "title"
            } else if line == text {
                "text"
            } else {
                ""
            };
        } else if let Some(last) = found.last_mut() {
            let into = match field {
                "title" => &mut last.title,
                "text" => &mut last.text,
                _ => continue,
            };
            into.push_str(line);
            into.push(' ');
        }
    }
    found
}

#[test]
fn bm25_on_cranfield_is_as_good_as_an_independent_program() {
    let Some(folder) = data("cranfield") else {
        return;
    };
    let mut documents = smart(&folder.join("cran.all.1400"), ".T", ".W");
    assert_eq!(documents.len(), 1400);
    documents.retain(|document| !document.is_blank());
    // The judgements number the queries by their order.
    let queries = smart(&folder.join("cran.qry"), ".T", ".W")
        .into_iter()
        .zip(1..);
    let queries: Vec<_> = queries
        .map(|(query, n)| (n.to_string(), query.text))
        .collect();
    let qrels = Qrels::read(&folder.join("cranqrel")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let index = indexed(dir.path(), &documents);
    let found = evaluated("cranfield", &qrels, &searched(&index, &queries, 100));
    let fixture =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/retrieval/bm25.run.gz");
    let other = evaluated("cranfield by bm25s", &qrels, &Run::read(&fixture).unwrap());
    // The same stemmer and constants, but other stop words and word boundaries.
    assert!((found.means[0] - other.means[0]).abs() < 0.02);
}
