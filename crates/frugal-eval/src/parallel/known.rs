//! The plans that the Frontier paper reports, and what it measured with them.
//!
//! # What is calibrated
//! Two numbers of the built-in profile, `compute_efficiency` and `link_efficiency`, are set so that
//! the plans of 175 billion and of a trillion parameters reach what was measured of them. Memory,
//! links and peak are the machine's; `reserved_bytes` and `half_size` are assumptions. The paper's
//! plan of 22 billion parameters is not known to us: the best plan of its search space is compared
//! with what it measured, and how throughput grows with devices is predicted.
//!
//! # How the batch is read
//! 640 and 1600 sequences are taken for one replica. For the whole machine they cannot be meant:
//! 1600 sequences do not divide among the six replicas of 3072 devices, and 40 micro-batches for
//! each of 16 stages would leave 27 % of the time to the bubble of the smaller model.

use super::plan::{ParallelPlan, Schedule, ZeroStage};
use super::shape::{GPT_1T, GPT_22B, GPT_175B, TransformerShape};

/// A model of the paper.
#[derive(Clone, Copy, Debug)]
pub struct Published {
    /// Its name on the command line.
    pub name: &'static str,
    /// Its sizes.
    pub shape: TransformerShape,
    /// Devices of the largest run.
    pub gpus: u64,
    /// Its plan; for 22 billion parameters one of ours.
    pub plan: ParallelPlan,
    /// Whether the plan is the paper's.
    pub plan_is_published: bool,
    /// Share of the peak that was measured.
    pub utilization: f64,
}

const fn plan(tensor: u64, pipeline: u64, data: u64, micro_batches: u64) -> ParallelPlan {
    ParallelPlan {
        tensor,
        pipeline,
        data,
        micro_batch: 1,
        micro_batches,
        zero: ZeroStage::OPTIMIZER,
        schedule: Schedule::OneFOneB,
        chunks: 1,
        recompute: true,
        flash_attention: true,
    }
}

/// The three models.
pub const PUBLISHED: [Published; 3] = [
    Published {
        name: "22b",
        shape: GPT_22B,
        gpus: 128,
        plan: plan(2, 4, 16, 640),
        plan_is_published: false,
        utilization: 0.3838,
    },
    Published {
        name: "175b",
        shape: GPT_175B,
        gpus: 1024,
        plan: plan(4, 16, 16, 640),
        plan_is_published: true,
        utilization: 0.3614,
    },
    Published {
        name: "1t",
        shape: GPT_1T,
        gpus: 3072,
        plan: plan(8, 64, 6, 1600),
        plan_is_published: true,
        utilization: 0.3196,
    },
];

/// The model of this name.
pub fn published(name: &str) -> Option<&'static Published> {
    let spelled = name.to_ascii_lowercase();
    PUBLISHED.iter().find(|known| known.name == spelled)
}

#[cfg(test)]
mod tests {
    use super::super::cost::CostModel;
    use super::super::machine::Machine;
    use super::super::memory::BytesPerParameter;
    use super::super::scaling::{Scaling, scaling};
    use super::super::tuner::PlanTuner;
    use super::*;

    fn model(known: &Published) -> CostModel {
        CostModel {
            shape: known.shape,
            machine: Machine::frontier().unwrap(),
            bytes: BytesPerParameter::MIXED_ADAM,
        }
    }

    /// The two models that the profile is calibrated with, and the one that it is not.
    #[test]
    fn the_published_plans_reach_what_was_measured() {
        for known in &PUBLISHED[1..] {
            assert_eq!(known.plan.world(), known.gpus);
            let found = model(known).estimate(&known.plan).unwrap();
            let off = found.utilization / known.utilization - 1.0;
            assert!(off.abs() < 0.01, "{}: {}", known.name, found.utilization);
        }
        let small = &PUBLISHED[0];
        let cost = model(small);
        let best = PlanTuner::new(128, 1280, 0)
            .candidates(&small.shape)
            .unwrap()
            .iter()
            .filter_map(|plan| Some(cost.estimate(plan).ok()?.utilization))
            .fold(0.0, f64::max);
        let given = cost.estimate(&small.plan).unwrap().utilization;
        assert!(best >= given, "{best} {given}");
        for found in [best, given] {
            assert!(
                (found / small.utilization - 1.0).abs() < 0.1,
                "{best} {given}"
            );
        }
    }

