//! Writing safetensors files, and the report that every loader gives when a file does not fit.

use std::collections::HashMap;
use std::fmt;
use std::io::Write;

use safetensors::tensor::{Metadata, TensorInfo, View};

/// Writes a safetensors file into one that is open, one tensor after the other, so that memory holds
/// a copy of one at a time: byte for byte what `safetensors::serialize_to_file` writes, which puts a
/// new file, readable by its owner alone, in place of the one of that name.
///
/// # Errors
/// When the system cannot write it, or a tensor does not have the length that it tells.
pub fn write_tensors<V: View>(
    file: &mut std::fs::File,
    tensors: impl IntoIterator<Item = (String, V)>,
    metadata: Option<HashMap<String, String>>,
) -> std::io::Result<()> {
    let mut tensors: Vec<_> = tensors.into_iter().collect();
    tensors.sort_by(|(left_name, left), (right_name, right)| {
        let types = right.dtype().cmp(&left.dtype());
        types.then_with(|| left_name.cmp(right_name))
    });
    let mut end = 0;
    let told = tensors.iter().map(|(name, tensor)| {
        let start = end;
        end += tensor.data_len();
        let told = TensorInfo {
            dtype: tensor.dtype(),
            shape: tensor.shape().to_vec(),
            data_offsets: (start, end),
        };
        (name.clone(), told)
    });
    let told = told.collect();
    let header = Metadata::new(metadata, told).map_err(std::io::Error::other)?;
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(size_of::<u64>()), b' ');
    let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for (name, tensor) in &tensors {
        let data = tensor.data();
        if data.len() != tensor.data_len() {
            let wrong = format!("the tensor `{name}` has {} bytes", data.len());
            return Err(std::io::Error::other(wrong));
        }
        out.write_all(&data)?;
    }
    out.flush()
}

/// Tensors of a file against what was expected of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Names that were expected.
    pub expected: Vec<String>,
    /// Expected but not in the file.
    pub missing: Vec<String>,
    /// In the file but not expected.
    pub unexpected: Vec<String>,
    /// Name, expected shape, shape in the file.
    pub mis_shaped: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// Copies of what is known already, in lower precision: not used.
    pub rounded: Vec<String>,
    /// What these lists most likely come from.
    pub hints: Vec<String>,
}

impl LoadReport {
    /// Whether the file holds exactly what was expected.
    pub fn is_exact(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.mis_shaped.is_empty()
    }
}

/// Names shown per list before the rest is counted.
const SHOWN: usize = 8;

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tensors expected", self.expected.len())?;
        let lists = [("missing", &self.missing), ("unexpected", &self.unexpected)];
        for (kind, names) in lists.into_iter().filter(|(_, names)| !names.is_empty()) {
            write!(f, "\n  {} {kind}:", names.len())?;
            names
                .iter()
                .take(SHOWN)
                .try_for_each(|name| write!(f, "\n    {name}"))?;
            more(f, names.len())?;
        }
        if !self.mis_shaped.is_empty() {
            write!(f, "\n  {} with another shape:", self.mis_shaped.len())?;
            for (name, expected, found) in self.mis_shaped.iter().take(SHOWN) {
                write!(
                    f,
                    "\n    {name}: expected {expected:?}, the file has {found:?}"
                )?;
            }
            more(f, self.mis_shaped.len())?;
        }
        self.hints
            .iter()
            .try_for_each(|hint| write!(f, "\n  {hint}"))
    }
}

fn more(f: &mut fmt::Formatter<'_>, total: usize) -> fmt::Result {
    if total > SHOWN {
        write!(f, "\n    and {} more", total - SHOWN)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::LoadReport;

    #[test]
    fn long_lists_are_cut_and_counted() {
        let missing = (0..10).map(|i| format!("t{i}")).collect();
        let report = LoadReport {
            expected: vec!["t".into()],
            missing,
            ..LoadReport::default()
        };
        let text = report.to_string();
        assert!(
            text.contains("10 missing")
                && text.contains("t7")
                && !text.contains("t8")
                && text.contains("and 2 more"),
            "{text}"
        );
    }
}
