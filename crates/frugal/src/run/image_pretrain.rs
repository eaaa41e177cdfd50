//! A new model of images: its folder, and all of its weights trained on classes.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use burn::prelude::Device;
use frugal_media::{PROCESSOR_FILE, Processor};
use frugal_models::load::Lookup;
use frugal_models::save::{StoredType, write_model};
use frugal_models::{ModelConfig, PREPROCESSOR, random_weights, registry};
use frugal_nn::ModelError;
use serde_json::{Map, Value};

use super::{
    DataConfig, MemoryCheck, MethodConfig, Observe, PretrainConfig, RunError, Task, TuneConfig,
    TuneRequest, Tuned, tune,
};

/// The new model in a run's folder, before its training.
const NEW_FOLDER: &str = "new";
/// The run in it, at whose end stands the trained model.
const RUN_FOLDER: &str = "run";

/// Whether new models of this architecture read images.
pub fn reads_images(arch: &str) -> bool {
    registry::find(arch).is_some_and(|family| family.reads_images())
}

/// Architectures of which new models that read images are made, with what they are.
pub fn image_architectures() -> impl Iterator<Item = (&'static str, &'static str)> {
    let families = registry::FAMILIES.iter();
    families
        .filter(|family| family.reads_images())
        .filter_map(|family| Some((family.model_type, family.fresh?.about)))
}

/// The configuration of a new model that reads images, from the sizes that are given.
///
/// # Errors
/// Sizes and keys that do not fit.
pub fn new_image_model(config: &PretrainConfig) -> Result<ModelConfig, ModelError> {
    let mut raw = config.shape.image_keys()?;
    let made = ModelConfig::from_json(raw.clone(), "shape")?;
    if let (Some(keys), Some(image)) = (raw.as_object_mut(), made.info().image) {
        let processor = Processor::new(image.height, image.width);
        keys.insert(PREPROCESSOR.into(), processor.to_json());
    }
    ModelConfig::from_json(raw, "shape")
}

/// Makes a new model and trains it to tell the classes of images: `OUT/new` is what it begins as,
/// `OUT/run` the run, at the end of which `OUT/run/model` holds the model with its head.
///
/// # Errors
/// Anything wrong with sizes, data or files.
pub fn pretrain_images(
    config: &PretrainConfig,
    command: &[String],
    resume: bool,
    stop: &AtomicBool,
    observe: Observe<'_>,
) -> Result<Tuned, RunError> {
    check_images(config)?;
    let new = config.out.join(NEW_FOLDER);
    if resume {
        check_same_model(config, &new)?;
    } else {
        write_new(config, &new)?;
    }
    let run = tuned(config, &new);
    let request = TuneRequest {
        config: &run,
        command,
        lookup: &Lookup::default(),
        resume,
        memory: MemoryCheck::Ignore,
        stop,
    };
    let done = tune(&request, observe);
    if done.is_err() && !run.out.exists() {
        // What did not begin leaves nothing that would be in the way of the next try.
        let _ = std::fs::remove_dir_all(&new);
    }
    done
}

/// Settings of runs on text, which a run on images has no place for.
fn check_images(config: &PretrainConfig) -> Result<(), RunError> {
    let defaults = PretrainConfig::default();
    let given = [
        ("fork", config.fork.is_some()),
        ("decay_data", !config.decay_data.is_empty()),
        ("objective", !config.objective.is_unset()),
        ("reparam", !config.reparam.is_unset()),
        ("max_length", config.max_length != defaults.max_length),
        (
            "shape.vocab_size",
            config.shape.vocab_size != defaults.shape.vocab_size,
        ),
        (
            "train.max_tokens",
            config.train.max_tokens != defaults.train.max_tokens,
        ),
    ];
    match given.into_iter().find(|(_, is_given)| *is_given) {
        Some((key, _)) => Err(RunError::Invalid(format!(
            "`{key}` has no part in a model of images: leave it out"
        ))),
        None => Ok(()),
    }
}

/// A resumed run must have the model that began.
fn check_same_model(config: &PretrainConfig, folder: &Path) -> Result<(), RunError> {
    let Ok(before) = frugal_models::load::read_json(&folder.join("config.json")) else {
        return Ok(());
    };
    let Value::Object(now) = new_image_model(config)?.raw else {
        return Ok(());
    };
    // How it is written is no part of what it is.
    let other = now.iter().find(|(key, value)| {
        key.as_str() != "dtype" && before.get(key.as_str()).is_some_and(|was| was != *value)
    });
    match other {
        Some((key, value)) => Err(RunError::Invalid(format!(
            "`shape.{key}` was {} in {}, and is {value}: a run goes on with the model that it began with",
            before[key.as_str()],
            folder.display()
        ))),
        None => Ok(()),
    }
}

fn write_new(config: &PretrainConfig, folder: &Path) -> Result<(), RunError> {
    let config_file = folder.join("config.json");
    if config_file.exists() {
        return Err(RunError::Invalid(format!(
            "{}: there is a model already: continue with `--resume`, or choose another folder",
            folder.display()
        )));
    }
    let model = new_image_model(config)?;
    let device: Device = crate::device::device("cpu")?;
    let weights = random_weights(&model, config.seed, &device);
    frugal_core::fs::create_dir(folder)?;
    write_model(folder, &model, &weights, StoredType::F32)?;
    debug_assert!(folder.join(PROCESSOR_FILE).exists());
    Ok(())
}

/// The run that trains all weights of the new model.
fn tuned(config: &PretrainConfig, new: &Path) -> TuneConfig {
    let mut train = config.train.clone();
    // An image is an example, whatever the number of its pixels.
    train.packing = false;
    TuneConfig {
        model: new.display().to_string(),
        task: Task::ImageClassification,
        out: PathBuf::from(&config.out).join(RUN_FOLDER),
        device: config.device.clone(),
        seed: config.seed,
        evaluate_base: false,
        data: DataConfig {
            train: config.data.clone(),
            validation_share: config.validation_share,
            ..DataConfig::default()
        },
        method: MethodConfig {
            name: "full".into(),
            settings: Map::<String, Value>::new(),
        },
        train,
        ..TuneConfig::default()
    }
}
