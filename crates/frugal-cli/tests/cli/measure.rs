//! `frugal select` and `frugal measure`.

use std::fs;

use crate::support::{folder, frugal, frugal_in};

/// Items with two scores, of which the first one tells whether an item is good and the second one
/// does not.
fn items(count: usize, label: bool) -> String {
    let mut text = String::from(if label { "id,right,a,b\n" } else { "id,a,b\n" });
    for i in 0..count {
        let good = i % 2 == 0;
        let a = if good { 0.8 } else { 0.2 } + 0.001 * i as f64;
        let b = ((i * 37) % 101) as f64 / 101.0;
        let label = if label {
            format!("{good},")
        } else {
            String::new()
        };
        text += &format!("item{i},{label}{a},{b}\n");
    }
    text
}

#[test]
fn select_keeps_the_good_ones() {
    let folder = folder();
    let folder = folder.path();
    fs::write(folder.join("known.csv"), items(100, true)).unwrap();
    fs::write(folder.join("new.csv"), items(20, false)).unwrap();
    let base = [
        "select",
        "--calibration",
        "known.csv",
        "--test",
        "new.csv",
        "--label",
        "right",
        "--fdr",
        "0.1",
    ];
    let run = |more: &[&str]| frugal_in(folder, &[&base[..], more].concat());
    let chosen = |more: &[&str]| -> (String, Vec<String>) {
        let value = run(&[more, &["--json"]].concat()).ok().json();
        let items = value["selected"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| s["item"].as_str().unwrap().to_owned())
            .collect();
        (value["procedure"].as_str().unwrap().to_owned(), items)
    };
    // The failures' scores lie below those of the good ones, so every good item is found and
    // nothing else.
    let good: Vec<String> = (0..20).step_by(2).map(|i| format!("item{i}")).collect();
    assert_eq!(
        chosen(&["--scores", "a", "--id", "id"]),
        ("conformal selection".into(), good.clone())
    );
    assert_eq!(
        chosen(&["--scores", "b", "--id", "id"]).1,
        Vec::<String>::new()
    );
    let (procedure, found) = chosen(&["--scores", "a,b", "--id", "id", "--seed", "1"]);
    assert_eq!(procedure, "OptCS-MSel");
    assert!(
        found.iter().all(|item| good.contains(item)) && !found.is_empty(),
        "{found:?}"
    );
    assert_eq!(
        chosen(&["--features", "a,b", "--id", "id"]),
        ("OptCS-Full".into(), good.clone())
    );
    assert_eq!(
        chosen(&["--features", "a,b", "--penalties", "0.1,10", "--id", "id"]).0,
        "OptCS-Full-MSel"
    );
    let table = run(&["--scores", "a"]).ok();
    assert!(
        table.stdout.contains("p-value") && table.stderr.contains("10 of 20 items selected"),
        "{}{}",
        table.stdout,
        table.stderr
    );

    run(&["--scores", "c"]).fails(&["known.csv", "no column `c`", "id, right, a, b"]);
    run(&["--scores", "id"]).fails(&["item 1", "`id`", "no number"]);
    let level = [
        "select",
        "--calibration",
        "known.csv",
        "--test",
        "new.csv",
        "--label",
        "right",
        "--scores",
        "a",
        "--fdr",
        "0",
    ];
    frugal_in(folder, &level).fails(&["level 0"]);
    run(&[]).fails(&["--scores"]);
}

const PROBLEMS: &str = r#"task_id,prompt,input_generator,input_levels,reference_solution,checker,entry_point
T/0,"def total(numbers):
    'The sum.'
","def generate_input(size, lid, cid):
    return [random.randint(0, 9) for _ in range(size)],",10 1000 20000 60000,"    return sum(numbers)","def __check(input, answer, output):
    return output == answer",total
"#;

