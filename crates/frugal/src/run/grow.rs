//! A TokenFormer with more parameter tokens.

use std::path::PathBuf;

use burn::prelude::Device;
use frugal_core::stage::Stage;
use frugal_models::grow::{Growth, NewKeys, grow as grow_weights, grown_config, token_counts};
use frugal_models::load::{Lookup, ModelFiles};
use frugal_models::merge;
use frugal_models::save::{StoredType, write_model_with};
use frugal_models::{ModelConfig, initializer_range};
use frugal_nn::ModelError;
use serde::Serialize;

use super::{RunError, carry};

/// What grows into what.
#[derive(Clone, Debug)]
pub struct GrowRequest {
    /// Name, folder, or `org/name` on the hub.
    pub model: String,
    /// Folder to write, new or empty.
    pub out: PathBuf,
    /// How it grows.
    pub growth: Growth,
    /// Number format of the weights; by default the model's.
    pub dtype: Option<StoredType>,
    /// Check everything, write nothing.
    pub dry_run: bool,
}

/// What [`grow`] came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Grown {
    /// The new folder.
    pub out: PathBuf,
    /// Tokens before: of queries, keys and values each, of what the heads give, of the feed-forward
    /// layer.
    pub tokens_before: [usize; 3],
    /// Tokens now.
    pub tokens: [usize; 3],
    /// Parameters before.
    pub parameters_before: usize,
    /// Parameters now.
    pub parameters: usize,
    /// Whether the outputs are those of before.
    pub keeps_outputs: bool,
}

/// Writes a folder of the model with more parameter tokens: weights and configuration, and all that
/// lies beside them, as the tokenizer and the record of the run that trained the model.
///
/// # Errors
/// A model that has no such tokens or cannot be read, numbers of tokens that it does not grow to, a
/// folder that is in use or cannot be written.
pub fn grow(request: &GrowRequest, lookup: &Lookup, device: &Device) -> Result<Grown, RunError> {
    let files = ModelFiles::open(&request.model, lookup)?;
    let config = grown_config(files.config(), &request.growth)?;
    let dtype = request.dtype.unwrap_or_else(|| stored_type(&files));
    if request.growth.keys == NewKeys::Normal {
        check_deviation(&config, dtype)?;
    }
    let grown = Grown {
        out: request.out.clone(),
        tokens_before: token_counts(files.config())?,
        tokens: token_counts(&config)?,
        parameters_before: files.sites().num_parameters(),
        parameters: config.sites().num_parameters(),
        keeps_outputs: request.growth.keeps_outputs(),
    };
    if request.dry_run {
        return Ok(grown);
    }
    let stage = Stage::replace(&request.out)?;
    let folder = stage.path();
    let backbone = files.load(device)?;
    let weights = grow_weights(
        &merge::weights(backbone.as_ref(), None)?,
        &request.growth,
        device,
    )?;
    let carried = carry::tensors(&files, dtype)?;
    write_model_with(folder, &weights.config, &weights.tensors, carried, dtype)?;
    // What a folder says of where its model comes from, its tokenizer and its licence go with it.
    carry::files(&files, folder)?;
    stage.finish("config.json")?;
    Ok(grown)
}

/// That new keys that are drawn can be stored.
fn check_deviation(config: &ModelConfig, dtype: StoredType) -> Result<(), RunError> {
    let deviation = initializer_range(&config.raw, &config.source)?;
    let refused = |reason| ModelError::Config {
        source_name: config.source.clone(),
        key: "initializer_range".into(),
        reason,
    };
    Ok(dtype.check_deviation(deviation.into()).map_err(refused)?)
}

