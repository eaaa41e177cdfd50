//! # FISH mask: training the weights that matter most
//!
//! ## What it does
//! Measures which of the model's own weights the loss is most sensitive to, and trains only those.
//! The choice is made once, in the first steps of the run, and then stays.
//!
//! ## Update rule
//! `F_i = Σ g_i²` over the examples of the first `fisher_steps` steps, with `g` the gradient of one
//! example's log-likelihood; nothing moves meanwhile. Then `y = x (W + Δ)ᵀ` where `Δ` is trained in the `density` of all entries with the largest `F` and zero elsewhere.
//!
//! ## When to use, when not
//! When the change must be sparse: it merges without cost, several can be shipped as short lists,
//! and two that touch different entries do not disturb each other. It needs as much memory as full
//! training while it measures; LoRA reaches the same quality with less.
//!
//! ## Cost
//! Trainable: `density` of the entries of all chosen layers. While measuring, the examples of a step
//! pass one by one. Extra memory: a gradient and a sum of
//! squares for every entry while measuring, one dense matrix per layer afterwards. None after
//! merging.
//!
//! ## Defaults and where they come from
//! Half a per cent of the entries, the paper's main setting; all linear layers but the head. 16 steps
//! of measuring, or a quarter of the run if that is less.
//!
//! ## Departures from the paper
//! The labels are the true ones, as in the released code (the empirical Fisher information). Biases, norms and tables are not candidates.
//!
//! ## References
//! - Sung, Nair, Raffel: Training Neural Networks with Fixed Sparse Masks, 2021, arXiv 2111.09839.

use std::collections::BTreeMap;

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, GradientSum, Linear, Mode, Parameter, Pass, StepContext,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::method::{Family, Method, MethodConfig};
use crate::support::own_files;
use crate::support::sparse::{
    AddsToWeights, DeltaPass, Place, Places, SparseDelta, SparseFile, budget, top,
};
use crate::target::{Layers, Names, Targets};

const NAME: &str = "fish-mask";

/// Registry entry.
pub const METHOD: Method = Method::of::<FishMaskConfig>(
    Family::Sparse,
    "Trains the few weights that the loss is most sensitive to",
    include_str!("fish_mask.rs"),
)
.aliases(&["fish"])
.default_lr(1.5e-3);

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FishMaskConfig {
    /// Share of the entries that is trained.
    pub density: f64,
    /// Steps of measuring; at most a quarter of the run.
    pub fisher_steps: u64,
    /// Path endings, one regular expression over the whole path, or `all-linear`.
    pub target_modules: Names,
    /// Same grammar; wins over the targets.
    pub exclude_modules: Option<Names>,
    /// Only these blocks.
    pub layers_to_transform: Option<Layers>,
    /// Entries of each layer; what files have.
    pub nnz: Option<BTreeMap<String, usize>>,
}

impl Default for FishMaskConfig {
    fn default() -> Self {
        let targets = Targets::default();
        Self {
            density: 0.005,
            fisher_steps: 16,
            target_modules: targets.target_modules,
            exclude_modules: None,
            layers_to_transform: None,
            nnz: None,
        }
    }
}

impl MethodConfig for FishMaskConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "FISH_MASK";

    fn validate(&self) -> Result<(), AdaptError> {
        let bad = |field, reason: &str| {
            Err(AdaptError::Config {
                method: NAME,
                field,
                reason: reason.into(),
            })
        };
        if !(self.density > 0.0 && self.density <= 1.0) {
            return bad("density", "must be above 0 and at most 1");
        }
        if self.fisher_steps == 0 {
            return bad("fisher_steps", "must be at least 1");
        }
        Ok(())
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        FishMask::build(self, context)
    }
}

impl FishMaskConfig {
    fn targets(&self) -> Targets {
        Targets {
            target_modules: self.target_modules.clone(),
            exclude_modules: self.exclude_modules.clone(),
            layers_to_transform: self.layers_to_transform.clone(),
            ..Targets::default()
        }
    }
}

/// A FISH mask while it is made and trained.
pub struct FishMask {
    config: FishMaskConfig,
    places: Places,
    sparse: SparseDelta,
    /// While measuring: a dense change of every layer, which stays zero and whose gradient is that of
    /// the weight.
    probes: Vec<Parameter>,
    /// While measuring: sums of squared gradients.
    fisher: Vec<Vec<f32>>,
    device: Device,
}

impl FishMask {
    /// Builds the adapter, in the form of files where the settings have `nnz`.
    ///
    /// # Errors
    /// Bad settings, no matching layer.
    pub fn build(
        config: FishMaskConfig,
        context: &BuildContext<'_>,
    ) -> Result<Box<dyn Adapter>, AdaptError> {
        config.validate()?;
        let places = Places::new(NAME, &config.targets(), context)?;
        if let Some(nnz) = &config.nnz {
            return Ok(Box::new(SparseFile::new(
                NAME,
                own_files::all_to_file("FISH_MASK", &config),
                &places.list,
                nnz,
                context,
            )?));
        }
        let mut adapter = Self {
            sparse: SparseDelta::new(budget(&places.list, config.density), &context.device),
            probes: Vec::new(),
            fisher: Vec::new(),
            device: context.device.clone(),
            config,
            places,
        };
        adapter.start_measuring();
        Ok(Box::new(adapter))
    }

    fn start_measuring(&mut self) {
        let probe = |place: &Place| {
            Parameter::new(
                format!("{}.probe", place.path),
                &[place.d_out, place.d_in],
                vec![0.0; place.len()],
                &self.device,
            )
        };
        self.probes = self.places.list.iter().map(probe).collect();
        self.fisher = self
            .places
            .list
            .iter()
            .map(|place| vec![0.0; place.len()])
            .collect();
    }

