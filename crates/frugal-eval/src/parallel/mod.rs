//! Planning of distributed training: how a step is divided among devices, what each then holds and
//! sends, how long it takes, and which division is best.
//!
//! # What it does
//! A [`ParallelPlan`] divides every layer among `T` ranks (tensor parallelism), the layers among `P`
//! stages (pipeline parallelism) and the batch among `N` replicas (data parallelism, sharded by
//! ZeRO). [`CostModel::estimate`] says what a plan costs on a [`Machine`], [`simulate`] plays its
//! schedule event by event, [`PlanTuner`] searches for a plan, [`scaling`] varies the replicas.
//!
//! # Update rule
//! `W = T·P·N`, `GBS = b·m·N`. A step takes `(m+P−1)(t_f+t_b)` where stages are equal, of which the
//! bubble is `(P−1)/(m+P−1)`. A ring all-reduce sends `2(N−1)/N` of the data from each rank; a block
//! needs four of the activations of a micro-batch (six with recomputation), a step one of the
//! gradients.
//!
//! # When to use, when not
//! To choose degrees before devices are paid for, and to see what limits a plan. Utilisation is no
//! better than the profile's two efficiencies, which belong to be measured on the machine.
//!
//! # Cost
//! A plan of a thousand devices is estimated within milliseconds.
//!
//! # Defaults and where they come from
//! Recomputation, FlashAttention and 1F1B as in the paper's recipes. The surrogate of the search is a
//! forest of extremely randomised trees with an upper confidence bound of 1.96 deviations, as
//! DeepHyper has it.
//!
//! # Departures from the paper
//! The paper measures; this predicts, calibrated as [`known`] says. The exchange of gradients is not
//! overlapped with the backward pass, and the optimizer's own time is left out.
//!
//! # References
//! Dash et al.: Optimizing Distributed Training on Frontier for Large Language Models, 2023, arXiv
//! 2312.12705. Narayanan et al.: Efficient Large-Scale Language Model Training on GPU Clusters Using
//! Megatron-LM, 2021, arXiv 2104.04473. Rajbhandari et al.: ZeRO, 2019, arXiv 1910.02054.
//! Korthikanti et al.: Reducing Activation Recomputation in Large Transformer Models, 2022, arXiv
//! 2205.05198.

mod cost;
mod error;
mod forest;
pub mod known;
mod machine;
mod memory;
mod order;
mod plan;
mod scaling;
mod shape;
mod simulate;
mod timeline;
mod tuner;

pub use cost::{CostModel, Estimate, Infeasible, TimeParts, Traffic};
pub use error::{MAX_COUNT, PlanError};
pub use machine::{Link, Machine, MachineError, ring_all_reduce};
pub use memory::{
    BytesPerParameter, StageMemory, layer_activation_bytes, live_activations, stage_memory,
};
pub use order::{Pass, order};
pub use plan::{ParallelPlan, Schedule, ZeroStage, share};
pub use scaling::{Scaling, ScalingPoint, scaling};
pub use shape::{GPT_1T, GPT_22B, GPT_175B, TransformerShape};
pub use simulate::{Deadlock, Event, PassTimes, Simulation, simulate, simulate_orders};
pub use timeline::timeline;
pub use tuner::{NoPlan, PlanTrial, PlanTuner, SearchSpace, Tuned};
