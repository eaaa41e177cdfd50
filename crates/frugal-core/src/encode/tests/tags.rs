//! Words with tags: tokens and targets as transformers' `run_ner.py` makes them.

use super::*;

#[derive(serde::Deserialize)]
struct Case {
    tokenizer: String,
    words: Vec<String>,
    tags: Vec<String>,
    input_ids: Vec<u32>,
    word_ids: Vec<Option<u32>>,
    cut: Vec<u32>,
    first: Vec<i32>,
    all: Vec<i32>,
}

fn cases() -> (Vec<Case>, Vec<String>) {
    let path = fixture("../token_classification/words.json");
    let file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let cases: Vec<Case> = serde_json::from_value(file["cases"].clone()).unwrap();
    assert_eq!(cases.len(), 12);
    (
        cases,
        serde_json::from_value(file["labels"].clone()).unwrap(),
    )
}

#[test]
fn words_become_the_tokens_and_targets_of_transformers() {
    let (cases, labels) = cases();
    for case in cases {
        let tokenizer = tokenizer(&case.tokenizer);
        let named = format!("{} {:?}", case.tokenizer, case.words);
        let words = tokenizer.cut_words(&case.words, 512).unwrap();
        assert_eq!(words.ids, case.input_ids, "{named}");
        assert_eq!(words.words, case.word_ids, "{named}");
        assert_eq!(words.length, case.input_ids.len(), "{named}");
        let cut = tokenizer.cut_words(&case.words, 6).unwrap();
        assert_eq!(cut.ids, case.cut, "{named}");
        let record = serde_json::json!({"tokens": case.words, "ner_tags": case.tags});
        for (label_all_tokens, expected) in [(false, &case.first), (true, &case.all)] {
            let task = Task::TokenClassification {
                labels: &labels,
                label_all_tokens,
            };
            let options = EncodeOptions::new(512);
            let encoded = encode_all(
                &data(std::slice::from_ref(&record)),
                &tokenizer,
                task,
                &options,
            )
            .unwrap();
            let Target::Tags { classes, .. } = &encoded.examples[0].labels else {
                panic!("{named}")
            };
            assert_eq!(classes, expected, "{named}, all: {label_all_tokens}");
        }
    }
}

#[test]
fn words_behind_the_cut_vanished_without_a_word() {
    let tokenizer = tokenizer("word-piece");
    let labels = ["O", "B-PER"].map(str::to_owned);
    let task = Task::TokenClassification {
        labels: &labels,
        label_all_tokens: false,
    };
    let options = EncodeOptions {
        truncate: true,
        ..EncodeOptions::new(4)
    };
    // Two special tokens leave room for two words of one token.
    let record = |tags: Value| serde_json::json!({"tokens": vec!["a"; 5], "ner_tags": tags});
    let rows = [
        record(serde_json::json!(["O", "O", "B-PER", null, "O"])),
        // Nothing of it is left.
        record(serde_json::json!([null, null, "B-PER", "O", "O"])),
        serde_json::json!({"tokens": ["a"], "ner_tags": ["O"]}),
    ];
    let found = encode_all(&data(&rows), &tokenizer, task, &options).unwrap();
    assert_eq!((found.truncated, found.dropped), (1, 1));
    assert_eq!(found.cut_words, 2 + 3);
}

#[test]
fn rows_and_files_that_do_not_fit_are_named() {
    let tokenizer = tokenizer("word-piece");
    let labels = ["O".to_owned()];
    let task = Task::TokenClassification {
        labels: &labels,
        label_all_tokens: false,
    };
    let options = EncodeOptions::new(8);
    let said = |record: Value, task| {
        encode_all(&data(&[record]), &tokenizer, task, &options)
            .unwrap_err()
            .to_string()
    };
    let tagged = |tag: &str| serde_json::json!({"tokens": ["a"], "ner_tags": [tag]});
    assert!(said(tagged("B-X"), task).contains("a.jsonl:1: label \"B-X\" is not one of O"));
    let text = serde_json::json!({"text": "a", "label": "O"});
    assert!(said(text, task).contains("which needs tokens and ner_tags"));
    let classes = Task::SequenceClassification { labels: &labels };
    assert!(said(tagged("O"), classes).contains("`--task token-classification`"));
    let long = serde_json::json!({"tokens": vec!["a"; 20], "ner_tags": vec!["O"; 20]});
    assert!(said(long, task).contains("22 tokens, but at most 8"));
}
