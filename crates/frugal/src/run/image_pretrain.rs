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
    // A model without a run is left of a process that ended while it read its data.
    let has_begun = config.out.join(RUN_FOLDER).exists();
    if has_begun && folder.join("config.json").exists() {
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use frugal_train::{Named, TrainConfig};

    use super::*;
    use crate::run::{DecayData, EvaluateRequest, Shape, evaluate};

    /// Two classes of the same few images, and a model of four patches.
    fn config(folder: &Path) -> PretrainConfig {
        let images = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/media");
        for class in ["cat", "dog"] {
            let class = folder.join("images").join(class);
            std::fs::create_dir_all(&class).unwrap();
            for name in ["source.png", "grey.png", "plain.bmp", "processor-vit.png"] {
                std::fs::copy(Path::new(images).join(name), class.join(name)).unwrap();
            }
        }
        let defaults = PretrainConfig::default();
        let mut config = PretrainConfig {
            data: folder.join("images").display().to_string(),
            out: folder.join("out"),
            validation_share: 0.25,
            shape: Shape {
                arch: "vit".into(),
                hidden_size: 16,
                intermediate_size: 32,
                num_hidden_layers: 1,
                num_attention_heads: 2,
                num_key_value_heads: 2,
                own: toml::toml! { image_size = 8
                patch_size = 4 },
                ..Shape::default()
            },
            train: TrainConfig {
                max_steps: 2,
                batch_size: 4,
                ..defaults.train.clone()
            },
            ..defaults
        };
        config.resolve();
        config
    }

    fn go(config: &PretrainConfig, resume: bool, stop: bool) -> Result<Tuned, RunError> {
        pretrain_images(config, &[], resume, &AtomicBool::new(stop), &mut |_| {})
    }

    #[test]
    fn a_model_without_a_run_is_of_a_process_that_ended_and_not_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        write_new(&config, &config.out.join(NEW_FOLDER)).unwrap();
        go(&config, false, false).unwrap();
        let said = go(&config, false, false).unwrap_err().to_string();
        assert!(said.contains("there is a model already"), "{said}");
    }

    #[test]
    fn settings_of_text_had_no_test_that_a_run_on_images_refuses_them() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |key: &str, change: &dyn Fn(&mut PretrainConfig)| {
            let mut config = config(folder.path());
            change(&mut config);
            let error = go(&config, false, false).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}`")), "{key}: {error}");
            assert!(!config.out.exists(), "{key}");
        };
        refused("fork", &|c| c.fork = Some("run".into()));
        refused("decay_data", &|c| {
            c.decay_data = vec![DecayData {
                data: "more.jsonl".into(),
                share: 0.5,
            }];
        });
        refused("objective", &|c| c.objective = Named::from("birdie"));
        refused("reparam", &|c| c.reparam = Named::from("relora"));
        refused("max_length", &|c| c.max_length = 64);
        refused("shape.vocab_size", &|c| c.shape.vocab_size = 300);
        refused("train.max_tokens", &|c| c.train.max_tokens = 64);

        let texts = |change: &dyn Fn(&mut TuneConfig)| {
            let mut config = tuned(&config(folder.path()), Path::new("model"));
            change(&mut config);
            let problems = config.problems().into_iter();
            problems.map(|(key, _)| key).collect::<Vec<_>>()
        };
        assert_eq!(texts(&|_| {}), [""; 0]);
        assert_eq!(texts(&|c| c.data.max_length = 9), ["data.max_length"]);
        assert_eq!(texts(&|c| c.data.truncate = true), ["data.truncate"]);
        assert_eq!(texts(&|c| c.train.packing = true), ["train.packing"]);
        let template = |c: &mut TuneConfig| c.data.prompt_template = Some("{prompt}".into());
        assert_eq!(texts(&template), ["data.prompt_template"]);
        let columns = |c: &mut TuneConfig| {
            c.data.columns.insert("text".into(), "path".into());
        };
        assert_eq!(texts(&columns), ["data.columns"]);
    }

    #[test]
    fn a_run_on_images_is_not_resumed_as_another_model() {
        let folder = tempfile::tempdir().unwrap();
        let begun = config(folder.path());
        assert!(go(&begun, false, true).unwrap().interrupted);
        for (key, change) in [
            (
                "shape.hidden_size",
                (|c| c.shape.hidden_size = 32) as fn(&mut PretrainConfig),
            ),
            ("shape.patch_size", |c| {
                c.shape.own.insert("patch_size".into(), 2.into());
            }),
            ("shape.num_hidden_layers", |c| c.shape.num_hidden_layers = 2),
        ] {
            let mut other = begun.clone();
            change(&mut other);
            let error = go(&other, true, false).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}` was")), "{error}");
        }
        assert!(!go(&begun, true, false).unwrap().interrupted);
        assert!(begun.out.join("run/model/model.safetensors").exists());
    }

    #[test]
    fn a_run_that_failed_leaves_no_new_model_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let good = config(folder.path());
        let bad = |change: fn(&mut PretrainConfig, &Path)| {
            let mut config = good.clone();
            change(&mut config, folder.path());
            assert!(go(&config, false, false).is_err());
            assert!(!good.out.join(NEW_FOLDER).exists());
            assert!(!good.out.join(RUN_FOLDER).exists());
        };
        bad(|c, folder| c.data = folder.join("nowhere").display().to_string());
        bad(|c, folder| {
            let one = folder.join("one");
            std::fs::create_dir_all(one.join("cat")).unwrap();
            std::fs::write(one.join("cat/a.png"), b"no image").unwrap();
            c.data = one.display().to_string();
        });
        bad(|c, _| c.train.lr = -1.0);
        bad(|c, _| c.shape.hidden_size = 15);
        assert!(!go(&good, false, false).unwrap().interrupted);
        // What is there is not begun anew.
        let error = go(&good, false, false).unwrap_err().to_string();
        assert!(error.contains("--resume"), "{error}");
        assert!(good.out.join("run/model/config.json").exists());
    }

    /// They were put aside without a word.
    #[test]
    fn settings_of_text_were_ignored_where_images_are_measured() {
        let folder = tempfile::tempdir().unwrap();
        let run = config(folder.path());
        go(&run, false, false).unwrap();
        let measure = |change: &dyn Fn(&mut EvaluateRequest)| {
            let mut request = EvaluateRequest {
                model: run.out.join("run/model").display().to_string(),
                adapter: None,
                data: DataConfig {
                    train: run.data.clone(),
                    ..DataConfig::default()
                },
                device: "cpu".into(),
                max_tokens: 4096,
                quantize: frugal_models::Quantize::None,
                dump_logits: None,
            };
            change(&mut request);
            evaluate(
                &request,
                &Lookup::default(),
                &AtomicBool::new(false),
                &mut |_| {},
            )
        };
        let found = measure(&|_| {}).unwrap().unwrap();
        assert_eq!(found.examples, 8);
        let refused = |key: &str, change: &dyn Fn(&mut EvaluateRequest)| {
            let error = measure(change).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}`")), "{key}: {error}");
        };
        refused("data.max_length", &|r| r.data.max_length = 64);
        refused("data.truncate", &|r| r.data.truncate = true);
        refused("data.columns", &|r| {
            r.data.columns.insert("text".into(), "path".into());
        });
        refused("--dump-logits", &|r| r.dump_logits = Some("logits".into()));
    }
}
