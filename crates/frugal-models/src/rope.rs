//! Rotary position embeddings: settings and frequencies of every supported kind of context
//! extension.
//!
//! Follows `transformers` (`modeling_rope_utils.py`), whose arithmetic the files in the wild were
//! made for. Both spellings of the settings are understood: `rope_theta` + `rope_scaling`
//! (transformers 4) and `rope_parameters` (transformers 5).

use burn::prelude::*;
use frugal_core::suggest::did_you_mean;
use frugal_nn::{ModelError, RotaryTable, SequenceLayout};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::keys::{bad, shown};

/// How rotary frequencies are stretched beyond the trained context.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All positions divided by `factor`.
    Linear {
        /// Divisor of the positions.
        factor: f64,
    },
    /// The base grows once a sequence is longer than the trained context.
    Dynamic {
        /// Growth factor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies are divided, high ones kept, those between are blended.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided in full.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length of the original training.
        original_max_position_embeddings: f64,
    },
    /// YaRN: as Llama 3 with a ramp over dimensions and a temperature on the attention.
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Context length of the original training.
        original_max_position_embeddings: f64,
        /// Rotations above which a dimension is kept.
        beta_fast: f64,
        /// Rotations below which a dimension is divided in full.
        beta_slow: f64,
        /// Factor on cosine and sine.
        attention_factor: f64,
        /// Whether the ramp begins and ends at whole dimensions.
        truncate: bool,
    },
    /// LongRoPE: every frequency has a divisor of its own, other ones for sequences that are longer
    /// than the original context.
    Longrope {
        /// Divisors within the original context.
        short_factor: Vec<f64>,
        /// Divisors beyond it.
        long_factor: Vec<f64>,
        /// Context length of the original training.
        original_max_position_embeddings: f64,
        /// Factor on cosine and sine.
        attention_factor: f64,
    },
}

/// Rotary position settings of one kind of layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RopeConfig {
    /// Base of the geometric sequence of wavelengths.
    pub theta: f64,
    /// Context extension.
    pub scaling: RopeScaling,
}

/// Where rotary settings are read from.
pub struct RopeReader<'a> {
    /// The `config.json`.
    pub raw: &'a Value,
    /// What errors call it.
    pub source: &'a str,
    /// Base where the file gives none.
    pub default_theta: f64,
    /// Longest sequence.
    pub max_positions: usize,
    /// Width of the part of a head that is rotated.
    pub rotated: usize,
}

impl<'a> RopeReader<'a> {
    /// The settings of a model whose blocks are all alike in this.
    ///
    /// # Errors
    /// A kind that is not supported, a key that its kind needs and that is missing, a value that
    /// cannot be.
    pub fn uniform(&self) -> Result<RopeConfig, ModelError> {
        let [scaling, parameters] = self.objects()?;
        // An empty one is none, as in the reference.
        let given = |key: &'static str, object: Option<&'a Map<String, Value>>| {
            Some((key, object.filter(|object| !object.is_empty())?))
        };
        let block = given("rope_scaling", scaling).or_else(|| given("rope_parameters", parameters));
        let Some((key, block)) = block else {
            return self.settings(Block::new("rope_theta", &Map::new(), self.source));
        };
        if block.values().any(Value::is_object) {
            return Err(bad(
                self.source,
                key,
                "settings by kind of layer are not supported for this architecture",
            ));
        }
        self.settings(Block::new(key, block, self.source))
    }

    /// `rope_scaling` and `rope_parameters`, where they are given.
    fn objects(&self) -> Result<[Option<&'a Map<String, Value>>; 2], ModelError> {
        let mut found = [None, None];
        for (key, found) in ["rope_scaling", "rope_parameters"]
            .into_iter()
            .zip(&mut found)
        {
            let Some(value) = self.raw.get(key).filter(|value| !value.is_null()) else {
                continue;
            };
            let object = value.as_object();
            let reason = || format!("expected an object, found {value}");
            *found = Some(object.ok_or_else(|| bad(self.source, key, reason()))?);
        }
        Ok(found)
    }

