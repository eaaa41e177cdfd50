//! What methods share that treat each selected linear layer by itself: selection, files, merging, the
//! pass.

use std::fmt::Display;

use burn::prelude::*;
use frugal_nn::seam::derived_cache::DerivedCache;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Frozen, Linear, LinearChange, MergedLinear, Mode, Parameter,
    Pass, Rows, SequenceLayout, SiteId, SiteInfo, SiteKind, StepContext,
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::method;
use crate::settings::{self, Settings};
use crate::support::values::object;
use crate::target::Targets;

/// Where a part is called.
pub(crate) struct LinearSite<'a> {
    /// The frozen layer.
    pub base: &'a Linear,
    /// Its path.
    pub path: &'a str,
    /// Parameters that all layers share.
    pub shared: &'a [Parameter],
    /// Whether gradients are recorded.
    pub mode: Mode,
    kept: Option<&'a DerivedCache>,
    /// What the rows of its input are.
    rows: Rows,
    /// Where the sequences of the pass begin and end.
    bounds: &'a [usize],
}

impl LinearSite<'_> {
    /// Where the rows of each sequence begin and end among so many: all of them as one where nobody
    /// knows.
    pub fn sequences(&self, count: usize) -> Vec<usize> {
        let per_token = |n: usize| self.bounds.iter().map(move |bound| bound * n).collect();
        let bounds: Vec<usize> = match self.rows {
            Rows::Tokens => per_token(1),
            Rows::PerToken(n) => per_token(n),
            Rows::Sequences => (0..=count).collect(),
            Rows::OfSequence(_) | Rows::Chosen => Vec::new(),
        };
        match bounds.last() == Some(&count) {
            true => bounds,
            false => vec![0, count],
        }
    }

    /// What follows from the parameters alone: formed once where they do not change from one pass
    /// to the next.
    pub fn keep<T: Clone + Send + 'static>(&self, form: impl FnOnce() -> T) -> T {
        match self.kept {
            Some(kept) => kept.keep(self.base.site, form),
            None => form(),
        }
    }
}

/// What is trained of one linear layer.
pub(crate) trait LinearAdapter: Send + Sync {
    /// Its parameters in a fixed order.
    fn parameters(&self) -> Vec<&Parameter>;

    /// The same, to update.
    fn parameters_mut(&mut self) -> Vec<&mut Parameter>;

    /// What is added to the weight, `[d_out, d_in]`.
    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2>;

    /// The layer's output, `[tokens, d_in]` to `[tokens, d_out]`.
    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        frugal_kernels::linear(
            x,
            at.base.weight.dense() + self.delta(at),
            at.base.bias.clone(),
        )
    }

    /// Whether [`LinearAdapter::forward`] forms a whole weight, as it does unless a method has its own;
    /// see [`Adapter::materializes_weight`].
    fn materializes_weight(&self) -> bool {
        true
    }

    /// The layer with the part merged into it.
    fn merged(&self, at: &LinearSite<'_>) -> MergedLinear {
        MergedLinear {
            weight: at.base.weight.dense() + self.delta(at),
            bias: at.base.bias.clone(),
        }
    }

    /// Why no weight can express it, where it mixes by what each sequence reads.
    fn mixes(&self) -> Option<&'static str> {
        None
    }

    /// The base of a layer that [`LinearAdapter::merged`] gave, in `at.base`; or why there is no way back.
    fn unmerged(&self, at: &LinearSite<'_>) -> Result<MergedLinear, String> {
        Ok(MergedLinear {
            weight: at.base.weight.dense() - self.delta(at),
            bias: at.base.bias.clone(),
        })
    }

    /// What the layer adds to the training loss.
    fn penalty(&self, _mode: Mode) -> Option<Tensor<1>> {
        None
    }

    /// After the optimiser's step.
    fn after_step(&mut self, _context: &StepContext) {}

    /// Whether it samples in training, where it is then more than a layer of another weight.
    fn samples(&self) -> bool {
        false
    }
}

