//! Every key of transformers' configuration classes: each is read, refused by name, or known to
//! change nothing; and what a change does is what transformers computes.

use std::collections::BTreeSet;
use std::path::PathBuf;

use burn::tensor::{Tensor, TensorData};
use frugal::adapt::{NoAdapter, Rows, to_vec};
use frugal::model::load::{SafetensorsSource, read_json};
use frugal::model::{Backbone, Input, ModelConfig, ModelError, build, registry};
use serde_json::Value;

use crate::support::{Golden, device, fixture};

const TOLERANCE: f32 = 2e-4;

fn cases(model_type: &str) -> Value {
    let path = fixture("configs").join(format!("{model_type}.json"));
    read_json(&path).unwrap()
}

/// What the fixtures were computed for; types of our own have no reference.
fn families() -> impl Iterator<Item = &'static registry::Family> {
    registry::FAMILIES
        .iter()
        .copied()
        .filter(|f| f.in_transformers)
}

#[test]
fn every_key_of_the_reference_is_read_refused_or_known_to_change_nothing() {
    for family in families() {
        let fixture = cases(family.model_type);
        let keys = fixture["keys"].as_object().unwrap();
        assert!(keys.len() > 25, "{}", family.model_type);
        let known: BTreeSet<String> = family.all_keys().collect();
        let unknown: Vec<&String> = keys.keys().filter(|key| !known.contains(*key)).collect();
        assert!(unknown.is_empty(), "{}: {unknown:?}", family.model_type);
    }
}

/// What the models of one type read, and the row of their output that is compared.
struct Subject {
    folder: PathBuf,
    golden: Golden,
    is_image: bool,
}

impl Subject {
    fn of(family: &registry::Family, model: &str) -> Self {
        let is_image = family.reads_images();
        let folder = fixture(if is_image { "vision" } else { "models" }).join(model);
        let golden = Golden::read(&folder.join("golden.safetensors"));
        Self {
            folder,
            golden,
            is_image,
        }
    }

    /// The last token's logits, or hidden state of models without; an image's class token.
    fn output(&self, backbone: &dyn Backbone) -> Result<Vec<f32>, ModelError> {
        if self.is_image {
            let [_, height, width, channels] = self.golden.shape("pixels").unwrap()[..] else {
                panic!("images have four dimensions")
            };
            let pixels = height * width;
            let first = &self.golden.float("pixels").unwrap()[..pixels * channels];
            let rows = TensorData::new(first.to_vec(), [pixels, channels]);
            let rows = Tensor::<2>::from_data(rows, &device());
            let input = Input::rows(rows, [height, width], &[pixels]);
            let hidden = backbone.forward(&input, &mut NoAdapter, None)?;
            return Ok(to_vec(hidden.slice(0..1)));
        }
        let ids = self.golden.input_ids(0);
        let input = Input::new(ids, &[ids.len()]);
        let hidden = backbone.forward(&input, &mut NoAdapter, None)?;
        let hidden = hidden.slice(ids.len() - 1..ids.len());
        let logits = backbone.logits(hidden.clone(), Rows::Chosen, &mut NoAdapter);
        Ok(to_vec(logits.unwrap_or(hidden)))
    }
}

/// What is wrong with one case, if anything is.
fn problem(case: &Value, subject: &Subject) -> Option<String> {
    let name = case["name"].as_str().unwrap();
    let changes = case["changes"].as_object().unwrap();
    let mut raw = read_json(&subject.folder.join("config.json")).unwrap();
    raw.as_object_mut().unwrap().extend(changes.clone());
    let result = ModelConfig::from_json(raw, "config.json").and_then(|config| {
        let source = SafetensorsSource::open(&subject.folder)?;
        subject.output(build(config, &source, &device())?.as_ref())
    });
    let expected = case["last"].as_array();
    match (result, expected) {
        // The reference refuses too, or its tensors have other shapes: a key is named (where two
        // contradict each other, either), or the tensors are.
        (Err(error), None) => {
            let (text, tensors) = (error.to_string(), matches!(error, ModelError::Load { .. }));
            let named = tensors || text.contains("config.json: `");
            (!named).then(|| format!("{name}: {text}"))
        }
        (Err(error), Some(_)) => {
            let text = error.to_string();
            let named = changes.keys().any(|key| text.contains(key.as_str()));
            (!named).then(|| format!("{name} is refused without its name: {text}"))
        }
        (Ok(_), None) if case.get("shapes").is_some() => Some(format!(
            "{name}: tensors of other shapes are expected, and none was missed"
        )),
        // What the reference cannot run is not compared.
        (Ok(_), None) => None,
        (Ok(found), Some(expected)) => {
            let expected: Vec<f32> = expected
                .iter()
                .map(|v| v.as_f64().unwrap() as f32)
                .collect();
            let worst = found
                .iter()
                .zip(&expected)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            (worst.is_nan() || worst > TOLERANCE).then(|| format!("{name}: off by {worst}"))
        }
    }
}

#[test]
fn a_key_away_from_its_default_gives_the_logits_of_the_reference_or_is_refused_by_name() {
    let mut problems = Vec::new();
    for family in families() {
        let fixture_file = cases(family.model_type);
        let subject = Subject::of(family, fixture_file["model"].as_str().unwrap());
        let all = fixture_file["cases"].as_array().unwrap();
        assert!(all.len() > 20, "{}", family.model_type);
        for case in all {
            if let Some(problem) = problem(case, &subject) {
                problems.push(format!("{}: {problem}", family.model_type));
            }
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}
