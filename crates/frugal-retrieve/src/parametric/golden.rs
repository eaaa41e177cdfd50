//! Stage B against peft and PyTorch's AdamW, the translator's loss and gradients against PyTorch.

use burn::prelude::*;
use frugal_nn::{Mode, to_vec};
use serde_json::Value;

use super::tests::{fixture, llama};
use super::*;

fn read() -> Value {
    let text = std::fs::read_to_string(fixture("parametric.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn list(value: &Value) -> Vec<f64> {
    let list = value.as_array().unwrap();
    list.iter().map(|v| v.as_f64().unwrap()).collect()
}

/// The formula of the script.
fn numbers(count: usize, seed: usize, size: f64) -> Vec<f32> {
    (0..count)
        .map(|i| {
            let whole = (i * 7919 + seed * 104_729) % 2003;
            ((whole as f64 - 1001.0) / 1001.0 * size) as f32
        })
        .collect()
}

/// Labels of Hugging Face name the token at their place, targets the next one.
fn sequence(value: &Value) -> Sequence {
    let labels: Vec<i32> = list(&value["labels"]).iter().map(|v| *v as i32).collect();
    let mut targets = labels[1..].to_vec();
    targets.push(-100);
    Sequence {
        ids: list(&value["ids"]).iter().map(|v| *v as u32).collect(),
        targets,
    }
}

fn near(what: &str, found: f64, expected: f64, tolerance: f64) {
    let off = (found - expected).abs() / (expected.abs() + 1e-3);
    assert!(off < tolerance, "{what}: {found} {expected}");
}

fn all_near(what: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let off = (f64::from(*found) - expected).abs();
        assert!(
            off < tolerance * largest.max(1e-4),
            "{what}[{i}]: {found} {expected}"
        );
    }
}

#[test]
fn losses_and_parameters_of_a_document_are_those_of_peft_and_torch() {
    let (backbone, _, places) = llama();
    let golden = &read()["encode"];
    let device = Device::flex();
    let factors = places
        .places()
        .iter()
        .enumerate()
        .map(|(i, place)| Factors {
            a: Tensor::from_data(
                TensorData::new(numbers(2 * place.d_in, 2 * i, 0.2), [2, place.d_in]),
                &device,
            ),
            b: Tensor::zeros([place.d_out, 2], &device),
        });
    let start = DocumentWeights {
        rank: 2,
        factors: factors.collect(),
    };
    let sequences: Vec<Sequence> = golden["sequences"]
        .as_array()
        .unwrap()
        .iter()
        .map(sequence)
        .collect();
    let options = EncodeOptions {
        lr: golden["lr"].as_f64().unwrap(),
        ..EncodeOptions::default()
    };
    let config = ParametricConfig::default();
    let found = encode_document(
        &*backbone,
        &places,
        &start,
        &config,
        &options,
        &sequences,
        &mut || true,
    )
    .unwrap();
    for (found, expected) in found.losses.iter().zip(list(&golden["losses"])) {
        near("loss", *found, expected, 1e-4);
    }
    for (place, pair) in places.places().iter().zip(&found.weights.factors) {
        for (side, tensor) in [("A", &pair.a), ("B", &pair.b)] {
            let name = format!("base_model.model.{}.lora_{side}.weight", place.path);
            let expected = list(&golden["parameters"][&name]);
            // A step of AdamW has the size of the rate whatever the gradient's.
            all_near(&name, &to_vec(tensor.clone()), &expected, 5e-3);
        }
    }
}

#[test]
fn terms_and_gradients_of_the_translators_loss_are_those_of_torch() {
    let (backbone, _, places) = llama();
    let golden = &read()["translator"];
    let passage: Vec<u32> = list(&golden["passage"]).iter().map(|v| *v as u32).collect();
    let embedding = document_embedding(&*backbone, &passage).unwrap();
    all_near("embedding", &embedding, &list(&golden["embedding"]), 1e-4);

    let config = TranslatorConfig {
        width: 3,
        ..TranslatorConfig::default()
    };
    let device = Device::flex();
    let mut translator = Translator::new(&places, config, 0, &device).unwrap();
    for (number, parameter) in translator.parameters_mut().enumerate() {
        parameter.set(numbers(parameter.len(), number, 0.1));
    }
    let targets = places.places().iter().enumerate().map(|(i, place)| {
        let tensor = |seed: usize, shape: [usize; 2]| {
            let values = numbers(shape[0] * shape[1], seed, 0.05);
            Tensor::<2>::from_data(TensorData::new(values, shape), &device)
        };
        Factors {
            a: tensor(100 + 2 * i, [2, place.d_in]),
            b: tensor(101 + 2 * i, [place.d_out, 2]),
        }
    });
    let trained = DocumentWeights {
        rank: 2,
        factors: targets.collect(),
    };
    let sequence = sequence(golden);
    for arm in golden["arms"].as_array().unwrap() {
        let options = TranslatorTraining {
            kl_reduction: serde_json::from_value(arm["kl_reduction"].clone()).unwrap(),
            kl_weight: arm["kl_weight"].as_f64().unwrap(),
            mse_weight: arm["mse_weight"].as_f64().unwrap(),
            ..TranslatorTraining::default()
        };
        let translated = translator
            .translate(&embedding, Mode::Train { seed: 0 })
            .unwrap();
        let loss = translator_loss(
            &*backbone,
            &places,
            [&translated, &trained],
            config.parameters.translated_scale(),
            &sequence,
            &options,
        )
        .unwrap();
        let found = loss.numbers();
        for (name, value) in [
            ("lm", found.lm),
            ("kl", found.kl),
            ("mse", found.mse),
            ("total", found.total),
        ] {
            near(name, value, arm[name].as_f64().unwrap(), 2e-4);
        }
        let mut gradients = loss.total.backward();
        for parameter in translator.parameters() {
            let expected = list(&arm["gradients"][parameter.name()]);
            let found = parameter.take_gradient(&mut gradients).unwrap();
            all_near(parameter.name(), &to_vec(found), &expected, 2e-3);
        }
    }
}
