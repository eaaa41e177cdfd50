//! Words with a tag for each.

use std::path::Path;

use super::super::{Example, Format, Labels, LoadOptions, TextRecord, parse, texts};

fn options(names: &[&str]) -> LoadOptions {
    LoadOptions {
        labels: Labels::Tags,
        label_names: names.iter().map(|name| (*name).into()).collect(),
        ..LoadOptions::default()
    }
}

fn read(text: &str, names: &[&str]) -> Result<Vec<Example>, String> {
    let found = parse(Path::new("a.jsonl"), text.as_bytes(), &options(names));
    found.map_err(|e| e.to_string()).map(|dataset| {
        assert_eq!(dataset.format, Format::TokenClassification);
        dataset.examples
    })
}

fn tagged(tokens: &[&str], tags: &[Option<&str>]) -> Example {
    Example::Tagged {
        tokens: tokens.iter().map(|t| (*t).into()).collect(),
        tags: tags.iter().map(|t| t.map(Into::into)).collect(),
    }
}

#[test]
fn the_columns_of_hugging_face_data_sets_are_read() {
    let names = r#"{"id": "0", "tokens": ["EU", "rejects"], "pos_tags": [1, 2], "ner_tags": ["B-ORG", "O"]}"#;
    let expected = tagged(&["EU", "rejects"], &[Some("B-ORG"), Some("O")]);
    assert_eq!(read(names, &[]).unwrap(), std::slice::from_ref(&expected));
    let numbers = r#"{"words": ["EU", "rejects"], "labels": [1, 0]}"#;
    assert_eq!(read(numbers, &["O", "B-ORG"]).unwrap(), [expected]);
    // What is ignored in training, however it is written.
    let untold = r#"{"tokens": ["EU", "said", "so"], "labels": [-100, null, 0]}"#;
    let expected = tagged(&["EU", "said", "so"], &[None, None, Some("O")]);
    assert_eq!(read(untold, &["O"]).unwrap(), [expected]);
    // The names are the head's, in their order, whether or not they occur.
    let dataset = parse(
        Path::new("a.jsonl"),
        numbers.as_bytes(),
        &options(&["O", "B-ORG", "I-ORG"]),
    );
    assert_eq!(dataset.unwrap().labels(), ["O", "B-ORG", "I-ORG"]);
}

#[test]
fn lists_in_the_cells_of_a_table_are_read() {
    let text = "tokens,ner_tags\n\"['EU', 'rejects']\",\"[\"\"B-ORG\"\", \"\"O\"\"]\"\n";
    let dataset = parse(Path::new("a.csv"), text.as_bytes(), &options(&[])).unwrap();
    let expected = tagged(&["EU", "rejects"], &[Some("B-ORG"), Some("O")]);
    assert_eq!(dataset.examples, [expected]);
}

#[test]
fn tags_that_say_nothing_certain_are_refused_with_their_line() {
    for (text, names, said) in [
        (
            r#"{"tokens": ["a", "b"], "ner_tags": ["O"]}"#,
            &[][..],
            "a.jsonl:1: 2 tokens, but 1 tags",
        ),
        (
            r#"{"tokens": ["a"], "ner_tags": [3]}"#,
            &[],
            "`--set data.label_names=",
        ),
        (
            r#"{"tokens": ["a"], "ner_tags": [2]}"#,
            &["O", "B-X"],
            "the tag 2 is none of the 2",
        ),
        (
            r#"{"tokens": ["a"], "ner_tags": [-1]}"#,
            &["O", "B-X"],
            "the tag -1 is none",
        ),
        (
            r#"{"tokens": ["a"], "ner_tags": [0.5]}"#,
            &["O", "B-X"],
            "the tag 0.5 is none",
        ),
        (
            r#"{"tokens": ["a"], "ner_tags": ["B-Y"]}"#,
            &["O", "B-X"],
            "\"B-Y\" is not in `label_names`",
        ),
        (
            r#"{"tokens": ["a"], "ner_tags": [["O"]]}"#,
            &[],
            "is no tag",
        ),
        (r#"{"tokens": ["a"], "ner_tags": [" "]}"#, &[], "is no tag"),
        (
            r#"{"tokens": ["a", 3], "ner_tags": ["O", "O"]}"#,
            &[],
            "3 in the list of tokens is no text",
        ),
        (
            r#"{"tokens": "a b", "ner_tags": ["O", "O"]}"#,
            &[],
            "\"tokens\" must be a list",
        ),
        (
            r#"{"tokens": ["a"], "ner_tags": ["O"], "weight": 2}"#,
            &[],
            "`weight` is not used",
        ),
    ] {
        let error = read(text, names).unwrap_err();
        assert!(error.contains(said), "{text}: {error}");
    }
}

#[test]
fn tags_that_differ_in_space_alone_became_two_classes() {
    let first = r#"{"tokens": ["a", "b"], "ner_tags": ["O", null]}"#;
    let error = read(
        &format!("{first}\n{}", first.replace("\"O\"", "\" O\"")),
        &[],
    )
    .unwrap_err();
    for said in ["a.jsonl:2:", "\" O\" differs from \"O\" only in the space"] {
        assert!(error.contains(said), "{error}");
    }
    // One text, composed and decomposed.
    let spelled = |letter: &str| first.replace("\"O\"", &format!("\"B-{letter}\""));
    let error = read(&[spelled("\u{e9}"), spelled("e\u{301}")].join("\n"), &[]).unwrap_err();
    assert!(error.contains("composed and decomposed"), "{error}");
}

#[test]
fn tags_of_another_count_were_repeated_beside_what_is_predicted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new.jsonl");
    for line in [
        r#"{"tokens": ["a"], "ner_tags": ["O", "O"]}"#,
        r#"{"text": "a b c", "ner_tags": ["O", "O"]}"#,
    ] {
        std::fs::write(&path, format!("{{\"text\": \"a\"}}\n{line}\n")).unwrap();
        let error = texts(&path, &options(&[]), &mut |_| true).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("new.jsonl:2: "), "{error}");
        assert!(
            error.contains("but 2 tags: there must be one for each"),
            "{error}"
        );
    }
}

#[test]
fn words_without_tags_can_be_labelled() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new.jsonl");
    let lines = [
        r#"{"tokens": ["New", "York"]}"#,
        r#"{"text": "in  New York."}"#,
        r#"{"tokens": ["a"], "ner_tags": ["O"]}"#,
    ];
    std::fs::write(&path, lines.join("\n")).unwrap();
    let mut found: Vec<TextRecord> = Vec::new();
    texts(&path, &options(&[]), &mut |record| {
        found.push(record);
        true
    })
    .unwrap();
    assert_eq!(found[0].tokens, ["New", "York"]);
    assert_eq!(found[1].tokens, ["in", "New", "York."]);
    assert_eq!(found[0].label, None);
    assert_eq!(found[2].label, Some(serde_json::json!(["O"])));
}
