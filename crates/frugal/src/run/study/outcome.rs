//! What a study found.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use frugal_core::human;
use frugal_eval::statistics::{PairedDifference, Verdict};
use serde::Serialize;

/// One number of one arm with one seed.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// The arm.
    pub arm: String,
    /// What was measured, with its unit, for example `nDCG@10` or `seconds`.
    pub measure: String,
    /// The seed.
    pub seed: u64,
    /// The number.
    pub value: f64,
}

/// Whether a claim stands.
#[derive(Clone, Debug, Serialize)]
pub struct Claim {
    /// The claim, in a sentence.
    pub claim: String,
    /// Whether it stands.
    pub verdict: Verdict,
    /// The differences that the verdict rests on.
    pub difference: Option<PairedDifference>,
}

/// What a study found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// What was measured.
    pub measured: Vec<Measured>,
    /// What follows of it.
    pub claims: Vec<Claim>,
    /// What a reader has to know: sizes, models, what was left out.
    pub notes: Vec<String>,
}

impl Outcome {
    /// Adds a number.
    pub fn add(&mut self, arm: &str, measure: &str, seed: u64, value: f64) {
        self.measured.push(Measured {
            arm: arm.to_owned(),
            measure: measure.to_owned(),
            seed,
            value,
        });
    }

    /// The numbers of an arm, by seed.
    #[must_use]
    pub fn of(&self, arm: &str, measure: &str) -> BTreeMap<u64, f64> {
        let found = self.measured.iter();
        found
            .filter(|m| m.arm == arm && m.measure == measure)
            .map(|m| (m.seed, m.value))
            .collect()
    }

    /// Judges that `better` has more of a measure than `than`, or less where `lower` is better, by
    /// the differences seed by seed.
    pub fn judge(
        &mut self,
        claim: impl Into<String>,
        measure: &str,
        better: &str,
        than: &str,
        lower: bool,
    ) {
        let (a, b) = (self.of(better, measure), self.of(than, measure));
        let sign = if lower { -1.0 } else { 1.0 };
        let differences: Vec<f64> = a
            .iter()
            .filter_map(|(seed, value)| Some(sign * (value - b.get(seed)?)))
            .collect();
        self.judge_differences(claim, &differences);
    }

    /// Judges a claim by paired differences, positive where it is right: of seeds, or of queries.
    pub fn judge_differences(&mut self, claim: impl Into<String>, differences: &[f64]) {
        let difference = PairedDifference::new(differences);
        self.claims.push(Claim {
            claim: claim.into(),
            verdict: difference
                .as_ref()
                .map_or(Verdict::CannotBeTold, PairedDifference::verdict),
            difference,
        });
    }

    /// Arms in the order in which they were first measured.
    fn arms(&self) -> Vec<&str> {
        unique(self.measured.iter().map(|m| m.arm.as_str()))
    }

    fn measures(&self) -> Vec<&str> {
        unique(self.measured.iter().map(|m| m.measure.as_str()))
    }

    /// The heads and rows of the table of means: arms down, measures across, "mean ± standard
    /// deviation" where there are several seeds.
    #[must_use]
    pub fn table(&self) -> (Vec<String>, Vec<Vec<String>>) {
        let measures = self.measures();
        let mut heads = vec!["arm".to_owned()];
        heads.extend(measures.iter().map(|m| (*m).to_owned()));
        let row = |arm: &&str| {
            let cells = measures.iter().map(|measure| self.cell(arm, measure));
            std::iter::once((*arm).to_owned()).chain(cells).collect()
        };
        (heads, self.arms().iter().map(row).collect())
    }

    fn cell(&self, arm: &str, measure: &str) -> String {
        let values: Vec<f64> = self.of(arm, measure).into_values().collect();
        let n = values.len() as f64;
        if values.is_empty() {
            return "-".to_owned();
        }
        let mean = values.iter().sum::<f64>() / n;
        if values.len() == 1 {
            return human::significant(mean, 4);
        }
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        let deviation = (squares / (n - 1.0)).sqrt();
        // What the mean of equal numbers is off by is no spread.
        let deviation = if deviation < 1e-12 * mean.abs() {
            0.0
        } else {
            deviation
        };
        format!(
            "{} ± {}",
            human::significant(mean, 4),
            human::significant(deviation, 2)
        )
    }

    /// The table, the claims and the notes as Markdown.
    #[must_use]
    pub fn markdown(&self, title: &str) -> String {
        let (heads, rows) = self.table();
        let mut text = format!("# {title}\n\n| {} |\n", heads.join(" | "));
        let _ = writeln!(text, "|{}", "---|".repeat(heads.len()));
        for row in rows {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
        if !self.claims.is_empty() {
            text += "\n## Claims\n\n";
        }
        for claim in &self.claims {
            let _ = writeln!(text, "- {}: {}", claim.claim, claim.describe());
        }
        if !self.notes.is_empty() {
            text += "\n## Notes\n\n";
        }
        for note in &self.notes {
            let _ = writeln!(text, "- {note}");
        }
        text
    }
}

impl Claim {
    /// The verdict in words, with the difference, its interval and the smallest one that would
    /// have been seen.
    #[must_use]
    pub fn describe(&self) -> String {
        let words = match self.verdict {
            Verdict::Holds => "holds",
            Verdict::DoesNotHold => "does not hold",
            Verdict::CannotBeTold => "cannot be told",
        };
        let Some(d) = &self.difference else {
            return format!("{words} (fewer than two pairs)");
        };
        let mean = human::significant(d.mean, 3);
        let Some(interval) = &d.interval else {
            return format!(
                "{words} (difference {mean}, the same in all {} pairs)",
                d.count
            );
        };
        format!(
            "{words} (difference {mean}, 95 % interval {} to {}; smallest that would have been seen {})",
            human::significant(interval.low, 3),
            human::significant(interval.high, 3),
            human::significant(interval.detectable, 3),
        )
    }
}

fn unique<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found: Vec<&str> = Vec::new();
    for name in names {
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found
}
