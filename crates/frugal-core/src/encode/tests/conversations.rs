//! Conversations against what transformers renders and marks.

use serde_json::{Value, json};

use super::*;

fn chat() -> Value {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/chat.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The first record encoded, or what was said against it.
fn attempt(record: Value, tokenizer: &TextTokenizer) -> Result<Tokenized, String> {
    let line = record.to_string();
    let data = parse(
        Path::new("a.jsonl"),
        line.as_bytes(),
        &LoadOptions::default(),
    );
    let data = data.map_err(|e| e.to_string())?;
    let encoded = encode_all(&data, tokenizer, Task::CausalLm, &EncodeOptions::new(WIDE));
    encoded
        .map(|mut e| e.examples.remove(0))
        .map_err(|e| e.to_string())
}

fn check_marks(section: &str, least: usize) {
    let tokenizer = tokenizer("byte-level");
    let golden = chat();
    let cases = golden[section].as_array().unwrap();
    assert!(cases.len() >= least);
    for case in cases {
        let options = EncodeOptions::new(WIDE);
        let encoded = causal(case["record"].clone(), &tokenizer, &options).unwrap();
        let ids = numbers(&case["ids"]);
        assert_eq!(encoded.input_ids, ids, "{case}");
        let trained = targets(&ids, &numbers(&case["trained"]));
        assert_eq!(encoded.labels, trained, "{case}");
    }
}

#[test]
fn an_assistant_that_speaks_first_is_marked_as_transformers_does() {
    check_marks("assistant_first", 4);
}

#[test]
fn prompts_and_instructions_are_written_by_the_chat_template() {
    check_marks("asked", 4);
}

#[test]
fn a_default_system_message_before_an_assistant_that_speaks_first_is_not_trained() {
    let mut tokenizer = tokenizer("byte-level");
    // As Qwen2.5 does: looks at the first message without asking whether there is one, and puts a
    // system message of its own in front.
    let template = "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nassistant<|im_end|>\\n' }}{% endif %}\
        {% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
    tokenizer.set_chat_template(template).unwrap();
    let record = json!({"messages": [
        {"role": "assistant", "content": "the film"}, {"role": "user", "content": "why"}, {"role": "assistant", "content": "fun"},
    ]});
    let encoded = causal(record, &tokenizer, &EncodeOptions::new(WIDE)).unwrap();
    assert_eq!(
        learned(&encoded, &tokenizer),
        "the film<|im_end|>fun<|im_end|>"
    );
}

/// The trained tokens as text.
fn learned(encoded: &Tokenized, tokenizer: &TextTokenizer) -> String {
    let Target::Tokens(targets) = &encoded.labels else {
        panic!("{encoded:?}")
    };
    let ids: Vec<u32> = targets
        .iter()
        .filter(|t| **t != IGNORE_INDEX)
        .map(|t| *t as u32)
        .collect();
    tokenizer.decode(&ids, false).unwrap()
}

#[test]
fn a_turn_with_weight_0_is_not_trained() {
    let tokenizer = tokenizer("byte-level");
    let record = |weight: Value| {
        json!({"messages": [
            {"role": "user", "content": "a"}, {"role": "assistant", "content": "bad", "weight": weight},
            {"role": "user", "content": "b"}, {"role": "assistant", "content": "good", "weight": 1},
        ]})
    };
    for (weight, expected) in [
        (json!(0), "good<|im_end|>"),
        (json!(0.0), "good<|im_end|>"),
        (json!(1), "bad<|im_end|>good<|im_end|>"),
        (json!(null), "bad<|im_end|>good<|im_end|>"),
    ] {
        let encoded = causal(
            record(weight.clone()),
            &tokenizer,
            &EncodeOptions::new(WIDE),
        )
        .unwrap();
        assert_eq!(learned(&encoded, &tokenizer), expected, "{weight}");
        // Nor is it where prompts are trained too.
        let all = EncodeOptions {
            completion_only: false,
            ..EncodeOptions::new(WIDE)
        };
        let encoded = causal(record(weight.clone()), &tokenizer, &all).unwrap();
        let whole = learned(&encoded, &tokenizer);
        assert_eq!(
            whole.contains("bad"),
            expected.contains("bad"),
            "{weight}: {whole}"
        );
        assert!(whole.contains("user"), "{whole}");
    }
    let error = attempt(record(json!(0.5)), &tokenizer).unwrap_err();
    assert!(
        error.contains("messages[1]: `weight` must be 0 or 1, not 0.5"),
        "{error}"
    );
}

#[test]
fn tools_calls_and_reasoning_reach_the_template_as_with_jinja2() {
    let mut tokenizer = tokenizer("byte-level");
    let golden = chat();
    let with_tools = &golden["with_tools"];
    tokenizer
        .set_chat_template(with_tools["template"].as_str().unwrap())
        .unwrap();
    let cases = with_tools["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 4);
    let all = EncodeOptions {
        completion_only: false,
        ..EncodeOptions::new(WIDE)
    };
    for case in cases {
        let encoded = causal(case["record"].clone(), &tokenizer, &all).unwrap();
        let text = tokenizer.decode(&encoded.input_ids, false).unwrap();
        assert_eq!(text, case["rendered"].as_str().unwrap(), "{case}");
    }
    // The call is what is learned of a turn without text.
    let encoded = causal(
        cases[0]["record"].clone(),
        &tokenizer,
        &EncodeOptions::new(WIDE),
    )
    .unwrap();
    let text = learned(&encoded, &tokenizer);
    assert!(
        text.starts_with("nothing said<call>weather {\"city\": \"Wien\""),
        "{text}"
    );
}

#[test]
fn keys_that_a_template_does_not_write_are_refused_by_name() {
    let tokenizer = tokenizer("byte-level");
    let turns = |user: Value, assistant: Value| json!({"messages": [user, assistant]});
    let user = || json!({"role": "user", "content": "q"});
    let plain = || json!({"role": "assistant", "content": "a"});
    let tool = json!([{"type": "function", "function": {"name": "f"}}]);
    for (record, key) in [
        (
            turns(
                user(),
                json!({"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}),
            ),
            "tool_calls",
        ),
        (
            turns(
                user(),
                json!({"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f"}}]}),
            ),
            "tool_calls",
        ),
        (
            turns(
                user(),
                json!({"role": "assistant", "content": "a", "reasoning_content": "r"}),
            ),
            "reasoning_content",
        ),
        (
            turns(
                user(),
                json!({"role": "assistant", "content": "a", "thinking": "r"}),
            ),
            "thinking",
        ),
        (
            turns(
                json!({"role": "user", "content": "q", "name": "Ann"}),
                plain(),
            ),
            "name",
        ),
        (
            turns(
                json!({"role": "user", "content": "q", "anything": 1}),
                plain(),
            ),
            "anything",
        ),
        (
            json!({"messages": [user(), plain()], "tools": tool}),
            "tools",
        ),
        (
            json!({"messages": [user(), plain()], "documents": [{"text": "d"}]}),
            "documents",
        ),
        (
            json!({"messages": [user(), plain()], "chat_template_kwargs": {"enable_thinking": false}}),
            "enable_thinking",
        ),
        (
            json!({"messages": [user(), plain()], "images": ["a.png"]}),
            "images",
        ),
        (
            json!({"messages": [user(), plain()], "weight": 0}),
            "weight",
        ),
        (
            json!({"messages": [user(), plain()], "functions": [{"name": "f"}]}),
            "functions",
        ),
        (
            json!({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "loss": "x"}]}),
            "loss",
        ),
        (
            json!({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "tools": tool}),
            "tools",
        ),
        (
            json!({"instruction": "i", "output": "o", "tools": tool}),
            "tools",
        ),
        (
            json!({"instruction": "i", "output": "o", "images": ["a.png"]}),
            "images",
        ),
        (
            json!({"prompt": "p", "completion": "c", "label": false}),
            "label",
        ),
        (
            json!({"question": "p", "answer": "c", "context": "where it stands"}),
            "context",
        ),
        (json!({"text": "t", "weight": 0.5}), "weight"),
    ] {
        let error = attempt(record.clone(), &tokenizer).unwrap_err();
        assert!(
            error.contains(&format!("`{key}`")) && error.starts_with("a.jsonl:1: "),
            "{record}: {error}"
        );
    }
    // What says nothing is no reason to refuse.
    let harmless = json!({
        "messages": [
            {"role": "user", "content": "q", "name": null, "tool_calls": [], "id": "7"},
            {"role": "assistant", "content": "a", "reasoning_content": "", "timestamp": 3},
        ],
        "tools": null, "weight": null, "source": "here",
    });
    let encoded = causal(harmless, &tokenizer, &EncodeOptions::new(WIDE)).unwrap();
    assert_eq!(learned(&encoded, &tokenizer), "a<|im_end|>");
}

