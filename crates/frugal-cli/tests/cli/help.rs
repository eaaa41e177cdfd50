//! Help texts, and what happens without or with wrong arguments.

use std::process::Stdio;

use crate::support::{command, folder, frugal};

const COMMANDS: &[&[&str]] = &[
    &["tune"],
    &["plan"],
    &["plan", "pretrain"],
    &["plan", "parallel"],
    &["validate"],
    &["eval"],
    &["measure"],
    &["measure", "capacity"],
    &["measure", "code"],
    &["measure", "efficiency"],
    &["measure", "runtime"],
    &["measure", "spectrum"],
    &["select"],
    &["ask"],
    &["parametrize"],
    &["mine"],
    &["meta-train"],
    &["generate"],
    &["chat"],
    &["merge"],
    &["export"],
    &["adapters"],
    &["adapters", "combine"],
    &["adapters", "to-lora"],
    &["pretrain"],
    &["grow"],
    &["bench"],
    &["bench", "adapt"],
    &["bench", "efficiency"],
    &["bench", "pretrain"],
    &["report"],
    &["methods"],
    &["methods", "show"],
    &["models"],
    &["models", "fetch"],
    &["models", "convert"],
    &["models", "inspect"],
    &["doctor"],
    &["completions"],
    &["man"],
];

#[test]
fn help_of_every_command() {
    for command in COMMANDS {
        let run = frugal(&[command, &["--help"][..]].concat()).ok();
        insta::assert_snapshot!(format!("help-{}", command.join("-")), run.stdout);
    }
    insta::assert_snapshot!("help", frugal(&["--help"]).ok().stdout);
}

#[test]
fn the_help_lists_every_command() {
    let help = frugal(&["--help"]).ok().stdout;
    for command in COMMANDS {
        assert!(
            help.contains(&format!("\n  {} ", command[0])),
            "{}",
            command[0]
        );
    }
}

#[test]
fn without_arguments_the_help_is_the_answer() {
    let run = frugal(&[]).ok();
    assert_eq!(run.stdout, frugal(&["--help"]).stdout);
    assert!(run.stderr.is_empty());
}

#[test]
fn wrong_usage_is_answered_with_the_usage() {
    frugal(&["tnue"]).fails(&["tune"]);
    frugal(&["tune", "--lr"]).fails(&["--lr"]);
    frugal(&["tune", "--lr", "fast"]).fails(&["'fast'", "--lr"]);
    frugal(&["tune", "--no-such-flag"]).fails(&["--no-such-flag", "Usage:"]);
    frugal(&["tune", "--task", "poetry"]).fails(&["poetry", "classification", "causal-lm"]);
    frugal(&["generate"]).fails(&["--prompt"]);
    frugal(&["merge", "--model", "builtin"]).fails(&["--adapter", "--out"]);
}

#[test]
fn pipes_get_no_colours() {
    for args in [
        &["--help"][..],
        &["methods"],
        &["methods", "show", "lora"],
        &["models"],
    ] {
        let run = frugal(args).ok();
        assert!(
            !run.stdout.contains('\x1b') && !run.stderr.contains('\x1b'),
            "{args:?}"
        );
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let folder = folder();
    // A closed pipe from the first byte on.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let child = command(folder.path())
        .args(["methods", "--json"])
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), output.stderr.as_slice()),
        (Some(0), &b""[..])
    );
}
