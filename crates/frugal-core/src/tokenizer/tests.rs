use std::path::PathBuf;

use serde_json::Value;

use super::*;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/tokenizers")
        .join(name)
}

fn golden(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name).join("golden.json")).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_u64().unwrap() as u32)
        .collect()
}

const NAMES: [&str; 3] = ["byte-level", "word-piece", "metaspace"];

#[test]
fn ids_and_text_equal_those_of_transformers() {
    for name in NAMES {
        let tokenizer = TextTokenizer::from_folder(&fixture(name)).unwrap();
        for case in golden(name)["texts"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            assert_eq!(
                tokenizer.encode(text, true).unwrap(),
                ids(&case["ids"]),
                "{name}: {text:?}"
            );
            assert_eq!(
                tokenizer.encode(text, false).unwrap(),
                ids(&case["plain_ids"]),
                "{name}: {text:?}"
            );
            assert_eq!(
                tokenizer.decode(&ids(&case["ids"]), true).unwrap(),
                case["decoded"].as_str().unwrap(),
                "{name}: {text:?}"
            );
        }
    }
}

#[test]
fn padding_and_truncation_of_the_file_are_off() {
    let tokenizer = TextTokenizer::from_folder(&fixture("word-piece")).unwrap();
    let long = "good ".repeat(20);
    assert_eq!(tokenizer.encode(&long, true).unwrap().len(), 22);
    assert_eq!(tokenizer.encode("good", true).unwrap().len(), 3);
    assert_eq!(tokenizer.settings().model_max_length, Some(32));
}

#[test]
fn a_stream_emits_whole_characters_and_the_whole_text() {
    for name in NAMES {
        let tokenizer = TextTokenizer::from_folder(&fixture(name)).unwrap();
        for case in golden(name)["texts"].as_array().unwrap() {
            let ids = ids(&case["ids"]);
            let mut stream = tokenizer.stream();
            let mut pieces = Vec::new();
            for id in ids {
                pieces.extend(stream.push(id).unwrap());
            }
            assert!(
                pieces
                    .iter()
                    .all(|p| !p.contains(char::REPLACEMENT_CHARACTER)),
                "{name}: {pieces:?}"
            );
            pieces.extend(stream.finish().unwrap());
            assert_eq!(pieces.concat(), case["decoded"].as_str().unwrap(), "{name}");
        }
    }
}

#[test]
fn a_stream_gives_up_on_bytes_that_are_no_utf8() {
    let tokenizer = TextTokenizer::from_folder(&fixture("byte-level")).unwrap();
    // Its second token is a continuation byte, which starts no character.
    let crab = tokenizer.encode("🦀", false).unwrap();
    let mut stream = tokenizer.stream();
    let mut text = String::new();
    for _ in 0..40 {
        text.extend(stream.push(crab[1]).unwrap());
    }
    text.extend(stream.finish().unwrap());
    assert_eq!(text.chars().count(), 40);
    assert!(
        text.chars().all(|c| c == char::REPLACEMENT_CHARACTER),
        "{text}"
    );
    // The first bytes of a character at the end of a generation.
    let mut stream = tokenizer.stream();
    assert_eq!(stream.push(crab[0]).unwrap(), None);
    assert_eq!(stream.finish().unwrap().as_deref(), Some("\u{fffd}"));
}

