//! # (IA)³: factors on activations
//!
//! ## What it does
//! Learns one factor per channel for keys, values and the hidden channels of the feed-forward part,
//! and nothing else.
//!
//! ## Update rule
//! `y = l ⊙ (x Wᵀ + b)` with `l [d_out]` for ordinary layers, `y = (l ⊙ x) Wᵀ + b` with `l [d_in]`
//! for those in `feedforward_modules`.
//!
//! ## When to use, when not
//! With very few examples, or where many adapters must be stored: it is the smallest method that
//! acts in every block. With thousands of examples low-rank methods reach more.
//!
//! ## Cost
//! Trainable: `d_out` (or `d_in`) per layer. Extra compute: one multiplication per activation, but no
//! weight gradients at all. None after merging.
//!
//! ## Defaults and where they come from
//! Targets by architecture as in Hugging Face `peft`: key, value and down projection, and query
//! instead of key for Qwen and Gemma, as there. The factors start at one. The learning rate comes
//! from a sweep (`benchmarks/rates`) and is five times the paper's 3e-3.
//!
//! ## Departures from the paper
//! The paper scales the output of the activation function; `peft` and this implementation scale the
//! input of the layer behind it, which is the same channel. On BERT the ending `output.dense` also
//! matches the output layer of the attention, as in `peft`.
//!
//! ## References
//! - Liu, Tam, Muqeeth, Mohta, Huang, Bansal, Raffel: Few-Shot Parameter-Efficient Fine-Tuning is
//!   Better and Cheaper than In-Context Learning, 2022, arXiv 2205.05638.

use std::collections::HashSet;

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, MergedLinear, Mode, Parameter, SiteId, SiteTable, named_rng,
    standard_normal, to_vec,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::pattern::Pattern;
use crate::settings::Settings;
use crate::support::per_linear::{self, LinearAdapter, LinearSite, PerLinear, bad};
use crate::target::{Names, Targets, ends_with_component, saved_targets};

const NAME: &str = "ia3";

/// Registry entry.
pub const METHOD: Method = Method::of::<Ia3Config>(
    Family::Scaling,
    "One learned factor per channel of keys, values and feed-forward",
    include_str!("ia3.rs"),
)
.aliases(&["(ia)3"])
.default_lr(1.5e-2);

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ia3Config {
    /// Path endings, or one regular expression over the whole path; by architecture if not given.
    pub target_modules: Option<Names>,
    /// Same grammar; wins over the targets.
    pub exclude_modules: Option<Names>,
    /// Those of the targets whose input is scaled instead of the output: plain endings of the path,
    /// or one regular expression; by architecture if not given.
    pub feedforward_modules: Option<Names>,
    /// Start at one; otherwise at random values, for tests.
    pub init_ia3_weights: bool,
}

impl Default for Ia3Config {
    fn default() -> Self {
        Self {
            target_modules: None,
            exclude_modules: None,
            feedforward_modules: None,
            init_ia3_weights: true,
        }
    }
}

impl MethodConfig for Ia3Config {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "IA3";

