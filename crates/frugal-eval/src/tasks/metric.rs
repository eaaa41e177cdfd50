//! Scores of samples and what they come to.

use std::borrow::Cow;

use fancy_regex::Regex;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::kind::Kind;
use super::python;
use frugal_core::metrics::ClassificationReport;

/// How answers are scored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
pub enum Metric {
    /// Whether the likeliest choice is right; of a single text, whether it is what the model would
    /// write.
    Acc,
    /// The same with log-likelihoods divided by the choice's length in characters.
    AccNorm,
    /// The same with log-likelihoods divided by the choice's length in bytes.
    AccBytes,
    /// The same with the log-likelihood of the choice without what is given taken off.
    AccMutualInfo,
    /// Matthews correlation of chosen and right choice.
    Mcc,
    /// F1 of choosing the second of two choices.
    F1,
    /// Squared distance of the choices' probabilities from the right answer.
    BrierScore,
    /// Whether the answer is the target, or one of several; of choices, whether the right one is
    /// what the model would write.
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
        /// Leave digits out.
        #[serde(default, skip_serializing_if = "is_false")]
        ignore_numbers: bool,
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
    /// Perplexity of whole targets.
    Perplexity,
    /// What the task's `process_results` calls so.
    Function {
        /// The name there.
        metric: String,
        /// Whether more is better.
        #[serde(default = "yes")]
        higher_is_better: bool,
    },
}

/// What the scores of all samples come to, in place of the metric's own rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregation {
    /// The mean of those that are numbers.
    Nanmean,
    /// The middle one, of two the higher.
    Median,
    /// The mean of the F1 of so many classes.
    ClassF1(usize),
}

fn yes() -> bool {
    true
}

fn is_false(value: &bool) -> bool {
    !value
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
    /// Whether each is what the model would write.
    pub greedy: &'a [bool],
    /// Log-likelihood of each choice with nothing given, where that is asked for.
    pub unconditional: &'a [f64],
    /// The choices.
    pub texts: &'a [String],
    /// Numbers of the right ones.
    pub golds: &'a [usize],
}

/// The first among the likeliest.
pub(super) fn likeliest(log_likelihoods: &[f64]) -> usize {
    let best = |best: (usize, f64), (i, ll): (usize, f64)| if ll > best.1 { (i, ll) } else { best };
    let all = log_likelihoods.iter().copied().enumerate();
    all.fold((0, f64::NEG_INFINITY), best).0
}

impl Metric {
    /// Name in results.
    pub fn name(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Acc => "acc",
            Self::AccNorm => "acc_norm",
            Self::AccBytes => "acc_bytes",
            Self::AccMutualInfo => "acc_mutual_info",
            Self::Mcc => "mcc",
            Self::F1 => "f1",
            Self::BrierScore => "brier_score",
            Self::ExactMatch { .. } => "exact_match",
            Self::Pass { k } => return Cow::Owned(format!("pass@{k}")),
            Self::WordPerplexity => "word_perplexity",
            Self::BytePerplexity => "byte_perplexity",
            Self::TokenPerplexity => "token_perplexity",
            Self::BitsPerByte => "bits_per_byte",
            Self::Perplexity => "perplexity",
            Self::Function { metric, .. } => return Cow::Owned(metric.clone()),
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
        match self {
            Self::Function {
                higher_is_better, ..
            } => *higher_is_better,
            Self::BrierScore
            | Self::Perplexity
            | Self::WordPerplexity
            | Self::BytePerplexity
            | Self::TokenPerplexity
            | Self::BitsPerByte => false,
            _ => true,
        }
    }

    /// Whether it measures tasks of this kind.
    pub fn measures(&self, kind: Kind) -> bool {
        match self {
            Self::Acc => matches!(kind, Kind::MultipleChoice | Kind::Loglikelihood),
            Self::AccNorm
            | Self::AccBytes
            | Self::AccMutualInfo
            | Self::Mcc
            | Self::F1
            | Self::BrierScore => kind == Kind::MultipleChoice,
            Self::ExactMatch { .. } => {
                matches!(kind, Kind::MultipleChoice | Kind::GenerateUntil)
            }
            Self::Pass { .. } => kind == Kind::GenerateUntil,
            Self::Perplexity => kind == Kind::Loglikelihood,
            Self::WordPerplexity
            | Self::BytePerplexity
            | Self::TokenPerplexity
            | Self::BitsPerByte => kind == Kind::LoglikelihoodRolling,
            Self::Function { .. } => true,
        }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        match self {
            Self::ExactMatch {
                regexes_to_ignore, ..
            } => regexes_to_ignore.iter().try_for_each(|r| {
                python::regex(r)
                    .map(|_| ())
                    .map_err(|e| format!("`regexes_to_ignore` of `{}`: {e}", self.name()))
            }),
            _ => Ok(()),
        }
    }

    /// Score of a multiple-choice answer; the first among equally likely choices is chosen.
    pub fn of_choices(&self, answer: Choices<'_>) -> Score {
        let scaled = |length: fn(&str) -> f64| -> Vec<f64> {
            let all = answer.log_likelihoods.iter().zip(answer.texts);
            all.map(|(ll, text)| ll / length(text)).collect()
        };
        let truth = |holds: bool| Score::Value(f64::from(u8::from(holds)));
        let right = |scores: &[f64]| truth(answer.golds.contains(&likeliest(scores)));
        match self {
            Self::AccNorm => right(&scaled(|text| text.chars().count() as f64)),
            Self::AccBytes => right(&scaled(|text| text.len() as f64)),
            Self::AccMutualInfo => {
                let pairs = answer.log_likelihoods.iter().zip(answer.unconditional);
                right(
                    &pairs
                        .map(|(given, alone)| given - alone)
                        .collect::<Vec<_>>(),
                )
            }
            Self::Mcc | Self::F1 => {
                let gold = answer.golds.first().copied().unwrap_or_default();
                Score::Classes(gold, likeliest(answer.log_likelihoods))
            }
            Self::BrierScore => Score::Value(brier(answer)),
            Self::ExactMatch { .. } => {
                let greedy = |gold: &usize| answer.greedy.get(*gold).copied().unwrap_or(false);
                truth(answer.golds.iter().any(greedy))
            }
            _ => right(answer.log_likelihoods),
        }
    }

