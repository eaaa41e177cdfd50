//! What any adapter file of `peft` may hold beside its method: the task, the base's own modules,
//! biases and rows, paths of a bare base model.

use std::collections::BTreeSet;
use std::path::Path;

use frugal_models::load::SafetensorsFile;
use frugal_nn::{
    AdaptError, Adapter, BackboneInfo, BuildContext, Frozen, SiteId, SiteTable, to_vec,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::method::Method;
use crate::overlay::{Wanted, stored_shape};
use crate::pattern::Bare;
use crate::settings::Settings;
use crate::target::{Targets, exclude};

const WRAPPER: &str = "base_model.model.";

/// Tasks whose adapters compute what this program computes.
const TASKS: [&str; 4] = ["CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS", "FEATURE_EXTRACTION"];

/// Refuses adapters of tasks that are computed in another way here; `path` is their configuration.
///
/// # Errors
/// [`AdaptError::Folder`] naming the task.
pub(crate) fn check_task(
    config: &Settings,
    model: Option<&BackboneInfo>,
    path: &Path,
) -> Result<(), AdaptError> {
    let bad = |reason: String| {
        Err(AdaptError::Folder {
            path: path.into(),
            reason,
        })
    };
    let task = config.get("task_type").and_then(Value::as_str);
    let class = model
        .and_then(|model| model.raw.get("architectures")?.get(0)?.as_str())
        .unwrap_or_default();
    let what = match task {
        Some("QUESTION_ANS") => "marks answers in a text",
        Some("SEQ_2_SEQ_LM") => "is for models of an encoder and a decoder",
        None if class.ends_with("ForQuestionAnswering") => "marks answers in a text",
        Some(task) if !TASKS.contains(&task) => "is for a task that is not known here",
        _ => return Ok(()),
    };
    let named = task.map_or_else(
        || format!("the model is a `{class}`"),
        |task| format!("`task_type` is `{task}`"),
    );
    bad(format!(
        "{named}: the adapter {what}, which is not supported; supported: {}",
        TASKS.join(", ")
    ))
}

/// Refuses modules to save that are no list of names; `path` is the configuration of the adapter.
///
/// # Errors
/// [`AdaptError::Folder`] naming the value.
pub(crate) fn check_modules(config: &Settings, path: &Path) -> Result<(), AdaptError> {
    let key = "modules_to_save";
    let value = match config.get(key) {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Array(names)) => names.iter().find(|name| !name.is_string()),
        other => other,
    };
    match value {
        None => Ok(()),
        Some(value) => Err(AdaptError::Folder {
            path: path.into(),
            reason: format!("`{key}`: expected a list of names or null, found {value}"),
        }),
    }
}

/// Whether the adapter labels every token: its task, or where it has none its model's class, says so.
pub(crate) fn labels_tokens(config: &Settings, model: &BackboneInfo) -> bool {
    match config.get("task_type").and_then(Value::as_str) {
        Some(task) => task == "TOKEN_CLS",
        None => {
            let class = model
                .raw
                .get("architectures")
                .and_then(|all| all.get(0)?.as_str());
            class.is_some_and(|class| class.ends_with("ForTokenClassification"))
        }
    }
}

/// Whether the tensors are called as in a bare base model (`BertModel`), whose paths lack `bert.`.
pub(crate) fn is_bare(names: &[String], model: &BackboneInfo, sites: &SiteTable) -> bool {
    let prefix = model.base_prefix;
    let paths: Vec<&str> = names
        .iter()
        .filter_map(|name| name.strip_prefix(WRAPPER))
        .collect();
    let is_of = |path: &str, site: &str| {
        path.strip_prefix(site)
            .is_some_and(|rest| rest.starts_with('.'))
    };
    !paths.iter().any(|path| path.starts_with(prefix))
        && sites
            .iter()
            .filter_map(|(_, site)| site.path.strip_prefix(prefix))
            .any(|site| paths.iter().any(|path| is_of(path, site)))
}