    /// The settings of full-attention and of sliding-window blocks; the latter have a base of
    /// their own and no scaling unless the file says so.
    ///
    /// # Errors
    /// As [`Self::uniform`].
    pub fn by_layer_type(
        &self,
        local_key: &'static str,
        local_theta: f64,
    ) -> Result<[RopeConfig; 2], ModelError> {
        let key = "rope_parameters";
        let object = |value: Option<&'a Value>| value.and_then(Value::as_object);
        let [scaling, parameters] = self.objects()?;
        if let Some(flat) = parameters
            && flat.values().any(|v| !v.is_object() && !v.is_null())
        {
            return Err(bad(
                self.source,
                key,
                "expected the two objects `full_attention` and `sliding_attention`",
            ));
        }
        let of = |kind: &str| object(parameters.and_then(|p| p.get(kind)));
        let mut full = of("full_attention").cloned().unwrap_or_default();
        if let Some(scaling) = scaling {
            full.extend(scaling.clone());
        }
        let local = of("sliding_attention").cloned().unwrap_or_default();
        let local_theta = match self.raw.get(local_key).filter(|v| !v.is_null()) {
            None => local_theta,
            Some(v) => number(local_key, v, self.source)?,
        };
        let of_kind = |values, theta| Block {
            theta,
            of_one_kind: parameters.is_some(),
            ..Block::new(key, values, self.source)
        };
        Ok([
            self.settings(of_kind(&full, None))?,
            self.settings(of_kind(&local, Some(local_theta)))?,
        ])
    }

    fn settings(&self, block: Block<'_>) -> Result<RopeConfig, ModelError> {
        let top = |key: &'static str| match self.raw.get(key).filter(|v| !v.is_null()) {
            None => Ok(None),
            Some(v) => number(key, v, self.source).map(Some),
        };
        let theta = match (block.number("rope_theta")?, block.theta) {
            (Some(theta), _) | (None, Some(theta)) => theta,
            (None, None) => top("rope_theta")?.unwrap_or(self.default_theta),
        };
        if let Some(share) = block.number("partial_rotary_factor")?
            && share != 1.0
        {
            return Err(block.bad(format!(
                "`partial_rotary_factor` {} is not supported for this architecture, only 1",
                shown(share)
            )));
        }
        let max = self.max_positions as f64;
        let key = "original_max_position_embeddings";
        // The file's own wins over that of the one block, and is not looked at where there are
        // blocks by kind of layer.
        let of_all = if block.of_one_kind { None } else { top(key)? };
        let original = of_all.or(block.number(key)?).unwrap_or(max);
        let kind = block.kind()?;
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear {
                factor: block.needed("factor")?,
            },
            "dynamic" => RopeScaling::Dynamic {
                factor: block.needed("factor")?,
            },
            "llama3" => RopeScaling::Llama3 {
                factor: block.needed("factor")?,
                low_freq_factor: block.needed("low_freq_factor")?,
                high_freq_factor: block.needed("high_freq_factor")?,
                original_max_position_embeddings: original,
            },
            "yarn" => block.yarn(original, max)?,
            "longrope" => block.longrope(original, max, self.rotated)?,
            other => {
                return Err(block.bad(format!(
                    "kind `{other}` is not supported; supported: default, linear, dynamic, llama3, yarn, longrope"
                )));
            }
        };
        for (name, value) in [("theta", theta), ("original length", original)] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(block.bad(format!(
                    "{name} {} given, but it must be positive",
                    shown(value)
                )));
            }
        }
        Ok(RopeConfig { theta, scaling })
    }
}

/// Refuses keys that rotary settings of their kind do not have, and that would be passed over.
///
/// # Errors
/// Names the key, and what there is.
pub(crate) fn check_keys(
    key: &'static str,
    settings: &Map<String, Value>,
    source: &str,
) -> Result<(), ModelError> {
    if settings.values().any(Value::is_object) {
        let kinds = settings.values().filter_map(Value::as_object);
        return kinds
            .into_iter()
            .try_for_each(|kind| check_keys(key, kind, source));
    }
    let kind = Block::new(key, settings, source).kind()?;
    let own: &[&str] = match kind {
        "linear" | "dynamic" => &["factor"],
        "llama3" => &["factor", "low_freq_factor", "high_freq_factor"],
        "yarn" => &[
            "factor",
            "attention_factor",
            "mscale",
            "mscale_all_dim",
            "beta_fast",
            "beta_slow",
            "truncate",
        ],
        "longrope" => &["factor", "attention_factor", "short_factor", "long_factor"],
        _ => &[],
    };
    let shared = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];
    let original = "original_max_position_embeddings";
    let stretched = ["llama3", "yarn", "longrope"].contains(&kind);
    let known =
        |name: &str| shared.contains(&name) || own.contains(&name) || stretched && name == original;
    let Some(unknown) = settings.keys().find(|name| !known(name)) else {
        return Ok(());
    };
    let mut names: Vec<&str> = own.to_vec();
    names.extend(stretched.then_some(original));
    names.extend(["rope_type", "rope_theta"]);
    let hint = did_you_mean(unknown, names.iter().copied());
    let hint = hint.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
    let reason = format!(
        "`{unknown}` is no key of the kind `{kind}`, which has `{}`{hint}",
        names.join("`, `")
    );
    Err(bad(source, key, reason))
}

fn number(key: &str, value: &Value, source: &str) -> Result<f64, ModelError> {
    value
        .as_f64()
        .ok_or_else(|| bad(source, key, format!("expected a number, found {value}")))
}

