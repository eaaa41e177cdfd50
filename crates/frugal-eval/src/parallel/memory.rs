//! What a device holds during a step, by part.

use serde::{Deserialize, Serialize};

use super::plan::{ParallelPlan, Schedule, ZeroStage, share};
use super::shape::TransformerShape;

/// Bytes that one parameter takes while it is trained, by what they are for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BytesPerParameter {
    /// The weight that the passes read.
    pub weight: f64,
    /// Its gradient.
    pub gradient: f64,
    /// The copy that the optimizer steps, where weights have fewer bits.
    pub master: f64,
    /// First moment.
    pub momentum: f64,
    /// Second moment.
    pub variance: f64,
}

impl BytesPerParameter {
    /// Mixed precision with Adam, as the ZeRO paper counts: 2 + 2 + 12.
    pub const MIXED_ADAM: Self = Self {
        weight: 2.0,
        gradient: 2.0,
        master: 4.0,
        momentum: 4.0,
        variance: 4.0,
    };
    /// The table of the Frontier paper: 2 + 4 + 4 + 4. It has one moment only.
    pub const FRONTIER_TABLE: Self = Self {
        weight: 2.0,
        gradient: 4.0,
        master: 4.0,
        momentum: 4.0,
        variance: 0.0,
    };
    /// Single precision with Adam: 4 + 4 + 8.
    pub const SINGLE_ADAM: Self = Self {
        weight: 4.0,
        gradient: 4.0,
        master: 0.0,
        momentum: 4.0,
        variance: 4.0,
    };

    /// What the optimizer keeps, `K`.
    pub fn optimizer(&self) -> f64 {
        self.master + self.momentum + self.variance
    }

    /// All of them.
    pub fn total(&self) -> f64 {
        self.weight + self.gradient + self.optimizer()
    }

    /// Bytes of `parameters` on one of `data` ranks (arXiv 1910.02054, section 5): weights,
    /// gradients, optimizer.
    pub fn states(&self, parameters: f64, zero: ZeroStage, data: u64) -> [f64; 3] {
        let of = |bytes: f64, from: ZeroStage| {
            let ranks = if zero >= from { data as f64 } else { 1.0 };
            parameters * bytes / ranks
        };
        [
            of(self.weight, ZeroStage::WEIGHTS),
            of(self.gradient, ZeroStage::GRADIENTS),
            of(self.optimizer(), ZeroStage::OPTIMIZER),
        ]
    }
}

/// Bytes on a device of one stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct StageMemory {
    /// Weights.
    pub weights: f64,
    /// Gradients.
    pub gradients: f64,
    /// What the optimizer keeps.
    pub optimizer: f64,
    /// What forward passes keep for their backward passes.
    pub activations: f64,
    /// The block that is computed again, and the logits of the last stage.
    pub workspace: f64,
}

impl StageMemory {
    /// All of it.
    pub fn total(&self) -> f64 {
        self.weights + self.gradients + self.optimizer + self.activations + self.workspace
    }
}

/// Layers of each chunk of a stage: chunk `c` of stage `i` is the `c·P + i`-th in the row.
pub(super) fn chunk_layers(plan: &ParallelPlan, shape: &TransformerShape, stage: u64) -> Vec<u64> {
    let parts = plan.pipeline * plan.chunks;
    let of = |chunk: u64| {
        let range = share(shape.layers, parts, chunk * plan.pipeline + stage);
        range.end - range.start
    };
    (0..plan.chunks).map(of).collect()
}

/// Parameters on a device of a stage: its share of its layers, of the token table on the first
/// stage and of the head on the last, which has a copy of a tied table.
pub(super) fn stage_parameters(plan: &ParallelPlan, shape: &TransformerShape, stage: u64) -> f64 {
    let tensor = plan.tensor as f64;
    let layers: u64 = chunk_layers(plan, shape, stage).iter().sum();
    // Norms and the biases behind a sum are on every rank of a tensor-parallel group.
    let h = shape.hidden as f64;
    let whole = if shape.biases { 6.0 * h } else { 2.0 * h };
    let layer = (shape.parameters_per_layer() - whole) / tensor + whole;
    let mut parameters = layers as f64 * layer;
    let table = (shape.vocab * shape.hidden) as f64 / tensor;
    if stage == 0 {
        parameters += table + shape.embedding_parameters() - (shape.vocab * shape.hidden) as f64;
    }
    let has_copy = shape.tied && plan.pipeline > 1;
    if stage + 1 == plan.pipeline && (has_copy || !shape.tied) {
        parameters += table;
    }
    parameters
}

/// Forward passes of a chunk whose activations a stage holds at the same time, at most. In units of
/// chunks: GPipe holds all, 1F1B `min(m, P−i)`, interleaved one more than its warm-up.
pub fn live_activations(plan: &ParallelPlan, stage: u64) -> u64 {
    let (p, m, v) = (plan.pipeline, plan.micro_batches, plan.chunks);
    match plan.schedule {
        Schedule::GPipe => m,
        Schedule::OneFOneB => m.min(p - stage),
        Schedule::Interleaved => {
            if m == p {
                return m * v;
            }
            (2 * (p - stage - 1) + (v - 1) * p + 1).min(m * v)
        }
    }
}