    /// Adds the squares of `scale` times the gradients, which it takes out.
    fn measure(&mut self, scale: f32, gradients: &mut GradientSum) {
        for (probe, fisher) in self.probes.iter().zip(&mut self.fisher) {
            let gradient = gradients.remove(probe.name()).unwrap_or_default();
            for (sum, g) in fisher.iter_mut().zip(gradient) {
                *sum += (scale * g) * (scale * g);
            }
        }
    }

    fn stop_measuring(&mut self) {
        (self.probes, self.fisher) = (Vec::new(), Vec::new());
    }
}

impl AddsToWeights for FishMask {
    fn delta(&self, base: &Linear, mode: Mode) -> Option<Tensor<2>> {
        let index = self.places.index(base.site)?;
        match self.probes.get(index) {
            // Outside training the probes are zero and would cost a copy of every weight.
            Some(probe) => mode.is_train().then(|| probe.get::<2>(mode)),
            None => self.sparse.delta(index, &self.places.list[index], mode),
        }
    }

    fn acts_on(&self, base: &Linear) -> bool {
        self.places.index(base.site).is_some()
    }
}

impl Adapter for FishMask {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.sparse.values]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.sparse.values]
    }

    fn probes(&self) -> Vec<&Parameter> {
        self.probes.iter().collect()
    }

    fn wants_examples(&self) -> bool {
        !self.probes.is_empty()
    }

    fn after_example(&mut self, targets: usize, gradients: &mut GradientSum) {
        self.measure(targets as f32, gradients);
    }

    fn needs_trainer(&self) -> bool {
        true
    }

    fn is_complete(&self) -> bool {
        self.sparse.entries.is_some()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(DeltaPass {
            adapter: self,
            mode,
        })
    }

    fn before_step(&mut self, context: &StepContext, gradients: &mut GradientSum) {
        if self.probes.is_empty() {
            return;
        }
        // What no one has shown by example.
        self.measure(1.0, gradients);
        let last = self.config.fisher_steps.min(context.total_steps / 4).max(1);
        if context.step + 1 >= last {
            self.sparse.entries = Some(top(&self.fisher, self.sparse.values.len()));
        }
    }

    fn after_step(&mut self, _context: &StepContext) {
        if self.sparse.entries.is_some() {
            self.stop_measuring();
        }
    }

    fn state(&self) -> BTreeMap<String, Vec<f32>> {
        let fisher = self
            .places
            .list
            .iter()
            .zip(&self.fisher)
            .map(|(place, sum)| (format!("fisher.{}", place.path), sum.clone()));
        fisher
            .chain(
                self.sparse
                    .state(&self.places.list)
                    .map(|entries| ("entries".to_owned(), entries)),
            )
            .collect()
    }

    fn restore(&mut self, state: &BTreeMap<String, Vec<f32>>) -> Result<(), String> {
        self.sparse
            .restore(state.get("entries"), &self.places.list)?;
        if self.sparse.entries.is_some() {
            self.stop_measuring();
            return Ok(());
        }
        self.start_measuring();
        for (place, sum) in self.places.list.iter().zip(&mut self.fisher) {
            let saved = state
                .get(&format!("fisher.{}", place.path))
                .filter(|saved| saved.len() == sum.len());
            *sum = saved
                .ok_or_else(|| format!("`fisher.{}` is missing or has another size", place.path))?
                .clone();
        }
        Ok(())
    }

    fn to_inference(&self) -> Option<Box<dyn Adapter>> {
        Some(Box::new(self.sparse.finished(
            NAME,
            self.peft_config(),
            &self.places.list,
        )))
    }

    fn peft_config(&self) -> Map<String, Value> {
        own_files::all_to_file("FISH_MASK", &self.config)
    }

    fn weight_delta(&self, base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Ok(self.delta(base, Mode::Eval))
    }

    fn materializes_weight(&self, base: &Linear) -> bool {
        self.acts_on(base)
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use crate::support::test_model::TestModel;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_gradient_of_every_example_is_squared_by_itself() {
        let raw = json!({"model_type": "llama", "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 8});
        let model = TestModel::new(raw);
        let context = model.context();
        let settings = json!({"target_modules": ["q_proj"], "density": 0.07, "fisher_steps": 1});
        let config = FishMaskConfig::parse(settings.as_object().unwrap()).unwrap();
        let mut adapter = FishMask::build(config, &context).unwrap();
        assert!(adapter.wants_examples());
        // Two examples that pull entry 3 in opposite directions and entry 5 a little in the same:
        // their sum would choose entry 5.
        let name = adapter.probes()[0].name().to_owned();
        for sign in [1.0, -1.0] {
            let mut gradients = GradientSum::default();
            let mut gradient = vec![0.0; 16];
            (gradient[3], gradient[5]) = (2.0 * sign, 0.5);
            gradients.insert(&name, gradient);
            adapter.after_example(2, &mut gradients);
            assert!(gradients.get(&name).is_none());
        }
        let at = StepContext {
            step: 0,
            total_steps: 8,
            seed: 0,
            lr_factor: 1.0,
        };
        adapter.before_step(&at, &mut GradientSum::default());
        let state = adapter.state();
        // Fisher information: Σ (2 g)², as the gradients were of the mean over two targets.
        let fisher = &state["fisher.model.layers.0.self_attn.q_proj"];
        assert_eq!((fisher[3], fisher[5]), (32.0, 2.0));
        // Layer, row, column.
        assert_eq!(state["entries"], [0.0, 0.0, 3.0]);
    }
}
