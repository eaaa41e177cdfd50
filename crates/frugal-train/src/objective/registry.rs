//! The list of objectives.

use frugal_nn::{HeadConfig, ProblemType};

use super::bce::Bce;
use super::causal_lm::CausalLm;
use super::classification::Classification;
use super::cosent::Cosent;
use super::dpo::Dpo;
use super::embedding::{Embedding, EmbeddingConfig};
use super::image_classification::ImageClassification;
use super::info_nce::InfoNce;
use super::kl_distill::KlDistill;
use super::lambda_loss::LambdaLoss;
use super::list_net::ListNet;
use super::margin_mse::MarginMse;
use super::multi_label::MultiLabel;
use super::pairwise::rank_net;
use super::regression::Regression;
use super::reranking::{ListLoss, Reranking};
use super::token_classification::TokenClassification;
use super::triplet::Triplet;
use super::vector_loss::VectorLoss;
use super::{ModelParts, Objective};
use crate::config::TrainConfig;
use crate::named::Named;

/// What an example of an objective is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LearnsFrom {
    /// A text.
    Texts,
    /// Texts that become vectors and belong together.
    Vectors,
    /// The texts of a query, each read together with it.
    Lists,
}

/// An objective as the list knows it.
pub struct ObjectiveEntry {
    /// Its name in configurations.
    pub name: &'static str,
    /// What transformers calls it.
    pub alias: Option<&'static str>,
    /// What it learns, in a few words.
    pub summary: &'static str,
    /// What its examples are.
    pub learns_from: LearnsFrom,
    make: fn(&Named, &TrainConfig) -> Result<Box<dyn Objective>, String>,
}

/// All objectives.
pub const OBJECTIVES: &[ObjectiveEntry] = &[
    ObjectiveEntry {
        name: "causal_lm",
        alias: None,
        summary: "the next token",
        learns_from: LearnsFrom::Texts,
        make: |named, train| {
            named.read::<NoSettings>()?;
            let label_smoothing = train.label_smoothing;
            Ok(Box::new(CausalLm { label_smoothing }))
        },
    },
    ObjectiveEntry {
        name: "classification",
        alias: Some("single_label_classification"),
        summary: "one class for each text",
        learns_from: LearnsFrom::Texts,
        make: |named, train| {
            let config = named.read()?;
            Ok(Box::new(Classification::new(config, train.label_smoothing)))
        },
    },
    ObjectiveEntry {
        name: "image_classification",
        alias: None,
        summary: "one class for each image",
        learns_from: LearnsFrom::Texts,
        make: |named, train| {
            let config = named.read()?;
            Ok(Box::new(ImageClassification::new(
                config,
                train.label_smoothing,
            )))
        },
    },
    ObjectiveEntry {
        name: "multi_label",
        alias: Some("multi_label_classification"),
        summary: "any number of labels for each text",
        learns_from: LearnsFrom::Texts,
        make: |named, train| {
            smoothing_is_for_classes(train)?;
            Ok(Box::new(MultiLabel::new(named.read()?)))
        },
    },
    ObjectiveEntry {
        name: "regression",
        alias: None,
        summary: "a number for each text, or several",
        learns_from: LearnsFrom::Texts,
        make: |named, train| {
            smoothing_is_for_classes(train)?;
            named.read::<NoSettings>()?;
            Ok(Box::new(Regression))
        },
    },
    ObjectiveEntry {
        name: "token_classification",
        alias: None,
        summary: "a label for each token",
        learns_from: LearnsFrom::Texts,
        make: |named, train| {
            named.read::<NoSettings>()?;
            let label_smoothing = train.label_smoothing;
            Ok(Box::new(TokenClassification { label_smoothing }))
        },
    },
    ObjectiveEntry {
        name: "info_nce",
        alias: Some("multiple_negatives_ranking"),
        summary: "the text that belongs to another, among those of the batch",
        learns_from: LearnsFrom::Vectors,
        make: |named, train| embedding(named, train, |named| InfoNce::new(named.read()?)),
    },
    ObjectiveEntry {
        name: "triplet",
        alias: None,
        summary: "what belongs to a text nearer than what does not",
        learns_from: LearnsFrom::Vectors,
        make: |named, train| embedding(named, train, |named| Triplet::new(named.read()?)),
    },
    ObjectiveEntry {
        name: "cosent",
        alias: None,
        summary: "pairs of texts in the order of their scores",
        learns_from: LearnsFrom::Vectors,
        make: |named, train| embedding(named, train, |named| Cosent::new(named.read()?)),
    },
    ObjectiveEntry {
        name: "margin_mse",
        alias: None,
        summary: "a teacher's margins of positive over negative texts",
        learns_from: LearnsFrom::Vectors,
        make: |named, train| {
            embedding(named, train, |named| {
                Ok(MarginMse {
                    config: named.read()?,
                })
            })
        },
    },
    ObjectiveEntry {
        name: "kl_distill",
        alias: Some("distill_kl_div"),
        summary: "how a teacher's scores divide over the texts of a query",
        learns_from: LearnsFrom::Vectors,
        make: |named, train| embedding(named, train, |named| KlDistill::new(named.read()?)),
    },
    ObjectiveEntry {
        name: "pairwise",
        alias: Some("rank_net"),
        summary: "the better of two texts of a query",
        learns_from: LearnsFrom::Lists,
        make: |named, train| reranking(named, train, |named| rank_net(named.read()?)),
    },
    ObjectiveEntry {
        name: "list_net",
        alias: None,
        summary: "which text of a query comes first",
        learns_from: LearnsFrom::Lists,
        make: |named, train| {
            reranking(named, train, |named| {
                named.read::<NoSettings>()?;
                Ok(ListNet)
            })
        },
    },
    ObjectiveEntry {
        name: "lambda_loss",
        alias: None,
        summary: "the order of the texts of a query, by what it changes of nDCG",
        learns_from: LearnsFrom::Lists,
        make: |named, train| {
            reranking(named, train, |named| {
                LambdaLoss::new("lambda_loss", named.read()?)
            })
        },
    },
    ObjectiveEntry {
        name: "bce",
        alias: Some("binary_cross_entropy"),
        summary: "whether a text answers a query",
        learns_from: LearnsFrom::Lists,
        make: |named, train| reranking(named, train, |named| Bce::new(named.read()?)),
    },
    ObjectiveEntry {
        name: "dpo",
        alias: None,
        summary: "the better of two answers, beside the model without its adapter",
        learns_from: LearnsFrom::Texts,
        make: |named, train| {
            smoothing_is_for_classes(train)?;
            Ok(Box::new(Dpo::new(named.read()?)?))
        },
    },
];

