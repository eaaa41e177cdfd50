//! Block attention against transformers with a dense mask.

use frugal_nn::to_vec;

use super::tests::{difference, fixture, llama};
use super::*;
use burn::prelude::*;
use frugal_nn::{ControlledPass, Input, NoAdapter};

#[test]
fn blockrank_states_scores_loss_and_gradient_are_those_of_transformers() {
    let text = std::fs::read_to_string(fixture("rankers.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
    let golden = &golden["blocks"];
    let numbers = |key: &str| -> Vec<f32> {
        let list = golden[key].as_array().unwrap();
        list.iter().map(|v| v.as_f64().unwrap() as f32).collect()
    };
    let whole = |key: &str| -> Vec<usize> { numbers(key).iter().map(|v| *v as usize).collect() };
    let number = |key: &str| golden[key].as_f64().unwrap();
    let ids: Vec<u32> = whole("ids").iter().map(|&id| id as u32).collect();
    let prompt = BlockPrompt {
        signals: vec![ids.len() - 2, ids.len() - 1],
        lengths: whole("lengths"),
        ids,
    };
    let backbone = llama();
    let (layer, offset) = (number("layer") as usize, number("offset") as u32);
    let control = BlockPrompt::control(&[&prompt], layer, Some(offset), backbone.info()).unwrap();

    let mut table = None;
    backbone.visit_weights(&mut |part| {
        if let frugal_nn::Frozen::Embedding(embedding) = part {
            table = Some(embedding.forward(&prompt.ids));
        }
    });
    let device = Device::flex().autodiff();
    let rows = Tensor::<2>::from_data(table.unwrap().into_data(), &device).require_grad();
    let mut plain = NoAdapter;
    let mut pass = ControlledPass::new(&mut plain, control);
    let input = Input::embeddings(rows.clone(), &[prompt.ids.len()]);
    let hidden = backbone.forward(&input, &mut pass, None).unwrap();
    let found = difference(to_vec(hidden), numbers("hidden"));
    assert!(found < 1e-4, "hidden states: {found}");

    let values = pass.into_scores().pop().unwrap().values;
    let scores = document_scores(values, &prompt.lengths).unwrap();
    assert!(difference(to_vec(scores.clone()), numbers("scores")) < 1e-5);
    let loss = contrastive_loss(scores, &whole("positives"), number("temperature")).unwrap();
    let found = f64::from(to_vec(loss.clone())[0]);
    assert!((found / number("loss") - 1.0).abs() < 1e-4, "{found}");
    let gradients = loss.backward();
    let gradient = to_vec(rows.grad(&gradients).unwrap());
    let norm = gradient
        .iter()
        .map(|g| f64::from(*g).powi(2))
        .sum::<f64>()
        .sqrt();
    let expected = number("embedding_gradient_norm");
    assert!((norm / expected - 1.0).abs() < 1e-3, "{norm} {expected}");
}
