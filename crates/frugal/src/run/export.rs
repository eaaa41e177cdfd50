//! Writing models and adapters in the forms that other programs read.

use std::path::Path;

use frugal_core::stage::Stage;
use frugal_formats::gguf::{
    self, FileType, GgmlType, Layout, NameMap, TensorSpec, TensorsOf, rotary_to_gguf,
};
use frugal_models::load::{ModelFiles, check_gguf};
use frugal_models::merge;
use frugal_models::save::{StoredType, write_model_with};
use frugal_nn::{Adapter, Backbone, Head, LoadedAdapter, LowRank, Mode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{RunError, carry};

/// Number formats of a GGUF export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportFormat {
    /// 32-bit.
    F32,
    /// 16-bit.
    #[default]
    F16,
    /// 8-bit blocks.
    Q8_0,
    /// 6-bit blocks of 256.
    #[allow(non_camel_case_types, reason = "GGML's own name")]
    Q6_K,
    /// 5-bit blocks of 256, with 6 bits for the output head and half of the value and down
    /// projections.
    #[allow(non_camel_case_types, reason = "llama.cpp's own name")]
    Q5_K_M,
    /// The same of 4-bit blocks.
    #[allow(non_camel_case_types, reason = "llama.cpp's own name")]
    Q4_K_M,
    /// 4-bit blocks with a step and an offset; the token table and the output head in 8 bits.
    Q4_1,
    /// 4-bit blocks with a step; the token table and the output head in 8 bits.
    Q4_0,
}

impl ExportFormat {
    fn file_type(self) -> FileType {
        match self {
            Self::F32 => GgmlType::F32.into(),
            Self::F16 => GgmlType::F16.into(),
            Self::Q8_0 => GgmlType::Q8_0.into(),
            Self::Q6_K => GgmlType::Q6_K.into(),
            Self::Q5_K_M => FileType::Q5_K_M,
            Self::Q4_K_M => FileType::Q4_K_M,
            Self::Q4_1 => GgmlType::Q4_1.into(),
            Self::Q4_0 => GgmlType::Q4_0.into(),
        }
    }
}

/// Writes the model, with the adapter merged into it, as a Hugging Face folder with its tokenizer.
///
/// A classification head goes in under the names of Hugging Face's `*ForSequenceClassification` or
/// `*ForTokenClassification` classes, with the names of its classes; false says that it had to be left out, because it reads
/// other positions than these classes do.
///
/// # Errors
/// Adapters that cannot be merged, files that cannot be written.
pub fn merge_to_folder(
    files: &ModelFiles,
    backbone: &dyn Backbone,
    entry: Option<&LoadedAdapter>,
    out: &Path,
    stored_type: StoredType,
) -> Result<bool, RunError> {
    merge_to_folder_as(merge::Form::Whole, files, backbone, entry, out, stored_type)
}

/// [`merge_to_folder`] with layers as whole matrices or, where they are held so, as two thin ones,
/// which makes a smaller model that this program alone reads.
///
/// # Errors
/// Those of [`merge_to_folder`]; a model without thin matrices.
pub fn merge_to_folder_as(
    form: merge::Form,
    files: &ModelFiles,
    backbone: &dyn Backbone,
    entry: Option<&LoadedAdapter>,
    out: &Path,
    stored_type: StoredType,
) -> Result<bool, RunError> {
    let mut weights = merge::weights_as(form, backbone, entry.map(|e| e.adapter.as_ref()))?;
    if form == merge::Form::Factored && !weights.is_factored() {
        return Err(RunError::Invalid(
            "no layer is held as two thin matrices, so there is no smaller form: `pela` makes such adapters".into(),
        ));
    }
    let head = entry.and_then(|e| e.head.as_ref());
    let fits = head.is_none_or(|h| h.config().class(&weights.config.info()).is_some());
    let mut carried = Vec::new();
    match head.filter(|_| fits) {
        Some(head) => add_head(&mut weights, head),
        // The model's own heads go with it; that of the adapter takes their place.
        None => carried = carry::tensors(files, stored_type)?,
    }
    if weights.config.is_classifier() && !weights.config.family.is_encoder {
        // The classes have no output over the vocabulary.
        weights.tensors.remove("lm_head.weight");
    }
    let stage = Stage::replace(out)?;
    let folder = stage.path();
    write_model_with(
        folder,
        &weights.config,
        &weights.tensors,
        carried,
        stored_type,
    )?;
    carry::files(files, folder)?;
    stage.finish("config.json")?;
    Ok(fits)
}