fn embedding<L: VectorLoss + 'static>(
    named: &Named,
    train: &TrainConfig,
    make: impl FnOnce(&Named) -> Result<L, String>,
) -> Result<Box<dyn Objective>, String> {
    smoothing_is_for_classes(train)?;
    let mut own = named.clone();
    let config = EmbeddingConfig::take(&mut own.settings)
        .map_err(|error| format!("`{}`: {error}", named.name))?;
    let loss = make(&own)?;
    Ok(Box::new(Embedding::new(loss, config, train.batch_size)))
}

fn reranking<L: ListLoss + 'static>(
    named: &Named,
    train: &TrainConfig,
    make: impl FnOnce(&Named) -> Result<L, String>,
) -> Result<Box<dyn Objective>, String> {
    smoothing_is_for_classes(train)?;
    Ok(Box::new(Reranking { loss: make(named)? }))
}

/// For objectives that have nothing to set.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct NoSettings {}

fn smoothing_is_for_classes(train: &TrainConfig) -> Result<(), String> {
    if train.label_smoothing == 0.0 {
        return Ok(());
    }
    Err("`label_smoothing` has a meaning only where one class or token of several is right: leave it at 0".into())
}

/// The entry of this name.
///
/// # Errors
/// A name that is none.
pub fn find(name: &str) -> Result<&'static ObjectiveEntry, String> {
    let is_it = |entry: &&ObjectiveEntry| entry.name == name || entry.alias == Some(name);
    OBJECTIVES.iter().find(is_it).ok_or_else(|| {
        let known: Vec<&str> = OBJECTIVES.iter().map(|entry| entry.name).collect();
        format!("{name:?} is no objective; there are {}", known.join(", "))
    })
}

/// The objective that the settings name.
///
/// # Errors
/// A name that is none, settings that it does not have.
pub fn made(named: &Named, train: &TrainConfig) -> Result<Box<dyn Objective>, String> {
    (find(&named.name)?.make)(named, train).map_err(|error| match whose(named, train, &error) {
        Some(hint) => format!("{error}; {hint}"),
        None => error,
    })
}

/// Settings that flags of `frugal tune` give.
const FLAGS: [(&str, &str); 1] = [("class_weights", "`--class-weights`")];

/// Where an objective does not have a setting: which others have it, and what to do.
fn whose(named: &Named, train: &TrainConfig, error: &str) -> Option<String> {
    let (_, rest) = error.split_once("unknown field `")?;
    let (key, _) = rest.split_once('`')?;
    let own = find(&named.name).map_or("", |entry| entry.name);
    let train = TrainConfig {
        label_smoothing: 0.0,
        ..train.clone()
    };
    let has = |entry: &&ObjectiveEntry| {
        let settings = named.settings.get_key_value(key);
        let alone = Named {
            name: entry.name.into(),
            settings: settings
                .map(|(k, v)| (k.clone(), v.clone()))
                .into_iter()
                .collect(),
        };
        entry.name != own && (entry.make)(&alone, &train).is_ok()
    };
    let names: Vec<String> = OBJECTIVES
        .iter()
        .filter(has)
        .map(|entry| format!("`{}`", entry.name))
        .collect();
    let flag = FLAGS.iter().find(|(name, _)| *name == key);
    let what = flag.map_or_else(
        || format!("`{key}`"),
        |(_, flag)| format!("{flag} (`{key}`)"),
    );
    Some(match names.is_empty() {
        true => format!("leave {what} out"),
        false => format!(
            "{what} has a part in {} alone: leave it out",
            names.join(" and ")
        ),
    })
}

/// The objective of a run: the one that its settings name, else the one that the model is made for,
/// with the settings that are given.
///
/// # Errors
/// As [`made`].
pub fn for_model(train: &TrainConfig, model: ModelParts<'_>) -> Result<Box<dyn Objective>, String> {
    let mut named = train.objective.clone();
    if named.name.is_empty() {
        named.name = usual(model).into();
    }
    made(&named, train)
}

/// The name of the objective that a model is made for.
fn usual(model: ModelParts<'_>) -> &'static str {
    let config = model.head.map(|head| head.config());
    if config.is_some_and(HeadConfig::labels_tokens) {
        return "token_classification";
    }
    let single = config.is_some_and(|config| config.problem_type.is_single_label());
    if single && model.backbone.info().image.is_some() {
        return "image_classification";
    }
    match config.map(|config| config.problem_type) {
        None => "causal_lm",
        Some(ProblemType::SingleLabel) => "classification",
        Some(ProblemType::MultiLabel) => "multi_label",
        Some(ProblemType::Regression) => "regression",
    }
}

/// The registered name in place of what transformers calls it.
pub fn canonical(name: &str) -> String {
    find(name).map_or_else(|_| name.to_owned(), |entry| entry.name.to_owned())
}
