//! What results of `eval`, `measure` and `select` carry, and how `frugal report` joins them.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::{Run, folder, frugal, frugal_in};

const TEXT: &str = "The river rose in the night, and by morning the lower fields lay under water. Nobody had seen it so high. \
                    They moved the cattle to the hill and waited for the rain to end, which it did on the third day.\n";

fn run(folder: &Path, words: &str) -> Run {
    frugal_in(folder, &words.split_whitespace().collect::<Vec<_>>())
}

fn kept(folder: &Path, out: &str) -> Vec<Value> {
    let text = fs::read_to_string(folder.join(out).join("measurements.json")).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    value["measurements"].as_array().unwrap().clone()
}

/// Model, precision, data, machine, time and energy of a record.
fn complete(record: &Value) {
    for field in [
        "/created_at",
        "/command/0",
        "/version",
        "/precision",
        "/data/0/sha256",
        "/system/machine",
        "/threads",
        "/cost/seconds",
    ] {
        assert!(
            record.pointer(field).is_some(),
            "{field} is not in {record}"
        );
    }
    if cfg!(target_os = "linux") {
        let source = record.pointer("/cost/energy/source").unwrap();
        assert!(source == "measured" || source == "modelled", "{record}");
    }
}

#[test]
fn every_result_carries_model_data_machine_and_cost() {
    let folder = folder();
    let folder = folder.path();
    fs::write(folder.join("a.txt"), TEXT.repeat(4)).unwrap();
    fs::write(folder.join("b.txt"), TEXT.repeat(5)).unwrap();
    fs::write(folder.join("x.tsv"), "text\tlabel\ngood\tyes\nbad\tno\n").unwrap();
    let quiet = "--quiet";
    for words in [
        "measure capacity --texts a.txt,b.txt --length 32 --out m/capacity",
        "measure matrix-nuclear-norm --texts a.txt --length 32 --exact --out m/spectrum",
        "measure idealized-runtime --prompts 1,4 --outputs 1,3 --held-out 2 --trials 2 --out m/runtime",
        "eval --model builtin --data a.txt --max-length 32 --truncate --out m/eval",
        "eval --tasks perplexity:a.txt --out m/tasks",
    ] {
        run(folder, &format!("{words} {quiet}")).ok();
        let out = words.rsplit(' ').next().unwrap();
        for record in kept(folder, out) {
            let named = record["model"]["name"] == "builtin" && record["precision"] != "";
            assert!(named, "{record}");
            if !out.ends_with("runtime") {
                complete(&record);
            }
        }
        if out != "m/tasks" {
            let page = fs::read_to_string(folder.join(out).join("report.html")).unwrap();
            assert!(page.contains("builtin") && page.contains("<svg"), "{out}");
        }
        // A folder of something else is left alone.
        run(folder, &words.replace(out, ".")).fails(&["other"]);
    }
    let runtime = &kept(folder, "m/runtime")[0];
    for name in ["prompts", "trials", "machine"] {
        assert!(runtime["settings"].get(name).is_some(), "{runtime}");
    }
    assert!(
        runtime["values"]["seconds_per_token_deviation"].is_number(),
        "{runtime}"
    );

    let report = run(folder, "report m --json --out page.html").ok().json();
    assert_eq!(
        report["measurements"].as_array().unwrap().len(),
        5,
        "{report}"
    );
    let page = fs::read_to_string(folder.join("page.html")).unwrap();
    for text in [
        "Information capacity",
        "Matrix nuclear-norm",
        "Idealized runtime",
        "Evaluation",
        "Tasks",
        // Two texts were measured: no ranking of one against the other.
        "not ranked together",
    ] {
        assert!(page.contains(text), "the page lacks {text}");
    }
}

#[test]
fn lines_of_jsonl_are_samples_of_their_own() {
    let folder = folder();
    let folder = folder.path();
    let line = |text: &str| serde_json::json!({ "text": text }).to_string();
    let lines = [
        line(TEXT),
        line("Nobody had seen it."),
        line(&TEXT.repeat(3)),
    ]
    .join("\n");
    fs::write(folder.join("a.jsonl"), lines).unwrap();
    let words = "measure capacity --texts a.jsonl --length 32 --samples 0 --json --quiet";
    let found = run(folder, words).ok().json();
    assert_eq!(found[0]["samples"], 3);
    // The two long ones are cut, the short one is as it is.
    let tokens = found[0]["tokens"].as_u64().unwrap();
    assert!((62..62 + 20).contains(&tokens), "{found}");
    fs::write(folder.join("b.jsonl"), "{\"body\": \"x\"}\n").unwrap();
    run(folder, "measure capacity --texts b.jsonl")
        .fails(&["b.jsonl", "record 1", "`text`", "body"]);
}

