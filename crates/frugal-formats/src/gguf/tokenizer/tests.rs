//! Against the ids that `tokenizers` and `sentencepiece` give
//! (`scripts/golden/gguf_tokenizers.py`).

use serde_json::Value as Json;

use super::*;
use crate::gguf::write;
use frugal_core::tokenizer::TextTokenizer;

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(format!(
        "{}/../../fixtures/gguf/{name}",
        env!("CARGO_MANIFEST_DIR")
    ))
    .unwrap()
}

fn golden() -> Json {
    serde_json::from_slice(&fixture("tokenizers.json")).unwrap()
}

fn texts(golden: &Json, key: &str) -> Vec<String> {
    golden[key]
        .as_array()
        .unwrap()
        .iter()
        .map(|text| text.as_str().unwrap().to_owned())
        .collect()
}

fn ids(golden: &Json, name: &str) -> Vec<Vec<u32>> {
    serde_json::from_value(golden["ids"][name].clone()).unwrap()
}

/// The fixture with one metadata value changed, or dropped.
fn changed(name: &str, key: &str, value: Option<Value>) -> Result<GgufTokenizer, GgufError> {
    let bytes = fixture(name);
    let mut metadata = Gguf::parse(&bytes, name).unwrap().metadata().to_vec();
    metadata.retain(|(k, _)| k != key);
    metadata.extend(value.map(|value| (key.to_owned(), value)));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("changed.gguf");
    write(&path, &metadata, &[], |_| unreachable!()).unwrap();
    tokenizer(&Gguf::parse(&std::fs::read(&path).unwrap(), name).unwrap())
}

#[test]
fn byte_level_ids_equal_the_reference() {
    let golden = golden();
    let mut texts = texts(&golden, "texts");
    texts.extend(self::texts(&golden, "special"));
    for pre in ["gpt-2", "smollm", "llama-bpe", "qwen2"] {
        let found = changed("tokenizer-bpe.gguf", "tokenizer.ggml.pre", Some(pre.into())).unwrap();
        for (text, expected) in texts.iter().zip(ids(&golden, pre)) {
            let encoding = found.tokenizer.encode(text.as_str(), false).unwrap();
            assert_eq!(encoding.get_ids(), expected, "{pre}: {text:?}");
            if pre != "qwen2" {
                assert_eq!(
                    found.tokenizer.decode(encoding.get_ids(), false).unwrap(),
                    *text
                );
            }
        }
    }
}

#[test]
fn sentencepiece_ids_equal_the_reference() {
    let golden = golden();
    for (file, name) in [
        ("tokenizer-spm.gguf", "spm"),
        ("tokenizer-spm-plain.gguf", "spm-plain"),
    ] {
        let bytes = fixture(file);
        let found = tokenizer(&Gguf::parse(&bytes, file).unwrap()).unwrap();
        for (text, expected) in texts(&golden, "texts").iter().zip(ids(&golden, name)) {
            let encoding = found.tokenizer.encode(text.as_str(), false).unwrap();
            assert_eq!(encoding.get_ids(), expected, "{name}: {text:?}");
            assert_eq!(
                found.tokenizer.decode(encoding.get_ids(), false).unwrap(),
                *text,
                "{name}"
            );
        }
    }
}

#[test]
fn special_tokens_and_flags_are_read() {
    let bytes = fixture("tokenizer-bpe.gguf");
    let bpe = tokenizer(&Gguf::parse(&bytes, "bpe").unwrap()).unwrap();
    assert_eq!(
        (
            bpe.bos_token_id,
            bpe.eos_token_id,
            bpe.pad_token_id,
            bpe.unk_token_id
        ),
        (Some(0), Some(2), Some(2), None)
    );
    assert_eq!(bpe.eot_token_id, Some(2), "<|im_end|> ends a turn");
    assert!(!bpe.add_bos_token && !bpe.add_eos_token);
    assert_eq!(
        bpe.chat_template.as_deref(),
        Some("{% for m in messages %}{{ m.content }}{% endfor %}")
    );
    assert_eq!(bpe.tokenizer.encode("", true).unwrap().len(), 0);
    assert_eq!(
        bpe.tokenizer.decode(&[1, 2], true).unwrap(),
        "",
        "control tokens are skipped"
    );

    let bytes = fixture("tokenizer-spm.gguf");
    let spm = tokenizer(&Gguf::parse(&bytes, "spm").unwrap()).unwrap();
    assert_eq!(
        (spm.bos_token_id, spm.eos_token_id, spm.unk_token_id),
        (Some(1), Some(2), Some(0))
    );
    assert!(spm.add_bos_token);
    let with = spm.tokenizer.encode("Hello", true).unwrap();
    let without = spm.tokenizer.encode("Hello", false).unwrap();
    assert_eq!(with.get_ids(), [&[1], without.get_ids()].concat());
    let pair = spm.tokenizer.encode(("Hello", "Hello"), true).unwrap();
    assert_eq!(pair.get_ids(), [with.get_ids(), with.get_ids()].concat());

    let eos = changed(
        "tokenizer-spm.gguf",
        "tokenizer.ggml.add_eos_token",
        Some(true.into()),
    )
    .unwrap();
    assert_eq!(
        eos.tokenizer
            .encode("Hello", true)
            .unwrap()
            .get_ids()
            .last(),
        Some(&2)
    );
    // Llama 3 begins texts with the token unless the file says otherwise.
    assert!(
        changed(
            "tokenizer-bpe.gguf",
            "tokenizer.ggml.pre",
            Some("llama-bpe".into())
        )
        .unwrap()
        .add_bos_token
    );
}

