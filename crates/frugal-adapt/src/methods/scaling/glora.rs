//! # GLoRA: generalised low-rank adaptation
//!
//! ## What it does
//! Scales and shifts each weight and its bias at once, each part as a low-rank matrix, a vector or
//! one number: LoRA, scaling of features and trained biases in one formula.
//!
//! ## Update rule
//! `W' = W + W ⊙ A + B`, `b' = b + b ⊙ D + E + W C`. `A` and `B` are low-rank matrices, columns `[d_out, 1]`
//! or numbers; `C [d_in]` a low-rank product or a vector; `D` and `E` vectors `[d_out]` or numbers; each pair
//! can be left out (`"none"`).
//!
//! ## When to use, when not
//! Where it is not known what has to change and a search over the parts is affordable: the paper
//! evolves a choice for each layer. With one choice for all, LoRA is simpler.
//!
//! ## Cost
//! Trainable: `2 r (d_in + d_out)` and, in layers with biases, `r (d_in + 1) + 2` per layer with the
//! defaults. Extra compute: `2 r d_in d_out` multiply-adds per layer and step, forward. None after
//! merging.
//!
//! ## Defaults and where they come from
//! `r = 8`, low-rank `A`, `B` and `C`, numbers for `D` and `E`: Hugging Face `peft`. All start at zero, the
//! second factor of a low-rank part Kaiming-uniform.
//!
//! ## Departures from the paper
//! The search over the parts of each layer is not offered, as in `peft`. Layers without bias get none,
//! as there.
//!
//! ## References
//! - Chavan, Liu, Gupta, Xing, Shen: One-for-All: Generalized LoRA for Parameter-Efficient
//!   Fine-tuning, 2023, arXiv 2306.07967.

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, MergedLinear, Mode, Parameter, named_rng, standard_normal,
};
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::per_linear::{self, LinearAdapter, LinearSite, PerLinear, bad};
use crate::support::values::kaiming;
use crate::target::{Names, Targets};

const NAME: &str = "glora";

/// Registry entry.
pub const METHOD: Method = Method::of::<GloraConfig>(
    Family::Scaling,
    "Scales and shifts weights and biases, each in a form of its own",
    include_str!("glora.rs"),
);

/// The form of one part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// A product of two thin matrices.
    Lora,
    /// A number for each row.
    Vector,
    /// One number.
    Constant,
    /// Left out.
    None,
}

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GloraConfig {
    /// Rank of low-rank parts.
    pub r: usize,
    /// Form of what scales the weight and of what is added to it.
    #[serde(rename = "config_A_B")]
    pub config_a_b: Form,
    /// Form of what the weight adds to the bias: low-rank, a vector or none.
    #[serde(rename = "config_C")]
    pub config_c: Form,
    /// Form of what scales the bias and of what is added to it: a vector, a constant or none.
    #[serde(rename = "config_D_E")]
    pub config_d_e: Form,
    /// Start without a change; otherwise with a random one, for tests.
    pub init_weights: bool,
    /// Path endings, one regular expression over the whole path, or `all-linear`.
    pub target_modules: Names,
}

impl Default for GloraConfig {
    fn default() -> Self {
        Self {
            r: 8,
            config_a_b: Form::Lora,
            config_c: Form::Lora,
            config_d_e: Form::Constant,
            init_weights: true,
            target_modules: Targets::default().target_modules,
        }
    }
}

impl MethodConfig for GloraConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "GLORA";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.r == 0 {
            return bad(NAME, "r", "must be at least 1");
        }
        if self.config_c == Form::Constant {
            return bad(NAME, "config_C", "must be `lora`, `vector` or `none`");
        }
        if self.config_d_e == Form::Lora {
            return bad(NAME, "config_D_E", "must be `vector`, `constant` or `none`");
        }
        if [self.config_a_b, self.config_c, self.config_d_e] == [Form::None; 3] {
            return bad(
                NAME,
                "config_A_B",
                "every part is left out: nothing is trained",
            );
        }
        Ok(())
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        per_linear::from_peft_without_bias::<GloraConfig>(NAME, config)
    }
}

fn build(config: GloraConfig, context: &BuildContext<'_>) -> Result<PerLinear<Parts>, AdaptError> {
    config.validate()?;
    let targets = Targets {
        target_modules: config.target_modules.clone(),
        ..Targets::default()
    };
    let constants = json!({"bias": "none"});
    PerLinear::new(&METHOD, &targets, context, &config, constants, |_, info| {
        let (d_in, d_out) = (info.d_in, info.d_out);
        let mut rng = named_rng(context.seed, &info.path);
        let mut part = |letter: char, form: Form, shape: Shape, where_bias: bool| {
            let form = if where_bias && !info.has_bias {
                Form::None
            } else {
                form
            };
            let name = format!("{}.glora_{letter}", info.path);
            Part::new(&config, form, &name, shape, &context.device, &mut rng)
        };
        let matrix = Shape {
            rows: d_out,
            cols: d_in,
            column: true,
        };
        Ok(Parts {
            a: part('A', config.config_a_b, matrix, false),
            b: part('B', config.config_a_b, matrix, false),
            c: part(
                'C',
                config.config_c,
                Shape {
                    rows: d_in,
                    cols: 1,
                    column: true,
                },
                true,
            ),
            d: part(
                'D',
                config.config_d_e,
                Shape {
                    rows: d_out,
                    cols: 1,
                    column: false,
                },
                true,
            ),
            e: part(
                'E',
                config.config_d_e,
                Shape {
                    rows: d_out,
                    cols: 1,
                    column: false,
                },
                true,
            ),
            has_bias: info.has_bias,
        })
    })
}

/// What a part stands for: a matrix or, with one column, a vector; `column` says how files write a
/// vector.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    cols: usize,
    column: bool,
}

