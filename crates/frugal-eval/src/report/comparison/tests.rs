use super::*;
use crate::report::markup::hex;
use crate::report::radar;
use crate::report::{Forgetting, sample};
use frugal_core::events::names;

fn run(name: &str, accuracy: f64, parameters: u64) -> Run {
    let report = sample::report();
    let mut record = report.record;
    record.evaluation[1]
        .adapted
        .insert("accuracy".into(), accuracy);
    record.train_info.num_trainable_params = parameters;
    record.forgetting = Some(Forgetting {
        measure: "perplexity".into(),
        data: "d".into(),
        base: 20.0,
        adapted: 21.0,
    });
    Run {
        name: name.into(),
        record,
        log: report.log,
        efficiency: None,
    }
}

fn comparison() -> Comparison {
    let mut broken = run("broken", 0.0, 5);
    broken.record.train_info.status = Status::Failed;
    broken.record.run_info.error_msg = "out of <memory>".into();
    Comparison::new(
        "Two & one",
        "on sst2",
        None,
        vec![
            run("a", 0.8, 1000),
            run("b", 0.9, 90_000),
            run("a", 0.84, 1000),
            broken,
        ],
    )
}

#[test]
fn runs_of_one_name_are_averaged_and_the_best_comes_first() {
    let found = comparison();
    assert_eq!(found.metric, "accuracy");
    let names: Vec<&str> = found.rows().iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["b", "a", "broken"]);
    let a = found.rows()[1].quality.unwrap();
    assert!(
        (a.mean - 0.82).abs() < 1e-12
            && (a.deviation.unwrap() - 0.028_284_271).abs() < 1e-8
            && a.count == 2
    );
    assert_eq!(
        (found.rows()[2].quality, found.rows()[2].errors.len()),
        (None, 1)
    );
    assert_eq!(found.rows()[0].forgetting.unwrap().mean, 1.0);
}

#[test]
fn runs_of_another_task_show_what_they_are_judged_by() {
    let mut texts = run("texts", 0.0, 7);
    texts.record.evaluation[1].adapted = [("perplexity".to_owned(), 3.25)].into();
    let found = Comparison::new("", "", None, vec![run("a", 0.8, 1000), texts]);
    let table = found.to_markdown();
    assert!(
        table.starts_with("| Run | Accuracy | Perplexity | Trainable parameters"),
        "{table}"
    );
    assert!(
        table.contains("| a | 0.8000 | - |") && table.contains("| texts | - | 3.2500 |"),
        "{table}"
    );
}

#[test]
fn columns_that_no_run_of_a_table_fills_are_left_out() {
    let mut texts = run("texts", 0.0, 7);
    texts.record.evaluation[1].adapted = [("perplexity".to_owned(), 3.25)].into();
    texts.record.meta_info.dataset_info[2].sha256 = "0123456789".into();
    texts.record.forgetting = None;
    let found = Comparison::new("", "", None, vec![run("a", 0.8, 1000), texts]);
    let groups = found.groups();
    assert_eq!(groups.len(), 2);
    for group in &groups {
        let (headings, name) = (found.headings_of(group), group.rows[0].name.as_str());
        let has = |heading: &str| headings.iter().any(|h| h.starts_with(heading));
        let judged = name == "a" || !group.references.is_empty();
        assert_eq!(has("Accuracy"), judged, "{headings:?}");
        assert_eq!(has("Perplexity"), name == "texts", "{headings:?}");
        assert_eq!(has("Change of"), name == "a", "{headings:?}");
        let cells = found.cells_of(group, group.rows[0]);
        assert_eq!(cells.len() + 1 + found.descriptions().len(), headings.len());
    }
}

#[test]
fn each_measure_of_forgetting_has_a_column() {
    let mut encoder = run("encoder", 0.7, 10);
    encoder.record.forgetting = Some(Forgetting {
        measure: "probe_accuracy".into(),
        data: "d".into(),
        base: 0.5,
        adapted: 0.25,
    });
    let table = Comparison::new("", "", None, vec![run("a", 0.8, 1000), encoder]).to_markdown();
    assert!(
        table.contains("| Change of perplexity elsewhere | Change of probe accuracy elsewhere |"),
        "{table}"
    );
    let cells = |name: &str| {
        table
            .lines()
            .find(|l| l.starts_with(&format!("| {name} |")))
            .unwrap()
            .to_owned()
    };
    assert!(
        cells("a").ends_with("| +1.0000 | - |")
            && cells("encoder").ends_with("| - | \u{2212}0.2500 |"),
        "{table}"
    );
}

