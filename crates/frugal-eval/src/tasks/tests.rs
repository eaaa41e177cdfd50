//! The harness with a model whose answers are known.

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use frugal_core::data::Message;

/// Says that a text's log-likelihood is minus its number of characters, and continues every prompt
/// in the same way.
pub(super) struct Parrot {
    says: &'static str,
    asked: usize,
    stop_after: usize,
}

impl Parrot {
    pub(super) fn new(says: &'static str) -> Self {
        Self {
            says,
            asked: 0,
            stop_after: usize::MAX,
        }
    }
}

impl LanguageModel for Parrot {
    fn fingerprint(&self) -> &str {
        "parrot"
    }

    fn loglikelihood(
        &mut self,
        requests: &[Continuations<'_>],
        answer: Sink<'_, Vec<(f64, bool)>>,
    ) -> Result<(), ModelFailure> {
        // The last request is answered first: the order must not matter.
        for (i, request) in requests.iter().enumerate().rev() {
            self.asked += 1;
            let lls = request
                .continuations
                .iter()
                .map(|c| (-(c.chars().count() as f64), false))
                .collect();
            if !answer(i, lls) || self.asked >= self.stop_after {
                return if self.asked >= self.stop_after {
                    Err("killed".into())
                } else {
                    Ok(())
                };
            }
        }
        Ok(())
    }

    fn loglikelihood_rolling(
        &mut self,
        texts: &[&str],
        answer: Sink<'_, (f64, usize)>,
    ) -> Result<(), ModelFailure> {
        texts.iter().enumerate().for_each(|(i, t)| {
            answer(i, (-(t.len() as f64), t.len() / 2));
        });
        Ok(())
    }

    fn generate_until(
        &mut self,
        requests: &[ToContinue<'_>],
        _: &Generation,
        answer: Sink<'_, Written>,
    ) -> Result<(), ModelFailure> {
        for (i, request) in requests.iter().enumerate() {
            self.asked += 1;
            // One of the texts, by the seed.
            let says: Vec<&str> = self.says.split('|').collect();
            answer(i, says[(request.seed % says.len() as u64) as usize].into());
            if self.asked >= self.stop_after {
                return Err("killed".into());
            }
        }
        Ok(())
    }

    fn chat(&self, messages: &[Message]) -> Result<String, ModelFailure> {
        Ok(messages
            .iter()
            .map(|m| format!("<{}>{}\n", m.role, m.content))
            .collect::<String>()
            + "<assistant>")
    }
}

fn write(folder: &Path, name: &str, text: &str) {
    frugal_core::fs::write_atomic(&folder.join(name), text.as_bytes()).unwrap();
}

fn data() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(
        folder.path(),
        "sst2/dev.tsv",
        "label\tcontent\n0\tawful\n1\tgreat \"fun\n0\tbad\n1\tfine\n",
    );
    write(
        folder.path(),
        "sst2/train.tsv",
        "label\tcontent\n1\tone\n0\ttwo\n1\tthree\n0\tfour\n1\tfive\n",
    );
    let problem = |q: &str, a: &str| format!("{{\"question\": \"{q}\", \"answer\": \"{a}\"}}\n");
    write(
        folder.path(),
        "gsm8k/test.jsonl",
        &(problem("1+1?", "so\\n#### 2") + &problem("5+5?", "so\\n#### 10")),
    );
    write(
        folder.path(),
        "gsm8k/train.jsonl",
        &(problem("2+2?", "x\\n#### 4") + &problem("3+3?", "y\\n#### 6")),
    );
    write(
        folder.path(),
        "mc.jsonl",
        "{\"question\": \"?\", \"choices\": [\"aaaa\", \"b\", \"cc\"], \"answer\": \"B\"}\n",
    );
    folder
}

fn context(folder: &Path) -> Context {
    Context {
        data: Some(folder.into()),
        first_shots: true,
        ..Context::default()
    }
}

fn evaluate(name: &str, context: &Context, model: &mut dyn LanguageModel) -> TaskResult {
    run(&Task::find(name).unwrap().0, context, model, &mut |_| true)
        .unwrap()
        .unwrap()
}

#[test]
fn multiple_choice_takes_the_likeliest() {
    let data = data();
    // `negative` and `positive` have eight characters each, so the first choice is always taken.
    let result = evaluate("sst2", &context(data.path()), &mut Parrot::new(""));
    assert_eq!(
        (result.measured[0].metric.as_str(), result.measured[0].value),
        ("acc", 0.5)
    );
    // The sample's standard deviation of 0, 1, 0, 1 over two.
    assert!((result.measured[0].stderr.unwrap() - (1.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
    assert_eq!(
        result.example,
        "awful\nQuestion: Is this sentence positive or negative?\nAnswer:"
    );
    let own = data.path().join("mc.jsonl");
    let result = evaluate(
        &format!("multiple-choice:{}", own.display()),
        &context(data.path()),
        &mut Parrot::new(""),
    );
    assert_eq!(result.measured[0].value, 1.0);
}

#[test]
fn prompts_are_those_of_lm_evaluation_harness() {
    let data = data();
    let folder = data.path();
    let with = Context {
        num_fewshot: Some(2),
        ..context(folder)
    };
    let shot = "one\nQuestion: Is this sentence positive or negative?\nAnswer: positive\n\n\
                two\nQuestion: Is this sentence positive or negative?\nAnswer: negative\n\n\
                awful\nQuestion: Is this sentence positive or negative?\nAnswer:";
    assert_eq!(evaluate("sst2", &with, &mut Parrot::new("")).example, shot);
    let with = Context {
        num_fewshot: Some(1),
        chat_template: true,
        system: "Be brief.".into(),
        ..context(folder)
    };
    let once = evaluate("sst2", &with, &mut Parrot::new("")).example;
    assert!(
        once.starts_with("<system>Be brief.\n<user>one\nQuestion")
            && once.contains("Answer: positive\n\nawful"),
        "{once}"
    );
    let with = Context {
        fewshot_as_multiturn: true,
        ..with
    };
    let turns = evaluate("sst2", &with, &mut Parrot::new("")).example;
    assert!(
        turns.contains("Answer:\n<assistant>positive\n<user>awful"),
        "{turns}"
    );
}

#[test]
fn written_answers_are_filtered_in_two_ways() {
    let data = data();
    let with = Context {
        num_fewshot: Some(1),
        ..context(data.path())
    };
    let result = evaluate("gsm8k", &with, &mut Parrot::new(" 1 + 1 = 2, so 10."));
    let value = |filter: &str| {
        result
            .measured
            .iter()
            .find(|m| m.filter == filter)
            .unwrap()
            .value
    };
    assert_eq!(
        (value("strict-match"), value("flexible-extract")),
        (0.0, 0.5)
    );
    assert_eq!(
        result.example,
        "Question: 2+2?\nAnswer: x\n#### 4\n\nQuestion: 1+1?\nAnswer:"
    );
}

#[test]
fn a_text_has_one_bit_less_than_its_nats() {
    let data = data();
    write(data.path(), "t.txt", "four words are here");
    let path = data.path().join("t.txt");
    let result = evaluate(
        &format!("perplexity:{}", path.display()),
        &context(data.path()),
        &mut Parrot::new(""),
    );
    let value = |name: &str| {
        result
            .measured
            .iter()
            .find(|m| m.metric == name)
            .unwrap()
            .value
    };
    // One nat for each of the 19 bytes; 4 words; 9 tokens.
    assert!((value("byte_perplexity") - 1f64.exp()).abs() < 1e-12);
    assert!((value("bits_per_byte") - 1.0 / std::f64::consts::LN_2).abs() < 1e-12);
    assert!((value("word_perplexity").ln() - 19.0 / 4.0).abs() < 1e-12);
    assert!((value("token_perplexity").ln() - 19.0 / 9.0).abs() < 1e-12);
}

#[test]
fn a_killed_run_goes_on_where_it_was() {
    let data = data();
    let out = data.path().join("out");
    let with = Context {
        out: Some(out.clone()),
        ..context(data.path())
    };
    let task = Task::find("sst2").unwrap().0;
    let mut model = Parrot {
        stop_after: 3,
        ..Parrot::new("")
    };
    assert!(
        run(&task, &with, &mut model, &mut |_| true)
            .unwrap_err()
            .to_string()
            .contains("killed")
    );
    // The end of the log is torn off, as by a kill in the middle of a write.
    let log = out.join("answers_sst2.jsonl");
    let bytes = std::fs::read(&log).unwrap();
    std::fs::write(&log, &bytes[..bytes.len() - 5]).unwrap();
    let mut model = Parrot::new("");
    let result = evaluate("sst2", &with, &mut model);
    assert_eq!((model.asked, result.resumed), (2, 2));
    let mut again = Parrot::new("");
    assert_eq!(
        evaluate("sst2", &with, &mut again).measured,
        result.measured
    );
    assert_eq!(again.asked, 0);
    // Another prompt is another question.
    let mut other = Parrot::new("");
    evaluate(
        "sst2",
        &Context {
            num_fewshot: Some(1),
            ..with
        },
        &mut other,
    );
    assert_eq!(other.asked, 4);
    let samples = std::fs::read_to_string(out.join("samples_sst2.jsonl")).unwrap();
    let first: Value = serde_json::from_str(samples.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&first["resps"][0][0][0], &first["acc"]),
        (&json!(-9.0), &json!(1.0))
    );
}

#[test]
fn programs_run_only_with_leave() {
    let data = data();
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
    let without = run(
        &task,
        &context(data.path()),
        &mut Parrot::new(""),
        &mut |_| true,
    )
    .unwrap_err();
    assert!(
        without.to_string().contains("--allow-code-execution"),
        "{without}"
    );
}

#[test]
fn more_programs_are_not_counted_than_are_drawn() {
    let mut task = Task::find("humaneval_64").unwrap().0;
    task.repeats = 8;
    task.metrics = vec![Metric::Pass { k: 9 }];
    assert!(task.check().unwrap_err().contains("repeats"));
}

#[test]
fn what_an_answer_begins_with_is_given() {
    let data = data();
    write(
        data.path(),
        "he.jsonl",
        &format!(
            "{}\n",
            json!({ "prompt": "def f():\n", "entry_point": "f", "test": "" })
        ),
    );
    let task = Task::find(&format!(
        "humaneval_instruct:{}",
        data.path().join("he.jsonl").display()
    ))
    .unwrap()
    .0;
    let prepared = |chat_template| {
        let with = Context {
            chat_template,
            ..context(data.path())
        };
        match &prompt::prepare(&task, &with, &Parrot::new(""))
            .unwrap()
            .samples[0]
            .request
        {
            Request::Generate { context, .. } => context.clone(),
            other => panic!("{other:?}"),
        }
    };
    let question = "Write a solution to the following problem and make sure that it passes the tests:\n```python\ndef f():\n\n```\n";
    let begun = "Here is the completed function:\n```python\ndef f():\n\n";
    assert_eq!(
        prepared(true),
        format!("<user>{question}\n<assistant>{begun}")
    );
    assert_eq!(prepared(false), format!("{question}{begun}"));
}

#[test]
fn examples_are_drawn_by_seed_and_never_the_question() {
    let data = data();
    let mut task = Task::find("sst2").unwrap().0;
    task.source.fewshot.clear();
    let draw = |seed| {
        let with = Context {
            num_fewshot: Some(3),
            first_shots: false,
            seed,
            ..context(data.path())
        };
        prompt::prepare(&task, &with, &Parrot::new(""))
            .unwrap()
            .samples
            .iter()
            .map(|s| format!("{:?}", s.request))
            .collect::<Vec<_>>()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    // Four records: the other three stand in front of each, every one once.
    for prompt in draw(1) {
        for word in ["awful", "great", "bad", "fine"] {
            assert_eq!(prompt.matches(word).count(), 1, "{prompt}");
        }
    }
    let with = Context {
        num_fewshot: Some(4),
        ..context(data.path())
    };
    assert!(
        prompt::prepare(&task, &with, &Parrot::new(""))
            .unwrap_err()
            .to_string()
            .contains("there are 3")
    );
}

/// scikit-learn, which the reference asks, has no binary F1 of three classes; it came to 0.
#[test]
fn f1_of_more_than_two_choices_is_refused() {
    let data = data();
    let own = data.path().join("mc.jsonl");
    let mut task = Task::find(&format!("multiple-choice:{}", own.display()))
        .unwrap()
        .0;
    task.metrics.push(Metric::F1);
    let mut model = Parrot::new("");
    let mut of = |task: &Task| run(task, &context(data.path()), &mut model, &mut |_| true);
    let said = of(&task).unwrap_err().to_string();
    assert!(
        said.contains("`f1`") && said.contains("there are 3"),
        "{said}"
    );
    task.aggregations
        .insert("f1".into(), Aggregation::ClassF1(3));
    of(&task).unwrap();
}

#[test]
fn a_record_that_does_not_fit_is_named() {
    let data = data();
    let own = data.path().join("mc.jsonl");
    let refused = |line: &str, word: &str| {
        std::fs::write(
            &own,
            format!(
                "{{\"question\": \"?\", \"choices\": [\"a\", \"b\"], \"answer\": 1}}\n{line}\n"
            ),
        )
        .unwrap();
        let task = Task::find(&format!("multiple-choice:{}", own.display()))
            .unwrap()
            .0;
        let error = run(
            &task,
            &context(data.path()),
            &mut Parrot::new(""),
            &mut |_| true,
        )
        .unwrap_err()
        .to_string();
        assert!(error.contains(word) && error.contains('1'), "{error}");
    };
    refused(
        r#"{"question": "?", "choices": ["a", "b"], "answer": "z"}"#,
        "\"z\"",
    );
    refused(
        r#"{"question": "?", "choices": ["a"], "answer": 0}"#,
        "two choices",
    );
    refused(r#"{"choices": ["a", "b"], "answer": 0}"#, "choices, answer");
    refused(
        r#"{"question": "?", "choices": "ab", "answer": 0}"#,
        "not a list",
    );
    let nowhere = Task::find("multiple-choice:nowhere.jsonl").unwrap().0;
    assert!(
        run(
            &nowhere,
            &context(data.path()),
            &mut Parrot::new(""),
            &mut |_| true
        )
        .unwrap_err()
        .to_string()
        .contains("nowhere.jsonl")
    );
}

#[test]
fn results_have_the_shape_that_readers_know() {
    let data = data();
    let result = evaluate("sst2", &context(data.path()), &mut Parrot::new(""));
    let results = EvalResults {
        tasks: vec![result],
        ..EvalResults::default()
    };
    let value = results.to_json();
    for key in [
        "results",
        "group_subtasks",
        "configs",
        "versions",
        "n-shot",
        "higher_is_better",
        "n-samples",
        "config",
        "task_hashes",
    ] {
        assert!(value.get(key).is_some(), "{key}");
    }
    assert_eq!(value["results"]["sst2"]["acc,none"], 0.5);
    assert!(value["results"]["sst2"]["acc_stderr,none"].is_number());
    assert_eq!(value["n-samples"]["sst2"]["effective"], 4);
    let table = results.to_markdown();
    assert!(
        table
            .starts_with("|Tasks|Version|Filter|n-shot|Metric| |Value | |Stderr|\n|-----|------:|"),
        "{table}"
    );
    assert!(
        table.contains("|sst2 |    1.0|none  |     0|acc   |↑|0.5000|±|0.2887|"),
        "{table}"
    );
}
