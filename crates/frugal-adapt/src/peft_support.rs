//! What `peft` reads of the adapters that this program writes.
//!
//! `scripts/golden/peft_support.py` tries all of it with `peft` itself and writes
//! `fixtures/peft_support.json`, which the tests compare with these tables.

use frugal_core::suggest::did_you_mean;
use frugal_nn::{AdaptError, Adapter, BackboneInfo};

use crate::method::Method;

/// The types of the version whose format is written; those of other methods are written in its
/// layout and read by this program only.
#[rustfmt::skip]
const TYPES_OF_PEFT: [&str; 45] = [
    "ADALORA", "ADAMSS", "ADAPTION_PROMPT", "BEFT", "BOFT", "C3A", "CARTRIDGE", "CPT", "DEFT", "DELORA", "FOURIERFT", "FROD",
    "GLORA", "GRALORA", "HIRA", "HRA", "IA3", "LILY", "LN_TUNING", "LOHA", "LOKR", "LORA", "MISS", "MULTITASK_PROMPT_TUNING",
    "OFT", "OSF", "PEANUT", "POLY", "PREFIX_TUNING", "PROMPT_TUNING", "PSOFT", "PVERA", "P_TUNING", "RANDLORA", "ROAD",
    "SHADOW", "SHIRA", "SUPERTUNING", "TINYLORA", "TRAINABLE_TOKENS", "UNILORA", "VBLORA", "VERA", "WAVEFT", "XLORA",
];

/// Types that `peft` knows on maps stored transposed (GPT-2's `Conv1D`).
#[rustfmt::skip]
const ON_CONV1D: [&str; 15] = [
    "ADALORA", "DEFT", "FOURIERFT", "FROD", "GRALORA", "HIRA", "IA3", "LORA", "PVERA", "RANDLORA", "TINYLORA", "UNILORA", "VBLORA",
    "VERA", "WAVEFT",
];

/// Types that act on linear layers.
#[rustfmt::skip]
const ON_LINEAR: [&str; 33] = [
    "ADALORA", "ADAMSS", "BEFT", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "FROD", "GLORA", "GRALORA", "HIRA", "HRA", "IA3", "LILY", "LOHA", "LOKR",
    "LORA", "MISS", "OFT", "OSF", "PEANUT", "POLY", "PVERA", "RANDLORA", "ROAD", "SHIRA", "SUPERTUNING", "TINYLORA", "UNILORA", "VBLORA",
    "VERA", "WAVEFT",
];

/// Variants of LoRA that `peft` does not know on experts, by the names of the methods here.
const NOT_ON_EXPERTS: [(&str, &str); 7] = [
    ("alora", "aLoRA"),
    ("bd-lora", "BD-LoRA"),
    ("dora", "DoRA"),
    ("kasa", "KaSA"),
    ("mica", "MiCA"),
    ("monteclora", "MonteCLoRA"),
    ("velora", "VeLoRA"),
];

/// Nearest method here of types that only `peft` has.
const NEAREST: [(&str, &str); 2] = [("PSOFT", "psoft"), ("XLORA", "mola")];

/// Types whose files `peft` reads rightly only where it wrote them itself, and why.
const READ_FROM_PEFT_ONLY: [(&str, &str); 1] = [(
    "FROD",
    "`peft` takes one side of each layer from a basis that it forms itself when it reads the file; the signs and the order of \
     its vectors follow from its linear algebra",
)];

impl Method {
    /// Whether `peft` has a method of its `peft_type`.
    pub fn is_in_peft(&self) -> bool {
        TYPES_OF_PEFT.contains(&self.peft_type)
    }

    /// Whether Python reads its adapter files: `peft` has the method, and takes from a file all that
    /// counts.
    pub fn is_read_by_peft(&self) -> bool {
        self.is_in_peft() && self.misread().is_none()
    }

    fn misread(&self) -> Option<&'static str> {
        let found = READ_FROM_PEFT_ONLY
            .iter()
            .find(|(name, _)| *name == self.peft_type);
        found.map(|(_, why)| *why)
    }
}

