use super::learner::{Scale, target, weights, with_intercept};
use super::*;
use crate::linear_algebra::{Cholesky, Matrix, dot};

/// Standardised features with a column of ones in front.
fn standardised(features: &[Vec<f64>]) -> Matrix {
    with_intercept(&Scale::new(features).apply(features))
}

fn close(a: &[f64], b: &[f64]) {
    assert!(
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12),
        "{a:?} and {b:?}"
    );
}

/// Numbers worked out by hand from the procedure's definition, two models, nine calibration and
/// four test items.
#[test]
fn a_worked_example() {
    let good = [0, 1, 0, 1, 0, 1, 0, 1, 0].map(|l| l == 1);
    let calibration = vec![
        vec![0.54, 0.9, 0.48, 0.43, 0.79, 0.98, 0.37, 0.97, 0.93],
        vec![0.18, 0.61, 0.7, 0.94, 0.67, 0.13, 0.5, 0.49, 0.5],
    ];
    let test = vec![vec![0.96, 0.35, 0.22, 0.52], vec![0.64, 0.94, 0.58, 0.27]];
    let one = conformal_selection(&calibration[0], &good, &test[0], 0.5).unwrap();
    close(&one.p_values, &[0.1, 0.6, 0.6, 0.4]);
    assert_eq!(one.selected, [0]);
    let two = conformal_selection(&calibration[1], &good, &test[1], 0.5).unwrap();
    close(&two.p_values, &[0.3, 0.1, 0.3, 0.5]);
    assert_eq!(two.selected, [0, 1, 2, 3]);

    let found = model_selection(&calibration, &good, &test, 0.5, Pruning::Dtm, 0).unwrap();
    assert_eq!(found.models, [1, 1, 0, 1]);
    close(&found.p_values, &[0.3, 0.1, 0.6, 0.5]);
    assert_eq!(
        (found.auxiliary, found.candidates),
        (vec![4; 4], vec![0, 1, 3])
    );
    assert!(found.selected.is_empty());
    // With half the size three items suffice for three: a seed whose number is about a half.
    let seed = (0..)
        .find(|s| (ChaCha8Rng::seed_from_u64(*s).random::<f64>() - 0.5).abs() < 0.02)
        .unwrap();
    assert_eq!(
        model_selection(&calibration, &good, &test, 0.5, Pruning::Homo, seed)
            .unwrap()
            .selected,
        [0, 1, 3]
    );
}

#[test]
fn benjamini_hochberg_steps_up() {
    assert_eq!(benjamini_hochberg(&[0.1, 0.2, 0.3, 0.9], 0.4), [0, 1, 2]);
    // The second alone would not do, the third lifts it.
    assert_eq!(benjamini_hochberg(&[0.01, 0.06, 0.06, 0.9], 0.1), [0, 1, 2]);
    assert!(
        benjamini_hochberg(&[0.5, 0.6], 0.1).is_empty() && benjamini_hochberg(&[], 0.1).is_empty()
    );
}

#[test]
fn thinning_is_the_procedure_on_e_values() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for seed in 0..2000 {
        let m = rng.random_range(1..12);
        let q = rng.random_range(0.1..0.6);
        let p: Vec<f64> = (0..m)
            .map(|_| f64::from(rng.random_range(1u32..=20)) / 20.0)
            .collect();
        let r: Vec<usize> = (0..m).map(|_| rng.random_range(1..=m)).collect();
        let pruning = [Pruning::Hete, Pruning::Homo, Pruning::Dtm][seed as usize % 3];
        let found = prune(p.clone(), r.clone(), vec![0; m], q, pruning, seed);
        let mut xi = ChaCha8Rng::seed_from_u64(seed);
        let common: f64 = xi.random();
        let e: Vec<f64> = (0..m)
            .map(|j| {
                let xi = match pruning {
                    Pruning::Hete => xi.random::<f64>(),
                    Pruning::Homo => common,
                    Pruning::Dtm => 1.0,
                };
                let passed = p[j] <= q * r[j] as f64 / m as f64 * ROUNDING;
                if passed {
                    m as f64 / (q * r[j] as f64) / xi
                } else {
                    0.0
                }
            })
            .collect();
        assert_eq!(
            found.selected,
            e_benjamini_hochberg(&e, q),
            "{p:?} {r:?} {q} {pruning:?}"
        );
        assert!(found.selected.iter().all(|j| found.candidates.contains(j)));
    }
}