/// The settings of a file for a bare base model, with its patterns for paths that have the prefix.
pub(crate) fn with_prefix(mut settings: Settings, model: &BackboneInfo) -> Settings {
    let bare = Bare::new(model.base_prefix);
    for (field, value) in settings.iter_mut() {
        match value {
            Value::String(pattern) if is_selection(field) && pattern != "all-linear" => {
                *pattern = bare.whole(pattern);
            }
            Value::Object(patterns) if field.ends_with("_pattern") => {
                *patterns = std::mem::take(patterns)
                    .into_iter()
                    .map(|(key, value)| (bare.ending(&key), value))
                    .collect();
            }
            _ => {}
        }
    }
    settings
}

/// The same backwards, for saving.
pub(crate) fn without_prefix(mut settings: Settings, model: &BackboneInfo) -> Settings {
    let prefix = model.base_prefix;
    let bare = Bare::new(prefix);
    let strip = |path: &str| path.strip_prefix(prefix).unwrap_or(path).to_owned();
    for (field, value) in settings.iter_mut() {
        match value {
            Value::String(pattern) if is_selection(field) => *pattern = bare.undo(pattern),
            Value::Array(names) if is_selection(field) => {
                for name in names {
                    if let Value::String(text) = name {
                        *text = strip(text);
                    }
                }
            }
            Value::Object(patterns) if field.ends_with("_pattern") => {
                *patterns = std::mem::take(patterns)
                    .into_iter()
                    .map(|(key, value)| (strip(&bare.undo(&key)), value))
                    .collect();
            }
            _ => {}
        }
    }
    settings
}

fn is_selection(field: &str) -> bool {
    matches!(
        field,
        "target_modules" | "exclude_modules" | "feedforward_modules"
    )
}

/// What the configuration trains beside the method.
pub(crate) struct Beside {
    modules: Vec<String>,
    tokens: Option<Value>,
    bias: Option<String>,
    /// Whether it is for tokens, in whose classes a model has no pooler.
    labels_tokens: bool,
    fields: Settings,
}

impl Beside {
    /// Takes what any method may have out of a configuration; the rest is the method's.
    pub fn take(method: &Method, config: &mut Settings) -> Self {
        let mut taken = Self {
            modules: Vec::new(),
            tokens: None,
            bias: None,
            labels_tokens: config.get("task_type") == Some(&json!("TOKEN_CLS")),
            fields: Settings::new(),
        };
        if !method.is_in_peft() {
            return taken;
        }
        if let Some(Value::Array(names)) = config.get("modules_to_save") {
            taken.modules = names
                .iter()
                .filter_map(|name| name.as_str().map(str::to_owned))
                .collect();
        }
        let kept = |config: &mut Settings, field: &str, neutral: Value| {
            let value = config.get(field)?.clone();
            config.insert(field.into(), neutral);
            Some(value)
        };
        if config
            .get("trainable_token_indices")
            .is_some_and(|v| !v.is_null())
        {
            taken.tokens = kept(config, "trainable_token_indices", Value::Null);
        }
        if config.get("ensure_weight_tying") == Some(&json!(true)) {
            let value = kept(config, "ensure_weight_tying", json!(false));
            taken
                .fields
                .extend(value.map(|v| ("ensure_weight_tying".to_owned(), v)));
        }
        // LoRA and what is built on it have biases of their own.
        if !(method.defaults)().contains_key("bias")
            && let Some(bias) = config.get("bias").and_then(Value::as_str)
            && (bias == "all" || bias.ends_with("_only"))
        {
            taken.bias = Some(bias.to_owned());
            config.insert("bias".into(), json!("none"));
        }
        taken
    }