#[test]
fn a_system_message_of_the_record_is_the_first_turn() {
    let tokenizer = tokenizer("byte-level");
    let all = EncodeOptions {
        completion_only: false,
        ..EncodeOptions::new(WIDE)
    };
    let text = |record: Value| {
        let encoded = causal(record, &tokenizer, &all).unwrap();
        tokenizer.decode(&encoded.input_ids, false).unwrap()
    };
    let expected = text(json!({"messages": [
        {"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"},
    ]}));
    for record in [
        json!({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"}),
        json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "system": "s"}),
        json!({"instruction": "q", "output": "a", "system": "s"}),
        json!({"prompt": "q", "completion": "a", "system": "s"}),
    ] {
        assert_eq!(text(record.clone()), expected, "{record}");
    }
    let twice = json!({"messages": [{"role": "system", "content": "x"}, {"role": "assistant", "content": "a"}], "system": "s"});
    let error = attempt(twice, &tokenizer).unwrap_err();
    assert!(error.contains("keep one"), "{error}");
}

#[test]
fn turns_with_role_and_content_are_read_under_conversations_too() {
    let tokenizer = tokenizer("byte-level");
    let record = json!({"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]});
    let encoded = causal(record, &tokenizer, &EncodeOptions::new(WIDE)).unwrap();
    assert_eq!(learned(&encoded, &tokenizer), "a<|im_end|>");
}

#[test]
fn only_the_completion_of_message_lists_is_trained() {
    let tokenizer = tokenizer("byte-level");
    let record = json!({
        "prompt": [
            {"role": "user", "content": "a"}, {"role": "assistant", "content": "given"}, {"role": "user", "content": "b"},
        ],
        "completion": [{"role": "assistant", "content": "learned"}],
    });
    let encoded = causal(record, &tokenizer, &EncodeOptions::new(WIDE)).unwrap();
    assert_eq!(learned(&encoded, &tokenizer), "learned<|im_end|>");
}

#[test]
fn calls_and_answers_of_tools_in_sharegpt_data_become_turns() {
    let mut tokenizer = tokenizer("byte-level");
    let golden = chat();
    tokenizer
        .set_chat_template(golden["with_tools"]["template"].as_str().unwrap())
        .unwrap();
    let record = json!({"conversations": [
        {"from": "human", "value": "w?"},
        {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"exact\": 1}}"},
        {"from": "observation", "value": "sun"},
        {"from": "gpt", "value": "fun"},
    ], "tools": "[{\"name\": \"f\"}]"});
    let encoded = causal(record, &tokenizer, &EncodeOptions::new(WIDE)).unwrap();
    let text = learned(&encoded, &tokenizer);
    assert_eq!(
        text,
        "nothing said<call>f {\"exact\": 1} 1</call><|im_end|>fun<|im_end|>"
    );
}

#[test]
fn instructions_without_a_template_are_worded_as_alpaca_does() {
    let tokenizer = tokenizer("byte-level");
    let plain = EncodeOptions {
        chat_template: false,
        ..EncodeOptions::new(WIDE)
    };
    let text = |record: Value, options: &EncodeOptions| {
        let encoded = causal(record, &tokenizer, options).unwrap();
        (
            tokenizer.decode(&encoded.input_ids, false).unwrap(),
            learned(&encoded, &tokenizer),
        )
    };
    let (whole, trained) = text(
        json!({"instruction": "Add.", "input": "1 2", "output": "3"}),
        &plain,
    );
    // The wording that the data set was published with.
    assert_eq!(
        whole,
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a response \
         that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n3<|im_end|>"
    );
    assert_eq!(trained, "3<|im_end|>");
    let own = EncodeOptions {
        prompt_template: Some("Q: {prompt}\nA: ".into()),
        ..EncodeOptions::new(WIDE)
    };
    let (whole, _) = text(
        json!({"instruction": "Add.", "input": "1 2", "output": "3"}),
        &own,
    );
    assert_eq!(whole, "Q: Add.\n\n1 2\nA: 3<|im_end|>");
}

#[test]
fn a_line_of_many_megabytes_is_cut_before_it_is_tokenized() {
    let tokenizer = tokenizer("byte-level");
    let before = crate::events::peak_rss_bytes().unwrap_or(0);
    let text = "the film is good 🦀 ".repeat(5 << 20);
    assert!(text.len() > 100 << 20);
    let short = &text[..21 * 50];
    let options = EncodeOptions {
        truncate: true,
        ..EncodeOptions::new(64)
    };
    let cut = causal(json!({"text": text}), &tokenizer, &options).unwrap();
    let expected = causal(json!({"text": short}), &tokenizer, &options).unwrap();
    assert_eq!((cut.len(), cut), (64, expected));
    // The record as JSON and as text, and no more than that a few times.
    let grown = crate::events::peak_rss_bytes().unwrap_or(0) - before;
    assert!(grown < 1 << 30, "{grown} bytes");
}

#[test]
fn a_template_that_leaves_the_answer_out_is_told_as_such() {
    let mut tokenizer = tokenizer("byte-level");
    let record = json!({"messages": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "say"}]});
    for source in [
        "hello",
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
    ] {
        tokenizer.set_chat_template(source).unwrap();
        let error = attempt(record.clone(), &tokenizer).unwrap_err();
        assert!(
            error.contains("does not write what the assistant says in turn 2"),
            "{error}"
        );
    }
}
