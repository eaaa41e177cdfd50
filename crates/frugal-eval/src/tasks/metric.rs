//! Scores of samples and what they come to.

use std::borrow::Cow;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use regex::Regex;
use serde::{Deserialize, Serialize};

use super::task::Kind;
use frugal_core::metrics::ClassificationReport;

/// How answers are scored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
pub enum Metric {
    /// Whether the likeliest choice is right.
    Acc,
    /// The same with log-likelihoods divided by the choice's length in characters.
    AccNorm,
    /// The same with log-likelihoods divided by the choice's length in bytes.
    AccBytes,
    /// Matthews correlation of chosen and right choice.
    Mcc,
    /// Whether the answer is the target.
    ExactMatch {
        /// Regard capital letters as small ones.
        #[serde(default)]
        ignore_case: bool,
        /// Leave punctuation (ASCII) out.
        #[serde(default)]
        ignore_punctuation: bool,
        /// Leave out what these expressions match, one after another.
        #[serde(default)]
        regexes_to_ignore: Vec<String>,
    },
    /// The chance that of `k` answers at least one, with the target behind it, is a Python program
    /// that runs without an error: `1 - C(n - c, k) / C(n, k)` where `c` of `n` answers do, the
    /// unbiased estimator of Chen et al., 2021, arXiv 2107.03374.
    #[serde(rename = "pass@k", alias = "pass@1")]
    Pass {
        /// Answers of which one must do.
        #[serde(default = "one")]
        k: usize,
    },
    /// Perplexity by white-space separated word.
    WordPerplexity,
    /// Perplexity by byte.
    BytePerplexity,
    /// Perplexity by token; depends on the tokenizer.
    TokenPerplexity,
    /// Bits that each byte takes.
    BitsPerByte,
}

fn one() -> usize {
    1
}

/// What one sample adds to a metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Score {
    /// A value, of which the mean counts.
    Value(f64),
    /// Right and chosen class.
    Classes(usize, usize),
    /// A log-likelihood in nats and the units that it is of.
    Ratio(f64, f64),
}

/// Answers of a model to a multiple-choice question.
#[derive(Clone, Copy, Debug)]
pub struct Choices<'a> {
    /// Log-likelihood of each choice, in nats.
    pub log_likelihoods: &'a [f64],
    /// The choices.
    pub texts: &'a [String],
    /// Number of the right one.
    pub gold: usize,
}

