//! What happens when documents' parameters are made a second time, with something else.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Run, change_weights, folder, frugal_in, model_copy};

/// A folder with a model `m`, an index `idx` of three documents and questions about two of them.
fn prepared() -> tempfile::TempDir {
    let folder = folder();
    model_copy("harness/llama", &folder.path().join("m"));
    index(
        folder.path(),
        "idx",
        &[
            ("orla", "Orla Venn was born in Trask."),
            ("lake", "Lake Quor is in Mirland."),
            ("none", "A hill without a question."),
        ],
    );
    items(folder.path(), &[ORLA, LAKE]);
    folder
}

const ORLA: (&str, &str, &str) = ("orla", "Where was Orla Venn born?", "Trask");
const LAKE: (&str, &str, &str) = ("lake", "Where is Lake Quor?", "Mirland");

fn index(folder: &Path, out: &str, documents: &[(&str, &str)]) {
    let lines = documents
        .iter()
        .map(|(id, text)| json!({"id": id, "text": text}).to_string() + "\n");
    std::fs::write(folder.join("c.jsonl"), lines.collect::<String>()).unwrap();
    frugal_in(folder, &["index", "--data", "c.jsonl", "--out", out]).ok();
}

fn items(folder: &Path, items: &[(&str, &str, &str)]) {
    let lines = items.iter().map(|(document, question, answer)| {
        json!({"document": document, "question": question, "answer": answer}).to_string() + "\n"
    });
    std::fs::write(folder.join("items.jsonl"), lines.collect::<String>()).unwrap();
}

fn train(folder: &Path, more: &[&str]) -> Run {
    let args = [
        "parametrize",
        "--model",
        "m",
        "--items",
        "items.jsonl",
        "--out",
        "p",
    ];
    let index: &[&str] = match more.contains(&"--index") {
        true => &[],
        false => &["--index", "idx"],
    };
    frugal_in(folder, &[&args[..], index, more].concat())
}

fn made(folder: &Path, more: &[&str]) -> Value {
    train(folder, &[more, &["--json"]].concat()).ok().json()
}

fn ask(folder: &Path, more: &[&str]) -> Run {
    let args = ["ask", "--model", "m", "--parameters", "p"];
    let rest = ["--top-k", "1", "--max-tokens", "3"];
    frugal_in(folder, &[&args[..], &rest, more].concat())
}

#[test]
fn other_weights_under_the_same_name_went_unnoticed() {
    let folder = prepared();
    let folder = folder.path();
    made(folder, &["--translator"]);
    let question = ["--index", "idx", "Where was Orla Venn born?", "--mode"];
    let asked = |mode: &str| ask(folder, &[&question[..], &[mode]].concat()).ok().stderr;
    for mode in ["prag", "dyprag"] {
        let told = asked(mode);
        assert!(!told.contains("warning"), "{told}");
    }
    change_weights(&folder.join("m"));
    for mode in ["prag", "dyprag"] {
        let told = asked(mode);
        assert!(
            told.contains("warning: p: trained on other weights than those of `m`"),
            "{told}"
        );
    }
    let json = ask(folder, &[&question[..], &["prag", "--json"]].concat());
    let warnings = json.ok().json()["warnings"].clone();
    assert_eq!(warnings.as_array().unwrap().len(), 1);
    train(folder, &[]).fails(&["parametric.json", "other weights", "another folder"]);
}

#[test]
fn other_answers_about_the_same_documents_were_not_trained() {
    let folder = prepared();
    let folder = folder.path();
    assert_eq!(made(folder, &[])["trained"], 2);
    assert_eq!(made(folder, &[])["trained"], 0);
    items(folder, &[("orla", ORLA.1, "Novland"), LAKE]);
    assert_eq!(made(folder, &[])["trained"], 1);
    assert_eq!(made(folder, &[])["trained"], 0);
    items(
        folder,
        &[
            ("orla", ORLA.1, "Novland"),
            LAKE,
            ("lake", "What?", "a lake"),
        ],
    );
    assert_eq!(made(folder, &[])["trained"], 1);
}

#[test]
fn a_document_without_questions_now_was_said_to_have_no_parameters() {
    let folder = prepared();
    let folder = folder.path();
    made(folder, &[]);
    items(folder, &[ORLA]);
    let again = made(folder, &[]);
    assert_eq!(again["documents"], 2);
    assert_eq!(again["trained"], 0);
    assert_eq!(again["kept"], json!(["lake"]));
    assert_eq!(again["without_items"], json!(["none"]));
    let told = train(folder, &[]).ok().stderr;
    assert!(
        told.contains("no question about lake: what was trained before stays"),
        "{told}"
    );
    ask(
        folder,
        &["--index", "idx", "Where is Lake Quor?", "--mode", "prag"],
    )
    .ok();
}

#[test]
fn another_index_deleted_the_parameters_of_the_first() {
    let folder = prepared();
    let folder = folder.path();
    made(folder, &[]);
    index(folder, "other", &[("mill", "The mill of Venn is red.")]);
    items(folder, &[("mill", "Which mill is red?", "that of Venn")]);
    let other = ["--index", "other"];
    let found = made(folder, &other);
    assert_eq!(
        (&found["documents"], &found["others"]),
        (&json!(1), &json!(2))
    );
    assert_eq!(found["removed"], 0);
    let lake = ["--index", "idx", "Where is Lake Quor?", "--mode", "prag"];
    ask(folder, &lake).ok();
    let found = made(folder, &[&other[..], &["--prune"]].concat());
    assert_eq!(
        (&found["removed"], &found["others"]),
        (&json!(2), &json!(0))
    );
    ask(folder, &lake).fails(&["no parameters were trained for lake"]);
}

#[test]
fn a_translator_that_cannot_be_was_refused_after_all_documents() {
    let folder = prepared();
    let folder = folder.path();
    for width in ["0", "5000"] {
        train(folder, &["--translator", "--translator-width", width]).fails(&["`width`", width]);
        assert!(!folder.join("p").exists());
    }
    train(folder, &["--translator", "--translator-lr", "-1"]).fails(&["`lr`"]);
    assert!(!folder.join("p").exists());
}

#[test]
fn a_rate_that_failed_kept_the_folder_for_itself() {
    let folder = prepared();
    let folder = folder.path();
    train(folder, &["--lr", "1e300"]).fails(&["document `", "lower the learning rate"]);
    assert_eq!(made(folder, &[])["trained"], 2);
    train(folder, &["--lr", "1e-3"]).fails(&["`lr` is 0.0003, not 0.001"]);
}

#[test]
fn a_document_longer_than_the_model_was_trained_and_asked() {
    let folder = prepared();
    let folder = folder.path();
    let path = folder.join("m/config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["max_position_embeddings"] = json!(512);
    std::fs::write(&path, config.to_string()).unwrap();
    let long = "quiet ".repeat(600);
    let all = [
        ("orla", "Orla Venn was born in Trask."),
        ("long", long.as_str()),
    ];
    index(folder, "mixed", &all);
    items(folder, &[ORLA, ("long", "How is it?", "quiet")]);
    let mixed = ["--index", "mixed"];
    let words = ["document `long`", "512 positions", "--chunk"];
    train(folder, &mixed).fails(&words);
    // Before the first document was trained.
    assert!(!folder.join("p").exists());
    items(folder, &[ORLA]);
    made(folder, &[&mixed[..], &["--translator"]].concat());
    let question = ["--index", "mixed", "quiet quiet?", "--mode", "dyprag"];
    ask(folder, &question).fails(&words);
}