#[cfg(target_os = "linux")]
#[test]
fn code_runs_only_with_leave() {
    let folder = folder();
    let folder = folder.path();
    fs::write(folder.join("problems.csv"), PROBLEMS).unwrap();
    let right = "def total(numbers):\n    return sum(numbers)";
    let wrong = "def total(numbers):\n    return len(numbers)";
    fs::write(
        folder.join("s.json"),
        serde_json::json!([[right, wrong]]).to_string(),
    )
    .unwrap();
    let base = [
        "measure",
        "code",
        "--problems",
        "problems.csv",
        "--solutions",
        "s.json",
        "--repeats",
        "2",
        "--k",
        "1,2",
    ];
    let run = |more: &[&str]| frugal_in(folder, &[&base[..], more].concat());
    run(&[]).fails(&["--allow-code-execution"]);
    let found = run(&["--allow-code-execution", "--json"]).ok();
    assert!(found.stderr.contains("sandbox: "), "{}", found.stderr);
    let found = found.json();
    let file = &found["files"][0];
    assert_eq!(
        (&file["pass@1"], &file["pass@2"]),
        (&0.5.into(), &1.0.into())
    );
    let (one, two) = (
        file["eff@1"].as_f64().unwrap(),
        file["eff@2"].as_f64().unwrap(),
    );
    assert!(two > 0.0 && (two - 2.0 * one).abs() < 1e-9, "{one} {two}");
    assert_eq!(file["problems"][0]["samples"][1]["verdict"], "wrong");
    // Times differ from run to run: equal ones were kept.
    let kept = ["--allow-code-execution", "--json", "--out", "kept"];
    let first = run(&kept).ok().json();
    let seconds = |found: &serde_json::Value| {
        found["files"][0]["problems"][0]["samples"][0]["seconds"].clone()
    };
    assert_eq!(seconds(&run(&kept).ok().json()), seconds(&first));
    let again = run(&[&kept[..], &["--seed", "7"]].concat()).ok().json();
    assert_ne!(seconds(&again), seconds(&first));
    let on_disk = fs::read_to_string(folder.join("kept/results.json")).unwrap();
    assert!(on_disk.contains("eff@1"), "{on_disk}");
    run(&["--no-isolation"]).fails(&["--allow-code-execution"]);
    run(&["--allow-code-execution", "--subset", "3"]).fails(&["--subset", "no problem 3"]);
    run(&["--allow-code-execution", "--timeout-factor", "1"]).fails(&["above 1"]);
}

#[test]
fn a_pre_training_run_is_planned_from_its_size() {
    let plan = frugal(&[
        "plan",
        "pretrain",
        "--parameters",
        "1B",
        "--tokens",
        "100B",
        "--json",
    ])
    .ok()
    .json();
    let recipe = &plan["recipe"];
    assert!(
        (recipe["peak_rate"].as_f64().unwrap() - 1.632499e-3).abs() < 1e-9,
        "{recipe}"
    );
    assert_eq!(
        (
            &recipe["sequences"],
            &recipe["warmup_steps"],
            &plan["inside_fitted_range"]
        ),
        (&541.into(), &2000.into(), &true.into())
    );
    // 6 N D with 20 tokens for each parameter.
    let plan = frugal(&["plan", "pretrain", "--compute", "1.2e20", "--json"])
        .ok()
        .json();
    assert!(
        (plan["recipe"]["parameters"].as_f64().unwrap() / 1e9 - 1.0).abs() < 1e-9,
        "{plan}"
    );
    let page = frugal(&["plan", "pretrain", "--model", "builtin", "--tokens", "10M"]).ok();
    // Six layers: 192 x 192 twice, 192 x 64 twice, 192 x 512 three times.
    assert!(
        page.stdout.contains("2,359,296 outside")
            && page.stderr.contains("outside of the published runs"),
        "{}{}",
        page.stdout,
        page.stderr
    );
    frugal(&["plan", "pretrain", "--tokens", "1B"]).fails(&["--parameters"]);
    frugal(&["plan", "pretrain", "--parameters", "many", "--tokens", "1B"])
        .fails(&["many", "135M"]);
}

const TEXT: &str = "The river rose in the night, and by morning the lower fields lay under water. Nobody had seen it so high. \
                    They moved the cattle to the hill and waited for the rain to end, which it did on the third day.\n";

#[test]
fn models_are_measured_on_texts() {
    let folder = folder();
    let folder = folder.path();
    fs::write(folder.join("a.txt"), TEXT.repeat(4)).unwrap();
    let run = |words: &str| frugal_in(folder, &words.split_whitespace().collect::<Vec<_>>());
    let capacity = run("measure capacity --texts a.txt --length 32 --json --quiet")
        .ok()
        .json();
    let row = &capacity[0];
    let value = |key: &str| {
        row[key]
            .as_f64()
            .unwrap_or_else(|| panic!("{key} of {row}"))
    };
    // Operations of the built-in model by hand: six layers of width 192 with grouped keys, 4096
    // tokens, 31 tokens before.
    let layer = 4.0 * 192.0 * 192.0 + 4.0 * 192.0 * 64.0 + 6.0 * 192.0 * 512.0;
    assert_eq!(
        value("flops_per_token"),
        6.0 * layer + 2.0 * 192.0 * 4096.0 + 6.0 * 4.0 * 192.0 * 31.0 / 2.0
    );
    assert!((value("text_size") - 8.0 * value("bytes") / value("tokens")).abs() < 1e-9);
    assert!((value("gain") - value("text_size") + value("bits_per_token")).abs() < 1e-9);
    assert!(
        ((value("gain") - 24.0) / value("flops_per_token").log2() - value("information_capacity"))
            .abs()
            < 1e-9
    );
    assert!(
        run("measure capacity --texts a.txt --length 32")
            .ok()
            .stdout
            .contains("bits/byte")
    );
    let spectrum = run("measure spectrum --texts a.txt --length 32 --exact --json --quiet")
        .ok()
        .json();
    let norm = spectrum[0]["matrix_nuclear_norm"].as_f64().unwrap();
    assert!(
        norm > 0.0 && norm <= 1.0 && spectrum[0]["tokens"] == 32,
        "{spectrum}"
    );
    assert!(spectrum[0]["nuclear_norm"].as_f64().unwrap() <= 1.0);
    run("measure capacity --texts nowhere.txt").fails(&["nowhere.txt"]);
    run("measure capacity --texts a.txt --fit-bias").fails(&["two models"]);
}

