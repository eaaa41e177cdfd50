//! The fingerprint of a base model: what an adapter or a run was made on.

use std::path::Path;

use frugal_adapt::peft;
use frugal_core::fs::write_atomic;
use frugal_models::load::{ModelFiles, read_json};
use serde_json::{Value, json};

use super::{Observe, Progress, RunError};

/// The fingerprint of the base in a run folder, from its start on.
pub(super) const BASE_FILE: &str = "base.json";
/// Key of the fingerprint, in [`BASE_FILE`] and beside an adapter.
const KEY: &str = "base_sha256";

fn stored(path: &Path) -> Option<String> {
    Some(read_json(path).ok()?.get(KEY)?.as_str()?.to_owned())
}

/// A resumed run must find the weights that it began with; a new one keeps their fingerprint.
pub(super) fn check(
    out: &Path,
    model: &str,
    fingerprint: &str,
    resume: bool,
) -> Result<(), RunError> {
    let path = out.join(BASE_FILE);
    match stored(&path) {
        Some(before) if resume && before != fingerprint => Err(RunError::OtherBase {
            path: out.into(),
            model: model.into(),
        }),
        Some(_) if resume => Ok(()),
        _ => {
            let text = json!({ "model": model, KEY: fingerprint }).to_string() + "\n";
            Ok(write_atomic(&path, text.as_bytes())?)
        }
    }
}

/// Keeps the fingerprint of the base beside an adapter.
pub(super) fn keep_with_adapter(folder: &Path, fingerprint: &str) -> Result<(), RunError> {
    let path = folder.join(peft::EXTRA_FILE);
    let mut extra = read_json(&path)?;
    if let Value::Object(extra) = &mut extra {
        extra.insert(KEY.into(), fingerprint.into());
    }
    let text = format!("{extra:#}\n");
    Ok(write_atomic(&path, text.as_bytes())?)
}

/// What to say of an adapter that was trained on other weights than those of `files`; nothing of
/// one that does not say.
pub fn base_warning(adapter: &Path, files: &ModelFiles) -> Option<String> {
    let before = stored(&adapter.join(peft::EXTRA_FILE))?;
    other_base(adapter, &before, files)
}

/// What to say of `folder` if it was made on weights with another fingerprint than those of `files`.
pub(super) fn other_base(folder: &Path, before: &str, files: &ModelFiles) -> Option<String> {
    (before != files.fingerprint()).then(|| {
        format!(
            "{}: trained on other weights than those of `{}` as they are now: results are not those of the run",
            folder.display(),
            files.name()
        )
    })
}

/// Tells what [`base_warning`] has to say.
pub(super) fn warn(adapter: &Path, files: &ModelFiles, observe: Observe<'_>) -> bool {
    let warning = base_warning(adapter, files);
    let warned = warning.is_some();
    warning
        .into_iter()
        .for_each(|text| observe(&Progress::Warning { text }));
    warned
}

/// Tells what of the model's files is not used.
pub(super) fn tell_unused(adapter: Option<&Path>, files: &ModelFiles, observe: Observe<'_>) {
    for text in files.warnings(adapter.as_slice()) {
        observe(&Progress::Warning { text });
    }
}