/// What was found of a `peft_type` that no method here has.
///
/// `types` are those that methods here have.
pub(crate) fn unknown(peft_type: &str, mut types: Vec<&str>) -> AdaptError {
    let nearest = NEAREST.iter().find(|(name, _)| *name == peft_type);
    if TYPES_OF_PEFT.contains(&peft_type) {
        return AdaptError::PeftType {
            peft_type: peft_type.into(),
            hint: match nearest {
                Some((_, method)) => format!("; the nearest here is `{method}`"),
                None => "; `frugal methods` lists those that are".into(),
            },
        };
    }
    types.dedup();
    let asked = peft_type.to_uppercase();
    let hint = match did_you_mean(&asked, types) {
        Some(near) => format!(" (did you mean `{near}`?)"),
        None => ", and unknown to peft too".into(),
    };
    AdaptError::PeftType {
        peft_type: peft_type.into(),
        hint,
    }
}

/// Why `peft` does not read this adapter of this model, or drops a part of it; `None` where it
/// reads all of it.
///
/// `method` is the adapter's.
pub fn obstacle(method: &Method, adapter: &dyn Adapter, model: &BackboneInfo) -> Option<String> {
    if !method.is_in_peft() {
        return Some("`peft` does not have this method".into());
    }
    if let Some(why) = method.misread() {
        return Some(why.into());
    }
    let names = adapter.parameters();
    let acts_on = |part: &str| names.iter().any(|p| p.name().contains(part));
    let config = adapter.peft_config();
    // Its files may leave out what is of single layers.
    let targets = config
        .get("target_modules")
        .and_then(serde_json::Value::as_array);
    let targets_experts = targets.is_some_and(|all| {
        all.iter()
            .any(|name| ["w1", "w2", "w3"].iter().any(|map| name == map))
    });
    let is_linear = ON_LINEAR.contains(&method.peft_type);
    match model.model_type {
        "gpt2" if is_linear && !ON_CONV1D.contains(&method.peft_type) => Some(format!(
            "`peft` has no {} for GPT-2's maps, which are stored transposed (`Conv1D`)",
            method.peft_type
        )),
        "gpt2" if ["bd-lora", "kasa"].contains(&method.name) => Some(format!(
            "`peft` has no `{}` for GPT-2's maps, which are stored transposed (`Conv1D`)",
            method.name
        )),
        "mixtral" if is_linear && (acts_on(".experts.") || targets_experts) => on_experts(method, &names),
        "mamba" if acts_on(".dt_proj.") => Some(
            "transformers multiplies with the weight of Mamba's `dt_proj` past the layer, and so past \
             what `peft` adds to it"
                .into(),
        ),
        "mamba" if ["LORA", "ADALORA", "RANDLORA"].contains(&method.peft_type) && acts_on(".out_proj.") => {
            Some(format!("`peft` refuses {} on Mamba's `out_proj`", method.peft_type))
        }
        _ if !model.in_transformers => Some("transformers does not have this architecture".into()),
        other if method.peft_type == "ADAPTION_PROMPT" && !["llama", "mistral"].contains(&other) => {
            Some("`peft` has this method for Llama and Mistral".into())
        }
        _ => None,
    }
}

