//! Files, and what is refused.

use burn::prelude::*;
use frugal_nn::{BackboneInfo, Mode, SiteTable, to_vec};

use super::tests::{difference, llama, made_up, sized};
use super::*;

#[test]
fn files_give_back_what_was_written_and_name_what_does_not_fit() {
    let (_, _, places) = llama();
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    let config = |dtype| StoredConfig {
        model: "llama".into(),
        base_sha256: "a".into(),
        parameters: ParametricConfig::default(),
        encode: EncodeOptions::default(),
        dtype,
    };
    let weights = made_up(&places, 2, 9, 1.0);
    for (dtype, tolerance) in [(StoreDtype::F32, 0.0), (StoreDtype::F16, 5e-4)] {
        let folder = folder.path().join(format!("{dtype:?}"));
        let store = DocumentStore::create(&folder, config(dtype), &places, &device).unwrap();
        store.put("a", "text", &weights, "one").unwrap();
        let store = DocumentStore::open(&folder, &places, &device).unwrap();
        let read = store.get("a", "text").unwrap().unwrap();
        for (one, other) in weights.factors.iter().zip(&read.factors) {
            let found = difference(&to_vec(one.a.clone()), &to_vec(other.a.clone()));
            assert!(found <= tolerance, "{dtype:?}: {found}");
            let found = difference(&to_vec(one.b.clone()), &to_vec(other.b.clone()));
            assert!(found <= tolerance, "{dtype:?}: {found}");
        }
        // Another text is another document.
        assert!(store.get("a", "other text").unwrap().is_none());
        assert!(store.contains("a", "text") && !store.contains("b", "text"));
        store.put("b", "text", &weights, "two").unwrap();
        assert_eq!(store.keep_only([("b", "text")].into_iter()).unwrap(), 1);
        assert!(!store.contains("a", "text") && store.contains("b", "text"));
        let again = DocumentStore::create(&folder, config(dtype), &places, &device);
        assert!(again.is_ok());
    }
    let made = |config| {
        let made = DocumentStore::create(&folder.path().join("F32"), config, &places, &device);
        made.map(|_| ()).map_err(|error| error.to_string())
    };
    let mut other = config(StoreDtype::F32);
    other.encode.epochs = 2;
    let error = made(other).unwrap_err();
    assert!(error.contains("`epochs` is 1, not 2"), "{error}");
    // Other weights are another model, another name alone is not.
    let other = |model: &str, base: &str| StoredConfig {
        model: model.into(),
        base_sha256: base.into(),
        ..config(StoreDtype::F32)
    };
    assert!(made(other("./llama", "a")).is_ok());
    let error = made(other("llama", "b")).unwrap_err();
    assert!(error.contains("other weights"), "{error}");

    // A store of another model is refused by tensor and shape, before anything is made of it.
    let wide = sized(16, 64, 2);
    let error = DocumentStore::open(&folder.path().join("F32"), &wide, &device).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("start.safetensors")
            && text.contains("mlp.gate_proj")
            && text.contains("[64, 2]"),
        "{text}"
    );

    let translator = Translator::new(&places, TranslatorConfig::default(), 3, &device).unwrap();
    let path = folder.path().join("translator");
    translator.save(&path, "llama").unwrap();
    let read = Translator::load(&path, &places, &device).unwrap();
    assert_eq!(read.config(), translator.config());
    for (one, other) in translator.parameters().zip(read.parameters()) {
        assert_eq!((one.name(), one.to_vec()), (other.name(), other.to_vec()));
    }
    let error = Translator::load(&path, &sized(24, 32, 2), &device).unwrap_err();
    assert!(
        error.to_string().contains("states have 16 numbers"),
        "{error}"
    );
    let text = std::fs::read_to_string(path.join("translator.json")).unwrap();
    for (width, expected) in [
        ("\"width\": 5", "[5, 17]"),
        ("\"width\": 4000000000", "`width`"),
    ] {
        std::fs::write(
            path.join("translator.json"),
            text.replace("\"width\": 32", width),
        )
        .unwrap();
        let error = Translator::load(&path, &places, &device).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    std::fs::write(path.join("translator.json"), &text).unwrap();
    let weights = path.join("translator.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() - 8]).unwrap();
    assert!(Translator::load(&path, &places, &device).is_err());
    let mut damaged = bytes;
    let end = damaged.len();
    damaged[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&weights, &damaged).unwrap();
    let error = Translator::load(&path, &places, &device).unwrap_err();
    assert!(error.to_string().contains("no finite numbers"), "{error}");
}

#[test]
fn models_without_these_layers_and_settings_without_sense_are_refused() {
    let info = BackboneInfo {
        model_type: "gpt2",
        num_hidden_layers: 1,
        ..BackboneInfo::default()
    };
    let error = FeedForward::of(&info, &SiteTable::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`gpt2` has no place for documents' parameters: block 0 has no `gate_proj`"
    );
    let (_, _, places) = llama();
    let device = Device::flex();
    for (r, lora_alpha) in [(0, 32.0), (17, 32.0), (usize::MAX, 32.0), (2, f64::NAN)] {
        let config = ParametricConfig {
            r,
            lora_alpha,
            ..ParametricConfig::default()
        };
        assert!(DocumentWeights::start(&places, &config, &device).is_err());
    }
    let short = Translator::new(&places, TranslatorConfig::default(), 0, &device)
        .unwrap()
        .translate(&[1.0; 3], Mode::Eval);
    assert!(short.unwrap_err().to_string().contains("3 numbers"));
    let negative = EncodeOptions {
        lr: -1.0,
        ..EncodeOptions::default()
    };
    assert!(
        negative
            .validate()
            .unwrap_err()
            .to_string()
            .contains("`lr`")
    );
}

#[test]
fn a_folder_without_documents_took_no_other_settings() {
    let (_, _, places) = llama();
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    let config = |lr, r| StoredConfig {
        model: "llama".into(),
        base_sha256: "a".into(),
        parameters: ParametricConfig {
            r,
            ..ParametricConfig::default()
        },
        encode: EncodeOptions {
            lr,
            ..EncodeOptions::default()
        },
        dtype: StoreDtype::F32,
    };
    let create = |lr, r| DocumentStore::create(folder.path(), config(lr, r), &places, &device);
    create(1e300, 2).unwrap();
    let store = create(1e-3, 3).unwrap();
    assert_eq!((store.start().rank, store.config().encode.lr), (3, 1e-3));
    store
        .put("a", "text", &made_up(&places, 3, 9, 1.0), "one")
        .unwrap();
    assert!(create(1e-4, 3).unwrap_err().to_string().contains("`lr`"));
}

#[test]
fn other_questions_about_the_same_text_were_not_told_apart() {
    let (_, tokenizer, places) = llama();
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    let config = StoredConfig {
        model: "llama".into(),
        base_sha256: "a".into(),
        parameters: ParametricConfig::default(),
        encode: EncodeOptions::default(),
        dtype: StoreDtype::F16,
    };
    let store = DocumentStore::create(folder.path(), config, &places, &device).unwrap();
    let of = |answer: &str| {
        let item = Item {
            question: "Where?".into(),
            answer: answer.into(),
        };
        let document = AugmentedDocument {
            passage: "Orla Venn was born in Trask.".into(),
            items: vec![item],
            ..AugmentedDocument::default()
        };
        digest(
            &sequences(
                &document,
                Prompts::new(&tokenizer),
                &EncodeOptions::default(),
            )
            .unwrap(),
        )
    };
    let weights = made_up(&places, 2, 9, 1.0);
    assert_eq!(store.trained_on("a", "text").unwrap(), None);
    store.put("a", "text", &weights, &of("Trask")).unwrap();
    assert_eq!(
        store.trained_on("a", "text").unwrap(),
        Some(of("Trask")),
        "the same question twice"
    );
    assert_ne!(of("Trask"), of("Mirland"));
}

#[test]
fn documents_ran_past_the_models_positions() {
    let (backbone, tokenizer, places) = llama();
    let positions = backbone.info().max_sequence;
    let long = "word ".repeat(positions);
    let document = AugmentedDocument {
        id: "d7".into(),
        passage: long.clone(),
        items: vec![Item {
            question: "What?".into(),
            answer: "word".into(),
        }],
        ..AugmentedDocument::default()
    };
    let options = EncodeOptions {
        max_tokens: usize::MAX,
        ..EncodeOptions::default()
    };
    let expected = format!("the model has {positions} positions");
    let check = |error: ParametricError, named: &str| {
        let text = error.to_string();
        let all = text.contains(&expected) && text.contains(named) && text.contains("--chunk");
        assert!(all, "{text}");
    };
    let prompts = Prompts::new(&tokenizer);
    let error = sequences(&document, prompts.within(positions), &options).unwrap_err();
    check(error, "document `d7`");
    let error = prompts.within(positions).passage(&document).unwrap_err();
    check(error, "document `d7`");
    // Whoever does not say how long a text may be is refused by what runs the model.
    let unchecked = sequences(&document, prompts, &options).unwrap();
    let config = ParametricConfig::default();
    let start = DocumentWeights::start(&places, &config, &Device::flex()).unwrap();
    let error = encode_document(
        &*backbone,
        &places,
        &start,
        &config,
        &options,
        &unchecked,
        &mut || true,
    );
    check(error.unwrap_err(), "tokens");
    let ids = tokenizer.encode(&long, true).unwrap();
    assert!(document_embedding(&*backbone, &ids[..positions]).is_ok());
    check(
        document_embedding(&*backbone, &ids[..=positions]).unwrap_err(),
        &format!("{} tokens", positions + 1),
    );
}
