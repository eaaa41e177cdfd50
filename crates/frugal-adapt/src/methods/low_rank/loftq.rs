//! LoftQ: LoRA that starts from what rounding the weights lost.
//!
//! The loader, which sees the exact weights, rounds them and keeps a low-rank pair beside each
//! ([`Correction`](frugal_nn::Correction)); LoRA starts there.

use std::sync::Arc;

use frugal_models::{LoadOptions, Loftq, Quantize};
use frugal_nn::{AdaptError, BuildContext, Frozen, SiteTable};

use crate::method::{LoadRule, Method, MethodConfig};
use crate::methods::low_rank::lora_config::{LoftqConfig, LoraConfig};
use crate::settings::{self, Settings};
use crate::support::pair::Pair;

impl LoftqConfig {
    /// How the weights are held, and its name.
    fn quantize(self) -> (Quantize, &'static str) {
        if self.loftq_bits == 4 {
            (Quantize::Nf4, "nf4")
        } else {
            (Quantize::Int8, "int8")
        }
    }

    /// Sets pairs to the corrections of the weights; without a backbone (planning) they stay.
    pub(crate) fn start(
        self,
        method: &'static str,
        pairs: &mut [Option<Pair>],
        context: &BuildContext<'_>,
    ) -> Result<(), AdaptError> {
        let Some(backbone) = context.backbone else {
            return Ok(());
        };
        let mut missing: Option<String> =
            pairs.iter().flatten().next().map(|pair| pair.path.clone());
        let mut left = pairs.iter().flatten().count();
        backbone.visit_weights(&mut |part| {
            let Frozen::Linear(map) = part else { return };
            let Some(pair) = pairs[map.site.index()].as_mut() else {
                return;
            };
            match map
                .weight
                .correction()
                .filter(|correction| correction.rank == pair.a.shape()[0])
            {
                Some(correction) => {
                    // Half of the scale on each side.
                    let root = pair.scale.sqrt();
                    let scaled = |values: &[f32]| values.iter().map(|v| v / root).collect();
                    pair.a.set(scaled(&correction.a));
                    pair.b.set(scaled(&correction.b));
                    left -= 1;
                }
                None => missing = Some(pair.path.clone()),
            }
        });
        let path = match missing {
            Some(path) if left > 0 => path,
            _ => return Ok(()),
        };
        let reason = format!(
            "`loftq` starts from what rounding the weights lost, and `{path}` was not rounded for it: read the model with \
             `quantize = \"{}\"` and these settings (only linear layers can be targets)",
            self.quantize().1
        );
        Err(AdaptError::Config {
            method,
            field: "init_lora_weights",
            reason,
        })
    }
}

/// How weights are read for LoRA where its settings ask for this start.
pub(crate) const LOAD_RULE: LoadRule = LoadRule {
    options: load_options,
    refuses: |settings, _| is_asked(settings).then(refusal),
};

/// Whether these settings ask for it.
fn is_asked(settings: &Settings) -> bool {
    settings
        .get("init_lora_weights")
        .is_some_and(|init| init == "loftq")
}

/// Why such an adapter cannot leave its rounded weights.
pub(crate) fn refusal() -> String {
    "a LoftQ adapter goes only with weights that are rounded in the same way, and those hold no exact change: use it with \
     `--adapter`, or train one that starts without `loftq`"
        .into()
}

/// How the weights of a model are read for a method with these settings: as `options` say, but for
/// a method that starts from what rounding them lost. `None` for `quantize` means that the method
/// may choose.
///
/// # Errors
/// Bad settings; [`AdaptError::Config`] where the method needs weights in few bits and `quantize`
/// is something else.
fn load_options(
    method: &'static Method,
    settings: &Settings,
    sites: &SiteTable,
    quantize: Option<Quantize>,
    options: LoadOptions,
) -> Result<LoadOptions, AdaptError> {
    if !is_asked(settings) {
        return Ok(LoadOptions {
            quantize: quantize.unwrap_or(options.quantize),
            ..options
        });
    }
    let config: LoraConfig = settings::parse(method.name, settings)?;
    config.validate()?;
    let loftq = config.loftq().unwrap_or_default();
    let (needed, name) = loftq.quantize();
    if quantize.is_some_and(|given| given != needed) {
        let reason = format!(
            "`loftq` with {} bits starts from weights in few bits: add `quantize = \"{name}\"`",
            loftq.loftq_bits
        );
        return Err(AdaptError::Config {
            method: method.name,
            field: "init_lora_weights",
            reason,
        });
    }
    let chosen = config.targets().select(sites)?;
    let rank = |id| {
        let path = &sites.info(id).path;
        Ok((path.clone(), config.rank(path)?))
    };
    let ranks = chosen
        .into_iter()
        .map(rank)
        .collect::<Result<_, AdaptError>>()?;
    Ok(LoadOptions {
        quantize: needed,
        loftq: Some(Arc::new(Loftq {
            ranks,
            iterations: loftq.loftq_iter,
        })),
        ..options
    })
}
