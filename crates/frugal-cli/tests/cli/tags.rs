//! Labels of words, from the data to predictions and the merged model.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Run, folder, frugal_in};

const SMALL: &str = "--epochs 6 --batch-size 8 --lr 5e-3 --quiet";

fn run(folder: &Path, words: &str) -> Run {
    frugal_in(folder, &words.split_whitespace().collect::<Vec<_>>())
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Somebody goes to some place.
fn sentences(rows: usize, numbers: bool) -> String {
    let people = ["anna smith", "john", "mary jones", "peter"];
    let places = ["paris", "new york", "london", "rome"];
    let labels = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"];
    let row = |i: usize| {
        let (mut tokens, mut tags) = (Vec::new(), Vec::new());
        let mut add = |words: &str, first: usize, next: usize| {
            for (j, word) in words.split(' ').enumerate() {
                tokens.push(word.to_owned());
                tags.push(if j == 0 { first } else { next });
            }
        };
        add(people[i % 4], 1, 2);
        add(["went to", "flew over to"][i % 2], 0, 0);
        add(places[(i / 4) % 4], 3, 4);
        let tags = match numbers {
            true => json!(tags),
            false => tags.iter().map(|tag| json!(labels[*tag])).collect(),
        };
        format!("{}\n", json!({"tokens": tokens, "ner_tags": tags}))
    };
    (0..rows).map(row).collect()
}

#[test]
fn labels_of_words_are_learned_measured_predicted_and_merged() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("train.jsonl"), sentences(64, false)).unwrap();
    let words =
        format!("tune --task token-classification --data train.jsonl {SMALL} --json --out run");
    let tuned = run(folder.path(), &words).ok().json();
    let adapted = &tuned["parts"][0]["adapted"];
    assert!(adapted["f1"].as_f64().unwrap() > 0.9, "{tuned}");
    for name in ["precision", "recall", "accuracy", "loss"] {
        assert!(adapted[name].is_number(), "{adapted}");
    }
    let config: Value =
        serde_json::from_str(&fs::read_to_string(at("run/adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["task_type"], "TOKEN_CLS");

    let words = "eval --adapter run --data train.jsonl --json --out measured";
    let measured = run(folder.path(), words).ok().json();
    assert!(measured["metrics"]["f1"].as_f64().unwrap() > 0.9);
    assert_eq!(measured["label_scores"][0]["label"], "LOC");
    let kept = fs::read_to_string(at("measured/predictions.jsonl")).unwrap();
    assert_eq!(lines(&kept)[0]["gold"][0], "B-PER");

    fs::write(
        at("new.jsonl"),
        "{\"tokens\": [\"mary\", \"jones\", \"went\", \"to\", \"rome\"]}\n",
    )
    .unwrap();
    let said = run(folder.path(), "predict --adapter run --data new.jsonl").ok();
    let found = &lines(&said.stdout)[0];
    let expected = ["B-PER", "I-PER", "O", "O", "B-LOC"];
    assert_eq!(found["labels"], json!(expected));
    assert_eq!(
        found["entities"],
        json!([{"type": "PER", "start": 0, "end": 2}, {"type": "LOC", "start": 4, "end": 5}])
    );
    let csv = run(
        folder.path(),
        "predict --adapter run --data new.jsonl --format csv",
    )
    .ok();
    let rows: Vec<&str> = csv.stdout.lines().collect();
    assert_eq!((rows[0], rows.len()), ("line,word,label,score", 6));
    assert!(rows[1].starts_with("1,mary,B-PER,"), "{}", rows[1]);

    texts_without_words_and_wrong_tags_stopped_or_passed(folder.path());
    words_behind_the_cut_are_told(folder.path());

    run(folder.path(), "merge --adapter run --out merged --quiet").ok();
    let merged = run(folder.path(), "predict --model merged --data new.jsonl").ok();
    assert_eq!(lines(&merged.stdout)[0]["labels"], json!(expected));
    let args = [
        "predict",
        "--model",
        "merged",
        "--text",
        "mary jones went to rome",
    ];
    let text = frugal_in(folder.path(), &args).ok();
    assert_eq!(lines(&text.stdout)[0]["labels"], json!(expected));

    // Trained on with the task that the adapter says.
    let words = "tune --adapter run --data train.jsonl --max-steps 1 --quiet --out on";
    run(folder.path(), words).ok();
    let words =
        "tune --adapter run --task classification --data train.jsonl --max-steps 1 --out no";
    run(folder.path(), words)
        .fails(&["its head labels every token", "--task token-classification"]);
}

fn texts_without_words_and_wrong_tags_stopped_or_passed(folder: &Path) {
    let predict = |text: &str| {
        fs::write(folder.join("some.jsonl"), text).unwrap();
        run(folder, "predict --adapter run --data some.jsonl")
    };
    let sentence = r#"{"tokens": ["mary", "jones"], "ner_tags": ["B-PER", null]}"#;
    let none = r#"{"tokens": [], "ner_tags": []}"#;
    let found = lines(
        &predict(&format!("{none}\n{sentence}\n{none}\n{none}\n{sentence}\n"))
            .ok()
            .stdout,
    );
    assert_eq!(found.len(), 5);
    for (at, words) in [0, 2, 0, 0, 2].into_iter().enumerate() {
        for key in ["tokens", "labels", "scores", "gold"] {
            assert_eq!(
                found[at][key].as_array().unwrap().len(),
                words,
                "{}",
                found[at]
            );
        }
    }
    assert_eq!(found[0]["entities"], json!([]));
    assert_eq!(found[1]["labels"], json!(["B-PER", "I-PER"]));
    assert_eq!(
        lines(&predict(&format!("{none}\n")).ok().stdout)[0]["labels"],
        json!([])
    );
    predict(&sentence.replace("null", "\"O\", \"O\""))
        .fails(&["some.jsonl:1: 2 tokens, but 3 tags"]);
    predict(&format!("{none}\n{}", sentence.replace("null", "\"B-X\"")))
        .fails(&["some.jsonl:2: label \"B-X\" is not one of "]);
}

fn words_behind_the_cut_are_told(folder: &Path) {
    let tokens = json!({"tokens": vec!["mary"; 40], "ner_tags": vec!["B-PER"; 40]});
    fs::write(folder.join("long.jsonl"), format!("{tokens}\n")).unwrap();
    let words = "eval --adapter run --data long.jsonl --max-length 10 --truncate --json";
    let run = run(folder, words).ok();
    let measured = run.json();
    let cut = measured["cut_words"].as_u64().unwrap();
    let scores = measured["label_scores"].as_array().unwrap();
    let of = |scores: &&Value| scores["label"] == "PER";
    let seen = scores.iter().find(of).unwrap()["support"].as_u64().unwrap();
    assert!(seen <= 10 && seen + cut == 40, "{measured}");
    let told = format!("long.jsonl: {cut} words with a tag lie behind the cut");
    assert!(run.stderr.contains(&told), "{}", run.stderr);
}

#[test]
fn what_is_no_data_of_words_is_refused() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("numbers.jsonl"), sentences(16, true)).unwrap();
    fs::write(at("texts.csv"), "text,label\na,x\nb,y\n").unwrap();
    let tune = |words: &str| {
        let words = format!("tune --max-steps 1 --quiet --out run {words}");
        frugal_in(
            folder.path(),
            &words
                .split(' ')
                .filter(|w| !w.is_empty())
                .collect::<Vec<_>>(),
        )
    };
    let tags = "--task token-classification";
    tune(&format!("{tags} --data numbers.jsonl"))
        .fails(&["the tag 1 is a number", "data.label_names"]);
    tune(&format!("{tags} --data texts.csv --eval-data texts.csv"))
        .fails(&["which needs tokens and ner_tags"]);
    tune(&format!("{tags} --data sms-spam")).fails(&["a label for each text"]);
    tune(&format!(
        "{tags} --data numbers.jsonl --problem-type regression"
    ))
    .fails(&["`problem_type`"]);
    fs::write(
        at("spaces.jsonl"),
        "{\"tokens\": [\"a\", \"b\"], \"ner_tags\": [\"O\", \" O\"]}\n",
    )
    .unwrap();
    tune(&format!("{tags} --data spaces.jsonl")).fails(&["only in the space around it"]);
    tune(&format!(
        "{tags} --data numbers.jsonl --class-weights balanced"
    ))
    .fails(&["`--class-weights`", "leave it out"]);
    let names = "--set data.label_names=[\"O\",\"B-PER\",\"I-PER\",\"B-LOC\",\"I-LOC\"]";
    tune(&format!("--data texts.csv {names}")).fails(&["`data.label_names`"]);
    tune(&format!(
        "{tags} --data numbers.jsonl {names} --set data.label_all_tokens=true"
    ))
    .ok();
    // The names go with the adapter.
    let words = "eval --adapter run --data numbers.jsonl --json";
    let measured = run(folder.path(), words).ok().json();
    assert_eq!(
        measured["labels"],
        json!(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
    );
}
