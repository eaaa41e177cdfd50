//! `frugal eval --tasks`, on the built-in model.

use std::fs;

use serde_json::Value;

use crate::support::{folder, frugal, frugal_in};

const QUESTIONS: &str = r#"{"question": "What is a young dog called?", "choices": ["a puppy", "a kitten"], "answer": 0}
{"question": "What falls from clouds?", "choices": ["sand", "rain", "glass"], "answer": "B"}
{"question": "What is frozen water?", "choices": ["ice", "steam"], "answer": "ice"}
"#;

#[test]
fn tasks_give_results_samples_and_a_table() {
    let folder = folder();
    let folder = folder.path();
    fs::write(folder.join("questions.jsonl"), QUESTIONS).unwrap();
    fs::write(
        folder.join("text.txt"),
        "A short text about nothing in particular.\n",
    )
    .unwrap();
    let tasks = "multiple-choice:questions.jsonl,perplexity:text.txt";
    let words = [
        "eval",
        "--tasks",
        tasks,
        "--out",
        "runs/e",
        "--num-fewshot",
        "0",
        "--json",
    ];
    let first = frugal_in(folder, &words).ok();
    let results = first.json();
    assert_eq!(results["n-samples"]["multiple-choice"]["effective"], 3);
    let bits = results["results"]["perplexity"]["bits_per_byte,none"]
        .as_f64()
        .unwrap();
    assert!(bits > 0.0 && bits < 8.0, "{bits}");
    assert_eq!(
        results["configs"]["multiple-choice"]["example"],
        "Question: What is a young dog called?\nAnswer:"
    );
    assert_eq!(
        results["configs"]["multiple-choice"]["template_sha256"]
            .as_str()
            .unwrap()
            .len(),
        64
    );
    let samples = fs::read_to_string(folder.join("runs/e/samples_multiple-choice.jsonl")).unwrap();
    let samples: Vec<Value> = samples
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(samples.len(), 3);
    assert_eq!(samples[1]["resps"].as_array().unwrap().len(), 3);
    assert!(
        samples
            .iter()
            .all(|s| s["resps"][0][0][0].as_f64().unwrap() < 0.0)
    );
    let saved: Value =
        serde_json::from_slice(&fs::read(folder.join("runs/e/results.json")).unwrap()).unwrap();
    assert_eq!(saved["results"], results["results"]);

    // The same command asks nothing again, also when the last answer was torn off by a kill.
    let log = folder.join("runs/e/answers_multiple-choice.jsonl");
    let bytes = fs::read(&log).unwrap();
    fs::write(&log, &bytes[..bytes.len() - 9]).unwrap();
    let again = frugal_in(folder, &words).ok();
    assert!(
        again.stderr.contains("2 of 3 answers are there already"),
        "{}",
        again.stderr
    );
    assert_eq!(again.json()["results"], results["results"]);
    assert_eq!(again.json()["task_hashes"], results["task_hashes"]);

    let table = frugal_in(folder, &["eval", "--tasks", tasks, "--quiet"]).ok();
    assert!(
        table.stdout.starts_with("|     Tasks") || table.stdout.starts_with("|Tasks"),
        "{}",
        table.stdout
    );
    assert!(
        table.stdout.contains("|acc_norm") && table.stderr.is_empty(),
        "{}{}",
        table.stdout,
        table.stderr
    );
}

#[test]
fn examples_are_turns_of_a_chat_unless_asked_for_otherwise() {
    let folder = folder();
    let folder = folder.path();
    fs::write(folder.join("questions.jsonl"), QUESTIONS).unwrap();
    frugal_in(folder, &["export", "--to", "hf", "--out", "model"]).ok();
    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
    fs::write(folder.join("model/chat_template.jinja"), template).unwrap();
    let prompt = |more: &[&str]| {
        let words = [
            "eval",
            "--model",
            "model",
            "--tasks",
            "multiple-choice:questions.jsonl",
            "--num-fewshot",
            "1",
            "--json",
            "--apply-chat-template",
        ];
        let words: Vec<&str> = words.iter().chain(more).copied().collect();
        let results = frugal_in(folder, &words).ok().json();
        let example = &results["configs"]["multiple-choice"]["example"];
        example.as_str().unwrap().to_owned()
    };
    // What `lm_eval --apply_chat_template` writes, with and without `--fewshot_as_multiturn false`.
    let turns = prompt(&[]);
    assert_eq!(turns.matches("<user>").count(), 2, "{turns}");
    assert_eq!(turns.matches("<assistant>").count(), 2, "{turns}");
    assert_eq!(prompt(&["--fewshot-as-multiturn"]), turns);
    let one = prompt(&["--fewshot-as-multiturn", "false"]);
    assert_eq!(one.matches("<user>").count(), 1, "{one}");
}

