//! A model in several GGUF files, in the commands that take a model.

use std::fs;
use std::path::Path;

use frugal_formats::gguf::{self, Gguf, TensorSpec, Value};

use crate::journey::{run, workshop};

/// Cuts a file in two, as `llama-gguf-split` does.
fn cut(folder: &Path, whole: &str, parts: &str) {
    let bytes = fs::read(folder.join(whole)).unwrap();
    let file = Gguf::parse(&bytes, whole).unwrap();
    let specs: Vec<TensorSpec> = file
        .tensors()
        .iter()
        .map(|info| TensorSpec {
            name: info.name.clone(),
            shape: info.shape(),
            ggml_type: info.ggml_type,
        })
        .collect();
    let middle = specs.len() / 2;
    for (number, specs) in [&specs[..middle], &specs[middle..]].into_iter().enumerate() {
        let mut metadata: Vec<(String, Value)> = match number {
            0 => file.metadata().to_vec(),
            _ => Vec::new(),
        };
        metadata.extend([
            ("split.no".into(), (number as u32).into()),
            ("split.count".into(), 2_u32.into()),
            (
                "split.tensors.count".into(),
                (file.tensors().len() as i32).into(),
            ),
        ]);
        let path = folder.join(format!("{parts}-{:05}-of-00002.gguf", number + 1));
        gguf::write(&path, &metadata, specs, |i| {
            Ok(file.tensor_f32(&bytes, &specs[i].name).unwrap())
        })
        .unwrap();
    }
}

#[test]
fn a_split_gguf_model_is_tuned_evaluated_and_exported_as_the_whole_one_is() {
    let workshop = workshop();
    let folder = workshop.path();
    run(
        folder,
        "export --model model --to gguf --type f32 --out whole.gguf",
    )
    .ok();
    fs::create_dir(folder.join("parts")).unwrap();
    cut(folder, "whole.gguf", "parts/cut");
    let (first, second) = (
        "parts/cut-00001-of-00002.gguf",
        "parts/cut-00002-of-00002.gguf",
    );

    let said = |model: &str| {
        let words = format!("generate --model {model} --prompt the --max-tokens 8 --json");
        run(folder, &words).ok().json()["token_ids"].clone()
    };
    let expected = said("whole.gguf");
    // A folder with all parts is the model, too.
    for model in [first, second, "parts"] {
        assert_eq!(said(model), expected, "{model}");
    }

    let inspected = run(folder, &format!("models inspect {second} --json"))
        .ok()
        .json();
    assert_eq!(inspected["files"].as_array().unwrap().len(), 2);
    let sizes = |path: &str| fs::metadata(folder.join(path)).unwrap().len();
    assert_eq!(inspected["stored_bytes"], sizes(first) + sizes(second));

    let losses = |model: &str, out: &str| {
        let words = format!(
            "tune --model {model} --data prompts.jsonl --task causal-lm --epochs 1 --out {out} --quiet"
        );
        run(folder, &words).ok();
        let words = format!("eval --adapter {out} --data prompts.jsonl --json");
        run(folder, &words).ok().json()["metrics"].clone()
    };
    let whole = losses("whole.gguf", "runs/whole");
    assert!(whole.to_string().contains("loss"), "{whole}");
    assert_eq!(losses(first, "runs/split"), whole);

    let export = |model: &str, out: &str| {
        run(
            folder,
            &format!("export --model {model} --to gguf --type f32 --out {out}"),
        )
        .ok();
        let bytes = fs::read(folder.join(out)).unwrap();
        let file = Gguf::parse(&bytes, out).unwrap();
        let name = file.get("general.name").cloned();
        let values = |info: &gguf::TensorInfo| file.tensor_f32(&bytes, &info.name).unwrap();
        (name, file.tensors().iter().map(values).collect::<Vec<_>>())
    };
    let (name, tensors) = export(second, "joined.gguf");
    assert_eq!(
        (name, tensors == export("whole.gguf", "again.gguf").1),
        (Some("cut".into()), true)
    );

    fs::remove_file(folder.join(first)).unwrap();
    run(folder, &format!("generate --model {second} --prompt the"))
        .fails(&["cut-00001-of-00002.gguf` is missing", "2 parts"]);
}
