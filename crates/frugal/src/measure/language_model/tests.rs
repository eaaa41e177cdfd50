//! Parts of a model as the harness sees it.

use super::*;

#[test]
fn batches_keep_their_budget_and_every_item() {
    let items = [9, 3, 3, 3, 1, 1];
    let parts = budgeted(&items, 6, |n| *n);
    assert_eq!(parts, [&[9][..], &[3, 3], &[3, 1, 1]]);
    assert!(budgeted(&[] as &[usize], 6, |n| *n).is_empty());
}

/// Numbers of `lm_eval.utils.get_rolling_token_windows` with `make_disjoint_window`, without
/// the targets in the context.
#[test]
fn windows_are_those_of_lm_evaluation_harness() {
    let found: Vec<(Vec<u32>, Vec<u32>)> = windows(&(1..=10).collect::<Vec<_>>(), 0, 4)
        .into_iter()
        .map(|w| (w.input, w.targets))
        .collect();
    let expected = [
        ([0, 1, 2, 3], vec![1, 2, 3, 4]),
        ([4, 5, 6, 7], vec![5, 6, 7, 8]),
        ([6, 7, 8, 9], vec![9, 10]),
    ];
    assert_eq!(
        found,
        expected.map(|(input, targets)| (input.to_vec(), targets))
    );
    assert!(windows(&[], 0, 4).is_empty());
}

#[test]
fn probabilities_of_a_row_are_those_of_a_softmax() {
    let logits = [0.0, 2f32.ln(), 5f32.ln()];
    let row = Row::new(&logits).unwrap();
    assert!(Row::new(&[0.0, f32::NAN]).is_err());
    assert_eq!(row.likeliest, 2);
    assert!((row.log_probability(&logits, 1) - 0.25f64.ln()).abs() < 1e-6);
    assert_eq!(row.log_probability(&logits, 9), f64::NEG_INFINITY);
}
