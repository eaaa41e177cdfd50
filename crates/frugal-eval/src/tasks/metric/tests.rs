//! Scores of the reference.

use serde_json::Value;

use super::*;

/// Scores, aggregates and standard errors of lm-evaluation-harness and scikit-learn;
/// `scripts/golden/eval.py` wrote them.
#[test]
fn scores_agree_with_the_reference() {
    let golden: Value =
        serde_json::from_str(include_str!("../../../../../fixtures/measure/eval.json")).unwrap();
    let close = |ours: f64, reference: &Value, what: &str| {
        let reference = reference.as_f64().unwrap();
        assert!(
            (ours - reference).abs() <= 1e-12 * reference.abs().max(1.0),
            "{what}: {ours} but the reference has {reference}"
        );
    };
    let cases = golden["exact_match"].as_array().unwrap();
    assert!(cases.len() >= 8);
    for case in cases {
        let metric: Metric = serde_json::from_value(case["metric"].clone()).unwrap();
        let Score::Value(ours) = metric.of_text(
            case["answer"].as_str().unwrap(),
            case["target"].as_str().unwrap(),
        ) else {
            panic!()
        };
        close(ours, &case["score"], &case.to_string());
    }
    for case in golden["choices"].as_array().unwrap() {
        let log_likelihoods: Vec<f64> =
            serde_json::from_value(case["log_likelihoods"].clone()).unwrap();
        let texts: Vec<String> = serde_json::from_value(case["texts"].clone()).unwrap();
        let answer = Choices {
            log_likelihoods: &log_likelihoods,
            greedy: &[],
            unconditional: &[],
            texts: &texts,
            golds: &[case["gold"].as_u64().unwrap() as usize],
        };
        for metric in [Metric::Acc, Metric::AccNorm, Metric::AccBytes] {
            let Score::Value(ours) = metric.of_choices(answer) else {
                panic!()
            };
            close(ours, &case[metric.name().as_ref()], &case.to_string());
        }
    }
    for case in golden["means"].as_array().unwrap() {
        let scores: Vec<Score> = case["values"]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| Score::Value(v.as_f64().unwrap()))
            .collect();
        let (mean, error) = Metric::Acc.aggregate(&scores, None, 0).unwrap();
        close(mean, &case["mean"], "mean");
        close(error.unwrap(), &case["stderr"], "standard error");
    }
    for case in golden["texts"].as_array().unwrap() {
        let texts: Vec<&str> = case["texts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| t.as_str().unwrap())
            .collect();
        let lls: Vec<f64> = serde_json::from_value(case["log_likelihoods"].clone()).unwrap();
        for metric in [
            Metric::WordPerplexity,
            Metric::BytePerplexity,
            Metric::BitsPerByte,
        ] {
            let scores: Vec<Score> = texts
                .iter()
                .zip(&lls)
                .map(|(t, ll)| metric.of_likelihood(*ll, t, 1))
                .collect();
            close(
                metric.aggregate(&scores, None, 0).unwrap().0,
                &case[metric.name().as_ref()],
                &metric.name(),
            );
        }
    }
    let cases = golden["pass_at_k"].as_array().unwrap();
    assert!(cases.len() >= 8);
    for case in cases {
        let [n, c, k] = ["n", "c", "k"].map(|key| case[key].as_u64().unwrap() as usize);
        let Score::Value(ours) = (Metric::Pass { k }).of_programs(n, c) else {
            panic!()
        };
        close(ours, &case["score"], &case.to_string());
    }
    let mcc = &golden["mcc"];
    let pairs: Vec<(usize, usize)> = serde_json::from_value(mcc["pairs"].clone()).unwrap();
    let scores: Vec<Score> = pairs.iter().map(|(g, p)| Score::Classes(*g, *p)).collect();
    let (value, error) = Metric::Mcc.aggregate(&scores, None, 7).unwrap();
    close(value, &mcc["value"], "mcc");
    // Two bootstraps with different draws.
    let reference = mcc["stderr"].as_f64().unwrap();
    assert!(
        (error.unwrap() / reference - 1.0).abs() < 0.1,
        "{error:?} and {reference}"
    );
}

#[test]
fn the_error_of_a_ratio_is_that_of_a_mean_when_all_weigh_the_same() {
    let values = [-2.0, -3.5, -1.0, -2.5];
    let (rate, error) = ratio(&values.map(|v| (v, 1.0))).unwrap();
    assert!((rate + 2.25).abs() < 1e-12);
    assert!((error.unwrap() - mean_error(&values).unwrap()).abs() < 1e-12);
    assert_eq!(ratio(&[(-1.0, 0.0)]), None);
    assert_eq!(ratio(&[(-1.0, 2.0)]), Some((-0.5, None)));
}
