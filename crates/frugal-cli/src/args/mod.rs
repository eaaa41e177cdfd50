//! Groups of flags that several commands share.

mod dtype;
mod run;
mod texts;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use frugal::adapt::peft;
use frugal::decode::{CacheType, SamplerConfig};
use frugal::model::Quantize;
use frugal::model::load::{LoadError, Lookup, read_json};
use toml::{Table, Value};

pub use dtype::Dtype;
pub use run::RunFlags;
pub use texts::Texts;

/// The flag of the processes that this program starts.
pub const END_WITH_STDIN: &str = "--end-with-stdin";

/// How results are shown.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct Output {
    /// Print one JSON value on standard output and nothing else there
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress, only results and errors
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// Where to compute and whether to use the network.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Machine")]
pub struct Machine {
    /// Where to compute: cpu, or cuda, rocm, vulkan, metal, webgpu in builds with that feature
    /// [default: cpu]
    #[arg(long, value_name = "NAME")]
    pub device: Option<String>,
    /// Never use the network; also set by HF_HUB_OFFLINE=1
    #[arg(long)]
    pub offline: bool,
}

impl Machine {
    /// How models are looked up.
    pub fn lookup(&self) -> Lookup {
        lookup(self.offline)
    }

    /// Name of the device.
    pub fn device_name(&self) -> &str {
        self.device.as_deref().unwrap_or("cpu")
    }

    /// The device that was asked for.
    pub fn device(&self) -> Result<burn::tensor::Device, frugal::device::DeviceError> {
        frugal::device::device(self.device_name())
    }
}

/// How models are looked up: as the environment says, and never on the network if `offline`.
pub fn lookup(offline: bool) -> Lookup {
    let mut lookup = Lookup::default();
    lookup.offline |= offline;
    lookup
}

/// Reads `ROLE=NAME`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    let (role, name) = text
        .split_once('=')
        .ok_or("write ROLE=NAME, for example text=sentence")?;
    Ok((role.into(), name.into()))
}

/// Columns by their roles; a role is given once.
pub fn columns(pairs: &[(String, String)]) -> Result<BTreeMap<String, String>> {
    let mut columns = BTreeMap::new();
    for (role, name) in pairs {
        if let Some(first) = columns.insert(role.clone(), name.clone()) {
            bail!("--column {role}: given as {first:?} and as {name:?}; give it once");
        }
    }
    Ok(columns)
}

/// The API key of a service, from an environment variable.
pub fn api_key(variable: &str) -> Result<String> {
    std::env::var(variable).with_context(|| {
        format!("--api-key-env {variable}: no such environment variable, or not text")
    })
}

/// Reads a number such as 1500, 1e9, 135M, 2.7B or 1T.
pub fn quantity(text: &str) -> Result<f64, String> {
    let (digits, factor) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 1e3),
        Some((at, 'm' | 'M')) => (&text[..at], 1e6),
        Some((at, 'b' | 'B' | 'G')) => (&text[..at], 1e9),
        Some((at, 't' | 'T')) => (&text[..at], 1e12),
        _ => (text, 1.0),
    };
    let value = digits
        .parse::<f64>()
        .ok()
        .map(|v| v * factor)
        .filter(|v| v.is_finite() && *v >= 1.0);
    value.ok_or_else(|| "write a number of at least 1, such as 1500, 1e9, 135M or 2.7B".to_owned())
}

/// A model and optionally an adapter for it, to be used as they are.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct Model {
    /// Name (see `frugal models`), folder, GGUF file, or org/name on the Hugging Face hub [default:
    /// the adapter's, else builtin]
    #[arg(long, short, value_name = "MODEL")]
    pub model: Option<String>,
    /// Adapter folder or run folder
    #[arg(long, short, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
}

impl Model {
    /// Name of the model, and the adapter's folder, which must be one.
    pub fn resolve(&self) -> Result<(String, Option<PathBuf>)> {
        let Some(folder) = &self.adapter else {
            return Ok((self.model.clone().unwrap_or_else(|| "builtin".into()), None));
        };
        let file = folder.join(peft::CONFIG_FILE);
        if !folder.is_dir() {
            bail!("{}: no such folder", folder.display());
        }
        if !file.exists() {
            if let Some(error) = LoadError::full_run(folder) {
                return Err(error.into());
            }
            bail!(
                "{}: neither an adapter folder nor a finished run: no `{}` there",
                folder.display(),
                peft::CONFIG_FILE
            );
        }
        let model = match &self.model {
            Some(model) => model.clone(),
            None => match read_json(&file)?
                .get("base_model_name_or_path")
                .and_then(|name| name.as_str())
                .filter(|name| !name.is_empty())
            {
                Some(name) => name.to_owned(),
                None => bail!(
                    "{}: does not say which model it is for: give one with `--model`",
                    file.display()
                ),
            },
        };
        Ok((model, Some(folder.clone())))
    }
}

/// How a model that generates is held in memory.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct Storage {
    /// How weights are held: none (single precision), stored (as a GGUF file has them), bf16, int8,
    /// nf4, nf4_double, q8_0, q4_0, q4_1, sparse
    #[arg(long, value_name = "NAME", default_value = "stored")]
    quantize: Quantize,
    /// Numbers in which weights are held and multiplied: f32, bf16, or auto for what the processor
    /// is fastest at; adapters and sums stay in f32
    #[arg(
        long,
        visible_alias = "precision",
        value_name = "NAME",
        hide_possible_values = true,
        conflicts_with = "quantize"
    )]
    dtype: Option<Dtype>,
    /// How keys and values of earlier tokens are held: f32, f16 for half the memory, int8 for a
    /// quarter
    #[arg(long, value_name = "NAME", default_value = "f32", value_parser = ["f32", "f16", "int8"])]
    cache_type: String,
}

