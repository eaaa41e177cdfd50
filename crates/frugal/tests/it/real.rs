//! The real models against `transformers`. They come from
//! `scripts/fetch-models smollm2-135m minilm-l6`.

use std::sync::{Arc, OnceLock};

use burn::prelude::*;
use frugal::adapt::Rows;
use frugal::adapt::{ActiveAdapters, AdapterSet, NoAdapter, Pass, to_vec};
use frugal::decode::{
    CacheType, FinishReason, GenerateConfig, SamplerConfig, Session, StateOptions, generate,
};
use frugal::model::load::{Lookup, ModelFiles};
use frugal::model::{Backbone, Input, LoadOptions, Quantize, mean_pool, select_rows};
use frugal::run::{ExportFormat, export_gguf};
use frugal_formats::gguf::Gguf;

use crate::support::{Golden, device, fixture, max_difference};

/// The difference that is allowed between the logits of two f32 implementations.
const LOGITS: f32 = 2e-3;

pub fn files(name: &str) -> ModelFiles {
    ModelFiles::open(name, &Lookup::default())
        .unwrap_or_else(|e| panic!("{e} (scripts/fetch-models {name})"))
}

pub fn smollm2() -> Arc<dyn Backbone> {
    static MODEL: OnceLock<Arc<dyn Backbone>> = OnceLock::new();
    MODEL
        .get_or_init(|| files("smollm2-135m").load(&device()).unwrap())
        .clone()
}

fn golden(name: &str) -> Golden {
    Golden::read(&fixture("real").join(name).join("golden.safetensors"))
}

fn prompts(golden: &Golden) -> Vec<Vec<u32>> {
    (0..)
        .map_while(|n| golden.ids.get(&format!("prompt{n}.input_ids")).cloned())
        .collect()
}

fn norms(x: Tensor<2>) -> Vec<f32> {
    let width = x.dims()[1];
    to_vec(x)
        .chunks(width)
        .map(|row| row.iter().map(|v| v * v).sum::<f32>().sqrt())
        .collect()
}

#[derive(Default)]
struct Taps(Vec<Tensor<2>>);

impl Pass for Taps {
    fn after_block(&mut self, _layer: usize, hidden_states: &Tensor<2>) {
        self.0.push(hidden_states.clone());
    }
}

#[test]
fn smollm2_hidden_states_and_logits_match_transformers() {
    let (golden, backbone) = (golden("smollm2-135m"), smollm2());
    let subset = &golden.ids["logits_subset.vocab_ids"];
    assert_eq!(prompts(&golden).len(), 10);
    for (n, ids) in prompts(&golden).iter().enumerate() {
        let mut taps = Taps::default();
        let hidden = backbone
            .forward(&Input::new(ids, &[ids.len()]), &mut taps, None)
            .unwrap();
        let key = |name: &str| format!("prompt{n}.{name}");
        for (layer, block) in taps.0.iter().enumerate() {
            let expected = &golden.float(&key("block_norms")).unwrap()
                [layer * ids.len()..(layer + 1) * ids.len()];
            let relative = norms(block.clone())
                .iter()
                .zip(expected)
                .map(|(f, e)| (f - e).abs() / e)
                .fold(0.0, f32::max);
            assert!(
                relative < 1e-4,
                "prompt {n} block {layer}: norms differ by {relative:e}"
            );
            if let Some(expected) = golden.float(&key(&format!("block.{layer}"))) {
                let scale = expected.iter().map(|v| v.abs()).fold(0.0, f32::max);
                let worst = max_difference(&to_vec(block.clone()), expected);
                assert!(
                    worst / scale < 1e-5,
                    "prompt {n} block {layer}: {worst:e} of {scale}"
                );
            }
        }
        let last = select_rows(hidden, &[ids.len() - 1]);
        assert!(
            max_difference(
                &to_vec(last.clone()),
                golden.float(&key("final_last")).unwrap()
            ) < LOGITS,
            "prompt {n}"
        );
        let logits = to_vec(backbone.logits(last, Rows::Chosen, &mut NoAdapter).unwrap());
        let chosen: Vec<f32> = subset.iter().map(|&id| logits[id as usize]).collect();
        let worst = max_difference(&chosen, golden.float(&key("last_logits_subset")).unwrap());
        assert!(worst <= LOGITS, "prompt {n}: logits differ by {worst:e}");
        if let Some(all) = golden.float(&key("last_logits")) {
            let worst = max_difference(&logits, all);
            assert!(worst <= LOGITS, "prompt {n}: logits differ by {worst:e}");
        }
    }
}

