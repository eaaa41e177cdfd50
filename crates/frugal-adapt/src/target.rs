//! Which linear layers a method acts on, with `peft`'s grammar.

use frugal_core::suggest::did_you_mean;
use frugal_nn::{SiteId, SiteInfo, SiteKind, SiteTable, TargetError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::pattern::{Pattern, Patterns};
use crate::settings::Settings;

/// A list of names, or one pattern.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "must be a list of names, a pattern or \"all-linear\""
)]
pub enum Names {
    /// A regular expression over the whole path, or `all-linear`.
    Pattern(String),
    /// Paths or their endings.
    List(Vec<String>),
}

/// Adds paths to those that these settings keep a method away from; gives what stood there, and
/// nothing where there is nothing to add.
pub(crate) fn exclude(paths: &[&str], settings: &mut Settings) -> Option<Value> {
    if paths.is_empty() {
        return None;
    }
    let excluded = match settings.get("exclude_modules") {
        Some(Value::Array(names)) => {
            let mut names = names.clone();
            names.extend(paths.iter().map(|path| json!(path)));
            json!(names)
        }
        Some(Value::String(pattern)) => {
            let escaped: Vec<_> = paths.iter().map(|path| fancy_regex::escape(path)).collect();
            json!(format!("(?:{pattern})|{}", escaped.join("|")))
        }
        _ => json!(paths),
    };
    let given = settings.insert("exclude_modules".into(), excluded);
    Some(given.unwrap_or(Value::Null))
}

/// The settings of a method for a head that labels tokens: Hugging Face's classes for these have no
/// pooler.
pub fn for_tokens(
    method: &crate::method::Method,
    mut settings: Settings,
    sites: &SiteTable,
) -> Settings {
    if (method.defaults)().contains_key("exclude_modules") {
        let optional = sites.iter().filter(|(_, site)| site.optional);
        let paths: Vec<&str> = optional.map(|(_, site)| site.path.as_str()).collect();
        exclude(&paths, &mut settings);
    }
    settings
}

/// One block number or several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "must be a block number or a list of them")]
pub enum Layers {
    /// One.
    One(usize),
    /// Several.
    Many(Vec<usize>),
}

/// Selection of sites. Field names, defaults and meaning are those of `peft`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Targets {
    /// Path endings, one regular expression over the whole path, or `all-linear` (every linear layer
    /// but the head).
    #[serde(default = "all_linear")]
    pub target_modules: Names,
    /// The same grammar; wins over the targets.
    #[serde(default)]
    pub exclude_modules: Option<Names>,
    /// Only these blocks (for lists and `all-linear`).
    #[serde(default)]
    pub layers_to_transform: Option<Layers>,
    /// Name of the list of blocks in the path, where it is not the component before the number.
    #[serde(default)]
    pub layers_pattern: Option<Names>,
}

fn all_linear() -> Names {
    Names::Pattern("all-linear".into())
}

impl Default for Targets {
    fn default() -> Self {
        Self {
            target_modules: all_linear(),
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: None,
        }
    }
}

/// Whether a name is the whole path or its last components.
pub(crate) fn ends_with_component(path: &str, name: &str) -> bool {
    path == name
        || path
            .strip_suffix(name)
            .is_some_and(|head| head.ends_with('.'))
}

/// Whether a name is that of a place in this model.
fn names_a_site(sites: &SiteTable, name: &str) -> bool {
    sites
        .iter()
        .any(|(_, site)| ends_with_component(&site.path, name))
}

/// A listed name that means convolutions or bare parameters and nothing that can be chosen.
fn refuse_others(
    field: &'static str,
    names: &Names,
    sites: &SiteTable,
    eligible: impl Fn(&SiteInfo) -> bool,
) -> Result<(), TargetError> {
    let Names::List(names) = names else {
        return Ok(());
    };
    for entry in names {
        let meant: Vec<&SiteInfo> = sites
            .iter()
            .map(|(_, site)| site)
            .filter(|site| ends_with_component(&site.path, entry))
            .collect();
        let Some(first) = meant.first() else {
            continue;
        };
        let what = match first.kind {
            SiteKind::Conv | SiteKind::Conv2d => "a convolution",
            SiteKind::Param => "a bare parameter",
            _ => continue,
        };
        if !meant.iter().any(|site| eligible(site)) {
            let entry = entry.clone();
            return Err(TargetError::NoLayer { field, entry, what });
        }
    }
    Ok(())
}