impl Storage {
    /// How weights are held.
    pub fn quantize(&self) -> Quantize {
        self.dtype.map_or(self.quantize, Dtype::quantize)
    }

    /// How keys and values are held.
    pub fn cache_type(&self) -> CacheType {
        match self.cache_type.as_str() {
            "f16" => CacheType::F16,
            "int8" => CacheType::Int8,
            _ => CacheType::F32,
        }
    }
}

/// How tokens are chosen. The temperature's default depends on the command.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub struct Sampling {
    /// Most tokens to generate for each prompt
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_tokens: usize,
    /// Only the K likeliest tokens; 0 for all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub top_p: f32,
    /// Only tokens at least this share as likely as the likeliest; 0 for all
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    pub min_p: f32,
    /// Makes tokens that occurred less likely if above 1
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    pub repetition_penalty: f32,
    /// Makes every token that was generated less likely by this
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub presence_penalty: f32,
    /// The same for each time it was generated
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub frequency_penalty: f32,
    /// Decides the random choices
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

/// Texts that end an answer.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub struct Stop {
    /// End an answer before this text; repeatable. The model's own ends hold besides
    #[arg(long = "stop", value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    pub texts: Vec<String>,
}

impl Sampling {
    /// Flags that choose among likely tokens, where none is chosen among at this temperature.
    pub fn idle(&self, temperature: f32) -> impl Iterator<Item = &'static str> {
        let given = [
            ("--top-k", self.top_k > 0),
            ("--top-p", self.top_p < 1.0),
            ("--min-p", self.min_p > 0.0),
        ];
        let idle = move |(flag, given)| (given && temperature == 0.0).then_some(flag);
        given.into_iter().filter_map(idle)
    }

    /// As the library takes it.
    pub fn config(&self, temperature: f32) -> SamplerConfig {
        SamplerConfig {
            temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
        }
    }
}

/// A configuration file and changes to it.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Configuration")]
pub struct Config {
    /// TOML file with any of the settings; flags win over it
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Change one setting, for example train.weight_decay=0.01; repeatable, wins over file and
    /// flags
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// Flags as a layer of a configuration.
#[derive(Debug, Default)]
pub struct Layer(Table);

impl Layer {
    /// Starts from settings that are part of the program, which the flags then change.
    pub fn from_toml(text: &str) -> Self {
        // Whether the text is TOML is known when the program is tested.
        Self(toml::from_str(text).unwrap_or_default())
    }

    /// Sets a dotted key if the flag was given.
    pub fn set<T: Into<Value>>(&mut self, key: &str, value: Option<T>) {
        let Some(value) = value else { return };
        let (tables, leaf) = key
            .rsplit_once('.')
            .map_or((None, key), |(tables, leaf)| (Some(tables), leaf));
        let mut table = &mut self.0;
        for name in tables.into_iter().flat_map(|t| t.split('.')) {
            let inner = table
                .entry(name)
                .or_insert_with(|| Value::Table(Table::new()));
            match inner {
                Value::Table(inner) => table = inner,
                // Keys are constants of this program; none is both a value and a table.
                _ => return,
            }
        }
        table.insert(leaf.into(), value.into());
    }

    /// Sets a dotted key if the switch was given.
    pub fn switch(&mut self, key: &str, given: bool) {
        self.set(key, given.then_some(true));
    }

    /// The layer for `config::load_with`.
    pub fn table(&self) -> &Table {
        &self.0
    }
}

/// The command line as typed, for a record.
pub fn command_line() -> Vec<String> {
    std::env::args_os()
        .map(|word| word.to_string_lossy().into_owned())
        .collect()
}

/// A path as configurations hold it, which is as text: another folder would be written otherwise.
pub fn folder(text: &str) -> Result<PathBuf, String> {
    Ok(PathBuf::from(text))
}

/// A path as configurations hold it.
pub fn path_value(path: &Option<PathBuf>) -> Option<String> {
    path.as_ref().map(|p| p.to_string_lossy().into_owned())
}

/// A non-negative number as TOML holds it.
pub fn count_value(count: Option<u64>) -> Option<i64> {
    count.map(|n| i64::try_from(n).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_have_units() {
        assert_eq!(
            ["1500", "1e9", "135M", "2.7B", "4k"].map(|t| quantity(t).unwrap()),
            [1500.0, 1e9, 135e6, 2.7e9, 4000.0]
        );
        assert!(
            ["", "M", "-3", "0.5", "inf", "x"]
                .iter()
                .all(|t| quantity(t).is_err())
        );
    }

    #[test]
    fn flags_become_nested_tables() {
        let mut layer = Layer::default();
        layer.set("model", Some("m"));
        layer.set("train.lr", Some(0.1));
        layer.set("train.epochs", None::<f64>);
        layer.switch("train.packing", true);
        layer.switch("data.truncate", false);
        let expected: Table =
            toml::from_str("model = 'm'\n[train]\nlr = 0.1\npacking = true").unwrap();
        assert_eq!(layer.table(), &expected);
    }
}
