//! Keys of `config.json`, and what they come to.

use frugal_nn::ModelError;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::sharing::{Rounding, Sharing};
use crate::activation::Activation;
use crate::keys::{self, Size, TokenId};

/// Who chooses: steps their tokens, or tokens their number of steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MorType {
    /// Every recursion step takes the tokens with the highest scores.
    #[default]
    ExpertChoice,
    /// Every token takes one number of steps.
    TokenChoice,
    /// No router: all tokens take all steps (a recursive transformer).
    None,
}

/// What a router is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouterType {
    /// One map without bias.
    #[default]
    Linear,
    /// Two maps without bias with a GELU between them, twice the model's width.
    Mlp,
    /// The same; the official code has both names for it.
    WideMlp,
}

/// What a router's numbers go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouterFunc {
    /// Logistic.
    Sigmoid,
    /// Hyperbolic tangent; expert choice only.
    Tanh,
    /// Over the numbers of steps; token choice only.
    Softmax,
}

/// What the shared layers' output is multiplied by before it is added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gating {
    /// The router's value.
    #[default]
    Weighted,
    /// 1.
    None,
}

/// What makes an expert-choice router usable without the tokens that come later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampling {
    /// A loss on the router's own scores.
    #[default]
    AuxLoss,
    /// A second router, on an input without gradient, that chooses where the model is used.
    AuxRouter,
}

/// How tokens are chosen where the model is not trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Routing {
    /// Each by its own score: causal.
    #[default]
    Threshold,
    /// The best of a sequence, as in training: whole texts only.
    TopK,
}

/// What keeps token choice from one number of steps for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balancing {
    /// A loss.
    #[default]
    Loss,
    /// A bias on the choice that follows the load.
    LossFree,
}

/// Keys of a configuration of type `mor`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct MorConfig {
    pub vocab_size: Size,
    pub hidden_size: Size,
    pub intermediate_size: Size,
    pub num_hidden_layers: Size,
    pub num_attention_heads: Size,
    pub num_key_value_heads: Option<Size>,
    pub head_dim: Option<Size>,
    pub hidden_act: Activation,
    pub max_position_embeddings: Size,
    pub rms_norm_eps: f64,
    pub tie_word_embeddings: bool,
    pub attention_bias: bool,
    pub mlp_bias: bool,
    pub pad_token_id: TokenId,
    pub num_recursion: Size,
    pub sharing: Sharing,
    pub share_layer_norm: bool,
    pub layer_rounding: Rounding,
    pub mor_type: MorType,
    pub kv_sharing: bool,
    pub router_type: RouterType,
    pub router_func: Option<RouterFunc>,
    pub router_alpha: Option<f64>,
    pub router_temperature: f64,
    pub router_gating: Gating,
    pub router_z_loss_coef: Option<f64>,
    pub mor_aux_loss_coef: Option<f64>,
    pub capacity_factors: Option<Vec<f64>>,
    pub sampling: Option<Sampling>,
    pub inference_routing: Option<Routing>,
    pub router_threshold: Option<f64>,
    pub balancing: Option<Balancing>,
    pub router_bias_update_rate: Option<f64>,
}

impl Default for MorConfig {
    fn default() -> Self {
        Self {
            vocab_size: Size(49_152),
            hidden_size: Size(960),
            intermediate_size: Size(2560),
            num_hidden_layers: Size(32),
            num_attention_heads: Size(15),
            num_key_value_heads: None,
            head_dim: None,
            hidden_act: Activation::Silu,
            max_position_embeddings: Size(2048),
            rms_norm_eps: 1e-5,
            tie_word_embeddings: true,
            attention_bias: false,
            mlp_bias: false,
            pad_token_id: TokenId(None),
            num_recursion: Size(3),
            sharing: Sharing::MiddleCycle,
            share_layer_norm: true,
            layer_rounding: Rounding::Ceil,
            mor_type: MorType::ExpertChoice,
            kv_sharing: false,
            router_type: RouterType::Linear,
            router_func: None,
            router_alpha: None,
            router_temperature: 1.0,
            router_gating: Gating::Weighted,
            router_z_loss_coef: None,
            mor_aux_loss_coef: None,
            capacity_factors: None,
            sampling: None,
            inference_routing: None,
            router_threshold: None,
            balancing: None,
            router_bias_update_rate: None,
        }
    }
}

