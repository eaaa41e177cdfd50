//! The table of methods: one line each.

use frugal_core::suggest::did_you_mean;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{AdaptError, Adapter, BuildContext};

/// All methods, sorted by name.
#[rustfmt::skip]
pub const METHODS: &[&Method] = &[
    &super::adalora::METHOD,
    &super::adapter_fusion::METHOD,
    &super::bitfit::METHOD,
    &super::boft::METHOD,
    &super::c3a::METHOD,
    &super::compacter::METHOD,
    &super::diff_pruning::METHOD,
    &super::dora::METHOD,
    &super::fish_mask::METHOD,
    &super::fourierft::METHOD,
    &super::full::METHOD,
    &super::houlsby::METHOD,
    &super::hra::METHOD,
    &super::ia3::METHOD,
    &super::id3::METHOD,
    &super::increlora::METHOD,
    &super::ln_tuning::METHOD,
    &super::loha::METHOD,
    &super::lokr::METHOD,
    &super::lora::METHOD,
    &super::lora_fa::METHOD,
    &super::lora_plus::METHOD,
    &super::mam::METHOD,
    &super::miss::METHOD,
    &super::mola::METHOD,
    &super::mos::METHOD,
    &super::oft::METHOD,
    &super::olora::METHOD,
    &super::p_tuning::METHOD,
    &super::parallel_adapter::METHOD,
    &super::pela::METHOD,
    &super::pfeiffer::METHOD,
    &super::pissa::METHOD,
    &super::prefix_tuning::METHOD,
    &super::prompt_tuning::METHOD,
    &super::pst::METHOD,
    &super::qa_lora::METHOD,
    &super::road::METHOD,
    &super::rslora::METHOD,
    &super::shira::METHOD,
    &super::ssf::METHOD,
    &super::stable_rps::METHOD,
    &super::svfit::METHOD,
    &super::trainable_tokens::METHOD,
    &super::unipelt::METHOD,
    &super::vblora::METHOD,
    &super::vera::METHOD,
];

/// What a method acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// Every weight.
    Full,
    /// A low-rank change of linear maps.
    LowRank,
    /// Positions in front of the input, or keys and values in front of every block.
    Prompt,
    /// Small networks beside or behind the sub-layers.
    Bottleneck,
    /// Factors and shifts of activations or norms.
    Scaling,
    /// A rotation of weights.
    Orthogonal,
    /// Coefficients in another basis: singular vectors, frequencies, random projections.
    Spectral,
    /// Few of the model's own weights.
    Sparse,
    /// Parameters shared between places.
    Shared,
    /// A smaller model in place of the large one.
    Compression,
    /// Several of these at once.
    Hybrid,
}

/// What a method can do. Each is backed by a test of the conformance suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// Can be merged into the weights.
    pub merge: bool,
    /// Changes nothing before training.
    pub identity_at_init: bool,
    /// Sequences of one batch may use different adapters of this method.
    pub mixed_batch: bool,
}

/// Settings by name.
pub type Settings = Map<String, Value>;

/// A registered method.
pub struct Method {
    /// Name on the command line and in configuration files.
    pub name: &'static str,
    /// Other spellings that are understood.
    pub aliases: &'static [&'static str],
    /// What it acts on.
    pub family: Family,
    /// One sentence.
    pub summary: &'static str,
    /// Learning rate of its default recipe.
    pub default_lr: f64,
    /// `peft_type` of its adapter files.
    pub peft_type: &'static str,
    /// Where several methods share a `peft_type`: whether an `adapter_config.json` is one of this
    /// method.
    pub peft_variant: Option<fn(&Settings) -> bool>,
    /// What it can do.
    pub capabilities: Capabilities,
    /// Its source file, whose header is its documentation.
    pub source: &'static str,
    /// All settings with their defaults.
    pub defaults: fn() -> Settings,
    /// Checks settings without a model.
    pub check: fn(&Settings) -> Result<(), AdaptError>,
    /// Builds an adapter from settings.
    pub build: fn(&Settings, &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError>,
    /// Settings from an `adapter_config.json` that `peft` wrote, whose defaults are `peft`'s.
    pub from_peft: fn(&Settings) -> Result<Settings, AdaptError>,
}