impl Metric {
    /// Name in results.
    pub fn name(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Acc => "acc",
            Self::AccNorm => "acc_norm",
            Self::AccBytes => "acc_bytes",
            Self::Mcc => "mcc",
            Self::ExactMatch { .. } => "exact_match",
            Self::Pass { k } => return Cow::Owned(format!("pass@{k}")),
            Self::WordPerplexity => "word_perplexity",
            Self::BytePerplexity => "byte_perplexity",
            Self::TokenPerplexity => "token_perplexity",
            Self::BitsPerByte => "bits_per_byte",
        })
    }

    /// Of how many answers one must do, where the metric runs them as programs.
    pub fn attempts(&self) -> Option<usize> {
        if let Self::Pass { k } = self {
            Some(*k)
        } else {
            None
        }
    }

    /// Whether more is better.
    pub fn higher_is_better(&self) -> bool {
        self.kind() != Kind::LoglikelihoodRolling
    }

    /// The tasks that it measures.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Acc | Self::AccNorm | Self::AccBytes | Self::Mcc => Kind::MultipleChoice,
            Self::ExactMatch { .. } | Self::Pass { .. } => Kind::GenerateUntil,
            Self::WordPerplexity
            | Self::BytePerplexity
            | Self::TokenPerplexity
            | Self::BitsPerByte => Kind::LoglikelihoodRolling,
        }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        match self {
            Self::ExactMatch {
                regexes_to_ignore, ..
            } => regexes_to_ignore.iter().try_for_each(|r| {
                Regex::new(r)
                    .map(|_| ())
                    .map_err(|e| format!("`regexes_to_ignore` of `{}`: {e}", self.name()))
            }),
            _ => Ok(()),
        }
    }

    /// Score of a multiple-choice answer; the first among equally likely choices is chosen.
    pub fn of_choices(&self, answer: Choices<'_>) -> Score {
        let chosen = |length: fn(&str) -> f64| {
            let scaled = answer
                .log_likelihoods
                .iter()
                .zip(answer.texts)
                .map(|(ll, text)| ll / length(text));
            scaled
                .enumerate()
                .fold((0, f64::NEG_INFINITY), |best, (i, ll)| {
                    if ll > best.1 { (i, ll) } else { best }
                })
                .0
        };
        let right = |chosen: usize| Score::Value(f64::from(u8::from(chosen == answer.gold)));
        match self {
            Self::AccNorm => right(chosen(|text| text.chars().count() as f64)),
            Self::AccBytes => right(chosen(|text| text.len() as f64)),
            Self::Mcc => Score::Classes(answer.gold, chosen(|_| 1.0)),
            _ => right(chosen(|_| 1.0)),
        }
    }

    /// Score of a written answer.
    pub fn of_text(&self, answer: &str, target: &str) -> Score {
        let Self::ExactMatch {
            ignore_case,
            ignore_punctuation,
            regexes_to_ignore,
        } = self
        else {
            return Score::Value(0.0);
        };
        let plain = |text: &str| {
            let mut text = text.to_owned();
            for regex in regexes_to_ignore.iter().flat_map(|r| Regex::new(r)) {
                text = regex.replace_all(&text, "").into_owned();
            }
            if *ignore_case {
                text = text.to_lowercase();
            }
            if *ignore_punctuation {
                text.retain(|c| !c.is_ascii_punctuation());
            }
            text
        };
        Score::Value(f64::from(u8::from(plain(answer) == plain(target))))
    }

    /// Mean score of several written answers.
    pub fn of_texts(&self, answers: &[String], target: &str) -> Score {
        let scores = answers.iter().map(|answer| {
            if let Score::Value(v) = self.of_text(answer, target) {
                v
            } else {
                0.0
            }
        });
        Score::Value(scores.sum::<f64>() / answers.len().max(1) as f64)
    }

    /// Score of `n` programs of which `c` run without an error.
    pub fn of_programs(&self, n: usize, c: usize) -> Score {
        let k = self.attempts().unwrap_or(1);
        // The product form does not overflow; with fewer failures than k, one of any k succeeds.
        let none = if n - c < k {
            0.0
        } else {
            (n - c + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product()
        };
        Score::Value(1.0 - none)
    }

    /// Score of a text with its log-likelihood in nats and its number of tokens.
    pub fn of_likelihood(&self, log_likelihood: f64, text: &str, tokens: usize) -> Score {
        let units = match self {
            Self::WordPerplexity => words(text),
            Self::TokenPerplexity => tokens,
            _ => text.len(),
        };
        Score::Ratio(log_likelihood, units as f64)
    }

    /// What the scores of all samples come to, with its standard error where there is one.
    pub fn aggregate(&self, scores: &[Score], seed: u64) -> Option<(f64, Option<f64>)> {
        match scores.first()? {
            Score::Value(_) => {
                let values: Vec<f64> = scores
                    .iter()
                    .filter_map(|s| {
                        if let Score::Value(v) = s {
                            Some(*v)
                        } else {
                            None
                        }
                    })
                    .collect();
                Some((frugal_core::metrics::mean(&values)?, mean_error(&values)))
            }
            Score::Classes(..) => {
                let pairs: Vec<(usize, usize)> = scores
                    .iter()
                    .filter_map(|s| {
                        if let Score::Classes(g, p) = s {
                            Some((*g, *p))
                        } else {
                            None
                        }
                    })
                    .collect();
                Some((correlation(&pairs)?, bootstrap_error(&pairs, seed)))
            }
            Score::Ratio(..) => {
                let pairs: Vec<(f64, f64)> = scores
                    .iter()
                    .filter_map(|s| {
                        if let Score::Ratio(a, b) = s {
                            Some((*a, *b))
                        } else {
                            None
                        }
                    })
                    .collect();
                let (rate, error) = ratio(&pairs)?;
                Some(match self {
                    Self::BitsPerByte => (
                        -rate / std::f64::consts::LN_2,
                        error.map(|e| e / std::f64::consts::LN_2),
                    ),
                    _ => ((-rate).exp(), error.map(|e| e * (-rate).exp())),
                })
            }
        }
    }
}

