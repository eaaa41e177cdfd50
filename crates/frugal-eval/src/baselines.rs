//! What a classifier has to beat without having learned anything: the commonest class, and chance.

use std::collections::BTreeMap;

/// Name of the answer that is always the commonest class of the training data.
pub const MAJORITY: &str = "majority class";
/// Name of answers drawn evenly from the classes.
pub const CHANCE: &str = "chance";

/// Metrics of [`MAJORITY`] and [`CHANCE`] on examples of which `gold[class]` belong to each class,
/// with `train[class]` examples in training. Without training data the commonest class is that of
/// the examples themselves. Nothing of fewer than two classes or without examples.
pub fn class_baselines(train: &[usize], gold: &[usize]) -> BTreeMap<String, BTreeMap<String, f64>> {
    let (classes, examples) = (gold.len(), gold.iter().sum::<usize>());
    if classes < 2 || examples == 0 || train.len() != classes {
        return BTreeMap::new();
    }
    let counts = if train.iter().sum::<usize>() > 0 {
        train
    } else {
        gold
    };
    // The first of several that are equally common.
    let majority = (0..classes)
        .rev()
        .max_by_key(|class| counts[*class])
        .unwrap_or(0);
    let accuracy = gold[majority] as f64 / examples as f64;
    let named = |pairs: &[(&str, f64)]| pairs.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect();
    // Its recall is 1 and its precision the accuracy; all other classes have an F1 of 0.
    let f1 = 2.0 * accuracy / (1.0 + accuracy);
    let majority = named(&[
        ("accuracy", accuracy),
        ("macro_f1", f1 / classes as f64),
        ("matthews_correlation", 0.0),
    ]);
    let chance = named(&[
        ("accuracy", 1.0 / classes as f64),
        ("loss", (classes as f64).ln()),
        ("matthews_correlation", 0.0),
    ]);
    [(MAJORITY.to_owned(), majority), (CHANCE.to_owned(), chance)].into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commonest_class_of_training_is_measured_where_it_is_asked() {
        // Values of scikit-learn 1.9.1: `DummyClassifier(strategy="most_frequent")` fitted on 10 and
        // 90, scored on 13 and 87 examples by `accuracy_score`, `f1_score(average="macro")` and
        // `matthews_corrcoef`.
        let found = class_baselines(&[10, 90], &[13, 87]);
        let majority = &found[MAJORITY];
        assert!((majority["accuracy"] - 0.87).abs() < 1e-12);
        assert!((majority["macro_f1"] - 0.465_240_641_711_23).abs() < 1e-12);
        assert_eq!(majority["matthews_correlation"], 0.0);
        assert_eq!(found[CHANCE]["accuracy"], 0.5);
        assert!((found[CHANCE]["loss"] - std::f64::consts::LN_2).abs() < 1e-15);
        // The commonest class of training need not be that of the test.
        assert_eq!(
            class_baselines(&[9, 1], &[1, 3])[MAJORITY]["accuracy"],
            0.25
        );
        assert_eq!(
            class_baselines(&[0, 0], &[1, 3])[MAJORITY]["accuracy"],
            0.75
        );
        assert!(class_baselines(&[3], &[3]).is_empty());
        assert!(class_baselines(&[1, 2], &[0, 0]).is_empty());
    }
}
