//! The report of a run: one HTML file that needs nothing else.

mod axes;
mod bars;
mod chart;
mod colour;
mod comparison;
mod curves;
mod efficiency;
mod html;
mod law;
mod markup;
mod measured;
mod radar;
mod record;
mod rows;
#[cfg(test)]
pub(crate) mod sample;
mod scaling;
mod scatter;
mod spread;
mod surface;
mod sweep;

use serde::{Deserialize, Serialize};

pub use axes::ChartError;
pub use comparison::{Compared, Comparison, Group, Run, TaskScores};
pub use efficiency::{EfficiencyReport, SystemGroup};
pub use law::LawReport;
pub use measured::MeasuredReport;
pub use record::{
    Confusion, DatasetInfo, Evaluation, Forgetting, MetaInfo, ModelInfo, RECORD_FILE, RecordError,
    RunInfo, RunRecord, Status, SystemInfo, TrainInfo,
};
pub use scaling::scaling_svg;
pub use spread::Spread;
pub use sweep::{CLAIM_HEADINGS, Claim, SweepReport, SweptArm, Trial};

use frugal_core::events::Scalars;

/// What the report of a run shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// Heading of the page.
    pub title: String,
    /// One line below it, such as method, model and data.
    pub subtitle: String,
    /// What the run cost and gained.
    pub record: RunRecord,
    /// The run's log, with the names of [`frugal_core::events::names`].
    pub log: Vec<Scalars>,
    /// One training example as the model saw it.
    pub example: Option<Example>,
}

/// One example as the model saw it, with the text that was trained on apart from the text that was
/// only read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// The pieces, in order.
    pub segments: Vec<Segment>,
    /// Number of tokens.
    pub tokens: usize,
    /// Number of tokens that the loss counts.
    pub trained_tokens: usize,
    /// The label, for classification.
    pub label: Option<String>,
}

/// A piece of an example.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// The text, special tokens included.
    pub text: String,
    /// Whether the loss counts it.
    pub trained: bool,
}
