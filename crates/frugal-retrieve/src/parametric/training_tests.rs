//! Training of documents and of the translator.

use burn::prelude::*;
use frugal_nn::to_vec;

use super::tests::{IDS, example, llama, made_up};
use super::*;

#[test]
fn training_a_document_lowers_its_loss_and_repeats_bit_for_bit() {
    let (backbone, tokenizer, places) = llama();
    let options = EncodeOptions {
        lr: 1e-2,
        epochs: 4,
        ..EncodeOptions::default()
    };
    let config = ParametricConfig::default();
    let found = sequences(&example(), Prompts::new(&tokenizer), &options).unwrap();
    let start = DocumentWeights::start(&places, &config, &Device::flex()).unwrap();
    let run = |go_on: &mut (dyn FnMut() -> bool + Send)| {
        encode_document(
            &*backbone, &places, &start, &config, &options, &found, go_on,
        )
    };
    let one = run(&mut || true).unwrap();
    assert_eq!(one.losses.len(), 20);
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    assert!(
        mean(&one.losses[15..]) < 0.8 * mean(&one.losses[..5]),
        "{:?}",
        one.losses
    );
    let again = run(&mut || true).unwrap();
    assert_eq!(one.losses, again.losses);
    for (a, b) in one.weights.factors.iter().zip(&again.weights.factors) {
        assert_eq!(to_vec(a.b.clone()), to_vec(b.b.clone()));
    }
    let mut left = 3;
    let stopped = run(&mut || {
        left -= 1;
        left > 0
    });
    assert!(matches!(stopped, Err(ParametricError::Interrupted)));
}

#[test]
fn a_translator_learns_what_training_gave() {
    let (backbone, tokenizer, places) = llama();
    let sequences = sequences(
        &example(),
        Prompts::new(&tokenizer),
        &EncodeOptions::default(),
    )
    .unwrap();
    let config = TranslatorConfig {
        width: 8,
        ..TranslatorConfig::default()
    };
    let mut translator = Translator::new(&places, config, 2, &Device::flex()).unwrap();
    let examples: Vec<TranslatorExample> = (0..2)
        .map(|i| TranslatorExample {
            embedding: document_embedding(&*backbone, &IDS[i..i + 4]).unwrap(),
            trained: made_up(&places, 2, 50 * i, 0.02),
            sequences: sequences.clone(),
        })
        .collect();
    let options = TranslatorTraining {
        lr: 3e-3,
        epochs: 30,
        ..TranslatorTraining::default()
    };
    let mut losses = Vec::new();
    train_translator(&mut translator, &*backbone, &examples, &options, &mut |s| {
        losses.push(s.losses);
        assert_eq!((s.step, s.of), (losses.len(), 60));
        true
    })
    .unwrap();
    let ends = |term: fn(&Losses) -> f64| (term(&losses[0]), term(&losses[59]));
    let (first, last) = ends(|l| l.mse);
    assert!(last < 0.7 * first, "mse {first} {last}");
    let (first, last) = ends(|l| l.total);
    assert!(last < first, "total {first} {last}");
}
