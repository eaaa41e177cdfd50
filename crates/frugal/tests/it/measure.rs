//! Measures of models on texts, against the official code of information capacity.

use std::path::PathBuf;
use std::sync::Arc;

use frugal::adapt::{ActiveAdapters, AdapterSet};
use frugal::device::device;
use frugal::measure::language_model::HarnessModel;
use frugal::measure::runtime::{Grid, profile, shape};
use frugal::model::load::{Lookup, ModelFiles};
use serde_json::Value;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures")
        .join(name)
}

fn open(name: &str) -> ModelFiles {
    let folder = folder(name);
    ModelFiles::open(folder.to_str().unwrap(), &Lookup::default()).unwrap()
}

/// `scripts/golden/capacity_bos.py` wrote the numbers by the official protocol: every sample by
/// itself, with the BOS that its tokenizer adds.
#[test]
fn samples_are_scored_with_the_bos_that_their_tokenizer_adds() {
    let files = open("measure/gemma3-bos");
    let read =
        |name: &str| std::fs::read_to_string(folder("measure/gemma3-bos").join(name)).unwrap();
    let golden: Value = serde_json::from_str(&read("capacity.json")).unwrap();
    let backbone = files.load(&device("cpu").unwrap()).unwrap();
    let model = HarnessModel {
        backbone: backbone.clone(),
        adapters: Arc::new(AdapterSet::default()),
        choice: ActiveAdapters::Base,
        tokenizer: files.tokenizer().unwrap(),
        batch_tokens: 256,
        fingerprint: String::new(),
    };
    let length = golden["length"].as_u64().unwrap() as usize;
    let samples: Vec<String> = read("samples.jsonl")
        .lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            line["text"].as_str().unwrap().to_owned()
        })
        .collect();
    let stretches: Vec<_> = samples
        .iter()
        .map(|text| model.sample(text, length).unwrap().unwrap())
        .collect();
    let bos = golden["bos"].as_u64().unwrap() as u32;
    assert!(
        stretches
            .iter()
            .all(|s| s.ids[0] == bos && s.ids.len() <= length)
    );
    let cost = model.text_cost(&stretches).unwrap();
    assert_eq!(
        (Some(cost.tokens), Some(cost.bytes)),
        (golden["tokens"].as_u64(), golden["bytes"].as_u64())
    );
    let nats = golden["nats"].as_f64().unwrap();
    assert!(
        (cost.nats / nats - 1.0).abs() < 1e-5,
        "{} and {nats}",
        cost.nats
    );
    // Stretches of a text begin with it, too, and count it in their length.
    let text = samples.join(" ");
    let whole = model.stretches(&text, 10, 0).unwrap();
    assert!(whole.len() > 2 && whole.iter().all(|s| s.ids.len() == 10 && s.ids[0] == bos));
    assert!(whole[1..].iter().all(|s| s.ids[1] != bos));
    // All of the text is predicted but for the rest that fills no stretch.
    let bytes: u64 = whole.iter().map(|s| s.bytes).sum();
    assert!(
        bytes <= text.len() as u64 && bytes + 60 > text.len() as u64,
        "{bytes}"
    );
}

#[test]
fn operations_of_latent_attention_are_counted_and_of_experts() {
    let latent = shape(open("models/deepseek_v3").config()).unwrap();
    assert!(latent.latent.is_some() && latent.flops_per_token(64) > 0.0);
    let experts = shape(open("models/mixtral").config()).unwrap();
    assert!(experts.experts > 1 && experts.latent.is_none());
}

#[test]
fn encoders_are_timed_at_reading() {
    let files = open("models/bert");
    let backbone = files.load(&device("cpu").unwrap()).unwrap();
    let grid = Grid {
        prompts: vec![4, 8],
        outputs: vec![1, 2],
        warmup: 1,
        trials: 3,
    };
    let found = profile(
        &backbone,
        &Arc::new(AdapterSet::default()),
        &ActiveAdapters::Base,
        &grid,
        &mut || true,
    )
    .unwrap();
    assert_eq!(found.len(), 6);
    assert!(found.iter().all(|t| t.output == 1 && t.seconds > 0.0));
}