#[test]
fn a_task_of_ones_own_is_a_file() {
    let folder = folder();
    let folder = folder.path();
    fs::create_dir(folder.join("tasks")).unwrap();
    fs::write(
        folder.join("tasks/words.csv"),
        "given,wanted\nan animal,x\na plant,y\n",
    )
    .unwrap();
    let task = "name = 'words'\nversion = '1'\nkind = 'generate_until'\nsource = { test = 'words.csv' }\n\
                prompt = { text = '{{given|upper}} is', target = '{{wanted}}' }\ngeneration = { max_tokens = 3, until = [\"\\n\"] }\n\
                [[metrics]]\nname = 'exact_match'\n";
    fs::write(folder.join("tasks/words.toml"), task).unwrap();
    let results = frugal_in(
        folder,
        &["eval", "--tasks", "tasks/words.toml", "--json", "--quiet"],
    )
    .ok()
    .json();
    assert_eq!(results["results"]["words"]["exact_match,none"], 0.0);
    assert_eq!(results["configs"]["words"]["example"], "AN ANIMAL is");
    fs::write(
        folder.join("tasks/words.toml"),
        task.replace("given", "taken"),
    )
    .unwrap();
    frugal_in(folder, &["eval", "--tasks", "tasks/words.toml"]).fails(&[
        "words",
        "record 0",
        "given, wanted",
    ]);
}

#[test]
fn what_is_there_is_not_replaced() {
    let folder = folder();
    let folder = folder.path();
    fs::create_dir(folder.join("run")).unwrap();
    fs::write(folder.join("run/record.json"), "{}").unwrap();
    fs::write(folder.join("text.txt"), "A text.\n").unwrap();
    let words = ["eval", "--tasks", "perplexity:text.txt", "--out", "run"];
    frugal_in(folder, &words).fails(&["run holds a training run", "another `--out`"]);
    frugal_in(
        folder,
        &["eval", "--data", "text.txt", "--dump-logits", "text.txt"],
    )
    .fails(&["text.txt: exists already", "`--dump-logits`"]);
    assert_eq!(fs::read_dir(folder.join("run")).unwrap().count(), 1);
    assert_eq!(
        fs::read_to_string(folder.join("text.txt")).unwrap(),
        "A text.\n"
    );
}

#[test]
fn wrong_tasks_are_refused_before_a_model_is_read() {
    frugal(&["eval"]).fails(&["--data"]);
    frugal(&["eval", "--data", "x.tsv", "--tasks", "sst2"]).fails(&["--tasks"]);
    // A flag of the other mode would do nothing.
    frugal(&["eval", "--data", "x.tsv", "--limit", "5"]).fails(&["--data", "--limit"]);
    frugal(&["eval", "--tasks", "sst2", "--max-rows", "5"]).fails(&["--tasks", "--max-rows"]);
    frugal(&["eval", "--tasks", "sst3"]).fails(&["sst3", "did you mean `sst2`"]);
    frugal(&["eval", "--tasks", "perplexity:a.txt,perplexity:b.txt"])
        .fails(&["perplexity", "twice"]);
    frugal(&["eval", "--tasks", "perplexity:nowhere.txt"]).fails(&["nowhere.txt"]);
    frugal(&["eval", "--tasks", "sst2", "--apply-chat-template"])
        .fails(&["`builtin` has no chat template", "`--apply-chat-template`"]);
    let tasks = frugal(&["eval", "--tasks", "list", "--json"]).ok().json();
    assert!(
        tasks
            .as_array()
            .unwrap()
            .iter()
            .any(|t| t["name"] == "gsm8k")
    );
}