    fn validate(&self) -> Result<(), AdaptError> {
        match (&self.target_modules, &self.feedforward_modules) {
            (Some(Names::List(targets)), Some(Names::List(inner))) => {
                match inner.iter().find(|name| !targets.contains(name)) {
                    Some(name) => bad(
                        NAME,
                        "feedforward_modules",
                        format!("`{name}` is not among `target_modules`: add it there too"),
                    ),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        per_linear::from_peft::<Self>(NAME, config, json!({}), &[])
    }
}

fn build(
    mut config: Ia3Config,
    context: &BuildContext<'_>,
) -> Result<PerLinear<Factors>, AdaptError> {
    config.validate()?;
    let usual = context.info.usual_targets;
    let (targets, feedforward) = (usual.ia3, usual.ia3_feedforward);
    let list = |names: &[&str]| Names::List(names.iter().map(|n| (*n).to_owned()).collect());
    let target_modules = config
        .target_modules
        .get_or_insert_with(|| list(targets))
        .clone();
    let mut targets = Targets {
        target_modules,
        exclude_modules: config.exclude_modules.clone(),
        ..Targets::default()
    };
    let chosen = per_linear::linear_maps(NAME, &targets, context)?;
    let paths: Vec<&str> = chosen
        .iter()
        .map(|&id| context.sites.info(id).path.as_str())
        .collect();
    // The usual layers need not be among the user's.
    let usual = if paths.iter().any(|path| path.ends_with(feedforward)) {
        list(&[feedforward])
    } else {
        list(&[])
    };
    let feedforward = config.feedforward_modules.get_or_insert(usual).clone();
    let inputs = feedforward_paths(&feedforward, context.sites)?;
    let is_feedforward = |path: &str| inputs.contains(path);
    // The list of targets that the file will have; none where they are a pattern.
    let listed =
        serde_json::from_value::<Vec<String>>(saved_targets(&targets, context.sites, &chosen)).ok();
    if let (Some(mut listed), Names::List(names)) = (listed, &feedforward)
        && names.iter().any(|name| !listed.contains(name))
    {
        let names = among_targets(&mut listed, context.sites, &chosen, &is_feedforward);
        config.feedforward_modules = Some(Names::List(names));
        targets.target_modules = Names::List(listed);
    }
    PerLinear::new(
        &METHOD,
        &targets,
        context,
        &config,
        json!({"fan_in_fan_out": false}),
        |_, info| {
            let feedforward = is_feedforward(&info.path);
            let shape = if feedforward {
                [1, info.d_in]
            } else {
                [info.d_out, 1]
            };
            let len = shape[0] * shape[1];
            let mut rng = named_rng(context.seed, &info.path);
            let values = if config.init_ia3_weights {
                vec![1.0; len]
            } else {
                (0..len).map(|_| standard_normal(&mut rng)).collect()
            };
            Ok(Factors {
                l: Parameter::new(
                    format!("{}.ia3_l", info.path),
                    &shape,
                    values,
                    &context.device,
                ),
                feedforward,
            })
        },
    )
}

/// Paths of the layers whose input is scaled.
fn feedforward_paths(
    feedforward: &Names,
    sites: &SiteTable,
) -> Result<HashSet<String>, AdaptError> {
    let mut paths = HashSet::new();
    let pattern = match feedforward {
        Names::Pattern(pattern) => Some(Pattern::whole("feedforward_modules", pattern)?),
        Names::List(_) => None,
    };
    for (_, site) in sites.iter() {
        let found = match (&pattern, feedforward) {
            (Some(pattern), _) => pattern.is_match(&site.path)?,
            // Without a dot in front, as in peft.
            (None, Names::List(names)) => {
                names.iter().any(|name| site.path.ends_with(name.as_str()))
            }
            (None, Names::Pattern(_)) => false,
        };
        if found {
            paths.insert(site.path.clone());
        }
    }
    Ok(paths)
}

/// Names of the feed-forward layers that are all in the list of targets, as `peft` wants them;
/// endings that it lacks are added to it, where they select nothing new.
fn among_targets(
    listed: &mut Vec<String>,
    sites: &SiteTable,
    chosen: &[SiteId],
    is_feedforward: &dyn Fn(&str) -> bool,
) -> Vec<String> {
    let path = |id: &SiteId| sites.info(*id).path.as_str();
    let no_other = |name: &str| {
        chosen
            .iter()
            .map(path)
            .all(|path| is_feedforward(path) || !path.ends_with(name))
    };
    let nothing_new = |name: &str| {
        sites
            .iter()
            .all(|(id, s)| !ends_with_component(&s.path, name) || chosen.contains(&id))
    };
    let mut names: Vec<String> = Vec::new();
    for path in chosen.iter().map(path).filter(|path| is_feedforward(path)) {
        if names.iter().any(|name| path.ends_with(name.as_str())) {
            continue;
        }
        let known = listed
            .iter()
            .find(|name| ends_with_component(path, name) && no_other(name))
            .cloned();
        let mut endings = path.rmatch_indices('.').map(|(i, _)| &path[i + 1..]);
        let name = known.unwrap_or_else(|| {
            endings
                .find(|name| no_other(name) && nothing_new(name))
                .unwrap_or(path)
                .to_owned()
        });
        if !listed.contains(&name) {
            listed.push(name.clone());
        }
        names.push(name);
    }
    names
}

/// The factors of one layer.
struct Factors {
    /// `[d_out, 1]`, or `[1, d_in]` where the input is scaled.
    l: Parameter,
    feedforward: bool,
}

impl Factors {
    /// Weight and bias times these factors.
    fn scale(&self, at: &LinearSite<'_>, l: Tensor<2>) -> MergedLinear {
        let len = self.l.len();
        let bias = at.base.bias.clone().map(|bias| {
            if self.feedforward {
                bias
            } else {
                bias * l.clone().reshape([len])
            }
        });
        MergedLinear {
            weight: at.base.weight.dense() * l,
            bias,
        }
    }
}

impl LinearAdapter for Factors {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.l]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.l]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        self.merged(at).weight - at.base.weight.dense()
    }