#[test]
fn saved_files_load_again_and_keep_what_they_held() {
    for name in NAMES {
        let first = TextTokenizer::from_folder(&fixture(name)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        first.save(dir.path()).unwrap();
        let second = TextTokenizer::from_folder(dir.path()).unwrap();
        assert_eq!(first.settings(), second.settings(), "{name}");
        assert_eq!(
            (first.bos_id(), first.eos_ids(), first.pad_id()),
            (second.bos_id(), second.eos_ids(), second.pad_id())
        );
        for case in golden(name)["texts"].as_array().unwrap() {
            assert_eq!(
                second.encode(case["text"].as_str().unwrap(), true).unwrap(),
                ids(&case["ids"]),
                "{name}"
            );
        }
        let written: Value = serde_json::from_slice(
            &std::fs::read(dir.path().join("tokenizer_config.json")).unwrap(),
        )
        .unwrap();
        let read: Value = serde_json::from_slice(
            &std::fs::read(fixture(name).join("tokenizer_config.json")).unwrap(),
        )
        .unwrap();
        assert_eq!(written, read, "{name}");
    }
}

#[test]
fn special_tokens_of_the_settings_are_added_once_and_saved() {
    let plain = || TextTokenizer::from_folder(&fixture("byte-level")).unwrap();
    let settings = TokenizerSettings {
        add_bos_token: true,
        add_eos_token: true,
        ..plain().settings().clone()
    };
    let first = TextTokenizer::new(plain().inner().clone(), settings.clone()).unwrap();
    let body = plain().encode("the film", true).unwrap();
    let (bos, eos) = (first.bos_id().unwrap(), first.eos_ids()[0]);
    let expected = [vec![bos], body.clone(), vec![eos]].concat();
    assert_eq!(first.encode("the film", true).unwrap(), expected);
    assert_eq!(first.encode("the film", false).unwrap(), body);
    assert_eq!(first.added_tokens(false), 2);
    let pair = first.encode_pair("the film", Some("the film")).unwrap();
    assert_eq!(pair.ids, [expected.clone(), expected.clone()].concat());
    let again = TextTokenizer::new(first.inner().clone(), settings).unwrap();
    assert_eq!(again.encode("the film", true).unwrap(), expected);
    let dir = tempfile::tempdir().unwrap();
    first.save(dir.path()).unwrap();
    assert_eq!(
        TextTokenizer::from_folder(dir.path())
            .unwrap()
            .encode("the film", true)
            .unwrap(),
        expected
    );
}

/// Copies the byte-level fixture and replaces one file.
fn altered(name: &str, content: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture("byte-level")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    std::fs::write(dir.path().join(name), content).unwrap();
    dir
}

#[test]
fn end_of_sequence_ids_come_from_the_generation_config() {
    let eos = |content: &str| {
        TextTokenizer::from_folder(altered("generation_config.json", content).path())
            .map(|t| t.eos_ids().to_vec())
    };
    assert_eq!(eos(r#"{"eos_token_id": [0, 2, 7]}"#).unwrap(), [2, 0, 7]);
    assert_eq!(eos(r#"{"eos_token_id": 0}"#).unwrap(), [2, 0]);
    assert_eq!(eos(r#"{"eos_token_id": null}"#).unwrap(), [2]);
    let error = eos(r#"{"eos_token_id": "x"}"#).unwrap_err().to_string();
    assert!(
        error.contains("generation_config.json") && error.contains("eos_token_id"),
        "{error}"
    );
}

#[test]
fn named_templates_and_token_objects_are_read() {
    let dir = altered(
        "tokenizer_config.json",
        r#"{"bos_token": {"content": "<|endoftext|>", "special": true}, "eos_token": "<|im_end|>",
            "chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D{{ bos_token }}"}]}"#,
    );
    std::fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    let tokenizer = TextTokenizer::from_folder(dir.path()).unwrap();
    assert_eq!(tokenizer.bos_id(), Some(0));
    assert_eq!(tokenizer.render_chat(&[], false).unwrap(), "D<|endoftext|>");
}

#[test]
fn damaged_files_are_named() {
    let error = |name, content| {
        TextTokenizer::from_folder(altered(name, content).path())
            .unwrap_err()
            .to_string()
    };
    assert!(error("tokenizer.json", "{").contains("tokenizer.json: not a tokenizer"));
    assert!(
        error("tokenizer_config.json", "[]")
            .contains("tokenizer_config.json: expected a JSON object")
    );
    assert!(
        error("tokenizer_config.json", r#"{"eos_token": "<nope>"}"#)
            .contains("eos_token is \"<nope>\"")
    );
    assert!(error("chat_template.jinja", "{% if %}").contains("does not compile"));
    let empty = tempfile::tempdir().unwrap();
    assert!(
        TextTokenizer::from_folder(empty.path())
            .unwrap_err()
            .to_string()
            .contains("no tokenizer.json")
    );
}

#[test]
fn training_is_deterministic_and_spells_any_text() {
    let texts: Vec<String> = crate::data::builtin("sms-spam")
        .unwrap()
        .train
        .examples
        .into_iter()
        .filter_map(|e| {
            if let crate::data::Example::Classification { text, .. } = e {
                Some(text)
            } else {
                None
            }
        })
        .collect();
    let train = || {
        train_bpe(
            texts.clone().into_iter(),
            700,
            &["<|endoftext|>", "<|pad|>"],
        )
        .unwrap()
    };
    let first = train();
    for _ in 0..3 {
        assert_eq!(
            first.inner().to_string(false).unwrap(),
            train().inner().to_string(false).unwrap()
        );
    }
    assert_eq!(first.vocab_size(), 700);
    assert_eq!(
        (
            first.bos_id(),
            first.eos_ids(),
            first.pad_id(),
            first.id("<|pad|>")
        ),
        (Some(0), &[0][..], 0, Some(1))
    );
    let text = "Ringtone 🦀\u{0}\r\n\tüé <|pad|>";
    let ids = first.encode(text, true).unwrap();
    assert_eq!(first.decode(&ids, false).unwrap(), text);
    assert!(ids.contains(&1));
    // Fewer tokens than bytes: something was learnt.
    assert!(first.encode(&texts[0], false).unwrap().len() * 2 < texts[0].len());
    assert!(
        train_bpe(texts.into_iter(), 257, &["<|endoftext|>", "<|pad|>"])
            .unwrap_err()
            .to_string()
            .contains("no room")
    );
}
