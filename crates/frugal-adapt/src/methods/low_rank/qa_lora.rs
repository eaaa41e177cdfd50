//! # QA-LoRA: quantisation-aware low-rank adaptation
//!
//! ## What it does
//! LoRA on sums of neighbouring inputs, so that the change is one number for each output and group
//! of inputs. Weights held in groups of few bits take it up in their offsets: the merged model has
//! the same codes.
//!
//! ## Update rule
//! `y = x Wᵀ + s · p(x) Aᵀ Bᵀ`, where `p(x) [d_in / g]` are the means of groups of `g` inputs times
//! the number of groups, with `A [r, d_in / g]`, `B [d_out, r]` and `s = lora_alpha / r`. So
//! `ΔW = s (d_in / g²) B A`, each column repeated `g` times.
//!
//! ## When to use, when not
//! For a model that will run in few bits with an offset for each group (GGUF's Q4_1): train with
//! `quantize = "q4_1"`, merge, and export as Q4_1; the codes are those of the base model and only
//! the offsets differ, which as halves round the change. With formats that have no offset (Q8_0,
//! NF4) nothing is gained over `lora`, which has more freedom.
//!
//! ## Cost
//! Trainable: `r (d_in / g + d_out)` per layer, about half of LoRA's for a square layer. Ranks above
//! `d_in / g` add nothing. Extra compute: that of LoRA. None after merging.
//!
//! ## Defaults and where they come from
//! `r = 8`, `lora_alpha = 16` as `lora`; groups of 32, those of Q4_1 (Hugging Face `peft` has 16,
//! which merges as well). `A` is uniform within `±1/sqrt(d_in / g)` and `B` zero, as in `peft`. The
//! learning rate is that of `lora`; where the sums are large, less is better: SmolLM2-135M held as
//! Q4_1, on 400 sentences twice, gave a perplexity of 60.18 with 1e-4, 60.99 with 5e-4 and 66.23
//! with 2e-3, from 62.41; merged and written as Q4_1 again 60.19, 61.09 and 66.42. MiniLM needs
//! 5e-4.
//!
//! ## Departures from the paper
//! The paper multiplies the mean by the size of a group, which makes sums; `peft` by the number of
//! groups, and its files are read and written here, so this does too. With `d_in = 576` and
//! `g = 32` that is 18 instead of 32.
//!
//! ## References
//! - Xu, Xie, Gu, Chen, Chang, Zhang, Chen, Zhang, Tian: QA-LoRA: Quantization-Aware Low-Rank
//!   Adaptation of Large Language Models, 2023, arXiv 2309.14717.
//! - <https://github.com/yuhuixu1993/qa-lora> (the paper's), `QALoraLinearVariant` of Hugging Face
//!   `peft`.

use burn::prelude::*;
use frugal_nn::{AdaptError, Adapter, BuildContext, Mode, Parameter, named_rng};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::method::{Family, Method, MethodConfig};
use crate::methods::low_rank::lora::{self, Init};
use crate::methods::low_rank::lora_config::peft_fields_without_use;
use crate::settings::Settings;
use crate::support::dropout::dropout;
use crate::support::per_linear::{self, LinearAdapter, LinearSite, PerLinear, bad};
use crate::support::values::{kaiming, object};
use crate::target::Targets;

const NAME: &str = "qa-lora";

/// Registry entry.
pub const METHOD: Method = Method::of::<QaLoraConfig>(
    Family::LowRank,
    "A low-rank change that weights in few bits take up in their offsets",
    include_str!("qa_lora.rs"),
)
.aliases(&["qalora"])
.default_lr(5e-4)
.peft_variant(|config| config.get("use_qalora") == Some(&Value::Bool(true)));

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct QaLoraConfig {
    /// Rank.
    pub r: usize,
    /// Scale numerator.
    pub lora_alpha: f64,
    /// Probability of dropping an input element on the low-rank path while training.
    pub lora_dropout: f64,
    /// Scale by `lora_alpha / sqrt(r)`.
    pub use_rslora: bool,
    /// Inputs of a group; divides the inputs of every layer.
    pub qalora_group_size: usize,
    /// `true`: uniform `A`, zero `B`. `false`: both random, for tests.
    pub init_lora_weights: Init,
    /// Which layers.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for QaLoraConfig {
    fn default() -> Self {
        Self {
            r: 8,
            lora_alpha: 16.0,
            lora_dropout: 0.0,
            use_rslora: false,
            qalora_group_size: 32,
            init_lora_weights: Init::Default(true),
            targets: Targets::default(),
        }
    }
}