/// An adapter of one part per selected layer.
pub(crate) struct PerLinear<P> {
    method: &'static str,
    /// Indexed by site.
    parts: Vec<Option<(String, P)>>,
    shared: Vec<Parameter>,
    /// Whether files hold what is shared.
    shared_saved: bool,
    peft_config: Map<String, Value>,
    /// The form that files keep, where it is another.
    finished: Option<fn(&Self) -> Box<dyn Adapter>>,
}

impl<P: LinearAdapter> PerLinear<P> {
    /// Makes a part of every layer that `targets` select. `config` are the settings, in `peft`'s
    /// names; `constants` what `peft` writes besides.
    pub fn new(
        method: &'static method::Method,
        targets: &Targets,
        context: &BuildContext<'_>,
        config: &impl Serialize,
        constants: Value,
        mut make: impl FnMut(SiteId, &SiteInfo) -> Result<P, AdaptError>,
    ) -> Result<Self, AdaptError> {
        let chosen = linear_maps(method.name, targets, context)?;
        let mut parts: Vec<Option<(String, P)>> = (0..context.sites.len()).map(|_| None).collect();
        for &id in &chosen {
            let info = context.sites.info(id);
            parts[id.index()] = Some((info.path.clone(), make(id, info)?));
        }
        let mut peft_config = object(json!(config));
        peft_config.extend(object(constants));
        // Patterns hold whole numbers in peft, and floats here.
        for entry in peft_config
            .iter_mut()
            .filter(|(field, _)| field.ends_with("_pattern"))
            .filter_map(|(_, value)| value.as_object_mut())
            .flat_map(Map::values_mut)
        {
            *entry = entry
                .as_f64()
                .map_or_else(|| entry.clone(), crate::support::values::whole);
        }
        peft_config.insert("peft_type".into(), json!(method.peft_type));
        peft_config.insert(
            "target_modules".into(),
            crate::target::saved_targets(targets, context.sites, &chosen),
        );
        if let Some(transposed) = peft_config.get_mut("fan_in_fan_out") {
            *transposed = json!(
                chosen
                    .iter()
                    .any(|&id| context.sites.info(id).kind == SiteKind::Conv1d)
            );
        }
        Ok(Self {
            method: method.name,
            parts,
            shared: Vec::new(),
            shared_saved: true,
            peft_config,
            finished: None,
        })
    }

    /// With another form for files.
    pub fn finished_as(self, finished: fn(&Self) -> Box<dyn Adapter>) -> Self {
        Self {
            finished: Some(finished),
            ..self
        }
    }

    /// Without a field in files: a setting that they do not have.
    pub fn without_field(mut self, field: &str) -> Self {
        self.peft_config.remove(field);
        self
    }

    /// The adapter with another part in the place of each, which is made of the layer's path and
    /// its part; the shared parameters are not trained any more.
    pub fn frozen_as<Q: LinearAdapter>(&self, change: impl Fn(&str, &P) -> Q) -> PerLinear<Q> {
        let part = |(path, part): &(String, P)| (path.clone(), change(path, part));
        let shared = self.shared.iter().map(|parameter| {
            let (name, shape) = (parameter.name(), parameter.shape());
            Parameter::frozen(name, shape, parameter.to_vec(), &parameter.device())
        });
        PerLinear {
            method: self.method,
            parts: self.parts.iter().map(|p| p.as_ref().map(part)).collect(),
            shared: shared.collect(),
            shared_saved: self.shared_saved,
            peft_config: self.peft_config.clone(),
            finished: None,
        }
    }

    /// With parameters that all layers share. Those that are not saved must be frozen and follow from
    /// the settings.
    pub fn with_shared(self, shared: Vec<Parameter>, saved: bool) -> Self {
        Self {
            shared,
            shared_saved: saved,
            ..self
        }
    }

    /// All parts.
    pub fn parts_mut(&mut self) -> impl Iterator<Item = &mut P> {
        self.parts.iter_mut().flatten().map(|(_, part)| part)
    }

    /// All parts, to look at.
    pub fn parts(&self) -> impl Iterator<Item = (&str, &P)> {
        let parts = self.parts.iter().flatten();
        parts.map(|(path, part)| (path.as_str(), part))
    }

