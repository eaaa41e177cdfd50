//! Pre-training a small decoder from text, tokenizer included.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use frugal_adapt::methods::full::{Full, FullConfig};
use frugal_core::data::{self, Dataset, Example, LoadOptions};
use frugal_core::encode::{IGNORE_INDEX, Target, Tokenized};
use frugal_core::tokenizer::{TextTokenizer, train_bpe};
use frugal_eval::report::{
    DatasetInfo, Evaluation, MetaInfo, ModelInfo, RECORD_FILE, RunRecord, SystemInfo, TrainInfo,
};
use frugal_models::save::{StoredType, write_model};
use frugal_models::{ModelConfig, build, merge, random_weights, registry};
use frugal_nn::{Adapter, Backbone, BuildContext};
use frugal_train::{Objective, Scheduler, TrainConfig, evaluate_observed};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::folder::{check_same_run, claim};
use super::job::{Job, Learn, Trained, in_folder};
use super::prepare::hold_out;
use super::{Metrics, Observe, Progress, RunError};

/// Marks the end of a document.
const END: &str = "<|endoftext|>";
/// The resolved configuration in a run folder.
const CONFIG_FILE: &str = "pretrain.toml";

/// Sizes of the new model, a decoder of the Llama family with tied embeddings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shape {
    /// Tokens of the new tokenizer.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// How blocks attend.
    pub attention: AttentionKind,
    /// Latent attention: width of what is remembered of a token; four heads by default.
    pub kv_lora_rank: Option<usize>,
    /// Latent attention: rotated part of a head; half a head by default.
    pub qk_rope_head_dim: Option<usize>,
    /// Experts of a block; 0 for a plain feed-forward layer.
    pub num_local_experts: usize,
    /// Experts that each token goes through.
    pub num_experts_per_tok: usize,
    /// Weight of the loss that keeps the load of the experts even.
    pub router_aux_loss_coef: f64,
}

/// Ways to attend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionKind {
    /// Keys and values for groups of heads: `num_key_value_heads` from 1 (multi-query) to the
    /// number of heads (multi-head).
    #[default]
    Grouped,
    /// Multi-head latent attention.
    Latent,
    /// Native sparse attention.
    Sparse,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            vocab_size: 4096,
            hidden_size: 192,
            intermediate_size: 512,
            num_hidden_layers: 6,
            num_attention_heads: 6,
            num_key_value_heads: 2,
            max_position_embeddings: 1024,
            attention: AttentionKind::Grouped,
            kv_lora_rank: None,
            qk_rope_head_dim: None,
            num_local_experts: 0,
            num_experts_per_tok: 2,
            router_aux_loss_coef: 0.01,
        }
    }
}

/// A pre-training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PretrainConfig {
    /// Text file; each line, or each block between blank lines, is a document.
    pub data: String,
    /// Share of the documents held out to measure on.
    pub validation_share: f64,
    /// Longest piece of a document in tokens.
    pub max_length: usize,
    /// Output folder.
    pub out: PathBuf,
    /// Where to compute.
    pub device: String,
    /// Decides every random choice.
    pub seed: u64,
    /// Number format of the saved weights.
    pub dtype: StoredType,
    /// Sizes.
    pub shape: Shape,
    /// Training.
    pub train: TrainConfig,
}

impl Default for PretrainConfig {
    fn default() -> Self {
        Self {
            data: String::new(),
            validation_share: 0.01,
            max_length: 256,
            out: PathBuf::new(),
            device: "cpu".into(),
            seed: 0,
            dtype: StoredType::F16,
            shape: Shape::default(),
            train: TrainConfig {
                lr: 3e-3,
                epochs: 1.0,
                packing: true,
                max_tokens: 4096,
                weight_decay: 0.1,
                adam_beta2: 0.95,
                lr_scheduler_type: Scheduler::Cosine,
                warmup_ratio: 0.02,
                min_lr_ratio: 0.05,
                group_by_length: false,
                ..TrainConfig::default()
            },
        }
    }
}

impl PretrainConfig {
    /// Fills in what depends on other settings.
    pub fn resolve(&mut self) {
        self.train.seed = self.seed;
    }