    fn materializes_weight(&self) -> bool {
        false
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        let l = self.l.get::<2>(at.mode).reshape([1, self.l.len()]);
        if self.feedforward {
            at.base.forward(x * l)
        } else {
            at.base.forward(x) * l
        }
    }

    fn merged(&self, at: &LinearSite<'_>) -> MergedLinear {
        self.scale(at, self.l.get::<2>(Mode::Eval))
    }

    fn unmerged(&self, at: &LinearSite<'_>) -> Result<MergedLinear, String> {
        let l = self.l.get::<2>(Mode::Eval);
        if to_vec(l.clone()).iter().any(|l| l.abs() < 1e-6) {
            return Err(format!(
                "a factor of `{}` is zero, so its channel is lost; load the base model",
                at.path
            ));
        }
        Ok(self.scale(at, l.recip()))
    }
}

#[cfg(test)]
mod tests {
    use crate::support::values;

    use super::*;
    use frugal_models::ModelConfig;

    #[test]
    fn smollm2_has_the_published_number_of_factors() {
        // 30 blocks of 192 keys, 192 values and 1536 hidden channels.
        let config = json!({"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 64});
        let config = ModelConfig::from_json(config, "test").unwrap();
        let sites = config.sites();
        let context = BuildContext {
            info: &config.info(),
            sites: &sites,
            backbone: None,
            device: Device::flex(),
            seed: 0,
            tokenize: None,
        };
        let adapter = (METHOD.build)(&serde_json::Map::new(), &context).unwrap();
        assert_eq!(adapter.num_trainable(), 57_600);
    }

    /// Files that are written of adapters with the user's own targets build the same adapter.
    #[test]
    fn feed_forward_maps_in_files_are_among_the_targets() {
        let llama = json!({"model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 16});
        let bert = json!({"model_type": "bert", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
            "num_attention_heads": 2, "vocab_size": 16, "max_position_embeddings": 8, "type_vocab_size": 2});
        let gpt2 = json!({"model_type": "gpt2", "n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 16, "n_positions": 8});
        for (raw, settings, inner) in [
            (
                &llama,
                json!({"target_modules": ["k_proj", "v_proj"]}),
                json!([]),
            ),
            (
                &llama,
                json!({"target_modules": ["k_proj", "mlp.down_proj"]}),
                json!(["mlp.down_proj"]),
            ),
            (
                &llama,
                json!({"target_modules": "all-linear"}),
                json!(["down_proj"]),
            ),
            (
                &llama,
                json!({"target_modules": ".*_proj"}),
                json!(["down_proj"]),
            ),
            (
                &bert,
                json!({"target_modules": "all-linear"}),
                json!(["output.dense"]),
            ),
            (
                &bert,
                json!({"target_modules": ["attention.output.dense"]}),
                json!(["attention.output.dense"]),
            ),
            (
                &gpt2,
                json!({"target_modules": "all-linear"}),
                json!(["mlp.c_proj"]),
            ),
            (&gpt2, json!({"target_modules": ["c_attn"]}), json!([])),
        ] {
            let config = ModelConfig::from_json(raw.clone(), "test").unwrap();
            let sites = config.sites();
            let context = BuildContext {
                info: &config.info(),
                sites: &sites,
                backbone: None,
                device: Device::flex(),
                seed: 0,
                tokenize: None,
            };
            let shapes = |adapter: &dyn frugal_nn::Adapter| -> Vec<(String, Vec<usize>)> {
                adapter
                    .parameters()
                    .iter()
                    .map(|p| (p.name().to_owned(), p.shape().to_vec()))
                    .collect()
            };
            let adapter = (METHOD.build)(&values::object(settings), &context).unwrap();
            let saved = adapter.peft_config();
            assert_eq!(saved["feedforward_modules"], inner, "{saved:?}");
            let again = (METHOD.build)(&(METHOD.from_peft)(&saved).unwrap(), &context).unwrap();
            assert_eq!(shapes(again.as_ref()), shapes(adapter.as_ref()));
        }
    }

    #[test]
    fn a_feed_forward_map_must_be_a_target() {
        let settings = values::object(
            json!({"target_modules": ["k_proj"], "feedforward_modules": ["down_proj"]}),
        );
        let message = (METHOD.check)(&settings).unwrap_err().to_string();
        assert!(message.contains("`down_proj` is not among"), "{message}");
    }
}
