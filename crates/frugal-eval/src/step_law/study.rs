//! What a grid of finished runs says: the best of each size, the bowl around it, the laws through
//! them, and what other configurations lose.

use std::path::Path;

use serde::Serialize;

use super::{Edges, Fit, Run, fit};
use crate::linear_algebra::{Matrix, least_squares};
use crate::report::{RECORD_FILE, RunRecord, Status};
use crate::suite::{Job, Point};

/// A point of the grid that was run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// Name of the run.
    pub name: String,
    /// Where it lies.
    #[serde(flatten)]
    pub point: Point,
    /// Loss on held-out text, the mean over seeds.
    pub loss: f64,
    /// Seeds.
    pub seeds: usize,
}

impl Measured {
    fn run(&self) -> Run {
        Run {
            parameters: self.point.parameters,
            tokens: self.point.tokens,
            rate: self.point.rate,
            batch: self.point.batch,
            loss: self.loss,
        }
    }
}

/// The grid's runs that have finished in folder `out`; and names and reasons of those that failed.
pub fn measured(jobs: &[Job], out: &Path) -> (Vec<Measured>, Vec<(String, String)>) {
    let (mut found, mut failed): (Vec<Measured>, Vec<(String, String)>) = Default::default();
    for job in jobs {
        let Some(point) = &job.point else { continue };
        let Ok(record) = RunRecord::read(&out.join(job.folder()).join(RECORD_FILE)) else {
            continue;
        };
        let loss = record
            .evaluation
            .first()
            .and_then(|e| e.adapted.get("loss"))
            .copied()
            .filter(|l| l.is_finite());
        match (record.train_info.status, loss) {
            (Status::Success, Some(loss)) => match found.iter_mut().find(|m| m.name == job.name) {
                Some(known) => {
                    known.loss =
                        (known.loss * known.seeds as f64 + loss) / (known.seeds + 1) as f64;
                    known.seeds += 1;
                }
                None => found.push(Measured {
                    name: job.name.clone(),
                    point: point.clone(),
                    loss,
                    seeds: 1,
                }),
            },
            (Status::Failed, _) => failed.push((job.folder(), record.run_info.error_msg)),
            _ => {}
        }
    }
    (found, failed)
}

/// A paraboloid over (ln rate, ln batch) through the runs of one size: `loss = value + ½ zᵀ H z`
/// around its lowest point.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bowl {
    /// Rate at the bottom.
    pub rate: f64,
    /// Batch at the bottom.
    pub batch: f64,
    /// Loss at the bottom.
    pub loss: f64,
    /// Second derivatives: by rate, by both, by batch.
    pub curvature: [f64; 3],
    /// Whether the bottom lies among the runs, at most half a step beyond the edge of the grid.
    pub inside: bool,
}

/// How fast a run loses weight in the fit of a bowl: at this share above the best loss it counts a
/// quarter.
const NEAR: f64 = 0.02;

impl Bowl {
    /// Fits the runs of one size; those near the best count most, since far from it the loss is no
    /// paraboloid.
    ///
    /// `None` of fewer than seven runs, or if the paraboloid opens downwards in some direction:
    /// then there is no bottom.
    pub fn fit(runs: &[Run]) -> Option<Self> {
        let best = runs.iter().map(|r| r.loss).fold(f64::INFINITY, f64::min);
        if runs.len() < 7 || !best.is_finite() {
            return None;
        }
        // Centred for the sake of the arithmetic.
        let mean = |value: fn(&Run) -> f64| {
            runs.iter().map(|r| value(r).ln()).sum::<f64>() / runs.len() as f64
        };
        let (x0, y0) = (mean(|r| r.rate), mean(|r| r.batch));
        let row = |r: &Run| {
            let (x, y) = (r.rate.ln() - x0, r.batch.ln() - y0);
            let weight = 1.0 / (1.0 + (r.loss / best - 1.0) / NEAR);
            (
                [1.0, x, y, x * x, x * y, y * y]
                    .map(|v| v * weight)
                    .to_vec(),
                r.loss * weight,
            )
        };
        let (rows, losses): (Vec<Vec<f64>>, Vec<f64>) = runs.iter().map(row).unzip();
        let c = least_squares(&Matrix::from_rows(&rows), &losses)?;
        let [a, b, d] = [2.0 * c[3], c[4], 2.0 * c[5]];
        let determinant = a * d - b * b;
        if !(a > 0.0 && d > 0.0 && determinant > 1e-9 * a * d) {
            return None;
        }
        let (x, y) = (
            (b * c[2] - d * c[1]) / determinant,
            (b * c[1] - a * c[2]) / determinant,
        );
        let (rate, batch) = ((x + x0).exp(), (y + y0).exp());
        let among = |value: fn(&Run) -> f64, v: f64| {
            let mut places: Vec<f64> = runs.iter().map(value).collect();
            places.sort_by(f64::total_cmp);
            places.dedup();
            // Half a step further, as far as the outermost runs speak for.
            let Some(([first, second], [before, last])) =
                places.first_chunk().zip(places.last_chunk())
            else {
                return false;
            };
            (first * (first / second).sqrt()..=last * (last / before).sqrt()).contains(&v)
        };
        Some(Self {
            rate,
            batch,
            loss: c[0] + 0.5 * (c[1] * x + c[2] * y),
            curvature: [a, b, d],
            inside: among(|r| r.rate, rate) && among(|r| r.batch, batch),
        })
    }

