//! A plan: how a training step is divided among devices, and whether it can be.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::error::{MAX_COUNT, PlanError};
use super::shape::TransformerShape;

/// In which order the stages of a pipeline work through the micro-batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// All forward passes, then all backward passes (GPipe, arXiv 1811.06965).
    #[serde(rename = "gpipe")]
    GPipe,
    /// One forward, one backward after a warm-up (PipeDream-Flush, arXiv 2006.09503).
    #[default]
    #[serde(rename = "1f1b")]
    OneFOneB,
    /// 1F1B with several chunks of layers on each stage (arXiv 2104.04473).
    Interleaved,
}

impl Schedule {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::GPipe, Self::OneFOneB, Self::Interleaved];

    /// Its name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::GPipe => "gpipe",
            Self::OneFOneB => "1f1b",
            Self::Interleaved => "interleaved",
        }
    }
}

/// What is sharded among the data-parallel ranks (ZeRO, arXiv 1910.02054): nothing, optimizer
/// states, gradients as well, weights as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct ZeroStage(u8);

impl ZeroStage {
    /// Every rank holds everything.
    pub const NONE: Self = Self(0);
    /// Optimizer states are sharded.
    pub const OPTIMIZER: Self = Self(1);
    /// Gradients are sharded as well.
    pub const GRADIENTS: Self = Self(2);
    /// Weights are sharded as well.
    pub const WEIGHTS: Self = Self(3);
}

impl TryFrom<u8> for ZeroStage {
    type Error = String;

    fn try_from(stage: u8) -> Result<Self, String> {
        if stage > 3 {
            return Err(format!(
                "{stage} is no stage of ZeRO: they are 0, 1, 2 and 3"
            ));
        }
        Ok(Self(stage))
    }
}

impl From<ZeroStage> for u8 {
    fn from(stage: ZeroStage) -> Self {
        stage.0
    }
}

/// How a training step is divided: tensor-, pipeline- and data-parallel degrees and micro-batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParallelPlan {
    /// Ranks that share every layer, `T`.
    pub tensor: u64,
    /// Stages of the pipeline, `P`.
    pub pipeline: u64,
    /// Replicas, `N`.
    pub data: u64,
    /// Sequences of a micro-batch, `b`.
    pub micro_batch: u64,
    /// Micro-batches of each replica in a step, `m`.
    pub micro_batches: u64,
    /// What the replicas shard among them.
    pub zero: ZeroStage,
    /// Order of the pipeline.
    pub schedule: Schedule,
    /// Chunks of layers on each stage, `v`; 1 but for interleaved schedules.
    pub chunks: u64,
    /// Whether layers keep only their input and compute the rest again in the backward pass.
    pub recompute: bool,
    /// Whether attention keeps no scores (FlashAttention, arXiv 2205.14135).
    pub flash_attention: bool,
}

impl Default for ParallelPlan {
    fn default() -> Self {
        Self {
            tensor: 1,
            pipeline: 1,
            data: 1,
            micro_batch: 1,
            micro_batches: 1,
            zero: ZeroStage::NONE,
            schedule: Schedule::OneFOneB,
            chunks: 1,
            recompute: true,
            flash_attention: true,
        }
    }
}

impl ParallelPlan {
    /// Devices, `W = T·P·N`.
    pub fn world(&self) -> u64 {
        self.tensor * self.pipeline * self.data
    }

    /// Sequences of a step, `b·m·N`.
    pub fn global_batch(&self) -> u64 {
        self.micro_batch * self.micro_batches * self.data
    }

