//! The table of methods: one line each.

use frugal_core::suggest::did_you_mean;
use frugal_nn::AdaptError;

use crate::method::Method;
use crate::methods::{
    bottleneck, compression, full, hybrid, low_rank, orthogonal, prompt, scaling, shared, sparse,
    spectral,
};
use crate::peft_support::unknown;
use crate::settings::Settings;

/// All methods, sorted by name.
#[rustfmt::skip]
pub const METHODS: &[&Method] = &[
    &low_rank::adalora::METHOD,
    &spectral::adamss::METHOD,
    &bottleneck::adapter_drop::METHOD,
    &bottleneck::adapter_fusion::METHOD,
    &prompt::adaption_prompt::METHOD,
    &low_rank::alora::METHOD,
    &low_rank::bdlora::METHOD,
    &scaling::beft::METHOD,
    &sparse::bitfit::METHOD,
    &orthogonal::boft::METHOD,
    &spectral::c3a::METHOD,
    &prompt::cartridge::METHOD,
    &bottleneck::compacter::METHOD,
    &low_rank::corda::METHOD,
    &prompt::cpt::METHOD,
    &low_rank::deft::METHOD,
    &low_rank::delora::METHOD,
    &sparse::diff_pruning::METHOD,
    &low_rank::dora::METHOD,
    &low_rank::dylora::METHOD,
    &low_rank::eva::METHOD,
    &sparse::fish_mask::METHOD,
    &spectral::fourierft::METHOD,
    &spectral::frod::METHOD,
    &full::METHOD,
    &scaling::glora::METHOD,
    &low_rank::gralora::METHOD,
    &low_rank::hira::METHOD,
    &bottleneck::houlsby::METHOD,
    &orthogonal::hra::METHOD,
    &scaling::ia3::METHOD,
    &bottleneck::iaa::METHOD,
    &sparse::id3::METHOD,
    &low_rank::increlora::METHOD,
    &low_rank::kasa::METHOD,
    &shared::lily::METHOD,
    &scaling::ln_tuning::METHOD,
    &low_rank::loha::METHOD,
    &low_rank::lokr::METHOD,
    &low_rank::lora::METHOD,
    &low_rank::lora_fa::METHOD,
    &low_rank::lora_ga::METHOD,
    &low_rank::lora_plus::METHOD,
    &spectral::lora_xs::METHOD,
    &hybrid::mam::METHOD,
    &low_rank::mica::METHOD,
    &low_rank::miss::METHOD,
    &low_rank::mola::METHOD,
    &low_rank::monteclora::METHOD,
    &shared::mos::METHOD,
    &prompt::multitask_prompt_tuning::METHOD,
    &orthogonal::oft::METHOD,
    &low_rank::olora::METHOD,
    &spectral::osf::METHOD,
    &prompt::p_tuning::METHOD,
    &bottleneck::parallel_adapter::METHOD,
    &low_rank::peanut::METHOD,
    &compression::pela::METHOD,
    &compression::peqa::METHOD,
    &bottleneck::pfeiffer::METHOD,
    &low_rank::pissa::METHOD,
    &low_rank::poly::METHOD,
    &prompt::prefix_tuning::METHOD,
    &prompt::prompt_tuning::METHOD,
    &orthogonal::psoft::METHOD,
    &sparse::pst::METHOD,
    &shared::pvera::METHOD,
    &low_rank::qa_lora::METHOD,
    &shared::randlora::METHOD,
    &orthogonal::road::METHOD,
    &low_rank::rslora::METHOD,
    &sparse::shira::METHOD,
    &low_rank::sora::METHOD,
    &scaling::ssf::METHOD,
    &compression::stable_rps::METHOD,
    &sparse::supertuning::METHOD,
    &spectral::svfit::METHOD,
    &spectral::svft::METHOD,
    &shared::tinylora::METHOD,
    &sparse::trainable_tokens::METHOD,
    &shared::unilora::METHOD,
    &hybrid::unipelt::METHOD,
    &shared::vblora::METHOD,
    &low_rank::velora::METHOD,
    &shared::vera::METHOD,
    &spectral::waveft::METHOD,
];

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
        .ok_or_else(|| unknown(peft_type, METHODS.iter().map(|m| m.peft_type).collect()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

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
