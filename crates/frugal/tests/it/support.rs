//! Reading fixtures and comparing tensors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::prelude::*;
use frugal::adapt::{BuildContext, to_vec};
use frugal::model::load::{SafetensorsSource, read_json};
use frugal::model::{Backbone, ModelConfig, build};
use safetensors::SafeTensors;

pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures")
        .join(path)
}

pub fn device() -> Device {
    Device::flex()
}

pub fn model(name: &str, config_file: &str) -> Arc<dyn Backbone> {
    let folder = fixture("models").join(name);
    let path = folder.join(config_file);
    let config =
        ModelConfig::from_json(read_json(&path).unwrap(), &path.display().to_string()).unwrap();
    build(
        config,
        &SafetensorsSource::open(&folder).unwrap(),
        &device(),
    )
    .unwrap()
}

/// A golden file: float tensors by name, and whole-number ones.
pub struct Golden {
    pub floats: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    pub ids: BTreeMap<String, Vec<u32>>,
}

impl Golden {
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let (mut floats, mut ids) = (BTreeMap::new(), BTreeMap::new());
        for (name, view) in file.tensors() {
            let data = view.data();
            match view.dtype() {
                safetensors::Dtype::F32 => {
                    let values = data
                        .as_chunks::<4>()
                        .0
                        .iter()
                        .map(|b| f32::from_le_bytes(*b))
                        .collect();
                    floats.insert(name, (view.shape().to_vec(), values));
                }
                safetensors::Dtype::I64 => {
                    let values = data
                        .as_chunks::<8>()
                        .0
                        .iter()
                        .map(|b| i64::from_le_bytes(*b) as u32)
                        .collect();
                    ids.insert(name, values);
                }
                other => panic!("{name}: {other:?}"),
            }
        }
        Self { floats, ids }
    }

    /// Numbers of the sequences in the file.
    pub fn sequences(&self) -> Vec<usize> {
        (0..)
            .take_while(|s| self.ids.contains_key(&format!("seq{s}.input_ids")))
            .collect()
    }

    pub fn input_ids(&self, sequence: usize) -> &[u32] {
        &self.ids[&format!("seq{sequence}.input_ids")]
    }

    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.floats.get(name).map(|(shape, _)| shape.as_slice())
    }

    pub fn float(&self, name: &str) -> Option<&[f32]> {
        self.floats.get(name).map(|(_, values)| values.as_slice())
    }
}

/// Largest absolute difference; fails on different lengths.
pub fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

pub fn assert_close(what: &str, found: Tensor<2>, expected: &[f32], tolerance: f32) {
    let worst = max_difference(&to_vec(found), expected);
    assert!(
        worst <= tolerance,
        "{what}: largest difference {worst:e} > {tolerance:e}"
    );
}

/// What a method needs to build an adapter for this backbone.
pub fn context(backbone: &dyn Backbone, seed: u64) -> BuildContext<'_> {
    BuildContext {
        info: backbone.info(),
        sites: backbone.sites(),
        backbone: Some(backbone),
        device: device(),
        seed,
        tokenize: None,
    }
}
