//! A grid of pre-training runs: every shape with every number of tokens, peak rate and batch.

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::step_law::{COMPARED, STEP_LAW, schedule};
use frugal_core::config::merge;

/// The grid as a suite describes it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// What each model's `shape` changes of the shared one; a `name` replaces `hN` with its hidden
    /// size.
    pub shapes: Vec<Table>,
    /// Tokens of training.
    pub tokens: Vec<u64>,
    /// Peak learning rates.
    pub lr: Vec<f64>,
    /// Tokens of an optimiser step; rounded to whole sequences.
    pub batch_tokens: Vec<u64>,
    /// Configurations that are run for every shape and number of tokens beside the grid, to compare
    /// with.
    #[serde(default)]
    pub beside: Vec<Beside>,
    /// Runs whose loss is within this share of the best of their size count as near the optimum.
    #[serde(default = "near")]
    pub excess: f64,
}

fn near() -> f64 {
    0.0025
}

/// A configuration beside the grid: a published law, or fixed values.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Beside {
    /// `step-law`, `deepseek`, `porian`, or any name for fixed values.
    pub name: String,
    /// Peak learning rate.
    pub lr: Option<f64>,
    /// Tokens of an optimiser step.
    pub batch_tokens: Option<u64>,
}

/// Where a run of the grid lies.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Parameters outside the vocabulary, norms not counted.
    pub parameters: f64,
    /// Tokens of training that the grid asks for.
    pub tokens: f64,
    /// Peak learning rate.
    pub rate: f64,
    /// Tokens of an optimiser step.
    pub batch: f64,
    /// Name of the configuration beside the grid that this is a run of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beside: Option<String>,
}

/// A run of the grid: name, place, settings.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct GridRun {
    pub(super) name: String,
    pub(super) point: Point,
    pub(super) settings: Table,
}

impl Grid {
    /// All runs, with the shared settings `pretrain`; or what is wrong.
    pub(super) fn runs(&self, pretrain: &Table) -> Result<Vec<GridRun>, String> {
        for (key, empty) in [
            ("shapes", self.shapes.is_empty()),
            ("tokens", self.tokens.is_empty()),
            ("lr", self.lr.is_empty()),
            ("batch_tokens", self.batch_tokens.is_empty()),
        ] {
            if empty {
                return Err(format!("`grid.{key}` is empty"));
            }
        }
        if !(self.excess.is_finite() && self.excess > 0.0) {
            return Err("`grid.excess` must be above 0".into());
        }
        let sequence = whole(pretrain, "max_length")
            .map_err(|e| format!("`pretrain.{e}`, which the grid counts batches in"))?;
        let mut runs = Vec::new();
        for shape in &self.shapes {
            let mut shape = shape.clone();
            let own_name = shape
                .remove("name")
                .and_then(|n| n.as_str().map(str::to_owned));
            let mut settings = pretrain.clone();
            merge(
                &mut settings,
                &Table::from_iter([("shape".to_owned(), Value::Table(shape))]),
            );
            let (parameters, hidden) = parameters(&settings)?;
            let label = own_name.unwrap_or_else(|| format!("h{hidden}"));
            for &tokens in &self.tokens {
                let mut add = |name: String,
                               rate: f64,
                               batch: f64,
                               beside: Option<String>|
                 -> Result<(), String> {
                    if !(rate.is_finite() && rate > 0.0) || batch < 1.0 || (tokens as f64) < batch {
                        return Err(format!(
                            "run `{name}`: a rate of {rate} with {batch} of {tokens} tokens for each step cannot be run"
                        ));
                    }
                    let (training, batch) = training(pretrain, rate, batch, tokens, sequence);
                    let mut settings = settings.clone();
                    merge(&mut settings, &training);
                    let point = Point {
                        parameters: parameters as f64,
                        tokens: tokens as f64,
                        rate,
                        batch,
                        beside,
                    };
                    runs.push(GridRun {
                        name,
                        point,
                        settings,
                    });
                    Ok(())
                };
                for &rate in &self.lr {
                    for &batch in &self.batch_tokens {
                        add(
                            format!("{label}-d{tokens}-lr{rate}-b{batch}"),
                            rate,
                            batch as f64,
                            None,
                        )?;
                    }
                }
                for beside in &self.beside {
                    let (rate, batch) = beside.values(parameters as f64, tokens as f64)?;
                    add(
                        format!("{label}-d{tokens}-{}", beside.name),
                        rate,
                        batch,
                        Some(beside.name.clone()),
                    )?;
                }
            }
        }
        Ok(runs)
    }
}