#[test]
fn generation_is_timed_and_predicted() {
    let folder = folder();
    let folder = folder.path();
    let run = |words: &str| frugal_in(folder, &words.split_whitespace().collect::<Vec<_>>());
    let words = "measure runtime --prompts 1,8 --outputs 1,2,4 --held-out 6 --trials 2 --query 8:5 --dollars-per-hour 3600 --watts 10 --save f.json";
    let found = run(&format!("{words} --json --quiet")).ok().json();
    assert_eq!(found["cells"].as_array().unwrap().len(), 8);
    assert!(
        found["fit"]["beta"].as_f64().unwrap() > 0.0
            && found["held_out_relative_error"].is_number(),
        "{found}"
    );
    let cost = &found["predictions"][0]["cost"];
    let value = |key: &str| cost[key].as_f64().unwrap();
    assert!(
        (value("dollars") - value("seconds")).abs() < 1e-12
            && (value("joules") - 10.0 * value("seconds")).abs() < 1e-12,
        "{cost}"
    );
    let again = run("measure runtime --fit f.json --query 8:5 --json")
        .ok()
        .json();
    assert!(
        (again["predictions"][0]["cost"]["seconds"].as_f64().unwrap() / value("seconds") - 1.0)
            .abs()
            < 1e-9
    );
    run("measure runtime --query 8:0").fails(&["8:0", "P:O"]);
    run("measure runtime --endpoint ftp://example.org").fails(&["http:// and https://"]);
    run("measure runtime --endpoint https://example.org --api-key-env NO_SUCH_KEY")
        .fails(&["NO_SUCH_KEY", "no such environment variable"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_command_is_sampled_while_it_runs() {
    let folder = folder();
    let folder = folder.path();
    let busy = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo over; sleep 0.3";
    let found = frugal_in(
        folder,
        &[
            "measure",
            "efficiency",
            "--json",
            "--compare",
            "16M:1,4.5M:0.96",
            "--",
            "sh",
            "-c",
            busy,
        ],
    )
    .ok();
    assert!(found.stderr.contains("over"), "{}", found.stderr);
    let found = found.json();
    let value = |key: &str| {
        found["efficiency"][key]
            .as_f64()
            .unwrap_or_else(|| panic!("{key} of {found}"))
    };
    assert!(
        value("average_memory") > 1e5 && value("average_memory") <= value("peak_memory"),
        "{found}"
    );
    assert!(
        value("utilisation") > 0.0 && value("utilisation") <= 1.1 && value("seconds") >= 0.3,
        "{found}"
    );
    assert!(
        (value("energy") - value("average_power") * value("seconds")).abs()
            < 1e-6 * value("energy")
    );
    assert!((found["model_compression_rate"].as_f64().unwrap() - 3.41333).abs() < 1e-5);
    assert_eq!(
        frugal_in(
            folder,
            &[
                "measure",
                "efficiency",
                "--",
                "sh",
                "-c",
                "sleep 0.2; exit 3"
            ]
        )
        .code,
        1
    );
    frugal(&["measure", "efficiency", "--", "no-such-program"]).fails(&["no-such-program"]);
    frugal(&["measure", "efficiency", "--compare", "1M:1", "--", "true"])
        .fails(&["before and after"]);
}

#[test]
fn evaluations_are_joined_in_a_report() {
    let folder = folder();
    let folder = folder.path();
    fs::write(folder.join("a.txt"), TEXT).unwrap();
    frugal_in(
        folder,
        &[
            "eval",
            "--tasks",
            "perplexity:a.txt",
            "--out",
            "evals/builtin",
            "--quiet",
        ],
    )
    .ok();
    let report = frugal_in(folder, &["report", "evals", "--out", "page.html", "--json"])
        .ok()
        .json();
    assert!(
        report["tasks"][0]["results"]["perplexity"]["bits_per_byte,none"].is_number(),
        "{report}"
    );
    let page = fs::read_to_string(folder.join("page.html")).unwrap();
    assert!(
        page.contains("<h2>Tasks</h2>")
            && page.contains("bits_per_byte")
            && page.contains("builtin"),
        "{page}"
    );
    fs::create_dir(folder.join("empty")).unwrap();
    frugal_in(folder, &["report", "empty"]).fails(&["empty", "results.json"]);
}
