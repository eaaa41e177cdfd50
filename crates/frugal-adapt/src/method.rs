//! What a method is: its name, what it can do, and how it is built from settings.

use frugal_formats::safetensors::LoadReport;
use frugal_models::{LoadOptions, Quantize};
use frugal_nn::{AdaptError, Adapter, BuildContext, Operation, SiteTable};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::images;
use crate::settings::{self, Settings};
use crate::support::own_files;

/// What a method acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// Every weight.
    Full,
    /// A low-rank change of linear layers.
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
    /// On a decoder a token's outputs do not depend on the tokens behind it.
    pub causal: bool,
}

/// How weights are read for a method whose settings have a say in it.
pub struct LoadRule {
    /// The options for these settings; `quantize` is what the user asked for, if anything.
    pub options: fn(
        &'static Method,
        &Settings,
        &SiteTable,
        Option<Quantize>,
        LoadOptions,
    ) -> Result<LoadOptions, AdaptError>,
    /// [`Adapter::refuses`] for these settings, before an adapter is built.
    pub refuses: fn(&Settings, Operation) -> Option<String>,
}

/// How adapters of a method are read from files.
pub struct FileRule {
    /// Whether files hold all that a new adapter forms of the model's weights, so that reading one
    /// needs none of them.
    pub hold_what_follows_from_weights: bool,
    /// Refuses values that no adapter of the method has.
    pub check: fn(&dyn Adapter) -> Result<(), AdaptError>,
    /// Why an adapter with these settings is read and used, but not trained on.
    pub not_trained_on: fn(&Settings) -> Option<&'static str>,
    /// Why tensors of a file do not fit, where the shapes alone do not say.
    pub misfit: fn(&LoadReport) -> Option<String>,
}

/// The typed settings of a method, from which [`Method::of`] makes its registry entry.
pub trait MethodConfig: Serialize + DeserializeOwned + Default {
    /// Name on the command line and in configuration files.
    const NAME: &'static str;
    /// `peft_type` of its adapter files.
    const PEFT_TYPE: &'static str;

    /// Checks the ranges of the settings, without a model.
    ///
    /// # Errors
    /// [`AdaptError::Config`] naming the field.
    fn validate(&self) -> Result<(), AdaptError> {
        Ok(())
    }

    /// Builds an adapter.
    ///
    /// # Errors
    /// Bad settings, or such as the model does not allow.
    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError>;

    /// Reads settings by name.
    ///
    /// # Errors
    /// [`AdaptError::Settings`].
    fn parse(settings: &Settings) -> Result<Self, AdaptError> {
        settings::parse(Self::NAME, settings)
    }

    /// Settings from an `adapter_config.json`. By default every setting under its own name, as in
    /// files of methods that `peft` does not have.
    ///
    /// # Errors
    /// Fields that would change what the method does and are not understood.
    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        Ok(own_files::from_file::<Self>(config))
    }
}

