//! Every architecture against `transformers`, sequence by sequence and all in one ragged batch.

use burn::prelude::*;
use frugal::adapt::Rows;
use frugal::adapt::{NoAdapter, Pass};
use frugal::model::{Input, SequenceLayout, StateOptions};

use crate::support::{Golden, assert_close, fixture, model};

const TOLERANCE: f32 = 1e-4;

const MODELS: [&str; 23] = [
    "llama",
    "llama-rope-llama3",
    "llama-rope-linear",
    "mistral",
    "mixtral",
    "rmoe",
    "widenet",
    "deepseek_v3",
    "qwen2",
    "qwen3",
    "gemma3_text",
    "phi3",
    "mamba",
    "mamba2",
    "gated_ssm",
    "hawk",
    "recurrent_gemma",
    "tokenformer",
    "minicpm",
    "minicpm_moe",
    "gpt2",
    "bert",
    "roberta",
];

/// Remembers the residual stream after each block.
#[derive(Default)]
struct Taps(Vec<Tensor<2>>);

impl Pass for Taps {
    fn after_block(&mut self, _layer: usize, hidden_states: &Tensor<2>) {
        self.0.push(hidden_states.clone());
    }
}

fn golden(name: &str) -> Golden {
    Golden::read(&fixture("models").join(name).join("golden.safetensors"))
}

fn types(golden: &Golden, sequence: usize) -> &[u32] {
    golden
        .ids
        .get(&format!("seq{sequence}.token_type_ids"))
        .map_or(&[], Vec::as_slice)
}

#[test]
fn hidden_states_and_logits_match_transformers() {
    for name in MODELS {
        let golden = golden(name);
        assert!(golden.sequences().len() >= 2, "{name}");
        for config in ["config.json", "config_legacy.json"] {
            let backbone = model(name, config);
            for s in golden.sequences() {
                let ids = golden.input_ids(s);
                let input = Input {
                    token_type_ids: types(&golden, s),
                    ..Input::new(ids, &[ids.len()])
                };
                let mut taps = Taps::default();
                let hidden = backbone.forward(&input, &mut taps, None).unwrap();
                for (layer, found) in taps.0.into_iter().enumerate() {
                    let key = format!("seq{s}.block.{layer}");
                    assert_close(
                        &format!("{name}/{config} {key}"),
                        found,
                        golden.float(&key).unwrap(),
                        TOLERANCE,
                    );
                }
                let key = format!("seq{s}.last_hidden_state");
                assert_close(
                    &format!("{name}/{config} {key}"),
                    hidden.clone(),
                    golden.float(&key).unwrap(),
                    TOLERANCE,
                );
                if let Some(expected) = golden
                    .float(&format!("seq{s}.logits"))
                    .filter(|_| backbone.lm_head().is_some())
                {
                    let logits = backbone
                        .logits(hidden.clone(), Rows::Tokens, &mut NoAdapter)
                        .unwrap();
                    assert_close(
                        &format!("{name}/{config} logits {s}"),
                        logits,
                        expected,
                        TOLERANCE,
                    );
                }
                if let Some(expected) = golden.float(&format!("seq{s}.pooler_output")) {
                    let pooled = backbone
                        .pooler()
                        .unwrap()
                        .forward(hidden.slice(0..1))
                        .tanh();
                    assert_close(&format!("{name} pooler {s}"), pooled, expected, TOLERANCE);
                }
            }
        }
    }
}

#[test]
fn a_ragged_batch_equals_its_sequences() {
    for name in MODELS {
        let (golden, backbone) = (golden(name), model(name, "config.json"));
        let all: Vec<u32> = golden
            .sequences()
            .iter()
            .flat_map(|&s| golden.input_ids(s).to_vec())
            .collect();
        let segment_ids: Vec<u32> = golden
            .sequences()
            .iter()
            .flat_map(|&s| types(&golden, s).to_vec())
            .collect();
        let lengths: Vec<usize> = golden
            .sequences()
            .iter()
            .map(|&s| golden.input_ids(s).len())
            .collect();
        let input = Input {
            token_type_ids: &segment_ids,
            ..Input::new(&all, &lengths)
        };
        let hidden = backbone.forward(&input, &mut NoAdapter, None).unwrap();
        let expected: Vec<f32> = golden
            .sequences()
            .iter()
            .flat_map(|s| {
                golden
                    .float(&format!("seq{s}.last_hidden_state"))
                    .unwrap()
                    .to_vec()
            })
            .collect();
        assert_close(name, hidden, &expected, TOLERANCE);
    }
}

#[test]
fn token_by_token_with_a_cache_equals_all_at_once() {
    // Encoders have no cache. Phi-3's frequencies change for all positions once a text passes the
    // trained length, where a session computes again what is cached.
    for name in MODELS
        .into_iter()
        .filter(|n| !["bert", "roberta", "phi3"].contains(n))
    {
        let (golden, backbone) = (golden(name), model(name, "config.json"));
        let sequences: Vec<&[u32]> = golden
            .sequences()
            .into_iter()
            .map(|s| golden.input_ids(s))
            .collect();
        let mut cache = backbone
            .new_state(sequences.len(), StateOptions::default())
            .unwrap();
        let shortest = sequences.iter().map(|s| s.len()).min().unwrap();
        let mut rows: Vec<Vec<Tensor<2>>> = vec![Vec::new(); sequences.len()];
        for (start, end) in std::iter::once((0, 3)).chain((3..shortest).map(|i| (i, i + 1))) {
            let ids: Vec<u32> = sequences
                .iter()
                .flat_map(|s| s[start..end].to_vec())
                .collect();
            let layout =
                SequenceLayout::with_past(&vec![end - start; sequences.len()], &cache.past());
            let hidden = backbone
                .forward(
                    &Input::tokens(&ids, layout),
                    &mut NoAdapter,
                    Some(&mut cache),
                )
                .unwrap();
            for (s, rows) in rows.iter_mut().enumerate() {
                rows.push(
                    hidden
                        .clone()
                        .slice(s * (end - start)..(s + 1) * (end - start)),
                );
            }
        }
        for (s, rows) in rows.into_iter().enumerate() {
            let found = Tensor::cat(rows, 0);
            let d = found.dims()[1];
            let expected =
                &golden.float(&format!("seq{s}.last_hidden_state")).unwrap()[..shortest * d];
            assert_close(&format!("{name} sequence {s}"), found, expected, TOLERANCE);
        }
    }
}

#[test]
fn ids_outside_the_vocabulary_and_too_long_inputs_are_refused() {
    let backbone = model("gpt2", "config.json");
    let vocab = backbone.info().vocab_size as u32;
    let error = backbone
        .forward(&Input::new(&[0, vocab], &[2]), &mut NoAdapter, None)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("position 1") && error.contains("tokenizer"),
        "{error}"
    );
    let long = vec![1; backbone.info().max_sequence + 1];
    let error = backbone
        .forward(&Input::new(&long, &[long.len()]), &mut NoAdapter, None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("truncation"), "{error}");
    let error = backbone
        .forward(&Input::new(&[], &[0]), &mut NoAdapter, None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("0 tokens"), "{error}");
}
