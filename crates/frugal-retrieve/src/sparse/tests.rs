use std::path::PathBuf;

use super::*;
use frugal_models::Quantize;

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/encoders/sparse")
        .join(path)
}

/// A folder of the base with what else the folders have.
fn folder(others: &[PathBuf]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for from in std::iter::once(fixture("base")).chain(others.iter().cloned()) {
        for name in [
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "modules.json",
            "sentence_bert_config.json",
            "1_SpladePooling/config.json",
        ] {
            let (from, to) = (from.join(name), folder.path().join(name));
            if from.is_file() {
                std::fs::create_dir_all(to.parent().unwrap()).unwrap();
                std::fs::copy(from, to).unwrap();
            }
        }
    }
    folder
}

fn open(folder: &Path) -> Result<SparseEncoder, RetrieveError> {
    let request = EncoderRequest {
        model: folder.display().to_string(),
        adapter: None,
        max_length: None,
        quantize: Quantize::None,
    };
    SparseEncoder::open(&request, &Lookup::default(), &Device::default())
}

fn expected() -> Value {
    read_json(&fixture("expected.json")).unwrap()
}

fn texts(expected: &Value) -> Vec<&str> {
    let texts = expected["texts"].as_array().unwrap();
    texts.iter().map(|text| text.as_str().unwrap()).collect()
}

#[test]
fn weights_are_those_of_sentence_transformers() {
    let expected = expected();
    let texts = texts(&expected);
    for name in ["base", "max", "sum", "max-twice", "sum-twice"] {
        let others = [fixture("variants").join(name)];
        let folder = folder(&others);
        let encoder = open(folder.path()).unwrap();
        let found = encoder
            .embed(&texts, &Prompt::Default, &mut |_| true)
            .unwrap();
        assert_eq!(found.rows.len(), texts.len());
        for (row, expected) in found.rows.iter().zip(expected[name].as_array().unwrap()) {
            let expected = expected.as_object().unwrap();
            assert_eq!(row.len(), expected.len(), "{name}");
            for (id, weight) in row {
                let expected = expected[&id.to_string()].as_f64().unwrap() as f32;
                let error = (weight - expected).abs();
                let bound = 1e-5 * expected.max(1.0);
                assert!(
                    error < bound,
                    "{name}: {id} weighs {weight}, not {expected}"
                );
            }
            assert!(row.is_sorted_by(|left, right| left.1 >= right.1), "{name}");
        }
    }
}

#[test]
fn the_company_of_a_text_does_not_change_its_weights() {
    let expected = expected();
    let texts = texts(&expected);
    let folder = folder(&[]);
    let encoder = open(folder.path()).unwrap();
    let many = texts.repeat(30);
    let mut told = 0;
    let all = encoder.embed(&many, &Prompt::None, &mut |n| {
        told += n;
        true
    });
    let all = all.unwrap();
    assert_eq!(told, many.len());
    for (i, text) in texts.iter().enumerate() {
        let alone = encoder
            .embed(&[text], &Prompt::None, &mut |_| true)
            .unwrap();
        for found in all.rows.iter().skip(i).step_by(texts.len()) {
            assert_eq!(found.len(), alone.rows[0].len());
            for ((id, weight), (other, expected)) in found.iter().zip(&alone.rows[0]) {
                assert_eq!(id, other);
                assert!((weight - expected).abs() < 1e-5);
            }
        }
    }
    let stopped = encoder.embed(&many, &Prompt::None, &mut |_| false);
    assert!(matches!(stopped, Err(RetrieveError::Interrupted)));
}

#[test]
fn other_modules_and_models_are_refused_by_name() {
    let pooled = folder(&[fixture("variants/max")]);
    let config = pooled.path().join("1_SpladePooling/config.json");
    for (text, says) in [
        (
            r#"{"pooling_strategy": "mean"}"#,
            "`pooling_strategy = mean`",
        ),
        (r#"{"pooling_strategy": 3}"#, "`pooling_strategy = 3`"),
        (
            r#"{"activation_function": "gelu"}"#,
            "`activation_function = gelu`",
        ),
    ] {
        std::fs::write(&config, text).unwrap();
        let error = open(pooled.path()).err().unwrap().to_string();
        assert!(
            error.contains(says) && error.contains("1_SpladePooling"),
            "{error}"
        );
    }
    let modules = pooled.path().join("modules.json");
    for (text, says) in [
        ("{}", "are computed"),
        (
            r#"[{"type": "a.Transformer"}, {"type": "a.Pooling"}]"#,
            "Transformer and Pooling",
        ),
        (
            r#"[{"type": "a.Transformer"}, {"type": "a.SpladePooling", "path": "../x"}]"#,
            "leads elsewhere",
        ),
    ] {
        std::fs::write(&modules, text).unwrap();
        let error = open(pooled.path()).err().unwrap().to_string();
        assert!(
            error.contains(says) && error.contains("modules.json"),
            "{error}"
        );
    }
    // An encoder of vectors says what the module is for.
    let sparse = folder(&[fixture("variants/max")]);
    let error = Modules::read(sparse.path()).err().unwrap().to_string();
    assert!(error.contains("`frugal embed --sparse`"), "{error}");
    // A model without the head of a masked language model.
    let vectors = fixture("../base");
    let error = open(&vectors).err().unwrap().to_string();
    assert!(
        error.contains("cls.predictions.transform.dense.weight"),
        "{error}"
    );
}
