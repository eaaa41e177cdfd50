//! The files of a Hugging Face tokenizer: reading and writing them.

use std::path::Path;

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::added::{ADDED, Sources, add_tokens};
use super::bounds;
use super::class;
use super::{TextTokenizer, TokenizerError, TokenizerSettings};
use crate::caught::caught;
use crate::fs;
use crate::tokenizer_settings::token_text;

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
const SPECIAL: &str = "special_tokens_map.json";
const TEMPLATE: &str = "chat_template.jinja";
const GENERATION: &str = "generation_config.json";
const MODEL: &str = "config.json";

impl TextTokenizer {
    /// Reads `tokenizer.json` and, where they exist, `tokenizer_config.json`,
    /// `special_tokens_map.json`, `added_tokens.json`, `chat_template.jinja` and the `eos_token_id` of
    /// `generation_config.json` (or `config.json`).
    ///
    /// As in transformers 5, `add_bos_token` and `add_eos_token` of `tokenizer_config.json` are
    /// ignored: the post-processor in `tokenizer.json` says what is added.
    ///
    /// # Errors
    /// Names the file that is missing, unreadable or malformed.
    pub fn from_folder(folder: &Path) -> Result<Self, TokenizerError> {
        let path = folder.join(TOKENIZER);
        if !path.exists() {
            return Err(TokenizerError::Missing {
                folder: folder.to_owned(),
            });
        }
        let config = read_object(&folder.join(CONFIG))?.unwrap_or_default();
        let model = read_object(&folder.join(MODEL))?.unwrap_or_default();
        let class = class::name(&config, &model);
        let mut tokenizer = parse(&path, &fs::read(&path)?, &config, class)?;
        let special = read_object(&folder.join(SPECIAL))?.unwrap_or_default();
        for (file, values) in [(CONFIG, &config), (SPECIAL, &special)] {
            check_tokens(&folder.join(file), values)?;
        }
        let added = read_object(&folder.join(ADDED))?.unwrap_or_default();
        let sources = Sources {
            config: &config,
            special: &special,
            added: &added,
        };
        add_tokens(&mut tokenizer, &sources, folder)?;
        let mut settings = TokenizerSettings {
            bos_token: special_token("bos_token", &config, &special),
            eos_token: special_token("eos_token", &config, &special),
            pad_token: special_token("pad_token", &config, &special),
            unk_token: special_token("unk_token", &config, &special),
            eos_token_ids: eos_token_ids(folder, &[GENERATION, MODEL])?,
            chat_template: chat_template(folder, &config)?,
            // Files without a limit hold 1e30 here.
            model_max_length: config
                .get("model_max_length")
                .and_then(Value::as_u64)
                .and_then(|n| usize::try_from(n).ok()),
            token_types: class::token_types(&config, class),
            spaced_words: class::spaced_words(class),
            ..TokenizerSettings::default()
        };
        settings.other = config;
        for key in [
            "bos_token",
            "eos_token",
            "pad_token",
            "unk_token",
            "chat_template",
            "add_bos_token",
            "add_eos_token",
        ] {
            settings.other.remove(key);
        }
        Self::new(tokenizer, settings)
    }

    /// From the contents of `tokenizer.json` and `tokenizer_config.json`.
    ///
    /// # Errors
    /// Says which of the two is malformed.
    pub fn from_json(tokenizer: &str, config: &str) -> Result<Self, TokenizerError> {
        let malformed = |file: &str, reason: String| TokenizerError::Malformed {
            path: file.into(),
            reason,
        };
        let config: Map<String, Value> =
            serde_json::from_str(config).map_err(|e| malformed(CONFIG, e.to_string()))?;
        let model = Map::new();
        let class = class::name(&config, &model);
        let tokenizer = parse(Path::new(TOKENIZER), tokenizer.as_bytes(), &config, class)?;
        let token = |name| special_token(name, &config, &Map::new());
        let settings = TokenizerSettings {
            bos_token: token("bos_token"),
            eos_token: token("eos_token"),
            pad_token: token("pad_token"),
            unk_token: token("unk_token"),
            chat_template: config
                .get("chat_template")
                .and_then(Value::as_str)
                .map(str::to_owned),
            token_types: class::token_types(&config, class),
            spaced_words: class::spaced_words(class),
            ..TokenizerSettings::default()
        };
        Self::new(tokenizer, settings)
    }

