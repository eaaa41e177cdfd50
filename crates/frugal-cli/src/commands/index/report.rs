//! What is said of documents that are not in the index as they were meant.

use frugal::retrieve::BuildReport;

use crate::args::Output;
use crate::ui;

/// Says what was left out, and what is in the index only in part.
pub(super) fn warn_of(report: &BuildReport, output: Output) {
    if let Some(first) = report.empty.first() {
        ui::warn(
            output,
            &format!(
                "{} documents without text were left out: `{first}`{}",
                report.empty.len(),
                if report.empty.len() > 1 { ", ..." } else { "" }
            ),
        );
    }
    if report.truncated > 0 {
        ui::warn(
            output,
            &format!(
                "{} texts are longer than the encoder reads: their vectors stand for their beginning; `--chunk N` cuts them",
                report.truncated
            ),
        );
    }
}
