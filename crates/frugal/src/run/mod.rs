//! Whole runs: what `frugal tune`, `plan`, `eval`, `pretrain`, `generate`, `chat`, `merge` and
//! `export` do, for programs.

pub mod ask;
mod base;
pub mod bench;
mod carry;
mod changed;
mod compare;
mod config;
mod conversation;
mod convert;
mod corpus;
mod dataset;
mod decay_data;
mod error;
mod estimate;
mod evaluate;
mod export;
mod fit;
mod folder;
mod forgetting;
mod fork;
mod generate;
mod grow;
mod held_out;
mod image_pretrain;
mod images;
mod job;
mod log;
mod meta_train;
mod mine;
mod open;
mod page;
mod parametrize;
mod paths;
mod plan;
mod predict;
mod predictions;
mod prepare;
mod pretrain;
mod pretrain_config;
mod pretrain_memory;
mod pretrain_mixture;
mod pretrain_objective;
mod progress;
mod prompted_rerank;
mod ranked;
mod rerank;
mod results;
mod scores;
mod scoring;
mod spelling;
mod start;
pub mod study;
mod tune;
mod upcycle;
mod width;

pub use base::base_warning;
pub use config::{DataConfig, MethodConfig, Task, Template, TuneConfig};
pub use conversation::{Answered, Conversation, ConversationOptions};
pub use convert::convert_onnx;
pub use decay_data::DecayData;
pub use error::RunError;
pub use estimate::Memory;
pub use evaluate::{EvaluateRequest, Evaluated, data_settings_of, evaluate, quantize_of};
pub use export::{
    ExportFormat, export_adapter_gguf, export_gguf, merge_to_folder, merge_to_folder_as,
};
pub use fit::MemoryCheck;
pub use folder::abandon;
pub use forgetting::forgetting;
pub use frugal_nn::ProblemType;
pub use generate::{Continued, GenerateRequest, Piece, Prompt, generate};
pub use grow::{GrowRequest, Grown, grow};
pub use image_pretrain::{image_architectures, new_image_model, pretrain_images, reads_images};
pub use meta_train::{META_TRAIN_FILE, MetaTrainRequest, MetaTrained, read_tasks, run_meta_train};
pub use mine::{MineQuery, MineReport, Mined, Positive, mine, read_mine_queries};
pub use open::{OpenOptions, Opened, adapter_name, open};
pub use parametrize::{
    DocumentItems, ItemSource, ParametrizeReport, ParametrizeRequest, ParametrizeStep,
    TranslatorRequest, parametrize, read_items,
};
pub use plan::{Plan, plan};
pub use predict::{PredictRequest, Predictor};
pub use predictions::{Answer, Prediction, Tags};
pub use prepare::{Part, Prepared, prepare};
pub use pretrain::{
    CONFIG_FILE as PRETRAIN_FILE, Pretrained, Work, check_parallel, pretrain, pretrain_with,
    pretrain_worker,
};
pub use pretrain_config::{AttentionKind, PretrainConfig, Shape, architectures};
pub use pretrain_memory::{TrainedMemory, trained_as};
pub use progress::{Metrics, Observe, Progress};
pub use prompted_rerank::{PromptedMode, PromptedReranker, PrpCost};
pub use rerank::{Rerank, Reranker};
pub use results::{RESULTS_FILE, ResultsError, claim_results};
pub use scores::PartScores;
pub use start::describe as describe_adapter;
pub use tune::{TuneRequest, Tuned, tune};
pub use upcycle::{UpcycleRequest, Upcycled, upcycle};