/// As Python's `len(re.split(r"\s+", text))`: white space at either end counts one more.
fn words(text: &str) -> usize {
    let mut count = 1;
    let mut inside = false;
    for c in text.chars() {
        if c.is_whitespace() && !inside {
            count += 1;
        }
        inside = c.is_whitespace();
    }
    count
}

/// Standard error of a mean, from the sample's standard deviation; `None` of fewer than two values.
fn mean_error(values: &[f64]) -> Option<f64> {
    let n = values.len() as f64;
    let mean = frugal_core::metrics::mean(values)?;
    (values.len() > 1)
        .then(|| (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt())
}

fn correlation(pairs: &[(usize, usize)]) -> Option<f64> {
    let classes = pairs.iter().map(|(g, p)| g.max(p) + 1).max()?;
    let labels: Vec<String> = (0..classes).map(|i| i.to_string()).collect();
    let (gold, predicted): (Vec<usize>, Vec<usize>) = pairs.iter().copied().unzip();
    ClassificationReport::new(&gold, &predicted, &labels)
        .ok()
        .map(|r| r.matthews_correlation)
}

/// Draws with replacement, as often as this.
const RESAMPLES: usize = 1000;

fn bootstrap_error(pairs: &[(usize, usize)], seed: u64) -> Option<f64> {
    if pairs.len() < 2 {
        return None;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = || -> Option<f64> {
        let sample: Vec<(usize, usize)> = (0..pairs.len())
            .map(|_| pairs[rng.random_range(0..pairs.len())])
            .collect();
        correlation(&sample)
    };
    let values: Vec<f64> = (0..RESAMPLES).filter_map(|_| draw()).collect();
    // The spread of the resampled values is the error itself, not that of their mean.
    mean_error(&values).map(|e| e * (values.len() as f64).sqrt())
}

/// Sum of the first over sum of the second, with the standard error of that ratio by linearisation.
fn ratio(pairs: &[(f64, f64)]) -> Option<(f64, Option<f64>)> {
    let (above, below) = pairs
        .iter()
        .fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y));
    if below <= 0.0 {
        return None;
    }
    let (rate, n) = (above / below, pairs.len() as f64);
    let spread: f64 = pairs.iter().map(|(x, y)| (x - rate * y).powi(2)).sum();
    Some((
        rate,
        (pairs.len() > 1).then(|| (spread * n / (n - 1.0)).sqrt() / below),
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// Scores, aggregates and standard errors of lm-evaluation-harness and scikit-learn;
    /// `scripts/golden/eval.py` wrote them.
    #[test]
    fn scores_agree_with_the_reference() {
        let golden: Value =
            serde_json::from_str(include_str!("../../../../fixtures/measure/eval.json")).unwrap();
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
                texts: &texts,
                gold: case["gold"].as_u64().unwrap() as usize,
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
            let (mean, error) = Metric::Acc.aggregate(&scores, 0).unwrap();
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
                    metric.aggregate(&scores, 0).unwrap().0,
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
        let (value, error) = Metric::Mcc.aggregate(&scores, 7).unwrap();
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
}
