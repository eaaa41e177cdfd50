//! Groups as lm-evaluation-harness reads them.

use super::super::results::{Measured, TaskResult};
use super::*;

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        frugal_core::fs::write_atomic(&folder.path().join(name), text.as_bytes()).unwrap();
    }
    folder
}

fn plan(folder: &tempfile::TempDir, file: &str) -> Result<Plan, EvalError> {
    Plan::new(&[folder.path().join(file).display().to_string()])
}

const TASK: &str = "dataset_path: hub/x\ntest_split: test\ndoc_to_text: q\ndoc_to_target: a\n";

#[test]
fn a_group_names_tasks_tags_groups_and_changes() {
    let of = |line: &str| format!("{TASK}{line}\n");
    let files = folder(&[
        (
            "all.yaml",
            "group: all\ngroup_alias: everything\nnum_fewshot: 2\ntask:\n  - one\n  - some\n  - {task: one_more, description: D, num_fewshot: 5}\n  - {group: inner, task: [last], num_fewshot: 3}\naggregate_metric_list:\n  - {metric: exact_match, filter_list: none, weight_by_size: false}\nmetadata: {version: 2}\n",
        ),
        ("one.yaml", &of("task: one")),
        ("deep/a.yaml", &of("task: a\ntag: some")),
        ("deep/b.yaml", &of("task: b\ntag: [other, some]")),
        ("deep/c.yaml", &of("task: one_more")),
        ("deep/d.yaml", &of("task: last\nnum_fewshot: 1")),
    ]);
    let found = plan(&files, "all.yaml").unwrap();
    let tasks: Vec<(&str, usize, &str)> = found
        .tasks
        .iter()
        .map(|(t, _)| {
            (
                t.name.as_str(),
                t.num_fewshot,
                t.prompt.description.as_str(),
            )
        })
        .collect();
    let expected = [
        ("one", 2, ""),
        ("a", 2, ""),
        ("b", 2, ""),
        ("one_more", 5, "D"),
        ("last", 2, ""),
    ];
    // What the outer group says goes before what the inner one says.
    assert_eq!(tasks, expected);
    let group = &found.groups[0];
    assert_eq!(
        (group.alias.as_str(), group.version.as_str()),
        ("everything", "2")
    );
    assert_eq!(group.members, ["one", "a", "b", "one_more", "all::inner"]);
    assert_eq!(group.tasks.len(), 5);
    let metric = &group.metrics[0];
    assert_eq!(
        (metric.filters.join(","), metric.weight_by_size),
        ("none".into(), false)
    );
    assert_eq!(found.groups[1].tasks, ["last"]);
}

#[test]
fn what_is_wrong_with_a_group_is_named() {
    let refused = |text: &str, word: &str| {
        let files = folder(&[("g.yaml", text), ("t.yaml", &format!("task: t\n{TASK}"))]);
        let error = plan(&files, "g.yaml").unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    };
    refused("group: g\ntask: [nowhere]\n", "`nowhere`");
    refused("group: g\ntask: []\n", "no tasks");
    refused("group: g\ntask: [g]\n", "in one another");
    refused(
        "group: g\ntask: [t]\naggregate_metric_list: [{metric: acc, aggregation: max}]\n",
        "mean",
    );
    refused("group: g\ntask: [t]\ncolour: red\n", "colour");
    let twice = ["sst2".to_owned(), "sst2".to_owned()];
    assert!(
        Plan::new(&twice)
            .unwrap_err()
            .to_string()
            .contains("named twice")
    );
}

/// Of `aggregate_subtask_metrics` and `pooled_sample_stderr` of lm-evaluation-harness.
#[test]
fn the_score_of_a_group_is_that_of_the_harness() {
    let result = |name: &str, value: f64, error: f64, size: usize| {
        let mut task = Task::builtin("sst2").unwrap().unwrap();
        task.name = name.into();
        let measured = Measured {
            metric: "acc".into(),
            filter: "none".into(),
            value,
            stderr: Some(error),
            higher_is_better: true,
        };
        TaskResult::of_numbers(task, vec![measured], size)
    };
    let results = [result("a", 0.5, 0.1, 10), result("b", 0.9, 0.2, 30)];
    let of = |weight_by_size: bool| {
        let group = Group {
            tasks: vec!["a".into(), "b".into()],
            metrics: vec![GroupMetric {
                metric: "acc".into(),
                filters: Vec::new(),
                weight_by_size,
            }],
            ..Group::default()
        };
        let found = group.measure(|name| results.iter().find(|r| r.task.name == name));
        (found[0].value, found[0].stderr.unwrap())
    };
    let (value, error) = of(true);
    assert!(
        (value - 0.8).abs() < 1e-12 && (error - 0.153_254_174_837_957_22).abs() < 1e-12,
        "{value} {error}"
    );
    assert!((of(false).0 - 0.7).abs() < 1e-12);
}
