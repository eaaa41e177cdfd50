//! Labels as data sets have them: several for a text, numbers, columns of 0 and 1.

use std::path::Path;

use super::super::{Dataset, Example, Labels, LoadOptions, parse, texts};

fn read(
    labels: Labels,
    columns: &[(&str, &str)],
    name: &str,
    text: &str,
) -> Result<Dataset, String> {
    let columns = columns.iter().map(|(a, b)| ((*a).into(), (*b).into()));
    let options = LoadOptions {
        labels,
        columns: columns.collect(),
        ..LoadOptions::default()
    };
    parse(Path::new(name), text.as_bytes(), &options).map_err(|e| e.to_string())
}

fn several(name: &str, text: &str) -> Result<Dataset, String> {
    read(Labels::Several, &[], name, text)
}

fn labels_of(dataset: &Dataset) -> Vec<Vec<&str>> {
    dataset
        .examples
        .iter()
        .map(|example| match example {
            Example::Labeled { labels, .. } => labels.iter().map(String::as_str).collect(),
            _ => panic!("{example:?} has no list of labels"),
        })
        .collect()
}

fn values_of(dataset: &Dataset) -> Vec<&[f32]> {
    dataset
        .examples
        .iter()
        .map(|example| match example {
            Example::Valued { values, .. } => values.as_slice(),
            _ => panic!("{example:?} has no numbers"),
        })
        .collect()
}

#[test]
fn several_labels_come_as_lists_as_text_and_as_columns() {
    let expected = vec![vec!["b", "a"], vec![], vec!["c"]];
    let jsonl = r#"{"text": "x", "labels": ["b", "a"]}
{"text": "y", "labels": []}
{"text": "z", "labels": ["c"]}"#;
    assert_eq!(labels_of(&several("a.jsonl", jsonl).unwrap()), expected);
    for cells in [
        ["b|a", "", "c"],
        ["\"[\"\"b\"\", \"\"a\"\"]\"", "[]", "\"[\"\"c\"\"]\""],
        ["\"['b', 'a']\"", "[]", "['c']"],
    ] {
        let [x, y, z] = cells;
        let csv = format!("text,label\nx,{x}\ny,{y}\nz,{z}\n");
        let found = several("a.csv", &csv).unwrap();
        assert_eq!(labels_of(&found), expected, "{csv}");
        assert_eq!(found.labels(), ["a", "b", "c"]);
    }
    let csv = "text,toxic,rude\nx,1,0\ny,0,0\nz,1,1\n";
    let found = read(
        Labels::Several,
        &[("label", "toxic, rude, mild")],
        "a.csv",
        csv,
    );
    assert!(found.unwrap_err().contains("no column \"mild\""));
    let columns = [("label", "toxic,rude")];
    let found = read(Labels::Several, &columns, "a.csv", csv).unwrap();
    assert_eq!(
        labels_of(&found),
        [vec!["toxic"], vec![], vec!["toxic", "rude"]]
    );
    // A label that no text has is one of the labels all the same.
    let none = read(
        Labels::Several,
        &columns,
        "a.csv",
        "text,toxic,rude\nx,1,0\n",
    )
    .unwrap();
    assert_eq!(none.labels(), ["toxic", "rude"]);
    let error = read(
        Labels::Several,
        &columns,
        "a.csv",
        "text,toxic,rude\nx,2,0\n",
    );
    assert!(
        error
            .unwrap_err()
            .contains("a.csv:2: \"toxic\" must be 0 or 1")
    );
}

#[test]
fn a_list_of_0_and_1_says_which_labels_hold() {
    let jsonl =
        "{\"text\": \"x\", \"labels\": [0, 1, 1]}\n{\"text\": \"y\", \"labels\": [0.0, 0.0, 0.0]}";
    let found = several("a.jsonl", jsonl).unwrap();
    assert_eq!(labels_of(&found), [vec!["1", "2"], vec![]]);
    assert_eq!(found.labels(), ["0", "1", "2"]);
    // Numbers of labels are names.
    let found = several(
        "a.jsonl",
        "{\"text\": \"x\", \"labels\": [0, 4]}\n{\"text\": \"y\", \"labels\": [1]}",
    );
    assert_eq!(found.unwrap().labels(), ["0", "1", "4"]);
}

