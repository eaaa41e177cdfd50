//! What a plan costs on a machine: memory, time by part, traffic.

use serde::Serialize;
use thiserror::Error;

use super::error::PlanError;
use super::machine::{Machine, ring_all_reduce};
use super::memory::{BytesPerParameter, StageMemory, chunk_layers, stage_memory, stage_parameters};
use super::plan::{ParallelPlan, Schedule, ZeroStage};
use super::shape::TransformerShape;
use super::simulate::{Deadlock, PassTimes, simulate};

/// A model on a machine, trained at some precision.
#[derive(Clone, Debug)]
pub struct CostModel {
    /// The model.
    pub shape: TransformerShape,
    /// The machine.
    pub machine: Machine,
    /// What a parameter takes.
    pub bytes: BytesPerParameter,
}

/// Bytes that a device sends in a step, on average.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Traffic {
    /// All-reduces of activations within tensor-parallel groups.
    pub tensor: f64,
    /// Activations and their gradients between stages.
    pub pipeline: f64,
    /// Gradients, and parameters where they are sharded.
    pub data: f64,
}

/// Seconds of a step by what a device does in them, on average.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct TimeParts {
    /// Products of matrices.
    pub compute: f64,
    /// All-reduces of activations.
    pub tensor: f64,
    /// Waiting for other stages and for their messages.
    pub bubble: f64,
    /// Exchange of gradients, and of parameters where they are sharded.
    pub data: f64,
}

/// What a plan costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The plan.
    pub plan: ParallelPlan,
    /// Devices.
    pub gpus: u64,
    /// Sequences of a step.
    pub global_batch: u64,
    /// Parameters of the model.
    pub parameters: f64,
    /// Floating-point operations of a step.
    pub flops: f64,
    /// Seconds of a step.
    pub seconds: f64,
    /// By what they are spent on.
    pub time: TimeParts,
    /// Bytes that a device sends.
    pub traffic: Traffic,
    /// Bubble of the schedule with equal stages, as a share of the step.
    pub bubble_of_total: f64,
    /// What a device of each stage holds.
    pub memory: Vec<StageMemory>,
    /// The fullest stage.
    pub peak_memory: f64,
    /// Operations of a device in a second.
    pub flops_per_gpu: f64,
    /// Share of the peak.
    pub utilization: f64,
    /// Sequences of the whole machine in a second.
    pub sequences_per_second: f64,
    /// Tokens of the whole machine in a second.
    pub tokens_per_second: f64,
    /// Whether a tensor-parallel group spans nodes.
    pub tensor_leaves_node: bool,
}

/// Why a plan cannot run.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum Infeasible {
    /// It does not fit the model.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// It does not fit the memory.
    #[error(
        "out of memory: stage {stage} needs {:.1} GB of {:.1} GB (memory)",
        needed / 1e9,
        available / 1e9
    )]
    Memory {
        /// The fullest stage.
        stage: u64,
        /// Bytes.
        needed: f64,
        /// Bytes.
        available: f64,
    },
    /// Its order waits for itself.
    #[error(transparent)]
    Deadlock(#[from] Deadlock),
}

/// Passes that are simulated one by one; the rhythm of longer steps is known by then.
const SIMULATED: u64 = 1 << 17;