    /// The plan for so many devices and sequences of a step: `N = W / (T·P)`, `m = GBS / (b·N)`.
    ///
    /// # Errors
    /// Devices or a batch that do not divide.
    pub fn for_world(self, world: u64, batch: u64) -> Result<Self, PlanError> {
        let model = self.tensor * self.pipeline;
        let data = world.checked_div(model).unwrap_or(0);
        let whole = Self { data, ..self };
        if data == 0 || whole.world() != world {
            return Err(PlanError::World {
                world,
                tensor: self.tensor,
                pipeline: self.pipeline,
                data: data.max(1),
            });
        }
        let micro_batches = batch.checked_div(self.micro_batch * data).unwrap_or(0);
        let whole = Self {
            micro_batches,
            ..whole
        };
        if micro_batches == 0 || whole.global_batch() != batch {
            return Err(PlanError::GlobalBatch {
                batch,
                micro_batch: self.micro_batch,
                micro_batches: micro_batches.max(1),
                data,
            });
        }
        Ok(whole)
    }

    /// Whether the model can be divided so.
    ///
    /// # Errors
    /// The first constraint that is broken.
    pub fn check(&self, shape: &TransformerShape) -> Result<(), PlanError> {
        let counts = [
            ("the tensor degree", self.tensor),
            ("the pipeline degree", self.pipeline),
            ("the data degree", self.data),
            ("the micro-batch", self.micro_batch),
            ("the number of micro-batches", self.micro_batches),
            ("the number of chunks", self.chunks),
        ];
        for (name, value) in counts {
            if !(1..=MAX_COUNT).contains(&value) {
                return Err(PlanError::Range { name, value });
            }
        }
        shape.check()?;
        let (tensor, pipeline, chunks) = (self.tensor, self.pipeline, self.chunks);
        let interleaved = self.schedule == Schedule::Interleaved;
        if interleaved != (chunks > 1) {
            let schedule = self.schedule.name();
            return Err(PlanError::Chunks { chunks, schedule });
        }
        if !shape.heads.is_multiple_of(tensor) {
            let heads = shape.heads;
            return Err(PlanError::Heads { tensor, heads });
        }
        if !shape.key_value_heads.is_multiple_of(tensor) {
            let heads = shape.key_value_heads;
            return Err(PlanError::KeyValueHeads { tensor, heads });
        }
        if !shape.hidden.is_multiple_of(tensor) {
            let hidden = shape.hidden;
            return Err(PlanError::Hidden { tensor, hidden });
        }
        if !shape.ffn.is_multiple_of(tensor) {
            let ffn = shape.ffn;
            return Err(PlanError::FeedForward { tensor, ffn });
        }
        if pipeline * chunks > shape.layers {
            return Err(PlanError::Layers {
                pipeline,
                chunks,
                layers: shape.layers,
            });
        }
        if interleaved && !self.micro_batches.is_multiple_of(pipeline) {
            return Err(PlanError::InterleavedMicroBatches {
                micro_batches: self.micro_batches,
                pipeline,
            });
        }
        Ok(())
    }

    /// Bubble over ideal time where all stages take as long: `(P−1)/m`, `(P−1)/(v·m)` interleaved.
    pub fn bubble_of_ideal(&self) -> f64 {
        (self.pipeline - 1) as f64 / (self.chunks * self.micro_batches) as f64
    }

    /// Bubble as a share of the step where all stages take as long: `(P−1)/(v·m+P−1)`.
    pub fn bubble_of_total(&self) -> f64 {
        let ideal = self.bubble_of_ideal();
        ideal / (1.0 + ideal)
    }
}

/// The part of `total` things in a row that belongs to `index` of `parts`, as equal as can be; the
/// first parts take one more where they do not divide.
pub fn share(total: u64, parts: u64, index: u64) -> Range<u64> {
    let (whole, rest) = (total / parts, total % parts);
    let start = index * whole + index.min(rest);
    start..start + whole + u64::from(index < rest)
}

#[cfg(test)]
mod tests {
    use super::super::shape::GPT_22B;
    use super::*;

    fn error(change: impl FnOnce(&mut ParallelPlan)) -> String {
        let mut plan = ParallelPlan::default();
        change(&mut plan);
        plan.check(&GPT_22B).unwrap_err().to_string()
    }

