//! # Trainable tokens
//!
//! ## What it does
//! Trains the embeddings of a few tokens, for words that the model should learn or markers of a
//! format.
//!
//! ## Update rule
//! The rows of `token_indices` in the token table are replaced by trained ones; where the output
//! head is the same table, its rows are too.
//!
//! ## When to use, when not
//! For tokens that are new to the model. It changes how these tokens are read, and nothing else.
//!
//! ## Cost
//! Trainable: `d_model` per token. Extra compute: a second lookup, and with a tied head a product
//! with the trained rows. None after merging.
//!
//! ## Defaults and where they come from
//! The input table of the model; rows start as they are (`init_weights = false`: at random).
//! `token_indices` has no default.
//!
//! ## Departures from the paper
//! There is no paper; settings and files are those of Hugging Face `peft`, which does not keep a
//! classification head with this method, whereas Frugal writes it beside the rows.
//!
//! ## References
//! - Hugging Face `peft`: Trainable Tokens,
//!   <https://huggingface.co/docs/peft/package_reference/trainable_tokens>.

use burn::prelude::*;
use burn::tensor::IndexingUpdateOp;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Embedding, Frozen, Linear, LinearChange, MergedLinear, Mode,
    Parameter, Pass, SiteId, SiteKind, lookup, named_rng, standard_normal, to_vec,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::per_linear::{self, bad};
use crate::support::values;
use crate::target::{Names, Targets};

const NAME: &str = "trainable-tokens";

/// Registry entry.
pub const METHOD: Method = Method::of::<TokensConfig>(
    Family::Sparse,
    "Trained embeddings of a few tokens",
    include_str!("trainable_tokens.rs"),
)
.aliases(&["token-rows"])
.default_lr(1e-2);

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokensConfig {
    /// Ids of the tokens.
    pub token_indices: Vec<u32>,
    /// Path endings of one table; the input table if not given.
    pub target_modules: Option<Names>,
    /// Start from the model's own rows.
    pub init_weights: bool,
}

impl Default for TokensConfig {
    fn default() -> Self {
        Self {
            token_indices: Vec::new(),
            target_modules: None,
            init_weights: true,
        }
    }
}

impl MethodConfig for TokensConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "TRAINABLE_TOKENS";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.token_indices.is_empty() {
            return bad(NAME, "token_indices", "name the ids of the tokens to train");
        }
        let mut sorted = self.token_indices.clone();
        sorted.sort_unstable();
        match sorted.windows(2).find(|w| w[0] == w[1]) {
            Some(w) => bad(NAME, "token_indices", format!("{} is there twice", w[0])),
            None => Ok(()),
        }
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(TrainableTokens::new(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        per_linear::from_peft::<Self>(NAME, config, json!({}), &[])
    }
}

impl TokensConfig {
    fn check_rows(&self, rows: usize, path: &str) -> Result<(), AdaptError> {
        let outside = self.token_indices.iter().find(|&&id| id as usize >= rows);
        outside.map_or(Ok(()), |id| {
            let reason = format!("{id} is outside the {rows} rows of `{path}`");
            bad(NAME, "token_indices", reason)
        })
    }
}

/// A trainable-tokens adapter.
#[derive(Clone)]
pub struct TrainableTokens {
    config: TokensConfig,
    table: SiteId,
    /// The output head, where it is the same table.
    head: Option<SiteId>,
    /// `[tokens, d]`.
    rows: Parameter,
    saved_targets: Value,
}

impl TrainableTokens {
    /// Copies the rows.
    ///
    /// # Errors
    /// Bad settings, ids outside the table, targets that are not one table.
    pub fn new(config: TokensConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        config.validate()?;
        let sites = context.sites;
        let table = match &config.target_modules {
            Some(names) => {
                let targets = Targets {
                    target_modules: names.clone(),
                    ..Targets::default()
                };
                match targets.select(sites)?.as_slice() {
                    [one] if sites.info(*one).kind == SiteKind::Embedding => *one,
                    _ => return bad(NAME, "target_modules", "must name one token table"),
                }
            }
            None => match sites.iter().next() {
                Some((id, _)) => id,
                None => return bad(NAME, "target_modules", "the model has no token table"),
            },
        };
        let (info, is_input) = (
            sites.info(table),
            sites.iter().next().is_some_and(|(id, _)| id == table),
        );
        config.check_rows(info.d_in, &info.path)?;
        let head = sites
            .iter()
            .find(|(_, s)| s.tied && is_input)
            .map(|(id, _)| id);
        let shape = [config.token_indices.len(), info.d_out];
        let mut rng = named_rng(context.seed, &info.path);
        let mut values: Vec<f32> = (0..shape[0] * shape[1])
            .map(|_| standard_normal(&mut rng))
            .collect();
        if let (Some(backbone), true) = (context.backbone, config.init_weights) {
            backbone.visit_weights(&mut |part| match part {
                Frozen::Embedding(e) if e.site == table => {
                    values = to_vec(e.weight.rows(&config.token_indices))
                }
                _ => {}
            });
        }
        let mut rows = Parameter::new(
            format!("{}.trainable_tokens_delta", info.path),
            &shape,
            values,
            &context.device,
        );
        if let Some(head) = head {
            rows = rows.also_as(format!("{}.trainable_tokens_delta", sites.info(head).path));
        }
        let targets = config
            .target_modules
            .clone()
            .unwrap_or_else(|| Names::List(vec![info.name().to_owned()]));
        Ok(Self {
            table,
            head,
            rows,
            saved_targets: json!(targets),
            config,
        })
    }

