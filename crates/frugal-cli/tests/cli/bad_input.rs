//! Every mistake gets one clear message and exit code 2, and leaves nothing behind.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use crate::support::{Run, command, fixture, folder, frugal, frugal_in};

#[test]
fn mistyped_names_are_answered_with_the_nearest() {
    frugal(&["methods", "show", "lroa"]).fails(&[
        "`lroa`",
        "did you mean `lora`?",
        "prompt-tuning",
    ]);
    frugal(&["models", "fetch", "smolm2-135m"]).fails(&["smolm2-135m", "smollm2-135m"]);
    frugal(&["models", "inspect", "smollm2-135n"]).fails(&["did you mean `smollm2-135m`?"]);
}

#[test]
fn a_model_that_is_not_fetched_says_how_to_get_it() {
    frugal(&["generate", "-m", "smollm2-135m", "-p", "x"])
        .fails(&["frugal models fetch smollm2-135m"]);
}

#[test]
fn an_adapter_is_not_a_model() {
    let adapter = fixture("adapters/llama-lora-qv");
    frugal(&["generate", "-m", adapter.to_str().unwrap(), "-p", "x"])
        .fails(&["this is an adapter", "--adapter"]);
}

#[test]
fn a_model_is_not_an_adapter() {
    let model = fixture("models/llama");
    let model = model.to_str().unwrap();
    frugal(&["generate", "-m", model, "--adapter", model, "-p", "x"])
        .fails(&["adapter_config.json"]);
    frugal(&["generate", "-m", model, "--adapter", "nowhere", "-p", "x"])
        .fails(&["nowhere: no such folder"]);
}

#[test]
fn a_model_without_tokenizer_cannot_read_text() {
    let model = fixture("models/llama");
    frugal(&["generate", "-m", model.to_str().unwrap(), "-p", "x"]).fails(&["tokenizer.json"]);
}

#[test]
fn sampling_out_of_range_names_the_setting() {
    frugal(&["generate", "-p", "x", "--top-p", "0"]).fails(&["`top_p`"]);
    frugal(&["generate", "-p", "x", "--temperature=-1"]).fails(&["`temperature`"]);
}

#[test]
fn a_negative_number_is_a_value_and_no_flag() {
    frugal(&["generate", "-p", "x", "--temperature", "-1"]).fails(&["`temperature`"]);
    frugal(&["generate", "-p", "x", "--top-p", "-0.5"]).fails(&["`top_p`"]);
    frugal(&["plan", "--lr", "-1"]).fails(&["`train.lr`", "-1 given"]);
    frugal(&["plan", "--r", "-3"]).fails(&["invalid value '-3'", "--r"]);
    frugal(&["plan", "pretrain", "--parameters", "-1", "--tokens", "1B"]).fails(&["at least 1"]);
    frugal(&["eval", "--tasks", "sst2", "--limit", "-1"]).fails(&["invalid value '-1'", "--limit"]);
}

#[test]
fn a_model_without_chat_template_holds_no_conversation() {
    frugal(&["generate", "--chat", "-p", "x"])
        .fails(&["`builtin` has no chat template", "Leave out `--chat`"]);
    frugal(&["generate", "--system", "y", "-p", "x"]).fails(&["`builtin` has no chat template"]);
    frugal(&["chat"]).fails(&["`builtin` has no chat template", "`frugal generate`"]);
}

#[test]
fn a_conversation_does_not_replace_a_file() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("t.jinja"), "{{ messages[0].content }}").unwrap();
    fs::write(at("c.jsonl"), "kept").unwrap();
    let pipe = Stdio::piped;
    let mut chat = command(folder.path());
    let mut chat = chat
        .args(["chat", "--chat-template", "t.jinja"])
        .stdin(pipe())
        .stdout(pipe())
        .stderr(pipe())
        .spawn()
        .unwrap();
    chat.stdin
        .take()
        .unwrap()
        .write_all(b"/save c.jsonl\n/save own.jsonl\n/save own.jsonl\n/quit\n")
        .unwrap();
    let run = Run::from(chat.wait_with_output().unwrap()).ok();
    assert!(
        run.stderr.contains("c.jsonl: exists already") && !run.stderr.contains("own.jsonl: exists"),
        "{}",
        run.stderr
    );
    assert_eq!(fs::read_to_string(at("c.jsonl")).unwrap(), "kept");
    assert!(at("own.jsonl").is_file());
}

#[test]
fn devices_that_the_build_lacks() {
    frugal(&["doctor", "--device", "tpu"]).fails(&["`tpu`", "cpu"]);
}

