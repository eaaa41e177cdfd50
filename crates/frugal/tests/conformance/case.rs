//! A method on a tiny model, and how it is trained.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use frugal::adapt::{
    AdaptError, Adapter, Head, HeadConfig, Method, Mode, NoAdapter, Pass, Pooling, to_vec,
};
use frugal::model::{Backbone, Input};
use frugal::train::{Event, Target, Tokenized, TrainConfig, TrainRun, train};

use serde_json::{Map, Value, json};

use crate::method_settings::settings;
use crate::support::{context, device, model};

/// Two sequences, of four tokens and of five.
pub const IDS: [u32; 9] = [3, 7, 1, 12, 30, 5, 9, 2, 60];
/// Their lengths.
pub const LENGTHS: [usize; 2] = [4, 5];

/// A method on a model.
pub struct Case {
    pub method: &'static Method,
    pub settings: Map<String, Value>,
    pub backbone: Arc<dyn Backbone>,
    pub adapter: Box<dyn Adapter>,
}

impl Case {
    /// The adapter before training; the reason where the model has not what the method acts on
    /// (biases, for one).
    pub fn new(
        method: &'static Method,
        model_name: &str,
        seed: u64,
    ) -> Result<Result<Self, String>, String> {
        let backbone = model(model_name, "config.json");
        let settings = settings_on(method, model_name);
        let built = (method.build)(&settings, &context(backbone.as_ref(), seed));
        match built {
            Ok(adapter) => Ok(Ok(Self {
                method,
                settings,
                backbone,
                adapter,
            })),
            Err(AdaptError::Unsupported { .. }) => Ok(Err(format!("not on {model_name}"))),
            Err(error) => Err(error.to_string()),
        }
    }

    /// A head for two classes.
    pub fn head(&self, seed: u64) -> Head {
        let config = HeadConfig {
            labels: vec!["no".into(), "yes".into()],
            pooling: Pooling::default_for(self.backbone.info()),
            problem_type: Default::default(),
        };
        Head::new(config, self.backbone.info(), &device(), seed)
    }

    /// Hidden states with the adapter.
    pub fn hidden(&self) -> Result<Vec<f32>, String> {
        hidden(self.backbone.as_ref(), Some(self.adapter.as_ref()))
    }

    /// Trains in place; the losses of all steps.
    pub fn train(&mut self, head: &mut Head, seed: u64) -> Result<Vec<f64>, String> {
        self.train_until(head, seed, None, u64::MAX)
    }

    /// The same with checkpoints in `folder`, continuing from there, and stopping after this step.
    pub fn train_until(
        &mut self,
        head: &mut Head,
        seed: u64,
        folder: Option<&Path>,
        last: u64,
    ) -> Result<Vec<f64>, String> {
        let (mut losses, stop) = (Vec::new(), AtomicBool::new(false));
        let mut observer = |event: &Event| {
            if let Event::Step { loss, step, .. } = event {
                losses.push(*loss);
                stop.store(*step >= last, Ordering::Relaxed);
            }
        };
        let config = TrainConfig {
            seed,
            ..config(self.method)
        };
        train(TrainRun {
            backbone: self.backbone.as_ref(),
            adapter: self.adapter.as_mut(),
            head: Some(head),
            train: &examples(),
            validation: None,
            config: &config,
            folder,
            resume: folder.is_some(),
            stop: &stop,
            observer: &mut observer,
        })
        .map_err(|e| format!("training: {e}"))?;
        Ok(losses)
    }
}

/// [`settings`] with layers of this model, where the usual ones are all linear layers, of which one
/// is too narrow for ranks and pieces of 8, or those of attention.
fn settings_on(method: &Method, model_name: &str) -> Map<String, Value> {
    let mut settings = settings(method);
    let usual = (method.defaults)().get("target_modules").cloned();
    let all = usual.as_ref().is_some_and(|usual| usual == "all-linear");
    let some = matches!(usual, Some(Value::Array(_)));
    let layers = match model_name {
        "mamba" if all => json!(["in_proj", "x_proj", "out_proj"]),
        "mamba" if some => json!(["in_proj"]),
        "gated_ssm" if some => json!(["z_proj", "o_proj"]),
        "tokenformer" if some => json!(["query.key_param_tokens", "value.value_param_tokens"]),
        // Without routers.
        "rmoe" | "widenet" if all => json!(["q_proj", "v_proj", "o_proj", "w1", "w2", "w3"]),
        // The layers that have a place for biases in files.
        "widenet" if method.name == "bitfit" => json!(".*self_attn.*"),
        _ => return settings,
    };
    settings.insert("target_modules".into(), layers);
    settings
}

/// Hidden states of a model, with or without an adapter.
pub fn hidden(backbone: &dyn Backbone, adapter: Option<&dyn Adapter>) -> Result<Vec<f32>, String> {
    hidden_in(
        backbone,
        adapter.map_or_else(|| Box::new(NoAdapter) as _, |a| a.pass(Mode::Eval)),
    )
}

/// The same in a pass.
pub fn hidden_in(
    backbone: &dyn Backbone,
    mut pass: Box<dyn Pass + '_>,
) -> Result<Vec<f32>, String> {
    let states = backbone.forward(&Input::new(&IDS, &LENGTHS), pass.as_mut(), None);
    Ok(to_vec(states.map_err(|e| format!("forward pass: {e}"))?))
}

/// Texts whose class is their first token.
fn examples() -> Vec<Tokenized> {
    let example = |i: u32| Tokenized {
        input_ids: (0..4 + i % 3)
            .map(|j| {
                if j == 0 {
                    10 + i % 2
                } else {
                    20 + (i * 7 + j * 3) % 30
                }
            })
            .collect(),
        token_type_ids: vec![],
        labels: Target::Class((i % 2) as usize),
    };
    (0..12).map(example).collect()
}

/// The method's own rate, raised for models without any training.
fn config(method: &Method) -> TrainConfig {
    // High rates bear less of it, and so do methods that multiply the rate of a part.
    let lr = (40.0 * method.default_lr).min((16.0 * method.default_lr).clamp(0.04, 0.1));
    let lr = if method.name == "lora-plus" {
        lr / 8.0
    } else {
        lr
    };
    TrainConfig {
        lr,
        batch_size: 4,
        epochs: 8.0,
        logging_steps: 1,
        warmup_ratio: 0.0,
        load_best_model_at_end: false,
        ..TrainConfig::default()
    }
}
