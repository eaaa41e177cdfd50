use std::path::{Path, PathBuf};

use serde_json::Value;

use super::*;
use crate::data::{Dataset, LoadOptions, Message, parse};

fn tokenizer(name: &str) -> TextTokenizer {
    TextTokenizer::from_folder(&fixture(name)).unwrap()
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/tokenizers")
        .join(name)
}

fn golden(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name).join("golden.json")).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_u64().unwrap() as u32)
        .collect()
}

fn data(records: &[Value]) -> Dataset {
    let lines: Vec<String> = records.iter().map(Value::to_string).collect();
    parse(
        Path::new("a.jsonl"),
        lines.join("\n").as_bytes(),
        &LoadOptions::default(),
    )
    .unwrap()
}

fn causal(
    record: Value,
    tokenizer: &TextTokenizer,
    options: &EncodeOptions,
) -> Result<Tokenized, EncodeError> {
    encode_all(&data(&[record]), tokenizer, Task::CausalLm, options)
        .map(|mut e| e.examples.remove(0))
}

/// The targets that follow from ids and which of them are trained.
fn targets(ids: &[u32], trained: &[u32]) -> Target {
    let target = |i: usize| {
        if trained.get(i + 1) == Some(&1) {
            ids[i + 1] as i32
        } else {
            -100
        }
    };
    Target::Tokens((0..ids.len()).map(target).collect())
}

const WIDE: usize = 1000;

/// Prompts and completions joined as they are.
fn plain(max_length: usize) -> EncodeOptions {
    EncodeOptions {
        chat_template: false,
        ..EncodeOptions::new(max_length)
    }
}

#[test]
fn prompts_are_masked_as_the_offsets_of_transformers_say() {
    for name in ["byte-level", "metaspace"] {
        let tokenizer = tokenizer(name);
        for case in golden(name)["prompts"].as_array().unwrap() {
            let record =
                serde_json::json!({"prompt": case["prompt"], "completion": case["completion"]});
            let encoded = causal(record, &tokenizer, &plain(WIDE)).unwrap();
            let ids = numbers(&case["ids"]);
            assert_eq!(
                encoded.labels,
                targets(&ids, &numbers(&case["trained"])),
                "{name}: {case}"
            );
            assert_eq!(encoded.input_ids, ids, "{name}: {case}");
        }
    }
}

#[test]
fn the_turns_of_the_assistant_are_those_that_transformers_marks() {
    let tokenizer = tokenizer("byte-level");
    let golden = golden("byte-level");
    let cases = golden["chats"].as_array().unwrap();
    assert!(cases.len() > 5);
    for case in cases {
        let ids = numbers(&case["ids"]);
        let encoded = causal(
            serde_json::json!({"messages": case["messages"]}),
            &tokenizer,
            &EncodeOptions::new(WIDE),
        )
        .unwrap();
        assert_eq!(encoded.input_ids, ids, "{case}");
        assert_eq!(
            encoded.labels,
            targets(&ids, &numbers(&case["trained"])),
            "{case}"
        );
    }
}