fn copy_of(fixture_path: &str, to: &Path) {
    for entry in fs::read_dir(fixture(fixture_path)).unwrap().flatten() {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn damaged_weights_are_refused() {
    let whole = fs::read(fixture("models/llama/model.safetensors")).unwrap();
    let cut = whole[..whole.len() - 4].to_vec();
    let mut lying = whole.clone();
    lying[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    for (name, bytes) in [
        ("cut", cut),
        ("lying", lying),
        ("empty", Vec::new()),
        ("short", whole[..5].to_vec()),
    ] {
        let folder = folder();
        copy_of("models/llama", folder.path());
        fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        let run = frugal(&["models", "inspect", folder.path().to_str().unwrap()]);
        assert!(
            run.stderr.contains("model.safetensors"),
            "{name}: {}",
            run.stderr
        );
        run.fails(&[]);
    }
}

#[test]
fn damaged_gguf_files_are_refused() {
    let whole = fs::read(fixture("gguf/blocks.gguf")).unwrap();
    let folder = folder();
    let mut lying = whole.clone();
    lying[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    for bytes in [
        whole[..whole.len() / 2].to_vec(),
        lying,
        b"GGUF".to_vec(),
        b"PK\x03\x04".to_vec(),
        Vec::new(),
    ] {
        let path = folder.path().join("model.gguf");
        fs::write(&path, bytes).unwrap();
        frugal_in(folder.path(), &["models", "inspect", "model.gguf"]).fails(&["model.gguf"]);
    }
}

#[test]
fn prompt_files_name_the_line_at_fault() {
    let folder = folder();
    fs::write(
        folder.path().join("p.jsonl"),
        "{\"prompt\": \"a\"}\n{\"text\": \"b\"}\n",
    )
    .unwrap();
    fs::write(folder.path().join("empty.txt"), "\n\n").unwrap();
    fs::write(folder.path().join("latin.txt"), b"caf\xe9\n").unwrap();
    frugal_in(folder.path(), &["generate", "--prompts", "p.jsonl"])
        .fails(&["p.jsonl:2", "`prompt`"]);
    frugal_in(folder.path(), &["generate", "--prompts", "empty.txt"]).fails(&["no prompt"]);
    frugal_in(folder.path(), &["generate", "--prompts", "latin.txt"])
        .fails(&["latin.txt", "UTF-8"]);
    frugal_in(folder.path(), &["generate", "--prompts", "missing.txt"]).fails(&["missing.txt"]);
}

#[test]
fn all_mistakes_of_a_configuration_are_reported_together() {
    let folder = folder();
    let text = "modle = \"x\"\n[data]\ntrain = \"sms-spam\"\n[method]\nname = \"lroa\"\n[train]\nepochs = \"two\"\nbatch_size = 0\n";
    fs::write(folder.path().join("run.toml"), text).unwrap();
    let found = [
        "5 mistakes",
        "run.toml:1: `modle`: unknown key; did you mean `model`?",
        "run.toml:5: `method.name`: unknown method `lroa` (did you mean `lora`?)",
        "run.toml:7: `train.epochs`: expected a number",
        "run.toml:8: `train.batch_size`: 0 given",
        "override `train.lr=fast`",
    ];
    frugal_in(
        folder.path(),
        &["tune", "--config", "run.toml", "--set", "train.lr=fast"],
    )
    .fails(&found);
    // The same as an answer instead of a failure.
    let run = frugal_in(
        folder.path(),
        &["validate", "run.toml", "--set", "train.lr=fast", "--json"],
    );
    assert_eq!(run.code, 1);
    assert_eq!(
        (
            &run.json()["valid"],
            run.json()["problems"].as_array().unwrap().len()
        ),
        (&false.into(), 5)
    );
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        1,
        "nothing is written"
    );
}

#[test]
fn a_run_to_continue_must_be_there() {
    frugal(&["tune", "--resume"]).fails(&["--resume DIR"]);
    frugal(&["tune", "--resume", "nowhere"]).fails(&["nowhere: no such folder"]);
}

#[test]
fn export_formats_and_number_types_go_together() {
    frugal(&["export", "--to", "gguf", "--type", "bf16", "--out", "x"]).fails(&["bf16", "q8_0"]);
    frugal(&["export", "--to", "gguf-lora", "--out", "x"]).fails(&["--adapter"]);
    frugal(&["export", "--to", "onnx", "--out", "x"]).fails(&["onnx", "gguf"]);
}