    /// Keeps the method away from modules that are saved whole, as `peft` does.
    pub fn exclude(&mut self, method: &Method, settings: &mut Settings, sites: &SiteTable) {
        if !(method.defaults)().contains_key("exclude_modules") {
            return;
        }
        let saved: Vec<&str> = sites
            .iter()
            .filter(|(_, site)| {
                let path = site.path.as_str();
                let components = |name: &String| {
                    path == name
                        || path.starts_with(&format!("{name}."))
                        || path.ends_with(&format!(".{name}"))
                        || path.contains(&format!(".{name}."))
                };
                self.modules.iter().any(components) || (self.labels_tokens && site.optional)
            })
            .map(|(_, site)| site.path.as_str())
            .collect();
        if let Some(given) = exclude(&saved, settings) {
            self.fields.insert("exclude_modules".into(), given);
        }
    }

    /// A method with biases of its own has none to train where the model has none; `peft` saves and
    /// reads such files.
    pub fn without_biases(&mut self, settings: &mut Settings, sites: &SiteTable) {
        let found = match settings.get("bias").and_then(Value::as_str) {
            Some("all") => sites.iter().any(|(_, site)| site.has_bias),
            Some("lora_only") => {
                let targets = Targets::deserialize(Value::Object(settings.clone())).ok();
                let chosen = targets.and_then(|targets| targets.select(sites).ok());
                // What selects nothing is refused with its own reason.
                chosen.is_none_or(|chosen| chosen.iter().any(|&id| sites.info(id).has_bias))
            }
            _ => return,
        };
        if !found {
            let given = settings.insert("bias".into(), json!("none"));
            self.fields.extend(given.map(|v| ("bias".to_owned(), v)));
        }
    }

    /// The parameters of this model that it trains, beside those of the finished method.
    ///
    /// # Errors
    /// Token ids that are none, tables that the model does not have.
    pub fn wanted(
        self,
        method: &Method,
        inner: &dyn Adapter,
        context: &BuildContext<'_>,
        (names, bare): (&[String], bool),
    ) -> Result<Wanted, AdaptError> {
        let sites = context.sites;
        let prefix = context.info.base_prefix;
        let path_in_file = |path: &str| {
            let short = path.strip_prefix(prefix).filter(|_| bare);
            short.unwrap_or(path).to_owned()
        };
        let mut wanted = Wanted {
            fields: self.fields,
            ..Wanted::default()
        };
        let tied = wanted.fields.contains_key("ensure_weight_tying");
        for (id, site) in sites.iter() {
            let path = path_in_file(&site.path);
            let saved = self.modules.iter().any(|name| has_ancestor(&path, name));
            let tied_too = tied && site.tied && names.contains(&format!("{WRAPPER}{path}.weight"));
            if saved || tied_too {
                wanted.modules.push(id);
            }
        }
        if !wanted.modules.is_empty() {
            wanted
                .fields
                .insert("modules_to_save".into(), json!(self.modules));
        }
        if let Some(bias) = self.bias {
            let adapted: BTreeSet<SiteId> = adapted_sites(inner, sites);
            for (id, site) in sites.iter().filter(|(_, site)| site.has_bias) {
                let is_adapted = adapted.contains(&id);
                if wanted.modules.contains(&id) || (bias != "all" && !is_adapted) {
                    continue;
                }
                // Wrapped layers have their own parameters one level down.
                let level = if is_adapted { ".base_layer" } else { "" };
                wanted
                    .biases
                    .push((id, format!("{}{level}.bias", site.path)));
            }
            wanted.fields.insert("bias".into(), json!(bias));
        }
        if let Some(tokens) = self.tokens {
            let tables = token_tables(method.name, &tokens, sites)?;
            if let Some((id, _)) = tables.iter().find(|(id, _)| wanted.modules.contains(id)) {
                return Err(AdaptError::Config {
                    method: method.name,
                    field: "trainable_token_indices",
                    reason: format!(
                        "`{}` is trained whole by `modules_to_save` already",
                        sites.info(*id).path
                    ),
                });
            }
            wanted.tokens = untied(method.name, tables, sites, tied)?;
            wanted
                .fields
                .insert("trainable_token_indices".into(), tokens);
        }
        Ok(wanted)
    }
}