    /// Checks values, not files: (dotted key, what is wrong).
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut add = |key: &str, reason: String| found.push((key.to_owned(), reason));
        if self.data.is_empty() {
            add("data", "no text: give `--data FILE`".into());
        }
        if self.out.as_os_str().is_empty() {
            add("out", "no output folder: give `--out DIR`".into());
        }
        if !(self.validation_share > 0.0 && self.validation_share < 1.0) {
            add(
                "validation_share",
                format!(
                    "{} given, but it must be above 0 and below 1",
                    self.validation_share
                ),
            );
        }
        if self.max_length < 2 || self.max_length > self.shape.max_position_embeddings {
            add(
                "max_length",
                format!(
                    "{} given, but it must be 2 to shape.max_position_embeddings",
                    self.max_length
                ),
            );
        }
        let s = &self.shape;
        if s.num_attention_heads == 0
            || !s
                .hidden_size
                .is_multiple_of(2 * s.num_attention_heads.max(1))
        {
            add(
                "shape.hidden_size",
                format!(
                    "{} must be a multiple of twice the {} heads",
                    s.hidden_size, s.num_attention_heads
                ),
            );
        }
        if s.num_local_experts > 0 && s.attention != AttentionKind::Grouped {
            add(
                "shape.num_local_experts",
                "experts go with grouped attention only".into(),
            );
        }
        if s.num_local_experts > 0 && !(1..=s.num_local_experts).contains(&s.num_experts_per_tok) {
            add(
                "shape.num_experts_per_tok",
                format!(
                    "{} of {} experts",
                    s.num_experts_per_tok, s.num_local_experts
                ),
            );
        }
        if s.qk_rope_head_dim
            .is_some_and(|width| width == 0 || !width.is_multiple_of(2))
        {
            add(
                "shape.qk_rope_head_dim",
                "rotary positions need an even width".into(),
            );
        }
        if let Err(error) = crate::device::known(&self.device) {
            add("device", error.to_string());
        }
        for problem in self.train.validate().err().into_iter().flatten() {
            add(&format!("train.{}", problem.field), problem.reason);
        }
        found
    }

    fn model(&self, tokenizer: &TextTokenizer) -> Result<ModelConfig, RunError> {
        let s = &self.shape;
        let end = tokenizer.id(END);
        let head_dim = s.hidden_size / s.num_attention_heads;
        let model_type = match s.attention {
            AttentionKind::Latent => "deepseek_v3",
            AttentionKind::Sparse => "native_sparse",
            AttentionKind::Grouped if s.num_local_experts > 0 => "mixtral",
            AttentionKind::Grouped => "llama",
        };
        let class = registry::find(model_type).map(|family| family.class);
        let mut raw = json!({
            "architectures": [class], "model_type": model_type, "vocab_size": s.vocab_size, "hidden_size": s.hidden_size,
            "intermediate_size": s.intermediate_size, "num_hidden_layers": s.num_hidden_layers,
            "num_attention_heads": s.num_attention_heads, "num_key_value_heads": s.num_key_value_heads,
            "head_dim": head_dim, "max_position_embeddings": s.max_position_embeddings,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true,
            "attention_bias": false, "mlp_bias": false, "initializer_range": 0.02, "bos_token_id": end, "eos_token_id": end,
            "pad_token_id": end, "dtype": self.dtype.torch_name(),
        });
        let rope = s.qk_rope_head_dim.unwrap_or(head_dim / 2);
        let more = match s.attention {
            AttentionKind::Latent => json!({
                "q_lora_rank": null, "kv_lora_rank": s.kv_lora_rank.unwrap_or(4 * head_dim), "qk_nope_head_dim": head_dim,
                "qk_rope_head_dim": rope, "v_head_dim": head_dim, "head_dim": rope, "rope_interleave": false,
                "first_k_dense_replace": s.num_hidden_layers, "num_key_value_heads": s.num_attention_heads,
            }),
            AttentionKind::Grouped if s.num_local_experts > 0 => json!({
                "num_local_experts": s.num_local_experts, "num_experts_per_tok": s.num_experts_per_tok,
                "router_aux_loss_coef": s.router_aux_loss_coef,
            }),
            _ => json!({}),
        };
        if let (Some(raw), Some(more)) = (raw.as_object_mut(), more.as_object()) {
            raw.extend(more.clone());
        }
        Ok(ModelConfig::from_json(raw, "shape")?)
    }
}