#[test]
fn trained_tokens_spell_the_answers_and_their_end() {
    let mut tokenizer = tokenizer("byte-level");
    let chat = |roles: &[(&str, &str)]| {
        let turns: Vec<Message> = roles
            .iter()
            .map(|(role, content)| Message::new(*role, *content))
            .collect();
        serde_json::json!({"messages": turns})
    };
    let conversation = [
        ("system", "s"),
        ("user", "the film"),
        ("assistant", " is good"),
        ("user", "why"),
        ("assistant", "fun\n"),
    ];
    let trained = |tokenizer: &TextTokenizer| {
        let encoded = causal(chat(&conversation), tokenizer, &EncodeOptions::new(WIDE)).unwrap();
        let Target::Tokens(targets) = encoded.labels else {
            panic!()
        };
        let ids: Vec<u32> = targets
            .into_iter()
            .filter(|t| *t != IGNORE_INDEX)
            .map(|t| t as u32)
            .collect();
        tokenizer.decode(&ids, false).unwrap()
    };
    let chatml = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{% endfor %}\
                  {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
    tokenizer.set_chat_template(chatml).unwrap();
    assert_eq!(trained(&tokenizer), " is good<|im_end|>fun\n<|im_end|>");
    // A template without a generation prompt and without special tokens: the header is learnt with
    // the turn.
    tokenizer
        .set_chat_template(
            "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}",
        )
        .unwrap();
    assert_eq!(
        trained(&tokenizer),
        "assistant:  is good\nassistant: fun\n\n"
    );
    // With everything trained only the first token has nothing before it.
    let all = EncodeOptions {
        completion_only: false,
        ..EncodeOptions::new(WIDE)
    };
    let encoded = causal(chat(&conversation), &tokenizer, &all).unwrap();
    assert_eq!(encoded.trained(), encoded.len() - 1);
}

#[test]
fn conversations_that_cannot_be_masked_are_refused() {
    let mut tokenizer = tokenizer("byte-level");
    let error = |tokenizer: &TextTokenizer, messages: Value| {
        causal(
            serde_json::json!({"messages": messages}),
            tokenizer,
            &EncodeOptions::new(WIDE),
        )
        .unwrap_err()
        .to_string()
    };
    let turn = |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
    let user_only = Value::Array(vec![turn("user", "x")]);
    assert!(
        error(&tokenizer, user_only.clone())
            .contains("a.jsonl:1: no turn has the role \"assistant\"")
    );
    tokenizer
        .set_chat_template(
            "{% for m in messages %}{{ m.content if loop.last else '-' }}{% endfor %}",
        )
        .unwrap();
    let four = Value::Array(vec![
        turn("user", "a"),
        turn("assistant", "b"),
        turn("user", "c"),
        turn("assistant", "d"),
    ]);
    assert!(error(&tokenizer, four).contains("writes turn 2 differently"));
    tokenizer
        .set_chat_template("{{ raise_exception('no') }}")
        .unwrap();
    assert!(
        error(&tokenizer, user_only.clone())
            .ends_with("a.jsonl:1: the chat template refuses the conversation: no")
    );
    assert!(error(&self::tokenizer("word-piece"), user_only).contains("no chat template"));
}

#[test]
fn the_end_of_sequence_is_learnt_although_it_is_the_padding() {
    let tokenizer = tokenizer("byte-level");
    let eos = tokenizer.eos_ids()[0];
    assert_eq!(tokenizer.pad_id(), eos);
    for record in [
        serde_json::json!({"text": "the film"}),
        serde_json::json!({"prompt": "the", "completion": " film"}),
    ] {
        let encoded = causal(record, &tokenizer, &plain(WIDE)).unwrap();
        let Target::Tokens(targets) = &encoded.labels else {
            panic!()
        };
        assert_eq!(encoded.input_ids.last(), Some(&eos));
        assert_eq!(targets[encoded.len() - 2..], [eos as i32, IGNORE_INDEX]);
    }
    // A text that ends with it gets no second one.
    let encoded = causal(
        serde_json::json!({"text": "the film<|im_end|>"}),
        &tokenizer,
        &plain(WIDE),
    )
    .unwrap();
    assert_eq!(encoded.input_ids.iter().filter(|id| **id == eos).count(), 1);
}

#[test]
fn an_end_of_sequence_added_by_the_tokenizer_is_trained_once() {
    let bare = tokenizer("byte-level");
    let settings = crate::tokenizer::TokenizerSettings {
        add_eos_token: true,
        add_bos_token: true,
        ..bare.settings().clone()
    };
    let adding = TextTokenizer::new(bare.inner().clone(), settings).unwrap();
    let record = serde_json::json!({"prompt": "the", "completion": " film"});
    let expected = causal(record.clone(), &bare, &plain(WIDE)).unwrap();
    let encoded = causal(record, &adding, &plain(WIDE)).unwrap();
    assert_eq!(encoded.input_ids[1..], expected.input_ids);
    assert_eq!(encoded.input_ids[0], adding.bos_id().unwrap());
    assert_eq!(encoded.trained(), expected.trained());
}

#[test]
fn a_prompt_template_stands_around_the_prompt_only() {
    let tokenizer = tokenizer("byte-level");
    let options = EncodeOptions {
        prompt_template: Some("review : {prompt}\nsentiment :".into()),
        ..EncodeOptions::new(WIDE)
    };
    // A prompt that itself holds the placeholder is left as it is.
    let with =
        |prompt: &str| serde_json::json!({"prompt": prompt, "completion": " positive {prompt}"});
    let encoded = causal(with("good {prompt}"), &tokenizer, &options).unwrap();
    let text = tokenizer.decode(&encoded.input_ids, false).unwrap();
    assert_eq!(
        text,
        "review : good {prompt}\nsentiment : positive {prompt}<|im_end|>"
    );
    let bad = EncodeOptions {
        prompt_template: Some("{promt}".into()),
        ..EncodeOptions::new(WIDE)
    };
    assert!(
        causal(with("x"), &tokenizer, &bad)
            .unwrap_err()
            .to_string()
            .contains("has no {prompt}")
    );
}

#[test]
fn long_rows_are_refused_or_cut_and_counted() {
    let tokenizer = tokenizer("byte-level");
    let record = |prompt: usize, completion: usize| serde_json::json!({"prompt": "!".repeat(prompt), "completion": "?".repeat(completion)});
    let data = data(&[record(2, 2), record(3, 9), record(9, 3), record(12, 2)]);
    let strict = plain(10);
    let error = encode_all(&data, &tokenizer, Task::CausalLm, &strict)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("a.jsonl:2: 13 tokens, but at most 10 are allowed (3 of 4 rows"),
        "{error}"
    );
    let cut = EncodeOptions {
        truncate: true,
        ..strict
    };
    let encoded = encode_all(&data, &tokenizer, Task::CausalLm, &cut).unwrap();
    assert_eq!(
        (encoded.truncated, encoded.dropped, encoded.longest),
        (2, 1, 10)
    );
    assert_eq!(encoded.rows, [0, 1, 2]);
    assert_eq!(
        encoded
            .examples
            .iter()
            .map(Tokenized::len)
            .collect::<Vec<_>>(),
        [5, 10, 10]
    );
    assert_eq!(
        encoded
            .examples
            .iter()
            .map(Tokenized::trained)
            .collect::<Vec<_>>(),
        [3, 7, 1]
    );
    assert_eq!((encoded.total_tokens, encoded.trained_tokens), (25, 11));
    let none = encode_all(
        &super::tests::data(&[record(12, 2)]),
        &tokenizer,
        Task::CausalLm,
        &cut,
    )
    .unwrap_err()
    .to_string();
    assert!(
        none.contains("nothing in the 1 rows would be trained"),
        "{none}"
    );
}