    /// (P, m), bubble over ideal time, bubble of the whole.
    #[test]
    fn bubbles_are_those_that_the_formulas_give_by_hand() {
        let cases = [
            (4, 8, 0.375, 0.272_727),
            (4, 16, 0.1875, 0.157_895),
            (16, 64, 0.234_375, 0.189_873),
            (64, 100, 0.63, 0.386_503),
        ];
        for (pipeline, micro_batches, ideal, total) in cases {
            let plan = ParallelPlan {
                pipeline,
                micro_batches,
                ..ParallelPlan::default()
            };
            assert!((plan.bubble_of_ideal() - ideal).abs() < 1e-9);
            assert!((plan.bubble_of_total() - total).abs() < 5e-7);
        }
    }

    #[test]
    fn the_constraint_that_a_plan_breaks_is_named() {
        // 64 heads, 6144 wide, 24576 in the feed-forward layer, 48 layers.
        assert!(error(|p| p.tensor = 3).contains("T | heads"));
        assert!(error(|p| p.pipeline = 49).contains("P·v ≤ layers"));
        assert!(error(|p| p.micro_batches = 0).contains("number of micro-batches is 0"));
        assert!(error(|p| p.data = u64::MAX).contains("between 1 and"));
        assert!(error(|p| p.chunks = 2).contains("1f1b"));
        let interleaved = |p: &mut ParallelPlan| {
            (p.schedule, p.chunks, p.pipeline, p.micro_batches) = (Schedule::Interleaved, 2, 4, 6);
        };
        assert!(error(interleaved).contains("P | m"));
        let narrow = |change: fn(&mut TransformerShape)| {
            let mut shape = GPT_22B;
            change(&mut shape);
            let plan = ParallelPlan {
                tensor: 8,
                ..ParallelPlan::default()
            };
            plan.check(&shape).unwrap_err().to_string()
        };
        assert!(narrow(|s| s.key_value_heads = 4).contains("T | KV heads"));
        assert!(narrow(|s| s.hidden = 6148).contains("T | hidden"));
        assert!(narrow(|s| s.ffn = 24_580).contains("T | ffn"));
        let base = ParallelPlan {
            tensor: 4,
            pipeline: 16,
            ..ParallelPlan::default()
        };
        let world = base.for_world(1000, 640).unwrap_err().to_string();
        assert!(world.contains("W = T·P·N"), "{world}");
        let batch = base.for_world(1024, 641).unwrap_err().to_string();
        assert!(batch.contains("GBS = b·m·N"), "{batch}");
        let plan = base.for_world(1024, 640).unwrap();
        assert_eq!((plan.data, plan.micro_batches), (16, 40));
        assert!(ZeroStage::try_from(4).is_err());
    }

    /// A row vector times two matrices, the first split by columns, the second by rows, in one part
    /// and as the sum of two.
    #[test]
    fn halves_of_a_tensor_parallel_layer_sum_to_the_whole() {
        let x = [1.0, 2.0];
        let first = [[1.0, 0.0, 2.0, 0.0], [0.0, 1.0, 0.0, 1.0]];
        let second = [1.0, 2.0, 3.0, 4.0];
        let part = |parts: u64, index: u64| -> f64 {
            let columns = share(4, parts, index);
            columns
                .map(|c| c as usize)
                .map(|c| (x[0] * first[0][c] + x[1] * first[1][c]) * second[c])
                .sum()
        };
        assert_eq!(part(1, 0), 19.0);
        assert_eq!(part(2, 0) + part(2, 1), 19.0);
        assert!(part(2, 0) != 0.0 && part(2, 1) != 0.0);
    }

    #[test]
    fn shares_cover_everything_once_and_differ_by_one() {
        for (total, parts) in [(48, 16), (7, 3), (3, 5), (0, 2)] {
            let all: Vec<u64> = (0..parts).flat_map(|i| share(total, parts, i)).collect();
            assert_eq!(all, (0..total).collect::<Vec<_>>());
            let sizes = (0..parts).map(|i| share(total, parts, i).count());
            let (low, high) = (sizes.clone().min().unwrap(), sizes.max().unwrap());
            assert!(high - low <= 1);
        }
    }
}
