//! `--log` and `FRUGAL_LOG`.

use crate::support::{Run, command, folder, frugal_in};

fn logged(folder: &std::path::Path, level: &str, words: &str) -> Run {
    let mut command = command(folder);
    command.env("FRUGAL_LOG", level);
    let output = command.args(words.split_whitespace()).output();
    output.expect("the program starts").into()
}

/// Names of the spans that ended, as `step` of `DEBUG step{number=1}: ...: close time.busy=...`.
fn closed(run: &Run) -> Vec<String> {
    let lines = run
        .stderr
        .lines()
        .filter(|line| line.contains("time.busy="));
    let innermost = |line: &str| {
        let spans = line.split_once("DEBUG ")?.1.split(": frugal").next()?;
        let last = spans.rsplit(':').next()?;
        Some(last.split('{').next()?.trim().to_owned())
    };
    lines.filter_map(innermost).collect()
}

#[test]
fn what_is_done_is_shown_where_it_is_asked_for() {
    let folder = folder();
    let tune = "tune --out run --json --set train.max_steps=2 --set data.max_train_rows=32 --set data.max_eval_rows=8";
    let run = logged(folder.path(), "debug", tune).ok();
    let spans = closed(&run);
    let count = |name: &str| spans.iter().filter(|span| *span == name).count();
    assert_eq!((count("load"), count("step")), (1, 2), "{}", run.stderr);
    assert!(
        count("evaluate") > 1 && count("checkpoint") > 0,
        "{spans:?}"
    );
    // A level for one crate; results stay what they are.
    let words = "generate --model builtin --prompt see --max-tokens 3 --json";
    let run = logged(folder.path(), "frugal_decode=debug", words).ok();
    let spans = closed(&run);
    assert_eq!(
        spans.iter().filter(|span| *span == "prefill").count(),
        1,
        "{}",
        run.stderr
    );
    assert!(spans.iter().any(|span| span == "decode"), "{}", run.stderr);
    assert!(!spans.iter().any(|span| span == "load"), "{}", run.stderr);
    let words: Vec<&str> = words.split_whitespace().collect();
    let plain = frugal_in(folder.path(), &words).ok();
    assert!(!plain.stderr.contains("time.busy"), "{}", plain.stderr);
    assert_eq!(plain.json()["text"], run.json()["text"]);
    let flag = [&words[..], &["--log", "debug"]].concat();
    let run = frugal_in(folder.path(), &flag).ok();
    assert!(closed(&run).contains(&"load".to_owned()), "{}", run.stderr);
}

#[test]
fn a_level_that_does_not_exist_is_refused() {
    let folder = folder();
    logged(folder.path(), "verbose", "methods").fails(&["FRUGAL_LOG", "`verbose` is no level"]);
    frugal_in(folder.path(), &["methods", "--log", "loud"]).fails(&["--log", "`loud` is no level"]);
}