impl Beside {
    fn values(&self, parameters: f64, tokens: f64) -> Result<(f64, f64), String> {
        let law = match self.name.as_str() {
            "step-law" => Some((
                STEP_LAW.rate(parameters, tokens),
                Some(STEP_LAW.batch(tokens)),
            )),
            name => COMPARED
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, law)| law(parameters, tokens)),
        };
        let rate = self.lr.or(law.map(|l| round(l.0)));
        let batch = self
            .batch_tokens
            .map(|b| b as f64)
            .or(law.and_then(|l| l.1));
        rate.zip(batch).ok_or_else(|| {
            format!("`grid.beside`: `{}` is no law with a rate and a batch: give it `lr` and `batch_tokens`, or take `step-law`", self.name)
        })
    }
}

/// Four digits, which settings files keep as they are.
fn round(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

fn whole(table: &Table, key: &str) -> Result<u64, String> {
    let value = table
        .get(key)
        .and_then(Value::as_integer)
        .filter(|v| *v > 0);
    value
        .map(|v| v as u64)
        .ok_or_else(|| format!("{key}` is needed"))
}

/// Parameters outside the vocabulary, `L (2 h² + 2 h k + 3 h f)` with keys of width `k`, and the
/// hidden size.
fn parameters(settings: &Table) -> Result<(u64, u64), String> {
    let shape = settings
        .get("shape")
        .and_then(Value::as_table)
        .cloned()
        .unwrap_or_default();
    if shape
        .get("attention")
        .and_then(Value::as_str)
        .is_some_and(|kind| kind != "grouped")
    {
        return Err(
            "the grid counts parameters of grouped attention only: leave `shape.attention` out"
                .into(),
        );
    }
    let of = |key: &str| {
        whole(&shape, key).map_err(|e| {
            format!("`shape.{e}` in [pretrain.shape] or in every one of `grid.shapes`")
        })
    };
    let (h, f, layers) = (
        of("hidden_size")?,
        of("intermediate_size")?,
        of("num_hidden_layers")?,
    );
    let keys = h / of("num_attention_heads")? * of("num_key_value_heads")?;
    let experts = shape
        .get("num_local_experts")
        .and_then(Value::as_integer)
        .unwrap_or(0)
        .max(0) as u64;
    Ok((
        layers * (2 * h * h + 2 * h * keys + 3 * h * f * experts.max(1) + h * experts),
        h,
    ))
}

/// Settings under `train`, and the batch that they make: whole sequences, in micro-batches of at
/// most the shared `max_tokens`.
fn training(pretrain: &Table, rate: f64, batch: f64, tokens: u64, sequence: u64) -> (Table, f64) {
    let sequences = (batch / sequence as f64).round().max(1.0) as u64;
    let shared = pretrain
        .get("train")
        .and_then(Value::as_table)
        .and_then(|t| whole(t, "max_tokens").ok());
    let most = (shared.unwrap_or(4096) / sequence).max(1);
    let parts = sequences.div_ceil(most);
    let micro = sequences.div_ceil(parts) * sequence;
    let batch = micro * parts;
    let steps = (tokens / batch).max(1);
    let (warmup, floor) = schedule(rate, steps);
    let train = [
        ("lr", Value::Float(rate)),
        ("max_steps", integer(steps)),
        ("packing", Value::Boolean(true)),
        ("max_tokens", integer(micro)),
        ("gradient_accumulation_steps", integer(parts)),
        ("lr_scheduler_type", Value::String("cosine".into())),
        ("warmup_steps", integer(warmup)),
        ("warmup_ratio", Value::Float(0.0)),
        ("min_lr", Value::Float(round(floor))),
    ];
    let train = train
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    (
        Table::from_iter([("train".to_owned(), Value::Table(train))]),
        batch as f64,
    )
}

fn integer(value: u64) -> Value {
    Value::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step_law::parameters as dense_parameters;

    const PRETRAIN: &str = r#"
        data = "text.txt"
        max_length = 64
        shape = { num_hidden_layers = 2, num_attention_heads = 4, num_key_value_heads = 4, vocab_size = 512 }
        train = { max_tokens = 512, weight_decay = 0.1 }
    "#;

    fn grid(text: &str) -> Result<Vec<GridRun>, String> {
        let text = format!(
            "shapes = [{{ hidden_size = 32, intermediate_size = 88 }}]\ntokens = [100000]\n{text}"
        );
        toml::from_str::<Grid>(&text)
            .unwrap()
            .runs(&toml::from_str(PRETRAIN).unwrap())
    }

    #[test]
    fn every_point_becomes_a_run_with_the_schedule_of_the_law() {
        let runs = grid("lr = [0.004, 0.008]\nbatch_tokens = [64, 1000, 2048]").unwrap();
        let names: Vec<&str> = runs.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(
            names[..4],
            [
                "h32-d100000-lr0.004-b64",
                "h32-d100000-lr0.004-b1000",
                "h32-d100000-lr0.004-b2048",
                "h32-d100000-lr0.008-b64"
            ]
        );
        assert_eq!(runs[0].point.parameters, dense_parameters(32, 88, 2) as f64);
        let train: Vec<&Table> = runs
            .iter()
            .map(|r| r.settings["train"].as_table().unwrap())
            .collect();
        let of = |i: usize, key: &str| train[i][key].as_integer().unwrap();
        // 1562 steps of 64 tokens; a tenth warms up, and the floor is absolute.
        assert_eq!(
            (
                of(0, "max_steps"),
                of(0, "warmup_steps"),
                of(0, "max_tokens")
            ),
            (1562, 156, 64)
        );
        assert_eq!(
            (
                train[0]["min_lr"].as_float(),
                train[0]["weight_decay"].as_float()
            ),
            (Some(1e-5), Some(0.1))
        );
        // 1000 tokens are 16 sequences: two micro-batches of 512.
        assert_eq!(
            (
                of(1, "max_tokens"),
                of(1, "gradient_accumulation_steps"),
                runs[1].point.batch
            ),
            (512, 2, 1024.0)
        );
        assert_eq!(
            (of(2, "gradient_accumulation_steps"), of(2, "max_steps")),
            (4, 48)
        );
    }

    #[test]
    fn configurations_beside_the_grid_are_laws_or_fixed_values() {
        let runs = grid(
            "lr = [0.004]\nbatch_tokens = [64]\nbeside = [{ name = \"step-law\" }, { name = \"constant\", lr = 3e-4, batch_tokens = 512 }]",
        )
        .unwrap();
        let law = &runs[1].point;
        // 1.79 · 25088^-0.713 · 1e5^0.307 and 0.58 · 1e5^0.571 = 415.2 tokens: six sequences of 64.
        assert!(
            (law.rate / 0.04475 - 1.0).abs() < 1e-3 && law.batch == 384.0,
            "{law:?}"
        );
        assert_eq!(
            (
                runs[2].point.rate,
                runs[2].point.batch,
                runs[2].point.beside.as_deref()
            ),
            (3e-4, 512.0, Some("constant"))
        );
        assert_eq!(runs[2].settings["train"]["min_lr"].as_float(), Some(3e-6));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("lr = []\nbatch_tokens = [64]", "`grid.lr` is empty"),
            ("lr = [-1.0]\nbatch_tokens = [64]", "cannot be run"),
            ("lr = [0.1]\nbatch_tokens = [200000]", "cannot be run"),
            (
                "lr = [0.1]\nbatch_tokens = [64]\nbeside = [{ name = \"openai\" }]",
                "no law with a rate and a batch",
            ),
            (
                "lr = [0.1]\nbatch_tokens = [64]\nexcess = 0.0",
                "`grid.excess`",
            ),
        ] {
            let message = grid(text).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
        let one =
            "shapes = [{ hidden_size = 32 }]\ntokens = [100000]\nlr = [0.1]\nbatch_tokens = [64]";
        let grid: Grid = toml::from_str(one).unwrap();
        let of = |pretrain: &str| grid.runs(&toml::from_str(pretrain).unwrap()).unwrap_err();
        assert!(
            of(PRETRAIN).contains("`shape.intermediate_size` is needed"),
            "{}",
            of(PRETRAIN)
        );
        assert!(of("data = \"text.txt\"").contains("`pretrain.max_length` is needed"));
        assert!(
            of("max_length = 64\nshape = { attention = \"latent\" }")
                .contains("grouped attention only")
        );
    }
}