/// What a pre-training run came to.
#[derive(Clone, Debug, Serialize)]
pub struct Pretrained {
    /// Whether it was stopped before its end; `--resume` continues it.
    pub interrupted: bool,
    /// Model folder.
    pub out: PathBuf,
    /// Metrics of the written weights on the held-out documents; none if it was stopped.
    pub metrics: Metrics,
    /// Parameters.
    pub parameters: usize,
    /// Tokens trained on.
    pub tokens: u64,
    /// Seconds of training.
    pub seconds: f64,
}

/// Trains a tokenizer and a decoder from scratch and writes a Hugging Face folder, with the record
/// of the run beside it.
///
/// # Errors
/// Unreadable text, settings that do not fit together, files that cannot be written.
pub fn pretrain(
    config: &PretrainConfig,
    command: &[String],
    resume: bool,
    stop: &AtomicBool,
    observe: Observe<'_>,
) -> Result<Pretrained, RunError> {
    let claim = claim(&config.out, CONFIG_FILE, resume)?;
    in_folder(claim, || {
        pretrain_in_folder(config, command, resume, stop, observe)
    })
}

/// The text of a run as tokens, and what makes tokens of it.
struct Corpus {
    tokenizer: TextTokenizer,
    training: Vec<Tokenized>,
    validation: Vec<Tokenized>,
    sha256: String,
}

impl Corpus {
    /// Reads the text, trains the tokenizer, and tells of both.
    fn read(config: &PretrainConfig, observe: Observe<'_>) -> Result<Self, RunError> {
        observe(&Progress::Begin {
            what: format!("reading {}", config.data),
        });
        let dataset = data::load(
            Path::new(&config.data),
            &LoadOptions {
                format: Some(data::Format::Text),
                ..LoadOptions::default()
            },
        )?;
        let help = "more text, or another `validation_share`";
        let [training, validation] =
            hold_out(&dataset, config.validation_share, config.seed, help)?;
        let size = config.shape.vocab_size;
        observe(&Progress::Begin {
            what: format!("training a tokenizer of {size} tokens"),
        });
        let tokenizer = train_bpe(texts(&training).map(str::to_owned), size, &[END])?;
        let corpus = Self {
            training: pieces(&training, &tokenizer, config.max_length)?,
            validation: pieces(&validation, &tokenizer, config.max_length)?,
            sha256: dataset.sha256,
            tokenizer,
        };
        let part = |name: &str, part: &[Tokenized]| {
            let lengths = || part.iter().map(Tokenized::len);
            let longest = lengths().max().unwrap_or(0);
            (name.to_owned(), part.len(), lengths().sum(), longest)
        };
        let first = corpus.training.first();
        observe(&Progress::Data {
            parts: vec![
                part("train", &corpus.training),
                part("validation", &corpus.validation),
            ],
            truncated: 0,
            example: first
                .map(|e| frugal_core::encode::show(e, &corpus.tokenizer, false))
                .transpose()?
                .unwrap_or_default(),
        });
        Ok(corpus)
    }

    fn describe(&self, config: &PretrainConfig) -> Vec<DatasetInfo> {
        let part = |split: &str, examples: usize| DatasetInfo {
            split: split.into(),
            source: config.data.clone(),
            examples,
            sha256: self.sha256.clone(),
        };
        vec![
            part("train", self.training.len()),
            part("validation", self.validation.len()),
        ]
    }
}

