//! Loss from the size of a model and the tokens that it learns from: a law fitted to runs of one's
//! own, the best division of a budget by it, and a batch size by the loss.
//!
//! Hu et al., *MiniCPM*, arXiv 2404.06395, sections 3.2 and 4.5: `L(N, D) = C_N N^−a + C_D D^−b + L_0`, fitted
//! by least squares to decays that were forked from one stable run of each size, which gives losses at
//! many `D` for little more than the longest. With `C = 6 N D` the best size is
//! `N = K (C / 6)^(b / (a + b))`, `K = (a C_N / (b C_D))^(1 / (a + b))`.
//!
//! The paper averages fits over data sets to a = 0.29, b = 0.23 and 192 tokens for each parameter, where
//! Hoffmann et al. have 20; which of them fits is for runs of one's own to say.

use std::path::{Path, PathBuf};

use serde::Serialize;
use thiserror::Error;

use crate::linear_algebra::{Cholesky, Matrix, least_squares};

/// One run: its size, tokens and loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Parameters outside the vocabulary.
    pub parameters: f64,
    /// Tokens of training.
    pub tokens: f64,
    /// Its loss.
    pub loss: f64,
}

/// `L(N, D) = C_N N^−a + C_D D^−b + L_0`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ScalingLaw {
    /// `C_N`.
    pub c_n: f64,
    /// `a`.
    pub a: f64,
    /// `C_D`.
    pub c_d: f64,
    /// `b`.
    pub b: f64,
    /// `L_0`.
    pub l_0: f64,
}

/// The best division of a budget.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Optimum {
    /// Parameters.
    pub parameters: f64,
    /// Tokens.
    pub tokens: f64,
    /// The loss there.
    pub loss: f64,
}

impl ScalingLaw {
    /// The loss of so many parameters and tokens.
    #[must_use]
    pub fn loss(&self, parameters: f64, tokens: f64) -> f64 {
        self.c_n * parameters.powf(-self.a) + self.c_d * tokens.powf(-self.b) + self.l_0
    }

    /// `K`.
    #[must_use]
    pub fn k(&self) -> f64 {
        (self.a * self.c_n / (self.b * self.c_d)).powf(1.0 / (self.a + self.b))
    }

    /// The parameters and tokens of the lowest loss with `6 N D = compute`.
    #[must_use]
    pub fn optimum(&self, compute: f64) -> Optimum {
        let (sum, product) = (self.a + self.b, compute / 6.0);
        let parameters = self.k() * product.powf(self.b / sum);
        let tokens = product.powf(self.a / sum) / self.k();
        Optimum {
            parameters,
            tokens,
            loss: self.loss(parameters, tokens),
        }
    }

    fn squares(&self, points: &[Point]) -> f64 {
        let rest = |p: &Point| self.loss(p.parameters, p.tokens) - p.loss;
        points.iter().map(|p| rest(p).powi(2)).sum()
    }
}

/// Tokens of a batch by the loss that a run is expected to reach, `1.21e9 / L^6.24`: in nats for each
/// token of MiniCPM's tokenizer on C4, which losses of other tokenizers are not.
#[must_use]
pub fn batch_tokens(loss: f64) -> f64 {
    1.21e9 / loss.powf(6.24)
}

/// A fitted law.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LawFit {
    /// The law.
    pub law: ScalingLaw,
    /// Root of the mean squared difference between losses and law.
    pub deviation: f64,
    /// Runs.
    pub runs: usize,
}

/// Exponents that are tried before the best is refined.
const GRID: [f64; 14] = [
    0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.1, 1.5,
];
const MAX_STEPS: usize = 500;

/// Fits the law by least squares: for given exponents it is linear, which gives a start; then damped
/// Gauss-Newton steps over all five numbers. `None` where the runs do not decide it: fewer than six,
/// fewer than three sizes or numbers of tokens, or no law of falling losses.
#[must_use]
pub fn fit(points: &[Point]) -> Option<LawFit> {
    let distinct = |of: fn(&Point) -> f64| {
        let mut all: Vec<f64> = points.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all.dedup();
        all.len()
    };
    if points.len() < 6 || distinct(|p| p.parameters) < 3 || distinct(|p| p.tokens) < 3 {
        return None;
    }
    let mut starts: Vec<(f64, ScalingLaw)> = Vec::new();
    for a in GRID {
        for b in GRID {
            starts.extend(linear(points, a, b).map(|law| (law.squares(points), law)));
        }
    }
    starts.sort_by(|a, b| a.0.total_cmp(&b.0));
    let refined = starts.iter().take(8).map(|(_, law)| refine(points, *law));
    let law = refined.min_by(|a, b| a.squares(points).total_cmp(&b.squares(points)))?;
    let deviation = (law.squares(points) / points.len() as f64).sqrt();
    deviation.is_finite().then_some(LawFit {
        law,
        deviation,
        runs: points.len(),
    })
}