    /// Score of a written answer.
    pub fn of_text(&self, answer: &str, target: &str) -> Score {
        let Self::ExactMatch {
            ignore_case,
            ignore_punctuation,
            regexes_to_ignore,
            ignore_numbers,
        } = self
        else {
            return Score::Value(0.0);
        };
        let regexes: Vec<Regex> = regexes_to_ignore
            .iter()
            .flat_map(|r| python::regex(r))
            .collect();
        let plain = |text: &str| {
            let mut text = text.to_owned();
            for regex in &regexes {
                text = python::replace_all(regex, &text, "");
            }
            if *ignore_case {
                text = text.to_lowercase();
            }
            text.retain(|c| {
                !(*ignore_punctuation && c.is_ascii_punctuation()
                    || *ignore_numbers && c.is_ascii_digit())
            });
            text
        };
        Score::Value(f64::from(u8::from(plain(answer) == plain(target))))
    }

    /// Whether a written answer is one of those that are accepted.
    pub fn of_any(&self, answer: &str, accepted: &[String]) -> Score {
        let any = accepted
            .iter()
            .any(|target| self.of_text(answer, target) == Score::Value(1.0));
        Score::Value(f64::from(u8::from(any)))
    }

    /// Score of a target's log-likelihood, and whether the model would write it.
    pub fn of_target(&self, log_likelihood: f64, greedy: bool) -> Score {
        match self {
            Self::Perplexity => Score::Ratio(log_likelihood, 1.0),
            _ => Score::Value(f64::from(u8::from(greedy))),
        }
    }

    /// Mean score of several written answers.
    pub fn of_texts(&self, answers: &[String], accepted: &[String]) -> Score {
        let scores = answers.iter().map(|answer| {
            if let Score::Value(v) = self.of_any(answer, accepted) {
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
    pub fn aggregate(
        &self,
        scores: &[Score],
        aggregation: Option<Aggregation>,
        seed: u64,
    ) -> Option<(f64, Option<f64>)> {
        match scores.first()? {
            Score::Value(_) => {
                let mut values: Vec<f64> = scores
                    .iter()
                    .filter_map(|s| {
                        if let Score::Value(v) = s {
                            Some(*v)
                        } else {
                            None
                        }
                    })
                    .collect();
                match aggregation {
                    Some(Aggregation::Nanmean) => values.retain(|v| !v.is_nan()),
                    Some(Aggregation::Median) => {
                        values.sort_by(f64::total_cmp);
                        return values.get(values.len() / 2).map(|v| (*v, None));
                    }
                    _ => {}
                }
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
                let of: &dyn Fn(&[(usize, usize)]) -> Option<f64> = match (self, aggregation) {
                    (_, Some(Aggregation::ClassF1(classes))) => &move |pairs| {
                        let each = (0..classes).map(|class| class_f1(pairs, class));
                        Some(each.sum::<f64>() / classes as f64)
                    },
                    (Self::F1, _) => &|pairs| Some(class_f1(pairs, 1)),
                    _ => &correlation,
                };
                Some((of(&pairs)?, bootstrap_error(&pairs, of, seed)))
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

/// Sum of squared differences between the choices' probabilities and the right answer.
fn brier(answer: Choices<'_>) -> f64 {
    let most = answer
        .log_likelihoods
        .iter()
        .copied()
        .fold(f64::NEG_INFINITY, f64::max);
    let odds: Vec<f64> = answer
        .log_likelihoods
        .iter()
        .map(|ll| (ll - most).exp())
        .collect();
    let sum: f64 = odds.iter().sum();
    let of = |(i, odds): (usize, &f64)| {
        let right = f64::from(u8::from(answer.golds.contains(&i)));
        (odds / sum - right).powi(2)
    };
    odds.iter().enumerate().map(of).sum()
}

/// F1 of telling a class from all others; 0 where it neither occurs nor is chosen.
fn class_f1(pairs: &[(usize, usize)], class: usize) -> f64 {
    let count = |of: &dyn Fn(bool, bool) -> bool| {
        pairs
            .iter()
            .filter(|(gold, chosen)| of(*gold == class, *chosen == class))
            .count() as f64
    };
    let (hits, one_sided) = (count(&|g, c| g && c), count(&|g, c| g != c));
    if hits + one_sided == 0.0 {
        return 0.0;
    }
    2.0 * hits / (2.0 * hits + one_sided)
}

/// As Python's `len(re.split(r"\s+", text))`: white space at either end counts one more.
pub(super) fn words(text: &str) -> usize {
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

fn bootstrap_error(
    pairs: &[(usize, usize)],
    of: &dyn Fn(&[(usize, usize)]) -> Option<f64>,
    seed: u64,
) -> Option<f64> {
    if pairs.len() < 2 {
        return None;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = || -> Option<f64> {
        let sample: Vec<(usize, usize)> = (0..pairs.len())
            .map(|_| pairs[rng.random_range(0..pairs.len())])
            .collect();
        of(&sample)
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
mod tests;