/// Why this entry matched nothing; `offered` are the places that could have been meant.
fn no_match(
    field: &'static str,
    entry: &str,
    sites: &SiteTable,
    offered: impl Fn(&SiteInfo) -> bool,
) -> TargetError {
    let offered =
        |s: &SiteInfo| offered(s) && (s.kind.is_inner_linear() || s.kind == SiteKind::Norm);
    let mut names: Vec<&str> = sites
        .iter()
        .filter(|(_, s)| offered(s))
        .map(|(_, s)| s.name())
        .collect();
    names.sort_unstable();
    names.dedup();
    let suggestion = did_you_mean(entry, names.iter().copied()).map(str::to_owned);
    TargetError::NoMatch {
        field,
        entry: entry.into(),
        available: names.join(", "),
        suggestion,
    }
}

impl Names {
    /// Why they matched nothing, or this entry of them.
    fn no_match(
        &self,
        field: &'static str,
        entry: &str,
        sites: &SiteTable,
        offered: impl Fn(&SiteInfo) -> bool,
    ) -> TargetError {
        match self {
            Self::Pattern(text) if names_a_site(sites, text) => TargetError::NotAPath {
                field,
                text: text.clone(),
            },
            _ => no_match(field, entry, sites, offered),
        }
    }

    fn match_any(&self, field: &'static str, sites: &SiteTable) -> Result<bool, TargetError> {
        let matcher = Matcher::new(field, self)?;
        for (_, site) in sites.iter() {
            if matcher.matches(site)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Every entry must match something: one that does not is a mistake that nothing else would
    /// show.
    fn check(
        &self,
        field: &'static str,
        sites: &SiteTable,
        offered: impl Fn(&SiteInfo) -> bool,
    ) -> Result<(), TargetError> {
        let stray = match self {
            Self::List(names) => names.iter().find(|name| !names_a_site(sites, name)),
            Self::Pattern(pattern) => (!self.match_any(field, sites)?).then_some(pattern),
        };
        stray.map_or(Ok(()), |entry| {
            Err(self.no_match(field, entry, sites, offered))
        })
    }

    /// What of them this model has, if anything: for lists that serve several architectures.
    pub(crate) fn of_model(&self, sites: &SiteTable) -> Option<Self> {
        match self {
            Self::List(names) => {
                let known: Vec<String> = names
                    .iter()
                    .filter(|name| names_a_site(sites, name))
                    .cloned()
                    .collect();
                (!known.is_empty()).then_some(Self::List(known))
            }
            // What is no pattern is kept, to be refused.
            Self::Pattern(_) => self
                .match_any("", sites)
                .unwrap_or(true)
                .then(|| self.clone()),
        }
    }
}

/// Settings of a file as far as they speak of this model: like `peft`, readers pass over what a
/// model lacks. Where that is all of the targets, they stay and are refused.
pub(crate) fn for_model(mut settings: Settings, sites: &SiteTable) -> Settings {
    let names = |settings: &Settings, field: &str| Names::deserialize(settings.get(field)?).ok();
    let given = names(&settings, "target_modules");
    let known = given.as_ref().and_then(|names| names.of_model(sites));
    if let (Some(Names::List(given)), Some(Names::List(known))) = (given, known) {
        // `ia3` has its feed-forward layers among the targets.
        if let Some(Value::Array(inner)) = settings.get_mut("feedforward_modules") {
            inner.retain(|name| {
                name.as_str().is_none_or(|name| {
                    known.iter().any(|k| k == name) || !given.iter().any(|g| g == name)
                })
            });
        }
        settings.insert("target_modules".into(), json!(known));
    }
    if let Some(excluded) = names(&settings, "exclude_modules") {
        match excluded.of_model(sites) {
            Some(known) => settings.insert("exclude_modules".into(), json!(known)),
            None => settings.remove("exclude_modules"),
        };
    }
    for (field, value) in settings.iter_mut() {
        if let (true, Value::Object(patterns)) = (field.ends_with("_pattern"), value) {
            patterns.retain(|key, value| {
                !value.is_number() || match_path("", key, sites).unwrap_or(true)
            });
        }
    }
    settings
}

enum Matcher {
    AllLinear,
    Pattern(Pattern),
    List(Vec<String>),
}

impl Matcher {
    fn new(field: &'static str, names: &Names) -> Result<Self, TargetError> {
        Ok(match names {
            Names::Pattern(p) if p == "all-linear" => Self::AllLinear,
            Names::Pattern(p) => Self::Pattern(Pattern::whole(field, p)?),
            Names::List(list) => Self::List(list.clone()),
        })
    }

    fn matches(&self, site: &SiteInfo) -> Result<bool, TargetError> {
        Ok(match self {
            Self::AllLinear => site.kind.is_inner_linear() || site.kind == SiteKind::Norm,
            Self::Pattern(pattern) => pattern.is_match(&site.path)?,
            Self::List(list) => list
                .iter()
                .any(|name| ends_with_component(&site.path, name)),
        })
    }

    /// Whether a list names the whole path, which block numbers do not restrict in `peft`.
    fn names_whole_path(&self, site: &SiteInfo) -> bool {
        matches!(self, Self::List(list) if list.contains(&site.path))
    }
}

impl Targets {
    /// The linear layers (and the head or tables, when named) that these settings select, in forward
    /// order.
    ///
    /// # Errors
    /// When nothing matches, a pattern is malformed or a block number is outside the model.
    pub fn select(&self, sites: &SiteTable) -> Result<Vec<SiteId>, TargetError> {
        self.choose(sites, |site| site.kind.is_matrix())
    }

    /// The norms that these settings select; `all-linear` stands for every norm.
    ///
    /// # Errors
    /// When nothing matches, a pattern is malformed or a block number is outside the model.
    pub fn select_norms(&self, sites: &SiteTable) -> Result<Vec<SiteId>, TargetError> {
        self.choose(sites, |site| site.kind == SiteKind::Norm)
    }

    /// Those of the eligible sites that these settings select.
    pub(crate) fn choose(
        &self,
        sites: &SiteTable,
        eligible: impl Fn(&SiteInfo) -> bool,
    ) -> Result<Vec<SiteId>, TargetError> {
        let include = Matcher::new("target_modules", &self.target_modules)?;
        if let (Matcher::Pattern(_), Names::Pattern(pattern), Some(_)) =
            (&include, &self.target_modules, &self.layers_to_transform)
        {
            return Err(TargetError::LayersWithPattern {
                pattern: pattern.clone(),
            });
        }
        refuse_others("target_modules", &self.target_modules, sites, &eligible)?;
        let exclude = self
            .exclude_modules
            .as_ref()
            .map(|n| Matcher::new("exclude_modules", n))
            .transpose()?;
        let layers = WantedLayers::new(self)?;
        let last = sites.iter().filter_map(|(_, s)| s.layer).max().unwrap_or(0);
        if let Some(layer) = layers.outside(last) {
            return Err(TargetError::Layer { layer, last });
        }
        let (mut chosen, mut named) = (Vec::new(), false);
        for (id, site) in sites.iter().filter(|(_, s)| eligible(s)) {
            if !include.matches(site)? {
                continue;
            }
            named = true;
            let excluded = match &exclude {
                Some(exclude) => exclude.matches(site)?,
                None => false,
            };
            if !excluded && (include.names_whole_path(site) || layers.contain(site)?) {
                chosen.push(id);
            }
        }
        if chosen.is_empty() {
            return Err(if named {
                TargetError::NothingLeft
            } else {
                self.no_match(sites, eligible)
            });
        }
        self.target_modules
            .check("target_modules", sites, &eligible)?;
        if let Some(names) = &self.exclude_modules {
            names.check("exclude_modules", sites, &eligible)?;
        }
        Ok(chosen)
    }

    fn no_match(&self, sites: &SiteTable, eligible: impl Fn(&SiteInfo) -> bool) -> TargetError {
        let entry = match &self.target_modules {
            Names::Pattern(p) => p.as_str(),
            Names::List(list) => list.first().map_or("[]", String::as_str),
        };
        self.target_modules
            .no_match("target_modules", entry, sites, eligible)
    }
}

/// The blocks that settings name.
struct WantedLayers {
    /// `None` for all of them.
    wanted: Option<Vec<usize>>,
    /// Where a path holds its block's number.
    patterns: Vec<Pattern>,
    /// Whether the model's own numbers come first.
    from_model: bool,
}

impl WantedLayers {
    /// As in `peft`, an empty list or text is as good as none.
    fn new(targets: &Targets) -> Result<Self, TargetError> {
        let wanted = match &targets.layers_to_transform {
            None => None,
            Some(Layers::One(layer)) => Some(vec![*layer]),
            Some(Layers::Many(layers)) => Some(layers.clone()).filter(|layers| !layers.is_empty()),
        };
        let names = match &targets.layers_pattern {
            None => &[][..],
            Some(Names::Pattern(name)) => std::slice::from_ref(name),
            Some(Names::List(names)) => names.as_slice(),
        };
        let named = names.iter().filter(|name| !name.is_empty()).map(|name| {
            let regex = format!(r"^(?:.*?\.)?{name}\.(\d+)\.");
            Pattern::new("layers_pattern", name, &regex)
        });
        let mut patterns = named.collect::<Result<Vec<_>, _>>()?;
        let from_model = patterns.is_empty();
        if from_model {
            let usual = r"^.*?\.[^.]*\.(\d+)\.";
            patterns.push(Pattern::new("layers_pattern", usual, usual)?);
        }
        Ok(Self {
            wanted,
            patterns,
            from_model,
        })
    }

    /// A block that is named and that the model does not have.
    fn outside(&self, last: usize) -> Option<usize> {
        self.wanted.iter().flatten().copied().find(|&i| i > last)
    }

    /// The same rule for lists and `all-linear`, which files spell out as a list.
    fn contain(&self, site: &SiteInfo) -> Result<bool, TargetError> {
        let Some(wanted) = &self.wanted else {
            return Ok(true);
        };
        let mut layer = site.layer.filter(|_| self.from_model);
        for pattern in &self.patterns {
            layer = match layer {
                None => pattern.number(&site.path)?,
                found => found,
            };
        }
        Ok(layer.is_some_and(|layer| wanted.contains(&layer)))
    }
}

fn match_path(field: &'static str, key: &str, sites: &SiteTable) -> Result<bool, TargetError> {
    let pattern = Pattern::ending(field, key)?;
    for (_, site) in sites.iter() {
        if pattern.is_match(&site.path)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Every key must match some path of the model: one that does not is a mistake that nothing else
/// would show.
///
/// # Errors
/// A key that matches nothing or is not a regular expression.
pub(crate) fn check_patterns<V>(
    field: &'static str,
    patterns: &Patterns<V>,
    sites: &SiteTable,
) -> Result<(), TargetError> {
    for key in patterns.keys() {
        if !match_path(field, key, sites)? {
            return Err(no_match(field, key, sites, |site| {
                site.kind.is_inner_linear()
            }));
        }
    }
    Ok(())
}

/// Value of the first key, in the order of the file, whose pattern `^(.*\.)?(KEY)$` matches the path
/// (`rank_pattern`, `alpha_pattern`).
///
/// # Errors
/// When a key is not a regular expression.
pub fn pattern_value<V: Copy>(
    field: &'static str,
    patterns: &Patterns<V>,
    path: &str,
) -> Result<Option<V>, TargetError> {
    for (key, &value) in patterns.iter() {
        if Pattern::ending(field, key)?.is_match(path)? {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// `target_modules` of a saved configuration: as given, but `all-linear` spelled out in the
/// shortest endings that select exactly the adapted layers.
pub(crate) fn saved_targets(targets: &Targets, sites: &SiteTable, chosen: &[SiteId]) -> Value {
    if !matches!(&targets.target_modules, Names::Pattern(p) if p == "all-linear") {
        return json!(targets.target_modules);
    }
    let exact = |ending: &str| {
        let matches = |path: &str| {
            path == ending
                || path
                    .strip_suffix(ending)
                    .is_some_and(|head| head.ends_with('.'))
        };
        sites
            .iter()
            .filter(|(_, s)| matches(&s.path))
            .all(|(id, _)| chosen.contains(&id))
    };
    let mut names: Vec<&str> = chosen
        .iter()
        .map(|&id| {
            let path = sites.info(id).path.as_str();
            let starts = path.rmatch_indices('.').map(|(i, _)| i + 1).chain([0]);
            starts
                .map(|i| &path[i..])
                .find(|ending| exact(ending))
                .unwrap_or(path)
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    json!(names)
}

#[cfg(test)]
mod tests;
