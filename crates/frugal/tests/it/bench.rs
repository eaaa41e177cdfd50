//! Suites of runs, done in this process.

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use frugal::model::load::Lookup;
use frugal::run::bench::{
    BenchEvent, BenchKind, BenchRequest, InProcess, Queue, SweepRequest, SweepResults, adapt,
    plan_sweep, sweep_adapt,
};
use frugal_eval::report::RunRecord;
use frugal_eval::suite::{Suite, SweptSetting};
use serde_json::Value;

/// Two methods on a few made-up messages, with no test part.
const SUITE: &str = r#"
    description = "Two methods"
    seeds = [0, 1, 2]
    [tune]
    evaluate_base = false
    data = { train = "all.tsv", max_length = 16 }
    train = { max_steps = 2, batch_size = 4 }
    [[runs]]
    method = { name = "lora", r = 2 }
    [[runs]]
    method = { name = "ia3" }
"#;

fn request(folder: &Path) -> BenchRequest {
    let row = |i: usize| match i % 2 {
        0 => format!("ham\tsee you at {}\n", i % 12),
        _ => format!("spam\twin {} prizes now\n", i * 10),
    };
    let rows: String = (0..80).map(row).collect();
    fs::write(folder.join("all.tsv"), format!("label\ttext\n{rows}")).unwrap();
    BenchRequest {
        kind: BenchKind::Adapt,
        suite: Suite::parse(Path::new("two.toml"), SUITE).unwrap(),
        title: "two".into(),
        out: folder.join("out"),
        data_dir: folder.to_owned(),
        only: Vec::new(),
        seeds: Vec::new(),
        overrides: Vec::new(),
    }
}

/// Does something with a queue in this process; the folders of the runs that were begun.
fn queued<T>(work: impl FnOnce(&mut Queue<'_>) -> T) -> (T, Vec<String>) {
    let stop = AtomicBool::new(false);
    let mut begun = Vec::new();
    let mut runner = InProcess {
        lookup: Lookup::default(),
        stop: &stop,
        observe: Box::new(|_, _| {}),
    };
    let done = work(&mut Queue {
        runner: &mut runner,
        stop: &stop,
        observe: &mut |event| {
            if let BenchEvent::Begin { run } = event {
                begun.push(run.job.folder());
            }
        },
    });
    (done, begun)
}

fn score(folder: &Path, run: &str, part: &str) -> f64 {
    let record = RunRecord::read(&folder.join("out").join(run).join("record.json")).unwrap();
    let on = record.evaluation.iter().find(|e| e.split == part).unwrap();
    on.adapted["accuracy"]
}

#[test]
fn a_library_runs_a_suite_in_its_own_process_and_takes_it_up_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut request = request(folder.path());
    request.seeds = vec![1];
    let (found, begun) = queued(|queue| adapt(&request, queue).unwrap());
    assert_eq!(begun, ["lora-seed1", "ia3-seed1"]);
    assert!(!found.stopped && !found.has_failures());
    let rows = found.comparison.rows();
    assert_eq!(rows.len(), 2);
    for row in rows {
        let run = format!("{}-seed1", row.name);
        let measured = row.quality.unwrap().mean;
        assert_eq!(measured, score(folder.path(), &run, "validation"));
    }
    let (_, begun) = queued(|queue| adapt(&request, queue).unwrap());
    assert!(begun.is_empty(), "{begun:?}");
}