impl CostModel {
    /// What a plan costs.
    ///
    /// # Errors
    /// The constraint that it breaks, or the stage that does not fit the memory.
    pub fn estimate(&self, plan: &ParallelPlan) -> Result<Estimate, Infeasible> {
        let (shape, machine) = (&self.shape, &self.machine);
        plan.check(shape)?;
        let memory: Vec<StageMemory> = (0..plan.pipeline)
            .map(|stage| stage_memory(plan, shape, &self.bytes, stage))
            .collect();
        let (mut fullest, mut peak_memory) = (0, 0.0);
        for (stage, memory) in (0u64..).zip(&memory) {
            if memory.total() > peak_memory {
                (fullest, peak_memory) = (stage, memory.total());
            }
        }
        let available = machine.memory_bytes - machine.reserved_bytes;
        if peak_memory > available {
            return Err(Infeasible::Memory {
                stage: fullest,
                needed: peak_memory,
                available,
            });
        }
        let times = self.pass_times(plan);
        let (pipeline_seconds, busy) = step_seconds(plan, &times)?;
        let (data_seconds, data_bytes) = self.exchange(plan);
        let seconds = pipeline_seconds + data_seconds;
        let m = plan.micro_batches as f64;
        let boundary = self.boundary_bytes(plan);
        let reduces = m * self.all_reduces(plan);
        let compute = self.compute_seconds(plan) * m / plan.pipeline as f64;
        let hops = (plan.pipeline * plan.chunks - 1) as f64 / plan.pipeline as f64;
        let flops = shape.step_flops(plan.global_batch(), plan.recompute);
        let gpus = plan.world();
        let flops_per_gpu = flops / seconds / gpus as f64;
        let sequences_per_second = plan.global_batch() as f64 / seconds;
        Ok(Estimate {
            plan: *plan,
            gpus,
            global_batch: plan.global_batch(),
            parameters: shape.parameters(),
            flops,
            seconds,
            time: TimeParts {
                compute,
                tensor: busy - compute,
                bubble: pipeline_seconds - busy,
                data: data_seconds,
            },
            traffic: Traffic {
                tensor: reduces * ring_all_reduce(boundary, plan.tensor),
                pipeline: 2.0 * m * boundary * hops,
                data: data_bytes,
            },
            bubble_of_total: plan.bubble_of_total(),
            memory,
            peak_memory,
            flops_per_gpu,
            utilization: flops_per_gpu / machine.peak_flops,
            sequences_per_second,
            tokens_per_second: sequences_per_second * shape.sequence as f64,
            tensor_leaves_node: plan.tensor > machine.gpus_per_node,
        })
    }

    /// Bytes of the residual stream of a micro-batch in 16 bits.
    fn boundary_bytes(&self, plan: &ParallelPlan) -> f64 {
        2.0 * (plan.micro_batch * self.shape.sequence * self.shape.hidden) as f64
    }

    /// All-reduces of a micro-batch on a stage, on average: two in each pass of a block.
    fn all_reduces(&self, plan: &ParallelPlan) -> f64 {
        let passes = if plan.recompute { 3.0 } else { 2.0 };
        2.0 * passes * self.shape.layers as f64 / plan.pipeline as f64
    }

    /// Seconds of a floating-point operation on each of `T` ranks.
    fn seconds_per_flop(&self, plan: &ParallelPlan) -> f64 {
        let (shape, tensor) = (&self.shape, plan.tensor as f64);
        let sizes = [
            (plan.micro_batch * shape.sequence) as f64,
            shape.hidden as f64,
            shape.ffn as f64 / tensor,
        ];
        let share = self.machine.product_efficiency(sizes);
        1.0 / (tensor * self.machine.peak_flops * share)
    }

    /// Seconds that all stages compute for one micro-batch.
    fn compute_seconds(&self, plan: &ParallelPlan) -> f64 {
        let flops = self.shape.step_flops(plan.micro_batch, plan.recompute);
        flops * self.seconds_per_flop(plan)
    }

    /// Seconds of the passes of a micro-batch.
    fn pass_times(&self, plan: &ParallelPlan) -> PassTimes {
        let (shape, b) = (&self.shape, plan.micro_batch as f64);
        let flop = self.seconds_per_flop(plan);
        let boundary = self.boundary_bytes(plan);
        let reduce = 2.0 * self.machine.all_reduce_seconds(boundary, plan.tensor, 1);
        let forward = b * shape.forward_flops_per_layer() * flop + reduce;
        let head = b * shape.forward_flops_of_head() * flop;
        let again = if plan.recompute { forward } else { 0.0 };
        let backward = 2.0 * b * shape.forward_flops_per_layer() * flop + reduce + again;
        let of = |layer: f64, head: f64| -> Vec<Vec<f64>> {
            (0..plan.pipeline)
                .map(|stage| {
                    let layers = chunk_layers(plan, shape, stage);
                    let mut chunks: Vec<f64> = layers.iter().map(|&n| n as f64 * layer).collect();
                    if stage + 1 == plan.pipeline
                        && let Some(last) = chunks.last_mut()
                    {
                        *last += head;
                    }
                    chunks
                })
                .collect()
        };
        let hop = |stage: u64| {
            let next = (stage + 1) % plan.pipeline;
            let (from, to) = (stage * plan.tensor, next * plan.tensor);
            self.machine.send_seconds(boundary, from, to)
        };
        PassTimes {
            forward: of(forward, head),
            backward: of(backward, 2.0 * head),
            hop: (0..plan.pipeline).map(hop).collect(),
        }
    }