#[test]
fn curves_are_those_of_finished_runs_in_the_colour_of_their_row() {
    let mut failed = run("a", 0.8, 10);
    failed.record.train_info.status = Status::Failed;
    failed.log = vec![Scalars::new(1).with(names::LOSS, 1e6)];
    let mut silent = run("b", 0.9, 10);
    silent.log.clear();
    let found = Comparison::new("T", "", None, vec![failed, run("a", 0.8, 10), silent]);
    let html = found.curves(&found.groups()[0]).unwrap();
    assert!(
        html.contains(&hex(radar::COLOURS[1]))
            && !html.contains(&hex(radar::COLOURS[0]))
            && !html.contains("1000000"),
        "{html}"
    );
}

#[test]
fn the_scale_is_that_of_all_runs_even_when_not_all_are_drawn() {
    let radar = |last: u64| {
        let runs = (0..6u8).map(|i| {
            run(
                &format!("r{i}"),
                0.9 - 0.1 * f64::from(i),
                if i == 5 { last } else { 100 },
            )
        });
        let found = Comparison::new("T", "", None, runs.collect());
        found.radar(&found.groups()[0])
    };
    assert!(radar(100).contains("The first five are shown."));
    assert_ne!(
        radar(100),
        radar(1),
        "the sixth run has the fewest parameters"
    );
}

#[test]
fn the_page_shows_everything_and_escapes_it() {
    let html = comparison().to_html().unwrap();
    // FRUGAL_REPORT_OUT=FILE keeps the page to be looked at.
    if let Some(path) = std::env::var_os("FRUGAL_REPORT_OUT") {
        std::fs::write(path, &html).unwrap();
    }
    for text in [
        "Two &amp; one",
        "0.8200 \u{b1} 0.0283",
        "90,000",
        "out of &lt;memory&gt;",
        "data-value=\"0.9\"",
        "Validation loss",
        "+1.0000",
    ] {
        assert!(html.contains(text), "the page lacks {text}");
    }
    assert_eq!(html.matches("<figure>").count(), 6);
    let outside = html.replace("http://www.w3.org/2000/svg", "");
    for reference in ["http:", "https:", "<link", "@import", "url(", "src="] {
        assert!(
            !outside.contains(reference),
            "the page refers to {reference}"
        );
    }
}

#[test]
fn models_on_tasks_have_a_table_of_their_own() {
    let results = serde_json::json!({ "results": {
        "gsm8k": { "alias": "gsm8k", "exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": 0.0433 },
        "sst<2>": { "acc,none": 0.575, "acc_stderr,none": "N/A" },
    } });
    let tasks = vec![
        TaskScores {
            name: "small".into(),
            results,
            measurement: None,
        },
        TaskScores::default(),
    ];
    let html = Comparison::new("T", "", None, Vec::new())
        .with_tasks(tasks)
        .to_html()
        .unwrap();
    for text in [
        "<h2>Tasks</h2>",
        "exact_match (strict-match)",
        "0.2500 \u{b1} 0.0433",
        "sst&lt;2&gt;",
        ">0.5750<",
    ] {
        assert!(html.contains(text), "the page lacks {text}");
    }
    assert!(!html.contains("<h2>Runs</h2>") && !html.contains("<figure>"));
}

#[test]
fn sampled_runs_are_compared_by_their_averages_too() {
    let sampled = |name: &str, memory: f64, power: f64| Run {
        efficiency: Some(Efficiency {
            seconds: 1.0,
            average_memory: memory,
            peak_memory: memory,
            utilisation: 0.5,
            average_power: power,
            power_is_modelled: true,
            energy: power,
            flop_utilisation: None,
            peak_gflops: None,
        }),
        ..run(name, 0.8, 10)
    };
    let found = Comparison::new(
        "T",
        "",
        None,
        vec![
            sampled("a", 2e9, 30.0),
            sampled("a", 4e9, 40.0),
            sampled("b", 1e9, 20.0),
        ],
    );
    let a = found.rows().iter().find(|r| r.name == "a").unwrap();
    assert_eq!((a.average_memory, a.average_power), (Some(3e9), Some(35.0)));
    assert!(found.to_html().unwrap().contains("little power"));
    assert!(!comparison().to_html().unwrap().contains("little power"));
}

#[test]
fn the_markdown_table_has_a_row_for_each_name() {
    let text = comparison().to_markdown();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 8);
    assert!(
        lines[0].starts_with("| Run | Accuracy | Trainable parameters |"),
        "{text}"
    );
    assert!(lines[2].starts_with("| b | 0.9000 | 90,000 |"), "{text}");
    // A run that failed has trained and saved nothing.
    assert!(lines[4].starts_with("| broken | - | - | - | - |"), "{text}");
}

