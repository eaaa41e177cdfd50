//! A discrete-event simulation of a pipeline.

use std::collections::VecDeque;

use serde::Serialize;
use thiserror::Error;

use super::order::{Pass, order};
use super::plan::ParallelPlan;

/// Seconds of the passes of one micro-batch.
#[derive(Clone, Debug, PartialEq)]
pub struct PassTimes {
    /// Forward passes, by stage and chunk.
    pub forward: Vec<Vec<f64>>,
    /// Backward passes, by stage and chunk.
    pub backward: Vec<Vec<f64>>,
    /// Messages from each stage to the next, and from the last to the first; the way back takes as
    /// long. A message occupies neither stage.
    pub hop: Vec<f64>,
}

impl PassTimes {
    /// The same times everywhere, and messages that take none.
    pub fn equal(plan: &ParallelPlan, forward: f64, backward: f64) -> Self {
        let all = |t: f64| vec![vec![t; plan.chunks as usize]; plan.pipeline as usize];
        Self {
            forward: all(forward),
            backward: all(backward),
            hop: vec![0.0; plan.pipeline as usize],
        }
    }
}

/// When a pass was computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Event {
    /// Stage.
    pub stage: u64,
    /// What was computed.
    pub pass: Pass,
    /// Seconds since the start.
    pub start: f64,
    /// Seconds since the start.
    pub end: f64,
}

/// What a step took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Simulation {
    /// Seconds until the last stage is done.
    pub seconds: f64,
    /// Seconds that each stage computed.
    pub busy: Vec<f64>,
    /// Chunks of activations that each stage held at most.
    pub live: Vec<u64>,
    /// All passes, stage by stage.
    #[serde(skip)]
    pub events: Vec<Event>,
}

/// An order in which stages wait for each other for ever.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("stage {stage} waits for ever before its pass {position}")]
pub struct Deadlock {
    /// The first stage that waits.
    pub stage: usize,
    /// Passes that it has done.
    pub position: usize,
}

/// Simulates the plan's own schedule.
///
/// # Errors
/// None for plans that fit the model.
pub fn simulate(plan: &ParallelPlan, times: &PassTimes) -> Result<Simulation, Deadlock> {
    let orders: Vec<Vec<Pass>> = (0..plan.pipeline).map(|i| order(plan, i)).collect();
    simulate_orders(plan, &orders, times)
}