#[test]
fn leaving_one_out_is_refitting_without_it() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let features: Vec<Vec<f64>> = (0..25)
        .map(|_| (0..4).map(|_| rng.random_range(-1.0..1.0)).collect())
        .collect();
    let good: Vec<bool> = features
        .iter()
        .map(|x| x[0] + rng.random_range(-0.5..0.5) > 0.2)
        .collect();
    for balance in [false, true] {
        let ridge = Ridge {
            penalty: 0.7,
            balance,
        };
        let found = ridge.leave_one_out(&features, &good).unwrap();
        let (rows, weights) = (standardised(&features), weights(&good, balance));
        for left in 0..features.len() {
            let mut own = weights.clone();
            own[left] = 0.0;
            let mut gram = rows.gram(Some(&own));
            (1..5).for_each(|d| gram.data[d * 5 + d] += 0.7);
            let mut right = vec![0.0; 5];
            for i in 0..rows.rows {
                right
                    .iter_mut()
                    .zip(rows.row(i))
                    .for_each(|(r, v)| *r += own[i] * target(good[i]) * v);
            }
            let refitted = dot(rows.row(left), &Cholesky::new(&gram).unwrap().solve(&right));
            assert!(
                (found[left] - refitted).abs() < 1e-12,
                "{left}: {} and {refitted}",
                found[left]
            );
        }
    }
}

#[test]
fn the_order_of_calibration_items_does_not_matter() {
    let mut simulation = Simulation::new(11);
    let (calibration, good, test, _) = simulation.scores(40, 15, 6);
    let found = model_selection(&calibration, &good, &test, 0.3, Pruning::Hete, 4).unwrap();
    let turned: Vec<Vec<f64>> = calibration
        .iter()
        .map(|s| s.iter().rev().copied().collect())
        .collect();
    let good: Vec<bool> = good.iter().rev().copied().collect();
    assert_eq!(
        model_selection(&turned, &good, &test, 0.3, Pruning::Hete, 4).unwrap(),
        found
    );
    assert!(found.auxiliary.iter().all(|r| *r >= 1));
}

#[test]
fn randomised_p_values_lie_between_their_bounds() {
    let (calibration, good, test) = (
        [0.3, 0.5, 0.5, 0.9],
        [false, false, true, false],
        [0.5, 1.0, 0.1],
    );
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let p = randomised_p_values(&calibration, &good, &test, &mut rng);
    // One failure above 0.5 and one equal to it; none above 1.0; all three above 0.1.
    for (p, (low, high)) in p.iter().zip([(0.2, 0.6), (0.0, 0.2), (0.6, 0.8)]) {
        assert!((low..=high).contains(p), "{p}");
    }
}