/// How tokens are routed.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum RouterSpec {
    /// Steps choose tokens.
    Expert(ExpertSpec),
    /// Tokens choose their number of steps.
    Token(TokenSpec),
}

/// What both kinds have.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct CommonSpec {
    pub router_type: RouterType,
    pub router_func: RouterFunc,
    pub router_alpha: f64,
    pub router_temperature: f64,
    pub router_gating: Gating,
    #[serde(skip)]
    pub z_loss: f64,
    #[serde(skip)]
    pub aux_loss: f64,
}

/// Expert choice.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct ExpertSpec {
    #[serde(flatten)]
    pub common: CommonSpec,
    /// Shares of a sequence that the steps take; by default the first all of it, each further one a
    /// step's share less.
    pub capacity_factors: Option<Vec<f64>>,
    pub sampling: Sampling,
    pub inference_routing: Routing,
    pub router_threshold: f64,
}

/// Token choice.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct TokenSpec {
    #[serde(flatten)]
    pub common: CommonSpec,
    pub balancing: Balancing,
    #[serde(skip)]
    pub bias_update_rate: f64,
}

impl ExpertSpec {
    /// Whether the first step takes every token.
    pub fn begins_with_all(&self) -> bool {
        let first = self.capacity_factors.as_ref().and_then(|all| all.first());
        first.is_none_or(|first| *first >= 1.0)
    }

    /// Tokens of a sequence of `tokens` that step `step` of `steps` takes; at least one.
    pub fn capacity(&self, step: usize, steps: usize, tokens: usize) -> usize {
        let count = match &self.capacity_factors {
            // In whole numbers: a third of six is two.
            None => tokens * (steps - step) / steps,
            Some(factors) => (factors[step] * tokens as f64) as usize,
        };
        count.clamp(1, tokens.max(1))
    }
}

impl MorConfig {
    /// The routers that the keys describe, none for [`MorType::None`].
    ///
    /// # Errors
    /// A key of another kind of router, a value out of range.
    pub fn router(&self, raw: &Value, source: &str) -> Result<Option<RouterSpec>, ModelError> {
        self.check_kind(raw, source)?;
        let token = match self.mor_type {
            MorType::None => return Ok(None),
            MorType::TokenChoice => true,
            MorType::ExpertChoice => false,
        };
        let func = self.router_func.unwrap_or(if token {
            RouterFunc::Softmax
        } else {
            RouterFunc::Sigmoid
        });
        if func
            == (if token {
                RouterFunc::Tanh
            } else {
                RouterFunc::Softmax
            })
        {
            let reason = format!(
                "{} does not go with this `mor_type`",
                Value::from(name(func))
            );
            return Err(keys::bad(source, "router_func", reason));
        }
        let alpha = if func == RouterFunc::Softmax {
            1.0
        } else {
            0.1
        };
        let common = CommonSpec {
            router_type: self.router_type,
            router_func: func,
            router_alpha: self.router_alpha.unwrap_or(alpha),
            router_temperature: self.router_temperature,
            router_gating: self.router_gating,
            z_loss: self
                .router_z_loss_coef
                .unwrap_or(if token { 1e-5 } else { 0.0 }),
            aux_loss: self
                .mor_aux_loss_coef
                .unwrap_or(if token { 0.1 } else { 1e-3 }),
        };
        let rate = self.router_bias_update_rate.unwrap_or(1e-3);
        keys::positive("router_alpha", common.router_alpha, source)?;
        keys::positive("router_temperature", common.router_temperature, source)?;
        keys::not_negative("router_z_loss_coef", common.z_loss, source)?;
        keys::not_negative("mor_aux_loss_coef", common.aux_loss, source)?;
        keys::not_negative("router_bias_update_rate", rate, source)?;
        if token {
            return Ok(Some(RouterSpec::Token(TokenSpec {
                common,
                balancing: self.balancing.unwrap_or_default(),
                bias_update_rate: rate,
            })));
        }
        self.check_capacity(source)?;
        let threshold = self.router_threshold.unwrap_or(0.5);
        if !(threshold > 0.0 && threshold < 1.0) {
            let threshold = keys::shown(threshold);
            let reason = format!("{threshold} given, but it must be above 0 and below 1");
            return Err(keys::bad(source, "router_threshold", reason));
        }
        Ok(Some(RouterSpec::Expert(ExpertSpec {
            common,
            capacity_factors: self.capacity_factors.clone(),
            sampling: self.sampling.unwrap_or_default(),
            inference_routing: self.inference_routing.unwrap_or_default(),
            router_threshold: threshold,
        })))
    }