fn labels() -> Vec<String> {
    vec!["no".into(), "yes".into()]
}

#[test]
fn pairs_are_encoded_and_cut_as_transformers_does() {
    // The golden values were asked for by name; the class of this tokenizer gives none.
    let read = |file: &str| std::fs::read_to_string(fixture("word-piece").join(file)).unwrap();
    let config = r#"{"model_input_names": ["input_ids", "token_type_ids"]}"#;
    let tokenizer = TextTokenizer::from_json(&read("tokenizer.json"), config).unwrap();
    for case in golden("word-piece")["pairs"].as_array().unwrap() {
        let record = serde_json::json!({"text": case["text"], "text_pair": case["text_pair"], "label": "yes"});
        let max_length = case["max_length"].as_u64().map_or(WIDE, |n| n as usize);
        let options = EncodeOptions {
            truncate: true,
            ..EncodeOptions::new(max_length)
        };
        let task = labels();
        let encoded = encode_all(
            &data(&[record]),
            &tokenizer,
            Task::SequenceClassification { labels: &task },
            &options,
        )
        .unwrap();
        assert_eq!(
            encoded.examples[0].input_ids,
            numbers(&case["ids"]),
            "{case}"
        );
        assert_eq!(
            encoded.examples[0].token_type_ids,
            numbers(&case["token_type_ids"]),
            "{case}"
        );
        assert_eq!(encoded.examples[0].labels, Target::Class(1));
    }
}

