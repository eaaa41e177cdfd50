//! The measures of trec_eval and their values for one ranking.

use std::fmt;
use std::str::FromStr;

use frugal_core::suggest::did_you_mean;

use super::error::RetrievalError;

/// How good a ranking is; each measure is between 0 and 1. A number is a cut-off: only so many
/// documents from the top are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Measure {
    /// Normalised discounted cumulative gain with the grade as gain (`ndcg`, `ndcg_cut`).
    Ndcg(Option<usize>),
    /// The same with the gain `2^grade - 1`, as many papers have it; trec_eval does not.
    NdcgExp(Option<usize>),
    /// Average precision (`map`, `map_cut`), always divided by the number of relevant documents.
    Map(Option<usize>),
    /// Reciprocal of the first relevant document's rank (`recip_rank`).
    Mrr(Option<usize>),
    /// Share of the relevant documents that were found.
    Recall(usize),
    /// Share of the first documents that are relevant, even if fewer were found.
    Precision(usize),
    /// Whether a relevant document was found.
    Success(usize),
    /// Precision among as many documents as there are relevant ones.
    RPrecision,
}

/// A ranking as the measures see it.
pub(super) struct Judged<'a> {
    /// Grade of the document at each rank; 0 for what is not judged.
    pub(super) grades: &'a [i32],
    /// Grades of all judged documents above 0, the highest first.
    pub(super) ideal: &'a [i32],
    /// Number of documents with at least the level.
    pub(super) relevant: usize,
    /// Grade from which a document counts as relevant, except for the gains.
    pub(super) level: i32,
}

impl Measure {
    /// Its value for a ranking.
    pub(super) fn value(self, judged: &Judged) -> f64 {
        match self {
            Self::Ndcg(cut) => judged.ndcg(cut, f64::from),
            Self::NdcgExp(cut) => judged.ndcg(cut, |grade| f64::from(grade).exp2() - 1.0),
            Self::Map(cut) => judged.average_precision(cut),
            Self::Mrr(cut) => judged.reciprocal_rank(cut),
            Self::Recall(k) => ratio(judged.found(k), judged.relevant),
            Self::Precision(k) => ratio(judged.found(k), k),
            Self::Success(k) => f64::from(u8::from(judged.found(k) > 0)),
            Self::RPrecision => ratio(judged.found(judged.relevant), judged.relevant),
        }
    }

    fn parts(self) -> (&'static str, Option<usize>) {
        match self {
            Self::Ndcg(cut) => ("ndcg", cut),
            Self::NdcgExp(cut) => ("ndcg_exp", cut),
            Self::Map(cut) => ("map", cut),
            Self::Mrr(cut) => ("mrr", cut),
            Self::Recall(k) => ("recall", Some(k)),
            Self::Precision(k) => ("P", Some(k)),
            Self::Success(k) => ("success", Some(k)),
            Self::RPrecision => ("Rprec", None),
        }
    }
}

impl Judged<'_> {
    fn top(&self, cut: Option<usize>) -> &[i32] {
        &self.grades[..cut.unwrap_or(usize::MAX).min(self.grades.len())]
    }

    fn found(&self, cut: usize) -> usize {
        let top = self.top(Some(cut)).iter();
        top.filter(|grade| self.is_relevant(**grade)).count()
    }

    fn is_relevant(&self, grade: i32) -> bool {
        grade >= self.level
    }

    fn ndcg(&self, cut: Option<usize>, gain: impl Fn(i32) -> f64) -> f64 {
        let dcg = |grades: &[i32]| -> f64 {
            let gains = grades.iter().enumerate().filter(|(_, grade)| **grade > 0);
            gains
                .map(|(i, grade)| gain(*grade) / (i as f64 + 2.0).log2())
                .sum()
        };
        let ideal = dcg(&self.ideal[..cut.unwrap_or(usize::MAX).min(self.ideal.len())]);
        match ideal > 0.0 {
            true => dcg(self.top(cut)) / ideal,
            false => 0.0,
        }
    }

    fn average_precision(&self, cut: Option<usize>) -> f64 {
        let (mut found, mut sum) = (0, 0.0);
        for (i, grade) in self.top(cut).iter().enumerate() {
            if self.is_relevant(*grade) {
                found += 1;
                sum += f64::from(found) / (i + 1) as f64;
            }
        }
        match self.relevant {
            0 => 0.0,
            relevant => sum / relevant as f64,
        }
    }

    fn reciprocal_rank(&self, cut: Option<usize>) -> f64 {
        let mut top = self.top(cut).iter();
        let first = top.position(|grade| self.is_relevant(*grade));
        first.map_or(0.0, |i| 1.0 / (i + 1) as f64)
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    match whole {
        0 => 0.0,
        whole => part as f64 / whole as f64,
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parts() {
            (name, None) => f.write_str(name),
            (name, Some(k)) => write!(f, "{name}@{k}"),
        }
    }
}

const NAMES: [&str; 8] = [
    "ndcg", "ndcg_exp", "map", "mrr", "recall", "P", "success", "Rprec",
];

/// `ndcg@10`, or as trec_eval writes it: `ndcg_cut_10`, `P_5`, `recip_rank`. Case does not matter.
impl FromStr for Measure {
    type Err = RetrievalError;

    fn from_str(text: &str) -> Result<Self, RetrievalError> {
        let wrong = |problem: String| RetrievalError::Measure {
            name: text.into(),
            problem,
        };
        let lower = text.trim().to_lowercase();
        let (name, cut) = split(&lower);
        let cut = cut.map(|k| match k.parse::<usize>() {
            Ok(k) if k > 0 => Ok(k),
            _ => Err(wrong("the number behind `@` must be at least 1".into())),
        });
        let cut = cut.transpose()?;
        let needed = |make: fn(usize) -> Self| {
            cut.map(make)
                .ok_or_else(|| wrong(format!("give the number of documents, as in `{name}@10`")))
        };
        match name {
            "ndcg" | "ndcg_cut" => Ok(Self::Ndcg(cut)),
            "ndcg_exp" => Ok(Self::NdcgExp(cut)),
            "map" | "map_cut" => Ok(Self::Map(cut)),
            "mrr" | "recip_rank" => Ok(Self::Mrr(cut)),
            "recall" | "r" => needed(Self::Recall),
            "p" | "precision" => needed(Self::Precision),
            "success" => needed(Self::Success),
            "rprec" if cut.is_none() => Ok(Self::RPrecision),
            "rprec" => Err(wrong("`Rprec` has a cut-off of its own".into())),
            _ => {
                let near = did_you_mean(name, NAMES);
                let hint = near.map_or(String::new(), |near| format!("did you mean `{near}`? "));
                let known = NAMES.join("`, `");
                Err(wrong(format!(
                    "{hint}there is `{known}`, with a cut-off as in `ndcg@10`"
                )))
            }
        }
    }
}

/// The name and the cut-off behind `@`, or behind the last `_` if it is a number.
fn split(text: &str) -> (&str, Option<&str>) {
    if let Some((name, cut)) = text.split_once('@') {
        return (name, Some(cut));
    }
    match text.rsplit_once('_') {
        Some((name, cut)) if !cut.is_empty() && cut.bytes().all(|b| b.is_ascii_digit()) => {
            (name, Some(cut))
        }
        _ => (text, None),
    }
}