/// Logits after each prompt, of the subset of the vocabulary that the fixture has.
fn logits(backbone: &dyn Backbone, golden: &Golden) -> Vec<Vec<f32>> {
    let subset = &golden.ids["logits_subset.vocab_ids"];
    let of = |ids: &Vec<u32>| {
        let hidden = backbone
            .forward(&Input::new(ids, &[ids.len()]), &mut NoAdapter, None)
            .unwrap();
        let all = to_vec(
            backbone
                .logits(
                    select_rows(hidden, &[ids.len() - 1]),
                    Rows::Chosen,
                    &mut NoAdapter,
                )
                .unwrap(),
        );
        subset.iter().map(|&id| all[id as usize]).collect()
    };
    prompts(golden).iter().map(of).collect()
}

#[test]
fn smollm2_in_the_codes_of_its_file_computes_the_same() {
    let golden = golden("smollm2-135m");
    let load = |options| files("smollm2-135m").load_with(&device(), options).unwrap();
    let exact = load(LoadOptions {
        quantize: Quantize::Stored,
        ..LoadOptions::default()
    });
    let mut bytes = 0;
    exact.visit_weights(&mut |part| {
        if let frugal::model::Frozen::Linear(linear) = part {
            assert!(linear.weight.format().is_some());
            bytes += linear.weight.bytes();
        }
    });
    assert!(
        bytes < 100_000_000,
        "{bytes} bytes for 134 million weights of 4 and 8 bits"
    );
    let integers = load(LoadOptions::for_generation());
    for (n, (exact, integers)) in logits(exact.as_ref(), &golden)
        .iter()
        .zip(logits(integers.as_ref(), &golden))
        .enumerate()
    {
        let expected = golden
            .float(&format!("prompt{n}.last_logits_subset"))
            .unwrap();
        let worst = max_difference(exact, expected);
        assert!(worst <= LOGITS, "prompt {n}: logits differ by {worst:e}");
        // Inputs of layers are rounded to 8 bits in groups of 32, as llama.cpp does: half a percent
        // at each of 210 maps in a row. All logits together stay where they were.
        let (mean, size) = (
            difference(&integers, expected),
            difference(&vec![0.0; expected.len()], expected),
        );
        assert!(
            mean < 0.1 * size,
            "prompt {n}: logits differ by {mean} of {size}"
        );
    }
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    (a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>() / a.len() as f32).sqrt()
}

#[test]
fn smollm2_continues_ten_prompts_as_transformers_does() {
    let (golden, backbone) = (golden("smollm2-135m"), smollm2());
    let config = GenerateConfig {
        max_tokens: 64,
        sampler: SamplerConfig::default(),
        eos_token_ids: Vec::new(),
        seed: 0,
        cache_type: CacheType::F32,
    };
    let mut seen = 0;
    let found = generate(
        &backbone,
        &Arc::new(AdapterSet::default()),
        &ActiveAdapters::Base,
        &prompts(&golden),
        &config,
        &mut |_, _| {
            seen += 1;
            true
        },
    );
    let found = found.unwrap();
    assert_eq!(seen, 10 * 64);
    for (n, generation) in found.iter().enumerate() {
        assert_eq!(
            generation.tokens,
            golden.ids[&format!("prompt{n}.greedy_ids")],
            "prompt {n}"
        );
        assert_eq!(generation.finish, FinishReason::Length);
    }
}

/// The weights come from a file of 4-bit blocks with a token table in 8 bits.
#[test]
fn smollm2_written_in_four_bits_is_what_was_read() {
    let files = files("smollm2-135m");
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("again.gguf");
    export_gguf(&files, smollm2().as_ref(), None, &out, ExportFormat::Q4_1).unwrap();
    let [read, written] = [files.path(), out.as_path()].map(|path| {
        let bytes = std::fs::read(path).unwrap();
        (Gguf::parse(&bytes, "the file").unwrap(), bytes)
    });
    assert_eq!(written.0.tensors().len(), read.0.tensors().len());
    for tensor in read.0.tensors() {
        let [before, after] =
            [&read, &written].map(|(gguf, bytes)| gguf.tensor_bytes(bytes, &tensor.name).unwrap());
        assert!(before == after, "{} changed", tensor.name);
    }
}

