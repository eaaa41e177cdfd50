//! Corpora of every kind, and broken ones.

use std::fs;

use super::*;

fn read(path: &Path) -> Result<(Vec<Document>, CorpusReport), IndexError> {
    let mut found = Vec::new();
    let report = read_corpus(path, &CorpusOptions::default(), |document| {
        found.push(document);
        Ok::<(), IndexError>(())
    })?;
    Ok((found, report))
}

fn error(name: &str, text: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, text).unwrap();
    let text = read(&path).unwrap_err().to_string();
    text.replace(&format!("{}/", dir.path().display()), "")
}

#[test]
fn a_beir_folder_keeps_identifiers_as_strings_and_names_empty_documents() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = "{\"_id\": \"007\", \"title\": \"T\", \"text\": \"x\", \"metadata\": {\"year\": 1961}}\n\
                  {\"_id\": 7, \"title\": \"\", \"text\": \"y\", \"url\": null}\n\
                  {\"_id\": \"8\", \"text\": \" \"}\n";
    fs::write(dir.path().join("corpus.jsonl"), corpus).unwrap();
    fs::write(
        dir.path().join("queries.jsonl"),
        "{\"_id\": \"1\", \"text\": \"q\"}\n",
    )
    .unwrap();
    let (found, report) = read(dir.path()).unwrap();
    let ids: Vec<&str> = found.iter().map(|d| d.id.as_str()).collect();
    assert_eq!((ids, report.documents), (vec!["007", "7"], 2));
    assert_eq!(found[0].metadata["year"], 1961);
    assert_eq!(found[0].title_and_text(), "T x");
    assert!(found[1].metadata.is_empty());
    assert_eq!(
        (report.empty[0].id.as_str(), report.empty[0].line),
        ("8", 3)
    );
    assert_eq!(
        read_queries(dir.path()).unwrap(),
        [("1".into(), "q".into())]
    );
}

#[test]
fn tables_and_folders_of_texts_are_corpora() {
    let dir = tempfile::tempdir().unwrap();
    let table = dir.path().join("a.csv");
    fs::write(&table, "id,text,year\na,\"one, two\",1960\nb,three,1970\n").unwrap();
    let (found, _) = read(&table).unwrap();
    assert_eq!(
        (found[0].text.as_str(), &found[0].metadata["year"]),
        ("one, two", &"1960".into())
    );
    let folder = dir.path().join("docs");
    fs::create_dir_all(folder.join("sub/.hidden")).unwrap();
    fs::write(folder.join("b.md"), "```\n# code\n```\n## Wings ##\ntext").unwrap();
    fs::write(folder.join("sub/a.TXT"), "# not a title").unwrap();
    fs::write(folder.join("sub/.hidden/c.md"), "x").unwrap();
    fs::write(folder.join("d.png"), "x").unwrap();
    let (found, _) = read(&folder).unwrap();
    let seen: Vec<(&str, &str)> = found
        .iter()
        .map(|d| (d.id.as_str(), d.title.as_str()))
        .collect();
    assert_eq!(seen, [("b.md", "Wings"), ("sub/a.TXT", "")]);
}

#[test]
fn broken_corpora_are_refused_with_file_and_line() {
    let twice = error(
        "a.jsonl",
        "{\"id\": \"a\", \"text\": \"x\"}\n{\"id\": \"a\", \"text\": \"y\"}\n",
    );
    assert_eq!(
        twice,
        "a.jsonl:2: the identifier `a` was used before, in a.jsonl:1"
    );
    for (text, part) in [
        (
            "{\"text\": \"x\"}",
            "a.jsonl:1: no identifier: expected a field `_id`",
        ),
        (
            "{\"id\": \"a\", \"teext\": \"x\"}",
            "a.jsonl:1: no text: expected a field `text`",
        ),
        (
            "{\"id\": \"a\", \"text\": 3}",
            "a.jsonl:1: `text` must be a text",
        ),
        (
            "{\"id\": \"\", \"text\": \"x\"}",
            "a.jsonl:1: the identifier is empty",
        ),
        (
            "{\"id\": \"a\", \"text\": \"\"}",
            "a.jsonl: none of its 1 documents has",
        ),
        ("\n", "a.jsonl: no document in it"),
        ("[1]", "a.jsonl:1: expected a JSON object"),
    ] {
        let found = error("a.jsonl", text);
        assert!(found.starts_with(part), "{found}\n{part}");
    }
    let options = CorpusOptions {
        columns: [("body".to_owned(), "x".to_owned())].into(),
    };
    let refused = read_corpus(Path::new("a"), &options, |_| Ok::<(), IndexError>(()));
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("no field of a document")
    );
}

#[test]
fn queries_come_from_tables_with_and_without_column_names() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q.tsv");
    for text in [
        "1\twing flutter\n2\theat\n",
        "qid\tquery\n1\twing flutter\n2\theat\n",
    ] {
        fs::write(&path, text).unwrap();
        let found = read_queries(&path).unwrap();
        let expected = [("1", "wing flutter"), ("2", "heat")];
        assert_eq!(found, expected.map(|(id, q)| (id.to_owned(), q.to_owned())));
    }
    fs::write(&path, "1\t \n").unwrap();
    assert!(
        read_queries(&path)
            .unwrap_err()
            .to_string()
            .contains("query `1` is empty")
    );
}
