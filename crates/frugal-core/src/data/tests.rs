use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

fn read(name: &str, content: &str) -> Result<Dataset, DataError> {
    parse(Path::new(name), content.as_bytes(), &LoadOptions::default())
}

fn read_with(name: &str, content: &str, options: &str) -> Result<Dataset, DataError> {
    parse(
        Path::new(name),
        content.as_bytes(),
        &toml::from_str(options).unwrap(),
    )
}

fn error(name: &str, content: &str) -> String {
    read(name, content).unwrap_err().to_string()
}

fn class(text: &str, label: &str) -> Example {
    Example::Classification {
        text: text.into(),
        text_pair: None,
        label: label.into(),
    }
}

fn completion(prompt: &str, completion: &str) -> Example {
    Example::PromptCompletion {
        prompt: prompt.into(),
        completion: completion.into(),
    }
}

fn instruction(input: Option<String>) -> Example {
    Example::Instruction {
        instruction: "i".into(),
        input,
        output: "o".into(),
    }
}

#[test]
fn instructions_in_front_are_read_under_their_other_names() {
    for key in ["system", "system_prompt", "system_message"] {
        let record = format!(r#"{{"{key}": "Be brief.", "question": "q", "response": "a"}}"#);
        let data = read("a.jsonl", &record).unwrap();
        let Example::Messages(conversation) = &data.examples[0] else {
            panic!("{key}: {:?}", data.examples[0])
        };
        assert_eq!(
            conversation.messages,
            [
                Message::new("system", "Be brief."),
                Message::new("user", "q"),
                Message::new("assistant", "a")
            ],
            "{key}"
        );
    }
    for key in ["loss_weight", "loss_mask", "mask"] {
        let turns = r#"[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]"#;
        let record = format!(r#"{{"conversations": {turns}, "{key}": "x"}}"#);
        let error = read("a.jsonl", &record);
        let error = error.unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
}

#[test]
fn keys_that_say_what_is_learned_are_not_passed_over_in_any_kind_of_record() {
    let answer =
        r#""messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]"#;
    let kinds = [
        answer,
        r#""prompt": "p", "completion": "c""#,
        r#""instruction": "i", "output": "o""#,
        r#""text": "t""#,
        r#""text": "t", "label": "x""#,
        r#""prompt": "p", "chosen": "c", "rejected": "r""#,
        r#""tokens": ["t"], "ner_tags": ["x"]"#,
    ];
    for kind in kinds {
        for key in [
            "loss_mask",
            "loss_weight",
            "trainable",
            "train_on_input",
            "image",
            "videos",
        ] {
            let told = error("a.jsonl", &format!(r#"{{{kind}, "{key}": false}}"#));
            assert!(told.contains(&format!("`{key}` is not used in")), "{told}");
        }
    }
    for kind in &kinds[..3] {
        for key in ["label", "score", "rejected_response"] {
            let told = error("a.jsonl", &format!(r#"{{{kind}, "{key}": 0}}"#));
            assert!(told.contains(&format!("`{key}` is not used in")), "{told}");
        }
    }
    let turn = r#"{"role": "assistant", "content": "a", "loss_mask": 0}"#;
    let told = error("a.jsonl", &format!(r#"{{"messages": [{turn}]}}"#));
    assert!(
        told.contains("messages[0]: `loss_mask` is not used"),
        "{told}"
    );
}

#[test]
fn every_format_is_told_from_its_keys() {
    let turns = || {
        let turns = vec![Message::new("user", "q"), Message::new("assistant", "a")];
        Example::Messages(turns.into())
    };
    let cases = [
        (
            r#"{"text": "t"}"#,
            Format::Text,
            Example::Text { text: "t".into() },
        ),
        (
            r#"{"prompt": "p", "completion": "c"}"#,
            Format::PromptCompletion,
            completion("p", "c"),
        ),
        (
            r##"{"question": "q", "answer": "a #### 1"}"##,
            Format::PromptCompletion,
            completion("q", "a #### 1"),
        ),
        (
            r#"{"instruction": "i", "input": "", "output": "o", "text": "whole"}"#,
            Format::Alpaca,
            instruction(None),
        ),
        (
            r#"{"instruction": "i", "input": "x", "output": "o"}"#,
            Format::Alpaca,
            instruction(Some("x".into())),
        ),
        (
            r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "x": null}]}"#,
            Format::Messages,
            turns(),
        ),
        (
            r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, {"role": "assistant", "content": "a"}]}"#,
            Format::Messages,
            turns(),
        ),
        (
            r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}"#,
            Format::Sharegpt,
            turns(),
        ),
        (
            r#"{"sentence": "s", "label": 1, "idx": 7}"#,
            Format::Classification,
            class("s", "1"),
        ),
        (
            r#"{"text": "s", "label": true}"#,
            Format::Classification,
            class("s", "true"),
        ),
        (
            r#"{"premise": "a", "hypothesis": "b", "label": "no"}"#,
            Format::Classification,
            Example::Classification {
                text: "a".into(),
                text_pair: Some("b".into()),
                label: "no".into(),
            },
        ),
        (
            r#"{"anchor": "a", "positive": "p"}"#,
            Format::Pair,
            Example::Pair {
                anchor: "a".into(),
                positive: "p".into(),
            },
        ),
        (
            r#"{"anchor": "a", "positive": "p", "negative": "n"}"#,
            Format::Triplet,
            Example::Triplet {
                anchor: "a".into(),
                positive: "p".into(),
                negative: "n".into(),
            },
        ),
        (
            r#"{"prompt": "p", "chosen": "c", "rejected": "r"}"#,
            Format::Preference,
            Example::Preference {
                prompt: "p".into(),
                chosen: "c".into(),
                rejected: "r".into(),
            },
        ),
    ];
    for (record, format, example) in cases {
        for (name, content) in [
            ("a.jsonl", format!("{record}\n\n{record}")),
            ("a.json", format!(" [{record},\n{record}]\n")),
        ] {
            let data = read(name, &content).unwrap();
            assert_eq!(
                (data.format, &data.examples, data.rows),
                (format, &vec![example.clone(); 2], 2),
                "{name}: {record}"
            );
        }
    }
}

#[test]
fn lines_are_those_of_the_file() {
    assert_eq!(
        read("a.jsonl", "\n{\"text\":\"a\"}\r\n\r\n{\"text\":\"b\"}")
            .unwrap()
            .lines,
        [2, 4]
    );
    assert_eq!(
        read(
            "a.json",
            "\n[\n\n{\"text\":\n\"a\"}, {\"text\":\"b\"},\n{\"text\":\"c\"}]"
        )
        .unwrap()
        .lines,
        [4, 5, 6]
    );
    assert_eq!(
        read("a.csv", "text,label\n\"a\nb\",1\n\nc,2\n")
            .unwrap()
            .lines,
        [2, 5]
    );
    assert_eq!(
        read("a.tsv", "text\tlabel\r\na\t1\r\nc\t2\r\n")
            .unwrap()
            .lines,
        [2, 3]
    );
    assert_eq!(read("a.txt", "\na\nb\n\n\nc\n").unwrap().lines, [2, 6]);
}

#[test]
fn text_files_end_documents_at_blank_lines_or_at_every_line() {
    let texts = |d: Dataset| -> Vec<String> {
        d.examples
            .into_iter()
            .map(|e| {
                if let Example::Text { text } = e {
                    text
                } else {
                    panic!("{e:?}")
                }
            })
            .collect()
    };
    assert_eq!(
        texts(read("a.txt", "a\nb\n\nc\n \nd\n\n").unwrap()),
        ["a\nb", "c", "d"]
    );
    assert_eq!(
        texts(read("a.txt", "\na\nb\nc\n\n").unwrap()),
        ["a", "b", "c"]
    );
    assert_eq!(
        texts(read_with("a.txt", "a\nb\n\nc", "documents = 'lines'").unwrap()),
        ["a", "b", "c"]
    );
    assert_eq!(
        texts(read_with("a.txt", "a\nb", "documents = 'blocks'").unwrap()),
        ["a\nb"]
    );
}

#[test]
fn tables_with_and_without_header() {
    let expected = vec![
        class("good, \"film\"", "1"),
        class("bad film", "0"),
        class("dull", "0"),
    ];
    let csv = "\"good, \"\"film\"\"\",1\nbad film,0\ndull,0\n";
    let tsv = "1\tgood, \"film\"\n0\tbad film\n0\tdull\n";
    assert_eq!(
        read("a.csv", &format!("text,label\n{csv}"))
            .unwrap()
            .examples,
        expected
    );
    assert_eq!(
        read("a.tsv", &format!("\u{feff}label\tsentence\n{tsv}"))
            .unwrap()
            .examples,
        expected
    );
    assert_eq!(
        read_with("a.csv", csv, "header = false").unwrap().examples,
        expected
    );
    // The label of the first row comes back in another, so it is data.
    assert_eq!(
        read("a.tsv", &format!("{tsv}1\tfine\n")).unwrap().examples[..3],
        expected
    );
    // A label that never comes back may be a column name.
    assert!(
        error("a.tsv", &format!("stars\treview\n{tsv}"))
            .contains("a.tsv:1: the first row (\"stars\", \"review\")")
    );
    assert_eq!(
        read_with(
            "a.tsv",
            &format!("stars\treview\n{tsv}"),
            "columns = { text = 'review', label = 'stars' }"
        )
        .unwrap()
        .examples,
        expected
    );
    assert_eq!(
        read_with("a.tsv", tsv, "columns = { text = '2', label = '1' }")
            .unwrap()
            .examples,
        expected
    );
    let three = "7\tgood\t1\n8\tbad\t0\n";
    assert!(error("a.tsv", three).contains("header = false"));
    let data = read_with(
        "a.tsv",
        three,
        "header = false\ncolumns = { text = '2', label = '3' }",
    )
    .unwrap();
    assert_eq!(data.examples, [class("good", "1"), class("bad", "0")]);
    // An unbalanced quote is text in a tab-separated file.
    assert_eq!(
        read("a.tsv", "label\ttext\n0\t\"a\n1\tb\n")
            .unwrap()
            .examples,
        [class("\"a", "0"), class("b", "1")]
    );
}

#[test]
fn columns_can_be_mapped_in_json_too() {
    let options = "columns = { prompt = 'q', completion = 'a' }";
    let data = read_with("a.jsonl", r#"{"q": "x", "a": "y", "text": "t"}"#, options).unwrap();
    assert_eq!(data.examples, [completion("x", "y")]);
    let error = |options: &str| {
        read_with("a.jsonl", r#"{"question": "x", "reply": "y"}"#, options)
            .unwrap_err()
            .to_string()
    };
    assert!(error("columns = { promt = 'question' }").contains("did you mean \"prompt\""));
    assert!(error("columns = { completion = 'repli' }").contains("did you mean \"reply\""));
}

#[test]
fn an_explicit_format_overrides_the_keys() {
    let record = r#"{"text": "t", "label": "x"}"#;
    assert_eq!(
        read_with("a.jsonl", record, "format = 'text'")
            .unwrap()
            .examples,
        [Example::Text { text: "t".into() }]
    );
    let error = read_with("a.jsonl", record, "format = 'pair'")
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "a.jsonl:1: no \"anchor\"; a pair record needs anchor, positive, this one has text, label"
    );
}

#[test]
fn errors_name_the_file_the_line_and_what_was_expected() {
    let cases = [
        (
            "a.jsonl",
            "{\"text\":\"a\"}\n{\"text\":",
            "a.jsonl:2: expected one JSON object per line",
        ),
        (
            "a.jsonl",
            "{\"text\":\"a\"}\n[1]",
            "a.jsonl:2: expected a JSON object, found a list",
        ),
        (
            "a.jsonl",
            "{\"text\":\"a\"}\n{\"txt\":\"a\"}",
            "a.jsonl:2: no \"text\"; a text record needs text, this one has txt",
        ),
        (
            "a.jsonl",
            "{\"text\":\"a\"}\n{\"text\":3}",
            "a.jsonl:2: \"text\" must be a string, not a number",
        ),
        (
            "a.jsonl",
            "{\"text\":\"a\",\"label\":null}",
            "a.jsonl:1: \"label\" must be a string, a number or a boolean, not null",
        ),
        (
            "a.jsonl",
            "{\"text\":\"a\",\"label\":\"\"}",
            "a.jsonl:1: the label is empty",
        ),
        (
            "a.jsonl",
            "{\"foo\":1}",
            "Accepted keys: messages (+ system) (+ tools) (+ documents) (+ chat_template_kwargs) for messages; conversations",
        ),
        (
            "a.jsonl",
            "{\"messages\":[{\"role\":\"user\"}]}",
            "a.jsonl:1: messages[0] needs a string \"content\"",
        ),
        (
            "a.jsonl",
            "{\"messages\":[]}",
            "a.jsonl:1: \"messages\" is an empty list",
        ),
        (
            "a.jsonl",
            "{\"conversations\":[{\"from\":\"narrator\",\"value\":\"\"}]}",
            "must be system, human, gpt, function_call or observation, not \"narrator\"",
        ),
        ("a.json", "\"text\"", "a.json:1: expected a JSON array"),
        (
            "a.json",
            "[{\"text\":\"a\"},\n{\"text\":}]",
            "a.json:2: malformed JSON",
        ),
        (
            "a.json",
            "[{\"text\":\"a\"}\n{\"text\":\"b\"}]",
            "a.json:2: malformed JSON: expected `,` or `]`",
        ),
        (
            "a.json",
            "[{\"text\":\"a\"},\n",
            "a.json:2: the JSON array does not end",
        ),
        (
            "a.json",
            "[{\"text\":\"a\"},\n]",
            "a.json:2: malformed JSON: a comma",
        ),
        (
            "a.json",
            "[{\"text\":\"a\"}]\nx",
            "a.json:2: malformed JSON: text after the end",
        ),
        (
            "a.csv",
            "text,label\na,1\nb\n",
            "a.csv:3: expected 2 columns as in the first row, found 1",
        ),
        (
            "a.csv",
            "text,label\na,1\n\"b,2\n",
            "a.csv:3: a quote is opened here and never closed",
        ),
        (
            "a.csv",
            "text,label\n\"a\"b,1\n",
            "a.csv:2: text after a closing quote",
        ),
        (
            "a.csv",
            "text,text\na,1\n",
            "a.csv:1: two columns are named \"text\"",
        ),
        ("a.jsonl", "\n \n", "a.jsonl: the data set is empty"),
        ("a.json", "[]", "a.json: the data set is empty"),
        ("a.csv", "text,label\n", "a.csv: the data set is empty"),
        ("a.txt", "", "a.txt: the data set is empty"),
        ("a.parquet", "x", "a.parquet: not a Parquet file"),
        ("a.docx", "x", "a.docx: expected a file ending in .jsonl"),
    ];
    for (name, content, expected) in cases {
        let error = error(name, content);
        assert!(
            error.contains(expected),
            "{content:?}\n got {error}\nwant {expected}"
        );
    }
    let error = parse(
        Path::new("a.txt"),
        b"one\ntwo \xff",
        &LoadOptions::default(),
    )
    .unwrap_err()
    .to_string();
    assert_eq!(
        error,
        "a.txt:2: byte 0xff is not UTF-8; convert the file to UTF-8"
    );
    let folder = tempfile::tempdir().unwrap();
    assert!(
        load(folder.path(), &LoadOptions::default())
            .unwrap_err()
            .to_string()
            .contains("is a folder; give a file")
    );
    assert!(
        load(&folder.path().join("no.csv"), &LoadOptions::default())
            .unwrap_err()
            .to_string()
            .contains("cannot read")
    );
}

fn any_file() -> impl Strategy<Value = Vec<u8>> {
    let pieces = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        "\"",
        "\"\"",
        ",",
        ":",
        "\n",
        "\r\n",
        "\t",
        "\"text\"",
        "\"label\"",
        "text,label\n",
        "label\ttext\n",
        "1",
        "null",
        "\"messages\"",
        "{\"role\":\"user\",\"content\":\"x\"}",
        "{\"text\":\"a\",\"label\":1}",
        "é",
        "\u{feff}",
        "\\",
        "\\u12",
    ]);
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        prop::collection::vec(pieces, 0..40).prop_map(|p| p.concat().into_bytes()),
    ]
}

proptest! {
    #[test]
    fn no_content_makes_the_reader_panic(bytes in any_file(), header in any::<Option<bool>>(), mapped in any::<bool>()) {
        let mut options = LoadOptions { header, ..LoadOptions::default() };
        if mapped {
            options.columns.insert("text".into(), "1".into());
        }
        for extension in ["jsonl", "json", "csv", "tsv", "txt", "xyz"] {
            if let Ok(data) = parse(Path::new(&format!("a.{extension}")), &bytes, &options) {
                prop_assert_eq!(data.examples.len(), data.lines.len());
                prop_assert!(!data.is_empty());
                let last = bytes.iter().filter(|b| **b == b'\n').count() + 1;
                prop_assert!(data.lines.iter().all(|l| (1..=last).contains(l)));
            }
        }
    }
}

mod files;
mod labels;
mod splits;
mod tags;