    /// Seconds and bytes of the exchange at the end of a step, of the stage with the most
    /// parameters. Stages 1 and 2 of ZeRO reduce-scatter gradients and all-gather weights, which
    /// is as much as an all-reduce; stage 3 gathers weights once more.
    fn exchange(&self, plan: &ParallelPlan) -> (f64, f64) {
        let most = (0..plan.pipeline)
            .map(|stage| stage_parameters(plan, &self.shape, stage))
            .fold(0.0, f64::max);
        let rounds = if plan.zero == ZeroStage::WEIGHTS {
            1.5
        } else {
            1.0
        };
        let bytes = most * self.bytes.weight.max(self.bytes.gradient.min(2.0));
        let stride = plan.tensor * plan.pipeline;
        let mut seconds = rounds * self.machine.all_reduce_seconds(bytes, plan.data, stride);
        let mut sent = rounds * ring_all_reduce(bytes, plan.data);
        if self.shape.tied && plan.pipeline > 1 {
            // The gradient of the token table, which the first and the last stage have.
            let table = 2.0 * (self.shape.vocab * self.shape.hidden) as f64 / plan.tensor as f64;
            let apart = (plan.pipeline - 1) * plan.tensor;
            seconds += self.machine.all_reduce_seconds(table, 2, apart);
            sent += 2.0 * ring_all_reduce(table, 2) / plan.pipeline as f64;
        }
        (seconds, sent)
    }
}

/// Seconds of the pipeline in a step, and those that a stage is busy on average.
fn step_seconds(plan: &ParallelPlan, times: &PassTimes) -> Result<(f64, f64), Infeasible> {
    let per_micro_batch = |times: &[Vec<f64>]| times.iter().flatten().sum::<f64>();
    let busy = (per_micro_batch(&times.forward) + per_micro_batch(&times.backward))
        * plan.micro_batches as f64
        / plan.pipeline as f64;
    let passes = plan.pipeline * plan.chunks;
    // Enough for the pipeline to fill, and in multiples of the stages, as interleaving wants.
    let rounds = (SIMULATED / passes / plan.pipeline.max(1)).max(8);
    let simulated = |rounds: u64| {
        let short = ParallelPlan {
            micro_batches: rounds * plan.pipeline,
            ..*plan
        };
        simulate(&short, times).map(|s| s.seconds)
    };
    if plan.micro_batches <= rounds * plan.pipeline {
        return Ok((simulate(plan, times)?.seconds, busy));
    }
    let half = rounds / 2;
    let (first, second) = (simulated(half)?, simulated(rounds)?);
    let pace = (second - first) / ((rounds - half) * plan.pipeline) as f64;
    let rest = (plan.micro_batches - rounds * plan.pipeline) as f64;
    Ok((second + rest * pace, busy))
}