fn add_head(weights: &mut merge::Weights, head: &Head) {
    for parameter in head.parameters() {
        match parameter.shape() {
            [_] => weights
                .tensors
                .insert_vector(parameter.name().into(), parameter.get::<1>(Mode::Eval)),
            _ => weights
                .tensors
                .insert_matrix(parameter.name().into(), parameter.get::<2>(Mode::Eval)),
        }
    }
    let labels = &head.config().labels;
    let id2label: Map<String, Value> = labels
        .iter()
        .enumerate()
        .map(|(i, label)| (i.to_string(), json!(label)))
        .collect();
    let label2id: Map<String, Value> = labels
        .iter()
        .enumerate()
        .map(|(i, label)| (label.clone(), json!(i)))
        .collect();
    let class = head.config().class(&weights.config.info());
    if let Some(raw) = weights.config.raw.as_object_mut() {
        raw.insert("architectures".into(), json!([class]));
        raw.insert("id2label".into(), Value::Object(id2label));
        raw.insert("label2id".into(), Value::Object(label2id));
        let problem = head.config().problem_type;
        // One label of several is what transformers takes it for where nothing is said.
        let said = raw.get("problem_type").is_some_and(|said| !said.is_null());
        if said || !problem.is_single_label() {
            raw.insert("problem_type".into(), json!(problem));
        }
    }
}

/// Writes the model, with the adapter merged into it, as one GGUF file with its tokenizer.
///
/// # Errors
/// Architectures without a GGUF form, adapters that cannot be merged, files that cannot be written.
pub fn export_gguf(
    files: &ModelFiles,
    backbone: &dyn Backbone,
    adapter: Option<&dyn Adapter>,
    out: &Path,
    format: ExportFormat,
) -> Result<(), RunError> {
    let weights = merge::weights(backbone, adapter)?;
    let raw = &weights.config.raw;
    let map = NameMap::from_config(raw).map_err(gguf::WriteError::from)?;
    let mut metadata = gguf::gguf_metadata(raw, &title(files), format.file_type())
        .map_err(gguf::WriteError::from)?;
    metadata.extend(files.gguf_tokenizer_metadata()?);
    let model = TensorsOf {
        layers: weights.config.num_hidden_layers,
        has_output: !weights.config.tie_word_embeddings,
    };
    let mut tensors: Vec<(TensorSpec, Layout, Box<dyn Fn() -> Vec<f32> + '_>)> = Vec::new();
    for (name, mut shape, values) in weights.tensors.iter() {
        let mapped = map.to_gguf(&name).ok_or_else(|| {
            RunError::Invalid(format!("tensor `{name}` has no name in GGUF files"))
        })?;
        if mapped.layout == Layout::Transposed {
            shape.reverse();
        }
        let ggml_type = format.file_type().tensor_type(&mapped.name, &shape, &model);
        tensors.push((
            TensorSpec {
                name: mapped.name,
                shape,
                ggml_type,
            },
            mapped.layout,
            values,
        ));
    }
    let mut frequencies = Vec::new();
    if let Some((name, values)) = gguf::rope_freqs(raw).map_err(gguf::WriteError::from)? {
        frequencies.clone_from(&values);
        let spec = TensorSpec {
            name: name.into(),
            shape: vec![values.len()],
            ggml_type: GgmlType::F32,
        };
        tensors.push((spec, Layout::Same, Box::new(move || values.clone())));
    }
    tensors.sort_by(|a, b| a.0.name.cmp(&b.0.name));
    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, ..)| spec.clone()).collect();
    check_gguf(&weights.config, &metadata, &specs, &frequencies)?;
    gguf::write(out, &metadata, &specs, |i| {
        let (spec, layout, values) = &tensors[i];
        to_layout(values(), spec, *layout).map_err(std::io::Error::other)
    })?;
    Ok(())
}

/// Elements in Hugging Face order, turned into the order of the GGUF tensor of this shape.
fn to_layout(mut values: Vec<f32>, spec: &TensorSpec, layout: Layout) -> Result<Vec<f32>, String> {
    let columns = spec.shape.last().copied().unwrap_or(1);
    let rows = values.len() / columns.max(1);
    Ok(match layout {
        Layout::Same => values,
        Layout::PlusOne => {
            values.iter_mut().for_each(|v| *v += 1.0);
            values
        }
        Layout::RotaryRows { heads } => reorder(&spec.name, &values, &spec.shape, heads)?,
        // The stored matrix is [columns, rows].
        Layout::Transposed => (0..rows)
            .flat_map(|r| (0..columns).map(move |c| (r, c)))
            .map(|(r, c)| values[c * rows + r])
            .collect(),
    })
}

