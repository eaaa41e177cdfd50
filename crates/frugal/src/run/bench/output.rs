//! The files beside the runs of a suite.

use frugal_core::fs::write_atomic;
use serde::Serialize;

use super::BenchError;
use super::request::BenchRequest;
use crate::run::RESULTS_FILE;

/// The page of a comparison.
pub(super) const REPORT_FILE: &str = "report.html";

/// Writes the page, its tables in Markdown and the results.
pub(super) fn write(
    request: &BenchRequest,
    html: &str,
    markdown: &str,
    results: &impl Serialize,
) -> Result<(), BenchError> {
    write_atomic(&request.file(REPORT_FILE), html.as_bytes())?;
    write_atomic(&request.file("results.md"), markdown.as_bytes())?;
    let results = serde_json::to_string_pretty(results)? + "\n";
    write_atomic(&request.file(RESULTS_FILE), results.as_bytes())?;
    Ok(())
}
