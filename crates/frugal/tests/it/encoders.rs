//! Encoders and cross-encoders against sentence-transformers.

use std::path::Path;

use frugal::device::device;
use frugal::model::Quantize;
use frugal::model::load::Lookup;
use frugal::retrieve::{
    BuildOptions, Collection, Elements, EmbedOptions, Embeddings, Encoder, EncoderRequest,
    Precision, Prompt, RetrieveError, SearchMode, SearchOptions, build,
};
use frugal::run::{DataConfig, PredictRequest, Predictor, Rerank, Reranker};
use serde_json::{Value, json};

use crate::support::fixture;

fn read(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// A folder of its own with what the variant has over the base.
fn folder(variant: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy(&fixture("encoders/base"), folder.path());
    copy(
        &fixture(&format!("encoders/variants/{variant}")),
        folder.path(),
    );
    folder
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

fn open(folder: &Path) -> Result<Encoder, RetrieveError> {
    let request = EncoderRequest {
        model: folder.display().to_string(),
        adapter: None,
        max_length: None,
        quantize: Quantize::None,
    };
    Encoder::open(&request, &Lookup::default(), &device("cpu").unwrap())
}

fn options_of(options: &Value) -> EmbedOptions {
    let mut found = EmbedOptions::default();
    for (key, value) in options.as_object().unwrap() {
        match key.as_str() {
            "prompt" => found.prompt = Prompt::Text(value.as_str().unwrap().into()),
            "prompt_name" => found.prompt = Prompt::Named(value.as_str().unwrap().into()),
            "truncate_dim" => found.truncate_dim = Some(value.as_u64().unwrap() as usize),
            "normalize_embeddings" => found.normalize = value.as_bool().unwrap(),
            _ => panic!("{key}"),
        }
    }
    found
}

fn matrix(value: &Value) -> Vec<Vec<f64>> {
    serde_json::from_value(value.clone()).unwrap()
}

fn check(variant: &str) {
    let folder = folder(variant);
    let encoder = open(folder.path()).unwrap();
    let expected = read(&folder.path().join("expected.json"));
    let texts: Vec<String> = serde_json::from_value(expected["texts"].clone()).unwrap();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    for case in expected["cases"].as_array().unwrap() {
        let found = encoder
            .embed(&texts, &options_of(&case["options"]), &mut |_| true)
            .unwrap();
        let right = matrix(&case["vectors"]);
        assert_eq!(found.rows().len(), right.len(), "{variant}");
        for (i, (found, right)) in found.rows().zip(&right).enumerate() {
            assert_eq!(found.len(), right.len(), "{variant}");
            let worst = found
                .iter()
                .zip(right)
                .map(|(f, r)| (f64::from(*f) - r).abs())
                .fold(0.0, f64::max);
            assert!(
                worst < 2e-5,
                "{variant}, {}: text {i} is off by {worst:e} (at most 2e-5)",
                case["options"]
            );
        }
    }
}

#[test]
fn every_pooling_gives_the_vectors_of_sentence_transformers() {
    for mode in [
        "cls",
        "max",
        "mean",
        "mean_sqrt_len_tokens",
        "weightedmean",
        "lasttoken",
    ] {
        check(mode);
    }
    check("several");
}

#[test]
fn tokens_of_a_prompt_are_left_out_of_every_pooling_that_says_so() {
    for mode in [
        "cls",
        "max",
        "mean",
        "mean_sqrt_len_tokens",
        "weightedmean",
        "lasttoken",
    ] {
        check(&format!("{mode}-prompt"));
    }
}

#[test]
fn dense_layers_default_prompts_and_cut_dimensions_follow_the_folder() {
    check("dense");
}

#[test]
fn folders_of_earlier_versions_are_read_with_their_longest_text_and_small_letters() {
    check("old");
    let folder = folder("old");
    let encoder = open(folder.path()).unwrap();
    assert_eq!(encoder.max_length(), 8);
    let texts = ["the wing of a flutter at speed flow", "heat"];
    let found = encoder
        .embed(&texts, &EmbedOptions::default(), &mut |_| true)
        .unwrap();
    assert_eq!((found.truncated, found.dimension), (1, 64));
}

#[test]
fn flags_of_pooling_beside_named_modes_counted() {
    check("named-and-flagged");
}

/// Scores and order of a search by vectors are those of `model.similarity`.
#[test]
fn the_similarity_of_the_folder_was_passed_over() {
    for name in ["dot", "cosine"] {
        let variant = format!("similarity-{name}");
        check(&variant);
        let model = folder(&variant);
        let expected = read(&model.path().join("expected.json"));
        let texts: Vec<String> = serde_json::from_value(expected["texts"].clone()).unwrap();
        let right = matrix(&expected["similarity"]);
        let work = tempfile::tempdir().unwrap();
        let corpus = work.path().join("c.jsonl");
        let lines = texts.iter().enumerate();
        let lines = lines.map(|(i, text)| json!({"id": i.to_string(), "text": text}).to_string());
        std::fs::write(&corpus, lines.collect::<Vec<_>>().join("\n")).unwrap();
        let request = EncoderRequest {
            model: model.path().display().to_string(),
            adapter: None,
            max_length: None,
            quantize: Quantize::None,
        };
        let encoder = open(model.path()).unwrap();
        let idx = work.path().join("idx");
        let options = BuildOptions::default();
        let made = Some((&encoder, &request));
        build(&idx, &corpus, made, &options, &mut |_| true).unwrap();
        let (lookup, device) = (Lookup::default(), device("cpu").unwrap());
        let mode = Some(SearchMode::Dense);
        let found = Collection::open(&idx, mode, Quantize::None, &lookup, &device).unwrap();
        let asked = SearchOptions {
            mode,
            top_k: texts.len(),
            ..SearchOptions::default()
        };
        let queries: Vec<&str> = texts.iter().map(String::as_str).collect();
        let hits = found.search(&queries, &asked).unwrap();
        for (query, (hits, right)) in hits.iter().zip(&right).enumerate() {
            let mut order: Vec<usize> = (0..right.len()).collect();
            order.sort_by(|a, b| right[*b].total_cmp(&right[*a]));
            let ids: Vec<usize> = hits.iter().map(|hit| hit.id.parse().unwrap()).collect();
            assert_eq!(ids, order, "{name} {query}");
            for hit in hits {
                let right = right[hit.id.parse::<usize>().unwrap()];
                assert!(
                    (hit.score - right).abs() < 1e-4 * right.abs(),
                    "{name}: {}",
                    hit.score
                );
            }
        }
        let same = found.similarities(queries[0], &queries).unwrap().unwrap();
        for (found, right) in same.iter().zip(&right[0]) {
            assert!(
                (found - right).abs() < 1e-4 * right.abs(),
                "{name}: {found}"
            );
        }
    }
    for other in ["euclidean", "manhattan", "foo"] {
        let model = folder("similarity-dot");
        let settings = json!({"similarity_fn_name": other}).to_string();
        let path = model.path().join("config_sentence_transformers.json");
        std::fs::write(path, settings).unwrap();
        let encoder = open(model.path()).unwrap();
        let error = encoder.metric().unwrap_err().to_string();
        assert!(
            error.contains("similarity_fn_name") && error.contains(other),
            "{error}"
        );
    }
}

#[test]
fn vectors_do_not_depend_on_their_neighbors() {
    let folder = folder("mean");
    let encoder = open(folder.path()).unwrap();
    let texts = ["heat", "the wing of a flutter", "heat transfer over body"];
    let options = EmbedOptions::default();
    let together = encoder.embed(&texts, &options, &mut |_| true).unwrap();
    for (text, row) in texts.iter().zip(together.rows()) {
        let alone = encoder.embed(&[text], &options, &mut |_| true).unwrap();
        for (a, b) in alone.values.iter().zip(row) {
            assert!((a - b).abs() < 1e-5, "{text}");
        }
    }
}

#[test]
fn modules_that_are_not_computed_are_named() {
    let refused = |file: &str, text: &str, named: &str| {
        let folder = folder("dense");
        std::fs::write(folder.path().join(file), text).unwrap();
        let error = open(folder.path()).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
        assert!(error.contains(file), "{error}");
    };
    let narrow = folder("dense");
    let config =
        r#"{"in_features": 31, "out_features": 24, "activation_function": "torch.nn.Tanh"}"#;
    std::fs::write(narrow.path().join("2_Dense/config.json"), config).unwrap();
    let error = open(narrow.path()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("[24, 32], wanted is [24, 31]"), "{error}");
    let module = |kind: &str| {
        json!([
            {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "path": "2", "type": format!("sentence_transformers.models.{kind}")},
        ])
    };
    refused(
        "modules.json",
        &module("WeightedLayerPooling").to_string(),
        "WeightedLayerPooling",
    );
    refused("modules.json", "[]", "no Pooling");
    refused("modules.json", "{}", "not a list");
    refused(
        "modules.json",
        r#"[{"path": "../other", "type": "a.Transformer"}]"#,
        "leads elsewhere",
    );
    refused(
        "1_Pooling/config.json",
        r#"{"pooling_mode": "median"}"#,
        "median",
    );
    refused(
        "1_Pooling/config.json",
        r#"{"pooling_mode": "mean", "surprise": 3}"#,
        "surprise",
    );
    refused("1_Pooling/config.json", "{}", "no mode of pooling");
    refused(
        "2_Dense/config.json",
        r#"{"in_features": 32, "out_features": 24, "activation_function": "torch.nn.Mish"}"#,
        "Mish",
    );
    refused(
        "sentence_bert_config.json",
        r#"{"transformer_task": "fill-mask"}"#,
        "fill-mask",
    );
    refused(
        "config_sentence_transformers.json",
        r#"{"default_prompt_name": "absent", "prompts": {}}"#,
        "absent",
    );
}

#[test]
fn wishes_that_cannot_be_met_are_named() {
    let folder = folder("dense");
    let encoder = open(folder.path()).unwrap();
    let embed = |options: EmbedOptions| {
        encoder
            .embed(&["heat"], &options, &mut |_| true)
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    let named = EmbedOptions {
        prompt: Prompt::Named("absent".into()),
        ..EmbedOptions::default()
    };
    assert!(embed(named).contains("query"), "the prompts that there are");
    let wide = EmbedOptions {
        truncate_dim: Some(17),
        ..EmbedOptions::default()
    };
    assert!(embed(wide).contains("16 dimensions"));
    let none = encoder.embed(&[], &EmbedOptions::default(), &mut |_| true);
    assert!(none.unwrap().values.is_empty());
    let stopped = encoder.embed(&["heat"], &EmbedOptions::default(), &mut |_| false);
    assert!(matches!(stopped, Err(RetrieveError::Interrupted)));
}

/// The first values of `SentenceTransformer(folder).encode(["wing flutter"])` (sentence-transformers
/// 6.2.0) for the variant `cls`; with `truncate_dim` 5 in the file it gives just these, with 500 all
/// 32, and what is asked for wins.
#[test]
fn a_model_that_cuts_its_vectors_short_gives_short_ones() {
    const CUT: [f32; 5] = [
        -0.022_885_42,
        0.937_445_9,
        -0.804_063_4,
        0.308_355_8,
        1.228_952_9,
    ];
    let embed = |own: Value, asked: Option<usize>| {
        let folder = folder("cls");
        let path = folder.path().join("config_sentence_transformers.json");
        let mut config = if path.is_file() {
            read(&path)
        } else {
            json!({})
        };
        config["truncate_dim"] = own;
        std::fs::write(&path, config.to_string()).unwrap();
        let options = EmbedOptions {
            truncate_dim: asked,
            ..EmbedOptions::default()
        };
        let found = open(folder.path())?.embed(&["wing flutter"], &options, &mut |_| true)?;
        assert_eq!(found.values.len(), found.dimension);
        Ok::<_, RetrieveError>(found.values)
    };
    for (own, asked, dimension) in [
        (json!(5), None, 5),
        (json!(5), Some(3), 3),
        (json!(5), Some(32), 32),
        (json!(500), None, 32),
        (json!(null), None, 32),
    ] {
        let found = embed(own.clone(), asked).unwrap();
        assert_eq!(found.len(), dimension, "{own} {asked:?}");
        for (found, expected) in found.iter().zip(CUT) {
            assert!((found - expected).abs() < 1e-5, "{own}: {found} {expected}");
        }
    }
    for wrong in [json!(0), json!("5")] {
        let error = embed(wrong, None).unwrap_err().to_string();
        assert!(error.contains("truncate_dim"), "{error}");
    }
}

#[test]
fn fewer_bits_are_those_of_sentence_transformers() {
    let expected = read(&fixture("encoders/quantized.json"));
    let rows = matrix(&expected["vectors"]);
    let embeddings = Embeddings {
        dimension: rows[0].len(),
        values: rows.concat().iter().map(|v| *v as f32).collect(),
        truncated: 0,
    };
    for (name, precision) in [
        ("int8", Precision::Int8),
        ("uint8", Precision::Uint8),
        ("binary", Precision::Binary),
        ("ubinary", Precision::Ubinary),
    ] {
        let right: Vec<Vec<i16>> = serde_json::from_value(expected[name].clone()).unwrap();
        let found: Vec<i16> = match embeddings.quantize(precision).elements {
            Elements::Int8(values) => values.into_iter().map(i16::from).collect(),
            Elements::Uint8(values) => values.into_iter().map(i16::from).collect(),
            Elements::Float32(_) => panic!("{name}"),
        };
        assert_eq!(found, right.concat(), "{name}");
    }
}

#[test]
fn a_cross_encoder_scores_pairs_as_sentence_transformers_does() {
    let folder = fixture("encoders/cross");
    let expected = read(&folder.join("expected.json"));
    let request = PredictRequest {
        model: folder.display().to_string(),
        adapter: None,
        data: DataConfig {
            truncate: true,
            ..DataConfig::default()
        },
        device: "cpu".into(),
        quantize: Quantize::None,
    };
    let predictor = Predictor::open(&request, &Lookup::default(), &mut |_| {}).unwrap();
    let query = expected["query"].as_str().unwrap();
    for (text, right) in expected["texts"]
        .as_array()
        .unwrap()
        .iter()
        .zip(expected["scores"].as_array().unwrap())
    {
        let pair = predictor.encode(query, text.as_str()).unwrap();
        let found = predictor.predict(&[pair]).unwrap();
        let off = (f64::from(found[0][0]) - right.as_f64().unwrap()).abs();
        assert!(off < 1e-5, "{text}: off by {off:e}");
    }
}

/// Scores of `CrossEncoder.predict` (sentence-transformers 6.2.0) for the fixture `encoders/cross`
/// with these keys in its files.
#[test]
fn the_activation_function_of_a_cross_encoder_is_that_of_its_files() {
    const SIGMOID: [f32; 2] = [0.882_085_26, 0.848_292_47];
    const LOGIT: [f32; 2] = [2.012_326_7, 1.721_270_7];
    const TANH: [f32; 2] = [0.964_888_2, 0.938_015_9];
    let identity = "torch.nn.modules.linear.Identity";
    let tanh = "torch.nn.modules.activation.Tanh";
    let scores = |config: Value, saved: Option<Value>| {
        let folder = tempfile::tempdir().unwrap();
        for file in [
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ] {
            std::fs::copy(
                fixture("encoders/cross").join(file),
                folder.path().join(file),
            )
            .unwrap();
        }
        let path = folder.path().join("config.json");
        let mut own = read(&path);
        for (key, value) in config.as_object().unwrap() {
            own[key] = value.clone();
        }
        std::fs::write(&path, own.to_string()).unwrap();
        if let Some(saved) = saved {
            let path = folder.path().join("config_sentence_transformers.json");
            std::fs::write(path, saved.to_string()).unwrap();
        }
        let model = folder.path().display().to_string();
        let reranker = Reranker::open(&model, None, "cpu", &Lookup::default(), &mut |_| {})?;
        let texts = ["heat", "wing flutter at supersonic speed"];
        reranker.scores("wing flutter", &texts, &mut |_| true)
    };
    for (config, saved, expected) in [
        (json!({}), None, SIGMOID),
        (json!({"problem_type": "regression"}), None, SIGMOID),
        (
            json!({"problem_type": "single_label_classification"}),
            None,
            SIGMOID,
        ),
        (
            json!({"sentence_transformers": {"activation_fn": identity}}),
            None,
            LOGIT,
        ),
        (
            json!({"sbert_ce_default_activation_function": tanh}),
            None,
            TANH,
        ),
        (
            json!({"sbert_ce_default_activation_function": null}),
            None,
            SIGMOID,
        ),
        (
            json!({"sentence_transformers": {"activation_fn": identity}}),
            Some(json!({"activation_fn": tanh, "model_type": "CrossEncoder"})),
            TANH,
        ),
        (
            json!({"sentence_transformers": {"activation_fn": identity}}),
            Some(json!({"default_prompt_name": null, "model_type": "CrossEncoder"})),
            LOGIT,
        ),
    ] {
        let found = scores(config.clone(), saved).unwrap();
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                (found - expected).abs() < 1e-5,
                "{config}: {found} {expected}"
            );
        }
    }
    for wrong in ["torch.nn.modules.activation.ReLU", "mine.Sigmoid"] {
        let config = json!({"sentence_transformers": {"activation_fn": wrong}});
        let error = scores(config, None).unwrap_err().to_string();
        assert!(error.contains(wrong), "{error}");
    }
}
