//! How a file spells the names of tensors, and what it holds that the model has no place for.

use frugal_formats::safetensors::LoadReport;
use frugal_nn::{BackboneInfo, ModelError, SiteTable};

use crate::keys::bad;
use crate::source::{WeightSource, read_values};

/// The spelling of one file.
#[derive(Clone, Debug, Default)]
pub struct FileNames {
    /// Prefix of canonical names that the file leaves out (a bare base model).
    stripped: Option<String>,
    /// Layer norms are `LayerNorm.gamma` and `LayerNorm.beta` (checkpoints made by TensorFlow).
    gamma_beta: bool,
    /// The token table, where the file has it as the tied `lm_head.weight` only.
    table_is_head: Option<String>,
}

const HEAD: &str = "lm_head.weight";

impl FileNames {
    /// The spelling of the file `source`.
    pub fn of(source: &dyn WeightSource, info: &BackboneInfo, sites: &SiteTable) -> Self {
        let prefix = info.base_prefix;
        let there = |name: &str| source.shape(name).is_some();
        let names = source.names();
        let has_prefix = names.iter().any(|name| name.starts_with(prefix));
        let strips = |name: &str| name.strip_prefix(prefix).is_some_and(there);
        let paths = || sites.iter().map(|(_, site)| site.weight_name());
        let stripped =
            (!has_prefix && paths().any(|name| strips(&name))).then(|| prefix.to_owned());
        let mut all = Self {
            stripped,
            gamma_beta: names.iter().any(|name| name.ends_with("LayerNorm.gamma")),
            table_is_head: None,
        };
        let table = sites.iter().find(|(_, site)| site.token_table);
        all.table_is_head = table
            .map(|(_, site)| format!("{}.weight", site.path))
            .filter(|name| is_tied(sites) && !there(&all.in_file(name)) && there(HEAD));
        all
    }

    /// The file's name of a tensor.
    pub fn in_file(&self, name: &str) -> String {
        if self.table_is_head.as_deref() == Some(name) {
            return HEAD.into();
        }
        let name = match &self.stripped {
            Some(prefix) => name.strip_prefix(prefix.as_str()).unwrap_or(name),
            None => name,
        };
        match name.rsplit_once("LayerNorm.") {
            Some((start, "weight")) if self.gamma_beta => format!("{start}LayerNorm.gamma"),
            Some((start, "bias")) if self.gamma_beta => format!("{start}LayerNorm.beta"),
            _ => name.into(),
        }
    }
}

/// Names of the two thin matrices in place of a layer's weight: `[rank, d_in]`, `[d_out, rank]`.
pub fn factor_names(path: &str) -> [String; 2] {
    [format!("{path}.0.weight"), format!("{path}.1.weight")]
}

/// Whether the output over the vocabulary is the token table.
fn is_tied(sites: &SiteTable) -> bool {
    sites.iter().any(|(_, site)| site.tied)
}

/// Tensors of a file that the model does not use.
#[derive(Debug, Default)]
pub struct Unexpected {
    /// Those that belong to its blocks, or to a part that it has: without them it is another model.
    pub refused: Vec<String>,
    /// Others, which are left out.
    pub ignored: Vec<String>,
}

/// Buffers that files carry and that follow from the configuration.
const BUFFERS: &[&str] = &[
    ".attn.bias",
    ".attn.masked_bias",
    ".rotary_emb.inv_freq",
    "position_ids",
    "rope_freqs.weight",
];

/// The tensors of `source` that a model of this configuration does not use.
pub fn unexpected(source: &dyn WeightSource, info: &BackboneInfo, sites: &SiteTable) -> Unexpected {
    let names = FileNames::of(source, info, sites);
    let mut used = std::collections::HashSet::new();
    for (_, site) in sites.iter() {
        let whole = names.in_file(&site.weight_name());
        if site.kind.is_inner_linear() && source.shape(&whole).is_none() {
            used.extend(factor_names(&site.path).map(|name| names.in_file(&name)));
        }
        used.insert(whole);
        if site.has_bias {
            used.insert(names.in_file(&format!("{}.bias", site.path)));
        }
    }
    let further_layers = ["num_nextn_predict_layers", "num_mtp_layers"]
        .iter()
        .find_map(|key| info.raw.get(*key)?.as_u64())
        .unwrap_or(0) as usize;
    let mut found = Unexpected::default();
    let unused = source
        .names()
        .into_iter()
        .filter(|name| !used.contains(name));
    for name in unused.filter(|name| !BUFFERS.iter().any(|buffer| name.ends_with(buffer))) {
        let canonical = match name.starts_with(info.base_prefix) {
            true => name.clone(),
            false => format!("{}{name}", info.base_prefix),
        };
        let part = [&name, &canonical].into_iter().any(|name| {
            let path = name
                .rsplit_once('.')
                .map_or(name.as_str(), |(path, _)| path);
            // A factor of a layer belongs to it.
            let path = path
                .strip_suffix(".0")
                .or(path.strip_suffix(".1"))
                .unwrap_or(path);
            sites.find(path).is_some_and(|site| !sites.info(site).tied)
        });
        // Layers of further predictions, which the reference leaves out too.
        let behind = |block: usize| block.checked_sub(info.num_hidden_layers);
        let further = block(&name)
            .and_then(behind)
            .is_some_and(|i| i < further_layers);
        if (part || block(&name).is_some()) && !further {
            found.refused.push(name);
        } else {
            found.ignored.push(name);
        }
    }
    found.refused.sort_unstable();
    found.ignored.sort_unstable();
    found
}