    /// Takes over what a folder beside the model's says about text, as that of an adapter does: a
    /// `chat_template.jinja`, and the `eos_token_id` of a `generation_config.json`.
    ///
    /// # Errors
    /// Names the file that is unreadable or malformed.
    pub fn use_settings_of(&mut self, folder: &Path) -> Result<(), TokenizerError> {
        let config = read_object(&folder.join(CONFIG))?.unwrap_or_default();
        if let Some(source) = chat_template(folder, &config)? {
            self.set_chat_template(&source)?;
        }
        let ids = eos_token_ids(folder, &[GENERATION])?;
        self.add_eos_ids(&ids);
        Ok(())
    }

    /// Writes the chat template beside an adapter.
    ///
    /// # Errors
    /// Names the file that cannot be written.
    pub fn save_chat_template(&self, folder: &Path) -> Result<(), TokenizerError> {
        if let Some(template) = &self.settings().chat_template {
            fs::write_atomic(&folder.join(TEMPLATE), template.as_bytes())?;
        }
        Ok(())
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and, if there is
    /// a template, `chat_template.jinja`, so that `AutoTokenizer` of transformers loads the folder.
    ///
    /// # Errors
    /// Names the file that cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), TokenizerError> {
        let text = self
            .inner()
            .to_string(true)
            .map_err(TokenizerError::failed("be written as JSON"))?;
        fs::write_atomic(&folder.join(TOKENIZER), text.as_bytes())?;
        let settings = self.settings();
        let tokens = [
            ("bos_token", &settings.bos_token),
            ("eos_token", &settings.eos_token),
            ("pad_token", &settings.pad_token),
            ("unk_token", &settings.unk_token),
        ];
        let special: Map<String, Value> = tokens
            .into_iter()
            .filter_map(|(name, token)| Some((name.to_owned(), json!(token.as_ref()?))))
            .collect();
        let mut config = settings.other.clone();
        config.extend(special.clone());
        if let Some(length) = settings.model_max_length {
            config.insert("model_max_length".into(), json!(length));
        }
        if settings.token_types && !config.contains_key("tokenizer_class") {
            let names = json!(["input_ids", "token_type_ids", "attention_mask"]);
            config.entry("model_input_names").or_insert(names);
        }
        // The one class that takes everything from tokenizer.json.
        config
            .entry("tokenizer_class")
            .or_insert_with(|| json!("PreTrainedTokenizerFast"));
        write_object(&folder.join(CONFIG), config)?;
        write_object(&folder.join(SPECIAL), special)?;
        if let Some(template) = &settings.chat_template {
            fs::write_atomic(&folder.join(TEMPLATE), template.as_bytes())?;
        }
        Ok(())
    }
}

/// Reads a tokenizer; what it asks for is checked first, and a panic of the parser is an error.
fn parse(
    path: &Path,
    bytes: &[u8],
    config: &Map<String, Value>,
    class: Option<&str>,
) -> Result<Tokenizer, TokenizerError> {
    let malformed = |reason: String| TokenizerError::Malformed {
        path: path.to_owned(),
        reason,
    };
    let mut json =
        serde_json::from_slice(bytes).map_err(|e| malformed(format!("not a tokenizer: {e}")))?;
    bounds::check(&json).map_err(malformed)?;
    let changed =
        class::apply(&mut json, config, class).map_err(|reason| TokenizerError::Malformed {
            path: path.with_file_name(CONFIG),
            reason: reason.into(),
        })?;
    let of_class = changed.then(|| json.to_string());
    drop(json);
    let bytes = of_class.as_ref().map_or(bytes, |text| text.as_bytes());
    caught(|| Tokenizer::from_bytes(bytes))
        .map_err(|reason| malformed(format!("not a tokenizer: {reason}")))?
        .map_err(|e| malformed(format!("not a tokenizer: {e}")))
}

