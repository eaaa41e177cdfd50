//! MiniCPM beyond what all backbones are tested for: gradients of every weight, files, other settings.

use frugal::adapt::{NoAdapter, Rows};
use frugal::model::load::{SafetensorsSource, read_json};
use frugal::model::{Input, ModelConfig, build};

use crate::mamba::{compare_files, compare_gradients};
use crate::support::{Golden, assert_close, device, fixture};

const NAME: &str = "minicpm";

#[test]
fn the_loss_and_the_gradient_of_every_weight_match_the_formulas() {
    compare_gradients(NAME);
}

#[test]
fn what_is_written_has_the_names_and_shapes_that_were_read() {
    compare_files(NAME);
}

#[test]
fn other_settings_give_the_logits_of_the_formulas() {
    let folder = fixture("models").join(NAME);
    let golden = Golden::read(&folder.join("golden.safetensors"));
    let expected = Golden::read(&folder.join("variants.safetensors"));
    let changes = read_json(&folder.join("variants.json")).unwrap()["changes"].clone();
    let changes = changes.as_object().unwrap();
    assert!(changes.len() >= 5 && changes.len() == expected.floats.len());
    for (name, change) in changes {
        let mut raw = read_json(&folder.join("config.json")).unwrap();
        let own = change.as_object().unwrap().clone();
        raw.as_object_mut().unwrap().extend(own);
        let config = ModelConfig::from_json(raw, "config.json").unwrap();
        let source = SafetensorsSource::open(&folder).unwrap();
        let backbone = build(config, &source, &device()).unwrap();
        let ids = golden.input_ids(0);
        let hidden = backbone
            .forward(&Input::new(ids, &[ids.len()]), &mut NoAdapter, None)
            .unwrap();
        let logits = backbone.logits(hidden, Rows::Tokens, &mut NoAdapter);
        assert_close(name, logits.unwrap(), expected.float(name).unwrap(), 1e-4);
    }
}