    /// Keys of one kind of router say nothing of the other, and some nothing beside others.
    fn check_kind(&self, raw: &Value, source: &str) -> Result<(), ModelError> {
        let of_experts: &[&str] = &[
            "capacity_factors",
            "sampling",
            "inference_routing",
            "router_threshold",
        ];
        let of_tokens: &[&str] = &["balancing", "router_bias_update_rate"];
        let of_routers: &[&str] = &[
            "router_type",
            "router_func",
            "router_alpha",
            "router_temperature",
            "router_gating",
            "router_z_loss_coef",
            "mor_aux_loss_coef",
        ];
        let expert = self.mor_type == MorType::ExpertChoice;
        let token = self.mor_type == MorType::TokenChoice;
        let loss_free = self.balancing == Some(Balancing::LossFree);
        let top_k = self.inference_routing == Some(Routing::TopK);
        let weighted = self.router_gating == Gating::Weighted;
        for (names, wanted, has) in [
            (of_experts, "`mor_type` expert_choice", expert),
            (of_tokens, "`mor_type` token_choice", token),
            (of_routers, "a router (`mor_type`)", expert || token),
            (
                &["router_bias_update_rate"],
                "`balancing` loss_free",
                loss_free,
            ),
            (
                &["mor_aux_loss_coef"],
                "`balancing` loss",
                !(token && loss_free),
            ),
            (
                &["router_threshold"],
                "`inference_routing` threshold",
                !top_k,
            ),
            // Token choice learns and balances by these values as well.
            (
                &["router_alpha", "router_func"],
                "`router_gating` weighted",
                weighted || token,
            ),
        ] {
            let given = |key: &&&str| raw.get(**key).is_some_and(|value| !value.is_null());
            if let Some(key) = names.iter().find(given).filter(|_| !has) {
                let reason = format!("it says nothing without {wanted}: leave it out");
                return Err(keys::bad(source, key, reason));
            }
        }
        Ok(())
    }

    fn check_capacity(&self, source: &str) -> Result<(), ModelError> {
        let Some(factors) = &self.capacity_factors else {
            return Ok(());
        };
        let steps = self.num_recursion.0;
        let falls = factors.windows(2).all(|pair| pair[1] <= pair[0]);
        let shares = factors.iter().all(|share| *share > 0.0 && *share <= 1.0);
        if factors.len() == steps && falls && shares {
            return Ok(());
        }
        let reason = format!(
            "one share for each of the {steps} steps of `num_recursion`, above 0, at most 1 and none above the one before it"
        );
        Err(keys::bad(source, "capacity_factors", reason))
    }
}

fn name(func: RouterFunc) -> &'static str {
    match func {
        RouterFunc::Sigmoid => "sigmoid",
        RouterFunc::Tanh => "tanh",
        RouterFunc::Softmax => "softmax",
    }
}
