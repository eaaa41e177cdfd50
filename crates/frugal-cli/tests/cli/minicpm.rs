//! What is trained as MiniCPM is: a stable run, its forks, a mixture of it, preferences, a scaling law.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::{Run, folder, frugal_in};

const TEXT: &str = "The river rose in the night, and by morning the lower fields lay under water. Nobody had seen it so high.\n";
const SHAPE: &str = "--arch minicpm --set shape.hidden_size=32 --set shape.intermediate_size=48 --set shape.num_hidden_layers=2 \
                     --set shape.num_attention_heads=4 --set shape.dim_model_base=16 --vocab-size 300";
const TRAIN: &str = "--data text.txt --max-length 32 --max-steps 6 --batch-tokens 256 --set dtype=\"f32\" --quiet \
                     --set train.lr_scheduler_type=warmup_stable_decay --set train.decay_ratio=0 \
                     --set train.save_steps=2 --set train.save_total_limit=0 --set train.load_best_model_at_end=false";

fn run(folder: &Path, words: &str) -> Run {
    frugal_in(folder, &words.split_whitespace().collect::<Vec<_>>())
}

#[test]
fn a_stable_run_is_forked_becomes_a_mixture_and_learns_preferences() {
    let workshop = folder();
    let folder = workshop.path();
    fs::write(folder.join("text.txt"), TEXT.repeat(60)).unwrap();
    let answers: String = (0..40)
        .map(|i| {
            format!("{{\"question\": \"how high is {i}?\", \"answer\": \"it is {i} feet\"}}\n")
        })
        .collect();
    fs::write(folder.join("answers.jsonl"), answers).unwrap();
    run(folder, &format!("pretrain --out stable {SHAPE} {TRAIN}")).ok();
    let fork = "pretrain --fork stable --fork-step 4 --decay-steps 2 --decay-data answers.jsonl=0.5 --out fork --quiet \
                --set train.decay_type=exp";
    run(folder, &format!("{fork} --dry-run")).ok();
    assert!(!folder.join("fork").exists());
    run(folder, fork).ok();
    let told = fs::read_to_string(folder.join("fork/pretrain.toml")).unwrap();
    assert!(
        told.contains("arch = \"minicpm\"") && told.contains("max_steps = 6"),
        "{told}"
    );
    // What does not belong to the schedule stays as it was.
    let other = "pretrain --fork stable --fork-step 4 --decay-steps 2 --out other --quiet";
    run(folder, &format!("{other} --set train.weight_decay=0.5")).fails(&["weight_decay", "0.5"]);
    run(folder, &format!("{other} --set shape.scale_emb=1.5")).fails(&["shape.scale_emb"]);
    run(folder, &format!("{other} --arch llama")).fails(&["--fork", "--arch"]);
    run(
        folder,
        &format!("{other} --set train.lr_scheduler_type=cosine"),
    )
    .fails(&["cosine", "decay_steps"]);
    run(folder, "pretrain --fork-step 4 --data text.txt --out other").fails(&["--fork"]);
    // A length beside the decay was put aside, that of a resumed fork too.
    for more in [
        "--max-steps 9",
        "--set train.max_steps=9",
        "--epochs 2",
        "--max-steps 6 --dry-run",
    ] {
        let name = more
            .split([' ', '='])
            .find(|w| w.contains("steps") || w.contains("epochs"));
        run(folder, &format!("{other} {more}")).fails(&[name.unwrap(), "--decay-steps", "2 steps"]);
    }
    run(folder, &format!("{other} --set train.warmup_steps=3"))
        .fails(&["train.warmup_steps", "stable"]);
    assert!(!folder.join("other").exists());
    run(
        folder,
        "pretrain --config fork/pretrain.toml --out fork --resume --max-steps 12 --quiet",
    )
    .fails(&["--max-steps", "--decay-steps", "stable anew"]);
    let longer = "pretrain --fork stable --fork-step 4 --out longer --max-steps 8 --quiet";
    run(folder, longer).ok();
    let told = fs::read_to_string(folder.join("longer/pretrain.toml")).unwrap();
    assert!(told.contains("max_steps = 8"), "{told}");
    run(
        folder,
        "pretrain --data text.txt --out other --decay-data answers.jsonl",
    )
    .fails(&["FILE=SHARE"]);

    let grown = run(folder, "grow --model fork --experts 4 --out mixture --json").ok();
    let grown: Value = serde_json::from_str(&grown.stdout).unwrap();
    // Three more copies of three matrices of 32 times 48 in two blocks, and routers.
    let number = |key: &str| grown[key].as_u64().unwrap();
    assert_eq!(
        number("parameters") - number("parameters_before"),
        2 * (3 * 3 * 32 * 48 + 4 * 32)
    );
    let text = |model: &str| {
        let words = format!(
            "generate --model {model} --prompt river --max-tokens 12 --temperature 0 --quiet"
        );
        run(folder, &words).ok().stdout
    };
    assert_eq!(text("fork"), text("mixture"));
    run(folder, "grow --model fork --experts 1 --out none").fails(&["num_experts", "1 experts"]);
    run(
        folder,
        "grow --model fork --experts 4 --tokens 2x --out none",
    )
    .fails(&["--tokens", "--experts"]);
    run(folder, "export --model fork --to gguf --out fork.gguf").fails(&["minicpm", "GGUF"]);

    let pairs: String = (0..24)
        .map(|i| format!("{{\"prompt\": \"the river {i}\", \"chosen\": \" rose in the night\", \"rejected\": \" {i} {i}\"}}\n"))
        .collect();
    fs::write(
        folder.join("held.jsonl"),
        pairs
            .lines()
            .take(5)
            .map(|l| l.replace("river", "flood") + "\n")
            .collect::<String>(),
    )
    .unwrap();
    fs::write(folder.join("pairs.jsonl"), pairs).unwrap();
    let tune = "tune --model fork --method lora --task causal-lm --data pairs.jsonl --eval-data held.jsonl --epochs 3 --lr 0.01 --out tuned --quiet \
                --max-length 32 --set train.objective.name=dpo --set train.objective.beta=0.5";
    run(folder, tune).ok();
    let record = fs::read_to_string(folder.join("tuned/record.json")).unwrap();
    assert!(record.contains("reward_margin"), "{record}");

    // There was no way to measure it but in its training, which gives the same values.
    let eval = |words: &str| {
        run(
            folder,
            &format!("eval --data held.jsonl --max-length 32 {words}"),
        )
    };
    let found = eval("--adapter tuned --json").ok().json();
    assert_eq!(found["objective"]["beta"], 0.5);
    let record: Value = serde_json::from_str(&record).unwrap();
    let parts = record["evaluation"].as_array().unwrap();
    let trained = parts.iter().find(|part| part["split"] == "validation");
    let trained = &trained.unwrap()["adapted"];
    for name in ["accuracy", "reward_margin", "loss"] {
        let [now, then] = [&found["metrics"], trained].map(|m| m[name].as_f64().unwrap());
        assert!((now - then).abs() < 1e-4, "{name}: {now} and {then}");
    }
    assert!(
        found["metrics"]["loss"].as_f64().unwrap() < std::f64::consts::LN_2,
        "{found}"
    );
    eval("--model fork").fails(&["held.jsonl", "--adapter"]);
    eval("--adapter tuned --dump-logits x.safetensors").fails(&["--dump-logits", "two texts"]);
}