#[test]
fn what_finished_runs_can_be_judged_by_is_known() {
    let mut failed = run("a", 0.5, 1);
    failed.record.train_info.status = Status::Failed;
    failed.record.evaluation[1]
        .adapted
        .insert("half_done".into(), 1.0);
    let found = Comparison::new("", "", None, vec![run("a", 0.5, 1), failed]);
    let metrics = found.metrics();
    assert!(
        metrics.contains("accuracy") && !metrics.contains("half_done") && !metrics.contains("foo"),
        "{metrics:?}"
    );
}

#[test]
fn runs_on_different_data_are_not_ranked_together() {
    let mut elsewhere = run("easy", 0.99, 10);
    elsewhere.record.meta_info.dataset_info[2].sha256 = "0123456789".into();
    let mut shorter = run("fewer", 0.97, 10);
    shorter.record.evaluation[1].examples = 20;
    let runs = vec![run("a", 0.8, 10), elsewhere, shorter, run("b", 0.9, 10)];
    let found = Comparison::new("T", "", None, runs);
    let groups: Vec<Vec<&str>> = found
        .groups()
        .iter()
        .map(|g| g.rows.iter().map(|r| r.name.as_str()).collect())
        .collect();
    assert_eq!(groups.len(), 3, "{groups:?}");
    assert!(
        groups.contains(&vec!["b", "a"]) && groups.contains(&vec!["easy"]),
        "{groups:?}"
    );
    let why = found.ranked_apart().unwrap();
    assert!(
        why.contains("b, a on sst2/test.tsv (436 examples), content 9f86d081"),
        "{why}"
    );
    assert!(
        why.contains("easy on sst2/test.tsv (436 examples), content 01234567"),
        "{why}"
    );
    assert!(
        why.contains("fewer on sst2/test.tsv (20 examples)"),
        "{why}"
    );
    let html = found.to_html().unwrap();
    assert!(
        html.contains("not ranked together")
            && html.matches("<table class=\"sortable").count() == 3
    );
    assert!(
        Comparison::new("T", "", None, vec![run("a", 0.8, 1), run("b", 0.9, 1)])
            .ranked_apart()
            .is_none()
    );
}

#[test]
fn perplexities_in_different_tokens_are_not_ranked_together() {
    let perplexity = |name: &str, model: &str, vocabulary: Option<&str>| {
        let mut run = run(name, 0.0, 1);
        run.record.evaluation[1].adapted = [("perplexity".to_owned(), 20.0)].into();
        run.record.meta_info.model_info.name = model.into();
        run.record.meta_info.model_info.vocabulary = vocabulary.map(str::to_owned);
        run
    };
    let apart = |runs: Vec<Run>| Comparison::new("T", "", None, runs).ranked_apart();
    let why = apart(vec![
        perplexity("a", "smollm2", Some("11")),
        perplexity("b", "gemma", Some("22")),
    ]);
    let why = why.unwrap();
    assert!(
        why.contains("in tokens of smollm2") && why.contains("in tokens of gemma"),
        "{why}"
    );
    // Two models of one tokenizer, and records of before it was kept.
    assert!(
        apart(vec![
            perplexity("a", "m1", Some("11")),
            perplexity("b", "m2", Some("11"))
        ])
        .is_none()
    );
    assert!(
        apart(vec![
            perplexity("a", "m1", None),
            perplexity("b", "m1", Some("11"))
        ])
        .is_none()
    );
    assert!(
        apart(vec![
            perplexity("a", "m1", None),
            perplexity("b", "m2", None)
        ])
        .is_some()
    );
    // Accuracy counts examples, whatever the tokens.
    let mut other = run("b", 0.9, 1);
    other.record.meta_info.model_info.name = "gemma".into();
    assert!(apart(vec![run("a", 0.8, 1), other]).is_none());
}

