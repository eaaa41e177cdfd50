//! Tokenizer files that were made to do harm, and a sweep of damaged ones: each is refused by name or
//! works, within 10 seconds and 2 GiB.

use std::time::{Duration, Instant};

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::*;
use crate::test_limits::used_time;

const LONGEST: Duration = Duration::from_secs(10);
const MEMORY: u64 = 2 << 30;

/// Loads, encodes and decodes; false if anything was refused.
fn works(tokenizer: &str) -> Result<(), String> {
    let start = Instant::now();
    let before = used_time(start);
    let config =
        std::fs::read_to_string(fixture("byte-level").join("tokenizer_config.json")).unwrap();
    let text = "the film 🦀 is <|im_end|> good\n".repeat(20);
    let run = || -> Result<(), TokenizerError> {
        let tokenizer = TextTokenizer::from_json(tokenizer, "{}")
            .or_else(|first| TextTokenizer::from_json(tokenizer, &config).map_err(|_| first))?;
        let ids = tokenizer.encode(&text, true)?;
        tokenizer.decode(&ids[..ids.len().min(1000)], false)?;
        tokenizer.encode_pair("a", Some("b"))?;
        let mut stream = tokenizer.stream();
        for id in ids.iter().take(50) {
            stream.push(*id)?;
        }
        tokenizer.encode("", true)?;
        Ok(())
    };
    let result = run().map_err(|e| e.to_string());
    let shown: String = tokenizer.chars().take(200).collect();
    let took = used_time(start).saturating_sub(before);
    assert!(took < LONGEST, "{took:?}: {shown}");
    let peak = crate::events::peak_rss_bytes().unwrap_or(0);
    assert!(peak < MEMORY, "{peak} bytes: {shown}");
    result
}

fn file(name: &str) -> Value {
    let text = std::fs::read_to_string(fixture(name).join("tokenizer.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn settings_that_panic_or_multiply_the_text_are_refused_by_file_and_part() {
    let with = |part: &str, value: Value| {
        let mut tokenizer = file("byte-level");
        tokenizer[part] = value;
        works(&tokenizer.to_string())
    };
    let replace = |content: String| json!({"type": "Replace", "pattern": {"String": "e"}, "content": content});
    let doubling = json!({"type": "Replace", "pattern": {"String": "e"}, "content": "ee"});
    let any = json!({"type": "Replace", "pattern": {"Regex": "."}, "content": "x".repeat(60_000)});
    for (part, value, said) in [
        (
            "normalizer",
            json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
            "not a tokenizer",
        ),
        (
            "normalizer",
            json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="}),
            "not a tokenizer",
        ),
        (
            "normalizer",
            replace("x".repeat(1 << 20)),
            "inserts a text of 1048576 bytes",
        ),
        (
            "normalizer",
            json!({"type": "Sequence", "normalizers": vec![doubling.clone(); 60]}),
            "more than 4096 times as long",
        ),
        ("normalizer", any, "more than 4096 times"),
        (
            "normalizer",
            json!({"type": "Prepend", "prepend": "x".repeat(50 << 20)}),
            "inserts a text",
        ),
        (
            "pre_tokenizer",
            json!({"type": "FixedLength", "length": 0}),
            "FixedLength of 0",
        ),
        (
            "decoder",
            json!({"type": "Sequence", "decoders": vec![doubling; 60]}),
            "more than 4096 times as long",
        ),
        (
            "decoder",
            json!({"type": "BPEDecoder", "suffix": "x".repeat(1 << 20)}),
            "inserts a text",
        ),
        (
            "post_processor",
            json!({"type": "TemplateProcessing", "single": vec![json!({"Sequence": {"id": "A", "type_id": 0}}); 5000], "pair": [], "special_tokens": {}}),
            "5000 pieces",
        ),
    ] {
        let error = with(part, value).unwrap_err();
        assert!(
            error.contains("tokenizer.json") && error.contains(said),
            "{part}: {error}"
        );
    }
    let mut long = file("byte-level");
    long["model"]["vocab"]["x".repeat(1 << 20)] = json!(9999);
    let error = works(&long.to_string()).unwrap_err();
    assert!(error.contains("a token of 1048576 bytes"), "{error}");
}

#[test]
fn a_thousand_damaged_tokenizers_are_refused_or_work() {
    let mut random = ChaCha8Rng::seed_from_u64(11);
    let seeds: Vec<Value> = NAMES.iter().map(|name| file(name)).collect();
    let (mut worked, mut refused) = (0, 0);
    for round in 0..1000 {
        let mut tokenizer = seeds.choose(&mut random).unwrap().clone();
        for _ in 0..random.random_range(1..4) {
            damage(&mut tokenizer, &mut random);
        }
        let mut text = tokenizer.to_string();
        if round % 10 == 0 {
            let at = random.random_range(0..text.len());
            text.truncate(
                (0..=at)
                    .rev()
                    .find(|at| text.is_char_boundary(*at))
                    .unwrap_or(0),
            );
        }
        match works(&text) {
            Ok(()) => worked += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(
        worked > 20 && refused > 200,
        "{worked} worked, {refused} were refused"
    );
}

/// Replaces, removes or doubles one value somewhere in the tree; parts are met as often as tokens.
fn damage(value: &mut Value, random: &mut ChaCha8Rng) {
    let step = random.random_range(0..4);
    match value {
        Value::Object(fields) if step > 0 && !fields.is_empty() => {
            let keys: Vec<String> = fields.keys().cloned().collect();
            let key = keys.choose(random).unwrap();
            match random.random_range(0..12) {
                0 => drop(fields.remove(key)),
                1 => drop(fields.insert("type".into(), kind(random))),
                _ => damage(fields.get_mut(key).unwrap(), random),
            }
        }
        Value::Array(items) if step > 0 && !items.is_empty() => {
            let at = random.random_range(0..items.len());
            match random.random_range(0..8) {
                0 => drop(items.remove(at)),
                1 => items.extend(vec![items[at].clone(); 100]),
                _ => damage(&mut items[at], random),
            }
        }
        value => *value = extreme(value, random),
    }
}

fn kind(random: &mut ChaCha8Rng) -> Value {
    let kinds = [
        "BPE",
        "WordPiece",
        "Unigram",
        "WordLevel",
        "Sequence",
        "Replace",
        "Prepend",
        "Precompiled",
        "Strip",
        "StripAccents",
        "NFKC",
        "ByteLevel",
        "Metaspace",
        "Split",
        "Digits",
        "Punctuation",
        "FixedLength",
        "UnicodeScripts",
        "Whitespace",
        "BertNormalizer",
        "TemplateProcessing",
        "BertProcessing",
        "RobertaProcessing",
        "Fuse",
        "ByteFallback",
        "CTC",
    ];
    json!(kinds.choose(random).unwrap())
}

fn extreme(value: &Value, random: &mut ChaCha8Rng) -> Value {
    match random.random_range(0..14) {
        0 => Value::Null,
        1 => json!(0),
        2 => json!(-1),
        3 => json!(u64::MAX),
        4 => json!(4_294_967_296_u64),
        5 => json!(1e300),
        6 => json!(""),
        7 => json!("x".repeat(70_000)),
        8 => json!("(a+)+$"),
        9 => json!([]),
        10 => json!({}),
        11 => json!(true),
        12 => kind(random),
        _ => json!([value, value]),
    }
}