    fn at<'a>(
        &'a self,
        base: &'a Linear,
        mode: Mode,
        kept: Option<&'a DerivedCache>,
    ) -> Option<(&'a P, LinearSite<'a>)> {
        let (path, part) = self.parts.get(base.site.index())?.as_ref()?;
        Some((
            part,
            LinearSite {
                base,
                path,
                shared: &self.shared,
                mode,
                kept,
                rows: Rows::Tokens,
                bounds: &[],
            },
        ))
    }
}

struct PerLinearPass<'a, P> {
    adapter: &'a PerLinear<P>,
    mode: Mode,
    kept: Option<&'a DerivedCache>,
    bounds: Vec<usize>,
}

impl<P: LinearAdapter> Pass for PerLinearPass<'_, P> {
    fn embed(&mut self, hidden_states: Tensor<2>, layout: &mut SequenceLayout) -> Tensor<2> {
        self.bounds = layout.cu_seqlens.to_vec();
        hidden_states
    }

    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        self.linear_rows(base, x, Rows::Tokens)
    }

    fn linear_rows(&mut self, base: &Linear, x: Tensor<2>, rows: Rows) -> Tensor<2> {
        match self.adapter.at(base, self.mode, self.kept) {
            Some((part, at)) => {
                let bounds = &self.bounds;
                part.forward(&LinearSite { rows, bounds, ..at }, x)
            }
            None => base.forward(x),
        }
    }

    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        LinearChange::opaque_if(self.adapter.at(base, self.mode, None).is_some())
    }

    fn needs_token_rows(&self) -> bool {
        let mut parts = self.adapter.parts.iter().flatten();
        parts.any(|(_, part)| part.mixes().is_some())
    }

    fn auxiliary_loss(&mut self) -> Option<Tensor<1>> {
        if !self.mode.is_train() {
            return None;
        }
        let parts = self.adapter.parts.iter().flatten();
        parts
            .filter_map(|(_, part)| part.penalty(self.mode))
            .reduce(|sum, penalty| sum + penalty)
    }
}

impl<P: LinearAdapter> Adapter for PerLinear<P> {
    fn method(&self) -> &'static str {
        self.method
    }

    fn parameters(&self) -> Vec<&Parameter> {
        self.parts
            .iter()
            .flatten()
            .flat_map(|(_, part)| part.parameters())
            .chain(self.shared.iter().filter(|_| self.shared_saved))
            .collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let shared = self.shared.iter_mut().filter(|_| self.shared_saved);
        self.parts
            .iter_mut()
            .flatten()
            .flat_map(|(_, part)| part.parameters_mut())
            .chain(shared)
            .collect()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(PerLinearPass {
            adapter: self,
            mode,
            kept: None,
            bounds: Vec::new(),
        })
    }

    fn cached_pass<'a>(&'a self, kept: &'a DerivedCache) -> Box<dyn Pass + 'a> {
        Box::new(PerLinearPass {
            adapter: self,
            mode: Mode::Eval,
            kept: Some(kept),
            bounds: Vec::new(),
        })
    }

    fn peft_config(&self) -> Map<String, Value> {
        self.peft_config.clone()
    }

    fn to_inference(&self) -> Option<Box<dyn Adapter>> {
        self.finished.map(|finished| finished(self))
    }

    fn weight_delta(&self, base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        let merged = self.merged_linear(base)?;
        Ok(merged.map(|merged| merged.weight - base.weight.dense()))
    }

    fn merged_linear(&self, base: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        let Some((part, at)) = self.at(base, Mode::Eval, None) else {
            return Ok(None);
        };
        match part.mixes() {
            None => Ok(Some(part.merged(&at))),
            Some(reason) => Err(AdaptError::Unsupported {
                method: self.method,
                action: "be merged",
                reason: reason.into(),
            }),
        }
    }

    fn materializes_weight(&self, base: &Linear) -> bool {
        self.at(base, Mode::Eval, None)
            .is_some_and(|(part, _)| part.materializes_weight())
    }

    fn unmerged_linear(&self, merged: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        let unsupported = |reason| AdaptError::Unsupported {
            method: self.method,
            action: "be taken out again",
            reason,
        };
        self.at(merged, Mode::Eval, None)
            .map(|(part, at)| part.unmerged(&at).map_err(unsupported))
            .transpose()
    }

    fn after_step(&mut self, context: &StepContext) {
        self.parts
            .iter_mut()
            .flatten()
            .for_each(|(_, part)| part.after_step(context));
    }

    fn needs_trainer(&self) -> bool {
        let mut parts = self.parts.iter().flatten();
        parts.any(|(_, part)| part.samples())
            || self.parameters().iter().any(|p| p.lr_scale() != 1.0)
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}