/// Whether this path, or what it lies in, ends with the name: `peft` compares texts, not components.
fn has_ancestor(path: &str, name: &str) -> bool {
    let mut ends = path.match_indices('.').map(|(i, _)| i).chain([path.len()]);
    !name.is_empty() && ends.any(|end| path[..end].ends_with(name))
}

/// Sites that the adapter has parameters at.
fn adapted_sites(adapter: &dyn Adapter, sites: &SiteTable) -> BTreeSet<SiteId> {
    let parameters = adapter.parameters();
    let has = |path: &str| {
        parameters.iter().any(|p| {
            p.name()
                .strip_prefix(path)
                .is_some_and(|rest| rest.starts_with('.'))
        })
    };
    sites
        .iter()
        .filter(|(_, site)| has(&site.path))
        .map(|(id, _)| id)
        .collect()
}

/// `trainable_token_indices`: ids of the input table, or ids by table.
fn token_tables(
    method: &'static str,
    value: &Value,
    sites: &SiteTable,
) -> Result<Vec<(SiteId, Vec<u32>)>, AdaptError> {
    let bad = |reason: String| AdaptError::Config {
        method,
        field: "trainable_token_indices",
        reason,
    };
    let ids = |value: &Value| -> Result<Vec<u32>, AdaptError> {
        serde_json::from_value(value.clone())
            .map_err(|_| bad(format!("{value} is not a list of token ids")))
    };
    match value {
        Value::Object(tables) => tables
            .iter()
            .map(|(name, value)| {
                let found = sites
                    .iter()
                    .find(|(_, site)| crate::target::ends_with_component(&site.path, name));
                let (id, _) =
                    found.ok_or_else(|| bad(format!("the model has no table `{name}`")))?;
                Ok((id, ids(value)?))
            })
            .collect(),
        list => {
            let (first, _) = sites
                .iter()
                .next()
                .ok_or_else(|| bad("the model has no table".into()))?;
            Ok(vec![(first, ids(list)?)])
        }
    }
}

/// Rows of a table and of the head that shares it, both named: the same rows are one; others part
/// the two, unless they are to stay tied.
fn untied(
    method: &'static str,
    mut tables: Vec<(SiteId, Vec<u32>)>,
    sites: &SiteTable,
    stay_tied: bool,
) -> Result<Vec<(SiteId, Vec<u32>)>, AdaptError> {
    let input = tables.iter().find(|(id, _)| id.index() == 0).cloned();
    let Some((_, input)) = input else {
        return Ok(tables);
    };
    let differs = |(id, ids): &&(SiteId, Vec<u32>)| sites.info(*id).tied && *ids != input;
    if let Some((id, _)) = tables.iter().find(differs).filter(|_| stay_tied) {
        return Err(AdaptError::Config {
            method,
            field: "trainable_token_indices",
            reason: format!(
                "other rows of `{}` than of the table that it shares, and `ensure_weight_tying` is true",
                sites.info(*id).path
            ),
        });
    }
    tables.retain(|(id, ids)| !(sites.info(*id).tied && *ids == input));
    Ok(tables)
}

/// What a tensor that the adapter does not expect is.
pub(crate) enum Stray {
    /// A copy of the base's own, which changes nothing.
    Same,
    /// A copy of the base's own but for the precision that it was stored in.
    Rounded,
    /// The base's own with other values.
    Differs,
    /// Nothing that is known.
    Unknown,
}

