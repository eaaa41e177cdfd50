//! The order of work on each stage of a pipeline.

use super::plan::{ParallelPlan, Schedule};

/// A pass of a micro-batch through a chunk of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Chunk of the stage.
    pub chunk: u64,
    /// Micro-batch.
    pub micro_batch: u64,
    /// Whether it is the backward pass.
    pub backward: bool,
}

/// What a stage computes, in order. The plan must fit ([`ParallelPlan::check`]).
///
/// Interleaved as in Megatron-LM (`forward_backward_pipelining_with_interleaving`): micro-batches go
/// through the chunks in groups of `P`, and stage `i` begins with `2(P−i−1) + (v−1)P` forward passes.
pub fn order(plan: &ParallelPlan, stage: u64) -> Vec<Pass> {
    let (p, m, v) = (plan.pipeline, plan.micro_batches, plan.chunks);
    let total = m * v;
    let at = |k: u64, backward: bool| {
        let group = k / (p * v);
        let chunk = k % (p * v) / p;
        let (chunk, micro_batch) = match plan.schedule {
            Schedule::Interleaved => (chunk, group * p + k % p),
            Schedule::GPipe | Schedule::OneFOneB => (0, k),
        };
        Pass {
            chunk: if backward && v > 1 {
                v - 1 - chunk
            } else {
                chunk
            },
            micro_batch,
            backward,
        }
    };
    let warm_up = match plan.schedule {
        Schedule::GPipe => total,
        Schedule::OneFOneB => total.min(p - stage - 1),
        // With no more micro-batches than stages Megatron-LM does all forward passes first.
        Schedule::Interleaved if m == p => total,
        Schedule::Interleaved => total.min(2 * (p - stage - 1) + (v - 1) * p),
    };
    let mut passes: Vec<Pass> = (0..warm_up).map(|k| at(k, false)).collect();
    for k in warm_up..total {
        passes.extend([at(k, false), at(k - warm_up, true)]);
    }
    passes.extend((total - warm_up..total).map(|k| at(k, true)));
    passes
}