    /// The rows of a table, or of an output head, that another method trains beside its own
    /// parameters; `named` are all places with such rows.
    ///
    /// # Errors
    /// Ids outside the table, or twice.
    pub(crate) fn beside(
        site: SiteId,
        token_indices: Vec<u32>,
        named: &[SiteId],
        context: &BuildContext<'_>,
    ) -> Result<Self, AdaptError> {
        let info = context.sites.info(site);
        let rows = match info.kind {
            SiteKind::Embedding => info.d_in,
            _ => info.d_out,
        };
        let width = match info.kind {
            SiteKind::Embedding => info.d_out,
            _ => info.d_in,
        };
        let config = TokensConfig {
            token_indices,
            ..TokensConfig::default()
        };
        config.validate()?;
        config.check_rows(rows, &info.path)?;
        let is_input = site.index() == 0;
        let tied = context
            .sites
            .iter()
            .find(|(id, s)| s.tied && is_input && !named.contains(id));
        let head = if info.kind == SiteKind::Embedding {
            tied.map(|(id, _)| id)
        } else {
            Some(site)
        };
        let shape = [config.token_indices.len(), width];
        let mut values = vec![0.0; shape[0] * shape[1]];
        if let Some(backbone) = context.backbone {
            backbone.visit_weights(&mut |part| match part {
                Frozen::Embedding(e) if e.site == site => {
                    values = to_vec(e.weight.rows(&config.token_indices))
                }
                Frozen::Linear(l) if l.site == site => {
                    values = to_vec(l.weight.rows(&config.token_indices))
                }
                _ => {}
            });
        }
        let name = format!("{}.token_adapter.trainable_tokens_delta", info.path);
        Ok(Self {
            table: site,
            head,
            rows: Parameter::new(name, &shape, values, &context.device),
            saved_targets: Value::Null,
            config,
        })
    }

    /// Whether this place has other rows.
    pub(crate) fn acts_on(&self, site: SiteId) -> bool {
        self.table == site || self.head == Some(site)
    }

    fn indices(&self, device: &Device) -> Tensor<1, Int> {
        let ids: Vec<i64> = self
            .config
            .token_indices
            .iter()
            .map(|&id| i64::from(id))
            .collect();
        Tensor::from_data(TensorData::from(ids.as_slice()), &device.clone().inner())
    }

    /// A table with the rows replaced.
    fn replaced(&self, table: Tensor<2>, mode: Mode) -> Tensor<2> {
        let rows = self.rows.get::<2>(mode);
        let indices = self.indices(&table.device());
        let table = if mode.is_train() {
            Tensor::from_inner(table)
        } else {
            table
        };
        let change = rows - table.clone().select(0, indices.clone());
        table.select_assign(0, indices, change, IndexingUpdateOp::Add)
    }
}

struct TokensPass<'a> {
    adapter: &'a TrainableTokens,
    mode: Mode,
}

impl Pass for TokensPass<'_> {
    fn embedding(&mut self, base: &Embedding, ids: &[u32]) -> Tensor<2> {
        let y = base.forward(ids);
        if base.site != self.adapter.table {
            return y;
        }
        let place = |id: &u32| {
            self.adapter
                .config
                .token_indices
                .iter()
                .position(|t| t == id)
        };
        let places: Vec<Option<usize>> = ids.iter().map(place).collect();
        let rows: Vec<u32> = places.iter().map(|p| p.unwrap_or(0) as u32).collect();
        let kept: Vec<f32> = places
            .iter()
            .map(|p| f32::from(u8::from(p.is_none())))
            .collect();
        let kept =
            Tensor::<2>::from_data(TensorData::new(kept, [ids.len(), 1]), &y.device().inner());
        let trained = lookup(self.adapter.rows.get::<2>(self.mode), &rows);
        trained * (kept.clone().neg() + 1.0) + y * kept
    }

    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        // First, since reading the weight unpacks it.
        if self.adapter.head != Some(base.site) {
            return LinearChange::None;
        }
        LinearChange::Weight(self.adapter.replaced(base.weight.dense(), self.mode))
    }
}

impl Adapter for TrainableTokens {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.rows]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.rows]
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(TokensPass {
            adapter: self,
            mode,
        })
    }

    fn peft_config(&self) -> Map<String, Value> {
        let mut config = values::object(json!(self.config));
        config.extend(values::object(
            json!({"peft_type": METHOD.peft_type, "target_modules": self.saved_targets}),
        ));
        config
    }

    fn weight_delta(&self, base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Ok(self
            .merged_linear(base)?
            .map(|merged| merged.weight - base.weight.dense()))
    }

    fn merged_linear(&self, base: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        let merged = || MergedLinear {
            weight: self.replaced(base.weight.dense(), Mode::Eval),
            bias: base.bias.clone(),
        };
        Ok((self.head == Some(base.site)).then(merged))
    }

    fn unmerged_linear(&self, merged: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        if self.head != Some(merged.site) {
            return Ok(None);
        }
        let reason = "it replaced rows of the table; load the base model".into();
        Err(AdaptError::Unsupported {
            method: NAME,
            action: "be taken out again",
            reason,
        })
    }

    fn merged_embedding(&self, base: &Embedding) -> Option<Tensor<2>> {
        (base.site == self.table).then(|| self.replaced(base.weight.dense(), Mode::Eval))
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_must_be_named_once() {
        let message = |settings: Value| {
            (METHOD.check)(&values::object(settings))
                .unwrap_err()
                .to_string()
        };
        assert!(message(json!({})).contains("name the ids"));
        assert!(message(json!({"token_indices": [4, 7, 4]})).contains("4 is there twice"));
    }
}
