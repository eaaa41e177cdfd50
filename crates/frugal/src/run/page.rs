//! The page that shows a run.

use std::path::{Path, PathBuf};

use frugal_core::encode::{IGNORE, Target};
use frugal_core::events::Scalars;
use frugal_eval::report::{self, RunRecord, RunReport};

use super::RunError;
use super::prepare::Prepared;

/// The report in a run folder.
const REPORT_FILE: &str = "report.html";

/// Writes the report of a run; returns its path.
pub(super) fn write_report(
    out: &Path,
    record: &RunRecord,
    log: Vec<Scalars>,
    prepared: &Prepared,
) -> Result<PathBuf, RunError> {
    let info = &record.run_info.train_config;
    let subtitle = format!(
        "{} on {}, {}",
        info["method"]["name"].as_str().unwrap_or_default(),
        info["model"].as_str().unwrap_or_default(),
        prepared.train.source
    );
    let page = RunReport {
        title: record.run_info.experiment_name.clone(),
        subtitle,
        record: record.clone(),
        log,
        example: example(prepared)?,
    };
    let html = page
        .to_html()
        .map_err(|e| RunError::Invalid(format!("the report cannot be drawn: {e}")))?;
    let path = out.join(REPORT_FILE);
    frugal_core::fs::write_atomic(&path, html.as_bytes())?;
    Ok(path)
}

/// The first training example in pieces of trained and untrained text.
fn example(prepared: &Prepared) -> Result<Option<report::Example>, RunError> {
    let tokenizer = prepared.files.tokenizer()?;
    let Some(first) = prepared.train.examples().first() else {
        return Ok(None);
    };
    let decode = |ids: &[u32]| tokenizer.decode(ids, false);
    let (segments, label) = match &first.labels {
        Target::Class(class) => {
            let label = prepared
                .head
                .as_ref()
                .and_then(|h| h.labels.get(*class))
                .cloned();
            (
                vec![report::Segment {
                    text: decode(&first.input_ids)?,
                    trained: false,
                }],
                label,
            )
        }
        Target::Tokens(targets) => {
            // A token is trained where the position before it has a target.
            let trained: Vec<bool> = std::iter::once(false)
                .chain(targets.iter().map(|t| *t != IGNORE))
                .take(first.input_ids.len())
                .collect();
            let mut segments = Vec::new();
            let mut begin = 0;
            for end in 1..=trained.len() {
                if end == trained.len() || trained[end] != trained[begin] {
                    segments.push(report::Segment {
                        text: decode(&first.input_ids[begin..end])?,
                        trained: trained[begin],
                    });
                    begin = end;
                }
            }
            (segments, None)
        }
    };
    Ok(Some(report::Example {
        segments,
        tokens: first.len(),
        trained_tokens: first.trained(),
        label,
    }))
}