/// The run, in a folder that is its own.
fn pretrain_in_folder(
    config: &PretrainConfig,
    command: &[String],
    resume: bool,
    stop: &AtomicBool,
    observe: Observe<'_>,
) -> Result<Pretrained, RunError> {
    let job = Job::new(&config.out, CONFIG_FILE, resume, stop, command);
    let device = crate::device::device(&config.device)?;
    if resume {
        check_settings(&config.out.join(CONFIG_FILE), config)?;
    }
    let corpus = Corpus::read(config, observe)?;
    let model = config.model(&corpus.tokenizer)?;
    let sites = model.sites();
    let weights = random_weights(&model, config.seed, &device);
    let backbone = build(model.clone(), &weights, &device)?;
    let context = BuildContext {
        info: &model.info(),
        sites: &sites,
        backbone: Some(backbone.as_ref()),
        device,
        seed: config.seed,
        tokenize: None,
    };
    let mut adapter = Full::new(FullConfig {}, &context)?;
    let learn = Learn {
        backbone: backbone.as_ref(),
        adapter: &mut adapter,
        head: None,
        train: &corpus.training,
        validation: Some(&corpus.validation),
        config: &config.train,
    };
    let training = job.train(job.config_file(config)?, learn, observe)?;
    let peak_memory = training.peak_memory();
    let metrics = measure(
        &training,
        backbone.as_ref(),
        &adapter,
        &corpus.validation,
        config,
        stop,
        observe,
    )?;
    // A run is not done before it was measured; a resume measures again.
    let interrupted = metrics.is_none();
    if !interrupted {
        let weights = merge::weights(backbone.as_ref(), Some(&adapter as &dyn Adapter))?;
        corpus.tokenizer.save(&config.out)?;
        write_model(&config.out, &weights.config, &weights.tensors, config.dtype)?;
    }
    let trained = Pretrained {
        interrupted,
        out: config.out.clone(),
        metrics: metrics.unwrap_or_default(),
        parameters: sites.num_parameters(),
        tokens: training.outcome.tokens,
        seconds: training.seconds,
    };
    let mut record = record(&job, config, &training, &trained, &corpus)?;
    record.train_info.peak_memory = peak_memory;
    record.meta_info.model_info.model_type = model.model_type().into();
    record.meta_info.model_info.vocabulary =
        Some(crate::measure::vocabulary_sha256(&corpus.tokenizer));
    record.write(&config.out.join(RECORD_FILE))?;
    Ok(trained)
}

/// Metrics of the weights that are kept; `None` if the run was stopped.
fn measure(
    training: &Trained,
    backbone: &dyn Backbone,
    adapter: &Full,
    validation: &[Tokenized],
    config: &PretrainConfig,
    stop: &AtomicBool,
    observe: Observe<'_>,
) -> Result<Option<Metrics>, RunError> {
    if training.cut_short() {
        return Ok(None);
    }
    match &training.outcome.evaluation {
        // At its end a run was evaluated with its last weights.
        Some(last) if !training.outcome.restored_best => return Ok(Some(last.metrics.clone())),
        _ => {}
    }
    observe(&Progress::Begin {
        what: "evaluating the held-out text".into(),
    });
    let found = evaluate_observed(
        backbone,
        Some(adapter as &dyn Adapter),
        Objective::CausalLm,
        validation,
        config.train.max_tokens,
        stop,
        &mut |done, of| observe(&Progress::Counted { done, of }),
    )?;
    Ok(found.map(|e| e.metrics))
}

/// A resumed run must be the one that began.
fn check_settings(path: &Path, config: &PretrainConfig) -> Result<(), RunError> {
    let Ok(mut before) = frugal_core::config::load::<PretrainConfig>(Some(path), &[]) else {
        return Ok(());
    };
    before.resolve();
    let sizes = serde_json::to_value(&config.shape).unwrap_or_default();
    let shape: Vec<String> = sizes
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, _)| format!("shape.{key}"))
        .collect();
    let keys: Vec<&str> = shape.iter().map(String::as_str).chain(["seed"]).collect();
    check_same_run(path, &before, config, &keys)
}

/// What the run cost and gained, as fine-tuning records it; there is no model before training to
/// compare with.
fn record(
    job: &Job<'_>,
    config: &PretrainConfig,
    training: &Trained,
    trained: &Pretrained,
    corpus: &Corpus,
) -> Result<RunRecord, RunError> {
    let file_size = std::fs::metadata(config.out.join("model.safetensors")).map_or(0, |m| m.len());
    let parameters = trained.parameters as u64;
    Ok(RunRecord {
        run_info: job.run_info(training, config),
        train_info: TrainInfo {
            file_size,
            num_trainable_params: parameters,
            num_total_params: parameters,
            ..job.train_info(training, trained.interrupted, &job.log()?)
        },
        evaluation: vec![Evaluation {
            split: "validation".into(),
            examples: corpus.validation.len(),
            adapted: trained.metrics.clone(),
            ..Evaluation::default()
        }],
        forgetting: None,
        meta_info: MetaInfo {
            model_info: ModelInfo {
                name: job.name(),
                file_size,
                ..ModelInfo::default()
            },
            dataset_info: corpus.describe(config),
            package_info: [("frugal".to_owned(), env!("CARGO_PKG_VERSION").to_owned())].into(),
            system_info: SystemInfo::detect(&config.device),
        },
    })
}