/// The number of the block that a tensor belongs to.
fn block(name: &str) -> Option<usize> {
    let mut parts = name.split('.');
    while let Some(part) = parts.next() {
        if ["layers", "layer", "h", "blk"].contains(&part) {
            return parts.next()?.parse().ok();
        }
    }
    None
}

/// A head beside the table that it should share must hold the same numbers.
///
/// # Errors
/// One that does not, naming the key that says that they are one.
pub fn check_tied(
    source: &dyn WeightSource,
    info: &BackboneInfo,
    sites: &SiteTable,
    names: &FileNames,
) -> Result<(), ModelError> {
    let table = sites.iter().find(|(_, site)| site.token_table);
    let Some((_, table)) = table.filter(|_| is_tied(sites)) else {
        return Ok(());
    };
    let table = names.in_file(&format!("{}.weight", table.path));
    let shape = [info.vocab_size, info.hidden_size];
    // A classifier has no output over the vocabulary, whatever is left of one in its file.
    let is_classifier = source.shape("score.weight").is_some();
    if table == HEAD || source.shape(HEAD).is_none() || is_classifier {
        return Ok(());
    }
    if source.shape(HEAD).as_deref() == Some(&shape)
        && read_values(source, HEAD, &shape)? == read_values(source, &table, &shape)?
    {
        return Ok(());
    }
    let reason = format!(
        "it is true, but the file has an `{HEAD}` that differs from the token table: set it to false in config.json, or take the tensor out"
    );
    Err(bad(&info.source, "tie_word_embeddings", reason))
}

/// What stands in the file before the names of all tensors of blocks that are missing.
fn prefix_of_all(report: &LoadReport) -> Option<&str> {
    let mut of_blocks = report.missing.iter().filter(|name| block(name).is_some());
    let first = of_blocks.next()?;
    let prefix = report
        .unexpected
        .iter()
        .filter_map(|name| name.strip_suffix(first.as_str()))
        .find(|prefix| prefix.ends_with('.'))?;
    let has = |name: &String| {
        let given = |other: &String| other.strip_prefix(prefix) == Some(name.as_str());
        report.unexpected.iter().any(given)
    };
    of_blocks.all(has).then_some(prefix)
}

/// What the lists of a report most likely come from.
pub fn hints(report: &LoadReport, info: &BackboneInfo) -> Vec<String> {
    let mut hints = Vec::new();
    let missing = |name: &str| report.missing.iter().any(|missing| missing == name);
    if let Some(prefix) = prefix_of_all(report) {
        hints.push(format!(
            "all names begin with `{prefix}`, which a wrapper of the model put there: save the model that it wraps"
        ));
    } else if missing(HEAD) {
        hints.push(
            "a model whose output shares the token table says `\"tie_word_embeddings\": true` in config.json".into(),
        );
    }
    let count = info.num_hidden_layers;
    if report
        .unexpected
        .iter()
        .any(|name| block(name).is_some_and(|block| block >= count))
    {
        hints.push(format!(
            "`num_hidden_layers` (`n_layer` of GPT-2) is {count} in config.json, the file has more blocks"
        ));
    }
    let ends = |suffix: &str| report.unexpected.iter().any(|name| name.ends_with(suffix));
    let biases = |parts: &[&str]| parts.iter().any(|part| ends(&format!("{part}.bias")));
    if biases(&["q_proj", "k_proj", "v_proj", "o_proj"]) {
        hints.push(format!(
            "the attention of this `{}` model has no such biases (`attention_bias` in config.json)",
            info.model_type
        ));
    }
    if biases(&["gate_proj", "up_proj", "down_proj"]) {
        hints.push("the feed-forward layers have no biases (`mlp_bias` in config.json)".into());
    }
    hints
}
