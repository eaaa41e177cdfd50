//! Generation against `transformers`, where what is kept of earlier tokens must be computed again.

use std::sync::Arc;

use frugal::adapt::{ActiveAdapters, AdapterSet};
use frugal::decode::{Session, StateOptions};
use frugal::model::load::read_json;
use serde_json::Value;

use crate::support::{fixture, max_difference, model};

const TOLERANCE: f32 = 1e-3;

fn ids(value: &Value) -> Vec<u32> {
    let ids = value.as_array().unwrap().iter();
    ids.map(|id| id.as_u64().unwrap() as u32).collect()
}

fn logits(value: &Value) -> Vec<f32> {
    let values = value.as_array().unwrap().iter();
    values.map(|v| v.as_f64().unwrap() as f32).collect()
}

#[test]
fn a_text_that_grows_beyond_the_trained_length_is_computed_again_from_its_start() {
    let golden = read_json(&fixture("long_generation.json")).unwrap();
    let backbone = model(golden["model"].as_str().unwrap(), "config.json");
    let session = || {
        let adapters = Arc::new(AdapterSet::default());
        Session::new(backbone.clone(), adapters, StateOptions::default()).unwrap()
    };
    let check = |found: &[f32], expected: &Value, what: String| {
        let expected = logits(expected);
        let worst = max_difference(&found[..expected.len()], &expected);
        assert!(worst < TOLERANCE, "{what}: {worst:e}");
    };
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 4);
    for case in cases {
        let (prompt, answer) = (ids(&case["prompt"]), ids(&case["ids"]));
        let mut grown = session();
        let sequence = grown.add(ActiveAdapters::Base).unwrap();
        let mut found = grown.append_to(sequence, &prompt).unwrap();
        for (step, id) in answer.iter().enumerate() {
            check(&found, &case["logits"][step], format!("step {step}"));
            found = grown.append_to(sequence, &[*id]).unwrap();
        }
        // Back to where positions are those of a short text, and beyond once more.
        let all = [prompt.as_slice(), &answer].concat();
        for length in [prompt.len(), prompt.len() + 7, prompt.len() + 1] {
            let found = grown.rewind_to(sequence, &all[..length]).unwrap();
            let step = length - prompt.len();
            check(&found, &case["logits"][step], format!("rewound to {step}"));
        }
    }
}
