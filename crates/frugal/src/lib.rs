//! Adapts, trains, runs and measures transformer models with few parameters, little memory and
//! little compute.
#![forbid(unsafe_code)]
#![recursion_limit = "256"]

pub mod device;
pub mod measure;
pub mod run;

pub use frugal_decode as decode;
pub use frugal_index as index;
pub use frugal_retrieve as retrieve;
pub use frugal_train as train;

/// Frozen backbones, their files and their parts.
pub mod model {
    pub use frugal_models::*;
    pub use frugal_nn::{
        Backbone, BackboneInfo, BlockState, Content, Conv, Correction, DecodeState, Embedding,
        Frozen, HeadLayout, Input, LayerState, Linear, LoadError, ModelError, Norm, Param,
        RecurrentState, SequenceLayout, SequenceState, SiteId, SiteInfo, SiteKind, SiteTable,
        StateError, StateOptions, UsualTargets, Weight, lookup, mean_pool, select_rows,
    };
}

/// What is trained beside a frozen backbone, and how it meets it.
pub mod adapt {
    pub use frugal_adapt::methods::{
        bottleneck::*, compression::*, full, hybrid::*, low_rank::*, orthogonal::*, prompt::*,
        scaling::*, shared::*, sparse::*, spectral::*,
    };
    pub use frugal_adapt::*;
    pub use frugal_models::merge;
    pub use frugal_nn::{
        ActiveAdapters, AdaptError, Adapter, AdapterSet, BlockAction, BuildContext, ConvChange,
        DerivedCache, Fixed, GradientSum, Head, HeadConfig, KeyValue, LinearChange, LoadedAdapter,
        LowRank, LowRankChange, MergedLinear, Mode, NoAdapter, NormChange, Operation, ParamChange,
        Parameter, Pass, Pooling, Rows, StepContext, SubLayer, SubLayerIo, TargetError, linalg,
        named_rng, standard_normal, to_vec,
    };
}