#[test]
fn a_saved_tokenizer_gives_the_same_ids() {
    let golden = golden();
    for file in ["tokenizer-bpe.gguf", "tokenizer-spm-plain.gguf"] {
        let bytes = fixture(file);
        let found = tokenizer(&Gguf::parse(&bytes, file).unwrap())
            .unwrap()
            .tokenizer;
        let again = Tokenizer::from_bytes(found.to_string(false).unwrap()).unwrap();
        for text in texts(&golden, "texts") {
            assert_eq!(
                again.encode(text.as_str(), true).unwrap().get_ids(),
                found.encode(text.as_str(), true).unwrap().get_ids()
            );
        }
    }
}

/// Writes a tokenizer's metadata and reads it back.
fn again(parts: &GgufTokenizer, vocab_size: usize) -> GgufTokenizer {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("again.gguf");
    write(
        &path,
        &export::metadata(parts, vocab_size).unwrap(),
        &[],
        |_| unreachable!(),
    )
    .unwrap();
    tokenizer(&Gguf::parse(&std::fs::read(&path).unwrap(), "again").unwrap()).unwrap()
}

#[test]
fn written_metadata_reads_back_to_the_same_ids() {
    let golden = golden();
    let mut texts = texts(&golden, "texts");
    texts.extend(self::texts(&golden, "special"));
    let mut all: Vec<(String, GgufTokenizer)> =
        ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "default"]
            .map(|pre| {
                (
                    pre.to_owned(),
                    changed("tokenizer-bpe.gguf", "tokenizer.ggml.pre", Some(pre.into())).unwrap(),
                )
            })
            .into();
    for file in ["tokenizer-spm.gguf", "tokenizer-spm-plain.gguf"] {
        all.push((
            file.to_owned(),
            tokenizer(&Gguf::parse(&fixture(file), file).unwrap()).unwrap(),
        ));
    }
    for (name, parts) in all {
        let found = again(&parts, 710);
        for text in &texts {
            let ids = |parts: &GgufTokenizer| {
                parts
                    .tokenizer
                    .encode(text.as_str(), true)
                    .unwrap()
                    .get_ids()
                    .to_vec()
            };
            assert_eq!(ids(&found), ids(&parts), "{name}: {text:?}");
        }
        let rest = |p: &GgufTokenizer| {
            let ids = [
                p.bos_token_id,
                p.eos_token_id,
                p.eot_token_id,
                p.pad_token_id,
                p.unk_token_id,
            ];
            (
                ids,
                p.add_bos_token,
                p.add_eos_token,
                p.chat_template.clone(),
            )
        };
        assert_eq!(rest(&found), rest(&parts), "{name}");
        assert_eq!(
            found.tokenizer.get_vocab_size(true),
            710,
            "{name}: unused tokens fill the rows"
        );
        assert!(
            export::metadata(&parts, 100)
                .unwrap_err()
                .to_string()
                .contains("100 rows")
        );
    }
    let mut odd = changed("tokenizer-bpe.gguf", "tokenizer.ggml.pre", None).unwrap();
    odd.tokenizer
        .with_normalizer(Some(tokenizers::normalizers::Lowercase));
    assert!(
        export::metadata(&odd, 710)
            .unwrap_err()
            .to_string()
            .contains("no name")
    );
}