    /// The devices of a replica hold at least what the paper's bytes for each parameter ask for.
    #[test]
    fn models_fit_where_they_ran_and_not_on_fewer_devices() {
        for known in &PUBLISHED {
            let states = BytesPerParameter::MIXED_ADAM.total() * known.shape.parameters();
            let found = model(known).estimate(&known.plan).unwrap();
            let machine = Machine::frontier().unwrap();
            assert!(found.peak_memory <= machine.memory_bytes);
            let least = (states / machine.memory_bytes).ceil() as u64;
            let alone = ParallelPlan {
                data: 1,
                pipeline: least.div_ceil(8).next_power_of_two() / 4,
                tensor: 8,
                ..known.plan
            };
            if alone.pipeline > 0 {
                let error = model(known).estimate(&alone).unwrap_err().to_string();
                assert!(error.contains("(memory)"), "{error}");
            }
        }
    }

    /// Measured: weak scaling 100 %, strong scaling 89 % and 87 %. The exchange of gradients is not
    /// overlapped in the model.
    #[test]
    fn scaling_is_near_what_was_measured() {
        for (known, strong, batch) in [(&PUBLISHED[1], 0.89, 8000), (&PUBLISHED[2], 0.87, 8016)] {
            let model = model(known);
            let weak = scaling(&model, &known.plan, Scaling::Weak).unwrap();
            let last = weak.last().unwrap();
            assert_eq!(last.gpus, known.gpus);
            assert!(last.efficiency > 0.97, "{last:?}");
            let plan = known.plan.for_world(known.gpus, batch).unwrap();
            let found = scaling(&model, &plan, Scaling::Strong).unwrap();
            let last = found.last().unwrap();
            assert_eq!((last.gpus, last.global_batch), (known.gpus, batch));
            assert!((last.efficiency - strong).abs() < 0.1, "{found:?}");
            assert!(found.is_sorted_by(|a, b| a.efficiency >= b.efficiency));
        }
    }
}

#[cfg(test)]
mod calibrate {
    use super::super::*;
    #[test]
    fn calibrate_print() {
        for (ce, le) in [(0.45,0.5),(0.42,0.5),(0.45,0.4),(0.45,0.6),(0.45,0.3)] {
            let mut m = Machine::frontier().unwrap();
            m.compute_efficiency = ce; m.link_efficiency = le;
            for k in &super::PUBLISHED {
                let c = CostModel { shape: k.shape, machine: m.clone(), bytes: BytesPerParameter::MIXED_ADAM };
                let e = c.estimate(&k.plan).unwrap();
                eprintln!("{ce} {le} {} u {:.4} of {} time {:?} mem {:?}", k.name, e.utilization, k.utilization, e.time, e.memory[0]);
            }
        }
        // fit
        let (mut ce, mut le) = (0.45f64, 0.5f64);
        let f = |ce: f64, le: f64| { let mut m = Machine::frontier().unwrap(); m.compute_efficiency = ce; m.link_efficiency = le;
            [1usize,2].map(|i| { let k=&super::PUBLISHED[i]; let c = CostModel { shape: k.shape, machine: m.clone(), bytes: BytesPerParameter::MIXED_ADAM }; c.estimate(&k.plan).unwrap().utilization / k.utilization }) };
        for _ in 0..60 { let r = f(ce, le); ce /= r[0]; let r = f(ce, le); le *= (1.0 - (r[1]-1.0)*3.0).clamp(0.5,2.0); le=le.min(1.0); }
        eprintln!("fit {ce} {le} {:?}", f(ce,le));
        let mut m = Machine::frontier().unwrap(); m.compute_efficiency = ce; m.link_efficiency = le;
        for k in &super::PUBLISHED {
            let c = CostModel { shape: k.shape, machine: m.clone(), bytes: BytesPerParameter::MIXED_ADAM };
            let e = c.estimate(&k.plan).unwrap();
            eprintln!("FIT {} u {:.4} of {} time {:?} secs {}", k.name, e.utilization, k.utilization, e.time, e.seconds);
            for (kind,b) in [(Scaling::Weak, e.global_batch),(Scaling::Strong, if k.name=="1t" {8016} else {8000})] { if let Ok(p)=k.plan.for_world(k.gpus, b) { for s in scaling(&c,&p,kind).unwrap() { eprintln!("  {kind:?} {} {} eff {:.4} u {:.4}", s.gpus, s.global_batch, s.efficiency, s.utilization); } } }
        }
        let k=&super::PUBLISHED[0]; let c = CostModel { shape: k.shape, machine: m.clone(), bytes: BytesPerParameter::MIXED_ADAM };
        let mut all: Vec<_> = PlanTuner::new(128,1280,0).candidates(&k.shape).unwrap().into_iter().filter_map(|p| Some((c.estimate(&p).ok()?.utilization,p))).collect();
        all.sort_by(|a,b| b.0.total_cmp(&a.0));
        for x in all.iter().take(8) { eprintln!("best {:?}", x); }
    }
}