/// One object of rotary settings.
struct Block<'a> {
    key: &'static str,
    values: &'a Map<String, Value>,
    source: &'a str,
    /// Base where the object has none, before the file's own.
    theta: Option<f64>,
    /// Whether the object speaks of one kind of layer only.
    of_one_kind: bool,
}

impl<'a> Block<'a> {
    fn new(key: &'static str, values: &'a Map<String, Value>, source: &'a str) -> Self {
        Self {
            key,
            values,
            source,
            theta: None,
            of_one_kind: false,
        }
    }

    fn bad(&self, reason: impl Into<String>) -> ModelError {
        bad(self.source, self.key, reason)
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.values.get(key).filter(|v| !v.is_null())
    }

    fn kind(&self) -> Result<&'a str, ModelError> {
        match self.get("rope_type").or_else(|| self.get("type")) {
            None => Ok("default"),
            Some(kind) => kind
                .as_str()
                .ok_or_else(|| self.bad(format!("`rope_type`: expected text, found {kind}"))),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value
            .as_f64()
            .map(Some)
            .ok_or_else(|| self.bad(format!("`{key}`: expected a number, found {value}")))
    }

    /// A positive number that the kind cannot do without.
    fn needed(&self, key: &str) -> Result<f64, ModelError> {
        let value = self
            .number(key)?
            .ok_or_else(|| self.bad(format!("`{key}` is missing")))?;
        self.positive(key, value)
    }

    fn positive(&self, key: &str, value: f64) -> Result<f64, ModelError> {
        if value > 0.0 && value.is_finite() {
            Ok(value)
        } else {
            Err(self.bad(format!("`{key}` is {}, but must be positive", shown(value))))
        }
    }

    fn yarn(&self, original: f64, max_positions: f64) -> Result<RopeScaling, ModelError> {
        let factor = self.number("factor")?.unwrap_or(max_positions / original);
        let factor = self.positive("factor", factor)?;
        let given = |key: &str| Ok::<_, ModelError>(self.number(key)?.filter(|v| *v != 0.0));
        let attention_factor = match (
            self.number("attention_factor")?,
            given("mscale")?,
            given("mscale_all_dim")?,
        ) {
            (Some(factor), ..) => factor,
            (None, Some(scale), Some(all)) => mscale(factor, scale) / mscale(factor, all),
            (None, ..) => mscale(factor, 1.0),
        };
        let truncate = match self.get("truncate") {
            None => true,
            Some(value) => value.as_bool().ok_or_else(|| {
                self.bad(format!("`truncate`: expected true or false, found {value}"))
            })?,
        };
        Ok(RopeScaling::Yarn {
            factor,
            original_max_position_embeddings: original,
            beta_fast: self.positive("beta_fast", given("beta_fast")?.unwrap_or(32.0))?,
            beta_slow: self.positive("beta_slow", given("beta_slow")?.unwrap_or(1.0))?,
            attention_factor,
            truncate,
        })
    }

    fn longrope(
        &self,
        original: f64,
        max_positions: f64,
        rotated: usize,
    ) -> Result<RopeScaling, ModelError> {
        let factors = |key: &str| {
            let list = self.get(key).and_then(Value::as_array);
            let list = list.ok_or_else(|| self.bad(format!("the list `{key}` is missing")))?;
            if list.len() != rotated / 2 {
                let expected = rotated / 2;
                return Err(self.bad(format!(
                    "`{key}` has {} numbers for {expected} rotated pairs",
                    list.len()
                )));
            }
            let value = |v: &Value| {
                let value = v
                    .as_f64()
                    .ok_or_else(|| self.bad(format!("`{key}`: expected numbers, found {v}")))?;
                self.positive(key, value)
            };
            list.iter().map(value).collect::<Result<Vec<f64>, _>>()
        };
        let factor = self.number("factor")?.unwrap_or(max_positions / original);
        let attention_factor = match self.number("attention_factor")? {
            Some(factor) => factor,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / original.ln()).sqrt(),
        };
        Ok(RopeScaling::Longrope {
            short_factor: factors("short_factor")?,
            long_factor: factors("long_factor")?,
            original_max_position_embeddings: original,
            attention_factor,
        })
    }
}

/// YaRN's growth of attention with the stretch of positions.
pub fn mscale(factor: f64, scale: f64) -> f64 {
    if factor <= 1.0 {
        1.0
    } else {
        0.1 * scale * factor.ln() + 1.0
    }
}