/// The format of most tensors; of other formats single precision.
pub(super) fn stored_type(files: &ModelFiles) -> StoredType {
    let types = files.stored_types();
    let most = types.into_iter().max_by_key(|(_, count)| *count);
    match most.as_ref().map(|(name, _)| name.as_str()) {
        Some("F16") => StoredType::F16,
        Some("BF16") => StoredType::Bf16,
        _ => StoredType::F32,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::run::{PretrainConfig, Pretrained, Shape, UpcycleRequest, pretrain, upcycle};
    use frugal_models::grow::TokenCounts;
    use frugal_models::upcycle::Upcycling;
    use frugal_train::TrainConfig;

    fn go(config: &PretrainConfig) -> Result<Pretrained, RunError> {
        pretrain(config, &[], false, &AtomicBool::new(false), &mut |_| {})
    }

    /// A run of a few steps on lines of words.
    fn config(folder: &Path, out: &str, shape: Shape) -> PretrainConfig {
        let data = folder.join("text.txt");
        let words = ["house", "boat", "tree", "road", "bird", "coat", "lamp"];
        let line = |i: usize| {
            format!(
                "the {} by the {} has a {}\n",
                words[i % 7],
                words[i * i % 5],
                words[(i + i / 7) % 6]
            )
        };
        std::fs::write(&data, (0..120).map(line).collect::<String>()).unwrap();
        let mut config = PretrainConfig {
            data: data.display().to_string(),
            validation_share: 0.1,
            max_length: 16,
            out: folder.join(out),
            shape,
            ..PretrainConfig::default()
        };
        config.train = TrainConfig {
            max_steps: 12,
            max_tokens: 128,
            ..config.train
        };
        config.resolve();
        config
    }

    fn small(arch: &str) -> Shape {
        Shape {
            arch: arch.into(),
            vocab_size: 300,
            hidden_size: 16,
            intermediate_size: 32,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            max_position_embeddings: 32,
            ..Shape::default()
        }
    }

    fn twice(model: &Path, out: &Path) -> Result<Grown, RunError> {
        let request = GrowRequest {
            model: model.display().to_string(),
            out: out.into(),
            growth: Growth::new(TokenCounts::Times(2.0)),
            dtype: None,
            dry_run: false,
        };
        grow(&request, &Lookup::default(), &Device::flex())
    }

    #[test]
    fn a_grown_model_goes_on_from_the_loss_of_the_small_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let first = config(folder.path(), "small", small("tokenformer"));
        let small = go(&first).unwrap();
        let grown = twice(&path("small"), &path("large")).unwrap();
        assert_eq!(
            (grown.tokens_before, grown.tokens),
            ([16, 16, 32], [32, 32, 64])
        );
        // Ten tensors of 16 or 32 tokens, 16 wide: four layers around attention, one behind it.
        let added = 2 * 16 * (4 * 16 + 32);
        assert_eq!(grown.parameters, grown.parameters_before + added);
        assert_eq!(small.parameters, grown.parameters_before);
        let file = |model: &str, name: &str| std::fs::read(path(model).join(name)).unwrap();
        assert_eq!(
            file("small", "tokenizer.json"),
            file("large", "tokenizer.json")
        );
        // What the record says of the small one is not true of the large one.
        for name in [frugal_eval::report::RECORD_FILE, "pretrain.toml"] {
            assert!(path("small").join(name).exists(), "{name}");
            assert!(!path("large").join(name).exists(), "{name}");
        }

        // A rate at which nothing moves: the loss on the held-out lines is that of the small model,
        // to what 16 bits of the file take from it.
        let from = |out: &str, lr: f64| {
            let mut config = config(folder.path(), out, Shape::default());
            config.from = Some(path("large").display().to_string());
            (config.train.lr, config.train.weight_decay) = (lr, 0.0);
            assert!(config.problems().is_empty(), "{:?}", config.problems());
            go(&config).unwrap()
        };
        let still = from("still", 1e-12);
        let difference = still.metrics["loss"] - small.metrics["loss"];
        assert!(difference.abs() < 2e-3, "{difference}");
        let further = from("further", 3e-3);
        assert_eq!(further.parameters, grown.parameters);
        assert!(further.metrics["loss"] < small.metrics["loss"] - 0.05);
        assert_eq!(
            file("small", "tokenizer.json"),
            file("further", "tokenizer.json")
        );

        let mut config = config(folder.path(), "none", self::small("tokenformer"));
        config.from = first.out.to_str().map(str::to_owned);
        let problems = config.problems();
        assert!(
            problems.iter().any(|(key, _)| key == "shape"),
            "{problems:?}"
        );
        config.shape = Shape::default();
        config.reparam.name = "low_rank".into();
        let problems = config.problems();
        assert!(
            problems.iter().any(|(key, _)| key == "reparam"),
            "{problems:?}"
        );
        config.reparam.name.clear();
        config.max_length = 33;
        let error = go(&config).unwrap_err().to_string();
        assert!(
            error.contains("max_position_embeddings") && error.contains("33"),
            "{error}"
        );
    }

    #[test]
    fn a_model_without_tokens_leaves_no_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut config = config(folder.path(), "llama", small("llama"));
        config.train.max_steps = 1;
        go(&config).unwrap();
        let error = twice(&path("llama"), &path("large"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("model_type") && error.contains("llama"),
            "{error}"
        );
        assert!(!path("large").exists());
    }

    /// `--router-std 1e30` gave routers of infinities in 16 bits.
    #[test]
    fn deviations_that_their_format_cannot_hold_were_drawn_from() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut config = config(folder.path(), "llama", small("llama"));
        config.train.max_steps = 1;
        go(&config).unwrap();
        let upcycled = |router_std: f64, dtype, out: &str| {
            let request = UpcycleRequest {
                model: path("llama").display().to_string(),
                out: path(out),
                upcycling: Upcycling {
                    router_std,
                    ..Upcycling::default()
                },
                dtype: Some(dtype),
                dry_run: false,
            };
            upcycle(&request, &Lookup::default(), &Device::flex())
        };
        for (std, dtype, named) in [
            (1e30, StoredType::F16, "float16"),
            (1e-30, StoredType::F16, "float16"),
            (1e300, StoredType::F32, "float32"),
            (f64::NAN, StoredType::Bf16, "NaN"),
        ] {
            let error = upcycled(std, dtype, "mixture").unwrap_err().to_string();
            assert!(
                error.contains("`--router-std`") && error.contains(named),
                "{error}"
            );
            assert!(!path("mixture").exists());
        }
        upcycled(1000.0, StoredType::F16, "mixture").unwrap();
        let files =
            ModelFiles::open(path("mixture").to_str().unwrap(), &Lookup::default()).unwrap();
        let backbone = files.load(&Device::flex()).unwrap();
        let weights = merge::weights(backbone.as_ref(), None).unwrap();
        let mut routers = 0;
        for (name, _, values) in weights
            .tensors
            .iter()
            .filter(|(name, ..)| name.ends_with("gate.weight"))
        {
            assert!(values().iter().all(|v| v.is_finite()), "{name}");
            routers += 1;
        }
        assert_eq!(routers, 1);

        // The same of a new model.
        config.shape = small("mamba");
        config.out = path("mamba");
        config
            .shape
            .own
            .insert("initializer_range".into(), 1e30.into());
        config.dtype = StoredType::F16;
        let told = |config: &PretrainConfig| format!("{:?}", config.problems());
        assert!(
            told(&config).contains("shape.initializer_range"),
            "{}",
            told(&config)
        );
        config.dtype = StoredType::F32;
        assert_eq!(config.problems(), []);
    }
}
