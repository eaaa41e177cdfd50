//! Tasks whose answers are programs.

use std::path::Path;

use frugal_core::data::Message;
use frugal_eval::tasks::{
    Context, Continuations, Generation, LanguageModel, ModelFailure, Sink, Task, ToContinue,
    Written, run,
};
use serde_json::json;

use crate::support::sandbox;

/// Continues every prompt with one of its texts, by the seed.
struct Parrot {
    says: &'static str,
    asked: usize,
    stop_after: usize,
    seeds: Vec<u64>,
}

impl Parrot {
    fn new(says: &'static str) -> Self {
        Self {
            says,
            asked: 0,
            stop_after: usize::MAX,
            seeds: Vec::new(),
        }
    }
}

impl LanguageModel for Parrot {
    fn fingerprint(&self) -> &str {
        "parrot"
    }

    fn loglikelihood(
        &mut self,
        _: &[Continuations<'_>],
        _: Sink<'_, Vec<(f64, bool)>>,
    ) -> Result<(), ModelFailure> {
        Err("not asked".into())
    }

    fn loglikelihood_rolling(
        &mut self,
        _: &[&str],
        _: Sink<'_, (f64, usize)>,
    ) -> Result<(), ModelFailure> {
        Err("not asked".into())
    }

    fn generate_until(
        &mut self,
        requests: &[ToContinue<'_>],
        _: &Generation,
        answer: Sink<'_, Written>,
    ) -> Result<(), ModelFailure> {
        for (i, request) in requests.iter().enumerate() {
            self.asked += 1;
            self.seeds.push(request.seed);
            let says: Vec<&str> = self.says.split('|').collect();
            answer(i, says[(request.seed % says.len() as u64) as usize].into());
            if self.asked >= self.stop_after {
                return Err("killed".into());
            }
        }
        Ok(())
    }

    fn chat(&self, _: &[Message]) -> Result<String, ModelFailure> {
        Err("not asked".into())
    }
}

fn write(folder: &Path, name: &str, text: &str) {
    frugal_core::fs::write_atomic(&folder.join(name), text.as_bytes()).unwrap();
}

fn context(folder: &Path) -> Context {
    Context {
        data: Some(folder.into()),
        first_shots: true,
        sandbox: Some(sandbox()),
        ..Context::default()
    }
}

#[test]
fn humaneval_counts_what_passes() {
    let data = tempfile::tempdir().unwrap();
    let problem = json!({
        "prompt": "def twice(x):\n", "entry_point": "twice", "test": "def check(f):\n    assert f(4) == 8\n    assert f('a') == 'aa'\n",
    });
    write(
        data.path(),
        "humaneval/HumanEval.jsonl",
        &format!("{problem}\n"),
    );
    let mut task = Task::find("humaneval").unwrap().0;
    task.source.test = "humaneval/HumanEval.jsonl".into();
    for (says, passes) in [
        ("    return x + x", 1.0),
        ("    return x * x", 0.0),
        ("    while True: pass", 0.0),
        ("    return (", 0.0),
        ("    exit()", 0.0),
        ("    import os; os._exit(0)", 0.0),
    ] {
        let result = run(
            &task,
            &context(data.path()),
            &mut Parrot::new(says),
            &mut |_| true,
        )
        .unwrap()
        .unwrap();
        assert_eq!(
            (result.measured[0].metric.as_str(), result.measured[0].value),
            ("pass@1", passes),
            "{says}"
        );
    }
}

/// The task file of MBPP, without the examples that lie in Python beside it.
const MBPP: &str = r#"
task: mbpp
dataset_path: google-research-datasets/mbpp
unsafe_code: true
output_type: generate_until
test_split: test
doc_to_text: "{{text}}\n[BEGIN]\n"
doc_to_target: "{{test_list[0]}}\n{{test_list[1]}}"
target_delimiter: ""
metric_list:
  - metric: !function utils.pass_at_1
generation_kwargs: {until: ["[DONE]"], do_sample: false}
num_fewshot: 0
"#;

/// A program that ends itself before the tests had passed them all.
#[test]
fn a_task_file_whose_answers_are_programs_counts_what_its_tests_say() {
    let data = tempfile::tempdir().unwrap();
    let problem = json!({
        "text": "Write a function to add.", "code": "def add(a, b):\n    return a + b",
        "test_list": ["assert add(1, 2) == 3", "assert add('a', 'b') == 'ab'"],
    });
    write(data.path(), "mbpp.yaml", MBPP);
    write(data.path(), "mbpp/test.jsonl", &format!("{problem}\n"));
    let file = data.path().join("mbpp.yaml").display().to_string();
    let (task, _) = Task::find(&file).unwrap();
    for (says, passes) in [
        ("def add(a, b):\n    return a + b\n", 1.0),
        ("def add(a, b):\n    return 3\n", 0.0),
        ("def add(a, b):\n    exit()\n", 0.0),
        ("import os\nos._exit(0)\n", 0.0),
        ("class AssertionError(Exception): pass\n", 0.0),
    ] {
        let mut model = Parrot::new(says);
        let result = run(&task, &context(data.path()), &mut model, &mut |_| true)
            .unwrap()
            .unwrap();
        assert_eq!(result.measured[0].value, passes, "{says}");
    }
}

/// A test that the two processes cannot share is an error, not a wrong answer.
#[test]
fn a_test_that_cannot_be_run_apart_names_its_record() {
    let data = tempfile::tempdir().unwrap();
    let problem = json!({ "prompt": "def f(x):\n", "entry_point": "f", "test": "class T:\n    pass\ndef check(f):\n    f(T())\n" });
    write(
        data.path(),
        "humaneval/HumanEval.jsonl",
        &format!("{problem}\n"),
    );
    let mut task = Task::find("humaneval").unwrap().0;
    task.source.test = "humaneval/HumanEval.jsonl".into();
    let error = run(
        &task,
        &context(data.path()),
        &mut Parrot::new("    return 1"),
        &mut |_| true,
    )
    .unwrap_err()
    .to_string();
    assert!(
        error.contains("record 0") && error.contains("type `T`"),
        "{error}"
    );
}

#[test]
fn several_answers_are_drawn_alike_after_a_kill_and_give_pass_at_k() {
    let data = tempfile::tempdir().unwrap();
    let problem = json!({ "prompt": "def twice(x):\n", "entry_point": "twice", "test": "def check(f):\n    assert f(4) == 8\n" });
    write(
        data.path(),
        "humaneval/HumanEval.jsonl",
        &format!("{problem}\n"),
    );
    let mut task = Task::find("humaneval_64").unwrap().0;
    task.source.test = "humaneval/HumanEval.jsonl".into();
    task.repeats = 8;
    task.metrics.retain(|m| m.attempts() <= Some(8));
    let says = "    return x + x|    return 1|    return 2";
    let with = |out: &str| Context {
        out: Some(data.path().join(out)),
        ..context(data.path())
    };
    let mut model = Parrot::new(says);
    let whole = run(&task, &with("whole"), &mut model, &mut |_| true)
        .unwrap()
        .unwrap();
    assert_eq!(model.asked, 8);
    let right = model.seeds.iter().filter(|seed| *seed % 3 == 0).count() as f64;
    let value = |k: usize| {
        whole
            .measured
            .iter()
            .find(|m| m.metric == format!("pass@{k}"))
            .unwrap()
            .value
    };
    assert!(
        (value(1) - right / 8.0).abs() < 1e-12,
        "{right} of 8 programs are right, pass@1 is {}",
        value(1)
    );
    // Two of the eight: both are wrong with the chance of drawing them from the wrong ones.
    let wrong = 8.0 - right;
    assert!((value(2) - (1.0 - wrong * (wrong - 1.0) / 56.0)).abs() < 1e-12);
    let mut killed = Parrot {
        stop_after: 3,
        ..Parrot::new(says)
    };
    run(&task, &with("cut"), &mut killed, &mut |_| true).unwrap_err();
    let mut rest = Parrot::new(says);
    let resumed = run(&task, &with("cut"), &mut rest, &mut |_| true)
        .unwrap()
        .unwrap();
    assert_eq!((rest.asked, resumed.resumed), (5, 3));
    assert_eq!(resumed.measured, whole.measured);
}
