//! Whether the settings of a run are in range, and name what there is.

use std::fmt;

use crate::config::{ConfigProblem, DecayType, PRETRAINED_TO, Scheduler, TrainConfig};
use crate::{decay_mixture, objective, optim};

impl TrainConfig {
    /// Checks all ranges.
    ///
    /// # Errors
    /// Every setting that is out of range, in the order of the fields.
    pub fn validate(&self) -> Result<(), Vec<ConfigProblem>> {
        let mut problems = Vec::new();
        let mut check = |ok: bool, field, value: &dyn fmt::Display, expected: &str| {
            if !ok {
                problems.push(ConfigProblem {
                    field,
                    reason: format!("{value} given, but it must be {expected}"),
                });
            }
        };
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let non_negative = |x: f64| x.is_finite() && x >= 0.0;
        let share = |x: f64| (0.0..=1.0).contains(&x);
        check(positive(self.lr), "lr", &self.lr, "a positive number");
        check(
            self.max_steps > 0 || positive(self.epochs),
            "epochs",
            &self.epochs,
            "a positive number unless `max_steps` is set",
        );
        check(
            self.epochs <= 1e6,
            "epochs",
            &self.epochs,
            "at most 1000000",
        );
        check(
            self.batch_size > 0,
            "batch_size",
            &self.batch_size,
            "at least 1",
        );
        check(
            self.max_tokens > 0,
            "max_tokens",
            &self.max_tokens,
            "at least 1",
        );
        let steps = self.gradient_accumulation_steps;
        check(
            steps > 0,
            "gradient_accumulation_steps",
            &steps,
            "at least 1",
        );
        check(
            non_negative(self.max_grad_norm),
            "max_grad_norm",
            &self.max_grad_norm,
            "0 (no clipping) or a positive number",
        );
        check(
            non_negative(self.weight_decay),
            "weight_decay",
            &self.weight_decay,
            "0 or a positive number",
        );
        check(
            (0.0..1.0).contains(&self.adam_beta1),
            "adam_beta1",
            &self.adam_beta1,
            "within 0 and 1 (excluded)",
        );
        check(
            (0.0..1.0).contains(&self.adam_beta2),
            "adam_beta2",
            &self.adam_beta2,
            "within 0 and 1 (excluded)",
        );
        check(
            positive(self.adam_epsilon),
            "adam_epsilon",
            &self.adam_epsilon,
            "a positive number",
        );
        check(
            share(self.warmup_ratio),
            "warmup_ratio",
            &self.warmup_ratio,
            "within 0 and 1",
        );
        check(
            share(self.decay_ratio),
            "decay_ratio",
            &self.decay_ratio,
            "within 0 and 1",
        );
        check(
            share(self.min_lr_ratio),
            "min_lr_ratio",
            &self.min_lr_ratio,
            "within 0 and 1",
        );
        check(
            (0.0..=self.lr).contains(&self.min_lr) || !positive(self.lr),
            "min_lr",
            &self.min_lr,
            "0, or a rate up to `lr`",
        );
        check(
            self.logging_steps > 0,
            "logging_steps",
            &self.logging_steps,
            "at least 1",
        );
        let metric = &self.metric_for_best_model;
        check(
            !metric.is_empty(),
            "metric_for_best_model",
            &"nothing",
            "the name of a metric, such as `loss` or `accuracy`",
        );
        let smoothing = self.label_smoothing;
        check(
            (0.0..1.0).contains(&smoothing),
            "label_smoothing",
            &smoothing,
            "within 0 and 1 (excluded)",
        );
        check(
            non_negative(self.neftune_noise_alpha),
            "neftune_noise_alpha",
            &self.neftune_noise_alpha,
            "0 (no noise) or a positive number",
        );
        problems.extend(decay(self));
        problems.extend(parts(self));
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems)
        }
    }

    /// The same with registered names in place of what transformers calls these parts.
    pub(crate) fn canonical(&self) -> Self {
        let mut config = self.clone();
        if let Ok(entry) = optim::find(&config.optim.name) {
            config.optim.name = entry.name.into();
        }
        config.objective.name = objective::canonical(&config.objective.name);
        config
    }
}