/// The best law with these exponents, where losses fall with both.
fn linear(points: &[Point], a: f64, b: f64) -> Option<ScalingLaw> {
    // Columns near 1, so that their products can be told apart.
    let (n, d) = (points[0].parameters, points[0].tokens);
    let row = |p: &Point| vec![(p.parameters / n).powf(-a), (p.tokens / d).powf(-b), 1.0];
    let rows: Vec<Vec<f64>> = points.iter().map(row).collect();
    let losses: Vec<f64> = points.iter().map(|p| p.loss).collect();
    let found = least_squares(&Matrix::from_rows(&rows), &losses)?;
    let law = ScalingLaw {
        c_n: found[0] * n.powf(a),
        a,
        c_d: found[1] * d.powf(b),
        b,
        l_0: found[2],
    };
    let falls = law.c_n > 0.0 && law.c_d > 0.0 && law.l_0.is_finite();
    (falls && law.c_n.is_finite() && law.c_d.is_finite()).then_some(law)
}

/// Levenberg-Marquardt over the logarithms of the terms at the first run, the exponents and `L_0`.
fn refine(points: &[Point], start: ScalingLaw) -> ScalingLaw {
    let (n, d) = (points[0].parameters, points[0].tokens);
    let law = |x: &[f64; 5]| ScalingLaw {
        c_n: x[0].exp() * n.powf(x[1]),
        a: x[1],
        c_d: x[2].exp() * d.powf(x[3]),
        b: x[3],
        l_0: x[4],
    };
    let mut x = [
        (start.c_n * n.powf(-start.a)).ln(),
        start.a,
        (start.c_d * d.powf(-start.b)).ln(),
        start.b,
        start.l_0,
    ];
    let (mut damping, mut least) = (1e-3, law(&x).squares(points));
    for _ in 0..MAX_STEPS {
        let of = law(&x);
        let (mut gram, mut slope) = (Matrix::zeros(5, 5), [0.0; 5]);
        for p in points {
            let by_n = of.c_n * p.parameters.powf(-of.a);
            let by_d = of.c_d * p.tokens.powf(-of.b);
            let rest = by_n + by_d + of.l_0 - p.loss;
            let row = [
                by_n,
                -by_n * (p.parameters / n).ln(),
                by_d,
                -by_d * (p.tokens / d).ln(),
                1.0,
            ];
            for i in 0..5 {
                slope[i] += row[i] * rest;
                for j in 0..5 {
                    gram.row_mut(i)[j] += row[i] * row[j];
                }
            }
        }
        let mut damped = gram;
        for i in 0..5 {
            damped.row_mut(i)[i] *= 1.0 + damping;
        }
        let Some(solver) = Cholesky::new(&damped) else {
            damping *= 10.0;
            continue;
        };
        let step = solver.solve(&slope);
        let mut next = x;
        next.iter_mut().zip(&step).for_each(|(x, s)| *x -= s);
        let valid = next[1] > 0.0 && next[3] > 0.0;
        let squares = law(&next).squares(points);
        if valid && squares <= least {
            let gained = least - squares;
            (x, least) = (next, squares);
            damping = (damping / 10.0).max(1e-15);
            if gained <= 1e-15 * least && step.iter().all(|s| s.abs() < 1e-11) {
                break;
            }
        } else {
            damping *= 10.0;
            if damping > 1e12 {
                break;
            }
        }
    }
    law(&x)
}

/// A table of runs that cannot be read.
#[derive(Debug, Error)]
pub enum PointsError {
    /// Not a table.
    #[error("{}: {source}", path.display())]
    Csv {
        /// The file.
        path: PathBuf,
        /// The reader's reason, with the line.
        source: csv::Error,
    },
    /// A column that is needed and is not there.
    #[error("{}: no column {wanted}; it has {found}", path.display())]
    Column {
        /// The file.
        path: PathBuf,
        /// Names that would do.
        wanted: String,
        /// Names that there are.
        found: String,
    },
    /// A cell that is no number above zero.
    #[error("{}: line {line}: `{value}` is no number above 0", path.display())]
    Number {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// The cell.
        value: String,
    },
}