#[test]
fn the_page_names_model_data_and_budget_and_what_has_to_be_beaten() {
    let found = comparison();
    let facts = found.facts();
    let fact = |name: &str| &facts.iter().find(|f| f.0 == name).unwrap().1;
    assert_eq!(fact("model"), "smollm2-135m");
    assert_eq!(fact("trained on"), "sst2/train.tsv (2,000 examples)");
    assert_eq!(fact("measured on"), "sst2/test.tsv (436 examples)");
    assert_eq!(fact("budget"), "1 epoch, batches of 8");
    // The untrained head, then the commonest class of training: 216 of 436.
    let references = &found.groups()[0].references;
    assert_eq!(references[0], ("untrained smollm2-135m".to_owned(), 0.5206));
    assert!(
        references
            .iter()
            .any(|(n, v)| n == "majority class" && (v - 216.0 / 436.0).abs() < 1e-12)
    );
    assert!(references.contains(&("chance".to_owned(), 0.5)));
    let html = found.to_html().unwrap();
    for text in [
        "model: smollm2-135m",
        "budget: 1 epoch",
        "majority class</th>",
        "0.4954",
    ] {
        assert!(html.contains(text), "the page lacks {text}");
    }
    let table = found.to_markdown();
    assert!(table.contains("| *majority class* | 0.4954 |"), "{table}");
    // Models and budgets that differ have a column.
    let mut longer = run("c", 0.7, 1);
    longer.record.run_info.train_config["train"]["max_steps"] = 200.into();
    longer.record.meta_info.model_info.name = "builtin".into();
    let table = Comparison::new("", "", None, vec![run("a", 0.8, 1), longer]).to_markdown();
    assert!(
        table.starts_with("| Run | Model | Budget | Accuracy |"),
        "{table}"
    );
    assert!(
        table.contains("| c | builtin | 200 steps, batches of 8 | 0.7000 |"),
        "{table}"
    );
}

#[test]
fn scores_on_other_records_of_a_task_have_a_column_of_their_own() {
    let results = |data: &str, records: usize, value: f64| {
        serde_json::json!({
            "results": { "perplexity": { "word_perplexity,none": value } },
            "configs": { "perplexity": { "data_sha256": data } },
            "n-samples": { "perplexity": { "effective": records } },
        })
    };
    let scores = |name: &str, results| TaskScores {
        name: name.into(),
        results,
        measurement: None,
    };
    let page = |tasks| {
        Comparison::new("T", "", None, Vec::new())
            .with_tasks(tasks)
            .to_html()
            .unwrap()
    };
    let html = page(vec![
        scores("a", results("aaaaaaaaaaaa", 8, 20.0)),
        scores("b", results("bbbbbbbbbbbb", 8, 10.0)),
    ]);
    assert!(
        html.contains("cannot be compared") && html.contains("data aaaaaaaa, records 8"),
        "{html}"
    );
    let html = page(vec![
        scores("a", results("aaaaaaaaaaaa", 8, 20.0)),
        scores("b", results("aaaaaaaaaaaa", 8, 10.0)),
    ]);
    assert!(
        !html.contains("cannot be compared") && !html.contains("data aaaaaaaa"),
        "{html}"
    );
}

/// A group has neither data nor prompts of its own: it was ranked whatever its tasks were asked.
#[test]
fn groups_of_tasks_on_other_records_are_not_ranked() {
    let results = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut results = serde_json::json!({
            "results": { "one": { "acc,none": 0.5 }, "all": { "acc,none": 0.5 } },
            "group_subtasks": { "one": [], "all": ["inner"], "inner": ["one"] },
            "configs": { "one": { "data_sha256": "aaaa", "kind": "generate_until", "generation": { "max_tokens": 4 } } },
            "n-shot": { "one": 2 },
            "config": { "random_seed": 0, "system_instruction": "", "fewshot_order": null },
            "chat_template": null,
        });
        change(&mut results);
        results
    };
    let apart = |change: &dyn Fn(&mut serde_json::Value)| {
        let of = |name: &str, results| TaskScores {
            name: name.into(),
            results,
            measurement: None,
        };
        let tasks = vec![of("a", results(&|_| ())), of("b", results(change))];
        let page = Comparison::new("T", "", None, Vec::new()).with_tasks(tasks);
        let html = page.to_html().unwrap();
        html.contains("cannot be compared")
    };
    assert!(!apart(&|_| ()));
    assert!(apart(
        &|r| r["configs"]["one"]["data_sha256"] = "bbbb".into()
    ));
    assert!(apart(&|r| r["n-shot"]["one"] = 3.into()));
    // What decides prompts and answers beside the task.
    assert!(apart(
        &|r| r["configs"]["one"]["generation"]["max_tokens"] = 5.into()
    ));
    assert!(apart(&|r| r["config"]["random_seed"] = 1.into()));
    assert!(apart(&|r| r["config"]["fewshot_order"] = "first".into()));
    assert!(apart(
        &|r| r["config"]["system_instruction"] = "Be brief.".into()
    ));
    assert!(apart(&|r| r["chat_template"] = "{{ messages }}".into()));
}