/// Inverse frequencies `[head_dim / 2]` and the factor on cosine and sine.
///
/// `longest` is the length of the longest sequence, which only the kinds `dynamic` and
/// `longrope` look at.
pub fn inverse_frequencies(
    rope: &RopeConfig,
    head_dim: usize,
    max_positions: usize,
    longest: usize,
) -> (Vec<f32>, f32) {
    let dim = head_dim as f64;
    let plain = |theta: f64| -> Vec<f64> {
        (0..head_dim / 2)
            .map(|i| theta.powf(-(2.0 * i as f64) / dim))
            .collect()
    };
    let mut attention = 1.0;
    let frequencies = match &rope.scaling {
        RopeScaling::None => plain(rope.theta),
        RopeScaling::Linear { factor } => plain(rope.theta).iter().map(|f| f / factor).collect(),
        &RopeScaling::Dynamic { factor } => {
            let (trained, length) = (max_positions as f64, longest.max(max_positions) as f64);
            plain(rope.theta * (factor * length / trained - (factor - 1.0)).powf(dim / (dim - 2.0)))
        }
        &RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: original,
        } => {
            let (low, high) = (original / low_freq_factor, original / high_freq_factor);
            let blend = |f: f64| {
                let wavelength = std::f64::consts::TAU / f;
                if wavelength > low {
                    f / factor
                } else if wavelength < high {
                    f
                } else {
                    let smooth = (original / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * f / factor + smooth * f
                }
            };
            plain(rope.theta).into_iter().map(blend).collect()
        }
        &RopeScaling::Yarn {
            factor,
            original_max_position_embeddings: original,
            beta_fast,
            beta_slow,
            attention_factor,
            truncate,
        } => {
            attention = attention_factor;
            let dimension = |rotations: f64| {
                dim * (original / (rotations * std::f64::consts::TAU)).ln()
                    / (2.0 * rope.theta.ln())
            };
            let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
            if truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            let (low, high) = (low.max(0.0), high.min(dim - 1.0));
            let span = if high == low { 0.001 } else { high - low };
            let ramp = |i: usize, f: f64| {
                let kept = 1.0 - ((i as f64 - low) / span).clamp(0.0, 1.0);
                f / factor * (1.0 - kept) + f * kept
            };
            plain(rope.theta)
                .into_iter()
                .enumerate()
                .map(|(i, f)| ramp(i, f))
                .collect()
        }
        RopeScaling::Longrope {
            short_factor,
            long_factor,
            original_max_position_embeddings: original,
            attention_factor,
        } => {
            attention = *attention_factor;
            let factors = if longest as f64 > *original {
                long_factor
            } else {
                short_factor
            };
            plain(rope.theta)
                .into_iter()
                .zip(factors)
                .map(|(f, factor)| f / factor)
                .collect()
        }
    };
    (
        frequencies.into_iter().map(|f| f as f32).collect(),
        attention as f32,
    )
}

/// Table for the positions of a batch, of which each sequence's first is `offset` later than the
/// layout says. Every sequence is stretched by its own length.
pub fn rotary_table(
    rope: &RopeConfig,
    rotated: usize,
    max_positions: usize,
    layout: &SequenceLayout,
    offset: u32,
    device: &Device,
) -> RotaryTable {
    let count = layout.position_ids.len() * rotated / 2;
    let (mut cos, mut sin) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for range in layout.cu_seqlens.windows(2) {
        let positions = &layout.position_ids[range[0]..range[1]];
        let longest = positions
            .iter()
            .max()
            .map_or(0, |p| (p + offset) as usize + 1);
        let (frequencies, factor) = inverse_frequencies(rope, rotated, max_positions, longest);
        for &position in positions {
            for &frequency in &frequencies {
                let angle = (position + offset) as f32 * frequency;
                cos.push(angle.cos() * factor);
                sin.push(angle.sin() * factor);
            }
        }
    }
    let shape = [layout.position_ids.len(), rotated / 2];
    RotaryTable {
        cos: Tensor::from_data(TensorData::new(cos, shape), device),
        sin: Tensor::from_data(TensorData::new(sin, shape), device),
    }
}
/// The first part of each head `[tokens, heads * dim]` rotated, as wide as the table says, and the
/// rest as it is.
pub(crate) fn rotate(x: Tensor<2>, rotary: &RotaryTable, dim: usize) -> Tensor<2> {
    let turn = |x: Tensor<2>, width: usize| {
        frugal_kernels::rope(x, rotary.cos.clone(), rotary.sin.clone(), width)
    };
    let rotated = 2 * rotary.cos.dims()[1];
    if rotated == dim {
        return turn(x, dim);
    }
    let [tokens, width] = x.dims();
    let heads = width / dim;
    let x = x.reshape([tokens, heads, dim]);
    let first = x.clone().narrow(2, 0, rotated);
    let first = turn(first.reshape([tokens, heads * rotated]), rotated);
    let rest = x.narrow(2, rotated, dim - rotated);
    Tensor::cat(vec![first.reshape([tokens, heads, rotated]), rest], 2).reshape([tokens, width])
}
