//! Folders with damaged files.

use std::path::Path;

use frugal_index::{
    Analyzer, Document, Encoder, Encoding, Filter, Found, HnswOptions, Index, IndexError, Metric,
    Query, Settings,
};

fn vector(i: u32) -> Vec<f32> {
    (0..8)
        .map(|j| ((i * 7 + j * 3) % 11) as f32 - 5.0)
        .collect()
}

fn document(i: u32) -> Document {
    let mut document = Document::new(format!("d{i}"), format!("wing flutter {} {}", i % 5, i % 3));
    document.metadata.insert("year".into(), (1950 + i).into());
    document
        .metadata
        .insert("lang".into(), ["en", "de"][i as usize % 2].into());
    document
}

/// Several segments, with deleted documents and vectors.
fn build(folder: &Path) {
    let settings = Settings {
        analyzer: Analyzer::English,
        encoder: Some(Encoder {
            model: "test".into(),
            fingerprint: "test".into(),
            dimension: 8,
            metric: Metric::L2,
            encoding: Encoding::Int8,
        }),
        hnsw: Some(HnswOptions {
            min_rows: 50,
            ..HnswOptions::default()
        }),
    };
    let index = Index::create(folder, settings).unwrap();
    let mut writer = index.writer().unwrap();
    for i in 0..120 {
        writer.add(&document(i), Some(&vector(i))).unwrap();
        if i % 60 == 59 {
            writer.commit().unwrap();
        }
    }
    writer.delete("d7").unwrap();
    writer.delete("d80").unwrap();
    writer.commit().unwrap();
}