/// The tokenizers that `transformers` saved: byte-level without, and Llama's with, a token before
/// each text.
#[test]
fn a_hugging_face_tokenizer_becomes_metadata() {
    for (folder, adds_bos) in [("byte-level", false), ("metaspace", true)] {
        let path = format!(
            "{}/../../fixtures/tokenizers/{folder}",
            env!("CARGO_MANIFEST_DIR")
        );
        let text = TextTokenizer::from_folder(path.as_ref()).unwrap();
        let size = text.vocab_size();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.gguf");
        write(
            &file,
            &tokenizer_metadata(&text, size).unwrap(),
            &[],
            |_| unreachable!(),
        )
        .unwrap();
        let found =
            tokenizer(&Gguf::parse(&std::fs::read(&file).unwrap(), folder).unwrap()).unwrap();
        assert_eq!(
            (found.bos_token_id, found.eos_token_id),
            (text.bos_id(), text.eos_ids().first().copied()),
            "{folder}"
        );
        assert_eq!(found.add_bos_token, adds_bos, "{folder}");
        for sample in texts(&golden(), "texts") {
            let ids = found
                .tokenizer
                .encode(sample.as_str(), true)
                .unwrap()
                .get_ids()
                .to_vec();
            assert_eq!(
                ids,
                text.encode(&sample, true).unwrap(),
                "{folder}: {sample:?}"
            );
        }
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let long = Value::Array(Array::String(vec!["x".repeat(600); 700]));
    let cases: [(&str, &str, Option<Value>, &str); 9] = [
        (
            "tokenizer-bpe.gguf",
            "tokenizer.ggml.tokens",
            None,
            "tokens: missing",
        ),
        (
            "tokenizer-bpe.gguf",
            "tokenizer.ggml.model",
            Some("bert".into()),
            "\"bert\" is not supported",
        ),
        (
            "tokenizer-bpe.gguf",
            "tokenizer.ggml.pre",
            Some("no-such".into()),
            "\"no-such\" is not supported; these are: gpt-2",
        ),
        (
            "tokenizer-bpe.gguf",
            "tokenizer.ggml.merges",
            Some(Value::Array(Array::String(vec!["ab".into()]))),
            "line 0: \"ab\" is not a pair",
        ),
        (
            "tokenizer-bpe.gguf",
            "tokenizer.ggml.merges",
            Some(Value::Array(Array::String(vec!["a €".into()]))),
            "\"€\" is not a token",
        ),
        (
            "tokenizer-bpe.gguf",
            "tokenizer.ggml.bos_token_id",
            Some(100_000_u32.into()),
            "bos_token_id",
        ),
        (
            "tokenizer-bpe.gguf",
            "tokenizer.ggml.token_type",
            Some(Value::Array(Array::I32(vec![1]))),
            "1 codes for",
        ),
        (
            "tokenizer-spm.gguf",
            "tokenizer.ggml.scores",
            Some(Value::Array(Array::F32(vec![0.0]))),
            "1 scores for 700 tokens",
        ),
        (
            "tokenizer-spm.gguf",
            "tokenizer.ggml.tokens",
            Some(long),
            "600 bytes",
        ),
    ];
    for (file, key, value, says) in cases {
        let error = changed(file, key, value).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

/// `tokenizer.json` of the byte-level fixture with one value changed.
fn byte_level_with(path: &str, value: Json) -> TextTokenizer {
    let parts = changed(
        "tokenizer-bpe.gguf",
        "tokenizer.ggml.pre",
        Some("gpt-2".into()),
    )
    .unwrap();
    let text = parts.tokenizer.to_string(false).unwrap();
    let mut json: Json = serde_json::from_str(&text).unwrap();
    *json.pointer_mut(path).unwrap() = value;
    TextTokenizer::from_json(&json.to_string(), "{}").unwrap()
}

#[test]
fn a_space_before_each_text_is_not_dropped_without_a_word() {
    let first = "/pre_tokenizer/pretokenizers/0/add_prefix_space";
    let with = |value: bool| byte_level_with(first, value.into());
    let size = with(false).vocab_size();
    assert!(tokenizer_metadata(&with(false), size).is_ok());
    // "Hello" becomes " Hello" here, and stays "Hello" for readers of GGUF files.
    let ids = |tokenizer: &TextTokenizer, text: &str| tokenizer.encode(text, false).unwrap();
    assert_eq!(ids(&with(true), "Hello"), ids(&with(false), " Hello"));
    assert_ne!(ids(&with(true), "Hello"), ids(&with(false), "Hello"));
    let message = tokenizer_metadata(&with(true), size)
        .unwrap_err()
        .to_string();
    assert!(message.contains("`add_prefix_space`"), "{message}");
}

#[test]
fn an_ending_of_words_is_not_dropped_without_a_word() {
    let tokenizer = byte_level_with("/model/end_of_word_suffix", "</w>".into());
    let message = tokenizer_metadata(&tokenizer, tokenizer.vocab_size())
        .unwrap_err()
        .to_string();
    assert!(message.contains("`end_of_word_suffix`"), "{message}");
}

#[test]
fn an_end_beyond_the_rows_of_the_model_makes_no_file_that_cannot_be_read() {
    let from = format!(
        "{}/../../fixtures/tokenizers/byte-level",
        env!("CARGO_MANIFEST_DIR")
    );
    let written = |ends: &str| {
        let folder = tempfile::tempdir().unwrap();
        // Without the template, which ends a turn.
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(format!("{from}/{name}"), folder.path().join(name)).unwrap();
        }
        // No end of its own: that of GPT-2's configuration class beside a smaller vocabulary.
        let path = folder.path().join("tokenizer_config.json");
        let mut config: Json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config["eos_token"] = Json::Null;
        std::fs::write(&path, config.to_string()).unwrap();
        let config = format!("{{\"eos_token_id\": {ends}}}");
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        let text = TextTokenizer::from_folder(folder.path()).unwrap();
        let file = folder.path().join("x.gguf");
        let metadata = tokenizer_metadata(&text, text.vocab_size()).unwrap();
        write(&file, &metadata, &[], |_| unreachable!()).unwrap();
        let found = tokenizer(&Gguf::parse(&std::fs::read(&file).unwrap(), "x").unwrap()).unwrap();
        (found.eos_token_id, found.eot_token_id)
    };
    assert_eq!(written("50256").0, None);
    assert_eq!(written("[50256, 7]").0, Some(7));
    assert_eq!(written("[7, 50256, 8]").0, Some(7));
}
