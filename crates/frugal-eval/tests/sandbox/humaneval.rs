//! The problems of HumanEval, where the data is there.

use std::io::Read;

use flate2::read::GzDecoder;
use frugal_eval::programs::{Test, Verdict, check};
use frugal_eval::sandbox::Limits;
use serde_json::Value;

use crate::support::*;

fn problems() -> Option<Vec<Value>> {
    let folder = std::env::var_os("FRUGAL_DATA").map(std::path::PathBuf::from);
    let file = folder.map(|f| f.join("humaneval/HumanEval.jsonl.gz"));
    let Some(bytes) = file.and_then(|f| std::fs::read(f).ok()) else {
        eprintln!("skipped: no humaneval/HumanEval.jsonl.gz in FRUGAL_DATA");
        return None;
    };
    let mut text = String::new();
    GzDecoder::new(bytes.as_slice())
        .read_to_string(&mut text)
        .unwrap();
    Some(
        text.lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect(),
    )
}

/// Problems that pass with these bodies.
fn passed(body: impl Fn(&Value) -> String) -> Option<Vec<String>> {
    let sandbox = sandbox();
    let mut passed = Vec::new();
    for problem in problems()? {
        let text = |key: &str| problem[key].as_str().unwrap();
        let program = format!("{}{}", text("prompt"), body(&problem));
        let test = Test {
            code: &format!("{}\ncheck({})", text("test"), text("entry_point")),
            prompt: text("prompt"),
            wanted: &[text("entry_point").to_owned()],
        };
        let verdict = check(&sandbox, &program, &test, &Limits::default()).unwrap();
        if verdict == Verdict::Pass {
            passed.push(text("task_id").to_owned());
        } else if !body(&problem).contains("exit") {
            eprintln!("{}: {verdict:?}", text("task_id"));
        }
    }
    Some(passed)
}

#[test]
fn every_canonical_solution_of_humaneval_passes() {
    let found = passed(|problem| problem["canonical_solution"].as_str().unwrap().into());
    if let Some(passed) = found {
        assert_eq!(passed.len(), 164);
    }
}

#[test]
fn a_body_that_exits_passes_none_of_humaneval() {
    if let Some(passed) = passed(|_| "    exit()\n".into()) {
        assert_eq!(passed, [""; 0]);
    }
}
