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
fn bytes_that_are_no_utf8_come_once_and_leave_the_next_character_whole() {
    let tokenizer = TextTokenizer::from_folder(&fixture("byte-level")).unwrap();
    let crab = tokenizer.encode("🦀", false).unwrap();
    let mut ids = vec![];
    for stray in [9, 5, 1, 70] {
        ids.extend(&crab);
        ids.extend(vec![crab[1]; stray]);
        ids.extend(&crab[..2]);
    }
    ids.extend(tokenizer.encode("good", false).unwrap());
    let mut stream = tokenizer.stream();
    let mut text = String::new();
    for &id in &ids {
        text.extend(stream.push(id).unwrap());
    }
    text.extend(stream.finish().unwrap());
    // The tokenizers library, all at once.
    assert_eq!(text, tokenizer.decode(&ids, true).unwrap());
    assert_eq!(text.matches('🦀').count(), 4);
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
fn infinities_that_python_writes_beside_the_ends_of_a_text_are_read() {
    let folder = altered(
        "config.json",
        r#"{"eos_token_id": 7, "time_step_limit": [0.0, Infinity], "a": [-Infinity, NaN]}"#,
    );
    let tokenizer = TextTokenizer::from_folder(folder.path()).unwrap();
    assert!(tokenizer.eos_ids().contains(&7));
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
fn a_special_token_that_is_no_text_is_not_left_out() {
    let folder = altered("tokenizer_config.json", r#"{"eos_token": 5}"#);
    let error = TextTokenizer::from_folder(folder.path())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("tokenizer_config.json: eos_token must be a text"),
        "{error}"
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

/// A copy of the byte-level tokenizer with other files over it.
fn folder_with(files: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ] {
        std::fs::copy(fixture("byte-level").join(file), folder.path().join(file)).unwrap();
    }
    for (file, content) in files.as_object().unwrap() {
        std::fs::write(folder.path().join(file), content.to_string()).unwrap();
    }
    folder
}

#[test]
fn settings_that_the_class_of_a_tokenizer_sets_are_not_those_of_its_file() {
    let path = fixture("../tokenizer_classes.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let folders = golden["folders"].as_array().unwrap();
    assert_eq!(folders.len(), 8);
    for case in folders {
        let source = fixture(case["folder"].as_str().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let read = |file: &str| std::fs::read(source.join(file)).unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), read("tokenizer.json")).unwrap();
        let mut config: Value = serde_json::from_slice(&read("tokenizer_config.json")).unwrap();
        for (key, value) in case["config"].as_object().unwrap() {
            config[key] = value.clone();
        }
        let path = folder.path().join("tokenizer_config.json");
        std::fs::write(path, config.to_string()).unwrap();
        let first = TextTokenizer::from_folder(folder.path()).unwrap();
        // What is saved says the same, whatever class it names.
        let saved = tempfile::tempdir().unwrap();
        first.save(saved.path()).unwrap();
        for tokenizer in [first, TextTokenizer::from_folder(saved.path()).unwrap()] {
            for text in case["cases"].as_array().unwrap() {
                let found = tokenizer.encode(text["text"].as_str().unwrap(), true);
                assert_eq!(
                    found.unwrap(),
                    ids(&text["ids"]),
                    "{}: {text}",
                    case["name"]
                );
            }
        }
    }
}

#[test]
fn a_tokenizer_that_splits_special_tokens_is_refused_by_name() {
    let files = serde_json::json!({"tokenizer_config.json": {"split_special_tokens": true}});
    let folder = folder_with(&files);
    let error = TextTokenizer::from_folder(folder.path())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("tokenizer_config.json") && error.contains("split_special_tokens"),
        "{error}"
    );
}

#[test]
fn tokens_beside_the_tokenizer_file_are_not_split_into_characters() {
    let path = fixture("../added_tokens.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let folders = golden["folders"].as_array().unwrap();
    assert_eq!(folders.len(), 13);
    for case in folders {
        let folder = folder_with(&case["files"]);
        let tokenizer = TextTokenizer::from_folder(folder.path()).unwrap();
        for text in case["cases"].as_array().unwrap() {
            let found = tokenizer
                .encode(text["text"].as_str().unwrap(), true)
                .unwrap();
            assert_eq!(found, ids(&text["ids"]), "{}: {text}", case["name"]);
            let decoded = tokenizer.decode(&found, true).unwrap();
            assert_eq!(
                decoded,
                text["decoded"].as_str().unwrap(),
                "{}",
                case["name"]
            );
        }
        assert_eq!(
            tokenizer.settings().pad_token.as_deref(),
            case["pad_token"].as_str(),
            "{}",
            case["name"]
        );
        // A saved copy knows them too.
        let copy = tempfile::tempdir().unwrap();
        tokenizer.save(copy.path()).unwrap();
        let copy = TextTokenizer::from_folder(copy.path()).unwrap();
        for text in case["cases"].as_array().unwrap() {
            let found = copy.encode(text["text"].as_str().unwrap(), true).unwrap();
            assert_eq!(found, ids(&text["ids"]), "copy of {}: {text}", case["name"]);
        }
    }
}

#[test]
fn an_added_token_with_an_id_that_does_not_follow_is_refused() {
    let folder = folder_with(&serde_json::json!({"added_tokens.json": {"<|x1|>": 345}}));
    let error = TextTokenizer::from_folder(folder.path())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("added_tokens.json")
            && error.contains("<|x1|>")
            && error.contains("345")
            && error.contains("340"),
        "{error}"
    );
}

#[test]
fn the_turn_end_of_the_template_stops_generation_whatever_the_files_list() {
    // A base model with another end of sequence that was tuned on conversations.
    let base = serde_json::json!({"eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"});
    let ids_of = |files: Value| {
        let folder = folder_with(&files);
        TextTokenizer::from_folder(folder.path())
            .unwrap()
            .eos_ids()
            .to_vec()
    };
    let config = || base.clone();
    assert_eq!(
        ids_of(serde_json::json!({"tokenizer_config.json": config()})),
        [0, 2]
    );
    let listed = serde_json::json!({"eos_token_id": [5, 0]});
    assert_eq!(
        ids_of(
            serde_json::json!({"tokenizer_config.json": config(), "generation_config.json": listed})
        ),
        [0, 5, 2]
    );
    // Another template ends its turns otherwise; without one nothing is added.
    let folder = folder_with(&serde_json::json!({"tokenizer_config.json": config()}));
    let mut tokenizer = TextTokenizer::from_folder(folder.path()).unwrap();
    tokenizer
        .set_chat_template("{% for m in messages %}{{ m.content }}<|im_start|>{% endfor %}")
        .unwrap();
    assert_eq!(
        (tokenizer.eos_ids(), tokenizer.turn_end_id()),
        ([0, 1].as_slice(), Some(1))
    );
    tokenizer
        .set_chat_template("{% for m in messages %}{{ m.content }}\n{% endfor %}")
        .unwrap();
    assert_eq!(
        (tokenizer.eos_ids(), tokenizer.turn_end_id()),
        ([0].as_slice(), None)
    );
    // A mark that the vocabulary spells in pieces is a text to stop at.
    let named = crate::template::named("phi3").unwrap();
    tokenizer.set_chat_template(named).unwrap();
    assert_eq!(
        (tokenizer.eos_ids(), tokenizer.turn_end_text()),
        ([0].as_slice(), Some("<|end|>"))
    );
}

#[test]
fn an_adapters_template_and_ends_are_taken_over() {
    let folder =
        folder_with(&serde_json::json!({"tokenizer_config.json": {"eos_token": "<|endoftext|>"}}));
    std::fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
    let mut tokenizer = TextTokenizer::from_folder(folder.path()).unwrap();
    assert_eq!(
        (tokenizer.has_chat_template(), tokenizer.eos_ids()),
        (false, [0].as_slice())
    );
    let adapter = tempfile::tempdir().unwrap();
    std::fs::write(
        adapter.path().join("chat_template.jinja"),
        crate::template::named("chatml").unwrap(),
    )
    .unwrap();
    std::fs::write(
        adapter.path().join("generation_config.json"),
        "{\"eos_token_id\": 9}",
    )
    .unwrap();
    tokenizer.use_settings_of(adapter.path()).unwrap();
    assert_eq!(
        (tokenizer.has_chat_template(), tokenizer.eos_ids()),
        (true, [0, 9, 2].as_slice())
    );
}

#[test]
fn a_stop_text_ends_the_text_before_it_even_across_tokens() {
    let tokenizer = TextTokenizer::from_folder(&fixture("byte-level")).unwrap();
    let streamed = |text: &str, stops: &[&str]| {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut stream = StopStream::new(&tokenizer, &stops);
        let (mut out, mut used) = (String::new(), 0);
        for id in tokenizer.encode(text, false).unwrap() {
            out.extend(stream.push(id).unwrap());
            assert!(
                stops
                    .iter()
                    .all(|s| s.is_empty() || !out.contains(s.as_str()))
            );
            used += 1;
            if stream.is_stopped() {
                break;
            }
        }
        out.extend(stream.finish().unwrap());
        (out, used)
    };
    let text = "the film is good\n\nUser: why";
    let tokens = tokenizer.encode(text, false).unwrap().len();
    let (out, used) = streamed(text, &["\n\nUser:"]);
    assert_eq!(out, "the film is good");
    assert!(used < tokens);
    // Of two, the one that comes first; of a beginning that goes on otherwise, all of it.
    assert_eq!(streamed(text, &["why", "good"]).0, "the film is ");
    assert_eq!(streamed(text, &["\n\nUsers"]), (text.to_owned(), tokens));
    assert_eq!(streamed(text, &[""]), (text.to_owned(), tokens));
    assert_eq!(streamed("naïve 🦀 x", &["🦀"]).0, "naïve ");
    // What is held back at the end is not lost.
    assert_eq!(streamed("the fil", &["film"]).0, "the fil");
}

mod hostile;
mod token_types;