/// Twenty uniform features; the outcome depends on four of them, not linearly.
struct Simulation {
    rng: ChaCha8Rng,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    fn normal(&mut self) -> f64 {
        let (u, v): (f64, f64) = (1.0 - self.rng.random::<f64>(), self.rng.random());
        (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()
    }

    fn item(&mut self) -> (Vec<f64>, f64) {
        let x: Vec<f64> = (0..20).map(|_| self.rng.random_range(-1.0..1.0)).collect();
        let mean = 2.0 * (x[0] * x[1] + x[2] * x[2] + (x[3] - 1.0).exp() - 1.0);
        let y = mean + 0.75 * self.normal();
        (x, y)
    }

    /// Scores of random linear models over a few functions of the features, for calibration and
    /// test items, with what is good in each.
    fn scores(
        &mut self,
        n: usize,
        m: usize,
        models: usize,
    ) -> (Vec<Vec<f64>>, Vec<bool>, Vec<Vec<f64>>, Vec<bool>) {
        let items: Vec<(Vec<f64>, f64)> = (0..n + m).map(|_| self.item()).collect();
        let shapes = |x: &[f64]| [x[0] * x[1], x[2] * x[2], x[3], x[4], x[5], x[6]];
        let weights: Vec<Vec<f64>> = (0..models)
            .map(|_| (0..6).map(|_| self.normal()).collect())
            .collect();
        let score =
            |w: &Vec<f64>| -> Vec<f64> { items.iter().map(|(x, _)| dot(w, &shapes(x))).collect() };
        let (mut calibration, mut test) = (Vec::new(), Vec::new());
        for w in &weights {
            let mut all = score(w);
            test.push(all.split_off(n));
            calibration.push(all);
        }
        let good: Vec<bool> = items.iter().map(|(_, y)| *y > 0.0).collect();
        (calibration, good[..n].to_vec(), test, good[n..].to_vec())
    }
}

/// Share of wrong ones among the selected, and share of good ones that were.
fn outcome(selected: &[usize], good: &[bool]) -> (f64, f64) {
    let right = selected.iter().filter(|j| good[**j]).count() as f64;
    let all = good.iter().filter(|g| **g).count().max(1) as f64;
    (
        (selected.len() as f64 - right) / selected.len().max(1) as f64,
        right / all,
    )
}

fn summary(values: &[(f64, f64)]) -> (f64, f64, f64) {
    let n = values.len() as f64;
    let (fdr, power) = values
        .iter()
        .fold((0.0, 0.0), |(a, b), v| (a + v.0 / n, b + v.1 / n));
    let error = (values.iter().map(|v| (v.0 - fdr).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt();
    (fdr, power, error)
}

/// The model with most rejections.
fn best(calibration: &[Vec<f64>], good: &[bool], test: &[Vec<f64>], q: f64) -> usize {
    let rejections = |k: &usize| {
        conformal_selection(&calibration[*k], good, &test[*k], q)
            .unwrap()
            .selected
            .len()
    };
    (0..calibration.len())
        .max_by_key(|k| (rejections(k), std::cmp::Reverse(*k)))
        .unwrap()
}

/// Scores of all rows by a ridge regression on the first ones.
fn trained(rows: &Matrix, known: &[bool], weights: &[f64], penalty: f64) -> Vec<f64> {
    let d = rows.columns;
    let (mut gram, mut right) = (Matrix::zeros(d, d), vec![0.0; d]);
    for (i, (good, weight)) in known.iter().zip(weights).enumerate() {
        let row = rows.row(i);
        for a in 0..d {
            right[a] += weight * target(*good) * row[a];
            (0..d).for_each(|b| gram.data[a * d + b] += weight * row[a] * row[b]);
        }
    }
    (1..d).for_each(|a| gram.data[a * d + a] += penalty);
    let model = Cholesky::new(&gram).unwrap().solve(&right);
    (0..rows.rows).map(|i| dot(rows.row(i), &model)).collect()
}

const REPETITIONS: usize = 1000;
const Q: f64 = 0.3;

#[test]
fn a_chosen_model_keeps_the_level_where_the_naive_choice_does_not() {
    let mut simulation = Simulation::new(2024);
    let (mut naive, mut split, mut homo, mut hete) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for seed in 0..REPETITIONS as u64 {
        let (calibration, good, test, truth) = simulation.scores(100, 50, 30);
        let k = best(&calibration, &good, &test, Q);
        naive.push(outcome(
            &conformal_selection(&calibration[k], &good, &test[k], Q)
                .unwrap()
                .selected,
            &truth,
        ));
        let part = |from: usize, to: usize| -> Vec<Vec<f64>> {
            calibration.iter().map(|s| s[from..to].to_vec()).collect()
        };
        // One half chooses the model, by selecting from one part of it with the other; the test
        // items have no say.
        let k = best(&part(0, 25), &good[..25], &part(25, 50), Q);
        let halves = ((), part(50, 100));
        split.push(outcome(
            &conformal_selection(&halves.1[k], &good[50..], &test[k], Q)
                .unwrap()
                .selected,
            &truth,
        ));
        let chosen = |pruning| {
            model_selection(&calibration, &good, &test, Q, pruning, seed)
                .unwrap()
                .selected
        };
        homo.push(outcome(&chosen(Pruning::Homo), &truth));
        hete.push(outcome(&chosen(Pruning::Hete), &truth));
    }
    let [naive, split, homo, hete] = [naive, split, homo, hete].map(|v| summary(&v));
    eprintln!(
        "FDR, power, standard error at {Q}: naive {naive:.3?}, split {split:.3?}, homo {homo:.3?}, hete {hete:.3?}"
    );
    assert!(naive.0 > Q + 3.0 * naive.2, "naive {naive:?}");
    assert!(
        homo.0 <= Q && hete.0 <= Q + 2.0 * hete.2,
        "{homo:?} {hete:?}"
    );
    assert!(homo.1 > split.1, "power {} and {}", homo.1, split.1);
}

#[test]
fn training_on_the_calibration_items_keeps_the_level_and_beats_a_split() {
    let mut simulation = Simulation::new(7);
    let learners: Vec<Ridge> = [0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
        .map(|penalty| Ridge {
            penalty,
            balance: true,
        })
        .to_vec();
    let (mut half, mut fitted, mut chosen, mut naive) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for seed in 0..REPETITIONS as u64 {
        let items: Vec<(Vec<f64>, f64)> = (0..120).map(|_| simulation.item()).collect();
        let features: Vec<Vec<f64>> = items
            .iter()
            .map(|(x, _)| {
                vec![
                    x[0] * x[1],
                    x[2] * x[2],
                    x[3],
                    x[4],
                    x[5],
                    x[6],
                    x[0] * x[2],
                    x[1] * x[3],
                ]
            })
            .collect();
        let good: Vec<bool> = items.iter().map(|(_, y)| *y > 0.0).collect();
        let (calibration, test) = features.split_at(80);
        let (known, truth) = good.split_at(80);
        fitted.push(outcome(
            &full(calibration, known, test, &Ridge::default(), Q)
                .unwrap()
                .selected,
            truth,
        ));
        let found =
            full_model_selection(calibration, known, test, &learners, Q, Pruning::Homo, seed)
                .unwrap();
        chosen.push(outcome(&found.selected, truth));
        let rows = standardised(&features);
        // Half of the labelled items train, the other half calibrates.
        let scores = trained(&rows, &known[..40], &weights(&known[..40], true), 1.0);
        half.push(outcome(
            &conformal_selection(&scores[40..80], &known[40..], &scores[80..], Q)
                .unwrap()
                .selected,
            truth,
        ));
        // The model is trained on all labelled items and calibrated on the same ones.
        let scores = trained(&rows, known, &[1.0; 80], 0.3);
        naive.push(outcome(
            &conformal_selection(&scores[..80], known, &scores[80..], Q)
                .unwrap()
                .selected,
            truth,
        ));
    }
    let [half, fitted, chosen, naive] = [half, fitted, chosen, naive].map(|v| summary(&v));
    eprintln!(
        "FDR, power, standard error at {Q}: split {half:.3?}, full {fitted:.3?}, full-msel {chosen:.3?}, naive {naive:.3?}"
    );
    assert!(
        fitted.0 <= Q + 2.0 * fitted.2 && chosen.0 <= Q + 2.0 * chosen.2,
        "{fitted:?} {chosen:?}"
    );
    assert!(naive.0 > Q + 3.0 * naive.2, "naive {naive:?}");
    assert!(fitted.1 > half.1, "power {} and {}", fitted.1, half.1);
}

#[test]
fn when_nothing_is_good_something_is_rarely_selected() {
    let mut simulation = Simulation::new(99);
    let mut any = 0;
    for seed in 0..REPETITIONS as u64 {
        let (calibration, _, test, _) = simulation.scores(60, 20, 8);
        any += usize::from(
            !model_selection(&calibration, &[false; 60], &test, Q, Pruning::Homo, seed)
                .unwrap()
                .selected
                .is_empty(),
        );
    }
    let share = any as f64 / REPETITIONS as f64;
    assert!(
        share <= Q + 3.0 * (Q * (1.0 - Q) / REPETITIONS as f64).sqrt(),
        "{share}"
    );
}

#[test]
fn input_that_does_not_fit_is_named() {
    let message = |r: Result<Selection, SelectError>| r.unwrap_err().to_string();
    assert!(message(conformal_selection(&[0.1], &[true], &[0.2], 1.0)).contains("level 1"));
    assert!(
        message(conformal_selection(
            &[0.1, f64::NAN],
            &[true, false],
            &[0.2],
            0.1
        ))
        .contains("value 1")
    );
    assert!(
        message(conformal_selection(&[0.1], &[true, false], &[0.2], 0.1))
            .contains("1 values, but 2")
    );
    assert!(message(conformal_selection(&[], &[], &[0.2], 0.1)).contains("calibration items"));
    assert!(
        message(full(
            &[vec![1.0], vec![1.0, 2.0]],
            &[true, false],
            &[vec![0.0]],
            &Ridge::default(),
            0.2
        ))
        .contains("item 1")
    );
}

/// Every leave-one-out by a refit, in NumPy and scikit-learn; `scripts/golden/optcs.py` wrote them.
#[test]
fn trained_scores_and_the_version_for_each_item_agree_with_refits() {
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("../../../../fixtures/measure/optcs.json")).unwrap();
    let size = |key: &str| golden[key].as_u64().unwrap() as usize;
    let (n, m, width) = (size("calibration"), size("test"), size("width"));
    let value = |k: usize| (0.9 * k as f64 + 0.01 * (k * k) as f64).sin();
    let rows: Vec<Vec<f64>> = (0..n + m)
        .map(|i| (0..width).map(|c| value(i * width + c)).collect())
        .collect();
    let good: Vec<bool> = rows.iter().map(|x| x[0] * x[1] + x[2] > 0.1).collect();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 4);
    for case in cases {
        let penalty = case["penalty"].as_f64().unwrap();
        let learner: Box<dyn Learner> = match case["learner"].as_str().unwrap() {
            "ridge" => Box::new(Ridge {
                penalty,
                ..Ridge::default()
            }),
            _ => Box::new(Kernel {
                penalty,
                ..Kernel::default()
            }),
        };
        let numbers = |value: &serde_json::Value| -> Vec<f64> {
            value
                .as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_f64().unwrap())
                .collect()
        };
        let labels: Vec<bool> = good[..n]
            .iter()
            .copied()
            .chain((0..m).map(|_| false))
            .collect();
        let found = learner.leave_one_out(&rows, &labels).unwrap();
        for (ours, theirs) in found.iter().zip(numbers(&case["leave_one_out"])) {
            assert!(
                (ours - theirs).abs() < 1e-9,
                "{}: {ours} and {theirs}",
                case["learner"]
            );
        }
        let q = golden["q"].as_f64().unwrap();
        let found = full_per_item(
            &rows[..n],
            &good[..n],
            &rows[n..],
            &learner,
            q,
            Pruning::Dtm,
            0,
        )
        .unwrap();
        let expected = &case["per_item"];
        close(&found.p_values, &numbers(&expected["p_values"]));
        let whole = |list: &[usize]| list.iter().map(|v| *v as f64).collect::<Vec<f64>>();
        close(&whole(&found.auxiliary), &numbers(&expected["auxiliary"]));
        close(&whole(&found.candidates), &numbers(&expected["candidates"]));
        close(&whole(&found.selected), &numbers(&expected["selected_dtm"]));
    }
}

#[test]
fn a_model_for_each_item_keeps_the_level() {
    let mut simulation = Simulation::new(11);
    let mut found = Vec::new();
    for seed in 0..200 {
        let items: Vec<(Vec<f64>, f64)> = (0..80).map(|_| simulation.item()).collect();
        let features: Vec<Vec<f64>> = items
            .iter()
            .map(|(x, _)| vec![x[0] * x[1], x[2] * x[2], x[3], x[4]])
            .collect();
        let good: Vec<bool> = items.iter().map(|(_, y)| *y > 0.0).collect();
        let (ridge, pruning) = (Ridge::default(), Pruning::Homo);
        let chosen = full_per_item(
            &features[..60],
            &good[..60],
            &features[60..],
            &ridge,
            Q,
            pruning,
            seed,
        );
        found.push(outcome(&chosen.unwrap().selected, &good[60..]));
    }
    let (fdr, power, error) = summary(&found);
    eprintln!("a model for each item: FDR {fdr:.3}, power {power:.3}, standard error {error:.3}");
    assert!(
        fdr <= Q + 2.0 * error && power > 0.3,
        "{fdr} {power} {error}"
    );
}