    /// Points (ln rate, ln batch) of the ellipse on which the loss is `above` the bottom's.
    pub fn ellipse(&self, above: f64, points: usize) -> Vec<(f64, f64)> {
        let [a, b, d] = self.curvature;
        // H = L Lᵀ; z = √(2 above) L⁻ᵀ u for u on the circle.
        let l11 = a.sqrt();
        let (l21, l22) = (b / l11, (d - b * b / a).sqrt());
        let radius = (2.0 * above).sqrt();
        let at = |i: usize| {
            let (sin, cos) = (2.0 * std::f64::consts::PI * i as f64 / points as f64).sin_cos();
            let y = radius * sin / l22;
            let x = (radius * cos - l21 * y) / l11;
            (self.rate.ln() + x, self.batch.ln() + y)
        };
        (0..points).map(at).collect()
    }
}

/// The runs of one size.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    /// Parameters outside the vocabulary.
    pub parameters: f64,
    /// Tokens of training.
    pub tokens: f64,
    /// Runs of the grid.
    pub runs: usize,
    /// Those within the excess that counts as near the best.
    pub near: usize,
    /// The best run of the grid.
    pub best: Run,
    /// The bowl through them, if it has a bottom.
    pub bowl: Option<Bowl>,
}

/// What a configuration beside the grid loses.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// Its name.
    pub name: String,
    /// Parameters, tokens, and its loss over the grid's best of that size, less 1.
    pub excess: Vec<(f64, f64, f64)>,
    /// The mean over sizes.
    pub mean: f64,
    /// The worst of them.
    pub worst: f64,
}

/// What the runs say.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Study {
    /// Share above the best loss within which runs count as near it.
    pub excess: f64,
    /// The law through the runs near the best of their size, as it was published to be fitted.
    pub fit: Option<Fit>,
    /// The law through the bottoms of the bowls that lie within the grid.
    pub bowls: Option<Fit>,
    /// Sizes, small models first.
    pub cells: Vec<Cell>,
    /// Sizes whose best run lies on the edge of the grid.
    pub edges: Edges,
    /// Configurations beside the grid.
    pub compared: Vec<Compared>,
    /// All runs.
    pub runs: Vec<Measured>,
}

/// Bootstrap samples of the published procedure.
const BOOTSTRAPS: usize = 1000;

