//! What the program gives to shells and manual readers.

use std::fs;
use std::process::Command;

use crate::support::{folder, frugal, frugal_in};

#[test]
fn every_shell_gets_a_script_that_knows_commands_and_flags() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = frugal(&["completions", shell]).ok().stdout;
        for word in ["tune", "to-lora", "neftune-noise-alpha", "quantize"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        assert!(!script.contains("end-with-stdin"), "{shell}");
    }
    frugal(&["completions", "tcsh"]).fails(&["tcsh", "bash"]);
}

#[cfg(unix)]
#[test]
fn bash_completes_with_the_script() {
    let folder = folder();
    let script = folder.path().join("frugal.bash");
    fs::write(&script, frugal(&["completions", "bash"]).ok().stdout).unwrap();
    let ask = format!(
        "source {}; COMP_WORDS=(frugal tune --ado); COMP_CWORD=2; _frugal frugal --ado tune; echo \"${{COMPREPLY[@]}}\"; \
         COMP_WORDS=(frugal pre); COMP_CWORD=1; _frugal frugal pre frugal; echo \"${{COMPREPLY[@]}}\"",
        script.display()
    )
    .replace("--ado", "--adap");
    match Command::new("bash").args(["-c", &ask]).output() {
        Ok(done) => assert_eq!(
            String::from_utf8_lossy(&done.stdout),
            "--adapter\npredict pretrain\n",
            "{}",
            String::from_utf8_lossy(&done.stderr)
        ),
        Err(error) => eprintln!("skipped: no bash: {error}"),
    }
}

#[test]
fn the_manual_has_a_page_for_each_command() {
    let page = frugal(&["man"]).ok().stdout;
    assert!(
        page.contains(".TH frugal 1") && page.contains("tune"),
        "{page}"
    );
    let folder = folder();
    frugal_in(folder.path(), &["man", "--out", "man1"]).ok();
    let page = |name: &str| fs::read_to_string(folder.path().join("man1").join(name)).unwrap();
    assert!(page("frugal.1").contains(".TH frugal 1"));
    let tune = page("frugal-tune.1");
    assert!(
        tune.contains("NEFTune") && tune.contains("\\-\\-adapter"),
        "{tune}"
    );
    assert!(page("frugal-adapters-combine.1").contains("combine"));
}

/// Stands in for the clients of both loggers, and prints what they are given.
const CLIENT: &str = r#"
import json
def tell(*words, **named): print(json.dumps([words, named]))
def start_run(**named): tell("start_run", **named)
def log_params(params): tell("params", params["method.name"], params["train.max_steps"])
def log_metrics(metrics, step): tell("metrics", step, sorted(metrics))
def end_run(): tell("end")
class Run:
    def log(self, metrics, step): log_metrics(metrics, step)
    def finish(self): end_run()
def init(project, name, config):
    tell("start_run", run_name=name); log_params(config); return Run()
"#;

#[test]
fn the_log_of_a_run_goes_on_to_loggers() {
    let python = |words: &[&str]| Command::new("python3").args(words).output();
    if !python(&["-c", "import tomllib"]).is_ok_and(|done| done.status.success()) {
        eprintln!("skipped: no python3 of version 3.11 or newer");
        return;
    }
    let folder = folder();
    let words = "tune --data sms-spam --max-train-rows 32 --max-eval-rows 4 --batch-size 8 --max-steps 3 --logging-steps 1 --quiet --out r";
    frugal_in(folder.path(), &words.split(' ').collect::<Vec<_>>()).ok();
    for name in ["mlflow.py", "wandb.py"] {
        fs::write(folder.path().join(name), CLIENT).unwrap();
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/follow_log.py");
    for to in ["mlflow", "wandb"] {
        let done = Command::new("python3")
            .args([script, "r", "--to", to, "--once"])
            .current_dir(folder.path())
            .env("PYTHONPATH", folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        let lines: Vec<&str> = said.lines().collect();
        let failure = String::from_utf8_lossy(&done.stderr);
        assert_eq!(lines.len(), 7, "{to}: {said} {failure}");
        assert_eq!(lines[0], r#"[["start_run"], {"run_name": "r"}]"#);
        assert_eq!(lines[1], r#"[["params", "lora", 3], {}]"#);
        assert!(lines[2].starts_with(r#"[["metrics", 1, ["#) && lines[2].contains("loss"));
        assert!(lines[5].contains("eval_loss"), "{said}");
        assert_eq!(lines[6], r#"[["end"], {}]"#);
    }
}