/// A registered method. [`Method::of`] makes one from the type of its settings; what differs from
/// the defaults is said after that.
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
    /// Where some settings want the weights read in a way of their own.
    pub load_rule: Option<LoadRule>,
    /// How its adapters are read from files.
    pub file_rule: FileRule,
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
    /// The method with these settings; `source` is the file whose header documents it.
    ///
    /// It has no other name, the learning rate 1e-3, a `peft_type` of its own and all capabilities.
    pub const fn of<C: MethodConfig>(
        family: Family,
        summary: &'static str,
        source: &'static str,
    ) -> Self {
        Self {
            name: C::NAME,
            aliases: &[],
            family,
            summary,
            default_lr: 1e-3,
            peft_type: C::PEFT_TYPE,
            peft_variant: None,
            load_rule: None,
            file_rule: FileRule {
                hold_what_follows_from_weights: false,
                check: |_| Ok(()),
                not_trained_on: |_| None,
                misfit: |_| None,
            },
            capabilities: Capabilities {
                merge: true,
                identity_at_init: true,
                mixed_batch: true,
                causal: true,
            },
            source,
            defaults: settings::defaults::<C>,
            check: |settings| C::parse(settings)?.validate(),
            build: |settings, context| {
                let config = C::parse(settings)?;
                config.validate()?;
                images::check(C::NAME, context)?;
                config.build(context)
            },
            from_peft: C::from_peft,
        }
    }

    /// Other spellings that are understood.
    pub const fn aliases(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }

    /// Learning rate of its default recipe.
    pub const fn default_lr(mut self, default_lr: f64) -> Self {
        self.default_lr = default_lr;
        self
    }

    /// One of several methods of a `peft_type`: those whose `adapter_config.json` is `variant`.
    pub const fn peft_variant(mut self, variant: fn(&Settings) -> bool) -> Self {
        self.peft_variant = Some(variant);
        self
    }

    /// Some settings want the weights read in a way of their own.
    pub const fn load_rule(mut self, rule: LoadRule) -> Self {
        self.load_rule = Some(rule);
        self
    }

    /// Its files hold all that a new adapter forms of the model's weights.
    pub const fn files_hold_what_follows_from_weights(mut self) -> Self {
        self.file_rule.hold_what_follows_from_weights = true;
        self
    }

    /// What files hold is checked by this.
    pub const fn check_file(mut self, check: fn(&dyn Adapter) -> Result<(), AdaptError>) -> Self {
        self.file_rule.check = check;
        self
    }

    /// With some settings adapters from files are not trained on, for the reason that this gives.
    pub const fn not_trained_on(mut self, why: fn(&Settings) -> Option<&'static str>) -> Self {
        self.file_rule.not_trained_on = why;
        self
    }

    /// Says why tensors of a file do not fit, where the shapes alone do not.
    pub const fn misfit(mut self, why: fn(&LoadReport) -> Option<String>) -> Self {
        self.file_rule.misfit = why;
        self
    }

    /// Cannot be merged into the weights.
    pub const fn without_merge(mut self) -> Self {
        self.capabilities.merge = false;
        self
    }

    /// Changes the model before training.
    pub const fn without_identity(mut self) -> Self {
        self.capabilities.identity_at_init = false;
        self
    }

    /// All sequences of a batch use the same adapter.
    pub const fn without_mixed_batch(mut self) -> Self {
        self.capabilities.mixed_batch = false;
        self
    }

    /// What a token gives depends on all tokens that are computed with it.
    pub const fn without_causality(mut self) -> Self {
        self.capabilities.causal = false;
        self
    }

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

    /// How the weights of a model are read for this method with these settings: as `options` say,
    /// but for a method with a rule of its own. `None` for `quantize` means that the method may
    /// choose.
    ///
    /// # Errors
    /// Bad settings; [`AdaptError::Config`] where the method needs weights in few bits and
    /// `quantize` is something else.
    pub fn load_options(
        &'static self,
        settings: &Settings,
        sites: &SiteTable,
        quantize: Option<Quantize>,
        options: LoadOptions,
    ) -> Result<LoadOptions, AdaptError> {
        match &self.load_rule {
            Some(rule) => (rule.options)(self, settings, sites, quantize, options),
            None => Ok(LoadOptions {
                quantize: quantize.unwrap_or(options.quantize),
                ..options
            }),
        }
    }

    /// Refuses an operation that these settings do not allow; see [`Adapter::allow`].
    ///
    /// # Errors
    /// [`AdaptError::Unsupported`] with the reason.
    pub fn allow(&self, settings: &Settings, operation: Operation) -> Result<(), AdaptError> {
        let refuses = |rule: &LoadRule| (rule.refuses)(settings, operation);
        match self.load_rule.as_ref().and_then(refuses) {
            None => Ok(()),
            Some(reason) => Err(AdaptError::Unsupported {
                method: self.name,
                action: operation.action(),
                reason,
            }),
        }
    }
}