fn texts(dataset: &Dataset) -> impl Iterator<Item = &str> + Send {
    dataset.examples.iter().filter_map(|e| {
        if let Example::Text { text } = e {
            Some(text.as_str())
        } else {
            None
        }
    })
}

/// Documents, each ended by [`END`], in pieces of at most `max_length` tokens.
fn pieces(
    dataset: &Dataset,
    tokenizer: &TextTokenizer,
    max_length: usize,
) -> Result<Vec<Tokenized>, RunError> {
    let end = tokenizer.id(END);
    let mut out = Vec::new();
    for text in texts(dataset) {
        let mut ids = tokenizer.encode(text, false)?;
        ids.extend(end);
        for piece in ids.chunks(max_length).filter(|p| p.len() > 1) {
            let targets = piece[1..]
                .iter()
                .map(|&id| id as i32)
                .chain([IGNORE_INDEX])
                .collect();
            out.push(Tokenized {
                input_ids: piece.to_vec(),
                token_type_ids: Vec::new(),
                labels: Target::Tokens(targets),
            });
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use frugal_train::Event;

    /// A tiny model, evaluated after every step.
    fn config(folder: &Path) -> PretrainConfig {
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
        let shape = Shape {
            vocab_size: 300,
            hidden_size: 16,
            intermediate_size: 32,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            max_position_embeddings: 32,
            ..Shape::default()
        };
        let mut config = PretrainConfig {
            data: data.display().to_string(),
            validation_share: 0.1,
            max_length: 16,
            out: folder.join("run"),
            shape,
            ..PretrainConfig::default()
        };
        config.train = TrainConfig {
            max_steps: 4,
            max_tokens: 128,
            eval_steps: 1,
            ..config.train
        };
        config.resolve();
        config
    }

    fn go(config: &PretrainConfig, resume: bool) -> Result<Pretrained, RunError> {
        pretrain(config, &[], resume, &AtomicBool::new(false), &mut |_| {})
    }

    #[test]
    fn the_record_is_of_the_weights_that_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        config.train.load_best_model_at_end = true;
        // It rises until the model is much worse than after the first step.
        (
            config.train.lr,
            config.train.warmup_ratio,
            config.train.max_steps,
        ) = (3.0, 1.0, 6);
        let mut evaluated = Vec::new();
        let mut observe = |progress: &Progress| {
            if let Progress::Train(Event::Evaluated { metrics, .. }) = progress {
                evaluated.push(metrics["loss"]);
            }
        };
        let made = pretrain(&config, &[], false, &AtomicBool::new(false), &mut observe).unwrap();
        let best = evaluated.iter().copied().fold(f64::INFINITY, f64::min);
        assert!(
            evaluated.last().is_some_and(|last| *last > best),
            "{evaluated:?}"
        );
        assert!(
            (made.metrics["loss"] - best).abs() < 1e-9,
            "{} of {evaluated:?}",
            made.metrics["loss"]
        );
        // Nothing is left to train, but the weights are the same.
        assert_eq!(go(&config, true).unwrap().metrics, made.metrics);
    }

    #[test]
    fn another_shape_is_not_resumed() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        let stop = AtomicBool::new(false);
        let mut observe = |progress: &Progress| {
            if matches!(progress, Progress::Train(Event::Step { step: 2, .. })) {
                stop.store(true, Ordering::Relaxed);
            }
        };
        config.train.logging_steps = 1;
        assert!(
            pretrain(&config, &[], false, &stop, &mut observe)
                .unwrap()
                .interrupted
        );
        let stored = std::fs::read(config.out.join(CONFIG_FILE)).unwrap();
        config.shape.num_key_value_heads = 2;
        let error = go(&config, true).unwrap_err().to_string();
        assert!(
            error.contains("`shape.num_key_value_heads` was 1") && error.contains("is 2"),
            "{error}"
        );
        config.shape.num_key_value_heads = 1;
        // Only the trainer knows that this is refused.
        let lr = std::mem::replace(&mut config.train.lr, 0.5);
        assert!(matches!(go(&config, true), Err(RunError::Train(_))));
        assert_eq!(std::fs::read(config.out.join(CONFIG_FILE)).unwrap(), stored);
        config.train.lr = lr;
        assert!(!go(&config, true).unwrap().interrupted);
    }
}
