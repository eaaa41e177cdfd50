//! A sweep: what was tried for every arm of a comparison, what was picked, and which claims stand.

use serde::Serialize;

use super::markup::{lower_is_better, score, section, title};
use super::rows::Rows;
use super::spread::Spread;
use crate::statistics::{PairedDifference, Verdict};

/// The sweep of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SweepReport {
    /// Swept settings.
    pub settings: Vec<String>,
    /// The metric that decides.
    pub metric: String,
    /// The part of the data on which settings are picked.
    pub select_on: String,
    /// The part on which the picked ones are reported.
    pub report_on: String,
    /// Seed of the trials.
    pub trial_seed: u64,
    /// Seeds of the reported runs.
    pub seeds: Vec<u64>,
    /// Trials of each arm.
    pub trials: usize,
    /// The arm that the others are compared with.
    pub baseline: String,
    /// The arms, in the order of the suite.
    pub arms: Vec<SweptArm>,
    /// Each arm against the baseline.
    pub claims: Vec<Claim>,
}

/// One arm of a sweep.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SweptArm {
    /// Name of the run in the suite.
    pub name: String,
    /// What was tried.
    pub trials: Vec<Trial>,
    /// Which of them was picked; none while trials are missing, or where all failed.
    pub picked: Option<usize>,
    /// Settings whose picked value is the lowest or the highest that was tried.
    pub at_edge: Vec<String>,
    /// The picked one on the other part of the data.
    pub reported: Option<Spread>,
}

/// One trial.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Trial {
    /// Values of the swept settings, in their order.
    pub values: Vec<String>,
    /// The metric on the part that picks.
    pub score: Option<f64>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// That an arm is better than the baseline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Claim {
    /// The arm.
    pub arm: String,
    /// The paired differences by seed, positive where the arm is better.
    pub difference: Option<PairedDifference>,
    /// Whether it stands.
    pub verdict: Verdict,
}

impl Claim {
    /// From the paired differences by seed, positive where the arm is better.
    pub fn new(arm: &str, differences: &[f64]) -> Self {
        let difference = PairedDifference::new(differences);
        Self {
            arm: arm.to_owned(),
            difference,
            verdict: difference.map_or(Verdict::CannotBeTold, |d| d.verdict()),
        }
    }

    /// `holds`, `does not hold` or `cannot be told (d)`, with the difference that would have been
    /// seen.
    pub fn verdict_text(&self) -> String {
        let detectable = self.difference.and_then(|d| Some(d.interval?.detectable));
        match (self.verdict, detectable) {
            (Verdict::Holds, _) => "holds".into(),
            (Verdict::DoesNotHold, _) => "does not hold".into(),
            (Verdict::CannotBeTold, Some(d)) => format!("cannot be told ({})", score(d)),
            (Verdict::CannotBeTold, None) => match self.difference {
                Some(_) => "cannot be told (the seeds do not vary)".into(),
                None => "cannot be told (runs are missing)".into(),
            },
        }
    }
}

impl SweptArm {
    /// The values that were picked, as `lr 0.0003`.
    pub fn picked_text(&self, settings: &[String]) -> String {
        let Some(trial) = self.picked.and_then(|i| self.trials.get(i)) else {
            return "-".into();
        };
        let pairs = settings.iter().zip(&trial.values);
        let texts: Vec<String> = pairs.map(|(key, value)| format!("{key} {value}")).collect();
        texts.join(", ")
    }
}

impl SweepReport {
    /// How much better `arm` is than `baseline` by the deciding metric.
    pub fn gain(&self, arm: f64, baseline: f64) -> f64 {
        if lower_is_better(&self.metric) {
            baseline - arm
        } else {
            arm - baseline
        }
    }

    /// The index of the best trial; the first of equal ones. Trials without a finite score are
    /// never picked.
    pub fn best(&self, trials: &[Trial]) -> Option<usize> {
        let scores = trials.iter().map(|trial| trial.score);
        let finite = scores
            .enumerate()
            .filter_map(|(i, s)| Some((i, s.filter(|s| s.is_finite())?)));
        finite
            .reduce(|best, next| {
                if self.gain(next.1, best.1) > 0.0 {
                    next
                } else {
                    best
                }
            })
            .map(|(i, _)| i)
    }

    /// What may be wrong with the sweep itself.
    pub fn warnings(&self) -> Vec<String> {
        let edge = |arm: &SweptArm| {
            (!arm.at_edge.is_empty()).then(|| {
                format!(
                    "{}: the picked {} is the lowest or highest value tried, a better one may lie beyond",
                    arm.name,
                    arm.at_edge.join(" and ")
                )
            })
        };
        self.arms.iter().filter_map(edge).collect()
    }

    /// What was done, in a sentence or two.
    pub fn method(&self) -> String {
        let seeds: Vec<String> = self.seeds.iter().map(u64::to_string).collect();
        format!(
            "{} trials of {} for each run with seed {}; the best by {} on the {} part is reported on the {} part, \
             with seeds {}. Differences are paired by seed and positive where the run is better than {}, with \
             95 % intervals of the paired t test, each for itself. In brackets: the smallest true difference that \
             would have been seen with a power of 80 %.",
            self.trials,
            self.settings.join(" and "),
            self.trial_seed,
            title(&self.metric).to_lowercase(),
            self.select_on,
            self.report_on,
            seeds.join(", "),
            self.baseline,
        )
    }