impl Method {
    /// The documentation: the header of its source file.
    pub fn documentation(&self) -> String {
        let lines = self
            .source
            .lines()
            .map_while(|line| line.strip_prefix("//!"));
        lines
            .map(|line| line.strip_prefix(' ').unwrap_or(line))
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// Builds an adapter from settings, after their sizes were checked against the model, so that
    /// none is too large to make.
    ///
    /// # Errors
    /// Bad settings, sizes beyond all use, no matching place.
    pub fn make(
        &self,
        settings: &Settings,
        context: &BuildContext<'_>,
    ) -> Result<Box<dyn Adapter>, AdaptError> {
        super::sizes::check(self, settings, context)?;
        (self.build)(settings, context)
    }
}

/// The method of this name or alias; `_` and `-` are the same, case does not matter.
///
/// # Errors
/// [`AdaptError::UnknownMethod`] with the nearest name and all names.
pub fn find(name: &str) -> Result<&'static Method, AdaptError> {
    let asked = name.to_lowercase().replace('_', "-");
    let found = METHODS
        .iter()
        .find(|m| m.name == asked || m.aliases.contains(&asked.as_str()));
    found.copied().ok_or_else(|| AdaptError::UnknownMethod {
        name: name.into(),
        suggestion: did_you_mean(&asked, METHODS.iter().map(|m| m.name)).map(str::to_owned),
        known: METHODS
            .iter()
            .map(|m| m.name)
            .collect::<Vec<_>>()
            .join(", "),
    })
}

/// The method that wrote this `adapter_config.json`: of those with its `peft_type` the one whose
/// variant it is, or else the plain one.
///
/// # Errors
/// [`AdaptError::UnknownMethod`].
pub fn find_peft(peft_type: &str, config: &Settings) -> Result<&'static Method, AdaptError> {
    let of_type = || METHODS.iter().filter(|m| m.peft_type == peft_type);
    let variant = of_type().find(|m| m.peft_variant.is_some_and(|is| is(config)));
    variant
        .or_else(|| of_type().find(|m| m.peft_variant.is_none()))
        .copied()
        .ok_or_else(|| super::peft_support::unknown(peft_type))
}

/// A method's typed settings; unknown names come with the nearest known one.
///
/// # Errors
/// [`AdaptError::Settings`].
pub(super) fn parse<T: DeserializeOwned + Serialize + Default>(
    method: &'static str,
    settings: &Settings,
) -> Result<T, AdaptError> {
    let known = defaults::<T>();
    let unknown: Vec<String> = settings
        .keys()
        .filter(|key| !known.contains_key(*key))
        .map(
            |key| match did_you_mean(key, known.keys().map(String::as_str)) {
                Some(near) => format!("unknown setting `{key}` (did you mean `{near}`?)"),
                None => format!(
                    "unknown setting `{key}`; it has: {}",
                    known.keys().cloned().collect::<Vec<_>>().join(", ")
                ),
            },
        )
        .collect();
    if !unknown.is_empty() {
        return Err(AdaptError::Settings {
            method,
            reason: unknown.join("; "),
        });
    }
    serde_json::from_value(Value::Object(settings.clone())).map_err(|error| {
        // Beside the defaults alone, the one at fault shows itself.
        let of_one = settings.iter().find_map(|(key, value)| {
            let mut all = known.clone();
            all.insert(key.clone(), value.clone());
            Some(format!(
                "`{key}`: {}",
                serde_json::from_value::<T>(Value::Object(all)).err()?
            ))
        });
        AdaptError::Settings {
            method,
            reason: of_one.unwrap_or_else(|| error.to_string()),
        }
    })
}

/// Every setting with its default.
pub(super) fn defaults<T: Serialize + Default>() -> Settings {
    match serde_json::to_value(T::default()) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_sorted_and_unique_and_documented() {
        let mut names: Vec<&str> = METHODS.iter().map(|m| m.name).collect();
        assert!(names.is_sorted());
        names.extend(METHODS.iter().flat_map(|m| m.aliases));
        names.sort_unstable();
        assert!(names.windows(2).all(|w| w[0] != w[1]));
        let headings = [
            "What it does",
            "Update rule",
            "When to use, when not",
            "Cost",
            "Defaults and where they come from",
            "Departures from the paper",
            "References",
        ];
        for method in METHODS {
            let text = method.documentation();
            let found: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("## ")).collect();
            assert_eq!(found, headings, "{}", method.name);
        }
    }

    #[test]
    fn a_setting_of_the_wrong_kind_is_named() {
        let settings = |value: Value| value.as_object().unwrap().clone();
        for method in ["lora", "loha", "ia3"] {
            let check = find(method).unwrap().check;
            let message = check(&settings(json!({"target_modules": 5})))
                .unwrap_err()
                .to_string();
            let expected = "`target_modules`: must be a list of names, a pattern or \"all-linear\"";
            assert_eq!(message, format!("method `{method}`: {expected}"));
        }
        let message =
            (find("lora").unwrap().check)(&settings(json!({"lora_alpha": 8, "r": "many"})))
                .unwrap_err()
                .to_string();
        assert!(message.contains("`r`: invalid type"), "{message}");
    }

    #[test]
    fn a_mistyped_name_is_answered_with_the_nearest() {
        assert_eq!(find("Prompt_Tuning").unwrap().name, "prompt-tuning");
        let message = find("lroa").err().unwrap().to_string();
        assert!(
            message.contains("did you mean `lora`?") && message.contains("prompt-tuning"),
            "{message}"
        );
    }
}
