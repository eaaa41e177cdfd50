//! The best rate of a small model, carried over to wider and deeper ones.

use super::measures::LOSS;
use super::rig::{Part, Rig};
use crate::run::study::{Outcome, StudyError};

/// What the rate of the smallest model costs a larger one beside its own best rate.
pub(super) const COST: &str = "loss above that of its own best rate";
/// How far the best rates of the smallest model and of the largest are apart.
pub(super) const SHIFT: &str = "grid steps between best rates";
const BEST: &str = "best rate";

/// What is varied.
#[derive(Clone, Copy)]
pub(super) enum Along {
    Width,
    Depth,
}

impl Along {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Width => "width",
            Self::Depth => "depth",
        }
    }

    fn models(self, rig: &Rig<'_>) -> [[usize; 2]; 3] {
        let (widths, depths) = (rig.size.widths, rig.size.depths);
        match self {
            Self::Width => widths.map(|width| [width, depths[1]]),
            Self::Depth => depths.map(|depth| [widths[1], depth]),
        }
    }
}

pub(super) fn arm(rules: bool, [width, layers]: [usize; 2]) -> String {
    let kind = if rules { "with rules" } else { "plain Llama" };
    format!("{kind}, {width} wide, {layers} blocks")
}

pub(super) fn carried(rules: bool, along: Along) -> String {
    let kind = if rules { "with rules" } else { "plain Llama" };
    format!("{kind}, along {}", along.name())
}

/// Losses at each rate on the part for tuning and on the other; infinite where training diverged.
type Grid = Vec<[f64; 2]>;

fn best(grid: &[[f64; 2]]) -> usize {
    let order = (0..grid.len()).min_by(|&a, &b| grid[a][0].total_cmp(&grid[b][0]));
    order.unwrap_or(0)
}

/// Measures every model at every rate with every seed.
pub(super) fn measure(
    rig: &Rig<'_>,
    outcome: &mut Outcome,
    step: &mut dyn FnMut(String),
) -> Result<(), StudyError> {
    for &seed in &rig.request.seeds {
        for rules in [true, false] {
            let mut middle: Option<Grid> = None;
            for along in [Along::Width, Along::Depth] {
                let mut grids: Vec<Grid> = Vec::new();
                for (place, model) in along.models(rig).into_iter().enumerate() {
                    // The middle one is the same in both directions.
                    let grid = match (&middle, place) {
                        (Some(known), 1) => known.clone(),
                        _ => grid(rig, rules, model, seed, step)?,
                    };
                    if place == 1 && middle.is_none() {
                        middle = Some(grid.clone());
                    }
                    let at = best(&grid);
                    if grid[at][1].is_finite() {
                        let arm = arm(rules, model);
                        outcome.add(&arm, LOSS, seed, grid[at][1]);
                        outcome.add(&arm, BEST, seed, rig.size.rates[at]);
                    }
                    grids.push(grid);
                }
                let (small, large) = (best(&grids[0]), best(&grids[2]));
                let arm = carried(rules, along);
                outcome.add(&arm, SHIFT, seed, small.abs_diff(large) as f64);
                let cost = grids[2][small][1] - grids[2][large][1];
                if cost.is_finite() {
                    outcome.add(&arm, COST, seed, cost);
                }
            }
        }
    }
    Ok(())
}

fn grid(
    rig: &Rig<'_>,
    rules: bool,
    model: [usize; 2],
    seed: u64,
    step: &mut dyn FnMut(String),
) -> Result<Grid, StudyError> {
    let arm = arm(rules, model);
    let start = rig.fresh(model, rules, seed)?;
    let mut grid = Grid::new();
    for &rate in rig.size.rates {
        let settings = rig.settings(rate, rig.size.transfer_steps, seed);
        let trained = rig.trained(&arm, &start, &rig.text.training, &settings, None)?;
        let mut losses = [f64::INFINITY; 2];
        if let Some(model) = trained {
            for (loss, part) in losses.iter_mut().zip([Part::Tuning, Part::Test]) {
                *loss = rig.loss(&arm, &model, &rig.text, part)?;
            }
        }
        grid.push(losses);
        step(format!("{arm}, rate {rate}, seed {seed}"));
    }
    Ok(grid)
}

/// Steps that [`measure`] tells of.
pub(super) fn planned(rig: &Rig<'_>) -> u64 {
    (rig.request.seeds.len() * 2 * 5 * rig.size.rates.len()) as u64
}

/// What the paper says of them.
pub(super) fn claims(outcome: &mut Outcome) {
    for along in [Along::Width, Along::Depth] {
        for (claim, measure) in [
            (
                "the best rate of the smallest model costs the largest less",
                COST,
            ),
            ("best rates lie nearer to each other", SHIFT),
        ] {
            let claim = format!("With the rules {claim}, along {}", along.name());
            let [better, than] = [true, false].map(|rules| carried(rules, along));
            outcome.judge(claim, measure, &better, &than, true);
        }
    }
}