#[test]
fn labels_that_cannot_be_told_apart_are_refused() {
    for (name, text, reason) in [
        (
            "a.csv",
            "text,label\nx,a;b\ny,a;c\n",
            "`--set data.label_separator=;`",
        ),
        (
            "a.csv",
            "text,label\nx,\"[a b\"\ny,[c]\n",
            "write it as JSON",
        ),
        (
            "a.csv",
            "text,label\nx,a|b|a\ny,c\n",
            "a.csv:2: the label \"a\" comes twice",
        ),
        (
            "a.jsonl",
            "{\"text\": \"x\", \"label\": {\"a\": 1}}",
            "must be a list of labels",
        ),
        (
            "a.jsonl",
            "{\"text\": \"x\", \"label\": [[\"a\"]]}",
            "is no label",
        ),
    ] {
        let error = several(name, text).unwrap_err();
        assert!(error.contains(reason), "{text}: {error}");
    }
    let options = LoadOptions {
        labels: Labels::Several,
        label_separator: Some(";".into()),
        ..LoadOptions::default()
    };
    let found = parse(Path::new("a.csv"), b"text,label\nx,a;b\ny,a;c\n", &options).unwrap();
    assert_eq!(labels_of(&found), [["a", "b"], ["a", "c"]]);
}

#[test]
fn numbers_are_read_and_nothing_else_is_taken_for_one() {
    let numbers = |name: &str, text: &str| read(Labels::Numbers, &[], name, text);
    let found = numbers("a.csv", "text,label\nx,0.5\ny,-2\n").unwrap();
    assert_eq!(values_of(&found), [[0.5], [-2.0]]);
    assert_eq!(found.labels(), ["score"]);
    let found = numbers("a.jsonl", "{\"text\": \"x\", \"label\": [1, 2.5]}").unwrap();
    assert_eq!(values_of(&found), [[1.0, 2.5]]);
    assert_eq!(found.labels(), ["score_0", "score_1"]);
    let csv = "text,valence,arousal\nx,1,3\n";
    let found = read(
        Labels::Numbers,
        &[("label", "valence,arousal")],
        "a.csv",
        csv,
    )
    .unwrap();
    assert_eq!(values_of(&found), [[1.0, 3.0]]);
    assert_eq!(found.labels(), ["valence", "arousal"]);
    for (text, reason) in [
        (
            "text,label\nx,good\ny,1\n",
            "a.csv:2: \"label\" must be a number for regression, not \"good\"",
        ),
        (
            "text,label\nx,1\ny,nan\n",
            "a.csv:3: \"label\" must be a number",
        ),
        (
            "text,label\nx,1\ny,1e300\n",
            "a.csv:3: \"label\" must be a number",
        ),
        (
            "text,label\nx,1\ny,\"[1, 2]\"\n",
            "a.csv:3: 2 numbers, where the records before have 1",
        ),
    ] {
        let error = numbers("a.csv", text).unwrap_err();
        assert!(error.contains(reason), "{text}: {error}");
    }
}

#[test]
fn a_file_of_texts_to_label_shows_what_it_says_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.csv");
    std::fs::write(&file, "text,label\nx,a|b\ny,\n").unwrap();
    let options = LoadOptions {
        labels: Labels::Several,
        ..LoadOptions::default()
    };
    let mut found = Vec::new();
    let mut take = |record: super::super::TextRecord| {
        found.push(record.label);
        true
    };
    texts(&file, &options, &mut take).unwrap();
    assert_eq!(found, [Some(serde_json::json!(["a", "b"])), None]);
}

#[test]
fn labels_of_two_types_are_not_one_class() {
    for (first, second, said) in [
        (
            "true",
            "\"true\"",
            "the label is a string, that of line 1 a boolean",
        ),
        (
            "1",
            "\"1\"",
            "the label is a string, that of line 1 a number",
        ),
        (
            "\"x\"",
            "false",
            "the label is a boolean, that of line 1 a string",
        ),
    ] {
        let text = format!(
            "{{\"text\": \"a\", \"label\": {first}}}\n{{\"text\": \"b\", \"label\": {second}}}\n"
        );
        let error = read(Labels::One, &[], "a.jsonl", &text).unwrap_err();
        assert!(
            error.contains("a.jsonl:2") && error.contains(said),
            "{error}"
        );
    }
}

#[test]
fn one_name_in_two_spellings_of_unicode_is_not_two_classes() {
    let rows = "{\"text\": \"a\", \"label\": \"caf\u{e9}\"}\n{\"text\": \"b\", \"label\": \"cafe\u{301}\"}\n";
    let error = read(Labels::One, &[], "a.jsonl", rows).unwrap_err();
    assert!(
        error.contains("composed and decomposed") && error.contains("u{301}"),
        "{error}"
    );
    let other = rows.replace("cafe\u{301}", "th\u{e9}");
    assert!(read(Labels::One, &[], "a.jsonl", &other).is_ok());
}