/// Simulates stages that compute in these orders: a stage waits for what its next pass reads, and
/// computes one pass at a time.
///
/// # Errors
/// Orders in which stages wait for each other.
pub fn simulate_orders(
    plan: &ParallelPlan,
    orders: &[Vec<Pass>],
    times: &PassTimes,
) -> Result<Simulation, Deadlock> {
    let stages = plan.pipeline as usize;
    let (m, v) = (plan.micro_batches as usize, plan.chunks as usize);
    let depth = stages * v;
    // When the output of a pass of a part of the model is there; forward, then backward.
    let mut done = vec![f64::NAN; 2 * depth * m];
    let index = |part: usize, micro_batch: u64, backward: bool| {
        (usize::from(backward) * depth + part) * m + micro_batch as usize
    };
    let (mut at, mut clock) = (vec![0; stages], vec![0.0f64; stages]);
    let mut busy = vec![0.0; stages];
    let (mut live, mut peak) = (vec![0u64; stages], vec![0u64; stages]);
    let mut events: Vec<Vec<Event>> = vec![Vec::new(); stages];
    let mut waiting: VecDeque<usize> = (0..stages).collect();
    let mut queued = vec![true; stages];
    while let Some(stage) = waiting.pop_front() {
        queued[stage] = false;
        while let Some(&pass) = orders[stage].get(at[stage]) {
            let chunk = pass.chunk as usize;
            let part = chunk * stages + stage;
            let own = done[index(part, pass.micro_batch, false)];
            // What the pass reads, and when it has arrived.
            let ready = match (pass.backward, part) {
                (false, 0) => 0.0,
                (false, _) => {
                    let hop = times.hop[(part - 1) % stages];
                    done[index(part - 1, pass.micro_batch, false)] + hop
                }
                (true, _) if part + 1 == depth => own,
                (true, _) => {
                    let hop = times.hop[part % stages];
                    let above = done[index(part + 1, pass.micro_batch, true)] + hop;
                    if own.is_nan() { own } else { above }
                }
            };
            if ready.is_nan() {
                break;
            }
            let seconds = if pass.backward {
                times.backward[stage][chunk]
            } else {
                times.forward[stage][chunk]
            };
            let start = clock[stage].max(ready);
            let end = start + seconds;
            (clock[stage], busy[stage]) = (end, busy[stage] + seconds);
            done[index(part, pass.micro_batch, pass.backward)] = end;
            if pass.backward {
                live[stage] = live[stage].saturating_sub(1);
            } else {
                live[stage] += 1;
                peak[stage] = peak[stage].max(live[stage]);
            }
            events[stage].push(Event {
                stage: stage as u64,
                pass,
                start,
                end,
            });
            at[stage] += 1;
            for neighbour in [(stage + 1) % stages, (stage + stages - 1) % stages] {
                if !queued[neighbour] {
                    queued[neighbour] = true;
                    waiting.push_back(neighbour);
                }
            }
        }
    }
    if let Some(stage) = (0..stages).find(|&i| at[i] < orders[i].len()) {
        return Err(Deadlock {
            stage,
            position: at[stage],
        });
    }
    Ok(Simulation {
        seconds: clock.iter().copied().fold(0.0, f64::max),
        busy,
        live: peak,
        events: events.into_iter().flatten().collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::memory::live_activations;
    use super::super::plan::Schedule;
    use super::*;

    fn plan(pipeline: u64, micro_batches: u64, schedule: Schedule, chunks: u64) -> ParallelPlan {
        ParallelPlan {
            pipeline,
            micro_batches,
            schedule,
            chunks,
            ..ParallelPlan::default()
        }
    }

    const SIZES: [(u64, u64); 6] = [(1, 5), (2, 1), (4, 8), (4, 16), (16, 64), (64, 100)];

    #[test]
    fn equal_stages_take_the_time_of_the_formula() {
        let (forward, backward) = (1.0, 2.0);
        for (p, m) in SIZES {
            for schedule in [Schedule::GPipe, Schedule::OneFOneB] {
                let plan = plan(p, m, schedule, 1);
                let times = PassTimes::equal(&plan, forward, backward);
                let found = simulate(&plan, &times).unwrap();
                let expected = (m + p - 1) as f64 * (forward + backward);
                assert_eq!(found.seconds, expected, "{schedule:?} {p} {m}");
                let idle = 1.0 - found.busy[0] / found.seconds;
                assert!((idle - plan.bubble_of_total()).abs() < 1e-12);
            }
        }
        // A chunk is a part of a stage: (m + (P−1)/v)·(t_f + t_b).
        for (p, m, v) in [(4, 8, 2), (4, 16, 3), (2, 4, 4), (8, 32, 2)] {
            let plan = plan(p, m, Schedule::Interleaved, v);
            let times = PassTimes::equal(&plan, forward, backward);
            let found = simulate(&plan, &times).unwrap();
            assert_eq!(found.seconds, (m * v + p - 1) as f64 * 3.0, "{p} {m} {v}");
            assert!((1.0 - found.busy[0] / found.seconds - plan.bubble_of_total()).abs() < 1e-12);
        }
    }

    #[test]
    fn stages_hold_the_activations_that_are_counted_for_the_memory() {
        let mut cases: Vec<ParallelPlan> = SIZES
            .iter()
            .flat_map(|&(p, m)| [Schedule::GPipe, Schedule::OneFOneB].map(|s| plan(p, m, s, 1)))
            .collect();
        for (p, m, v) in [(4, 8, 2), (4, 4, 2), (4, 16, 3), (2, 4, 4), (8, 8, 2)] {
            cases.push(plan(p, m, Schedule::Interleaved, v));
        }
        for plan in cases {
            let times = PassTimes::equal(&plan, 1.0, 2.0);
            let live = simulate(&plan, &times).unwrap().live;
            let counted: Vec<u64> = (0..plan.pipeline)
                .map(|i| live_activations(&plan, i))
                .collect();
            assert_eq!(live, counted, "{plan:?}");
        }
    }

    /// By hand: stages of 1 + 1 and 2 + 2 seconds, three micro-batches, 1F1B. The second stage starts
    /// at 1 and never waits; the last backward pass of the first follows.
    #[test]
    fn an_uneven_pipeline_runs_at_the_pace_of_its_slowest_stage() {
        let plan = plan(2, 3, Schedule::OneFOneB, 1);
        let times = PassTimes {
            forward: vec![vec![1.0], vec![2.0]],
            backward: vec![vec![1.0], vec![2.0]],
            hop: vec![0.0, 0.0],
        };
        let found = simulate(&plan, &times).unwrap();
        assert_eq!(found.seconds, 1.0 + 3.0 * 4.0 + 1.0);
        assert_eq!(found.busy, [6.0, 12.0]);
        // Messages of half a second delay the start and the end: in between the forward pass that the
        // first stage is ahead hides them.
        let slow = PassTimes {
            hop: vec![0.5, 0.5],
            ..times
        };
        let found = simulate(&plan, &slow).unwrap();
        assert_eq!(found.seconds, 1.5 + 12.0 + 1.5);
    }

    #[test]
    fn an_order_that_waits_for_itself_is_found() {
        let plan = plan(2, 2, Schedule::OneFOneB, 1);
        let mut orders: Vec<Vec<Pass>> = (0..2).map(|i| order(&plan, i)).collect();
        // A backward pass before its forward pass.
        orders[1].swap(0, 1);
        let times = PassTimes::equal(&plan, 1.0, 1.0);
        let error = simulate_orders(&plan, &orders, &times).unwrap_err();
        assert_eq!((error.stage, error.position), (0, 2));
    }
}