    pub(super) fn sections(&self) -> String {
        section("Claims", &self.claim_rows().to_html(&self.method()))
            + &section(
                "Sweep",
                &self.trial_rows().to_html(&self.warnings().join("; ")),
            )
    }

    /// Both tables in Markdown.
    pub fn to_markdown(&self) -> String {
        let mut text = String::new();
        if !self.claims.is_empty() {
            text += &format!(
                "\n## Claims\n\n{}\n{}\n",
                self.claim_rows().to_markdown(),
                self.method()
            );
        }
        text += &format!("\n## Sweep\n\n{}", self.trial_rows().to_markdown());
        for warning in self.warnings() {
            text += &format!("\n{warning}\n");
        }
        text
    }

    /// The claims as cells: claim, verdict, difference, interval, pairs.
    pub fn claim_cells(&self) -> Vec<Vec<String>> {
        let row = |claim: &Claim| {
            let difference = claim.difference;
            let interval = difference.and_then(|d| d.interval);
            vec![
                format!("{} better than {}", claim.arm, self.baseline),
                claim.verdict_text(),
                difference.map_or("-".into(), |d| score(d.mean)),
                interval.map_or("-".into(), |i| {
                    format!("{} to {}", score(i.low), score(i.high))
                }),
                interval.map_or("-".into(), |i| score(i.detectable)),
                difference.map_or(0, |d| d.count).to_string(),
            ]
        };
        self.claims.iter().map(row).collect()
    }

    fn claim_rows(&self) -> Rows {
        Rows::new(CLAIM_HEADINGS, self.claim_cells())
    }

    fn trial_rows(&self) -> Rows {
        let shown = |value: Option<f64>| value.map_or("-".into(), score);
        let rows = self.arms.iter().flat_map(|arm| {
            arm.trials.iter().enumerate().map(move |(i, trial)| {
                let is_picked = arm.picked == Some(i);
                let mut cells = vec![arm.name.clone()];
                cells.extend(trial.values.iter().cloned());
                cells.push(match &trial.error {
                    Some(_) => "failed".into(),
                    None => shown(trial.score),
                });
                cells.push(if is_picked {
                    "picked".into()
                } else {
                    String::new()
                });
                let reported = arm.reported.filter(|_| is_picked);
                cells.push(reported.map_or_else(String::new, |r| r.text()));
                cells
            })
        });
        let columns = [title(&self.metric) + " on " + &self.select_on];
        let headings = std::iter::once("Run")
            .chain(self.settings.iter().map(String::as_str))
            .chain(columns.iter().map(String::as_str))
            .chain(["Picked", "Reported"]);
        Rows::new(headings, rows.collect())
    }
}

/// Headings of [`SweepReport::claim_cells`].
pub const CLAIM_HEADINGS: [&str; 6] = [
    "Claim",
    "Verdict",
    "Difference",
    "95 % interval",
    "Would be seen",
    "Pairs",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn report(metric: &str) -> SweepReport {
        SweepReport {
            settings: vec!["lr".into()],
            metric: metric.into(),
            select_on: "validation".into(),
            report_on: "test".into(),
            seeds: vec![0, 1, 2],
            trials: 3,
            baseline: "lora".into(),
            ..SweepReport::default()
        }
    }

    fn trial(score: Option<f64>) -> Trial {
        Trial {
            values: vec!["0.1".into()],
            score,
            error: None,
        }
    }

    #[test]
    fn the_best_trial_is_picked_in_the_direction_of_the_metric() {
        let trials = [
            Some(3.0),
            None,
            Some(f64::NAN),
            Some(2.0),
            Some(3.0),
            Some(2.0),
        ]
        .map(trial);
        assert_eq!(report("accuracy").best(&trials), Some(0));
        assert_eq!(report("perplexity").best(&trials), Some(3));
        assert_eq!(
            report("loss").best(&[trial(None), trial(Some(f64::NAN))]),
            None
        );
    }

    #[test]
    fn claims_are_told_with_what_would_have_been_seen() {
        let mut report = report("accuracy");
        report.claims = vec![
            Claim::new("dora", &[0.021, 0.018, 0.026]),
            Claim::new("vera", &[0.01, -0.02, 0.004]),
            Claim::new("ia3", &[0.1]),
            Claim::new("oft", &[0.1, 0.1, 0.1]),
        ];
        let verdicts: Vec<String> = report.claims.iter().map(Claim::verdict_text).collect();
        assert_eq!(
            verdicts,
            [
                "holds",
                "cannot be told (0.0518)",
                "cannot be told (runs are missing)",
                "cannot be told (the seeds do not vary)"
            ]
        );
        let text = report.to_markdown();
        assert!(
            text.contains(
                "| dora better than lora | holds | 0.0217 | 0.0116 to 0.0317 | 0.0132 | 3 |"
            ),
            "{text}"
        );
        assert!(report.sections().contains("<h2>Claims</h2>"));
    }
}
