//! Suites end to end, with models so small that a run takes a moment.

use std::fs;
use std::path::Path;

use crate::support::{Run, folder, frugal_in};

const COLOURS: [&str; 6] = ["red", "green", "blue", "black", "white", "grey"];
const THINGS: [&str; 7] = ["house", "boat", "tree", "road", "bird", "coat", "lamp"];

fn run(folder: &Path, words: &str) -> Run {
    frugal_in(folder, &words.split_whitespace().collect::<Vec<_>>())
}

/// A folder with `text.txt`.
fn workshop() -> tempfile::TempDir {
    let folder = folder();
    let line = |i: usize| {
        format!(
            "the {} {} is near the {} {} . ",
            COLOURS[i % 6],
            THINGS[i * 5 % 7],
            COLOURS[i * i % 6],
            THINGS[i * 3 % 7]
        )
    };
    let text: String = (0..60)
        .map(|i| (20 * i..20 * i + 20).map(line).collect::<String>() + "\n")
        .collect();
    fs::write(folder.path().join("text.txt"), text).unwrap();
    folder
}

const PRETRAIN: &str = r#"
[pretrain]
data = "text.txt"
max_length = 16
validation_share = 0.1
shape = { vocab_size = 280, num_hidden_layers = 1, num_attention_heads = 2, num_key_value_heads = 2, max_position_embeddings = 128 }
"#;

#[test]
fn a_grid_is_run_fitted_and_taken_up_again() {
    let workshop = workshop();
    let at = |name: &str| workshop.path().join(name);
    let grid = r#"
        [grid]
        shapes = [{ hidden_size = 8, intermediate_size = 16 }, { hidden_size = 16, intermediate_size = 32 }]
        tokens = [512, 1024]
        lr = [0.01, 0.03]
        batch_tokens = [64, 128]
        beside = [{ name = "constant", lr = 1e-3, batch_tokens = 128 }]
    "#;
    fs::write(
        at("grid.toml"),
        format!("description = \"A tiny grid\"\n{PRETRAIN}{grid}"),
    )
    .unwrap();

    let planned = run(
        workshop.path(),
        "bench pretrain --suite grid.toml --dry-run",
    )
    .ok()
    .stdout;
    assert_eq!(planned.lines().count(), 20, "{planned}");
    assert!(
        planned.contains("h8-d512-lr0.01-b64-seed0: pretrain, lr 1e-2"),
        "{planned}"
    );
    run(
        workshop.path(),
        "bench pretrain --suite grid.toml --only h9*",
    )
    .fails(&["no run `h9*`", "h8-d512-lr0.01-b64"]);
    run(workshop.path(), "bench adapt --suite grid.toml").fails(&["frugal pretrain"]);

    // A part of the grid: no law yet, since the exponents need several sizes.
    let part = run(
        workshop.path(),
        "bench pretrain --suite grid.toml --out out --only h8-d512-* --json",
    )
    .ok()
    .json();
    let runs = |value: &serde_json::Value| value["study"]["runs"].as_array().unwrap().len();
    assert_eq!(
        (runs(&part), part["study"]["fit"].is_null()),
        (5, true),
        "{part}"
    );
    let record = fs::metadata(at("out/h8-d512-lr0.01-b64-seed0/record.json"))
        .unwrap()
        .modified()
        .unwrap();

    let all = run(
        workshop.path(),
        "bench pretrain --suite grid.toml --out out --json",
    )
    .ok();
    assert_eq!(
        all.stderr
            .lines()
            .filter(|line| line.contains("loss"))
            .count(),
        15,
        "{}",
        all.stderr
    );
    let all = all.json();
    assert_eq!(
        (runs(&all), all["study"]["cells"].as_array().unwrap().len()),
        (20, 4)
    );
    assert_eq!(
        fs::metadata(at("out/h8-d512-lr0.01-b64-seed0/record.json"))
            .unwrap()
            .modified()
            .unwrap(),
        record
    );
    // 4 · 8² + 3 · 8 · 16 parameters; the losses are those that the runs recorded.
    assert_eq!(all["study"]["cells"][0]["parameters"], 640.0);
    let of = |file: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(at(file)).unwrap()).unwrap()
    };
    let record = of("out/h16-d1024-lr0.03-b128-seed0/record.json");
    let loss = &all["study"]["runs"]
        .as_array()
        .unwrap()
        .iter()
        .find(|r| r["name"] == "h16-d1024-lr0.03-b128")
        .unwrap()["loss"];
    assert_eq!(loss, &record["evaluation"][0]["adapted"]["loss"]);
    // The schedule ends at the absolute floor, after a warm-up of a tenth of the eight steps.
    let train = &record["run_info"]["train_config"]["train"];
    assert_eq!(
        (
            &train["max_steps"],
            &train["min_lr"],
            &train["warmup_steps"]
        ),
        (&8.into(), &1e-5.into(), &0.into()),
        "{train}"
    );
    assert_eq!(record["train_info"]["status"], "success");
    assert!(
        record["train_info"]["train_tokens"].as_u64().unwrap() <= 1024
            && record["train_info"]["peak_memory"].as_u64().unwrap() > 0
    );

    let page = fs::read_to_string(at("out/report.html")).unwrap();
    assert_eq!(page.matches("<figure>").count(), 4);
    let table = fs::read_to_string(at("out/results.md")).unwrap();
    assert!(
        table.contains("published Step Law") && table.contains("| constant |"),
        "{table}"
    );
    assert_eq!(of("out/results.json")["study"], all["study"]);
    // Pre-training runs stand in other comparisons too.
    assert!(
        run(workshop.path(), "report out --metric loss")
            .ok()
            .stdout
            .contains("h16-d1024-lr0.03-b128")
    );
    // Runs of two folders that share a name are not taken for seeds of one.
    fs::create_dir(at("again")).unwrap();
    fs::create_dir(at("again/h8-d512-lr0.01-b64-seed1")).unwrap();
    for file in ["record.json", "log.jsonl"] {
        let from = at("out/h8-d512-lr0.01-b64-seed0").join(file);
        if from.is_file() {
            fs::copy(from, at("again/h8-d512-lr0.01-b64-seed1").join(file)).unwrap();
        }
    }
    let joined = run(workshop.path(), "report out again --metric loss")
        .ok()
        .stdout;
    assert!(
        joined.contains("out/h8-d512-lr0.01-b64 ") && joined.contains("again/h8-d512-lr0.01-b64 "),
        "{joined}"
    );
    assert!(!joined.contains("/h8-d512-lr0.03-b64"), "{joined}");
    // A folder without runs is left out beside others, and refused alone; so is a metric that no
    // run has.
    fs::create_dir(at("empty")).unwrap();
    let beside = run(workshop.path(), "report out empty --metric loss").ok();
    assert!(
        beside.stderr.contains("empty: neither a run") && beside.stderr.contains("left out"),
        "{}",
        beside.stderr
    );
    run(workshop.path(), "report empty").fails(&["empty: neither a run"]);
    run(workshop.path(), "report out --metric foo").fails(&["`--metric foo`", "loss"]);
    // Other settings are not mixed in.
    run(
        workshop.path(),
        "bench pretrain --suite grid.toml --out out --set train.weight_decay=0.5",
    )
    .fails(&["other settings", "--out"]);
}