/// Bytes that a block keeps of a micro-batch in 16 bits, on one of `T` ranks (arXiv 2205.05198,
/// section 4): `s·b·h·(10 + 24/T + 5·a·s/(h·T))` for a GPT; without the last part where attention
/// keeps no scores. A gated feed-forward layer keeps three vectors of its width instead of two.
pub fn layer_activation_bytes(plan: &ParallelPlan, shape: &TransformerShape) -> f64 {
    let [h, s, a, kv, d, f, b, t] = [
        shape.hidden,
        shape.sequence,
        shape.heads,
        shape.key_value_heads,
        shape.head_dim,
        shape.ffn,
        plan.micro_batch,
        plan.tensor,
    ]
    .map(|v| v as f64);
    let tokens = s * b;
    // Inputs of both norms, of both halves' first products, and two dropout masks of a byte.
    let replicated = 4.0 * h + 2.0 * h + 2.0 * h + 2.0 * h;
    // Queries and what attention gives; keys and values.
    let attention = 4.0 * a * d + 4.0 * kv * d;
    let feed_forward = if shape.gated { 6.0 * f } else { 4.0 * f };
    let scores = if plan.flash_attention {
        0.0
    } else {
        5.0 * a * s
    };
    tokens * (replicated + (attention + feed_forward + scores) / t)
}

/// What a device of a stage holds.
pub fn stage_memory(
    plan: &ParallelPlan,
    shape: &TransformerShape,
    bytes: &BytesPerParameter,
    stage: u64,
) -> StageMemory {
    let parameters = stage_parameters(plan, shape, stage);
    let [weights, gradients, optimizer] = bytes.states(parameters, plan.zero, plan.data);
    let tokens = (shape.sequence * plan.micro_batch) as f64;
    let input = 2.0 * tokens * shape.hidden as f64;
    let full = layer_activation_bytes(plan, shape);
    let (kept, mut workspace) = if plan.recompute {
        (input, full)
    } else {
        (full, 0.0)
    };
    // Chunks differ by a layer at most; the largest is taken for all that are alive.
    let layers = chunk_layers(plan, shape, stage)
        .into_iter()
        .max()
        .unwrap_or(0);
    let activations = live_activations(plan, stage) as f64 * layers as f64 * kept;
    if stage + 1 == plan.pipeline {
        // Logits in single precision, and the input of the head.
        workspace += 4.0 * tokens * shape.vocab as f64 / plan.tensor as f64 + input;
    }
    StageMemory {
        weights,
        gradients,
        optimizer,
        activations,
        workspace,
    }
}

#[cfg(test)]
mod tests {
    use super::super::shape::{GPT_1T, GPT_22B, GPT_175B};
    use super::*;

    /// Figure 1 of the ZeRO paper: 7.5 billion parameters on 64 devices, 12 bytes of the optimizer.
    #[test]
    fn zero_takes_the_bytes_of_its_paper() {
        let expected = [120.0, 31.406_25, 16.640_625, 1.875];
        for (stage, gigabytes) in (0u8..).zip(expected) {
            let zero = ZeroStage::try_from(stage).unwrap();
            let states = BytesPerParameter::MIXED_ADAM.states(7.5e9, zero, 64);
            let sum: f64 = states.iter().sum();
            assert!((sum / 1e9 - gigabytes).abs() < 1e-9, "{stage}: {sum}");
        }
        assert_eq!(BytesPerParameter::MIXED_ADAM.total(), 16.0);
        // The table: 0.308, 2.45 and 14 TB.
        let table = BytesPerParameter::FRONTIER_TABLE.total();
        assert_eq!(table, 14.0);
        for (parameters, terabytes) in [(22e9, 0.308), (175e9, 2.45), (1e12, 14.0)] {
            assert!((table * parameters / 1e12 - terabytes).abs() < 1e-9);
        }
    }

    #[test]
    fn live_activations_are_those_of_each_schedule() {
        let live = |schedule| {
            let plan = ParallelPlan {
                pipeline: 4,
                micro_batches: 8,
                schedule,
                ..ParallelPlan::default()
            };
            (0..4)
                .map(|i| live_activations(&plan, i))
                .collect::<Vec<_>>()
        };
        assert_eq!(live(Schedule::OneFOneB), [4, 3, 2, 1]);
        assert_eq!(live(Schedule::GPipe), [8, 8, 8, 8]);
    }

    /// Equations 1 and 2 of arXiv 2205.05198: `sbh(34 + 5as/h)`, `sbh(10 + 24/t + 5as/(ht))`.
    #[test]
    fn a_block_keeps_the_bytes_of_the_published_formula() {
        for (tensor, flash_attention) in [(1, false), (8, false), (4, true)] {
            let plan = ParallelPlan {
                tensor,
                flash_attention,
                micro_batch: 3,
                ..ParallelPlan::default()
            };
            let (s, h, a, t) = (2048.0, 12_288.0, 96.0, tensor as f64);
            let scores = if flash_attention {
                0.0
            } else {
                5.0 * a * s / (h * t)
            };
            let expected = s * 3.0 * h * (10.0 + 24.0 / t + scores);
            let found = layer_activation_bytes(&plan, &GPT_175B);
            assert!((found / expected - 1.0).abs() < 1e-12, "{found} {expected}");
        }
    }

    #[test]
    fn the_parameters_of_all_stages_are_those_of_the_model() {
        for (shape, pipeline) in [(GPT_22B, 1), (GPT_175B, 16), (GPT_1T, 64), (GPT_22B, 7)] {
            let plan = ParallelPlan {
                pipeline,
                ..ParallelPlan::default()
            };
            let sum: f64 = (0..pipeline)
                .map(|i| stage_parameters(&plan, &shape, i))
                .sum();
            let copy = if pipeline > 1 {
                shape.vocab * shape.hidden
            } else {
                0
            };
            assert_eq!(sum, shape.parameters() + copy as f64);
        }
    }
}