#[test]
fn one_text_has_no_token_types_and_a_known_label() {
    let tokenizer = tokenizer("word-piece");
    let task = labels();
    let task = Task::SequenceClassification { labels: &task };
    let record = |text: &str, label: &str| serde_json::json!({"text": text, "label": label});
    let encoded = encode_all(
        &data(&[record("good film", "no"), record("", "yes")]),
        &tokenizer,
        task,
        &EncodeOptions::new(8),
    )
    .unwrap();
    let ids = |tokens: &[&str]| {
        tokens
            .iter()
            .map(|t| tokenizer.id(t).unwrap())
            .collect::<Vec<_>>()
    };
    let expected = [
        ids(&["[CLS]", "good", "film", "[SEP]"]),
        ids(&["[CLS]", "[SEP]"]),
    ];
    for (i, example) in encoded.examples.iter().enumerate() {
        assert_eq!(
            *example,
            Tokenized {
                input_ids: expected[i].clone(),
                token_type_ids: vec![],
                labels: Target::Class(i)
            }
        );
    }
    let error = |records: &[Value], tokenizer: &TextTokenizer, options: &EncodeOptions| {
        encode_all(&data(records), tokenizer, task, options)
            .unwrap_err()
            .to_string()
    };
    let wide = EncodeOptions::new(WIDE);
    assert_eq!(
        error(
            &[record("a", "no"), record("a", "maybe")],
            &tokenizer,
            &wide
        ),
        "a.jsonl:2: label \"maybe\" is not one of no, yes"
    );
    assert!(
        error(
            &[record("good ".repeat(9).as_str(), "no")],
            &tokenizer,
            &EncodeOptions::new(8)
        )
        .contains("11 tokens, but at most 8")
    );
    assert!(
        error(&[record("a", "no")], &tokenizer, &EncodeOptions::new(2)).contains("leaves no room")
    );
    assert!(
        error(&[record("", "no")], &self::tokenizer("byte-level"), &wide)
            .contains("a.jsonl:1: the text has no tokens")
    );
    assert!(
        error(&[serde_json::json!({"text": "a"})], &tokenizer, &wide)
            .contains("text data cannot be used for classification")
    );
    let wrong = causal(record("a", "no"), &tokenizer, &wide)
        .unwrap_err()
        .to_string();
    assert!(
        wrong.contains("classification data cannot be used for language modelling"),
        "{wrong}"
    );
}

#[test]
fn turns_that_are_left_out_and_empty_texts_are_not_told_as_a_length_that_is_too_small() {
    let tokenizer = tokenizer("byte-level");
    let turns = |key: &str, value: Value| {
        serde_json::json!({"messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a", key: value},
        ]})
    };
    for (record, cause) in [
        (turns("weight", 0.into()), "every turn of the assistant"),
        (turns("train", false.into()), "every turn of the assistant"),
        (
            turns("trainable", false.into()),
            "every turn of the assistant",
        ),
    ] {
        let told = causal(record, &tokenizer, &plain(WIDE))
            .unwrap_err()
            .to_string();
        assert!(
            told.contains(cause) && !told.contains("max_length"),
            "{told}"
        );
    }
    let cut = serde_json::json!({"prompt": "a long prompt", "completion": "b"});
    let options = EncodeOptions {
        truncate: true,
        ..plain(4)
    };
    let told = causal(cut, &tokenizer, &options).unwrap_err().to_string();
    assert!(told.contains("raise max_length"), "{told}");
}

#[test]
fn a_shown_example_tells_given_from_trained() {
    let tokenizer = tokenizer("byte-level");
    let record =
        serde_json::json!({"prompt": "the film\nis \u{1b}[0m", "completion": " naïve 🦀\n"});
    let encoded = causal(record, &tokenizer, &plain(WIDE)).unwrap();
    let plain = show(&encoded, &tokenizer, false).unwrap();
    let lines: Vec<&str> = plain.lines().collect();
    assert_eq!(
        lines[..4],
        [
            "  given | the film↵",
            "        | is \\u{1b}[0m",
            "trained |  naïve 🦀↵",
            "        | <|im_end|>"
        ]
    );
    assert!(lines[4].ends_with(&format!("{} of them trained", encoded.trained())));
    let coloured = show(&encoded, &tokenizer, true).unwrap();
    assert!(coloured.contains("\x1b[2mthe film") && coloured.contains("\x1b[32m naïve"));
    assert!(!plain.contains('\x1b'));
}

mod conversations;
mod tags;