#[test]
fn every_arm_is_tried_as_often_picked_on_validation_and_reported_on_test() {
    let folder = tempfile::tempdir().unwrap();
    let request = request(folder.path());
    let sweep = SweepRequest {
        settings: vec![SweptSetting::parse("lr=1e-5,3e-2").unwrap()],
        baseline: Some("ia3".into()),
    };
    let (found, begun) = queued(|queue| sweep_adapt(&request, &sweep, queue).unwrap());
    let SweepResults { sweep: report, .. } = &found;
    // Two trials of each arm, and the picked ones with the other seeds: the trial is the reported
    // run of its own seed.
    assert_eq!(begun.len(), 2 * 2 + 2 * 2, "{begun:?}");
    let trials = [
        "lora-lr0.00001-seed0",
        "lora-lr0.03-seed0",
        "ia3-lr0.00001-seed0",
        "ia3-lr0.03-seed0",
    ];
    assert_eq!(begun[..4], trials);
    for arm in &report.arms {
        let of = |lr: &str| format!("{}-lr{lr}-seed0", arm.name);
        let scores = ["0.00001", "0.03"].map(|lr| score(folder.path(), &of(lr), "validation"));
        let best = usize::from(scores[1] > scores[0]);
        assert_eq!(arm.picked, Some(best), "{scores:?}");
        let lr = ["0.00001", "0.03"][best];
        let tests = [0, 1, 2].map(|seed| {
            score(
                folder.path(),
                &format!("{}-lr{lr}-seed{seed}", arm.name),
                "test",
            )
        });
        let mean = tests.iter().sum::<f64>() / 3.0;
        assert!((arm.reported.unwrap().mean - mean).abs() < 1e-12);
    }
    let reported = |name: &str| {
        let arm = report.arms.iter().find(|arm| arm.name == name).unwrap();
        arm.reported.unwrap().mean
    };
    assert_eq!(report.claims.len(), 1);
    let difference = report.claims[0].difference.unwrap();
    assert_eq!(
        (report.claims[0].arm.as_str(), difference.count),
        ("lora", 3)
    );
    assert!((difference.mean - (reported("lora") - reported("ia3"))).abs() < 1e-12);
    // Every seed holds the same records out, a tenth of them for the test.
    let record = |seed: usize| -> Value {
        let run = begun
            .iter()
            .find(|run| run.ends_with(&format!("seed{seed}")))
            .unwrap();
        let file = folder.path().join("out").join(run).join("record.json");
        serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
    };
    for seed in 0..3 {
        let data = &record(seed)["run_info"]["train_config"]["data"];
        assert_eq!(
            (&data["split_seed"], &data["test_share"]),
            (&0.into(), &0.1.into())
        );
        assert_eq!(record(seed)["run_info"]["train_config"]["seed"], seed);
    }
    let results: Value =
        serde_json::from_slice(&fs::read(request.out.join("results.json")).unwrap()).unwrap();
    assert_eq!(results["sweep"]["trials"], 2);
    assert_eq!(results["runs"].as_array().unwrap().len(), 2);
    let page = fs::read_to_string(request.out.join("report.html")).unwrap();
    assert!(page.contains("<h2>Sweep</h2>") && page.contains("lora better than ia3"));
    // Nothing is done twice.
    let (again, begun) = queued(|queue| sweep_adapt(&request, &sweep, queue).unwrap());
    assert!(begun.is_empty() && again.sweep == *report, "{begun:?}");
}

#[test]
fn a_sweep_that_would_prove_nothing_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let request = request(folder.path());
    let refused = |request: &BenchRequest, settings: &[&str], part: &str| {
        let sweep = SweepRequest {
            settings: settings
                .iter()
                .map(|s| SweptSetting::parse(s).unwrap())
                .collect(),
            baseline: None,
        };
        let error = plan_sweep(request, &sweep).unwrap_err();
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        let text = format!("{error}: {}", cause.unwrap_or_default());
        assert!(text.contains(part), "{text}");
    };
    let with = |change: &dyn Fn(&mut BenchRequest)| {
        let mut changed = request.clone();
        change(&mut changed);
        changed
    };
    let two_seeds = with(&|r| r.seeds = vec![0, 1]);
    refused(&two_seeds, &["lr=3x3"], "`--seeds 0,1,2`");
    refused(
        &with(&|r| r.seeds = vec![0, 1, 1]),
        &["lr=3x3"],
        "repeat one",
    );
    let set = with(&|r| r.overrides = vec!["train.lr=1e-3".into()]);
    refused(&set, &["lr=3x3"], "`train.lr` is swept and set");
    refused(&request, &["lr=3x3", "lr=1e-3,1e-2"], "swept twice");
    refused(&request, &["method.rank=2,4"], "rank");
    refused(&request, &["method.r=2x3"], "`method.r` has no value");
    let without = with(&|r| r.overrides = vec!["data.validation_share=0.0".into()]);
    refused(&without, &["lr=3x3"], "no validation part");
    let many = &[
        "lr=3x20",
        "train.weight_decay=0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1,1.1,1.2,1.3",
    ];
    refused(&request, many, "more than 256 trials");
    let sweep = SweepRequest {
        settings: vec![SweptSetting::parse("lr=3x3").unwrap()],
        baseline: Some("dora".into()),
    };
    let error = plan_sweep(&request, &sweep).unwrap_err().to_string();
    assert!(
        error.contains("no run `dora`") && error.contains("lora, ia3"),
        "{error}"
    );
    // Seeds that the suite does not list are allowed where they are asked for.
    let seeds = with(&|r| r.seeds = vec![5, 6, 7]);
    let sweep = SweepRequest {
        baseline: None,
        ..sweep
    };
    let plan = plan_sweep(&seeds, &sweep).unwrap();
    assert_eq!(plan.seeds(), [5, 6, 7]);
    assert!(plan.trials().all(|run| run.job.seed == 5));
    assert_eq!(plan.trials().count(), 6);
}