/// Rows of a task in YAML, with enough of them to be interrupted.
fn yaml(folder: &std::path::Path, rows: usize) {
    let task = "task: numbers\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n\
                output_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{c}}'\ndoc_to_target: '{{g}}'\n\
                tag: sums\nmetric_list: [{metric: acc}]\n";
    fs::write(folder.join("numbers.yaml"), task).unwrap();
    let filler = "and so on and so on ".repeat(20);
    let row = |i: usize| {
        format!("{{\"q\": \"{filler} {i}: 1+2?\", \"c\": [\"2\", \"3\", \"1\"], \"g\": 1}}\n")
    };
    fs::write(
        folder.join("rows.jsonl"),
        (0..rows).map(row).collect::<String>(),
    )
    .unwrap();
}

#[test]
fn a_digit_is_the_number_of_a_choice_before_it_is_its_text() {
    let folder = folder();
    let folder = folder.path();
    yaml(folder, 4);
    let words = ["eval", "--tasks", "numbers.yaml", "--out", "e", "--quiet"];
    frugal_in(folder, &words).ok();
    let samples = fs::read_to_string(folder.join("e/samples_numbers.jsonl")).unwrap();
    let sample: Value = serde_json::from_str(samples.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&sample["gold"], &sample["target"]),
        (&Value::from(1), &Value::from(1))
    );
    // What `select` needs is a column of numbers.
    let sure = [
        ("logprob", -1e9, 0.0),
        ("probability", 1.0 / 3.0, 1.0),
        ("logprob_margin", 0.0, 1e9),
    ];
    for (column, least, most) in sure {
        let value = sample[column].as_f64().unwrap();
        assert!((least..=most).contains(&value), "{column} {value}");
    }
    let lines: Vec<&str> = samples.lines().collect();
    fs::write(folder.join("known.jsonl"), lines[..2].join("\n")).unwrap();
    fs::write(folder.join("new.jsonl"), lines[2..].join("\n")).unwrap();
    let chosen = frugal_in(
        folder,
        &[
            "select",
            "--calibration",
            "known.jsonl",
            "--test",
            "new.jsonl",
            "--label",
            "acc",
            "--scores",
            "logprob,probability",
            "--json",
        ],
    );
    assert_eq!(chosen.ok().json()["calibration_items"], 2);
}

#[test]
fn a_group_is_scored_over_its_tasks() {
    let folder = folder();
    let folder = folder.path();
    yaml(folder, 3);
    let group = "group: all\ntask: [sums]\naggregate_metric_list: [{metric: acc}]\n";
    fs::write(folder.join("all.yaml"), group).unwrap();
    let found = frugal_in(
        folder,
        &["eval", "--tasks", "all.yaml", "--json", "--quiet"],
    )
    .ok()
    .json();
    assert_eq!(
        found["groups"]["all"]["acc,none"],
        found["results"]["numbers"]["acc,none"]
    );
    assert_eq!(found["group_subtasks"]["all"][0], "numbers");
    let table = frugal_in(folder, &["eval", "--tasks", "all.yaml", "--quiet"])
        .ok()
        .stdout;
    assert!(table.contains("|Groups|"), "{table}");
}

#[test]
fn settings_of_writing_are_changed_or_refused() {
    let folder = folder();
    let folder = folder.path();
    yaml(folder, 2);
    frugal_in(
        folder,
        &[
            "eval",
            "--tasks",
            "numbers.yaml",
            "--gen_kwargs",
            "top_p=0.5",
        ],
    )
    .fails(&["--gen-kwargs", "none of the tasks writes"]);
    frugal_in(
        folder,
        &["eval", "--tasks", "gsm8k", "--gen-kwargs", "colour=1"],
    )
    .fails(&["colour", "temperature"]);
    frugal_in(
        folder,
        &[
            "eval",
            "--tasks",
            "numbers.yaml",
            "--endpoint",
            "http://127.0.0.1:9/v1",
        ],
    )
    .fails(&["`numbers`", "log-likelihoods", "--endpoint"]);
}

