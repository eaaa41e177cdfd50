//! What is left of a run to look at: parts of its record, and the page that shows it.

use std::path::{Path, PathBuf};

use frugal_adapt::peft;
use frugal_core::encode::{IGNORE_INDEX, Target};
use frugal_core::events::Scalars;
use frugal_eval::report::{
    self, DatasetInfo, MetaInfo, ModelInfo, RunRecord, RunReport, SystemInfo, TrainInfo,
};
use frugal_nn::{Head, LoadedAdapter, Parameter, SiteTable};

use super::compare::baselines;
use super::prepare::{Part, Prepared, said};
use super::scores::{PartScores, Scores};
use super::{RunError, TuneConfig};

/// The report in a run folder.
const REPORT_FILE: &str = "report.html";

pub(super) fn evaluation(part: &PartScores, adapted: &Scores) -> report::Evaluation {
    let confusion = adapted.iter().find(|(name, ..)| *name == part.part);
    report::Evaluation {
        split: part.part.clone(),
        examples: part.examples,
        base: part.base.clone(),
        adapted: part.adapted.clone(),
        baselines: part.baselines.clone(),
        confusion: confusion.and_then(|(.., confusion)| confusion.clone()),
    }
}

pub(super) fn count_parameters(
    info: &mut TrainInfo,
    entry: &LoadedAdapter,
    sites: &SiteTable,
    method: &str,
) {
    let of_head = entry.head.iter().flat_map(Head::parameters);
    let head: usize = of_head.map(Parameter::len).sum();
    let trained = entry.adapter.num_trainable() + head;
    let extra = if method == "full" { head } else { trained };
    info.num_trainable_params = trained as u64;
    info.num_total_params = (sites.num_parameters() + extra) as u64;
}

pub(super) fn weights_size(folder: &Path) -> u64 {
    let size = |name: &str| std::fs::metadata(folder.join(name)).map_or(0, |m| m.len());
    size(peft::WEIGHTS_FILE) + size("model.safetensors")
}

pub(super) fn scores(prepared: &Prepared, base: &Scores, adapted: &Scores) -> Vec<PartScores> {
    let of = |scores: &Scores, part: &str| {
        scores
            .iter()
            .find(|(p, ..)| *p == part)
            .map(|(_, m, _)| m.clone())
            .unwrap_or_default()
    };
    let parts = [prepared.validation.as_ref(), prepared.test.as_ref()]
        .into_iter()
        .flatten();
    parts
        .map(|p| PartScores {
            part: p.name.into(),
            examples: p.examples().len(),
            base: of(base, p.name),
            adapted: of(adapted, p.name),
            baselines: baselines(prepared, p),
        })
        .collect()
}

pub(super) fn meta(config: &TuneConfig, prepared: &Prepared, fingerprint: String) -> MetaInfo {
    let dataset = |p: &Part| DatasetInfo {
        split: p.name.into(),
        source: p.source.clone(),
        examples: p.examples().len(),
        sha256: p.sha256.clone(),
    };
    MetaInfo {
        model_info: ModelInfo {
            name: config.model.clone(),
            model_type: prepared.files.config().model_type().into(),
            file_size: prepared.files.stored_bytes(),
            sha256: Some(fingerprint),
            vocabulary: prepared
                .files
                .tokenizer()
                .ok()
                .map(crate::measure::vocabulary_sha256),
        },
        dataset_info: prepared.parts().map(dataset).collect(),
        package_info: [("frugal".to_owned(), env!("CARGO_PKG_VERSION").to_owned())].into(),
        system_info: SystemInfo::detect(&config.device),
    }
}

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
    if prepared.files.info().image.is_some() {
        return Ok(None);
    }
    let tokenizer = prepared.files.tokenizer()?;
    let Some(first) = prepared.train.examples().first() else {
        return Ok(None);
    };
    let decode = |ids: &[u32]| tokenizer.decode(ids, false);
    let (segments, label) = match &first.labels {
        Target::Tokens(targets) => {
            // A token is trained where the position before it has a target.
            let trained: Vec<bool> = std::iter::once(false)
                .chain(targets.iter().map(|t| *t != IGNORE_INDEX))
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
        target => {
            let labels = prepared.head.as_ref().map(|head| head.labels.as_slice());
            let label = said(labels.unwrap_or_default(), target);
            let text = decode(&first.input_ids)?;
            let trained = false;
            (vec![report::Segment { text, trained }], label)
        }
    };
    Ok(Some(report::Example {
        segments,
        tokens: first.len(),
        trained_tokens: first.trained(),
        label,
    }))
}