/// transformers keeps the experts of a block in two tensors, on which `peft` knows plain LoRA.
fn on_experts(method: &Method, parameters: &[&frugal_nn::Parameter]) -> Option<String> {
    let of = |map: &str| {
        let ending = format!(".{map}.");
        parameters
            .iter()
            .any(|p| p.name().contains(".experts.") && p.name().contains(&ending))
    };
    if method.peft_type != "LORA" {
        return Some(format!(
            "`peft` has no {} for the experts of a mixture and would pass over that part without an error: name other layers \
             with `target_modules`",
            method.peft_type
        ));
    }
    if let Some((_, variant)) = NOT_ON_EXPERTS.iter().find(|(name, _)| *name == method.name) {
        return Some(format!(
            "`peft` has no {variant} for the experts of a mixture"
        ));
    }
    let gated = [of("w1"), of("w3"), of("w2")];
    let is_read = gated == [true; 3] || gated == [false, false, true];
    (!is_read).then(|| {
        "`peft` holds `w1` and `w3` of the experts in one tensor, and reads adapters of `w2` or of all three only".into()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use frugal_models::ModelConfig;

    use super::*;
    use crate::registry::{self, METHODS};
    use frugal_nn::BuildContext;

    const FOUND: &str = include_str!("../../../fixtures/peft_support.json");

    fn config(model_type: &str) -> ModelConfig {
        let raw = json!({"model_type": model_type, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "num_local_experts": 4, "num_experts_per_tok": 2,
            "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64});
        ModelConfig::from_json(raw, "test").unwrap()
    }

    fn is_read(method: &str, model_type: &str, targets: &[&str]) -> bool {
        let config = config(model_type);
        let sites = config.sites();
        let context = BuildContext {
            info: &config.info(),
            sites: &sites,
            backbone: None,
            device: burn::prelude::Device::flex(),
            seed: 0,
            tokenize: None,
        };
        let method = registry::find(method).unwrap();
        let mut settings = Map::from_iter([("target_modules".to_owned(), json!(targets))]);
        let small = [
            ("r", json!(2)),
            ("init_r", json!(2)),
            ("target_r", json!(1)),
            ("block_size", json!(8)),
            ("vector_length", json!(8)),
            ("group_size", json!(16)),
            ("n_frequency", json!(8)),
            ("feedforward_modules", json!([])),
        ];
        let known = (method.defaults)();
        for (key, value) in small {
            let absent = (key == "r") && ["oft", "supertuning"].contains(&method.name);
            if known.contains_key(key) && !absent {
                settings.insert(key.into(), value);
            }
        }
        let adapter = method.make(&settings, &context).unwrap();
        obstacle(method, adapter.as_ref(), &config.info()).is_none()
    }

    fn method_of(kind: &str) -> &'static str {
        match kind.split_once('+') {
            Some((_, "DORA")) => "dora",
            Some((_, "KASA")) => "kasa",
            Some((_, "BDLORA")) => "bd-lora",
            Some((_, "MICA")) => "mica",
            Some((_, "EVA")) => "eva",
            Some((_, "VELORA")) => "velora",
            Some((_, "MONTECLORA")) => "monteclora",
            Some((_, "ALORA")) => "alora",
            _ => METHODS
                .iter()
                .filter(|m| m.peft_variant.is_none())
                .find(|m| m.peft_type == kind)
                .map_or("missing", |m| m.name),
        }
    }

    #[test]
    fn what_peft_reads_is_what_it_was_found_to_read() {
        let found: Value = serde_json::from_str(FOUND).unwrap();
        let table = |key: &str| found[key].as_object().unwrap().clone();
        for (kind, reads) in table("conv1d") {
            // It may have the layer, and yet read only what it wrote itself.
            let method = method_of(&kind);
            let reads = reads == json!(true) && registry::find(method).unwrap().is_read_by_peft();
            assert_eq!(
                is_read(method, "gpt2", &["c_attn"]),
                reads,
                "{kind} on GPT-2"
            );
        }
        for (kind, reads) in table("experts") {
            let targets = ["q_proj", "w1", "w2", "w3"];
            assert_eq!(
                is_read(method_of(&kind), "mixtral", &targets),
                reads,
                "{kind} on experts"
            );
        }
        for (maps, reads) in table("lora_on_experts") {
            let targets: Vec<&str> = maps.split(',').collect();
            assert_eq!(
                is_read("lora", "mixtral", &targets),
                reads,
                "lora on {maps}"
            );
        }
        assert_eq!(table("conv1d").len(), 41);
    }

    #[test]
    fn a_type_that_is_not_supported_is_named_with_the_nearest() {
        let message = unknown("PSOFT", METHODS.iter().map(|m| m.peft_type).collect()).to_string();
        assert_eq!(
            message,
            "adapters of `peft_type` PSOFT are not supported; the nearest here is `psoft`"
        );
        let message = unknown("LOAR", METHODS.iter().map(|m| m.peft_type).collect()).to_string();
        assert!(message.contains("did you mean `LORA`"), "{message}");
        for (peft_type, method) in NEAREST {
            assert!(registry::find(method).is_ok(), "{peft_type}");
            assert!(TYPES_OF_PEFT.contains(&peft_type), "{peft_type}");
        }
    }
}