/// One part of a layer.
enum Part {
    /// `[rows, r]` and `[r, cols]`.
    Lora([Parameter; 2]),
    /// `[rows, 1]` or `[rows]`.
    Vector(Parameter),
    /// `[1]`.
    Constant(Parameter),
    /// Zeros that files hold.
    None(Parameter),
}

impl Part {
    fn new(
        config: &GloraConfig,
        form: Form,
        name: &str,
        shape: Shape,
        device: &Device,
        rng: &mut impl Rng,
    ) -> Self {
        let (Shape { rows, cols, column }, r) = (shape, config.r);
        let column_of = |rows: usize| if column { vec![rows, 1] } else { vec![rows] };
        let mut first = |len: usize, fan_in: usize| match config.init_weights {
            true => vec![0.0; len],
            false => kaiming(rng, len, fan_in),
        };
        match form {
            Form::Lora => {
                let d = first(rows * r, r);
                let u = kaiming(rng, r * cols, cols);
                Self::Lora([
                    Parameter::new(format!("{name}.Xd"), &[rows, r], d, device),
                    Parameter::new(format!("{name}.Xu"), &[r, cols], u, device),
                ])
            }
            Form::Vector => {
                let x = first(rows, if column { 1 } else { rows });
                Self::Vector(Parameter::new(
                    format!("{name}.X"),
                    &column_of(rows),
                    x,
                    device,
                ))
            }
            Form::Constant => {
                let x = match config.init_weights {
                    true => 0.0,
                    false => 0.02 * standard_normal(rng),
                };
                Self::Constant(Parameter::new(format!("{name}.X"), &[1], vec![x], device))
            }
            Form::None => {
                let shape = if cols == 1 {
                    column_of(rows)
                } else {
                    vec![rows, cols]
                };
                let zeros = vec![0.0; rows * cols];
                Self::None(Parameter::frozen(
                    format!("{name}.zeros"),
                    &shape,
                    zeros,
                    device,
                ))
            }
        }
    }

    fn parameters(&self) -> &[Parameter] {
        match self {
            Self::Lora(both) => both,
            Self::Vector(x) | Self::Constant(x) | Self::None(x) => std::slice::from_ref(x),
        }
    }

    fn parameters_mut(&mut self) -> &mut [Parameter] {
        match self {
            Self::Lora(both) => both,
            Self::Vector(x) | Self::Constant(x) | Self::None(x) => std::slice::from_mut(x),
        }
    }

    /// Its value, broadcast against `[rows, cols]`.
    fn get(&self, mode: Mode) -> Tensor<2> {
        let flat = |x: &Parameter| {
            let all = x.shape().iter().product::<usize>();
            match x.shape().len() {
                2 => x.get::<2>(mode),
                _ => x.get::<1>(mode).reshape([all, 1]),
            }
        };
        match self {
            Self::Lora([d, u]) => d.get::<2>(mode).matmul(u.get::<2>(mode)),
            Self::Vector(x) | Self::Constant(x) | Self::None(x) => flat(x),
        }
    }
}

/// All parts of one layer.
struct Parts {
    a: Part,
    b: Part,
    c: Part,
    d: Part,
    e: Part,
    has_bias: bool,
}

impl Parts {
    fn all(&self) -> [&Part; 5] {
        [&self.a, &self.b, &self.c, &self.d, &self.e]
    }

    fn changed(&self, at: &LinearSite<'_>) -> MergedLinear {
        let weight = at.base.weight.dense();
        let get = |part: &Part| part.get(at.mode);
        let bias = at.base.bias.clone().filter(|_| self.has_bias).map(|bias| {
            let rows = bias.dims()[0];
            let bias = bias.reshape([rows, 1]);
            let through = weight.clone().matmul(get(&self.c));
            (bias.clone() + bias * get(&self.d) + get(&self.e) + through).reshape([rows])
        });
        MergedLinear {
            weight: weight.clone() + weight * get(&self.a) + get(&self.b),
            bias: bias.or_else(|| at.base.bias.clone()),
        }
    }
}

impl LinearAdapter for Parts {
    fn parameters(&self) -> Vec<&Parameter> {
        self.all().into_iter().flat_map(Part::parameters).collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let all = [
            &mut self.a,
            &mut self.b,
            &mut self.c,
            &mut self.d,
            &mut self.e,
        ];
        all.into_iter().flat_map(Part::parameters_mut).collect()
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        self.changed(at).weight - at.base.weight.dense()
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        let changed = self.changed(at);
        frugal_kernels::linear(x, changed.weight, changed.bias)
    }

    fn merged(&self, at: &LinearSite<'_>) -> MergedLinear {
        self.changed(at)
    }

    fn unmerged(&self, at: &LinearSite<'_>) -> Result<MergedLinear, String> {
        let get = |part: &Part| part.get(Mode::Eval);
        let (scale, bias_scale) = (get(&self.a) + 1.0, get(&self.d) + 1.0);
        let smallest = |t: &Tensor<2>| t.clone().abs().min().into_scalar::<f32>();
        if smallest(&scale) < 1e-6 || smallest(&bias_scale) < 1e-6 {
            return Err("a weight was multiplied by zero, which has no way back: load the base model instead".into());
        }
        let weight = (at.base.weight.dense() - get(&self.b)) / scale;
        let bias = at.base.bias.clone().filter(|_| self.has_bias).map(|bias| {
            let rows = bias.dims()[0];
            let through = weight.clone().matmul(get(&self.c));
            ((bias.reshape([rows, 1]) - get(&self.e) - through) / bias_scale).reshape([rows])
        });
        Ok(MergedLinear {
            weight,
            bias: bias.or_else(|| at.base.bias.clone()),
        })
    }
}