/// Reads a CSV with the columns `parameters` (or `N`), `tokens` (or `D`) and `loss`.
///
/// # Errors
/// Tables without these columns, cells that are no numbers above zero.
pub fn read_points(path: &Path, bytes: &[u8]) -> Result<Vec<Point>, PointsError> {
    let csv = |source| PointsError::Csv {
        path: path.to_owned(),
        source,
    };
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_reader(bytes);
    let headings = reader.headers().map_err(csv)?.clone();
    let column = |names: &[&str]| {
        let is = |heading: &str| names.contains(&heading.to_lowercase().as_str());
        headings
            .iter()
            .position(is)
            .ok_or_else(|| PointsError::Column {
                path: path.to_owned(),
                wanted: names.join(" or "),
                found: headings.iter().collect::<Vec<_>>().join(", "),
            })
    };
    let columns = [
        column(&["parameters", "n"])?,
        column(&["tokens", "d"])?,
        column(&["loss"])?,
    ];
    let mut points = Vec::new();
    for record in reader.records() {
        let record = record.map_err(csv)?;
        let number = |column: usize| {
            let value = record.get(column).unwrap_or_default();
            let found = value.parse::<f64>().ok();
            found
                .filter(|v| v.is_finite() && *v > 0.0)
                .ok_or_else(|| PointsError::Number {
                    path: path.to_owned(),
                    line: record.position().map_or(0, csv::Position::line),
                    value: value.to_owned(),
                })
        };
        points.push(Point {
            parameters: number(columns[0])?,
            tokens: number(columns[1])?,
            loss: number(columns[2])?,
        });
    }
    Ok(points)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAPER: ScalingLaw = ScalingLaw {
        c_n: 400.0,
        a: 0.29,
        c_d: 2000.0,
        b: 0.23,
        l_0: 1.7,
    };

    fn golden() -> serde_json::Value {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/measure/scaling_law.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    fn numbers(value: &serde_json::Value) -> Vec<f64> {
        let all = value.as_array().unwrap().iter();
        all.map(|v| v.as_f64().unwrap()).collect()
    }

    /// By hand from the formulas, and by a fine grid over sizes.
    #[test]
    fn the_optimum_is_that_of_brute_force() {
        let best = PAPER.optimum(1e18);
        assert!((PAPER.k() - 0.070_700_6).abs() < 5e-8, "{}", PAPER.k());
        assert!((best.parameters - 2_929_406.0).abs() < 1.0, "{best:?}");
        let ratio = best.parameters / best.tokens;
        assert!((ratio - 5.14885e-5).abs() < 1e-10, "{ratio}");
        assert!((6.0 * best.parameters * best.tokens / 1e18 - 1.0).abs() < 1e-12);
        let golden = golden();
        let optima = golden["optima"].as_array().unwrap();
        assert_eq!(optima.len(), 3);
        for optimum in optima {
            let [compute, expected] = numbers(optimum)[..] else {
                unreachable!("pairs")
            };
            let found = PAPER.optimum(compute).parameters;
            assert!((found / expected - 1.0).abs() < 1e-4, "{compute}: {found}");
        }
    }

    #[test]
    fn the_fit_is_that_of_scipy() {
        let golden = golden();
        let points: Vec<Point> = golden["runs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|run| {
                let [parameters, tokens, loss] = numbers(run)[..] else {
                    unreachable!("triples")
                };
                Point {
                    parameters,
                    tokens,
                    loss,
                }
            })
            .collect();
        let found = fit(&points).unwrap();
        let squares = found.law.squares(&points);
        let expected = golden["squares"].as_f64().unwrap();
        assert!(
            squares <= expected * (1.0 + 1e-6),
            "{squares} and {expected}"
        );
        let law = found.law;
        let fitted = numbers(&golden["fitted"]);
        for (found, expected) in [law.c_n, law.a, law.c_d, law.b, law.l_0].iter().zip(fitted) {
            assert!(
                (found / expected - 1.0).abs() < 1e-3,
                "{found} for {expected}"
            );
        }
        // Without noise the law itself comes back.
        let exact: Vec<Point> = points
            .iter()
            .map(|p| Point {
                loss: PAPER.loss(p.parameters, p.tokens),
                ..*p
            })
            .collect();
        let found = fit(&exact).unwrap().law;
        assert!(
            (found.a - 0.29).abs() < 1e-5 && (found.b - 0.23).abs() < 1e-5,
            "{found:?}"
        );
        assert!((found.l_0 - 1.7).abs() < 1e-4, "{found:?}");
    }

    #[test]
    fn runs_that_do_not_decide_the_law_give_none() {
        let at = |parameters, tokens, loss| Point {
            parameters,
            tokens,
            loss,
        };
        assert_eq!(fit(&[]), None);
        let one_size: Vec<Point> = (1..9).map(|i| at(1e6, 1e8 * f64::from(i), 3.0)).collect();
        assert_eq!(fit(&one_size), None);
        // Losses that rise with the size.
        let rising: Vec<Point> = (1..10)
            .map(|i| at(f64::from(i), f64::from(i * i % 7 + 1), f64::from(i)))
            .collect();
        assert!(fit(&rising).is_none_or(|fit| fit.law.c_n > 0.0));
    }

    #[test]
    fn batches_follow_the_loss() {
        for (loss, tokens) in [(2.5, 3_977_770.0), (3.0, 1_275_113.0), (4.0, 211_802.0)] {
            let found = batch_tokens(loss);
            assert!((found - tokens).abs() < 1.0, "{loss}: {found}");
        }
    }

    #[test]
    fn tables_are_read_and_faults_named() {
        let read = |text: &str| read_points(Path::new("runs.csv"), text.as_bytes());
        let found = read("size,N,D,loss\nx,1e6,2e7,3.5\n").unwrap();
        let expected = Point {
            parameters: 1e6,
            tokens: 2e7,
            loss: 3.5,
        };
        assert_eq!(found, [expected]);
        let said = |text: &str| read(text).unwrap_err().to_string();
        assert!(said("N,loss\n1,2\n").contains("tokens or d"));
        assert!(said("N,D,loss\n1,2,3\n1,2,-3\n").contains("line 3: `-3`"));
    }
}