/// Answers each question with this and gives back the requests.
fn service(answers: &'static [&'static str]) -> (String, std::thread::JoinHandle<Vec<String>>) {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let asked = std::thread::spawn(move || {
        let one = |text: &&str| {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut request, mut piece) = (String::new(), [0; 4096]);
            while !request.ends_with('}') {
                let read = stream.read(&mut piece).unwrap();
                request += &String::from_utf8_lossy(&piece[..read]);
            }
            let body = serde_json::json!({ "choices": [{ "text": text }] }).to_string();
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
            .unwrap();
            request
        };
        answers.iter().map(one).collect()
    });
    (url, asked)
}

#[test]
fn a_service_is_scored_with_its_key_and_leaves_a_record() {
    let folder = folder();
    let folder = folder.path();
    fs::write(
        folder.join("sums.toml"),
        "name = \"sums\"\nversion = \"1\"\nkind = \"generate_until\"\nsource = { test = \"sums.csv\" }\n\
         prompt = { text = \"{{q}}\", target = \"{{a}}\" }\ngeneration = { until = [\"\\n\"], max_tokens = 4 }\n\
         metrics = [{ name = \"exact_match\" }]\n",
    )
    .unwrap();
    fs::write(folder.join("sums.csv"), "q,a\n3 + 4 =,7\n1 + 1 =,2\n").unwrap();
    let (url, asked) = service(&["7\nmore", "5"]);
    let found = crate::support::command(folder)
        .env("SUMS_KEY", "sk-sums")
        .args(["eval", "--tasks", "sums.toml", "--endpoint", &url])
        .args(["--served-model", "m", "--api-key-env", "SUMS_KEY"])
        .args(["--out", "e", "--json"])
        .output()
        .unwrap();
    let found = crate::support::Run::from(found).ok().json();
    assert_eq!(found["results"]["sums"]["exact_match,none"], 0.5);
    let asked = asked.join().unwrap();
    for request in &asked {
        let request = request.to_ascii_lowercase();
        assert!(
            request.contains("authorization: bearer sk-sums"),
            "{request}"
        );
    }
    let record = fs::read_to_string(folder.join("e/measurements.json")).unwrap();
    assert!(!record.contains("sk-sums"));
    let record: Value = serde_json::from_str(&record).unwrap();
    let record = &record["measurements"][0];
    assert_eq!(
        (&record["model"]["name"], &record["precision"]),
        (&"m".into(), &"as served".into())
    );
    assert_eq!(record["values"]["sums: exact_match"], 0.5);
}

#[cfg(unix)]
#[test]
fn an_interrupted_evaluation_ends_at_once_and_goes_on() {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};
    let folder = folder();
    let folder = folder.path();
    yaml(folder, 400);
    let words = [
        "eval",
        "--tasks",
        "numbers.yaml",
        "--out",
        "e",
        "--batch-tokens",
        "512",
    ];
    let child = crate::support::command(folder)
        .args(words)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = folder.join("e/answers_numbers.jsonl");
    let start = Instant::now();
    while fs::metadata(&log).map_or(0, |m| m.len()) == 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "no answer comes");
        std::thread::sleep(Duration::from_millis(20));
    }
    let asked = Instant::now();
    let kill = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(kill.unwrap().success());
    let ended: crate::support::Run = child.wait_with_output().unwrap().into();
    assert_eq!(ended.code, 130, "{}", ended.stderr);
    assert!(
        asked.elapsed() < Duration::from_secs(5),
        "{:?}",
        asked.elapsed()
    );
    let answered = fs::read_to_string(&log).unwrap().matches('\n').count();
    assert!(answered > 0 && answered < 400, "{answered}");
    // It goes on from those answered.
    let again = frugal_in(folder, &words).ok();
    assert!(
        again.stderr.contains("answers are there already"),
        "{}",
        again.stderr
    );
}
