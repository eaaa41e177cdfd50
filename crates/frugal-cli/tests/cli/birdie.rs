//! Mixtures of objectives from the command line.

use std::fs;

use crate::support::{folder, frugal_in};

fn run(folder: &std::path::Path, words: &str) -> crate::support::Run {
    frugal_in(folder, &words.split_whitespace().collect::<Vec<_>>())
}

const TEXT: &str =
    "the cat sat on the mat: and the dog ran to the house; who saw it, by the road?\n";

#[test]
fn a_mixture_is_chosen_by_a_flag_and_its_settings_by_keys() {
    let folder = folder();
    let folder = folder.path();
    fs::write(folder.join("text.txt"), TEXT.repeat(400)).unwrap();
    let shape = "--vocab-size 440 --max-length 48 --set shape.hidden_size=16 --set shape.intermediate_size=16 --set shape.num_hidden_layers=2 --set shape.num_attention_heads=2";
    let words = format!(
        "pretrain --data text.txt --out made --arch gated_ssm --objective ul2 --max-steps 3 {shape} --quiet"
    );
    run(folder, &words).ok();
    let config = fs::read_to_string(folder.join("made/config.json")).unwrap();
    assert!(
        config.contains("\"gen_token_id\": ") && config.contains("\"reverse_size\": 8"),
        "{config}"
    );
    // What was trained with a separator goes on with it.
    let words = "pretrain --data text.txt --out more --from made --objective mixture --set objective.weights.copying=1 --max-steps 2 --max-length 48 --quiet";
    run(folder, words).ok();
    for (more, said) in [
        ("--objective ul3", "ul2"),
        (
            "--objective birdie --set objective.candidats=3",
            "candidates",
        ),
        (
            "--objective ul2 --set objective.weights.copying=1",
            "objective.weights",
        ),
        (
            "--objective ul2 --set shape.gen_token_id=7",
            "shape.gen_token_id",
        ),
        ("--objective ul2 --decay-data text.txt=0.1", "objective"),
        ("--objective ul2 --parallel data=2", "objective"),
    ] {
        let words = format!("pretrain --data text.txt --out other --arch gated_ssm {more} {shape}");
        run(folder, &words).fails(&[said]);
    }
    let words = "pretrain --data text.txt --out other --from made --objective mixture --set objective.bidirectional=false --max-length 48";
    run(folder, words).fails(&["objective.bidirectional"]);
    // An architecture that cannot say so reads prompts as its files will be read.
    let words = format!(
        "pretrain --data text.txt --out mixed --arch mixtral --objective ntp --max-steps 1 {shape}"
    );
    let told = run(folder, &words).ok().stderr;
    assert!(told.contains("prompts are read causally"), "{told}");
}

#[test]
fn the_experiment_runs_in_its_smallest_size() {
    let folder = folder();
    let folder = folder.path();
    fs::create_dir(folder.join("tinyshakespeare")).unwrap();
    fs::write(folder.join("tinyshakespeare/input.txt"), TEXT.repeat(100)).unwrap();
    run(
        folder,
        "bench pretrain --suite birdie --smoke --seeds 0 --data-dir . --out birdie --quiet",
    )
    .ok();
    let written = fs::read_to_string(folder.join("birdie/results.md")).unwrap();
    for said in [
        "Birdie, causal",
        "UL2-like",
        "phone numbers right",
        "shares of infilling",
    ] {
        assert!(written.contains(said), "{written}");
    }
}
