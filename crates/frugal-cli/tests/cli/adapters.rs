//! Adapters that do not go with what is asked of them, and adapters made from others.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Run, fixture, folder, frugal, frugal_in};

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A copy of an adapter of the fixtures, started as this says.
fn started_as(name: &str, init: &str, to: &Path) -> PathBuf {
    let copy = to.join(name);
    fs::create_dir(&copy).unwrap();
    for file in fs::read_dir(fixture("adapters").join(name))
        .unwrap()
        .flatten()
    {
        fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    let config = copy.join("adapter_config.json");
    let mut fields = read(&config);
    fields["init_lora_weights"] = init.into();
    fs::write(config, fields.to_string()).unwrap();
    copy
}

/// `frugal adapters` on fixtures, for one of the tiny models.
fn adapters(model: &str, words: &[&str], out: &Path) -> Run {
    let model = fixture("models").join(model);
    frugal(
        &[
            &["adapters"],
            words,
            &[
                "--model",
                model.to_str().unwrap(),
                "--out",
                out.to_str().unwrap(),
            ],
        ]
        .concat(),
    )
}

#[test]
fn targets_that_match_nothing_are_named() {
    let plan = |set: &str| {
        frugal(&[
            "tune",
            "--dry-run",
            "--max-train-rows",
            "50",
            "--max-eval-rows",
            "20",
            "--set",
            set,
        ])
    };
    plan("method.target_modules=q_proj").fails(&[
        "`target_modules`",
        "a single text is a pattern",
        "write [\"q_proj\"]",
    ]);
    plan("method.target_modules=[\"q_proj\", \"nothing_here\"]")
        .fails(&["`target_modules`: `nothing_here` matched nothing"]);
    plan("method.exclude_modules=[\"zzz\"]").fails(&["`exclude_modules`: `zzz` matched nothing"]);
    plan("method.rank_pattern={zzz=4}").fails(&["`rank_pattern`: `zzz` matched nothing"]);
    plan("method.target_modules=5")
        .fails(&["`target_modules`: must be a list of names, a pattern or \"all-linear\""]);
}

#[test]
fn an_adapter_of_another_model_says_which() {
    let (model, adapter, folder) = (
        fixture("models/bert"),
        fixture("adapters/llama-lora-qv"),
        folder(),
    );
    let (model, adapter) = (model.to_str().unwrap(), adapter.to_str().unwrap());
    let first =
        format!("error: the adapter was made for `fixtures/models/llama`, not for `{model}`");
    let merge = [
        "merge",
        "--model",
        model,
        "--adapter",
        adapter,
        "--out",
        "merged",
        "--dry-run",
    ];
    frugal_in(folder.path(), &merge).fails(&[&first, "caused by", "matched nothing"]);
    adapters("bert", &["to-lora", adapter], &folder.path().join("lora")).fails(&[&first]);
}

#[test]
fn an_adapter_that_goes_with_rounded_weights_cannot_be_converted() {
    let folder = folder();
    let adapter = started_as("llama-lora-qv", "loftq", folder.path());
    let adapter = adapter.to_str().unwrap();
    let words = ["cannot be combined or converted", "rounded in the same way"];
    adapters("llama", &["to-lora", adapter], &folder.path().join("lora")).fails(&words);
    adapters(
        "llama",
        &["combine", adapter, adapter],
        &folder.path().join("both"),
    )
    .fails(&words);
}

#[test]
fn a_lora_that_is_converted_keeps_its_rank() {
    let (adapter, folder) = (fixture("adapters/llama-lora-qv"), folder());
    let convert = |more: &[&str], out: &str| {
        let words = [&["to-lora", adapter.to_str().unwrap()], more].concat();
        adapters("llama", &words, &folder.path().join(out)).ok()
    };
    let found = convert(&["--json"], "own").json();
    assert!(
        found["ranks"]
            .as_object()
            .unwrap()
            .values()
            .all(|rank| *rank == 4),
        "{found}"
    );
    assert!(found["relative_error"].as_f64().unwrap() < 1e-3, "{found}");
    let page = convert(&["--r", "2"], "cut").stdout;
    assert!(page.contains("% of the change's squared norm"), "{page}");
}

#[test]
fn classifiers_are_combined_with_their_heads() {
    let folder = folder();
    let [one, none] = ["llama-lora-seqcls", "llama-lora-qv"]
        .map(|name| fixture("adapters").join(name).display().to_string());
    let half = format!("{one}=0.5");
    let out = folder.path().join("both");
    adapters("llama", &["combine", &half, &half], &out).ok();
    assert_eq!(
        read(&out.join("frugal.json"))["head"]["labels"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
    let refused = |words: &[&str], found: &[&str]| {
        adapters(
            "llama",
            &[&["combine"], words].concat(),
            &folder.path().join("no"),
        )
        .fails(found);
    };
    refused(
        &[&half, &half, "--type", "ties"],
        &["heads cannot be combined", "\"ties\"", "use `linear`"],
    );
    refused(
        &[&one, &none],
        &["llama-lora-qv: has no classification head"],
    );
    refused(
        &[&one, &one, "--type", "foo"],
        &["foo", "linear", "magnitude_prune_svd"],
    );
}

#[test]
fn a_method_says_whether_peft_reads_its_files() {
    for (method, reads) in [("road", "yes"), ("svfit", "no")] {
        let page = frugal(&["methods", "show", method]).ok().stdout;
        let line = page
            .lines()
            .find(|line| line.contains("peft reads it"))
            .unwrap_or_else(|| panic!("{page}"));
        assert!(line.trim_end().ends_with(reads), "{line}");
    }
}
