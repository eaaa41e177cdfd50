use super::*;

fn close(a: f64, b: f64) {
    assert!((a - b).abs() < 5e-6, "{a} and {b}");
}

/// Every `k`-subset's best score, averaged.
fn brute_force(scores: &[f64], k: usize) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for subset in 0u32..1 << scores.len() {
        if subset.count_ones() as usize == k {
            let best = scores
                .iter()
                .enumerate()
                .filter(|(i, _)| subset >> i & 1 == 1)
                .map(|(_, e)| *e)
                .fold(0.0, f64::max);
            sum += best;
            count += 1.0;
        }
    }
    sum / count
}

#[test]
fn eff_at_k_is_the_mean_over_all_subsets() {
    let weights = eff_at_k_weights(4, 2);
    assert!(
        weights
            .iter()
            .zip([1.0 / 6.0, 1.0 / 3.0, 0.5])
            .all(|(a, b)| (a - b).abs() < 1e-12)
    );
    close(eff_at_k(&[0.2, 0.8, 0.5, 0.0], 2).unwrap(), 0.6);
    close(eff_at_k(&[0.9, 0.1, 0.4, 0.4, 0.7], 3).unwrap(), 0.79);
    let scores = [0.3, 1.2, 0.0, 0.7, 0.7, 0.1, 0.95];
    for k in 1..=7 {
        assert!(
            (eff_at_k(&scores, k).unwrap() - brute_force(&scores, k)).abs() < 1e-12,
            "{k}"
        );
    }
    assert_eq!((eff_at_k(&scores, 0), eff_at_k(&scores, 8)), (None, None));
}

#[test]
fn right_or_wrong_gives_pass_at_k() {
    close(pass_at_k(5, 2, 1).unwrap(), 0.4);
    close(pass_at_k(5, 2, 2).unwrap(), 0.7);
    close(pass_at_k(200, 200, 100).unwrap(), 1.0);
}

#[test]
fn weights_add_up_to_one_without_overflow() {
    for (n, k) in [(1, 1), (7, 7), (100, 3), (2000, 100), (2000, 1999)] {
        let weights = eff_at_k_weights(n, k);
        assert!(
            (weights.iter().sum::<f64>() - 1.0).abs() < 1e-9 && weights.is_sorted(),
            "{n} {k}"
        );
    }
}

#[test]
fn one_slow_run_does_not_move_the_estimate() {
    close(
        hodges_lehmann(&[1.0, 1.1, 0.9, 1.0, 5.0, 1.05]).unwrap(),
        1.05,
    );
    assert_eq!(hodges_lehmann(&[]), None);
}

#[test]
fn levels_are_weighed_and_censored_times_do_not_matter() {
    let references = References {
        slowest: vec![0.001, 0.2, 0.5, 1.0],
        hardness: vec![0.0, 3.0, 3.0, 4.0],
    };
    close(references.limit(2.0), 2.0);
    close(references.score(&[0.001, 0.4, 0.9, 1.6], 2.0), 0.64667);
    for censored in [
        &[0.001, 0.4, 0.9][..],
        &[0.001, 0.4, 0.9, 2.0],
        &[0.001, 0.4, 0.9, 1e9],
    ] {
        close(references.score(censored, 2.0), 0.48667);
    }
    assert_eq!(references.score(&references.slowest, 2.0), 1.0);
    assert!(references.score(&[0.0; 4], 2.0) > 1.0);
}

/// The estimator that averages has the same mean and less variance than the one that draws.
#[test]
fn averaging_over_subsets_has_less_variance() {
    use rand::{Rng, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(4);
    let (n, k, trials) = (20, 5, 4000);
    let (mut drawn, mut averaged) = (Vec::new(), Vec::new());
    for _ in 0..trials {
        let scores: Vec<f64> = (0..n)
            .map(|_| {
                if rng.random_bool(0.5) {
                    rng.random::<f64>()
                } else {
                    0.0
                }
            })
            .collect();
        drawn.push(scores[..k].iter().copied().fold(0.0, f64::max));
        averaged.push(eff_at_k(&scores, k).unwrap());
    }
    let moments = |v: &[f64]| {
        let mean = v.iter().sum::<f64>() / v.len() as f64;
        (
            mean,
            v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / v.len() as f64,
        )
    };
    let ((mean_a, variance_a), (mean_b, variance_b)) = (moments(&drawn), moments(&averaged));
    assert!((mean_a - mean_b).abs() < 4.0 * (variance_a / f64::from(trials)).sqrt());
    assert!(
        variance_b <= variance_a * k as f64 / n as f64 * 1.1,
        "{variance_b} {variance_a}"
    );
}

#[test]
fn files_that_are_something_else_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.json");
    std::fs::write(&path, r#"{"1": ["b"], "0": ["a", "c"]}"#).unwrap();
    assert_eq!(
        solutions(&path, 3).unwrap(),
        [vec!["a".to_owned(), "c".into()], vec!["b".into()], vec![]]
    );
    std::fs::write(&path, r#"[["a"]]"#).unwrap();
    assert_eq!(solutions(&path, 2).unwrap(), [vec!["a".to_owned()], vec![]]);
    std::fs::write(&path, "3").unwrap();
    assert!(
        solutions(&path, 3)
            .unwrap_err()
            .to_string()
            .contains("s.json")
    );
    std::fs::write(&path, "task_id,prompt\n1,2\n").unwrap();
    assert!(
        problems(&path)
            .unwrap_err()
            .to_string()
            .contains("input_generator")
    );
}