fn write_object(path: &Path, object: Map<String, Value>) -> Result<(), TokenizerError> {
    Ok(fs::write_atomic(
        path,
        format!("{:#}\n", Value::Object(object)).as_bytes(),
    )?)
}

fn read_object(path: &Path) -> Result<Option<Map<String, Value>>, TokenizerError> {
    if !path.exists() {
        return Ok(None);
    }
    let malformed = |reason| TokenizerError::Malformed {
        path: path.to_owned(),
        reason,
    };
    match crate::json::parse(&fs::read(path)?) {
        Ok(Value::Object(object)) => Ok(Some(object)),
        Ok(_) => Err(malformed("expected a JSON object".into())),
        Err(e) => Err(malformed(format!("not JSON: {e}"))),
    }
}

/// A special token of the config, else of the map; without `added_tokens_decoder` the config is of
/// the time when the map had the last word.
fn special_token(
    name: &str,
    config: &Map<String, Value>,
    special: &Map<String, Value>,
) -> Option<String> {
    let files = match config.contains_key("added_tokens_decoder") {
        true => [config, special],
        false => [special, config],
    };
    let text = |file: &Map<String, Value>| file.get(name).and_then(token_text).map(str::to_owned);
    files.into_iter().find_map(text)
}

/// Special tokens are texts, or objects with one; anything else would be left out.
fn check_tokens(path: &Path, values: &Map<String, Value>) -> Result<(), TokenizerError> {
    let no_text = |(name, value): &(&String, &Value)| {
        ["bos_token", "eos_token", "pad_token", "unk_token"].contains(&name.as_str())
            && !value.is_null()
            && token_text(value).is_none()
    };
    match values.iter().find(no_text) {
        None => Ok(()),
        Some((name, value)) => Err(TokenizerError::Malformed {
            path: path.to_owned(),
            reason: format!(
                "{name} must be a text, or an object with it as `content`, not {value}"
            ),
        }),
    }
}

/// The ids that the first of the files to name any gives.
fn eos_token_ids(folder: &Path, files: &[&str]) -> Result<Vec<u32>, TokenizerError> {
    for name in files {
        let path = folder.join(name);
        let Some(value) = read_object(&path)?
            .and_then(|o| o.get("eos_token_id").cloned())
            .filter(|v| !v.is_null())
        else {
            continue;
        };
        let malformed = || TokenizerError::Malformed {
            path: path.clone(),
            reason: format!("eos_token_id must be an id or a list of ids, not {value}"),
        };
        let id = |v: &Value| {
            v.as_u64()
                .and_then(|n| u32::try_from(n).ok())
                .ok_or_else(malformed)
        };
        return match &value {
            Value::Array(ids) => ids.iter().map(id).collect(),
            one => Ok(vec![id(one)?]),
        };
    }
    Ok(Vec::new())
}

/// `chat_template.jinja` wins over the key of the config, which holds a template or a list of named
/// ones.
fn chat_template(
    folder: &Path,
    config: &Map<String, Value>,
) -> Result<Option<String>, TokenizerError> {
    let path = folder.join(TEMPLATE);
    if path.exists() {
        let text = String::from_utf8(fs::read(&path)?);
        return text.map(Some).map_err(|_| TokenizerError::Malformed {
            path,
            reason: "not UTF-8".into(),
        });
    }
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(template)) => Ok(Some(template.clone())),
        Some(Value::Array(named)) => {
            let default = named
                .iter()
                .find(|t| t.get("name").is_some_and(|n| n == "default"));
            Ok(default
                .and_then(|t| t.get("template")?.as_str())
                .map(str::to_owned))
        }
        Some(_) => Err(TokenizerError::Malformed {
            path: folder.join(CONFIG),
            reason:
                "chat_template must be a string or a list of objects with `name` and `template`"
                    .into(),
        }),
    }
}