impl Study {
    /// Of finished runs.
    pub fn new(mut runs: Vec<Measured>, excess: f64) -> Self {
        let order = |m: &Measured| {
            [
                m.point.parameters,
                m.point.tokens,
                m.point.rate,
                m.point.batch,
            ]
        };
        runs.sort_by(|a, b| {
            order(a)
                .iter()
                .zip(order(b))
                .map(|(a, b)| a.total_cmp(&b))
                .find(|o| o.is_ne())
                .unwrap_or(std::cmp::Ordering::Equal)
        });
        let grid: Vec<Run> = runs
            .iter()
            .filter(|m| m.point.beside.is_none())
            .map(Measured::run)
            .collect();
        let cells: Vec<Cell> = grid
            .chunk_by(|a, b| a.parameters == b.parameters && a.tokens == b.tokens)
            .filter_map(|c| cell(c, excess))
            .collect();
        let bottoms: Vec<Run> = cells
            .iter()
            .filter_map(|c| {
                c.bowl.filter(|b| b.inside).map(|b| Run {
                    rate: b.rate,
                    batch: b.batch,
                    loss: b.loss,
                    ..c.best
                })
            })
            .collect();
        let mut names: Vec<&String> = runs
            .iter()
            .filter_map(|m| m.point.beside.as_ref())
            .collect();
        names.sort();
        names.dedup();
        let compared = names
            .into_iter()
            .filter_map(|name| compare(name, &runs, &cells))
            .collect();
        Self {
            excess,
            fit: fit(&grid, excess, BOOTSTRAPS, 0),
            bowls: fit(&bottoms, excess, BOOTSTRAPS, 0),
            edges: Edges::of(&grid),
            compared,
            cells,
            runs,
        }
    }
}

fn cell(runs: &[Run], excess: f64) -> Option<Cell> {
    let best = *runs.iter().min_by(|a, b| a.loss.total_cmp(&b.loss))?;
    let near = runs
        .iter()
        .filter(|r| r.loss <= best.loss * (1.0 + excess))
        .count();
    Some(Cell {
        parameters: best.parameters,
        tokens: best.tokens,
        runs: runs.len(),
        near,
        best,
        bowl: Bowl::fit(runs),
    })
}

fn compare(name: &str, runs: &[Measured], cells: &[Cell]) -> Option<Compared> {
    let of = |m: &Measured| {
        let cell = cells
            .iter()
            .find(|c| c.parameters == m.point.parameters && c.tokens == m.point.tokens)?;
        Some((cell.parameters, cell.tokens, m.loss / cell.best.loss - 1.0))
    };
    let excess: Vec<_> = runs
        .iter()
        .filter(|m| m.point.beside.as_deref() == Some(name))
        .filter_map(of)
        .collect();
    let values: Vec<f64> = excess.iter().map(|e| e.2).collect();
    let worst = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    Some(Compared {
        name: name.to_owned(),
        mean: frugal_core::metrics::mean(&values)?,
        worst,
        excess,
    })
}

#[cfg(test)]
mod tests {
    use super::super::STEP_LAW;
    use super::*;
    use crate::report::Evaluation;
    use crate::suite::Suite;

    /// A bowl with a known bottom, leaning.
    fn bowl(rate: f64, batch: f64, at: (f64, f64)) -> f64 {
        let (x, y) = ((at.0 / rate).ln(), (at.1 / batch).ln());
        4.0 + 0.05 * x * x - 0.02 * x * y + 0.03 * y * y
    }

    #[test]
    fn the_bottom_of_a_bowl_is_found() {
        let (rates, batches) = ([0.002, 0.004, 0.008, 0.016], [64.0, 128.0, 256.0, 512.0]);
        let runs: Vec<Run> = rates
            .iter()
            .flat_map(|&rate| {
                batches.map(|batch| Run {
                    parameters: 1e5,
                    tokens: 1e6,
                    rate,
                    batch,
                    loss: bowl(0.005, 200.0, (rate, batch)),
                })
            })
            .collect();
        let found = Bowl::fit(&runs).unwrap();
        assert!(
            (found.rate / 0.005 - 1.0).abs() < 1e-9
                && (found.batch / 200.0 - 1.0).abs() < 1e-9
                && (found.loss - 4.0).abs() < 1e-12
        );
        assert!(
            found.inside
                && found
                    .curvature
                    .iter()
                    .zip([0.1, -0.02, 0.06])
                    .all(|(a, b)| (a - b).abs() < 1e-9),
            "{found:?}"
        );
        for (x, y) in found.ellipse(0.08, 12) {
            assert!((bowl(0.005, 200.0, (x.exp(), y.exp())) - 4.08).abs() < 1e-9);
        }
        let saddle: Vec<Run> = runs
            .iter()
            .map(|r| Run {
                loss: 5.0 - r.loss / 10.0 + (r.rate / 0.005).ln().powi(2),
                ..*r
            })
            .collect();
        assert!(Bowl::fit(&saddle).is_none() && Bowl::fit(&runs[..6]).is_none());
        let near: Vec<Run> = runs
            .iter()
            .map(|r| Run {
                loss: bowl(0.02, 50.0, (r.rate, r.batch)),
                ..*r
            })
            .collect();
        assert!(Bowl::fit(&near).unwrap().inside);
        let outside: Vec<Run> = runs
            .iter()
            .map(|r| Run {
                loss: bowl(0.05, 200.0, (r.rate, r.batch)),
                ..*r
            })
            .collect();
        assert!(!Bowl::fit(&outside).unwrap().inside);
    }

