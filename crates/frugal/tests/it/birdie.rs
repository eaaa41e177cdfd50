//! Gated SSM, Hawk and RecurrentGemma beyond what all backbones are tested for: gradients of every
//! weight, also under prefixes that are read in both directions, and files.

use std::sync::Arc;

use frugal::model::load::{SafetensorsSource, read_json};
use frugal::model::{Backbone, ModelConfig, build};
use serde_json::Value;

use crate::mamba::{compare_files, compare_gradients, compare_gradients_of};
use crate::support::{Golden, device, fixture};

const OWN: [&str; 2] = ["gated_ssm", "hawk"];

#[test]
fn the_loss_and_the_gradient_of_every_weight_match_the_formulas() {
    for name in OWN {
        compare_gradients(name);
    }
}

#[test]
fn gradients_match_where_prefixes_are_read_in_both_directions() {
    for name in OWN {
        let folder = fixture("models").join(name);
        let variants = Golden::read(&folder.join("variants.safetensors"));
        let ids: Vec<&[u32]> = (0..2)
            .map(|s| variants.ids[&format!("input_ids.{s}")].as_slice())
            .collect();
        let change = read_json(&folder.join("variants.json")).unwrap()["changes"]["prefix"].clone();
        let backbone = with(name, &change).unwrap();
        let expected = Golden::read(&folder.join("prefix_gradients.safetensors"));
        compare_gradients_of(name, backbone.as_ref(), &ids, &expected);
    }
}

#[test]
fn what_is_written_has_the_names_and_shapes_that_were_read() {
    for name in ["gated_ssm", "hawk", "recurrent_gemma"] {
        compare_files(name);
    }
}

fn config(name: &str, changes: &Value) -> Value {
    let mut raw = read_json(&fixture("models").join(name).join("config.json")).unwrap();
    let changes = changes.as_object().unwrap().clone();
    raw.as_object_mut().unwrap().extend(changes);
    raw
}

fn with(name: &str, changes: &Value) -> Result<Arc<dyn Backbone>, String> {
    let config = ModelConfig::from_json(config(name, changes), "config.json");
    let config = config.map_err(|error| error.to_string())?;
    let source = SafetensorsSource::open(&fixture("models").join(name)).unwrap();
    build(config, &source, &device()).map_err(|error| error.to_string())
}
