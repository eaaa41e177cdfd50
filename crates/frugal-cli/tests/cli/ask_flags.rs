//! Flags of `ask` by mode: each is honoured or refused.

use crate::support::frugal;

#[test]
fn flags_of_other_modes_were_without_effect() {
    const CORRECTIVE: &[&[&str]] = &[
        &["--grader", "words"],
        &["--min-relevant", "1"],
        &["--max-iterations", "2"],
    ];
    const PARAMETRIC: &[&[&str]] = &[&["--parameters", "p"], &["--combine"], &["--merge", "sum"]];
    const WRITING: &[&[&str]] = &[
        &["--perk-state", "m"],
        &["--segment-tokens", "128"],
        &["--accumulation", "1"],
    ];
    const CONTEXT: &[&[&str]] = &[&["--context-tokens", "20"]];
    const ADAPTER: &[&[&str]] = &[&["--adapter", "a"]];
    let cases: [(&[&str], &[&[&[&str]]]); 5] = [
        (&["rag"], &[CORRECTIVE, PARAMETRIC, WRITING]),
        (&["crag"], &[PARAMETRIC, WRITING]),
        (
            &["prag", "--parameters", "p"],
            &[CORRECTIVE, WRITING, CONTEXT, ADAPTER],
        ),
        (
            &["dyprag", "--parameters", "p"],
            &[CORRECTIVE, WRITING, CONTEXT, ADAPTER],
        ),
        (
            &["perk", "--perk-state", "m"],
            &[CORRECTIVE, PARAMETRIC, CONTEXT, ADAPTER],
        ),
    ];
    for (mode, refused) in cases {
        for flag in refused.iter().copied().flatten() {
            let base = ["ask", "--index", "i", "-m", "builtin", "Who?", "--mode"];
            let run = frugal(&[&base[..], mode, flag].concat());
            assert!(
                run.stderr.contains(flag[0]) && run.stderr.contains("--mode"),
                "{mode:?} {flag:?}: {}",
                run.stderr
            );
            run.fails(&[]);
        }
    }
    // With passages in the prompt there is something to bound.
    let args = ["ask", "--index", "i", "-m", "builtin", "Who?", "--mode"];
    let more = [
        "prag",
        "--parameters",
        "p",
        "--combine",
        "--context-tokens",
        "20",
    ];
    let run = frugal(&[&args[..], &more].concat());
    assert!(!run.stderr.contains("--context-tokens"), "{}", run.stderr);
}
