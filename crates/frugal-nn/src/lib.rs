//! What models, adapters, training and decoding share: layers, sites, ragged layouts, decode state,
//! and the seam at which an adapter meets a frozen backbone.
#![forbid(unsafe_code)]

pub mod backbone;
pub mod error;
pub mod heads;
pub mod layers;
pub mod layout;
pub mod linalg;
pub mod problem;
pub mod rng;
pub mod rows;
pub mod seam;
pub mod site;
pub mod state;

pub use backbone::{
    Backbone, BackboneInfo, BlockState, Frozen, HeadLayout, ImageInput, RotaryTable, RouterState,
    UsualTargets,
};
pub use error::{LoadError, ModelError};
pub use heads::{Head, HeadConfig, Pooling};
pub use layers::{Conv, Correction, Embedding, Factored, Linear, Norm, Param, Weight, lookup};
pub use layout::{Content, Input, SequenceLayout};
pub use problem::ProblemType;
pub use rng::{named_rng, standard_normal, uniform};
pub use rows::{drop_prepended, mean_pool, select_rows};
pub use seam::adapter::{Adapter, BuildContext, LowRank, MergedLinear, Operation, StepContext};
pub use seam::attention::{AttentionControl, AttentionMask, AttentionScores, ScoreRows};
pub use seam::cached::Fixed;
pub use seam::controlled::ControlledPass;
pub use seam::derived_cache::DerivedCache;
pub use seam::error::{AdaptError, TargetError};
pub use seam::gradients::{Gradient, GradientSum};
pub use seam::hooks::{
    BlockAction, ConvChange, KeyValue, LinearChange, LowRankChange, NoAdapter, NormChange,
    ParamChange, Pass, RouterTraining, Rows, SubLayer, SubLayerIo,
};
pub use seam::parameter::{Mode, Parameter, no_grad, to_vec};
pub use seam::set::{ActiveAdapters, AdapterSet, LoadedAdapter};
pub use site::{SiteId, SiteInfo, SiteKind, SiteTable};
pub use state::{DecodeState, LayerState, RecurrentState, SequenceState, StateError, StateOptions};