/// A setting that is out of range.
pub(crate) fn bad<T>(
    method: &'static str,
    field: &'static str,
    reason: impl Display,
) -> Result<T, AdaptError> {
    Err(AdaptError::Config {
        method,
        field,
        reason: reason.to_string(),
    })
}

/// Checks a probability.
pub(crate) fn check_dropout(
    method: &'static str,
    field: &'static str,
    p: f64,
) -> Result<(), AdaptError> {
    if (0.0..=1.0).contains(&p) {
        Ok(())
    } else {
        bad(
            method,
            field,
            format!("{p} is not within 0 (none) and 1 (all)"),
        )
    }
}

/// The selected linear layers; tables are refused.
pub(crate) fn linear_maps(
    method: &'static str,
    targets: &Targets,
    context: &BuildContext<'_>,
) -> Result<Vec<SiteId>, AdaptError> {
    let chosen = targets.select(context.sites)?;
    match chosen
        .iter()
        .map(|&id| context.sites.info(id))
        .find(|info| info.kind == SiteKind::Embedding)
    {
        Some(info) => bad(
            method,
            "target_modules",
            format!(
                "`{}` is a table; this method changes linear layers only",
                info.path
            ),
        ),
        None => Ok(chosen),
    }
}

/// The frozen weights and biases of these layers, indexed by site; nothing where there is no backbone
/// (planning).
pub(crate) fn frozen_maps(context: &BuildContext<'_>, chosen: &[SiteId]) -> Vec<Option<Linear>> {
    let mut out: Vec<Option<Linear>> = vec![None; context.sites.len()];
    if let Some(backbone) = context.backbone {
        backbone.visit_weights(&mut |part| {
            if let Frozen::Linear(linear) = part
                && chosen.contains(&linear.site)
            {
                out[linear.site.index()] = Some(linear.clone());
            }
        });
    }
    out
}

/// [`from_peft`] of a method that trains no biases and has `peft`'s defaults.
pub(crate) fn from_peft_without_bias<C: Default + Serialize>(
    method: &'static str,
    config: &Settings,
) -> Result<Settings, AdaptError> {
    from_peft::<C>(method, config, json!({}), &[("bias", &[json!("none")])])
}

/// Settings from a configuration of `peft`: every field that the method has. Absent ones are at
/// `differing`, where `peft`'s default is not the method's own. A field of `fixed` must be absent
/// or have one of these values, because the method has no other.
pub(crate) fn from_peft<C: Default + Serialize>(
    method: &'static str,
    config: &Settings,
    differing: Value,
    fixed: &[(&'static str, &[Value])],
) -> Result<Settings, AdaptError> {
    for (field, allowed) in fixed {
        if let Some(value) = config
            .get(*field)
            .filter(|v| !v.is_null() && !allowed.contains(v))
        {
            return bad(method, field, format!("{value} is not supported"));
        }
    }
    let known = settings::defaults::<C>();
    if known.contains_key("target_modules")
        && !config
            .get("target_modules")
            .is_some_and(|t| t.is_array() || t.is_string())
    {
        return bad(
            method,
            "target_modules",
            "must be a list of names or a pattern",
        );
    }
    let mut settings = object(differing);
    let given = config
        .iter()
        .filter(|(key, value)| known.contains_key(*key) && !value.is_null());
    settings.extend(given.map(|(key, value)| (key.clone(), value.clone())));
    Ok(settings)
}