#[test]
fn a_law_is_fitted_to_runs_and_a_budget_divided_by_it() {
    let workshop = folder();
    let folder = workshop.path();
    let mut table = "parameters,tokens,loss\n".to_owned();
    for n in [1e6f64, 4e6, 2e7, 1e8] {
        for d in [10.0, 30.0, 60.0].map(|ratio| ratio * n) {
            let loss = 400.0 * n.powf(-0.29) + 2000.0 * d.powf(-0.23) + 1.7;
            table += &format!("{n},{d},{loss}\n");
        }
    }
    fs::write(folder.join("decays.csv"), table).unwrap();
    let shown = run(
        folder,
        "plan scaling --runs decays.csv --compute 1e18 --loss 3 --json",
    )
    .ok()
    .json();
    let close = |value: &Value, expected: f64| {
        let found = value.as_f64().unwrap();
        assert!(
            (found / expected - 1.0).abs() < 1e-3,
            "{found} instead of {expected}"
        );
    };
    close(&shown["fit"]["law"]["a"], 0.29);
    close(&shown["optimum"]["parameters"], 2_929_406.0);
    close(&shown["batch_tokens"], 1_275_113.0);
    run(folder, "plan scaling --runs decays.csv --compute 1e18").ok();
    fs::write(folder.join("few.csv"), "n,d,loss\n1,2,3\n").unwrap();
    run(folder, "plan scaling --runs few.csv").fails(&["few.csv", "at least six"]);
    run(folder, "plan scaling").fails(&["--runs"]);
    run(folder, "plan scaling --loss 0").fails(&["--loss"]);
}