/// Everything that is read of an index.
fn answers(folder: &Path) -> Result<(Vec<Vec<Found>>, Vec<Option<Document>>), IndexError> {
    let index = Index::open(folder)?;
    let filter = Filter::parse(&["year>1990", "lang=en"])?;
    let queries = [
        Query::text("fluttering wings 3"),
        Query::text("wing").filter(filter.clone()),
        Query::vector(vector(17)),
        Query::hybrid("2", vector(90)).filter(filter),
    ];
    let found = queries.iter().map(|query| index.search(query));
    let found = found.collect::<Result<Vec<_>, _>>()?;
    let documents = ["d3", "d7", "d119"].map(|id| index.document(id));
    let documents = documents.into_iter().collect::<Result<Vec<_>, _>>()?;
    index.check()?;
    Ok((found, documents))
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap().flatten() {
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

#[test]
fn damaged_files_of_an_index_give_an_error_or_the_right_answer() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    build(&whole);
    let right = answers(&whole).unwrap();
    assert_eq!(right.0[0].len(), 10);
    assert!(right.1[1].is_none());
    let mut names: Vec<_> = (std::fs::read_dir(&whole).unwrap().flatten())
        .map(|file| file.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let (mut number, mut refused, mut right_ones) = (0, 0, 0);
    let mut try_bytes = |name: &str, bytes: Option<&[u8]>, what: &str| {
        number += 1;
        let folder = dir.path().join(format!("damaged-{number}"));
        copy(&whole, &folder);
        match bytes {
            Some(bytes) => std::fs::write(folder.join(name), bytes).unwrap(),
            None => std::fs::remove_file(folder.join(name)).unwrap(),
        }
        match answers(&folder) {
            Ok(found) => {
                assert_eq!(found, right, "{name}: {what}");
                right_ones += 1;
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                refused += 1;
            }
        }
        // A writer neither panics nor makes it worse for who reads on.
        if number % 7 == 0
            && let Ok(mut writer) = Index::open(&folder).and_then(|index| index.writer())
        {
            let _ = writer
                .update(&document(3), Some(&vector(3)))
                .and_then(|()| writer.commit());
        }
        std::fs::remove_dir_all(&folder).unwrap();
    };
    for name in &names {
        let content = std::fs::read(whole.join(name)).unwrap();
        try_bytes(name, None, "removed");
        let step = (content.len() / 40).max(1);
        for at in (0..content.len()).step_by(step) {
            let mut bytes = content.clone();
            bytes[at] ^= 1 << (at % 8);
            try_bytes(name, Some(&bytes), &format!("a bit of byte {at}"));
        }
        for length in [0, 1, content.len() / 2, content.len().saturating_sub(1)] {
            try_bytes(name, Some(&content[..length]), &format!("cut to {length}"));
        }
        let longer = [content.as_slice(), b"x"].concat();
        try_bytes(name, Some(&longer), "a byte more");
    }
    assert!(
        refused > 300 && names.len() > 8,
        "{refused} refused of {names:?}"
    );
    assert!(
        right_ones < number / 5,
        "{right_ones} of {number} were not noticed"
    );
}

#[test]
fn errors_did_not_name_the_damaged_file_and_were_in_the_words_of_a_library() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    build(&whole);
    let names = || std::fs::read_dir(&whole).unwrap().flatten();
    let names = names().map(|file| file.file_name().to_string_lossy().into_owned());
    let names: Vec<String> = names.collect();
    for name in &names {
        let Some((stem, end)) = name.rsplit_once('.') else {
            continue;
        };
        if !["term", "idx", "pos", "store", "fast", "fieldnorm"].contains(&end) {
            continue;
        }
        let content = std::fs::read(whole.join(name)).unwrap();
        let of = |end: &str| std::fs::read(whole.join(format!("{stem}.{end}"))).unwrap();
        let mut changed = content.clone();
        for byte in &mut changed[content.len() * 5 / 8..content.len() * 5 / 8 + 3] {
            *byte = 127;
        }
        let cut = |length: usize| content[..length].to_vec();
        let mut cases = vec![cut(0), cut(5), cut(content.len() - 3), changed];
        if end == "fast" {
            cases.push(of("pos"));
        }
        for (number, bytes) in cases.into_iter().enumerate() {
            let folder = dir.path().join(format!("{name}-{number}"));
            copy(&whole, &folder);
            std::fs::write(folder.join(name), bytes).unwrap();
            let error = answers(&folder).unwrap_err().to_string();
            assert!(error.contains(name), "{name} {number}: {error}");
            for raw in ["assertion", "IoError", "Custom", "tantivy", "Footer", "{ "] {
                assert!(!error.contains(raw), "{name} {number}: {error}");
            }
        }
    }
}

#[test]
fn an_index_without_a_commit_is_discarded_and_any_other_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("idx");
    let index = Index::create(&folder, Settings::default()).unwrap();
    let mut writer = index.writer().unwrap();
    writer.add(&document(1), None).unwrap();
    drop(writer);
    assert!(Index::discard_empty(&folder).unwrap());
    let left: Vec<_> = std::fs::read_dir(&folder).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");

    let index = Index::create(&folder, Settings::default()).unwrap();
    let mut writer = index.writer().unwrap();
    writer.add(&document(1), None).unwrap();
    writer.commit().unwrap();
    drop(writer);
    assert!(!Index::discard_empty(&folder).unwrap());
    assert_eq!(Index::open(&folder).unwrap().len(), 1);

    let folder = dir.path().join("with-a-note");
    std::fs::create_dir(&folder).unwrap();
    Index::create(&folder, Settings::default()).unwrap();
    std::fs::write(folder.join("note.txt"), "mine").unwrap();
    assert!(Index::discard_empty(&folder).unwrap());
    let left: Vec<_> = std::fs::read_dir(&folder).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn an_index_of_a_later_format_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("idx");
    build(&folder);
    let path = folder.join("manifest.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let body = text
        .lines()
        .next()
        .unwrap()
        .replace("\"version\":2,", "\"version\":9,");
    let check = crc32c::crc32c(body.as_bytes());
    std::fs::write(&path, format!("{body}\n{{\"crc32c\":\"{check:08x}\"}}\n")).unwrap();
    let error = Index::open(&folder).unwrap_err().to_string();
    assert!(
        error.contains("format version 9, but this program reads version 2"),
        "{error}"
    );
}
