//! What a method is: its name, what it can do, and how it is built from settings.

use frugal_models::{LoadOptions, Quantize};
use frugal_nn::{AdaptError, Adapter, BuildContext, Operation, SiteTable};
use serde::Serialize;

use crate::settings::Settings;

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
    /// Where some settings want the weights read in a way of their own.
    pub load_rule: Option<LoadRule>,
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
