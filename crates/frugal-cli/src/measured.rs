//! Results of `eval`, `measure` and `select` as the record that they share, and the folder that
//! keeps them.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use frugal::measure::{threads, vocabulary_sha256};
use frugal::model::Quantize;
use frugal::model::load::ModelFiles;
use frugal::run::Prediction;
use frugal_core::fs::{Temporary, create_dir, write_atomic};
use frugal_core::human;
use frugal_eval::measurement::{
    Cost, Kind, MEASUREMENTS_FILE, Measurement, PowerSource, read, sha256, write,
};
use frugal_eval::report::{DatasetInfo, MeasuredReport, ModelInfo, SystemInfo};

use crate::args::Output;
use crate::ui;

/// The page in a folder of measurements.
const PAGE: &str = "report.html";

/// What was said of each example, in a folder of measurements.
const PREDICTIONS: &str = "predictions.jsonl";

/// Where results are kept.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Kept {
    /// Keep results in this folder: measurements.json, which `frugal report` reads, and a page with
    /// plots
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub out: Option<PathBuf>,
}

impl Kept {
    /// Refuses a folder that holds something else, before anything is measured: only results of
    /// this kind are replaced.
    pub fn claim(&self, kind: Kind) -> Result<()> {
        let Some(out) = &self.out else { return Ok(()) };
        check_writable(&out.join(MEASUREMENTS_FILE))?;
        let entries = std::fs::read_dir(out).into_iter().flatten().flatten();
        let own = |name: &str| [MEASUREMENTS_FILE, PAGE, PREDICTIONS].contains(&name);
        let other = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .any(|name| !own(&name));
        let file = out.join(MEASUREMENTS_FILE);
        let same = || -> Result<bool> { Ok(read(&file)?.iter().all(|m| m.kind == kind)) };
        if other || (out.join(PAGE).exists() && !file.exists()) {
            bail!(
                "{} holds other files: choose another `--out`",
                out.display()
            );
        }
        if file.exists() && !same()? {
            bail!(
                "{} holds other measurements: choose another `--out`",
                out.display()
            );
        }
        Ok(())
    }

    /// Writes what was said of each example, a line for each.
    pub fn write_predictions(&self, predictions: &[Prediction]) -> Result<()> {
        let Some(out) = &self.out else { return Ok(()) };
        create_dir(out)?;
        let file = out.join(PREDICTIONS);
        if predictions.is_empty() {
            // Those of an earlier measurement are not of this one.
            let _ = std::fs::remove_file(file);
            return Ok(());
        }
        let mut text = String::new();
        for prediction in predictions {
            text += &serde_json::to_string(prediction)?;
            text.push('\n');
        }
        Ok(write_atomic(&file, text.as_bytes())?)
    }

    /// Writes measurements and their page, and says where.
    pub fn write(&self, title: &str, measurements: &[Measurement], output: Output) -> Result<()> {
        let Some(out) = &self.out else { return Ok(()) };
        create_dir(out)?;
        write(&out.join(MEASUREMENTS_FILE), measurements)?;
        let page = MeasuredReport {
            title,
            measurements,
        };
        let path = out.join(PAGE);
        write_atomic(&path, page.to_html()?.as_bytes())?;
        ui::note(output, &path.display().to_string());
        Ok(())
    }
}

/// Refuses a file that could not be written, before what it is to hold is computed.
pub fn check_writable(file: &Path) -> Result<()> {
    let folder = |path: &Path| match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_owned(),
        None => path.to_owned(),
    };
    let mut existing = folder(file);
    while !existing.exists() {
        existing = folder(&existing);
    }
    Temporary::for_file(&existing.join("probe"))
        .map(drop)
        .with_context(|| format!("{}: cannot be written", file.display()))
}

/// A measurement of this kind, with all that does not depend on what was measured.
pub fn measurement(kind: Kind, device: &str, cost: Cost) -> Measurement {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    Measurement {
        kind,
        created_at: human::utc(now.saturating_sub(cost.seconds as u64)),
        command: std::env::args_os()
            .map(|word| word.to_string_lossy().into_owned())
            .collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        system: SystemInfo::detect(device),
        threads: threads(),
        cost,
        ..Measurement::default()
    }
}

/// What a record says of a model.
pub fn model_info(files: &ModelFiles) -> ModelInfo {
    ModelInfo {
        name: files.name().to_owned(),
        model_type: files.config().model_type().to_owned(),
        file_size: files.stored_bytes(),
        sha256: None,
        vocabulary: files.tokenizer().ok().map(vocabulary_sha256),
    }
}

/// What computations are held in: single precision or what was asked for, with the types of the
/// file, since rounded weights stay rounded.
pub fn precision(files: &ModelFiles, quantize: Quantize) -> String {
    let held = serde_json::to_value(quantize)
        .ok()
        .and_then(|v| v.as_str().map(str::to_owned))
        .filter(|name| name != "none")
        .unwrap_or_else(|| "f32".to_owned());
    let mut stored = files.stored_types();
    stored.sort_by_key(|(_, tensors)| std::cmp::Reverse(*tensors));
    let rounded: Vec<String> = stored
        .into_iter()
        .map(|(name, _)| name.to_lowercase())
        // Numbers of positions and the like are no weights.
        .filter(|name| !["f32", "i64", "i32", "u8", "bool"].contains(&name.as_str()))
        .collect();
    if rounded.is_empty() {
        held
    } else {
        format!("{held} from {}", rounded.join("/"))
    }
}

/// A data file that was measured on.
pub fn dataset(path: &Path, bytes: &[u8], examples: usize) -> DatasetInfo {
    DatasetInfo {
        split: "test".into(),
        source: path.display().to_string(),
        examples,
        sha256: sha256(bytes),
    }
}

/// A line on what a measurement cost itself.
pub fn cost_line(cost: &Cost) -> String {
    let mut parts = vec![human::duration(cost.seconds)];
    parts.extend(
        cost.peak_memory
            .map(|bytes| format!("{} at most", human::bytes(bytes))),
    );
    parts.extend(cost.energy.map(|energy| {
        let how = match energy.source {
            PowerSource::Measured => "measured",
            PowerSource::Modelled => "modelled, not measured",
        };
        format!("{} J ({how})", human::significant(energy.joules, 3))
    }));
    parts.join(" · ")
}