fn reorder(name: &str, values: &[f32], shape: &[usize], heads: usize) -> Result<Vec<f32>, String> {
    let rows = shape.first().copied().unwrap_or(1);
    rotary_to_gguf(values, shape, heads).ok_or_else(|| {
        format!("tensor `{name}`: {rows} rows are not {heads} heads of an even width")
    })
}

/// Writes a LoRA adapter as a GGUF file for programs that apply it at run time.
///
/// # Errors
/// Other methods, tables among the adapted layers, architectures without a GGUF form.
pub fn export_adapter_gguf(
    files: &ModelFiles,
    adapter: &dyn Adapter,
    out: &Path,
) -> Result<(), RunError> {
    let factors = adapter.low_rank_factors().ok_or_else(|| {
        RunError::Invalid(format!(
            "this `{}` adapter has no GGUF form, which holds low-rank factors of linear layers and nothing else (no biases, norms or \
             whole modules): merge it with `frugal merge` and export the result",
            adapter.method()
        ))
    })?;
    let map = NameMap::from_config(&files.config().raw).map_err(gguf::WriteError::from)?;
    let mut tensors: Vec<(TensorSpec, Vec<f32>)> = Vec::new();
    for LowRank { path, a, b, scale } in factors {
        let name = format!("{path}.weight");
        let mapped = map
            .to_gguf(&name)
            .ok_or_else(|| RunError::Invalid(format!("`{path}` has no name in GGUF files")))?;
        if a.name().ends_with("lora_embedding_A") {
            return Err(RunError::Invalid(format!(
                "`{path}` is a token table, which a GGUF adapter cannot hold here: merge the adapter instead"
            )));
        }
        let rank = a.shape()[0] as f32;
        // Readers scale by alpha / rank of the file's alpha; the adapter's own scale goes into B so
        // that any pattern works.
        let b_values: Vec<f32> = b
            .to_vec()
            .iter()
            .map(|v| v * scale * rank / ALPHA)
            .collect();
        let b_values = match mapped.layout {
            Layout::RotaryRows { heads } => {
                reorder(&mapped.name, &b_values, b.shape(), heads).map_err(RunError::Invalid)?
            }
            _ => b_values,
        };
        let spec = |suffix: &str, shape: &[usize]| TensorSpec {
            name: format!("{}.{suffix}", mapped.name),
            shape: shape.to_vec(),
            ggml_type: GgmlType::F32,
        };
        tensors.push((spec("lora_a", a.shape()), a.to_vec()));
        tensors.push((spec("lora_b", b.shape()), b_values));
    }
    let metadata = gguf::lora_metadata(map.architecture(), &title(files), ALPHA);
    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    gguf::write(out, &metadata, &specs, |i| Ok(tensors[i].1.clone()))?;
    Ok(())
}

/// What a file calls the model: the last part of its path or name, not where it lies on this
/// machine.
fn title(files: &ModelFiles) -> String {
    let name = Path::new(files.name());
    let whole = || name.canonicalize().ok()?.file_name().map(ToOwned::to_owned);
    let last = name.file_name().map(ToOwned::to_owned).or_else(whole);
    let last = last.map_or_else(
        || files.name().to_owned(),
        |n| n.to_string_lossy().into_owned(),
    );
    gguf::model_name(Path::new(&last))
}

/// The alpha that a GGUF adapter declares.
const ALPHA: f32 = 16.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_rotate_are_reordered_or_refused() {
        let values: Vec<f32> = (0..6u8).map(f32::from).collect();
        let spec = |shape: &[usize]| TensorSpec {
            name: "blk.0.attn_q.bias".into(),
            shape: shape.to_vec(),
            ggml_type: GgmlType::F32,
        };
        let stored = |shape: &[usize], heads| {
            to_layout(values.clone(), &spec(shape), Layout::RotaryRows { heads })
        };
        assert_eq!(stored(&[6], 1).unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(stored(&[2, 3], 1).unwrap(), values);
        assert_eq!(
            stored(&[6], 4).unwrap_err(),
            "tensor `blk.0.attn_q.bias`: 6 rows are not 4 heads of an even width"
        );
    }
}
