//! How a plan's throughput grows with the number of replicas.

use serde::{Deserialize, Serialize};

use super::cost::{CostModel, Infeasible};
use super::plan::ParallelPlan;

/// What stays the same while devices are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scaling {
    /// The batch of each replica.
    Weak,
    /// The batch of a step.
    Strong,
}

/// A number of devices.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ScalingPoint {
    /// Devices.
    pub gpus: u64,
    /// Replicas.
    pub data: u64,
    /// Sequences of a step.
    pub global_batch: u64,
    /// Seconds of a step.
    pub seconds: f64,
    /// Sequences in a second.
    pub sequences_per_second: f64,
    /// Throughput of a device compared with the smallest number of them.
    pub efficiency: f64,
    /// Share of the peak.
    pub utilization: f64,
}

/// Throughput for 1, 2, 4, ... replicas and for those of the plan. With the batch of a step fixed,
/// numbers of replicas that do not divide it, and those that do not fit the memory, are left out.
///
/// # Errors
/// The plan itself cannot run.
pub fn scaling(
    model: &CostModel,
    plan: &ParallelPlan,
    kind: Scaling,
) -> Result<Vec<ScalingPoint>, Infeasible> {
    model.estimate(plan)?;
    let mut replicas: Vec<u64> = (0..64)
        .map(|i| 1u64 << i)
        .take_while(|n| *n < plan.data)
        .collect();
    replicas.push(plan.data);
    let mut points: Vec<ScalingPoint> = Vec::new();
    for data in replicas {
        let at = match kind {
            Scaling::Weak => ParallelPlan { data, ..*plan },
            Scaling::Strong => {
                let world = plan.tensor * plan.pipeline * data;
                match plan.for_world(world, plan.global_batch()) {
                    Ok(plan) => plan,
                    Err(_) => continue,
                }
            }
        };
        let found = match model.estimate(&at) {
            Ok(found) => found,
            Err(Infeasible::Memory { .. } | Infeasible::Plan(_)) => continue,
            Err(error) => return Err(error),
        };
        let per_gpu = found.sequences_per_second / found.gpus as f64;
        let first = points
            .first()
            .map_or(per_gpu, |p| p.sequences_per_second / p.gpus as f64);
        points.push(ScalingPoint {
            gpus: found.gpus,
            data,
            global_batch: found.global_batch,
            seconds: found.seconds,
            sequences_per_second: found.sequences_per_second,
            efficiency: per_gpu / first,
            utilization: found.utilization,
        });
    }
    Ok(points)
}