#[test]
fn a_run_that_fails_is_told_and_tried_again() {
    let workshop = workshop();
    let runs = "[grid]\nshapes = [{ hidden_size = 8, intermediate_size = 16 }]\ntokens = [512]\nlr = [0.01]\nbatch_tokens = [64]\n";
    fs::write(
        workshop.path().join("grid.toml"),
        format!("description = \"One run\"\n{PRETRAIN}{runs}"),
    )
    .unwrap();
    fs::write(workshop.path().join("text.txt"), "one line\n").unwrap();
    let failed = run(
        workshop.path(),
        "bench pretrain --suite grid.toml --out out",
    );
    assert!(
        failed.code == 1 && failed.stderr.contains("failed: "),
        "{} {}",
        failed.stdout,
        failed.stderr
    );
    assert!(
        fs::read_to_string(workshop.path().join("out/report.html"))
            .unwrap()
            .contains("Failures")
    );
    let text = "the red house is near the blue boat and the white tree is near the grey road \n"
        .repeat(80);
    fs::write(workshop.path().join("text.txt"), text).unwrap();
    run(
        workshop.path(),
        "bench pretrain --suite grid.toml --out out",
    )
    .ok();
}

#[test]
fn a_run_that_cannot_start_is_found_before_the_first_one_starts() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let suite = r#"
        description = "Two ranks"
        [tune]
        data = { train = "sms-spam", max_train_rows = 50, max_eval_rows = 10 }
        train = { max_steps = 1 }
        [[runs]]
        method = { name = "lora", r = 2 }
        [[runs]]
        name = "too-high"
        method = { name = "lora", r = 3200 }
    "#;
    fs::write(at("ranks.toml"), suite).unwrap();
    run(folder.path(), "bench adapt --suite ranks.toml --out out")
        .fails(&["run `too-high`", "rank 3200"]);
    assert!(!at("out").exists());
    // What something else has written stays.
    fs::create_dir(at("run")).unwrap();
    fs::write(at("run/record.json"), "{}").unwrap();
    run(folder.path(), "bench adapt --suite ranks.toml --out run")
        .fails(&["run holds a training run", "another `--out`"]);
    assert_eq!(fs::read_dir(at("run")).unwrap().count(), 1);
}