impl Schedule {
    /// The schedule of this name.
    ///
    /// # Errors
    /// A name that is none, with those that there are.
    pub fn named(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|s| s.name() == name);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("{name:?} is no schedule: there are {names}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::shape::{GPT_22B, GPT_175B};
    use super::*;

    fn model(shape: TransformerShape) -> CostModel {
        CostModel {
            shape,
            machine: Machine::frontier().unwrap(),
            bytes: BytesPerParameter::MIXED_ADAM,
        }
    }

    /// 22 billion parameters on 32 devices, as the third section of the paper varies plans.
    fn plan(tensor: u64, pipeline: u64, micro_batches: u64) -> ParallelPlan {
        ParallelPlan {
            tensor,
            pipeline,
            data: 32 / tensor / pipeline,
            micro_batches,
            zero: ZeroStage::OPTIMIZER,
            ..ParallelPlan::default()
        }
    }

    fn utilization(plan: ParallelPlan) -> f64 {
        model(GPT_22B).estimate(&plan).unwrap().utilization
    }

    #[test]
    fn plans_rank_as_the_paper_found() {
        // More micro-batches shrink the bubble, with falling gain.
        let by_batch: Vec<f64> = [8, 16, 32, 64, 128]
            .map(|m| utilization(plan(2, 8, m)))
            .to_vec();
        assert!(by_batch.is_sorted(), "{by_batch:?}");
        let gains: Vec<f64> = by_batch.windows(2).map(|w| w[1] - w[0]).collect();
        assert!(gains.is_sorted_by(|a, b| a > b), "{gains:?}");
        // More stages at the same batch, then with micro-batches in proportion.
        let global = |p: u64, batch: u64| {
            let base = plan(2, p, 1);
            utilization(base.for_world(32, batch).unwrap())
        };
        assert!(global(4, 128) > global(8, 128) && global(8, 128) > global(16, 128));
        let constant = [4, 8, 16].map(|p| utilization(plan(2, p, 4 * p)));
        let spread = constant[0].max(constant[2]) - constant[0].min(constant[2]);
        assert!(spread < 0.05 * constant[0], "{constant:?}");
        // Larger tensor degrees cost all-reduces and smaller products.
        let tensor = [2, 4, 8].map(|t| utilization(plan(t, 4, 32)));
        assert!(tensor.is_sorted_by(|a, b| a > b), "{tensor:?}");
    }

    #[test]
    fn memory_decides_where_nothing_else_does() {
        let model = model(GPT_175B);
        let error = model.estimate(&plan(4, 8, 16)).unwrap_err();
        assert!(error.to_string().contains("(memory)"), "{error}");
        let zero = |zero| {
            let plan = ParallelPlan {
                zero,
                ..plan(4, 4, 16)
            };
            let memory = CostModel {
                shape: GPT_22B,
                ..model.clone()
            };
            memory.estimate(&plan).unwrap().memory[0].optimizer
        };
        assert_eq!(zero(ZeroStage::NONE), 2.0 * zero(ZeroStage::OPTIMIZER));
    }

    #[test]
    fn parts_of_the_time_sum_to_the_step() {
        for plan in [plan(2, 8, 16), plan(8, 4, 4), plan(4, 8, 20_000)] {
            let found = model(GPT_22B).estimate(&plan).unwrap();
            let TimeParts {
                compute,
                tensor,
                bubble,
                data,
            } = found.time;
            let sum = compute + tensor + bubble + data;
            assert!((sum / found.seconds - 1.0).abs() < 1e-12);
            assert!(
                [compute, tensor, bubble, data]
                    .iter()
                    .all(|part| *part >= 0.0)
            );
        }
    }

    #[test]
    fn a_long_step_goes_on_at_the_pace_of_its_start() {
        let model = model(GPT_22B);
        // 48 layers on 5 stages are uneven.
        for (pipeline, schedule, chunks) in
            [(5, Schedule::OneFOneB, 1), (8, Schedule::Interleaved, 2)]
        {
            let plan = ParallelPlan {
                pipeline,
                schedule,
                chunks,
                micro_batches: 40_000,
                tensor: 8,
                ..ParallelPlan::default()
            };
            let times = model.pass_times(&plan);
            let whole = simulate(&plan, &times).unwrap().seconds;
            let (fast, _) = step_seconds(&plan, &times).unwrap();
            assert!((fast / whole - 1.0).abs() < 1e-6, "{fast} {whole}");
        }
    }

    /// By hand: 48 layers, 6 all-reduces each, 2048 × 6144 values of 2 bytes, of which half as many
    /// again are sent among four.
    #[test]
    fn traffic_of_a_tensor_parallel_step_is_counted() {
        let found = model(GPT_22B).estimate(&plan(4, 8, 1)).unwrap();
        let expected = 48.0 / 8.0 * 6.0 * 1.5 * 2.0 * 2048.0 * 6144.0;
        assert_eq!(found.traffic.tensor, expected);
        // Seven boundaries, crossed twice.
        let crossed = 7.0 / 8.0 * 2.0 * 2.0 * 2048.0 * 6144.0;
        assert_eq!(found.traffic.pipeline, crossed);
    }
}
