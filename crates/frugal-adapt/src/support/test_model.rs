//! Small models without weights, for the tests of methods.

use burn::prelude::*;
use frugal_models::ModelConfig;
use frugal_nn::{BackboneInfo, BuildContext, SiteTable};
use serde_json::Value;

/// A model of this `config.json`, without weights.
pub(crate) struct TestModel {
    info: BackboneInfo,
    /// Its sites.
    pub sites: SiteTable,
}

impl TestModel {
    pub fn new(config: Value) -> Self {
        let config = ModelConfig::from_json(config, "test").unwrap();
        Self {
            info: config.info(),
            sites: config.sites(),
        }
    }

    /// What a method builds an adapter for it with.
    pub fn context(&self) -> BuildContext<'_> {
        BuildContext {
            info: &self.info,
            sites: &self.sites,
            backbone: None,
            device: Device::default(),
            seed: 1,
            tokenize: None,
        }
    }
}

/// Asserts as many values, none of which differs by more than `tolerance`.
#[track_caller]
pub(crate) fn close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    let near = |(f, e): (&f32, &f32)| (f - e).abs() < tolerance;
    assert!(
        found.iter().zip(expected).all(near),
        "{found:?} instead of {expected:?}"
    );
}