impl MethodConfig for QaLoraConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "LORA";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.r == 0 || self.qalora_group_size == 0 {
            return bad(
                NAME,
                if self.r == 0 {
                    "r"
                } else {
                    "qalora_group_size"
                },
                "must be at least 1",
            );
        }
        if !self.lora_alpha.is_finite() {
            return bad(NAME, "lora_alpha", "must be a finite number");
        }
        if matches!(self.init_lora_weights, Init::Named(_)) {
            return bad(NAME, "init_lora_weights", "supported: true, false");
        }
        per_linear::check_dropout(NAME, "lora_dropout", self.lora_dropout)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        // What makes it no LoRA that is known here is refused.
        lora::variant_from_peft(NAME, config, &["use_qalora"])?;
        let none = [json!(false), json!({}), json!([]), json!("none")];
        let fixed =
            ["bias", "lora_bias", "rank_pattern", "alpha_pattern"].map(|field| (field, &none[..]));
        let settings = per_linear::from_peft::<QaLoraConfig>(
            NAME,
            config,
            json!({"lora_alpha": 8, "qalora_group_size": 16}),
            &fixed,
        )?;
        Ok(settings
            .into_iter()
            .chain([("init_lora_weights".to_owned(), json!(true))])
            .collect())
    }
}

fn build(config: QaLoraConfig, context: &BuildContext<'_>) -> Result<PerLinear<Pair>, AdaptError> {
    config.validate()?;
    let mut constants = object(peft_fields_without_use());
    let own = json!({
        "use_qalora": true, "qalora_group_size": config.qalora_group_size, "fan_in_fan_out": false, "bias": "none",
        "lora_bias": false, "rank_pattern": {}, "alpha_pattern": {},
    });
    constants.extend(object(own));
    let (r, group) = (config.r, config.qalora_group_size);
    PerLinear::new(
        &METHOD,
        &config.targets,
        context,
        &config,
        Value::Object(constants),
        |_, info| {
            let (path, d_in, d_out) = (&info.path, info.d_in, info.d_out);
            if !d_in.is_multiple_of(group) {
                return bad(
                    NAME,
                    "qalora_group_size",
                    format!("{group} does not divide the {d_in} inputs of `{path}`"),
                );
            }
            let groups = d_in / group;
            if r > crate::sizes::most_rank(d_in, d_out) {
                return bad(
                    NAME,
                    "r",
                    format!("rank {r} is more than `{path}` ({d_out} x {d_in}) has a use for"),
                );
            }
            let mut rng = named_rng(context.seed, path);
            let a = kaiming(&mut rng, r * groups, groups);
            let b = if config.init_lora_weights == Init::Default(false) {
                kaiming(&mut rng, d_out * r, r)
            } else {
                vec![0.0; d_out * r]
            };
            let alpha_over_rank = if config.use_rslora {
                config.lora_alpha / (r as f64).sqrt()
            } else {
                config.lora_alpha / r as f64
            };
            Ok(Pair {
                a: Parameter::new(
                    format!("{path}.lora_A.weight"),
                    &[r, groups],
                    a,
                    &context.device,
                ),
                b: Parameter::new(
                    format!("{path}.lora_B.weight"),
                    &[d_out, r],
                    b,
                    &context.device,
                ),
                group,
                scale: (alpha_over_rank * groups as f64 / group as f64) as f32,
                dropout: config.lora_dropout,
            })
        },
    )
}

/// The low-rank pair of one layer.
struct Pair {
    /// `[r, d_in / group]`.
    a: Parameter,
    /// `[d_out, r]`.
    b: Parameter,
    group: usize,
    /// Of `B A` in the weight.
    scale: f32,
    dropout: f64,
}