/// What is wrong with the decay of a schedule that has one, or is asked for it and has none.
fn decay(config: &TrainConfig) -> Vec<ConfigProblem> {
    let mut problems = Vec::new();
    let mut add = |field, reason: String| problems.push(ConfigProblem { field, reason });
    let half_life = config.decay_half_life;
    if !(half_life.is_finite() && half_life >= 0.0) {
        let reason = format!("{half_life} given, but it must be 0 or a positive number of steps");
        add("decay_half_life", reason);
    }
    let usual = TrainConfig::default();
    let wanted = [
        ("decay_ratio", config.decay_ratio != usual.decay_ratio),
        ("decay_type", config.decay_type != DecayType::default()),
        ("decay_steps", config.decay_steps > 0),
        ("decay_half_life", half_life > 0.0),
        ("decay_mixture", !config.decay_mixture.is_empty()),
    ];
    let scheduler = config.lr_scheduler_type;
    if scheduler != Scheduler::WarmupStableDecay {
        for (field, _) in wanted.into_iter().filter(|(_, given)| *given) {
            let reason = format!(
                "`lr_scheduler_type` is `{}`, which has no decay stage: take `warmup_stable_decay`",
                scheduler.name()
            );
            add(field, reason);
        }
        if scheduler == Scheduler::Constant {
            for (field, value) in ends(config) {
                let reason = format!(
                    "{value} given, but `lr_scheduler_type` is `constant`, which does not fall: leave it out"
                );
                add(field, reason);
            }
        }
        return problems;
    }
    let exponential = config.decay_type == DecayType::Exp;
    if half_life > 0.0 && !exponential {
        add(
            "decay_half_life",
            "only an `exp` decay halves: set `decay_type`".into(),
        );
    }
    if half_life > 0.0 && exponential {
        for (field, value) in ends(config) {
            let reason = format!(
                "{value} given, but `decay_half_life` says how far the rate falls: leave one of them out"
            );
            add(field, reason);
        }
    }
    let has_end = config.min_lr > 0.0 || config.min_lr_ratio > 0.0 || half_life > 0.0;
    if exponential && !has_end {
        let reason = "`exp` never gets to 0: give `decay_half_life`, or `min_lr_ratio` or `min_lr` above 0 to end at";
        add("decay_type", reason.into());
    }
    if !config.decay_mixture.is_empty() && config.decay_steps == 0 && config.decay_ratio == 0.0 {
        let reason = "the schedule has no decay: give `decay_steps` or `decay_ratio`";
        add("decay_mixture", reason.into());
    }
    if let Some(reason) = decay_mixture::problem(&config.decay_mixture) {
        add("decay_mixture", reason);
    }
    problems
}

/// What was given of where the rate ends; nobody has to have given what runs have by default.
fn ends(config: &TrainConfig) -> impl Iterator<Item = (&'static str, f64)> {
    let ends = [
        ("min_lr_ratio", config.min_lr_ratio),
        ("min_lr", config.min_lr),
    ];
    ends.into_iter()
        .filter(|(_, value)| *value > 0.0 && *value != PRETRAINED_TO)
}

/// What is wrong with the parts that are chosen by name.
fn parts(config: &TrainConfig) -> Vec<ConfigProblem> {
    let mut problems = Vec::new();
    let mut add = |field, reason| problems.push(ConfigProblem { field, reason });
    if let Err(reason) = optim::made(config) {
        add("optim", reason);
    }
    // Without a name the model decides which one it is, and only then its settings are known.
    if !config.objective.name.is_empty()
        && let Err(reason) = objective::made(&config.objective, config)
    {
        add("objective", reason);
    }
    for group in &config.param_groups {
        if let Some(reason) = group.problem() {
            add("param_groups", reason);
        }
    }
    problems
}