#[test]
fn samples_of_an_evaluation_can_be_selected_from() {
    let folder = folder();
    let folder = folder.path();
    let sample = |i: usize, from: usize| {
        let sure = i.is_multiple_of(2);
        let gap = if sure { 4.0 } else { 0.1 } + 0.01 * (i % 7) as f64;
        serde_json::json!({
            "doc_id": i, "doc": {}, "target": "0", "filter": "none", "filtered_resps": [],
            "resps": [[[-1.0, true]], [[-1.0 - gap, false]]],
            "acc": f64::from(u8::from(sure)), "sample_hash": format!("{}", from + i),
        })
        .to_string()
    };
    let samples =
        |n: usize, from: usize| -> String { (0..n).map(|i| sample(i, from) + "\n").collect() };
    fs::write(folder.join("known.jsonl"), samples(60, 0)).unwrap();
    fs::write(folder.join("new.jsonl"), samples(20, 1000)).unwrap();
    fs::write(folder.join("again.jsonl"), samples(20, 0)).unwrap();
    let select = |test: &str, more: &str| {
        run(
            folder,
            &format!("select --calibration known.jsonl --test {test} --label acc {more} --json"),
        )
    };
    let found = select("new.jsonl", "--scores margin --out kept")
        .ok()
        .json();
    let items: Vec<u64> = found["selected"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["row"].as_u64().unwrap())
        .collect();
    assert_eq!(items, (0..10).map(|i| 2 * i + 1).collect::<Vec<u64>>());
    complete(&kept(folder, "kept")[0]);
    let page = fs::read_to_string(folder.join("kept/report.html")).unwrap();
    assert!(page.contains("Conformal p-values"), "{page}");
    select("again.jsonl", "--scores margin").fails(&["again.jsonl", "item 1", "calibration"]);
    let kernel = "--features margin,confidence --learner kernel";
    assert_eq!(
        select("new.jsonl", kernel).ok().json()["procedure"],
        "OptCS-Full"
    );
    let item = select("new.jsonl", "--features margin --per-item")
        .ok()
        .json();
    assert!(
        item["procedure"].as_str().unwrap().contains("e-values"),
        "{item}"
    );
    select("new.jsonl", "--features margin --gamma 2").fails(&["--gamma", "--learner kernel"]);
    select("new.jsonl", "--scores margin --filter strict").fails(&["strict", "none"]);
}

#[test]
fn sparse_attention_is_refused_by_name_before_anything_is_measured() {
    let folder = folder();
    let folder = folder.path();
    fs::write(folder.join("a.txt"), TEXT).unwrap();
    fs::write(folder.join("data.txt"), TEXT.repeat(200)).unwrap();
    let shape = "--set shape.attention=sparse --set shape.hidden_size=32 --set shape.intermediate_size=64 \
                 --set shape.num_hidden_layers=1 --set shape.num_attention_heads=4 --set shape.num_key_value_heads=2";
    let words = format!(
        "pretrain --data data.txt --out nsa --vocab-size 300 --max-length 32 --max-steps 1 --batch-tokens 256 {shape} --quiet"
    );
    run(folder, &words).ok();
    run(folder, "measure capacity --models nsa --texts a.txt")
        .fails(&["native_sparse", "sparse attention"]);
}

#[test]
fn a_law_is_fitted_to_runs_of_ones_own() {
    let folder = folder();
    let folder = folder.path();
    // Losses of a known law, rate = 2 N^-0.5 D^0.2 and batch = 3 D^0.5, on a grid around it.
    let mut table = String::from("parameters,tokens,rate,batch,loss\n");
    let mut edge = table.clone();
    for n in [1e6f64, 4e6, 16e6] {
        for d in [1e7f64, 4e7, 16e7] {
            let (rate, batch) = (2.0 * n.powf(-0.5) * d.powf(0.2), 3.0 * d.sqrt());
            for x in [-2i32, -1, 0, 1, 2] {
                for y in [-2i32, -1, 0, 1, 2] {
                    let loss = 3.0 + 0.1 * f64::from(x * x + y * y);
                    let row = |x: i32| {
                        format!(
                            "{n},{d},{},{},{loss}\n",
                            rate * 2f64.powi(x),
                            batch * 2f64.powi(y)
                        )
                    };
                    table += &row(x);
                    if x >= 0 {
                        edge += &row(x);
                    }
                }
            }
        }
    }
    fs::write(folder.join("runs.csv"), table).unwrap();
    fs::write(folder.join("edge.csv"), edge).unwrap();
    let plan = |more: &str| {
        run(
            folder,
            &format!("plan pretrain --parameters 8M --tokens 80M {more}"),
        )
    };
    let found = plan("--runs runs.csv --json").ok().json();
    let law = &found["fit"]["law"];
    for (key, value) in [
        ("rate_parameters", -0.5),
        ("rate_tokens", 0.2),
        ("batch_tokens", 0.5),
        ("rate_scale", 2.0),
        ("batch_scale", 3.0),
    ] {
        assert!(
            (law[key].as_f64().unwrap() / value - 1.0).abs() < 1e-6,
            "{key} of {law}"
        );
    }
    assert_eq!(found["notes"].as_array().unwrap().len(), 0);
    let shown = plan("--runs edge.csv").ok();
    assert!(
        shown.stderr.contains("best rate of 9") && shown.stderr.contains("edge of the grid"),
        "{}",
        shown.stderr
    );
    plan("--runs nowhere.csv").fails(&["nowhere.csv"]);
    // The published law's band: ±4.5 % around its rate at one billion parameters.
    let words = [
        "plan",
        "pretrain",
        "--parameters",
        "1B",
        "--tokens",
        "100B",
        "--json",
    ];
    let band = frugal(&words).ok().json();
    let rate = |i: usize| band["band"]["rate"][i].as_f64().unwrap();
    assert!(
        ((rate(1) / rate(0)).ln() / 2.0 - 0.0440177).abs() < 1e-4,
        "{band}"
    );
    // 7 billion parameters on 1.4 trillion tokens are beyond the released runs.
    let words = [
        "plan",
        "pretrain",
        "--parameters",
        "7B",
        "--tokens",
        "1.4T",
        "--json",
    ];
    assert_eq!(frugal(&words).ok().json()["inside_fitted_range"], false);
}
