//! What can go wrong with an adapter.

use frugal_formats::safetensors::LoadReport;
use thiserror::Error;

/// Selection that cannot work.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TargetError {
    /// An entry that matched nothing.
    #[error("`{field}`: `{entry}` matched nothing of this model{}; it has: {available}", suggestion.as_ref().map_or(String::new(), |s| format!(" (did you mean `{s}`?)")))]
    NoMatch {
        /// Field.
        field: &'static str,
        /// Name or pattern.
        entry: String,
        /// Distinct last components of the paths.
        available: String,
        /// Nearest name.
        suggestion: Option<String>,
    },
    /// A name of what is no layer that a method changes.
    #[error("`{field}`: `{entry}` is {what}, which this method does not change: `full` trains it")]
    NoLayer {
        /// Field.
        field: &'static str,
        /// Name.
        entry: String,
        /// What it is.
        what: &'static str,
    },
    /// A name where only a pattern can stand.
    #[error(
        "`{field}`: `{text}` matched nothing: a single text is a pattern for the whole path; write [\"{text}\"]"
    )]
    NotAPath {
        /// Field.
        field: &'static str,
        /// Text.
        text: String,
    },
    /// Everything that was named is excluded again.
    #[error(
        "`exclude_modules` and `layers_to_transform` leave nothing of what `target_modules` names"
    )]
    NothingLeft,
    /// A pattern is not a regular expression.
    #[error("`{field}`: `{pattern}` is not a regular expression: {reason}")]
    Pattern {
        /// Field.
        field: &'static str,
        /// Text.
        pattern: String,
        /// The parser's words.
        reason: String,
    },
    /// Block numbers outside the model.
    #[error("`layers_to_transform` names block {layer}, the model has blocks 0 to {last}")]
    Layer {
        /// Number asked for.
        layer: usize,
        /// Last there is.
        last: usize,
    },
    /// Block numbers beside a pattern.
    #[error(
        "`layers_to_transform` does not go with `target_modules` as the regular expression `{pattern}`: give a list of names, or put the \
         block numbers into the expression"
    )]
    LayersWithPattern {
        /// Text.
        pattern: String,
    },
}

/// What can go wrong with an adapter.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AdaptError {
    /// A setting of the method is out of range.
    #[error("method `{method}`: `{field}`: {reason}")]
    Config {
        /// Method.
        method: &'static str,
        /// Field at fault.
        field: &'static str,
        /// What is wrong and what would work.
        reason: String,
    },
    /// Target selection matched nothing or was malformed.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The method cannot do this.
    #[error("method `{method}` cannot {action}: {reason}")]
    Unsupported {
        /// Method.
        method: &'static str,
        /// What was asked.
        action: &'static str,
        /// Why, and what to do instead.
        reason: String,
    },
    /// Settings that the method does not have, or of the wrong kind.
    #[error("method `{method}`: {reason}")]
    Settings {
        /// Method.
        method: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// No method of this name.
    #[error("unknown method `{name}`{}; known: {known}", suggestion.as_ref().map_or(String::new(), |s| format!(" (did you mean `{s}`?)")))]
    UnknownMethod {
        /// What was asked for.
        name: String,
        /// Nearest name.
        suggestion: Option<String>,
        /// All names.
        known: String,
    },
    /// A kind of adapter that only `peft` has.
    #[error("adapters of `peft_type` {peft_type} are not supported{hint}")]
    PeftType {
        /// What the file says.
        peft_type: String,
        /// What comes near.
        hint: String,
    },
    /// A merged weight is infinite or not a number.
    #[error("the weight of `{path}` is not finite: the adapter or the model is damaged")]
    NotFinite {
        /// Path of the layer.
        path: String,
    },
    /// An adapter folder that cannot be used.
    #[error("{}: {reason}", path.display())]
    Folder {
        /// File.
        path: std::path::PathBuf,
        /// What is wrong and what would work.
        reason: String,
    },
    /// The tensors of an adapter file do not fit the adapter.
    #[error("{}: the tensors do not fit the adapter and this model: {}", path.display(), misfits(report))]
    Tensors {
        /// File.
        path: std::path::PathBuf,
        /// Lists of tensors.
        report: Box<frugal_formats::safetensors::LoadReport>,
    },
    /// An adapter of another model.
    #[error("the adapter was made for `{base_model}`, not for `{model}`")]
    OtherModel {
        /// The model that its folder names.
        base_model: String,
        /// What the user asked for.
        model: String,
        /// How it does not fit.
        source: Box<AdaptError>,
    },
    /// Classification heads that do not become one.
    #[error("the classification heads cannot be combined: {reason}")]
    Heads {
        /// Why, and what would work.
        reason: String,
    },
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] frugal_core::fs::FileError),
    /// A file cannot be read.
    #[error(transparent)]
    Model(#[from] crate::error::ModelError),
    /// A choice of adapters that does not fit the batch.
    #[error(
        "{given} adapters were chosen for a batch of {sequences} sequences: give one per sequence"
    )]
    Choices {
        /// Choices.
        given: usize,
        /// Sequences.
        sequences: usize,
    },
    /// No adapter of this name is loaded.
    #[error("no adapter named `{name}`; loaded: {loaded}")]
    UnknownAdapter {
        /// What was asked for.
        name: String,
        /// What there is.
        loaded: String,
    },
}

impl AdaptError {
    /// Whether an adapter and a model that do not belong together could be the reason.
    pub fn is_misfit(&self) -> bool {
        matches!(self, Self::Target(_) | Self::Tensors { .. })
    }
}

/// Tensors that are named before the rest is counted.
const NAMED: usize = 5;

/// How many tensors do not fit, and the first of them.
fn misfits(report: &LoadReport) -> String {
    let mis_shaped = report.mis_shaped.iter().map(|(name, expected, found)| {
        format!("{name}: expected {expected:?}, the file has {found:?}")
    });
    let missing = report.missing.iter().map(|name| format!("{name}: missing"));
    let unexpected = report
        .unexpected
        .iter()
        .map(|name| format!("{name}: unexpected"));
    let all: Vec<String> = mis_shaped.chain(missing).chain(unexpected).collect();
    let counts = [
        (report.mis_shaped.len(), "with another shape"),
        (report.missing.len(), "missing"),
        (report.unexpected.len(), "unexpected"),
    ];
    let counts = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!(", {count} {what}"))
        .collect::<String>();
    let named: String = all
        .iter()
        .take(NAMED)
        .map(|line| format!("\n  {line}"))
        .collect();
    let more = all.len().saturating_sub(NAMED);
    let more = if more > 0 {
        format!("\n  and {more} more")
    } else {
        String::new()
    };
    format!("{} expected{counts}{named}{more}", report.expected.len())
}
