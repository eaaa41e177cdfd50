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
            "--adapter\npretrain\n",
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
