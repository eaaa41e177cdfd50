//! Several adapters on one model, chosen for each sequence of a batch. The model's weights exist
//! once.
//!
//! `cargo run --release --example several_adapters`

#![allow(clippy::print_stdout, reason = "its output is the point")]

use std::sync::Arc;

use frugal::adapt::{ActiveAdapters, AdapterSet, BuildContext, LoadedAdapter, registry};
use frugal::decode::{CacheType, GenerateConfig, SamplerConfig, generate};
use frugal::device::device;
use frugal::model::load::{Lookup, ModelFiles};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ModelFiles::open("builtin", &Lookup::default())?;
    let backbone = files.load(&device("cpu")?)?;
    let tokenizer = files.tokenizer()?;

    // In place of trained adapters, `peft::load` would give them: two new ones with the method's
    // defaults. LoRA changes nothing until it is trained, so one of them gets values that do
    // something.
    let lora = registry::find("lora")?;
    let mut adapters = AdapterSet::default();
    for (name, seed) in [("new", 1), ("noisy", 2)] {
        let context = BuildContext {
            info: files.info(),
            sites: &files.sites(),
            backbone: Some(backbone.as_ref()),
            device: device("cpu")?,
            seed,
            tokenize: None,
        };
        let mut adapter = (lora.build)(&(lora.defaults)(), &context)?;
        if name == "noisy" {
            for parameter in adapter.parameters_mut() {
                let values = (0..parameter.len())
                    .map(|i| 0.05 * ((i * 7919 % 13) as f32 - 6.0))
                    .collect();
                parameter.set(values);
            }
        }
        adapters.insert(
            name,
            LoadedAdapter {
                adapter,
                head: None,
            },
        );
    }

    // The same prompt three times: the plain model, the new adapter, the noisy one, in one batch.
    let prompt = tokenizer.encode("a small house", true)?;
    let choice = ActiveAdapters::PerSequence(vec![None, Some("new".into()), Some("noisy".into())]);
    let config = GenerateConfig {
        max_tokens: 12,
        sampler: SamplerConfig::default(),
        eos_token_ids: tokenizer.eos_ids().to_vec(),
        seed: 0,
        cache_type: CacheType::F32,
    };
    let prompts = vec![prompt; 3];
    let results = generate(
        &backbone,
        &Arc::new(adapters),
        &choice,
        &prompts,
        &config,
        &mut |_, _| true,
    )?;
    for (who, result) in ["base", "new", "noisy"].iter().zip(&results) {
        println!("{who:>5}: {:?}", tokenizer.decode(&result.tokens, true)?);
    }
    assert_eq!(
        results[0].tokens, results[1].tokens,
        "an untrained LoRA adapter changes nothing"
    );
    Ok(())
}