#[test]
fn runs_of_all_kinds_are_compared_by_what_they_cost() {
    let workshop = workshop();
    let at = |name: &str| workshop.path().join(name);
    let runs = r#"
        [pretrain.train]
        max_steps = 20
        max_tokens = 256
        [tune]
        model = "builtin"
        task = "causal-lm"
        evaluate_base = false
        data = { train = "text.txt", validation = "text.txt", documents = "lines", max_length = 16, truncate = true, max_train_rows = 8, max_eval_rows = 2 }
        train = { epochs = 2, batch_size = 4, lr = 1e-3 }
        [eval]
        model = "builtin"
        data = "text.txt"
        limit = 2
        [[runs]]
        name = "mha"
        command = "pretrain"
        shape = { hidden_size = 16, intermediate_size = 32 }
        [[runs]]
        name = "mqa"
        command = "pretrain"
        shape = { hidden_size = 16, intermediate_size = 32, num_key_value_heads = 1 }
        [[runs]]
        method = { name = "lora", r = 2 }
        [[runs]]
        name = "f32"
        command = "eval"
        [[runs]]
        name = "q8_0"
        command = "eval"
        quantize = "q8_0"
        [[groups]]
        name = "Attention"
        runs = ["mha", "mqa"]
        [[groups]]
        name = "Adapters"
        runs = ["lora"]
        [[groups]]
        name = "Formats"
        runs = ["q8_0", "f32"]
        baseline = "f32"
    "#;
    fs::write(
        at("all.toml"),
        format!("description = \"All kinds\"\n{PRETRAIN}{runs}"),
    )
    .unwrap();
    let mixed = fs::read_to_string(at("all.toml"))
        .unwrap()
        .replace("runs = [\"lora\"]", "runs = [\"lora\", \"mha\"]");
    fs::write(at("mixed.toml"), mixed).unwrap();
    run(workshop.path(), "bench efficiency --suite mixed.toml")
        .fails(&["group `Adapters`", "several commands"]);

    let found = run(
        workshop.path(),
        "bench efficiency --suite all.toml --out out --json",
    )
    .ok()
    .json();
    let groups = found["groups"].as_array().unwrap();
    let system = |group: usize, i: usize| &groups[group]["systems"][i];
    let number = |value: &serde_json::Value| value.as_f64().unwrap_or_else(|| panic!("{found:#}"));
    // One layer: keys and values of 2 and of 1 head of 8 numbers in 4 bytes.
    assert_eq!(
        (
            &system(0, 0)["cache_bytes_per_token"],
            &system(0, 1)["cache_bytes_per_token"]
        ),
        (&128.0.into(), &64.0.into())
    );
    for (group, count) in [(0, 2), (1, 1), (2, 2)] {
        for i in 0..count {
            for key in [
                "perplexity",
                "average_memory",
                "peak_memory",
                "utilisation",
                "latency",
                "throughput",
                "power",
                "energy_per_token",
                "size",
            ] {
                assert!(
                    number(&system(group, i)[key]) > 0.0,
                    "{key} of {}",
                    system(group, i)
                );
            }
        }
    }
    // Eight bits with a scale for 32 of them, where f32 has 32: compression is that times what is
    // left of the quality.
    let (packed, plain) = (system(2, 0), system(2, 1));
    let expected = number(&plain["size"]) / number(&packed["size"]) * number(&plain["perplexity"])
        / number(&packed["perplexity"]);
    assert!(
        (number(&packed["compression"]) - expected).abs() < 1e-12 && plain["compression"] == 1.0,
        "{packed}"
    );
    assert!(
        (3.0..3.8).contains(&(number(&plain["size"]) / number(&packed["size"]))),
        "{packed} {plain}"
    );
    // The run itself knows its peak; so short a run may reach it between two samples, but none can
    // be above it.
    let record: serde_json::Value =
        serde_json::from_slice(&fs::read(at("out/mha-seed0/record.json")).unwrap()).unwrap();
    let (own, seen) = (
        number(&record["train_info"]["peak_memory"]),
        number(&system(0, 0)["peak_memory"]),
    );
    assert!(seen > 1e6 && seen < 1.2 * own, "{seen} of {own}");

    let page = fs::read_to_string(at("out/report.html")).unwrap();
    assert!(page.matches("<figure>").count() == 2 && page.contains("Attention"));
    assert!(
        fs::read_to_string(at("out/results.md"))
            .unwrap()
            .contains("## Formats")
    );
    // Nothing is done twice.
    let again = run(
        workshop.path(),
        "bench efficiency --suite all.toml --out out --json",
    )
    .ok();
    assert!(
        again.stderr.is_empty() && again.json() == found,
        "{}",
        again.stderr
    );
}