impl Pair {
    /// `A` with each column repeated for the inputs of its group, `[r, d_in]`.
    fn spread_a(&self, mode: Mode) -> Tensor<2> {
        let [r, groups] = [self.a.shape()[0], self.a.shape()[1]];
        self.a
            .get::<2>(mode)
            .reshape([r, groups, 1])
            .repeat_dim(2, self.group)
            .reshape([r, groups * self.group])
    }

    /// What is added to the weight, `[d_out, d_in]`.
    fn change(&self, mode: Mode) -> Tensor<2> {
        self.b.get::<2>(mode).matmul(self.spread_a(mode)) * self.scale
    }
}

impl LinearAdapter for Pair {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.a, &self.b]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.a, &mut self.b]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        self.change(at.mode)
    }

    fn materializes_weight(&self) -> bool {
        false
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        let (a, b) = (self.spread_a(at.mode), self.b.get::<2>(at.mode));
        match at.mode {
            Mode::Train { seed } if self.dropout > 0.0 => {
                let dropped = dropout(x.clone(), self.dropout, seed, at.path);
                at.base.forward(x)
                    + frugal_kernels::linear(frugal_kernels::linear(dropped, a, None), b, None)
                        * self.scale
            }
            _ => at.base.forward_low_rank(x, a, b, self.scale),
        }
    }
}

#[cfg(test)]
mod tests {
    use frugal_formats::gguf::{GgmlType, dequantize, quantize};

    use super::*;
    use frugal_nn::{standard_normal, to_vec};

    #[test]
    fn a_merged_change_moves_the_offsets_of_q4_1_and_no_code() {
        let (d_out, groups, group, r) = (24, 4, 32, 3);
        let device = Device::flex();
        let mut rng = named_rng(3, "test");
        let mut random = |len: usize| {
            (0..len)
                .map(|_| standard_normal(&mut rng))
                .collect::<Vec<f32>>()
        };
        let weight = random(d_out * groups * group);
        let (a, b) = (random(r * groups), random(d_out * r));
        let pair = Pair {
            a: Parameter::new("a", &[r, groups], a, &device),
            b: Parameter::new("b", &[d_out, r], b, &device),
            group,
            scale: 0.25,
            dropout: 0.0,
        };
        let stored = quantize(GgmlType::Q4_1, &weight).unwrap();
        let held = dequantize(GgmlType::Q4_1, &stored);
        let merge = |change: &[f32]| {
            let merged: Vec<f32> = held
                .iter()
                .zip(change)
                .map(|(w, change)| w + change)
                .collect();
            let again = quantize(GgmlType::Q4_1, &merged).unwrap();
            // A block: step and offset in two bytes each, then two codes in a byte.
            let moved = again
                .chunks(20)
                .zip(stored.chunks(20))
                .flat_map(|(a, b)| a[4..].iter().zip(&b[4..]))
                .filter(|(a, b)| a != b)
                .count();
            let lost = merged
                .iter()
                .zip(dequantize(GgmlType::Q4_1, &again))
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            (moved, lost)
        };
        let change = to_vec(pair.change(Mode::Eval));
        assert!(
            change
                .chunks(group)
                .all(|group| group.iter().all(|v| *v == group[0]))
                && change.iter().any(|v| v.abs() > 0.2)
        );
        let (moved, lost) = merge(&change);
        // Offsets are halves: numbers below 8 are off by at most 1/512.
        assert!(
            moved == 0 && lost <= 1.0 / 512.0,
            "{moved} pairs of codes moved, {lost} lost"
        );
        // The same numbers spread over other inputs, as a plain LoRA may, cost codes and precision.
        let mut other = change;
        other.reverse();
        let len = other.len();
        (0..len)
            .step_by(2)
            .for_each(|i| other.swap(i, (i * 7 + 64) % len));
        let (moved, lost) = merge(&other);
        assert!(
            moved > 100 && lost > 0.02,
            "{moved} pairs of codes moved, {lost} lost"
        );
    }
}