/// Judges such a tensor: `peft` stores copies of the base's tables and adapted modules, and of the
/// modules that it keeps a trained copy of.
pub(crate) fn stray(
    key: &str,
    file: &SafetensorsFile,
    context: &BuildContext<'_>,
    bare: bool,
) -> Result<Stray, AdaptError> {
    let Some(path) = key.strip_prefix(WRAPPER) else {
        return Ok(Stray::Unknown);
    };
    // The frozen original of a module that is trained whole.
    if path.contains(".original_module.") {
        return Ok(Stray::Same);
    }
    for wrapper in [".modules_to_save.default.", ".modules_to_save."] {
        if let Some((before, after)) = path.split_once(wrapper) {
            let twin = format!("{WRAPPER}{before}.{after}");
            if file.shape(&twin).is_none() || file.shape(&twin) != file.shape(key) {
                return Ok(Stray::Unknown);
            }
            let same = file
                .tensor(key)?
                .iter::<f32>()
                .eq(file.tensor(&twin)?.iter::<f32>());
            return Ok(if same { Stray::Same } else { Stray::Differs });
        }
    }
    let Some(path) = path.strip_suffix(".weight") else {
        return Ok(Stray::Unknown);
    };
    let path = path.strip_suffix(".base_layer").unwrap_or(path);
    let full = format!("{}{path}", context.info.base_prefix);
    let site = context
        .sites
        .find(path)
        .or_else(|| context.sites.find(&full).filter(|_| bare));
    let Some(site) = site else {
        return Ok(Stray::Unknown);
    };
    if file.shape(key) != Some(stored_shape(context.sites, site)) {
        return Ok(Stray::Differs);
    }
    let Some(base) = weight_of(context, site) else {
        return Ok(Stray::Same);
    };
    let stored: Vec<f32> = file.tensor(key)?.iter::<f32>().collect();
    Ok(compare(&base, &stored))
}

/// The base's own weight in the layout of files.
fn weight_of(context: &BuildContext<'_>, site: SiteId) -> Option<Vec<f32>> {
    let transposed = context.sites.info(site).kind == frugal_nn::SiteKind::Conv1d;
    let mut found = None;
    context.backbone?.visit_weights(&mut |part| match part {
        Frozen::Embedding(e) if e.site == site => found = Some(to_vec(e.weight.dense())),
        Frozen::Linear(l) if l.site == site && transposed => {
            found = Some(to_vec(l.weight.dense().transpose()))
        }
        Frozen::Linear(l) if l.site == site => found = Some(to_vec(l.weight.dense())),
        Frozen::Norm(n) if n.site == site => {
            found = Some(to_vec(n.weight.clone() - n.stored_offset))
        }
        Frozen::Conv(c) if c.site == site => found = Some(to_vec(c.weight.clone())),
        Frozen::Param(p) if p.site == site => found = Some(to_vec(p.value.clone())),
        _ => {}
    });
    found
}

/// Equal, equal up to the step of 16-bit numbers, or not.
fn compare(base: &[f32], stored: &[f32]) -> Stray {
    if base == stored {
        return Stray::Same;
    }
    // bf16 keeps 8 bits of a number, f16 has a smallest step.
    let near = |(a, b): (&f32, &f32)| (a - b).abs() <= a.abs() / 256.0 + 6e-8;
    if base.len() == stored.len() && base.iter().zip(stored).all(near) {
        Stray::Rounded
    } else {
        Stray::Differs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_to_save_are_matched_as_peft_does() {
        assert!(has_ancestor("model.layers.0.input_layernorm", "norm"));
        assert!(has_ancestor("bert.pooler.dense", "pooler"));
        assert!(!has_ancestor("model.normal.dense", "norm"));
        assert!(!has_ancestor("model.norm", ""));
    }

    #[test]
    fn copies_in_half_precision_are_told_from_other_weights() {
        assert!(matches!(compare(&[1.0, 0.5], &[1.0, 0.5]), Stray::Same));
        assert!(matches!(
            compare(&[1.0, 0.333_333], &[1.0, 0.332_031]),
            Stray::Rounded
        ));
        assert!(matches!(compare(&[1.0], &[1.02]), Stray::Differs));
    }
}