/// The tokens that the reference chose, one by one, over keys and values held in fewer bits.
#[test]
fn smollm2_chooses_as_transformers_does_over_a_smaller_cache() {
    let (golden, backbone) = (golden("smollm2-135m"), smollm2());
    let prompts = prompts(&golden);
    for (cache_type, agreeing, bytes) in [
        (CacheType::F32, 640, 1.0),
        (CacheType::F16, 640, 0.5),
        (CacheType::Int8, 620, 0.27),
    ] {
        let options = StateOptions {
            cache_type,
            ..StateOptions::default()
        };
        let mut session = Session::new(backbone.clone(), Arc::default(), options).unwrap();
        let sequences: Vec<_> = prompts
            .iter()
            .map(|_| session.add(ActiveAdapters::Base).unwrap())
            .collect();
        let begin = sequences.iter().zip(&prompts);
        let begin: Vec<_> = begin.map(|(id, prompt)| (*id, prompt.as_slice())).collect();
        let mut logits = session.append(&begin).unwrap();
        let mut found = 0;
        for step in 0..64 {
            let tokens: Vec<u32> = (0..prompts.len())
                .map(|n| golden.ids[&format!("prompt{n}.greedy_ids")][step])
                .collect();
            let best = |row: &Vec<f32>| {
                (0..row.len())
                    .max_by(|&a, &b| row[a].total_cmp(&row[b]))
                    .unwrap() as u32
            };
            found += logits
                .iter()
                .zip(&tokens)
                .filter(|(row, token)| best(row) == **token)
                .count();
            let new = sequences.iter().copied().zip(tokens.chunks(1));
            logits = session.append(&new.collect::<Vec<_>>()).unwrap();
        }
        println!(
            "{cache_type:?}: {found} of 640 tokens, {} bytes",
            session.bytes()
        );
        // A block holds 256 positions of 3 heads of 64, as keys and as values, in each of 30
        // layers.
        let full = (prompts.len() * 30 * 256 * 3 * 64 * 2 * size_of::<f32>()) as f64;
        assert!(found >= agreeing, "{cache_type:?}: {found} of 640 tokens");
        assert!(
            session.bytes() as f64 <= full * bytes,
            "{cache_type:?}: {} bytes",
            session.bytes()
        );
    }
}

#[test]
fn minilm_hidden_states_and_embeddings_match_transformers() {
    let golden = golden("minilm-l6");
    let backbone = files("minilm-l6").load(&device()).unwrap();
    let sentences: Vec<Vec<u32>> = (0..)
        .map_while(|n| golden.ids.get(&format!("sentence{n}.input_ids")).cloned())
        .collect();
    assert_eq!(sentences.len(), 8);
    let lengths: Vec<usize> = sentences.iter().map(Vec::len).collect();
    let ids = sentences.concat();
    let input = Input::new(&ids, &lengths);
    let hidden = backbone.forward(&input, &mut NoAdapter, None).unwrap();
    let pooled = to_vec(mean_pool(hidden.clone(), &input.layout.cu_seqlens));
    for (n, range) in input.layout.cu_seqlens.windows(2).enumerate() {
        let found = to_vec(hidden.clone().slice(range[0]..range[1]));
        let worst = max_difference(
            &found,
            golden
                .float(&format!("sentence{n}.last_hidden_state"))
                .unwrap(),
        );
        assert!(worst < 1e-4, "sentence {n}: {worst:e}");
        let row = &pooled[n * 384..(n + 1) * 384];
        let length = row.iter().map(|v| v * v).sum::<f32>().sqrt();
        let unit: Vec<f32> = row.iter().map(|v| v / length).collect();
        assert!(
            max_difference(
                &unit,
                golden.float(&format!("sentence{n}.embedding")).unwrap()
            ) < 1e-5,
            "sentence {n}"
        );
    }
}