    /// Record files of a grid whose losses follow bowls around `optimum`; the law must come out of
    /// the files again.
    #[test]
    fn a_law_is_found_again_from_the_files_of_runs() {
        let text = r#"
            description = "Synthetic"
            seeds = [0, 1]
            [pretrain]
            max_length = 16
            shape = { num_hidden_layers = 2, num_attention_heads = 4, num_key_value_heads = 4 }
            [grid]
            shapes = [{ hidden_size = 32, intermediate_size = 88 }, { hidden_size = 64, intermediate_size = 176 }]
            tokens = [100000, 400000]
            lr = [0.005, 0.01, 0.02, 0.04, 0.08]
            batch_tokens = [128, 256, 512, 1024, 2048]
            beside = [{ name = "step-law" }, { name = "constant", lr = 3e-4, batch_tokens = 1024 }]
        "#;
        let suite = Suite::parse(Path::new("s.toml"), text).unwrap();
        let jobs = suite.jobs(Path::new("."));
        let dir = tempfile::tempdir().unwrap();
        for job in &jobs {
            let point = job.point.as_ref().unwrap();
            let optimum = (
                STEP_LAW.rate(point.parameters, point.tokens),
                STEP_LAW.batch(point.tokens),
            );
            let mut record = RunRecord::default();
            // Seeds differ by a constant that the mean takes out.
            let loss = bowl(optimum.0, optimum.1, (point.rate, point.batch))
                + if job.seed == 0 { 0.125 } else { -0.125 };
            record.evaluation.push(Evaluation {
                adapted: [("loss".to_owned(), loss)].into(),
                ..Evaluation::default()
            });
            record.train_info.status = Status::Success;
            let folder = dir.path().join(job.folder());
            std::fs::create_dir(&folder).unwrap();
            record.write(&folder.join(RECORD_FILE)).unwrap();
        }
        let last = jobs.last().unwrap();
        assert_eq!((last.name.as_str(), last.seed), ("h64-d400000-constant", 1));
        let broken = dir.path().join(last.folder()).join(RECORD_FILE);
        let mut record = RunRecord::read(&broken).unwrap();
        record.train_info.status = Status::Failed;
        record.run_info.error_msg = "out of memory".into();
        record.write(&broken).unwrap();

        let (runs, failed) = measured(&jobs, dir.path());
        assert_eq!(
            (runs.len(), failed),
            (108, vec![(last.folder(), "out of memory".to_owned())])
        );
        assert_eq!((runs[0].seeds, runs[107].seeds), (2, 1));
        let study = Study::new(runs, 0.0025);
        assert_eq!(
            (
                study.cells.len(),
                study.cells[0].parameters,
                study.cells[3].tokens
            ),
            (4, 25088.0, 400_000.0)
        );
        // The bowls are exact, so their bottoms give the law back.
        let law = study.bowls.unwrap().law;
        assert!(
            (law.rate_parameters + 0.713).abs() < 1e-6 && (law.rate_tokens - 0.307).abs() < 1e-6,
            "{law:?}"
        );
        assert!((law.batch_tokens - 0.571).abs() < 1e-6, "{law:?}");
        let near = study.fit.unwrap().law;
        assert!(
            near.rate_parameters < -0.3 && near.batch_tokens > 0.2,
            "{near:?}"
        );
        let named = |name: &str| study.compared.iter().find(|c| c.name == name).unwrap();
        // The law's own configuration is at the bottom but for whole sequences; the grid's best is
        // not.
        assert!(
            named("step-law").worst < 1e-4 && named("step-law").excess.len() == 4,
            "{:?}",
            named("step-law")
        );
        assert!(named("constant").mean > 0.1, "{:?}", named("constant"));
    }
}
