//! How byte-level tokenizers split a text before merging, by `tokenizer.ggml.pre`.
//!
//! The expressions are those of the models' own `tokenizer.json` files.

use serde_json::Value as Json;
use tokenizers::Tokenizer;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

use super::GgufProblem;
use super::problem::{library, wrong};

/// A way of splitting.
pub(super) struct Pre {
    names: &'static [&'static str],
    splits: &'static [&'static str],
    /// Whether digits stand alone and GPT-2's expression follows.
    digits: bool,
    /// Whether GPT-2's expression is applied at the end.
    gpt2: bool,
    nfc: bool,
    /// Whether a piece that is a token is taken as it is.
    pub(super) ignore_merges: bool,
    /// Whether texts begin with the beginning-of-text token unless the file says otherwise.
    pub(super) add_bos: bool,
}

const NONE: Pre = Pre {
    names: &[],
    splits: &[],
    digits: false,
    gpt2: false,
    nfc: false,
    ignore_merges: false,
    add_bos: false,
};

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const ALL: &[Pre] = &[
    Pre {
        names: &["gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion"],
        gpt2: true,
        ..NONE
    },
    Pre {
        names: &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
        ],
        digits: true,
        gpt2: true,
        ..NONE
    },
    Pre {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
        ],
        splits: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
        ..NONE
    },
    Pre {
        names: &["dbrx", "smaug-bpe"],
        splits: &[LLAMA3],
        ..NONE
    },
    Pre {
        names: &["qwen2", "deepseek-r1-qwen"],
        splits: &[QWEN2],
        nfc: true,
        ..NONE
    },
    Pre {
        names: &["stablelm2", "megrez"],
        splits: &[QWEN2],
        ..NONE
    },
    Pre {
        names: &["tekken"],
        splits: &[TEKKEN],
        ignore_merges: true,
        add_bos: true,
        ..NONE
    },
    // Of files that do not say: what llama.cpp does with them.
    Pre {
        names: &["default"],
        splits: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        ..NONE
    },
];

/// The way of splitting with this name.
pub(super) fn by_name(name: &str) -> Result<&'static Pre, GgufProblem> {
    ALL.iter()
        .find(|pre| pre.names.contains(&name))
        .ok_or_else(|| {
            let known: Vec<&str> = ALL.iter().flat_map(|pre| pre.names).copied().collect();
            wrong(
                "pre",
                format!("{name:?} is not supported; these are: {}", known.join(", ")),
            )
        })
}

/// The name of the way in which a byte-level `tokenizer.json` splits.
pub(super) fn name_of(json: &Json) -> Result<&'static str, GgufProblem> {
    let steps = match &json["pre_tokenizer"] {
        Json::Object(step) if step.contains_key("pretokenizers") => step["pretokenizers"]
            .as_array()
            .cloned()
            .unwrap_or_default(),
        step => vec![step.clone()],
    };
    let digits = steps
        .iter()
        .any(|step| step["type"] == "Digits" && step["individual_digits"] == true);
    let gpt2 = steps
        .iter()
        .any(|step| step["type"] == "ByteLevel" && step["use_regex"] != false);
    let splits: Vec<&str> = steps
        .iter()
        .filter_map(|step| step["pattern"]["Regex"].as_str())
        .collect();
    let known = steps.iter().all(|step| {
        matches!(
            step["type"].as_str(),
            Some("Digits" | "ByteLevel" | "Split")
        )
    });
    let ignore_merges = json["model"]["ignore_merges"] == true;
    let nfc = json["normalizer"]["type"] == "NFC";
    let same = |pre: &&Pre| {
        (pre.digits, pre.gpt2, pre.nfc, pre.ignore_merges) == (digits, gpt2, nfc, ignore_merges)
            && pre.splits == splits
    };
    let found = ALL
        .iter()
        .find(same)
        .filter(|_| known && (nfc || json["normalizer"].is_null()));
    found.map(|pre| pre.names[0]).ok_or_else(|| {
        GgufProblem::Unsupported("tokenizer: GGUF has no name for the way it splits texts (its normalizer and pre_tokenizer)".into())
    })
}

impl Pre {
    pub(super) fn apply(&self, tokenizer: &mut Tokenizer) -> Result<(), GgufProblem> {
        let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
        if self.digits {
            steps.push(Digits::new(true).into());
        }
        for expression in self.splits {
            let pattern = SplitPattern::Regex((*expression).to_owned());
            steps.push(
                Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
                    .map_err(library)?
                    .into(),
            );
        }
        let byte_level = ByteLevel::new(false, true, self.gpt2);
        steps.push(byte_level.into());
        tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
        tokenizer.with_decoder(Some(byte_level));
        tokenizer.with_post_processor(Some(ByteLevel::new(false, false, self.gpt2)));
        if self.nfc {
            tokenizer.with_normalizer(Some(NFC));
        }
        Ok(())
    }
}
